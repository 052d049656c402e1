//! What stored queries cost an event they return, over bare LMDB; and what choosing the way saves.
//!
//! `cargo bench --bench store -- scan [--stored N] [--samples N] [--dir DIR]`
//!
//! Slices are the relay's. Each sample asks for other events: until another time, of another author, with
//! other ids. The floor reads the same index entries and records of a copy through bare heed and copies the
//! JSON into one buffer: nothing merged, judged or counted.

use std::fs;
use std::hint::black_box;
use std::ops::Bound;
use std::path::Path;
use std::time::Duration;

use heed::Env;
use rheostr::nostr::event::{Id, Pubkey};
use rheostr::nostr::{EventView, Filter, TagValue};
use rheostr::relay::Tuning;
use rheostr::relay::ports::Query;
use rheostr::store::{Options, SliceBudget, Store};

use crate::events::{FIRST_S, Shape, Stream, key};
use crate::write::Table;
use crate::{directory, option, quartiles, write};

/// Keys that write the events.
const AUTHORS: u64 = 10_000;

/// Bytes of a suffix that the index keys end in, and where the sequence number begins in it.
const SUFFIX_BYTES: usize = 19;
const SEQUENCE_AT: usize = 13;
/// Bytes before a record.
const CHECKSUM_BYTES: usize = 4;

/// Runs this part.
pub fn run() {
    let stored = option("--stored", 100_000);
    let samples = usize::try_from(option("--samples", 30)).expect("64 bits");
    let dir = directory();
    classes(dir.path(), stored, samples);
    ways(dir.path(), stored, samples);
}

/// What one query cost.
struct Cost {
    cpu_ns: u64,
    returned: u64,
    examined: u64,
}

fn ask(store: &Store, filter: &Filter, now_s: u64) -> Cost {
    let tuning = Tuning::default();
    let budget = SliceBudget {
        entries: tuning.slice_entries_max as usize,
        bytes: tuning.slice_bytes_max as usize,
        events: tuning.slice_events_max as usize,
        time: Duration::from_micros(tuning.slice_us_max.into()),
    };
    let query = Query { filters: vec![filter.clone()], limit_max: 5_000 };
    let start = crate::cpu_ns();
    let mut scan = store.scan(query).expect("the store");
    let mut returned = 0;
    while !scan.is_done() {
        returned += black_box(scan.slice(store, &budget, now_s).expect("the store")).events.len();
    }
    Cost { cpu_ns: crate::cpu_ns() - start, returned: returned as u64, examined: scan.examined() }
}

/// A class of queries, and the floor of each.
struct Class<'a> {
    name: &'a str,
    filter: &'a dyn Fn(&mut fastrand::Rng) -> Filter,
    floor: &'a dyn Fn(&Filter) -> u64,
}

/// CPU an event, by class of query.
fn classes(dir: &Path, stored: u64, samples: usize) {
    let at = |name: &str| dir.join(name);
    let mut stream = Stream::new(1, Shape::Plain, AUTHORS);
    write::fill(&at("plain"), &mut stream, stored);
    fs::create_dir(at("floor")).expect("a directory");
    fs::copy(at("plain").join("data.mdb"), at("floor").join("data.mdb")).expect("room");
    let bare = Bare::open(&at("floor"));
    let store = Store::open(at("plain"), &Options::default()).expect("the store");
    let now_s = stream.now_s();
    let span_s = now_s - FIRST_S;
    let ids = bare.ids();
    let newest = |random: &mut fastrand::Rng| Filter {
        until: Some(FIRST_S + span_s / 2 + random.u64(..span_s / 2)),
        limit: Some(100),
        ..Filter::default()
    };
    let author = |random: &mut fastrand::Rng| Filter {
        authors: Some(vec![key(random.u64(..30))]),
        limit: Some(50),
        ..Filter::default()
    };
    println!("\n{stored} plain events stored, {samples} samples of 100 queries\n");
    println!("| query | events each | µs CPU an event | floor | ratio |\n|---|---|---|---|---|");
    for class in [
        Class {
            name: "the newest 100",
            filter: &|_| Filter { limit: Some(100), ..Filter::default() },
            floor: &|filter| bare.walk_back(filter),
        },
        Class {
            name: "the newest 100 of a kind",
            filter: &|_| Filter { kinds: Some(vec![1]), limit: Some(100), ..Filter::default() },
            floor: &|filter| bare.walk("kind", &1u16.to_be_bytes(), filter),
        },
        Class {
            name: "100 until some time",
            filter: &newest,
            floor: &|filter| bare.walk_back(filter),
        },
        Class {
            name: "100 of a kind until some time",
            filter: &|random| Filter { kinds: Some(vec![1]), ..newest(random) },
            floor: &|filter| bare.walk("kind", &1u16.to_be_bytes(), filter),
        },
        Class {
            name: "50 of an author",
            filter: &author,
            // Plain events are all of one kind.
            floor: &|filter| bare.walk("author_kind", &first_author_of(filter, 1), filter),
        },
        Class {
            name: "50 of an author and kind",
            filter: &|random| Filter { kinds: Some(vec![1]), ..author(random) },
            floor: &|filter| bare.walk("author_kind", &first_author_of(filter, 1), filter),
        },
        Class {
            name: "50 of a tag",
            filter: &|random| Filter {
                tags: vec![(b't', vec![TagValue::new(&format!("{:04}", random.u64(..30)))])],
                limit: Some(50),
                ..Filter::default()
            },
            // Keys of tags are hashed; an author's are as scattered.
            floor: &|_| 0,
        },
        Class {
            name: "20 ids",
            filter: &|random| {
                let mut some: Vec<Id> = (0..20).map(|_| ids[random.usize(..ids.len())]).collect();
                some.sort_unstable();
                some.dedup();
                Filter { ids: Some(some), ..Filter::default() }
            },
            floor: &|filter| bare.look_up(filter),
        },
        Class {
            name: "one id",
            filter: &|random| Filter {
                ids: Some(vec![ids[random.usize(..ids.len())]]),
                ..Filter::default()
            },
            floor: &|filter| bare.look_up(filter),
        },
    ] {
        tell(&class, &store, now_s, samples);
    }
}

