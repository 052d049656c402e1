//! The reader pool: threads that run stored queries for shards, which must not wait for a disk.
//!
//! A search of the index takes as long as it takes, in one piece. One thread more makes these, one at a time, so
//! that however many are wanted, the others read.
//!
//! A job is one slice. Its scan comes back with the slice's chunk and is submitted again when the
//! subscription has room for more: nothing is read ahead of who consumes it, and jobs of many
//! subscriptions take turns.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use super::Store;
use super::error::StoreError;
use super::records::{Gathered, Gathering};
use super::scan::{Scan, SliceBudget};
use crate::relay::ports::Chunk;

/// One slice to be read.
pub struct ReadJob {
    /// The query; it comes back through `deliver`.
    pub scan: Box<Scan>,
    /// Runs on the reader's thread: it hands over and returns, it does not wait.
    pub deliver: Box<dyn FnOnce(Box<Scan>, Chunk) + Send>,
}

/// One slice of records to be gathered, which comes back as a [`ReadJob`]'s does.
pub struct GatherJob {
    /// What has been gathered so far; it comes back through `deliver`.
    pub gathering: Box<Gathering>,
    /// Runs on the reader's thread: it hands over and returns, it does not wait. The text of a failure is
    /// for the operator.
    pub deliver: Box<dyn FnOnce(Box<Gathering>, GatherResult) + Send>,
}

/// What a slice came to, or why it failed.
pub type GatherResult = Result<Gathered, String>;

/// Where jobs are submitted. Cheap to clone.
#[derive(Clone)]
pub struct ReadersHandle {
    jobs: flume::Sender<Work>,
    /// For slices that search the index.
    searches: flume::Sender<Work>,
}

/// The pool. Dropping it without [`Readers::close`] leaves the threads to end by themselves when
/// the last handle is gone.
pub struct Readers {
    handle: ReadersHandle,
    /// The other end of the searches' queue.
    searched: flume::Receiver<Work>,
    threads: Vec<JoinHandle<()>>,
}

enum Work {
    Read(ReadJob),
    Gather(GatherJob),
    /// Ends the thread that takes it.
    Close,
}

impl ReadersHandle {
    /// Submits a job without waiting.
    ///
    /// # Errors
    /// The job comes back when the queue is full or the pool is closed.
    pub fn try_submit(&self, job: ReadJob) -> Result<(), ReadJob> {
        let queue = self.queue_of(&job);
        queue.try_send(Work::Read(job)).map_err(|error| returned(error.into_inner()))
    }

    /// Submits a job as soon as the queue has room. Cancelling drops the job.
    ///
    /// # Errors
    /// The job comes back when the pool is closed.
    pub async fn submit(&self, job: ReadJob) -> Result<(), ReadJob> {
        let queue = self.queue_of(&job);
        queue.send_async(Work::Read(job)).await.map_err(|error| returned(error.into_inner()))
    }

    fn queue_of(&self, job: &ReadJob) -> &flume::Sender<Work> {
        if job.scan.is_to_search() { &self.searches } else { &self.jobs }
    }

    /// Submits a job without waiting.
    ///
    /// # Errors
    /// The job comes back when the queue is full or the pool is closed.
    pub fn try_gather(&self, job: GatherJob) -> Result<(), GatherJob> {
        self.jobs.try_send(Work::Gather(job)).map_err(|error| match error.into_inner() {
            Work::Gather(job) => job,
            Work::Read(_) | Work::Close => unreachable!("it was handed in"),
        })
    }

    /// Jobs waiting.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.jobs.len() + self.searches.len()
    }
}

fn returned(work: Work) -> ReadJob {
    match work {
        Work::Read(job) => job,
        Work::Gather(_) | Work::Close => unreachable!("it was handed in"),
    }
}

impl Readers {
    /// Starts `threads` readers on one queue of `queue_capacity` jobs, and one for searches on another, where the
    /// store searches by now; `budget` bounds a slice.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn spawn(
        store: &Store,
        threads: usize,
        queue_capacity: usize,
        budget: SliceBudget,
    ) -> std::io::Result<Self> {
        let (sender, receiver) = flume::bounded(queue_capacity.max(1));
        let mut started = Vec::with_capacity(threads);
        for number in 0..threads.max(1) {
            let (store, receiver) = (store.clone(), receiver.clone());
            let thread = std::thread::Builder::new().name(format!("reader-{number}"));
            started.push(thread.spawn(move || read(&store, &receiver, &budget))?);
        }
        let (searches, searched) = flume::bounded(queue_capacity.max(1));
        if store.searches() {
            let (store, thread) =
                (store.clone(), std::thread::Builder::new().name("searcher".into()));
            let searched = searched.clone();
            started.push(thread.spawn(move || read(&store, &searched, &budget))?);
        }
        let searches = if store.searches() { searches } else { sender.clone() };
        Ok(Self { handle: ReadersHandle { jobs: sender, searches }, searched, threads: started })
    }

    /// Where to submit jobs.
    #[must_use]
    pub fn handle(&self) -> ReadersHandle {
        self.handle.clone()
    }

    /// Runs what is queued, then ends the threads. Jobs submitted later come back.
    pub fn close(self) {
        let ReadersHandle { jobs, searches } = &self.handle;
        let searchers = usize::from(!jobs.same_channel(searches));
        if searchers > 0 {
            // Each may take long, and nobody waits for any.
            self.searched.drain().for_each(drop);
        }
        let readers = self.threads.len() - searchers;
        for queue in
            std::iter::repeat_n(jobs, readers).chain(std::iter::repeat_n(searches, searchers))
        {
            // Fails only when every thread has ended already.
            let _ = queue.send(Work::Close);
        }
        for thread in self.threads {
            // A reader catches the panics of its jobs; nothing is left to be told here.
            let _ = thread.join();
        }
    }
}

/// A reader's life.
fn read(store: &Store, jobs: &flume::Receiver<Work>, budget: &SliceBudget) {
    while let Ok(work) = jobs.recv() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        // What the receiver does with a result is its own affair: the pool lives on.
        let _ = match work {
            Work::Read(ReadJob { mut scan, deliver }) => {
                let slice = guarded(store, || scan.slice(store, budget, now));
                let chunk = slice.unwrap_or_else(failed);
                catch_unwind(AssertUnwindSafe(|| deliver(scan, chunk)))
            }
            Work::Gather(GatherJob { mut gathering, deliver }) => {
                let slice = guarded(store, || gathering.slice(store, budget, now));
                catch_unwind(AssertUnwindSafe(|| deliver(gathering, slice)))
            }
            Work::Close => return,
        };
    }
}

/// Runs a slice. What failed or panicked is never run again, so no broken state is seen.
fn guarded<T>(store: &Store, slice: impl FnOnce() -> Result<T, StoreError>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(slice)) {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(error)) => {
            let error = store.note(error);
            tracing::error!(%error, "a stored query failed");
            Err(error.to_string())
        }
        Err(panic) => Err(format!("reader panicked: {}", message(&*panic))),
    }
}

fn failed(text: String) -> Chunk {
    Chunk { done: true, failed: Some(text), ..Chunk::default() }
}

/// What a panic said.
fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
