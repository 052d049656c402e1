//! What the store's tests share: events from a few fields, a directory, a naive evaluation.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::check::check;
use super::{Options, RelayNames, SliceBudget, Store, Terms};
use crate::nostr::event::{Event, EventView, Fields, Id, Kind, Pubkey};
use crate::nostr::{Filter, MessageReader, TagRef, tag};
use crate::relay::ports::{CommitBatch, Query, Submission, Ticket, Verdict};

/// The relay's URL in tests.
pub const URL: &str = "wss://relay.example/";

/// A directory that goes with the value; in memory where there is such a place.
pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let memory = Path::new("/dev/shm");
        let root = if memory.is_dir() { memory.into() } else { std::env::temp_dir() };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = root.join(format!("rheostr-store-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a writable directory for tests");
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A store in a directory of its own.
pub fn store() -> (Store, Directory) {
    let dir = Directory::new();
    let options = Options { map_bytes_max: 1 << 30, ..Options::default() };
    (Store::open(dir.path(), &options).expect("an empty directory becomes a store"), dir)
}

pub fn names() -> RelayNames {
    RelayNames::new([URL])
}

pub fn terms() -> Terms {
    Terms { names: names(), keep_replaced: false }
}

/// Those of an operator who keeps what is replaced.
pub fn keeping() -> Terms {
    Terms { keep_replaced: true, ..terms() }
}

/// The key of author `n`. Those from 100 on share their first eight bytes, as index keys see it.
pub fn key(n: u8) -> Pubkey {
    let mut key = [n; 32];
    if n >= 100 {
        key[..8].fill(100);
    }
    key[31] = 0xee;
    key
}

pub fn hex(bytes: &[u8]) -> String {
    faster_hex::hex_string(bytes)
}

/// An event of JSON; the store verifies nothing, so neither does this.
pub fn from_json(value: &Value) -> Event {
    let id = tag::decode_hex32(value["id"].as_str().unwrap().as_bytes()).unwrap();
    let pubkey = tag::decode_hex32(value["pubkey"].as_str().unwrap().as_bytes()).unwrap();
    let mut packed = Vec::new();
    let mut expiration = None;
    for tag in value["tags"].as_array().unwrap() {
        let name = tag[0].as_str().unwrap();
        let Some(first) = tag.get(1).and_then(Value::as_str) else { continue };
        if let [letter @ (b'a'..=b'z' | b'A'..=b'Z')] = name.as_bytes() {
            tag::pack(&mut packed, *letter, first);
        }
        if name == "expiration" && expiration.is_none() {
            expiration = first.parse().ok();
        }
    }
    Event::build(&Fields {
        id,
        pubkey,
        created_at: value["created_at"].as_u64().unwrap(),
        expiration,
        kind: Kind(u16::try_from(value["kind"].as_u64().unwrap()).unwrap()),
        protected: false,
        packed_tags: &packed,
        json: value.to_string().as_bytes(),
    })
}

pub fn event(id: Id, author: u8, kind: u16, created_at: u64, tags: &[[&str; 2]]) -> Event {
    from_json(&json!({
        "id": hex(&id), "pubkey": hex(&key(author)), "created_at": created_at, "kind": kind,
        "tags": tags, "content": "c", "sig": "00".repeat(64),
    }))
}

/// An event whose id is the hash of it, as the relay makes its record.
pub fn hashed(author: u8, kind: u16, created_at: u64, tags: &[[&str; 2]]) -> Event {
    let pubkey = hex(&key(author));
    let canonical = json!([0, pubkey, created_at, kind, tags, "c"]).to_string();
    let event = json!({
        "id": hex(&Sha256::digest(canonical)), "pubkey": pubkey, "created_at": created_at,
        "kind": kind, "tags": tags, "content": "c", "sig": "00".repeat(64),
    });
    read(&event)
}

fn read(event: &Value) -> Event {
    let mut text = event.to_string().into_bytes();
    MessageReader::default().read_event(&mut text).unwrap().event().clone()
}

/// An id that begins with `rank`, so that ranks order ties.
pub fn id(rank: u8, number: u32) -> Id {
    let mut id = [rank; 32];
    id[4..8].copy_from_slice(&number.to_be_bytes());
    id
}

pub fn submit(events: &[Event]) -> Vec<Submission> {
    let ticket = |token| Ticket { origin: 0, token };
    let with_ticket =
        |(token, event): (u64, &Event)| Submission { event: event.clone(), ticket: ticket(token) };
    (0..).zip(events).map(with_ticket).collect()
}

pub fn apply(store: &Store, events: &[Event], now: u64) -> CommitBatch {
    apply_by(&terms(), store, events, now)
}

pub fn apply_by(terms: &Terms, store: &Store, events: &[Event], now: u64) -> CommitBatch {
    store.apply(&submit(events), now, terms).expect("the store can be written")
}

pub fn verdicts(store: &Store, events: &[Event], now: u64) -> Vec<Verdict> {
    apply(store, events, now).verdicts.into_iter().map(|(_, verdict)| verdict).collect()
}

/// Erases what matches, `events_max` at a time; answers how many.
pub fn delete(store: &Store, filters: &[Filter], events_max: usize, now: u64) -> u64 {
    let mut scan = store.scan_all(filters).unwrap();
    let mut sum = 0;
    while !scan.is_done() {
        let events = store.next_events(&mut scan, events_max, now).unwrap();
        assert!(events.len() <= events_max);
        store.erase(&events, &mut |erased| sum += erased.len() as u64).unwrap();
    }
    sum
}

/// Ids in the order a scan hands them out, in slices of `budget`.
pub fn scan_ids(
    store: &Store,
    filters: &[Filter],
    limit_max: u64,
    budget: &SliceBudget,
    now: u64,
) -> Vec<Id> {
    let query = Query { filters: filters.to_vec(), limit_max };
    let mut scan = store.scan(query).unwrap();
    let mut ids = Vec::new();
    loop {
        let chunk = scan.slice(store, budget, now).unwrap();
        ids.extend(chunk.events.iter().map(|json| id_of(json)));
        if chunk.done {
            return ids;
        }
    }
}

pub const WHOLE: SliceBudget =
    SliceBudget { entries: usize::MAX, bytes: usize::MAX, events: usize::MAX, time: Duration::MAX };

/// The id in an event's JSON.
pub fn id_of(json: &[u8]) -> Id {
    let value: Value = serde_json::from_slice(json).unwrap();
    tag::decode_hex32(value["id"].as_str().unwrap().as_bytes()).unwrap()
}

/// Everything visible, newest first.
pub fn visible_ids(store: &Store, now: u64) -> Vec<Id> {
    scan_ids(store, &[Filter::default()], u64::MAX, &WHOLE, now)
}

/// Every archived version that is not due to be erased, in order of the ids.
pub fn replaced_ids(store: &Store, now: u64) -> Vec<Id> {
    let mut ids = Vec::new();
    let visit = |event: EventView<'_>| {
        ids.push(*event.id());
        ControlFlow::Continue(())
    };
    store.export_replaced(Filter::default(), now, visit).unwrap();
    ids.sort_unstable();
    ids
}

