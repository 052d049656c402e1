//! What clients say, kept for the driver to write down: `--capture`. Off in a relay that is not told to.

use super::session::ConnectionKey;

/// Bytes kept of one turn; what goes beyond is counted and not kept.
pub const CAPTURED_BYTES_MAX: usize = 1 << 20;

/// Messages of one turn, in the order they came.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Captured {
    /// Each message and its connection: text as it was acted on, inflated.
    pub messages: Vec<(ConnectionKey, Box<[u8]>)>,
    /// Messages that found no room.
    pub dropped: u64,
    bytes: usize,
}

impl Captured {
    pub(super) fn note(&mut self, key: ConnectionKey, text: &[u8]) {
        if self.bytes + text.len() > CAPTURED_BYTES_MAX {
            self.dropped += 1;
        } else {
            self.bytes += text.len();
            self.messages.push((key, text.into()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_room_is_counted() {
        let mut captured = Captured::default();
        let key = ConnectionKey(1);
        captured.note(key, &vec![b'x'; CAPTURED_BYTES_MAX - 1]);
        captured.note(key, b"ab");
        captured.note(key, b"c");
        captured.note(key, b"d");
        assert_eq!((captured.messages.len(), captured.dropped), (2, 2));
        assert_eq!(*captured.messages[1].1, *b"c");
    }
}
