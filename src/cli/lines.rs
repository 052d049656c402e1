//! JSONL in, verified events out, in the order of the lines.
//!
//! ```text
//! reader ──chunk──▶ workers (parse, check id and signature) ──chunk──▶ caller
//!    └────────────── the same chunks' reply slots, in order ───────────┘
//! ```
//! The reader queues, for every chunk, the slot its result will come in; the caller empties the slots
//! in that order. The queue of slots is bounded, and so is everything in flight. Nothing waits in a
//! circle: a worker's reply always fits its slot.

use std::io::{self, BufRead};
use std::thread::{self, ScopedJoinHandle};

use crate::nostr::{Candidate, Event, KindClass, MessageReader, VerifiedEvent, Verifier};
use crate::ops::admin::{CHUNK_EVENTS_MAX, LINE_BYTES_MAX};
use crate::ops::line::read_line;

/// Lines of one chunk: what a relay's admin socket takes at once.
pub const CHUNK_LINES_MAX: usize = CHUNK_EVENTS_MAX;
/// Bytes of one chunk, but for its last line.
const CHUNK_BYTES_MAX: usize = 1 << 20;
/// Chunks read and not yet taken by the caller, for each worker: work for as long as a commit of
/// ten thousand events may take.
const CHUNKS_PER_WORKER: usize = 8;

/// What became of one line.
pub type Outcome = Result<Event, &'static str>;

/// The outcomes of consecutive lines.
pub struct Chunk {
    /// Number of each line, from 1, with its outcome. Blank lines are left out.
    pub lines: Vec<(u64, Outcome)>,
    /// Bytes of input, blank lines and line ends included.
    pub bytes: u64,
}

struct RawChunk {
    lines: Vec<(u64, Vec<u8>)>,
    bytes: u64,
    failed: Option<io::Error>,
}

/// Reads `input` to its end on `workers` threads and hands each chunk to `take`, in order.
///
/// # Errors
/// When the input cannot be read, or what `take` returns; reading stops then.
///
/// # Panics
/// When a worker does.
pub fn read_events<E: From<io::Error>>(
    input: impl BufRead + Send,
    verify: bool,
    workers: usize,
    mut take: impl FnMut(Chunk) -> Result<(), E>,
) -> Result<(), E> {
    let workers = workers.max(1);
    thread::scope(|scope| {
        let (work, jobs) = flume::bounded::<(RawChunk, flume::Sender<Chunk>)>(workers);
        let (slots, ordered) = flume::bounded::<Result<flume::Receiver<Chunk>, io::Error>>(
            workers * CHUNKS_PER_WORKER,
        );
        for _ in 0..workers {
            let jobs = jobs.clone();
            scope.spawn(move || {
                let mut judge = Judge::new(verify);
                for (chunk, reply) in jobs {
                    // The caller may have given up.
                    let _ = reply.send(judge.chunk(chunk));
                }
            });
        }
        drop(jobs);
        let _: ScopedJoinHandle<'_, ()> = scope.spawn(move || feed(input, &work, &slots));
        for slot in ordered {
            let chunk = slot?.recv().expect("a worker answers every chunk");
            take(chunk)?;
        }
        Ok(())
    })
}

/// Splits the input into chunks until its end, an error, or until nobody takes them.
fn feed(
    mut input: impl BufRead,
    work: &flume::Sender<(RawChunk, flume::Sender<Chunk>)>,
    slots: &flume::Sender<Result<flume::Receiver<Chunk>, io::Error>>,
) {
    let mut line = 0;
    loop {
        let mut chunk =
            RawChunk { lines: Vec::with_capacity(CHUNK_LINES_MAX), bytes: 0, failed: None };
        let more = fill(&mut input, &mut chunk, &mut line);
        let failed = chunk.failed.take();
        if chunk.bytes > 0 {
            let (reply, slot) = flume::bounded(1);
            if slots.send(Ok(slot)).is_err() || work.send((chunk, reply)).is_err() {
                return;
            }
        }
        if let Some(error) = failed {
            let _ = slots.send(Err(error));
            return;
        }
        if !more {
            return;
        }
    }
}

