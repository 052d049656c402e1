//! Durable events: LMDB through heed.
//!
//! **Owner threads.** One [`Writer`] thread applies submissions, one transaction a batch, and
//! publishes what was committed. A few [`Readers`] threads run stored queries, slice by slice.
//! Shards never come here: a page fault would stall every connection they own. [`Store`] itself
//! may be used from any thread; a second writing thread (an operator's deletion) waits for its
//! turn at LMDB's lock.
//!
//! **In:** [`Submission`]s, [`Query`]s. **Out:** [`CommitBatch`]es, `Chunk`s.
//!
//! | file | what |
//! |---|---|
//! | `schema` | tables, keys, values |
//! | `environment` | opening, locking, the tables' handles |
//! | `transaction`, `transaction/archive` | how an event comes and goes in the tables; what becomes of replaced versions |
//! | `apply`, `maintain`, `visible`, `names` | the rules: what is stored, erased, served |
//! | `ranked` | reading in the order of a search |
//! | `plan`, `scan`, `export` | reading |
//! | `replaced` | reading the archive of replaced versions |
//! | `writer`, `readers` | the threads: the only places with a clock and channels |
//! | `check`, `repair` | every table against every event; a store made anew from its events |
//! | `isolated` | records that are not what was stored |
//! | `migrate` | a store of an older build |
//! | `reader_table` | who keeps pages from being used again |
//! | `copies`, `beside` | backup, restore, compaction: a data file put in place whole |
//!
//! **Invariants**, which [`Store::check`] walks:
//! - A commit is on disk when [`Store::apply`] returns: no OK before that. Where the operator chose
//!   [`Durability::Later`], the last commit may not be, and a power cut undoes it whole.
//! - Every stored event has exactly its entries in every index, and no entry is without its event.
//! - Sequence numbers only grow and are never used again, whatever is erased.
//! - Of an address (NIP-01) at most one version is stored, and its high-water mark names it.
//! - What is visible, and what is archived, depends on which events came in, not on their order (see `apply`).
//! - No read transaction outlives a slice; only `check` and `backup` hold one for as long as they run.
//! - One process writes a directory; others may read it at the same time. Whoever replaces the data
//!   file is alone with it.

mod apply;
mod beside;
mod check;
mod copies;
mod count;
mod cursor;
mod environment;
mod error;
mod estimate;
mod export;
mod isolated;
mod maintain;
mod migrate;
mod names;
mod plan;
mod ranked;
mod reader_table;
mod readers;
mod records;
mod repair;
mod replaced;
mod retention;
mod scan;
mod schema;
mod transaction;
mod visible;
mod writer;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

pub use apply::Terms;
pub use check::Report;
pub use copies::{Backup, Compacted, Copied};
pub use environment::{Durability, Options};
pub use error::StoreError;
pub use export::ExportRange;
pub use maintain::{Doomed, Maintained};
pub use names::RelayNames;
pub use ranked::Search;
pub use reader_table::{Reader, readers};
pub use readers::{GatherJob, ReadJob, Readers, ReadersHandle};
pub use records::{Gathered, Gathering, RECORD_BYTES, Records};
pub use repair::Repaired;
pub use replaced::Replaced;
pub use retention::{Erasure, Keep, Pass, Retention, Rule, Surplus};
pub use scan::{Scan, SliceBudget};
pub use schema::{CREATED_AT_MAX, SCHEMA_VERSION};
pub use writer::{CommitSink, CommitStats, Writer, WriterHandle, WriterOptions};

use environment::{Environment, Hold, Mode, hold_files, lock_directory};

use crate::nostr::Filter;
use crate::nostr::event::Id;
use crate::relay::ports::{CommitBatch, Erased, Query, Sequence, Submission};

/// Entries examined between two looks at whether the transaction should end, where nobody waits.
const ENTRIES_PER_CHUNK: usize = 20_000;

