//! Any text as a client message: no panic, the same answer twice, and what is kept is JSON that reads
//! back as itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rheostr::nostr::message::FilterBounds;
use rheostr::nostr::{ClientMessage, MessageReader};

fuzz_target!(|bytes: &[u8]| {
    // The decoder hands over UTF-8 only.
    if std::str::from_utf8(bytes).is_err() {
        return;
    }
    let bounds = FilterBounds { filters_max: 5, values_max: 50, search: true };
    let mut reader = MessageReader::default();
    let first = reader.read(&mut bytes.to_vec(), bounds);
    let second = reader.read(&mut bytes.to_vec(), bounds);
    assert_eq!(format!("{first:?}"), format!("{second:?}"), "a reader forgets");
    match first {
        Ok(ClientMessage::Event(candidate)) => {
            let event = candidate.event();
            let json = event.view().json();
            serde_json::from_slice::<serde_json::Value>(json).expect("what is kept is JSON");
            let again = reader.read_event(&mut json.to_vec()).expect("and is an event");
            assert_eq!(again.event(), event);
        }
        Ok(ClientMessage::Req { filters, .. }) => {
            assert!((1..=bounds.filters_max).contains(&filters.len()));
            let values = |f: &rheostr::nostr::Filter| {
                f.kinds.as_ref().map_or(0, Vec::len)
                    + f.tags.iter().map(|(_, values)| values.len()).sum::<usize>()
            };
            assert!(filters.iter().map(values).sum::<usize>() <= bounds.values_max);
        }
        Ok(ClientMessage::Close { .. }) | Err(_) => {}
    }
});
