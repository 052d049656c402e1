//! Tables, keys and values. Pure: bytes in, bytes out.
//!
//! Every integer is big-endian, so that byte order is numeric order.
//!
//! | table | key | value |
//! |---|---|---|
//! | `event` | seq(8) | checksum(4) ‖ the record ([`crate::nostr::event`]) |
//! | `id` | id[0..16] (or id(32), see below) | seq(6) |
//! | `time` | ¬SUF | id[8..32] |
//! | `author_kind` | pubkey[0..8] ‖ kind(2) ‖ SUF | – |
//! | `kind` | kind(2) ‖ SUF | – |
//! | `tag` | letter(1) ‖ hash(8) of the value ‖ SUF | kind(2) ‖ pubkey[0..8] |
//! | `expire` | expiration(8) ‖ seq(6) | – |
//! | `replace` | pubkey(32) ‖ kind(2) ‖ hash(16) of `d` | `inv_created_at`(5) ‖ id(32) ‖ seq(6), 0 = none is stored |
//! | `tomb_id` | id(32) of the deleted event ‖ pubkey(32) of the deleter | `created_at`(8) of the request |
//! | `tomb_addr` | as `replace` | versions up to this `created_at`(8) are deleted |
//! | `vanish` | pubkey(32) | events up to this `created_at`(8) are gone |
//! | `backlog` | pubkey(32) | [`Backlog`]: what of a vanish is still to be erased |
//! | `archive` | address as in `replace` ‖ `created_at`(5) ‖ id(32) | checksum(4) ‖ the record of a replaced version |
//! | `archive_id` | id(32) | the address and `created_at` of its `archive` key |
//! | `archive_expire` | expiration(8) ‖ id(32) | – |
//! | `archive_backlog` | pubkey(32), or an address(50) | [`ArchiveBacklog`]: what of it is still to be erased |
//! | `meta` | name | see the `META_*` constants |
//!
//! `SUF = inv_created_at(5) ‖ id[0..8] ‖ seq(6)` with `inv_created_at = 2^40 − 1 − created_at`: a
//! forward scan is newest first and lowest id first on a tie (NIP-01). ¬SUF is its complement, so `time` is
//! scanned backwards: what comes last in time comes last in the table, where LMDB fills its pages. (In `kind`
//! that would fill none: each kind but the last has others behind it.)
//!
//! What an author wrote, of whatever kind, is a merge over the kinds that are there, found by as many seeks:
//! an index by author alone would be another page written with each event, for filters that hardly a client
//! sends without kinds.
//!
//! **The checksum** is the CRC-32 of the sequence number, 0 in the archive, and the record. LMDB's pages carry none; a record that
//! differs from it is never served (see `isolated`).
//!
//! **Truncated keys.** `pubkey[0..8]` and hashed tag values only narrow a search: whoever follows
//! an index entry verifies the record. Two ids that share 16 bytes are both kept: the later one
//! lies under its full id, right behind the 16-byte key. Two events of one second whose ids share
//! 8 bytes are served in order of arrival.
//!
//! **The mark.** A `replace` value is a high-water mark: the newest version ever seen of an
//! address, whether it is stored (seq ≠ 0) or was deleted (seq = 0).
//!
//! Hashes are keyed by a random key made with the store, so nobody can aim at collisions.

use std::hash::Hasher as _;

use siphasher::sip::SipHasher13;
use siphasher::sip128::{Hasher128 as _, SipHasher13 as SipHasher13x128};

use crate::nostr::event::{Id, KindClass, Pubkey};
use crate::nostr::{EventView, Kind, TagRef};
use crate::relay::ports::Sequence;

/// Version of the tables. Version 1 is brought here in place (`migrate`); a store with any other is refused.
pub const SCHEMA_VERSION: u64 = 2;

/// `created_at` of a stored event stays below this: it has five bytes in the keys.
pub const CREATED_AT_MAX: u64 = (1 << 40) - 1;

