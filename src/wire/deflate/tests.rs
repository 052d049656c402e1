//! The coder against RFC 7692's examples, and against `flate2` used as plainly as it can be.

use proptest::prelude::*;

use super::super::batch::Batch;
use super::super::frame::{DEFLATED_BIT, Opcode, unmask, write_header};
use super::super::websocket::{Decoder, Item};
use super::*;

const MAX: usize = 100_000;

/// A client's compressor: its stream lives as long as its context does.
struct Client {
    stream: Compress,
    keeps_context: bool,
}

impl Client {
    fn new(bits: u8, level: u32, keeps_context: bool) -> Self {
        let level = Compression::new(level);
        Self { stream: Compress::new_with_window_bits(level, false, bits), keeps_context }
    }

    fn deflate(&mut self, payload: &[u8]) -> Vec<u8> {
        if !self.keeps_context {
            self.stream.reset();
        }
        let mut out = Vec::with_capacity(2 * payload.len() + 100);
        self.stream.compress_vec(payload, &mut out, FlushCompress::Sync).unwrap();
        // Nothing comes of flushing nothing twice.
        out.truncate(out.len().saturating_sub(FLUSH_TAIL.len()));
        out
    }
}

/// What a client makes of the payload of a compressed message. It takes the text out in small pieces and
/// so has its window alone to refer to.
fn inflate(payload: &[u8], bits: u8) -> Vec<u8> {
    let mut stream = Decompress::new_with_window_bits(false, bits);
    let whole = [payload, &FLUSH_TAIL].concat();
    let mut out = Vec::new();
    loop {
        let mut piece = Vec::with_capacity(50);
        let at = usize::try_from(stream.total_in()).unwrap();
        stream.decompress_vec(&whole[at..], &mut piece, FlushDecompress::Sync).unwrap();
        if piece.is_empty() {
            assert_eq!(at, whole.len());
            return out;
        }
        out.extend(piece);
    }
}

fn window(bits: u8) -> WindowBits {
    WindowBits::new(bits).unwrap()
}

fn deflate(bytes: &[u8]) -> Vec<u8> {
    Client::new(15, 6, false).deflate(bytes)
}

/// One masked frame, whose first byte is `first` (FIN, RSV, opcode).
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write_header(&mut out, Opcode::Text, payload.len());
    out[0] = first;
    out[1] |= 0x80;
    let mask = [9, 8, 7, 6];
    out.extend_from_slice(&mask);
    let from = out.len();
    out.extend_from_slice(payload);
    unmask(&mut out[from..], mask, 0);
    out
}

const FIN: u8 = 0x80;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const PING: u8 = 9;

/// The messages in `wire`, read in pieces of `step` bytes; pings count as messages.
fn decode(
    wire: &[u8],
    step: usize,
    context: bool,
    max: usize,
) -> (Vec<Vec<u8>>, Option<DecodeError>) {
    let (mut decoder, mut inflater) = (Decoder::new(max), Inflater::default());
    decoder.take_deflated(context);
    let mut seen = Vec::new();
    for piece in wire.chunks(step) {
        let mut piece = piece.to_vec();
        let mut input = &mut piece[..];
        loop {
            match decoder.next(&mut input, &mut inflater) {
                Ok(Some(Item::Text(bytes) | Item::Binary(bytes))) => seen.push(bytes.to_vec()),
                Ok(Some(Item::Ping(bytes))) => seen.push(bytes.to_vec()),
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => return (seen, Some(error)),
            }
        }
        assert!(decoder.held_bytes() <= 2 * max + 300 && inflater.held_bytes() <= max + 1);
    }
    (seen, None)
}

fn unharmed(wire: &[u8], context: bool, expected: &[&[u8]]) {
    for step in 1..=wire.len() {
        let (seen, error) = decode(wire, step, context, MAX);
        assert_eq!((seen, error), (expected.iter().map(|m| m.to_vec()).collect(), None), "{step}");
    }
}

