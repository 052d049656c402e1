//! Any bytes as frames: cut anywhere, the same items come out. The first two bytes choose the cuts.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rheostr::wire::websocket::{Decoder, Item};

const MESSAGE_BYTES_MAX: usize = 300;

#[derive(Debug, PartialEq)]
enum Seen {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong,
    Close(Option<u16>),
}

/// The items of `bytes`, fed in pieces of these sizes in turn, and whether an error ended them.
fn decode(bytes: &[u8], sizes: &[usize]) -> (Vec<Seen>, bool) {
    let mut decoder = Decoder::new(MESSAGE_BYTES_MAX);
    let mut seen = Vec::new();
    let mut rest = bytes;
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, after) = rest.split_at((*size).clamp(1, rest.len()));
        rest = after;
        let mut piece = piece.to_vec();
        let mut input = &mut piece[..];
        loop {
            seen.push(match decoder.next(&mut input) {
                Ok(Some(Item::Text(text))) => {
                    assert!(text.len() <= MESSAGE_BYTES_MAX);
                    Seen::Text(String::from_utf8(text.to_vec()).expect("text is UTF-8"))
                }
                Ok(Some(Item::Binary(bytes))) => Seen::Binary(bytes.to_vec()),
                Ok(Some(Item::Ping(payload))) => Seen::Ping(payload.to_vec()),
                Ok(Some(Item::Pong)) => Seen::Pong,
                Ok(Some(Item::Close(code))) => Seen::Close(code),
                Ok(None) => break,
                Err(_) => return (seen, true),
            });
        }
        assert!(decoder.held_bytes() <= 2 * MESSAGE_BYTES_MAX + 300, "bounded");
    }
    (seen, false)
}

fuzz_target!(|bytes: &[u8]| {
    let [first, second, wire @ ..] = bytes else { return };
    let whole = decode(wire, &[usize::MAX]);
    let pieces = decode(wire, &[usize::from(*first), usize::from(*second)]);
    // Text that cannot become UTF-8 fails before its frame ends, so a cut may find it earlier; what
    // came whole before is the same, and an error is an error.
    assert_eq!(pieces.0, whole.0);
    assert!(pieces.1 || !whole.1);
    assert_eq!(decode(wire, &[1]).0, whole.0);
});
