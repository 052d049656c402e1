//! Bytes → messages (RFC 6455 §5, §6.2): incremental, bounded, UTF-8 checked as it arrives.
//!
//! ```text
//!            header complete                    payload complete
//!  Header ────────────────────▶ Payload ─────────────────────────▶ Header
//!    ▲  whole frame in the input: unmasked where it lies, no copy     │
//!    └────────────────────────────────────────────────────────────────┘
//! ```
//! Between fragments of a message the decoder stands in `Header` with `message` begun. A compressed
//! message (RFC 7692) is gathered as it came and inflated when it is whole.

use super::deflate::{Inflater, Window};
use super::frame::{CONTROL_BYTES_MAX, ClientHeader, FrameError, Opcode, unmask};

/// One message, or one control frame, from a client.
#[derive(Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// A whole text message; the bytes are UTF-8.
    Text(&'a mut [u8]),
    /// A whole binary message.
    Binary(&'a mut [u8]),
    /// A ping's payload.
    Ping(&'a [u8]),
    /// A pong.
    Pong,
    /// A close, with its code if it has one.
    Close(Option<u16>),
}

/// Why a connection cannot be read further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Broken frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A continuation of nothing, or a new message inside one.
    #[error("fragments out of order")]
    Fragments,
    /// A close frame RFC 6455 §5.5.1 and §7.4 do not allow.
    #[error("bad close frame")]
    BadClose,
    /// Text that is not UTF-8.
    #[error("text is not UTF-8")]
    NotUtf8,
    /// A compressed message that does not inflate.
    #[error("bad compressed data")]
    BadDeflate,
    /// A message over the limit, as it came or inflated.
    #[error("message too long")]
    TooLong,
}

impl DecodeError {
    /// The close code that names the error (RFC 6455 §7.4.1).
    #[must_use]
    pub fn code(self) -> u16 {
        match self {
            Self::Frame(_) | Self::Fragments | Self::BadClose => 1002,
            Self::NotUtf8 | Self::BadDeflate => 1007,
            Self::TooLong => 1009,
        }
    }
}

/// Reads one connection's frames. Between messages that arrived whole it owns no memory, but for the
/// window of a client that compresses with context.
#[derive(Debug)]
pub struct Decoder {
    message_bytes_max: usize,
    /// What has arrived of a frame or message whose rest has not.
    partial: Option<Box<Partial>>,
    /// Opcode of the message being read, from its first fragment.
    begun: Option<Opcode>,
    /// `small` or `message` of `partial` was handed out and is to be cleared.
    handed_out: Option<Opcode>,
    /// Text is taken as it is.
    #[cfg(any(test, feature = "echo-endpoint"))]
    trusts_text: bool,
    compression: Compression,
    /// The message being read is compressed.
    deflated: bool,
    /// What compressed messages may refer to, from the first of them on.
    window: Option<Box<Window>>,
}

#[derive(Debug, Default)]
struct Partial {
    /// A header whose rest has not arrived, or the payload of a control frame being read.
    small: Vec<u8>,
    /// The payload so far of the message being read.
    message: Vec<u8>,
    /// `0 <= checked <= message.len()`: up to here the text is UTF-8.
    checked: usize,
    /// The frame whose payload is being read, and how much of it is still to come.
    payload: Option<(ClientHeader, u64)>,
}

/// What the handshake settled about compressed messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    /// None may come.
    Off,
    /// Each stands alone.
    Alone,
    /// Each may refer to those before it.
    Context,
    /// They are handed out as they came.
    PassedOver,
}

impl Decoder {
    /// A decoder that refuses messages over `message_bytes_max`.
    #[must_use]
    pub fn new(message_bytes_max: usize) -> Self {
        Self {
            message_bytes_max,
            partial: None,
            begun: None,
            handed_out: None,
            #[cfg(any(test, feature = "echo-endpoint"))]
            trusts_text: false,
            compression: Compression::Off,
            deflated: false,
            window: None,
        }
    }

