//! tokio-uring: readiness by `POLL_ADD` (or `RECV`, which waits as well), writes by `SEND`, or `SENDMSG`
//! where a batch has several pieces, one `io_uring_enter` a tick for all sockets.
//!
//! All operations go through the crate's public one-shot door. What an operation's memory is made of
//! travels in its stable data, which the driver keeps until the kernel is done with it, also when the
//! future is dropped; the same data holds a reference to the socket, so a file descriptor is never
//! reused under an operation in flight.
//!
//! Unsafe here: raw pointers in the message header, as the kernel wants them.
#![allow(unsafe_code)]

use std::future::Future;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::rc::Rc;
use std::time::Duration;

use io_uring::{cqueue, opcode, squeue, types};
use tokio_uring::{InFlightOneshot, OneshotOutputTransform, UnsubmittedOneshot};

use super::{Backend, Received, Sent, Socket};
use crate::relay::Tuning;
use crate::wire::batch::Batch;

/// See the module.
pub struct TokioUring;

/// A socket the ring works on.
pub struct RingSocket(Rc<OwnedFd>);

/// A ring as the shards set it up; Linux 6.0 knows all of it.
fn ring(tuning: &Tuning) -> io_uring::Builder {
    let mut ring = tokio_uring::uring_builder();
    ring.setup_submit_all().setup_cqsize(tuning.ring_completions);
    if tuning.ring_coop_taskrun {
        ring.setup_coop_taskrun();
    }
    if tuning.ring_single_issuer {
        ring.setup_single_issuer();
    }
    ring
}

/// Whether this process may have such a ring: containers often refuse it by seccomp,
/// `kernel.io_uring_disabled` does so for everyone, and an older kernel does not know the flags.
///
/// # Errors
/// The kernel's refusal.
pub fn probe(tuning: &Tuning) -> io::Result<()> {
    ring(tuning).build(tuning.ring_entries).map(drop)
}

impl Backend for TokioUring {
    const NAME: &'static str = "tokio-uring";
    const WRITES_AT_ONCE: bool = false;
    type Socket = RingSocket;

    fn run<F: Future>(tuning: &Tuning, main: F) -> io::Result<F::Output> {
        let mut builder = tokio_uring::builder();
        builder.entries(tuning.ring_entries).uring_builder(&ring(tuning));
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

    async fn receive(&self, mut buffer: Vec<u8>) -> Received {
        let len = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
        let fd = types::Fd(self.0.as_raw_fd());
        let entry = opcode::Recv::new(fd, buffer.as_mut_ptr(), len).build();
        let buffer = ManuallyDrop::new(buffer);
        let receiving = Receiving { _socket: self.0.clone(), buffer };
        UnsubmittedOneshot::new(receiving, Filled, entry).submit().await
    }

    type Sending = InFlightOneshot<Sending, Taken>;

    fn begin_send(&self, batch: Box<Batch>) -> Self::Sending {
        let (sending, entry) = Sending::new(self.0.clone(), batch);
        UnsubmittedOneshot::new(sending, Taken, entry).submit()
    }

    async fn send(&self, batch: Box<Batch>) -> Sent {
        self.begin_send(batch).await
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

/// A read in flight: the kernel writes into the buffer, which nobody touches until it is done.
struct Receiving {
    _socket: Rc<OwnedFd>,
    /// Leaked where the future is dropped, so with the runtime: that frees its operations' memory before
    /// it has cancelled them.
    buffer: ManuallyDrop<Vec<u8>>,
}

struct Filled;

impl OneshotOutputTransform for Filled {
    type Output = Received;
    type StoredData = Receiving;

    fn transform_oneshot_output(self, receiving: Receiving, entry: cqueue::Entry) -> Received {
        (result(&entry), ManuallyDrop::into_inner(receiving.buffer))
    }
}

/// A write in flight: everything the kernel reads, at addresses that do not move.
pub struct Sending {
    _socket: Rc<OwnedFd>,
    /// What the kernel reads lies in its buffers, which nobody touches until the operation is done.
    batch: Box<Batch>,
    /// Where that is, when it is in several pieces.
    _gather: Option<Gather>,
}

/// A message header and the list it points at; that points into the batch.
struct Gathered {
    header: libc::msghdr,
    slices: Vec<libc::iovec>,
}

/// Owns a [`Gathered`] by the pointer that the kernel reads it through. A box would claim, each time it
/// moves, that nobody else has one.
struct Gather(NonNull<Gathered>);

impl Gather {
    fn new(slices: Vec<libc::iovec>) -> Self {
        // SAFETY: all-zero is a valid `msghdr`: null pointers and zero lengths.
        let header: libc::msghdr = unsafe { std::mem::zeroed() };
        let gathered = NonNull::from(Box::leak(Box::new(Gathered { header, slices })));
        // SAFETY: it was leaked in the line above, and nobody else knows of it yet. The list is reached
        // through the same pointer from here on, until it is dropped.
        unsafe {
            let Gathered { header, slices } = &mut *gathered.as_ptr();
            header.msg_iov = slices.as_mut_ptr();
            header.msg_iovlen = slices.len() as _;
        }
        Self(gathered)
    }

    fn header(&self) -> *const libc::msghdr {
        // SAFETY: it is allocated until `self` is dropped; no reference is made.
        unsafe { &raw const (*self.0.as_ptr()).header }
    }
}

impl Drop for Gather {
    fn drop(&mut self) {
        // SAFETY: it came out of a box, and this is its one owner.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

impl Sending {
    /// The write of what is unwritten, and how the ring is told of it.
    fn new(socket: Rc<OwnedFd>, batch: Box<Batch>) -> (Self, squeue::Entry) {
        // No MSG_WAITALL: it would hide from the deadline that a slow peer does take bytes.
        const FLAGS: i32 = libc::MSG_NOSIGNAL;
        let fd = types::Fd(socket.as_raw_fd());
        let mut pieces = batch.unwritten();
        let only = pieces.next().filter(|_| pieces.next().is_none());
        let only = only.map(|bytes| (bytes.as_ptr(), bytes.len()));
        drop(pieces);
        if let Some((start, len)) = only {
            // What is longer goes on with the next write.
            let len = u32::try_from(len).unwrap_or(u32::MAX);
            let entry = opcode::Send::new(fd, start, len).flags(FLAGS).build();
            return (Self { _socket: socket, batch, _gather: None }, entry);
        }
        let slices = batch.unwritten().map(|bytes| libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        });
        let gather = Gather::new(slices.collect());
        let entry = opcode::SendMsg::new(fd, gather.header()).flags(FLAGS as u32).build();
        (Self { _socket: socket, batch, _gather: Some(gather) }, entry)
    }
}

/// Gives the batch back with the count.
pub struct Taken;

impl OneshotOutputTransform for Taken {
    type Output = Sent;
    type StoredData = Sending;

    fn transform_oneshot_output(self, sending: Sending, entry: cqueue::Entry) -> Self::Output {
        (result(&entry), sending.batch)
    }
}

fn result(entry: &cqueue::Entry) -> io::Result<usize> {
    usize::try_from(entry.result()).map_err(|_| io::Error::from_raw_os_error(-entry.result()))
}
