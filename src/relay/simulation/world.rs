//! All shards, the store's writer, the clock, and chance.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use super::expect::{End, NAMES};
use super::model::{Log, NoteIndex, Rng, Trace, note_of};
use super::node::{BusMessage, Node, Outgoing};
use super::socket::{Farewell, Greeting, Socket, random_message};
use crate::relay::counters::Counters;
use crate::relay::ports::{CommitBatch, Submission, Verdict};
use crate::relay::session::{Phase, Stage};
use crate::relay::{Accept, ConnectionKey, Limits, Now, Pages, Setup, Shard};
use crate::wire::frame::Opcode;

/// The longest step of the clock.
const LONGEST_PAUSE_MS: u64 = 2_500;

/// See the module.
pub struct World {
    rng: Rng,
    now: Now,
    nodes: Vec<Node>,
    log: Log,
    submitted: VecDeque<Submission>,
    stopping: bool,
    connections_max: usize,
}

/// What a run showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Hash of every effect and every byte.
    pub trace: u64,
    /// Of all shards.
    pub counters: Vec<Counters>,
}

fn random_limits(rng: &mut Rng) -> Limits {
    Limits {
        subscriptions_max: rng.pick(&[2, 4, 8]),
        filter_limit_max: rng.pick(&[5, 20, 500]),
        outbox_messages_max: rng.pick(&[1, 2, 5, 20]),
        outbox_bytes_max: rng.pick(&[600, 3_000, 1 << 20]),
        replies_max: rng.pick(&[1, 2, 5, 50]),
        live_queue_events_max: rng.pick(&[1, 4, 100]),
        live_bytes_max: rng.pick(&[2_000, 64 << 20]),
        live_queue_age_ms_max: 1_000,
        write_stall_ms_max: 4_000,
        ping_interval_ms: 3_000,
        pong_wait_ms_max: 6_000,
        handshake_ms_max: 5_000,
        drain_ms_max: 2_000,
        ..Limits::default()
    }
}

impl World {
    pub fn new(seed: u64, hash_seed: u64) -> Self {
        let mut rng = Rng(seed);
        let shards = 1 + rng.below(3);
        let limits = Arc::new(random_limits(&mut rng));
        let endpoint = "/".to_owned();
        let pages = Arc::new(Pages { endpoint, page: "hello".into(), document: "{}".into() });
        let nodes = (0..shards).map(|origin| {
            let setup = Setup {
                origin: u16::try_from(origin).expect("few"),
                shards: u16::try_from(shards).expect("few"),
                verify: false,
                limits: limits.clone(),
                pages: pages.clone(),
                deflate: Accept::Off,
                proxies: Arc::default(),
                hash_seed,
            };
            Node::new(Shard::new(setup), shards)
        });
        Self {
            nodes: nodes.collect(),
            now: Now { ms: 1_000, unix_s: 1_700_000_100 },
            log: Log::default(),
            submitted: VecDeque::new(),
            stopping: false,
            connections_max: 2 + rng.below(8),
            rng,
        }
    }

    /// Runs `steps` steps, lets all come to rest, ends every connection.
    pub fn run(mut self, steps: usize) -> Outcome {
        let stop_at = self.rng.chance(15).then(|| steps / 2 + self.rng.below(steps / 2));
        for step in 0..steps {
            if stop_at == Some(step) {
                self.stop();
            }
            self.step();
            self.check();
        }
        self.settle();
        self.check_settled();
        self.end();
        self.check_empty();
        let mut trace = Trace::default();
        self.nodes.iter().for_each(|node| trace.add(node.trace.sum()));
        let counters = self.nodes.iter().map(|node| node.core.counters()).collect();
        Outcome { trace: trace.sum(), counters }
    }

