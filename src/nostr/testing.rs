//! What tests of several layers share: events made from fields, hashed by a model of its own.

use std::path::PathBuf;

use secp256k1::{Keypair, schnorr};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::event::Id;
use super::message::{FilterBounds, MessageReader};
use super::parse::Candidate;

/// Bounds nobody meets by accident.
pub const BOUNDS: FilterBounds =
    FilterBounds { filters_max: 20, values_max: 10_000, search: false };

/// How a serialization to be hashed writes the control characters NIP-01 gives no escape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Controls {
    /// As JSON libraries do: `\u00xx`.
    Escaped,
    /// As NIP-01 says: verbatim.
    Raw,
}

/// An event to be.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Number of the author's secret key, from 1.
    pub author: u8,
    pub created_at: u64,
    pub kind: u64,
    pub tags: Vec<Vec<String>>,
    pub content: String,
}

impl Default for Draft {
    fn default() -> Self {
        let content = String::from("hello");
        Self { author: 1, created_at: 1_700_000_000, kind: 1, tags: Vec::new(), content }
    }
}

impl Draft {
    /// With these tags.
    pub fn tagged(tags: &[&[&str]]) -> Self {
        let owned = |tag: &&[&str]| tag.iter().map(|text| (*text).to_owned()).collect();
        Self { tags: tags.iter().map(owned).collect(), ..Self::default() }
    }

    /// With this content.
    pub fn saying(content: &str) -> Self {
        Self { content: content.into(), ..Self::default() }
    }

    fn keys(&self) -> Keypair {
        Keypair::from_secret_bytes([self.author; 32]).expect("a small number is a secret key")
    }

    pub fn pubkey(&self) -> [u8; 32] {
        self.keys().x_only_public_key().0.to_byte_array()
    }

    /// The id, from serde_json's text; it writes the escapes of NIP-01 and `\u00xx` for the rest.
    pub fn id(&self, controls: Controls) -> Id {
        let pubkey = faster_hex::hex_string(&self.pubkey());
        let mut text =
            json!([0, pubkey, self.created_at, self.kind, self.tags, self.content]).to_string();
        if controls == Controls::Raw {
            text = unescape_controls(&text);
        }
        Sha256::digest(text).into()
    }

    /// The event, hashed one way and signed.
    pub fn event_with(&self, controls: Controls) -> Value {
        let id = self.id(controls);
        let sig = schnorr::sign_no_aux_rand(&id, &self.keys()).to_byte_array();
        json!({
            "id": faster_hex::hex_string(&id),
            "pubkey": faster_hex::hex_string(&self.pubkey()),
            "created_at": self.created_at,
            "kind": self.kind,
            "tags": self.tags,
            "content": self.content,
            "sig": faster_hex::hex_string(&sig),
        })
    }

    /// The event, signed.
    pub fn event(&self) -> Value {
        self.event_with(Controls::Escaped)
    }

    /// The event as the relay reads it.
    pub fn candidate(&self) -> Candidate {
        read_event(&self.event().to_string()).expect("a draft makes an event")
    }
}

fn unescape_controls(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match rest.next().expect("an escape has a letter") {
            'u' => {
                let digits: String = rest.by_ref().take(4).collect();
                let code = u32::from_str_radix(&digits, 16).expect("four hex digits");
                out.push(char::from_u32(code).expect("a control character"));
            }
            letter => out.extend(['\\', letter]),
        }
    }
    out
}

/// Reads one event's text.
pub fn read_event(text: &str) -> Result<Candidate, &'static str> {
    MessageReader::default().read_event(&mut text.as_bytes().to_vec())
}

/// Real events, one a line, when they are there: in the file `$RHEOSTR_CORPUS`, or beside the checkout.
pub fn corpus() -> Option<String> {
    let beside =
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/corpus/real-events.jsonl");
    let path = std::env::var_os("RHEOSTR_CORPUS").map_or_else(beside, PathBuf::from);
    match std::fs::read_to_string(&path) {
        Ok(text) => Some(text),
        Err(error) => {
            eprintln!("SKIPPED: no corpus at {} ({error}); set RHEOSTR_CORPUS", path.display());
            None
        }
    }
}
