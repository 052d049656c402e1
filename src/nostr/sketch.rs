//! How many authors there are, about: HyperLogLog over pubkeys (NIP-45, "HyperLogLog").
//!
//! Relays that hold different events answer with registers a client can merge: the greater of each pair.
//! That works because a filter says where in a pubkey everybody looks, and because a pubkey is as good as
//! random there.

use sha2::{Digest, Sha256};

use super::event::Pubkey;
use super::tag::decode_hex32;

/// How many registers there are: one for each value of a byte.
pub const REGISTERS: usize = 256;

/// Leading zeros counted behind the byte that names the register. The NIP's text has no such bound; other
/// relays look at 8 bytes in all, and one pubkey in 2^56 makes a difference.
const ZEROS_MAX: u32 = 56;

/// Where in a pubkey to look, from 8 to 23: which byte names the register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SketchOffset(u8);

impl SketchOffset {
    /// The place for a filter whose first tag field begins with this value: hex digit 32, counted from 0,
    /// of the value if it is an id or a key, of the key if it is an address, of its SHA-256 otherwise.
    #[must_use]
    pub fn of(value: &str) -> Self {
        let key = decode_hex32(value.as_bytes()).or_else(|| {
            let key = value.split(':').nth(1)?;
            decode_hex32(key.as_bytes())
        });
        let bytes: [u8; 32] = key.unwrap_or_else(|| Sha256::digest(value).into());
        Self(8 + (bytes[16] >> 4))
    }
}

/// The registers, filled pubkey by pubkey. The same ones in any order and number leave the same registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sketch {
    offset: usize,
    registers: [u8; REGISTERS],
}

impl Sketch {
    /// Of no pubkey.
    #[must_use]
    pub fn new(offset: SketchOffset) -> Self {
        Self { offset: offset.0.into(), registers: [0; REGISTERS] }
    }

    /// Takes one pubkey in.
    pub fn add(&mut self, pubkey: &Pubkey) {
        let looked_at: &[u8; 8] = pubkey[self.offset..].first_chunk().expect("8 of 32 from 23");
        let zeros = (u64::from_be_bytes(*looked_at) << 8).leading_zeros().min(ZEROS_MAX);
        let register = &mut self.registers[usize::from(looked_at[0])];
        *register = (*register).max(u8::try_from(zeros + 1).expect("at most 57"));
    }

    /// The registers as NIP-45 writes them: 512 hex characters.
    #[must_use]
    pub fn to_hex(&self) -> String {
        faster_hex::hex_string(&self.registers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_says_where_to_look() {
        let hex = format!("{}{}", "0".repeat(32), "c".repeat(32));
        assert_eq!(SketchOffset::of(&hex), SketchOffset(20));
        assert_eq!(SketchOffset::of(&format!("30023:{hex}:a:b")), SketchOffset(20));
        assert_eq!(SketchOffset::of(&"f".repeat(64)), SketchOffset(23));
        assert_eq!(SketchOffset::of(&"0".repeat(64)), SketchOffset(8));
        // SHA-256 of "abc" is ba7816bf8f01cfea414140de5dae2223 b00361a3…
        assert_eq!(SketchOffset::of("abc"), SketchOffset(8 + 0xb));
        assert_eq!(SketchOffset::of("abc:def:g"), {
            let digest: [u8; 32] = Sha256::digest("abc:def:g").into();
            SketchOffset(8 + (digest[16] >> 4))
        });
    }

    #[test]
    fn a_register_holds_the_most_zeros_and_one() {
        let mut sketch = Sketch::new(SketchOffset(10));
        let mut add = |register: u8, rest: [u8; 8]| {
            let mut pubkey = [0xff; 32];
            pubkey[10] = register;
            pubkey[11..19].copy_from_slice(&rest);
            sketch.add(&pubkey);
            sketch.registers[usize::from(register)]
        };
        assert_eq!(add(7, [0x80, 0, 0, 0, 0, 0, 0, 0]), 1);
        assert_eq!(add(7, [0, 0x10, 0, 0, 0, 0, 0, 0]), 12);
        assert_eq!(add(7, [0x40, 0, 0, 0, 0, 0, 0, 0]), 12);
        assert_eq!(add(8, [0, 0, 0, 0, 0, 0, 1, 0xff]), 56);
        assert_eq!(add(9, [0; 8]), 57);
        let hex = sketch.to_hex();
        assert_eq!(hex.len(), 512);
        assert_eq!(&hex[12..22], "000c383900");
    }

    /// The registers are of use: the usual estimate from them is near the truth.
    #[test]
    fn the_registers_tell_how_many_there_are() {
        for count in [10_u64, 1_000, 50_000] {
            let mut sketch = Sketch::new(SketchOffset::of("a hashtag"));
            for n in 0..count {
                let pubkey = Sha256::digest(n.to_be_bytes()).into();
                sketch.add(&pubkey);
                sketch.add(&pubkey);
            }
            let registers = REGISTERS as f64;
            let sum: f64 = sketch.registers.iter().map(|r| 0.5_f64.powi(i32::from(*r))).sum();
            let raw = 0.7213 / (1.0 + 1.079 / registers) * registers * registers / sum;
            let empty = sketch.registers.iter().filter(|r| **r == 0).count() as f64;
            let few = raw < 2.5 * registers && empty > 0.0;
            let estimate = if few { registers * (registers / empty).ln() } else { raw };
            let error = (estimate / count as f64 - 1.0).abs();
            // Four times the standard error, 1.04 / √256.
            assert!(error < 0.26, "{estimate} for {count}");
        }
    }
}