    fn step(&mut self) {
        let at = self.rng.below(self.nodes.len());
        let now = self.now;
        match self.rng.below(100) {
            0..6 => self.connect(at),
            6..26 => self.speak(at),
            26..46 => self.with_socket(at, |node, key, rng| {
                let count = rng.pick(&[1, 7, 100, 2_000, 20_000]);
                node.read(key, count, now);
            }),
            46..66 => self.with_socket(at, |node, key, rng| {
                let count = rng.pick(&[1, 50, 900, 10_000, 1 << 20]);
                node.write(key, count, now);
                if !node.sockets.get(&key).is_none_or(|socket| socket.stuck) {
                    node.acknowledge(key, rng.pick(&[1, 900, 10_000, 1 << 20]), now);
                }
            }),
            66..71 => self.commit(),
            71..79 => self.nodes[at].take_commit(now),
            79..84 => self.nodes[at].read_slice(&self.log, &mut self.rng),
            84..88 => self.nodes[at].take_chunk(now),
            88..91 => self.take_bus(at),
            91..94 => self.with_socket(at, |node, key, _| node.resume(key, now)),
            94 => self.with_socket(at, |node, key, rng| {
                if let Some(socket) = node.sockets.get_mut(&key) {
                    socket.stuck = rng.chance(50);
                }
            }),
            95..97 => self.pass_time(),
            97 => self.nodes[at].haunt(&mut self.rng, now),
            _ => self.with_socket(at, say_goodbye),
        }
        self.act(at);
        for _ in 0..self.rng.below(3) {
            self.nodes[at].verify(now);
            self.act(at);
        }
    }

    fn connect(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if self.stopping || node.sockets.len() >= self.connections_max {
            return;
        }
        let greeting = match self.rng.below(40) {
            0 => Greeting::Page,
            1 => Greeting::Noise,
            2 => Greeting::Silence,
            _ => Greeting::WebSocket,
        };
        let mut socket = Socket::new(greeting);
        (socket.mute, socket.polite) = (self.rng.chance(10), self.rng.chance(50));
        let room = !self.rng.chance(2);
        node.accept(socket, room, self.now);
    }

    fn speak(&mut self, at: usize) {
        let messages = if self.rng.chance(10) { 8 } else { 1 + self.rng.below(2) };
        let names = NAMES.len();
        self.with_socket(at, |node, key, rng| {
            let socket = node.sockets.get_mut(&key).expect("picked");
            for _ in 0..messages {
                if socket.may_speak() && socket.inbound.len() < 20_000 {
                    socket.say(random_message(rng, names), rng);
                }
            }
        });
    }

    fn with_socket(&mut self, at: usize, call: impl FnOnce(&mut Node, ConnectionKey, &mut Rng)) {
        let node = &mut self.nodes[at];
        if !node.sockets.is_empty() {
            let nth = self.rng.below(node.sockets.len());
            let key = *node.sockets.keys().nth(nth).expect("below the count");
            call(node, key, &mut self.rng);
        }
    }

    /// Carries out a shard's effects.
    fn act(&mut self, at: usize) {
        for outgoing in self.nodes[at].act(self.now) {
            match outgoing {
                Outgoing::Submit(submission) => self.submitted.push_back(submission),
                Outgoing::Publish { token, event } => {
                    for (to, node) in self.nodes.iter_mut().enumerate() {
                        if to != at {
                            let event = event.clone();
                            node.bus.push_back(BusMessage::Ephemeral { from: at, token, event });
                        }
                    }
                }
            }
        }
    }

    fn take_bus(&mut self, at: usize) {
        if let Some((to, message)) = self.nodes[at].take_bus(self.now) {
            self.nodes[to].bus.push_back(message);
        }
    }

    /// The writer commits some of what waits.
    fn commit(&mut self) {
        let count = self.rng.below(self.submitted.len() + 1);
        if count == 0 {
            return;
        }
        let failed = self.rng.chance(4);
        let mut batch = CommitBatch::default();
        for Submission { event, ticket } in self.submitted.drain(..count) {
            let note: NoteIndex = note_of(event.view().id()).expect("an event of the pool");
            let verdict = if failed {
                Verdict::Failed("disk".into())
            } else if self.log.holds(note) {
                Verdict::Duplicate
            } else {
                batch.stored.push((self.log.push(note, event.clone()), event));
                Verdict::Stored
            };
            batch.verdicts.push((ticket, verdict));
        }
        batch.last_sequence = self.log.last();
        let batch = Rc::new(batch);
        self.nodes.iter_mut().for_each(|node| node.commits.push_back(batch.clone()));
    }

    fn pass_time(&mut self) {
        let ms = self.rng.pick(&[1, 10, 50, 250, 250, 900, LONGEST_PAUSE_MS]);
        self.now = Now { ms: self.now.ms + ms, unix_s: self.now.unix_s + ms / 1_000 };
        for at in 0..self.nodes.len() {
            self.nodes[at].timer(self.now);
            self.act(at);
            self.nodes[at].check_stalled(self.now, LONGEST_PAUSE_MS);
        }
    }

