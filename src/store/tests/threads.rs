//! The writer and the reader pool.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::nostr::{Filter, TagValue};
use crate::relay::ports::{Chunk, CommitBatch, Erased, Query, Submission, Ticket, Verdict};
use crate::store::testing::*;
use crate::store::{
    CommitSink, CommitStats, Doomed, Options, ReadJob, Readers, Scan, Search, SliceBudget, Store,
    StoreError, Writer, WriterOptions,
};

struct Sink(flume::Sender<Arc<CommitBatch>>);

impl CommitSink for Sink {
    fn publish(&self, batch: &Arc<CommitBatch>) {
        self.0.send(batch.clone()).unwrap();
    }
}

type Batches = flume::Receiver<Arc<CommitBatch>>;

fn writer(
    store: &Store,
    options: WriterOptions,
) -> (Writer, [Batches; 2], Arc<Mutex<Vec<CommitStats>>>) {
    let (one, two) = (flume::unbounded(), flume::unbounded());
    let stats = Arc::new(Mutex::new(Vec::new()));
    let observed = stats.clone();
    let writer = Writer::spawn(
        store.clone(),
        options,
        terms(),
        vec![Box::new(Sink(one.0)), Box::new(Sink(two.0))],
        Box::new(move |commit| observed.lock().unwrap().push(commit)),
    );
    (writer.unwrap(), [one.1, two.1], stats)
}

fn submission(n: u32) -> Submission {
    let event = event(id(1, n), 1, 1, 100, &[]);
    Submission { event, ticket: Ticket { origin: 3, token: n.into() } }
}

#[test]
fn every_submission_is_answered_in_order_by_every_sink_also_when_closing() {
    let (store, _dir) = store();
    let options = WriterOptions { batch_events_max: 7, ..WriterOptions::default() };
    let (writer, sinks, stats) = writer(&store, options);
    let handle = writer.handle();
    for n in 0..250 {
        handle.submit_blocking(vec![submission(n)]).unwrap();
    }
    for first in (250..500).step_by(10) {
        handle.try_submit((first..first + 10).map(submission).collect()).unwrap();
    }
    writer.close();
    let back = handle.try_submit(vec![submission(0), submission(1)]).unwrap_err();
    assert_eq!(back.len(), 2, "closed");
    for sink in sinks {
        let batches: Vec<_> = sink.drain().collect();
        assert!(batches.iter().all(|batch| (1..=7).contains(&batch.verdicts.len())));
        let stored: Vec<u64> =
            batches.iter().flat_map(|b| b.stored.iter().map(|(seq, _)| *seq)).collect();
        assert_eq!(stored, (1..=500).collect::<Vec<_>>());
        let verdicts = batches.iter().flat_map(|batch| &batch.verdicts);
        let mut tokens = Vec::new();
        for (ticket, verdict) in verdicts {
            assert_eq!((ticket.origin, verdict), (3, &Verdict::Stored));
            tokens.push(ticket.token);
        }
        assert_eq!(tokens, (0..500).collect::<Vec<_>>());
        assert_eq!(batches.last().unwrap().last_sequence, 500);
    }
    let stats = stats.lock().unwrap();
    assert_eq!(stats.iter().map(|commit| commit.stored).sum::<usize>(), 500);
    assert_eq!(store.info().unwrap().events, 500);
}

#[test]
fn batches_end_at_bytes_and_puts_too() {
    let (store, _dir) = store();
    let bytes = submission(0).event.record().len();
    for options in [
        WriterOptions { batch_bytes_max: 2 * bytes, ..WriterOptions::default() },
        WriterOptions { batch_puts_max: 16, ..WriterOptions::default() },
    ] {
        let (writer, [sink, _other], _) = writer(&store, options);
        for n in 0..100 {
            writer.handle().submit_blocking(vec![submission(n)]).unwrap();
        }
        writer.close();
        assert!(sink.drain().all(|batch| batch.verdicts.len() <= 2));
    }
}

/// As many tags as the largest list of follows in the corpus: one event, one commit, and more puts than its
/// bound allows together with anything else.
#[test]
fn an_event_of_1443_tags_is_one_event_of_as_many_puts() {
    let (store, _dir) = store();
    let values: Vec<String> = (0..1_443).map(|n| format!("{n:064x}")).collect();
    let tags: Vec<[&str; 2]> = values.iter().map(|value| ["p", value.as_str()]).collect();
    let large = |n: u32| Submission {
        event: event(id(1, n), 1, 1, 100, &tags),
        ticket: Ticket { origin: 3, token: n.into() },
    };
    let options = WriterOptions { batch_puts_max: 2_000, ..WriterOptions::default() };
    let (writer, [sink, _other], _) = writer(&store, options);
    writer.handle().submit_blocking((0..10).map(large).collect()).unwrap();
    writer.close();
    let sizes: Vec<_> = sink.drain().map(|batch| batch.stored.len()).collect();
    assert_eq!(sizes, [2; 5], "the second reaches the bound");
    let filter =
        Filter { tags: vec![(b'p', vec![TagValue::new(&values[1_442])])], ..Filter::default() };
    assert_eq!(store.count(&[filter], 100).unwrap(), 10);
    assert_sound(&store);
}

