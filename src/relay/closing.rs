//! How connections end: deadlines, the shutdown, close frames, and what is given back.

use std::collections::VecDeque;

use super::outbox::Close;
use super::planted::{Bug, planted};
use super::session::{CloseReason, ConnectionKey, Phase};
use super::shard::{Effect, Now, Shard};
use crate::wire::http::HttpError;

/// The kernel is asked for acknowledged bytes this often within `write_stall_ms_max`, so a stalled
/// peer is found out at most that much later.
const ASKS_PER_STALL: u32 = 8;

impl Shard {
    /// Stops: no new connection is served, nothing more is read; what is owed goes out, then 1001.
    pub fn handle_shutdown(&mut self, now: Now) {
        self.stopping = true;
        for key in self.keys() {
            let Some(session) = self.session(key) else { continue };
            match session.phase {
                Phase::Head => {
                    session.reason = CloseReason::Shutdown;
                    self.remove(key);
                }
                Phase::Open => {
                    session.reason = CloseReason::Shutdown;
                    session.farewell = Some(1001);
                    session.enter(Phase::Draining, now.ms);
                    self.stop_scans(key);
                    self.finish_draining(key, now);
                }
                Phase::Draining | Phase::Closing { .. } => {}
            }
        }
    }

    /// Looks at every deadline. Called a few times a second.
    pub fn handle_timer(&mut self, now: Now) {
        for key in self.keys() {
            self.check_deadlines(key, now);
        }
        self.rest_outboxes();
        self.end_slow_subscriptions(now);
        self.give_back(now);
    }

    /// Measures what waits, and takes the memory of outboxes in which nothing does.
    fn rest_outboxes(&mut self) {
        let c = &mut self.counters;
        (c.outbox_frames, c.outbox_bytes, c.replies_waiting) = (0, 0, 0);
        for (_, session) in &mut self.sessions {
            session.outbox.rest();
            c.outbox_frames += session.outbox.stream_len() as u64;
            c.outbox_bytes += session.outbox.stream_bytes() as u64;
            c.replies_waiting += session.outbox.replies_len() as u64;
        }
    }

    fn check_deadlines(&mut self, key: ConnectionKey, now: Now) {
        let limits = self.setup.limits.clone();
        let Some(session) = self.session(key) else { return };
        let since = |ms: u64| now.ms.saturating_sub(ms);
        let late = |ms: u64, max: u32| since(ms) >= u64::from(max);
        if session.awaits_peer()
            && late(session.progress_ms, limits.write_stall_ms_max / ASKS_PER_STALL)
        {
            self.effects.push_back(Effect::AskUnacked(key));
        }
        let Some(session) = self.session(key) else { return };
        match session.phase {
            Phase::Head
                if late(session.phase_ms, limits.handshake_ms_max)
                    && !planted(Bug::HandshakeUnbounded) =>
            {
                let response = HttpError::Timeout.response();
                self.answer_http(key, response, CloseReason::Timeout, now);
            }
            Phase::Draining | Phase::Closing { .. }
                if late(session.phase_ms, limits.drain_ms_max) && !planted(Bug::DrainUnbounded) =>
            {
                session.reason = CloseReason::Timeout;
                self.remove(key);
            }
            Phase::Open if !session.paused => match session.pinged_ms {
                Some(at) if late(at, limits.pong_wait_ms_max) && !planted(Bug::SilentKept) => {
                    session.reason = CloseReason::Silent;
                    self.remove(key);
                }
                None if limits.ping_interval_ms > 0
                    && late(session.heard_ms, limits.ping_interval_ms) =>
                {
                    session.pinged_ms = Some(now.ms);
                    session.outbox.push_ping();
                    self.ask_write(key);
                }
                _ => {}
            },
            _ => {}
        }
    }

