//! HTTP requests against RFC 9112 and RFC 6455 §4.

use super::{Case, Expected, request};
use crate::support::raw::HANDSHAKE;

fn status(name: &str, bytes: impl Into<Vec<u8>>, status: u16) -> Case {
    let parts = [&CORS[..], &["Connection: close\r\n"]].concat();
    request(name, bytes, Expected::Http(status, parts))
}

/// The handshake with one thing changed.
fn changed(name: &str, from: &str, to: &str, code: u16) -> Case {
    assert!(HANDSHAKE.contains(from), "{from}");
    status(name, HANDSHAKE.replacen(from, to, 1), code)
}

/// The handshake with one thing changed that is still right.
fn still_open(name: &str, from: &str, to: &str) -> Case {
    assert!(HANDSHAKE.contains(from), "{from}");
    request(name, HANDSHAKE.replacen(from, to, 1), Expected::Open)
}

const CORS: [&str; 3] = [
    "Access-Control-Allow-Origin: *\r\n",
    "Access-Control-Allow-Headers:",
    "Access-Control-Allow-Methods:",
];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(heads());
    cases.extend(handshakes());
    cases.extend(documents());
    cases
}

fn heads() -> Vec<Case> {
    let host = "Host: localhost\r\n";
    let field = |field: &str| HANDSHAKE.replacen(host, &format!("{host}{field}\r\n"), 1);
    let get = |line: &str| format!("{line}\r\n{host}\r\n");
    vec![
        status("rubbish", "hello\r\n\r\n", 400),
        status("NULs", "\0\0\0\0", 400),
        status("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), 400),
        status("SSH", "SSH-2.0-OpenSSH_9.2\r\n\r\n", 400),
        status("a Nostr message without HTTP", "[\"REQ\",\"s\",{}]\r\n\r\n", 400),
        status("HTTP/1.0", get("GET / HTTP/1.0"), 505),
        status("HTTP/0.9", "GET /\r\n\r\n", 400),
        status("HTTP/1.2", get("GET / HTTP/1.2"), 505),
        status("HTTP/3.0", get("GET / HTTP/3.0"), 505),
        status("the HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        status("POST", get("POST / HTTP/1.1"), 405),
        status("PUT", get("PUT / HTTP/1.1"), 405),
        status("DELETE", get("DELETE / HTTP/1.1"), 405),
        status("CONNECT", get("CONNECT localhost:80 HTTP/1.1"), 400),
        status("TRACE", get("TRACE / HTTP/1.1"), 405),
        status("lower-case method", get("get / HTTP/1.1"), 405),
        status("no target", get("GET  HTTP/1.1"), 400),
        status("relative target", get("GET index HTTP/1.1"), 400),
        status("a space in the target", get("GET /a b HTTP/1.1"), 400),
        status("another path", get("GET /other HTTP/1.1"), 404),
        changed("the endpoint of conformance tests", "GET / ", "GET /echo ", 404),
        status("a path with dots", get("GET /../etc/passwd HTTP/1.1"), 404),
        changed("a handshake elsewhere", "GET / ", "GET /other ", 404),
        changed("no host", host, "", 400),
        changed("two hosts", host, "Host: localhost\r\nHost: localhost\r\n", 400),
        status("a folded field", field("X-A: b\r\n c"), 400),
        status("a space before the colon", field("X-A : b"), 400),
        status("a space before the name", field(" X-A: b"), 400),
        status("no colon", field("X-A"), 400),
        status("an empty name", field(": b"), 400),
        status("a NUL in a value", field("X-A: \0"), 400),
        status("a control character in a name", field("X\u{1}A: b"), 400),
        status("bare line feeds", "GET / HTTP/1.1\nHost: localhost\n\n", 400),
        status("one bare line feed", field("X-A: b\nX-B: c"), 400),
        changed("an empty host", host, "Host:\r\n", 400),
        changed("a host that is a list", host, "Host: a, b\r\n", 400),
        status("two lengths", field("Content-Length: 0\r\nContent-Length: 0"), 400),
        status("a bare carriage return", field("X-A: b\rX-B: c"), 400),
        status("a body", field("Content-Length: 5"), 400),
        status("a length that is no number", field("Content-Length: x"), 400),
        status("a chunked body", field("Transfer-Encoding: chunked"), 400),
        status("a long field", field(&format!("X-A: {}", "a".repeat(9_000))), 431),
        status("a long target", get(&format!("GET /{} HTTP/1.1", "a".repeat(9_000))), 431),
        status("an endless head", "GET / HTTP/1.1\r\nX-A: ".to_owned() + &"a".repeat(8_200), 431),
        status(
            "65 fields",
            field(&(0..65).map(|n| format!("X-{n}: a")).collect::<Vec<_>>().join("\r\n")),
            431,
        ),
        status("a head that never ends", "GET / HTTP/1.1\r\nHost: local", 408),
        status("nothing at all", "", 408),
        request("a field in Latin 1", field("X-A: caf\u{e9}"), Expected::Open),
        request("an empty field", field("X-A:"), Expected::Open),
    ]
}

fn handshakes() -> Vec<Case> {
    let upgrade = "Upgrade: websocket\r\n";
    let connection = "Connection: Upgrade\r\n";
    let version = "Sec-WebSocket-Version: 13\r\n";
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    vec![
        changed("no Upgrade", upgrade, "", 400),
        changed("Upgrade to something else", upgrade, "Upgrade: h2c\r\n", 400),
        changed("Upgrade to nothing", upgrade, "Upgrade:\r\n", 400),
        changed("Upgrade to nearly that", upgrade, "Upgrade: websockets\r\n", 400),
        changed("Upgrade to what ends so", upgrade, "Upgrade: notwebsocket\r\n", 400),
        changed("no Connection", connection, "", 400),
        changed("Connection: close", connection, "Connection: close\r\n", 400),
        changed("Connection: keep-alive", connection, "Connection: keep-alive\r\n", 400),
        changed("no key", key, "", 400),
        changed("an empty key", key, "Sec-WebSocket-Key:\r\n", 400),
        changed("a short key", key, "Sec-WebSocket-Key: c2hvcnQ=\r\n", 400),
        changed("a key that is no base64", key, "Sec-WebSocket-Key: !!!!\r\n", 400),
        changed("two keys", key, &key.repeat(2), 400),
        changed("no version", version, "", 400),
        changed("version 8", version, "Sec-WebSocket-Version: 8\r\n", 426),
        changed("version 0", version, "Sec-WebSocket-Version: 0\r\n", 426),
        changed("version 130", version, "Sec-WebSocket-Version: 130\r\n", 426),
        changed("version 13 and 8", version, "Sec-WebSocket-Version: 13, 8\r\n", 426),
        changed("HEAD with an upgrade", "GET", "HEAD", 400),
        still_open("names in lower case", upgrade, "upgrade: websocket\r\n"),
        still_open("values in upper case", upgrade, "Upgrade: WebSocket\r\n"),
        still_open("several connection options", connection, "Connection: keep-alive, Upgrade\r\n"),
        still_open(
            "several connection fields",
            connection,
            &format!("Connection: a\r\n{connection}"),
        ),
        still_open("several upgrades", upgrade, "Upgrade: h2c, websocket\r\n"),
        still_open(
            "an extension nobody knows",
            key,
            &format!("{key}Sec-WebSocket-Extensions: x-y; z\r\n"),
        ),
        still_open("an origin", key, &format!("{key}Origin: https://example.com\r\n")),
        still_open("a query", "GET / ", "GET /?x=1 "),
        still_open("absolute form", "GET / ", "GET http://localhost/ "),
        still_open(
            "Accept of the document too",
            key,
            &format!("{key}Accept: application/nostr+json\r\n"),
        ),
    ]
}

/// What is asked for rightly but is no WebSocket.
fn documents() -> Vec<Case> {
    let with = |method: &str, accept: &str| {
        format!("{method} / HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n")
    };
    let document = "application/nostr+json";
    let mut parts = CORS.to_vec();
    parts.extend([
        "Content-Type: application/nostr+json",
        "\"max_message_length\":",
        "\"limitation\"",
    ]);
    let head = [&CORS[..], &["Content-Type: application/nostr+json"]].concat();
    vec![
        request("the document", with("GET", document), Expected::Http(200, parts.clone())),
        request(
            "the document among others",
            with("GET", "text/html, application/nostr+json;q=0.9"),
            Expected::Http(200, parts),
        ),
        request("the document's head", with("HEAD", document), Expected::Http(200, head)),
        request("the page", with("GET", "text/html"), Expected::Http(200, vec!["text/html", "<"])),
        request("the page, to anyone", with("GET", "*/*"), Expected::Http(200, vec!["text/html"])),
        request("a preflight", with("OPTIONS", "*/*"), Expected::Http(204, CORS.to_vec())),
    ]
}