/// Sequence numbers have six bytes in the keys.
pub const SEQUENCE_MAX: Sequence = (1 << 48) - 1;

/// meta: [`SCHEMA_VERSION`], 8 bytes.
pub(super) const META_SCHEMA: &[u8] = b"schema";
/// meta: the last sequence number ever given, 8 bytes; never goes back, whatever is erased.
pub(super) const META_LAST_SEQUENCE: &[u8] = b"last_seq";
/// meta: how far the replicated log has been applied, 8 bytes.
pub(super) const META_APPLIED_LOG: &[u8] = b"applied_log_seq";
/// meta: there while the tables are brought here from an older version, empty.
pub(super) const META_MIGRATING: &[u8] = b"migrating";
/// meta: what [`super::Store::probe`] writes, and takes away again; after a kill in
/// between the next one does.
pub(super) const META_PROBE: &[u8] = b"probe";
/// meta: the key of every hash in the tables, 16 bytes.
pub(super) const META_HASH_KEY: &[u8] = b"hash_key";

/// Bytes of a [`Suffix`].
pub(super) const SUFFIX_BYTES: usize = 19;

/// `inv_created_at(5) ‖ id[0..8] ‖ seq(6)`: the order of results and what every index key ends in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Suffix(pub [u8; SUFFIX_BYTES]);

impl Suffix {
    pub fn of(event: EventView<'_>, seq: Sequence) -> Self {
        let mut bytes = [0; SUFFIX_BYTES];
        bytes[..5].copy_from_slice(&invert(event.created_at()));
        bytes[5..13].copy_from_slice(&event.id()[..8]);
        bytes[13..].copy_from_slice(&short(seq));
        Self(bytes)
    }

    /// At or before every event with `created_at <= until`, after all others.
    pub fn newest(until: u64) -> Self {
        let mut bytes = [0; SUFFIX_BYTES];
        bytes[..5].copy_from_slice(&invert(until));
        Self(bytes)
    }

    /// At or after every event with `created_at >= since`, before all others.
    pub fn oldest(since: u64) -> Self {
        let mut bytes = [0xff; SUFFIX_BYTES];
        bytes[..5].copy_from_slice(&invert(since));
        Self(bytes)
    }

    /// Seconds from `newer`, which it does not come before, to this.
    pub fn seconds_behind(&self, newer: &Self) -> u64 {
        inverted(&self.0) - inverted(&newer.0)
    }

    /// As it lies in `time`; undoes itself.
    #[must_use]
    pub fn turned(&self) -> Self {
        Self(self.0.map(|byte| !byte))
    }

    /// The suffix a key ends in; `None` when it is too short.
    pub fn ending(key: &[u8]) -> Option<Self> {
        key.last_chunk().copied().map(Self)
    }

    /// `created_at`, the first bytes of the id, and the sequence number.
    pub fn parts(&self) -> (u64, [u8; 8], Sequence) {
        let id = *self.0[5..].first_chunk().expect("8 bytes before the last 6");
        (CREATED_AT_MAX - inverted(&self.0), id, self.seq())
    }

    pub fn seq(&self) -> Sequence {
        long(*self.0.last_chunk().expect("19 bytes end in 6"))
    }
}

/// 2^40 − 1 − `created_at`, clamped: filters may ask beyond what is ever stored.
fn invert(created_at: u64) -> [u8; 5] {
    let inverted = CREATED_AT_MAX - created_at.min(CREATED_AT_MAX);
    *inverted.to_be_bytes().last_chunk().expect("8 bytes end in 5")
}

/// The number that five leading bytes are.
fn inverted(bytes: &[u8]) -> u64 {
    let mut number = [0; 8];
    number[3..].copy_from_slice(&bytes[..5]);
    u64::from_be_bytes(number)
}

