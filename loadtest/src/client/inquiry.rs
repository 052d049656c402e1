//! One question and its whole answer, blocking: for what is asked outside the measured window.

use super::{Connection, RelayMessage, frame, message};
use anyhow::ensure;
use rustix::event::{PollFd, PollFlags, poll};
use serde_json::Value;
use std::time::{Duration, Instant};

const READ_BYTES: usize = 64 << 10;

/// What a REQ brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Stored events, as they were sent.
    pub events: Vec<String>,
    /// The relay's reason, where it sent CLOSED instead of EOSE.
    pub closed: Option<String>,
}

impl Connection {
    /// Sends a REQ and reads to its EOSE or CLOSED; the subscription stays as the relay left it.
    ///
    /// # Errors
    /// No answer in time, or the connection is over.
    pub fn inquire(
        &mut self,
        subscription: &str,
        filter: &Value,
        timeout: Duration,
    ) -> anyhow::Result<Answer> {
        let mut request = Vec::new();
        let text = format!("[\"REQ\",\"{subscription}\",{filter}]");
        frame::append_text(&mut request, text.as_bytes(), [7, 3, 5, 1]);
        self.send(&request)?;
        let deadline = Instant::now() + timeout;
        let mut buffer = vec![0; READ_BYTES];
        let (mut answer, mut complete) = (Answer::default(), false);
        while !complete {
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "no EOSE to {filter} within {timeout:?}");
            let mut flags = PollFlags::IN;
            flags.set(PollFlags::OUT, self.has_unsent());
            poll(&mut [PollFd::new(self, flags)], Some(&left.try_into()?))?;
            self.flush()?;
            self.receive(&mut buffer, |text| match message::parse(text) {
                Ok(RelayMessage::Event { subscription: of, .. }) if of == subscription => {
                    let json = message::event_json(text).unwrap_or_default();
                    answer.events.push(String::from_utf8_lossy(json).into_owned());
                }
                Ok(RelayMessage::Eose { subscription: of }) if of == subscription => {
                    complete = true;
                }
                Ok(RelayMessage::Closed { subscription: of, reason }) if of == subscription => {
                    answer.closed = Some(reason.into_owned());
                    complete = true;
                }
                _ => {}
            })?;
        }
        Ok(answer)
    }

    /// Ends a subscription.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn close_subscription(&mut self, subscription: &str) -> std::io::Result<()> {
        let mut request = Vec::new();
        let text = format!("[\"CLOSE\",\"{subscription}\"]");
        frame::append_text(&mut request, text.as_bytes(), [2, 4, 6, 8]);
        self.send(&request)
    }
}
