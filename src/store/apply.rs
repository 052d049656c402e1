//! What becomes of submitted events: the rules, in one transaction. A pure function of the
//! tables, the batch, `now` and the operator's terms.
//!
//! For each submission, in order:
//!
//! 1. stored already and visible → `Duplicate`
//! 2. its author, or the recipient of a gift wrap, has vanished → `Vanished`; a deletion request
//!    takes effect all the same
//! 3. expired → `Expired`
//! 4. named by a deletion request of its author or recipient → `Deleted`; as a version of an
//!    address it still beats older ones
//! 5. not the newest version of its address → `Superseded`; archived, where replaced versions are kept
//! 6. else `Stored`: it erases the version it beats, or moves it into the archive, a kind 5 erases what it
//!    names, a kind 62 that names this relay makes its author vanish.
//!
//! The order of arrival does not matter: whichever order events come in at one `now`, the same
//! ones are visible in the end, and the same ones archived. Hence the high-water mark (4), the tombstones of events not seen
//! yet, and the effect of a refused deletion request (2).

use super::environment::Environment;
use super::error::StoreError;
use super::names::RelayNames;
use super::schema::{CREATED_AT_MAX, Mark, address, address_of, tomb_key};
use super::transaction::Transaction;
use super::visible::recipients;
use crate::nostr::event::{Event, EventView, Id, Kind, KindClass, Pubkey};
use crate::nostr::tag::decode_hex32;
use crate::nostr::{TagRef, TagValue};
use crate::relay::ports::{CommitBatch, Sequence, Submission, Verdict};

/// What the operator lays down: a part of the input of every transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// What the relay is called, for requests to vanish.
    pub names: RelayNames,
    /// Whether versions that newer ones replace are archived rather than erased.
    pub keep_replaced: bool,
}

/// Applies a batch and makes it durable.
pub(super) fn apply(
    environment: &Environment,
    batch: &[Submission],
    now: u64,
    terms: &Terms,
) -> Result<CommitBatch, StoreError> {
    for submission in batch {
        check_storable(submission.event.view())?;
    }
    let mut transaction = Transaction::begin(environment)?;
    transaction.expect_events(batch.len());
    let mut out = CommitBatch {
        verdicts: Vec::with_capacity(batch.len()),
        stored: Vec::with_capacity(batch.len()),
        ..CommitBatch::default()
    };
    for Submission { event, ticket } in batch {
        let seq = transaction.last_sequence() + 1;
        let verdict = take(&mut transaction, event, seq, now, terms)?;
        if verdict == Verdict::Stored {
            out.stored.push((seq, event.clone()));
        }
        out.verdicts.push((*ticket, verdict));
    }
    out.last_sequence = transaction.last_sequence();
    let gone = transaction.commit()?;
    Ok(CommitBatch { erased: gone.erased, vanished: gone.vanished, ..out })
}

/// Judges one event; stores it as `seq`, with all that follows from it, if that is the verdict.
pub(super) fn take(
    t: &mut Transaction<'_>,
    event: &Event,
    seq: Sequence,
    now: u64,
    terms: &Terms,
) -> Result<Verdict, StoreError> {
    let verdict = judge(t, event.view(), now, terms)?;
    if verdict == Verdict::Stored {
        t.insert(event, seq)?;
        settle(t, event.view(), seq, &terms.names)?;
    }
    Ok(verdict)
}

/// Refuses what the relay must have kept away from here.
pub(super) fn check_storable(event: EventView<'_>) -> Result<(), StoreError> {
    let reason = if event.kind().class() == KindClass::Ephemeral {
        "its kind is ephemeral"
    } else if event.created_at() > CREATED_AT_MAX {
        "its created_at is 2^40 or more"
    } else {
        return Ok(());
    };
    Err(StoreError::Unstorable { id: faster_hex::hex_string(event.id()), reason })
}

/// The verdict on one event, and what a refused one leaves behind.
fn judge(
    t: &mut Transaction<'_>,
    event: EventView<'_>,
    now: u64,
    terms: &Terms,
) -> Result<Verdict, StoreError> {
    // What is stored and hidden has vanished or expired; the rules below say which.
    if let Some((_, stored)) = t.find(event.id())?
        && t.is_visible(stored, now)?
    {
        return Ok(Verdict::Duplicate);
    }
    if t.is_vanished(event)? {
        if event.kind() == Kind::DELETION && !event.is_expired(now) {
            delete_named(t, event)?;
        }
        return Ok(Verdict::Vanished);
    }
    if event.is_expired(now) {
        return Ok(Verdict::Expired);
    }
    let address = address_of(event, &t.environment().hasher);
    let Some(address) = address else {
        let deleted = is_deleted_by_id(t, event)?;
        return Ok(if deleted { Verdict::Deleted } else { Verdict::Stored });
    };
    let version = Mark::of(event, 0);
    let mark = t.mark(&address)?;
    let deleted = is_deleted_by_id(t, event)? || is_deleted_by_address(t, &address, event)?;
    if let Some(mark) = mark {
        if mark.beats(&version) {
            if deleted {
                return Ok(Verdict::Deleted);
            }
            if terms.keep_replaced {
                t.archive(event)?;
            }
            return Ok(Verdict::Superseded);
        }
        if mark.seq != 0 {
            t.replace(mark.seq, now, terms.keep_replaced)?;
        }
    }
    if deleted {
        t.put_mark(&address, &version)?;
        return Ok(Verdict::Deleted);
    }
    Ok(Verdict::Stored)
}

