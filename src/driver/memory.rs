//! Freed memory goes back to the system.
//!
//! The allocator leaves what a thread has freed with that thread, and gives it back piece by piece while
//! the thread allocates. A shard that has just lost its connections hardly does.
//!
//! Unsafe here: a function of the allocator that its crate does not wrap.
#![allow(unsafe_code)]

// Brings the allocator along, also where nothing allocates with it.
use mimalloc as _;

unsafe extern "C" {
    /// Part of mimalloc's interface.
    fn mi_collect(force: bool);
}

/// Gives back what the calling thread has freed, or others of what it had allocated. Some milliseconds
/// where that is a hundred megabytes.
pub fn give_back() {
    // SAFETY: it takes no pointer, may be called by any thread at any time, and works on that thread's
    // own heap; what is allocated stays where it is.
    unsafe { mi_collect(true) };
}
