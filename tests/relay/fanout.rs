//! One publisher, 200 subscribers, 2,000 events, two shards: 400,000 deliveries, none twice, each
//! subscription's in the order they were published.

use std::time::Instant;

use tokio::sync::Barrier;

use crate::support::listeners::{Topic, read_all, runtime};
use crate::support::{Launch, alone};

const SUBSCRIBERS: usize = 200;
const EVENTS: usize = 2_000;
/// Threads that read; each serves its share of the subscribers.
const READERS: usize = 2;

#[test]
fn every_delivery_once_and_in_order() {
    let _alone = alone();
    let server = Launch::default()
        .shards(2)
        .set("limits.live_queue_age_ms_max", 60_000)
        .set("limits.write_stall_ms_max", 60_000)
        .start();
    let topic = Topic::sign("fanout", EVENTS, 0);
    let ready = Barrier::new(SUBSCRIBERS + 1);
    let (address, ready, topic) = (server.address(), &ready, &topic);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|_| scope.spawn(move || read_all(address, SUBSCRIBERS / READERS, topic, ready)))
            .collect();
        let mut publisher = server.connect();
        runtime().block_on(ready.wait());
        let from = Instant::now();
        topic.publish(&mut publisher);
        let published = from.elapsed();
        let delivered: usize =
            readers.into_iter().map(|reader| reader.join().expect("no panic")).sum();
        assert_eq!(delivered, SUBSCRIBERS * EVENTS);
        let elapsed = from.elapsed();
        eprintln!("{delivered} deliveries in {elapsed:?}, published in {published:?}");
    });
    assert!(server.stop().success());
}
