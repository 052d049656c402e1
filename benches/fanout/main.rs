//! Fan-out: what the production path costs over bare sends. 200 loopback subscribers, frames of 425
//! bytes, batches of 1 to 64 frames a subscriber and round.
//!
//! `cargo bench --bench fanout [-- [burst|paced] [--samples N] [--frames N] [--only 'CONTENDER|...']]`.
//! The sending threads run on the first core, the thread that starts the rounds and drains the sockets on
//! the second. Samples of the contenders are taken in turn; ratios are of samples taken in the same turn,
//! and their median is shown. Measured is the CPU time of the sending thread, waking up for each round
//! included. The first half of a turn is not measured: it finds the caches as another contender left them,
//! which after a write a frame made it dearer by a third. On loopback the sender's CPU pays for the
//! receiving side of TCP too.

mod clients;
mod clock;
mod raw;
mod relay;
#[path = "../support/ring.rs"]
mod ring;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use clients::Clients;
use clock::ThreadClock;
use rheostr::driver::backend::Choice;
use rustix::thread::{CpuSet, sched_setaffinity};

/// As in the relay.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Sockets of each contender.
pub const SUBSCRIBERS: usize = 200;
/// A frame: its header, [`PREFIX`], the event and `]`.
pub const FRAME_BYTES: usize = 425;
/// What comes before the event.
pub const PREFIX: &[u8] = br#"["EVENT","sub","#;
/// Where the sending threads run.
pub const SENDER_CORE: usize = 0;
/// Where the sockets are drained.
pub const DRAIN_CORE: usize = 1;

/// 50 rounds a second.
const PACE: Duration = Duration::from_millis(20);
/// After this long a sending thread has seen its completions and sleeps.
const SETTLE: Duration = Duration::from_millis(2);

/// Something that sends frames to its subscribers when told to.
pub struct Contender {
    /// For the table.
    pub name: &'static str,
    /// Of the sending thread.
    pub clock: ThreadClock,
    /// The other ends.
    pub clients: Rc<RefCell<Clients>>,
    /// Starts a round of so many frames a subscriber.
    pub go: Box<dyn FnMut(usize)>,
    /// Frames and batches sent so far, as the relay counts them.
    pub sent: Option<Arc<[AtomicU64; 2]>>,
}

impl Contender {
    fn sent(&self) -> Option<[u64; 2]> {
        let sent = self.sent.as_ref()?;
        Some([0, 1].map(|n| sent[n].load(Ordering::Relaxed)))
    }

    /// CPU nanoseconds a delivered frame over `rounds` rounds.
    fn sample(&mut self, frames: usize, rounds: usize, pace: Duration) -> f64 {
        let mut start = self.clock.ns();
        for round in 0..2 * rounds {
            if round == rounds {
                sleep(SETTLE);
                start = self.clock.ns();
            }
            let next = Instant::now() + pace;
            (self.go)(frames);
            self.clients.borrow_mut().receive(SUBSCRIBERS * frames * FRAME_BYTES);
            sleep(next.saturating_duration_since(Instant::now()));
        }
        sleep(SETTLE);
        (self.clock.ns() - start) as f64 / (rounds * frames * SUBSCRIBERS) as f64
    }
}

/// The JSON of an event.
#[must_use]
pub fn event_json() -> Vec<u8> {
    let mut json = vec![b'x'; FRAME_BYTES - 4 - PREFIX.len() - 1];
    json[0] = b'{';
    *json.last_mut().expect("not empty") = b'}';
    json
}

/// Pins this thread to one core.
pub fn pin(core: usize) {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).expect("two cores");
}

/// The value in the middle, and those a quarter from each end.
fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values[quarter * (values.len() - 1) / 4])
}

/// Measures all contenders in turn and prints a row each, with its ratio to every other.
fn compare(
    contenders: &mut [Contender],
    frames: usize,
    rounds: usize,
    samples: usize,
    pace: Duration,
) {
    let mut taken = vec![Vec::new(); contenders.len()];
    let sent_before: Vec<_> = contenders.iter().map(Contender::sent).collect();
    // One turn more than is kept: the first one warms up.
    for turn in 0..=samples {
        for (contender, taken) in contenders.iter_mut().zip(&mut taken) {
            let ns = contender.sample(frames, rounds, pace);
            if turn > 0 {
                taken.push(ns);
            }
        }
    }
    // The relays tell their counts four times a second.
    sleep(Duration::from_millis(300));
    println!(
        "\n{frames} frames a subscriber and round, {rounds} rounds a sample, {samples} samples:"
    );
    println!("{:<20} frames a batch   ns a frame    quartiles | ratio (quartiles) to", "");
    print!("{:<62}", "");
    contenders.iter().for_each(|contender| print!("| {:<19}", contender.name));
    println!();
    for ((contender, mine), before) in contenders.iter().zip(&taken).zip(sent_before) {
        let batch = contender.sent().zip(before).map_or_else(String::new, |(after, before)| {
            format!("{:.1}", (after[0] - before[0]) as f64 / (after[1] - before[1]) as f64)
        });
        let [low, middle, high] = quartiles(mine.clone());
        let spread = format!("{low:.0}-{high:.0}");
        print!("{:<20} {batch:>14} {middle:>12.0} {spread:>12} ", contender.name);
        for theirs in &taken {
            let ratios = mine.iter().zip(theirs).map(|(mine, theirs)| mine / theirs).collect();
            let [low, middle, high] = quartiles(ratios);
            print!("| {:<19}", format!("{middle:.2} ({low:.2}-{high:.2})"));
        }
        println!();
    }
}

/// The number after `name` on the command line.
fn option(name: &str, default: usize) -> usize {
    let mut arguments = std::env::args().skip_while(|argument| argument != name).skip(1);
    arguments.next().map_or(default, |value| value.parse().expect("a number"))
}

fn main() {
    let wanted = |name: &str| {
        let phases = ["burst", "paced"];
        let mut asked = std::env::args().filter(|a| phases.contains(&a.as_str())).peekable();
        asked.peek().is_none() || asked.any(|argument| argument == name)
    };
    pin(DRAIN_CORE);
    let mut contenders = raw::contenders();
    let mut relays = Vec::new();
    for (name, backend) in [("tokio-uring", Choice::TokioUring), ("epoll", Choice::Epoll)] {
        let (relay, contender) = relay::contender(name, backend);
        relays.push(relay);
        contenders.push(contender);
    }
    // Last, since it disturbs the most.
    let each_frame = contenders.iter().position(|contender| contender.name == raw::EACH_FRAME);
    contenders[each_frame.expect("a floor")..].rotate_left(1);
    let mut named = std::env::args().skip_while(|argument| argument != "--only").skip(1);
    if let Some(name) = named.next() {
        contenders.retain(|contender| name.split('|').any(|name| name == contender.name));
    }
    let samples = option("--samples", 15);
    if wanted("burst") {
        let only = option("--frames", 0);
        for (frames, rounds) in [(1, 40), (4, 30), (16, 20), (64, 10)] {
            if only != 0 && only != frames {
                continue;
            }
            compare(&mut contenders, frames, rounds, samples, Duration::ZERO);
        }
    }
    if wanted("paced") {
        println!("\nfifty rounds a second:");
        compare(&mut contenders, 1, 25, samples, PACE);
    }
}
