//! Indexed tags, packed: the first value of every single-letter tag (NIP-01, "tags").
//!
//! A packed list is a run of items, each `letter ‖ form ‖ [length] ‖ value`:
//!
//! | form | length field | value |
//! |---|---|---|
//! | 0 | none | 32 raw bytes: the value was exactly 64 lowercase hex characters |
//! | 1 | `u8` | that many bytes of UTF-8 |
//! | 2 | `u32`, big-endian | that many bytes of UTF-8 |
//!
//! The form is a function of the value, so equal values have equal forms and comparing forms
//! and bytes compares the values.

/// The value of a tag as it lies in a packed list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TagRef<'a> {
    /// 64 lowercase hex characters, decoded.
    Hex(&'a [u8; 32]),
    /// Any other string, possibly empty.
    Text(&'a [u8]),
}

/// An owned [`TagRef`]; the two order alike.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TagValue {
    /// See [`TagRef::Hex`].
    Hex([u8; 32]),
    /// See [`TagRef::Text`].
    Text(Box<[u8]>),
}

impl TagValue {
    /// The value that `text` stands for, decoded when it is 64 lowercase hex characters.
    #[must_use]
    pub fn new(text: &str) -> Self {
        match decode_hex32(text.as_bytes()) {
            Some(raw) => Self::Hex(raw),
            None => Self::Text(text.as_bytes().into()),
        }
    }

    /// Borrows the value.
    #[must_use]
    pub fn as_ref(&self) -> TagRef<'_> {
        match self {
            Self::Hex(raw) => TagRef::Hex(raw),
            Self::Text(text) => TagRef::Text(text),
        }
    }
}

impl TagRef<'_> {
    /// Copies the value.
    #[must_use]
    pub fn to_owned(self) -> TagValue {
        match self {
            Self::Hex(raw) => TagValue::Hex(*raw),
            Self::Text(text) => TagValue::Text(text.into()),
        }
    }

    /// The string the client sent, hex spelled out again.
    #[must_use]
    pub fn to_text(self) -> String {
        match self {
            Self::Hex(raw) => faster_hex::hex_string(raw),
            Self::Text(text) => String::from_utf8_lossy(text).into_owned(),
        }
    }
}

const FORM_HEX: u8 = 0;
const FORM_SHORT: u8 = 1;
const FORM_LONG: u8 = 2;

/// Appends one tag to a packed list.
///
/// # Panics
/// If `value` is 4 GiB or longer; a message is bounded far below that.
pub fn pack(out: &mut Vec<u8>, letter: u8, value: &str) {
    out.push(letter);
    if let Some(raw) = decode_hex32(value.as_bytes()) {
        out.push(FORM_HEX);
        out.extend_from_slice(&raw);
    } else if let Ok(len) = u8::try_from(value.len()) {
        out.extend_from_slice(&[FORM_SHORT, len]);
        out.extend_from_slice(value.as_bytes());
    } else {
        let len = u32::try_from(value.len()).expect("a tag value is shorter than a message");
        out.push(FORM_LONG);
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(value.as_bytes());
    }
}

/// Walks a packed list.
#[derive(Clone, Debug)]
pub struct Unpack<'a> {
    rest: &'a [u8],
}

impl<'a> Unpack<'a> {
    /// Walks `packed`, which [`pack`] wrote.
    #[must_use]
    pub fn new(packed: &'a [u8]) -> Self {
        Self { rest: packed }
    }
}

impl<'a> Iterator for Unpack<'a> {
    type Item = (u8, TagRef<'a>);

    /// The next letter and value.
    ///
    /// # Panics
    /// On bytes that [`pack`] did not write: records are checked when they are read from outside.
    fn next(&mut self) -> Option<Self::Item> {
        let (&letter, rest) = self.rest.split_first()?;
        let (&form, rest) = rest.split_first().expect("a packed tag has a form");
        let (value, rest) = match form {
            FORM_HEX => {
                let (raw, rest) = rest.split_first_chunk::<32>().expect("32 bytes follow");
                (TagRef::Hex(raw), rest)
            }
            FORM_SHORT => {
                let (&len, rest) = rest.split_first().expect("a length follows");
                let (text, rest) = rest.split_at(usize::from(len));
                (TagRef::Text(text), rest)
            }
            FORM_LONG => {
                let (len, rest) = rest.split_first_chunk::<4>().expect("a length follows");
                let (text, rest) = rest.split_at(u32::from_be_bytes(*len) as usize);
                (TagRef::Text(text), rest)
            }
            other => panic!("packed tag of form {other}"),
        };
        self.rest = rest;
        Some((letter, value))
    }
}

/// Decodes exactly 64 lowercase hex characters.
#[must_use]
pub fn decode_hex32(text: &[u8]) -> Option<[u8; 32]> {
    let mut raw = [0; 32];
    (text.len() == 64).then_some(())?;
    faster_hex::hex_decode_with_case(text, &mut raw, faster_hex::CheckCase::Lower).ok()?;
    Some(raw)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn uppercase_and_odd_lengths_stay_text() {
        let hex = "ab".repeat(32);
        assert!(matches!(TagValue::new(&hex), TagValue::Hex(_)));
        assert!(matches!(TagValue::new(&hex.to_uppercase()), TagValue::Text(_)));
        assert!(matches!(TagValue::new(&hex[1..]), TagValue::Text(_)));
        assert!(matches!(TagValue::new(""), TagValue::Text(_)));
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_out(tags in prop::collection::vec((any::<u8>(), ".{0,300}|[0-9a-f]{64}"), 0..20)) {
            let mut packed = Vec::new();
            for (letter, value) in &tags {
                pack(&mut packed, *letter, value);
            }
            let out: Vec<_> = Unpack::new(&packed).map(|(l, v)| (l, v.to_text())).collect();
            prop_assert_eq!(out, tags);
        }

        #[test]
        fn borrowed_and_owned_order_alike(a in ".{0,3}|[0-9a-f]{64}", b in ".{0,3}|[0-9a-f]{64}") {
            let (a, b) = (TagValue::new(&a), TagValue::new(&b));
            prop_assert_eq!(a.cmp(&b), a.as_ref().cmp(&b.as_ref()));
        }
    }
}
