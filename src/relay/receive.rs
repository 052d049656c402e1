//! The inbound half of a shard: bytes → request or messages → events to verify → submissions.

use super::outbox::Close;
use super::planted::{Bug, planted};
use super::policy;
use super::ports::{Submission, Ticket};
use super::session::{CloseReason, ConnectionKey, Hearing, Pending, Phase};
use super::shard::{Effect, Now, Reading, SUBMISSION_BYTES_MAX, Shard};
use crate::nostr::message::{FilterBounds, Refused};
use crate::nostr::{Candidate, ClientMessage, KindClass, RelayMessage, VerifiedEvent};
use crate::wire::http::{self, HttpError, Request};
use crate::wire::websocket::{DecodeError, Item};

/// Bytes inflated for one connection before the others have their turn: some 0.2 ms. A small read may
/// hold a thousand times its size.
const INFLATED_PER_TURN: u64 = 256 << 10;

/// Messages of one connection that are acted on before the others have their turn: a read may hold
/// thousands that need no answer.
const MESSAGES_PER_TURN: u32 = 256;

impl Shard {
    /// What the reader of this connection does next.
    #[must_use]
    pub fn reading(&mut self, key: ConnectionKey) -> Reading {
        match self.session(key) {
            None => Reading::Gone,
            Some(session) if session.paused || session.has_more() || session.is_asked() => {
                Reading::Paused
            }
            Some(_) => Reading::Ready,
        }
    }

    /// Takes bytes from a socket; they are rewritten. Returns what the reader does next.
    pub fn handle_bytes(&mut self, key: ConnectionKey, bytes: &mut [u8], now: Now) -> Reading {
        let Some(session) = self.session(key) else { return Reading::Gone };
        session.heard_ms = now.ms;
        if !planted(Bug::PongUnheard) {
            session.pinged_ms = None;
        }
        match session.phase {
            Phase::Head => {
                session.backlog.extend_from_slice(bytes);
                self.read_head(key, now);
            }
            Phase::Open => self.decode(key, bytes, now),
            Phase::Draining | Phase::Closing { .. } => self.await_close(key, bytes),
        }
        self.counters.bytes_in += bytes.len() as u64;
        self.reading(key)
    }

    /// Goes on with what was received before the reader was paused.
    pub fn handle_resumed(&mut self, key: ConnectionKey, now: Now) -> Reading {
        if let Some(session) = self.session(key)
            && !session.paused
        {
            let mut backlog = std::mem::take(&mut session.backlog);
            match session.phase {
                Phase::Head => session.backlog = backlog,
                Phase::Open => self.decode(key, &mut backlog, now),
                Phase::Draining | Phase::Closing { .. } => self.await_close(key, &mut backlog),
            }
        }
        self.reading(key)
    }

    /// Passes over what comes after the last message that is acted on, up to the client's close frame.
    /// One that comes when ours has left ends the connection: both sides have said all (RFC 6455
    /// §7.1.1).
    fn await_close(&mut self, key: ConnectionKey, bytes: &mut [u8]) {
        let Some(session) = self.sessions.get_mut(key.slot()).filter(|s| s.key == key) else {
            return;
        };
        session.decoder.pass_over();
        let mut input = bytes;
        while !session.deaf {
            match session.decoder.next(&mut input, &mut self.inflater) {
                Ok(None) => return,
                Ok(Some(Item::Close(_))) => {
                    session.deaf = true;
                    if session.phase == (Phase::Closing { sent: true }) && !session.writing {
                        return self.remove(key);
                    }
                }
                Ok(Some(_)) => {}
                Err(_) => session.deaf = true,
            }
        }
    }

    pub(super) fn read_head(&mut self, key: ConnectionKey, now: Now) {
        let pages = self.setup.pages.clone();
        let (stopping, accept) = (self.stopping, self.setup.deflate);
        let Some(session) = self.session(key) else { return };
        let request = http::read_request(&session.backlog, &pages.endpoint);
        #[cfg(any(test, feature = "echo-endpoint"))]
        let request = session.begin_echo(request);
        let (request, used) = match request {
            Ok(None) => return,
            Ok(Some(parts)) => parts,
            Err(error) => return self.answer_http(key, error.response(), CloseReason::Http, now),
        };
        if !self.is_admitted(key, used, now) {
            return;
        }
        let Some(session) = self.session(key) else { return };
        let answer = |body: &str, kind: &str, with_body: bool| {
            let mut response = http::respond("200 OK", kind, "Vary: Accept\r\n", body);
            if !with_body {
                response.truncate(response.len() - body.len());
            }
            response
        };
        let response = match request {
            Request::WebSocket { .. } if stopping => HttpError::Full.response(),
            Request::WebSocket { mut response, deflate } => {
                if let Some(agreed) = deflate.and_then(|offer| offer.accept(accept)) {
                    agreed.add_to(&mut response);
                    session.decoder.take_deflated(agreed.client_context);
                    session.deflate = Some(agreed.window());
                }
                let mut rest = std::mem::take(&mut session.backlog).split_off(used);
                session.enter(Phase::Open, now.ms);
                session.outbox.push_raw(response);
                self.ask_write(key);
                return self.decode(key, &mut rest, now);
            }
            Request::Document { body } => answer(&pages.document, "application/nostr+json", body),
            Request::Page { body } => answer(&pages.page, "text/html; charset=utf-8", body),
            Request::Preflight => http::preflight(),
        };
        self.answer_http(key, response, CloseReason::Http, now);
    }

