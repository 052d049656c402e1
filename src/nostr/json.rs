//! JSON text in and out: a strict walk over simd-json's tape, and the one string escape the relay writes.

use std::collections::HashSet;

use simd_json::{Buffers, Node, StaticNode, Tape};

/// A parser that keeps its buffers from one message to the next.
pub struct Parser {
    buffers: Buffers,
    spare: Option<Tape<'static>>,
}

impl Default for Parser {
    fn default() -> Self {
        Self { buffers: Buffers::new(4096), spare: Some(Tape(Vec::new())) }
    }
}

impl Parser {
    /// Parses `text`, which is rewritten, and hands the root value to `visit`.
    ///
    /// Control characters in strings, lone surrogates, leading zeros, trailing bytes and
    /// numbers beyond 64 bits are refused.
    ///
    /// # Errors
    /// `None` when `text` is not one JSON value.
    pub fn parse<T>(
        &mut self,
        text: &mut [u8],
        visit: impl FnOnce(Value<'_, '_>) -> T,
    ) -> Option<T> {
        let mut tape: Tape<'_> = self.spare.take().unwrap_or_else(|| Tape(Vec::new())).reset();
        let parsed = simd_json::fill_tape(text, &mut self.buffers, &mut tape).is_ok();
        let result = parsed.then(|| visit(Value { nodes: &tape.0 }));
        if tape.0.capacity() <= NODES_KEPT_MAX {
            self.spare = Some(tape.reset());
        }
        result
    }
}

/// A tape longer than this is given back to the allocator after its message.
const NODES_KEPT_MAX: usize = 1 << 16;

/// One JSON value on the tape.
#[derive(Clone, Copy)]
pub struct Value<'t, 'i> {
    /// This value's node and all after it; `nodes[0]` is the value's own.
    nodes: &'t [Node<'i>],
}

impl<'t, 'i> Value<'t, 'i> {
    /// The string, unescaped.
    #[must_use]
    pub fn as_str(self) -> Option<&'i str> {
        match self.nodes[0] {
            Node::String(text) => Some(text),
            _ => None,
        }
    }

    /// The number, when it was written as a plain unsigned integer (no sign, fraction or exponent).
    #[must_use]
    pub fn as_u64(self) -> Option<u64> {
        match self.nodes[0] {
            Node::Static(StaticNode::U64(number)) => Some(number),
            _ => None,
        }
    }

    /// The array's items.
    #[must_use]
    pub fn as_array(self) -> Option<Items<'t, 'i>> {
        match self.nodes[0] {
            Node::Array { len, count } => Some(Items { left: len, nodes: &self.nodes[1..=count] }),
            _ => None,
        }
    }

    /// The object's keys and values, alternating.
    #[must_use]
    pub fn as_object(self) -> Option<Items<'t, 'i>> {
        match self.nodes[0] {
            Node::Object { len, count } => {
                Some(Items { left: 2 * len, nodes: &self.nodes[1..=count] })
            }
            _ => None,
        }
    }
}

/// Walks the items of an array, or the keys and values of an object.
#[derive(Clone)]
pub struct Items<'t, 'i> {
    left: usize,
    nodes: &'t [Node<'i>],
}

impl Items<'_, '_> {
    /// Whether an object's key stands there twice.
    #[must_use]
    pub fn has_duplicate_key(&self) -> bool {
        let keys = self.clone().step_by(2).map(|key| key.as_str().unwrap_or_default());
        if self.left <= 2 * KEYS_COMPARED_MAX {
            let mut seen = [""; KEYS_COMPARED_MAX];
            for (n, key) in keys.enumerate() {
                if seen[..n].contains(&key) {
                    return true;
                }
                seen[n] = key;
            }
            false
        } else {
            let mut seen = HashSet::new();
            keys.into_iter().any(|key| !seen.insert(key))
        }
    }
}

/// Up to this many keys are compared pair by pair; more go through a hash set.
const KEYS_COMPARED_MAX: usize = 16;