/// A sequence number as it lies in keys.
pub(super) fn short(seq: Sequence) -> [u8; 6] {
    debug_assert!(seq <= SEQUENCE_MAX);
    *seq.to_be_bytes().last_chunk().expect("8 bytes end in 6")
}

/// Undoes [`short`].
pub(super) fn long(short: [u8; 6]) -> Sequence {
    let mut bytes = [0; 8];
    bytes[2..].copy_from_slice(&short);
    Sequence::from_be_bytes(bytes)
}

/// Joins parts into a key of exactly `N` bytes.
///
/// # Panics
/// If they are not that long together: a key's layout is a constant.
pub(super) fn join<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let mut key = [0; N];
    let mut at = 0;
    for part in parts {
        key[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    assert_eq!(at, N, "a key has one layout");
    key
}

/// The store's keyed hashes.
#[derive(Clone, Copy)]
pub(super) struct Hasher {
    key: [u8; 16],
}

impl Hasher {
    pub fn new(key: [u8; 16]) -> Self {
        Self { key }
    }

    /// Of a tag's value, for the `tag` table.
    pub fn tag(&self, value: TagRef<'_>) -> [u8; 8] {
        let mut hasher = SipHasher13::new_with_key(&self.key);
        let (form, bytes) = parts(&value);
        hasher.write_u8(form);
        hasher.write(bytes);
        hasher.finish().to_be_bytes()
    }

    /// Of a `d` value, for addresses.
    pub fn address(&self, d: TagRef<'_>) -> [u8; 16] {
        let mut hasher = SipHasher13x128::new_with_key(&self.key);
        let (form, bytes) = parts(&d);
        hasher.write_u8(form);
        hasher.write(bytes);
        hasher.finish128().as_u128().to_be_bytes()
    }
}

/// The form counts: 32 raw bytes and the text of the same bytes are different values.
fn parts<'a>(value: &'a TagRef<'a>) -> (u8, &'a [u8]) {
    match value {
        TagRef::Hex(raw) => (0, *raw),
        TagRef::Text(text) => (1, text),
    }
}

/// Key of `replace` and `tomb_addr`: pubkey ‖ kind ‖ hash of `d`.
pub(super) type Address = [u8; 50];

/// The address of an event, or `None` when its kind has none (NIP-01, "Kinds").
pub(super) fn address_of(event: EventView<'_>, hasher: &Hasher) -> Option<Address> {
    let d = match event.kind().class() {
        KindClass::Replaceable => TagRef::Text(b""),
        KindClass::Addressable => event.d_tag(),
        KindClass::Regular | KindClass::Ephemeral => return None,
    };
    Some(address(event.pubkey(), event.kind(), d, hasher))
}

pub(super) fn address(pubkey: &Pubkey, kind: Kind, d: TagRef<'_>, hasher: &Hasher) -> Address {
    join(&[pubkey, &kind.0.to_be_bytes(), &hasher.address(d)])
}

/// Key of `tomb_id`.
pub(super) fn tomb_key(id: &Id, deleter: &Pubkey) -> [u8; 64] {
    join(&[id, deleter])
}

/// A value of `replace`; orders newest first, as events do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    inverted: [u8; 5],
    /// The newest version ever seen.
    pub id: Id,
    /// Where it is stored; 0 when it is not.
    pub seq: Sequence,
}

impl Mark {
    pub fn of(event: EventView<'_>, seq: Sequence) -> Self {
        Self { inverted: invert(event.created_at()), id: *event.id(), seq }
    }

    /// `created_at` of the version.
    pub fn created_at(&self) -> u64 {
        CREATED_AT_MAX - inverted(&self.inverted)
    }

    /// The same mark, its version no longer stored.
    pub fn emptied(&self) -> Self {
        Self { seq: 0, ..*self }
    }

    /// Whether the version this marks wins over the other's: newer, or lower id (NIP-01).
    pub fn beats(&self, other: &Self) -> bool {
        (&self.inverted, &self.id) < (&other.inverted, &other.id)
    }

