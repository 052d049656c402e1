//! A hand-written ring that does nothing but send: the floor under the production path. One
//! submission a message, one `io_uring_enter` a round that also waits for the completions.
//!
//! Unsafe here: the kernel reads the messages' memory until they are complete.
#![allow(unsafe_code)]

use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::{mem, process};

use io_uring::{IoUring, cqueue, opcode, squeue, types};

/// Most messages of one round.
const MESSAGES_MAX: u32 = 1024;

/// What one socket is to be sent.
pub struct Message<'a, 'b> {
    /// Where to.
    pub socket: BorrowedFd<'a>,
    /// What is left to send.
    pub slices: &'a mut [IoSlice<'b>],
}

/// A ring set up as the shards' rings are.
pub struct Ring {
    uring: IoUring,
    headers: Vec<libc::msghdr>,
    done: Vec<cqueue::Entry>,
}

impl Ring {
    /// To be used on this thread only.
    pub fn new() -> Self {
        let uring = IoUring::builder()
            .setup_coop_taskrun()
            .setup_single_issuer()
            .setup_submit_all()
            .build(MESSAGES_MAX)
            .expect("the kernel allows io_uring");
        Self { uring, headers: Vec::new(), done: Vec::new() }
    }

    /// Sends every message whole: one slice with `SEND`, more with `SENDMSG`. What a socket took in
    /// part goes on with the next `enter`.
    pub fn send(&mut self, messages: &mut [Message<'_, '_>]) {
        assert!(messages.len() <= MESSAGES_MAX as usize);
        self.headers.clear();
        // SAFETY: all-zero is a valid `msghdr`: null pointers and zero lengths.
        self.headers.resize(messages.len(), unsafe { mem::zeroed() });
        for number in 0..messages.len() {
            self.push(number, messages);
        }
        let mut left = messages.len();
        while left > 0 {
            // From here no unwinding: it would free what the kernel still reads.
            let done = self.uring.submit_and_wait(left);
            if done.is_err_and(|error| error.kind() != std::io::ErrorKind::Interrupted) {
                process::abort();
            }
            self.done.clear();
            self.done.extend(self.uring.completion());
            for at in 0..self.done.len() {
                let entry = &self.done[at];
                let number =
                    usize::try_from(entry.user_data()).unwrap_or_else(|_| process::abort());
                let count = usize::try_from(entry.result()).unwrap_or_else(|_| process::abort());
                let slices = &mut messages[number].slices;
                IoSlice::advance_slices(slices, count);
                if slices.is_empty() {
                    left -= 1;
                } else {
                    self.push(number, messages);
                }
            }
        }
    }

    fn push(&mut self, number: usize, messages: &mut [Message<'_, '_>]) {
        let Message { socket, slices } = &mut messages[number];
        let (fd, flags) = (types::Fd(socket.as_raw_fd()), libc::MSG_NOSIGNAL);
        let entry = match slices {
            [one] => opcode::Send::new(fd, one.as_ptr(), u32::try_from(one.len()).expect("small"))
                .flags(flags)
                .build(),
            many => {
                let header = &mut self.headers[number];
                // An `IoSlice` is an `iovec` (its documentation says so).
                header.msg_iov = many.as_mut_ptr().cast();
                header.msg_iovlen = many.len() as _;
                opcode::SendMsg::new(fd, &raw const *header).flags(flags.cast_unsigned()).build()
            }
        };
        self.enqueue(&entry.user_data(number as u64));
    }

    fn enqueue(&mut self, entry: &squeue::Entry) {
        // SAFETY: what the entry points at is borrowed by `send`, which does not return, nor unwind
        // once a part is submitted, before the entry is complete.
        unsafe { self.uring.submission().push(entry) }.expect("as many entries as messages");
    }
}
