//! The thread that keeps the index up with the store.
//!
//! ```text
//!   catching up ──nothing behind──▶ waiting ──a commit, a second later──▶ catching up
//!        │                             │
//!        └──────── failed: said once, tried again after a while ────────┘
//! ```
//!
//! The index notes with each of its commits how far it has come, of which store, and the id of the last event it
//! has: a store of which the end was lost numbers its events anew. What the store erases is told by its commits.
//! Where too much was told at once the index is swept, and when it begins, unless nothing has been written to the
//! store since it was last closed, which it notes then.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tantivy::{IndexWriter, TantivyError, Term};

use super::{SearchIndex, document};
use crate::nostr::Id;
use crate::nostr::tag::decode_hex32;
use crate::relay::ports::{CommitBatch, Sequence};
use crate::store::{CommitSink, Store, StoreError};

/// Records looked at in one read transaction.
const CHUNK_EVENTS: usize = 500;

/// How long what is new may wait to be found: the index commits so often at most.
const COMMIT_EVERY: Duration = Duration::from_secs(1);

/// While it has far to go, it commits so often: each makes a segment that is merged later.
const COMMIT_EVERY_BEHIND: Duration = Duration::from_secs(20);

/// After a failure.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// Records looked for in one read transaction of a sweep, and erased ones that are taken out before the index
/// commits.
const SWEPT_EVENTS: usize = 500;
const SWEPT_BEFORE_COMMIT: usize = 100_000;

/// Added to the priority of its threads, of 19 at most: one that is needed elsewhere waits.
const NICENESS: i32 = 10;

/// Memory of the writer; tantivy wants 15 MB at least.
const WRITER_BYTES: usize = 32 << 20;

/// Erased events that wait to be taken out; beyond them the index is swept.
pub(super) const ERASED_MAX: usize = 1 << 16;

/// Tells the thread of commits.
#[derive(Clone, Debug)]
pub struct Erasures {
    shared: Arc<Shared>,
    /// The store's last transaction that they are not told of.
    begun_at: usize,
    wake: flume::Sender<()>,
}

#[derive(Debug, Default)]
struct Shared {
    erased: Mutex<Vec<Sequence>>,
    /// Not all that was erased is among them.
    sweep: AtomicBool,
    sweeps: AtomicU64,
    stopping: AtomicBool,
}

/// The thread, to be ended.
pub struct Tail {
    erasures: Erasures,
    thread: JoinHandle<()>,
}

impl CommitSink for Erasures {
    fn publish(&self, batch: &Arc<CommitBatch>) {
        if batch.renewed.is_some() {
            self.shared.sweep.store(true, Relaxed);
        }
        if !batch.erased.is_empty() {
            let mut erased = self.shared.erased.lock().unwrap_or_else(PoisonError::into_inner);
            if erased.len() + batch.erased.len() > ERASED_MAX {
                self.shared.sweep.store(true, Relaxed);
            } else {
                erased.extend(batch.erased.iter().map(|erased| erased.sequence));
            }
        }
        // Full: it will wake anyway.
        let _ = self.wake.try_send(());
    }
}

impl Tail {
    /// The ends of what wakes the thread: the first goes to the store's writer when it starts, both to
    /// [`Tail::spawn`].
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn channel(store: &Store) -> Result<(Erasures, flume::Receiver<()>), StoreError> {
        let (wake, woken) = flume::bounded(1);
        let shared = Arc::default();
        Ok((Erasures { shared, begun_at: store.last_transaction()?, wake }, woken))
    }

    /// How often the index has been swept.
    #[must_use]
    pub fn sweeps(&self) -> u64 {
        self.erasures.shared.sweeps.load(Relaxed)
    }

    /// Starts the thread.
    ///
    /// # Errors
    /// When the index's lock is held, or a thread cannot be started.
    pub fn spawn(
        store: Store,
        index: SearchIndex,
        erasures: Erasures,
        woken: flume::Receiver<()>,
    ) -> Result<Self, TantivyError> {
        let (ready, is_ready) = flume::bounded(1);
        let (shared, begun_at) = (erasures.shared.clone(), erasures.begun_at);
        let thread = std::thread::Builder::new().name("search".into());
        let thread = thread.spawn(move || {
            // Its own threads begin as this one is: behind whoever serves clients.
            if let Err(error) = rustix::process::nice(NICENESS) {
                tracing::debug!(%error, "the search index has no lower priority");
            }
            match State::new(store, index, (shared, begun_at), woken) {
                Err(error) => drop(ready.send(Err(error))),
                Ok(mut state) => {
                    drop(ready.send(Ok(())));
                    state.run();
                }
            }
        })?;
        let ended = || TantivyError::InternalError("its thread ended".into());
        is_ready.recv().map_err(|_| ended())??;
        Ok(Self { erasures, thread })
    }

