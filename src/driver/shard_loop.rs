//! One shard: its core, its tasks, its tick.
//!
//! Owner: one pinned thread. Tasks: a reader per connection, a writer per connection whose socket is
//! full, the listener, the timer, and the tick. A reader that brought something nudges the tick, which
//! runs after the tasks that are ready now: it drains the bus, verifies a bounded number of events and
//! carries out what the core decided. A connection is flushed once a tick however much was queued for
//! it, so batching emerges from load and never from a timer. The writes of a tick are begun together and
//! looked at together when the kernel has had its turn; nearly all are done by then, without a task. Where
//! they are few, each is one call at once instead, since a round of the ring costs more than they do.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use std::time::Duration;

use rustix::net::Shutdown;
use socket2::SockRef;

use super::backend::Backend;
use super::batches::Batches;
use super::bus::{Address, FromShard, FromThread, LastWord, Mailbox};
use super::clock;
use super::connection::{self, Connection, Load, Resume};
use super::places::{Place, Places};
use super::queries::Queries;
use super::record::Recorder;
use super::watched::watched;
use super::writes::{Begun, Filled};
use super::{Observe, listener, memory, sockopt};
use crate::nostr::Event;
use crate::relay::ports::{Chunk, CommitBatch, Counting, Query, Submission, Verdict};
use crate::relay::{
    Admission, Arrival, ConnectionKey, Effect, Now, Proxies, ScanKey, Shard, Tuning,
};
use crate::store::{ReadersHandle, Store, StoreError, WriterHandle};

/// Connections beyond the most allowed that are told so; further ones are closed unheard.
const REFUSED_MAX: usize = 64;

/// How often deadlines are looked at and counters copied out.
const TIMER_INTERVAL: Duration = Duration::from_millis(250);

/// What a shard is made of, before its thread runs.
pub struct Parts {
    pub(super) core: Box<dyn FnOnce() -> Shard + Send>,
    pub(super) number: usize,
    pub(super) tuning: Tuning,
    pub(super) mailbox: Mailbox,
    pub(super) peers: Arc<[Address]>,
    pub(super) last_word: LastWord,
    pub(super) loads: Arc<[AtomicUsize]>,
    pub(super) connections_max: usize,
    pub(super) places: Arc<Places>,
    pub(super) proxies: Arc<Proxies>,
    pub(super) store: Store,
    pub(super) submit: WriterHandle,
    pub(super) read: ReadersHandle,
    pub(super) observe: Observe,
    pub(super) recorder: Option<Recorder>,
}

/// See the module.
pub struct ShardLoop<B: Backend> {
    pub(super) core: RefCell<Shard>,
    /// The time of this turn.
    pub(super) now: Cell<Now>,
    /// The thread may have waited since it last looked at the clock.
    has_waited: Cell<bool>,
    pub(super) number: usize,
    pub(super) tuning: Tuning,
    mailbox: Mailbox,
    pub(super) peers: Arc<[Address]>,
    pub(super) loads: Arc<[AtomicUsize]>,
    connections_max: usize,
    places: Arc<Places>,
    proxies: Arc<Proxies>,
    /// A commit of which only a part has been delivered, and where to go on.
    committing: RefCell<Option<(Arc<CommitBatch>, usize)>>,
    /// By the slot of the core's key.
    connections: RefCell<Vec<Option<Rc<Connection<B>>>>>,
    queries: RefCell<Queries>,
    pub(super) scratch: RefCell<Vec<u8>>,
    pub(super) batches: RefCell<Batches>,
    /// What is to be written as soon as it is known to how many; at most one a connection.
    pub(super) filled: RefCell<Vec<Filled<B>>>,
    /// Writes begun since the kernel last had its turn; at most one a connection.
    pub(super) begun: RefCell<Vec<Begun<B>>>,
    /// Verified events that the writer has not been given yet.
    submitting: RefCell<Vec<Submission>>,
    /// Ticks since the first of them, at most `tuning.ticks_per_submit_max`.
    ticks_unsubmitted: Cell<u32>,
    submit: WriterHandle,
    observe: Observe,
    /// Until the shard ends: tasks may keep the rest for longer, where an executor does not drop them.
    recorder: RefCell<Option<Recorder>>,
    pub(super) stopping: Cell<bool>,
    task_panicked: Cell<bool>,
    /// Other shards that may still ask this one.
    asking: Cell<usize>,
    listener: RefCell<Option<Rc<B::Socket>>>,
}

