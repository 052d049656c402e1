//! The handshake of permessage-deflate (RFC 7692 §7.1; RFC 6455 §9.1).

use std::num::NonZeroU8;

use super::Accept;

/// How far back compressed data may refer, as a power of two: 9 to 15.
///
/// 8 is legal on the wire, but no compressor here keeps to 256 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowBits(NonZeroU8);

impl WindowBits {
    /// What holds when nothing is said: 32 KiB.
    pub const MAX: Self = Self(NonZeroU8::new(15).expect("not zero"));

    const MIN_BITS: u8 = 9;

    /// How many there are.
    pub(super) const SIZES: usize = (Self::MAX.0.get() - Self::MIN_BITS + 1) as usize;

    /// A window of 2^`bits` bytes, if it is one of ours.
    #[must_use]
    pub fn new(bits: u8) -> Option<Self> {
        let known = (Self::MIN_BITS..=Self::MAX.bits()).contains(&bits);
        NonZeroU8::new(bits).filter(|_| known).map(Self)
    }

    /// The power.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0.get()
    }

    pub(super) fn index(self) -> usize {
        usize::from(self.bits() - Self::MIN_BITS)
    }
}

/// An offer of the extension that can be accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// `server_max_window_bits`
    window: Option<WindowBits>,
    /// `client_no_context_takeover`
    client_forgets: bool,
}

/// What both sides keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    offer: Offer,
    /// Whether the client's messages may refer to its earlier ones.
    pub client_context: bool,
}

/// A `Sec-WebSocket-Extensions` that is not the list of RFC 6455 §9.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl Offer {
    /// The first offer in one `Sec-WebSocket-Extensions` field that can be accepted. Unknown extensions
    /// are passed over, and so are offers with a parameter that is unknown, comes twice or has a value
    /// it must not have.
    ///
    /// # Errors
    /// The field is malformed.
    pub fn first(field: &[u8]) -> Result<Option<Self>, Malformed> {
        let mut rest = Rest(field);
        let mut first = None;
        loop {
            // A list may have empty elements (RFC 9110 §5.6.1).
            while rest.take(b',') {}
            if rest.0.is_empty() {
                return Ok(first);
            }
            let known = rest.token()?.eq_ignore_ascii_case(b"permessage-deflate");
            let mut offer = known.then(Parameters::default);
            while rest.take(b';') {
                let name = rest.token()?;
                let value = if rest.take(b'=') { Some(rest.value()?) } else { None };
                offer = offer.and_then(|offer| offer.with(name, value.as_deref()));
            }
            if !rest.0.is_empty() && !rest.take(b',') {
                return Err(Malformed);
            }
            first = first.or(offer.map(Parameters::offer));
        }
    }

    /// What is agreed on by accepting this offer.
    #[must_use]
    pub fn accept(self, accept: Accept) -> Option<Agreed> {
        let client_context = match accept {
            Accept::Off => return None,
            Accept::On => false,
            Accept::ClientContext => !self.client_forgets,
        };
        Some(Agreed { offer: self, client_context })
    }
}

impl Agreed {
    /// How far back what is sent to the client may refer.
    #[must_use]
    pub fn window(self) -> WindowBits {
        self.offer.window.unwrap_or(WindowBits::MAX)
    }

    /// Adds the field that accepts the offer to a handshake's response. That the server forgets is said
    /// even when nobody asked: then the client need not keep a window either.
    ///
    /// # Panics
    /// If the response has no end.
    pub fn add_to(self, response: &mut Vec<u8>) {
        assert!(response.ends_with(b"\r\n\r\n"), "a response head ends with an empty line");
        response.truncate(response.len() - 2);
        response.extend_from_slice(
            b"Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover",
        );
        if !self.client_context {
            response.extend_from_slice(b"; client_no_context_takeover");
        }
        if let Some(window) = self.offer.window {
            let parameter = format!("; server_max_window_bits={}", window.bits());
            response.extend_from_slice(parameter.as_bytes());
        }
        response.extend_from_slice(b"\r\n\r\n");
    }
}

/// The parameters of one offer so far; each at most once.
#[derive(Default)]
struct Parameters {
    server_forgets: bool,
    client_forgets: bool,
    window: Option<WindowBits>,
    client_window: bool,
}