fn is_deleted_by_id(t: &Transaction<'_>, event: EventView<'_>) -> Result<bool, StoreError> {
    if !is_deletable(event.kind()) {
        return Ok(false);
    }
    let tombs = t.environment().tables.tomb_id;
    if tombs.get(t.read(), &tomb_key(event.id(), event.pubkey()))?.is_some() {
        return Ok(true);
    }
    if event.kind() == Kind::GIFT_WRAP {
        for recipient in recipients(event) {
            if tombs.get(t.read(), &tomb_key(event.id(), recipient))?.is_some() {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn is_deleted_by_address(
    t: &Transaction<'_>,
    address: &[u8],
    event: EventView<'_>,
) -> Result<bool, StoreError> {
    match t.environment().tables.tomb_addr.get(t.read(), address)? {
        None => Ok(false),
        Some(up_to) => Ok(super::environment::number(up_to)? >= event.created_at()),
    }
}

/// A deletion request has no effect on deletion requests (NIP-09) nor on requests to vanish
/// (NIP-62).
fn is_deletable(kind: Kind) -> bool {
    kind != Kind::DELETION && kind != Kind::VANISH
}

/// Whether `key` may have the event deleted: its author, or a recipient of a gift wrap.
pub(super) fn may_delete(key: &Pubkey, event: EventView<'_>) -> bool {
    let wrapped = || event.kind() == Kind::GIFT_WRAP && recipients(event).any(|to| to == key);
    is_deletable(event.kind()) && (event.pubkey() == key || wrapped())
}

/// What a newly stored event does to others.
fn settle(
    t: &mut Transaction<'_>,
    event: EventView<'_>,
    seq: Sequence,
    names: &RelayNames,
) -> Result<(), StoreError> {
    if let Some(address) = address_of(event, &t.environment().hasher) {
        t.put_mark(&address, &Mark::of(event, seq))?;
    }
    match event.kind() {
        Kind::DELETION => delete_named(t, event),
        Kind::VANISH if names.are_asked_to_forget(event) => {
            let vanish = t.environment().tables.vanish;
            if t.raise(vanish, event.pubkey(), event.created_at())? {
                t.vanish(event.pubkey(), event.created_at())?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Carries a deletion request out (NIP-09): erases what is there, entombs what may come.
fn delete_named(t: &mut Transaction<'_>, request: EventView<'_>) -> Result<(), StoreError> {
    for (letter, value) in request.tags() {
        match (letter, value) {
            (b'e', TagRef::Hex(id)) => delete_id(t, request, id)?,
            (b'a', TagRef::Text(text)) => {
                if let Some((kind, d)) = parse_address(text, request.pubkey()) {
                    delete_address(t, request, kind, &d)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn delete_id(t: &mut Transaction<'_>, request: EventView<'_>, id: &Id) -> Result<(), StoreError> {
    if let Some((seq, named)) = t.find(id)? {
        if !may_delete(request.pubkey(), named) {
            return Ok(());
        }
        t.erase(seq)?;
    } else if let Some(key) = t.find_archived(id)? {
        if key.pubkey() != request.pubkey() {
            return Ok(());
        }
        t.erase_archived(&key)?;
    }
    let tombs = t.environment().tables.tomb_id;
    t.raise(tombs, &tomb_key(id, request.pubkey()), request.created_at())?;
    Ok(())
}

fn delete_address(
    t: &mut Transaction<'_>,
    request: EventView<'_>,
    kind: Kind,
    d: &TagValue,
) -> Result<(), StoreError> {
    let address = address(request.pubkey(), kind, d.as_ref(), &t.environment().hasher);
    let tombs = t.environment().tables.tomb_addr;
    if t.raise(tombs, &address, request.created_at())? {
        t.forget_archived(&address, request.created_at())?;
    }
    let Some(mark) = t.mark(&address)? else { return Ok(()) };
    if mark.seq == 0 {
        return Ok(());
    }
    if mark.created_at() <= request.created_at() {
        erase(t, mark.seq)?;
    }
    Ok(())
}

/// Erases an event, unless its record is damaged: that is served no more either way.
fn erase(t: &mut Transaction<'_>, seq: Sequence) -> Result<(), StoreError> {
    match t.erase(seq) {
        Err(StoreError::Record { .. }) => Ok(()),
        erased => erased,
    }
}

/// Reads `kind:pubkey:d` (NIP-01, "Tags"); `None` when it is another key's or names no address.
pub(super) fn parse_address(text: &[u8], pubkey: &Pubkey) -> Option<(Kind, TagValue)> {
    let text = std::str::from_utf8(text).ok()?;
    let mut parts = text.splitn(3, ':');
    let (kind, key, d) = (parts.next()?, parts.next()?, parts.next()?);
    if !kind.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let kind = Kind(kind.parse().ok()?);
    if decode_hex32(key.as_bytes())? != *pubkey {
        return None;
    }
    match kind.class() {
        KindClass::Addressable => Some((kind, TagValue::new(d))),
        KindClass::Replaceable if d.is_empty() => Some((kind, TagValue::new(""))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_strictly() {
        let key = [0xab; 32];
        let hex = "ab".repeat(32);
        let parse = |text: &str| parse_address(text.as_bytes(), &key).map(|(kind, _)| kind.0);
        assert_eq!(parse(&format!("30023:{hex}:a:b")), Some(30023));
        assert_eq!(parse(&format!("30023:{hex}:")), Some(30023));
        assert_eq!(parse(&format!("0:{hex}:")), Some(0));
        for bad in [
            format!("0:{hex}:d"),
            format!("0:{hex}"),
            format!("1:{hex}:"),
            format!("20001:{hex}:"),
            format!("+0:{hex}:"),
            format!(":{hex}:"),
            format!("30023:{}:", "cd".repeat(32)),
            format!("30023:{}:", hex.to_uppercase()),
            format!("99999:{hex}:"),
            String::new(),
        ] {
            assert_eq!(parse(&bad), None, "{bad}");
        }
    }
}
