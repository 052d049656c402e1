//! Signed events, made and signed before a run, and what a scenario must know about each of them.

pub mod filter;
pub mod generate;
pub mod learn;

use crate::client::Id;
use anyhow::{Context, ensure};
use serde::Deserialize;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// The whole file is kept in memory, and once more as masked frames.
const FILE_BYTES_MAX: u64 = 4 << 30;

/// One event of a file.
#[derive(Clone, Debug)]
pub struct SignedEvent {
    pub id: Id,
    /// The event object as one line of JSON.
    pub json: String,
}

/// What filters and order depend on.
#[derive(Clone, Debug, Deserialize)]
pub struct EventFields {
    pub id: String,
    pub pubkey: String,
    pub created_at: u64,
    pub kind: u16,
    pub tags: Vec<Vec<String>>,
}

impl SignedEvent {
    /// # Errors
    /// Not an event object with a lowercase hex id.
    pub fn from_json(json: String) -> anyhow::Result<Self> {
        #[derive(Deserialize)]
        struct OnlyId<'a> {
            id: &'a str,
        }
        let parsed: OnlyId<'_> = serde_json::from_str(&json)?;
        let mut id = [0; 32];
        ensure!(parsed.id.len() == 64, "the id has {} characters", parsed.id.len());
        faster_hex::hex_decode(parsed.id.as_bytes(), &mut id)?;
        Ok(Self { id, json })
    }

    /// # Errors
    /// A field that is missing or of the wrong type.
    pub fn fields(&self) -> anyhow::Result<EventFields> {
        Ok(serde_json::from_str(&self.json)?)
    }
}

/// The events of a file by their id.
pub type IdIndex = HashMap<Id, u32>;

/// Reads a JSON-lines file of events; `limit` takes only its first ones.
///
/// # Errors
/// The file is unreadable, too large or empty, a line is no event, or an id comes twice (each must be answered once).
pub fn load(path: &Path, limit: Option<usize>) -> anyhow::Result<(Vec<SignedEvent>, IdIndex)> {
    let file = File::open(path).with_context(|| format!("{}", path.display()))?;
    let bytes = file.metadata()?.len();
    ensure!(bytes <= FILE_BYTES_MAX, "{}: {bytes} bytes, above {FILE_BYTES_MAX}", path.display());
    let mut events = Vec::new();
    for (line_index, line) in BufReader::new(file).lines().enumerate() {
        if limit.is_some_and(|limit| events.len() >= limit) {
            break;
        }
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let event = SignedEvent::from_json(line.trim().to_owned());
        events.push(event.with_context(|| format!("{}:{}", path.display(), line_index + 1))?);
    }
    ensure!(!events.is_empty(), "{}: no events", path.display());
    let index = index(&events)?;
    Ok((events, index))
}

/// # Errors
/// An id that comes twice.
pub fn index(events: &[SignedEvent]) -> anyhow::Result<IdIndex> {
    let mut index = IdIndex::with_capacity(events.len());
    for (position, event) in events.iter().enumerate() {
        let twin = index.insert(event.id, u32::try_from(position)?);
        ensure!(twin.is_none(), "the event {} comes twice", faster_hex::hex_string(&event.id));
    }
    Ok(index)
}

/// SplitMix64. Its stream is fixed by its definition, so a seed names the same events in every version of this tool;
/// the generators of crates change theirs.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..bound`.
    ///
    /// # Panics
    /// If `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next_u64()) * bound as u128) >> 64) as usize
    }

    /// A number in `0..bound` that is often small: the square of a uniform one, as few authors write most notes.
    pub fn skewed_below(&mut self, bound: usize) -> usize {
        self.below(bound) * self.below(bound) / bound
    }

    pub fn bytes32(&mut self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for chunk in bytes.chunks_exact_mut(8) {
            chunk.copy_from_slice(&self.next_u64().to_le_bytes());
        }
        bytes
    }

    pub fn mask(&mut self) -> [u8; 4] {
        (self.next_u64() as u32 | 0x0101_0101).to_le_bytes()
    }
}
