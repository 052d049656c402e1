//! NIP-01 done the naive way: what a relay must answer to each EVENT, and what each filter selects.
//!
//! It knows nothing of the product's code. Everything is a loop over a list.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Map, Value};

use super::Event;

/// One filter; `None` is an absent field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub ids: Option<Vec<String>>,
    pub authors: Option<Vec<String>>,
    pub kinds: Option<Vec<u16>>,
    pub tags: BTreeMap<char, Vec<String>>,
    pub since: Option<u64>,
    pub until: Option<u64>,
    pub limit: Option<u64>,
}

impl Filter {
    /// Matches nothing, stored or live.
    pub fn nothing() -> Self {
        Self::default().kinds([])
    }

    pub fn ids<'a>(mut self, ids: impl IntoIterator<Item = &'a str>) -> Self {
        self.ids = Some(ids.into_iter().map(String::from).collect());
        self
    }

    pub fn authors(mut self, authors: impl IntoIterator<Item = String>) -> Self {
        self.authors = Some(authors.into_iter().collect());
        self
    }

    pub fn kinds(mut self, kinds: impl IntoIterator<Item = u16>) -> Self {
        self.kinds = Some(kinds.into_iter().collect());
        self
    }

    pub fn tag<'a>(mut self, letter: char, values: impl IntoIterator<Item = &'a str>) -> Self {
        self.tags.insert(letter, values.into_iter().map(String::from).collect());
        self
    }

    pub fn until(mut self, until: u64) -> Self {
        self.until = Some(until);
        self
    }

    pub fn limit(mut self, limit: u64) -> Self {
        self.limit = Some(limit);
        self
    }

    pub fn json(&self) -> Value {
        let mut map = Map::new();
        let mut put = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                map.insert(key.into(), value);
            }
        };
        put("ids", self.ids.clone().map(Value::from));
        put("authors", self.authors.clone().map(Value::from));
        put("kinds", self.kinds.clone().map(Value::from));
        put("since", self.since.map(Value::from));
        put("until", self.until.map(Value::from));
        put("limit", self.limit.map(Value::from));
        for (letter, values) in &self.tags {
            put(&format!("#{letter}"), Some(Value::from(values.clone())));
        }
        Value::from(map)
    }

    /// Whether an event matches, limit aside.
    pub fn matches(&self, event: &Event) -> bool {
        let among = |list: &Option<Vec<String>>, value: &String| {
            list.as_ref().is_none_or(|list| list.contains(value))
        };
        among(&self.ids, &event.id)
            && among(&self.authors, &event.pubkey)
            && self.kinds.as_ref().is_none_or(|kinds| kinds.contains(&event.kind))
            && self.since.is_none_or(|since| since <= event.created_at)
            && self.until.is_none_or(|until| event.created_at <= until)
            && self.tags.iter().all(|(letter, values)| {
                event.tags.iter().any(|tag| {
                    let name = letter.to_string();
                    tag[0] == name && tag.get(1).is_some_and(|value| values.contains(value))
                })
            })
    }
}

/// The parts of the verdict that are policy, to be switched as policy comes.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The time at which everything happens.
    pub now: u64,
    pub event_tags_max: usize,
    pub content_chars_max: usize,
    /// 0 = any.
    pub created_at_age_s_max: u64,
    /// 0 = any.
    pub created_at_ahead_s_max: u64,
    /// NIP-40: refuse what has expired.
    pub expiry: bool,
    /// NIP-70 without NIP-42: refuse every protected event.
    pub refuse_protected: bool,
    /// NIP-62: what a `relay` tag may name besides `ALL_RELAYS`.
    pub names: Vec<String>,
}

impl Rules {
    /// The limits with which the corpus goes in whole.
    pub fn open(now: u64) -> Self {
        Self {
            now,
            event_tags_max: 2_000,
            content_chars_max: 262_144,
            created_at_age_s_max: 0,
            created_at_ahead_s_max: 0,
            expiry: true,
            refuse_protected: true,
            names: Vec::new(),
        }
    }
}

/// What an OK must say: whether taken, and the prefix of its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Verdict {
    pub accepted: bool,
    /// `""` = no text.
    pub prefix: &'static str,
}

impl Verdict {
    const fn new(accepted: bool, prefix: &'static str) -> Self {
        Self { accepted, prefix }
    }

    pub const STORED: Self = Self::new(true, "");
    pub const DUPLICATE: Self = Self::new(true, "duplicate");
    pub const SUPERSEDED: Self = Self::new(false, "duplicate");
    pub const INVALID: Self = Self::new(false, "invalid");
    pub const BLOCKED: Self = Self::new(false, "blocked");
    pub const RESTRICTED: Self = Self::new(false, "restricted");
    /// An ephemeral event nobody listens to.
    pub const MUTE: Self = Self::new(false, "mute");

