//! The CPU time of another thread of this process.
//!
//! Unsafe here: `clock_gettime` with a thread's clock, which rustix cannot name.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

/// A thread's CPU clock.
#[derive(Clone, Copy)]
pub struct ThreadClock(libc::clockid_t);

impl ThreadClock {
    /// Of the thread that asks.
    pub fn of_this_thread() -> Self {
        Self::of(rustix::thread::gettid().as_raw_nonzero().get())
    }

    /// Of any thread of this process, by its kernel id.
    pub fn of(thread: i32) -> Self {
        // As the kernel's `MAKE_THREAD_CPUCLOCK` does, with `CPUCLOCK_SCHED`.
        Self((!thread << 3) | 4 | 2)
    }

    /// Nanoseconds of CPU the thread has used.
    pub fn ns(self) -> u64 {
        let mut time = MaybeUninit::<libc::timespec>::uninit();
        // SAFETY: `time` is writable, and it is read only after the call has succeeded.
        let time = unsafe {
            assert_eq!(libc::clock_gettime(self.0, time.as_mut_ptr()), 0, "the thread lives");
            time.assume_init()
        };
        u64::try_from(time.tv_sec * 1_000_000_000 + time.tv_nsec).expect("not negative")
    }
}
