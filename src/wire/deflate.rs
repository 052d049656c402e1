//! permessage-deflate (RFC 7692): what is agreed on, messages inflated within a bound, and payloads
//! deflated once for many receivers.
//!
//! Memory decides how it is used here. A window of its own costs a connection tens of kilobytes, so:
//!
//! - What is sent never refers to an earlier message, whatever was agreed: a sender may ignore its
//!   history (§7.2.1). One [`Deflater`] a shard serves every connection, and what it makes of an event
//!   can go to every subscriber: only `["EVENT","sub",` differs, and stands before it as a stored
//!   block, which needs no compressor ([`stored_block`]).
//! - What is received is inflated when its message is whole, by the shard's one [`Inflater`]. A message
//!   that arrives slowly holds its own compressed bytes and nothing of the shard's. Only where the
//!   configuration allows a client its context does a connection own a window, from its first
//!   compressed message on: [`WINDOW_BYTES`].

mod offer;

use bytes::Bytes;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use serde::{Deserialize, Serialize};

use super::websocket::{DecodeError, check_utf8};
pub use offer::{Agreed, Malformed, Offer, WindowBits};

/// Which offers of the extension are accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accept {
    /// None.
    #[default]
    Off,
    /// All, but no message may refer to an earlier one.
    On,
    /// All, and a client's messages may refer to its earlier ones.
    ClientContext,
}

/// Memory of one connection's window for what it receives.
pub const WINDOW_BYTES: usize = 48 << 10;

/// Memory of the compressors of one [`Deflater`], if every window size is asked for.
pub const DEFLATER_BYTES_MAX: usize = 7 * (384 << 10) + 2 * INPUT_BYTES_MAX;

/// A payload longer than this is not deflated: some 1.5 ms of the shard's time.
pub const INPUT_BYTES_MAX: usize = 64 << 10;

/// The fastest level that uses Huffman codes of its own. Level 1 does not, and saves nothing on the hex
/// digits that a short event consists of (PERF.md).
const LEVEL: u32 = 2;

/// What a flush ends with and a message leaves out (RFC 7692 §7.2.1).
const FLUSH_TAIL: [u8; 4] = [0x00, 0x00, 0xff, 0xff];

/// Inflates whole messages, one at a time; owns no memory before the first.
#[derive(Debug, Default)]
pub struct Inflater {
    /// For messages that refer to no earlier one.
    stream: Option<Decompress>,
    out: Vec<u8>,
    worked_bytes: u64,
}

/// A connection's window, for messages that refer to earlier ones.
pub type Window = Decompress;

impl Inflater {
    /// Inflates one message. It may refer to those that went through `window` before, if there is one.
    /// Text is checked piece by piece as it comes out.
    ///
    /// A client that ends a message with a final block begins its history anew there.
    ///
    /// # Errors
    /// [`DecodeError::TooLong`] as soon as more than `bytes_max` bytes come out, so memory stays within
    /// that; [`DecodeError::BadDeflate`], [`DecodeError::NotUtf8`].
    pub fn inflate(
        &mut self,
        window: Option<&mut Window>,
        payload: &[u8],
        is_text: bool,
        bytes_max: usize,
    ) -> Result<&mut [u8], DecodeError> {
        self.out.clear();
        let stream = match window {
            Some(window) => window,
            None => {
                let stream = self.stream.get_or_insert_with(|| Decompress::new(false));
                stream.reset(false);
                stream
            }
        };
        // Some clients send an empty message as nothing at all. The tail alone would leave the stream
        // inside a block.
        if !payload.is_empty() {
            let out = &mut self.out;
            let mut pour = Pour { stream, out, checked: 0, ends: 0, is_text, bytes_max };
            let poured = pour.pour(payload).and_then(|()| pour.pour(&FLUSH_TAIL));
            let whole = !is_text || pour.checked == pour.out.len();
            self.worked_bytes += (payload.len() + self.out.len()) as u64;
            poured?;
            if !whole {
                return Err(DecodeError::NotUtf8);
            }
        }
        Ok(&mut self.out)
    }

    /// Bytes of all messages inflated so far, before and after.
    #[must_use]
    pub fn worked_bytes(&self) -> u64 {
        self.worked_bytes
    }

    /// Bytes of its output buffer.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.out.capacity()
    }
}

/// One message on its way through a stream.
struct Pour<'a> {
    stream: &'a mut Decompress,
    out: &'a mut Vec<u8>,
    /// `0 <= checked <= out.len()`: up to here a text is UTF-8.
    checked: usize,
    /// Final blocks so far.
    ends: u32,
    is_text: bool,
    bytes_max: usize,
}

