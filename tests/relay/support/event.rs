//! Events as the tests make them: signed with keys that follow from a number.

use secp256k1::{Keypair, schnorr};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// An event as JSON holds it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Event {
    pub id: String,
    pub pubkey: String,
    pub created_at: u64,
    pub kind: u16,
    pub tags: Vec<Vec<String>>,
    pub content: String,
    pub sig: String,
}

impl Event {
    /// The event as one JSON object.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers")
    }

    /// `["EVENT",{…}]`
    pub fn message(&self) -> String {
        format!("[\"EVENT\",{}]", self.json())
    }

    /// The first value of the first tag of this name.
    pub fn tag(&self, name: &str) -> Option<&str> {
        let tag = self.tags.iter().find(|tag| tag[0] == name)?;
        tag.get(1).map(String::as_str)
    }
}

/// How an id is hashed where control characters stand in strings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Controls {
    /// As NIP-01 says: only seven escapes, everything else verbatim.
    Verbatim,
    /// As JSON libraries write it: `\u00xx`.
    Escaped,
}

/// A JSON string as it is hashed.
pub fn quote(text: &str, controls: Controls) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' && controls == Controls::Escaped => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A key pair.
#[derive(Clone, Copy, Debug)]
pub struct Author(Keypair);

impl Author {
    /// The author of this number, always the same.
    pub fn new(number: u64) -> Self {
        let secret = Sha256::digest(format!("rheostr test author {number}"));
        Self(Keypair::from_secret_bytes(secret.into()).expect("a hash is a secret key"))
    }

    /// The public key in hex.
    pub fn hex(&self) -> String {
        self.0.x_only_public_key().0.to_string()
    }

    /// A kind 1 event without tags.
    pub fn note(&self, created_at: u64, content: &str) -> Event {
        Draft::new(1, created_at).content(content).sign(self)
    }

    /// Signs the 32 bytes of a hash.
    pub fn sign(&self, id: [u8; 32]) -> String {
        let signature: schnorr::Signature = schnorr::sign_no_aux_rand(&id, &self.0);
        signature.to_string()
    }
}

/// An event before it is signed.
#[derive(Clone, Debug)]
pub struct Draft {
    created_at: u64,
    kind: u16,
    tags: Vec<Vec<String>>,
    content: String,
}

impl Draft {
    pub fn new(kind: u16, created_at: u64) -> Self {
        Self { created_at, kind, tags: Vec::new(), content: String::new() }
    }

    pub fn content(mut self, content: impl Into<String>) -> Self {
        self.content = content.into();
        self
    }

    pub fn tag<const N: usize>(mut self, tag: [&str; N]) -> Self {
        self.tags.push(tag.map(String::from).into());
        self
    }

    pub fn sign(self, author: &Author) -> Event {
        self.sign_over(author, Controls::Verbatim)
    }

    pub fn sign_over(self, author: &Author, controls: Controls) -> Event {
        let (mut event, id) = self.hash(author.hex(), controls);
        event.sig = author.sign(id);
        event
    }

    /// The event of this public key with its right id and a wrong signature.
    pub fn unsigned(self, pubkey: &str) -> Event {
        self.hash(pubkey.into(), Controls::Verbatim).0
    }

    fn hash(self, pubkey: String, controls: Controls) -> (Event, [u8; 32]) {
        let list = |items: Vec<String>| format!("[{}]", items.join(","));
        let tag = |tag: &Vec<String>| list(tag.iter().map(|v| quote(v, controls)).collect());
        let tags = list(self.tags.iter().map(tag).collect());
        let text = format!(
            "[0,\"{pubkey}\",{},{},{tags},{}]",
            self.created_at,
            self.kind,
            quote(&self.content, controls)
        );
        let id: [u8; 32] = Sha256::digest(text).into();
        let event = Event {
            id: faster_hex::hex_string(&id),
            pubkey,
            created_at: self.created_at,
            kind: self.kind,
            tags: self.tags,
            content: self.content,
            sig: "00".repeat(64),
        };
        (event, id)
    }
}
