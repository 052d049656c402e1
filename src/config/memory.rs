//! The sum of what the limits allow: every queue and buffer that a client can fill, named.

use std::fmt;

use super::Config;
use crate::relay::Accept;
use crate::relay::outbox::PONGS_BYTES_MAX;
use crate::relay::ports::FROM_THREADS_MAX;
use crate::relay::recent::ANSWER_BYTES_MAX;
use crate::relay::session::{LIVE_ROOM_FACTOR, VERIFY_BYTES_MAX};
use crate::relay::shard::SUBMISSION_BYTES_MAX;
use crate::relay::subscriptions::VALUE_BYTES_MAX;
use crate::relay::{DEFLATER_BYTES_MAX, Receive, WINDOW_BYTES};

/// The most memory the process takes for clients, in bytes, and the most the kernel keeps for them in
/// send buffers. What it keeps for a socket that sends nothing, some 3 KiB, and the database's page cache
/// come on top.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryBound {
    /// Open connections.
    pub connections: u64,
    /// What one connection can make the relay hold, term by term.
    pub per_connection: Vec<(&'static str, u64)>,
    /// What is held once, term by term.
    pub shared: Vec<(&'static str, u64)>,
    /// What the kernel holds of bytes on their way to one connection.
    pub kernel_per_connection_bytes: u64,
}

/// A filter's fixed part.
const FILTER_BYTES: u64 = 256;
/// An answer with its text; a COUNT carries 512 digits of a sketch, and its id.
const REPLY_BYTES: u64 = 1_024;
/// A live event waiting in a subscription: a reference to the one the shard holds.
const LIVE_EVENT_BYTES: u64 = 8;
/// A stored query: a range and its place in the merge, of which the values make one each and the
/// products of authors and kinds at most 16,384; and the slice of it that waits for the outbox.
const RANGE_BYTES: u64 = 64;
const RANGES_MAX: u64 = 16_384;
/// Session, socket, timers and tables of one connection.
const CONNECTION_BYTES: u64 = 1_024;
/// A client's entry in the table of addresses, which may be at most half full after it has grown, and
/// the connection's place in it.
const ADDRESS_BYTES: u64 = 96;
/// What a shard keeps of one of the newest events beside its record, and counts over all of them.
const RECENT_EVENT_BYTES: u64 = 54;
const RECENT_COUNTS_BYTES: u64 = 256 << 10;
/// What of the search index has not been written, and what merging its parts takes; its pages come on top, as
/// the database's do.
const SEARCH_BYTES: u64 = 128 << 20;
/// Keys and dedupe of one shard, and 16 MiB of empty batches.
const SHARD_BYTES: u64 = 20 << 20;
/// Stack and cursors of one reader, and the chunks it has handed out.
const READER_BYTES: u64 = 2 << 20;

fn bytes(size: usize) -> u64 {
    size as u64
}

/// What compression takes of a connection, and of a shard: compressors, one window and one inflated
/// message.
fn deflate_bytes(accept: Accept, message: u64) -> (u64, u64) {
    let shard = bytes(DEFLATER_BYTES_MAX) + bytes(WINDOW_BYTES) + message;
    match accept {
        Accept::Off => (0, 0),
        Accept::On => (0, shard),
        Accept::ClientContext => (bytes(WINDOW_BYTES), shard),
    }
}

/// Adds up the limits for `connections` open connections.
#[must_use]
pub fn memory_bound(config: &Config, connections: u64) -> MemoryBound {
    let (limits, tuning) = (&config.limits, &config.tuning);
    let message = u64::from(limits.message_bytes_max);
    // A tag's text is held in the filter and in the index, and with the whole filter once more in the query;
    // all of them came in one message.
    let subscription = u64::from(limits.filters_max) * FILTER_BYTES
        + u64::from(limits.filter_values_max) * bytes(VALUE_BYTES_MAX)
        + 3 * message;
    let subscriptions = u64::from(limits.subscriptions_max);
    let waiting = (subscriptions * u64::from(limits.live_queue_events_max))
        .min(limits.connection_live_events_max.into());
    let ranges = u64::from(limits.filter_values_max) + RANGES_MAX;
    // Of a slice, or of an answer from the newest events.
    let slice = u64::from(tuning.slice_bytes_max).max(bytes(ANSWER_BYTES_MAX));
    let query = ranges * RANGE_BYTES + slice;
    let queries = subscriptions.min(limits.connection_queries_max.into());
    let store = &config.store;
    let shards = config.shard_count() as u64;
    // What one shard waits for and the writer works on: the others have taken some of it. Its last event may go
    // beyond its bytes.
    let commits = bytes(FROM_THREADS_MAX + 2) * (u64::from(store.batch_bytes_max) + message);
    // Shards share what they have at hand, but for as much as they are commits apart.
    let recent = shards * u64::from(limits.recent_bytes_max)
        + shards * u64::from(limits.recent_events_max) * RECENT_EVENT_BYTES
        + shards * RECENT_COUNTS_BYTES;
    let (window, deflate) = deflate_bytes(config.deflate, message);
    let receive = match tuning.receive {
        Receive::Poll => 0,
        Receive::Ring => tuning.receive_bytes.into(),
    };
    MemoryBound {
        connections,
        per_connection: vec![
            ("session", CONNECTION_BYTES),
            ("receive buffer", receive),
            // Where it comes in parts its buffer has grown, and what came after the last of them waits too.
            ("message being read", 2 * message + u64::from(tuning.scratch_bytes).max(receive)),
            ("window", window),
            ("events to verify", bytes(VERIFY_BYTES_MAX) + message),
            ("outbox", limits.outbox_bytes_max.into()),
            ("batch", u64::from(tuning.batch_bytes_max) + message),
            ("pongs", bytes(PONGS_BYTES_MAX)),
            ("replies", u64::from(limits.replies_max) * REPLY_BYTES),
            ("subscriptions", subscriptions * subscription),
            ("waiting events", waiting * bytes(LIVE_ROOM_FACTOR) * LIVE_EVENT_BYTES),
            ("stored queries", queries * query),
            ("address", ADDRESS_BYTES),
        ],
        shared: vec![
            ("shards", shards * (SHARD_BYTES + u64::from(tuning.scratch_bytes))),
            ("compression", shards * deflate),
            ("readers", config.reader_count() as u64 * READER_BYTES),
            ("newest events", recent),
            ("search index", u64::from(store.search) * SEARCH_BYTES),
            ("commits", commits),
            ("live events", shards * (u64::from(limits.live_bytes_max) + message)),
            ("submitted events", shards * (bytes(SUBMISSION_BYTES_MAX) + message)),
        ],
        // The kernel doubles what it is asked for, to have room for its own bookkeeping (socket(7)).
        kernel_per_connection_bytes: 2 * u64::from(limits.send_buffer_bytes_max),
    }
}

impl MemoryBound {
    /// What one connection can make the relay hold.
    #[must_use]
    pub fn per_connection_bytes(&self) -> u64 {
        self.per_connection.iter().map(|(_, bytes)| bytes).sum()
    }

    /// What is held once.
    #[must_use]
    pub fn shared_bytes(&self) -> u64 {
        self.shared.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Everything.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.connections
            .saturating_mul(self.per_connection_bytes())
            .saturating_add(self.shared_bytes())
    }
}

impl fmt::Display for MemoryBound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let terms = |terms: &[(&str, u64)]| {
            let held = terms.iter().filter(|(_, bytes)| *bytes > 0);
            let texts: Vec<_> =
                held.map(|(name, bytes)| format!("{name} {}", Size(*bytes))).collect();
            texts.join(", ")
        };
        write!(
            f,
            "memory bound {}: {} connections × {} ({}) + {} ({}); in the kernel {}: {} a connection",
            Size(self.total_bytes()),
            self.connections,
            Size(self.per_connection_bytes()),
            terms(&self.per_connection),
            Size(self.shared_bytes()),
            terms(&self.shared),
            Size(self.connections.saturating_mul(self.kernel_per_connection_bytes)),
            Size(self.kernel_per_connection_bytes),
        )
    }
}

