//! A capture (`rheostr relay --capture FILE`) through the pure core, by the clock of the capture.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::core::{Core, masked};

/// One message of a client.
#[derive(Debug, Deserialize)]
pub struct Said {
    /// Microseconds since the capture began.
    pub us: u64,
    /// Who took it, and from whom.
    pub shard: usize,
    pub connection: u64,
    pub text: String,
}

/// The messages of a capture, and how many it lacks.
pub fn read(capture: &str) -> (Vec<Said>, u64) {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Line {
        Said(Said),
        Last { dropped_messages: u64 },
    }
    let (mut said, mut dropped) = (Vec::new(), 0);
    for line in capture.lines() {
        match serde_json::from_str(line).expect("a line of a capture") {
            Line::Said(message) => said.push(message),
            Line::Last { dropped_messages } => dropped = dropped_messages,
        }
    }
    // Each shard wrote its own in order, some before those of another that came earlier.
    said.sort_by_key(|message| message.us);
    (said, dropped)
}

/// Opens the connections of a capture and feeds its messages through a core, each with all that follows
/// from it; every connection is on one shard here. `around` is given the message and the work.
pub fn feed(core: &mut Core, said: &[Said], mut around: impl FnMut(&Said, &mut dyn FnMut())) {
    let mut keys = BTreeMap::new();
    for message in said {
        let of = (message.shard, message.connection);
        keys.entry(of).or_insert_with(|| core.connect());
    }
    for message in said {
        let mut frame = masked(message.text.as_bytes());
        let key = keys[&(message.shard, message.connection)];
        around(message, &mut || {
            core.pass_to(message.us);
            core.read(key, &mut frame);
            core.settle();
        });
    }
}
