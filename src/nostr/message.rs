//! Messages from and to clients (NIP-01, "Communication between clients and relays").

use super::event::Id;
use super::filter::Filter;
use super::json::{Items, Parser, Value, write_string};
use super::parse::{Candidate, EventReader};
use super::sketch::{Sketch, SketchOffset};
use super::tag::{TagValue, decode_hex32};

/// Most characters of a subscription id (NIP-01).
pub const SUBSCRIPTION_ID_CHARS_MAX: usize = 64;

/// A subscription id, kept as the JSON string the relay answers with: quoted and escaped one way,
/// so equal ids have equal bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SubscriptionId(Box<[u8]>);

impl SubscriptionId {
    /// The id for 1 to 64 characters of text.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let chars = text.chars().take(SUBSCRIPTION_ID_CHARS_MAX + 1).count();
        (1..=SUBSCRIPTION_ID_CHARS_MAX).contains(&chars).then(|| {
            let mut json = Vec::new();
            write_string(&mut json, text);
            Self(json.into())
        })
    }

    /// The id as a JSON string, quotes included.
    #[must_use]
    pub fn json(&self) -> &[u8] {
        &self.0
    }
}

/// What a client says.
#[derive(Debug)]
pub enum ClientMessage {
    /// `["EVENT", {event}]`
    Event(Candidate),
    /// `["REQ", id, {filter}…]`
    Req {
        /// Subscription to open or replace.
        subscription: SubscriptionId,
        /// At least one.
        filters: Vec<Filter>,
    },
    /// `["CLOSE", id]`
    Close {
        /// Subscription to end.
        subscription: SubscriptionId,
    },
    /// `["COUNT", id, {filter}…]` (NIP-45)
    Count {
        /// What the answer is to name; no subscription.
        query: SubscriptionId,
        /// At least one.
        filters: Vec<Filter>,
        /// Where a sketch of the authors looks, if the filters allow one.
        sketch: Option<SketchOffset>,
    },
}

/// A message the relay cannot act on, and whom the answer names.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// Answered `OK false`.
    Event {
        /// The event's id as the client wrote it.
        id: Id,
        /// Text with its prefix.
        reason: String,
    },
    /// Answered `CLOSED`.
    Subscription {
        /// The subscription the client named.
        subscription: SubscriptionId,
        /// Text with its prefix.
        reason: String,
    },
    /// Answered `CLOSED`, which ends no subscription.
    Count {
        /// The query the client named.
        query: SubscriptionId,
        /// Text with its prefix.
        reason: String,
    },
    /// Answered `NOTICE`.
    Message {
        /// Text with its prefix.
        reason: String,
    },
}

impl Refused {
    fn message(reason: &str) -> Self {
        Self::Message { reason: format!("invalid: {reason}") }
    }
}

/// Most values in the filters of one REQ or COUNT, over all lists: bounds what one may cost.
#[derive(Clone, Copy, Debug)]
pub struct FilterBounds {
    /// Filters in one message.
    pub filters_max: usize,
    /// Values over all lists of all filters.
    pub values_max: usize,
    /// Whether a REQ may search (NIP-50).
    pub search: bool,
}

/// Reads client messages; keeps its buffers from one to the next.
#[derive(Default)]
pub struct MessageReader {
    parser: Parser,
    events: EventReader,
}

impl MessageReader {
    /// Reads one message. `text` is UTF-8 and is rewritten.
    ///
    /// # Errors
    /// The refusal to answer with.
    pub fn read(
        &mut self,
        text: &mut [u8],
        bounds: FilterBounds,
    ) -> Result<ClientMessage, Refused> {
        let events = &mut self.events;
        match self.parser.parse(text, |value| read_message(events, value, bounds)) {
            Some(result) => result,
            None => Err(not_json(text)),
        }
    }

    /// Reads one event object, as JSONL files hold them.
    ///
    /// # Errors
    /// What is wrong, without a prefix.
    pub fn read_event(&mut self, text: &mut [u8]) -> Result<Candidate, &'static str> {
        let events = &mut self.events;
        let read = |value: Value<'_, '_>| events.read(value).map_err(|error| error.reason);
        self.parser.parse(text, read).unwrap_or(Err("not JSON"))
    }

    /// Reads one filter object, as the command line takes it.
    ///
    /// # Errors
    /// What is wrong, with its prefix.
    pub fn read_filter(&mut self, text: &mut [u8]) -> Result<Filter, String> {
        let mut budget = usize::MAX;
        self.parser
            .parse(text, |value| read_filter(value, &mut budget, false))
            .unwrap_or_else(|| Err("invalid: not JSON".into()))
    }
}