    /// Has the thread commit what it has taken in, and ends it.
    pub fn close(self) {
        self.erasures.shared.stopping.store(true, Relaxed);
        let _ = self.erasures.wake.try_send(());
        if self.thread.join().is_err() {
            tracing::error!("the search thread panicked");
        }
    }
}

struct State {
    store: Store,
    index: SearchIndex,
    /// None after a failure, until there is another.
    writer: Option<IndexWriter>,
    shared: Arc<Shared>,
    woken: flume::Receiver<()>,
    /// The store that is indexed.
    store_name: u64,
    /// Its last transaction of which nothing was told.
    begun_at: usize,
    /// The last event taken in, and its id; none before the first.
    last: Sequence,
    last_id: Option<Id>,
    dirty: bool,
    /// Nothing that is erased is left in it.
    clean: bool,
}

/// What the index says of itself with each commit.
#[derive(Debug, Serialize, Deserialize)]
struct Noted {
    store: u64,
    last: Sequence,
    /// In hex.
    last_id: Option<String>,
    /// The number of the store's last transaction when the index was closed; none while it is open.
    closed_at: Option<usize>,
}

/// Either side's failure.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Index(#[from] TantivyError),
}

impl State {
    fn new(
        store: Store,
        index: SearchIndex,
        (shared, begun_at): (Arc<Shared>, usize),
        woken: flume::Receiver<()>,
    ) -> Result<Self, TantivyError> {
        let writer = Some(open_writer(&index)?);
        let store_name = store.fingerprint().map_err(|error| {
            TantivyError::InternalError(format!("the store cannot be read: {error}"))
        })?;
        Ok(Self {
            store,
            index,
            writer,
            shared,
            woken,
            store_name,
            begun_at,
            last: 0,
            last_id: None,
            dirty: false,
            clean: false,
        })
    }