    fn stop(&mut self) {
        self.stopping = true;
        for at in 0..self.nodes.len() {
            self.nodes[at].shutdown(self.now);
            self.act(at);
        }
    }

    /// Lets everything that is under way come to its end; time stands still.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            let mut still = self.submitted.is_empty();
            self.commit();
            for at in 0..self.nodes.len() {
                still &= self.settle_node(at);
            }
            if still {
                return;
            }
        }
        panic!("no rest after 10,000 rounds");
    }

    fn settle_node(&mut self, at: usize) -> bool {
        let now = self.now;
        let keys: Vec<_> = self.nodes[at].sockets.keys().copied().collect();
        let mut still = true;
        for key in keys {
            type Call = fn(&mut Node, ConnectionKey, Now);
            let calls: [Call; 4] = [
                |node, key, now| node.resume(key, now),
                |node, key, now| node.read(key, 1 << 20, now),
                |node, key, now| node.acknowledge(key, 1 << 20, now),
                |node, key, now| node.write(key, 1 << 20, now),
            ];
            for call in calls {
                let Some(socket) = self.nodes[at].sockets.get_mut(&key) else { break };
                socket.silent |= socket.finished;
                still &= is_idle(socket);
                call(&mut self.nodes[at], key, now);
                self.act(at);
            }
        }
        let node = &mut self.nodes[at];
        still &= node.commits.is_empty() && node.chunks.is_empty() && node.slices.is_empty();
        still &= node.bus.is_empty() && node.core.counters().verify_waiting == 0;
        node.take_commit(now);
        self.act(at);
        self.nodes[at].read_slice(&self.log, &mut self.rng);
        self.nodes[at].take_chunk(now);
        self.act(at);
        self.take_bus(at);
        self.nodes[at].verify(now);
        self.act(at);
        still
    }

    /// Ends every connection in one of the ways connections end.
    fn end(&mut self) {
        let way = self.rng.below(5);
        if way == 0 && !self.stopping {
            self.stop();
        }
        for at in 0..self.nodes.len() {
            let keys: Vec<_> = self.nodes[at].sockets.keys().copied().collect();
            for key in keys {
                let node = &mut self.nodes[at];
                let socket = node.sockets.get_mut(&key).expect("listed");
                match way {
                    1 => socket.silent = true,
                    2 => node.break_socket(key),
                    3 if socket.may_speak() => {
                        socket.send_frame(true, Opcode::Close, &[0x03, 0xe8]);
                        socket.farewell = Some(Farewell(Some(1000)));
                    }
                    _ => {}
                }
                self.act(at);
            }
        }
        if self.rng.chance(80) {
            self.settle();
        }
        // Whoever is still there runs into one deadline after the other.
        for _ in 0..20 {
            self.now = Now { ms: self.now.ms + 1_500, ..self.now };
            for at in 0..self.nodes.len() {
                self.nodes[at].timer(self.now);
                self.act(at);
                for socket in self.nodes[at].sockets.values_mut() {
                    socket.mute = true;
                }
            }
            self.settle();
        }
    }

    /// What holds at any moment between two inputs.
    fn check(&self) {
        for node in &self.nodes {
            check_core(&node.core);
        }
    }

    /// What holds when all is still.
    fn check_settled(&self) {
        for node in &self.nodes {
            for (key, socket) in &node.sockets {
                let session = node.core.sessions.get(key.slot()).expect("a session a socket");
                if session.phase == Phase::Open {
                    assert_eq!(socket.expect.end, End::Open);
                    socket.expect.check_settled();
                    assert_eq!(session.replies_owed, 0);
                    assert!(socket.unhandled.is_empty() && session.backlog.is_empty());
                }
                assert_ne!(session.phase, Phase::Draining, "nothing is left to wait for");
            }
        }
    }

    fn check_empty(&self) {
        for node in &self.nodes {
            let core = &node.core;
            assert!(node.sockets.is_empty() && core.sessions.is_empty());
            assert!(node.scans.is_empty(), "a query ends with its subscription");
            assert!(core.subscriptions.is_empty() && core.pending.is_empty());
            assert_eq!((core.index.len(), core.index.keys(), core.pending_bytes), (0, 0, 0));
            assert_eq!(core.live_bytes.get(), 0, "nobody waits, so nothing is held");
            let c = core.counters();
            assert_eq!((c.scans, c.verify_waiting, c.connections, c.subscriptions), (0, 0, 0, 0));
            let closed = c.closed_by_client
                + c.closed_http
                + c.closed_protocol
                + c.closed_too_long
                + c.closed_stalled
                + c.closed_silent
                + c.closed_timeout
                + c.closed_shutdown
                + c.closed_full;
            assert_eq!(c.accepted, closed, "each connection ends once, for one reason");
            assert_eq!(node.core.is_done(), self.stopping);
        }
    }
}

