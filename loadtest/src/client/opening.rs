//! A connection that is being opened, without blocking: many at once on one thread.

use super::Connection;
use super::connection::{RESPONSE_BYTES_MAX, Target, judge_response};
use anyhow::{Context, bail, ensure};
use rustix::io::Errno;
use std::io::{ErrorKind, Read};
use tungstenite::client::IntoClientRequest;
use tungstenite::handshake::client::{Response, generate_request};
use tungstenite::handshake::machine::TryParse;

const CHUNK_BYTES: usize = 2048;

/// The TCP connect, the request, and the answer so far. Poll it as its connection: the request is what is unsent.
#[derive(Debug)]
pub struct Opening {
    pub connection: Connection,
    key: String,
    head: Vec<u8>,
}

impl Opening {
    /// Begins to connect. `ordinal` chooses the source address.
    ///
    /// # Errors
    /// No socket, or no port is left on the source address.
    pub fn start(target: &Target, ordinal: usize) -> anyhow::Result<Self> {
        let socket = target.socket(ordinal)?;
        socket.set_nonblocking(true)?;
        match socket.connect(&target.address.into()) {
            Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => {
                return Err(error).context("connecting");
            }
            _ => {}
        }
        socket.set_tcp_nodelay(true)?;
        let (request, key) = generate_request(target.url.as_str().into_client_request()?)?;
        let connection = Connection::new(socket.into(), Vec::new(), request);
        Ok(Self { connection, key, head: Vec::new() })
    }

    /// One read; true once the upgrade is answered, and [`Self::connection`] is open.
    ///
    /// # Errors
    /// A refused connection or upgrade, a wrong accept key, an answer without end.
    pub fn receive(&mut self) -> anyhow::Result<bool> {
        let mut chunk = [0; CHUNK_BYTES];
        match self.connection.stream().read(&mut chunk) {
            Ok(0) => bail!("the server hung up before it answered the upgrade"),
            Ok(received) => self.head.extend_from_slice(&chunk[..received]),
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        }
        let Some((used, response)) = Response::try_parse(&self.head)? else {
            ensure!(
                self.head.len() < RESPONSE_BYTES_MAX,
                "the upgrade response is longer than {RESPONSE_BYTES_MAX} bytes"
            );
            return Ok(false);
        };
        judge_response(&response, &self.key)?;
        let rest = self.head.split_off(used);
        self.connection.keep(rest);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Poller;
    use std::net::TcpListener;
    use std::time::Duration;

    fn open(answer: impl FnOnce(std::net::TcpStream) + Send + 'static) -> anyhow::Result<Opening> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("ws://{}", listener.local_addr()?);
        let target = Target::resolve(&url, false, Duration::from_secs(5), 1)?;
        let server = std::thread::spawn(move || answer(listener.accept().unwrap().0));
        let mut opening = Opening::start(&target, 0)?;
        let poller = Poller::new()?;
        poller.add(&mut opening.connection, 0)?;
        let mut ready = Vec::new();
        loop {
            poller.wait(Duration::from_secs(5), &mut ready)?;
            ensure!(!ready.is_empty(), "nothing happens");
            opening.connection.flush()?;
            poller.sync(&mut opening.connection, 0)?;
            if ready[0].readable && opening.receive()? {
                server.join().unwrap();
                return Ok(opening);
            }
        }
    }

    #[test]
    fn an_upgrade_is_answered_and_what_follows_is_kept() {
        let mut opening = open(|socket| {
            let mut websocket = tungstenite::accept(socket).unwrap();
            websocket.send("hello".into()).unwrap();
        })
        .unwrap();
        let mut seen = Vec::new();
        let mut buffer = vec![0; 1024];
        while opening.connection.receive(&mut buffer, |text| seen.push(text.to_vec())).is_ok() {}
        assert_eq!(seen, [b"hello"]);
    }

    #[test]
    fn a_refusal_is_an_error() {
        let error = open(|mut socket| {
            std::io::Write::write_all(&mut socket, b"HTTP/1.1 503 Busy\r\n\r\n").unwrap();
        });
        assert!(error.unwrap_err().to_string().contains("503"));
        assert!(open(drop).is_err());
    }
}
