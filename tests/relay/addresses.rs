//! Connections of one client address: capped, and given back however they end; behind a proxy as well.

use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use crate::support::raw::{Frame, HANDSHAKE, Raw, Seen, opcode};
use crate::support::{Launch, Server, alone, wait_until};

/// Connections one address may have in these tests.
const CAP: u64 = 3;
/// Connections of one address beyond its cap that are told why.
const TOLD: u64 = 8;

struct Relay {
    server: Server,
}

impl Relay {
    fn start(backend: &str) -> Self {
        let server = Launch::default()
            .shards(2)
            .backend(backend)
            .counted()
            .set("trusted_proxies", r#"["127.0.0.200", "127.0.1.0/24"]"#)
            .set("limits.connections_per_ip_max", CAP)
            .set("limits.drain_ms_max", 60_000)
            .start();
        Self { server }
    }

    /// A connection from 127.0.`net`.`host`.
    fn connect(&self, net: u8, host: u8) -> Raw {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let source = SocketAddr::from((Ipv4Addr::new(127, 0, net, host), 0));
        socket.bind(&source.into()).expect("an address of this machine");
        socket.connect(&self.server.address().into()).expect("the relay listens");
        Raw::over(TcpStream::from(socket))
    }

    /// Connects and asks for a WebSocket: the status.
    fn ask(&self, net: u8, host: u8, forwarded: &[&str]) -> (Raw, String) {
        let mut raw = self.connect(net, host);
        raw.send(request(forwarded).as_bytes());
        let head = raw.head();
        let status = head.get(9..12).unwrap_or_default().to_owned();
        (raw, status)
    }

    fn open(&self, host: u8) -> Raw {
        let (raw, status) = self.ask(0, host, &[]);
        assert_eq!(status, "101");
        raw
    }

    fn addresses(&self) -> u64 {
        self.server.counts().get("client_addresses")
    }

    fn connections(&self) -> u64 {
        self.server.counts().get("connections")
    }

    fn refused(&self) -> u64 {
        self.server.counts().of("connections_closed", "per_ip")
    }

    /// Waits until an address has room again.
    fn reopen(&self, host: u8) -> Raw {
        let mut opened = None;
        wait_until("a place to be given back", || {
            let (raw, status) = self.ask(0, host, &[]);
            let is_open = status == "101";
            opened = is_open.then_some(raw);
            is_open
        });
        opened.expect("it was opened")
    }
}

fn request(forwarded: &[&str]) -> String {
    let host = "Host: localhost\r\n";
    let fields = forwarded.iter().map(|value| format!("X-Forwarded-For: {value}\r\n"));
    HANDSHAKE.replacen(host, &format!("{host}{}", fields.collect::<String>()), 1)
}

fn reset(raw: Raw) {
    SockRef::from(&raw.stream).set_linger(Some(Duration::ZERO)).expect("a socket option");
}

on_every_backend!(each_address_has_its_cap);

/// Several addresses fill their caps; a connection more is refused before it has sent anything; a place
/// comes back however its connection ends.
fn each_address_has_its_cap(backend: &str) {
    let relay = Relay::start(backend);
    let mut held: Vec<Vec<Raw>> =
        (2..6).map(|host| (0..CAP).map(|_| relay.open(host)).collect()).collect();
    for host in 2..6 {
        let mut refused = relay.connect(0, host);
        let answer = String::from_utf8(refused.rest()).expect("text");
        assert!(answer.starts_with("HTTP/1.1 429 Too Many Requests\r\n"), "{answer}");
        assert!(answer.ends_with("too many connections from your address\n"), "{answer}");
    }
    assert_eq!(relay.addresses(), 4);
    wait_until("the refused to be gone", || relay.connections() == 4 * CAP);
    wait_until("them to be counted", || relay.refused() == 4);

    // A farewell, a reset, an end of what is sent, a broken frame.
    let [first, second, third, fourth] = &mut held[..] else { unreachable!("four addresses") };
    let mut polite = first.pop().expect("one");
    polite.send(&Frame::new(opcode::CLOSE, "").bytes());
    assert_eq!(polite.next(), Seen::Close(None));
    drop(polite);
    reset(second.pop().expect("one"));
    let half = third.pop().expect("one");
    half.stream.shutdown(Shutdown::Write).expect("it is connected");
    let mut broken = fourth.pop().expect("one");
    broken.send(&Frame::new(opcode::TEXT, "[]").unmasked().bytes());
    assert_eq!(broken.next(), Seen::Close(Some(1002)));
    drop(broken);
    let again: Vec<_> = (2..6).map(|host| relay.reopen(host)).collect();
    drop(half);

    // A refused request holds its place no longer than its connection.
    for _ in 0..2 * CAP {
        let mut bad = relay.connect(0, 7);
        bad.send(b"POST / HTTP/1.1\r\nHost: r\r\n\r\n");
        assert!(bad.head().starts_with("HTTP/1.1 405 "));
        drop(bad);
        drop(relay.reopen(7));
    }
    drop((held, again));
    wait_until("every place to be given back", || relay.addresses() == 0);
    // This machine's own programs are not capped.
    let local: Vec<_> = (0..2 * CAP).map(|_| relay.open(1)).collect();
    assert_eq!(relay.addresses(), 1);
    drop(local);
    assert!(relay.server.stop().success());
}

/// However many an address opens beyond its cap, a few of them are held to be told why.
#[test]
fn who_does_not_stop_calling_is_not_heard() {
    let relay = Relay::start("auto");
    let calls: Vec<_> = (0..100).map(|_| relay.connect(0, 9)).collect();
    wait_until("all to be counted", || relay.refused() + relay.connections() >= 100);
    assert_eq!(relay.connections(), CAP + TOLD);
    relay.open(10);
    drop(calls);
    wait_until("every place to be given back", || relay.addresses() == 0);
}

on_every_backend!(a_proxy_speaks_for_its_clients);

fn a_proxy_speaks_for_its_clients(backend: &str) {
    let relay = Relay::start(backend);
    let mut held = Vec::new();
    let mut ask = |net: u8, host: u8, forwarded: &[&str], expected: &str| {
        let (raw, status) = relay.ask(net, host, forwarded);
        assert_eq!(status, expected, "127.0.{net}.{host} for {forwarded:?}");
        if status == "101" {
            held.push(raw);
        }
    };
    // One client by several proxies, in every spelling; what it invents is not looked at.
    ask(0, 200, &["203.0.113.7"], "101");
    ask(1, 5, &["1.1.1.1, 203.0.113.7:4711"], "101");
    ask(0, 200, &["rubbish, ::ffff:203.0.113.7", "127.0.1.9"], "101");
    ask(0, 200, &["203.0.113.7"], "429");
    ask(1, 6, &["1.2.3.4, 203.0.113.7"], "429");
    // Others have their own.
    ask(0, 200, &["203.0.113.8"], "101");
    // A network of IPv6 is one client.
    ask(0, 200, &["2001:db8::1"], "101");
    ask(0, 200, &["2001:db8::2"], "101");
    ask(0, 200, &["[2001:db8::3]:80"], "101");
    ask(0, 200, &["2001:db8::4"], "429");
    ask(0, 200, &["2001:db8:0:1::4"], "101");
    // Nobody else is believed.
    for n in 0..CAP {
        ask(0, 3, &[&format!("198.51.100.{n}")], "101");
    }
    ask(0, 3, &["198.51.100.77"], "429");
    // A proxy that writes something else is told so.
    ask(0, 200, &["unknown"], "400");
    assert_eq!(relay.addresses(), 5);
    // The proxy's health checks count for itself.
    ask(0, 200, &[], "101");
    assert_eq!(relay.addresses(), 6);
    drop(held);
    wait_until("every place to be given back", || relay.addresses() == 0);
    assert!(relay.server.stop().success());
}

on_every_backend!(a_client_behind_a_proxy_may_say_much_with_its_handshake);

/// Its handshake is acted on when its place is granted, and so is all that came with it, more than one turn
/// acts on.
fn a_client_behind_a_proxy_may_say_much_with_its_handshake(backend: &str) {
    let relay = Relay::start(backend);
    let mut raw = relay.connect(0, 200);
    let close = Frame::new(opcode::TEXT, r#"["CLOSE","x"]"#).bytes();
    let last = Frame::new(opcode::TEXT, r#"["REQ","last",{"limit":0}]"#).bytes();
    let head = request(&["203.0.113.7"]).into_bytes();
    raw.send(&[head, close.repeat(1_000), last].concat());
    assert!(raw.head().starts_with("HTTP/1.1 101 "));
    assert_eq!(raw.next(), Seen::Text(r#"["EOSE","last"]"#.into()));
    drop(raw);
    assert!(relay.server.stop().success());
}

on_every_backend!(aborted_connections_give_their_places_back);

/// Three thousand connections from few addresses end at every stage, in every way, many refused; then no
/// address is counted, and each may open as many as ever.
fn aborted_connections_give_their_places_back(backend: &str) {
    const PER_THREAD: usize = 500;
    let _alone = alone();
    let relay = Relay::start(backend);
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let relay = &relay;
            scope.spawn(move || (0..PER_THREAD).for_each(|n| abort(relay, thread, n)));
        }
    });
    wait_until("every connection to be gone", || relay.connections() == 0);
    wait_until("every place to be given back", || relay.addresses() == 0);
    assert!(relay.refused() > 0, "some of them met the cap");
    let held: Vec<_> = (2..4).flat_map(|host| (0..CAP).map(move |_| host)).collect();
    let held: Vec<_> = held.into_iter().map(|host| relay.open(host)).collect();
    drop(held);
    assert!(relay.server.stop().success());
}

fn abort(relay: &Relay, thread: usize, n: usize) {
    let behind_proxy = n.is_multiple_of(2);
    let client = format!("203.0.113.{}", thread % 2);
    let head = if behind_proxy { request(&[&client]) } else { request(&[]) };
    let host = u8::try_from(2 + thread % 2).expect("small");
    let mut raw = if behind_proxy { relay.connect(1, host) } else { relay.connect(0, host) };
    match n / 2 % 5 {
        0 => {}
        1 => raw.send(&head.as_bytes()[..head.len() / 2]),
        2 => raw.send(head.as_bytes()),
        3 => {
            raw.send(head.as_bytes());
            let _ = raw.head();
        }
        _ => {
            raw.send(head.as_bytes());
            raw.send(&Frame::new(opcode::TEXT, "[\"REQ\",\"s\",{}]").bytes());
            let _ = raw.head();
        }
    }
    match n % 3 {
        0 => reset(raw),
        1 => drop(raw),
        _ => {
            // It may be gone already.
            let _ = raw.stream.shutdown(Shutdown::Write);
        }
    }
}