fn fails(frames: &[Vec<u8>], error: DecodeError) {
    for step in [1, 7, 1_000_000] {
        assert_eq!(decode(&frames.concat(), step, false, 1_000).1, Some(error));
    }
}

#[test]
fn the_examples_of_rfc_7692() {
    // §7.2.3.1: in one frame; in two, with a ping between.
    let hello = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
    unharmed(&frame(0xc1, &hello), false, &[b"Hello"]);
    assert_eq!(frame(0xc1, &hello)[..2], [0xc1, 0x87]);
    let halves = [frame(0x41, &hello[..3]), frame(0x89, b"?"), frame(0x80, &hello[3..])];
    unharmed(&halves.concat(), false, &[b"?", b"Hello"]);
    // §7.2.3.2: the second message refers to the first, where it may.
    let again = [0xf2, 0x00, 0x11, 0x00, 0x00];
    let two = [frame(0xc1, &hello), frame(0xc1, &again)].concat();
    unharmed(&two, true, &[b"Hello", b"Hello"]);
    assert_eq!(decode(&two, 100, false, MAX).1, Some(DecodeError::BadDeflate));
    unharmed(&[frame(0xc1, &hello), frame(0xc1, &hello)].concat(), true, &[b"Hello", b"Hello"]);
    // §7.2.3.3: a stored block.
    let stored = [0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00];
    unharmed(&frame(0xc1, &stored), false, &[b"Hello"]);
    assert_eq!(stored_block(5), stored[..5]);
    // §7.2.3.4: a final block.
    let last = [0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00];
    unharmed(&[frame(0xc1, &last), frame(0xc1, &hello)].concat(), true, &[b"Hello", b"Hello"]);
    // §7.2.3.5: two blocks.
    let blocks = [0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00];
    unharmed(&frame(0xc1, &blocks), false, &[b"Hello"]);
    // §7.2.3.6: the empty message; and as some clients send it.
    unharmed(&frame(0xc1, &[0x00]), true, &[b""]);
    let empty = [frame(0xc1, &hello), frame(0xc1, &[]), frame(0xc1, &again)].concat();
    unharmed(&empty, true, &[b"Hello", b"", b"Hello"]);
}

#[test]
fn rsv1_belongs_to_the_first_frame_of_a_data_message_after_an_agreement() {
    let reserved = DecodeError::Frame(super::super::frame::FrameError::ReservedBit);
    let hello = deflate(b"Hello");
    let (mut decoder, mut inflater) = (Decoder::new(MAX), Inflater::default());
    let mut wire = frame(0xc1, &hello);
    let error = decoder.next(&mut &mut wire[..], &mut inflater);
    assert_eq!(error, Err(reserved), "nothing was agreed on");
    fails(&[frame(0x41, &hello[..3]), frame(0xc0, &hello[3..])], reserved);
    fails(&[frame(0x01, b"He"), frame(0xc0, b"llo")], reserved);
    fails(&[frame(FIN | DEFLATED_BIT | PING, b"")], reserved);
    fails(&[frame(FIN | 0x20 | TEXT, &hello)], reserved);
    // A message that is not compressed may come at any time.
    let mixed = [frame(FIN | TEXT, b"plain"), frame(0xc1, &hello), frame(FIN | BINARY, b"\xff")];
    unharmed(&mixed.concat(), false, &[b"plain", b"Hello", b"\xff"]);
}