impl Parameters {
    /// Adds one; `None` declines the offer.
    fn with(mut self, name: &[u8], value: Option<&[u8]>) -> Option<Self> {
        let is_new = match (name, value) {
            (b"server_no_context_takeover", None) => {
                !std::mem::replace(&mut self.server_forgets, true)
            }
            (b"client_no_context_takeover", None) => {
                !std::mem::replace(&mut self.client_forgets, true)
            }
            (b"server_max_window_bits", Some(value)) => {
                let window = WindowBits::new(window_bits(value)?)?;
                self.window.replace(window).is_none()
            }
            // How far back the client may refer. Whatever it chooses, a full window inflates it.
            (b"client_max_window_bits", value) => {
                value.map_or(Some(8), window_bits)?;
                !std::mem::replace(&mut self.client_window, true)
            }
            _ => false,
        };
        is_new.then_some(self)
    }

    fn offer(self) -> Offer {
        Offer { window: self.window, client_forgets: self.client_forgets }
    }
}

/// 8 to 15, without leading zeros (RFC 7692 §7.1.2).
fn window_bits(value: &[u8]) -> Option<u8> {
    match value {
        [digit @ (b'8' | b'9')] => Some(digit - b'0'),
        [b'1', digit @ b'0'..=b'5'] => Some(10 + digit - b'0'),
        _ => None,
    }
}

/// What has not been read of a field.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn skip_space(&mut self) {
        let space = self.0.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        self.0 = &self.0[space..];
    }

    /// Whether `byte` came next; it and the space around it are taken.
    fn take(&mut self, byte: u8) -> bool {
        self.skip_space();
        let found = self.0.first() == Some(&byte);
        if found {
            self.0 = &self.0[1..];
            self.skip_space();
        }
        found
    }

    fn token(&mut self) -> Result<&'a [u8], Malformed> {
        let len = self.0.iter().take_while(|byte| is_token(**byte)).count();
        let (token, rest) = self.0.split_at(len);
        self.0 = rest;
        if token.is_empty() { Err(Malformed) } else { Ok(token) }
    }

    /// A token, or one in quotes.
    fn value(&mut self) -> Result<Vec<u8>, Malformed> {
        let Some(mut rest) = self.0.strip_prefix(b"\"") else {
            return self.token().map(<[u8]>::to_vec);
        };
        let mut value = Vec::new();
        loop {
            match rest {
                [b'"', after @ ..] if !value.is_empty() => {
                    self.0 = after;
                    return Ok(value);
                }
                [b'\\', byte, after @ ..] | [byte, after @ ..] if is_token(*byte) => {
                    value.push(*byte);
                    rest = after;
                }
                _ => return Err(Malformed),
            }
        }
    }
}

