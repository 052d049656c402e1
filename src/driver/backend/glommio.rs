//! glommio: readiness through its rings, writes by `sendmsg(2)` on the shard's own thread.
//!
//! glommio 0.9 offers no poll of a file descriptor. What it does offer is a `TcpStream` that, while
//! nothing can be read or written, has a `POLL_ADD` in the ring; so readiness is asked for by reads of
//! no bytes: `recv(2)` with an empty buffer says EAGAIN where there is nothing, and takes nothing where
//! there is something. That costs two system calls a read that the other backends do without. A listener
//! cannot be read, and gets a stream of its own for each wait.
//!
//! Its own vectored write sends the first slice only, and each of its writes is a `send(2)`: so a batch
//! goes out in one `sendmsg(2)`, and only what the kernel does not take at once waits in the ring.
//!
//! A task's wakers are counted in 15 bits: at most 32,767 of them may exist at once. Here each socket has
//! tasks of its own, which wait for one thing each. Its `AcceptedTcpStream`, which leaks its descriptor
//! when it is dropped unbound, is not used: sockets travel between shards as `OwnedFd`.
//!
//! Unsafe here: handing a file descriptor to a stream, and lending it out.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::future::{Future, Ready, poll_fn, ready};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::time::Duration;

use futures_io::{AsyncRead, AsyncWrite};
use glommio::net::TcpStream;
use glommio::{LocalExecutorBuilder, Placement};
use rustix::io::Errno;

use super::{Backend, Sent, Socket, send_now};
use crate::relay::Tuning;
use crate::wire::batch::Batch;

/// See the module.
pub struct Glommio;

/// A socket in glommio's hands.
pub enum GlommioSocket {
    /// Connected.
    Stream(Stream),
    /// Listening.
    Listener(OwnedFd),
}

/// A connected socket.
pub struct Stream {
    /// Owns and closes it.
    owner: RefCell<TcpStream>,
    /// Open as long as `owner`.
    fd: RawFd,
    /// What a wait found, and took, that the next read should have found.
    failed: Cell<Option<io::Error>>,
}

/// Submissions a ring holds; each executor has three.
const RING_ENTRIES: u32 = 128;

/// Buffers for files, registered with the kernel. No file is read here.
const FILE_MEMORY_BYTES: usize = 1 << 20;

/// After this time glommio turns to its rings although tasks are ready. When the time is over before the
/// first of them has run, glommio 0.9 sleeps with all of them still ready, until something else wakes it.
/// So: never. No task here goes on without [`breathe`](Backend::breathe).
const PREEMPTED_AFTER: Duration = Duration::from_hours(24);

/// The same happens, rarely, when a wake from another thread is taken in before its signal has come. So
/// something else wakes it at least this often.
const ASLEEP_FOR_MAX: Duration = Duration::from_millis(100);

/// Short enough to have passed when the executor has been through its rings.
const BREATH: Duration = Duration::from_micros(1);

/// How long a listener waits when it has no file descriptor to wait with.
const OUT_OF_FILES_PAUSE: Duration = Duration::from_millis(100);

/// Whether this process may have such a ring; where it may not, glommio panics.
///
/// # Errors
/// The kernel's refusal.
pub fn probe() -> io::Result<()> {
    io_uring::IoUring::new(RING_ENTRIES).map(drop)
}

impl Backend for Glommio {
    const NAME: &'static str = "glommio";
    const WRITES_AT_ONCE: bool = true;
    type Socket = GlommioSocket;

    fn run<F: Future>(_: &Tuning, main: F) -> io::Result<F::Output> {
        // The thread is pinned already.
        let executor = LocalExecutorBuilder::new(Placement::Unbound)
            .io_memory(FILE_MEMORY_BYTES)
            .ring_depth(RING_ENTRIES as usize)
            .preempt_timer(PREEMPTED_AFTER)
            .make()?;
        Ok(executor.run(async {
            Self::spawn_local(async {
                loop {
                    Self::sleep(ASLEEP_FOR_MAX).await;
                }
            });
            main.await
        }))
    }

