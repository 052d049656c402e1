//! What a client cannot tell but by the speed: sizes, thresholds and budgets, for measurements.
//!
//! Read at start. The values here were found by measurement (PERF.md); nobody needs to set them.

use serde::{Deserialize, Serialize};

use crate::wire::batch::Shape;

/// How a socket's bytes get into the relay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Receive {
    /// Wait until the socket is readable, then read it into the buffer all sockets of a shard share.
    #[default]
    Poll,
    /// One operation that waits and reads, into a buffer that the connection owns. It is the ring's; other backends
    /// wait and read in two steps.
    Ring,
}

/// The sizes, thresholds and budgets in force. In the config file: `[tuning]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tuning {
    /// Bytes from which on a batch takes no further frame.
    pub batch_bytes_max: u32,
    /// Pieces of one gather write.
    pub batch_pieces_max: u32,
    /// A payload longer than this rides beside the batch's buffer; a shorter one is copied into it.
    pub chain_threshold_bytes: u32,
    /// A socket that holds so many bytes it has not sent yet takes no more (`TCP_NOTSENT_LOWAT`).
    pub unsent_bytes_max: u32,
    /// Whose buffer a socket is read into, and by how many operations.
    pub receive: Receive,
    /// Bytes of the one buffer all sockets of a shard are read into.
    pub scratch_bytes: u32,
    /// Bytes of the buffer of each connection where it has one of its own ([`Receive::Ring`]).
    pub receive_bytes: u32,
    /// Reads of one socket before the others have their turn.
    pub reads_per_turn_max: u32,
    /// So many writes of one tick are made at once, by a call each; more go to the ring together.
    pub direct_writes_max: u32,
    /// Events verified in one tick.
    pub verify_per_tick_max: u32,
    /// While more events wait for their verification, the verified ones of so many ticks are handed to the
    /// writer together.
    pub ticks_per_submit_max: u32,
    /// Commits and slices taken in one tick.
    pub thread_messages_per_tick_max: u32,
    /// Messages of other shards taken in one tick.
    pub shard_messages_per_tick_max: u32,
    /// Live events put before subscriptions in one tick, about.
    pub deliveries_per_tick_max: u32,
    /// Index entries examined in one slice of a stored query.
    pub slice_entries_max: u32,
    /// Microseconds one slice may take, about.
    pub slice_us_max: u32,
    /// Events handed out by one slice.
    pub slice_events_max: u32,
    /// Bytes of JSON handed out by one slice; one event may be larger.
    pub slice_bytes_max: u32,
    /// Submissions a ring queues before it flushes early. As all of `ring_`, for tokio-uring.
    pub ring_entries: u32,
    /// Completions a ring holds without spilling into kernel memory.
    pub ring_completions: u32,
    /// `IORING_SETUP_COOP_TASKRUN`: completions wait for the next call into the kernel.
    pub ring_coop_taskrun: bool,
    /// `IORING_SETUP_SINGLE_ISSUER`: the kernel is told that one thread submits.
    pub ring_single_issuer: bool,
}

impl Default for Tuning {
    fn default() -> Self {
        let Shape { bytes_max, pieces_max, chain_threshold_bytes } = Shape::default();
        Self {
            batch_bytes_max: bytes_max,
            batch_pieces_max: pieces_max,
            chain_threshold_bytes,
            // Forty notes. The more, the longer a peer that reads nothing is served like the others, and
            // the further an answer or a ping is behind; less makes more and smaller writes to peers
            // that are far away.
            unsent_bytes_max: 16 << 10,
            receive: Receive::Poll,
            scratch_bytes: 64 << 10,
            receive_bytes: 4 << 10,
            reads_per_turn_max: 2,
            // From some sixteen on the ring is cheaper.
            direct_writes_max: 4,
            // About 160 µs.
            verify_per_tick_max: 4,
            // The first waits for two to three milliseconds of work. Fewer make smaller commits, and so
            // smaller batches to listeners.
            ticks_per_submit_max: 16,
            thread_messages_per_tick_max: 8,
            shard_messages_per_tick_max: 256,
            // One to two milliseconds. Fewer make smaller batches with many listeners; more would fill
            // the outboxes of a few hundred.
            deliveries_per_tick_max: 16_384,
            // Where pages are at hand; where they are not, the time ends it.
            slice_entries_max: 256,
            slice_us_max: 200,
            slice_events_max: 256,
            slice_bytes_max: 256 << 10,
            ring_entries: 1_024,
            ring_completions: 8_192,
            ring_coop_taskrun: true,
            ring_single_issuer: true,
        }
    }
}

impl Tuning {
    /// What batches are made like.
    #[must_use]
    pub fn batch_shape(&self) -> Shape {
        Shape {
            bytes_max: self.batch_bytes_max,
            pieces_max: self.batch_pieces_max,
            chain_threshold_bytes: self.chain_threshold_bytes,
        }
    }
}
