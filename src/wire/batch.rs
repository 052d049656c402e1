//! Many frames → one gather write: small payloads are copied, large ones ride along.
//!
//! Up to [`Shape::chain_threshold_bytes`] copying into one buffer is cheaper than a gather list, beyond it the
//! list is (PERF.md, the sweep of payload sizes).

use bytes::Bytes;

use super::deflate::{STORED_HEADER_BYTES, stored_block};
use super::frame::{DEFLATED_BIT, Opcode, write_header};

/// How batches are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// A batch takes no further frame once it holds this many bytes: what is queued later and overtakes
    /// (a pong) waits for no more than that.
    pub bytes_max: u32,
    /// Most pieces of one gather write; at least 3, and the kernel takes 1,024.
    pub pieces_max: u32,
    /// A payload longer than this is chained, not copied.
    pub chain_threshold_bytes: u32,
}

impl Default for Shape {
    fn default() -> Self {
        Self { bytes_max: 128 << 10, pieces_max: 256, chain_threshold_bytes: 2_048 }
    }
}

/// Frames on their way to one socket, and how far they have got.
#[derive(Debug, Default)]
pub struct Batch {
    shape: Shape,
    /// Headers and copied payloads of all frames, in order.
    copied: Vec<u8>,
    /// What to write, in order.
    pieces: Vec<Piece>,
    frames: u32,
    bytes: usize,
    /// `0 <= written <= bytes`
    written: usize,
    /// First piece with unwritten bytes.
    piece_at: usize,
    /// Bytes of that piece already written.
    piece_written: usize,
}

#[derive(Debug)]
enum Piece {
    /// The range `from..to` of `copied`.
    Copied { from: usize, to: usize },
    /// A shared payload.
    Chained(Bytes),
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new(shape: Shape) -> Self {
        Self { shape, ..Self::default() }
    }

