//! One event as the relay holds it: a single shared record that is stored, matched and sent as is.
//!
//! | bytes | field |
//! |---|---|
//! | 0..32 | id |
//! | 32..64 | pubkey |
//! | 64..72 | `created_at`, seconds, big-endian |
//! | 72..80 | expiration (NIP-40), seconds, big-endian; 0 = never |
//! | 80..82 | kind, big-endian |
//! | 82 | flags: [`FLAG_PROTECTED`] |
//! | 83 | zero |
//! | 84..88 | length of the packed tags, big-endian |
//! | 88.. | packed tags (see [`super::tag`]), then the canonical JSON object |

use bytes::Bytes;

use super::tag::{TagRef, Unpack};

/// The event carries a `["-"]` tag (NIP-70).
pub const FLAG_PROTECTED: u8 = 1;

/// Bytes before the packed tags.
pub const HEADER_BYTES: usize = 88;

/// An event id (NIP-01).
pub type Id = [u8; 32];

/// An x-only public key (BIP-340).
pub type Pubkey = [u8; 32];

/// A kind and the class NIP-01 gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind(pub u16);

/// What a relay keeps of a kind (NIP-01, "Kinds").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KindClass {
    /// Every event is kept.
    Regular,
    /// The newest per (pubkey, kind) is kept.
    Replaceable,
    /// Nothing is kept.
    Ephemeral,
    /// The newest per (pubkey, kind, `d`) is kept.
    Addressable,
}

impl Kind {
    /// Deletion request (NIP-09).
    pub const DELETION: Self = Self(5);
    /// Request to vanish (NIP-62).
    pub const VANISH: Self = Self(62);
    /// Gift wrap (NIP-59).
    pub const GIFT_WRAP: Self = Self(1059);
    /// Client authentication (NIP-42).
    pub const AUTH: Self = Self(22242);

    /// The class of this kind.
    #[must_use]
    pub fn class(self) -> KindClass {
        match self.0 {
            0 | 3 | 10_000..=19_999 => KindClass::Replaceable,
            20_000..=29_999 => KindClass::Ephemeral,
            30_000..=39_999 => KindClass::Addressable,
            _ => KindClass::Regular,
        }
    }
}

/// What a record is made of; [`Event::build`] lays it out.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    /// Event id.
    pub id: Id,
    /// Author.
    pub pubkey: Pubkey,
    /// Seconds since the epoch.
    pub created_at: u64,
    /// Seconds since the epoch at which the event expires; `None` = never (NIP-40).
    pub expiration: Option<u64>,
    /// Kind.
    pub kind: Kind,
    /// Whether a `["-"]` tag is there (NIP-70).
    pub protected: bool,
    /// The indexed tags as [`super::tag::pack`] wrote them.
    pub packed_tags: &'a [u8],
    /// The event as one JSON object, no whitespace between tokens.
    pub json: &'a [u8],
}

/// A well-formed event. Cheap to clone: one shared allocation.
#[derive(Clone, PartialEq, Eq)]
pub struct Event {
    record: Bytes,
}

impl Event {
    /// Lays the fields out as one record.
    ///
    /// # Panics
    /// If the packed tags reach 4 GiB.
    #[must_use]
    pub fn build(fields: &Fields<'_>) -> Self {
        let tags_len = u32::try_from(fields.packed_tags.len()).expect("bounded by the message");
        let mut record =
            Vec::with_capacity(HEADER_BYTES + fields.packed_tags.len() + fields.json.len());
        record.extend_from_slice(&fields.id);
        record.extend_from_slice(&fields.pubkey);
        record.extend_from_slice(&fields.created_at.to_be_bytes());
        record.extend_from_slice(&fields.expiration.unwrap_or(0).to_be_bytes());
        record.extend_from_slice(&fields.kind.0.to_be_bytes());
        record.push(if fields.protected { FLAG_PROTECTED } else { 0 });
        record.push(0);
        record.extend_from_slice(&tags_len.to_be_bytes());
        record.extend_from_slice(fields.packed_tags);
        record.extend_from_slice(fields.json);
        Self { record: record.into() }
    }

