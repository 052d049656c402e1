//! What a relay says of itself: its NIP-11 document.

use super::Target;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;
use tungstenite::http::Uri;

const DOCUMENT_BYTES_MAX: u64 = 256 << 10;
const PATIENCE: Duration = Duration::from_secs(2);

/// Its `name`, `software`, `version` and `limitation`; none if it does not answer, for whatever reason.
pub fn ask(target: &Target) -> Option<Value> {
    let document = fetch(target)?;
    let fields = ["name", "software", "version", "limitation"];
    Some(fields.map(|field| (field, document[field].clone())).into_iter().collect())
}

fn fetch(target: &Target) -> Option<Value> {
    let uri = target.url.parse::<Uri>().ok()?;
    let mut stream = TcpStream::connect_timeout(&target.address, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.set_write_timeout(Some(PATIENCE)).ok()?;
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nAccept: application/nostr+json\r\nConnection: close\r\n\r\n",
        uri.path(),
        target.address
    );
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    // A server that keeps the connection open has answered all the same.
    stream.take(DOCUMENT_BYTES_MAX).read_to_end(&mut answer).ok();
    document(&answer)
}

/// The body is whatever lies between the outermost braces, so that a body in one chunk is read as well.
fn document(answer: &[u8]) -> Option<Value> {
    let from = answer.iter().position(|byte| *byte == b'{')?;
    let to = answer.iter().rposition(|byte| *byte == b'}')?;
    serde_json::from_slice(answer.get(from..=to)?).ok().filter(Value::is_object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_document_is_found_plain_or_in_one_chunk() {
        let expected = Some(json!({"name": "x", "limitation": {}}));
        for answer in [
            "HTTP/1.1 200 OK\r\nContent-Length: 32\r\n\r\n{\"name\":\"x\",\"limitation\":{}}",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1c\r\n{\"name\":\"x\",\"limitation\":{}}\r\n0\r\n\r\n",
        ] {
            assert_eq!(document(answer.as_bytes()), expected);
        }
        for answer in ["", "HTTP/1.1 404 Not Found\r\n\r\nno}{", "<html>{}}</html>"] {
            assert_eq!(document(answer.as_bytes()), None);
        }
    }
}
