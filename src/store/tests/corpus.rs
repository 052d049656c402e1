//! Real events, when they are there.

use super::queries::{ask, queries_count};
use crate::nostr::event::Event;
use crate::store::testing::*;

/// Later than every event of the corpus.
const NOW: u64 = 1_800_000_000;

fn corpus() -> Option<Vec<Event>> {
    let text = crate::nostr::testing::corpus()?;
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