impl<B: Backend> ShardLoop<B> {
    /// Runs a shard until it has been told to stop and every connection is closed, of the other shards
    /// too: what they ask about an ephemeral event is answered to the last.
    ///
    /// # Errors
    /// When the listening socket cannot be registered.
    pub(super) async fn run(
        parts: Parts,
        socket: OwnedFd,
        ready: impl FnOnce(),
    ) -> std::io::Result<()> {
        let mut last_word = Some(parts.last_word);
        let address = parts.peers[parts.number].clone();
        let shard = Rc::new(Self {
            core: RefCell::new((parts.core)()),
            now: Cell::new(clock::now().0),
            has_waited: Cell::new(true),
            number: parts.number,
            tuning: parts.tuning,
            asking: Cell::new(parts.peers.len() - 1),
            mailbox: parts.mailbox,
            peers: parts.peers,
            loads: parts.loads,
            connections_max: parts.connections_max,
            places: parts.places,
            proxies: parts.proxies,
            committing: RefCell::default(),
            connections: RefCell::default(),
            queries: RefCell::new(Queries::new(parts.store, parts.read, address)),
            scratch: RefCell::new(vec![0; parts.tuning.scratch_bytes as usize]),
            batches: RefCell::default(),
            filled: RefCell::default(),
            begun: RefCell::default(),
            submitting: RefCell::default(),
            ticks_unsubmitted: Cell::default(),
            submit: parts.submit,
            observe: parts.observe,
            recorder: RefCell::new(parts.recorder),
            stopping: Cell::new(false),
            task_panicked: Cell::new(false),
            listener: RefCell::default(),
        });
        let socket = Rc::new(B::socket(socket)?);
        *shard.listener.borrow_mut() = Some(socket.clone());
        shard.spawn(listener::accept(socket, shard.clone()));
        shard.spawn(shard.clone().keep_time());
        ready();
        loop {
            shard.has_waited.set(true);
            shard.mailbox.wait().await;
            assert!(!shard.task_panicked.get(), "a task of this shard has panicked");
            shard.begin_turn();
            loop {
                let more = shard.tick();
                if !shard.is_sending() {
                    shard.end_writes();
                    // No tick need follow, and the end of a write may be the end of its connection.
                    shard.act();
                    // It may have freed room for more of a stored query.
                    shard.queries.borrow_mut().ask();
                }
                if !more && !shard.has_begun_writes() {
                    break;
                }
                shard.has_waited.set(true);
                B::breathe().await;
                shard.begin_turn();
                shard.end_writes();
            }
            if shard.core.borrow().is_done() {
                drop(last_word.take());
                if shard.asking.get() == 0 {
                    shard.has_waited.set(true);
                    shard.begin_turn();
                    shard.observe();
                    shard.recorder.take();
                    return Ok(());
                }
            }
        }
    }

    /// Runs a task beside the others. A panic in it ends the shard, as one in the tick does: what it was
    /// about is half done.
    pub(super) fn spawn(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
        let shard = self.clone();
        B::spawn_local(watched(task, move || {
            shard.task_panicked.set(true);
            shard.nudge();
        }));
    }

    async fn keep_time(self: Rc<Self>) {
        loop {
            B::sleep(TIMER_INTERVAL).await;
            self.with(Shard::handle_timer);
            self.observe();
            self.nudge();
        }
    }

    fn observe(&self) {
        let core = self.core.borrow();
        let mut counters = core.counters();
        counters.bus_waiting = self.mailbox.len() as u64;
        (self.observe)(&counters, &core.timings());
    }