fn is_idle(socket: &Socket) -> bool {
    let readable = socket.reading == crate::relay::Reading::Ready && !socket.eof;
    !socket.resume_due
        && !socket.write_due
        && socket.batch.is_none()
        && !(readable && (socket.silent || !socket.inbound.is_empty()))
}

/// A client leaves, one way or another.
fn say_goodbye(node: &mut Node, key: ConnectionKey, rng: &mut Rng) {
    let socket = node.sockets.get_mut(&key).expect("picked");
    match rng.below(9) {
        0 => node.break_socket(key),
        1 => socket.silent = true,
        2 => socket.silent |= socket.finished,
        _ if !socket.may_speak() => {}
        3 => {
            socket.send_frame(true, Opcode::Close, &[0x0f, 0xa0, b'!']);
            socket.farewell = Some(Farewell(Some(4000)));
        }
        4 => {
            socket.send_frame(true, Opcode::Close, &[]);
            socket.farewell = Some(Farewell(None));
        }
        5 => {
            socket.send_frame(true, Opcode::Binary, b"\x00");
            socket.farewell = Some(Farewell(Some(1003)));
        }
        6 => {
            socket.inbound.extend_from_slice(&[0x81, 0x00]);
            socket.farewell = Some(Farewell(Some(1002)));
        }
        7 => {
            socket.send_frame(true, Opcode::Text, b"[\"\xff\"]");
            socket.farewell = Some(Farewell(Some(1007)));
        }
        _ => {}
    }
}

fn check_core(core: &Shard) {
    let limits = &core.setup.limits;
    let c = core.counters();
    let (mut owned, mut verifying) = (0, 0);
    for (_, session) in &core.sessions {
        owned += session.subscriptions.len();
        verifying += session.verify.len();
        let at_writer = core.pending.iter().filter(|(_, p)| p.connection == session.key).count();
        let owed = session.outbox.replies_len() + session.verify.len() + at_writer;
        if matches!(session.phase, Phase::Open | Phase::Draining) {
            assert_eq!(session.replies_owed as usize, owed, "a slot for each answer");
        }
        assert!(session.replies_owed <= limits.replies_max);
        let served = session.waiting.is_empty() || session.outbox.stream_len() > 0;
        assert!(served, "nobody waits without a batch to come");
        // An EOSE an open subscription, a CLOSED one that was ended: each has its place.
        let places = limits.subscriptions_max as usize;
        assert!(session.outbox.stream_closed() + session.subscriptions.len() <= places);
        assert!(session.outbox.stream_len() <= limits.outbox_messages_max as usize + places);
    }
    assert!(core.live_bytes.get() <= limits.live_bytes_max as usize);
    let (mut live, mut scans, mut filed) = (0, 0, 0);
    for (_, subscription) in &core.subscriptions {
        assert!(subscription.live.len() <= limits.live_queue_events_max as usize);
        live += subscription.live.len() as u64;
        filed += subscription.filters.len();
        scans += u64::from(matches!(subscription.stage, Stage::Scanning | Stage::Paused));
    }
    assert_eq!(owned, core.subscriptions.len(), "each subscription has its connection");
    assert_eq!(filed, core.index.len(), "each filed filter has its subscription");
    assert_eq!((scans, verifying as u64), (c.scans, c.verify_waiting));
    assert_eq!(
        c.matched_live,
        c.delivered_live + c.suppressed_live + c.abandoned_live + live,
        "nothing that matched is lost"
    );
    let bytes: usize = core.pending.iter().map(|(_, pending)| pending.bytes).sum();
    assert_eq!(bytes, core.pending_bytes);
}
