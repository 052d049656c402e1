//! A store of schema 1 comes to the present one in place, whatever interrupts it.

use heed::RwTxn;

use crate::nostr::event::Event;
use crate::nostr::{EventView, Filter};
use crate::store::check::Rereader;
use crate::store::environment::{Environment, Hold, Mode, Table, hold_files};
use crate::store::schema::{META_MIGRATING, META_SCHEMA, SUFFIX_BYTES, Suffix, join, unseal};
use crate::store::testing::*;
use crate::store::{Options, SCHEMA_VERSION, Store, StoreError, migrate};

fn options() -> Options {
    Options { map_bytes_max: 1 << 28, ..Options::default() }
}

/// Puts the tables of a store back to what version 1 made of the same events.
fn to_version_1(store: Store) {
    let environment = store.environment().unwrap();
    let Environment { env, tables, .. } = &*environment;
    let mut txn = env.write_txn().unwrap();
    let [event, time, author] = migrate::OLD.map(|name| {
        env.create_database::<heed::types::Bytes, heed::types::Bytes>(&mut txn, Some(name)).unwrap()
    });
    for (key, value) in all(tables.event, &txn) {
        let seq = u64::from_be_bytes(key[..].try_into().unwrap());
        let record = unseal(seq, &value).unwrap();
        let view = EventView::new(record).unwrap();
        let suffix = Suffix::of(view, seq).0;
        let by_author: [u8; 8 + SUFFIX_BYTES] = join(&[&view.pubkey()[..8], &suffix]);
        event.put(&mut txn, &key, record).unwrap();
        time.put(&mut txn, &suffix, view.id()).unwrap();
        author.put(&mut txn, &by_author, &[]).unwrap();
    }
    for (key, value) in all(tables.backlog, &txn) {
        let shorter = [&value[..9], &value[11..]].concat();
        tables.backlog.put(&mut txn, &key, &shorter).unwrap();
    }
    tables.event.clear(&mut txn).unwrap();
    tables.time.clear(&mut txn).unwrap();
    tables.meta.put(&mut txn, META_SCHEMA, &1u64.to_be_bytes()).unwrap();
    txn.commit().unwrap();
}

fn all(table: Table, txn: &RwTxn<'_>) -> Vec<(Vec<u8>, Vec<u8>)> {
    let entries = table.iter(txn).unwrap().map(Result::unwrap);
    entries.map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
}

/// What version 1 held besides the tables it shares with this one.
fn old_entries(store: &Store) -> u64 {
    let environment = store.environment().unwrap();
    let txn = environment.env.read_txn().unwrap();
    let sizes = migrate::OLD.map(|name| {
        let table = environment
            .env
            .open_database::<heed::types::Bytes, heed::types::Bytes>(&txn, Some(name))
            .unwrap();
        table.map_or(0, |table| table.len(&txn).unwrap())
    });
    sizes.iter().sum()
}

/// More than two chunks, of every kind of index, and a vanish that has just begun.
fn furnish(dir: &Directory) -> (Store, Vec<Event>) {
    let store = Store::open(dir.path(), &options()).unwrap();
    let mut events: Vec<Event> = (0..4_500u16)
        .map(|n| {
            let (author, kind) = (1 + (n % 7) as u8, [1, 7, 30_023][usize::from(n % 3)]);
            hashed(author, kind, 100 + u64::from(n % 900), &[["d", &n.to_string()]])
        })
        .collect();
    events.push(hashed(3, 62, 700, &[["relay", URL]]));
    apply(&store, &events, 10);
    assert!(store.maintain(10, 20).unwrap().more);
    (store, events)
}

fn is_older(opened: Result<Store, StoreError>) -> bool {
    let error = opened.unwrap_err();
    assert!(error.to_string().contains("`rheostr migrate`"), "{error}");
    matches!(error, StoreError::Schema { found: 1, .. })
}

#[test]
fn everything_is_there_afterwards_and_nothing_twice() {
    let dir = Directory::new();
    let (store, _) = furnish(&dir);
    let visible = visible_ids(&store, 10);
    let before = store.info().unwrap();
    to_version_1(store);
    assert!(is_older(Store::open_read_only(dir.path(), &options())));

    let store = Store::open(dir.path(), &options()).unwrap();
    assert_sound(&store);
    assert_eq!(visible_ids(&store, 10), visible);
    let after = store.info().unwrap();
    assert_eq!((after.schema_version, after.events), (SCHEMA_VERSION, before.events));
    assert_eq!(after.last_sequence, before.last_sequence);
    assert_eq!(old_entries(&store), 0);
    // The vanish goes on to its end.
    while store.maintain(10, 500).unwrap().more {}
    assert_eq!(visible_ids(&store, 10), visible);
    assert_eq!(store.info().unwrap().events, visible.len() as u64);
    assert_sound(&store);
    // And all is as if it had been of this version from the beginning.
    assert_eq!(delete(&store, &[Filter::default()], 10_000, 10), visible.len() as u64);
    assert_sound(&store);
    drop(store);
    Store::open_read_only(dir.path(), &options()).unwrap();
}

