//! The flume mesh: what reaches a shard from the writer, the readers and the other shards.
//!
//! Two queues a shard. *Threads* (writer, readers, admin) may block on a full one, because a shard
//! never waits for them. *Shards* never block on each other: every message between them answers to a
//! credit (a pending ephemeral event, of which each shard has a bounded number), and the queue has
//! room for all of them, so two shards publishing to each other cannot lock up.
//!
//! A wake costs as much as hundreds of sends, so a sender wakes a shard only when it sleeps: the shard
//! arms its signal, looks at its queues once more, and only then lets go of the thread; the first
//! sender to disarm it does the wake.

use std::cell::Cell;
use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::task::Poll;

use atomic_waker::AtomicWaker;
use flume::{Receiver, Sender};

use super::connection::Load;
use crate::nostr::Event;
use crate::relay::ScanKey;
use crate::relay::ports::{Chunk, CommitBatch, FROM_THREADS_MAX, Origin};
use crate::store::Scan;

/// From a thread that may wait for the shard.
pub enum FromThread {
    /// One durable commit; every shard gets each, in order.
    Commit(Arc<CommitBatch>),
    /// A slice of a stored query, and the query to go on with.
    Chunk(ScanKey, Box<Scan>, Chunk),
    /// The relay stops.
    Shutdown,
}

/// From another shard.
pub enum FromShard {
    /// An ephemeral event; answered with [`FromShard::Heard`].
    Ephemeral {
        /// Who asks.
        from: Origin,
        /// Comes back with the answer.
        token: u64,
        /// The event.
        event: Event,
    },
    /// How many subscriptions of another shard matched an ephemeral event of ours.
    Heard {
        /// As it was sent.
        token: u64,
        /// Subscriptions.
        count: u64,
    },
    /// A connection the kernel gave to a fuller shard.
    Accepted(OwnedFd, Load),
    /// The [`LastWord`] of another shard.
    Done,
}

/// Tells the other shards, when dropped, that this one asks nothing more, however it came to that. A shard
/// answers until each of the others has said so.
pub struct LastWord {
    shard: usize,
    peers: Arc<[Address]>,
}

impl LastWord {
    /// That of a shard among `peers`.
    #[must_use]
    pub fn new(shard: usize, peers: Arc<[Address]>) -> Self {
        Self { shard, peers }
    }
}

impl Drop for LastWord {
    fn drop(&mut self) {
        for (shard, peer) in self.peers.iter().enumerate() {
            if shard != self.shard {
                // It fails where that shard's thread has panicked or never ran.
                let _ = peer.send_from_shard(FromShard::Done);
            }
        }
    }
}

/// Connections that may be on their way from fuller shards.
pub const HANDOVERS_MAX: usize = 1024;

#[derive(Default)]
struct Signal {
    /// The shard sleeps, or is about to.
    armed: AtomicBool,
    waker: AtomicWaker,
    wakes: AtomicU64,
}

impl Signal {
    fn wake_sleeper(&self) {
        // Pairs with the fence in `Mailbox::wait`: either this sees the arming or that sees the send.
        fence(Ordering::SeqCst);
        if self.armed.swap(false, Ordering::SeqCst) {
            self.wakes.fetch_add(1, Ordering::Relaxed);
            self.waker.wake();
        }
    }
}

/// The sending side of one shard's mailbox.
#[derive(Clone)]
pub struct Address {
    threads: Sender<FromThread>,
    shards: Sender<FromShard>,
    signal: Arc<Signal>,
}

/// The shard is gone: its thread has ended.
#[derive(Debug)]
pub struct Gone;

impl Address {
    /// Sends from a thread that is not a shard; blocks while the shard is behind.
    ///
    /// # Errors
    /// When the shard has ended.
    pub fn send(&self, message: FromThread) -> Result<(), Gone> {
        self.threads.send(message).map_err(|_| Gone)?;
        self.signal.wake_sleeper();
        Ok(())
    }

    /// Sends from another shard; never blocks.
    ///
    /// # Errors
    /// Gives the message back when the shard has ended, or has no room.
    pub fn send_from_shard(&self, message: FromShard) -> Result<(), FromShard> {
        self.shards.try_send(message).map_err(flume::TrySendError::into_inner)?;
        self.signal.wake_sleeper();
        Ok(())
    }

    /// Hands a fresh connection over; never blocks. The queue's room beyond [`HANDOVERS_MAX`] is for
    /// messages that answer to a credit, so no more than that may wait before a connection.
    ///
    /// # Errors
    /// Gives the connection back when the shard has ended, or has enough to do.
    pub fn hand_over(&self, socket: OwnedFd, load: Load) -> Result<(), (OwnedFd, Load)> {
        if self.shards.len() >= HANDOVERS_MAX {
            return Err((socket, load));
        }
        match self.send_from_shard(FromShard::Accepted(socket, load)) {
            Err(FromShard::Accepted(socket, load)) => Err((socket, load)),
            _ => Ok(()),
        }
    }

    /// Times a sender had to wake the shard.
    #[must_use]
    pub fn wakes(&self) -> u64 {
        self.signal.wakes.load(Ordering::Relaxed)
    }
}

/// The receiving side.
pub struct Mailbox {
    threads: Receiver<FromThread>,
    shards: Receiver<FromShard>,
    signal: Arc<Signal>,
    /// A task of this shard has something for the tick.
    nudged: Cell<bool>,
    /// Messages taken so far.
    taken: Cell<u64>,
}

/// Opens a mailbox whose shards' queue holds `from_shards_max` messages.
#[must_use]
pub fn open(from_shards_max: usize) -> (Address, Mailbox) {
    let (threads_tx, threads) = flume::bounded(FROM_THREADS_MAX);
    let (shards_tx, shards) = flume::bounded(from_shards_max);
    let signal = Arc::new(Signal::default());
    let address = Address { threads: threads_tx, shards: shards_tx, signal: signal.clone() };
    (address, Mailbox { threads, shards, signal, nudged: Cell::default(), taken: Cell::default() })
}

impl Mailbox {
    /// Called by the shard's own tasks: there is something for the tick, which runs after the tasks
    /// that are ready now.
    pub fn nudge(&self) {
        if !self.nudged.replace(true) {
            self.signal.armed.store(false, Ordering::Relaxed);
            self.signal.waker.wake();
        }
    }

    /// Waits until something has come. While a shard is awake its signal is disarmed, and what others
    /// send meanwhile is found here without a wake.
    pub async fn wait(&self) {
        poll_fn(|context| {
            if self.has_something() {
                return Poll::Ready(());
            }
            self.signal.waker.register(context.waker());
            self.signal.armed.store(true, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            if self.has_something() {
                self.signal.armed.store(false, Ordering::Relaxed);
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
        self.nudged.set(false);
    }

    fn has_something(&self) -> bool {
        self.nudged.get() || !self.is_empty()
    }

    fn counted<T>(&self, message: Option<T>) -> Option<T> {
        self.taken.set(self.taken.get() + u64::from(message.is_some()));
        message
    }

    /// Messages taken from the queues so far.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.taken.get()
    }

    /// Messages waiting in the queues.
    #[must_use]
    pub fn len(&self) -> usize {
        self.threads.len() + self.shards.len()
    }

    /// Whether nothing waits in the queues.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.threads.is_empty() && self.shards.is_empty()
    }

    /// The next message of a thread.
    pub fn from_threads(&self) -> Option<FromThread> {
        self.counted(self.threads.try_recv().ok())
    }

    /// The next message of a shard.
    pub fn from_shards(&self) -> Option<FromShard> {
        self.counted(self.shards.try_recv().ok())
    }
}
