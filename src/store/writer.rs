//! The writer thread: takes submissions, commits them in batches, publishes what was committed.
//!
//! Batches need no timer: it commits at once what it finds, and what arrives during a commit is
//! the next batch. A batch ends at the first of three bounds; the event that reaches a bound is
//! still in it.
//!
//! ```text
//!   idle ──submission──▶ collecting ──queue empty or bound reached──▶ committing ──▶ idle
//!    │ ▲                                                                  │
//!    ▼ │ (1 s without work, or 5 s since the last)              failed: verdicts say so,
//!  maintaining ──more to erase, nothing queued──▶ maintaining   the environment is reopened
//!                                                               if LMDB lost it
//! ```
//!
//! A full disk, a full map and a disk that fails are no end: the batch is answered so, and from then on
//! [`Store::probe`] goes before every batch, and before nothing once a second, until it succeeds. So what
//! is stored, and who may say "duplicate", begins again with a commit that is known to be durable.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use super::{Doomed, Durability, Store, StoreError, Terms};
use crate::nostr::Kind;
use crate::relay::ports::{CommitBatch, Erased, Sequence, Submission, Verdict};

/// How long the writer waits for work before it tidies up.
const IDLE: Duration = Duration::from_secs(1);

/// How long a busy writer leaves tidying up alone.
const MAINTAIN_EVERY: Duration = Duration::from_secs(5);

/// Events erased by one chunk of maintenance: some ten milliseconds of the writer's time.
const MAINTAIN_EVENTS_MAX: usize = 200;

/// Receives every commit, in order, on the writer's thread; hands over and returns.
pub trait CommitSink: Send {
    /// The batch is durable (or its verdicts are all `Failed`).
    fn publish(&self, batch: &Arc<CommitBatch>);
}

/// Bounds of the writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriterOptions {
    /// Messages waiting, of a submission or several.
    pub queue_capacity: usize,
    /// Submissions in one batch.
    pub batch_events_max: usize,
    /// Bytes of records in one batch.
    pub batch_bytes_max: usize,
    /// Estimated table entries touched by one batch.
    pub batch_puts_max: usize,
    /// How long a commit to a store with [`Durability::Later`] may wait for its sync.
    pub sync_interval: Duration,
    /// Newest events that shards have at hand.
    pub recent_events_max: usize,
    /// Bytes of their records.
    pub recent_bytes_max: usize,
}

impl Default for WriterOptions {
    fn default() -> Self {
        Self {
            queue_capacity: 8192,
            batch_events_max: 1000,
            batch_bytes_max: 16 << 20,
            batch_puts_max: 200_000,
            sync_interval: Duration::from_secs(1),
            recent_events_max: 0,
            recent_bytes_max: 0,
        }
    }
}

/// One commit, for metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitStats {
    /// Submissions in the batch.
    pub submitted: usize,
    /// Of them, events stored.
    pub stored: usize,
    /// Bytes of records submitted.
    pub bytes: usize,
    /// From the start of the transaction until it was durable.
    pub commit: Duration,
    /// Why the batch failed, if it did.
    pub failed: Option<String>,
}

/// Where events are submitted. Cheap to clone.
#[derive(Clone)]
pub struct WriterHandle {
    queue: flume::Sender<Work>,
    failing: Arc<Mutex<Option<&'static str>>>,
}

/// The writer thread. Dropping it without [`Writer::close`] leaves the thread to end by itself
/// when the last handle is gone.
pub struct Writer {
    handle: WriterHandle,
    thread: JoinHandle<()>,
}

enum Work {
    /// At least one.
    Store(Vec<Submission>),
    Erase(Erasure),
    /// Commit what came before, then end.
    Close,
}

/// What is to be erased, and who waits until it is.
struct Erasure {
    doomed: Doomed,
    done: flume::Sender<Result<u64, StoreError>>,
}

impl WriterHandle {
    /// Submits events together without waiting: the writer wakes once, and commits them together as far
    /// as its bounds allow. A message in the queue is one of `queue_capacity`, however many it holds.
    ///
    /// # Errors
    /// The submissions come back when the queue is full or the writer is closed.
    pub fn try_submit(&self, submissions: Vec<Submission>) -> Result<(), Vec<Submission>> {
        if submissions.is_empty() {
            return Ok(());
        }
        self.queue.try_send(Work::Store(submissions)).map_err(|error| returned(error.into_inner()))
    }