    /// Whether an OK says this.
    pub fn is(self, (accepted, text): &(bool, String)) -> bool {
        let prefix = text.split_once(": ").map_or("", |(prefix, _)| prefix);
        *accepted == self.accepted
            && prefix == self.prefix
            && text.is_empty() == (prefix.is_empty())
    }
}

/// Kind, author and `d`: what a replaceable or addressable event is a version of.
pub type Address = (u16, String, String);

/// Everything stored so far, and everything forbidden.
#[derive(Clone, Debug)]
pub struct Oracle {
    pub rules: Rules,
    events: HashMap<String, Event>,
    /// The newest version ever seen, deleted ones too.
    newest: HashMap<Address, Event>,
    /// (event id, who asked).
    deleted_ids: HashSet<(String, String)>,
    deleted_addresses: HashMap<Address, u64>,
    vanished: HashMap<String, u64>,
}

impl Oracle {
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            events: HashMap::new(),
            newest: HashMap::new(),
            deleted_ids: HashSet::new(),
            deleted_addresses: HashMap::new(),
            vanished: HashMap::new(),
        }
    }

    /// What the relay must answer to this event, after all those before it.
    pub fn submit(&mut self, event: &Event) -> Verdict {
        if let Some(refused) = self.policy(event) {
            return refused;
        }
        if (20_000..30_000).contains(&event.kind) {
            return Verdict::MUTE;
        }
        if self.events.contains_key(&event.id) {
            return Verdict::DUPLICATE;
        }
        if self.is_vanished(event) {
            if event.kind == 5 {
                self.delete(event);
            }
            return Verdict::BLOCKED;
        }
        let deleted = self.is_deleted(event);
        if let Some(address) = address(event) {
            if let Some(newest) = self.newest.get(&address) {
                if order(newest) < order(event) {
                    return if deleted { Verdict::BLOCKED } else { Verdict::SUPERSEDED };
                }
                self.events.remove(&newest.id);
            }
            self.newest.insert(address, event.clone());
        }
        if deleted {
            return Verdict::BLOCKED;
        }
        self.events.insert(event.id.clone(), event.clone());
        match event.kind {
            5 => self.delete(event),
            62 => self.vanish(event),
            _ => {}
        }
        Verdict::STORED
    }

    fn policy(&self, event: &Event) -> Option<Verdict> {
        let rules = &self.rules;
        let expiration = event.tag("expiration").and_then(|value| value.parse::<u64>().ok());
        let (age, ahead) = (rules.created_at_age_s_max, rules.created_at_ahead_s_max);
        let invalid = event.tags.len() > rules.event_tags_max
            || event.content.chars().count() > rules.content_chars_max
            || (age > 0 && event.created_at + age < rules.now)
            || (ahead > 0 && event.created_at > rules.now + ahead)
            || (rules.expiry && expiration.is_some_and(|at| at <= rules.now))
            || event.kind == 22242;
        if invalid {
            Some(Verdict::INVALID)
        } else if rules.refuse_protected && event.tag_names().any(|name| name == "-") {
            Some(Verdict::RESTRICTED)
        } else {
            None
        }
    }

    fn is_vanished(&self, event: &Event) -> bool {
        let gone = |key: &str| self.vanished.get(key).is_some_and(|at| event.created_at <= *at);
        let own = gone(&event.pubkey) && event.kind != 62;
        own || (event.kind == 1059 && recipients(event).any(gone))
    }

    fn is_deleted(&self, event: &Event) -> bool {
        if matches!(event.kind, 5 | 62) {
            return false;
        }
        let asked = |who: &str| self.deleted_ids.contains(&(event.id.clone(), who.into()));
        asked(&event.pubkey)
            || (event.kind == 1059 && recipients(event).any(asked))
            || address(event).is_some_and(|address| {
                self.deleted_addresses.get(&address).is_some_and(|at| event.created_at <= *at)
            })
    }

    fn delete(&mut self, request: &Event) {
        for tag in &request.tags {
            match (tag[0].as_str(), tag.get(1)) {
                ("e", Some(id)) => {
                    self.deleted_ids.insert((id.clone(), request.pubkey.clone()));
                }
                ("a", Some(value)) => {
                    let parts: Vec<_> = value.splitn(3, ':').collect();
                    let [kind, pubkey, d] = parts[..] else { continue };
                    let Ok(kind) = kind.parse() else { continue };
                    if pubkey == request.pubkey {
                        let address = (kind, pubkey.to_owned(), d.to_owned());
                        let at = self.deleted_addresses.entry(address).or_default();
                        *at = request.created_at.max(*at);
                    }
                }
                _ => {}
            }
        }
        let gone: Vec<_> = self.events.values().filter(|event| self.is_deleted(event)).collect();
        let gone: Vec<_> = gone.into_iter().map(|event| event.id.clone()).collect();
        gone.iter().for_each(|id| drop(self.events.remove(id)));
    }

    fn vanish(&mut self, request: &Event) {
        let named = |value: &String| value == "ALL_RELAYS" || self.rules.names.contains(value);
        let mut tags = request.tags.iter();
        if !tags.any(|tag| tag[0] == "relay" && tag.get(1).is_some_and(named)) {
            return;
        }
        let at = self.vanished.entry(request.pubkey.clone()).or_default();
        *at = request.created_at.max(*at);
        let gone: Vec<_> = self.events.values().filter(|event| self.is_vanished(event)).collect();
        let gone: Vec<_> = gone.into_iter().map(|event| event.id.clone()).collect();
        gone.iter().for_each(|id| drop(self.events.remove(id)));
    }

    /// What is stored, newest first, lowest id first on a tie.
    pub fn stored(&self) -> Vec<&Event> {
        let mut events: Vec<_> = self.events.values().collect();
        events.sort_by_key(|event| order(event));
        events
    }

    pub fn contains(&self, id: &str) -> bool {
        self.events.contains_key(id)
    }
}