#[test]
fn what_does_not_inflate_or_is_no_text_has_its_code() {
    let cases: [(u8, Vec<u8>, DecodeError, u16); 6] = [
        (TEXT, vec![0x07], DecodeError::BadDeflate, 1007),
        (TEXT, vec![0x00, 1, 2, 3, 4, 5], DecodeError::BadDeflate, 1007),
        (BINARY, vec![0xf2, 0x00, 0x11, 0x00, 0x00], DecodeError::BadDeflate, 1007),
        (TEXT, deflate(b"\xff"), DecodeError::NotUtf8, 1007),
        (TEXT, deflate("gr\u{fc}n".as_bytes().split_at(3).0), DecodeError::NotUtf8, 1007),
        (TEXT, deflate(&[b'a'; 1_001]), DecodeError::TooLong, 1009),
    ];
    for (opcode, payload, error, code) in cases {
        fails(&[frame(FIN | DEFLATED_BIT | opcode, &payload)], error);
        assert_eq!(error.code(), code);
        let (head, tail) = payload.split_at(payload.len() / 2);
        fails(&[frame(DEFLATED_BIT | opcode, head), frame(FIN, tail)], error);
    }
    assert_eq!(decode(&frame(0xc1, &deflate(&[b'a'; 1_000])), 9, false, 1_000).1, None);
    assert_eq!(decode(&frame(0xc2, &deflate(b"\xff")), 9, false, 1_000).1, None);
    // Bad text is found in the piece it is in, not where the message ends.
    let mut inflater = Inflater::default();
    let text = [&b"ab\xff"[..], &vec![b'a'; MAX]].concat();
    let payload = deflate(&text);
    let error = inflater.inflate(None, &payload, true, 2 * MAX).unwrap_err();
    assert_eq!(error, DecodeError::NotUtf8);
    assert!(inflater.worked_bytes() <= (payload.len() + PIECE_BYTES) as u64);
}

#[test]
fn a_message_has_no_thousands_of_final_blocks() {
    let ends = |count: usize| [0x03, 0x00].repeat(count);
    assert_eq!(decode(&frame(0xc2, &ends(ENDS_MAX as usize)), 9, false, MAX).1, None);
    fails(&[frame(0xc2, &ends(ENDS_MAX as usize + 1))], DecodeError::BadDeflate);
}

/// 100 MB of spaces, as a client would send them.
fn bomb() -> Vec<u8> {
    let mut stream = Compress::new(Compression::new(6), false);
    let piece = vec![b' '; 1_000_000];
    let mut out = Vec::with_capacity(1 << 20);
    for _ in 0..100 {
        stream.compress_vec(&piece, &mut out, FlushCompress::None).unwrap();
    }
    stream.compress_vec(&[], &mut out, FlushCompress::Sync).unwrap();
    assert_eq!(stream.total_in(), 100_000_000);
    out.truncate(out.len() - FLUSH_TAIL.len());
    out
}

#[test]
fn a_bomb_costs_the_limit_and_no_more() {
    const LIMIT: usize = 512_000;
    let bomb = bomb();
    assert!(bomb.len() < LIMIT / 4, "{} bytes", bomb.len());
    for context in [false, true] {
        let (mut decoder, mut inflater) = (Decoder::new(LIMIT), Inflater::default());
        decoder.take_deflated(context);
        let mut wire = frame(0xc1, &bomb);
        let error = decoder.next(&mut &mut wire[..], &mut inflater).unwrap_err();
        assert_eq!((error, error.code()), (DecodeError::TooLong, 1009));
        assert_eq!(inflater.worked_bytes(), (bomb.len() + LIMIT + 1) as u64);
        assert!(inflater.held_bytes() <= LIMIT + 1, "{}", inflater.held_bytes());
    }
    // The compressed bytes of a message that is not whole are bounded like any others.
    let wire = frame(0x41, &vec![0; LIMIT + 1]);
    assert_eq!(decode(&wire, 1_000, false, LIMIT).1, Some(DecodeError::TooLong));
}

#[test]
fn a_window_is_kept_to() {
    let mut deflater = Deflater::default();
    // What repeats lies a thousand bytes back: too far for 9 and 10 bits.
    let body = faster_hex::hex_string(&noise(500)).repeat(2);
    let lens = [9, 10, 11, 15].map(|bits| {
        let blocks = deflater.deflate(body.as_bytes(), b"]", window(bits)).unwrap();
        assert_eq!(inflate(&blocks, bits), [body.as_bytes(), b"]"].concat(), "{bits} bits");
        blocks.len()
    });
    assert!(lens[1] > 3 * lens[2] / 2, "{lens:?}");
}