    pub fn encode(&self) -> [u8; 43] {
        join(&[&self.inverted, &self.id, &short(self.seq)])
    }

    pub fn decode(value: &[u8]) -> Option<Self> {
        let value: &[u8; 43] = value.try_into().ok()?;
        Some(Self {
            inverted: *value.first_chunk()?,
            id: value[5..37].try_into().ok()?,
            seq: long(*value.last_chunk()?),
        })
    }
}

/// Which index a vanish erases from at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// What the key wrote, by `author_kind`.
    Authored = 0,
    /// Gift wraps to the key, by `tag`.
    Wrapped = 1,
}

/// A value of `backlog`: `up_to(8) ‖ phase(1) ‖ kind(2) ‖ next(19)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Backlog {
    /// Everything up to this `created_at` is to go.
    pub up_to: u64,
    /// Which index is being walked.
    pub phase: Phase,
    /// Of what the key wrote, the kind at which the next chunk begins; else 0.
    pub kind: Kind,
    /// Where the next chunk begins.
    pub next: Suffix,
}

impl Backlog {
    /// All of what is to go.
    pub fn whole(up_to: u64) -> Self {
        Self { up_to, phase: Phase::Authored, kind: Kind(0), next: Suffix::newest(up_to) }
    }

    pub fn encode(&self) -> [u8; 30] {
        let (phase, kind) = (self.phase as u8, self.kind.0.to_be_bytes());
        join(&[&self.up_to.to_be_bytes(), &[phase], &kind, &self.next.0])
    }

    pub fn decode(value: &[u8]) -> Option<Self> {
        let value: &[u8; 30] = value.try_into().ok()?;
        let phase = match value[8] {
            0 => Phase::Authored,
            1 => Phase::Wrapped,
            _ => return None,
        };
        let kind = Kind(u16::from_be_bytes([value[9], value[10]]));
        let next = Suffix::ending(value)?;
        Some(Self { up_to: u64::from_be_bytes(*value.first_chunk()?), phase, kind, next })
    }
}

/// Key of `archive`: all versions of a key are one range, those of an address up to a second another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ArchiveKey(pub [u8; 87]);

impl ArchiveKey {
    /// `None` when the event has no address.
    pub fn of(event: EventView<'_>, hasher: &Hasher) -> Option<Self> {
        let address = address_of(event, hasher)?;
        let created_at = event.created_at().to_be_bytes();
        Some(Self(join(&[&address, &created_at[3..], event.id()])))
    }

    /// What `archive_id` says of an id.
    pub fn found(id: &Id, place: &[u8]) -> Option<Self> {
        let place: &[u8; 55] = place.try_into().ok()?;
        Some(Self(join(&[place, id])))
    }

    pub fn decode(key: &[u8]) -> Option<Self> {
        key.try_into().ok().map(Self)
    }

    /// Value of `archive_id`.
    pub fn place(&self) -> &[u8] {
        &self.0[..55]
    }

    pub fn address(&self) -> &Address {
        self.0.first_chunk().expect("87 bytes begin with 50")
    }

    pub fn pubkey(&self) -> &Pubkey {
        self.0.first_chunk().expect("87 bytes begin with 32")
    }

    pub fn created_at(&self) -> u64 {
        let mut bytes = [0; 8];
        bytes[3..].copy_from_slice(&self.0[50..55]);
        u64::from_be_bytes(bytes)
    }

    pub fn id(&self) -> &Id {
        self.0.last_chunk().expect("87 bytes end in 32")
    }
}

/// Key of `archive_expire`.
pub(super) fn archive_expire_key(expiration: u64, id: &Id) -> [u8; 40] {
    join(&[&expiration.to_be_bytes(), id])
}

/// A value of `archive_backlog`: `up_to(8) ‖ next(50)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ArchiveBacklog {
    /// Every version up to this `created_at` is to go.
    pub up_to: u64,
    /// The address the next chunk begins with.
    pub next: Address,
}

