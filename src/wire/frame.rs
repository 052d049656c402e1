//! One frame header (RFC 6455 §5.2), read strictly and written minimally.

use std::io::Cursor;

use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// Longest payload of a control frame (RFC 6455 §5.5).
pub const CONTROL_BYTES_MAX: usize = 125;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    /// The next fragment of a message.
    Continuation,
    /// Text, UTF-8.
    Text,
    /// Any bytes.
    Binary,
    /// Close, with a code and a reason.
    Close,
    /// Ping.
    Ping,
    /// Pong.
    Pong,
}

impl Opcode {
    /// Whether frames of this opcode may stand between the fragments of a message.
    #[must_use]
    pub fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }

    fn to_wire(self) -> OpCode {
        match self {
            Self::Continuation => OpCode::Data(Data::Continue),
            Self::Text => OpCode::Data(Data::Text),
            Self::Binary => OpCode::Data(Data::Binary),
            Self::Close => OpCode::Control(Control::Close),
            Self::Ping => OpCode::Control(Control::Ping),
            Self::Pong => OpCode::Control(Control::Pong),
        }
    }
}

/// The header of a frame from a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientHeader {
    /// Last fragment of its message.
    pub fin: bool,
    /// What it carries.
    pub opcode: Opcode,
    /// RSV1: its message is compressed (RFC 7692 §6). Whether it may be is for the decoder to say.
    pub deflated: bool,
    /// Key to unmask the payload with.
    pub mask: [u8; 4],
    /// Bytes of payload.
    pub payload_len: u64,
}

/// How a client broke the framing. The text is the reason of a close with 1002.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// RFC 6455 §5.2: reserved opcode.
    #[error("reserved opcode")]
    ReservedOpcode,
    /// RFC 6455 §5.2: a reserved bit that no extension gives a meaning to, here.
    #[error("reserved bit set")]
    ReservedBit,
    /// RFC 6455 §5.1: a client must mask.
    #[error("frame not masked")]
    NotMasked,
    /// RFC 6455 §5.5: control frames are not fragmented.
    #[error("fragmented control frame")]
    FragmentedControl,
    /// RFC 6455 §5.5: control frames carry 125 bytes at most.
    #[error("control frame too long")]
    LongControl,
    /// RFC 6455 §5.2: the length takes as few bytes as it can and leaves the top bit zero.
    #[error("length not minimal")]
    BadLength,
}

impl ClientHeader {
    /// Reads a header from the front of `bytes`: the header and its size, or `None` when more
    /// bytes are needed.
    ///
    /// # Errors
    /// When the bytes so far already break RFC 6455.
    pub fn read(bytes: &[u8]) -> Result<Option<(Self, usize)>, FrameError> {
        let mut cursor = Cursor::new(bytes);
        let Some((header, payload_len)) =
            FrameHeader::parse(&mut cursor).map_err(|_| FrameError::ReservedOpcode)?
        else {
            return Ok(None);
        };
        let opcode = match header.opcode {
            OpCode::Data(Data::Continue) => Opcode::Continuation,
            OpCode::Data(Data::Text) => Opcode::Text,
            OpCode::Data(Data::Binary) => Opcode::Binary,
            OpCode::Control(Control::Close) => Opcode::Close,
            OpCode::Control(Control::Ping) => Opcode::Ping,
            OpCode::Control(Control::Pong) => Opcode::Pong,
            OpCode::Data(Data::Reserved(_)) | OpCode::Control(Control::Reserved(_)) => {
                return Err(FrameError::ReservedOpcode);
            }
        };
        if header.rsv1 && opcode.is_control() || header.rsv2 || header.rsv3 {
            return Err(FrameError::ReservedBit);
        }
        let mask = header.mask.ok_or(FrameError::NotMasked)?;
        if opcode.is_control() && !header.is_final {
            return Err(FrameError::FragmentedControl);
        }
        if opcode.is_control() && payload_len > CONTROL_BYTES_MAX as u64 {
            return Err(FrameError::LongControl);
        }
        let minimal = match bytes[1] & 0x7f {
            126 => payload_len > 125,
            127 => payload_len > 0xffff && payload_len < 1 << 63,
            _ => true,
        };
        if !minimal {
            return Err(FrameError::BadLength);
        }
        let used = usize::try_from(cursor.position()).expect("a header has at most 14 bytes");
        let (fin, deflated) = (header.is_final, header.rsv1);
        Ok(Some((Self { fin, opcode, deflated, mask, payload_len }, used)))
    }
}

/// RSV1 in the first byte of a header: the message is compressed (RFC 7692 §6).
pub const DEFLATED_BIT: u8 = 0x40;

