//! Messages that are a thousand times as long as what was sent.

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use flate2::{Compress, Compression, FlushCompress};

use crate::deflate::{RSV1, open};
use crate::support::raw::{Frame, Raw, Seen, opcode};
use crate::support::{Launch, alone};

on_every_backend!(a_flood_of_bombs_lets_others_in);

/// Clients that send one read full of messages of half a megabyte, nearly all of it spaces.
const BOMBERS: usize = 4;
const BOMBS: usize = 110;
/// Connections that are opened and pinged meanwhile, at least, one after the other; a shard that first works
/// off all it has received opens one or two.
const ROUNDS_MIN: usize = 5;

/// Each of the messages is inflated and read, in turns; between these newcomers are served. None wants
/// an answer, so nothing but the turns themselves lets the kernel have its own.
fn a_flood_of_bombs_lets_others_in(backend: &str) {
    let _alone = alone();
    let server = Launch::default().shards(1).backend(backend).set("deflate", "on").start();
    let text = [br#"["CLOSE","none""#.as_slice(), &vec![b' '; 500_000], b"]"].concat();
    let bomb = Frame::new(opcode::TEXT, deflated(&text)).bits(RSV1).bytes();
    let last = Frame::new(opcode::TEXT, r#"["REQ","last",{"limit":0}]"#).bytes();
    let bombs = [bomb.repeat(BOMBS), last].concat();
    assert!(bombs.len() <= 64 << 10, "{} bytes are one read", bombs.len());
    let bombers: Vec<_> = (0..BOMBERS).map(|_| open(&server)).collect();
    let (begin, done) = (&Barrier::new(BOMBERS + 1), &AtomicUsize::new(0));
    let rounds = std::thread::scope(|scope| {
        for mut bomber in bombers {
            let bombs = &bombs;
            scope.spawn(move || {
                begin.wait();
                bomber.send(bombs);
                assert_eq!(bomber.next(), Seen::Text(r#"["EOSE","last"]"#.into()));
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
        begin.wait();
        let mut rounds = 0;
        while done.load(Ordering::Relaxed) < BOMBERS {
            let mut newcomer = Raw::open(server.address());
            newcomer.send(&Frame::new(opcode::PING, "here?").bytes());
            assert_eq!(newcomer.next(), Seen::Pong(b"here?".to_vec()));
            rounds += 1;
        }
        rounds
    });
    eprintln!("{backend}: {rounds} newcomers answered");
    assert!(rounds >= ROUNDS_MIN, "{rounds} newcomers answered during {} bombs", BOMBERS * BOMBS);
    assert!(server.stop().success());
}

fn deflated(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(4_096);
    let mut stream = Compress::new(Compression::new(6), false);
    stream.compress_vec(text, &mut out, FlushCompress::Sync).expect("a stream");
    out.truncate(out.len() - 4);
    out
}