    /// As [`WriterHandle::try_submit`], as soon as the queue has room: for threads that may block.
    ///
    /// # Errors
    /// The submissions come back when the writer is closed.
    pub fn submit_blocking(&self, submissions: Vec<Submission>) -> Result<(), Vec<Submission>> {
        if submissions.is_empty() {
            return Ok(());
        }
        self.queue.send(Work::Store(submissions)).map_err(|error| returned(error.into_inner()))
    }

    /// Erases events or archived versions, as [`Store::erase`] and [`Store::erase_replaced`] do, between two
    /// batches, and publishes that of events; answers how many they were. For threads that may block. `None` when the writer is closed.
    ///
    /// # Errors
    /// When the store cannot be read or written; then some of them may be erased, which is published.
    #[must_use]
    pub fn erase_blocking(&self, doomed: Doomed) -> Option<Result<u64, StoreError>> {
        let (done, erased) = flume::bounded(1);
        self.queue.send(Work::Erase(Erasure { doomed, done })).ok()?;
        erased.recv().ok()
    }

    /// Why events cannot be stored at present; `None` when nothing is known against it.
    #[must_use]
    pub fn failing(&self) -> Option<&'static str> {
        *self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn returned(work: Work) -> Vec<Submission> {
    match work {
        Work::Store(submissions) => submissions,
        Work::Erase(_) | Work::Close => unreachable!("it was a submission"),
    }
}

impl Writer {
    /// Starts the thread. `observer` is told of every commit on the writer's thread.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn spawn(
        store: Store,
        options: WriterOptions,
        terms: Terms,
        sinks: Vec<Box<dyn CommitSink>>,
        observer: Box<dyn Fn(CommitStats) + Send>,
    ) -> Result<Self, StoreError> {
        let last_sequence = store.info()?.last_sequence;
        let (sender, receiver) = flume::bounded(options.queue_capacity.max(1));
        let failing = Arc::default();
        let thread = std::thread::Builder::new().name("writer".into());
        let state = State {
            store,
            options,
            terms,
            sinks,
            observer,
            queue: receiver,
            failing: None,
            told: Arc::clone(&failing),
            taken: Vec::new().into_iter(),
            last_sequence,
            maintained: Instant::now(),
            unsynced: None,
            owes_renewal: false,
        };
        let dir = state.store.dir().to_owned();
        let thread = thread.spawn(move || state.run()).map_err(StoreError::io(&dir))?;
        Ok(Self { handle: WriterHandle { queue: sender, failing }, thread })
    }

    /// Where to submit events.
    #[must_use]
    pub fn handle(&self) -> WriterHandle {
        self.handle.clone()
    }

    /// Whether the thread has ended although nobody closed it: it panicked.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.thread.is_finished()
    }

    /// Commits and publishes everything queued, then ends the thread. Later submissions come back.
    ///
    /// # Panics
    /// If the writer did.
    pub fn close(self) {
        // Fails only when the thread has ended already; joining tells.
        let _ = self.handle.queue.send(Work::Close);
        if let Err(panic) = self.thread.join() {
            std::panic::resume_unwind(panic);
        }
    }
}

/// What the thread owns.
struct State {
    store: Store,
    options: WriterOptions,
    terms: Terms,
    sinks: Vec<Box<dyn CommitSink>>,
    observer: Box<dyn Fn(CommitStats) + Send>,
    queue: flume::Receiver<Work>,
    failing: Option<Failing>,
    /// Its reason, for others.
    told: Arc<Mutex<Option<&'static str>>>,
    /// What came with a message and is in no batch yet.
    taken: std::vec::IntoIter<Submission>,
    last_sequence: Sequence,
    maintained: Instant,
    /// When the first commit since the last sync was.
    unsynced: Option<Instant>,
    /// Whether the shards are still to be told what is stored, after the store was lost.
    owes_renewal: bool,
}

/// What comes after a batch.
enum Next {
    /// Whatever is next in the queue.
    Any,
    Erase(Erasure),
    Close,
}

/// Since a transaction failed of something that lasts.
struct Failing {
    reason: &'static str,
    since: Instant,
    /// Submissions answered so meanwhile.
    refused: usize,
}

impl State {
    fn run(mut self) {
        self.work();
        self.sync();
    }

