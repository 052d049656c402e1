//! Request heads, good and bad, in any pieces.

use proptest::prelude::*;

use super::*;

const UPGRADE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";

fn head(line: &str, fields: &str) -> Vec<u8> {
    format!("{line}\r\nHost: relay.example\r\n{fields}\r\n").into_bytes()
}

fn handshake_with(from: &str, to: &str) -> Vec<u8> {
    assert!(UPGRADE.contains(from));
    head("GET / HTTP/1.1", &UPGRADE.replace(from, to))
}

/// What became of a request; the response of a handshake aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    WebSocket,
    Document { body: bool },
    Page { body: bool },
    Preflight,
    Refused(u16),
    Incomplete,
}

fn status(response: &[u8]) -> u16 {
    let text = std::str::from_utf8(response).expect("a response is text");
    let status = text.strip_prefix("HTTP/1.1 ").expect("a response says its version");
    status[..3].parse().expect("a status is a number")
}

/// How many fields let any page read a response.
fn cors(response: &[u8]) -> usize {
    String::from_utf8_lossy(response).matches("\r\nAccess-Control-Allow-").count()
}

fn see(result: &Result<Option<(Request, usize)>, HttpError>) -> Seen {
    match result {
        Ok(None) => Seen::Incomplete,
        Ok(Some((Request::WebSocket { response, .. }, _))) => {
            assert_eq!(status(response), 101);
            Seen::WebSocket
        }
        Ok(Some((Request::Document { body }, _))) => Seen::Document { body: *body },
        Ok(Some((Request::Page { body }, _))) => Seen::Page { body: *body },
        Ok(Some((Request::Preflight, _))) => Seen::Preflight,
        Err(error) => {
            let response = error.response();
            assert_eq!(cors(&response), 3, "any page may read a refusal");
            Seen::Refused(status(&response))
        }
    }
}

fn read(bytes: &[u8]) -> Seen {
    see(&read_request(bytes, "/"))
}

#[test]
fn a_request_is_what_its_head_says() {
    use Seen::{Document, Page, Preflight, WebSocket};
    const NOSTR: Seen = Document { body: true };
    let nostr = "Accept: application/nostr+json\r\n";
    let mixed = "accept: text/html, Application/Nostr+JSON;q=0.9\r\n";
    let cases = [
        (head("GET / HTTP/1.1", UPGRADE), WebSocket),
        (head("GET /?x=/y HTTP/1.1", UPGRADE), WebSocket),
        (head("GET / HTTP/1.1", &format!("{nostr}{UPGRADE}")), WebSocket),
        (
            head(
                "GET / HTTP/1.1",
                &UPGRADE
                    .to_ascii_lowercase()
                    .replace("dghlihnhbxbszsbub25jzq==", "dGhlIHNhbXBsZSBub25jZQ=="),
            ),
            WebSocket,
        ),
        (handshake_with("Connection: Upgrade", "Connection: keep-alive, upgrade"), WebSocket),
        (handshake_with("Connection: Upgrade", "Connection: a\r\nConnection: upgrade"), WebSocket),
        (handshake_with("Connection: Upgrade", "Connection:Upgrade ,\ta"), WebSocket),
        (handshake_with("Upgrade: websocket", "Upgrade: h2c, WebSocket"), WebSocket),
        (handshake_with("Upgrade: websocket", "Upgrade: h2c\r\nUpgrade: websocket"), WebSocket),
        (head("GET http://relay.example/ HTTP/1.1", UPGRADE), WebSocket),
        (head("GET ws://relay.example HTTP/1.1", UPGRADE), WebSocket),
        (head("GET http://relay.example?a/b HTTP/1.1", ""), Page { body: true }),
        (head("GET WSS://[::1]:443/?x HTTP/1.1", UPGRADE), WebSocket),
        (head("GET HTTPS://other HTTP/1.1", ""), Page { body: true }),
        (head("OPTIONS * HTTP/1.1", ""), Preflight),
        // A server need not follow an offer to speak something else.
        (head("GET / HTTP/1.1", "Connection: Upgrade\r\nUpgrade: h2c\r\n"), Page { body: true }),
        (head("GET / HTTP/1.1", "Upgrade: notwebsocket\r\n"), Page { body: true }),
        (head("GET / HTTP/1.1", "Upgrade: websocket2, xwebsocket\r\n"), Page { body: true }),
        (head("GET / HTTP/1.1", "Accept: x/application/nostr+json\r\n"), Page { body: true }),
        (head("GET / HTTP/1.1", "Accept: application/nostr+jsonx\r\n"), Page { body: true }),
        (head("GET / HTTP/1.1", "Accept: a/b\r\nAccept: application/nostr+json \r\n"), NOSTR),
        (head("GET / HTTP/1.1", ""), Page { body: true }),
        (head("GET / HTTP/1.1", "Content-Length: 0\r\n"), Page { body: true }),
        (head("HEAD / HTTP/1.1", ""), Page { body: false }),
        (head("GET / HTTP/1.1", nostr), Document { body: true }),
        (head("GET / HTTP/1.1", mixed), Document { body: true }),
        (head("HEAD / HTTP/1.1", nostr), Document { body: false }),
        (head("OPTIONS / HTTP/1.1", ""), Preflight),
        (head("OPTIONS / HTTP/1.1", "Access-Control-Request-Method: GET\r\n"), Preflight),
        (b"\r\nGET / HTTP/1.1\r\nHost: r\r\n\r\n".to_vec(), Page { body: true }),
    ];
    for (bytes, expected) in cases {
        assert_eq!(read(&bytes), expected, "{}", String::from_utf8_lossy(&bytes));
        let used = read_request(&bytes, "/").unwrap().unwrap().1;
        assert_eq!(used, bytes.len());
        let more = [&bytes[..], b"\x81\x80"].concat();
        assert_eq!(read_request(&more, "/").unwrap().unwrap().1, used, "what follows is not its");
    }
}

