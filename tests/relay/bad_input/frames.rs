//! Frames against RFC 6455.

use super::{Case, Expected, MESSAGE_BYTES_MAX, frames};
use crate::support::raw::Frame;
use crate::support::raw::opcode::{BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT};

const REQ: &str = "[\"REQ\",\"s\",{\"limit\":0}]";

fn protocol_error(name: impl Into<String>, list: &[Frame]) -> Case {
    frames(name, list, Expected::Close(Some(1002)))
}

fn eose() -> Expected {
    Expected::Eose("s".into())
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(headers());
    cases.extend(fragments());
    cases.extend(utf8());
    cases.extend(lengths());
    cases.extend(closes());
    cases
}

fn headers() -> Vec<Case> {
    let mut cases = Vec::new();
    for opcode in (3..8).chain(11..16) {
        cases.push(protocol_error(format!("opcode {opcode}"), &[Frame::new(opcode, "")]));
    }
    for (bit, name) in [(0x40, "first"), (0x20, "second"), (0x10, "third"), (0x70, "every")] {
        let frame = |opcode: u8| Frame::new(opcode, REQ).bits(bit);
        cases.push(protocol_error(format!("{name} reserved bit on text"), &[frame(TEXT)]));
        cases.push(protocol_error(format!("{name} reserved bit on a ping"), &[frame(PING)]));
    }
    for (opcode, name) in [(TEXT, "text"), (PING, "ping"), (CLOSE, "close"), (BINARY, "binary")] {
        let frame = Frame::new(opcode, "").unmasked();
        cases.push(protocol_error(format!("unmasked {name}"), &[frame]));
    }
    let frame = Frame::new(TEXT, REQ).unmasked();
    cases.push(protocol_error("unmasked REQ", &[frame]));
    for (opcode, name) in [(PING, "ping"), (PONG, "pong"), (CLOSE, "close")] {
        let frame = Frame::new(opcode, "").fragment();
        cases.push(protocol_error(format!("fragmented {name}"), &[frame]));
        let frame = Frame::new(opcode, vec![b'a'; 126]);
        cases.push(protocol_error(format!("{name} of 126 bytes"), &[frame]));
    }
    let binary = Frame::new(BINARY, "[]");
    cases.push(frames("binary", &[binary], Expected::Close(Some(1003))));
    let binary = [Frame::new(BINARY, "[").fragment(), Frame::new(CONTINUATION, "]")];
    cases.push(frames("fragmented binary", &binary, Expected::Close(Some(1003))));
    for payload in ["", "p", &"p".repeat(125)] {
        let expected = Expected::Pong(payload.as_bytes().to_vec());
        cases.push(frames(
            format!("ping of {}", payload.len()),
            &[Frame::new(PING, payload)],
            expected,
        ));
    }
    cases.push(frames("pong nobody asked for", &[Frame::new(PONG, "x")], Expected::Nothing));
    cases.push(frames("empty text frame", &[Frame::new(TEXT, "")], Expected::Notice("invalid")));
    cases
}

fn fragments() -> Vec<Case> {
    let start = |text: &str| Frame::new(TEXT, text).fragment();
    let more = |text: &str| Frame::new(CONTINUATION, text).fragment();
    let end = |text: &str| Frame::new(CONTINUATION, text);
    let single: Vec<_> = {
        let mut list: Vec<_> = REQ.chars().map(|c| more(&c.to_string())).collect();
        list[0] = start("[");
        list.push(end(""));
        list
    };
    vec![
        protocol_error("continuation of nothing", &[end("x")]),
        protocol_error("unfinished continuation of nothing", &[more("x")]),
        protocol_error("text inside a message", &[start("["), Frame::new(TEXT, "]")]),
        protocol_error("a message begun inside a message", &[start("["), start("]")]),
        protocol_error("binary inside a message", &[start("["), Frame::new(BINARY, "]")]),
        protocol_error(
            "continuation after the end",
            &[start(""), end("[\"CLOSE\",\"x\"]"), end("")],
        ),
        protocol_error("unmasked fragment", &[start("["), end("]").unmasked()]),
        protocol_error("reserved bit on a fragment", &[start("["), end("]").bits(0x40)]),
        frames("one byte a fragment", &single, eose()),
        frames(
            "a pong between fragments",
            &[start("[\"REQ\","), Frame::new(PONG, ""), end("\"s\",{\"limit\":0}]")],
            eose(),
        ),
        frames("empty fragments", &[start(""), more(""), more(REQ), more(""), end("")], eose()),
    ]
}