/// Appends the header of an unfragmented frame to a client.
pub fn write_header(out: &mut Vec<u8>, opcode: Opcode, payload_len: usize) {
    let first = FIN_BIT | u8::from(opcode.to_wire());
    if let Ok(len @ ..=LONGEST_IN_A_BYTE) = u8::try_from(payload_len) {
        out.extend_from_slice(&[first, len]);
    } else if let Ok(len) = u16::try_from(payload_len) {
        let [high, low] = len.to_be_bytes();
        out.extend_from_slice(&[first, LONGEST_IN_A_BYTE + 1, high, low]);
    } else {
        out.extend_from_slice(&[first, LONGEST_IN_A_BYTE + 2]);
        out.extend_from_slice(&(payload_len as u64).to_be_bytes());
    }
}

/// The first byte of a message's last frame.
const FIN_BIT: u8 = 0x80;

/// A longer payload's length stands in the two or eight bytes that follow.
const LONGEST_IN_A_BYTE: u8 = 125;

/// XORs `payload` with the mask, whose byte `phase % 4` meets the first byte (RFC 6455 §5.3).
pub fn unmask(payload: &mut [u8], mask: [u8; 4], phase: usize) {
    let mut key = [0; 8];
    for (at, byte) in key.iter_mut().enumerate() {
        *byte = mask[(phase + at) % 4];
    }
    let wide = u64::from_ne_bytes(key);
    let mut words = payload.chunks_exact_mut(8);
    for word in &mut words {
        let value = u64::from_ne_bytes((&*word).try_into().expect("eight bytes")) ^ wide;
        word.copy_from_slice(&value.to_ne_bytes());
    }
    for (byte, key) in words.into_remainder().iter_mut().zip(key) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_broken_header_is_named() {
        use FrameError as E;
        let cases: [(&[u8], E); 10] = [
            (&[0x83, 0x80, 0, 0, 0, 0], E::ReservedOpcode),
            (&[0x8b, 0x80, 0, 0, 0, 0], E::ReservedOpcode),
            (&[0xa1, 0x80, 0, 0, 0, 0], E::ReservedBit),
            (&[0xc9, 0x80, 0, 0, 0, 0], E::ReservedBit),
            (&[0x91, 0x80, 0, 0, 0, 0], E::ReservedBit),
            (&[0x81, 0x00], E::NotMasked),
            (&[0x09, 0x80, 0, 0, 0, 0], E::FragmentedControl),
            (&[0x89, 0xfe, 0, 126, 0, 0, 0, 0], E::LongControl),
            (&[0x81, 0xfe, 0, 125, 0, 0, 0, 0], E::BadLength),
            (&[0x81, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], E::BadLength),
        ];
        for (bytes, error) in cases {
            assert_eq!(ClientHeader::read(bytes), Err(error), "{bytes:x?}");
        }
        assert_eq!(ClientHeader::read(&[0x81, 0xfe, 0]), Ok(None));
    }

    #[test]
    fn what_is_written_is_what_the_library_writes() {
        for len in [0, 1, 125, 126, 127, 255, 256, 65_535, 65_536, 1 << 20] {
            for opcode in [Opcode::Text, Opcode::Binary, Opcode::Close, Opcode::Ping, Opcode::Pong]
            {
                let (mut ours, mut theirs) = (Vec::new(), Vec::new());
                write_header(&mut ours, opcode, len);
                let header = FrameHeader { opcode: opcode.to_wire(), ..FrameHeader::default() };
                header.format(len as u64, &mut theirs).unwrap();
                assert_eq!(ours, theirs, "{opcode:?} of {len} bytes");
            }
        }
    }

    proptest! {
        #[test]
        fn unmask_is_a_bytewise_xor(mut bytes in prop::collection::vec(any::<u8>(), 0..200), mask: [u8; 4], phase in 0_usize..9) {
            let expected: Vec<_> =
                bytes.iter().enumerate().map(|(at, b)| b ^ mask[(at + phase) % 4]).collect();
            unmask(&mut bytes, mask, phase);
            prop_assert_eq!(bytes, expected);
        }

        #[test]
        fn a_written_length_is_minimal(len in prop_oneof![0_usize..300, 65_000_usize..70_000, any::<u32>().prop_map(|n| n as usize)]) {
            let mut out = Vec::new();
            write_header(&mut out, Opcode::Text, len);
            out[1] |= 0x80;
            out.extend_from_slice(&[0; 4]);
            let (header, used) = ClientHeader::read(&out).unwrap().unwrap();
            prop_assert_eq!((header.payload_len, used), (len as u64, out.len()));
        }
    }
}
