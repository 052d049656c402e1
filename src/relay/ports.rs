//! What crosses the edge of a shard's decisions: to the store and back, and between shards.
//!
//! Plain values, no channels: the driver carries them. An *origin* is whoever submits events and
//! wants their verdicts: a shard, or the admin socket.

use std::ops::Deref;

use bytes::Bytes;

use crate::nostr::event::Pubkey;
use crate::nostr::{Event, Filter, Sketch, SketchOffset};

/// Index of an origin: shards are `0..shards`, the admin socket comes after them.
pub type Origin = u16;

/// Position of an event in the store's total order; 0 is before the first.
pub type Sequence = u64;

/// Commits and slices that may wait at one shard before the threads that send them do.
pub const FROM_THREADS_MAX: usize = 256;

/// Whom a verdict goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    /// Who submitted the event.
    pub origin: Origin,
    /// The origin's own number for the submission (a connection and its generation, say).
    pub token: u64,
}

/// A verified event on its way to the writer.
#[derive(Clone, Debug)]
pub struct Submission {
    /// The event; its id and signature have been checked.
    pub event: Event,
    /// Whom the verdict goes to.
    pub ticket: Ticket,
}

/// What the store made of a submission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Durable and visible.
    Stored,
    /// The same id was there already.
    Duplicate,
    /// A newer version of this replaceable or addressable event is (or was) stored.
    Superseded,
    /// Its author, or a gift wrap's recipient, has asked for its deletion (NIP-09).
    Deleted,
    /// Its author has asked to vanish (NIP-62).
    Vanished,
    /// It has expired (NIP-40).
    Expired,
    /// The store failed; nothing of the batch is durable. The text says why, and goes to the client.
    Failed(String),
}

/// One durable commit, in the store's order. Every shard gets the same batch.
#[derive(Debug, Default)]
pub struct CommitBatch {
    /// The last sequence number in use after this commit.
    pub last_sequence: Sequence,
    /// When it was durable, in microseconds of the clock that shards' turns are told in; 0 = nobody
    /// measured.
    pub durable_us: u64,
    /// The stored events with their sequence numbers, ascending.
    pub stored: Vec<(Sequence, Event)>,
    /// The verdict on every submission of the batch, in order of submission.
    pub verdicts: Vec<(Ticket, Verdict)>,
    /// What is stored no more, by sequence number: events of earlier batches, and of this one.
    pub erased: Vec<Erased>,
    /// Keys that vanish with this commit, each once, in order.
    pub vanished: Vec<Vanished>,
    /// The newest events, after a commit that failed and may have become visible all the same: what was told
    /// before may not be what is stored.
    pub renewed: Option<Newest>,
}

/// An event that is stored no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Erased {
    /// Where it was.
    pub sequence: Sequence,
    /// Its `created_at`, in seconds.
    pub created_at: u64,
    /// The first bytes of its id.
    pub id: [u8; 8],
}

/// A key of which nothing is served any more up to a second: what it wrote, and gift wraps to it (NIP-62).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vanished {
    /// The key.
    pub pubkey: Pubkey,
    /// The last `created_at`, in seconds.
    pub up_to: u64,
}

/// The newest events of a store as it is opened.
#[derive(Clone, Debug, Default)]
pub struct Newest {
    /// With their sequence numbers; newest first, lowest id first on a tie.
    pub events: Vec<(Sequence, Event)>,
    /// The next one, which is left out: its `created_at`, the first bytes of its id, its sequence number. `None`
    /// where these are all.
    pub rest: Option<(u64, [u8; 8], Sequence)>,
}

/// A stored query: the filters of one REQ or COUNT.
#[derive(Clone, Debug)]
pub struct Query {
    /// At least one; ORed.
    pub filters: Vec<Filter>,
    /// The cap on each filter's `limit`, and the limit of a filter without one.
    pub limit_max: u64,
}

/// Names a stored query: the slot and generation of a subscription, or of a count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ScanKey(pub u64);

/// In a slot's place, that it is a count's: there are fewer of either.
const OF_COUNT: u32 = 1 << 31;

impl ScanKey {
    pub(super) fn new(slot: u32, generation: u32) -> Self {
        Self(u64::from(generation) << 32 | u64::from(slot))
    }

    pub(super) fn of_count(slot: u32, generation: u32) -> Self {
        Self::new(slot | OF_COUNT, generation)
    }

    pub(super) fn is_count(self) -> bool {
        self.0 & u64::from(OF_COUNT) != 0
    }

    pub(super) fn slot(self) -> usize {
        usize::try_from(self.0 & u64::from(OF_COUNT - 1)).expect("31 bits")
    }

    pub(super) fn generation(self) -> u32 {
        u32::try_from(self.0 >> 32).expect("32 bits")
    }
}

/// That a query's events are counted and not handed out (NIP-45).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counting {
    /// Index entries it may look at, whether they match or not.
    pub entries_max: u64,
    /// Where a sketch of the authors looks, if one is wanted.
    pub sketch: Option<SketchOffset>,
}

/// What a count found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Counted {
    /// Every event that matches.
    Exactly {
        /// How many, each once however many filters match it.
        events: u64,
        /// Of the authors of them all; none where a filter's `limit` left some out.
        sketch: Option<Box<Sketch>>,
    },
    /// It would have had to look at more than [`Counting::entries_max`].
    TooMany,
}

/// Bytes for clients, and until when they may be sent: those of an event that expires may not be later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpiringBytes {
    bytes: Bytes,
    expires_at: u64,
}

impl ExpiringBytes {
    /// `expiration` is the event's, in seconds since the epoch; `None` = never.
    #[must_use]
    pub fn new(bytes: Bytes, expiration: Option<u64>) -> Self {
        Self { bytes, expires_at: expiration.unwrap_or(u64::MAX) }
    }

    /// What the bytes were made into.
    #[must_use]
    pub fn made_into(&self, bytes: Bytes) -> Self {
        Self { bytes, ..*self }
    }

    /// Seconds since the epoch; the last there is where they do not expire.
    #[must_use]
    pub fn expires_at(&self) -> u64 {
        self.expires_at
    }

    /// Whether they have expired at `unix_s` (NIP-40: at its timestamp and after).
    #[must_use]
    pub fn is_expired(&self, unix_s: u64) -> bool {
        self.expires_at <= unix_s
    }
}

impl From<&Event> for ExpiringBytes {
    fn from(event: &Event) -> Self {
        Self::new(event.json(), event.view().expiration())
    }
}

impl Deref for ExpiringBytes {
    type Target = Bytes;

    fn deref(&self) -> &Bytes {
        &self.bytes
    }
}

/// One slice of a stored query's result.
#[derive(Debug, Default)]
pub struct Chunk {
    /// The last committed sequence number that the first slice saw; the same in every later slice.
    pub snapshot: Sequence,
    /// JSON objects, newest first, lowest id first on a tie.
    pub events: Vec<ExpiringBytes>,
    /// Index entries that were looked at for it.
    pub examined: u64,
    /// Nothing follows this slice.
    pub done: bool,
    /// The query could not go on; the text is for the operator. Implies `done`.
    pub failed: Option<String>,
    /// Of a count, in its last slice, unless it failed.
    pub counted: Option<Counted>,
}
