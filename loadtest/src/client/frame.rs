//! RFC 6455 §5 frames: masked ones are written ahead of the run, unmasked ones are read in place.

use std::io::Cursor;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// A relay that announces a longer payload is broken, or means harm to the generator's memory.
pub const PAYLOAD_BYTES_MAX: u64 = 16 << 20;
/// RFC 6455 §5.5.
const CONTROL_PAYLOAD_BYTES_MAX: u64 = 125;

/// What a relay's frame breaks.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameFault {
    #[error("a frame with reserved bits, though no extension was negotiated")]
    ReservedBits,
    #[error("a masked frame from the server")]
    Masked,
    #[error("a reserved opcode")]
    Opcode,
    #[error("a control frame that is fragmented or longer than {CONTROL_PAYLOAD_BYTES_MAX} bytes")]
    Control,
    #[error("a payload of {0} bytes, above {PAYLOAD_BYTES_MAX}")]
    TooLong(u64),
    #[error("a continuation without a start, or a start inside a fragmented message")]
    Fragmentation,
}

/// A whole frame at the start of a buffer.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    pub opcode: OpCode,
    pub is_final: bool,
    pub payload: &'a [u8],
    /// Header and payload together; `0 < used <= buffer.len()`.
    pub used: usize,
}

/// Reads the frame at the start of `buffer`; `None` while it is incomplete.
///
/// # Errors
/// Everything that tungstenite's lax header parser lets through and a client must refuse.
pub fn decode(buffer: &[u8]) -> Result<Option<Frame<'_>>, FrameFault> {
    let mut cursor = Cursor::new(buffer);
    let Some((header, length)) = FrameHeader::parse(&mut cursor).map_err(|_| FrameFault::Opcode)?
    else {
        return Ok(None);
    };
    if header.rsv1 || header.rsv2 || header.rsv3 {
        return Err(FrameFault::ReservedBits);
    }
    if header.mask.is_some() {
        return Err(FrameFault::Masked);
    }
    let control = matches!(header.opcode, OpCode::Control(_));
    if control && (!header.is_final || length > CONTROL_PAYLOAD_BYTES_MAX) {
        return Err(FrameFault::Control);
    }
    if length > PAYLOAD_BYTES_MAX {
        return Err(FrameFault::TooLong(length));
    }
    let start = cursor.position() as usize;
    let end = start + length as usize;
    let Some(payload) = buffer.get(start..end) else { return Ok(None) };
    Ok(Some(Frame { opcode: header.opcode, is_final: header.is_final, payload, used: end }))
}

/// Appends one masked text frame. The mask need not be secret here: no proxy sits between a generator and its relay.
pub fn append_text(out: &mut Vec<u8>, payload: &[u8], mask: [u8; 4]) {
    append(out, OpCode::Data(Data::Text), payload, mask);
}

/// Appends the masked close frame with code 1000.
pub fn append_close(out: &mut Vec<u8>, mask: [u8; 4]) {
    append(out, OpCode::Control(Control::Close), &1000u16.to_be_bytes(), mask);
}

/// Appends the masked pong that answers a ping with this payload.
pub fn append_pong(out: &mut Vec<u8>, payload: &[u8], mask: [u8; 4]) {
    append(out, OpCode::Control(Control::Pong), payload, mask);
}

fn append(out: &mut Vec<u8>, opcode: OpCode, payload: &[u8], mask: [u8; 4]) {
    let header = FrameHeader {
        is_final: true,
        rsv1: false,
        rsv2: false,
        rsv3: false,
        opcode,
        mask: Some(mask),
    };
    header.format(payload.len() as u64, out).expect("a Vec takes every write");
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

/// Masked frames laid end to end, so that a window of several leaves in one write.
#[derive(Debug, Default)]
pub struct FrameArena {
    bytes: Vec<u8>,
    /// End of frame i; ascending, the last one equals `bytes.len()`.
    ends: Vec<usize>,
}

impl FrameArena {
    pub fn push_text(&mut self, payload: &[u8], mask: [u8; 4]) {
        append_text(&mut self.bytes, payload, mask);
        self.ends.push(self.bytes.len());
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// The frames `from..to` as one slice.
    pub fn slice(&self, from: usize, to: usize) -> &[u8] {
        let end_of = |count: usize| if count == 0 { 0 } else { self.ends[count - 1] };
        &self.bytes[end_of(from)..end_of(to)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server_frame(payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let opcode = OpCode::Data(Data::Text);
        let header = FrameHeader {
            is_final: true,
            rsv1: false,
            rsv2: false,
            rsv3: false,
            opcode,
            mask: None,
        };
        header.format(payload.len() as u64, &mut out).unwrap();
        out.extend_from_slice(payload);
        out
    }

    #[test]
    fn a_masked_frame_unmasks_to_its_payload_at_every_length_format() {
        for length in [0, 1, 125, 126, 425, 65_535, 65_536] {
            let payload: Vec<u8> = (0..length).map(|i| i as u8).collect();
            let mut bytes = Vec::new();
            append_text(&mut bytes, &payload, [1, 2, 3, 4]);
            let mut cursor = Cursor::new(&bytes);
            let (header, parsed) = FrameHeader::parse(&mut cursor).unwrap().unwrap();
            assert_eq!(parsed as usize, length);
            assert_eq!(header.mask, Some([1, 2, 3, 4]));
            let body = &bytes[cursor.position() as usize..];
            let plain: Vec<u8> =
                body.iter().enumerate().map(|(i, b)| b ^ [1, 2, 3, 4][i % 4]).collect();
            assert_eq!(plain, payload);
        }
    }

    #[test]
    fn decode_waits_for_every_missing_byte() {
        for length in [5usize, 200, 70_000] {
            let bytes = server_frame(&vec![b'x'; length]);
            for cut in (0..bytes.len()).step_by(1 + length / 64) {
                assert_eq!(decode(&bytes[..cut]), Ok(None), "{cut} of {}", bytes.len());
            }
            let frame = decode(&bytes).unwrap().unwrap();
            assert_eq!((frame.used, frame.payload.len()), (bytes.len(), length));
        }
    }

    #[test]
    fn decode_refuses_what_a_server_may_not_send() {
        let mut masked = Vec::new();
        append_text(&mut masked, b"hello", [9; 4]);
        assert_eq!(decode(&masked), Err(FrameFault::Masked));
        assert_eq!(decode(&[0xC1, 0x00]), Err(FrameFault::ReservedBits));
        assert_eq!(decode(&[0x83, 0x00]), Err(FrameFault::Opcode));
        assert_eq!(decode(&[0x09, 0x00]), Err(FrameFault::Control));
        assert_eq!(decode(&[0x89, 126, 0, 126]), Err(FrameFault::Control));
        let huge = [0x81, 127, 0xff, 0, 0, 0, 0, 0, 0, 0];
        assert!(matches!(decode(&huge), Err(FrameFault::TooLong(_))));
    }

    #[test]
    fn the_arena_gives_back_frames_and_runs_of_frames() {
        let mut arena = FrameArena::default();
        for text in ["a", "bb", "ccc"] {
            arena.push_text(text.as_bytes(), [0; 4]);
        }
        assert_eq!(arena.len(), 3);
        assert_eq!(arena.slice(1, 2), [0x81, 0x82, 0, 0, 0, 0, b'b', b'b']);
        assert_eq!(arena.slice(0, 3).len(), 7 + 8 + 9);
        assert!(arena.slice(2, 2).is_empty());
    }
}
