//! What is erased in the background, chunk by chunk: expired events (NIP-40), what a vanish left
//! to be erased (NIP-62), archived versions of both and of deleted addresses (NIP-09), and what the operator
//! deletes.

use std::ops::Bound;

use super::environment::Environment;
use super::error::StoreError;
use super::schema::{Backlog, Phase, Suffix, tag_prefix};
use super::transaction::{Transaction, suffix_of};
use super::visible::recipients;
use crate::nostr::event::{Id, Pubkey};
use crate::nostr::{EventView, Kind, TagRef};
use crate::relay::ports::{Erased, Sequence};

/// What one chunk of maintenance did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Maintained {
    /// Stored events erased.
    pub erased: Vec<Erased>,
    /// Whether more is to be done.
    pub more: bool,
}

/// What is to be erased at somebody's word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doomed {
    /// Stored events.
    Stored(Vec<Sequence>),
    /// Archived versions.
    Replaced(Vec<Id>),
}

impl Doomed {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Stored(events) => events.len(),
            Self::Replaced(versions) => versions.len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Erases at most `events_max` events, and as many archived versions, that have expired at `now` or belong to a
/// vanished key, looking at no more than sixteen index entries for each; fewer where the map has no room for so many.
pub(super) fn maintain(
    environment: &Environment,
    now: u64,
    events_max: usize,
) -> Result<Maintained, StoreError> {
    match maintain_together(environment, now, events_max) {
        Err(error) if error.is_map_full() && events_max > 1 => {
            maintain(environment, now, events_max / 2)
        }
        done => done,
    }
}

fn maintain_together(
    environment: &Environment,
    now: u64,
    events_max: usize,
) -> Result<Maintained, StoreError> {
    let mut t = Transaction::begin(environment)?;
    let expired = expired(&t, now, events_max)?;
    let mut more = expired.len() == events_max;
    let events: Vec<Sequence> = expired.iter().map(sequence_of).collect();
    erase_all(&mut t, &events)?;
    for key in &expired {
        // Of a damaged record the entry is still there, before all others.
        t.forget_expiry(key)?;
    }
    let left = events_max - expired.len();
    let vanishing = first_backlog(&t)?;
    if let (Some((key, backlog)), true) = (vanishing, left > 0) {
        vanish(&mut t, &key, backlog, left)?;
    }
    more |= first_backlog(&t)?.is_some();
    more |= t.tend_archive(now, events_max)?;
    Ok(Maintained { erased: t.commit()?.erased, more })
}

/// Erases those of `events` that are still there: together, or, where the pages to be copied for that
/// find no room in the map, half by half; tells `erased` of each part. After an error those of earlier
/// parts stay erased.
pub(super) fn erase(
    environment: &Environment,
    events: &[Sequence],
    erased: &mut dyn FnMut(Vec<Erased>),
) -> Result<(), StoreError> {
    half_by_half(events, &|part| erase_together(environment, part), erased)
}

/// As [`erase`], of archived versions; `erased` is told how many.
pub(super) fn erase_archived(
    environment: &Environment,
    versions: &[Id],
    erased: &mut dyn FnMut(u64),
) -> Result<(), StoreError> {
    half_by_half(versions, &|part| erase_archived_together(environment, part), erased)
}

/// See [`erase`].
fn half_by_half<T, E>(
    all: &[T],
    together: &dyn Fn(&[T]) -> Result<E, StoreError>,
    erased: &mut dyn FnMut(E),
) -> Result<(), StoreError> {
    match together(all) {
        Err(error) if error.is_map_full() && all.len() > 1 => {
            let (first, rest) = all.split_at(all.len() / 2);
            half_by_half(first, together, erased)?;
            half_by_half(rest, together, erased)
        }
        Err(error) => Err(error),
        Ok(part) => {
            erased(part);
            Ok(())
        }
    }
}

fn erase_archived_together(environment: &Environment, versions: &[Id]) -> Result<u64, StoreError> {
    let mut t = Transaction::begin(environment)?;
    let mut erased = 0;
    for id in versions {
        if let Some(key) = t.find_archived(id)? {
            t.erase_archived(&key)?;
            erased += 1;
        }
    }
    t.commit()?;
    Ok(erased)
}

fn erase_together(
    environment: &Environment,
    events: &[Sequence],
) -> Result<Vec<Erased>, StoreError> {
    let mut t = Transaction::begin(environment)?;
    erase_all(&mut t, events)?;
    Ok(t.commit()?.erased)
}

fn erase_all(t: &mut Transaction<'_>, events: &[Sequence]) -> Result<(), StoreError> {
    for &seq in events {
        match t.environment().event(t.read(), seq) {
            Ok(Some(_)) => t.erase(seq)?,
            Ok(None) | Err(StoreError::Record { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A key of `expire`.
type ExpireKey = [u8; 14];

fn sequence_of(key: &ExpireKey) -> Sequence {
    super::schema::long(*key.last_chunk().expect("14 bytes end in 6"))
}

/// The entries of the events that expired first, at or before `now`.
fn expired(t: &Transaction<'_>, now: u64, most: usize) -> Result<Vec<ExpireKey>, StoreError> {
    let mut keys = Vec::new();
    for entry in t.environment().tables.expire.iter(t.read())?.take(most) {
        let Ok(key) = ExpireKey::try_from(entry?.0) else {
            return Err(StoreError::Damaged("an expire key has not 14 bytes".into()));
        };
        if u64::from_be_bytes(*key.first_chunk().expect("14 bytes")) > now {
            break;
        }
        keys.push(key);
    }
    Ok(keys)
}

fn first_backlog(t: &Transaction<'_>) -> Result<Option<(Pubkey, Backlog)>, StoreError> {
    let Some((key, value)) = t.environment().tables.backlog.first(t.read())? else {
        return Ok(None);
    };
    match (key.try_into(), Backlog::decode(value)) {
        (Ok(key), Some(backlog)) => Ok(Some((key, backlog))),
        _ => Err(StoreError::Damaged("a backlog entry is not one".into())),
    }
}

/// Walks one index on from where the last chunk stopped, erasing what the vanish covers.
fn vanish(
    t: &mut Transaction<'_>,
    key: &Pubkey,
    mut backlog: Backlog,
    events_max: usize,
) -> Result<(), StoreError> {
    let walk = match backlog.phase {
        Phase::Authored => walk_authored(t, key, backlog, events_max)?,
        Phase::Wrapped => walk_wrapped(t, key, backlog, events_max)?,
    };
    erase_all(t, &walk.events)?;
    match (walk.next, backlog.phase) {
        (Some((kind, next)), _) => {
            (backlog.kind, backlog.next) = (kind, next);
            t.put_backlog(key, &backlog)?;
        }
        (None, Phase::Authored) => {
            backlog = Backlog { phase: Phase::Wrapped, ..Backlog::whole(backlog.up_to) };
            t.put_backlog(key, &backlog)?;
        }
        (None, Phase::Wrapped) => t.delete_backlog(key)?,
    }
    Ok(())
}

struct Walk {
    events: Vec<Sequence>,
    /// Where to go on; `None` at the end.
    next: Option<(Kind, Suffix)>,
}

/// What the key wrote, kind by kind; of each the newest first, those from after the vanish among them.
fn walk_authored(
    t: &Transaction<'_>,
    key: &Pubkey,
    backlog: Backlog,
    events_max: usize,
) -> Result<Walk, StoreError> {
    let from = [&key[..8], &backlog.kind.0.to_be_bytes(), &backlog.next.0].concat();
    let to = [&key[..8], &[0xff; 2], &Suffix::oldest(0).0].concat();
    let (mut events, first) = (Vec::new(), Suffix::newest(backlog.up_to));
    let range = (Bound::Included(&from[..]), Bound::Included(&to[..]));
    let entries = t.environment().tables.author_kind.range(t.read(), &range)?;
    for (examined, entry) in entries.enumerate() {
        let (found, _) = entry?;
        let suffix = suffix_of(found)?;
        if events.len() == events_max || examined == entries_max(events_max) {
            let kind = found.get(8..10).and_then(|kind| kind.try_into().ok()).unwrap_or_default();
            return Ok(Walk { events, next: Some((Kind(u16::from_be_bytes(kind)), suffix)) });
        }
        let is_covered =
            |event: EventView<'_>| event.pubkey() == key && event.kind() != Kind::VANISH;
        if suffix >= first && covers(t, suffix.seq(), is_covered)? {
            events.push(suffix.seq());
        }
    }
    Ok(Walk { events, next: None })
}

/// The gift wraps to the key.
fn walk_wrapped(
    t: &Transaction<'_>,
    key: &Pubkey,
    backlog: Backlog,
    events_max: usize,
) -> Result<Walk, StoreError> {
    let prefix = tag_prefix(b'p', TagRef::Hex(key), &t.environment().hasher);
    let (from, to) = ([&prefix[..], &backlog.next.0].concat(), Suffix::oldest(0));
    let to = [&prefix[..], &to.0].concat();
    let range = (Bound::Included(&from[..]), Bound::Included(&to[..]));
    let mut events = Vec::new();
    for (examined, entry) in t.environment().tables.tag.range(t.read(), &range)?.enumerate() {
        let suffix = suffix_of(entry?.0)?;
        if events.len() == events_max || examined == entries_max(events_max) {
            return Ok(Walk { events, next: Some((Kind(0), suffix)) });
        }
        let is_covered = |event: EventView<'_>| {
            event.kind() == Kind::GIFT_WRAP && recipients(event).any(|recipient| recipient == key)
        };
        if covers(t, suffix.seq(), is_covered)? {
            events.push(suffix.seq());
        }
    }
    Ok(Walk { events, next: None })
}

/// Entries looked at in one chunk.
fn entries_max(events_max: usize) -> usize {
    events_max.saturating_mul(16)
}

/// Whether an event is one of those; of a damaged record nobody knows.
fn covers(
    t: &Transaction<'_>,
    seq: Sequence,
    is_covered: impl Fn(EventView<'_>) -> bool,
) -> Result<bool, StoreError> {
    match t.environment().indexed(t.read(), seq) {
        Ok(event) => Ok(is_covered(event)),
        Err(StoreError::Record { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}
