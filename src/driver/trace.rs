//! What a shard did in each of its turns, for measurements: `--trace-ticks FILE`.
//!
//! A shard notes one row a turn, from one look at the clock to the next, in a buffer of its own, and hands
//! the buffer to a thread that writes CSV. When that falls behind rows are dropped, and each later row of
//! the shard says how many. A relay that does not trace pays one branch a turn.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::mem;
use std::path::Path;

use rustix::time::{ClockId, clock_gettime};

use super::file_thread::FileThread;
use crate::relay::counters::Counters;

/// Rows a shard gathers before it hands them over.
const ROWS_PER_CHUNK: usize = 1_024;
/// Chunks that may wait for the thread: 18 MiB.
const CHUNKS_MAX: usize = 128;

/// The columns, in order.
pub const HEADER: &str = "from_us,until_us,shard,cpu_ns,from_bus,bytes_in,messages_in,verified,submissions,\
    matched,delivered_live,delivered_stored,frames_out,batches_out,bytes_out,verify_waiting,dropped_rows";

/// One turn of one shard.
#[derive(Clone, Copy, Debug)]
struct Row([u64; 17]);

/// Where shards hand their rows. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Trace {
    rows: flume::Sender<Vec<Row>>,
}

/// Creates the file and starts the thread.
///
/// # Errors
/// When the file or the thread cannot be had.
pub fn open(path: &Path) -> io::Result<(Trace, FileThread)> {
    let mut file = BufWriter::new(File::create(path)?);
    writeln!(file, "{HEADER}")?;
    let (rows, received) = flume::bounded::<Vec<Row>>(CHUNKS_MAX);
    let write = move || {
        for chunk in received {
            for Row(values) in chunk {
                let texts = values.map(|value| value.to_string());
                writeln!(file, "{}", texts.join(","))?;
            }
        }
        file.flush()
    };
    Ok((Trace { rows }, FileThread::spawn("trace", write)?))
}

/// The state at the beginning of a turn.
#[derive(Default)]
struct Before {
    us: u64,
    cpu_ns: u64,
    from_bus: u64,
    counters: Counters,
}

/// One shard's rows.
pub struct Tracer {
    shard: u64,
    trace: Trace,
    rows: RefCell<Vec<Row>>,
    before: RefCell<Before>,
    dropped: Cell<u64>,
}

impl Tracer {
    /// A tracer for the shard of this number.
    #[must_use]
    pub fn new(shard: usize, trace: Trace) -> Self {
        Self {
            shard: shard as u64,
            trace,
            rows: RefCell::default(),
            before: RefCell::default(),
            dropped: Cell::default(),
        }
    }

    /// Notes the turn that ended at `us`, when the next began; `from_bus` messages have been taken so far.
    /// The thread's CPU time is that since the turn before was noted, waiting in the kernel included.
    pub fn note(&self, us: u64, from_bus: u64, counters: Counters) {
        let cpu_ns = thread_cpu_ns();
        let after = Before { us, cpu_ns, from_bus, counters };
        let before = self.before.replace(after);
        if before.us == 0 {
            return;
        }
        let (b, a) = (&before.counters, &counters);
        let row = Row([
            before.us,
            us,
            self.shard,
            cpu_ns - before.cpu_ns,
            from_bus - before.from_bus,
            a.bytes_in - b.bytes_in,
            a.messages_in - b.messages_in,
            a.events_verified - b.events_verified,
            a.submissions_waiting,
            a.matched_live - b.matched_live,
            a.delivered_live - b.delivered_live,
            a.delivered_stored - b.delivered_stored,
            a.frames_out - b.frames_out,
            a.batches_out - b.batches_out,
            a.bytes_out - b.bytes_out,
            a.verify_waiting,
            self.dropped.get(),
        ]);
        let mut rows = self.rows.borrow_mut();
        rows.push(row);
        if rows.len() == ROWS_PER_CHUNK {
            self.hand_over(mem::replace(&mut rows, Vec::with_capacity(ROWS_PER_CHUNK)));
        }
    }

    fn hand_over(&self, rows: Vec<Row>) {
        if let Err(error) = self.trace.rows.try_send(rows) {
            self.dropped.set(self.dropped.get() + error.into_inner().len() as u64);
        }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let rows = self.rows.take();
        // The shard has ended: it may wait. The thread is gone only when the file broke.
        let _ = self.trace.rows.send(rows);
    }
}

fn thread_cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    u64::try_from(time.tv_sec * 1_000_000_000 + time.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_what_changed_and_no_row_is_lost_unsaid() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ticks.csv");
        let (trace, thread) = open(&path).unwrap();
        let tracer = Tracer::new(3, trace);
        let counters =
            |n| Counters { frames_out: 10 * n, verify_waiting: n, ..Counters::default() };
        for n in 1..=2_000 {
            tracer.note(100 * n, n, counters(n));
        }
        drop(tracer);
        thread.join().unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines[0], lines.len()), (HEADER, 2_000));
        let columns: Vec<&str> = HEADER.split(',').collect();
        for (at, line) in (1..).zip(&lines[1..]) {
            let values: Vec<u64> = line.split(',').map(|value| value.parse().unwrap()).collect();
            let of = |name: &str| values[columns.iter().position(|c| *c == name).unwrap()];
            assert_eq!(values.len(), columns.len());
            assert_eq!((of("from_us"), of("until_us"), of("shard")), (100 * at, 100 * (at + 1), 3));
            assert_eq!((of("from_bus"), of("frames_out"), of("verify_waiting")), (1, 10, at + 1));
            assert_eq!(of("dropped_rows"), 0);
        }
    }

    #[test]
    fn rows_that_found_no_room_are_counted() {
        let (rows, received) = flume::bounded(1);
        let tracer = Tracer::new(0, Trace { rows });
        let last = 3 * ROWS_PER_CHUNK as u64 + 1;
        (1..=last).for_each(|us| tracer.note(us, 0, Counters::default()));
        assert_eq!(received.recv().unwrap().len(), ROWS_PER_CHUNK);
        assert_eq!(tracer.dropped.get(), 2 * ROWS_PER_CHUNK as u64);
    }
}