    /// Calls into the core, with the time.
    pub(super) fn with<R>(&self, call: impl FnOnce(&mut Shard, Now) -> R) -> R {
        if self.begin_turn() {
            // The tick follows, and the thread may wait again after it.
            self.nudge();
        }
        call(&mut self.core.borrow_mut(), self.now.get())
    }

    /// Looks at the clock if the thread may have waited since it last did; whether it may have.
    fn begin_turn(&self) -> bool {
        let has_waited = self.has_waited.replace(false);
        if has_waited {
            let (now, us) = clock::now();
            self.now.set(now);
            let mut core = self.core.borrow_mut();
            core.begin_turn(us);
            if let Some(recorder) = &*self.recorder.borrow() {
                recorder.note(us, self.mailbox.taken(), &mut core);
            }
        }
        has_waited
    }

    /// Asks for a tick after the tasks that are ready now.
    pub(super) fn nudge(&self) {
        self.mailbox.nudge();
    }

    /// One tick; whether another should follow at once.
    fn tick(self: &Rc<Self>) -> bool {
        let worked_max =
            self.core.borrow().worked() + u64::from(self.tuning.deliveries_per_tick_max);
        for _ in 0..self.tuning.shard_messages_per_tick_max {
            if self.core.borrow().worked() >= worked_max {
                break;
            }
            match self.mailbox.from_shards() {
                Some(message) => self.take_from_shard(message),
                None => break,
            }
        }
        if let Some((batch, from)) = self.committing.take() {
            self.commit(batch, from);
        }
        for _ in 0..self.tuning.thread_messages_per_tick_max {
            if self.committing.borrow().is_some() {
                break;
            }
            match self.mailbox.from_threads() {
                Some(message) => self.take_from_thread(message),
                None => break,
            }
        }
        let more =
            self.with(|core, now| core.verify(self.tuning.verify_per_tick_max as usize, now));
        self.act();
        let ticks = self.ticks_unsubmitted.get() + u32::from(!self.submitting.borrow().is_empty());
        self.ticks_unsubmitted.set(ticks);
        if !more || ticks >= self.tuning.ticks_per_submit_max {
            self.submit();
        }
        self.queries.borrow_mut().ask();
        more || self.committing.borrow().is_some() || !self.mailbox.is_empty()
    }

    /// Goes on with a commit; what is left of it waits for the next tick.
    fn commit(&self, batch: Arc<CommitBatch>, from: usize) {
        let deliveries_max = self.tuning.deliveries_per_tick_max.into();
        let next = self.with(|core, now| core.handle_commit(&batch, from, deliveries_max, now));
        *self.committing.borrow_mut() = next.map(|from| (batch, from));
    }

    fn take_from_shard(self: &Rc<Self>, message: FromShard) {
        match message {
            FromShard::Ephemeral { from, token, event } => {
                let count = self.with(|core, now| core.handle_ephemeral(&event, now));
                let heard = FromShard::Heard { token, count };
                // A shard that has panicked needs no answer.
                let _ = self.peers[usize::from(from)].send_from_shard(heard);
            }
            FromShard::Heard { token, count } => {
                self.with(|core, _| core.handle_heard(token, count));
            }
            FromShard::Accepted(socket, load) => self.adopt(socket, load),
            FromShard::Done => self.asking.set(self.asking.get() - 1),
        }
    }

    fn take_from_thread(&self, message: FromThread) {
        match message {
            FromThread::Commit(batch) => self.commit(batch, 0),
            FromThread::Chunk(key, scan, chunk) => {
                let done = chunk.done;
                let wanted = self.with(|core, now| core.handle_chunk(key, chunk, now));
                if wanted && !done {
                    // Before the effects are carried out, which may ask for the next slice.
                    self.queries.borrow_mut().put_back(key, scan);
                }
            }
            FromThread::Shutdown => {
                self.stopping.set(true);
                if let Some(listener) = self.listener.take() {
                    listener::stop(&*listener);
                }
                self.with(Shard::handle_shutdown);
            }
        }
    }

