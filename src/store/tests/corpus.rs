//! Real events, when they are there: in `$RHEOSTR_CORPUS`, or in `../shared/corpus`.

use std::path::PathBuf;

use super::queries::{ask, queries_count};
use crate::nostr::event::Event;
use crate::store::testing::*;

/// Later than every event of the corpus.
const NOW: u64 = 1_800_000_000;

fn corpus() -> Option<Vec<Event>> {
    let default = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/corpus");
    let dir = std::env::var_os("RHEOSTR_CORPUS").map_or_else(default, PathBuf::from);
    let path = dir.join("real-events.jsonl");
    let Ok(text) = std::fs::read_to_string(&path) else {
        eprintln!("SKIPPED: there are no real events at {}", path.display());
        return None;
    };
    let event = |line: &str| from_json(&serde_json::from_str(line).expect("an event a line"));
    let storable = |event: &Event| !(20_000..30_000).contains(&event.view().kind().0);
    Some(text.lines().map(event).filter(storable).collect())
}

#[test]
fn real_events_are_stored_and_found_as_the_model_says() {
    let Some(events) = corpus() else { return };
    let (store, _dir) = store();
    let mut model = Model::default();
    for batch in events.chunks(500) {
        let expected: Vec<_> = batch.iter().map(|event| model.arrive(event, NOW)).collect();
        assert_eq!(verdicts(&store, batch, NOW), expected);
    }
    assert_sound(&store);
    ask(&store, &model.visible(NOW), NOW, 3, queries_count());
}
