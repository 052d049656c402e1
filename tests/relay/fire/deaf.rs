//! Readers that never read, and readers that stop for a while.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Barrier;

use super::{KERNEL_BYTES_MAX, subscribe};
use crate::support::counts::queues;
use crate::support::listeners::{Topic, read_all, runtime};
use crate::support::raw::{Raw, Seen};
use crate::support::{Client, Filter, Launch, Server, alone, client, long, raise_file_limit};
use crate::support::{now, wait_until};

on_every_backend!(readers_that_never_read_cost_the_others_nothing);
on_every_backend!(what_a_crowd_took_is_given_back);
on_every_backend!(a_pause_of_two_seconds_and_a_half_loses_nothing_and_one_of_four_is_told);

/// The least a kernel gives.
const RECEIVE_BYTES: usize = 2_304;
/// Bytes of an event's content.
const CONTENT_BYTES: usize = 600;
/// What the relay holds of its own for one deaf reader of such events: a batch that the kernel does not
/// take, a hundred frames behind it, and references to the events behind those.
const USER_BYTES_MAX: usize = 384 << 10;
/// What the allocator may keep of the memory of an attack once it is over.
const KEPT_BYTES_MAX: usize = 24 << 20;

/// What the relay holds at most while an attack lasts.
#[derive(Debug, Default)]
struct Peak {
    memory: usize,
    kernel: usize,
    kernel_of_one: usize,
}

/// Healthy subscribers get everything, once and in order, beside others whose windows are shut; these cost
/// a bounded amount of memory, are ended and counted, and leave nothing behind.
fn readers_that_never_read_cost_the_others_nothing(backend: &str) {
    let (deaf, healthy, events) = if long() { (1_000, 100, 10_000) } else { (100, 20, 1_500) };
    let _alone = alone();
    raise_file_limit();
    let server = Launch::default().shards(2).backend(backend).counted().start();
    let mut publisher = server.connect();
    // The same without them: what is allocated once is there now.
    let before = Topic::sign("before", events, CONTENT_BYTES);
    deliver(&server, &mut publisher, &before, healthy);
    server.conserved();
    wait_until("the healthy ones to leave", || server.counts().get("connections") == 1);
    let (files, memory) = (server.descriptors(), server.memory_bytes());

    let topic = Topic::sign("during", events, CONTENT_BYTES);
    let readers: Vec<_> =
        (0..deaf).map(|n| deaf_reader(server.address(), n, &topic.req("d"))).collect();
    let peak = watched(&server, || {
        deliver(&server, &mut publisher, &topic, healthy);
        wait_until("each of them to be told", || {
            server.counts().of("subscriptions_ended", "slow_consumer") == deaf as u64
        });
    });
    let (grown, shared) = (peak.memory.saturating_sub(memory), events * (CONTENT_BYTES + 1_400));
    eprintln!(
        "{backend}: {deaf} deaf readers: {} KiB of memory and {} KiB of unacknowledged bytes each",
        (grown / deaf) >> 10,
        (peak.kernel / deaf) >> 10
    );
    assert!(grown <= deaf * USER_BYTES_MAX + shared, "{grown} bytes for {deaf} readers");
    assert!(peak.kernel_of_one <= KERNEL_BYTES_MAX, "{peak:?}");
    let counts = server.conserved();
    let (matched, to_healthy) = (counts.get("live_matched"), 2 * (events * healthy) as u64);
    // A deaf one that was told is matched no more.
    assert!(matched > to_healthy && matched <= to_healthy + (events * deaf) as u64, "{matched}");
    assert!(counts.of("drops", "abandoned") > 0);

    drop(readers);
    wait_until("the deaf ones to be gone", || server.counts().get("connections") == 1);
    wait_until("descriptors to be as before", || server.descriptors() <= files);
    assert_eq!(server.counts().get("subscriptions"), 0);
    wait_until("memory to be as before", || server.memory_bytes() <= memory + KEPT_BYTES_MAX);
    publisher.nothing_else();
    assert!(server.stop().success());
}

/// Publishes a topic to so many subscribers that read it, and waits until each has all of it.
fn deliver(server: &Server, publisher: &mut Client, topic: &Topic, healthy: usize) {
    let (ready, address) = (&Barrier::new(healthy + 1), server.address());
    std::thread::scope(|scope| {
        let readers = scope.spawn(move || read_all(address, healthy, topic, ready));
        runtime().block_on(ready.wait());
        topic.publish(publisher);
        assert_eq!(readers.join().expect("no panic"), healthy * topic.len());
    });
}

fn deaf_reader(address: SocketAddr, n: usize, request: &str) -> Raw {
    let host = u8::try_from(2 + n % 200).expect("below 256");
    let mut raw = Raw::narrow(address, host, RECEIVE_BYTES);
    raw.upgrade();
    subscribe(&mut raw, request);
    raw
}