#[test]
fn each_bad_head_has_its_status() {
    let long = format!("X: {}\r\n", "x".repeat(HEAD_BYTES_MAX));
    let many = "X: y\r\n".repeat(64);
    let cases = [
        (head("GET / HTTP/1.0", ""), 505),
        (head("GET / HTTP/1.0", UPGRADE), 505),
        (head("GET / HTTP/2.0", ""), 505),
        (head("GET /", ""), 400),
        (head("GET", ""), 400),
        (head("GE T / HTTP/1.1", ""), 400),
        (head("GET /a b HTTP/1.1", ""), 400),
        (head("GET / HTTP/2.0 x", ""), 505),
        (head("GET /\u{1} HTTP/1.1", ""), 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), 400),
        (head("GET / HTTP/1.1", "No colon\r\n"), 400),
        (head("GET / HTTP/1.1", "Space : x\r\n"), 400),
        (head("GET / HTTP/1.1", "X: \0\r\n"), 400),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), 400),
        (head("GET / HTTP/1.1", "Host: other\r\n"), 400),
        (head("GET relay HTTP/1.1", ""), 400),
        (head("GET * HTTP/1.1", ""), 400),
        (head("GET ftp://relay.example/ HTTP/1.1", ""), 400),
        (head("GET http:/// HTTP/1.1", ""), 400),
        (head("GET http://user@relay.example/ HTTP/1.1", ""), 400),
        (head("GET /#part HTTP/1.1", ""), 400),
        (head("GET /?#part HTTP/1.1", ""), 400),
        (head("OPTIONS *x HTTP/1.1", ""), 400),
        (b"GET / HTTP/1.1\nHost: r\n\n".to_vec(), 400),
        (b"GET / HTTP/1.1\r\nHost: r\n\r\n".to_vec(), 400),
        (b"GET / HTTP/1.1\r\nHost: r\r\n\n".to_vec(), 400),
        (b"\nGET / HTTP/1.1\r\nHost: r\r\n\r\n".to_vec(), 400),
        (b"GET / HTTP/1.1\r\nHost:\r\n\r\n".to_vec(), 400),
        (b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n".to_vec(), 400),
        (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n".to_vec(), 400),
        (b"GET / HTTP/1.1\r\nHost: user@a\r\n\r\n".to_vec(), 400),
        (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n".to_vec(), 400),
        (head("GET / HTTP/1.1", "X: a\r\n b\r\n"), 400),
        (head("GET / HTTP/1.1", "Content-Length: 0\r\nContent-Length: 0\r\n"), 400),
        (head("GET / HTTP/1.1", "Content-Length: 0, 0\r\n"), 400),
        (head("GET / HTTP/1.1", "Content-Length: 5\r\n"), 400),
        (head("GET / HTTP/1.1", "Content-Length: 0\r\nContent-Length: 1\r\n"), 400),
        (head("GET / HTTP/1.1", "Transfer-Encoding: chunked\r\n"), 400),
        (head("GET / HTTP/1.1", &format!("{UPGRADE}Content-Length: 5\r\n")), 400),
        (head("POST / HTTP/1.1", ""), 405),
        (head("CONNECT / HTTP/1.1", ""), 405),
        (head("get / HTTP/1.1", ""), 405),
        (head("GET /x HTTP/1.1", ""), 404),
        (head("GET // HTTP/1.1", UPGRADE), 404),
        (head("GET http://relay.example/x HTTP/1.1", UPGRADE), 404),
        (head("GET / HTTP/1.1", &long), 431),
        (head("GET / HTTP/1.1", &many), 431),
        (head("HEAD / HTTP/1.1", UPGRADE), 400),
        (handshake_with("Version: 13", "Version: 8"), 426),
        (handshake_with("Version: 13", "Version: x"), 426),
        (handshake_with("Sec-WebSocket-Version: 13\r\n", ""), 400),
        (handshake_with("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", ""), 400),
        (head("GET / HTTP/1.1", &format!("{UPGRADE}Sec-WebSocket-Key: again\r\n")), 400),
        (handshake_with("Upgrade: websocket\r\n", ""), 400),
        (handshake_with("websocket", "h2c, websocket2"), 400),
        (handshake_with("Connection: Upgrade\r\n", ""), 400),
        (handshake_with("Connection: Upgrade", "Connection: close"), 400),
        (handshake_with("Connection: Upgrade", "Connection: keep-alive upgrade"), 400),
        (handshake_with("Connection: Upgrade", "Connection: notupgrade, upgrade2"), 400),
        (handshake_with("Upgrade: websocket", "Upgrade: notwebsocket"), 400),
        (handshake_with("Upgrade: websocket", "Upgrade: websocket/13"), 400),
        (handshake_with("Version: 13", "Version: 13\r\nSec-WebSocket-Version: 13"), 400),
        (handshake_with("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ=_"), 400),
        (handshake_with("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZ==="), 400),
        (handshake_with("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQAA"), 400),
        (handshake_with("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQhIQ=="), 400),
        (handshake_with("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQAAAA=="), 400),
    ];
    for (bytes, expected) in cases {
        let seen = read(&bytes);
        assert_eq!(seen, Seen::Refused(expected), "{}", String::from_utf8_lossy(&bytes));
    }
    assert_eq!(status(&HttpError::Timeout.response()), 408);
    assert_eq!(status(&HttpError::Full.response()), 503);
    assert_eq!(status(&HttpError::PerIp.response()), 429);
}

#[test]
fn the_answer_to_the_key_is_the_one_of_the_rfc() {
    let (request, _) = read_request(&head("GET / HTTP/1.1", UPGRADE), "/").unwrap().unwrap();
    let Request::WebSocket { response, .. } = request else { panic!("a handshake") };
    let text = String::from_utf8(response).unwrap().to_ascii_lowercase();
    // RFC 6455 §1.3.
    assert!(text.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n"), "{text}");
    assert!(text.contains("upgrade: websocket\r\n") && text.contains("connection: upgrade\r\n"));
    assert!(text.ends_with("\r\n\r\n") && !text.contains("extensions"));
}

#[test]
fn the_endpoint_is_the_one_path_served() {
    for (target, found) in [("/relay", true), ("/relay?x", true), ("/", false), ("/relay/", false)]
    {
        let bytes = head(&format!("GET {target} HTTP/1.1"), UPGRADE);
        assert_eq!(read_request(&bytes, "/relay").is_ok(), found, "{target}");
    }
}

#[test]
fn a_head_fits_up_to_its_last_byte() {
    let frame = head("GET / HTTP/1.1", "X: \r\n").len();
    for (size, seen) in
        [(HEAD_BYTES_MAX, Seen::Page { body: true }), (HEAD_BYTES_MAX + 1, Seen::Refused(431))]
    {
        let bytes = head("GET / HTTP/1.1", &format!("X: {}\r\n", "x".repeat(size - frame)));
        assert_eq!((bytes.len(), read(&bytes)), (size, seen));
    }
    assert_eq!(read(&b"GET / HTTP/1.1\r\nX: "[..]), Seen::Incomplete);
}

#[test]
fn responses_say_their_length_and_let_any_page_read() {
    let text = String::from_utf8(respond("200 OK", "text/plain", "X: y\r\n", "häh")).unwrap();
    for part in [
        "HTTP/1.1 200 OK\r\n",
        "Content-Length: 4\r\n",
        "Connection: close\r\n",
        "X: y\r\n",
        "Access-Control-Allow-Origin: *\r\n",
        "Access-Control-Allow-Headers: *\r\n",
        "Access-Control-Allow-Methods: GET, HEAD, OPTIONS\r\n",
        "\r\n\r\nhäh",
    ] {
        assert!(text.contains(part), "{part}");
        assert!(
            part.starts_with("HTTP") || !part.starts_with("Access") || {
                String::from_utf8(preflight()).unwrap().contains(part)
            }
        );
    }
    let allowed = String::from_utf8(HttpError::Method.response()).unwrap();
    assert!(allowed.contains("Allow: GET, HEAD, OPTIONS\r\n"));
    let version = String::from_utf8(HttpError::WebSocketVersion.response()).unwrap();
    assert!(version.contains("Sec-WebSocket-Version: 13\r\n"));
}

#[test]
fn fields_are_found_by_name_in_order() {
    let bytes = head("GET / HTTP/1.1", "X-A: 1\r\nx-b: 2\r\nx-a:3, 4 \r\nX-AA: 5\r\n");
    assert_eq!(fields(&bytes, "X-a"), [&b"1"[..], b"3, 4"]);
    assert_eq!(fields(&bytes[..bytes.len() - 1], "x-a"), [b""; 0]);
}

/// As a connection does: the bytes so far, after each piece, until something is decided.
fn read_in_pieces(bytes: &[u8], cuts: &[usize]) -> Result<Option<(Request, usize)>, HttpError> {
    for cut in cuts {
        match read_request(&bytes[..*cut], "/") {
            Ok(None) => {}
            decided => return decided,
        }
    }
    read_request(bytes, "/")
}

fn any_head() -> impl Strategy<Value = Vec<u8>> {
    let line = prop::sample::select(vec![
        "GET / HTTP/1.1",
        "HEAD / HTTP/1.1",
        "OPTIONS / HTTP/1.1",
        "POST / HTTP/1.1",
        "GET /x HTTP/1.1",
        "GET http://r/ HTTP/1.1",
        "GET / HTTP/1.0",
        "GET / HTTP/2.0",
        "GE T / HTTP/1.1",
        "GET / HTTP/2.0 x",
        "GET",
        "",
        "\u{16}",
    ]);
    let field = prop::sample::select(vec![
        "Host: r",
        "Upgrade: websocket",
        "Upgrade: notwebsocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Version: 12",
        "Accept: application/nostr+json",
        "Content-Length: 1",
        "X: y",
        "broken",
        "é: x",
        "Y: \u{e9}",
        " folded",
    ]);
    let end = prop::sample::select(vec!["\r\n", "\n"]);
    let filler = prop_oneof![9 => Just(0_usize), 1 => 8_000_usize..8_300];
    let fields = prop_oneof![9 => 0..8_usize, 1 => 60..70_usize];
    (line, fields, end, filler, any::<bool>()).prop_flat_map(
        move |(line, count, end, filler, complete)| {
            let fields = prop::collection::vec(field.clone(), count);
            fields.prop_map(move |fields| {
                let mut text = format!("{line}{end}");
                fields.iter().for_each(|field| text += &format!("{field}{end}"));
                if filler > 0 {
                    text += &format!("Z: {}{end}", "z".repeat(filler));
                }
                if complete {
                    text += end;
                }
                text.into_bytes()
            })
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn cuts_change_nothing(
        bytes in any_head(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.sort_unstable();
        prop_assert_eq!(read_in_pieces(&bytes, &cuts), read_request(&bytes, "/"));
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), at: prop::sample::Index) {
        let _ = read_request(&bytes, "/");
        let mut good = head("GET / HTTP/1.1", UPGRADE);
        let at = at.index(good.len());
        good.splice(at..at, bytes);
        let _ = read_request(&good, "/");
    }
}
