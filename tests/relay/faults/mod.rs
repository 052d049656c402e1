//! Disks that are full or fail: what the relay answers meanwhile, and what is there afterwards.

mod damage;
mod failing;
mod full;

use std::collections::HashSet;
use std::path::Path;

use crate::support::server::rheostr;
use crate::support::{Author, Client, Draft, Event, Filter, now};

/// A regular event with `bytes` of content.
fn nth(author: &Author, number: u64, bytes: usize) -> Event {
    Draft::new(1, now()).content(format!("{number} {}", "x".repeat(bytes))).sign(author)
}

/// Whether the event was taken; if not, why.
fn publish(client: &mut Client, event: &Event) -> Result<(), String> {
    match client.publish(event) {
        (true, text) => {
            assert_eq!(text, "");
            Ok(())
        }
        (false, text) => Err(text),
    }
}

fn serves(client: &mut Client, event: &Event) -> bool {
    client.query(&[Filter::default().ids([&*event.id])]) == std::slice::from_ref(event)
}

/// The store, without a relay, holds every one of `promised`, and its tables agree.
fn holds(data: &Path, promised: &[Event]) {
    let checked = rheostr(["check"], data);
    assert!(checked.status.success(), "{checked:?}");
    let export = rheostr(["export"], data);
    assert!(export.status.success(), "{}", String::from_utf8_lossy(&export.stderr));
    let text = String::from_utf8(export.stdout).expect("JSON is UTF-8");
    let events = text.lines().map(|line| serde_json::from_str::<Event>(line).expect("an event"));
    let ids: HashSet<_> = events.map(|event| event.id).collect();
    let lost: Vec<_> = promised.iter().filter(|event| !ids.contains(&event.id)).collect();
    assert!(lost.is_empty(), "{} of {} were lost", lost.len(), promised.len());
}