/// No difference between tables.
pub fn assert_sound(store: &Store) {
    // The ids of made events are no hashes.
    let report = check(&store.environment().unwrap(), None).unwrap();
    assert_eq!(report.differences, 0, "{:#?}", report.described);
}

/// NIP-01 by hand: what a query returns from `events`, in order.
pub fn evaluate(events: &[Event], filters: &[Filter], limit_max: u64) -> Vec<Id> {
    let mut sorted: Vec<&Event> = events.iter().collect();
    sorted.sort_by_key(|event| newest_first(event.view()));
    let mut chosen = BTreeSet::new();
    for filter in filters.iter().filter(|filter| !filter.is_unsatisfiable()) {
        let limit = filter.limit.unwrap_or(u64::MAX).min(limit_max);
        let matching = sorted.iter().filter(|event| filter.matches(event.view()));
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        chosen.extend(matching.take(limit).map(|event| newest_first(event.view())));
    }
    chosen.into_iter().map(|(_, id)| id).collect()
}

/// Orders events as NIP-01 does.
pub fn newest_first(event: EventView<'_>) -> (std::cmp::Reverse<u64>, Id) {
    (std::cmp::Reverse(event.created_at()), *event.id())
}

/// The rules without tables: everything that ever arrived, and what that makes visible. Nothing
/// in it looks at the order of arrival.
#[derive(Default)]
pub struct Model {
    arrived: Vec<Arrival>,
}

