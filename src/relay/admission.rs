//! Who may come in: what the driver says of a connection that has come, and the question it is asked
//! once a proxy has named its client.
//!
//! The driver counts connections by address, because it counts over all shards; the core says when the
//! client's address is known and answers those who are one too many.

use super::client::{FORWARDED_FOR, Malformed};
use super::session::{CloseReason, ConnectionKey, Phase};
use super::shard::{Effect, Now, Shard};
use crate::wire::http::{self, HttpError};

/// A connection that has come, as far as the driver knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// A client, which has been granted a place.
    Client,
    /// A trusted proxy: who calls is known once its request is read.
    Proxy,
    /// The relay has no room for it.
    Full,
    /// A client that has as many connections as it may have.
    Refused,
}

/// What the driver made of a client's wish for one connection more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It counts among the connections of its address.
    Granted,
    /// Its address has as many as it may have.
    Refused,
    /// And so many more that are being told so that this one is closed unheard.
    Unheard,
}

/// What is known of whose connection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// A proxy's; its head has not been read.
    Proxied,
    /// The driver was asked for a place.
    Asked,
    /// It has a place, or is being closed for want of one.
    Settled,
}

impl Arrival {
    pub(super) fn standing(self) -> Standing {
        match self {
            Self::Proxy => Standing::Proxied,
            Self::Client | Self::Full | Self::Refused => Standing::Settled,
        }
    }

    /// Why it is closed at once, if it is.
    pub(super) fn refusal(self) -> Option<(HttpError, CloseReason)> {
        match self {
            Self::Client | Self::Proxy => None,
            Self::Full => Some((HttpError::Full, CloseReason::Full)),
            Self::Refused => Some((HttpError::PerIp, CloseReason::PerIp)),
        }
    }
}

impl Shard {
    /// Counts a connection that the driver closed unheard: beyond all that are told that the relay is
    /// full, or that their address has too many ([`Admission::Unheard`]).
    pub fn handle_unheard(&mut self, full: bool) {
        self.counters.accepted += 1;
        match full {
            true => self.counters.closed_full += 1,
            false => self.counters.closed_per_ip += 1,
        }
    }

    /// Whether a request that is complete may be acted on. Behind a proxy the driver is asked first,
    /// once; its answer comes through [`Shard::handle_admission`].
    pub(super) fn is_admitted(&mut self, key: ConnectionKey, used: usize, now: Now) -> bool {
        let proxies = self.setup.proxies.clone();
        let Some(session) = self.session(key) else { return false };
        if session.standing != Standing::Proxied {
            return session.standing == Standing::Settled;
        }
        let values = http::fields(&session.backlog[..used], FORWARDED_FOR);
        match proxies.client(session.address, &values) {
            Ok(client) => {
                session.address = client;
                session.standing = Standing::Asked;
                self.effects.push_back(Effect::Admit(key, client));
            }
            Err(Malformed) => {
                let error = HttpError::Malformed("the proxy sent a malformed X-Forwarded-For");
                self.answer_http(key, error.response(), CloseReason::Http, now);
            }
        }
        false
    }

    /// Takes the answer to [`Effect::Admit`], for which the reader waits.
    pub fn handle_admission(&mut self, key: ConnectionKey, admission: Admission, now: Now) {
        let Some(session) = self.session(key) else { return };
        session.standing = Standing::Settled;
        let (phase, peer_done) = (session.phase, session.peer_done);
        self.effects.push_back(Effect::ResumeRead(key));
        if phase != Phase::Head {
            return;
        }
        match admission {
            Admission::Granted => self.read_head(key, now),
            Admission::Refused => {
                let response = HttpError::PerIp.response();
                self.answer_http(key, response, CloseReason::PerIp, now);
            }
            Admission::Unheard => {
                if let Some(session) = self.session(key) {
                    session.reason = CloseReason::PerIp;
                }
                return self.remove(key);
            }
        }
        if peer_done {
            self.handle_eof(key, now);
        }
    }
}
