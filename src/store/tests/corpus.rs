//! Real events, when they are there: in `$RHEOSTR_CORPUS`, or in `../shared/corpus`.

use std::path::PathBuf;

use crate::nostr::event::Event;
use crate::nostr::{Filter, TagValue};
use crate::store::SliceBudget;
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

/// Filters made of what the events hold: the same in every run.
fn filters(events: &[Event], count: usize) -> Vec<Filter> {
    let mut state = 7u64;
    let mut draw = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(state >> 33).unwrap() % below
    };
    let filter = |_| {
        let mut filter = Filter::default();
        let mut tags: Vec<(u8, TagValue)> = Vec::new();
        for _ in 0..=draw(3) {
            let event = events[draw(events.len())].view();
            match draw(6) {
                0 => filter.ids.get_or_insert_default().push(*event.id()),
                1 | 2 => filter.authors.get_or_insert_default().push(*event.pubkey()),
                3 => filter.kinds.get_or_insert_default().push(event.kind().0),
                4 => tags.extend(event.tags().take(2).map(|(l, v)| (l, v.to_owned()))),
                _ if draw(2) == 0 => filter.since = Some(event.created_at()),
                _ => filter.until = Some(event.created_at()),
            }
        }
        tags.sort();
        tags.dedup();
        for (letter, value) in tags {
            match filter.tags.last_mut() {
                Some((last, values)) if *last == letter => values.push(value),
                _ => filter.tags.push((letter, vec![value])),
            }
        }
        filter.ids.iter_mut().for_each(|list| {
            list.sort_unstable();
            list.dedup();
        });
        filter.authors.iter_mut().for_each(|list| {
            list.sort_unstable();
            list.dedup();
        });
        filter.kinds.iter_mut().for_each(|list| {
            list.sort_unstable();
            list.dedup();
        });
        filter.limit = (draw(3) == 0).then(|| draw(60) as u64);
        filter
    };
    (0..count).map(filter).collect()
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
    let visible = model.visible(NOW);
    let budget = SliceBudget { entries: 700, bytes: 100_000, events: 50 };
    let mut returned = 0;
    for pair in filters(&events, 600).chunks(2) {
        for filters in [pair, &pair[..1]] {
            let expected = evaluate(&visible, filters, 500);
            returned += expected.len();
            let got = scan_ids(&store, filters, 500, &budget, NOW);
            assert_eq!(got, expected, "{filters:?}");
        }
    }
    assert!(returned > 10_000, "the filters hit nothing: {returned}");
}
