//! A tiny relay in this process, correct or broken in one way.

use serde_json::{Value, json};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use tungstenite::protocol::{Role, WebSocket};
use tungstenite::{Message, accept};

/// What the relay does wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Nothing,
    /// Every nth event is acknowledged and delivered, and not stored.
    StoresAllBut(usize),
    /// Every nth event is acknowledged and stored, and not delivered.
    DeliversAllBut(usize),
    /// Every nth event is stored and delivered, and not answered.
    AnswersAllBut(usize),
    /// Every nth event is answered twice.
    AnswersAgain(usize),
    /// COUNT is refused, as NIP-45 permits.
    RefusesToCount,
    /// Every nth delivery has another content.
    Alters(usize),
    /// Every nth delivery comes twice.
    Repeats(usize),
    /// Every nth event is delivered after the one that follows it.
    Swaps(usize),
    /// Live events reach subscriptions whoever wrote them.
    IgnoresAuthors,
    /// Whoever sends the nth, 2nth, … EVENT or REQ is told this too.
    AlsoSays(usize, &'static str),
    /// Every nth event is refused, stored and delivered.
    Refuses(usize),
    /// With every nth event all live subscriptions end.
    EndsSubscriptions(usize),
    /// Every nth REQ is answered with CLOSED.
    ClosesQueries(usize),
    /// Every nth REQ is not answered.
    IgnoresQueries(usize),
    /// EOSE comes so many milliseconds late, and not at all to who has closed meanwhile.
    AnswersLate(u64),
    /// Every nth connection is broken off before the handshake.
    HangsUpOn(usize),
    /// Every nth connection waits for its handshake's answer for good.
    NeverUpgrades(usize),
    /// A connection that says nothing for so many milliseconds is broken off.
    HangsUpAfter(u64),
    /// An event takes 200 ms, more than a hiccup of the machine, where more than so many subscriptions are live.
    SlowBeyond(usize),
    /// Acknowledges what it has in memory only; dies when it has as many events as this, and starts again.
    DiesWith(usize),
    /// Does nothing for the first 200 ms of each second.
    Stalls,
}

/// Of the events in memory, the last ones are not stored yet.
const UNSTORED: usize = 100;
const STALL_MS: u128 = 200;
/// How long the relay is gone when it dies.
const GONE: Duration = Duration::from_millis(300);
/// Keeps the stalling relay's answers slower than its host's hiccups.
const WORK: Duration = Duration::from_micros(300);

type Writer = Arc<Mutex<WebSocket<TcpStream>>>;

struct Subscription {
    connection: usize,
    name: String,
    filter: Value,
    writer: Writer,
}

struct State {
    fault: Fault,
    started: Instant,
    /// In the order of arrival.
    stored: Vec<Value>,
    events: usize,
    queries: usize,
    /// The event that [`Fault::Swaps`] holds back.
    held: Option<Value>,
    deliveries: usize,
    subscriptions: Vec<Subscription>,
    sockets: Vec<TcpStream>,
    gone_until: Option<Instant>,
}

/// Serves until the process ends; nobody joins its threads.
pub fn start(fault: Fault) -> SocketAddr {
    start_at(0, fault)
}

/// At a port that is free; 0 chooses one.
pub fn start_at(port: u16, fault: Fault) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    let address = listener.local_addr().unwrap();
    let state = Arc::new(Mutex::new(State {
        fault,
        started: Instant::now(),
        stored: Vec::new(),
        events: 0,
        queries: 0,
        held: None,
        deliveries: 0,
        subscriptions: Vec::new(),
        sockets: Vec::new(),
        gone_until: None,
    }));
    thread::spawn(move || {
        for (number, socket) in listener.incoming().flatten().enumerate() {
            let mut now = state.lock().unwrap();
            if now.gone_until.is_some_and(|until| Instant::now() < until) {
                continue;
            }
            now.sockets.push(socket.try_clone().unwrap());
            let nth = |n: usize| (number + 1).is_multiple_of(n);
            match now.fault {
                Fault::HangsUpOn(n) if nth(n) => {
                    socket.shutdown(Shutdown::Both).ok();
                    continue;
                }
                // The other handle keeps it open.
                Fault::NeverUpgrades(n) if nth(n) => continue,
                Fault::HangsUpAfter(ms) => {
                    socket.set_read_timeout(Some(Duration::from_millis(ms))).unwrap();
                }
                _ => {}
            }
            let state = Arc::clone(&state);
            thread::spawn(move || serve(&state, number, socket));
        }
    });
    address
}

