//! A store of an older schema brought to [`super::schema`] in place.
//!
//! Version 1 had records without checksums, `time` by descending time with whole ids, and an index by author
//! alone. Sequence numbers stay, and with them every other table.
//!
//! The version is raised first, with a mark that it is under way: so an older build refuses the store, and
//! whichever process of this one opens it next goes on. Chunk by chunk, each a transaction, records move from
//! the old table to the new; what the old one still holds is what is left to do. The disk needs room for the
//! new `time`, some 60 bytes an event, until the old one goes at the end.

use std::path::Path;
use std::time::{Duration, Instant};

use heed::RwTxn;

use super::environment::{Environment, Table};
use super::error::StoreError;
use super::schema::{Backlog, IdRest, META_MIGRATING, SCHEMA_VERSION, Suffix, id_rest};
use super::transaction::append_record;
use crate::nostr::EventView;
use crate::relay::ports::Sequence;

/// The version that is brought here.
pub(super) const FROM: u64 = 1;

/// Names of tables of [`FROM`] that are empty in the end.
pub(super) const OLD: [&str; TABLES as usize] = ["event", "time", "author"];

/// Number of [`OLD`].
pub(super) const TABLES: u32 = 3;

/// Events of one transaction.
const CHUNK_EVENTS: usize = 2_000;
/// Bytes of their records, but for the last one.
const CHUNK_BYTES: usize = 8 << 20;

/// Between two words to the operator.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// Goes on with what is under way, to its end. A crash leaves it under way.
///
/// # Errors
/// What LMDB or the disk says; [`StoreError::Damaged`] when a key is none. What is done stays done.
pub(super) fn go_on(environment: &Environment, dir: &Path) -> Result<(), StoreError> {
    let txn = environment.env.read_txn()?;
    if environment.tables.meta.get(&txn, META_MIGRATING)?.is_none() {
        return Ok(());
    }
    let left = match environment
        .env
        .open_database::<heed::types::Bytes, heed::types::Bytes>(&txn, Some(OLD[0]))?
    {
        Some(event) => event.len(&txn)?,
        None => 0,
    };
    drop(txn);
    let dir = dir.display();
    tracing::warn!(events = left, "{dir}: its tables are brought to schema {SCHEMA_VERSION}");
    let (began, mut told, mut done) = (Instant::now(), Instant::now(), 0);
    while let Some(events) = chunk(environment)? {
        done += events;
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            tracing::info!(
                events = done,
                of = left,
                "{dir}: on the way to schema {SCHEMA_VERSION}"
            );
        }
    }
    let seconds = began.elapsed().as_secs();
    tracing::warn!(events = done, seconds, "{dir}: its tables have schema {SCHEMA_VERSION} now");
    Ok(())
}

/// Moves the next events; `None` once there were none, and all is done.
pub(super) fn chunk(environment: &Environment) -> Result<Option<u64>, StoreError> {
    let mut txn = environment.env.write_txn()?;
    let mut old = Vec::with_capacity(OLD.len());
    for name in OLD {
        old.push(environment.env.create_database(&mut txn, Some(name))?);
    }
    let records = first(old[0], &txn)?;
    if records.is_empty() {
        finish(environment, &mut txn, &old)?;
        txn.commit()?;
        return Ok(None);
    }
    let mut times: Vec<([u8; 19], IdRest)> = Vec::with_capacity(records.len());
    let mut scratch = Vec::new();
    for (seq, record) in &records {
        append_record(environment.tables.event, &mut txn, *seq, record, &mut scratch)?;
        old[0].delete(&mut txn, &seq.to_be_bytes())?;
        // One that is no record stays so, for `check` to tell of.
        times.extend(
            EventView::new(record)
                .map(|view| (Suffix::of(view, *seq).turned().0, id_rest(view.id()))),
        );
    }
    times.sort_unstable();
    for (key, value) in &times {
        environment.tables.time.put(&mut txn, key, value)?;
    }
    txn.commit()?;
    Ok(Some(records.len() as u64))
}

/// The first records of the old table, copied: the transaction is going to write over them.
fn first(table: Table, txn: &RwTxn<'_>) -> Result<Vec<(Sequence, Vec<u8>)>, StoreError> {
    let (mut records, mut bytes) = (Vec::new(), 0);
    for entry in table.iter(txn)?.take(CHUNK_EVENTS) {
        let (key, record) = entry?;
        let key = key.try_into().map_err(|_| {
            let text = "a key of its events is none: `check --repair` with the build that wrote it";
            StoreError::Damaged(text.into())
        })?;
        bytes += record.len();
        records.push((Sequence::from_be_bytes(key), record.to_vec()));
        if bytes >= CHUNK_BYTES {
            break;
        }
    }
    Ok(records)
}

fn finish(environment: &Environment, txn: &mut RwTxn<'_>, old: &[Table]) -> Result<(), StoreError> {
    for table in old {
        table.clear(txn)?;
    }
    // Where a vanish had come to was said of the index that is gone: it begins again.
    let tables = &environment.tables;
    let mut backlogs = Vec::new();
    for entry in tables.backlog.iter(txn)? {
        let (key, value) = entry?;
        let up_to = value.first_chunk().copied().map_or(u64::MAX, u64::from_be_bytes);
        backlogs.push((key.to_vec(), Backlog::whole(up_to)));
    }
    for (key, backlog) in backlogs {
        tables.backlog.put(txn, &key, &backlog.encode())?;
    }
    tables.meta.delete(txn, META_MIGRATING)?;
    Ok(())
}
