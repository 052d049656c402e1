//! Every bound a client can meet, with its unit in its name. NIP-11 and the printed memory sum are
//! made from these values, so what is advertised is what is in force.

use serde::{Deserialize, Serialize};

use crate::nostr::{EventView, Kind, KindClass};

/// How long events are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptAge {
    /// The kinds this is about, in order; `None` = all but 5 and 62.
    pub kinds: Option<Vec<u16>>,
    /// Seconds since `created_at`.
    pub age_s_max: u64,
}

impl KeptAge {
    /// Whether an event may stay at `unix_s`, as far as this is about it.
    #[must_use]
    pub fn keeps(&self, event: EventView<'_>, unix_s: u64) -> bool {
        let kind = event.kind();
        let is_about = match &self.kinds {
            Some(kinds) => kinds.binary_search(&kind.0).is_ok(),
            None => kind != Kind::DELETION && kind != Kind::VANISH,
        };
        let is_stored = kind.class() != KindClass::Ephemeral;
        let oldest = unix_s.saturating_sub(self.age_s_max);
        !(is_about && is_stored) || event.created_at() >= oldest
    }
}

/// The bounds in force. In the config file: `[limits]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Open connections over all shards; more are refused with 503. 0 = as many as the process's
    /// file descriptors allow.
    pub connections_max: u32,
    /// Open connections of one client address, over all shards; more are refused with 429. 0 = any
    /// number.
    pub connections_per_ip_max: u32,
    /// Bytes of one WebSocket message; a longer one closes the connection with 1009.
    pub message_bytes_max: u32,
    /// Tags of one event.
    pub event_tags_max: u32,
    /// Characters of one event's content.
    pub event_content_chars_max: u32,
    /// How far back `created_at` may lie, in seconds; 0 = any.
    pub created_at_age_s_max: u64,
    /// Rules of `[[retention]]` by age: what one would erase is refused.
    #[serde(skip)]
    pub kept_ages: Vec<KeptAge>,
    /// How far ahead `created_at` may lie, in seconds; 0 = any.
    pub created_at_ahead_s_max: u64,
    /// Open subscriptions of one connection, and COUNTs that are not answered.
    pub subscriptions_max: u32,
    /// Filters of one REQ or COUNT.
    pub filters_max: u32,
    /// Values over all lists of all filters of one REQ or COUNT.
    pub filter_values_max: u32,
    /// Stored events per filter: caps `limit`, and is the limit of a filter without one.
    pub filter_limit_max: u32,
    /// Index entries one COUNT may look at (NIP-45); one that would look at more is answered CLOSED.
    pub count_entries_max: u32,
    /// Stored queries of one connection under way at once, each with a slice of what it found; the others
    /// wait for their turn.
    pub connection_queries_max: u32,
    /// Stored events, the newest, that every shard has at hand; stored queries that these answer whole wait
    /// for no reader. 0 = none.
    pub recent_events_max: u16,
    /// Bytes of their records, which all shards share.
    pub recent_bytes_max: u32,
    /// Index entries that the stored queries of one connection may examine at once, about; 0 = any number.
    pub connection_query_entries_max: u64,
    /// How many of those a connection may have again each second.
    pub connection_query_entries_per_s: u32,
    /// Frames waiting in one connection's subscription stream; a stored scan pauses there.
    pub outbox_messages_max: u32,
    /// Bytes waiting in one connection's subscription stream.
    pub outbox_bytes_max: u32,
    /// Answers (OK, COUNT, NOTICE, CLOSED) one connection may have outstanding; a connection without a
    /// free one is not read.
    pub replies_max: u32,
    /// Live events waiting in one subscription behind a full outbox or an unfinished stored query.
    pub live_queue_events_max: u32,
    /// Live events waiting so in all subscriptions of one connection; beyond them the subscription
    /// furthest behind ends.
    pub connection_live_events_max: u32,
    /// Bytes of all live events that wait so in one shard, each counted once however many wait for
    /// it; beyond them the subscriptions furthest behind end.
    pub live_bytes_max: u32,
    /// How long the oldest event waiting behind a full outbox may do so, in milliseconds.
    pub live_queue_age_ms_max: u32,
    /// Bytes the kernel may hold for one socket that its peer has not acknowledged (`SO_SNDBUF`). The
    /// kernel grants no more than `net.core.wmem_max`, and uses as much again for its own bookkeeping.
    pub send_buffer_bytes_max: u32,
    /// How long a peer may acknowledge no byte while some are under way to it, in milliseconds.
    pub write_stall_ms_max: u32,
    /// How often a quiet connection is pinged, in milliseconds; 0 = never.
    pub ping_interval_ms: u32,
    /// How long after a ping a connection may stay silent, in milliseconds.
    pub pong_wait_ms_max: u32,
    /// How long a client may take to send its HTTP request, in milliseconds.
    pub handshake_ms_max: u32,
    /// How long a closing connection may take to read what is queued for it, in milliseconds.
    pub drain_ms_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 0,
            connections_per_ip_max: 1_000,
            message_bytes_max: 512_000,
            event_tags_max: 2_000,
            event_content_chars_max: 262_144,
            created_at_age_s_max: 0,
            kept_ages: Vec::new(),
            created_at_ahead_s_max: 900,
            subscriptions_max: 100,
            filters_max: 20,
            filter_values_max: 10_000,
            filter_limit_max: 5_000,
            count_entries_max: 1_000_000,
            connection_queries_max: 8,
            recent_events_max: 16_384,
            recent_bytes_max: 32 << 20,
            // What a reader does in some ten seconds, and in most of one.
            connection_query_entries_max: 20_000_000,
            connection_query_entries_per_s: 1_000_000,
            outbox_messages_max: 100,
            outbox_bytes_max: 1 << 20,
            replies_max: 512,
            live_queue_events_max: 10_000,
            connection_live_events_max: 50_000,
            live_bytes_max: 64 << 20,
            live_queue_age_ms_max: 3_000,
            send_buffer_bytes_max: 212_992,
            write_stall_ms_max: 10_000,
            ping_interval_ms: 30_000,
            pong_wait_ms_max: 60_000,
            handshake_ms_max: 5_000,
            drain_ms_max: 5_000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nostr::testing::Draft;

    #[test]
    fn an_age_is_about_its_kinds_and_to_the_second_what_a_rule_erases() {
        let event = |kind, created_at| {
            let draft = Draft { created_at, kind, ..Draft::default() };
            draft.candidate().event().clone()
        };
        let keeps =
            |kept: &KeptAge, kind, created_at| kept.keeps(event(kind, created_at).view(), 1_000);
        let of_some = KeptAge { kinds: Some(vec![1, 5]), age_s_max: 100 };
        let of_all = KeptAge { kinds: None, age_s_max: 100 };
        assert!(keeps(&of_some, 1, 900) && keeps(&of_all, 1, 900));
        assert!(!keeps(&of_some, 1, 899) && !keeps(&of_all, 1, 899));
        assert!(keeps(&of_some, 7, 1) && !keeps(&of_all, 7, 1));
        assert!(!keeps(&of_some, 5, 1) && keeps(&of_all, 5, 1) && keeps(&of_all, 62, 1));
        assert!(keeps(&of_all, 20_001, 1), "nothing of it is kept anyway");
        assert!(keeps(&KeptAge { age_s_max: 2_000, ..of_all }, 1, 0));
    }
}
