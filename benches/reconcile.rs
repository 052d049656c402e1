//! What comparing stores costs (NIP-77), in CPU time of one thread: `cargo bench --bench reconcile`.

mod support;

use std::hint::black_box;

use negentropy::{Id, Negentropy, NegentropyStorageBase, NegentropyStorageVector};
use rheostr::nostr::event::{Fields, Kind};
use rheostr::nostr::{Event, Filter};
use rheostr::relay::ports::{Submission, Ticket};
use rheostr::store::{Gathered, Options, Records, SliceBudget, Store, Terms};
use sha2::{Digest, Sha256};
use support::Bench;

const STORED: usize = 100_000;
const MANY: usize = 1_000_000;
const NOW_S: u64 = 1_700_000_000;

fn id(number: u64) -> [u8; 32] {
    Sha256::digest(number.to_le_bytes()).into()
}

fn event(number: u64) -> Event {
    Event::build(&Fields {
        id: id(number),
        pubkey: id(number % 100),
        created_at: NOW_S + number / 10,
        expiration: None,
        kind: Kind(1),
        protected: false,
        packed_tags: &[],
        json: &[b' '; 426],
    })
}

fn fill(store: &Store) {
    let ticket = Ticket { origin: 0, token: 0 };
    for first in (0..STORED as u64).step_by(1_000) {
        let batch: Vec<_> =
            (first..).take(1_000).map(|n| Submission { event: event(n), ticket }).collect();
        store.apply(&batch, NOW_S, &Terms::default()).expect("it is stored");
    }
}

fn gather(store: &Store) -> Records {
    let budget = SliceBudget {
        entries: 256,
        bytes: 0,
        events: 0,
        time: std::time::Duration::from_micros(200),
    };
    let mut gathering = store.gather(Filter::default(), STORED).expect("a query");
    loop {
        match gathering.slice(store, &budget, NOW_S).expect("a slice") {
            Gathered::Further => {}
            Gathered::Whole(records) => return records,
            Gathered::TooMany => unreachable!("as many as there are"),
        }
    }
}

fn main() {
    let mut bench = Bench::new(10);
    let directory = tempfile::tempdir().expect("a directory");
    let store = Store::open(directory.path(), &Options::default()).expect("an empty store");
    fill(&store);
    bench.measure("gather a record of 100,000, 256 a slice", STORED, || {
        assert_eq!(gather(&store).len(), STORED);
    });
    bench.measure("floor: count an event of them", STORED, || {
        let count = store.count(&[Filter::default()], NOW_S).expect("a count");
        assert_eq!(count, STORED as u64);
    });
    bench.compare("gather a record of 100,000, 256 a slice", "floor: count an event of them");

    let records = gather(&store);
    let items: Vec<_> =
        (0..STORED).rev().map(|at| records.get_item(at).expect("in range").expect("one")).collect();
    bench.measure("sort one into the crate's vector", STORED, || {
        let mut vector = NegentropyStorageVector::with_capacity(STORED);
        for item in &items {
            vector.insert(item.timestamp, item.id).expect("not sealed");
        }
        vector.seal().expect("once");
        black_box(vector.size().expect("sealed"));
    });
    let mut many = NegentropyStorageVector::with_capacity(MANY);
    for number in 0..MANY as u64 {
        let id = Id::from_byte_array(id(number));
        many.insert(NOW_S + number / 10, id).expect("not sealed");
    }
    many.seal().expect("once");
    bench.measure("first message over a record of 100,000", STORED, || {
        let mut client = Negentropy::borrowed(&records, 60_000).expect("a frame");
        black_box(client.initiate().expect("a message"));
    });
    bench.measure("first message over a record of 1,000,000", MANY, || {
        let mut client = Negentropy::borrowed(&many, 60_000).expect("a frame");
        black_box(client.initiate().expect("a message"));
    });
}
