//! What a delivery allocates: nothing. What a filter holds: no more than the memory bound says.
//!
//! A binary of its own, since its allocator counts. Counts are of the calling thread, so tests may run
//! side by side.

#![allow(unsafe_code)]

#[path = "../../benches/support/core.rs"]
mod core;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use rheostr::nostr::{Filter, TagValue};
use rheostr::relay::subscriptions::{SubscriptionIndex, VALUE_BYTES_MAX};

use self::core::{Core, commit};

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
    static HELD_BYTES: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

// The thread may be ending; then nobody asks any more.
fn count() {
    let _ = COUNT.try_with(|count| count.set(count.get() + 1));
}

fn hold(bytes: usize, sign: isize) {
    let _ = HELD_BYTES.try_with(|held| held.set(held.get() + sign * bytes.cast_signed()));
}

// SAFETY: everything is left to the system's allocator, with the arguments as they came; counting
// neither allocates nor panics.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        hold(layout.size(), 1);
        // SAFETY: the caller's promises are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        hold(layout.size(), 1);
        // SAFETY: the caller's promises are the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        hold(layout.size(), -1);
        hold(size, 1);
        // SAFETY: the caller's promises are the same.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        hold(layout.size(), -1);
        // SAFETY: the caller's promises are the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations while `work` runs.
fn allocations(work: impl FnOnce()) -> usize {
    let before = COUNT.get();
    work();
    COUNT.get() - before
}

/// What a shard allocates for one event, once for all who subscribe: the event as they share it, and its
/// text.
const PER_EVENT_MAX: usize = 2;

/// Allocations of a commit of `events` events to so many subscribers, once the queues have grown.
fn of_a_commit(subscribers: usize, events: usize, json_bytes: usize) -> usize {
    let mut core = Core::new();
    for _ in 0..subscribers {
        core.subscribe();
    }
    let commit = commit(events, json_bytes);
    let deliver = |core: &mut Core| {
        let (frames, bytes) = core.publish(&commit);
        assert_eq!(frames, (subscribers * events) as u64);
        assert!(bytes > (subscribers * events * json_bytes) as u64);
    };
    (0..3).for_each(|_| deliver(&mut core));
    let counts = [(); 5].map(|()| allocations(|| deliver(&mut core)));
    assert_eq!(counts, [counts[0]; 5], "a steady state");
    counts[0]
}

#[test]
fn a_delivery_allocates_nothing() {
    // Copied into the batch, or beside it; alone, in one batch, in several. No more than an outbox
    // holds: a subscription's own queue grows for what goes beyond, and gives its memory back.
    for json_bytes in [400, 20_000] {
        for events in [1, 16, 50] {
            let one = of_a_commit(1, events, json_bytes);
            assert!(one <= PER_EVENT_MAX * events, "{one} for {events} events");
            for subscribers in [2, 100] {
                let many = of_a_commit(subscribers, events, json_bytes);
                assert_eq!(many, one, "{events} events of {json_bytes} bytes to {subscribers}");
            }
        }
    }
}

#[test]
fn an_allocation_is_counted() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(1)))), 1);
    assert_eq!(allocations(|| drop(std::hint::black_box(vec![0_u8; 9]))), 1);
    let mut grown = Vec::<u8>::with_capacity(8);
    assert_eq!(allocations(|| grown.reserve_exact(64)), 1);
    assert_eq!(allocations(|| ()), 0);
}

/// 32 different bytes for each number.
fn key(n: u32) -> [u8; 32] {
    let mut key = [0; 32];
    key[..4].copy_from_slice(&n.to_le_bytes());
    key
}

#[test]
fn a_value_of_a_filter_takes_no_more_than_is_said() {
    type Make = fn(u32) -> Filter;
    let shapes: [(&str, Make); 4] = [
        ("ids", |count| Filter { ids: Some((0..count).map(key).collect()), ..Filter::default() }),
        ("authors", |count| Filter {
            authors: Some((0..count).map(key).collect()),
            ..Filter::default()
        }),
        ("hex", |count| Filter {
            tags: vec![(b'p', (0..count).map(|n| TagValue::Hex(key(n))).collect())],
            ..Filter::default()
        }),
        ("text", |count| Filter {
            tags: vec![(b't', (0..count).map(|n| TagValue::new(&format!("{n:08}"))).collect())],
            ..Filter::default()
        }),
    ];
    for (name, make) in shapes {
        // On either side of where the tables grow.
        for count in [1_000_u32, 1_793, 3_585, 7_168, 7_169, 10_000, 14_337, 20_000] {
            let filters = [make(count)];
            let before = HELD_BYTES.get();
            let mut index = SubscriptionIndex::new(7);
            let slots = index.insert(0, &filters);
            let a_value = (HELD_BYTES.get() - before).cast_unsigned() / count as usize;
            assert!(a_value <= VALUE_BYTES_MAX, "{count} {name}: {a_value} bytes a value");
            assert_eq!(index.held_bytes(), count as usize * VALUE_BYTES_MAX);
            index.remove(&slots);
            index.shrink_to_fit(0);
            drop((index, slots));
            assert_eq!(HELD_BYTES.get(), before, "{count} {name}");
        }
    }
}