/// What [`Store::probe`] writes: room for some hundred events, so that a store which has it does not fail
/// at the next.
const PROBE_BYTES: usize = 256 << 10;

/// How long [`Store::reopen`] waits for readers to finish their slices.
const CLOSE_WAIT: Duration = Duration::from_secs(10);

/// A data directory, open. Cheap to clone; closed with its last clone.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    dir: PathBuf,
    options: Options,
    mode: Mode,
    /// `None` only while, or after, a reopening failed. Dropped before the lock below.
    environment: RwLock<Option<Arc<Environment>>>,
    /// Why nothing read from the data file can be relied on, once a thread has met it.
    damage: OnceLock<String>,
    /// Set when the environment was reopened. Where writing the page that ends a commit failed, LMDB has put
    /// the old one back without syncing; until that is on the disk, no page of the failed commit may be
    /// used again.
    sync_first: AtomicBool,
    /// Held for as long as the store is open for writing.
    _lock: Option<File>,
    /// Keeps others from replacing the data file.
    _files: File,
    search: OnceLock<Arc<dyn Search>>,
}

/// What a store holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Events stored, those included that wait to be erased.
    pub events: u64,
    /// Replaced versions archived, those included that wait to be erased.
    pub replaced: u64,
    /// The last sequence number given.
    pub last_sequence: Sequence,
    /// How far the replicated log has been applied; 0 without one.
    pub applied_log_sequence: u64,
    /// [`SCHEMA_VERSION`] of the store.
    pub schema_version: u64,
    /// Length of the data file.
    pub disk_bytes: u64,
    /// Bytes of it that the tables' pages take.
    pub used_bytes: u64,
    /// Bytes of it that are free, those included in which LMDB lists them: what is written next
    /// goes there, unless a read transaction that began before they were freed is still open.
    pub free_bytes: u64,
    /// What the data file may grow to.
    pub map_bytes_max: u64,
    /// Read transactions open at once, the most so far, of all processes: the slots they took in the lock
    /// file, which are used again.
    pub readers: u32,
    /// Every table, in the order of the schema.
    pub tables: Vec<TableInfo>,
}

