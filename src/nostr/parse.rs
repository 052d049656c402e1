//! An event from JSON: shape, canonical text and id (NIP-01, "Events and signatures").

use sha2::{Digest, Sha256};

use super::event::{Event, Fields, Id, Kind};
use super::json::{Value, write_string};
use super::tag::{self, decode_hex32};

/// `created_at` and `expiration` from here on are refused: index keys hold 40 bits of time.
pub const TIME_END: u64 = 1 << 40;

/// A well-formed event whose id is right and whose signature nobody has checked yet.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub(super) event: Event,
    pub(super) sig: [u8; 64],
    shape: Shape,
}

/// Sizes a policy may bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Number of tags.
    pub tags: usize,
    /// Characters (Unicode scalar values) of the content, as NIP-11's `max_content_length` counts.
    pub content_chars: usize,
}

impl Candidate {
    /// The event, signature unchecked.
    #[must_use]
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// Sizes a policy may bound.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.shape
    }
}

/// Why a JSON value is not an event. The text follows `invalid: ` in an OK.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct NotAnEvent {
    /// The id as the client wrote it, when it is one.
    pub id: Option<Id>,
    /// What is wrong.
    pub reason: &'static str,
}

/// Scratch space that outlives one event.
#[derive(Default)]
pub struct EventReader {
    json: Vec<u8>,
    packed: Vec<u8>,
    raw: Vec<u8>,
}

impl EventReader {
    /// Reads one event object. Keys NIP-01 does not name are ignored and not kept.
    ///
    /// The id is tried against two serializations, because clients sign either: control characters
    /// other than the seven of NIP-01 as `\u00xx` (what JSON libraries write), and verbatim (what
    /// NIP-01 says). This is the one place that knows of them.
    ///
    /// # Errors
    /// Says what is wrong, with the event's id when it can be read.
    pub fn read(&mut self, value: Value<'_, '_>) -> Result<Candidate, NotAnEvent> {
        let raw = RawEvent::pick(value)?;
        let fail = |reason| NotAnEvent { id: raw.id, reason };
        let id = raw.id.ok_or_else(|| fail("id must be 64 lowercase hex characters"))?;
        let pubkey = raw
            .pubkey
            .and_then(Value::as_str)
            .and_then(|text| decode_hex32(text.as_bytes()))
            .ok_or_else(|| fail("pubkey must be 64 lowercase hex characters"))?;
        let created_at = raw
            .created_at
            .and_then(Value::as_u64)
            .filter(|at| *at < TIME_END)
            .ok_or_else(|| fail("created_at must be an unsigned integer below 2^40"))?;
        let kind = raw
            .kind
            .and_then(Value::as_u64)
            .and_then(|kind| u16::try_from(kind).ok())
            .ok_or_else(|| fail("kind must be an integer from 0 to 65535"))?;
        let content =
            raw.content.and_then(Value::as_str).ok_or_else(|| fail("content must be a string"))?;
        let sig_text = raw.sig.and_then(Value::as_str).map(str::as_bytes);
        let sig = sig_text
            .and_then(decode_hex64)
            .ok_or_else(|| fail("sig must be 128 lowercase hex characters"))?;

        let json = &mut self.json;
        json.clear();
        json.extend_from_slice(b"{\"id\":\"");
        push_hex(json, &id);
        json.extend_from_slice(b"\",\"pubkey\":\"");
        push_hex(json, &pubkey);
        json.extend_from_slice(b"\",\"created_at\":");
        push_number(json, created_at);
        json.extend_from_slice(b",\"kind\":");
        push_number(json, u64::from(kind));
        json.extend_from_slice(b",\"tags\":");
        let tags_at = json.len();
        let tags = raw.tags.ok_or_else(|| fail("tags must be an array"))?;
        let seen = write_tags(json, &mut self.packed, tags).map_err(fail)?;
        let tags_end = json.len();
        json.extend_from_slice(b",\"content\":");
        let content_at = json.len();
        let control = write_string(json, content) | seen.control;
        let content_end = json.len();

        let head = |hash: &mut Sha256| {
            let mut text = Vec::with_capacity(112);
            text.extend_from_slice(b"[0,\"");
            push_hex(&mut text, &pubkey);
            text.extend_from_slice(b"\",");
            push_number(&mut text, created_at);
            text.push(b',');
            push_number(&mut text, u64::from(kind));
            text.push(b',');
            hash.update(&text);
        };
        let (tags_json, content_json) = (&json[tags_at..tags_end], &json[content_at..content_end]);
        let digest = |tags: &[u8], content: &[u8]| -> Id {
            let mut hash = Sha256::new();
            head(&mut hash);
            hash.update(tags);
            hash.update(b",");
            hash.update(content);
            hash.update(b"]");
            hash.finalize().into()
        };
        let mut matches = digest(tags_json, content_json) == id;
        if !matches && control {
            self.raw.clear();
            unescape_controls(&mut self.raw, tags_json);
            let split = self.raw.len();
            unescape_controls(&mut self.raw, content_json);
            matches = digest(&self.raw[..split], &self.raw[split..]) == id;
        }
        if !matches {
            return Err(fail("id is not the hash of the event"));
        }

        json.extend_from_slice(b",\"sig\":\"");
        json.extend_from_slice(sig_text.unwrap_or_default());
        json.extend_from_slice(b"\"}");
        let event = Event::build(&Fields {
            id,
            pubkey,
            created_at,
            expiration: seen.expiration,
            kind: Kind(kind),
            protected: seen.protected,
            packed_tags: &self.packed,
            json,
        });
        self.give_back_large();
        let shape = Shape { tags: seen.count, content_chars: content.chars().count() };
        Ok(Candidate { event, sig, shape })
    }

