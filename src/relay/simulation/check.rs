//! What must hold of one shard: at any moment, at rest, at the end.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::expect::End;
use super::model::longest_json;
use super::node::Node;
use crate::relay::session::{Phase, Stage};
use crate::relay::{Now, Shard};

/// Between two inputs.
pub fn core(core: &Shard) {
    let limits = &core.setup.limits;
    let c = core.counters();
    for key in &core.verify_round {
        let session = core.sessions.get(key.slot()).filter(|session| session.key == *key);
        let waits = session.is_some_and(|s| s.in_verify_round && !s.verify.is_empty());
        assert!(waits, "a turn is for who is there and has something to verify");
    }
    let (mut owned, mut verifying, mut turns, mut counts) = (0, 0, 0, 0);
    for (_, session) in &core.sessions {
        turns += usize::from(session.in_verify_round);
        owned += session.subscriptions.len();
        verifying += session.verify.len();
        let at_writer = core.pending.iter().filter(|(_, p)| p.connection == session.key).count();
        counts += session.counts.len();
        let owed =
            session.outbox.replies_len() + session.verify.len() + at_writer + session.counts.len();
        if matches!(session.phase, Phase::Open | Phase::Draining) {
            assert_eq!(session.replies_owed as usize, owed, "a slot for each answer");
        }
        assert!(session.replies_owed <= limits.replies_max);
        let slots = session.subscriptions.iter();
        let references = slots.map(|slot| core.subscriptions[*slot as usize].live.len());
        assert_eq!(session.live_waiting as usize, references.sum::<usize>());
        assert!(session.live_waiting <= limits.connection_live_events_max);
        let stages = |of: &[Stage]| {
            let slots = session.subscriptions.iter();
            slots.filter(|slot| of.contains(&core.subscriptions[**slot as usize].stage)).count()
        };
        let begun_counts = {
            let begun = |slot: &&u32| core.counts[**slot as usize].unbegun.is_none();
            session.counts.iter().filter(begun).count()
        };
        let unbegun = stages(&[Stage::Unbegun]) + session.counts.len() - begun_counts;
        assert_eq!(session.unbegun as usize, unbegun);
        let queries =
            begun_counts + stages(&[Stage::Scanning, Stage::Paused, Stage::Finishing, Stage::Cut]);
        assert_eq!(session.queries as usize, queries);
        let queries_max = limits.connection_queries_max as usize;
        assert!(begun_counts + stages(&[Stage::Scanning, Stage::Paused]) <= queries_max);
        assert!(unbegun == 0 || queries >= queries_max, "a query waits for others");
        let served = session.waiting.is_empty() || session.outbox.stream_len() > 0;
        assert!(served, "nobody waits without a batch to come");
        // An EOSE an open subscription, a CLOSED one that was ended: each has its place.
        let places = limits.subscriptions_max as usize;
        let taken = session.subscriptions.len() + session.counts.len();
        assert!(session.outbox.stream_closed() + taken <= places);
        assert!(session.outbox.stream_len() <= limits.outbox_messages_max as usize + places);
        // One event always fits; an EOSE or CLOSED has fewer bytes than this.
        let over = longest_json() + 150 * places;
        assert!(session.outbox.stream_bytes() <= limits.outbox_bytes_max as usize + over);
    }
    assert_eq!(turns, core.verify_round.len());
    check_live_bytes(core);
    assert_eq!(counts, core.counts.len(), "each count has its connection");
    let (mut live, mut scans, mut filed) = (0, core.counts.len() as u64, 0);
    for (_, subscription) in &core.subscriptions {
        assert!(subscription.live.len() <= limits.live_queue_events_max as usize);
        live += subscription.live.len() as u64;
        filed += subscription.filters.len();
        let done = matches!(subscription.stage, Stage::Finishing | Stage::Live | Stage::Cut);
        assert_eq!(subscription.query.is_some(), subscription.stage == Stage::Unbegun);
        scans += u64::from(!done);
    }
    assert_eq!(owned, core.subscriptions.len(), "each subscription has its connection");
    assert_eq!(filed, core.index.len(), "each filed filter has its subscription");
    assert_eq!((scans, verifying as u64), (c.scans, c.verify_waiting));
    assert_eq!(
        c.matched_live,
        c.delivered_live + c.suppressed_live + c.abandoned_live + live,
        "nothing that matched is lost"
    );
    let bytes: usize = core.pending.iter().map(|(_, pending)| pending.bytes).sum();
    assert_eq!(bytes, core.pending_bytes);
}

/// Each live event that waits counts once, with what was deflated of it, and no other does.
fn check_live_bytes(core: &Shard) {
    let waiting = core.subscriptions.iter().flat_map(|(_, subscription)| &subscription.live);
    let waiting: BTreeMap<_, _> = waiting.map(|live| (Rc::as_ptr(live), live)).collect();
    let held: usize = waiting.values().map(|live| live.held_bytes()).sum();
    assert_eq!(held, core.live_bytes.get());
    let plain: usize = waiting.values().map(|live| live.record_bytes).sum();
    assert!(plain <= core.setup.limits.live_bytes_max as usize);
}

/// When all is still.
pub fn settled(node: &Node, now: Now) {
    for (key, socket) in &node.sockets {
        let session = node.core.sessions.get(key.slot()).expect("a session a socket");
        if session.phase == Phase::Open {
            assert_eq!(socket.expect.end, End::Open);
            socket.expect.check_settled(now.unix_s);
            assert_eq!(session.replies_owed, 0);
            assert!(socket.unhandled.is_empty() && session.backlog.is_empty());
        }
        assert_ne!(session.phase, Phase::Draining, "nothing is left to wait for");
    }
}

/// When every connection has ended.
pub fn empty(node: &Node) {
    let core = &node.core;
    assert!(node.sockets.is_empty() && core.sessions.is_empty());
    assert!(node.scans.is_empty(), "a query ends with its subscription");
    assert!(core.subscriptions.is_empty() && core.pending.is_empty() && core.counts.is_empty());
    assert_eq!((core.index.len(), core.index.keys(), core.pending_bytes), (0, 0, 0));
    assert_eq!(core.live_bytes.get(), 0, "nobody waits, so nothing is held");
    let c = core.counters();
    assert_eq!((c.scans, c.verify_waiting, c.connections, c.subscriptions), (0, 0, 0, 0));
    let delivered = c.delivered_live + c.delivered_stored;
    let gone = c.purged_events + c.expired_events;
    assert_eq!(delivered, node.events_left + gone, "delivered is sent, or purged, or expires");
    let closed = c.closed_by_client
        + c.closed_http
        + c.closed_protocol
        + c.closed_too_long
        + c.closed_stalled
        + c.closed_silent
        + c.closed_timeout
        + c.closed_shutdown
        + c.closed_full;
    assert_eq!(c.accepted, closed, "each connection ends once, for one reason");
}
