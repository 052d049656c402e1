//! `/echo`, for conformance suites: every message is answered with itself, by the decoder, outbox and
//! writer that serve clients. Compiled into tests and with the feature `echo-endpoint`, never into a
//! relay.
//!
//! Echoes wait in the stream lane, within its bounds: while it is full, the socket is not read.

use std::rc::Rc;

use bytes::Bytes;

use super::limits::Limits;
use super::outbox::{Name, Outbox};
use super::session::{ConnectionKey, Phase, Session};
use super::shard::{Now, Shard};
use crate::nostr::SubscriptionId;
use crate::wire::frame::Opcode;
use crate::wire::http::{self, HttpError, Request};
use crate::wire::websocket::{Decoder, Item};

/// Where echoes are served.
const PATH: &str = "/echo";

/// Where text is not checked for UTF-8, which a conformance suite must notice.
const FAULTY_PATH: &str = "/echo-unchecked";

/// The longest message echoed; a longer one closes the connection with 1009.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// What a session at one of these paths has more than others.
pub(super) struct Echo {
    name: Rc<Name>,
}

impl Echo {
    /// Whether `item` was a message: then its answer is queued.
    pub(super) fn answer(&self, item: &Item<'_>, outbox: &mut Outbox) -> bool {
        let (opcode, payload) = match item {
            Item::Text(text) => (Opcode::Text, text),
            Item::Binary(bytes) => (Opcode::Binary, bytes),
            Item::Ping(_) | Item::Pong | Item::Close(_) => return false,
        };
        outbox.push_echo(&self.name, opcode, Bytes::copy_from_slice(payload));
        true
    }
}

/// Cuts a message into prefix, shared payload and suffix, as an EVENT is on its way out.
pub(super) fn parts(payload: &Bytes) -> (&[u8], Bytes, &[u8]) {
    let prefix = payload.len().min(16);
    let suffix = payload.len().saturating_sub(1).max(prefix);
    (&payload[..prefix], payload.slice(prefix..suffix), &payload[suffix..])
}

impl Session {
    /// Makes this an echo session if the request asks for one.
    pub(super) fn begin_echo(
        &mut self,
        request: Result<Option<(Request, usize)>, HttpError>,
    ) -> Result<Option<(Request, usize)>, HttpError> {
        if request != Err(HttpError::NotFound) {
            return request;
        }
        for path in [PATH, FAULTY_PATH] {
            let echo = http::read_request(&self.backlog, path);
            if matches!(echo, Ok(Some((Request::WebSocket { .. }, _)))) {
                self.decoder = Decoder::new(MESSAGE_BYTES_MAX);
                if path == FAULTY_PATH {
                    self.decoder.trust_text();
                }
                let id = SubscriptionId::new("echo").expect("a valid id");
                self.echo = Some(Echo { name: Name::new(id) });
                return echo;
            }
        }
        request
    }

    /// Whether another message may be read, for all that its echo needs.
    pub(super) fn may_echo(&self, limits: &Limits) -> bool {
        let (messages_max, bytes_max) = (limits.outbox_messages_max, limits.outbox_bytes_max);
        self.echo.is_none() || self.outbox.has_room(messages_max as usize, bytes_max as usize)
    }
}

impl Shard {
    /// The client sends no more: what it sent before is still echoed, then a close with the
    /// code `farewell`.
    pub(super) fn end_echo(&mut self, key: ConnectionKey, farewell: Option<u16>, now: Now) {
        let Some(session) = self.session(key) else { return };
        session.farewell = farewell;
        session.enter(Phase::Draining, now.ms);
        self.finish_draining(key, now);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Accept;
    use super::super::admission::Arrival;
    use super::super::client::CLIENT;
    use super::super::shard::{Effect, Pages, Reading, Setup};
    use super::*;
    use crate::wire::batch::Batch;
    use crate::wire::frame::write_header;

    const NOW: Now = Now { ms: 1, unix_s: 1 };

    fn connect(path: &str, limits: Limits) -> (Shard, ConnectionKey) {
        let mut shard = Shard::new(Setup {
            origin: 0,
            shards: 1,
            verify: true,
            search: false,
            limits: limits.into(),
            pages: Pages { endpoint: "/".into(), ..Pages::default() }.into(),
            deflate: Accept::Off,
            proxies: std::sync::Arc::default(),
            hash_seed: 1,
        });
        let key = shard.handle_accept(CLIENT, Arrival::Client, NOW);
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: r\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        );
        shard.handle_bytes(key, &mut head.into_bytes(), NOW);
        assert!(written(&mut shard, key).starts_with(b"HTTP/1.1 101"));
        (shard, key)
    }

    /// A frame with a mask of zeros.
    fn frame(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        write_header(&mut frame, opcode, payload.len());
        frame[1] |= 0x80;
        frame.extend([0; 4]);
        frame.extend(payload);
        frame
    }

    fn echo(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        write_header(&mut frame, opcode, payload.len());
        frame.extend(payload);
        frame
    }

    /// One batch, as the driver would write it.
    fn written(shard: &mut Shard, key: ConnectionKey) -> Vec<u8> {
        let mut batch = Batch::default();
        if !shard.fill(key, &mut batch, NOW) {
            return Vec::new();
        }
        let bytes = batch.unwritten().flatten().copied().collect();
        shard.handle_written(key, NOW);
        bytes
    }

    #[test]
    fn messages_come_back_as_they_were_and_before_the_close() {
        let (mut shard, key) = connect(PATH, Limits::default());
        let payloads = [0, 1, 16, 17, 18, 3000].map(|len| vec![b'x'; len]);
        let mut sent = Vec::new();
        let mut expected = Vec::new();
        for payload in &payloads {
            for opcode in [Opcode::Text, Opcode::Binary] {
                sent.extend(frame(opcode, payload));
                expected.extend(echo(opcode, payload));
            }
        }
        sent.extend(frame(Opcode::Close, &1000_u16.to_be_bytes()));
        shard.handle_bytes(key, &mut sent, NOW);
        let mut bytes = written(&mut shard, key);
        bytes.extend(written(&mut shard, key));
        expected.extend(echo(Opcode::Close, &1000_u16.to_be_bytes()));
        assert_eq!(bytes, expected);
    }

    #[test]
    fn a_full_outbox_pauses_the_reader_until_it_drains() {
        let limits = Limits { outbox_messages_max: 3, ..Limits::default() };
        let (mut shard, key) = connect(PATH, limits);
        let mut sent = frame(Opcode::Binary, b"one").repeat(4);
        assert_eq!(shard.handle_bytes(key, &mut sent, NOW), Reading::Paused);
        assert_eq!(written(&mut shard, key), echo(Opcode::Binary, b"one").repeat(3));
        let effects = std::iter::from_fn(|| shard.poll_effect());
        assert!(effects.into_iter().any(|effect| matches!(effect, Effect::ResumeRead(_))));
        assert_eq!(shard.handle_resumed(key, NOW), Reading::Ready);
        assert_eq!(written(&mut shard, key), echo(Opcode::Binary, b"one"));
    }

    #[test]
    fn only_the_faulty_endpoint_takes_what_is_not_utf8() {
        for (path, code) in [(PATH, Some(1007_u16)), (FAULTY_PATH, None)] {
            let (mut shard, key) = connect(path, Limits::default());
            shard.handle_bytes(key, &mut frame(Opcode::Text, b"\xff"), NOW);
            let answer = written(&mut shard, key);
            match code {
                Some(code) => assert_eq!(answer[2..4], code.to_be_bytes()),
                None => assert_eq!(answer, echo(Opcode::Text, b"\xff")),
            }
        }
    }
}