    fn decode(&mut self, key: ConnectionKey, bytes: &mut [u8], now: Now) {
        let limits = self.setup.limits.clone();
        let bounds = FilterBounds {
            filters_max: limits.filters_max as usize,
            values_max: limits.filter_values_max as usize,
            search: self.setup.search,
        };
        let inflated_max = self.inflater.worked_bytes() + INFLATED_PER_TURN;
        let mut messages = 0;
        let mut input = bytes;
        loop {
            let Some(session) = self.sessions.get_mut(key.slot()).filter(|s| s.key == key) else {
                return;
            };
            if session.phase != Phase::Open {
                return;
            }
            if !session.has_credit(&limits) {
                session.backlog = input.to_vec();
                session.paused = true;
                self.counters.reads_paused += 1;
                return;
            }
            let turn_is_over =
                messages == MESSAGES_PER_TURN || self.inflater.worked_bytes() >= inflated_max;
            if turn_is_over && !input.is_empty() {
                session.backlog = input.to_vec();
                self.effects.push_back(Effect::ResumeRead(key));
                return;
            }
            messages += 1;
            let item = session.decoder.next(&mut input, &mut self.inflater);
            #[cfg(any(test, feature = "echo-endpoint"))]
            if let (Some(echo), Ok(Some(item))) = (&session.echo, &item)
                && echo.answer(item, &mut session.outbox)
            {
                self.counters.messages_in += 1;
                self.ask_write(key);
                continue;
            }
            match item {
                Ok(None) => return,
                Ok(Some(Item::Text(text))) => {
                    self.counters.messages_in += 1;
                    session.replies_owed += 1;
                    if let Some(captured) = &mut self.captured {
                        captured.note(key, text);
                    }
                    let message = self.reader.read(text, bounds);
                    self.handle_message(key, message, now);
                }
                Ok(Some(Item::Ping(payload))) => {
                    self.counters.pongs_replaced += u64::from(session.outbox.push_pong(payload));
                    self.ask_write(key);
                }
                Ok(Some(Item::Pong)) => {}
                Ok(Some(Item::Binary(_))) => {
                    let close = Close { code: Some(1003), reason: "only text is spoken here" };
                    self.close(key, close, CloseReason::Protocol, now);
                    return self.await_close(key, input);
                }
                #[cfg(any(test, feature = "echo-endpoint"))]
                Ok(Some(Item::Close(code))) if session.echo.is_some() => {
                    session.deaf = true;
                    return self.end_echo(key, code, now);
                }
                Ok(Some(Item::Close(code))) => {
                    session.deaf = true;
                    return self.take_leave(key, code, now);
                }
                Err(error) => return self.refuse_frames(key, error, now),
            }
        }
    }

    fn refuse_frames(&mut self, key: ConnectionKey, error: DecodeError, now: Now) {
        if let Some(session) = self.session(key) {
            session.deaf = true;
        }
        let reason = match error {
            DecodeError::TooLong => CloseReason::TooLong,
            _ => CloseReason::Protocol,
        };
        let text = match error {
            DecodeError::Frame(_) => "broken frame",
            DecodeError::Fragments => "fragments out of order",
            DecodeError::BadClose => "bad close frame",
            DecodeError::NotUtf8 => "text is not UTF-8",
            DecodeError::BadDeflate => "bad compressed data",
            DecodeError::TooLong => "message too long",
        };
        self.close(key, Close { code: Some(error.code()), reason: text }, reason, now);
    }

    /// Acts on one message; its reply slot is reserved.
    fn handle_message(
        &mut self,
        key: ConnectionKey,
        message: Result<ClientMessage, Refused>,
        now: Now,
    ) {
        match message {
            Ok(ClientMessage::Event(candidate)) => self.take_event(key, candidate, now),
            Ok(ClientMessage::Req { subscription, filters }) => {
                self.subscribe(key, subscription, filters, now);
            }
            Ok(ClientMessage::Close { subscription }) => {
                self.unsubscribe(key, &subscription, now);
                self.release_slot(key);
            }
            Ok(ClientMessage::Count { query, filters, sketch }) => {
                self.count(key, &query, filters, sketch, now);
            }
            Err(refused) => {
                self.counters.messages_invalid += 1;
                match refused {
                    Refused::Event { id, reason } => {
                        self.counters.events_malformed += 1;
                        let message = RelayMessage::Ok { id: &id, accepted: false, text: &reason };
                        self.reply(key, message);
                    }
                    Refused::Subscription { subscription, reason } => {
                        self.refuse_subscription(key, &subscription, &reason, now);
                    }
                    Refused::Count { query, reason } => self.refuse_count(key, &query, &reason),
                    Refused::Message { reason } => {
                        self.reply(key, RelayMessage::Notice { text: &reason });
                    }
                }
            }
        }
    }

