//! What the writer costs an event, over bare LMDB that is given the same keys and values.
//!
//! `cargo bench --bench store -- write [--stored N] [--samples N] [--batch N] [--shape plain|mixed] [--dir DIR]`
//!
//! Of one store three copies go on: one shows which rows each batch makes, one is measured, and the third
//! gets the rows through bare heed, table by table in the order of the keys: nothing looked up, nothing decided. In the
//! end the tables of both must be equal.

use std::fs;
use std::path::Path;

use heed::types::Bytes;
use heed::{Database, Env, EnvOpenOptions};
use rheostr::nostr::Event;
use rheostr::relay::ports::{Submission, Ticket};
use rheostr::store::{Info, Options, Store, Terms};

use crate::events::{Shape, Stream};
use crate::{directory, option, quartiles, value};

/// Tables that adding an event writes; the sequence number is the key of the first, the value of the
/// second, and what the keys of the others end in.
pub const TABLES: [&str; 7] = ["event.2", "id", "time.2", "author_kind", "kind", "tag", "expire"];

pub type Table = Database<Bytes, Bytes>;
/// Key and value.
type Row = (Vec<u8>, Vec<u8>);
/// Of one batch, by table.
type Rows = [Vec<Row>; TABLES.len()];

/// Runs this part.
pub fn run() {
    let stored = option("--stored", 100_000);
    let samples = usize::try_from(option("--samples", 30)).expect("64 bits");
    let batch_events = usize::try_from(option("--batch", 1_000)).expect("64 bits");
    let shape = match value("--shape").as_deref() {
        None | Some("plain") => Shape::Plain,
        Some("mixed") => Shape::Mixed,
        Some(other) => panic!("no shape {other}"),
    };
    let dir = directory();
    let at = |name: &str| dir.path().join(name);
    let mut stream = Stream::new(1, shape, 10_000);
    let mut json_bytes = fill(&at("first"), &mut stream, stored);
    for name in ["shown", "floor"] {
        fs::create_dir(at(name)).expect("a directory");
        fs::copy(at("first").join("data.mdb"), at(name).join("data.mdb")).expect("room");
    }
    let batches: Vec<Vec<Event>> =
        (0..samples).map(|_| stream.by_ref().take(batch_events).collect()).collect();
    json_bytes +=
        batches.iter().flatten().map(|event| event.view().json().len() as u64).sum::<u64>();

    // Rows are known for events that only add some.
    let rows = (shape == Shape::Plain).then(|| rows_of(&at("shown"), &batches, stored));
    let floor = rows.as_ref().map(|_| open_bare(&at("floor")));
    let store = Store::open(at("first"), &Options::default()).expect("the store");
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for (number, events) in batches.iter().enumerate() {
        let each_us = |ns: u64| ns as f64 / 1e3 / events.len() as f64;
        ours.push(each_us(apply(&store, events, stream.now_s())));
        if let (Some(rows), Some((env, tables))) = (&rows, &floor) {
            bare.push(each_us(put(env, tables, &rows[number])));
        }
    }
    let info = store.info().expect("the store");
    println!(
        "\n{shape:?} events, {batch_events} a batch, {stored} stored before, {samples} samples"
    );
    let tell = |name: &str, values: &[f64]| {
        let [low, middle, high] = quartiles(values.to_vec());
        println!("{name:<24} {middle:>6.2} ({low:.2}-{high:.2}) µs CPU an event");
    };
    tell("the store", &ours);
    if let Some((env, tables)) = floor {
        tell("floor: the same rows", &bare);
        let ratios = ours.iter().zip(&bare).map(|(ours, bare)| ours / bare).collect();
        let [low, middle, high] = quartiles(ratios);
        println!("{:<24} {middle:>6.2} ({low:.2}-{high:.2})", "ratio");
        drop(store);
        same_tables(&at("first"), &env, &tables);
    }
    tell_size(&info, json_bytes);
}

/// Fills a new store; answers the bytes of JSON in it.
pub fn fill(dir: &Path, stream: &mut Stream, events: u64) -> u64 {
    const BATCH: u64 = 5_000;
    let store = Store::open(dir, &Options::default()).expect("an empty store");
    let mut left = events;
    let mut json_bytes = 0;
    while left > 0 {
        let count = usize::try_from(left.min(BATCH)).expect("small");
        let batch: Vec<Event> = stream.by_ref().take(count).collect();
        apply(&store, &batch, stream.now_s());
        json_bytes += batch.iter().map(|event| event.view().json().len() as u64).sum::<u64>();
        left -= count as u64;
    }
    json_bytes
}