#[test]
fn a_batch_that_cannot_be_stored_is_answered_and_the_writer_goes_on() {
    let dir = Directory::new();
    let options = Options { map_bytes_max: 1 << 20, ..Options::default() };
    let store = Store::open(dir.path(), &options).unwrap();
    let (writer, [sink, _other], stats) = writer(&store, WriterOptions::default());
    let mut huge = submission(0);
    huge.event = event(id(1, 0), 1, 1, 100, &[["x", &"x".repeat(2 << 20)]]);
    for submission in [submission(1), huge, submission(2)] {
        writer.handle().submit_blocking(vec![submission]).unwrap();
        let batch = sink.recv_timeout(Duration::from_secs(10)).unwrap();
        let (ticket, verdict) = &batch.verdicts[0];
        match ticket.token {
            0 => {
                assert!(matches!(verdict, Verdict::Failed(text) if text.contains("full")));
                assert_eq!((batch.last_sequence, batch.stored.len()), (1, 0));
            }
            n => assert_eq!((verdict, batch.last_sequence), (&Verdict::Stored, n)),
        }
    }
    writer.close();
    assert_eq!(stats.lock().unwrap().iter().filter(|commit| commit.failed.is_some()).count(), 1);
    assert_sound(&store);
}

#[test]
fn an_idle_writer_erases_what_vanished() {
    let (store, _dir) = store();
    let events: Vec<_> = (0..450).map(|n| event(id(1, n), 1, 1, 100, &[])).collect();
    apply(&store, &events, 10);
    apply(&store, &[event(id(2, 0), 1, 62, 100, &[["relay", "ALL_RELAYS"]])], 10);
    assert_eq!(visible_ids(&store, 10), [id(2, 0)]);
    assert_eq!(store.info().unwrap().events, 451);
    let (writer, _sinks, _) = writer(&store, WriterOptions::default());
    let deadline = Instant::now() + Duration::from_secs(10);
    while store.info().unwrap().events > 1 {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
    writer.close();
    assert_sound(&store);
}

#[test]
fn readers_run_a_query_to_its_end_and_survive_a_job_that_panics() {
    let (store, _dir) = store();
    let events: Vec<_> = (0..100).map(|n| event(id(1, n), 1, 1, 100 + u64::from(n), &[])).collect();
    apply(&store, &events, 10);
    let budget = SliceBudget { entries: 1000, bytes: 1 << 20, events: 30, ..WHOLE };
    let readers = Readers::spawn(&store, 2, 4, budget).unwrap();
    let (send, receive) = flume::unbounded::<(Box<Scan>, Chunk)>();
    let job = |scan: Box<Scan>| {
        let send = send.clone();
        ReadJob { scan, deliver: Box::new(move |scan, chunk| send.send((scan, chunk)).unwrap()) }
    };
    let query = Query { filters: vec![Filter::default()], limit_max: 90 };
    let scan = Box::new(store.scan(query.clone()).unwrap());
    for _ in 0..3 {
        let scan = Box::new(store.scan(query.clone()).unwrap());
        let panics = ReadJob { scan, deliver: Box::new(|_, _| panic!("a receiver's bug")) };
        readers.handle().try_submit(panics).map_err(|_| "full").unwrap();
    }
    let mut next = job(scan);
    let mut ids = Vec::new();
    loop {
        while let Err(back) = readers.handle().try_submit(next) {
            next = back;
        }
        let (scan, chunk) = receive.recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!((chunk.snapshot, &chunk.failed), (100, &None));
        ids.extend(chunk.events.iter().map(|json| id_of(json)));
        if chunk.done {
            assert!(scan.is_limited());
            break;
        }
        next = job(scan);
    }
    assert_eq!(ids, evaluate(&events, &[Filter::default()], 90));
    let handle = readers.handle();
    readers.close();
    assert!(handle.try_submit(job(Box::new(store.scan(query).unwrap()))).is_err());
}

#[test]
fn a_damaged_store_fails_the_query_and_not_the_pool() {
    let (store, _dir) = store();
    apply(&store, &[event(id(1, 1), 1, 1, 100, &[])], 10);
    let environment = store.environment().unwrap();
    let mut txn = environment.env.write_txn().unwrap();
    environment.tables.time.put(&mut txn, &[0xff; 3], &[]).unwrap();
    txn.commit().unwrap();
    let budget = SliceBudget { entries: 1000, bytes: 1 << 20, events: 30, ..WHOLE };
    let readers = Readers::spawn(&store, 1, 4, budget).unwrap();
    let (send, receive) = flume::unbounded();
    for _ in 0..2 {
        let query = Query { filters: vec![Filter::default()], limit_max: 90 };
        let scan = Box::new(store.scan(query).unwrap());
        let send = send.clone();
        let deliver = Box::new(move |_, chunk| send.send(chunk).unwrap());
        readers.handle().try_submit(ReadJob { scan, deliver }).map_err(|_| "full").unwrap();
        let chunk: Chunk = receive.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(chunk.done && chunk.failed.unwrap().contains("damaged"));
    }
    readers.close();
}

#[test]
fn what_is_erased_at_somebodys_word_is_published_between_two_commits() {
    let (store, _dir) = store();
    let (writer, [sink, _other], _) = writer(&store, WriterOptions::default());
    let handle = writer.handle();
    handle.submit_blocking(vec![submission(1)]).unwrap();
    handle.submit_blocking(vec![submission(2)]).unwrap();
    // The third is not there yet.
    assert!(matches!(handle.erase_blocking(Doomed::Stored(vec![2, 3])), Some(Ok(1))));
    handle.submit_blocking(vec![submission(3)]).unwrap();
    assert!(matches!(handle.erase_blocking(Doomed::Stored(vec![7])), Some(Ok(0))));
    writer.close();
    assert!(handle.erase_blocking(Doomed::Stored(vec![1])).is_none(), "closed");
    let batches: Vec<_> = sink.drain().collect();
    let told = |batch: &Arc<CommitBatch>| {
        let stored: Vec<u64> = batch.stored.iter().map(|(seq, _)| *seq).collect();
        (stored, batch.erased.clone())
    };
    let (stored, erased): (Vec<_>, Vec<_>) = batches.iter().map(told).unzip();
    assert_eq!(stored.concat(), [1, 2, 3]);
    let erasure = erased.iter().position(|erased| !erased.is_empty()).unwrap();
    assert_eq!(
        erased.concat(),
        [Erased { sequence: 2, created_at: 100, id: [1, 1, 1, 1, 0, 0, 0, 2] }]
    );
    assert_eq!(batches[erasure].last_sequence, 2, "after what it names, before what follows");
    assert_eq!(store.info().unwrap().events, 2);
    assert_sound(&store);
}

/// A search that takes until it is let go.
struct Slow {
    begun: flume::Sender<()>,
    go: flume::Receiver<()>,
}

impl Search for Slow {
    fn cost(&self, _: &Filter) -> Result<u64, StoreError> {
        Ok(1)
    }
    fn search(&self, _: &Filter, _: usize) -> Result<Vec<u64>, StoreError> {
        self.begun.send(()).unwrap();
        let _ = self.go.recv();
        Ok(vec![1])
    }
}

#[test]
fn a_slow_search_keeps_no_reader_and_those_behind_it_end_with_the_pool() {
    let (store, _dir) = store();
    apply(&store, &[event(id(1, 1), 1, 1, 100, &[])], 10);
    let ((begun, has_begun), (go, may_go)) = (flume::unbounded(), flume::unbounded());
    store.set_search(Arc::new(Slow { begun, go: may_go }));
    let readers = Readers::spawn(&store, 1, 8, WHOLE).unwrap();
    let handle = readers.handle();
    let (send, receive) = flume::unbounded();
    let submit = |scan| {
        let send = send.clone();
        let deliver = Box::new(move |scan, chunk: Chunk| {
            let _ = send.send((scan, chunk));
        });
        handle.try_submit(ReadJob { scan, deliver }).map_err(|_| "full").unwrap();
        receive.recv_timeout(Duration::from_secs(10)).ok()
    };
    let plan =
        |filter| Box::new(store.scan(Query { filters: vec![filter], limit_max: 10 }).unwrap());
    let searching = || Filter { search: Some("x".into()), ..Filter::default() };
    let mut priced = Vec::new();
    for _ in 0..4 {
        let (scan, chunk) = submit(plan(searching())).unwrap();
        assert!(scan.is_to_search() && !chunk.done);
        priced.push(scan);
    }
    for scan in priced {
        let send = send.clone();
        let deliver = Box::new(move |scan, chunk: Chunk| {
            let _ = send.send((scan, chunk));
        });
        handle.try_submit(ReadJob { scan, deliver }).map_err(|_| "full").unwrap();
    }
    has_begun.recv_timeout(Duration::from_secs(10)).unwrap();
    // One is under way, three wait, and who only reads does not.
    let (_, chunk) = submit(plan(Filter::default())).unwrap();
    assert_eq!(chunk.events.len(), 1);
    let closing = std::thread::spawn(move || readers.close());
    let deadline = Instant::now() + Duration::from_secs(10);
    while handle.queued() > 1 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(go);
    closing.join().unwrap();
    assert!(has_begun.is_empty(), "the others were not made");
}
