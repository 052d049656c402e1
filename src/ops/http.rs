//! The metrics listener's HTTP: one request a connection, answered and closed.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longest request head.
const HEAD_BYTES_MAX: usize = 8 << 10;
/// How long a request may take to arrive, and its answer to be taken.
const PATIENCE: Duration = Duration::from_secs(5);
/// What Prometheus asks for by preference.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Where the relay is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It accepts clients.
    Ready,
    /// It accepts clients, and cannot store their events. Why.
    Failing(&'static str),
    /// It does not accept clients yet, or any more.
    NotReady,
}

/// Answers one connection and closes it. A peer that is too slow or gone is let go.
pub(super) async fn serve(mut stream: TcpStream, life: Life, scrape: impl FnOnce() -> String) {
    let exchange = async {
        let response = match read_head(&mut stream).await? {
            Some(head) => answer(&head, life, scrape),
            None => response("431 Request Header Fields Too Large", "text/plain", "", true),
        };
        stream.write_all(&response).await?;
        stream.shutdown().await?;
        // Closing with bytes unread resets the connection, and the answer with it.
        let mut rest = [0; 1024];
        while stream.read(&mut rest).await? > 0 {}
        std::io::Result::Ok(())
    };
    let _ = timeout(PATIENCE, exchange).await;
}

/// Everything up to the end of the head; `None` when it is too long.
async fn read_head(stream: &mut TcpStream) -> std::io::Result<Option<Vec<u8>>> {
    let mut head = Vec::with_capacity(1024);
    loop {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(Some(head));
        }
        if head.windows(4).any(|window| window == b"\r\n\r\n") {
            return Ok(Some(head));
        }
        if head.len() >= HEAD_BYTES_MAX {
            return Ok(None);
        }
    }
}

/// The response to a request head.
fn answer(head: &[u8], life: Life, scrape: impl FnOnce() -> String) -> Vec<u8> {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut fields);
    let parsed = request.parse(head);
    let (Ok(httparse::Status::Complete(_)), Some(method), Some(path)) =
        (parsed, request.method, request.path)
    else {
        return response("400 Bad Request", "text/plain", "malformed request\n", true);
    };
    let body = match method {
        "GET" => true,
        "HEAD" => false,
        _ => return response("405 Method Not Allowed", "text/plain", "GET or HEAD\n", true),
    };
    let path = path.split('?').next().unwrap_or_default();
    match (path, life) {
        ("/metrics", _) => response("200 OK", OPEN_METRICS, &scrape(), body),
        ("/health", _) => response("200 OK", "text/plain", "healthy\n", body),
        ("/ready", Life::Ready) => response("200 OK", "text/plain", "ready\n", body),
        ("/ready", Life::Failing(why)) => {
            let text = format!("not ready: events are not stored: {why}\n");
            response("503 Service Unavailable", "text/plain", &text, body)
        }
        ("/ready", Life::NotReady) => {
            response("503 Service Unavailable", "text/plain", "not ready\n", body)
        }
        _ => {
            let paths = "there are /metrics, /health and /ready\n";
            response("404 Not Found", "text/plain", paths, body)
        }
    }
}

fn response(status: &str, content_type: &str, text: &str, body: bool) -> Vec<u8> {
    let allow = if status.starts_with("405") { "Allow: GET, HEAD\r\n" } else { "" };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n{allow}\
         Cache-Control: no-store\r\nConnection: close\r\n\r\n{}",
        text.len(),
        if body { text } else { "" },
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(head: &str, life: Life) -> String {
        String::from_utf8(answer(head.as_bytes(), life, || "metrics\n".into())).unwrap()
    }

    #[test]
    fn paths_and_methods() {
        let metrics = ask("GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n", Life::Ready);
        assert!(metrics.starts_with("HTTP/1.1 200 OK\r\n"), "{metrics}");
        assert!(metrics.contains("openmetrics-text") && metrics.ends_with("\r\n\r\nmetrics\n"));
        let head = ask("HEAD /metrics HTTP/1.1\r\nHost: a\r\n\r\n", Life::Ready);
        assert!(head.contains("Content-Length: 8\r\n") && head.ends_with("\r\n\r\n"));
        for (request, life, status) in [
            ("GET /health HTTP/1.1\r\n\r\n", Life::NotReady, "200"),
            ("GET /ready HTTP/1.0\r\n\r\n", Life::Ready, "200"),
            ("GET /ready HTTP/1.1\r\n\r\n", Life::NotReady, "503"),
            ("GET /ready HTTP/1.1\r\n\r\n", Life::Failing("why"), "503"),
            ("GET / HTTP/1.1\r\n\r\n", Life::Ready, "404"),
            ("POST /metrics HTTP/1.1\r\n\r\n", Life::Ready, "405"),
            ("GET /metrics HTTP/1.1\r\n", Life::Ready, "400"),
            ("\0\r\n\r\n", Life::Ready, "400"),
            ("", Life::Ready, "400"),
        ] {
            let answer = ask(request, life);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request:?}: {answer}");
        }
    }
}