/// The size of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableInfo {
    /// Its name in the schema.
    pub name: &'static str,
    /// Entries.
    pub entries: u64,
    /// Bytes of its pages.
    pub bytes: u64,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Shared { dir, mode, .. } = &*self.shared;
        f.debug_struct("Store").field("dir", dir).field("mode", mode).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens `dir` for writing and reading; creates it, and a store in it, if need be. One of an older schema is
    /// brought to this one first, which takes some seconds a million events.
    ///
    /// # Errors
    /// [`StoreError::Held`] when another writer has it; [`StoreError::Replaced`] while its file is
    /// being replaced; [`StoreError::Schema`] when another build wrote it; otherwise what LMDB or
    /// the file system said.
    pub fn open(dir: impl AsRef<Path>, options: &Options) -> Result<Self, StoreError> {
        let dir = dir.as_ref();
        let lock = lock_directory(dir)?;
        Self::with(dir, options, Mode::ReadWrite, Some(lock))
    }

    /// Opens `dir` for reading only, also while a relay writes it.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when there is no store; otherwise as [`Store::open`], but for
    /// `Held`.
    pub fn open_read_only(dir: impl AsRef<Path>, options: &Options) -> Result<Self, StoreError> {
        let dir = dir.as_ref();
        if !dir.join("data.mdb").is_file() {
            return Err(StoreError::Missing { dir: dir.into() });
        }
        Self::with(dir, options, Mode::ReadOnly, None)
    }

    fn with(
        dir: &Path,
        options: &Options,
        mode: Mode,
        lock: Option<File>,
    ) -> Result<Self, StoreError> {
        let files = hold_files(dir, Hold::Shared)?;
        if mode == Mode::ReadWrite {
            beside::remove(&dir.join(copies::REBUILD));
        }
        let environment = Environment::open(dir, options, mode)?;
        if mode == Mode::ReadWrite && migrate::is_under_way(&environment)? {
            // Somebody of an older build who reads would find less and less.
            let _alone = migrate::Alone::with(&files, dir)?;
            migrate::go_on(&environment, dir)
                .map_err(|error| error.in_directory(dir, options.map_bytes_max))?;
        }
        let shared = Shared {
            dir: dir.into(),
            options: options.clone(),
            mode,
            environment: RwLock::new(Some(Arc::new(environment))),
            damage: OnceLock::new(),
            sync_first: AtomicBool::new(false),
            _lock: lock,
            _files: files,
            search: OnceLock::new(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The data directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// Applies a batch in one transaction, durable when this returns unless the store was opened with
    /// [`Durability::Later`]. A pure function of what is
    /// stored, the batch, `now` (seconds) and the operator's terms; the rules are in `apply`.
    /// `stored` lists every event the batch added, also one that a later event of it erased.
    ///
    /// # Errors
    /// Then nothing of the batch is stored. [`StoreError::Unstorable`] if it holds an ephemeral
    /// event or one from the year 36812 on: whoever submits keeps them away.
    pub fn apply(
        &self,
        batch: &[Submission],
        now: u64,
        terms: &Terms,
    ) -> Result<CommitBatch, StoreError> {
        self.write(|environment| apply::apply(environment, batch, now, terms))
    }

    /// Begins a query; [`Scan::slice`] plans and runs it. Nothing is read yet.
    ///
    /// # Errors
    /// When the environment is lost.
    pub fn scan(&self, query: Query) -> Result<Scan, StoreError> {
        self.environment()?;
        Ok(Scan::new(query))
    }

    /// Has searches answered by `search`, from now on and whatever is told later.
    pub fn set_search(&self, search: Arc<dyn Search>) {
        // The first is kept.
        let _ = self.shared.search.set(search);
    }

    fn searches(&self) -> bool {
        self.shared.search.get().is_some()
    }

    fn search(&self) -> Result<&dyn Search, StoreError> {
        let search = self.shared.search.get();
        search.map(|search| &**search).ok_or_else(|| StoreError::Search("there is none".into()))
    }

    /// The number of visible events that match one of the filters, their `limit`s aside. The
    /// transaction is dropped now and then; commits meanwhile do not count.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn count(&self, filters: &[Filter], now: u64) -> Result<u64, StoreError> {
        let mut scan = self.scan_all(filters)?;
        let mut count = 0;
        while !scan.is_done() {
            count += scan.count_slice(self, ENTRIES_PER_CHUNK, now)?;
        }
        Ok(count)
    }

    /// Begins a query for every event that matches one of the filters, their `limit`s aside.
    ///
    /// # Errors
    /// When the environment is lost.
    pub fn scan_all(&self, filters: &[Filter]) -> Result<Scan, StoreError> {
        let unlimited = |filter: &Filter| Filter { limit: None, ..filter.clone() };
        let filters = filters.iter().map(unlimited).collect();
        self.scan(Query { filters, limit_max: u64::MAX })
    }

    /// The next of a scan's events, at most `events_max`. There are no more when the scan is done.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn next_events(
        &self,
        scan: &mut Scan,
        events_max: usize,
        now: u64,
    ) -> Result<Vec<Sequence>, StoreError> {
        let mut events = Vec::new();
        scan.sequences(self, ENTRIES_PER_CHUNK, now, &mut |seq| {
            let room = events.is_empty() || events.len() < events_max;
            if room {
                events.push(seq);
            }
            room
        })?;
        Ok(events)
    }

    /// Erases events, in one transaction or, where the map is nearly full, in several; `erased` is told
    /// those of each. No tombstones: the same events may come again.
    ///
    /// # Errors
    /// When the store cannot be read or written; what `erased` was told of stays erased.
    pub fn erase(
        &self,
        events: &[Sequence],
        erased: &mut dyn FnMut(Vec<Erased>),
    ) -> Result<(), StoreError> {
        if events.is_empty() {
            return Ok(());
        }
        self.write(|environment| maintain::erase(environment, events, erased))
    }

    /// As [`Store::erase`], of archived versions by their ids; `erased` is told how many.
    ///
    /// # Errors
    /// When the store cannot be read or written; what `erased` was told of stays erased.
    pub fn erase_replaced(
        &self,
        versions: &[Id],
        erased: &mut dyn FnMut(u64),
    ) -> Result<(), StoreError> {
        if versions.is_empty() {
            return Ok(());
        }
        self.write(|environment| maintain::erase_archived(environment, versions, erased))
    }

    /// Erases up to `events_max` events that have expired or whose author has vanished, and as many archived
    /// versions, in one transaction. They are not visible even before.
    ///
    /// # Errors
    /// When the store cannot be written; then nothing is erased.
    pub fn maintain(&self, now: u64, events_max: usize) -> Result<Maintained, StoreError> {
        self.write(|environment| {
            // A reader that was killed pins the pages it saw until its slot is cleared.
            environment.env.clear_stale_readers()?;
            maintain::maintain(environment, now, events_max)
        })
    }

    /// What the store holds.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn info(&self) -> Result<Info, StoreError> {
        let environment = self.environment()?;
        let txn = environment.env.read_txn()?;
        let env_info = environment.env.info();
        let names = environment.env.stat();
        let page_bytes = u64::from(names.page_size);
        // Two that name the roots, and those of the table of tables.
        let mut pages = 2 + names.branch_pages + names.leaf_pages + names.overflow_pages;
        let mut tables = Vec::new();
        for (name, table) in environment.tables.named() {
            let stat = table.stat(&txn)?;
            let table_pages = stat.branch_pages + stat.leaf_pages + stat.overflow_pages;
            let bytes = table_pages as u64 * page_bytes;
            tables.push(TableInfo { name, entries: stat.entries as u64, bytes });
            pages += table_pages;
        }
        let meta = |name| environment::meta_u64(&environment.tables, &txn, name);
        Ok(Info {
            events: environment.tables.event.len(&txn)?,
            replaced: environment.archived(&txn)?,
            last_sequence: environment.last_sequence(&txn)?,
            applied_log_sequence: meta(schema::META_APPLIED_LOG)?,
            schema_version: meta(schema::META_SCHEMA)?,
            disk_bytes: environment.env.real_disk_size()?,
            used_bytes: tables.iter().map(|table| table.bytes).sum(),
            free_bytes: (env_info.last_page_number + 1).saturating_sub(pages) as u64 * page_bytes,
            map_bytes_max: env_info.map_size as u64,
            readers: env_info.number_of_readers,
            tables,
        })
    }

    /// Closes the environment and opens it again, which a fatal error of LMDB asks for. Waits for
    /// the slices under way.
    ///
    /// # Errors
    /// When that fails; the store is unusable until a later call succeeds.
    pub fn reopen(&self) -> Result<(), StoreError> {
        let Shared { dir, options, mode, environment, sync_first, .. } = &*self.shared;
        let mut slot = environment.write().unwrap_or_else(PoisonError::into_inner);
        // Asked for before the last handle can go: LMDB must be done with the files by then.
        let closing = match slot.take() {
            Some(environment) => Some(environment.env.clone().prepare_for_closing()),
            None => heed::env_closing_event(dir.canonicalize().map_err(StoreError::io(dir))?),
        };
        if closing.is_some_and(|closing| !closing.wait_timeout(CLOSE_WAIT)) {
            return Err(StoreError::Busy { dir: dir.clone() });
        }
        let environment = Environment::open(dir, options, *mode)?;
        sync_first.store(true, Relaxed);
        *slot = Some(Arc::new(environment));
        Ok(())
    }

    /// Stored events and archived versions that were found damaged since the store was opened, or opened anew after an
    /// error of the disk, 10,000 at most: they are served no more.
    ///
    /// # Errors
    /// When the environment is lost.
    pub fn damaged_records(&self) -> Result<u64, StoreError> {
        Ok(self.environment()?.isolated.len() as u64)
    }

    /// Keeps in mind that the data file is damaged, if that is what the error says.
    fn note(&self, error: StoreError) -> StoreError {
        let Shared { dir, options, damage, .. } = &*self.shared;
        let error = error.in_directory(dir, options.map_bytes_max);
        if matches!(error, StoreError::Structure { .. }) {
            damage.get_or_init(|| error.to_string());
        }
        error
    }

    /// Why nothing read from the data file can be relied on, as the writer or a reader has found: nothing is
    /// written to it any more, and the process should end.
    #[must_use]
    pub fn damage(&self) -> Option<&str> {
        self.shared.damage.get().map(String::as_str)
    }

    /// Whether LMDB has given the environment up, or it is closed: also reading needs
    /// [`Store::reopen`] first.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        let lost = |error| matches!(error, heed::Error::Mdb(heed::MdbError::Panic));
        self.environment().map_or(true, |environment| environment.env.read_txn().is_err_and(lost))
    }

    /// Finds out whether events can be stored: writes [`PROBE_BYTES`] durably and takes them away again.
    /// Reopens the environment if it is lost.
    ///
    /// # Errors
    /// What storing events would fail with.
    pub fn probe(&self) -> Result<(), StoreError> {
        if self.is_lost() {
            self.reopen()?;
        }
        self.write(|environment| {
            let meta = environment.tables.meta;
            let mut txn = environment.env.write_txn()?;
            meta.put(&mut txn, schema::META_PROBE, &vec![0x5a; PROBE_BYTES])?;
            if !environment.has_room(&txn)? {
                return Err(StoreError::map_full());
            }
            txn.commit()?;
            // What an earlier commit left for later may be what failed: both pages that end one are written
            // anew, and synced.
            self.sync_later(environment)?;
            let mut txn = environment.env.write_txn()?;
            meta.delete(&mut txn, schema::META_PROBE)?;
            txn.commit()?;
            self.sync_later(environment)
        })
    }

    /// Makes the last commit durable, where [`Durability::Later`] left that.
    ///
    /// # Errors
    /// When the disk refuses; then [`Store::probe`] must succeed before anything else is stored.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.write(|environment| self.sync_later(environment))
    }

    /// When its commits are on the disk.
    #[must_use]
    pub fn durability(&self) -> Durability {
        self.shared.options.durability
    }

    fn sync_later(&self, environment: &Environment) -> Result<(), StoreError> {
        match self.shared.options.durability {
            Durability::AtOnce => Ok(()),
            Durability::Later => Ok(environment.env.force_sync()?),
        }
    }

    fn environment(&self) -> Result<Arc<Environment>, StoreError> {
        let slot = self.shared.environment.read().unwrap_or_else(PoisonError::into_inner);
        slot.clone().ok_or_else(|| StoreError::Busy { dir: self.shared.dir.clone() })
    }

    fn write<T>(
        &self,
        write: impl FnOnce(&Environment) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let Shared { dir, mode, sync_first, .. } = &*self.shared;
        if *mode == Mode::ReadOnly {
            return Err(StoreError::ReadOnly { dir: dir.clone() });
        }
        if let Some(damage) = self.damage() {
            return Err(StoreError::Damaged(damage.to_owned()));
        }
        let environment = self.environment()?;
        let synced = match sync_first.load(Relaxed) {
            true => environment.env.force_sync().map_err(StoreError::from),
            false => Ok(()),
        };
        let written = synced.and_then(|()| {
            sync_first.store(false, Relaxed);
            write(&environment)
        });
        written.map_err(|error| self.note(error))
    }
}