fn read_message(
    events: &mut EventReader,
    value: Value<'_, '_>,
    bounds: FilterBounds,
) -> Result<ClientMessage, Refused> {
    let mut items =
        value.as_array().ok_or_else(|| Refused::message("a message must be an array"))?;
    let verb = items
        .next()
        .and_then(Value::as_str)
        .ok_or_else(|| Refused::message("a message must begin with its type"))?;
    match verb {
        "EVENT" => {
            let event = items.next().ok_or_else(|| Refused::message("EVENT needs an event"))?;
            let candidate = events.read(event).map_err(|error| match error.id {
                Some(id) => Refused::Event { id, reason: format!("invalid: {}", error.reason) },
                None => Refused::message(error.reason),
            })?;
            if items.next().is_some() {
                let id = *candidate.event().view().id();
                return Err(Refused::Event { id, reason: "invalid: EVENT takes one event".into() });
            }
            Ok(ClientMessage::Event(candidate))
        }
        "REQ" => {
            let subscription = read_subscription_id(&mut items)?;
            match read_filters("REQ", items, bounds) {
                Ok(filters) => Ok(ClientMessage::Req { subscription, filters }),
                Err(reason) => Err(Refused::Subscription { subscription, reason }),
            }
        }
        "CLOSE" => {
            let subscription = read_subscription_id(&mut items)?;
            if items.next().is_some() {
                return Err(Refused::message("CLOSE takes one subscription id"));
            }
            Ok(ClientMessage::Close { subscription })
        }
        "COUNT" => {
            let query = read_subscription_id(&mut items)?;
            let sketch = read_sketch_offset(items.clone());
            match read_filters("COUNT", items, FilterBounds { search: false, ..bounds }) {
                Ok(filters) => Ok(ClientMessage::Count { query, filters, sketch }),
                Err(reason) => Err(Refused::Count { query, reason }),
            }
        }
        "AUTH" => Err(match items.next().and_then(|event| events.read(event).ok()) {
            Some(candidate) => Refused::Event {
                id: *candidate.event().view().id(),
                reason: "error: this relay does not ask for authentication".into(),
            },
            None => Refused::message("AUTH needs an event"),
        }),
        _ => {
            let name: String = verb.chars().take(20).collect();
            Err(Refused::Message { reason: format!("unsupported: no message type {name:?}") })
        }
    }
}

fn read_subscription_id(items: &mut Items<'_, '_>) -> Result<SubscriptionId, Refused> {
    items
        .next()
        .and_then(Value::as_str)
        .and_then(SubscriptionId::new)
        .ok_or_else(|| Refused::message("a subscription id must be a string of 1 to 64 characters"))
}

/// Where the sketch of a COUNT's authors looks: the first tag field of its only filter says it, by its
/// first value, both as they were written (NIP-45, "`offset` computation").
fn read_sketch_offset(mut filters: Items<'_, '_>) -> Option<SketchOffset> {
    let mut fields = filters.next().filter(|_| filters.len() == 0)?.as_object()?;
    while let (Some(key), Some(values)) = (fields.next(), fields.next()) {
        if key.as_str().is_some_and(|key| key.starts_with('#')) {
            return values.as_array()?.next()?.as_str().map(SketchOffset::of);
        }
    }
    None
}

fn read_filters(
    verb: &str,
    items: Items<'_, '_>,
    bounds: FilterBounds,
) -> Result<Vec<Filter>, String> {
    match items.len() {
        0 => return Err(format!("invalid: {verb} needs a filter")),
        n if n > bounds.filters_max => {
            return Err(format!("invalid: at most {} filters in a {verb}", bounds.filters_max));
        }
        _ => {}
    }
    let mut budget = bounds.values_max;
    let too_many = || format!("invalid: at most {} values in a {verb}", bounds.values_max);
    let filters: Vec<Filter> = items
        .map(|value| read_filter(value, &mut budget, bounds.search))
        .collect::<Result<_, _>>()
        .map_err(|reason| if reason.is_empty() { too_many() } else { reason })?;
    match filters.len() > 1 && filters.iter().any(|filter| filter.search.is_some()) {
        true => Err(format!("unsupported: a {verb} that searches has one filter")),
        false => Ok(filters),
    }
}