    fn spawn_local(task: impl Future<Output = ()> + 'static) {
        glommio::spawn_local(task).detach();
    }

    async fn sleep(duration: Duration) {
        glommio::timer::sleep(duration).await;
    }

    async fn breathe() {
        Self::sleep(BREATH).await;
    }

    fn socket(fd: OwnedFd) -> io::Result<Self::Socket> {
        if rustix::net::sockopt::socket_acceptconn(&fd)? {
            return Ok(GlommioSocket::Listener(fd));
        }
        let fd = fd.into_raw_fd();
        // SAFETY: the descriptor was taken out of its owner in the line above; the stream is the next.
        let owner = RefCell::new(unsafe { TcpStream::from_raw_fd(fd) });
        Ok(GlommioSocket::Stream(Stream { owner, fd, failed: Cell::default() }))
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: `owner` has the descriptor open, is never replaced, and lives as long as `self`.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }
}

impl AsFd for GlommioSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Stream(stream) => stream.as_fd(),
            Self::Listener(fd) => fd.as_fd(),
        }
    }
}

impl Socket for GlommioSocket {
    async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Stream(stream) => {
                // A reset is reported once: to this read, unless it is kept for the next.
                stream.failed.set(wait_to_read(&stream.owner).await.err());
                Ok(())
            }
            Self::Listener(fd) => wait_to_accept(fd).await,
        }
    }

    fn try_read<R>(&self, mut read: impl FnMut(BorrowedFd<'_>) -> io::Result<R>) -> io::Result<R> {
        if let Self::Stream(stream) = self
            && let Some(error) = stream.failed.take()
        {
            return Err(error);
        }
        read(self.as_fd())
    }

    type Sending = Ready<Sent>;

    fn begin_send(&self, batch: Box<Batch>) -> Self::Sending {
        ready((send_now(self.as_fd(), &batch), batch))
    }

    async fn send(&self, batch: Box<Batch>) -> Sent {
        let sent = match (send_now(self.as_fd(), &batch), self) {
            (Err(error), Self::Stream(stream)) if error.kind() == io::ErrorKind::WouldBlock => {
                send_when_writable(&stream.owner, &batch).await
            }
            (sent, _) => sent,
        };
        (sent, batch)
    }
}

/// Lets the others have their turn in any case, also where bytes come in faster than they are read.
async fn wait_to_read(stream: &RefCell<TcpStream>) -> io::Result<usize> {
    let mut has_waited = false;
    let result = poll_fn(|context| {
        let polled = Pin::new(&mut *stream.borrow_mut()).poll_read(context, &mut []);
        has_waited |= polled.is_pending();
        polled
    })
    .await;
    if !has_waited {
        Glommio::breathe().await;
    }
    result
}

/// A stream that is new has a poll in the ring and waits for it before it reads. Its read then fails,
/// which tells nothing; but the next would fail at once, so each wait takes a new one.
async fn wait_to_accept(listener: &OwnedFd) -> io::Result<()> {
    match rustix::io::fcntl_dupfd_cloexec(listener, 0) {
        Ok(fd) => {
            // SAFETY: as in `Glommio::socket`.
            let stream = RefCell::new(unsafe { TcpStream::from_raw_fd(fd.into_raw_fd()) });
            let _ = wait_to_read(&stream).await;
            Ok(())
        }
        Err(Errno::MFILE | Errno::NFILE) => {
            Glommio::sleep(OUT_OF_FILES_PAUSE).await;
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// Waits until the socket takes something of the first piece, and writes that. The rest is for the next
/// `sendmsg`.
async fn send_when_writable(stream: &RefCell<TcpStream>, batch: &Batch) -> io::Result<usize> {
    let piece = batch.unwritten().next().unwrap_or_default();
    poll_fn(|context| Pin::new(&mut *stream.borrow_mut()).poll_write(context, piece)).await
}