impl ArchiveBacklog {
    /// All of what the key of the entry is the beginning of.
    pub fn new(prefix: &[u8], up_to: u64) -> Self {
        let mut next = [0; 50];
        next[..prefix.len()].copy_from_slice(prefix);
        Self { up_to, next }
    }

    /// Whether it is going to erase this version, which its key is the beginning of.
    pub fn covers(&self, key: &ArchiveKey) -> bool {
        key.created_at() <= self.up_to && self.next <= *key.address()
    }

    pub fn encode(&self) -> [u8; 58] {
        join(&[&self.up_to.to_be_bytes(), &self.next])
    }

    pub fn decode(value: &[u8]) -> Option<Self> {
        let value: &[u8; 58] = value.try_into().ok()?;
        Some(Self { up_to: u64::from_be_bytes(*value.first_chunk()?), next: *value.last_chunk()? })
    }
}

/// What of an event the `tag` table's value tells without loading the record: kind ‖ pubkey[0..8].
pub(super) type TagHint = [u8; 10];

pub(super) fn tag_hint(event: EventView<'_>) -> TagHint {
    join(&[&event.kind().0.to_be_bytes(), &event.pubkey()[..8]])
}

/// `letter ‖ hash` of each indexed tag, each once, in order.
pub(super) fn tag_prefixes(event: EventView<'_>, hasher: &Hasher, out: &mut Vec<[u8; 9]>) {
    out.clear();
    out.extend(event.tags().map(|(letter, value)| tag_prefix(letter, value, hasher)));
    out.sort_unstable();
    out.dedup();
}

pub(super) fn tag_prefix(letter: u8, value: TagRef<'_>, hasher: &Hasher) -> [u8; 9] {
    join(&[&[letter], &hasher.tag(value)])
}

/// The bytes of an id that its key in `time` has not.
pub(super) type IdRest = [u8; 24];

pub(super) fn id_rest(id: &Id) -> IdRest {
    *id.last_chunk().expect("an id is longer")
}

/// Bytes of the checksum before a record.
pub(super) const CHECKSUM_BYTES: usize = 4;

/// The sequence number of what is archived.
pub(super) const ARCHIVED: Sequence = 0;

/// A value of `event` or `archive` into `out`, which may hold any.
pub(super) fn seal(seq: Sequence, record: &[u8], out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&checksum(seq, record));
    out.extend_from_slice(record);
}

/// The checksum of a record under its sequence number.
pub(super) fn checksum(seq: Sequence, record: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&seq.to_be_bytes());
    hasher.update(record);
    hasher.finalize().to_be_bytes()
}

/// The record in a value of `event`, whatever its checksum; `None` when it is too short.
pub(super) fn record_of(value: &[u8]) -> Option<&[u8]> {
    value.get(CHECKSUM_BYTES..)
}

/// The record in a value of `event`; `None` when it is not what was stored.
pub(super) fn unseal(seq: Sequence, value: &[u8]) -> Option<&[u8]> {
    let (found, record) = value.split_first_chunk()?;
    (*found == checksum(seq, record)).then_some(record)
}

/// The keys of one event in every index but `id` and `tag`.
pub(super) struct IndexKeys {
    /// What the others end in.
    pub suffix: [u8; SUFFIX_BYTES],
    pub time: [u8; 19],
    pub author_kind: [u8; 29],
    pub kind: [u8; 21],
    pub expire: Option<[u8; 14]>,
}

impl IndexKeys {
    pub fn of(event: EventView<'_>, seq: Sequence) -> Self {
        let suffix = Suffix::of(event, seq).0;
        let author = &event.pubkey()[..8];
        let kind = event.kind().0.to_be_bytes();
        Self {
            suffix,
            time: Suffix(suffix).turned().0,
            author_kind: join(&[author, &kind, &suffix]),
            kind: join(&[&kind, &suffix]),
            expire: event.expiration().map(|at| join(&[&at.to_be_bytes(), &short(seq)])),
        }
    }
}