    /// Takes a connection in.
    pub(super) fn adopt(self: &Rc<Self>, socket: OwnedFd, load: Load) {
        if self.stopping.get() {
            return;
        }
        sockopt::send_at_once(&socket);
        let socket = match B::socket(socket) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(%error, "cannot register a connection");
                return;
            }
        };
        // It fails when the peer has given up already.
        let Ok(Some(peer)) = SockRef::from(&socket).peer_addr().map(|peer| peer.as_socket()) else {
            return;
        };
        let peer = peer.ip().to_canonical();
        let Some((arrival, place)) = self.receive(peer) else {
            let full = self.open() > self.connections_max;
            return self.core.borrow_mut().handle_unheard(full);
        };
        // The core reuses the slot of a connection it has let go; its release must not come after.
        self.act();
        let key = self.with(|core, now| core.handle_accept(peer, arrival, now));
        let (resume, place) = (Resume::default(), Cell::new(place));
        let connection = Rc::new(Connection { key, socket, resume, _load: load, place });
        let mut connections = self.connections.borrow_mut();
        if connections.len() <= key.slot() {
            connections.resize_with(key.slot() + 1, || None);
        }
        let before = connections[key.slot()].replace(connection.clone());
        assert!(before.is_none(), "a slot is released before it is used again");
        drop(connections);
        connection::begin_to_read(connection, self);
        self.nudge();
    }

    /// What becomes of a connection from `peer`; `None` when it is not even told why.
    fn receive(&self, peer: IpAddr) -> Option<(Arrival, Option<Place>)> {
        let open = self.open();
        if open > self.connections_max + REFUSED_MAX {
            return None;
        }
        if open > self.connections_max {
            return Some((Arrival::Full, None));
        }
        if self.proxies.trusts(peer) {
            return Some((Arrival::Proxy, None));
        }
        match self.take_place(peer) {
            (Admission::Granted, place) => Some((Arrival::Client, place)),
            (Admission::Refused, place) => Some((Arrival::Refused, place)),
            (Admission::Unheard, _) => None,
        }
    }

    /// Connections of all shards.
    fn open(&self) -> usize {
        self.loads.iter().map(|load| load.load(Ordering::Relaxed)).sum()
    }

    fn take_place(&self, client: IpAddr) -> (Admission, Option<Place>) {
        let taken = self.places.take(client);
        if taken.0 != Admission::Granted {
            tracing::debug!(%client, "over limits.connections_per_ip_max");
        }
        taken
    }

    /// A proxy has named its client.
    fn admit(&self, key: ConnectionKey, client: IpAddr) {
        let Some(connection) = self.connection(key) else { return };
        let (admission, place) = self.take_place(client);
        connection.place.set(place);
        self.with(|core, now| core.handle_admission(key, admission, now));
    }

    fn connection(&self, key: ConnectionKey) -> Option<Rc<Connection<B>>> {
        let connections = self.connections.borrow();
        connections.get(key.slot())?.clone().filter(|connection| connection.key == key)
    }

    /// Carries out what the core decided.
    fn act(self: &Rc<Self>) {
        let now = self.now.get();
        loop {
            let Some(effect) = self.core.borrow_mut().poll_effect() else {
                return self.begin_writes();
            };
            match effect {
                Effect::Submit(submission) => self.submitting.borrow_mut().push(submission),
                Effect::StartScan(key, query) => self.start_scan(key, query, None),
                Effect::StartCount(key, query, counting) => {
                    self.start_scan(key, query, Some(counting));
                }
                Effect::ResumeScan(key) => self.queries.borrow_mut().resume(key),
                Effect::CancelScan(key) => self.queries.borrow_mut().cancel(key),
                Effect::PublishEphemeral { token, event } => self.publish(token, &event),
                Effect::Admit(key, client) => self.admit(key, client),
                Effect::Write(key) => {
                    if let Some(connection) = self.connection(key) {
                        self.fill(connection, now);
                    }
                }
                Effect::ResumeRead(key) => {
                    if let Some(connection) = self.connection(key) {
                        connection.resume.notify();
                    }
                }
                Effect::Finish(key) => {
                    if let Some(connection) = self.connection(key) {
                        connection.shut(Shutdown::Write);
                    }
                }
                Effect::AskUnacked(key) => self.ask_unacked(key),
                Effect::GiveBack => self.give_back(),
                Effect::Release { key, reset } => self.release(key, reset),
            }
        }
    }

    fn ask_unacked(&self, key: ConnectionKey) {
        let Some(connection) = self.connection(key) else { return };
        // A socket that cannot say is broken, which its reader finds out.
        if let Ok(bytes) = sockopt::unacknowledged(connection.socket.as_fd()) {
            self.with(|core, now| core.handle_unacked(key, bytes, now));
        }
    }

    fn release(&self, key: ConnectionKey, reset: bool) {
        let connection = self.connection(key);
        if let Some(connection) = connection {
            if reset {
                sockopt::reset_on_close(&connection.socket);
            }
            self.connections.borrow_mut()[key.slot()] = None;
            connection.shut(Shutdown::Both);
            connection.resume.notify();
        }
    }

    /// Hands the verified events to the writer, together: one by one each would wake it, and it would
    /// commit each alone.
    ///
    /// Its queue has room for all that every shard may have there, so it is full only when the writer is
    /// gone.
    fn submit(self: &Rc<Self>) {
        self.ticks_unsubmitted.set(0);
        if let Err(submissions) = self.submit.try_submit(self.submitting.take()) {
            let failed = || Verdict::Failed("the writer has ended".into());
            let verdicts = submissions.iter().map(|submission| (submission.ticket, failed()));
            let batch = CommitBatch { verdicts: verdicts.collect(), ..CommitBatch::default() };
            self.with(|core, now| core.handle_commit(&batch, 0, 0, now));
            self.act();
        }
    }

    fn publish(&self, token: u64, event: &Event) {
        let from = u16::try_from(self.number).expect("fewer shards than 2^16");
        for (number, peer) in self.peers.iter().enumerate() {
            if number == self.number {
                continue;
            }
            let message = FromShard::Ephemeral { from, token, event: event.clone() };
            if peer.send_from_shard(message).is_err() {
                self.with(|core, _| core.handle_heard(token, 0));
            }
        }
    }

    fn start_scan(&self, key: ScanKey, query: Query, counting: Option<Counting>) {
        let now = self.now.get();
        let recalled = match counting {
            None => self.core.borrow_mut().recall(key, &query, now),
            Some(_) => None,
        };
        if let Some(chunk) = recalled {
            self.core.borrow_mut().handle_chunk(key, chunk, now);
            return;
        }
        let Some(filed_at) = self.core.borrow().filed_at(key) else { return };
        let begun = self.queries.borrow_mut().begin(key, query, filed_at, counting);
        if let Err(error) = begun {
            self.fail_scan(key, &error);
        }
    }

    fn fail_scan(&self, key: ScanKey, error: &StoreError) {
        tracing::error!(%error, "a stored query cannot begin");
        let failed = Some(error.to_string());
        let chunk = Chunk { failed, done: true, ..Chunk::default() };
        self.with(|core, now| core.handle_chunk(key, chunk, now));
    }

    /// Gives memory back: the room of tables, empty batches, and what the allocator keeps.
    fn give_back(&self) {
        let mut connections = self.connections.borrow_mut();
        let used = connections.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        connections.truncate(used);
        connections.shrink_to_fit();
        self.filled.borrow_mut().shrink_to_fit();
        self.begun.borrow_mut().shrink_to_fit();
        self.queries.borrow_mut().shrink_to_fit();
        self.batches.take();
        memory::give_back();
    }
}
