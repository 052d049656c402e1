//! The seam between the shard loop and the kernel: run, spawn, sleep, wait for a socket, write a batch.
//!
//! Reading needs no buffer of its own: a backend says when a socket is readable, and the loop then
//! reads it without blocking into the shard's one scratch buffer. An idle connection thus owns no
//! buffer, and no read is ever in flight that a dropped task could leave behind. Where
//! `tuning.receive` says so, the buffer is handed over and comes back, as a batch does in a write.
//!
//! Writing hands the batch over and gets it back: the kernel may hold its memory meanwhile. It is begun
//! for all sockets of a tick before any of it is waited for, so that a ring needs one submit. (To a few sockets the
//! loop writes by itself: `writes`.)

pub mod epoll;
#[cfg(feature = "glommio")]
pub mod glommio;
#[cfg(test)]
mod tests;
pub mod tokio_uring;

use std::future::Future;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg};

use crate::relay::Tuning;
use crate::wire::batch::Batch;

/// What a shard's thread runs on.
pub trait Backend: 'static {
    /// As the ready line and the config name it.
    const NAME: &'static str;

    /// Whether [`Socket::begin_send`] leaves nothing for later: the write is done when it returns.
    const WRITES_AT_ONCE: bool;

    /// A socket, listening or connected.
    type Socket: Socket;

    /// Runs `main` and all it spawns on this thread, until `main` is done. Of `tuning` a ring is made.
    ///
    /// # Errors
    /// When the kernel refuses what the backend stands on.
    fn run<F: Future>(tuning: &Tuning, main: F) -> io::Result<F::Output>;

    /// Runs a task beside the caller, on this thread.
    fn spawn_local(task: impl Future<Output = ()> + 'static);

    /// Ends after `duration`.
    fn sleep(duration: Duration) -> impl Future<Output = ()>;

    /// Lets what is queued reach the kernel and what is ready come in, then goes on. A task that
    /// works in slices awaits this between them; waking itself is not enough, because on the ring
    /// nothing is submitted until the executor has nothing left to run.
    fn breathe() -> impl Future<Output = ()>;

    /// Takes a nonblocking socket.
    ///
    /// # Errors
    /// When it cannot be registered.
    fn socket(fd: OwnedFd) -> io::Result<Self::Socket>;
}

/// The bytes a socket took of a batch, for [`Batch::advance`], and the batch.
pub type Sent = (io::Result<usize>, Box<Batch>);

/// How many bytes were received, none at the peer's end; and the buffer they are in.
pub type Received = (io::Result<usize>, Vec<u8>);

/// A socket under a backend. Dropping the last reference closes it.
pub trait Socket: AsFd + 'static {
    /// Ends when there may be something to read or accept, or the socket is shut. Must not be
    /// dropped before it ends, unless the runtime ends with it.
    fn readable(&self) -> impl Future<Output = io::Result<()>>;

    /// Reads or accepts without blocking. After `WouldBlock`, [`readable`](Self::readable) waits.
    ///
    /// # Errors
    /// What `read` returned.
    fn try_read<R>(&self, read: impl FnMut(BorrowedFd<'_>) -> io::Result<R>) -> io::Result<R>;

    /// Waits for bytes and reads as many as there are, up to the buffer's length. Must not be dropped
    /// before it ends, as [`readable`](Self::readable).
    fn receive(&self, mut buffer: Vec<u8>) -> impl Future<Output = Received> {
        async move {
            let received = match self.readable().await {
                Ok(()) => self.try_read(|fd| Ok(recv(fd, &mut buffer[..], RecvFlags::DONTWAIT)?.0)),
                Err(error) => Err(error),
            };
            (received, buffer)
        }
    }

    /// A write that has been begun. `WouldBlock` when the socket takes nothing now and nothing waits
    /// for it: [`send`](Self::send) does.
    type Sending: Future<Output = Sent> + Unpin + 'static;

    /// Begins to write as much of the batch as the socket takes at once. Where the socket has room,
    /// that is done after the next [`Backend::breathe`].
    fn begin_send(&self, batch: Box<Batch>) -> Self::Sending;

    /// Writes as much of the batch as the socket takes at once, waiting until it takes some.
    fn send(&self, batch: Box<Batch>) -> impl Future<Output = Sent>;
}

/// One `sendmsg(2)` that does not wait; a peer that is gone is an error, not a signal.
pub(super) fn send_now(fd: BorrowedFd<'_>, batch: &Batch) -> io::Result<usize> {
    let slices: Vec<IoSlice<'_>> = batch.unwritten().map(IoSlice::new).collect();
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    Ok(sendmsg(fd, &slices, &mut SendAncillaryBuffer::default(), flags)?)
}

/// The backend asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// tokio-uring where the kernel allows io_uring, else epoll.
    Auto,
    /// tokio-uring or nothing.
    TokioUring,
    /// glommio or nothing.
    Glommio,
    /// epoll.
    Epoll,
}
