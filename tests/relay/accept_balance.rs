//! Connections per shard stay within 20 % of each other, however they arrive.

use std::net::{SocketAddr, TcpStream};

use socket2::{Domain, Socket, Type};

use crate::support::raw::Raw;
use crate::support::{Launch, Server, raise_file_limit, wait_until};

const SHARDS: usize = 8;
const CONNECTIONS: usize = 1_000;
/// Those that come one by one.
const FIRST: usize = 240;

/// 240 connections come one by one, so that each one's shard is known; those of the first four shards
/// leave; then 880 come in bursts. Left to the kernel's hash, four shards would now have 30 more than the
/// others.
#[test]
fn after_half_of_the_shards_emptied() {
    let (server, admin) = start("auto");
    let mut by_shard: [Vec<TcpStream>; SHARDS] = Default::default();
    let mut before = vec![0; SHARDS];
    for n in 0..FIRST {
        let stream = connect_from(&server, n);
        wait_until("one connection more", || total(admin) == n as u64 + 1);
        let counts = per_shard(admin);
        let shard = (0..SHARDS).find(|shard| counts[*shard] > before[*shard]);
        by_shard[shard.expect("one shard has more")].push(stream);
        before = counts;
    }
    by_shard[..SHARDS / 2].iter_mut().for_each(Vec::clear);
    let mut connections: Vec<_> = by_shard.into_iter().flatten().collect();
    wait_until("half to be gone", || total(admin) == connections.len() as u64);
    let left = per_shard(admin);
    assert!(left[..SHARDS / 2].iter().all(|count| *count == 0), "{left:?}");
    let missing = CONNECTIONS - connections.len();
    connections.extend(bursts(&server, FIRST..FIRST + missing));
    balanced(admin, connections);
}

#[test]
fn in_bursts_over_epoll() {
    let (server, admin) = start("epoll");
    balanced(admin, bursts(&server, 0..CONNECTIONS));
}

#[cfg(feature = "glommio")]
#[test]
fn in_bursts_over_glommio() {
    let (server, admin) = start("glommio");
    balanced(admin, bursts(&server, 0..CONNECTIONS));
}

/// Eight shards on two cores.
fn start(backend: &str) -> (Server, SocketAddr) {
    raise_file_limit();
    let admin = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let launch = Launch::default().shards(SHARDS).backend(backend).set("admin.listen", admin);
    (launch.set("limits.handshake_ms_max", 300_000).start(), admin)
}

fn bursts(server: &Server, numbers: std::ops::Range<usize>) -> Vec<TcpStream> {
    let connect = |n: usize| {
        if n.is_multiple_of(100) {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        connect_from(server, n)
    };
    numbers.map(connect).collect()
}

fn balanced(admin: SocketAddr, connections: Vec<TcpStream>) {
    wait_until("a thousand connections", || total(admin) == CONNECTIONS as u64);
    let counts = per_shard(admin);
    eprintln!("connections per shard {counts:?}");
    let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    assert!(most * 10 <= least * 12, "not within 20 %: {counts:?}");
    // All of them are served, wherever they were handed to.
    for stream in connections {
        let mut client = crate::support::Client::over(stream);
        client.nothing_else();
    }
}

fn total(admin: SocketAddr) -> u64 {
    per_shard(admin).iter().sum()
}

/// A connection from one of six ports of one of 250 addresses.
fn connect_from(server: &Server, n: usize) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_reuse_address(true).expect("a socket option");
    let host = u8::try_from(2 + n / 6).expect("250 addresses");
    let port = 61_000 + u16::try_from(n % 6).expect("six ports") * 256;
    let source = SocketAddr::from(([127, 0, 0, host], port));
    socket.bind(&source.into()).expect("a free source port");
    socket.connect(&server.address().into()).expect("the relay listens");
    socket.into()
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").port()
}

/// The gauge of open connections, by shard, from the metrics.
fn per_shard(admin: SocketAddr) -> Vec<u64> {
    let mut raw = Raw::connect(admin);
    raw.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let text = String::from_utf8(raw.rest()).expect("text");
    let gauge = text.lines().filter(|line| line.starts_with("relay_connections{"));
    let counts: Vec<_> = gauge
        .map(|line| line.rsplit(' ').next().expect("a value").parse().expect("a number"))
        .collect();
    assert_eq!(counts.len(), SHARDS, "a gauge of connections for each shard:\n{text}");
    counts
}
