//! The one HTTP request a connection begins with (RFC 9112), and the answers that are not a WebSocket.

use tungstenite::handshake::server::{Request as Handshake, create_response, write_response};

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
    let request = Head::new(&head)?;
    Ok(Some((request.decide(&window[..used], endpoint)?, used)))
}

/// Whether the request line is a method, a target and something of HTTP: another version, then, and
/// not a line that is malformed elsewhere.
fn names_a_version(head: &[u8]) -> bool {
    let line = head.trim_ascii_start().split(|byte| *byte == b'\r' || *byte == b'\n').next();
    let mut parts = line.unwrap_or_default().split(|byte| *byte == b' ');
    let version = parts.nth(2).is_some_and(|part| part.starts_with(b"HTTP/"));
    version && parts.next().is_none()
}

/// The parts of a head that decide.
struct Head<'a> {
    method: &'a str,
    path: &'a str,
    accept_nostr: bool,
    upgrade: bool,
    web_socket_version: Option<&'a [u8]>,
}

impl<'a> Head<'a> {
    fn new(head: &httparse::Request<'_, 'a>) -> Result<Self, HttpError> {
        if head.version != Some(1) {
            return Err(HttpError::HttpVersion);
        }
        let mut parts = Head {
            method: head.method.unwrap_or_default(),
            path: path_of(head.path.unwrap_or_default())?,
            accept_nostr: false,
            upgrade: false,
            web_socket_version: None,
        };
        let mut hosts = 0;
        let mut keys = 0;
        for field in head.headers.iter() {
            let value = field.value;
            match field.name.to_ascii_lowercase().as_str() {
                "host" => hosts += 1,
                "accept" => parts.accept_nostr |= contains(value, b"application/nostr+json"),
                "upgrade" => parts.upgrade |= contains(value, b"websocket"),
                "sec-websocket-key" => {
                    keys += 1;
                    parts.upgrade = true;
                }
                "sec-websocket-version" => parts.web_socket_version = Some(value),
                "content-length" if value.trim_ascii() != b"0" => {
                    return Err(HttpError::Malformed("a request here has no body"));
                }
                "transfer-encoding" => {
                    return Err(HttpError::Malformed("a request here has no body"));
                }
                _ => {}
            }
        }
        if hosts != 1 {
            return Err(HttpError::Malformed("a request names one host"));
        }
        if keys > 1 {
            return Err(HttpError::Malformed("a handshake has one key"));
        }
        Ok(parts)
    }

    fn decide(&self, bytes: &[u8], endpoint: &str) -> Result<Request, HttpError> {
        if !matches!(self.method, "GET" | "HEAD" | "OPTIONS") {
            return Err(HttpError::Method);
        }
        if self.path != endpoint {
            return Err(HttpError::NotFound);
        }
        if self.method == "OPTIONS" {
            return Ok(Request::Preflight);
        }
        if !self.upgrade {
            let body = self.method == "GET";
            return Ok(match self.accept_nostr {
                true => Request::Document { body },
                false => Request::Page { body },
            });
        }
        if self.method != "GET" {
            return Err(HttpError::Malformed("a handshake is a GET"));
        }
        if self.web_socket_version.is_some_and(|version| version.trim_ascii() != b"13") {
            return Err(HttpError::WebSocketVersion);
        }
        handshake(bytes).ok_or(HttpError::Malformed("malformed WebSocket handshake"))
    }
}

/// RFC 6455 §4.2, by the library.
fn handshake(bytes: &[u8]) -> Option<Request> {
    use tungstenite::handshake::machine::TryParse;
    let (_, request) = Handshake::try_parse(bytes).ok()??;
    let mut response = Vec::with_capacity(160);
    write_response(&mut response, &create_response(&request).ok()?).ok()?;
    Some(Request::WebSocket { response })
}

/// The path of a request target, in origin or absolute form (RFC 9112 §3.2), without its query.
fn path_of(target: &str) -> Result<&str, HttpError> {
    let target = target.split(['?', '#']).next().unwrap_or_default();
    if target.starts_with('/') {
        return Ok(target);
    }
    let rest = target
        .strip_prefix("http://")
        .or_else(|| target.strip_prefix("ws://"))
        .ok_or(HttpError::Malformed("malformed request target"))?;
    Ok(rest.find('/').map_or("/", |at| &rest[at..]))
}

fn contains(value: &[u8], wanted: &[u8]) -> bool {
    value.windows(wanted.len()).any(|window| window.eq_ignore_ascii_case(wanted))
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