/// Reads one filter and takes its values from `budget`; an empty error text when that is used up.
fn read_filter(
    value: Value<'_, '_>,
    budget: &mut usize,
    may_search: bool,
) -> Result<Filter, String> {
    let mut items = value.as_object().ok_or("invalid: a filter must be an object")?;
    if items.has_duplicate_key() {
        return Err("invalid: a filter has a key twice".into());
    }
    let mut filter = Filter::default();
    let mut take = |value: Value<'_, '_>| {
        let items = value.as_array().map_or(0, |items| items.len());
        *budget = budget.checked_sub(items).ok_or_else(String::new)?;
        Ok::<_, String>(())
    };
    while let (Some(key), Some(value)) = (items.next(), items.next()) {
        let key = key.as_str().unwrap_or_default();
        match key {
            "ids" | "authors" | "kinds" => take(value)?,
            _ if key.starts_with('#') => take(value)?,
            _ => {}
        }
        match key.as_bytes() {
            b"ids" => filter.ids = Some(read_keys(value, "ids")?),
            b"authors" => filter.authors = Some(read_keys(value, "authors")?),
            b"kinds" => {
                filter.kinds =
                    Some(read_list(value, "kinds", "integers from 0 to 65535", |item| {
                        item.as_u64().and_then(|kind| u16::try_from(kind).ok())
                    })?);
            }
            b"since" => filter.since = Some(read_number(value, "since")?),
            b"until" => filter.until = Some(read_number(value, "until")?),
            b"search" if may_search => {
                filter.search = words_of(value.as_str().ok_or("invalid: search must be a string")?);
            }
            b"limit" => filter.limit = Some(read_number(value, "limit")?),
            [b'#', letter] if letter.is_ascii_alphabetic() => {
                let values = read_tag_values(value, *letter)?;
                filter.tags.push((*letter, values));
            }
            _ => {
                let name: String = key.chars().take(20).collect();
                return Err(format!("unsupported: no filter field {name:?}"));
            }
        }
    }
    filter.tags.sort_unstable();
    Ok(filter)
}

/// A search without its extensions, `key:value`, of which none is known here (NIP-50); `None` when nothing is
/// left.
fn words_of(search: &str) -> Option<String> {
    // An address (NIP-21, or any with `//`), a time of day and what is quoted are words.
    let is_extension = |word: &str| {
        word.split_once(':').is_some_and(|(key, value)| {
            let is_key = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_lowercase());
            is_key && key != "nostr" && !value.is_empty() && !value.starts_with("//")
        })
    };
    let mut quoted = false;
    let mut words = Vec::new();
    for word in search.split_whitespace() {
        if quoted || word.contains('"') || !is_extension(word) {
            words.push(word);
        }
        quoted ^= word.bytes().filter(|byte| *byte == b'"').count() % 2 == 1;
    }
    (!words.is_empty()).then(|| words.join(" "))
}

fn read_number(value: Value<'_, '_>, key: &str) -> Result<u64, String> {
    value.as_u64().ok_or_else(|| format!("invalid: {key} must be an unsigned integer"))
}

fn read_keys(value: Value<'_, '_>, key: &str) -> Result<Vec<[u8; 32]>, String> {
    read_list(value, key, "strings of 64 lowercase hex characters", |item| {
        item.as_str().and_then(|text| decode_hex32(text.as_bytes()))
    })
}

/// `#e` and `#p` take only ids and keys (NIP-01); every other letter takes any string.
fn read_tag_values(value: Value<'_, '_>, letter: u8) -> Result<Vec<TagValue>, String> {
    let key = format!("#{}", char::from(letter));
    if matches!(letter, b'e' | b'p') {
        let keys = read_keys(value, &key)?;
        return Ok(keys.into_iter().map(TagValue::Hex).collect());
    }
    read_list(value, &key, "strings", |item| item.as_str().map(TagValue::new))
}

