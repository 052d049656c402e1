//! The one HTTP request a connection begins with (RFC 9112), and the answers that are not a WebSocket.

use tungstenite::handshake::derive_accept_key;

use super::deflate::Offer;

/// Longest request head.
pub const HEAD_BYTES_MAX: usize = 8 << 10;

/// Most header fields of a request.
const HEADERS_MAX: usize = 64;

/// What a client asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// A WebSocket; the response switches protocols.
    WebSocket {
        /// Bytes to answer with.
        response: Vec<u8>,
        /// The compression it offers; the response does not accept it.
        deflate: Option<Offer>,
    },
    /// The relay information document (NIP-11).
    Document {
        /// Whether the body is wanted too (`GET`, not `HEAD`).
        body: bool,
    },
    /// A page for people.
    Page {
        /// Whether the body is wanted too.
        body: bool,
    },
    /// A CORS preflight.
    Preflight,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// Not an HTTP/1.1 request, or one this server will not read.
    #[error("{0}")]
    Malformed(&'static str),
    /// Longer than [`HEAD_BYTES_MAX`], or too many fields.
    #[error("request head too large")]
    TooLarge,
    /// Not the relay's endpoint.
    #[error("no such page; the relay has one address")]
    NotFound,
    /// Another method than GET, HEAD or OPTIONS.
    #[error("method not allowed")]
    Method,
    /// Another HTTP version than 1.1.
    #[error("only HTTP/1.1 is spoken here")]
    HttpVersion,
    /// Another WebSocket version than 13.
    #[error("only WebSocket version 13 is spoken here")]
    WebSocketVersion,
    /// The head did not arrive in time.
    #[error("request not received in time")]
    Timeout,
    /// No room for another connection.
    #[error("too many connections")]
    Full,
    /// The client has as many connections as it may have.
    #[error("too many connections from your address")]
    PerIp,
}

impl HttpError {
    fn status(self) -> &'static str {
        match self {
            Self::Malformed(_) => "400 Bad Request",
            Self::TooLarge => "431 Request Header Fields Too Large",
            Self::NotFound => "404 Not Found",
            Self::Method => "405 Method Not Allowed",
            Self::HttpVersion => "505 HTTP Version Not Supported",
            Self::WebSocketVersion => "426 Upgrade Required",
            Self::Timeout => "408 Request Timeout",
            Self::Full => "503 Service Unavailable",
            Self::PerIp => "429 Too Many Requests",
        }
    }

    /// The response that says so.
    #[must_use]
    pub fn response(self) -> Vec<u8> {
        let extra = match self {
            Self::Method => "Allow: GET, HEAD, OPTIONS\r\n",
            Self::WebSocketVersion => "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
            _ => "",
        };
        respond(self.status(), "text/plain; charset=utf-8", extra, &format!("{self}\n"))
    }
}

/// Reads a request head from the front of `bytes`: what it asks for and its size, or `None` when
/// more bytes are needed. `endpoint` is the one path served.
///
/// # Errors
/// The refusal to answer with before the connection is closed.
pub fn read_request(bytes: &[u8], endpoint: &str) -> Result<Option<(Request, usize)>, HttpError> {
    let window = &bytes[..bytes.len().min(HEAD_BYTES_MAX)];
    let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Request::new(&mut fields);
    let used = match head.parse(window) {
        Ok(httparse::Status::Complete(used)) => used,
        Ok(httparse::Status::Partial) if bytes.len() >= HEAD_BYTES_MAX => {
            return Err(HttpError::TooLarge);
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(HttpError::TooLarge),
        Err(httparse::Error::Version) if names_a_version(window) => {
            return Err(HttpError::HttpVersion);
        }
        Err(_) => return Err(HttpError::Malformed("malformed request")),
    };
    if has_bare_newline(&window[..used]) {
        return Err(HttpError::Malformed("a line ends with CRLF"));
    }
    Ok(Some((Head::new(&head)?.decide(endpoint)?, used)))
}

/// The values of all fields of this name, in order. For a head that [`read_request`] has taken; of any
/// other bytes there are none.
#[must_use]
pub fn fields<'a>(head: &'a [u8], name: &str) -> Vec<&'a [u8]> {
    let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
    match httparse::Request::new(&mut fields).parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        _ => return Vec::new(),
    }
    let named = fields.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
    named.map(|field| field.value).collect()
}

