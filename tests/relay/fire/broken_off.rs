//! Connections that break off, in every way and at every stage.

use std::net::Shutdown;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::support::raw::{Frame, HANDSHAKE, Raw, opcode};
use crate::support::{Author, Draft, Filter, Launch, Server, alone, client, long};
use crate::support::{now, raise_file_limit, wait_until};

on_every_backend!(aborted_connections_leave_nothing);
on_every_backend!(silent_connections_are_let_go_while_others_come);

/// Threads that connect, subscribe and break off; each has one connection at a time.
const CLIENTS: usize = 8;
/// Events published meanwhile, at least: enough for some to meet a subscription.
const PUBLISHED_MIN: usize = 100;
/// However slow the machine, the attack ends here, and has failed.
const ATTACK_MAX: Duration = Duration::from_mins(5);

/// Connections end badly by the thousand, while events are published to them; no descriptor, connection,
/// subscription, index entry, query or queued event is left, and the relay works as before.
fn aborted_connections_leave_nothing(backend: &str) {
    let cycles = if long() { 100_000 } else { 2_000 };
    let _alone = alone();
    raise_file_limit();
    let server = Launch::default().shards(2).backend(backend).counted().start();
    let mut publisher = server.connect();
    let author = Author::new(1);
    let big = "x".repeat(50_000);
    for n in 0..40 {
        // Older than the last one below, however fast this goes.
        publisher.publish_ok(&author.note(now() - 10 - n, &format!("{n} {big}")));
    }
    // One of each first: what the relay opens once and keeps is open now.
    (0..WAYS).for_each(|way| abort(&server, way));
    wait_until("these to be gone", || server.counts().get("connections") == 1);
    let before = server.descriptors();
    let (relay, next, from) = (&server, &AtomicUsize::new(0), Instant::now());
    let published = &AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(move || {
                    while from.elapsed() < ATTACK_MAX {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= cycles && published.load(Ordering::Relaxed) >= PUBLISHED_MIN {
                            return;
                        }
                        abort(relay, n);
                    }
                })
            })
            .collect();
        while !clients.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            let draft = Draft::new(1, now() - 5)
                .tag(["t", "x"])
                .content(published.load(Ordering::Relaxed).to_string());
            publisher.publish_ok(&draft.sign(&author));
            published.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let done = cycles.min(next.load(Ordering::Relaxed));
    eprintln!("{backend}: {done} connections broken off in {:?}", from.elapsed());
    assert_eq!(done, cycles, "within {ATTACK_MAX:?}");
    wait_until("every descriptor to be closed", || server.descriptors() <= before);
    wait_until("every connection to be gone", || server.counts().get("connections") == 1);
    wait_until("every place to go back", || server.counts().get("client_addresses") == 1);
    let counts = server.conserved();
    for gauge in ["subscriptions", "index_filters", "index_keys", "scan_queue"] {
        assert_eq!(counts.get(gauge), 0, "{gauge}");
    }
    for queue in ["verify", "store", "scans"] {
        assert_eq!(counts.of("queue_depth", queue), 0, "{queue}");
    }
    assert!(counts.get("reqs") > cycles as u64 / 3, "{} subscriptions", counts.get("reqs"));
    assert!(counts.get("live_matched") > 0, "some were sent live events");
    let event = author.note(now(), "still here");
    publisher.publish_ok(&event);
    assert_eq!(publisher.query(&[Filter::default().limit(1)]), [event]);
    assert!(server.stop().success());
}

/// Clients that say nothing and never go, while as many come after them: their deadlines and the others'
/// arrivals fall into the same turns of the shard. Each of their sockets is closed all the same.
fn silent_connections_are_let_go_while_others_come(backend: &str) {
    const ROUNDS: u8 = 40;
    const ARRIVALS: usize = 25;
    raise_file_limit();
    let server = Launch::default()
        .shards(1)
        .backend(backend)
        .counted()
        .set("limits.handshake_ms_max", 300)
        .set("limits.drain_ms_max", 300)
        .start();
    let before = server.descriptors();
    let mut silent = Vec::new();
    for round in 0..ROUNDS {
        for _ in 0..ARRIVALS {
            silent.push(Raw::narrow(server.address(), 2 + round, 64 << 10));
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    wait_until("every descriptor to be closed", || server.descriptors() <= before);
    wait_until("every place to go back", || server.counts().get("client_addresses") == 0);
    drop(silent);
    assert!(server.stop().success());
}

/// Ways to break off; the first of them before the handshake is done.
const WAYS: usize = 12;

fn abort(server: &Server, n: usize) {
    let host = u8::try_from(2 + n % 200).expect("below 256");
    let mut raw = Raw::narrow(server.address(), host, 64 << 10);
    let way = n % WAYS;
    let handshake = HANDSHAKE.as_bytes();
    let filter = match n / WAYS % 5 {
        0 => Filter::default(),
        1 => Filter::default().kinds([1, 2, 3]),
        2 => Filter::default().authors((1..4).map(|n| Author::new(n).hex())),
        3 => Filter::default().tag('t', ["x", "y"]),
        _ => Filter::default().ids(["00".repeat(32).as_str(), "11".repeat(32).as_str()]),
    };
    let request = Frame::new(opcode::TEXT, client::req("s", &[filter])).bytes();
    match way {
        // Before a byte, in the middle of the request, right after it, with a frame behind it.
        0 | 1 => {}
        2 => raw.send(&handshake[..1]),
        3 => raw.send(&handshake[..60]),
        4 => raw.send(handshake),
        5 => raw.send(&[handshake, &request].concat()),
        _ => {
            raw.upgrade();
            match way {
                // In the middle of a frame, of a message, of what the relay sends, after a close.
                6 => raw.send(&request[..request.len() - 3]),
                7 => raw.send(&Frame::new(opcode::TEXT, "[").fragment().bytes()),
                8 | 9 => {
                    raw.send(&request);
                    let _ = raw.next();
                }
                10 => raw.send(&[request, Frame::new(opcode::CLOSE, "").bytes()].concat()),
                // It sends no more, and reads on for a little.
                _ => {
                    raw.send(&request);
                    let _ = raw.next();
                    let _ = raw.stream.shutdown(Shutdown::Write);
                    let _ = raw.next();
                }
            }
        }
    }
    // A plain close, or one that becomes a reset.
    if !matches!(way, 1 | 9 | 11) {
        SockRef::from(&raw.stream).set_linger(Some(Duration::ZERO)).expect("a socket option");
    }
}
