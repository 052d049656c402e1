//! tokio's current-thread runtime over epoll: for kernels and containers that refuse io_uring.
//!
//! Unsafe here: registering a file descriptor, whose owner must keep it open.
#![allow(unsafe_code)]

use std::future::{Future, Ready, poll_fn, ready};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{Backend, Sent, Socket, send_now};
use crate::relay::Tuning;
use crate::wire::batch::Batch;

/// See the module.
pub struct Epoll;

/// A socket registered with epoll.
pub struct EpollSocket(AsyncFd<OwnedFd>);

impl Backend for Epoll {
    const NAME: &'static str = "epoll";
    const WRITES_AT_ONCE: bool = true;
    type Socket = EpollSocket;

    fn run<F: Future>(_: &Tuning, main: F) -> io::Result<F::Output> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let local = tokio::task::LocalSet::new();
        Ok(local.block_on(&runtime, main))
    }

    fn spawn_local(task: impl Future<Output = ()> + 'static) {
        tokio::task::spawn_local(task);
    }

    fn sleep(duration: Duration) -> impl Future<Output = ()> {
        tokio::time::sleep(duration)
    }

    fn breathe() -> impl Future<Output = ()> {
        tokio::task::yield_now()
    }

    fn socket(fd: OwnedFd) -> io::Result<Self::Socket> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        // SAFETY: an `OwnedFd` is open until it is dropped, which `AsyncFd` does after it has
        // deregistered it; nothing here takes it out.
        let registered = unsafe { AsyncFd::register_with_interest(fd, interest) };
        Ok(EpollSocket(registered.map_err(io::Error::from)?))
    }
}

impl AsFd for EpollSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Socket for EpollSocket {
    async fn readable(&self) -> io::Result<()> {
        let mut readable = pin!(self.0.readable());
        let at_once = poll_fn(|context| Poll::Ready(readable.as_mut().poll(context))).await;
        let readable = match at_once {
            Poll::Pending => readable.await,
            // The last turn left something unread. The others come first: without a wait in between, a
            // peer that sends without end would be the only one to be read.
            Poll::Ready(readable) => {
                tokio::task::yield_now().await;
                readable
            }
        };
        readable.map(|mut guard| guard.retain_ready())
    }

    fn try_read<R>(&self, mut read: impl FnMut(BorrowedFd<'_>) -> io::Result<R>) -> io::Result<R> {
        self.0.try_io(Interest::READABLE, |fd| read(fd.as_fd()))
    }

    type Sending = Ready<Sent>;

    fn begin_send(&self, batch: Box<Batch>) -> Self::Sending {
        ready((send_now(self.as_fd(), &batch), batch))
    }

    async fn send(&self, batch: Box<Batch>) -> Sent {
        let sent = self.0.async_io(Interest::WRITABLE, |fd| send_now(fd.as_fd(), &batch)).await;
        (sent, batch)
    }
}