impl<'t, 'i> Iterator for Items<'t, 'i> {
    type Item = Value<'t, 'i>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let value = Value { nodes: self.nodes };
        let width = match self.nodes[0] {
            Node::Array { count, .. } | Node::Object { count, .. } => count + 1,
            Node::String(_) | Node::Static(_) => 1,
        };
        self.nodes = &self.nodes[width..];
        Some(value)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Items<'_, '_> {}

/// Appends `text` as a JSON string: the seven escapes of NIP-01, any other control character as
/// `\u00xx`, everything else verbatim. Returns whether such another control character was there.
pub fn write_string(out: &mut Vec<u8>, text: &str) -> bool {
    let bytes = text.as_bytes();
    let mut other_control = false;
    let mut copied = 0;
    out.reserve(bytes.len() + 2);
    out.push(b'"');
    for (at, &byte) in bytes.iter().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&bytes[copied..at]);
        copied = at + 1;
        if let Some(short) = short_escape(byte) {
            out.extend_from_slice(&[b'\\', short]);
        } else {
            other_control = true;
            out.extend_from_slice(b"\\u00");
            out.extend_from_slice(&[hex_digit(byte >> 4), hex_digit(byte & 15)]);
        }
    }
    out.extend_from_slice(&bytes[copied..]);
    out.push(b'"');
    other_control
}

fn short_escape(byte: u8) -> Option<u8> {
    Some(match byte {
        b'"' => b'"',
        b'\\' => b'\\',
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        0x08 => b'b',
        0x0c => b'f',
        _ => return None,
    })
}

fn hex_digit(nibble: u8) -> u8 {
    if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parses(text: &str) -> bool {
        Parser::default().parse(&mut text.as_bytes().to_vec(), |_| ()).is_some()
    }

    #[test]
    fn what_json_forbids_is_refused() {
        for text in [
            "[\"a\u{1}b\"]",
            "[\"a\nb\"]",
            r#"["\ud800"]"#,
            r#"["\ud83dxx"]"#,
            "[01]",
            "[1] x",
            "[1,]",
            "[18446744073709551616]",
            "[1e400]",
            r#"["\x"]"#,
            "",
            "[",
            "\u{feff}[1]",
            "[+1]",
            "[.5]",
            "[1.]",
            "[tru]",
            "[1]]",
        ] {
            assert!(!parses(text), "{text:?}");
        }
        assert!(!parses(&"[".repeat(100_000)));
        for text in [r#"["\u0000","\/","\ud83d\ude00"]"#, "[1]\n ", "{\"a\":1,\"a\":2}"] {
            assert!(parses(text), "{text:?}");
        }
    }

    #[test]
    fn only_plain_integers_are_numbers() {
        let numbers = |text: &str| {
            Parser::default().parse(&mut text.as_bytes().to_vec(), |v| {
                v.as_array().unwrap().map(Value::as_u64).collect::<Vec<_>>()
            })
        };
        assert_eq!(
            numbers("[0,7,18446744073709551615,-0,-1,1.0,1e2]").unwrap(),
            [Some(0), Some(7), Some(u64::MAX), None, None, None, None]
        );
    }

    #[test]
    fn duplicate_keys_are_seen_among_few_and_many() {
        for n in [2_usize, 15, 16, 17, 60] {
            let text = |last: usize| {
                let keys: Vec<_> =
                    (0..n - 1).chain([last]).map(|k| format!("\"k{k}\":[{{\"k1\":1}}]")).collect();
                format!("{{{}}}", keys.join(","))
            };
            let duplicate = |text: String| {
                Parser::default()
                    .parse(&mut text.into_bytes(), |v| v.as_object().unwrap().has_duplicate_key())
                    .unwrap()
            };
            assert!(!duplicate(text(n)), "{n}");
            assert!(duplicate(text(0)), "{n}");
        }
    }

    proptest! {
        #[test]
        fn a_written_string_reads_back(text in any::<String>()) {
            let mut out = Vec::new();
            let control = write_string(&mut out, &text);
            prop_assert_eq!(control, text.bytes().any(|b| b < 0x20 && short_escape(b).is_none()));
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        }
    }
}