/// RFC 9112 §2.2 lets a server read a lone LF as a line's end; a proxy that does not would see another
/// request than this one.
fn has_bare_newline(head: &[u8]) -> bool {
    let after_cr = std::iter::once(&0).chain(head);
    head.iter().zip(after_cr).any(|(byte, before)| *byte == b'\n' && *before != b'\r')
}

/// Whether the request line is a method, a target and something of HTTP: another version, then, and
/// not a line that is malformed elsewhere. What follows is not looked at: it may not have come yet.
fn names_a_version(head: &[u8]) -> bool {
    let line = head.trim_ascii_start().split(|byte| *byte == b'\r' || *byte == b'\n').next();
    let mut parts = line.unwrap_or_default().split(|byte| *byte == b' ');
    parts.nth(2).is_some_and(|part| part.starts_with(b"HTTP/"))
}

/// The parts of a head that decide. Lists are read item by item, over all fields of their name (RFC
/// 9110 §5.3).
struct Head<'a> {
    method: &'a str,
    /// `None` stands for the whole server (`OPTIONS *`).
    path: Option<&'a str>,
    /// `Accept` lists the relay information document.
    accept_nostr: bool,
    /// `Upgrade` lists `websocket`.
    to_web_socket: bool,
    /// `Connection` lists `upgrade`.
    connection_upgrade: bool,
    key: Option<&'a [u8]>,
    web_socket_version: Option<&'a [u8]>,
    deflate: Option<Offer>,
}

impl<'a> Head<'a> {
    fn new(head: &httparse::Request<'_, 'a>) -> Result<Self, HttpError> {
        if head.version != Some(1) {
            return Err(HttpError::HttpVersion);
        }
        let method = head.method.unwrap_or_default();
        let mut parts = Head {
            method,
            path: path_of(method, head.path.unwrap_or_default())?,
            accept_nostr: false,
            to_web_socket: false,
            connection_upgrade: false,
            key: None,
            web_socket_version: None,
            deflate: None,
        };
        let (mut host, mut length) = (None, None);
        for field in head.headers.iter() {
            let value = field.value.trim_ascii();
            match field.name.to_ascii_lowercase().as_str() {
                "host" => once(&mut host, value, "a request names one host")?,
                "accept" => parts.accept_nostr |= accepts(value, "application/nostr+json"),
                "upgrade" => parts.to_web_socket |= lists(value, "websocket"),
                "connection" => parts.connection_upgrade |= lists(value, "upgrade"),
                "sec-websocket-key" => once(&mut parts.key, value, "a handshake has one key")?,
                "sec-websocket-extensions" => {
                    let offer = Offer::first(value)
                        .map_err(|_| HttpError::Malformed("malformed WebSocket extensions"))?;
                    parts.deflate = parts.deflate.or(offer);
                }
                "sec-websocket-version" => {
                    once(&mut parts.web_socket_version, value, "a handshake has one version")?;
                }
                "content-length" => once(&mut length, value, "a request has one length")?,
                "transfer-encoding" => {
                    return Err(HttpError::Malformed("a request here has no body"));
                }
                _ => {}
            }
        }
        if !host.is_some_and(is_host) {
            return Err(HttpError::Malformed("a request names one host"));
        }
        if length.is_some_and(|length| length != b"0") {
            return Err(HttpError::Malformed("a request here has no body"));
        }
        Ok(parts)
    }

    fn decide(&self, endpoint: &str) -> Result<Request, HttpError> {
        if !matches!(self.method, "GET" | "HEAD" | "OPTIONS") {
            return Err(HttpError::Method);
        }
        if self.path.is_some_and(|path| path != endpoint) {
            return Err(HttpError::NotFound);
        }
        if self.method == "OPTIONS" {
            return Ok(Request::Preflight);
        }
        if !self.to_web_socket && self.key.is_none() {
            let body = self.method == "GET";
            return Ok(match self.accept_nostr {
                true => Request::Document { body },
                false => Request::Page { body },
            });
        }
        if self.method != "GET" {
            return Err(HttpError::Malformed("a handshake is a GET"));
        }
        self.handshake()
    }

