//! How the store's costs grow with what it holds.
//!
//! `cargo bench --bench store -- growth [--stored N,N,...] [--dir DIR]`
//!
//! One store grows through all sizes, of [`Shape::Mixed`] events that nobody signed. At each size: batches of a
//! thousand more, queries of every class about events and keys drawn from what was stored, a process that is
//! killed while it writes, and the store opened again. Slices are as large as a relay's.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rheostr::nostr::event::{Id, Pubkey};
use rheostr::nostr::{Event, Filter, TagValue};
use rheostr::relay::ports::Query;
use rheostr::store::{Options, SliceBudget, Store};

use crate::events::{FIRST_S, Shape, Stream};
use crate::write::apply;
use crate::{cpu_ns, directory, quartiles, value};

const AUTHORS: u64 = 100_000;
const FILL_BATCH: u64 = 20_000;
const BATCH: usize = 1_000;
const BATCHES: usize = 15;
const QUERIES: usize = 400;
/// Slices of a walk over everything.
const WALK_SLICES: usize = 2_000;
/// Events that queries ask about.
const DRAWN: usize = 4_096;
const BUDGET: SliceBudget =
    SliceBudget { entries: 256, bytes: 256 << 10, events: 256, time: Duration::from_micros(200) };

/// Runs this part.
pub fn run() {
    let sizes = value("--stored").unwrap_or_else(|| "10000,100000,1000000".into());
    let sizes: Vec<u64> = sizes.split(',').map(|size| size.parse().expect("a number")).collect();
    let dir = directory();
    let mut growing = Growing {
        dir: dir.path().into(),
        stream: Stream::new(1, Shape::Mixed, AUTHORS),
        random: fastrand::Rng::with_seed(2),
        drawn: Vec::new(),
        submitted: 0,
        json_bytes: 0,
    };
    let mut rows: Vec<(String, Vec<String>)> = Vec::new();
    for size in sizes {
        for (name, text) in growing.measure(size) {
            match rows.iter_mut().find(|(known, _)| *known == name) {
                Some((_, texts)) => texts.push(text),
                None => rows.push((name, vec![text])),
            }
        }
    }
    println!();
    for (name, texts) in rows {
        println!("| {name} | {} |", texts.join(" | "));
    }
}

struct Growing {
    dir: PathBuf,
    stream: Stream,
    random: fastrand::Rng,
    /// Of the events so far, some.
    drawn: Vec<(Id, Pubkey)>,
    submitted: u64,
    json_bytes: u64,
}

impl Growing {
    /// Grows to `size` and measures; names and figures.
    fn measure(&mut self, size: u64) -> Vec<(String, String)> {
        let store = self.open();
        while self.submitted < size {
            let events = self.take(FILL_BATCH.min(size - self.submitted));
            apply(&store, &events, self.stream.now_s());
        }
        let mut figures = Vec::new();
        let mut tell = |name: &str, text: String| {
            eprintln!("{size}: {name}: {text}");
            figures.push((name.to_owned(), text));
        };
        let before = written_bytes();
        let costs = (0..BATCHES).map(|_| {
            let events = self.take(BATCH as u64);
            apply(&store, &events, self.stream.now_s()) as f64 / 1e3 / BATCH as f64
        });
        let [low, middle, high] = quartiles(costs.collect());
        let written = (written_bytes() - before) as f64 / (BATCHES * BATCH) as f64;
        let info = store.info().expect("the store");
        tell("events visible", format!("{}", info.events));
        tell("ingest, µs an event", format!("{middle:.1} ({low:.1}–{high:.1})"));
        tell("ingest, KB written an event", format!("{:.1}", written / 1e3));
        let each = |bytes: u64| bytes as f64 / info.events as f64;
        tell(
            "bytes of JSON of an event submitted",
            format!("{:.0}", self.json_bytes as f64 / self.submitted as f64),
        );
        tell("bytes in use an event, all told", format!("{:.0}", each(info.used_bytes)));
        tell("of the file", format!("{:.0}", each(info.disk_bytes)));
        for (name, filters) in self.queries() {
            let (event_us, slice_us) = ask(&store, &filters);
            tell(
                &format!("{name}: µs an event · p99 of a slice, µs"),
                format!("{event_us:.2} · {slice_us:.0}"),
            );
        }
        drop(store);
        self.be_killed();
        let timed = |open: &dyn Fn() -> Store| {
            let start = Instant::now();
            let store = open();
            let opened = start.elapsed();
            store.info().expect("the store");
            format!("{:.1} · {:.1}", milliseconds(opened), milliseconds(start.elapsed()))
        };
        tell("after kill -9: open · and info, ms", timed(&|| self.open()));
        let read_only = || Store::open_read_only(&self.dir, &Options::default()).expect("a store");
        tell("read-only: open · and info, ms", timed(&read_only));
        figures
    }