fn read_list<T: Ord>(
    value: Value<'_, '_>,
    key: &str,
    what: &str,
    read: impl Fn(Value<'_, '_>) -> Option<T>,
) -> Result<Vec<T>, String> {
    let refuse = || format!("invalid: {key} must be an array of {what}");
    let items = value.as_array().ok_or_else(refuse)?;
    let mut list = items.map(read).collect::<Option<Vec<T>>>().ok_or_else(refuse)?;
    list.sort_unstable();
    list.dedup();
    Ok(list)
}

/// The answer to text that is not JSON. A client that sent an EVENT waits for an OK, so its id is
/// looked for in the raw text; escapes cannot hide in 64 hex characters. The parser may have unescaped
/// a content that quotes another event, so an id counts only where no other stands beside it.
fn not_json(text: &[u8]) -> Refused {
    const KEY: &[u8] = b"\"id\":";
    let is_event = text.trim_ascii_start().starts_with(b"[\"EVENT\"");
    let starts = (0..text.len()).filter(|at| is_event && text[*at..].starts_with(KEY));
    let mut ids = starts.filter_map(|at| {
        let rest = text[at + KEY.len()..].trim_ascii_start().strip_prefix(b"\"")?;
        decode_hex32(rest.get(..64)?).filter(|_| rest.get(64) == Some(&b'"'))
    });
    match ids.next().filter(|id| ids.all(|other| other == *id)) {
        Some(id) => Refused::Event { id, reason: "invalid: not JSON".into() },
        None => Refused::message("not JSON"),
    }
}

/// What the relay says; each is written as one JSON text.
#[derive(Clone, Copy, Debug)]
pub enum RelayMessage<'a> {
    /// `["OK", id, accepted, text]`
    Ok {
        /// The event's id.
        id: &'a Id,
        /// Whether it was taken.
        accepted: bool,
        /// Empty, or text with its prefix.
        text: &'a str,
    },
    /// `["EOSE", id]`
    Eose {
        /// The subscription whose stored events are all sent.
        subscription: &'a SubscriptionId,
        /// NIP-67: `Some(true)` = nothing is left, `Some(false)` = there is more.
        finished: Option<bool>,
    },
    /// `["CLOSED", id, text]`
    Closed {
        /// The subscription that ended.
        subscription: &'a SubscriptionId,
        /// Text with its prefix.
        text: &'a str,
    },
    /// `["COUNT", id, {"count": n}]` (NIP-45)
    Count {
        /// The query it answers.
        query: &'a SubscriptionId,
        /// Events that match.
        events: u64,
        /// Of their authors.
        sketch: Option<&'a Sketch>,
    },
    /// `["NOTICE", text]`
    Notice {
        /// For people.
        text: &'a str,
    },
}

impl RelayMessage<'_> {
    /// The message as JSON text.
    #[must_use]
    pub fn to_json(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        match self {
            Self::Ok { id, accepted, text } => {
                out.extend_from_slice(b"[\"OK\",\"");
                out.extend_from_slice(faster_hex::hex_string(id).as_bytes());
                out.extend_from_slice(if accepted { b"\",true," } else { b"\",false," });
                write_string(&mut out, text);
            }
            Self::Eose { subscription, finished } => {
                out.extend_from_slice(b"[\"EOSE\",");
                out.extend_from_slice(subscription.json());
                out.extend_from_slice(match finished {
                    None => b"",
                    Some(true) => b",[\"finish\"]",
                    Some(false) => b",[\"more\"]",
                });
            }
            Self::Closed { subscription, text } => {
                out.extend_from_slice(b"[\"CLOSED\",");
                out.extend_from_slice(subscription.json());
                out.push(b',');
                write_string(&mut out, text);
            }
            Self::Count { query, events, sketch } => {
                out.extend_from_slice(b"[\"COUNT\",");
                out.extend_from_slice(query.json());
                out.extend_from_slice(format!(",{{\"count\":{events}").as_bytes());
                if let Some(sketch) = sketch {
                    out.extend_from_slice(format!(",\"hll\":\"{}\"", sketch.to_hex()).as_bytes());
                }
                out.push(b'}');
            }
            Self::Notice { text } => {
                out.extend_from_slice(b"[\"NOTICE\",");
                write_string(&mut out, text);
            }
        }
        out.push(b']');
        out
    }
}