    /// RFC 6455 §4.2.
    fn handshake(&self) -> Result<Request, HttpError> {
        if self.web_socket_version.is_some_and(|version| version != b"13") {
            return Err(HttpError::WebSocketVersion);
        }
        let asked = self.to_web_socket && self.connection_upgrade;
        match self.key {
            Some(key) if asked && self.web_socket_version.is_some() && is_key(key) => {
                let accept = derive_accept_key(key);
                let response = format!(
                    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                     Upgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
                );
                let response = response.into_bytes();
                Ok(Request::WebSocket { response, deflate: self.deflate })
            }
            _ => Err(HttpError::Malformed("malformed WebSocket handshake")),
        }
    }
}

/// Notes the value of a field that may stand in a request once.
fn once<'a>(
    slot: &mut Option<&'a [u8]>,
    value: &'a [u8],
    rule: &'static str,
) -> Result<(), HttpError> {
    match slot.replace(value) {
        Some(_) => Err(HttpError::Malformed(rule)),
        None => Ok(()),
    }
}

/// The items of a list (RFC 9110 §5.6.1).
fn items(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// Whether a list names this token, in any case.
fn lists(value: &[u8], token: &str) -> bool {
    items(value).any(|item| item.eq_ignore_ascii_case(token.as_bytes()))
}

/// Whether a list names this media type, in any case and with any parameters (RFC 9110 §12.5.1).
fn accepts(value: &[u8], media_type: &str) -> bool {
    let mut types = items(value).filter_map(|item| item.split(|byte| *byte == b';').next());
    types.any(|name| name.trim_ascii().eq_ignore_ascii_case(media_type.as_bytes()))
}

/// 16 bytes in base64 (RFC 6455 §4.1).
fn is_key(key: &[u8]) -> bool {
    let digits = key.strip_suffix(b"==").unwrap_or_default();
    digits.len() == 22
        && digits.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/'))
}

/// The characters of `host[:port]` (RFC 3986 §3.2.2); no user, and no comma that would make it a list.
fn is_host(value: &[u8]) -> bool {
    let fits = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+;=%:[]".contains(byte);
    !value.is_empty() && value.iter().all(fits)
}

/// The path of a request target without its query: in origin or absolute form, or `None` for the whole
/// server (RFC 9112 §3.2). The authority of an absolute form takes the place of `Host` and like it is
/// not compared with anything.
fn path_of<'a>(method: &str, target: &'a str) -> Result<Option<&'a str>, HttpError> {
    const MALFORMED: HttpError = HttpError::Malformed("malformed request target");
    if target.contains('#') {
        return Err(MALFORMED);
    }
    if target == "*" && method == "OPTIONS" {
        return Ok(None);
    }
    let target = target.split('?').next().unwrap_or_default();
    if target.starts_with('/') {
        return Ok(Some(target));
    }
    let (scheme, rest) = target.split_once("://").ok_or(MALFORMED)?;
    let known = ["http", "https", "ws", "wss"].iter().any(|name| scheme.eq_ignore_ascii_case(name));
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if !known || !is_host(authority.as_bytes()) {
        return Err(MALFORMED);
    }
    Ok(Some(if path.is_empty() { "/" } else { path }))
}

/// Any page may read what a relay says of itself (NIP-11).
const CORS: &str = "Access-Control-Allow-Origin: *\r\n\
    Access-Control-Allow-Headers: *\r\n\
    Access-Control-Allow-Methods: GET, HEAD, OPTIONS\r\n";

/// A response with a body; the connection closes after it.
#[must_use]
pub fn respond(status: &str, content_type: &str, extra: &str, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\
         Connection: close\r\n{CORS}{extra}\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// The answer to a CORS preflight.
#[must_use]
pub fn preflight() -> Vec<u8> {
    format!("HTTP/1.1 204 No Content\r\nConnection: close\r\n{CORS}\r\n").into_bytes()
}

#[cfg(test)]
mod tests;