struct Arrival {
    event: Event,
    /// Whether it had not expired when it arrived; else it has no effect.
    effective: bool,
    address: Option<String>,
}

impl Model {
    /// The verdict on an event that arrives at `now`.
    pub fn arrive(&mut self, event: &Event, now: u64) -> Verdict {
        let view = event.view();
        let known = self.arrived.iter().any(|other| other.event.view().id() == view.id());
        let verdict = if known && self.is_visible(view, now) {
            Verdict::Duplicate
        } else if self.is_vanished(view) {
            Verdict::Vanished
        } else if view.is_expired(now) {
            Verdict::Expired
        } else if self.is_deleted(view) {
            Verdict::Deleted
        } else if self.is_superseded(view) {
            Verdict::Superseded
        } else {
            Verdict::Stored
        };
        let effective = !view.is_expired(now);
        self.arrived.push(Arrival { event: event.clone(), effective, address: address(view) });
        verdict
    }

    pub fn visible(&self, now: u64) -> Vec<Event> {
        let mut seen = BTreeSet::new();
        let visible = |arrival: &&Arrival| {
            let event = arrival.event.view();
            arrival.effective && self.is_visible(event, now) && seen.insert(*event.id())
        };
        self.arrived.iter().filter(visible).map(|arrival| arrival.event.clone()).collect()
    }

    /// What is archived where replaced versions are kept, in order of the ids.
    pub fn replaced(&self, now: u64) -> Vec<Id> {
        let archived = |arrival: &&Arrival| {
            let event = arrival.event.view();
            arrival.effective
                && self.is_superseded(event)
                && !event.is_expired(now)
                && !self.is_vanished(event)
                && !self.is_deleted(event)
        };
        let ids = self.arrived.iter().filter(archived).map(|arrival| *arrival.event.view().id());
        ids.collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn is_visible(&self, event: EventView<'_>, now: u64) -> bool {
        !event.is_expired(now)
            && !self.is_vanished(event)
            && !self.is_deleted(event)
            && !self.is_superseded(event)
    }

    fn effective(&self, kind: u16) -> impl Iterator<Item = EventView<'_>> {
        let effective = self.arrived.iter().filter(|arrival| arrival.effective);
        let events = effective.map(|arrival| arrival.event.view());
        events.filter(move |event| event.kind().0 == kind)
    }

    fn is_vanished(&self, event: EventView<'_>) -> bool {
        event.kind().0 != 62
            && self.effective(62).any(|request| {
                String::from_utf8_lossy(request.json()).contains(URL)
                    && request.created_at() >= event.created_at()
                    && is_party(request.pubkey(), event)
            })
    }

    fn is_deleted(&self, event: EventView<'_>) -> bool {
        !matches!(event.kind().0, 5 | 62)
            && self.effective(5).any(|request| {
                request.tags().any(|(letter, value)| match letter {
                    b'e' => value.to_text() == hex(event.id()) && is_party(request.pubkey(), event),
                    b'a' => {
                        Some(value.to_text()) == address(event)
                            && request.pubkey() == event.pubkey()
                            && request.created_at() >= event.created_at()
                    }
                    _ => false,
                })
            })
    }

    fn is_superseded(&self, event: EventView<'_>) -> bool {
        let Some(address) = address(event) else { return false };
        self.arrived.iter().any(|other| {
            other.effective
                && other.address.as_ref() == Some(&address)
                && newest_first(other.event.view()) < newest_first(event)
        })
    }
}

fn is_party(key: &Pubkey, event: EventView<'_>) -> bool {
    event.pubkey() == key
        || (event.kind().0 == 1059 && event.tags().any(|tag| tag == (b'p', TagRef::Hex(key))))
}

/// The `a` tag value that names the event.
fn address(event: EventView<'_>) -> Option<String> {
    let d = match event.kind().0 {
        0 | 3 | 10_000..20_000 => String::new(),
        30_000..40_000 => event.d_tag().to_text(),
        _ => return None,
    };
    Some(format!("{}:{}:{d}", event.kind().0, hex(event.pubkey())))
}
