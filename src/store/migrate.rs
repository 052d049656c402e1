//! A store of an older schema brought to [`super::schema`] in place.
//!
//! Version 1 had records without checksums, `time` by descending time with whole ids, and an index by author
//! alone. Sequence numbers stay, and with them every other table.
//!
//! The old table is read once to its end before anything is changed: where that fails, the build that wrote it
//! can still repair it. Then the version is raised, with a mark that it is under way: so an older build refuses the
//! store, and whichever process of this one opens it for writing next goes on. Chunk by chunk, each a transaction,
//! records move from the old table to the new; what the old one still holds is what is left to do. The disk
//! needs room for the new `time`, some 60 bytes an event, until the old one goes at the end.
//!
//! A record that is not what was signed gets a checksum that is not its own: what a disk had changed before is not
//! vouched for now.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use heed::types::Bytes as Raw;
use heed::{Env, PutFlags, RoTxn, RwTxn, WithoutTls};
use rustix::fs::{FlockOperation, flock};

use super::check::Rereader;
use super::environment::{Environment, Table, number};
use super::error::StoreError;
use super::schema::{
    Backlog, CHECKSUM_BYTES, IdRest, META_MIGRATING, SCHEMA_VERSION, Suffix, id_rest, seal,
};
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

/// That every event of the old table can be reached.
///
/// # Errors
/// What LMDB says; [`StoreError::Damaged`] when a key is none. Nothing has been changed.
pub(super) fn expect_readable(env: &Env<WithoutTls>, txn: &RoTxn<'_>) -> Result<(), StoreError> {
    let Some(event) = env.open_database::<Raw, Raw>(txn, Some(OLD[0]))? else { return Ok(()) };
    for entry in event.iter(txn)? {
        key_of(entry?.0)?;
    }
    Ok(())
}

fn key_of(key: &[u8]) -> Result<Sequence, StoreError> {
    key.try_into().map(Sequence::from_be_bytes).map_err(|_| {
        let text = "a key of its events is none: `check --repair` with the build that wrote it";
        StoreError::Damaged(text.into())
    })
}

/// Whether a migration has begun and not ended.
pub(super) fn is_under_way(environment: &Environment) -> Result<bool, StoreError> {
    let txn = environment.env.read_txn()?;
    Ok(environment.tables.meta.get(&txn, META_MIGRATING)?.is_some())
}

/// Keeps others from reading for as long as it lives.
pub(super) struct Alone<'f>(&'f File);

impl<'f> Alone<'f> {
    /// Makes a shared lock on the files of `dir` one that is not.
    ///
    /// # Errors
    /// [`StoreError::Read`] while others read.
    pub fn with(files: &'f File, dir: &Path) -> Result<Self, StoreError> {
        match flock(files, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self(files)),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::Read { dir: dir.into() }),
            Err(error) => Err(StoreError::io(dir)(error.into())),
        }
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        // Of a lock that is held already the other kind is to be had at once.
        let _ = flock(self.0, FlockOperation::NonBlockingLockShared);
    }
}

/// Goes on with what is under way, to its end. A crash leaves it under way.
///
/// # Errors
/// What LMDB or the disk says. What is done stays done.
pub(super) fn go_on(environment: &Environment, dir: &Path) -> Result<(), StoreError> {
    let txn = environment.env.read_txn()?;
    let old = environment.env.open_database::<Raw, Raw>(&txn, Some(OLD[0]))?;
    let left = old.map_or(Ok(0), |event| event.len(&txn))?;
    drop(txn);
    let dir = dir.display();
    tracing::warn!(events = left, "{dir}: its tables are brought to schema {SCHEMA_VERSION}");
    let (began, mut told, mut done) = (Instant::now(), Instant::now(), 0);
    let mut rereader = Rereader::default();
    while let Some(events) = chunk(environment, &mut rereader)? {
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
pub(super) fn chunk(
    environment: &Environment,
    rereader: &mut Rereader,
) -> Result<Option<u64>, StoreError> {
    let mut txn = environment.env.write_txn()?;
    let mut old = Vec::with_capacity(OLD.len());
    for name in OLD {
        old.push(environment.env.create_database::<Raw, Raw>(&mut txn, Some(name))?);
    }
    let records = first(old[0], &txn)?;
    if records.is_empty() {
        finish(environment, &mut txn, &old)?;
        txn.commit()?;
        return Ok(None);
    }
    let mut times: Vec<([u8; 19], IdRest)> = Vec::with_capacity(records.len());
    let mut value = Vec::new();
    for (seq, record) in &records {
        let view = EventView::new(record);
        let again = view.and_then(|view| rereader.read(view).ok());
        seal(*seq, record, &mut value);
        if again.is_none_or(|event| event.record() != record) {
            // For `check` to tell of.
            value[..CHECKSUM_BYTES].iter_mut().for_each(|byte| *byte = !*byte);
            environment.isolated.meet(*seq);
        }
        let key = seq.to_be_bytes();
        environment.tables.event.put_with_flags(&mut txn, PutFlags::APPEND, &key, &value)?;
        old[0].delete(&mut txn, &key)?;
        let time = |view| (Suffix::of(view, *seq).turned().0, id_rest(view.id()));
        times.extend(view.map(time));
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
        bytes += record.len();
        records.push((key_of(key)?, record.to_vec()));
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
        let (key, _) = entry?;
        let up_to = tables.vanish.get(txn, key)?.map(number).transpose()?;
        backlogs.push((key.to_vec(), up_to));
    }
    for (key, up_to) in backlogs {
        match up_to {
            Some(up_to) => tables.backlog.put(txn, &key, &Backlog::whole(up_to).encode())?,
            None => drop(tables.backlog.delete(txn, &key)?),
        }
    }
    tables.meta.delete(txn, META_MIGRATING)?;
    Ok(())
}