/// Asks samples of a class, and prints its row.
fn tell(class: &Class<'_>, store: &Store, now_s: u64, samples: usize) {
    let Class { name, filter, floor } = class;
    let mut random = fastrand::Rng::with_seed(7);
    let (mut ours, mut floors, mut returned) = (Vec::new(), Vec::new(), 0);
    for _ in 0..=samples {
        let filters: Vec<Filter> = (0..100).map(|_| filter(&mut random)).collect();
        let costs: Vec<Cost> = filters.iter().map(|f| ask(store, f, now_s)).collect();
        let events: u64 = costs.iter().map(|cost| cost.returned).sum();
        let each_us = |ns: u64| ns as f64 / 1e3 / events as f64;
        ours.push(each_us(costs.iter().map(|cost| cost.cpu_ns).sum()));
        floors.push(each_us(filters.iter().map(floor).sum()));
        returned += events;
    }
    // The first has brought the pages in.
    let each = returned as f64 / (100 * (samples + 1)) as f64;
    let (ours, floors) = (ours.split_off(1), floors.split_off(1));
    let ratios = quartiles(ours.iter().zip(&floors).map(|(ours, floor)| ours / floor).collect());
    let ([low, middle, high], [_, floor, _]) = (quartiles(ours), quartiles(floors));
    let beside = match floor > 0.0 {
        true => format!("{floor:.2} | {:.1}", ratios[1]),
        false => "– | –".into(),
    };
    println!("| {name} | {each:.0} | {middle:.2} ({low:.2}–{high:.2}) | {beside} |");
}

/// The prefix of a filter by author.
fn first_author_of(filter: &Filter, kind: u16) -> Vec<u8> {
    let author = filter.authors.as_ref().expect("by author")[0];
    [&author[..8], &kind.to_be_bytes()].concat()
}

/// Entries and CPU of queries that have several ways.
fn ways(dir: &Path, stored: u64, samples: usize) {
    let mut stream = Stream::new(1, Shape::Mixed, AUTHORS);
    write::fill(&dir.join("mixed"), &mut stream, stored);
    let now_s = stream.now_s();
    let store = Store::open(dir.join("mixed"), &Options::default()).expect("the store");
    let hex = |author: u64| TagValue::new(&faster_hex::hex_string(&key(author)));
    let popular = || (b'p', vec![hex(0)]);
    let topic = |number: u64| (b't', vec![TagValue::new(&format!("topic{number}"))]);
    let authors = |range: std::ops::Range<u64>| {
        let mut authors: Vec<Pubkey> = range.map(key).collect();
        authors.sort_unstable();
        Some(authors)
    };
    println!("\n{stored} mixed events stored, the lowest of {samples}\n");
    println!("| query | events | entries examined | µs CPU |\n|---|---|---|---|");
    for (name, filter) in [
        (
            "a key that many name, by an author of few events",
            Filter { tags: vec![popular()], authors: authors(5_000..5_001), ..Filter::default() },
        ),
        (
            "the same, by an author of many",
            Filter { tags: vec![popular()], authors: authors(1..2), ..Filter::default() },
        ),
        (
            "a key that many name, under a rare topic",
            Filter { tags: vec![popular(), topic(3_000)], ..Filter::default() },
        ),
        (
            "the same, under a common topic",
            Filter { tags: vec![popular(), topic(0)], ..Filter::default() },
        ),
        (
            "a common topic, by the author of most events",
            Filter { tags: vec![topic(0)], authors: authors(0..1), ..Filter::default() },
        ),
        (
            "articles of 500 authors",
            Filter {
                kinds: Some(vec![30_023]),
                authors: authors(2_000..2_500),
                ..Filter::default()
            },
        ),
        (
            "the last minute of 500 authors",
            Filter { since: Some(now_s - 60), authors: authors(2_000..2_500), ..Filter::default() },
        ),
        (
            "20 notes of 500 authors",
            Filter {
                kinds: Some(vec![1]),
                authors: authors(0..500),
                limit: Some(20),
                ..Filter::default()
            },
        ),
        (
            "what names a key, three kinds, 20 of them",
            Filter {
                kinds: Some(vec![1, 6, 7]),
                tags: vec![popular()],
                limit: Some(20),
                ..Filter::default()
            },
        ),
    ] {
        let costs = (0..=samples).map(|_| ask(&store, &filter, now_s));
        let best = costs.min_by_key(|cost| cost.cpu_ns).expect("a sample");
        let Cost { cpu_ns, returned, examined } = best;
        println!("| {name} | {returned} | {examined} | {:.0} |", cpu_ns as f64 / 1e3);
    }
}