    /// Until it is to close.
    fn work(&mut self) {
        let mut batch = Vec::with_capacity(self.options.batch_events_max);
        let mut more_to_erase = true;
        loop {
            if self.taken.as_slice().is_empty() {
                let wait = if more_to_erase { Duration::ZERO } else { self.sync_wait().min(IDLE) };
                match self.queue.recv_timeout(wait) {
                    Ok(Work::Store(submissions)) => self.taken = submissions.into_iter(),
                    Ok(Work::Erase(erasure)) => {
                        self.erase(erasure);
                        continue;
                    }
                    Ok(Work::Close) | Err(flume::RecvTimeoutError::Disconnected) => return,
                    Err(flume::RecvTimeoutError::Timeout) if self.sync_wait().is_zero() => {
                        self.sync();
                        continue;
                    }
                    Err(flume::RecvTimeoutError::Timeout) => {
                        more_to_erase = self.maintain();
                        continue;
                    }
                }
            }
            let next = self.collect(&mut batch);
            self.commit(&batch);
            batch.clear();
            match next {
                Next::Any => {}
                Next::Erase(erasure) => self.erase(erasure),
                Next::Close => return,
            }
            if self.sync_wait().is_zero() {
                self.sync();
            }
            if self.maintained.elapsed() >= MAINTAIN_EVERY {
                more_to_erase = self.maintain();
            }
        }
    }

    /// Adds what was taken and what is queued, up to a bound or to something else that is to be done;
    /// answers what comes after the batch.
    fn collect(&mut self, batch: &mut Vec<Submission>) -> Next {
        let (mut bytes, mut puts) = (0, 0);
        loop {
            for next in self.taken.by_ref() {
                bytes += next.event.record().len();
                puts += estimate_puts(&next);
                batch.push(next);
                let full = batch.len() >= self.options.batch_events_max
                    || bytes >= self.options.batch_bytes_max
                    || puts >= self.options.batch_puts_max;
                if full {
                    return Next::Any;
                }
            }
            match self.queue.try_recv() {
                Ok(Work::Store(submissions)) => self.taken = submissions.into_iter(),
                Ok(Work::Erase(erasure)) => return Next::Erase(erasure),
                Ok(Work::Close) => return Next::Close,
                Err(_) => return Next::Any,
            }
        }
    }

    fn commit(&mut self, batch: &[Submission]) {
        let started = Instant::now();
        let proven = if self.failing.is_some() { self.prove() } else { Ok(()) };
        let result = proven.and_then(|()| self.store.apply(batch, unix_now(), &self.terms));
        let commit = started.elapsed();
        let mut failed = None;
        let committed = match result {
            Ok(committed) => {
                self.note_commit();
                CommitBatch { durable_us: monotonic_us(), ..committed }
            }
            Err(error) => {
                failed = Some(error.to_string());
                self.note_failure(&error, batch.len());
                self.failed(batch, error.public())
            }
        };
        self.last_sequence = committed.last_sequence;
        let stats = CommitStats {
            submitted: batch.len(),
            stored: committed.stored.len(),
            bytes: batch.iter().map(|submission| submission.event.record().len()).sum(),
            commit,
            failed,
        };
        self.publish(committed);
        (self.observer)(stats);
    }

    fn publish(&self, committed: CommitBatch) {
        let committed = Arc::new(committed);
        for sink in &self.sinks {
            sink.publish(&committed);
        }
    }

    /// Tells the shards what is stored no more.
    fn publish_erased(&self, erased: Vec<Erased>) {
        if !erased.is_empty() {
            let last_sequence = self.last_sequence;
            self.publish(CommitBatch { last_sequence, erased, ..CommitBatch::default() });
        }
    }

    /// What is to be erased at somebody's word.
    fn erase(&mut self, Erasure { doomed, done }: Erasure) {
        let mut sum = 0;
        let result = self.prove_if_failing_but_full().and_then(|_full| match doomed {
            Doomed::Stored(events) => self.store.erase(&events, &mut |part| {
                sum += part.len() as u64;
                self.publish_erased(part);
            }),
            Doomed::Replaced(versions) => {
                self.store.erase_replaced(&versions, &mut |part| sum += part)
            }
        });
        match &result {
            Ok(()) => self.note_commit(),
            Err(error) => self.note_failure(error, 0),
        }
        // Whoever asked may have gone.
        let _ = done.send(result.map(|()| sum));
    }

    /// The answer to a batch of which nothing was stored.
    fn failed(&self, batch: &[Submission], text: &str) -> CommitBatch {
        let verdict = |submission: &Submission| (submission.ticket, Verdict::Failed(text.into()));
        CommitBatch {
            last_sequence: self.last_sequence,
            verdicts: batch.iter().map(verdict).collect(),
            ..CommitBatch::default()
        }
    }