/// Final blocks of one message. One is usual at most (RFC 7692 §7.2.3.4); each costs what some hundred
/// bytes do, and may be made of two.
const ENDS_MAX: u32 = 64;

/// The first piece of a message that is inflated and looked at.
const PIECE_BYTES: usize = 4 << 10;

impl Pour<'_> {
    fn pour(&mut self, mut input: &[u8]) -> Result<(), DecodeError> {
        loop {
            if self.out.len() == self.out.capacity() {
                // One byte over the limit shows that it is exceeded.
                let room = self.bytes_max + 1 - self.out.len();
                self.out.reserve_exact(self.out.len().max(PIECE_BYTES).min(room));
            }
            let (taken, made) = (self.stream.total_in(), self.out.len());
            let status = self
                .stream
                .decompress_vec(input, self.out, FlushDecompress::Sync)
                .map_err(|_| DecodeError::BadDeflate)?;
            let taken = usize::try_from(self.stream.total_in() - taken).expect("a part of input");
            input = &input[taken..];
            if self.out.len() > self.bytes_max {
                return Err(DecodeError::TooLong);
            }
            if self.is_text {
                check_utf8(self.out, &mut self.checked)?;
            }
            let ended = status == Status::StreamEnd;
            if ended {
                self.stream.reset(false);
                self.ends += 1;
                if self.ends > ENDS_MAX {
                    return Err(DecodeError::BadDeflate);
                }
            }
            let stands = taken == 0 && self.out.len() == made && !ended;
            match input.is_empty() {
                true if ended || self.out.len() < self.out.capacity() => return Ok(()),
                false if stands => return Err(DecodeError::BadDeflate),
                _ => {}
            }
        }
    }
}

/// Deflates payloads, one at a time; owns no memory before the first. It keeps one compressor for each
/// window size that has been asked for: [`DEFLATER_BYTES_MAX`].
#[derive(Debug, Default)]
pub struct Deflater {
    streams: [Option<Compress>; WindowBits::SIZES],
    out: Vec<u8>,
    taken_bytes: u64,
}

impl Deflater {
    /// Blocks that inflate to `body ‖ suffix`, begin at a byte and refer to nothing before them; for
    /// [`Batch::push_deflated`](super::batch::Batch::push_deflated). `None` where that would save
    /// nothing, or is more than [`INPUT_BYTES_MAX`].
    pub fn deflate(&mut self, body: &[u8], suffix: &[u8], window: WindowBits) -> Option<Bytes> {
        let plain_bytes = body.len() + suffix.len();
        if plain_bytes > INPUT_BYTES_MAX {
            return None;
        }
        self.taken_bytes += plain_bytes as u64;
        let stream = self.streams[window.index()].get_or_insert_with(|| {
            Compress::new_with_window_bits(Compression::new(LEVEL), false, window.bits())
        });
        stream.reset();
        self.out.clear();
        feed(stream, body, &mut self.out, FlushCompress::None);
        feed(stream, suffix, &mut self.out, FlushCompress::Sync);
        let blocks = self.out.strip_suffix(&FLUSH_TAIL).expect("a flush ends with an empty block");
        let saves = blocks.len() + STORED_HEADER_BYTES < plain_bytes;
        saves.then(|| Bytes::copy_from_slice(blocks))
    }

    /// Bytes given to the compressors so far.
    #[must_use]
    pub fn taken_bytes(&self) -> u64 {
        self.taken_bytes
    }
}

fn feed(stream: &mut Compress, mut input: &[u8], out: &mut Vec<u8>, flush: FlushCompress) {
    loop {
        // A flush that lacks a few bytes of room would be begun again.
        out.reserve(input.len() / 2 + 64);
        let taken = stream.total_in();
        stream.compress_vec(input, out, flush).expect("a stream that is not finished takes input");
        let taken = usize::try_from(stream.total_in() - taken).expect("a part of the input");
        input = &input[taken..];
        if input.is_empty() && out.len() < out.capacity() {
            return;
        }
    }
}

/// Bytes of a stored block before its content.
pub const STORED_HEADER_BYTES: usize = 5;

/// The header of a stored block (RFC 1951 §3.2.4) that begins and ends at a byte, and has others after
/// it.
#[must_use]
pub fn stored_block(len: u16) -> [u8; STORED_HEADER_BYTES] {
    let [low, high] = len.to_le_bytes();
    [0x00, low, high, !low, !high]
}

#[cfg(test)]
mod tests;