    /// The message gets no answer in the reply lane.
    pub(super) fn release_slot(&mut self, key: ConnectionKey) {
        if let Some(session) = self.session(key) {
            session.replies_owed -= u32::from(!planted(Bug::SlotKept));
        }
    }

    fn take_event(&mut self, key: ConnectionKey, candidate: Candidate, now: Now) {
        if let Err(text) = policy::judge(&candidate, &self.setup.limits, now.unix_s) {
            self.counters.events_refused += 1;
            let id = candidate.event().view().id();
            return self.reply(key, RelayMessage::Ok { id, accepted: false, text: &text });
        }
        let Some(session) = self.sessions.get_mut(key.slot()).filter(|s| s.key == key) else {
            return;
        };
        session.verify_bytes += candidate.event().record().len();
        session.verify.push_back((candidate, self.turn_us));
        if !std::mem::replace(&mut session.in_verify_round, true) {
            self.verify_round.push_back(key);
        }
        self.counters.verify_waiting += 1;
    }

    /// Verifies up to `events_max` waiting events, one connection after the other, and submits them.
    /// Returns whether more could be done at once. While the writer holds all it may of this shard's,
    /// nothing is verified.
    pub fn verify(&mut self, events_max: usize, now: Now) -> bool {
        let mut left = events_max;
        loop {
            let full = self.pending.len() >= self.submissions_max
                || self.pending_bytes >= SUBMISSION_BYTES_MAX;
            let full = full && !planted(Bug::SubmissionsUnbounded);
            if full || self.verify_round.is_empty() {
                return false;
            }
            if left == 0 {
                return true;
            }
            let Some(key) = self.verify_round.pop_front() else { return false };
            let Some(session) = self.sessions.get_mut(key.slot()).filter(|s| s.key == key) else {
                continue;
            };
            session.in_verify_round = false;
            let next = match planted(Bug::OrderLost) {
                true => session.verify.pop_back(),
                false => session.verify.pop_front(),
            };
            let Some((candidate, received_us)) = next else { continue };
            session.verify_bytes -= candidate.event().record().len();
            if session.verify.is_empty() {
                session.verify.shrink_to(8);
            } else {
                session.in_verify_round = true;
                self.verify_round.push_back(key);
            }
            self.counters.verify_waiting -= 1;
            left -= 1;
            self.verify_one(key, candidate, received_us, now);
            self.resume_if_credit(key, now);
        }
    }

    fn verify_one(&mut self, key: ConnectionKey, candidate: Candidate, received_us: u64, now: Now) {
        let id = *candidate.event().view().id();
        self.counters.events_verified += 1;
        let verified = if self.setup.verify {
            self.verifier.verify(candidate)
        } else {
            Ok(VerifiedEvent::trust(candidate))
        };
        match verified {
            Ok(event) => self.submit(key, event, received_us, now),
            Err(error) => {
                self.counters.events_bad_signature += 1;
                let text = format!("invalid: {error}");
                self.reply(key, RelayMessage::Ok { id: &id, accepted: false, text: &text });
            }
        }
    }

    fn submit(&mut self, key: ConnectionKey, event: VerifiedEvent, received_us: u64, now: Now) {
        let event = event.into_event();
        let view = event.view();
        let ephemeral = view.kind().class() == KindClass::Ephemeral;
        let others = self.setup.shards - 1;
        let pending = Pending {
            connection: key,
            id: *view.id(),
            bytes: event.record().len(),
            received_us,
            ephemeral: ephemeral.then_some(Hearing { shards_left: others, heard: 0 }),
        };
        self.pending_bytes += pending.bytes;
        let token = self.pending.insert(pending) as u64;
        if !ephemeral {
            let ticket = Ticket { origin: self.setup.origin, token };
            if planted(Bug::OkBeforeCommit) {
                self.reply(
                    key,
                    RelayMessage::Ok { id: event.view().id(), accepted: true, text: "" },
                );
            }
            self.effects.push_back(Effect::Submit(Submission { event, ticket }));
            return;
        }
        let heard = self.handle_ephemeral(&event, now);
        let slot = usize::try_from(token).expect("a slab index");
        if let Some(hearing) = &mut self.pending[slot].ephemeral {
            hearing.heard = heard;
        }
        if others == 0 {
            self.answer_ephemeral(token);
        } else {
            self.effects.push_back(Effect::PublishEphemeral { token, event });
        }
    }

    /// Lets a paused reader go on once credit is back.
    pub(super) fn resume_if_credit(&mut self, key: ConnectionKey, now: Now) {
        let limits = &self.setup.limits;
        let Some(session) = self.sessions.get_mut(key.slot()).filter(|s| s.key == key) else {
            return;
        };
        if session.may_resume(limits) {
            session.paused = false;
            // Its answer to a ping may be among what was not read.
            (session.heard_ms, session.pinged_ms) = (now.ms, None);
            self.effects.push_back(Effect::ResumeRead(key));
        }
    }
}