fn utf8() -> Vec<Case> {
    let mut cases = Vec::new();
    let bad: [(&str, &[u8]); 12] = [
        ("0xff", b"\xff"),
        ("a lone continuation byte", b"\x80"),
        ("an overlong slash", b"\xc0\xaf"),
        ("an overlong NUL", b"\xc0\x80"),
        ("an overlong three-byte", b"\xe0\x80\xaf"),
        ("an overlong four-byte", b"\xf0\x80\x80\xaf"),
        ("an encoded surrogate", b"\xed\xa0\x80"),
        ("an encoded pair", b"\xed\xa0\xbd\xed\xb8\x80"),
        ("beyond U+10FFFF", b"\xf4\x90\x80\x80"),
        ("five bytes", b"\xf8\x88\x80\x80\x80"),
        ("cut short", b"\xe2\x82"),
        ("latin 1", b"[\"caf\xe9\"]"),
    ];
    for (name, bytes) in bad {
        let expected = Expected::Close(Some(1007));
        cases.push(frames(format!("UTF-8: {name}"), &[Frame::new(TEXT, bytes)], expected));
        let expected = Expected::Close(Some(1007));
        let in_string = [b"[\"EVENT\",{\"content\":\"", bytes, b"\"}]"].concat();
        cases.push(frames(
            format!("UTF-8 in a string: {name}"),
            &[Frame::new(TEXT, in_string)],
            expected,
        ));
    }
    let start = |bytes: &[u8]| Frame::new(TEXT, bytes).fragment();
    let end = |bytes: &[u8]| Frame::new(CONTINUATION, bytes);
    let expected = || Expected::Close(Some(1007));
    cases.push(frames("bad UTF-8 fails before its message ends", &[start(b"\xff")], expected()));
    cases.push(frames(
        "a character broken by fragments",
        &[start(b"\xe2\x82"), end(b"x")],
        expected(),
    ));
    cases.push(frames("a character cut by the end", &[start(b"\xe2"), end(b"\x82")], expected()));
    let whole = [start(b"[\"REQ\",\"\xf0\x9f"), end(b"\x98\x80\",{\"limit\":0}]")];
    let expected = Expected::Eose("\u{1f600}".into());
    cases.push(frames("a character across fragments", &whole, expected));
    cases
}

fn lengths() -> Vec<Case> {
    let claim = |rest: &[u8]| Frame::new(TEXT, "").length(127, rest);
    let too_long = || Expected::Close(Some(1009));
    let half = vec![b' '; MESSAGE_BYTES_MAX / 2 + 1];
    let halves = [Frame::new(TEXT, half.clone()).fragment(), Frame::new(CONTINUATION, half)];
    vec![
        protocol_error("short length in 16 bits", &[Frame::new(TEXT, REQ).length(126, &[0, 24])]),
        protocol_error("short length in 64 bits", &[claim(&24_u64.to_be_bytes())]),
        protocol_error("zero in 16 bits", &[Frame::new(TEXT, "").length(126, &[0, 0])]),
        protocol_error("16-bit length in 64 bits", &[claim(&65_535_u64.to_be_bytes())]),
        protocol_error("a length of 2^63", &[claim(&(1_u64 << 63).to_be_bytes())]),
        protocol_error("a length of 2^64-1", &[claim(&u64::MAX.to_be_bytes())]),
        frames("a claim of 2^63-1 bytes", &[claim(&(u64::MAX >> 1).to_be_bytes())], too_long()),
        frames("a claim of a gigabyte", &[claim(&(1_u64 << 30).to_be_bytes())], too_long()),
        frames("fragments that add up", &halves, too_long()),
        frames(
            "a ping with a claim of 2^16",
            &[Frame::new(PING, "").length(127, &65_536_u64.to_be_bytes())],
            Expected::Close(Some(1002)),
        ),
    ]
}

fn closes() -> Vec<Case> {
    let close =
        |code: u16, reason: &[u8]| Frame::new(CLOSE, [&code.to_be_bytes()[..], reason].concat());
    let mut cases = vec![
        protocol_error("a close of one byte", &[Frame::new(CLOSE, [3])]),
        frames("a close without a code", &[Frame::new(CLOSE, "")], Expected::Close(None)),
        frames("a close with bad UTF-8", &[close(1000, b"\xff")], Expected::Close(Some(1007))),
        frames(
            "a close inside a message",
            &[Frame::new(TEXT, "[").fragment(), close(1000, b"")],
            Expected::Close(Some(1000)),
        ),
        frames(
            "a REQ after the close",
            &[close(1000, b"bye"), Frame::new(TEXT, REQ)],
            Expected::Close(Some(1000)),
        ),
    ];
    for code in [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535] {
        cases.push(protocol_error(format!("close code {code}"), &[close(code, b"")]));
    }
    for code in [1000, 1001, 1002, 1003, 1007, 1011, 3000, 3999, 4000, 4999] {
        let expected = Expected::Close(Some(code));
        cases.push(frames(
            format!("close code {code} is echoed"),
            &[close(code, b"why")],
            expected,
        ));
    }
    cases
}