#[test]
fn what_was_interrupted_is_gone_on_with_and_is_no_older_builds_business() {
    let dir = Directory::new();
    let (store, _) = furnish(&dir);
    let visible = visible_ids(&store, 10);
    to_version_1(store);
    let store = Store::open(dir.path(), &options()).unwrap();
    let expected = store.info().unwrap();
    to_version_1(store);
    // As a crash leaves it behind the first chunk.
    {
        let environment = Environment::open(dir.path(), &options(), Mode::ReadWrite).unwrap();
        migrate::chunk(&environment, &mut Rereader::default()).unwrap();
        let txn = environment.env.read_txn().unwrap();
        let version = environment.tables.meta.get(&txn, META_SCHEMA).unwrap();
        assert_eq!(version, Some(&SCHEMA_VERSION.to_be_bytes()[..]), "refused by an older build");
        assert!(environment.tables.meta.get(&txn, META_MIGRATING).unwrap().is_some());
        assert_eq!(environment.tables.event.len(&txn).unwrap(), 2_000);
    }
    assert!(is_older(Store::open_read_only(dir.path(), &options())));
    let store = Store::open(dir.path(), &options()).unwrap();
    assert_sound(&store);
    assert_eq!(visible_ids(&store, 10), visible);
    let info = store.info().unwrap();
    assert_eq!((info.events, info.last_sequence), (expected.events, expected.last_sequence));
    assert_eq!(old_entries(&store), 0);
}

#[test]
fn a_backup_of_an_older_build_is_restored() {
    let dir = Directory::new();
    let (store, _) = furnish(&dir);
    let (visible, events) = (visible_ids(&store, 10), store.info().unwrap().events);
    to_version_1(store);
    let to = Directory::new();
    let restored = to.path().join("restored");
    let from = dir.path().join("data.mdb");
    let copied = Store::restore(&from, &restored, &options(), &mut |_| {}).unwrap();
    assert_eq!(copied.events, events);
    let store = Store::open_read_only(&restored, &options()).unwrap();
    assert_eq!(visible_ids(&store, 10), visible);
    assert_sound(&store);
}

/// Changes what version 1 holds.
fn damage_version_1(dir: &Directory, damage: impl FnOnce(Table, Table, &mut RwTxn<'_>)) {
    #[allow(unsafe_code)]
    // SAFETY: the directory is the test's own, and nobody has it open.
    let env = unsafe {
        let mut open = heed::EnvOpenOptions::new();
        open.map_size(1 << 28).max_dbs(32).open(dir.path()).unwrap()
    };
    let mut txn = env.write_txn().unwrap();
    let event: Table = env.open_database(&txn, Some(migrate::OLD[0])).unwrap().unwrap();
    let meta: Table = env.open_database(&txn, Some("meta")).unwrap().unwrap();
    damage(meta, event, &mut txn);
    txn.commit().unwrap();
    env.prepare_for_closing().wait();
}

#[test]
fn what_a_disk_had_changed_before_is_not_vouched_for() {
    let dir = Directory::new();
    let (store, _) = furnish(&dir);
    let visible = visible_ids(&store, 10);
    to_version_1(store);
    damage_version_1(&dir, |_, event, txn| {
        let entries = all(event, txn);
        // No record at all, and one that is another event's.
        event.put(txn, &entries[0].0, &[1, 2, 3]).unwrap();
        let mut record = entries[1].1.clone();
        let last = record.len() - 2;
        record[last - 150] ^= 1;
        event.put(txn, &entries[1].0, &record).unwrap();
    });
    let store = Store::open(dir.path(), &options()).unwrap();
    assert_eq!(store.damaged_records().unwrap(), 2);
    assert_eq!(visible_ids(&store, 10).len(), visible.len() - 2);
    let report = store.check().unwrap();
    assert!(report.described.iter().any(|line| line.contains("event 1: not a record")));
    assert!(report.described.iter().any(|line| line.contains("event 2: its checksum")));
    assert_eq!(old_entries(&store), 0);
    drop(store);
    let repaired = Store::repair(dir.path(), &options(), &terms(), &mut |_| {}).unwrap();
    let left_out =
        |line: &&String| line.contains("not a record") || line.contains("not what was signed");
    assert_eq!(repaired.described.iter().filter(left_out).count(), 2, "{repaired:?}");
}

#[test]
fn what_cannot_be_read_to_its_end_stays_with_the_build_that_wrote_it() {
    let dir = Directory::new();
    let (store, _) = furnish(&dir);
    to_version_1(store);
    damage_version_1(&dir, |_, event, txn| event.put(txn, &[9; 7], &[1]).unwrap());
    for _ in 0..2 {
        let error = Store::open(dir.path(), &options()).unwrap_err();
        assert!(error.to_string().contains("with the build that wrote it"), "{error}");
        assert!(is_older(Store::open_read_only(dir.path(), &options())));
    }
    damage_version_1(&dir, |meta, event, txn| {
        let version = meta.get(txn, META_SCHEMA).unwrap();
        assert_eq!(version, Some(&1u64.to_be_bytes()[..]), "it may repair it");
        assert!(event.delete(txn, &[9; 7]).unwrap());
    });
    assert_sound(&Store::open(dir.path(), &options()).unwrap());
}

#[test]
fn nobody_reads_while_it_goes_on() {
    let dir = Directory::new();
    let (store, _) = furnish(&dir);
    to_version_1(store);
    {
        let _reader = hold_files(dir.path(), Hold::Shared).unwrap();
        let error = Store::open(dir.path(), &options()).unwrap_err();
        assert!(matches!(error, StoreError::Read { .. }), "{error}");
    }
    let store = Store::open(dir.path(), &options()).unwrap();
    assert_sound(&store);
    // Afterwards others may.
    let _reader = hold_files(dir.path(), Hold::Shared).unwrap();
}