impl Event {
    fn tag_names(&self) -> impl Iterator<Item = &str> {
        self.tags.iter().map(|tag| tag[0].as_str())
    }
}

/// Newest first, lowest id first on a tie.
pub fn order(event: &Event) -> (std::cmp::Reverse<u64>, &str) {
    (std::cmp::Reverse(event.created_at), &event.id)
}

/// What a REQ with these filters must bring, in order, from `events` in order.
pub fn select<'a>(events: &[&'a Event], filters: &[Filter], limit_max: u64) -> Vec<&'a Event> {
    let mut selected: Vec<&Event> = Vec::new();
    for filter in filters {
        let limit = filter.limit.unwrap_or(limit_max).min(limit_max);
        let limit = usize::try_from(limit).expect("64 bits");
        selected.extend(events.iter().filter(|event| filter.matches(event)).take(limit));
    }
    selected.sort_by_key(|event| order(event));
    selected.dedup_by_key(|event| &event.id);
    selected
}

/// The address of a replaceable or addressable event.
pub fn address(event: &Event) -> Option<Address> {
    let d = match event.kind {
        0 | 3 | 10_000..20_000 => "",
        30_000..40_000 => {
            let mut values = event.tags.iter().filter(|tag| tag[0] == "d");
            values.find_map(|tag| tag.get(1)).map_or("", |d| d)
        }
        _ => return None,
    };
    Some((event.kind, event.pubkey.clone(), d.into()))
}

/// The keys a gift wrap is for (NIP-59).
pub fn recipients(event: &Event) -> impl Iterator<Item = &str> {
    let p = event.tags.iter().filter(|tag| tag[0] == "p");
    p.filter_map(|tag| tag.get(1)).map(String::as_str)
}

/// The oracle against answers worked out by hand.
#[test]
fn the_oracle_knows_nip_01() {
    use super::{Author, Draft};
    let (a, b) = (Author::new(1), Author::new(2));
    let mut oracle = Oracle::new(Rules::open(1_000));
    let profile = |at| Draft::new(0, at).content("{}").sign(&a);
    assert_eq!(oracle.submit(&profile(10)), Verdict::STORED);
    assert_eq!(oracle.submit(&profile(10)), Verdict::DUPLICATE);
    assert_eq!(oracle.submit(&profile(9)), Verdict::SUPERSEDED);
    assert_eq!(oracle.submit(&profile(11)), Verdict::STORED);
    assert_eq!(oracle.submit(&profile(10)), Verdict::SUPERSEDED);
    assert_eq!(oracle.stored(), [&profile(11)]);
    let note = a.note(5, "x");
    let stranger = Draft::new(5, 12).tag(["e", &note.id]).sign(&b);
    let owner = Draft::new(5, 12).tag(["e", &note.id]).sign(&a);
    assert_eq!(oracle.submit(&stranger), Verdict::STORED);
    assert_eq!(oracle.submit(&note), Verdict::STORED);
    assert_eq!(oracle.submit(&owner), Verdict::STORED);
    assert!(!oracle.contains(&note.id));
    assert_eq!(oracle.submit(&note), Verdict::BLOCKED);
    let expired = Draft::new(1, 5).tag(["expiration", "1000"]).sign(&a);
    assert_eq!(oracle.submit(&expired), Verdict::INVALID);
    let filters = [Filter::default().kinds([5]).limit(1), Filter::default().limit(1)];
    let lowest = stranger.id.clone().min(owner.id.clone());
    let stored = oracle.stored();
    let found: Vec<_> = select(&stored, &filters, 500).iter().map(|e| &e.id).collect();
    assert_eq!(found, [&lowest], "the same event for both filters");
}