    /// A full disk or map costs the batch and nothing more: the next one finds the tables as they
    /// were. Said once, however many events it costs. An environment that LMDB gave up is opened again at
    /// once, for the readers.
    fn note_failure(&mut self, error: &StoreError, refused: usize) {
        let reason = error.public();
        if !error.lasts() {
            tracing::error!(%error, "commit failed");
            return;
        }
        let known = self.failing.take();
        if known.as_ref().is_none_or(|known| known.reason != reason) {
            tracing::error!(%error, "commits fail ({reason}): events are refused until one succeeds");
        }
        let (since, before) =
            known.map_or((Instant::now(), 0), |known| (known.since, known.refused));
        self.tell(Some(Failing { reason, since, refused: before + refused }));
        if self.store.is_lost() {
            match self.store.reopen() {
                Ok(()) => {
                    self.owes_renewal = true;
                    self.renew();
                }
                Err(error) => tracing::error!(%error, "the store could not be reopened"),
            }
        }
    }

    /// Tells the shards what is stored, after a commit that LMDB gave up: where its last page can neither be
    /// written nor put back, what failed may be visible.
    fn renew(&mut self) {
        if !self.owes_renewal {
            return;
        }
        let (events, bytes) = (self.options.recent_events_max, self.options.recent_bytes_max);
        let newest = self.store.newest(events, bytes, unix_now());
        match newest.and_then(|newest| Ok((newest, self.store.info()?.last_sequence))) {
            Ok((newest, last_sequence)) => {
                self.last_sequence = last_sequence;
                let renewed = Some(newest);
                self.owes_renewal = false;
                self.publish(CommitBatch { last_sequence, renewed, ..CommitBatch::default() });
            }
            Err(error) => {
                tracing::error!(%error, "the newest events could not be read again: shards are told later");
            }
        }
    }

    /// Notes that something was promised.
    fn note_commit(&mut self) {
        if self.store.durability() == Durability::Later {
            self.unsynced.get_or_insert_with(Instant::now);
        }
    }

    /// How long the next sync may wait; for ever where none is due.
    fn sync_wait(&self) -> Duration {
        self.unsynced.map_or(Duration::MAX, |since| {
            self.options.sync_interval.saturating_sub(since.elapsed())
        })
    }

    fn sync(&mut self) {
        if self.unsynced.take().is_some()
            && let Err(error) = self.store.sync()
        {
            self.note_failure(&error, 0);
        }
    }

    /// Looks whether the store takes events again.
    fn prove(&mut self) -> Result<(), StoreError> {
        self.owes_renewal |= self.store.is_lost();
        self.store.probe()?;
        self.renew();
        if let Some(Failing { since, refused, .. }) = self.failing.take() {
            let seconds = since.elapsed().as_secs();
            tracing::info!(seconds, refused, "commits succeed again");
        }
        self.tell(None);
        Ok(())
    }

    fn tell(&mut self, failing: Option<Failing>) {
        let reason = failing.as_ref().map(|failing| failing.reason);
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = reason;
        self.failing = failing;
    }

    /// Erases one chunk of what is due, also in a full map, where that makes room; answers whether more is.
    fn maintain(&mut self) -> bool {
        self.maintained = Instant::now();
        self.renew();
        let done = self.prove_if_failing_but_full().and_then(|full| {
            let done = self.store.maintain(unix_now(), MAINTAIN_EVENTS_MAX)?;
            self.publish_erased(done.erased);
            full.map_or(Ok(done.more), Err)
        });
        done.unwrap_or_else(|error| {
            self.note_failure(&error, 0);
            false
        })
    }

    /// As [`State::prove`], where commits fail. That the map is full is answered, but is no error: erasing
    /// makes room in it.
    fn prove_if_failing_but_full(&mut self) -> Result<Option<StoreError>, StoreError> {
        match self.failing.is_some().then(|| self.prove()) {
            Some(Err(error)) if error.is_map_full() => Ok(Some(error)),
            Some(Err(error)) => Err(error),
            Some(Ok(())) | None => Ok(None),
        }
    }
}

/// Table entries an event will touch. What a deletion request names may have to be erased.
fn estimate_puts(submission: &Submission) -> usize {
    let event = submission.event.view();
    let tags = event.tags().count();
    if event.kind() == Kind::DELETION { 8 + 16 * tags } else { 8 + tags }
}

/// Microseconds of the clock that shards time by.
fn monotonic_us() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec * 1_000_000 + now.tv_nsec / 1_000).unwrap_or(0)
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
