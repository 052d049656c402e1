//! All shards, the store's writer, the clock, and chance.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use super::check;
use super::coverage::{Coverage, Seen};
use super::expect::NAMES;
use super::intake::BusMessage;
use super::model::{BEGIN_S, Log, NoteIndex, Rng, Trace, note_of, pool};
use super::node::{Node, Outgoing};
use super::socket::{Farewell, Greeting, OFFERS, Socket, random_message};
use crate::relay::counters::Counters;
use crate::relay::planted::{Bug, planted};
use crate::relay::ports::{CommitBatch, Submission, Verdict};
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
    /// Commits and slices that may wait at one shard before their threads do.
    from_threads_max: usize,
    /// No shard takes what another sent.
    bus_held: bool,
    seen: Coverage,
}

/// What a run showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Hash of every effect and every byte.
    pub trace: u64,
    /// Of all shards.
    pub counters: Vec<Counters>,
    /// What came up.
    pub seen: Coverage,
}

fn random_limits(rng: &mut Rng) -> Limits {
    Limits {
        subscriptions_max: rng.pick(&[2, 4, 8]),
        filter_limit_max: rng.pick(&[5, 20, 500]),
        connection_queries_max: rng.pick(&[1, 2, 8]),
        recent_events_max: rng.pick(&[0, 2, 10, 1_000]),
        recent_bytes_max: rng.pick(&[3_000, 1 << 20]),
        connection_query_entries_max: rng.pick(&[0, 0, 0, 0, 60, 1_000]),
        connection_query_entries_per_s: rng.pick(&[10, 1_000]),
        outbox_messages_max: rng.pick(&[1, 2, 5, 20]),
        outbox_bytes_max: rng.pick(&[600, 3_000, 1 << 20]),
        replies_max: rng.pick(&[1, 2, 5, 50]),
        live_queue_events_max: rng.pick(&[1, 4, 100]),
        connection_live_events_max: rng.pick(&[3, 10, 50_000]),
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
        let submissions_max = rng.pick(&[1, 2, 5, 1_000, 1_000]);
        let scans_stop_where_filed = rng.chance(70);
        let deflate = rng.pick(&[Accept::Off, Accept::Off, Accept::On, Accept::ClientContext]);
        let nodes = (0..shards).map(|origin| {
            let setup = Setup {
                origin: u16::try_from(origin).expect("few"),
                shards: u16::try_from(shards).expect("few"),
                verify: false,
                search: false,
                limits: limits.clone(),
                pages: pages.clone(),
                deflate,
                proxies: Arc::default(),
                hash_seed,
            };
            let mut core = Shard::new(setup);
            core.submissions_max = submissions_max;
            Node::new(core, shards, scans_stop_where_filed)
        });
        Self {
            nodes: nodes.collect(),
            now: at_ms(1_000),
            log: Log::default(),
            submitted: VecDeque::new(),
            stopping: false,
            connections_max: 2 + rng.below(8),
            from_threads_max: rng.pick(&[1, 2, 5, 256]),
            bus_held: false,
            seen: Coverage::default(),
            rng,
        }
    }

    /// Runs `steps` steps, lets all come to rest, ends every connection.
    pub fn run(mut self, steps: usize) -> Outcome {
        let stop_at = self.rng.chance(15).then(|| steps / 2 + self.rng.below(steps / 2));
        let checked_every = 1 + self.rng.below(12);
        for step in 0..steps {
            if stop_at == Some(step) {
                self.stop();
            }
            self.step();
            if step % checked_every == 0 {
                self.check();
            }
        }
        self.settle();
        self.check_settled();
        self.end();
        self.check_empty();
        let mut trace = Trace::default();
        self.nodes.iter().for_each(|node| trace.add(node.trace.sum()));
        let counters = self.nodes.iter().map(|node| node.core.counters()).collect();
        self.nodes.iter().for_each(|node| self.seen.merge(&node.seen));
        Outcome { trace: trace.sum(), counters, seen: self.seen }
    }

    fn step(&mut self) {
        let at = self.rng.below(self.nodes.len());
        let now = self.now;
        if self.waits_to_send(at) {
            return;
        }
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
            79..84 => self.read_slice(at),
            84..88 => self.nodes[at].take_chunk(now),
            88..91 => self.take_bus(at),
            91..94 => self.with_socket(at, |node, key, _| node.resume(key, now)),
            94 => self.with_socket(at, |node, key, rng| {
                if let Some(socket) = node.sockets.get_mut(&key) {
                    socket.stuck = rng.chance(50);
                }
            }),
            95..97 if self.rng.chance(75) => self.pass_time(),
            95..97 => self.bus_held = self.rng.chance(30),
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
        let mut socket = Socket::new(greeting, self.rng.pick(&OFFERS));
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
        for outgoing in self.nodes[at].act(&self.log, self.now) {
            match outgoing {
                Outgoing::Submit(submission) => self.submitted.push_back(submission),
                Outgoing::Publish { token, event } => {
                    for to in (0..self.nodes.len()).filter(|to| *to != at) {
                        let event = event.clone();
                        self.send(at, to, BusMessage::Ephemeral { from: at, token, event });
                    }
                }
            }
        }
    }

    fn take_bus(&mut self, at: usize) {
        if !self.bus_held
            && let Some((to, message)) = self.nodes[at].take_bus(self.now)
        {
            self.send(at, to, message);
        }
    }

    fn send(&mut self, from: usize, to: usize, message: BusMessage) {
        match planted(Bug::BusWaits) {
            true => self.nodes[from].unsent.push_back((to, message)),
            false => self.nodes[to].receive(message),
        }
    }

    /// Whether a shard waits for another one's queue, of one place, and does nothing else.
    fn waits_to_send(&mut self, at: usize) -> bool {
        while let Some((to, message)) = self.nodes[at].unsent.pop_front() {
            if !self.nodes[to].bus.is_empty() {
                self.nodes[at].unsent.push_front((to, message));
                return true;
            }
            self.nodes[to].receive(message);
        }
        false
    }

    fn read_slice(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if node.waiting_from_threads() < self.from_threads_max {
            node.read_slice(&self.log, &mut self.rng, self.now);
        } else if !node.slices.is_empty() {
            self.seen.note(Seen::ReaderWaits);
        }
    }

    /// The writer commits some of what waits.
    fn commit(&mut self) {
        let count = self.rng.below(self.submitted.len() + 1);
        if count == 0 {
            return;
        }
        if self.nodes.iter().any(|node| node.waiting_from_threads() >= self.from_threads_max) {
            return self.seen.note(Seen::WriterWaits);
        }
        let failed = self.rng.chance(4);
        let mut batch = CommitBatch::default();
        for Submission { event, ticket } in self.submitted.drain(..count) {
            let note: NoteIndex = note_of(event.view().id()).expect("an event of the pool");
            let verdict = if failed {
                Verdict::Failed("disk".into())
            } else if pool()[note].is_expired(self.now.unix_s) {
                Verdict::Expired
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
        self.now = at_ms(self.now.ms + ms);
        for at in 0..self.nodes.len() {
            self.nodes[at].timer(self.now);
            self.act(at);
            self.nodes[at].check_stalled(self.now, LONGEST_PAUSE_MS);
            self.nodes[at].check_silent(self.now, LONGEST_PAUSE_MS);
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
        self.bus_held = false;
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
        if self.waits_to_send(at) {
            return false;
        }
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
        still &= node.waiting_from_threads() == 0 && node.slices.is_empty();
        still &= node.bus.is_empty() && node.core.counters().verify_waiting == 0;
        node.take_commit(now);
        self.act(at);
        self.read_slice(at);
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
            self.now = at_ms(self.now.ms + 1_500);
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
    fn check(&mut self) {
        self.nodes.iter().for_each(|node| check::core(&node.core));
        let room = self.nodes.iter().map(|node| node.core.submissions_max).sum();
        assert!(self.submitted.len() <= room, "the writer's queue has room for all it may be sent");
        for (at, node) in self.nodes.iter().enumerate() {
            let owes_all = |node: &Node, to| node.asked_by(to) == node.core.submissions_max;
            let mutual = |(other, peer)| owes_all(node, other) && owes_all(peer, at);
            let both_ways = self.nodes.iter().enumerate().skip(at + 1).any(mutual);
            self.seen.add(Seen::BusesFull, u64::from(both_ways));
            let limits = &node.core.setup.limits;
            let (messages, bytes) = (limits.outbox_messages_max, limits.outbox_bytes_max);
            for (_, session) in &node.core.sessions {
                let by_messages = session.outbox.has_room(messages as usize, usize::MAX);
                let by_bytes = session.outbox.has_room(usize::MAX, bytes as usize);
                self.seen.add(Seen::MessagesFull, u64::from(!by_messages));
                self.seen.add(Seen::BytesFull, u64::from(!by_bytes));
            }
        }
    }

    /// What holds when all is still.
    fn check_settled(&self) {
        self.nodes.iter().for_each(|node| check::settled(node, self.now));
    }

    fn check_empty(&self) {
        for node in &self.nodes {
            check::empty(node);
            assert_eq!(node.core.is_done(), self.stopping);
        }
    }
}

/// Both clocks.
fn at_ms(ms: u64) -> Now {
    Now { ms, unix_s: BEGIN_S + ms / 1_000 }
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
