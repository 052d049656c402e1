//! permessage-deflate against the real binary: hostile data, and what it costs.

use flate2::{Compress, Compression, FlushCompress};

use crate::support::raw::{Frame, HANDSHAKE, Raw, Seen, opcode};
use crate::support::{Launch, Server};

/// Marks a compressed message.
pub const RSV1: u8 = 0x40;
const MIB: u64 = 1 << 20;

/// A connection that may be sent, and may send, compressed messages.
pub fn open(server: &Server) -> Raw {
    let mut raw = Raw::connect(server.address());
    let head = HANDSHAKE.strip_suffix("\r\n").expect("it ends with an empty line");
    raw.send(format!("{head}Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n").as_bytes());
    let answer = raw.head();
    assert!(answer.contains("\r\nSec-WebSocket-Extensions: permessage-deflate;"), "{answer}");
    raw
}

/// Megabytes of spaces, compressed.
fn spaces(megabytes: usize) -> Vec<u8> {
    let mut stream = Compress::new(Compression::new(6), false);
    let mut out = Vec::with_capacity(2_000 * megabytes + 100);
    for _ in 0..megabytes {
        let piece = vec![b' '; 1_000_000];
        stream.compress_vec(&piece, &mut out, FlushCompress::None).expect("a stream");
    }
    stream.compress_vec(&[], &mut out, FlushCompress::Sync).expect("a stream");
    out.truncate(out.len() - 4);
    out
}

/// The most memory the process ever had, in bytes.
fn peak(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.id())).expect("alive");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib << 10
}

#[test]
fn bombs_end_with_1009_and_leave_memory_as_it_was() {
    for (backend, deflate) in [("auto", "on"), ("epoll", "client-context")] {
        let server = Launch::default().backend(backend).set("deflate", deflate).start();
        let bomb = Frame::new(opcode::TEXT, spaces(100)).bits(RSV1).bytes();
        assert!(bomb.len() < 200_000, "{} bytes", bomb.len());
        let mut healthy = open(&server);
        let before = peak(&server);
        let mut bombers: Vec<_> = (0..50).map(|_| open(&server)).collect();
        bombers.iter_mut().for_each(|raw| raw.send(&bomb));
        for raw in &mut bombers {
            assert_eq!(raw.next(), Seen::Close(Some(1009)));
        }
        // 50 × 100 MB inflated; 50 × 98 KB received, and windows where clients keep their context.
        let grown = peak(&server) - before;
        assert!(grown < 24 * MIB, "{deflate}: {} MiB more", grown / MIB);
        healthy.text(r#"["REQ","s",{"limit":0}]"#);
        assert_eq!(healthy.next(), Seen::Text(r#"["EOSE","s"]"#.into()));
        assert!(server.stop().success());
    }
}

#[test]
fn a_compressed_message_that_comes_slowly_is_nobody_elses_business() {
    let server = Launch::default().set("deflate", "on").start();
    let message = |n: usize| {
        let text = format!(r#"["REQ","s{n}",{{"limit":0}}]"#);
        let mut stream = Compress::new(Compression::new(6), false);
        let mut out = Vec::with_capacity(200);
        stream.compress_vec(text.as_bytes(), &mut out, FlushCompress::Sync).expect("a stream");
        out.truncate(out.len() - 4);
        out
    };
    let mut slow = open(&server);
    let (head, tail) = (message(1)[..5].to_vec(), message(1)[5..].to_vec());
    slow.send(&Frame::new(opcode::TEXT, head).fragment().bits(RSV1).bytes());
    let mut others: Vec<_> = (2..5).map(|n| (n, open(&server))).collect();
    for (n, raw) in &mut others {
        raw.send(&Frame::new(opcode::TEXT, message(*n)).bits(RSV1).bytes());
        assert_eq!(raw.next(), Seen::Text(format!(r#"["EOSE","s{n}"]"#)));
    }
    slow.send(&Frame::new(opcode::CONTINUATION, tail).bytes());
    assert_eq!(slow.next(), Seen::Text(r#"["EOSE","s1"]"#.into()));
    assert!(server.stop().success());
}