/// A copy of a store, through bare heed.
struct Bare {
    env: Env,
    tables: Vec<Table>,
}

impl Bare {
    fn open(dir: &Path) -> Self {
        let (env, tables) = write::open_bare(dir);
        Self { env, tables }
    }

    fn table(&self, name: &str) -> Table {
        let number = write::TABLES.iter().position(|other| *other == name).expect("a table");
        self.tables[number]
    }

    /// Every id.
    fn ids(&self) -> Vec<Id> {
        let txn = self.env.read_txn().expect("a transaction");
        let time = self.table("time.2");
        let rows = time.iter(&txn).expect("readable").map(|row| row.expect("readable"));
        rows.map(|(key, rest)| {
            let first: Vec<u8> = key[5..13].iter().map(|byte| !byte).collect();
            [&first, rest].concat().try_into().expect("an id")
        })
        .collect()
    }

    /// Copies out the JSON of the newest events under a prefix, as many as the filter may return; CPU
    /// nanoseconds of that.
    fn walk(&self, name: &str, prefix: &[u8], filter: &Filter) -> u64 {
        let limit = usize::try_from(filter.limit.expect("a limit")).expect("small");
        let start = crate::cpu_ns();
        let txn = self.env.read_txn().expect("a transaction");
        let (index, event) = (self.table(name), self.table("event.2"));
        let inverted = ((1u64 << 40) - 1 - filter.until.unwrap_or(u64::MAX >> 24)).to_be_bytes();
        let from = [prefix, &inverted[3..]].concat();
        let mut json = Vec::new();
        let range = (Bound::Included(from.as_slice()), Bound::Unbounded);
        for row in index.range(&txn, &range).expect("readable").take(limit) {
            let (key, _) = row.expect("readable");
            if key.len() != prefix.len() + SUFFIX_BYTES || !key.starts_with(prefix) {
                break;
            }
            append(&event, &txn, &key[prefix.len() + SEQUENCE_AT..], &mut json);
        }
        black_box(json);
        crate::cpu_ns() - start
    }

    /// The same of the newest of all, which come last in their table.
    fn walk_back(&self, filter: &Filter) -> u64 {
        let limit = usize::try_from(filter.limit.expect("a limit")).expect("small");
        let start = crate::cpu_ns();
        let txn = self.env.read_txn().expect("a transaction");
        let (index, event) = (self.table("time.2"), self.table("event.2"));
        let until = filter.until.unwrap_or(u64::MAX >> 24).to_be_bytes();
        let to = [&until[3..], &[0xff; SUFFIX_BYTES - 5]].concat();
        let mut json = Vec::new();
        let range = (Bound::Unbounded, Bound::Included(to.as_slice()));
        for row in index.rev_range(&txn, &range).expect("readable").take(limit) {
            let (key, _) = row.expect("readable");
            let mut sequence = [0; SUFFIX_BYTES - SEQUENCE_AT];
            for (to, from) in sequence.iter_mut().zip(&key[SEQUENCE_AT..]) {
                *to = !from;
            }
            append(&event, &txn, &sequence, &mut json);
        }
        black_box(json);
        crate::cpu_ns() - start
    }

    /// The same of the filter's ids.
    fn look_up(&self, filter: &Filter) -> u64 {
        let start = crate::cpu_ns();
        let txn = self.env.read_txn().expect("a transaction");
        let (index, event) = (self.table("id"), self.table("event.2"));
        let mut json = Vec::new();
        for id in filter.ids.as_ref().expect("by id") {
            let sequence = index.get(&txn, &id[..16]).expect("readable").expect("it is there");
            append(&event, &txn, sequence, &mut json);
        }
        black_box(json);
        crate::cpu_ns() - start
    }
}

fn append(event: &Table, txn: &heed::RoTxn<'_>, sequence: &[u8], json: &mut Vec<u8>) {
    let mut number = [0; 8];
    number[2..].copy_from_slice(sequence);
    let record = event.get(txn, &number).expect("readable").expect("it is there");
    json.extend_from_slice(EventView::new(&record[CHECKSUM_BYTES..]).expect("a record").json());
}
