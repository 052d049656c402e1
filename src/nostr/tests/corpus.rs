//! Every event of a corpus of real ones, where there is one.

use std::path::PathBuf;

use serde_json::Value;

use crate::nostr::{MessageReader, Verifier};

fn corpus() -> Option<String> {
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

#[test]
fn every_real_event_is_read_kept_and_verified() {
    let Some(corpus) = corpus() else { return };
    let (mut reader, mut verifier) = (MessageReader::default(), Verifier::default());
    let mut count = 0;
    for line in corpus.lines() {
        let candidate = reader
            .read_event(&mut line.as_bytes().to_vec())
            .unwrap_or_else(|error| panic!("{error}: {line}"));
        let kept: Value = serde_json::from_slice(candidate.event().view().json()).unwrap();
        let mut given: Value = serde_json::from_str(line).unwrap();
        let keys = kept.as_object().unwrap();
        given.as_object_mut().unwrap().retain(|key, _| keys.contains_key(key));
        assert_eq!(kept, given);
        assert!(verifier.verify(candidate).is_ok(), "{line}");
        count += 1;
    }
    assert!(count > 0, "an empty corpus shows nothing");
}
