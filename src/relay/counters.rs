//! What a shard counts: plain numbers, copied out by the driver a few times a second.

/// Counts since the shard began; gauges are named so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections taken in.
    pub accepted: u64,
    /// Gauge: connections now.
    pub connections: u64,
    /// Bytes received.
    pub bytes_in: u64,
    /// Messages received.
    pub messages_in: u64,
    /// Bytes handed to sockets.
    pub bytes_out: u64,
    /// Frames handed to sockets.
    pub frames_out: u64,
    /// Gather writes those frames left in.
    pub batches_out: u64,
    /// Times a connection was not read because its replies or its events' queue were full.
    pub reads_paused: u64,

    /// Events whose signature has been looked at, whatever it was.
    pub events_verified: u64,
    /// Events answered `OK true ""`.
    pub events_stored: u64,
    /// Events that were there already.
    pub events_duplicate: u64,
    /// Events older than the stored version.
    pub events_superseded: u64,
    /// Events their author had deleted.
    pub events_deleted: u64,
    /// Events of an author who vanished.
    pub events_vanished: u64,
    /// Events that had expired.
    pub events_expired: u64,
    /// Events refused by policy or limits.
    pub events_refused: u64,
    /// Events and other messages that were malformed.
    pub messages_invalid: u64,
    /// Events that were malformed.
    pub events_malformed: u64,
    /// Events whose signature was wrong.
    pub events_bad_signature: u64,
    /// Events the store failed to take.
    pub events_failed: u64,
    /// Ephemeral events somebody heard.
    pub events_ephemeral: u64,
    /// Ephemeral events nobody heard.
    pub events_mute: u64,

    /// REQs taken.
    pub reqs: u64,
    /// Stored queries answered from the newest events.
    pub scans_recalled: u64,
    /// Gauge: the newest events at hand.
    pub recent_events: u64,
    /// Gauge: bytes of their records, which other shards share.
    pub recent_bytes: u64,
    /// Gauge: subscriptions now.
    pub subscriptions: u64,
    /// Gauge: filters in the index of subscriptions.
    pub index_filters: u64,
    /// Gauge: values in that index.
    pub index_keys: u64,
    /// Subscriptions the client closed or replaced.
    pub subscriptions_closed: u64,
    /// REQs refused.
    pub subscriptions_refused: u64,
    /// Subscriptions ended because their reader fell behind.
    pub subscriptions_slow: u64,
    /// Subscriptions ended because the store failed.
    pub subscriptions_failed: u64,
    /// Subscriptions whose stored query went beyond its connection's budget.
    pub subscriptions_over_budget: u64,
    /// COUNTs answered with a number.
    pub counts_answered: u64,
    /// COUNTs refused, or given up because the relay stopped.
    pub counts_refused: u64,
    /// COUNTs given up because they would have looked at too much.
    pub counts_too_many: u64,
    /// COUNTs that went beyond their connection's budget.
    pub counts_over_budget: u64,
    /// COUNTs the store failed to answer.
    pub counts_failed: u64,
    /// Stored events put into outboxes.
    pub delivered_stored: u64,
    /// Live events matched to subscriptions.
    pub matched_live: u64,
    /// Live events put into outboxes.
    pub delivered_live: u64,
    /// Matched live events the subscription's stored query had served already.
    pub suppressed_live: u64,
    /// Matched live events that ended with their subscription or connection before delivery.
    pub abandoned_live: u64,

    /// Events that expired in an outbox.
    pub expired_events: u64,
    /// Events purged from outboxes with their subscription or connection. All others that were delivered and
    /// did not expire went into a batch; how much of what was on its way a peer received when it was cut off, nobody
    /// knows.
    pub purged_events: u64,
    /// Pongs that newer ones took the place of.
    pub pongs_replaced: u64,
    /// Subscriptions and connections ended because their reader was too slow.
    pub slow_closed: u64,

    /// Gauge: frames in the streams of all outboxes, a few times a second.
    pub outbox_frames: u64,
    /// Gauge: bytes of their payloads, as often.
    pub outbox_bytes: u64,
    /// Gauge: answers in all outboxes, as often.
    pub replies_waiting: u64,
    /// Gauge: live events that wait in subscriptions, once for each that does.
    pub live_waiting: u64,
    /// Gauge: bytes of the live events that wait in subscriptions, each counted once.
    pub live_bytes: u64,
    /// Gauge: events waiting for verification.
    pub verify_waiting: u64,
    /// Gauge: events at the writer, or published and waiting for the other shards' word.
    pub submissions_waiting: u64,
    /// Gauge: messages of threads and other shards that have not been taken, as the driver sees it.
    pub bus_waiting: u64,
    /// Gauge: stored queries in progress.
    pub scans: u64,

    /// Connections the client ended.
    pub closed_by_client: u64,
    /// Connections that carried one HTTP exchange.
    pub closed_http: u64,
    /// Connections ended for breaking RFC 6455 (1002, 1003, 1007).
    pub closed_protocol: u64,
    /// Connections ended for an over-long message (1009).
    pub closed_too_long: u64,
    /// Connections that took no byte in time.
    pub closed_stalled: u64,
    /// Connections that did not answer a ping.
    pub closed_silent: u64,
    /// Connections that sent no request in time, or did not finish closing in time.
    pub closed_timeout: u64,
    /// Connections ended by the relay's shutdown (1001).
    pub closed_shutdown: u64,
    /// Connections refused for want of room (503).
    pub closed_full: u64,
    /// Connections refused because their address had as many as it may have (429).
    pub closed_per_ip: u64,
}