/// The most that is held while `attack` runs.
fn watched(server: &Server, attack: impl FnOnce()) -> Peak {
    let over = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(move || {
            let mut peak = Peak::default();
            while !over.load(Ordering::Relaxed) {
                let kernel: Vec<_> =
                    queues(server.address(), false).iter().map(|q| q.sent).collect();
                peak.memory = peak.memory.max(server.memory_bytes());
                peak.kernel = peak.kernel.max(kernel.iter().sum());
                peak.kernel_of_one = peak.kernel_of_one.max(kernel.into_iter().max().unwrap_or(0));
                std::thread::sleep(Duration::from_millis(50));
            }
            peak
        });
        // Also when it panics: the scope waits for the watch.
        struct Over<'a>(&'a AtomicBool);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let over = Over(over);
        attack();
        drop(over);
        watch.join().expect("no panic")
    })
}

/// A crowd comes, reads nothing and goes. Most of what it took is given back although nothing more is
/// asked of the relay: what a thread has freed stays with it otherwise, until it allocates again.
fn what_a_crowd_took_is_given_back(backend: &str) {
    const CROWD: usize = 1_000;
    let _alone = alone();
    raise_file_limit();
    let server = Launch::default().shards(2).backend(backend).counted().start();
    let mut publisher = server.connect();
    deliver(&server, &mut publisher, &Topic::sign("before", 100, CONTENT_BYTES), 10);
    wait_until("the healthy ones to leave", || server.counts().get("connections") == 1);
    let before = server.memory_bytes();
    let topic = Topic::sign("during", 500, CONTENT_BYTES);
    let crowd: Vec<_> =
        (0..CROWD).map(|n| deaf_reader(server.address(), n, &topic.req("d"))).collect();
    topic.publish(&mut publisher);
    let taken = server.memory_bytes() - before;
    drop(crowd);
    wait_until("the crowd to be gone", || server.counts().get("connections") == 1);
    let kept = || server.memory_bytes().saturating_sub(before);
    wait_until("memory to be given back", || kept() <= taken / 4);
    eprintln!("{backend}: {} KiB taken, {} KiB kept", taken >> 10, kept() >> 10);
    publisher.nothing_else();
    assert!(server.stop().success());
}

/// Two readers stop reading while three megabytes come for each. The one that goes on after 2.5 s gets all
/// of it; the other, after 4 s, gets the beginning and then `CLOSED`, and its connection works.
fn a_pause_of_two_seconds_and_a_half_loses_nothing_and_one_of_four_is_told(backend: &str) {
    const EVENTS: usize = 150;
    let _alone = alone();
    let server = Launch::default().shards(1).backend(backend).counted().start();
    let topic = Topic::sign("pause", EVENTS, 20_000);
    let mut readers = [2, 3].map(|host| {
        let mut raw = Raw::narrow(server.address(), host, 64 << 10);
        raw.upgrade();
        subscribe(&mut raw, &topic.req("s"));
        raw
    });
    let mut publisher = server.connect();
    let from = Instant::now();
    topic.publish(&mut publisher);
    // On a busy machine that takes a while.
    let published = Instant::now();
    let [early, late] = &mut readers;
    let rest = |from: Instant, seconds: f64| {
        Duration::from_secs_f64(seconds).saturating_sub(from.elapsed())
    };
    std::thread::sleep(rest(from, 2.5));
    for expected in 0..EVENTS {
        let Seen::Text(text) = early.next() else { panic!("event {expected} is missing") };
        assert!(text.starts_with("[\"EVENT\",\"s\""), "event {expected}: {text:.100}");
        assert_eq!(Topic::number(text.as_bytes()), expected);
    }
    std::thread::sleep(rest(published, 4.));
    let mut got = 0;
    loop {
        let Seen::Text(text) = late.next() else { panic!("neither event nor CLOSED") };
        if text == r#"["CLOSED","s","error: slow consumer"]"# {
            break;
        }
        assert_eq!(Topic::number(text.as_bytes()), got, "{text:.100}");
        got += 1;
    }
    assert!((1..EVENTS).contains(&got), "{got} events and then CLOSED");
    for (n, raw) in readers.iter_mut().enumerate() {
        raw.text(&client::req("then", &[Filter::nothing()]));
        assert_eq!(raw.next(), Seen::Text(r#"["EOSE","then"]"#.into()), "reader {n} at {}", now());
    }
    let counts = server.conserved();
    assert_eq!(counts.get("live_matched"), 2 * EVENTS as u64);
    assert_eq!(counts.of("subscriptions_ended", "slow_consumer"), 1);
    // What was put into outboxes was received, or was purged when its subscription ended.
    let received = (EVENTS + got) as u64;
    assert_eq!(counts.delivered(), received + counts.of("drops", "purged"));
    assert_eq!(counts.of("drops", "abandoned"), 2 * EVENTS as u64 - counts.delivered());
}