    /// Whether another frame may be added.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.bytes < self.shape.bytes_max as usize
            && self.pieces.len() + 3 <= self.shape.pieces_max as usize
    }

    /// Adds one frame whose payload is `prefix ‖ body ‖ suffix`.
    pub fn push_frame(&mut self, opcode: Opcode, prefix: &[u8], body: &Bytes, suffix: &[u8]) {
        self.frames += 1;
        let from = self.copied.len();
        write_header(&mut self.copied, opcode, prefix.len() + body.len() + suffix.len());
        self.copied.extend_from_slice(prefix);
        self.add_payload(from, body, suffix);
    }

    /// Adds `body ‖ suffix` to the frame whose bytes so far were copied from `from` on.
    fn add_payload(&mut self, from: usize, body: &Bytes, suffix: &[u8]) {
        if body.len() <= self.shape.chain_threshold_bytes as usize {
            self.copied.extend_from_slice(body);
            self.copied.extend_from_slice(suffix);
            self.add_copied(from);
        } else {
            self.add_copied(from);
            self.bytes += body.len();
            self.pieces.push(Piece::Chained(body.clone()));
            let from = self.copied.len();
            self.copied.extend_from_slice(suffix);
            self.add_copied(from);
        }
    }

    /// Adds one frame of a compressed message: `prefix`, which stays as it is, and what `blocks` inflate
    /// to. A `prefix` that is not empty costs [`STORED_HEADER_BYTES`] more.
    ///
    /// # Panics
    /// If `prefix` is longer than 65,535 bytes.
    pub fn push_deflated(&mut self, opcode: Opcode, prefix: &[u8], blocks: &Bytes) {
        let stored = u16::try_from(prefix.len()).expect("a prefix fits a stored block");
        let header_len = if stored == 0 { 0 } else { STORED_HEADER_BYTES };
        self.frames += 1;
        let from = self.copied.len();
        write_header(&mut self.copied, opcode, header_len + prefix.len() + blocks.len());
        self.copied[from] |= DEFLATED_BIT;
        self.copied.extend_from_slice(&stored_block(stored)[..header_len]);
        self.copied.extend_from_slice(prefix);
        self.add_payload(from, blocks, &[]);
    }

    /// Adds one frame of bytes that nobody shares.
    pub fn push_small(&mut self, opcode: Opcode, payload: &[u8]) {
        self.push_frame(opcode, payload, &Bytes::new(), &[]);
    }

    /// Adds bytes that are no frame (an HTTP response).
    pub fn push_raw(&mut self, bytes: &[u8]) {
        self.frames += 1;
        let from = self.copied.len();
        self.copied.extend_from_slice(bytes);
        self.add_copied(from);
    }

    fn add_copied(&mut self, from: usize) {
        let to = self.copied.len();
        self.bytes += to - from;
        match self.pieces.last_mut() {
            Some(Piece::Copied { to: end, .. }) if *end == from => *end = to,
            _ if from == to => {}
            _ => self.pieces.push(Piece::Copied { from, to }),
        }
    }

    /// Frames added.
    #[must_use]
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// Bytes not yet written.
    #[must_use]
    pub fn left(&self) -> usize {
        self.bytes - self.written
    }

    /// The unwritten bytes, piece by piece.
    pub fn unwritten(&self) -> impl Iterator<Item = &[u8]> {
        let skip = self.piece_written;
        self.pieces[self.piece_at..].iter().enumerate().map(move |(n, piece)| {
            let bytes = self.piece_bytes(piece);
            if n == 0 { &bytes[skip..] } else { bytes }
        })
    }

    fn piece_bytes<'a>(&'a self, piece: &'a Piece) -> &'a [u8] {
        match piece {
            Piece::Copied { from, to } => &self.copied[*from..*to],
            Piece::Chained(bytes) => bytes,
        }
    }

    /// Notes that the socket took `count` bytes.
    ///
    /// # Panics
    /// If that is more than were left.
    pub fn advance(&mut self, count: usize) {
        assert!(count <= self.left(), "a socket takes what it is given");
        self.written += count;
        let mut count = count;
        while count > 0 {
            let left = self.piece_bytes(&self.pieces[self.piece_at]).len() - self.piece_written;
            if count < left {
                self.piece_written += count;
                return;
            }
            count -= left;
            self.piece_at += 1;
            self.piece_written = 0;
        }
    }

    /// Empties the batch, keeping its buffers.
    pub fn clear(&mut self) {
        self.copied.clear();
        self.pieces.clear();
        self.frames = 0;
        self.bytes = 0;
        self.written = 0;
        self.piece_at = 0;
        self.piece_written = 0;
    }

    /// Bytes of its own buffers.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.copied.capacity() + self.pieces.capacity() * size_of::<Piece>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn whatever_the_socket_takes_the_bytes_come_out_in_order(
            frames in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..40), 0_usize..3000, any::<bool>()), 0..20),
            takes in prop::collection::vec(1_usize..5000, 1..20),
        ) {
            let mut batch = Batch::default();
            let mut expected = Vec::new();
            for (prefix, len, raw) in &frames {
                if *raw {
                    batch.push_raw(prefix);
                    expected.extend_from_slice(prefix);
                } else {
                    let body = Bytes::from(vec![b'x'; *len]);
                    batch.push_frame(Opcode::Text, prefix, &body, b"]");
                    write_header(&mut expected, Opcode::Text, prefix.len() + len + 1);
                    expected.extend_from_slice(prefix);
                    expected.extend_from_slice(&body);
                    expected.push(b']');
                }
            }
            prop_assert_eq!(batch.frames() as usize, frames.len());
            prop_assert_eq!(batch.left(), expected.len());
            let mut out = Vec::new();
            let mut takes = takes.iter().cycle();
            while batch.left() > 0 {
                let flat: Vec<u8> = batch.unwritten().flatten().copied().collect();
                prop_assert_eq!(flat.len(), batch.left());
                let take = (*takes.next().unwrap()).min(flat.len());
                out.extend_from_slice(&flat[..take]);
                batch.advance(take);
            }
            prop_assert_eq!(out, expected);
        }
    }

    #[test]
    fn only_large_payloads_are_chained() {
        let mut batch = Batch::default();
        let threshold = Shape::default().chain_threshold_bytes as usize;
        for len in [10, threshold] {
            batch.push_frame(Opcode::Text, b"[", &vec![b'x'; len].into(), b"]");
        }
        assert_eq!(batch.unwritten().count(), 1);
        batch.push_frame(Opcode::Text, b"[", &vec![b'x'; threshold + 1].into(), b"]");
        assert_eq!(batch.unwritten().count(), 3);
    }

    #[test]
    fn a_batch_keeps_to_its_shape() {
        let frames = |shape: Shape, len: usize| {
            let mut batch = Batch::new(shape);
            while batch.has_room() {
                batch.push_frame(Opcode::Text, b"[", &vec![b'x'; len].into(), b"]");
                assert!(batch.frames() < 1_000, "no bound");
            }
            (batch.frames(), batch.unwritten().count())
        };
        let shape = Shape { bytes_max: 1_000, pieces_max: 9, chain_threshold_bytes: 50 };
        // A frame of two bytes of header, 96 of body, two around it.
        assert_eq!(frames(Shape { chain_threshold_bytes: 96, ..shape }, 96), (10, 1));
        assert_eq!(frames(shape, 51), (3, 7), "two each, and the last end");
        let mut batch = Batch::new(shape);
        batch.push_small(Opcode::Text, b"x");
        batch.clear();
        assert_eq!(batch.shape, shape, "for as long as it is used");
    }
}
