//! The writes of a shard's tick.
//!
//! What waits for a connection is taken into a batch. When all that are to be written are known, few are
//! written by a call each and many are begun together, so that a ring needs one submit; both are looked at
//! together afterwards, and a task goes on where a socket took less than it was given.

use std::future::Future;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::backend::{Backend, Sent, Socket, send_now};
use super::connection::{self, Connection};
use super::shard_loop::ShardLoop;
use crate::relay::Now;
use crate::wire::batch::Batch;

/// What is to be written, and whose it is.
pub type Filled<B> = (Rc<Connection<B>>, Box<Batch>);

/// A write that was begun, and whose it is.
pub type Begun<B> = (Rc<Connection<B>>, Writing<B>);

/// A write that was begun.
pub enum Writing<B: Backend> {
    /// It has ended.
    Done(Sent),
    /// The backend has it.
    Sending(<B::Socket as Socket>::Sending),
}

impl<B: Backend> ShardLoop<B> {
    /// Takes what waits for a connection, if anything does, to be written.
    pub(super) fn fill(&self, connection: Rc<Connection<B>>, now: Now) {
        let mut batch = self.take_batch();
        if self.core.borrow_mut().fill(connection.key, &mut batch, now) {
            self.filled.borrow_mut().push((connection, batch));
        } else {
            self.return_batch(batch);
        }
    }

    /// Begins to write what was taken: a few by a call each, many by the backend together.
    pub(super) fn begin_writes(&self) {
        let mut filled = self.filled.borrow_mut();
        let few = filled.len() <= self.tuning.direct_writes_max as usize;
        let begun = filled.drain(..).map(|(connection, batch)| {
            let writing = match few {
                true => Writing::Done((send_now(connection.socket.as_fd(), &batch), batch)),
                false => Writing::Sending(connection.socket.begin_send(batch)),
            };
            (connection, writing)
        });
        self.begun.borrow_mut().extend(begun);
    }

    /// Whether there are writes that the backend has.
    pub(super) fn is_sending(&self) -> bool {
        let is_sending = |writing: &Begun<B>| matches!(writing.1, Writing::Sending(_));
        !B::WRITES_AT_ONCE && self.begun.borrow().iter().any(is_sending)
    }

    pub(super) fn has_begun_writes(&self) -> bool {
        !self.begun.borrow().is_empty()
    }

    /// Looks at the writes that were begun. Where a socket did not take all, a task goes on; where more
    /// has come to wait, the next write begins.
    pub(super) fn end_writes(self: &Rc<Self>) {
        let now = self.now.get();
        let mut ended = self.begun.take();
        for (connection, writing) in ended.drain(..) {
            let (polled, sending) = match writing {
                Writing::Done(sent) => (Poll::Ready(sent), None),
                Writing::Sending(mut sending) => {
                    let waker = &mut Context::from_waker(Waker::noop());
                    (Pin::new(&mut sending).poll(waker), Some(sending))
                }
            };
            match polled {
                Poll::Ready((Ok(count), batch)) if count == batch.left() => {
                    self.return_batch(batch);
                    let mut core = self.core.borrow_mut();
                    core.handle_progress(connection.key, count, now);
                    let more = core.handle_written(connection.key, now);
                    drop(core);
                    if more {
                        self.fill(connection, now);
                    }
                }
                Poll::Ready(sent) => {
                    let begun = std::future::ready(sent);
                    self.spawn(connection::write(connection, self.clone(), begun));
                }
                Poll::Pending => {
                    let sending = sending.expect("what is done is not pending");
                    self.spawn(connection::write(connection, self.clone(), sending));
                }
            }
        }
        self.begin_writes();
        let mut begun = self.begun.borrow_mut();
        ended.append(&mut begun);
        *begun = ended;
    }

    pub(super) fn take_batch(&self) -> Box<Batch> {
        self.batches.borrow_mut().take(self.tuning.batch_shape())
    }

    pub(super) fn return_batch(&self, batch: Box<Batch>) {
        self.batches.borrow_mut().put(batch);
    }
}
