//! One socket: a reader task for its whole life, a writer task while it takes less than it is given.
//!
//! The tick begins the writes; one of which the socket did not take all at once goes on in a task. The
//! reader ends when the shard has let the connection go; the writer when the outbox is empty. The socket
//! closes with the last of the references they, a write in flight and the shard's table hold, and takes
//! its place in the load count with it.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, Waker};

use rustix::net::{RecvFlags, Shutdown, recv, shutdown};

use super::backend::{Backend, Sent, Socket};
use super::places::Place;
use super::shard_loop::ShardLoop;
use crate::relay::{ConnectionKey, Reading, Receive};

/// A socket and what its tasks share.
pub struct Connection<B: Backend> {
    pub(super) key: ConnectionKey,
    pub(super) socket: B::Socket,
    pub(super) resume: Resume,
    pub(super) _load: Load,
    /// Its place among its client's connections, once the client is known.
    pub(super) place: Cell<Option<Place>>,
}

impl<B: Backend> Connection<B> {
    /// Shuts the socket; its reader and writer notice.
    pub(super) fn shut(&self, how: Shutdown) {
        // It fails when the peer was faster, which is what is wanted.
        let _ = shutdown(&self.socket, how);
    }
}

/// A connection's place in its shard's load; given back when dropped.
pub struct Load {
    loads: Arc<[AtomicUsize]>,
    shard: usize,
}

impl Load {
    /// Takes a place.
    pub(super) fn take(loads: Arc<[AtomicUsize]>, shard: usize) -> Self {
        loads[shard].fetch_add(1, Ordering::Relaxed);
        Self { loads, shard }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.loads[self.shard].fetch_sub(1, Ordering::Relaxed);
    }
}

/// Wakes a reader that waits for credit.
#[derive(Default)]
pub struct Resume {
    ready: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

impl Resume {
    pub(super) fn notify(&self) {
        self.ready.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    async fn wait(&self) {
        poll_fn(|context| {
            if self.ready.take() {
                return Poll::Ready(());
            }
            self.waker.set(Some(context.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}

/// Begins the connection's reader.
pub(super) fn begin_to_read<B: Backend>(connection: Rc<Connection<B>>, shard: &Rc<ShardLoop<B>>) {
    match shard.tuning.receive {
        Receive::Poll => shard.spawn(read(connection, shard.clone())),
        Receive::Ring => shard.spawn(receive(connection, shard.clone())),
    }
}

/// Reads into the shard's scratch buffer until the connection is gone.
async fn read<B: Backend>(connection: Rc<Connection<B>>, shard: Rc<ShardLoop<B>>) {
    let mut reading = Reading::Ready;
    while resumed(&mut reading, &connection, &shard).await {
        let waited = connection.socket.readable().await;
        reading = shard.with(|core, _| core.reading(connection.key));
        for _ in 0..shard.tuning.reads_per_turn_max {
            if reading != Reading::Ready {
                break;
            }
            match read_once(&connection, &shard) {
                Ok(Some((next, drained))) => {
                    reading = next;
                    if drained {
                        break;
                    }
                }
                Ok(None) if waited.is_ok() => break,
                Ok(None) => return end(&connection, &shard, io::ErrorKind::Other),
                Err(error) => return end(&connection, &shard, error.kind()),
            }
        }
    }
}

/// As [`read`], into a buffer of its own, which the backend has while it waits.
async fn receive<B: Backend>(connection: Rc<Connection<B>>, shard: Rc<ShardLoop<B>>) {
    let mut buffer = vec![0; shard.tuning.receive_bytes as usize];
    let mut reading = Reading::Ready;
    while resumed(&mut reading, &connection, &shard).await {
        let received;
        (received, buffer) = connection.socket.receive(buffer).await;
        // What has come waits here while no message may be read.
        reading = shard.with(|core, _| core.reading(connection.key));
        if !resumed(&mut reading, &connection, &shard).await {
            return;
        }
        match some_received(received) {
            Ok(Some(count)) => reading = hand_over(&connection, &shard, &mut buffer[..count]),
            Ok(None) => {}
            Err(error) => return end(&connection, &shard, error.kind()),
        }
    }
}

/// There is nothing more to be read: the peer has ended, or the socket is broken.
fn end<B: Backend>(connection: &Connection<B>, shard: &ShardLoop<B>, why: io::ErrorKind) {
    match why {
        io::ErrorKind::UnexpectedEof => {
            shard.with(|core, now| core.handle_eof(connection.key, now));
        }
        _ => shard.with(|core, _| core.handle_broken(connection.key)),
    }
    shard.nudge();
}

/// Waits until the connection may be read; `false` when it is gone.
async fn resumed<B: Backend>(
    reading: &mut Reading,
    connection: &Connection<B>,
    shard: &ShardLoop<B>,
) -> bool {
    while *reading == Reading::Paused {
        connection.resume.wait().await;
        *reading = shard.with(|core, now| core.handle_resumed(connection.key, now));
        shard.nudge();
        if *reading == Reading::Paused {
            // It may be told to go on in this very tick, and in the next: the others come first.
            B::breathe().await;
        }
    }
    *reading != Reading::Gone
}

/// `None` when nothing was there, and an error at the peer's end.
fn some_received(received: io::Result<usize>) -> io::Result<Option<usize>> {
    match received {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(count) => Ok(Some(count)),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Reads once into the shard's scratch buffer and hands it over; `None` when nothing was there. With it,
/// whether the buffer had room left, so that a further read would find nothing.
fn read_once<B: Backend>(
    connection: &Connection<B>,
    shard: &ShardLoop<B>,
) -> io::Result<Option<(Reading, bool)>> {
    let mut scratch = shard.scratch.borrow_mut();
    let received =
        connection.socket.try_read(|fd| Ok(recv(fd, &mut scratch[..], RecvFlags::DONTWAIT)?.0));
    let received = some_received(received)?;
    let drained = received.is_some_and(|count| count < scratch.len());
    Ok(received.map(|count| (hand_over(connection, shard, &mut scratch[..count]), drained)))
}

fn hand_over<B: Backend>(
    connection: &Connection<B>,
    shard: &ShardLoop<B>,
    bytes: &mut [u8],
) -> Reading {
    let reading = shard.with(|core, now| core.handle_bytes(connection.key, bytes, now));
    shard.nudge();
    reading
}

/// Goes on with a write of which the socket did not take all at once, until the outbox is empty: one
/// batch at a time, each taken when the one before has left.
pub(super) async fn write<B: Backend>(
    connection: Rc<Connection<B>>,
    shard: Rc<ShardLoop<B>>,
    begun: impl Future<Output = Sent>,
) {
    let key = connection.key;
    let (mut sent, mut batch) = begun.await;
    loop {
        match sent {
            Ok(count) if count > 0 => {
                batch.advance(count);
                shard.with(|core, now| core.handle_progress(key, count, now));
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                ) => {}
            Ok(_) | Err(_) => {
                shard.with(|core, _| core.handle_broken(key));
                shard.nudge();
                return;
            }
        }
        if batch.left() == 0 {
            batch.clear();
            let more = shard
                .with(|core, now| core.handle_written(key, now) && core.fill(key, &mut batch, now));
            shard.nudge();
            if !more {
                return shard.return_batch(batch);
            }
        }
        (sent, batch) = connection.socket.send(batch).await;
    }
}
