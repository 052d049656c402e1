//! Sockets and the clock: the shell around [`crate::relay`].
//!
//! Threads: one per shard, pinned. What connects them is in [`bus`]; what a shard's thread runs is in
//! `shard_loop`; what it runs on is chosen in [`backend`], once, here.

pub mod backend;
mod batches;
pub mod bus;
pub mod capture;
pub mod clock;
mod connection;
pub mod file_thread;
mod listener;
mod memory;
pub mod places;
mod queries;
pub mod record;
mod shard_loop;
mod sockopt;
pub mod trace;
mod watched;
mod writes;

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::relay::counters::Counters;
use crate::relay::ports::{CommitBatch, Newest, Sequence};
use crate::relay::shard::SUBMISSIONS_MAX;
use crate::relay::timings::Timings;
use crate::relay::{Accept, Limits, Pages, Proxies, Setup, Shard, Tuning};
use crate::store::{CommitSink, ReadersHandle, Store, WriterHandle};
use backend::epoll::Epoll;
use backend::tokio_uring::TokioUring;
use backend::{Backend, Choice};
use bus::{Address, FromThread, HANDOVERS_MAX, LastWord, Mailbox};
use places::Places;
use record::Recording;
use shard_loop::{Parts, ShardLoop};

/// Why a relay does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be had.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// The kernel's answer.
        error: io::Error,
    },
    /// io_uring was asked for by name.
    #[error(
        "this kernel or container refuses io_uring ({error}); \
         use --backend epoll, or auto to have it chosen"
    )]
    NoIoUring {
        /// The kernel's answer.
        error: io::Error,
    },
    /// A backend was asked for that is a feature, and off in this build.
    #[error(
        "this program was built without {backend}: build it with --features {backend}, \
         or use --backend auto"
    )]
    NotBuiltIn {
        /// Its name, and the feature's.
        backend: &'static str,
    },
    /// A shard's thread did not come up.
    #[error("shard {shard} cannot start: {error}")]
    Shard {
        /// Its number.
        shard: usize,
        /// What it met.
        error: io::Error,
    },
}

/// The mailboxes of all shards, made before the threads that fill them.
pub struct Mesh {
    addresses: Arc<[Address]>,
    mailboxes: Vec<(Mailbox, LastWord)>,
}

impl Mesh {
    /// Mailboxes for `shards` shards, each with room for every message the others may owe it.
    #[must_use]
    pub fn new(shards: u16) -> Self {
        let room = usize::from(shards - 1) * (2 * SUBMISSIONS_MAX + 1) + HANDOVERS_MAX;
        let (addresses, mailboxes): (Vec<_>, Vec<_>) = (0..shards).map(|_| bus::open(room)).unzip();
        let addresses: Arc<[_]> = addresses.into();
        let last_words = (0..).map(|shard| LastWord::new(shard, addresses.clone()));
        let mailboxes = mailboxes.into_iter().zip(last_words).collect();
        Self { addresses, mailboxes }
    }

    /// Where the writer publishes its commits.
    #[must_use]
    pub fn sinks(&self) -> Vec<Box<dyn CommitSink>> {
        self.addresses.iter().map(|address| Box::new(address.clone()) as _).collect()
    }

    /// The shards' addresses.
    #[must_use]
    pub fn addresses(&self) -> Arc<[Address]> {
        self.addresses.clone()
    }
}

impl CommitSink for Address {
    fn publish(&self, batch: &Arc<CommitBatch>) {
        // A shard that has ended needs no commits.
        let _ = self.send(FromThread::Commit(batch.clone()));
    }
}

/// Called with what a shard has counted and timed, a few times a second.
pub type Observe = Box<dyn Fn(&Counters, &Timings) + Send>;

/// What a relay runs with.
pub struct Config {
    /// Where it listens; port 0 is chosen by the kernel.
    pub listen: SocketAddr,
    /// What its shards run on.
    pub backend: Choice,
    /// Whether signatures are checked.
    pub verify: bool,
    /// Whether a REQ may search.
    pub search: bool,
    /// The bounds in force.
    pub limits: Arc<Limits>,
    /// The sizes and budgets in force.
    pub tuning: Tuning,
    /// What HTTP requests are answered with.
    pub pages: Arc<Pages>,
    /// Which offers of compression are accepted.
    pub deflate: Accept,
    /// Connections over all shards.
    pub connections_max: usize,
    /// Connections by client address.
    pub places: Arc<Places>,
    /// Who is believed when it names the client it speaks for.
    pub proxies: Arc<Proxies>,
    /// The mailboxes; as many shards run.
    pub mesh: Mesh,
    /// Where stored queries begin.
    pub store: Store,
    /// The last sequence number in use before the writer's first commit.
    pub last_sequence: Sequence,
    /// The newest events of the store before that commit.
    pub newest: Newest,
    /// The writer's queue; has room for [`SUBMISSIONS_MAX`] a shard.
    pub submit: WriterHandle,
    /// The readers' queue.
    pub read: ReadersHandle,
    /// One a shard.
    pub observe: Vec<Observe>,
    /// What is recorded, and where.
    pub recording: Recording,
}

