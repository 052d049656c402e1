//! Synthetic events: shaped, signed, and the same for the same seed.

use super::learn::{self, Shape};
use super::{Random, SignedEvent};
use anyhow::ensure;
use clap::Args;
use secp256k1::{Keypair, schnorr};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Bytes of `{"id":…}` with an empty content, no tags, a one-digit kind and a ten-digit `created_at`.
const SKELETON_BYTES: usize = 342;
const WORDS: &[&str] = &[
    "relay", "note", "the", "a", "is", "of", "to", "and", "in", "morning", "coffee", "signal",
    "river", "with", "for", "you", "this", "key", "open", "good", "today", "again", "bridge",
    "people", "light", "we", "are",
];
const WIDE_WORDS: &[&str] =
    &["こんにちは", "水", "流れ", "добрый", "день", "señal", "über", "🌊", "🤙"];

/// Writes a file of signed events, and beside it `FILE.gen.json`, which says that they are synthetic.
#[derive(Args, Debug)]
pub struct GenerateArgs {
    /// How many events
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub count: u32,
    /// The same seed (and --created-at) gives the same file
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How many keys sign; a few of them write most
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub authors: u32,
    /// Take kinds, sizes and tags (never text or keys) from the events of this file
    #[arg(long, value_name = "JSONL")]
    pub learn: Option<PathBuf>,
    /// created_at of the first event; each next one is a second older [default: now]
    #[arg(long, value_name = "UNIX_SECONDS")]
    pub created_at: Option<u64>,
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// Makes events one by one.
pub struct Generator {
    random: Random,
    authors: Vec<Author>,
    shapes: Vec<Shape>,
    created_at: u64,
}

struct Author {
    keypair: Keypair,
    pubkey_hex: String,
}

impl Generator {
    /// `shapes` empty means typical short notes of kind 1.
    ///
    /// # Errors
    /// `created_at` leaves no room for `count` seconds before it.
    pub fn new(
        seed: u64,
        authors: u32,
        shapes: Vec<Shape>,
        created_at: u64,
        count: u32,
    ) -> anyhow::Result<Self> {
        ensure!(
            created_at > u64::from(count),
            "created_at {created_at} is too small for {count} events"
        );
        let mut random = Random::new(seed);
        let authors = (0..authors).map(|_| Author::random(&mut random)).collect();
        Ok(Self { random, authors, shapes, created_at })
    }

    /// The next event, a second older than the one before.
    pub fn next_event(&mut self) -> SignedEvent {
        let shape = match self.shapes.len() {
            0 => typical_note(&mut self.random),
            count => self.shapes[self.random.below(count)].clone(),
        };
        let created_at = self.created_at;
        self.created_at -= 1;
        self.event(&shape, created_at)
    }

    /// An event of this kind whose JSON is `json_bytes` long, or as short as an empty note if that is longer.
    pub fn sized_event(&mut self, kind: u16, json_bytes: usize) -> SignedEvent {
        let kind_digits = kind.to_string().len();
        let content_bytes = json_bytes.saturating_sub(SKELETON_BYTES + kind_digits - 1);
        let shape = Shape { kind, content_bytes, wide: false, tags: Vec::new() };
        self.event(&shape, self.created_at)
    }

    fn event(&mut self, shape: &Shape, created_at: u64) -> SignedEvent {
        let author = self.random.skewed_below(self.authors.len());
        let content = text(&mut self.random, shape.content_bytes, shape.wide);
        let tags: Vec<Vec<String>> = shape
            .tags
            .iter()
            .map(|tag| tag.iter().map(|element| self.tag_element(element)).collect())
            .collect();
        sign(&self.authors[author], created_at, shape.kind, &tags, &content)
    }