    fn run(&mut self) {
        let mut failing = false;
        let mut begun = false;
        while !self.is_stopping() {
            let result = match begun {
                true => self.catch_up(),
                false => self.begin().and_then(|()| self.catch_up()),
            };
            begun |= result.is_ok();
            match result {
                Ok(()) if std::mem::take(&mut failing) => {
                    tracing::info!("the search index is kept up again");
                }
                Ok(()) => {}
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::error!(%error, "the search index is not kept up: it is tried again");
                    }
                    // What was not committed is taken in again, and taken out.
                    begun = false;
                    self.writer = None;
                    self.shared.sweep.store(true, Relaxed);
                    self.rest(RETRY_AFTER);
                    continue;
                }
            }
            // Whoever publishes wakes it; what comes within the next second goes with it.
            let _ = self.woken.recv();
            self.rest(COMMIT_EVERY);
        }
        if begun && let Err(error) = self.close() {
            tracing::warn!(%error, "the search index ends behind the store: it catches up later");
        }
    }

    /// Takes in what has been told, and notes where it and the store are: nobody writes there any more.
    fn close(&mut self) -> Result<(), Failure> {
        self.take_out();
        let is_swept = self.clean && !self.shared.sweep.load(Relaxed);
        let closed_at = if is_swept { Some(self.store.last_transaction()?) } else { None };
        self.commit_noting(closed_at)
    }

    fn writer(&mut self) -> Result<&mut IndexWriter, TantivyError> {
        self.writer.as_mut().ok_or_else(no_writer)
    }

    fn is_stopping(&self) -> bool {
        self.shared.stopping.load(Relaxed)
    }

    /// Sleeps, but not when the relay stops.
    fn rest(&self, long: Duration) {
        let end = Instant::now() + long;
        while !self.is_stopping() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Goes on where the index was left, or from the beginning where it is another store's.
    fn begin(&mut self) -> Result<(), Failure> {
        if self.writer.is_none() {
            self.writer = Some(open_writer(&self.index)?);
        }
        let noted = self.index.index.load_metas()?.payload;
        let noted = noted.and_then(|text| serde_json::from_str::<Noted>(&text).ok());
        match noted {
            Some(noted) if self.is_of_this_store(&noted)? => {
                self.last = noted.last;
                self.last_id = noted.last_id.and_then(|id| decode_hex32(id.as_bytes()));
                let is_as_left = noted.closed_at == Some(self.begun_at);
                // What was erased while nobody told.
                self.shared.sweep.fetch_or(!is_as_left, Relaxed);
                self.clean |= is_as_left;
            }
            noted => {
                if noted.is_some() {
                    tracing::info!("the search index is of another store: it is made anew");
                }
                self.writer()?.delete_all_documents()?;
                (self.last, self.last_id, self.clean) = (0, None, true);
            }
        }
        self.dirty = true;
        Ok(())
    }

    /// Whether what the index has is this store's. An event that has been erased since proves nothing against it.
    fn is_of_this_store(&self, noted: &Noted) -> Result<bool, Failure> {
        if noted.store != self.store_name || noted.last > self.store.info()?.last_sequence {
            return Ok(false);
        }
        let mut found = None;
        if let Some(before) = noted.last.checked_sub(1) {
            self.store.events_after(before, 1, |sequence, event| {
                found = (sequence == noted.last).then(|| faster_hex::hex_string(event.id()));
            })?;
        }
        Ok(found.is_none() || found == noted.last_id)
    }

    fn catch_up(&mut self) -> Result<(), Failure> {
        let mut committed = Instant::now();
        loop {
            let before = self.last;
            let (writer, index) = (self.writer.as_ref().ok_or_else(no_writer)?, &self.index);
            let (mut added, last_id) = (Ok(()), &mut self.last_id);
            self.last = self.store.events_after(self.last, CHUNK_EVENTS, |sequence, event| {
                *last_id = Some(*event.id());
                if let Some(document) = document(&index.fields, sequence, event)
                    && let Err(error) = writer.add_document(document)
                {
                    added = Err(error);
                }
            })?;
            added?;
            self.dirty |= self.last != before;
            self.take_out();
            if self.last == before || self.is_stopping() {
                break;
            }
            if committed.elapsed() >= COMMIT_EVERY_BEHIND {
                self.commit()?;
                committed = Instant::now();
            }
        }
        if self.dirty {
            self.commit()?;
        }
        if self.shared.sweep.swap(false, Relaxed) {
            self.sweep()?;
        }
        Ok(())
    }

    /// Takes out what the store has erased.
    fn take_out(&mut self) {
        let erased = {
            let mut erased = self.shared.erased.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *erased)
        };
        for sequence in erased {
            // One that is not taken in yet is not found when its turn comes.
            self.delete(sequence);
        }
    }

    fn delete(&mut self, sequence: Sequence) {
        let term = Term::from_field_u64(self.index.fields.sequence, sequence);
        if let Some(writer) = &self.writer {
            writer.delete_term(term);
            self.dirty = true;
        }
    }

    fn commit(&mut self) -> Result<(), Failure> {
        self.commit_noting(None)
    }

    fn commit_noting(&mut self, closed_at: Option<usize>) -> Result<(), Failure> {
        let last_id = self.last_id.map(|id| faster_hex::hex_string(&id));
        let noted = Noted { store: self.store_name, last: self.last, last_id, closed_at };
        let payload = serde_json::to_string(&noted).expect("plain fields serialize");
        let mut commit = self.writer()?.prepare_commit()?;
        commit.set_payload(&payload);
        commit.commit()?;
        self.index.reader.reload()?;
        self.dirty = false;
        Ok(())
    }

    /// Takes out every event that is not stored any more.
    fn sweep(&mut self) -> Result<(), Failure> {
        self.shared.sweeps.fetch_add(1, Relaxed);
        let searcher = self.index.reader.searcher();
        let mut gone = 0;
        for segment in searcher.segment_readers() {
            let sequences = segment.fast_fields().u64("sequence")?;
            let mut documents = segment.doc_ids_alive().filter_map(|doc| sequences.first(doc));
            loop {
                let part: Vec<Sequence> = documents.by_ref().take(SWEPT_EVENTS).collect();
                if part.is_empty() {
                    break;
                }
                for missing in self.store.missing(&part)? {
                    self.delete(missing);
                    gone += 1;
                }
                if gone >= SWEPT_BEFORE_COMMIT {
                    self.commit()?;
                    gone = 0;
                }
                if self.is_stopping() {
                    self.shared.sweep.store(true, Relaxed);
                    return Ok(());
                }
            }
        }
        if self.dirty {
            self.commit()?;
        }
        self.clean = true;
        Ok(())
    }
}

fn open_writer(index: &SearchIndex) -> Result<IndexWriter, TantivyError> {
    index.index.writer_with_num_threads(1, WRITER_BYTES)
}

fn no_writer() -> TantivyError {
    TantivyError::InternalError("nothing is written after a failure".into())
}

/// Where the index of a data directory lies.
#[must_use]
pub fn directory(data: &Path) -> std::path::PathBuf {
    data.join("search")
}