/// RFC 9110 §5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The field that answers, shortened; `-` for none.
    fn answer(accept: Accept, field: &str) -> String {
        let offer = match Offer::first(field.as_bytes()) {
            Ok(offer) => offer,
            Err(Malformed) => return "malformed".into(),
        };
        let Some(agreed) = offer.and_then(|offer| offer.accept(accept)) else { return "-".into() };
        let mut response = b"HTTP/1.1 101 x\r\n\r\n".to_vec();
        agreed.add_to(&mut response);
        let text = String::from_utf8(response).unwrap();
        let head = "HTTP/1.1 101 x\r\nSec-WebSocket-Extensions: permessage-deflate; ";
        text.strip_prefix(head).unwrap().strip_suffix("\r\n\r\n").unwrap().to_owned()
    }

    #[test]
    fn offers_and_their_answers() {
        const PLAIN: &str = "server_no_context_takeover; client_no_context_takeover";
        let with_bits = |bits| format!("{PLAIN}; server_max_window_bits={bits}");
        let cases = [
            ("permessage-deflate", PLAIN.to_owned()),
            ("PerMessage-Deflate", PLAIN.to_owned()),
            ("permessage-deflate; client_max_window_bits", PLAIN.to_owned()),
            ("permessage-deflate; client_max_window_bits=8", PLAIN.to_owned()),
            ("permessage-deflate;client_max_window_bits = \"15\"", PLAIN.to_owned()),
            ("permessage-deflate; server_no_context_takeover", PLAIN.to_owned()),
            ("permessage-deflate; server_max_window_bits=10", with_bits(10)),
            ("permessage-deflate; server_max_window_bits=\"1\\0\"", with_bits(10)),
            ("permessage-deflate; server_max_window_bits=15", with_bits(15)),
            // RFC 7692 §7.1.3: the client's preference first, then a fallback.
            ("permessage-deflate; server_max_window_bits=8, permessage-deflate", PLAIN.to_owned()),
            ("permessage-deflate; server_max_window_bits=9, permessage-deflate", with_bits(9)),
            ("x-webkit-deflate-frame, mux; max-channels=4, permessage-deflate", PLAIN.to_owned()),
            (", ,permessage-deflate,", PLAIN.to_owned()),
            // Declined.
            ("", "-".into()),
            ("permessage-foo", "-".into()),
            ("permessage-deflate; server_max_window_bits", "-".into()),
            ("permessage-deflate; server_max_window_bits=8", "-".into()),
            ("permessage-deflate; server_max_window_bits=16", "-".into()),
            ("permessage-deflate; server_max_window_bits=010", "-".into()),
            (
                "permessage-deflate; server_max_window_bits=10; server_max_window_bits=10",
                "-".into(),
            ),
            ("permessage-deflate; client_max_window_bits=7", "-".into()),
            ("permessage-deflate; client_max_window_bits=-8", "-".into()),
            ("permessage-deflate; client_max_window_bits; client_max_window_bits=9", "-".into()),
            ("permessage-deflate; client_no_context_takeover=1", "-".into()),
            (
                "permessage-deflate; client_no_context_takeover; client_no_context_takeover",
                "-".into(),
            ),
            (
                "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
                "-".into(),
            ),
            ("permessage-deflate; turbo", "-".into()),
            // RFC 6455 §9.1: to be refused.
            ("permessage-deflate;", "malformed".into()),
            ("permessage-deflate; =3", "malformed".into()),
            ("permessage-deflate; a=", "malformed".into()),
            ("permessage-deflate; a=\"", "malformed".into()),
            ("permessage-deflate; a=\"\"", "malformed".into()),
            ("permessage-deflate; a=\"b c\"", "malformed".into()),
            ("permessage-deflate; a=\"b\\\"", "malformed".into()),
            ("permessage deflate", "malformed".into()),
            ("permessage-deflate, \u{1}", "malformed".into()),
        ];
        for (field, expected) in cases {
            assert_eq!(answer(Accept::On, field), expected, "{field:?}");
        }
    }

    #[test]
    fn a_client_keeps_its_context_where_it_may_and_wants_to() {
        let cases = [
            (Accept::Off, "permessage-deflate", "-"),
            (Accept::ClientContext, "permessage-deflate", "server_no_context_takeover"),
            (
                Accept::ClientContext,
                "permessage-deflate; client_no_context_takeover",
                "server_no_context_takeover; client_no_context_takeover",
            ),
        ];
        for (accept, field, expected) in cases {
            assert_eq!(answer(accept, field), expected, "{accept:?} {field:?}");
        }
    }

    proptest! {
        #[test]
        fn no_field_panics(field in "[permsag\\-dflt;,=\"\\\\ 0-9_]{0,60}") {
            let _ = Offer::first(field.as_bytes());
        }

        #[test]
        fn every_known_parameter_is_read(
            parts in prop::collection::vec((0_usize..4, prop::option::of(0_u8..20)), 0..4),
        ) {
            let names = ["server_no_context_takeover", "client_no_context_takeover",
                "server_max_window_bits", "client_max_window_bits"];
            let mut field = "permessage-deflate".to_owned();
            let mut seen = [None; 4];
            let mut fine = true;
            for (at, value) in parts {
                field.push_str(&format!("; {}", names[at]));
                if let Some(value) = value {
                    field.push_str(&format!("={value}"));
                }
                fine &= seen[at].replace(value).is_none() && match (at, value) {
                    (0 | 1, value) => value.is_none(),
                    (2, value) => value.is_some_and(|bits| (9..=15).contains(&bits)),
                    (_, value) => value.is_none_or(|bits| (8..=15).contains(&bits)),
                };
            }
            let expected = fine.then(|| Offer {
                window: seen[2].flatten().and_then(WindowBits::new),
                client_forgets: seen[1].is_some(),
            });
            prop_assert_eq!(Offer::first(field.as_bytes()), Ok(expected));
        }
    }
}