/// Has the store take a batch; CPU nanoseconds of that.
pub fn apply(store: &Store, events: &[Event], now_s: u64) -> u64 {
    let ticket = Ticket { origin: 0, token: 0 };
    let batch: Vec<Submission> =
        events.iter().map(|event| Submission { event: event.clone(), ticket }).collect();
    let terms = Terms::default();
    let start = crate::cpu_ns();
    let committed = store.apply(&batch, now_s, &terms).expect("room");
    let used = crate::cpu_ns() - start;
    assert_eq!(committed.verdicts.len(), events.len());
    used
}

/// Puts rows into the tables and commits; CPU nanoseconds of that.
fn put(env: &Env, tables: &[Table], rows: &Rows) -> u64 {
    let start = crate::cpu_ns();
    let mut txn = env.write_txn().expect("a transaction");
    for (table, rows) in tables.iter().zip(rows) {
        for (key, value) in rows {
            table.put(&mut txn, key, value).expect("room");
        }
    }
    txn.commit().expect("it is stored");
    crate::cpu_ns() - start
}

/// The rows of each batch, in the order of their keys, as the store makes them.
fn rows_of(dir: &Path, batches: &[Vec<Event>], stored: u64) -> Vec<Rows> {
    let store = Store::open(dir, &Options::default()).expect("the store");
    batches.iter().for_each(|events| {
        apply(&store, events, u64::from(u32::MAX));
    });
    drop(store);
    let (env, tables) = open_bare(dir);
    let txn = env.read_txn().expect("a transaction");
    let mut rows: Vec<Rows> = batches.iter().map(|_| Rows::default()).collect();
    let batch_events = batches.first().map_or(1, Vec::len) as u64;
    for (number, (name, table)) in TABLES.iter().zip(&tables).enumerate() {
        for row in table.iter(&txn).expect("a cursor") {
            let (key, value) = row.expect("a row");
            let holder = if *name == "id" { value } else { key };
            let mut seq = [0; 8];
            seq[2..].copy_from_slice(&holder[holder.len() - 6..]);
            if *name == "time.2" {
                seq[2..].iter_mut().for_each(|byte| *byte = !*byte);
            }
            let seq = u64::from_be_bytes(seq);
            if seq > stored {
                let batch = usize::try_from((seq - stored - 1) / batch_events).expect("small");
                rows[batch][number].push((key.to_vec(), value.to_vec()));
            }
        }
    }
    rows
}

/// Opens a store's tables through bare heed, in the order of [`TABLES`].
pub fn open_bare(dir: &Path) -> (Env, Vec<Table>) {
    let mut options = EnvOpenOptions::new();
    options.map_size(1 << 40).max_dbs(32);
    #[allow(unsafe_code)]
    // SAFETY: the directory was made by this process, and nobody else has it open.
    let env = unsafe { options.open(dir) }.expect("an environment");
    let txn = env.read_txn().expect("a transaction");
    let open = |name| env.open_database(&txn, Some(name)).expect("readable").expect("a table");
    let tables = TABLES.map(open).to_vec();
    txn.commit().expect("nothing to write");
    (env, tables)
}

/// The store's tables must be those of the floor.
fn same_tables(dir: &Path, floor: &Env, floor_tables: &[Table]) {
    let (env, tables) = open_bare(dir);
    let (ours, theirs) = (env.read_txn().expect("one"), floor.read_txn().expect("one"));
    for (table, other) in tables.iter().zip(floor_tables) {
        let rows = table.iter(&ours).expect("a cursor");
        let others = other.iter(&theirs).expect("a cursor");
        assert_eq!(table.len(&ours).expect("one"), other.len(&theirs).expect("one"));
        for (row, other) in rows.zip(others) {
            assert_eq!(row.expect("a row"), other.expect("a row"));
        }
    }
}

/// Prints what an event takes on disk beyond its JSON, and by table.
fn tell_size(info: &Info, json_bytes: u64) {
    let each = |bytes: u64| bytes as f64 / info.events as f64;
    let beyond = |bytes: u64| each(bytes) - each(json_bytes);
    println!(
        "on disk beyond {:.0} bytes of JSON an event: {:.0} in use, {:.0} with free pages",
        each(json_bytes),
        beyond(info.used_bytes),
        beyond(info.disk_bytes)
    );
    for table in info.tables.iter().filter(|table| table.entries >= info.events / 100) {
        println!(
            "    {:<12} {:>9} entries, {:>6.1} bytes each",
            table.name,
            table.entries,
            table.bytes as f64 / table.entries as f64
        );
    }
}