    /// One huge event must not pin its memory for the life of a shard.
    fn give_back_large(&mut self) {
        for buffer in [&mut self.json, &mut self.packed, &mut self.raw] {
            if buffer.capacity() > SCRATCH_KEPT_MAX {
                *buffer = Vec::new();
            }
        }
    }
}

const SCRATCH_KEPT_MAX: usize = 64 << 10;

/// The values of the seven keys, none checked but the id.
struct RawEvent<'t, 'i> {
    id: Option<Id>,
    pubkey: Option<Value<'t, 'i>>,
    created_at: Option<Value<'t, 'i>>,
    kind: Option<Value<'t, 'i>>,
    tags: Option<Value<'t, 'i>>,
    content: Option<Value<'t, 'i>>,
    sig: Option<Value<'t, 'i>>,
}

impl<'t, 'i> RawEvent<'t, 'i> {
    fn pick(value: Value<'t, 'i>) -> Result<Self, NotAnEvent> {
        let not = |reason| NotAnEvent { id: None, reason };
        let mut items = value.as_object().ok_or_else(|| not("an event must be an object"))?;
        let duplicate = items.has_duplicate_key();
        let mut raw = RawEvent {
            id: None,
            pubkey: None,
            created_at: None,
            kind: None,
            tags: None,
            content: None,
            sig: None,
        };
        while let (Some(key), Some(value)) = (items.next(), items.next()) {
            match key.as_str().unwrap_or_default() {
                "id" => raw.id = value.as_str().and_then(|text| decode_hex32(text.as_bytes())),
                "pubkey" => raw.pubkey = Some(value),
                "created_at" => raw.created_at = Some(value),
                "kind" => raw.kind = Some(value),
                "tags" => raw.tags = Some(value),
                "content" => raw.content = Some(value),
                "sig" => raw.sig = Some(value),
                _ => {}
            }
        }
        if duplicate {
            return Err(NotAnEvent { id: raw.id, reason: "a key is there twice" });
        }
        Ok(raw)
    }
}

/// What the tags said beside their text.
struct SeenTags {
    count: usize,
    control: bool,
    expiration: Option<u64>,
    protected: bool,
}

/// Writes the tags as canonical JSON and packs the indexed ones.
fn write_tags(
    json: &mut Vec<u8>,
    packed: &mut Vec<u8>,
    tags: Value<'_, '_>,
) -> Result<SeenTags, &'static str> {
    const SHAPE: &str = "tags must be an array of arrays of at least one string";
    let mut seen = SeenTags { count: 0, control: false, expiration: None, protected: false };
    packed.clear();
    json.push(b'[');
    for tag in tags.as_array().ok_or(SHAPE)? {
        if seen.count > 0 {
            json.push(b',');
        }
        seen.count += 1;
        let mut strings = tag.as_array().filter(|items| items.len() > 0).ok_or(SHAPE)?;
        let name = strings.next().and_then(Value::as_str).ok_or(SHAPE)?;
        json.push(b'[');
        seen.control |= write_string(json, name);
        let mut first = None;
        for value in strings {
            let value = value.as_str().ok_or(SHAPE)?;
            first.get_or_insert(value);
            json.push(b',');
            seen.control |= write_string(json, value);
        }
        json.push(b']');
        match (name.as_bytes(), first) {
            ([letter], Some(value)) if letter.is_ascii_alphabetic() => {
                tag::pack(packed, *letter, value);
            }
            (b"-", _) => seen.protected = true,
            (b"expiration", Some(value)) if seen.expiration.is_none() => {
                seen.expiration = parse_expiration(value);
            }
            _ => {}
        }
    }
    json.push(b']');
    Ok(seen)
}

/// NIP-40 writes a decimal number of seconds; anything else does not expire. A record spells
/// "never" as 0, so an expiration at the epoch is moved to second 1: both are long past.
fn parse_expiration(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse::<u64>().map_or(TIME_END, |at| at.clamp(1, TIME_END)))
}

fn decode_hex64(text: &[u8]) -> Option<[u8; 64]> {
    let mut raw = [0; 64];
    (text.len() == 128).then_some(())?;
    faster_hex::hex_decode_with_case(text, &mut raw, faster_hex::CheckCase::Lower).ok()?;
    Some(raw)
}

fn push_hex(out: &mut Vec<u8>, raw: &[u8; 32]) {
    let mut text = [0; 64];
    faster_hex::hex_encode(raw, &mut text).expect("64 characters hold 32 bytes");
    out.extend_from_slice(&text);
}

fn push_number(out: &mut Vec<u8>, number: u64) {
    use std::io::Write;
    write!(out, "{number}").expect("a vector takes every write");
}

/// Turns each `\u00xx` that [`write_string`] wrote back into its byte; every other escape stays.
fn unescape_controls(out: &mut Vec<u8>, json: &[u8]) {
    let mut rest = json;
    while let Some(at) = rest.iter().position(|&b| b == b'\\') {
        out.extend_from_slice(&rest[..at]);
        if rest[at + 1] == b'u' {
            let digit = |b: u8| if b <= b'9' { b - b'0' } else { b - b'a' + 10 };
            out.push(digit(rest[at + 4]) << 4 | digit(rest[at + 5]));
            rest = &rest[at + 6..];
        } else {
            out.extend_from_slice(&rest[at..at + 2]);
            rest = &rest[at + 2..];
        }
    }
    out.extend_from_slice(rest);
}
