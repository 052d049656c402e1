//! tokio-uring: readiness by `POLL_ADD`, writes by `SENDMSG`, one `io_uring_enter` a tick for all
//! sockets.
//!
//! Both operations go through the crate's public one-shot door. What an operation's memory is made of
//! travels in its stable data, which the driver keeps until the kernel is done with it, also when the
//! future is dropped; the same data holds a reference to the socket, so a file descriptor is never
//! reused under an operation in flight.
//!
//! Unsafe here: raw pointers in the message header, as the kernel wants them.
#![allow(unsafe_code)]

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use io_uring::{cqueue, opcode, types};
use tokio_uring::{OneshotOutputTransform, UnsubmittedOneshot};

use super::{Backend, Socket};
use crate::wire::batch::Batch;

/// See the module.
pub struct TokioUring;

/// A socket the ring works on.
pub struct RingSocket(Rc<OwnedFd>);

/// Submissions one tick may queue before the ring flushes early.
const SUBMISSION_ENTRIES: u32 = 1024;

/// Completions the ring holds without spilling into kernel memory.
const COMPLETION_ENTRIES: u32 = 8192;

/// A ring as the shards set it up; Linux 6.0 knows all of it.
fn ring() -> io_uring::Builder {
    let mut ring = tokio_uring::uring_builder();
    ring.setup_coop_taskrun()
        .setup_single_issuer()
        .setup_submit_all()
        .setup_cqsize(COMPLETION_ENTRIES);
    ring
}

/// Whether this process may have such a ring: containers often refuse it by seccomp,
/// `kernel.io_uring_disabled` does so for everyone, and an older kernel does not know the flags.
///
/// # Errors
/// The kernel's refusal.
pub fn probe() -> io::Result<()> {
    ring().build(SUBMISSION_ENTRIES).map(drop)
}

impl Backend for TokioUring {
    const NAME: &'static str = "tokio-uring";
    type Socket = RingSocket;

    fn run<F: Future>(main: F) -> io::Result<F::Output> {
        let mut builder = tokio_uring::builder();
        builder.entries(SUBMISSION_ENTRIES).uring_builder(&ring());
        let runtime = tokio_uring::Runtime::new(&builder)?;
        Ok(runtime.block_on(main))
    }

    fn spawn_local(task: impl Future<Output = ()> + 'static) {
        tokio_uring::spawn(task);
    }

    fn sleep(duration: Duration) -> impl Future<Output = ()> {
        tokio::time::sleep(duration)
    }

    async fn breathe() {
        // A NOP completes only after a submit, so by then all that was queued has been submitted.
        let _ = tokio_uring::no_op().await;
    }

    fn socket(fd: OwnedFd) -> io::Result<Self::Socket> {
        Ok(RingSocket(Rc::new(fd)))
    }
}

impl AsFd for RingSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Socket for RingSocket {
    async fn readable(&self) -> io::Result<()> {
        const MASK: u32 = (libc::POLLIN | libc::POLLRDHUP) as u32;
        let entry = opcode::PollAdd::new(types::Fd(self.0.as_raw_fd()), MASK).build();
        UnsubmittedOneshot::new(Polling { _socket: self.0.clone() }, Polled, entry).submit().await
    }

    fn try_read<R>(&self, mut read: impl FnMut(BorrowedFd<'_>) -> io::Result<R>) -> io::Result<R> {
        read(self.0.as_fd())
    }

    async fn send(&self, batch: Box<Batch>) -> (io::Result<usize>, Box<Batch>) {
        let sending = Sending::new(self.0.clone(), batch);
        let entry = sending.entry(self.0.as_raw_fd());
        UnsubmittedOneshot::new(sending, Sent, entry).submit().await
    }
}

/// Keeps the socket open while the ring polls it.
struct Polling {
    _socket: Rc<OwnedFd>,
}

struct Polled;

impl OneshotOutputTransform for Polled {
    type Output = io::Result<()>;
    type StoredData = Polling;

    fn transform_oneshot_output(self, _: Polling, entry: cqueue::Entry) -> Self::Output {
        result(&entry).map(drop)
    }
}

/// A `SENDMSG` in flight: everything the kernel reads, at addresses that do not move.
struct Sending {
    _socket: Rc<OwnedFd>,
    batch: Box<Batch>,
    /// Points into the buffers of `batch`, which nobody touches until the operation is done.
    _slices: Vec<libc::iovec>,
    /// Points at `_slices`.
    header: Box<libc::msghdr>,
}

impl Sending {
    fn new(socket: Rc<OwnedFd>, batch: Box<Batch>) -> Self {
        let mut slices: Vec<libc::iovec> = batch
            .unwritten()
            .map(|bytes| libc::iovec {
                iov_base: bytes.as_ptr().cast_mut().cast(),
                iov_len: bytes.len(),
            })
            .collect();
        // SAFETY: all-zero is a valid `msghdr`: null pointers and zero lengths.
        let mut header: Box<libc::msghdr> = Box::new(unsafe { std::mem::zeroed() });
        header.msg_iov = slices.as_mut_ptr();
        header.msg_iovlen = slices.len() as _;
        Self { _socket: socket, batch, _slices: slices, header }
    }

    fn entry(&self, fd: RawFd) -> io_uring::squeue::Entry {
        // No MSG_WAITALL: it would hide from the deadline that a slow peer does take bytes.
        opcode::SendMsg::new(types::Fd(fd), &raw const *self.header)
            .flags(libc::MSG_NOSIGNAL as u32)
            .build()
    }
}

struct Sent;

impl OneshotOutputTransform for Sent {
    type Output = (io::Result<usize>, Box<Batch>);
    type StoredData = Sending;

    fn transform_oneshot_output(self, sending: Sending, entry: cqueue::Entry) -> Self::Output {
        (result(&entry), sending.batch)
    }
}

fn result(entry: &cqueue::Entry) -> io::Result<usize> {
    usize::try_from(entry.result()).map_err(|_| io::Error::from_raw_os_error(-entry.result()))
}
