//! What the parts of one thread share: its epoll set, and what it is told beside answers.

use crate::client::poller::Ready;
use crate::client::{Connection, Lost, Poller, RelayMessage};
use crate::report::Violations;
use crate::scenario::{Clock, Notices, lost, message_in};

/// One thread's poller and the messages that belong to no operation.
pub struct Hub {
    pub poller: Poller,
    pub notices: Notices,
    pub violations: Violations,
}

/// A connection of one thread, until it is lost.
#[derive(Debug)]
pub struct Line {
    /// What a violation calls it, such as `publisher`.
    pub who: &'static str,
    pub number: usize,
    token: usize,
    connection: Option<Connection>,
}

impl Line {
    /// Registers the connection with the thread's poller.
    ///
    /// # Errors
    /// As `epoll_ctl(2)`.
    pub fn new(
        hub: &Hub,
        who: &'static str,
        number: usize,
        token: usize,
        mut connection: Connection,
    ) -> anyhow::Result<Self> {
        hub.poller.add(&mut connection, token)?;
        Ok(Self { who, number, token, connection: Some(connection) })
    }

    pub fn is_open(&self) -> bool {
        self.connection.is_some()
    }

    /// Sends whole frames; a connection that ends is dropped and counted.
    pub fn send(&mut self, hub: &mut Hub, frames: &[u8]) {
        let Some(mut connection) = self.connection.take() else { return };
        let sent = connection
            .send(frames)
            .and_then(|()| hub.poller.sync(&mut connection, self.token))
            .map_err(Lost::from);
        self.settle(hub, connection, sent);
    }

    /// Does what the socket is ready for. Every message that may belong to an operation goes to `on_message`, with its
    /// text and the time it was read at.
    pub fn serve(
        &mut self,
        hub: &mut Hub,
        ready: Ready,
        clock: Clock,
        mut on_message: impl FnMut(RelayMessage<'_>, &[u8], u64, &mut Violations),
    ) {
        let Some(mut connection) = self.connection.take() else { return };
        let mut result = match ready.writable {
            true => connection.flush().map_err(Lost::from),
            false => Ok(()),
        };
        if ready.readable && result.is_ok() {
            let Hub { poller, notices, violations } = hub;
            let mut now = None;
            result = connection.receive(&mut poller.buffer, |text| {
                let now = *now.get_or_insert_with(|| clock.now_ns());
                if let Some(message) = message_in(text, notices, violations) {
                    on_message(message, text, now, violations);
                }
            });
        }
        let result = result.and_then(|()| Ok(hub.poller.sync(&mut connection, self.token)?));
        self.settle(hub, connection, result);
    }

    fn settle(&mut self, hub: &mut Hub, connection: Connection, result: Result<(), Lost>) {
        match result {
            Ok(()) => self.connection = Some(connection),
            Err(why) => lost(&mut hub.violations, self.who, self.number, &why),
        }
    }
}

/// Counts a message that answers nothing.
pub fn unexpected(violations: &mut Violations, who: &str, number: usize, message: &RelayMessage) {
    violations.add("unexpected_message", || format!("{who} {number}: {message:?}"));
}
