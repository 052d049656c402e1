//! What a simulation is about: a pool of events, wishes (naive filters) and a store that is a list.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::OnceLock;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::nostr::{Event, Filter, Id};
use crate::relay::ports::{ExpiringBytes, Sequence};

/// A seeded stream of numbers (splitmix64).
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("below a usize")
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// The hash of all that happened.
#[derive(Default)]
pub struct Trace(DefaultHasher);

impl Trace {
    pub fn add(&mut self, what: impl Hash) {
        what.hash(&mut self.0);
    }

    pub fn sum(&self) -> u64 {
        self.0.finish()
    }
}

/// One event of the pool, in the terms a wish asks for.
pub struct Note {
    pub id: Id,
    pub json: String,
    author: u8,
    kind: u16,
    topic: u8,
    created_at: u64,
    expires_at: Option<u64>,
}

/// Names an event of the pool.
pub type NoteIndex = usize;

const AUTHORS: usize = 4;
const KINDS: [u16; 3] = [1, 7, 20_001];
const TOPICS: usize = 4;
const FIRST_SECOND: u64 = 1_700_000_000;
const SECONDS: usize = 12;

/// When a history begins, and how long it takes, about, in seconds.
pub const BEGIN_S: u64 = FIRST_SECOND + 100;
const HISTORY_S: usize = 8;

fn pubkey(author: u8) -> String {
    format!("{:02x}", author + 1).repeat(32)
}

