//! Mistakes that the simulation makes on purpose, one at a time, to show that it would find them.
//!
//! Each call of [`planted`] stands where the mistake would be made. Outside tests it is the constant
//! `false`, and nothing of it is left in the program.

macro_rules! bugs {
    ($($(#[$about:meta])* $name:ident,)*) => {
        /// A mistake others have made, or a rule that might be broken.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Bug {
            $($(#[$about])* $name,)*
        }

        /// Every one.
        #[cfg(test)]
        pub(super) const ALL: &[Bug] = &[$(Bug::$name,)*];
    };
}

bugs! {
    // The lanes of an outbox, and its limits.
    /// A ping waits in line with all else.
    PingInLine,
    /// The byte limit of the stream is not looked at.
    BytesUnbounded,
    /// What has expired while it waited is sent.
    ExpiredSent,
    /// A batch is filled while another is with the socket.
    TwoWrites,
    /// The answers beyond some that wait are dropped.
    OverflowUnanswered,
    /// The close frame does not wait for what is queued.
    CloseBeforeQueued,
    /// A stop forgets what a stored query that is not done has read.
    StopForgetsStored,
    /// What a client is owed is forgotten when it ends its side.
    EndForgetsAnswers,
    /// A connection whose request does not come is kept.
    HandshakeUnbounded,
    /// A closing connection that does not read what is queued for it is kept.
    DrainUnbounded,

    // Pings and stalled peers.
    /// Any number of pongs waits.
    PongsUnbounded,
    /// A connection that answers no ping is kept.
    SilentKept,
    /// The answer to a ping does not count.
    PongUnheard,
    /// A peer that acknowledges nothing is kept.
    StalledKept,
    /// A peer that acknowledges little is not.
    SlowClosed,
    /// What the kernel takes counts as taken by the peer.
    SentIsProgress,

    // Reading, and its credit.
    /// Messages are read without a free reply slot.
    ReadsOn,
    /// A paused reader is never told to go on.
    ReadsNoMore,
    /// A message without an answer keeps its reply slot.
    SlotKept,
    /// A client's events lose their order.
    OrderLost,
    /// More is submitted than the queues behind have room for.
    SubmissionsUnbounded,
    /// OK does not wait for the commit.
    OkBeforeCommit,
    /// The OK of an ephemeral event does not wait for every shard.
    HeardTooSoon,
    /// A connection that is gone keeps its turn at verification.
    RoundKept,
    /// A late word for a connection goes to the next one in its slot.
    WordToStranger,

    // Subscriptions: stored, then live.
    /// A subscription that asks for no stored event is not live.
    LimitZeroNotLive,
    /// A subscription whose stored query is done is not live.
    SatisfiedNotLive,
    /// What is published during the stored query is not live.
    LateListener,
    /// The first live event after the stored query is taken for a stored one.
    Gap,
    /// What the stored query has served comes again.
    Twice,
    /// EOSE comes before the last stored events.
    EoseFirst,
    /// EOSE comes twice.
    EoseTwice,
    /// A stored query goes on past high water.
    PastHighWater,
    /// A stored query that paused never goes on.
    ScanStuck,
    /// A connection has as many stored queries under way as it asks for.
    QueriesUnbounded,
    /// A connection may have the store look at anything.
    QueriesUnlimited,
    /// What slices examined is not charged.
    SlicesUncharged,
    /// What was charged for a query and not examined is not given back.
    ReserveKept,
    /// A stored query that waits for another does not begin when that is cancelled.
    QueryForgotten,
    /// A stored query outlives its subscription.
    ScanRunsOn,
    /// A late slice goes to the next subscription in its slot.
    SliceToStranger,
    /// Counts hold no place among subscriptions.
    CountsUnbounded,
    /// A count outlives its connection.
    CountOutlives,
    /// The unsent frames of a closed subscription are sent.
    CloseLeavesFrames,
    /// The CLOSED of a subscription the relay ended stays when a REQ of that id follows.
    ClosedStays,
    /// A purge takes the frames of every subscription of that id.
    PurgeById,
    /// The room of a closed subscription is not handed on.
    RoomKept,
    /// A subscription's filters outlive it.
    IndexLeak,

    // Slow readers.
    /// A subscriber that cannot take an event keeps it from the next.
    StuckStopsAll,
    /// What a full queue cannot take is dropped, and nobody is told.
    LossUnsaid,
    /// What a full queue cannot take is not counted.
    LossUncounted,
    /// What waits in an outbox when its connection ends is not counted.
    CutUncounted,
    /// A slow subscription ends its connection.
    LagEndsConnection,
    /// Any number of events waits for one connection.
    ReferencesUnbounded,
    /// Any number of bytes of live events waits in a shard.
    LiveBytesUnbounded,
    /// Events wait for a slow reader for ever.
    AgeUnbounded,
    /// Waiting for the stored query counts as being slow.
    ScanCountsAsWait,

    // The driver's part, which the simulation plays.
    /// A send that took a part goes on at the wrong byte.
    #[cfg(test)]
    WrongByte,
    /// A shard waits for room in the queue of another.
    #[cfg(test)]
    BusWaits,
}

/// Whether this mistake is to be made.
#[cfg(not(test))]
pub(super) const fn planted(_: Bug) -> bool {
    false
}

#[cfg(test)]
pub(super) use for_tests::{plant, planted};

#[cfg(test)]
mod for_tests {
    use std::cell::Cell;

    use super::Bug;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    pub fn planted(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }

    /// Has this thread make one mistake, or none.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
    }
}