fn serve(state: &Arc<Mutex<State>>, number: usize, socket: TcpStream) {
    socket.set_nodelay(true).unwrap();
    let second = socket.try_clone().unwrap();
    let Ok(mut reader) = accept(socket) else {
        second.shutdown(Shutdown::Both).ok();
        return;
    };
    let writer = Arc::new(Mutex::new(WebSocket::from_raw_socket(second, Role::Server, None)));
    while let Ok(message) = reader.read() {
        let Message::Text(text) = message else { continue };
        let request: Value = serde_json::from_str(&text).unwrap();
        stall(state);
        let shared = state;
        let mut state = state.lock().unwrap();
        state.also_say(&request, &writer);
        match request[0].as_str().unwrap() {
            "EVENT" => state.publish(&request[1], &writer),
            "REQ" => {
                state.subscribe(number, &request, &writer);
                if let Fault::AnswersLate(ms) = state.fault {
                    answer_late(ms, shared, number, request);
                }
            }
            "COUNT" if state.fault == Fault::RefusesToCount => {
                say(&writer, &json!(["CLOSED", request[1], "unsupported: no counting here"]));
            }
            "COUNT" => {
                let count = state.stored.iter().filter(|one| matches(&request[2], one)).count();
                say(&writer, &json!(["COUNT", request[1], {"count": count}]));
            }
            _ => state.unsubscribe(number, Some(request[1].as_str().unwrap())),
        }
    }
    state.lock().unwrap().unsubscribe(number, None);
    writer.lock().unwrap().get_ref().shutdown(Shutdown::Both).ok();
}

fn answer_late(ms: u64, state: &Arc<Mutex<State>>, number: usize, request: Value) {
    let state = Arc::clone(state);
    thread::spawn(move || {
        thread::sleep(Duration::from_millis(ms));
        let state = state.lock().unwrap();
        let mut live = state.subscriptions.iter();
        if let Some(one) = live.find(|one| one.connection == number && one.name == request[1]) {
            say(&one.writer, &json!(["EOSE", request[1]]));
        }
    });
}

fn stall(state: &Mutex<State>) {
    let (fault, started) = {
        let state = state.lock().unwrap();
        (state.fault, state.started)
    };
    if fault == Fault::Stalls {
        thread::sleep(WORK);
        let into_second = started.elapsed().as_millis() % 1000;
        thread::sleep(Duration::from_millis(STALL_MS.saturating_sub(into_second) as u64));
    }
}

impl State {
    fn also_say(&self, request: &Value, writer: &Writer) {
        let so_far = if request[0] == "EVENT" { self.events } else { self.queries };
        if let Fault::AlsoSays(n, text) = self.fault
            && (request[0] == "EVENT" || request[0] == "REQ")
            && (so_far + 1).is_multiple_of(n)
        {
            writer.lock().unwrap().send(Message::text(text)).ok();
        }
    }

    fn publish(&mut self, event: &Value, writer: &Writer) {
        self.events += 1;
        let every = |n: usize| self.events.is_multiple_of(n);
        if !matches!(self.fault, Fault::StoresAllBut(n) if every(n)) {
            self.stored.push(event.clone());
        }
        let answers = match self.fault {
            Fault::AnswersAllBut(n) if every(n) => 0,
            Fault::AnswersAgain(n) if every(n) => 2,
            _ => 1,
        };
        let refused = matches!(self.fault, Fault::Refuses(n) if every(n));
        let reason = if refused { "blocked: not today" } else { "" };
        (0..answers).for_each(|_| say(writer, &json!(["OK", event["id"], !refused, reason])));
        if matches!(self.fault, Fault::SlowBeyond(most) if self.subscriptions.len() > most) {
            thread::sleep(Duration::from_millis(200));
        }
        if matches!(self.fault, Fault::EndsSubscriptions(n) if every(n)) {
            for one in self.subscriptions.drain(..) {
                say(&one.writer, &json!(["CLOSED", one.name, "error: slow consumer"]));
            }
        }
        match self.fault {
            Fault::DeliversAllBut(n) if every(n) => {}
            Fault::Swaps(n) if every(n) => self.held = Some(event.clone()),
            _ => {
                self.deliver(event);
                if let Some(held) = self.held.take() {
                    self.deliver(&held);
                }
            }
        }
        if self.fault == Fault::DiesWith(self.events) {
            self.die();
        }
    }

