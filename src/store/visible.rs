//! Which stored events may be served: not those that have expired (NIP-40), nor those of a
//! vanished key (NIP-62) that wait to be erased.

use heed::RoTxn;

use super::environment::{Environment, Table, number};
use super::error::StoreError;
use super::schema::address_of;
use crate::nostr::{EventView, Kind, TagRef};

/// Whether a stored event may be served at `now`.
pub(super) fn is_visible(
    environment: &Environment,
    txn: &RoTxn<'_>,
    event: EventView<'_>,
    now: u64,
) -> Result<bool, StoreError> {
    Ok(!event.is_expired(now) && !is_covered(environment.tables.backlog, txn, event)?)
}

/// Whether an archived version may be exported at `now`: not one that waits to be erased.
pub(super) fn is_archived_visible(
    environment: &Environment,
    txn: &RoTxn<'_>,
    event: EventView<'_>,
    now: u64,
) -> Result<bool, StoreError> {
    if event.is_expired(now) || is_covered(environment.tables.vanish, txn, event)? {
        return Ok(false);
    }
    let Some(address) = address_of(event, &environment.hasher) else { return Ok(false) };
    match environment.tables.tomb_addr.get(txn, &address)? {
        None => Ok(true),
        Some(up_to) => Ok(number(up_to)? < event.created_at()),
    }
}

/// Whether `table`, `pubkey → up to(8) …`, covers the event: its author's entry, or for a gift
/// wrap that of a key it is for, reaches its `created_at`. A request to vanish is never covered:
/// it is what the relay goes by.
pub(super) fn is_covered(
    table: Table,
    txn: &RoTxn<'_>,
    event: EventView<'_>,
) -> Result<bool, StoreError> {
    if event.kind() == Kind::VANISH {
        return Ok(false);
    }
    let reaches = |key: &[u8; 32]| match table.get(txn, key)? {
        None => Ok(false),
        Some(value) => {
            let up_to = value.get(..8).unwrap_or_default();
            Ok::<_, StoreError>(number(up_to)? >= event.created_at())
        }
    };
    if reaches(event.pubkey())? {
        return Ok(true);
    }
    if event.kind() == Kind::GIFT_WRAP {
        for recipient in recipients(event) {
            if reaches(recipient)? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// The keys a gift wrap is for: its `p` tags (NIP-59).
pub(super) fn recipients(event: EventView<'_>) -> impl Iterator<Item = &[u8; 32]> {
    event.tags().filter_map(|tag| match tag {
        (b'p', TagRef::Hex(key)) => Some(key),
        _ => None,
    })
}