    /// Leaves the check for UTF-8 out: a fault for a conformance suite to find.
    #[cfg(any(test, feature = "echo-endpoint"))]
    pub(crate) fn trust_text(&mut self) {
        self.trusts_text = true;
    }

    /// Lets compressed messages in; with `context` they may refer to earlier ones, and the decoder owns
    /// a window of [`WINDOW_BYTES`](super::deflate::WINDOW_BYTES) once the first has come.
    pub fn take_deflated(&mut self, context: bool) {
        self.compression = if context { Compression::Context } else { Compression::Alone };
    }

    /// From here on messages are for nobody: compressed ones are handed out as they came.
    pub fn pass_over(&mut self) {
        self.compression = match self.compression {
            Compression::Off => Compression::Off,
            _ => Compression::PassedOver,
        };
        self.window = None;
    }

    /// Takes bytes from the front of `input` up to the end of the next item; `None` when the input
    /// is used up first. Compressed messages are inflated by `inflater`, whose memory is lent for one
    /// call and what it returns.
    ///
    /// # Errors
    /// The client broke RFC 6455 or the limit; the decoder must not be used again.
    pub fn next<'s, 'i: 's>(
        &'s mut self,
        input: &mut &'i mut [u8],
        inflater: &'s mut Inflater,
    ) -> Result<Option<Item<'s>>, DecodeError> {
        self.clear_handed_out();
        loop {
            if self.partial.as_ref().is_none_or(|partial| partial.payload.is_none()) {
                let Some(header) = self.take_header(input)? else { return Ok(None) };
                self.check_header(header)?;
                let whole =
                    usize::try_from(header.payload_len).ok().filter(|len| *len <= input.len());
                let unfragmented = header.opcode.is_control()
                    || (header.fin && header.opcode != Opcode::Continuation);
                if let Some(len) = whole.filter(|_| unfragmented) {
                    let (payload, rest) = std::mem::take(input).split_at_mut(len);
                    *input = rest;
                    unmask(payload, header.mask, 0);
                    if header.deflated && self.compression != Compression::PassedOver {
                        return self.inflate(inflater, header.opcode, payload).map(Some);
                    }
                    if self.is_checked(header.opcode)
                        && simdutf8::basic::from_utf8(payload).is_err()
                    {
                        return Err(DecodeError::NotUtf8);
                    }
                    return item(header.opcode, payload).map(Some);
                }
                if !header.opcode.is_control() && header.opcode != Opcode::Continuation {
                    self.begun = Some(header.opcode);
                    self.deflated = header.deflated;
                }
                self.partial().payload = Some((header, header.payload_len));
            }
            let Some(header) = self.take_payload(input)? else { return Ok(None) };
            if header.opcode.is_control() {
                self.handed_out = Some(header.opcode);
                return item(header.opcode, &mut self.partial().small).map(Some);
            }
            if header.fin {
                let opcode = self.begun.take().expect("a fragment belongs to a message");
                if self.deflated && self.compression != Compression::PassedOver {
                    self.handed_out = Some(opcode);
                    let message = std::mem::take(&mut self.partial().message);
                    return self.inflate(inflater, opcode, &message).map(Some);
                }
                let is_checked = self.is_checked(opcode);
                let partial = self.partial();
                if is_checked && partial.checked < partial.message.len() {
                    return Err(DecodeError::NotUtf8);
                }
                self.handed_out = Some(opcode);
                return item(opcode, &mut self.partial().message).map(Some);
            }
        }
    }

    /// Bytes held for a message that has not arrived whole.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.partial
            .as_ref()
            .map_or(0, |partial| partial.message.capacity() + partial.small.capacity())
    }

    fn partial(&mut self) -> &mut Partial {
        self.partial.get_or_insert_default()
    }

    fn inflate<'o>(
        &mut self,
        inflater: &'o mut Inflater,
        opcode: Opcode,
        payload: &[u8],
    ) -> Result<Item<'o>, DecodeError> {
        let is_text = self.is_checked(opcode);
        let window = (self.compression == Compression::Context)
            .then(|| &mut **self.window.get_or_insert_with(|| Box::new(Window::new(false))));
        item(opcode, inflater.inflate(window, payload, is_text, self.message_bytes_max)?)
    }

    fn clear_handed_out(&mut self) {
        let Some(opcode) = self.handed_out.take() else { return };
        if opcode.is_control() {
            self.drop_small();
        } else {
            self.partial = None;
        }
    }

    /// Between the fragments of a message only what has come of that stays.
    fn drop_small(&mut self) {
        match &mut self.partial {
            Some(partial) if self.begun.is_some() => partial.small = Vec::new(),
            partial => *partial = None,
        }
    }

    fn take_header(&mut self, input: &mut &mut [u8]) -> Result<Option<ClientHeader>, DecodeError> {
        if self.partial.as_ref().is_none_or(|partial| partial.small.is_empty())
            && let Some((header, used)) = ClientHeader::read(input)?
        {
            *input = &mut std::mem::take(input)[used..];
            return Ok(Some(header));
        }
        // At most 14 bytes, and only where a header is cut by the end of a read.
        while !input.is_empty() {
            let (first, rest) = std::mem::take(input).split_at_mut(1);
            *input = rest;
            let small = &mut self.partial().small;
            small.push(first[0]);
            if let Some((header, _)) = ClientHeader::read(small)? {
                self.drop_small();
                return Ok(Some(header));
            }
        }
        Ok(None)
    }

    fn check_header(&self, header: ClientHeader) -> Result<(), DecodeError> {
        if header.opcode.is_control() {
            return Ok(());
        }
        let continues = header.opcode == Opcode::Continuation;
        if continues != self.begun.is_some() {
            return Err(DecodeError::Fragments);
        }
        // RFC 7692 §6.1: the first frame speaks for the message.
        if header.deflated && (continues || self.compression == Compression::Off) {
            return Err(FrameError::ReservedBit.into());
        }
        let held = self.partial.as_ref().map_or(0, |partial| partial.message.len());
        let room = self.message_bytes_max.saturating_sub(held);
        if header.payload_len > room as u64 {
            return Err(DecodeError::TooLong);
        }
        Ok(())
    }

    /// Takes what is there of the current frame's payload; the header when it is complete.
    fn take_payload(&mut self, input: &mut &mut [u8]) -> Result<Option<ClientHeader>, DecodeError> {
        let checked = !self.deflated && self.begun.is_some_and(|opcode| self.is_checked(opcode));
        let partial = self.partial.as_mut().expect("called inside a frame");
        let (header, left) = partial.payload.as_mut().expect("called inside a frame");
        let take = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
        let (bytes, rest) = std::mem::take(input).split_at_mut(take);
        *input = rest;
        let phase = usize::try_from((header.payload_len - *left) % 4).expect("below four");
        unmask(bytes, header.mask, phase);
        *left -= take as u64;
        let done = (*left == 0).then_some(*header);
        if header.opcode.is_control() {
            debug_assert!(partial.small.len() + take <= CONTROL_BYTES_MAX);
            partial.small.extend_from_slice(bytes);
        } else {
            partial.message.extend_from_slice(bytes);
            if checked {
                check_utf8(&partial.message, &mut partial.checked)?;
            }
        }
        if done.is_some() {
            partial.payload = None;
        }
        Ok(done)
    }

    /// Whether messages of this opcode must be UTF-8.
    fn is_checked(&self, opcode: Opcode) -> bool {
        #[cfg(any(test, feature = "echo-endpoint"))]
        if self.trusts_text {
            return false;
        }
        opcode == Opcode::Text && self.compression != Compression::PassedOver
    }
}