    fn deliver(&mut self, event: &Value) {
        let matches = |filter: &Value| {
            let mut filter = filter.clone();
            if self.fault == Fault::IgnoresAuthors {
                filter.as_object_mut().unwrap().remove("authors");
            }
            matches(&filter, event)
        };
        for one in self.subscriptions.iter().filter(|one| matches(&one.filter)) {
            self.deliveries += 1;
            let mut event = event.clone();
            if matches!(self.fault, Fault::Alters(n) if self.deliveries.is_multiple_of(n)) {
                event["content"] = json!("something else");
            }
            say(&one.writer, &json!(["EVENT", one.name, event]));
            if matches!(self.fault, Fault::Repeats(n) if self.deliveries.is_multiple_of(n)) {
                say(&one.writer, &json!(["EVENT", one.name, event]));
            }
        }
    }

    fn subscribe(&mut self, connection: usize, request: &Value, writer: &Writer) {
        let (name, filter) = (request[1].as_str().unwrap(), &request[2]);
        self.queries += 1;
        match self.fault {
            Fault::IgnoresQueries(n) if self.queries.is_multiple_of(n) => return,
            Fault::ClosesQueries(n) if self.queries.is_multiple_of(n) => {
                return say(writer, &json!(["CLOSED", name, "error: not today"]));
            }
            _ => {}
        }
        let mut found: Vec<&Value> =
            self.stored.iter().filter(|event| matches(filter, event)).collect();
        found.sort_by_key(|event| {
            (std::cmp::Reverse(event["created_at"].as_u64()), event["id"].as_str())
        });
        for event in found.into_iter().take(filter["limit"].as_u64().unwrap_or(5000) as usize) {
            say(writer, &json!(["EVENT", name, event]));
        }
        if !matches!(self.fault, Fault::AnswersLate(_)) {
            say(writer, &json!(["EOSE", name]));
        }
        self.unsubscribe(connection, Some(name));
        self.subscriptions.push(Subscription {
            connection,
            name: name.to_owned(),
            filter: filter.clone(),
            writer: Arc::clone(writer),
        });
    }

    fn unsubscribe(&mut self, connection: usize, name: Option<&str>) {
        self.subscriptions.retain(|one| {
            one.connection != connection || name.is_some_and(|name| one.name != name)
        });
    }

    fn die(&mut self) {
        self.stored.truncate(self.stored.len() - UNSTORED);
        self.subscriptions.clear();
        self.gone_until = Some(Instant::now() + GONE);
        for socket in self.sockets.drain(..) {
            socket.shutdown(Shutdown::Both).ok();
        }
    }
}

fn say(writer: &Writer, message: &Value) {
    // Whoever is gone is told nothing.
    writer.lock().unwrap().send(Message::text(message.to_string())).ok();
}

fn matches(filter: &Value, event: &Value) -> bool {
    filter.as_object().unwrap().iter().all(|(key, wanted)| {
        let one_of = |value: &Value| wanted.as_array().unwrap().contains(value);
        match key.as_str() {
            "ids" => one_of(&event["id"]),
            "authors" => one_of(&event["pubkey"]),
            "kinds" => one_of(&event["kind"]),
            "since" => event["created_at"].as_u64() >= wanted.as_u64(),
            "until" => event["created_at"].as_u64() <= wanted.as_u64(),
            "limit" => true,
            tag => {
                let mut tags = event["tags"].as_array().unwrap().iter();
                tags.any(|one| one[0] == tag[1..] && one_of(&one[1]))
            }
        }
    })
}