/// Key of `tag`.
pub(super) fn tag_key(prefix: &[u8; 9], suffix: &[u8; SUFFIX_BYTES]) -> [u8; 28] {
    join(&[prefix, suffix])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_order_newest_first_then_lowest_id_and_bound_their_seconds() {
        let at = |created_at: u64, id: u8| {
            let mut suffix = Suffix::newest(created_at);
            suffix.0[5] = id;
            suffix
        };
        assert!(at(11, 9) < at(10, 1));
        assert!(at(10, 1) < at(10, 2));
        assert!(Suffix::newest(10) <= at(10, 0) && at(10, 0xff) < Suffix::oldest(10));
        assert!(at(11, 0xff) < Suffix::newest(10) && Suffix::oldest(10) < at(9, 0));
        assert_eq!(Suffix::newest(u64::MAX), Suffix([0; SUFFIX_BYTES]));
    }

    #[test]
    fn values_come_back() {
        let mark = Mark { inverted: [1, 2, 3, 4, 5], id: [7; 32], seq: SEQUENCE_MAX };
        assert_eq!(Mark::decode(&mark.encode()), Some(mark));
        let next = Suffix::newest(8);
        let backlog = Backlog { up_to: 9, phase: Phase::Wrapped, kind: Kind(0x102), next };
        assert_eq!(Backlog::decode(&backlog.encode()), Some(backlog));
        let backlog = ArchiveBacklog { up_to: 9, next: [7; 50] };
        assert_eq!(ArchiveBacklog::decode(&backlog.encode()), Some(backlog));
        assert_eq!(ArchiveBacklog::decode(&[2; 57]), None);
        assert_eq!(Mark::decode(&[0; 42]), None);
        assert_eq!(Backlog::decode(&[2; 30]), None);
        assert_eq!(Suffix::newest(9).turned().turned(), Suffix::newest(9));
    }

    #[test]
    fn a_record_is_told_from_another_and_from_that_of_another_event() {
        let record = [9; 300];
        let mut value = [&checksum(7, &record)[..], &record].concat();
        assert_eq!(unseal(7, &value), Some(&record[..]));
        assert_eq!(unseal(8, &value), None);
        for at in [0, 4, 303] {
            value[at] ^= 0x10;
            assert_eq!(unseal(7, &value), None, "{at}");
            value[at] ^= 0x10;
        }
        assert_eq!(unseal(7, &value[..303]), None);
        assert_eq!(unseal(7, &value[..3]), None);
    }

    #[test]
    fn a_backlog_of_the_archive_covers_what_is_ahead_and_old_enough() {
        let mut key = ArchiveKey([5; 87]);
        key.0[50..55].copy_from_slice(&[0, 0, 0, 1, 2]);
        assert_eq!(key.created_at(), 258);
        assert_eq!(ArchiveKey::found(key.id(), key.place()), Some(key));
        let backlog = |up_to, next| ArchiveBacklog { up_to, next: [next; 50] };
        assert!(backlog(258, 5).covers(&key) && backlog(300, 4).covers(&key));
        assert!(!backlog(257, 5).covers(&key) && !backlog(258, 6).covers(&key));
        assert!(ArchiveBacklog::new(key.pubkey(), 258).covers(&key));
        assert!(ArchiveBacklog::new(key.address(), 258).covers(&key));
    }

    #[test]
    fn raw_bytes_and_text_hash_apart() {
        let hasher = Hasher::new([3; 16]);
        let raw = [b'a'; 32];
        assert_ne!(hasher.tag(TagRef::Hex(&raw)), hasher.tag(TagRef::Text(&raw)));
        assert_ne!(hasher.address(TagRef::Hex(&raw)), hasher.address(TagRef::Text(&raw)));
    }
}
