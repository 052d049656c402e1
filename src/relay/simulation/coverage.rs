//! What the histories went through, counted, so that a rule nobody meets is found out.

use std::fmt;

macro_rules! seen {
    ($($name:ident: $what:literal,)*) => {
        /// Something that must come up in the histories.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Seen {
            $(#[doc = $what] $name,)*
        }

        const WORDS: &[(Seen, &str)] = &[$((Seen::$name, $what),)*];
    };
}

seen! {
    ReadPaused: "a reader pauses: no reply slot is free",
    ReadResumed: "a paused reader goes on",
    ScanUnbegun: "a stored query waits for others of its connection",
    ScanRecalled: "the newest events are all of a stored query's result",
    ScanPaused: "a stored query waits: the outbox is at high water",
    ScanResumed: "a stored query goes on",
    ScanFailed: "a stored query fails",
    QueryRefused: "a REQ is refused: its connection's queries have looked at too much",
    QueryCut: "a stored query looks at too much and ends",
    SliceLate: "a slice comes for a query nobody wants any more",
    CountUnbegun: "a count waits for stored queries of its connection",
    CountAnswered: "a count is answered",
    CountRefused: "a count finds no place among subscriptions",
    CountTooMany: "a count would look at too much",
    CountCut: "a count looks at too much for its connection",
    CountStopped: "the relay stops while a count is not done",
    ReplacedMidScan: "a REQ replaces one whose stored query is not done",
    ClosedMidScan: "a CLOSE ends one whose stored query is not done",
    Expired: "an event expires while it waits for a socket",
    ExpiredLate: "an event expires before it is stored",
    AllExpired: "all that waits for a socket has expired",
    Purged: "a CLOSE or a REQ takes unsent events back",
    SendPartial: "a socket takes a part of a batch",
    SendChained: "a socket takes a part of a batch with a chained payload",
    KernelFull: "a socket takes nothing: its kernel holds all it may",
    MessagesFull: "an outbox is full by its messages",
    BytesFull: "an outbox is full by its bytes",
    LiveTooLong: "a live queue is past its size limit",
    LiveTooMany: "the live queues of a connection are past their common size limit",
    LiveTooOld: "a live queue is past its age limit",
    LiveBytesFull: "the waiting live events of a shard are past its byte limit",
    LiveSuppressed: "a live event was served by the stored query",
    ControlOvertakes: "a ping or pong leaves before frames that waited longer",
    PongReplaced: "a pong makes room for a newer one",
    PingAnswered: "a ping is answered in time",
    Silent: "a ping is not answered in time",
    Stalled: "a peer acknowledges nothing in time",
    SlowKept: "a peer with bytes outstanding longer than the stall limit is slow, and stays",
    EndWithAnswersOwed: "a client ends its side while answers are owed",
    EndWithEventsOwed: "a client ends its side while stored or live events are owed",
    EndIdle: "a client ends its side and is owed nothing",
    CloseWithAnswersOwed: "a client's close frame comes while answers are owed",
    DrainWithEvents: "the relay stops while events wait for a socket",
    DrainWithAnswers: "the relay stops while answers are owed",
    DrainWithStored: "the relay stops while stored events wait behind an outbox",
    Drained: "all that was queued has left before 1001",
    DrainLate: "a closing connection runs out of time",
    AbortHead: "abort before the handshake",
    AbortOpen: "abort while open",
    AbortDraining: "abort while draining",
    AbortClosing: "abort before the last frame has left",
    AbortClosed: "abort after the last frame has left",
    AbortSending: "abort with a batch at the socket",
    HandshakeLate: "no request comes in time",
    Refused: "no room: 503",
    VerdictLate: "a verdict comes for a connection that is gone",
    CommitFailed: "a commit fails",
    Duplicate: "an event is there already",
    Heard: "an ephemeral event is heard",
    Mute: "an ephemeral event is heard by nobody",
    CommitInParts: "a commit with many listeners is delivered in parts",
    SubmissionsFull: "a shard verifies nothing: it has as much outstanding as it may",
    BusesFull: "two shards owe each other all the answers they may, both ways at once",
    WriterWaits: "the writer waits for a shard that is behind",
    ReaderWaits: "a reader of the store waits for a shard that is behind",
}

/// How often each has come up.
#[derive(Clone, PartialEq, Eq)]
pub struct Coverage([u64; WORDS.len()]);

impl Default for Coverage {
    fn default() -> Self {
        Self([0; WORDS.len()])
    }
}

impl Coverage {
    pub fn note(&mut self, what: Seen) {
        self.add(what, 1);
    }

    pub fn add(&mut self, what: Seen, times: u64) {
        self.0[what as usize] += times;
    }

    pub fn merge(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(count, more)| *count += more);
    }

    /// The least often seen.
    pub fn rarest(&self) -> (Seen, u64) {
        let counts = WORDS.iter().zip(self.0).map(|((what, _), count)| (*what, count));
        counts.min_by_key(|(_, count)| *count).expect("a list that is not empty")
    }
}

impl fmt::Debug for Coverage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ((_, words), count) in WORDS.iter().zip(self.0) {
            writeln!(out, "{count:>12}  {words}")?;
        }
        Ok(())
    }
}
