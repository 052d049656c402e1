//! Every event of a corpus of real ones, where there is one.

use serde_json::Value;

use crate::nostr::testing::corpus;
use crate::nostr::{MessageReader, Verifier};

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
