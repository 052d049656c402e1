//! Any bytes as frames: cut anywhere, the same items come out, compressed messages among them. The first
//! two bytes choose the cuts; the second also chooses what is agreed on about compression.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rheostr::wire::deflate::Inflater;
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

/// What the handshake settled about compression.
#[derive(Clone, Copy)]
enum Agreed {
    Nothing,
    Alone,
    Context,
}

/// The items of `bytes`, fed in pieces of these sizes in turn, and whether an error ended them.
fn decode(bytes: &[u8], sizes: &[usize], agreed: Agreed) -> (Vec<Seen>, bool) {
    let (mut decoder, mut inflater) = (Decoder::new(MESSAGE_BYTES_MAX), Inflater::default());
    match agreed {
        Agreed::Nothing => {}
        Agreed::Alone => decoder.take_deflated(false),
        Agreed::Context => decoder.take_deflated(true),
    }
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
            seen.push(match decoder.next(&mut input, &mut inflater) {
                Ok(Some(Item::Text(text))) => {
                    assert!(text.len() <= MESSAGE_BYTES_MAX);
                    Seen::Text(String::from_utf8(text.to_vec()).expect("text is UTF-8"))
                }
                Ok(Some(Item::Binary(bytes))) => {
                    assert!(bytes.len() <= MESSAGE_BYTES_MAX);
                    Seen::Binary(bytes.to_vec())
                }
                Ok(Some(Item::Ping(payload))) => Seen::Ping(payload.to_vec()),
                Ok(Some(Item::Pong)) => Seen::Pong,
                Ok(Some(Item::Close(code))) => Seen::Close(code),
                Ok(None) => break,
                Err(_) => return (seen, true),
            });
        }
        assert!(decoder.held_bytes() <= 2 * MESSAGE_BYTES_MAX + 300, "bounded");
        assert!(inflater.held_bytes() <= MESSAGE_BYTES_MAX + 1, "bounded");
    }
    (seen, false)
}

fuzz_target!(|bytes: &[u8]| {
    let [first, second, wire @ ..] = bytes else { return };
    let agreed = [Agreed::Nothing, Agreed::Alone, Agreed::Context][usize::from(*second % 3)];
    let whole = decode(wire, &[usize::MAX], agreed);
    let pieces = decode(wire, &[usize::from(*first), usize::from(*second)], agreed);
    // Text that cannot become UTF-8 fails before its frame ends, so a cut may find it earlier; what
    // came whole before is the same, and an error is an error.
    assert_eq!(pieces.0, whole.0);
    assert!(pieces.1 || !whole.1);
    assert_eq!(decode(wire, &[1], agreed).0, whole.0);
});
