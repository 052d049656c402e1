//! A client that sends without end what needs no answer.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::support::raw::{Frame, Raw, opcode};
use crate::support::{Answer, Launch};

on_every_backend!(a_flood_that_needs_no_answer_does_not_hold_up_the_others);

/// Nothing of it takes a reply slot or waits for a signature, so credit never stops its reader; another
/// client's pings are answered all the same, long before the flood is over.
fn a_flood_that_needs_no_answer_does_not_hold_up_the_others(backend: &str) {
    const FLOOD_BYTES: usize = 400 << 20;
    const ROUNDS: usize = 5;
    let server = Launch::default().shards(1).backend(backend).start();
    let mut other = server.connect();
    let mut flood = Raw::open(server.address());
    let frames = Frame::new(opcode::TEXT, r#"["CLOSE","x"]"#).bytes().repeat(10_000);
    let (sent, stop) = (&AtomicUsize::new(0), &AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while sent.load(Ordering::Relaxed) < FLOOD_BYTES && !stop.load(Ordering::Relaxed) {
                flood.send(&frames);
                sent.fetch_add(frames.len(), Ordering::Relaxed);
            }
        });
        while sent.load(Ordering::Relaxed) < 10 << 20 {
            std::thread::yield_now();
        }
        for _ in 0..ROUNDS {
            other.ping(b"are you there");
            assert_eq!(other.next(), Answer::Pong(b"are you there".to_vec()));
        }
        let meanwhile = sent.load(Ordering::Relaxed);
        stop.store(true, Ordering::Relaxed);
        eprintln!("{backend}: {ROUNDS} pings while {} MB came from another", meanwhile >> 20);
        assert!(meanwhile < FLOOD_BYTES, "they waited for the whole flood");
    });
    assert!(server.stop().success());
}