/// Bytes that do not repeat.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(len).collect()
}

#[test]
fn what_saves_nothing_or_takes_too_long_stays_as_it_is() {
    let mut deflater = Deflater::default();
    let noise = noise(1_000);
    assert_eq!(deflater.deflate(&noise, b"]", WindowBits::MAX), None);
    assert_eq!(deflater.deflate(b"", b"", WindowBits::MAX), None);
    let long = vec![b'a'; INPUT_BYTES_MAX];
    assert_eq!(deflater.deflate(&long, b"]", WindowBits::MAX), None);
    assert!(deflater.deflate(&long, b"", WindowBits::MAX).is_some());
    assert_eq!(deflater.taken_bytes(), (noise.len() + 1 + INPUT_BYTES_MAX) as u64);
}

/// Bytes with matches near and far.
fn payload() -> impl Strategy<Value = Vec<u8>> {
    let words = prop::collection::vec((0_u32..40, 1_u32..60), 0..80);
    words.prop_map(|words| {
        let letter = |n: u32| b' ' + u8::try_from(n % 90).unwrap();
        let word = |(word, len): (u32, u32)| (0..len).map(move |at| letter(word * 7 + at));
        words.into_iter().flat_map(word).collect()
    })
}

proptest! {
    #[test]
    fn what_a_client_deflates_comes_out(
        messages in prop::collection::vec((payload(), any::<bool>(), prop::collection::vec(0_usize..300, 0..4)), 1..6),
        bits in 9_u8..=15, level in 0_u32..=9, keeps_context: bool, step in 1_usize..400,
    ) {
        let mut client = Client::new(bits, level, keeps_context);
        let (mut wire, mut expected) = (Vec::new(), Vec::new());
        for (message, deflated, cuts) in &messages {
            let sent = if *deflated { client.deflate(message) } else { message.clone() };
            let mut first = TEXT | if *deflated { DEFLATED_BIT } else { 0 };
            let mut rest = &sent[..];
            for cut in cuts {
                let (head, tail) = rest.split_at((*cut).min(rest.len()));
                wire.extend(frame(first, head));
                wire.extend(frame(FIN | PING, b"between"));
                expected.push(b"between".to_vec());
                (first, rest) = (0, tail);
            }
            wire.extend(frame(FIN | first, rest));
            expected.push(message.clone());
        }
        prop_assert_eq!(decode(&wire, step, keeps_context, MAX), (expected, None));
    }

    #[test]
    fn what_is_sent_inflates_to_prefix_body_and_suffix(
        prefix in prop::collection::vec(any::<u8>(), 0..300), body in payload(), bits in 9_u8..=15,
    ) {
        let mut deflater = Deflater::default();
        // The second is made by a stream that has a history.
        for body in [&body[..], &[&body[..], &body[..]].concat()] {
            let Some(blocks) = deflater.deflate(body, b"]", window(bits)) else { continue };
            let mut batch = Batch::default();
            batch.push_deflated(Opcode::Text, &prefix, &blocks);
            prop_assert_eq!(batch.frames(), 1);
            let wire: Vec<u8> = batch.unwritten().flatten().copied().collect();
            prop_assert_eq!(wire[0], FIN | DEFLATED_BIT | TEXT);
            let header = match wire[1] { 126 => 4, len => { prop_assert!(len < 126); 2 } };
            prop_assert!(wire.len() <= header + STORED_HEADER_BYTES + prefix.len() + body.len());
            let expected = [&prefix[..], body, b"]"].concat();
            prop_assert_eq!(inflate(&wire[header..], bits), expected);
        }
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), context: bool, step in 1_usize..300) {
        decode(&frame(0xc1, &bytes), step, context, 100);
        decode(&bytes, step, context, 100);
    }
}