    fn open(&self) -> Store {
        Store::open(&self.dir, &Options::default()).expect("the store")
    }

    fn take(&mut self, count: u64) -> Vec<Event> {
        self.submitted += count;
        let count = usize::try_from(count).expect("small");
        let events: Vec<Event> = self.stream.by_ref().take(count).collect();
        for event in &events {
            let event = event.view();
            self.json_bytes += event.json().len() as u64;
            let drawn = (*event.id(), *event.pubkey());
            // Each of all so far with the same probability.
            if self.drawn.len() < DRAWN {
                self.drawn.push(drawn);
            } else if let Some(place) = self
                .drawn
                .get_mut(self.random.usize(..usize::try_from(self.submitted).expect("64 bits")))
            {
                *place = drawn;
            }
        }
        events
    }

    /// The classes, and what is asked in each.
    fn queries(&mut self) -> Vec<(&'static str, Vec<Filter>)> {
        let last_s = self.stream.now_s();
        let Self { random, drawn, .. } = self;
        let mut each = |name, filter: &mut dyn FnMut(&mut fastrand::Rng, Id, Pubkey) -> Filter| {
            let filters = (0..QUERIES).map(|_| {
                let (id, author) = drawn[random.usize(..drawn.len())];
                filter(random, id, author)
            });
            (name, filters.collect())
        };
        let limited = |limit| Filter { limit: Some(limit), ..Filter::default() };
        vec![
            each("by id", &mut |_, id, _| Filter { ids: Some(vec![id]), ..limited(1) }),
            each("author, limit 50", &mut |_, _, author| Filter {
                authors: Some(vec![author]),
                ..limited(50)
            }),
            each("author and kinds, limit 50", &mut |_, _, author| Filter {
                authors: Some(vec![author]),
                kinds: Some(vec![1, 7]),
                ..limited(50)
            }),
            each("#p, limit 50", &mut |_, _, author| Filter {
                tags: vec![(b'p', vec![TagValue::Hex(author)])],
                ..limited(50)
            }),
            each("kind, limit 100", &mut |random, _, _| Filter {
                kinds: Some(vec![[1, 6, 7, 1059, 9735][random.usize(..5)]]),
                ..limited(100)
            }),
            each("an hour, limit 100", &mut |random, _, _| {
                let since = random.u64(FIRST_S..last_s);
                Filter { since: Some(since), until: Some(since + 3_600), ..limited(100) }
            }),
            ("everything", vec![limited((WALK_SLICES * BUDGET.events) as u64)]),
        ]
    }

    /// Has another process write the store, and kills it.
    fn be_killed(&self) {
        let program = std::env::current_exe().expect("this program");
        let mut child = Command::new(program)
            .args([WRITE_UNTIL_KILLED, "--store"])
            .arg(&self.dir)
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let mut said = String::new();
        let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        stdout.read_line(&mut said).expect("it commits");
        std::thread::sleep(Duration::from_millis(300));
        child.kill().expect("it runs");
        child.wait().expect("it ends");
    }
}

/// The part of this program that [`Growing::be_killed`] runs.
pub const WRITE_UNTIL_KILLED: &str = "write-until-killed";

/// Applies batch after batch to `--store`.
pub fn write_until_killed() {
    let dir = value("--store").expect("--store DIR");
    let store = Store::open(Path::new(&dir), &Options::default()).expect("a store");
    let mut stream = Stream::new(u64::from(std::process::id()), Shape::Mixed, AUTHORS);
    loop {
        let events: Vec<Event> = stream.by_ref().take(100).collect();
        apply(&store, &events, stream.now_s());
        println!("committed");
        std::io::stdout().flush().expect("somebody reads");
    }
}

/// CPU microseconds a returned event, and the 99th percentile of a slice's.
fn ask(store: &Store, filters: &[Filter]) -> (f64, f64) {
    let (mut events, mut cpu) = (0, 0);
    let mut slices = Vec::new();
    for filter in filters {
        let start = cpu_ns();
        let query = Query { filters: vec![filter.clone()], limit_max: u64::MAX };
        let mut scan = store.scan(query).expect("a query");
        while !scan.is_done() {
            let start = cpu_ns();
            events += scan.slice(store, &BUDGET, FIRST_S).expect("a slice").events.len();
            slices.push(cpu_ns() - start);
        }
        cpu += cpu_ns() - start;
    }
    slices.sort_unstable();
    let p99 = slices[(slices.len() - 1) * 99 / 100];
    (cpu as f64 / 1e3 / events.max(1) as f64, p99 as f64 / 1e3)
}

/// Bytes this process has had written to a disk.
fn written_bytes() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").expect("Linux");
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.and_then(|bytes| bytes.parse().ok()).expect("a number")
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