/// Bytes for people.
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
        if self.0 < 1 << 10 {
            return write!(f, "{} B", self.0);
        }
        let step = (self.0.ilog2() / 10).min(4);
        // Tenths, rounded up: a bound must not be understated.
        let tenths = (u128::from(self.0) * 10).div_ceil(1 << (10 * step));
        let unit = UNITS[step as usize - 1];
        match tenths {
            1_000.. => write!(f, "{} {unit}", tenths.div_ceil(10)),
            _ => write!(f, "{}.{} {unit}", tenths / 10, tenths % 10),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_of_its_terms() {
        let config = Config { shards: 2, ..Config::default() };
        let bound = memory_bound(&config, 1_000);
        assert_eq!(
            bound.total_bytes(),
            1_000 * bound.per_connection_bytes() + bound.shared_bytes()
        );
        assert_eq!(bound.per_connection[5], ("outbox", 1 << 20));
        let mut larger = config.clone();
        larger.limits.outbox_bytes_max += 5;
        assert_eq!(memory_bound(&larger, 1_000).total_bytes(), bound.total_bytes() + 5_000);
        let text = bound.to_string();
        assert!(text.contains("1000 connections × ") && text.contains("outbox 1.0 MiB"), "{text}");
        assert!(text.ends_with("in the kernel 407 MiB: 416 KiB a connection"), "{text}");
    }

    #[test]
    fn a_receive_buffer_is_counted_where_connections_have_one() {
        let mut config = Config::default();
        let without = memory_bound(&config, 1_000).per_connection_bytes();
        config.tuning.receive = Receive::Ring;
        assert_eq!(memory_bound(&config, 1_000).per_connection_bytes(), without + 4_096);
    }

    #[test]
    fn compression_costs_memory_where_it_is_on() {
        let total = |deflate| memory_bound(&Config { deflate, ..Config::default() }, 1_000);
        let (off, on) = (total(Accept::Off), total(Accept::On));
        let context = total(Accept::ClientContext);
        assert_eq!(off.shared[1], ("compression", 0));
        assert_eq!(on.per_connection_bytes(), off.per_connection_bytes());
        assert!(on.shared_bytes() > off.shared_bytes() + bytes(DEFLATER_BYTES_MAX));
        assert_eq!(context.per_connection_bytes(), on.per_connection_bytes() + 48 * 1_024);
        assert_eq!(context.shared_bytes(), on.shared_bytes());
    }

    #[test]
    fn the_largest_limits_do_not_overflow() {
        let mut layers = super::super::Layers::default();
        for key in super::super::keys::KEYS {
            if let super::super::keys::Allowed::Number(_, max) = key.allowed {
                layers.flag(key.name, max);
            }
        }
        let config = layers.config().unwrap();
        assert!(memory_bound(&config, u64::MAX).total_bytes() > 1 << 60);
    }

    #[test]
    fn sizes_round_up() {
        let size = |bytes| Size(bytes).to_string();
        assert_eq!(size(1_023), "1023 B");
        assert_eq!(size(1_024), "1.0 KiB");
        assert_eq!(size(1_025), "1.1 KiB");
        assert_eq!(size(10 << 40), "10.0 TiB");
        assert_eq!(size(u64::MAX), "16777216 TiB");
        assert_eq!(size(999 << 20), "999 MiB");
    }
}