/// Moves `checked` on to where `text` stops being UTF-8; fails at the first byte that no continuation
/// can repair (RFC 6455 §8.1).
pub(super) fn check_utf8(text: &[u8], checked: &mut usize) -> Result<(), DecodeError> {
    match simdutf8::compat::from_utf8(&text[*checked..]) {
        Ok(_) => *checked = text.len(),
        Err(error) if error.error_len().is_none() => *checked += error.valid_up_to(),
        Err(_) => return Err(DecodeError::NotUtf8),
    }
    Ok(())
}

fn item(opcode: Opcode, payload: &mut [u8]) -> Result<Item<'_>, DecodeError> {
    Ok(match opcode {
        Opcode::Text => Item::Text(payload),
        Opcode::Binary => Item::Binary(payload),
        Opcode::Ping => Item::Ping(payload),
        Opcode::Pong => Item::Pong,
        Opcode::Close => Item::Close(close_code(payload)?),
        Opcode::Continuation => unreachable!("a message has its first fragment's opcode"),
    })
}

fn close_code(payload: &[u8]) -> Result<Option<u16>, DecodeError> {
    match payload {
        [] => Ok(None),
        [_] => Err(DecodeError::BadClose),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            let allowed = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
            if !allowed {
                return Err(DecodeError::BadClose);
            }
            if simdutf8::basic::from_utf8(reason).is_err() {
                return Err(DecodeError::NotUtf8);
            }
            Ok(Some(code))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::write_header;
    use super::*;
    use proptest::prelude::*;

    /// An owned [`Item`].
    #[derive(Clone, Debug, PartialEq, Eq)]
    enum Seen {
        Text(Vec<u8>),
        Binary(Vec<u8>),
        Ping(Vec<u8>),
        Pong,
        Close(Option<u16>),
    }

    fn see(item: Item<'_>) -> Seen {
        match item {
            Item::Text(bytes) => Seen::Text(bytes.to_vec()),
            Item::Binary(bytes) => Seen::Binary(bytes.to_vec()),
            Item::Ping(bytes) => Seen::Ping(bytes.to_vec()),
            Item::Pong => Seen::Pong,
            Item::Close(code) => Seen::Close(code),
        }
    }

    fn frame(fin: bool, opcode: Opcode, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        write_header(&mut out, opcode, payload.len());
        if !fin {
            out[0] &= 0x7f;
        }
        out[1] |= 0x80;
        let mask = [0x12, 0x34, 0x56, 0x78];
        out.extend_from_slice(&mask);
        let at = out.len();
        out.extend_from_slice(payload);
        unmask(&mut out[at..], mask, 0);
        out
    }

    /// Feeds `wire` in pieces that end at `cuts`.
    fn decode(wire: &[u8], cuts: &[usize], max: usize) -> (Vec<Seen>, Option<DecodeError>) {
        let mut decoder = Decoder::new(max);
        let mut inflater = Inflater::default();
        let mut seen = Vec::new();
        let mut from = 0;
        for &to in cuts.iter().chain([&wire.len()]) {
            let to = to.clamp(from, wire.len());
            let mut piece = wire[from..to].to_vec();
            from = to;
            let mut input = &mut piece[..];
            loop {
                match decoder.next(&mut input, &mut inflater) {
                    Ok(Some(item)) => seen.push(see(item)),
                    Ok(None) => break,
                    Err(error) => return (seen, Some(error)),
                }
            }
        }
        (seen, None)
    }

    #[test]
    fn fragments_with_controls_between() {
        let wire = [
            frame(false, Opcode::Text, "gr\u{fc}".as_bytes()),
            frame(true, Opcode::Ping, b"p"),
            frame(false, Opcode::Continuation, b""),
            frame(true, Opcode::Pong, b""),
            frame(true, Opcode::Continuation, b"n"),
            frame(true, Opcode::Close, &[0x03, 0xe8]),
        ]
        .concat();
        let expected = [
            Seen::Ping(b"p".to_vec()),
            Seen::Pong,
            Seen::Text("gr\u{fc}n".into()),
            Seen::Close(Some(1000)),
        ];
        for step in 1..wire.len() {
            let cuts: Vec<_> = (0..wire.len()).step_by(step).collect();
            assert_eq!(decode(&wire, &cuts, 100), (expected.to_vec(), None), "step {step}");
        }
    }

    #[test]
    fn each_error_has_its_code() {
        let long = frame(true, Opcode::Text, &[b'a'; 11]);
        let halves =
            [frame(false, Opcode::Text, &[b'a'; 6]), frame(true, Opcode::Continuation, &[b'a'; 5])];
        let cases = [
            (long, DecodeError::TooLong, 1009),
            (halves.concat(), DecodeError::TooLong, 1009),
            (frame(true, Opcode::Continuation, b""), DecodeError::Fragments, 1002),
            (
                [frame(false, Opcode::Text, b""), frame(true, Opcode::Text, b"")].concat(),
                DecodeError::Fragments,
                1002,
            ),
            (frame(true, Opcode::Text, b"\xff"), DecodeError::NotUtf8, 1007),
            (frame(true, Opcode::Text, b"\xe2\x82"), DecodeError::NotUtf8, 1007),
            (frame(false, Opcode::Text, b"\xff"), DecodeError::NotUtf8, 1007),
            (frame(true, Opcode::Close, b"\x03"), DecodeError::BadClose, 1002),
            (frame(true, Opcode::Close, &[0x03, 0xed]), DecodeError::BadClose, 1002),
            (frame(true, Opcode::Close, &[0x03, 0xe8, 0xff]), DecodeError::NotUtf8, 1007),
        ];
        for (wire, error, code) in cases {
            assert_eq!(decode(&wire, &[], 10), (vec![], Some(error)));
            assert_eq!(error.code(), code);
        }
    }

    #[test]
    fn bad_text_fails_before_its_frame_ends() {
        let wire = frame(true, Opcode::Text, b"ab\xff and a long rest");
        let cut = wire.len() - 10;
        let mut piece = wire[..cut].to_vec();
        let (mut decoder, mut inflater) = (Decoder::new(100), Inflater::default());
        let result = decoder.next(&mut &mut piece[..], &mut inflater);
        assert_eq!(result, Err(DecodeError::NotUtf8));
    }

    #[test]
    fn between_messages_nothing_is_held_wherever_they_were_cut() {
        let wire = [
            frame(false, Opcode::Text, b"one, "),
            frame(true, Opcode::Ping, b"ping"),
            frame(true, Opcode::Continuation, b"two"),
            frame(true, Opcode::Text, b"three"),
        ]
        .concat();
        for cut in 0..wire.len() {
            let mut decoder = Decoder::new(1_000);
            let mut inflater = Inflater::default();
            let mut items = 0;
            for piece in [&wire[..cut], &wire[cut..]] {
                let mut piece = piece.to_vec();
                let mut input = &mut piece[..];
                while decoder.next(&mut input, &mut inflater).unwrap().is_some() {
                    items += 1;
                }
            }
            assert_eq!((items, decoder.partial.is_none()), (3, true), "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn cuts_change_nothing(
            frames in prop::collection::vec((any::<bool>(), 0_u8..6, prop::collection::vec(any::<u8>(), 0..130)), 0..8),
            cuts in prop::collection::vec(0_usize..600, 0..12),
        ) {
            let wire: Vec<u8> = frames.iter().flat_map(|(fin, opcode, payload)| {
                let opcode = [Opcode::Continuation, Opcode::Text, Opcode::Binary, Opcode::Close, Opcode::Ping, Opcode::Pong][usize::from(*opcode)];
                frame(*fin, opcode, payload)
            }).collect();
            let mut cuts = cuts;
            cuts.sort_unstable();
            let (whole, whole_error) = decode(&wire, &[], 300);
            let (parts, parts_error) = decode(&wire, &cuts, 300);
            prop_assert_eq!(whole_error.is_some(), parts_error.is_some());
            prop_assert_eq!(whole, parts);
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 0_usize..300) {
            decode(&bytes, &[cut], 100);
        }
    }
}