    /// Takes a stored record back; `None` when it is not one.
    #[must_use]
    pub fn from_record(record: Bytes) -> Option<Self> {
        EventView::new(&record)?;
        Some(Self { record })
    }

    /// The record, to be stored.
    #[must_use]
    pub fn record(&self) -> &Bytes {
        &self.record
    }

    /// A view with the accessors.
    #[must_use]
    pub fn view(&self) -> EventView<'_> {
        EventView { record: &self.record }
    }

    /// The JSON object, sharing the record's allocation.
    #[must_use]
    pub fn json(&self) -> Bytes {
        self.record.slice(self.view().json_at()..)
    }
}

impl std::fmt::Debug for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&String::from_utf8_lossy(self.view().json()))
    }
}

/// A borrowed record: the accessors of [`Event`], also over memory the store owns.
#[derive(Clone, Copy)]
pub struct EventView<'a> {
    record: &'a [u8],
}

impl<'a> EventView<'a> {
    /// Views `record`; `None` when it is too short to be one.
    #[must_use]
    pub fn new(record: &'a [u8]) -> Option<Self> {
        let view = Self { record };
        (record.len() >= HEADER_BYTES && view.json_at() <= record.len()).then_some(view)
    }

    fn array<const N: usize>(&self, at: usize) -> &'a [u8; N] {
        self.record[at..].first_chunk().expect("a record holds its header")
    }

    fn json_at(&self) -> usize {
        HEADER_BYTES + u32::from_be_bytes(*self.array(84)) as usize
    }

    /// Event id.
    #[must_use]
    pub fn id(&self) -> &'a Id {
        self.array(0)
    }

    /// Author.
    #[must_use]
    pub fn pubkey(&self) -> &'a Pubkey {
        self.array(32)
    }

    /// Seconds since the epoch.
    #[must_use]
    pub fn created_at(&self) -> u64 {
        u64::from_be_bytes(*self.array(64))
    }

    /// When the event expires, in seconds since the epoch (NIP-40).
    #[must_use]
    pub fn expiration(&self) -> Option<u64> {
        match u64::from_be_bytes(*self.array(72)) {
            0 => None,
            at => Some(at),
        }
    }

    /// Whether the event has expired at `now` (NIP-40: at its timestamp and after).
    #[must_use]
    pub fn is_expired(&self, now: u64) -> bool {
        self.expiration().is_some_and(|at| at <= now)
    }

    /// Kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        Kind(u16::from_be_bytes(*self.array(80)))
    }

    /// Whether a `["-"]` tag is there (NIP-70).
    #[must_use]
    pub fn is_protected(&self) -> bool {
        self.record[82] & FLAG_PROTECTED != 0
    }

    /// The indexed tags: letter and first value, in the order of the event.
    #[must_use]
    pub fn tags(&self) -> Unpack<'a> {
        Unpack::new(&self.record[HEADER_BYTES..self.json_at()])
    }

    /// Bytes of the indexed tags as they are packed: what looking at all of them takes.
    #[must_use]
    pub fn tags_bytes(&self) -> usize {
        self.json_at() - HEADER_BYTES
    }

    /// The first value of the first `d` tag; empty when there is none (NIP-01, addressable events).
    #[must_use]
    pub fn d_tag(&self) -> TagRef<'a> {
        self.tags()
            .find(|(letter, _)| *letter == b'd')
            .map_or(TagRef::Text(b""), |(_, value)| value)
    }

    /// The event as one JSON object.
    #[must_use]
    pub fn json(&self) -> &'a [u8] {
        &self.record[self.json_at()..]
    }

    /// The whole record.
    #[must_use]
    pub fn record(&self) -> &'a [u8] {
        self.record
    }
}