/// A relay that serves.
pub struct Running {
    /// Where it listens.
    pub address: SocketAddr,
    /// What its shards run on.
    pub backend: &'static str,
    addresses: Arc<[Address]>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

/// Starts the shards; returns when all of them serve.
///
/// # Errors
/// When the address or the backend cannot be had.
pub fn start(config: Config) -> Result<Running, StartError> {
    let refused = |error| StartError::NoIoUring { error };
    match config.backend {
        Choice::Epoll => start_on::<Epoll>(config),
        Choice::TokioUring => {
            backend::tokio_uring::probe(&config.tuning).map_err(refused)?;
            start_on::<TokioUring>(config)
        }
        #[cfg(feature = "glommio")]
        Choice::Glommio => {
            backend::glommio::probe().map_err(refused)?;
            start_on::<backend::glommio::Glommio>(config)
        }
        #[cfg(not(feature = "glommio"))]
        Choice::Glommio => Err(StartError::NotBuiltIn { backend: "glommio" }),
        Choice::Auto => match backend::tokio_uring::probe(&config.tuning) {
            Ok(()) => start_on::<TokioUring>(config),
            Err(error) => {
                tracing::warn!(%error, "io_uring is refused here: running on epoll");
                start_on::<Epoll>(config)
            }
        },
    }
}

fn start_on<B: Backend>(config: Config) -> Result<Running, StartError> {
    let Mesh { addresses, mailboxes } = config.mesh;
    let shards = mailboxes.len();
    let send_buffer_bytes_max = config.limits.send_buffer_bytes_max as usize;
    // While a connection lasts its shard looks, and counts it; the kernel looks after that.
    let unacked_max = 2 * Duration::from_millis(config.limits.write_stall_ms_max.into());
    let (sockets, address) = listener::listen(
        config.listen,
        shards,
        send_buffer_bytes_max,
        config.tuning.unsent_bytes_max,
        unacked_max,
    )
    .map_err(|error| StartError::Listen { address: config.listen, error })?;
    let loads: Arc<[AtomicUsize]> = (0..shards).map(|_| AtomicUsize::new(0)).collect();
    let newest = Arc::new(config.newest);
    let cores = cores();
    let mut threads = Vec::with_capacity(shards);
    let running =
        |threads| Running { address, backend: B::NAME, addresses: addresses.clone(), threads };
    let mut rest = mailboxes.into_iter().zip(sockets).zip(config.observe).enumerate();
    while let Some((number, (((mailbox, last_word), socket), observe))) = rest.next() {
        let setup = Setup {
            origin: u16::try_from(number).expect("fewer shards than 2^16"),
            shards: u16::try_from(shards).expect("fewer shards than 2^16"),
            verify: config.verify,
            search: config.search,
            limits: config.limits.clone(),
            pages: config.pages.clone(),
            deflate: config.deflate,
            proxies: config.proxies.clone(),
            hash_seed: RandomState::new().hash_one(number),
        };
        let newest = newest.clone();
        let captures = config.recording.capture.is_some();
        let parts = Parts {
            core: Box::new(move || {
                let core =
                    Shard::new(setup).from_sequence(config.last_sequence).remembering(&newest);
                if captures { core.capturing() } else { core }
            }),
            number,
            tuning: config.tuning,
            mailbox,
            peers: addresses.clone(),
            last_word,
            loads: loads.clone(),
            connections_max: config.connections_max,
            places: config.places.clone(),
            proxies: config.proxies.clone(),
            store: config.store.clone(),
            submit: config.submit.clone(),
            read: config.read.clone(),
            observe,
            recorder: config.recording.of_shard(number),
        };
        let core = cores.get(number % cores.len().max(1)).copied();
        match spawn_shard::<B>(parts, socket, core) {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                // Those that have started wait for the last word of these.
                drop(rest);
                let started = running(threads);
                started.shutdown();
                started.join();
                return Err(StartError::Shard { shard: number, error });
            }
        }
    }
    Ok(running(threads))
}

/// Runs one shard on its own thread; returns once it serves.
fn spawn_shard<B: Backend>(
    parts: Parts,
    socket: OwnedFd,
    core: Option<usize>,
) -> io::Result<JoinHandle<io::Result<()>>> {
    let (ready, is_ready) = flume::bounded(1);
    let thread =
        std::thread::Builder::new().name(format!("shard-{}", parts.number)).spawn(move || {
            if let Some(core) = core {
                pin(core);
            }
            let tuning = parts.tuning;
            let shard = ShardLoop::<B>::run(parts, socket, move || {
                let _ = ready.send(());
            });
            B::run(&tuning, shard)?
        })?;
    if is_ready.recv().is_ok() {
        return Ok(thread);
    }
    match thread.join() {
        Ok(Err(error)) => Err(error),
        _ => Err(io::Error::other("its thread ended")),
    }
}

impl Running {
    /// Tells every shard to stop: no new connection, what is queued goes out, then 1001.
    pub fn shutdown(&self) {
        for address in self.addresses.iter() {
            // A shard that has ended has stopped.
            let _ = address.send(FromThread::Shutdown);
        }
    }

    /// Waits until every shard has closed its connections.
    pub fn join(self) {
        for (number, thread) in self.threads.into_iter().enumerate() {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(number, %error, "shard ended"),
                Err(_) => tracing::error!(number, "shard panicked"),
            }
        }
    }

    /// Whether a shard's thread has ended although nobody asked.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }
}

/// The cores this process may run on.
fn cores() -> Vec<usize> {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap_or_default();
    (0..rustix::thread::CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect()
}

fn pin(core: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        tracing::warn!(%error, core, "cannot pin a shard to its core");
    }
}