    fn tag_element(&mut self, element: &learn::Element) -> String {
        match element {
            learn::Element::Literal(text) => text.clone(),
            learn::Element::Pubkey => {
                let author = self.random.skewed_below(self.authors.len());
                self.authors[author].pubkey_hex.clone()
            }
            learn::Element::Hex64 => faster_hex::hex_string(&self.random.bytes32()),
            learn::Element::Text { bytes, wide } => text(&mut self.random, *bytes, *wide),
        }
    }
}

impl Author {
    fn random(random: &mut Random) -> Self {
        loop {
            // One in 2^128 draws is no valid key.
            if let Ok(keypair) = Keypair::from_secret_bytes(random.bytes32()) {
                let pubkey_hex = keypair.x_only_public_key().0.to_string();
                return Self { keypair, pubkey_hex };
            }
        }
    }
}

/// Runs `gen`; returns the JSON that describes the file.
///
/// # Errors
/// An unreadable corpus or an unwritable file.
pub fn run(args: &GenerateArgs) -> anyhow::Result<Value> {
    let shapes = args.learn.as_deref().map(learn::read_shapes).transpose()?.unwrap_or_default();
    let created_at = args.created_at.unwrap_or_else(unix_now);
    let mut generator = Generator::new(args.seed, args.authors, shapes, created_at, args.count)?;
    let mut out = BufWriter::new(File::create(&args.out)?);
    let mut bytes = 0usize;
    for _ in 0..args.count {
        let event = generator.next_event();
        bytes += event.json.len();
        writeln!(out, "{}", event.json)?;
    }
    out.into_inner()?.sync_all()?;
    let label = json!({
        "scenario": "gen", "ok": true, "synthetic": true, "learned": args.learn.is_some(),
        "events": args.count, "seed": args.seed, "authors": args.authors, "created_at": created_at,
        "json_bytes_mean": bytes / args.count as usize, "out": args.out,
        "file_bytes": fs::metadata(&args.out)?.len(),
    });
    fs::write(label_path(&args.out), format!("{label}\n"))?;
    Ok(label)
}

/// Where `gen` says what it made.
fn label_path(file: &Path) -> PathBuf {
    let mut path = file.as_os_str().to_owned();
    path.push(".gen.json");
    path.into()
}

/// Whether `gen` made this file: the label beside it says so, and of a file of this size.
pub fn is_synthetic(file: &Path) -> bool {
    let Ok(label) = fs::read_to_string(label_path(file)) else { return false };
    let label: Value = serde_json::from_str(&label).unwrap_or_default();
    let bytes = fs::metadata(file).map_or(0, |file| file.len());
    label["synthetic"] == true && label["file_bytes"] == bytes
}

pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

/// Signs without auxiliary randomness (BIP-340 allows it), so that a seed fixes the signatures too.
fn sign(
    author: &Author,
    created_at: u64,
    kind: u16,
    tags: &[Vec<String>],
    content: &str,
) -> SignedEvent {
    let pubkey = &author.pubkey_hex;
    // serde_json escapes exactly as NIP-01 asks, for text without the rarer control characters.
    let tags = serde_json::to_string(tags).expect("strings serialize");
    let content = serde_json::to_string(content).expect("strings serialize");
    let preimage = format!("[0,\"{pubkey}\",{created_at},{kind},{tags},{content}]");
    let id: [u8; 32] = Sha256::digest(preimage).into();
    let signature = schnorr::sign_no_aux_rand(&id, &author.keypair).to_byte_array();
    let (id_hex, signature) = (faster_hex::hex_string(&id), faster_hex::hex_string(&signature));
    let json = format!(
        "{{\"id\":\"{id_hex}\",\"pubkey\":\"{pubkey}\",\"created_at\":{created_at},\"kind\":{kind},\
         \"tags\":{tags},\"content\":{content},\"sig\":\"{signature}\"}}"
    );
    SignedEvent { id, json }
}

/// A note of about 426 bytes of JSON: mostly bare, some with a topic, a mention, or a reply.
fn typical_note(random: &mut Random) -> Shape {
    use learn::Element::{Hex64, Literal, Pubkey, Text};
    let literal = |text: &str| Literal(text.to_owned());
    let word = || Text { bytes: 6, wide: false };
    let (tags, content_bytes_min, content_bytes_spread) = match random.below(10) {
        0..=5 => (vec![], 28, 100),
        6 | 7 => (vec![vec![literal("t"), word()]], 17, 70),
        8 => (vec![vec![literal("p"), Pubkey]], 11, 30),
        _ => (vec![vec![literal("e"), Hex64], vec![literal("p"), Pubkey]], 11, 20),
    };
    let content_bytes = content_bytes_min + random.below(content_bytes_spread);
    Shape { kind: 1, content_bytes, wide: random.below(10) == 0, tags }
}

/// Words of exactly `bytes` bytes of UTF-8, with nothing that JSON escapes, so that sizes are exact.
fn text(random: &mut Random, bytes: usize, wide: bool) -> String {
    let words = if wide { WIDE_WORDS } else { WORDS };
    let mut out = String::with_capacity(bytes);
    while out.len() < bytes {
        let word = words[random.below(words.len())];
        if out.len() + word.len() > bytes {
            out.push_str(&"relaynoteopenkey".repeat(2)[..(bytes - out.len()).min(32)]);
        } else {
            out.push_str(word);
            if out.len() < bytes {
                out.push(' ');
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use secp256k1::XOnlyPublicKey;

    fn events(seed: u64, count: u32) -> Vec<SignedEvent> {
        let mut generator = Generator::new(seed, 20, Vec::new(), 1_800_000_000, count).unwrap();
        (0..count).map(|_| generator.next_event()).collect()
    }

    fn assert_valid(event: &SignedEvent) {
        let value: Value = serde_json::from_str(&event.json).unwrap();
        let preimage = json!([
            0,
            value["pubkey"],
            value["created_at"],
            value["kind"],
            value["tags"],
            value["content"]
        ]);
        let id: [u8; 32] = Sha256::digest(preimage.to_string()).into();
        assert_eq!(id, event.id);
        let unhex = |key: &str, out: &mut [u8]| {
            faster_hex::hex_decode(value[key].as_str().unwrap().as_bytes(), out).unwrap();
        };
        let (mut pubkey, mut signature) = ([0; 32], [0; 64]);
        unhex("pubkey", &mut pubkey);
        unhex("sig", &mut signature);
        let pubkey = XOnlyPublicKey::from_byte_array(pubkey).unwrap();
        schnorr::verify(&schnorr::Signature::from_byte_array(signature), &id, &pubkey).unwrap();
    }

    #[test]
    fn a_seed_fixes_every_byte() {
        let json = |seed| events(seed, 30).into_iter().map(|event| event.json).collect::<Vec<_>>();
        assert_eq!(json(7), json(7));
        assert_ne!(json(7), json(8));
    }

    #[test]
    fn a_seed_fixes_what_is_drawn_from_a_corpus() {
        let line = |kind: u16, tags: &str| {
            format!(
                r#"{{"id":"","pubkey":"","sig":"","created_at":1,"kind":{kind},"tags":{tags},"content":"abc"}}"#
            )
        };
        let lines = [line(1, r#"[["t","topic"]]"#), line(7, r#"[["p","00"]]"#), line(1, "[]")];
        let json = |seed| -> Vec<String> {
            let shapes = learn::shapes_of(lines.iter().map(String::as_str)).unwrap();
            let mut generator = Generator::new(seed, 20, shapes, 1_800_000_000, 30).unwrap();
            (0..30).map(|_| generator.next_event().json).collect()
        };
        assert_eq!(json(7), json(7));
        assert_ne!(json(7), json(8));
        let of_kind = |kind: &str| json(7).iter().filter(|event| event.contains(kind)).count();
        assert!(of_kind("\"kind\":7,") > 3 && of_kind("\"kind\":1,") > 10);
    }

    #[test]
    fn every_event_is_valid_and_older_than_the_one_before() {
        let events = events(3, 60);
        events.iter().for_each(assert_valid);
        let times: Vec<u64> =
            events.iter().map(|event| event.fields().unwrap().created_at).collect();
        assert!(times.windows(2).all(|pair| pair[0] == pair[1] + 1));
    }

    #[test]
    fn typical_notes_average_426_bytes() {
        let events = events(1, 2000);
        let mean = events.iter().map(|event| event.json.len()).sum::<usize>() / events.len();
        assert!((421..=431).contains(&mean), "{mean}");
    }

    #[test]
    fn sized_events_have_their_size() {
        let mut generator = Generator::new(1, 3, Vec::new(), 1_800_000_000, 10).unwrap();
        for (kind, bytes) in [(1, 425), (20_001, 425), (30_023, 9_000)] {
            let event = generator.sized_event(kind, bytes);
            assert_valid(&event);
            assert_eq!(event.json.len(), bytes);
        }
    }

    #[test]
    fn learned_shapes_are_signed_too() {
        let shapes = learn::shapes_of([
            r#"{"id":"","pubkey":"","sig":"","created_at":1,"kind":7,"tags":[["e","00"],["t","é"]],"content":"ü+"}"#,
        ])
        .unwrap();
        let mut generator = Generator::new(1, 3, shapes, 1_800_000_000, 10).unwrap();
        let event = generator.next_event();
        assert_valid(&event);
        assert_eq!(event.fields().unwrap().kind, 7);
    }
}