    /// Whether everything is closed after [`handle_shutdown`](Self::handle_shutdown).
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.stopping && self.sessions.is_empty()
    }

    /// The client sends no more: its subscriptions and counts end, its events are answered, then a close with the
    /// code `farewell`.
    pub(super) fn take_leave(&mut self, key: ConnectionKey, farewell: Option<u16>, now: Now) {
        self.end_counts(key);
        self.end_subscriptions(key);
        let Some(session) = self.session(key) else { return };
        // What is left of the stream: CLOSED of subscriptions the relay had ended.
        let purged = session.outbox.purge_all();
        debug_assert_eq!(purged, 0, "events go with their subscription");
        session.backlog = Vec::new();
        session.farewell = farewell;
        session.enter(Phase::Draining, now.ms);
        self.finish_draining(key, now);
    }

    /// The client sends no more and may still read: it gets all it is owed, then a close without a code.
    /// One that is owed nothing is let go at once.
    pub(super) fn take_last_words(&mut self, key: ConnectionKey, now: Now) {
        self.stop_matching(key);
        let Some(session) = self.session(key) else { return };
        if session.is_owed() {
            session.enter(Phase::Draining, now.ms);
        } else {
            self.remove(key);
        }
    }

    /// Sends a draining connection its close once nothing is owed to it.
    pub(super) fn finish_draining(&mut self, key: ConnectionKey, now: Now) {
        let Some(session) = self.session(key) else { return };
        let owed = session.is_owed() && !planted(Bug::CloseBeforeQueued);
        if session.phase == Phase::Draining && !owed {
            session.enter(Phase::Closing { sent: false }, now.ms);
            let reason = match session.reason {
                CloseReason::Shutdown => "relay is stopping",
                _ => "",
            };
            let close = Close { code: session.farewell, reason };
            session.outbox.push_close(close);
            self.ask_write(key);
        }
    }

    /// Ends the HTTP exchange with `response`.
    pub(super) fn answer_http(
        &mut self,
        key: ConnectionKey,
        response: Vec<u8>,
        reason: CloseReason,
        now: Now,
    ) {
        let Some(session) = self.session(key) else { return };
        session.reason = reason;
        session.enter(Phase::Closing { sent: false }, now.ms);
        session.backlog = Vec::new();
        session.deaf = true;
        session.outbox.push_response(response);
        self.ask_write(key);
    }

    /// Ends a WebSocket connection: what was answered goes out, then the close frame.
    pub(super) fn close(
        &mut self,
        key: ConnectionKey,
        close: Close,
        reason: CloseReason,
        now: Now,
    ) {
        self.end_counts(key);
        self.end_subscriptions(key);
        let Some(session) = self.session(key) else { return };
        session.reason = reason;
        session.enter(Phase::Closing { sent: false }, now.ms);
        session.backlog = Vec::new();
        session.outbox.push_close(close);
        self.drop_unverified(key);
        self.ask_write(key);
    }

    pub(super) fn drop_unverified(&mut self, key: ConnectionKey) {
        let Some(session) = self.session(key) else { return };
        let count = session.verify.len() as u64;
        session.verify = VecDeque::new();
        session.verify_bytes = 0;
        let stood_in_round = std::mem::take(&mut session.in_verify_round);
        if stood_in_round && !planted(Bug::RoundKept) {
            self.verify_round.retain(|other| *other != key);
        }
        self.counters.verify_waiting -= count;
    }

    /// Lets everything of a connection go.
    pub(super) fn remove(&mut self, key: ConnectionKey) {
        if self.session(key).is_none() {
            return;
        }
        self.end_counts(key);
        self.end_subscriptions(key);
        self.drop_unverified(key);
        let mut session = self.sessions.remove(key.slot());
        if session.outbox.stream_len() > 0 {
            // Of subscriptions that had ended before, with events still owed.
            let purged = session.outbox.purge_all();
            self.counters.purged_events += purged * u64::from(!planted(Bug::CutUncounted));
        }
        let reset = matches!(
            session.reason,
            CloseReason::Stalled | CloseReason::Silent | CloseReason::Timeout
        );
        let counters = &mut self.counters;
        *match session.reason {
            CloseReason::Client => &mut counters.closed_by_client,
            CloseReason::Http => &mut counters.closed_http,
            CloseReason::Protocol => &mut counters.closed_protocol,
            CloseReason::TooLong => &mut counters.closed_too_long,
            CloseReason::Stalled => &mut counters.closed_stalled,
            CloseReason::Silent => &mut counters.closed_silent,
            CloseReason::Timeout => &mut counters.closed_timeout,
            CloseReason::Shutdown => &mut counters.closed_shutdown,
            CloseReason::Full => &mut counters.closed_full,
            CloseReason::PerIp => &mut counters.closed_per_ip,
        } += 1;
        self.effects.push_back(Effect::Release { key, reset });
    }
}