/// Whether there may be more input.
fn fill(input: &mut impl BufRead, chunk: &mut RawChunk, line: &mut u64) -> bool {
    while chunk.lines.len() < CHUNK_LINES_MAX && chunk.bytes < CHUNK_BYTES_MAX as u64 {
        let mut text = Vec::new();
        match read_line(input, LINE_BYTES_MAX, &mut text) {
            Ok(0) => return false,
            Ok(bytes) => {
                *line += 1;
                chunk.bytes += bytes;
                if !text.trim_ascii().is_empty() {
                    chunk.lines.push((*line, text));
                }
            }
            Err(error) => {
                chunk.failed = Some(error);
                return false;
            }
        }
    }
    true
}

struct Judge {
    reader: MessageReader,
    verifier: Option<Verifier>,
}

impl Judge {
    fn new(verify: bool) -> Self {
        Self { reader: MessageReader::default(), verifier: verify.then(Verifier::default) }
    }

    fn chunk(&mut self, chunk: RawChunk) -> Chunk {
        let judge = |(number, mut text): (u64, Vec<u8>)| (number, self.line(&mut text));
        Chunk { lines: chunk.lines.into_iter().map(judge).collect(), bytes: chunk.bytes }
    }

    fn line(&mut self, text: &mut [u8]) -> Outcome {
        if text.len() > LINE_BYTES_MAX {
            return Err("line is longer than 16 MiB");
        }
        simdutf8::basic::from_utf8(text).map_err(|_| "not UTF-8")?;
        let candidate = self.reader.read_event(text)?;
        if candidate.event().view().kind().class() == KindClass::Ephemeral {
            return Err("an ephemeral event is not stored");
        }
        self.verified(candidate).map(VerifiedEvent::into_event)
    }

    fn verified(&mut self, candidate: Candidate) -> Result<VerifiedEvent, &'static str> {
        match &mut self.verifier {
            None => Ok(VerifiedEvent::trust(candidate)),
            Some(verifier) => verifier.verify(candidate).map_err(|_| "signature is wrong"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Read};

    use super::*;

    fn outcomes(input: impl Read + Send, workers: usize) -> Vec<(u64, Outcome)> {
        let mut all = Vec::new();
        read_events(BufReader::with_capacity(100, input), false, workers, |chunk| {
            all.extend(chunk.lines);
            Ok::<_, io::Error>(())
        })
        .unwrap();
        all
    }

    #[test]
    fn lines_keep_their_numbers_and_order() {
        let mut text = String::new();
        for line in 1..=5_000 {
            match line % 3 {
                0 => text.push_str("  \r\n"),
                1 => text.push_str("{}\n"),
                _ => text.push_str("nonsense\n"),
            }
        }
        text.push_str("[]");
        for workers in [1, 4] {
            let found = outcomes(text.as_bytes(), workers);
            let numbers: Vec<u64> = found.iter().map(|(number, _)| *number).collect();
            let expected: Vec<u64> =
                (1..=5_001).filter(|line| line % 3 != 0 || *line == 5_001).collect();
            assert_eq!(numbers, expected);
            assert_eq!(found[1].1, Err("not JSON"));
            assert_eq!(found.last().unwrap().1, Err("an event must be an object"));
        }
    }

    #[test]
    fn a_line_too_long_or_not_text_is_told() {
        let long = io::repeat(b'x').take(LINE_BYTES_MAX as u64 + 1);
        let found = outcomes(long.chain(&b"\n\xff\n"[..]), 1);
        assert_eq!(found, [(1, Err("line is longer than 16 MiB")), (2, Err("not UTF-8"))]);
    }

    #[test]
    fn the_caller_may_stop_and_a_broken_input_is_told() {
        let endless = BufReader::new(io::repeat(b'\n'));
        let mut chunks = 0;
        let result = read_events(endless, false, 2, |_| {
            chunks += 1;
            if chunks == 10 { Err(io::Error::other("enough")) } else { Ok(()) }
        });
        assert_eq!(result.unwrap_err().to_string(), "enough");

        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("disk on fire"))
            }
        }
        let mut lines = 0;
        let input = BufReader::new((&b"{}\n"[..]).chain(Broken));
        let result = read_events(input, false, 2, |chunk| {
            lines += chunk.lines.len();
            Ok::<_, io::Error>(())
        });
        assert_eq!((lines, result.unwrap_err().to_string().as_str()), (1, "disk on fire"));
    }
}