impl Note {
    fn new(number: usize, rng: &mut Rng) -> Self {
        let author = u8::try_from(rng.below(AUTHORS)).expect("few authors");
        let kind = rng.pick(&KINDS);
        let topic = u8::try_from(rng.below(TOPICS)).expect("few topics");
        let created_at = FIRST_SECOND + rng.below(SECONDS) as u64;
        // One in ten is too long for a small outbox, one in forty for a copied frame.
        let long = [400, 1500][usize::from(rng.chance(25))] * usize::from(rng.chance(10));
        let expires_at = rng.chance(20).then(|| BEGIN_S + 1 + rng.below(HISTORY_S) as u64);
        let expiration =
            expires_at.map_or("[\"x\"]".into(), |at| format!(r#"["expiration","{at}"]"#));
        let tags = format!(r#"[["t","{topic}"],{expiration}]"#);
        let content = format!("{number}{}", "·".repeat(long));
        let author_hex = pubkey(author);
        let hashed = format!(r#"[0,"{author_hex}",{created_at},{kind},{tags},"{content}"]"#);
        let id: Id = Sha256::digest(hashed).into();
        let json = format!(
            r#"{{"id":"{}","pubkey":"{author_hex}","created_at":{created_at},"kind":{kind},"tags":{tags},"content":"{content}","sig":"{}"}}"#,
            faster_hex::hex_string(&id),
            "0".repeat(128)
        );
        Self { id, json, author, kind, topic, created_at, expires_at }
    }

    pub fn is_ephemeral(&self) -> bool {
        (20_000..30_000).contains(&self.kind)
    }

    /// What a slice holds of it.
    pub fn bytes(&self) -> ExpiringBytes {
        ExpiringBytes::new(self.json.clone().into(), self.expires_at)
    }

    pub fn is_expired(&self, unix_s: u64) -> bool {
        self.expires_at.is_some_and(|at| at <= unix_s)
    }
}

/// All events any simulation sends; hashed once.
pub fn pool() -> &'static [Note] {
    static POOL: OnceLock<Vec<Note>> = OnceLock::new();
    POOL.get_or_init(|| {
        let mut rng = Rng(7);
        (0..400).map(|number| Note::new(number, &mut rng)).collect()
    })
}

/// Bytes of the longest event.
pub fn longest_json() -> usize {
    static LONGEST: OnceLock<usize> = OnceLock::new();
    *LONGEST.get_or_init(|| pool().iter().map(|note| note.json.len()).max().expect("a pool"))
}

/// The event of this id.
pub fn note_of(id: &Id) -> Option<NoteIndex> {
    static BY_ID: OnceLock<BTreeMap<Id, NoteIndex>> = OnceLock::new();
    let by_id = BY_ID.get_or_init(|| (0..).zip(pool()).map(|(n, note)| (note.id, n)).collect());
    by_id.get(id).copied()
}

/// A filter, naively.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    kinds: Option<Vec<u16>>,
    authors: Option<Vec<u8>>,
    topics: Option<Vec<u8>>,
    since: Option<u64>,
    until: Option<u64>,
    limit: Option<usize>,
}

impl Wish {
    pub fn random(rng: &mut Rng) -> Self {
        let small = |rng: &mut Rng, end: usize| {
            let count = rng.below(3) + usize::from(rng.chance(95));
            (0..count).map(|_| u8::try_from(rng.below(end)).expect("small")).collect::<Vec<_>>()
        };
        let second = |rng: &mut Rng| FIRST_SECOND + rng.below(SECONDS) as u64;
        let mut wish = Self::default();
        if rng.chance(30) {
            wish.kinds = Some((0..=rng.below(2)).map(|_| rng.pick(&KINDS)).collect());
        }
        if rng.chance(30) {
            wish.authors = Some(small(rng, AUTHORS));
        }
        if rng.chance(30) {
            wish.topics = Some(small(rng, TOPICS));
        }
        if rng.chance(15) {
            wish.since = Some(second(rng));
        }
        if rng.chance(15) {
            wish.until = Some(second(rng));
        }
        if rng.chance(40) {
            wish.limit = Some(rng.below(12));
        }
        wish
    }

    pub fn json(&self) -> Value {
        let mut json = json!({});
        if let Some(kinds) = &self.kinds {
            json["kinds"] = json!(kinds);
        }
        if let Some(authors) = &self.authors {
            json["authors"] = authors.iter().map(|author| pubkey(*author)).collect();
        }
        if let Some(topics) = &self.topics {
            json["#t"] = topics.iter().map(ToString::to_string).collect();
        }
        for (key, bound) in [("since", self.since), ("until", self.until)] {
            if let Some(bound) = bound {
                json[key] = json!(bound);
            }
        }
        if let Some(limit) = self.limit {
            json["limit"] = json!(limit);
        }
        json
    }

    /// What its stored query is charged with: a range, each value once, and each event it may return.
    pub fn cost(&self, limit_max: u32) -> u64 {
        fn values<T: Ord>(list: Option<&Vec<T>>) -> usize {
            list.map_or(0, |list| list.iter().collect::<BTreeSet<_>>().len())
        }
        let lists = values(self.kinds.as_ref())
            + values(self.authors.as_ref())
            + values(self.topics.as_ref());
        let limit = self.limit.map_or(limit_max as usize, |limit| limit.min(limit_max as usize));
        if self.wants_stored() { (1 + lists + limit) as u64 } else { 0 }
    }

    pub fn matches(&self, note: NoteIndex) -> bool {
        let note = &pool()[note];
        self.kinds.as_ref().is_none_or(|kinds| kinds.contains(&note.kind))
            && self.authors.as_ref().is_none_or(|authors| authors.contains(&note.author))
            && self.topics.as_ref().is_none_or(|topics| topics.contains(&note.topic))
            && self.since.is_none_or(|since| note.created_at >= since)
            && self.until.is_none_or(|until| note.created_at <= until)
    }

    /// Whether a stored query is worth its while; one that is skipped would be empty.
    pub fn wants_stored(&self) -> bool {
        let empty =
            [&self.authors, &self.topics].iter().any(|l| l.as_ref().is_some_and(Vec::is_empty));
        let backwards = matches!((self.since, self.until), (Some(s), Some(u)) if s > u);
        self.limit != Some(0) && !empty && !backwards
    }
}

/// The durable events: sequence number = place in the list, from 1.
#[derive(Default)]
pub struct Log {
    events: Vec<(NoteIndex, Event)>,
    held: BTreeSet<NoteIndex>,
}

/// NIP-01 order: newest first, lowest id on a tie.
fn rank(note: NoteIndex) -> impl Ord {
    (std::cmp::Reverse(pool()[note].created_at), pool()[note].id)
}

impl Log {
    pub fn last(&self) -> Sequence {
        self.events.len() as Sequence
    }

    pub fn holds(&self, note: NoteIndex) -> bool {
        self.held.contains(&note)
    }

    pub fn push(&mut self, note: NoteIndex, event: Event) -> Sequence {
        self.events.push((note, event));
        self.held.insert(note);
        self.last()
    }

    /// Selects among the events up to a sequence number that have not expired.
    fn select(
        &self,
        (up_to, unix_s): (Sequence, u64),
        matches: impl Fn(NoteIndex, &Event) -> bool,
        limit: usize,
    ) -> Vec<NoteIndex> {
        let events = &self.events[..usize::try_from(up_to).expect("a place in the list")];
        let hits = events
            .iter()
            .filter(|(note, event)| matches(*note, event) && !pool()[*note].is_expired(unix_s));
        let mut hits: Vec<_> = hits.map(|(note, _)| *note).collect();
        hits.sort_unstable_by_key(|note| rank(*note));
        hits.truncate(limit);
        hits
    }

    /// What the relay's own filters select.
    pub fn query(
        &self,
        (up_to, unix_s): (Sequence, u64),
        filters: &[Filter],
        limit_max: usize,
    ) -> Vec<NoteIndex> {
        merge(filters.iter().map(|filter| {
            let limit = filter.limit.map_or(limit_max as u64, |limit| limit.min(limit_max as u64));
            let limit = usize::try_from(limit).expect("it is not above limit_max");
            self.select((up_to, unix_s), |_, event| filter.matches(event.view()), limit)
        }))
    }

    /// What the wishes select.
    pub fn wished(
        &self,
        (up_to, unix_s): (Sequence, u64),
        wishes: &[Wish],
        limit_max: usize,
    ) -> Vec<NoteIndex> {
        merge(wishes.iter().map(|wish| {
            let limit = wish.limit.map_or(limit_max, |limit| limit_max.min(limit));
            self.select((up_to, unix_s), |note, _| wish.matches(note), limit)
        }))
    }
}

fn merge(parts: impl Iterator<Item = Vec<NoteIndex>>) -> Vec<NoteIndex> {
    let mut all: Vec<_> = parts.flatten().collect::<BTreeSet<_>>().into_iter().collect();
    all.sort_by_key(|note| rank(*note));
    all
}
