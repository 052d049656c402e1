//! One upgraded connection: blocking while it opens, nonblocking afterwards.
//!
//! It owns no read buffer. A thread lends its one large buffer for each read, and only the bytes of an incomplete frame
//! stay behind, so thousands of idle connections cost the generator nothing.

use super::frame::{self, FrameFault};
use anyhow::{Context, bail, ensure};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;
use tungstenite::client::IntoClientRequest;
use tungstenite::handshake::client::{Response, generate_request};
use tungstenite::handshake::derive_accept_key;
use tungstenite::handshake::machine::TryParse;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

pub(super) const RESPONSE_BYTES_MAX: usize = 16 << 10;
const PONG_MASK: [u8; 4] = [0x5a, 0xc3, 0x3c, 0xa5];

/// Where a run goes.
#[derive(Clone, Debug)]
pub struct Target {
    pub url: String,
    pub address: SocketAddr,
    pub connect_timeout: Duration,
    /// Connections are spread over this many addresses 127.0.0.1, 127.0.0.2, …, since one pair of addresses has only
    /// about 28,000 ports.
    pub source_addresses: u8,
    /// What a connection's kernel is to take before it is read; the system's default otherwise.
    pub receive_bytes: Option<usize>,
}

impl Target {
    /// Resolves a `ws://` URL, and refuses whatever is not loopback unless `allow_remote`: load belongs on machines of
    /// one's own.
    ///
    /// # Errors
    /// Another scheme, a host that does not resolve, a host that is not loopback.
    pub fn resolve(
        url: &str,
        allow_remote: bool,
        timeout: Duration,
        source_addresses: u8,
    ) -> anyhow::Result<Self> {
        let request =
            url.into_client_request().with_context(|| format!("{url}: not a WebSocket URL"))?;
        let uri = request.uri();
        ensure!(uri.scheme_str() == Some("ws"), "{url}: only ws:// is spoken (no TLS)");
        let host = uri.host().with_context(|| format!("{url}: no host"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let mut addresses = (host, uri.port_u16().unwrap_or(80)).to_socket_addrs()?;
        let address = addresses.next().with_context(|| format!("{host}: no address"))?;
        ensure!(
            allow_remote || address.ip().is_loopback(),
            "{} is not a loopback address; --allow-remote sends load to other machines",
            address.ip()
        );
        let v4_loopback = address.is_ipv4() && address.ip().is_loopback();
        ensure!(
            source_addresses <= 1 || v4_loopback,
            "--source-addresses needs a target in 127.0.0.0/8"
        );
        let (url, connect_timeout, receive_bytes) = (url.to_owned(), timeout, None);
        Ok(Self { url, address, connect_timeout, source_addresses, receive_bytes })
    }

    /// A socket bound to the source address of this ordinal.
    pub(super) fn socket(&self, ordinal: usize) -> io::Result<Socket> {
        let domain = Domain::for_address(self.address);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        if let Some(source) = self.source(ordinal) {
            socket.bind(&SockAddr::from(SocketAddr::new(IpAddr::V4(source), 0)))?;
        }
        if let Some(bytes) = self.receive_bytes {
            socket.set_recv_buffer_size(bytes)?;
        }
        Ok(socket)
    }

    fn source(&self, ordinal: usize) -> Option<Ipv4Addr> {
        let spread = usize::from(self.source_addresses);
        (spread > 1).then(|| Ipv4Addr::new(127, 0, 0, 1 + (ordinal % spread) as u8))
    }
}

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    #[error("the relay closed the connection (code {code:?}, {reason:?})")]
    Closed { code: Option<u16>, reason: String },
    #[error("the connection ended without a close frame")]
    Eof,
    #[error("the relay sent {0}")]
    Fault(#[from] FrameFault),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// An upgraded WebSocket.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    /// The bytes of a frame whose end has not arrived.
    partial: Vec<u8>,
    /// The payload so far of a fragmented message.
    fragments: Option<Vec<u8>>,
    /// What the kernel has not taken yet; `unsent_at <= unsent.len()`.
    unsent: Vec<u8>,
    unsent_at: usize,
    /// What the poller last registered; only [`super::Poller`] writes it.
    pub(super) write_interest: bool,
}

impl Connection {
    /// Connects, upgrades and turns nonblocking. `ordinal` chooses the source address.
    ///
    /// # Errors
    /// A refused connection or upgrade, a timeout, a wrong accept key.
    pub fn open(target: &Target, ordinal: usize) -> anyhow::Result<Self> {
        let socket = target.socket(ordinal)?;
        socket
            .connect_timeout(&target.address.into(), target.connect_timeout)
            .context("connecting")?;
        socket.set_tcp_nodelay(true)?;
        socket.set_read_timeout(Some(target.connect_timeout))?;
        socket.set_write_timeout(Some(target.connect_timeout))?;
        let mut stream = TcpStream::from(socket);
        let partial = upgrade(&mut stream, &target.url).context("upgrading")?;
        stream.set_nonblocking(true)?;
        Ok(Self::new(stream, partial, Vec::new()))
    }

    pub(super) fn new(stream: TcpStream, partial: Vec<u8>, unsent: Vec<u8>) -> Self {
        Self { stream, partial, fragments: None, unsent, unsent_at: 0, write_interest: false }
    }

    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Bytes that came before anybody asked for frames.
    pub(super) fn keep(&mut self, bytes: Vec<u8>) {
        self.partial = bytes;
    }

    /// Breaks off: the relay gets a reset and no close frame.
    ///
    /// # Errors
    /// As `setsockopt(2)`.
    pub fn abort(self) -> io::Result<()> {
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO))
    }

    /// Sends whole frames, now as far as the kernel takes them, the rest when the socket is writable again.
    ///
    /// # Errors
    /// Everything but `WouldBlock`.
    pub fn send(&mut self, mut frames: &[u8]) -> io::Result<()> {
        if !self.has_unsent() {
            while !frames.is_empty() {
                match self.stream.write(frames) {
                    Ok(written) => frames = &frames[written..],
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
        }
        self.unsent.extend_from_slice(frames);
        Ok(())
    }

    /// Goes on with what [`Self::send`] could not hand over.
    ///
    /// # Errors
    /// Everything but `WouldBlock`.
    pub fn flush(&mut self) -> io::Result<()> {
        while self.has_unsent() {
            match self.stream.write(&self.unsent[self.unsent_at..]) {
                Ok(written) => self.unsent_at += written,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.unsent.clear();
        self.unsent_at = 0;
        Ok(())
    }

    /// Lets the kernel take more.
    ///
    /// # Errors
    /// As `setsockopt(2)`.
    pub fn widen(&self, receive_bytes: usize) -> io::Result<()> {
        SockRef::from(&self.stream).set_recv_buffer_size(receive_bytes)
    }

    pub fn has_unsent(&self) -> bool {
        self.unsent_at < self.unsent.len()
    }

    /// One read into the lent buffer; every complete text message goes to `on_text`, pings are answered.
    ///
    /// # Errors
    /// [`Lost`]: the connection is over and must be dropped.
    pub fn receive(
        &mut self,
        buffer: &mut Vec<u8>,
        mut on_text: impl FnMut(&[u8]),
    ) -> Result<(), Lost> {
        let kept = self.partial.len();
        if buffer.len() < kept * 2 {
            buffer.resize(kept * 2, 0);
        }
        buffer[..kept].copy_from_slice(&self.partial);
        let received = match self.stream.read(&mut buffer[kept..]) {
            Ok(received) => received,
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        // What came behind the upgrade's answer may be whole frames.
        let is_over = received == 0;
        let bytes = &buffer[..kept + received];
        let mut at = 0;
        while let Some(frame) = frame::decode(&bytes[at..])? {
            at += frame.used;
            self.on_frame(&frame, &mut on_text)?;
        }
        self.partial.clear();
        self.partial.extend_from_slice(&bytes[at..]);
        if is_over { Err(Lost::Eof) } else { Ok(()) }
    }

    fn on_frame(
        &mut self,
        frame: &frame::Frame<'_>,
        on_text: &mut impl FnMut(&[u8]),
    ) -> Result<(), Lost> {
        match frame.opcode {
            OpCode::Control(Control::Close) => return Err(closed(frame.payload)),
            OpCode::Control(Control::Ping) => {
                let mut pong = Vec::new();
                frame::append_pong(&mut pong, frame.payload, PONG_MASK);
                self.send(&pong)?;
            }
            OpCode::Control(_) => {}
            OpCode::Data(Data::Continue) => {
                let fragments = self.fragments.as_mut().ok_or(FrameFault::Fragmentation)?;
                fragments.extend_from_slice(frame.payload);
                if fragments.len() as u64 > frame::PAYLOAD_BYTES_MAX {
                    return Err(FrameFault::TooLong(fragments.len() as u64).into());
                }
                if frame.is_final {
                    on_text(&self.fragments.take().unwrap_or_default());
                }
            }
            OpCode::Data(_) if self.fragments.is_some() => {
                return Err(FrameFault::Fragmentation.into());
            }
            OpCode::Data(_) if frame.is_final => on_text(frame.payload),
            OpCode::Data(_) => self.fragments = Some(frame.payload.to_vec()),
        }
        Ok(())
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// The opening handshake; returns the bytes that came behind the response (a relay may send AUTH at once).
fn upgrade(stream: &mut TcpStream, url: &str) -> anyhow::Result<Vec<u8>> {
    let (request, key) = generate_request(url.into_client_request()?)?;
    stream.write_all(&request)?;
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    let (used, response) = loop {
        let received = stream.read(&mut chunk).context("waiting for the upgrade response")?;
        ensure!(received > 0, "the server hung up before it answered the upgrade");
        head.extend_from_slice(&chunk[..received]);
        if let Some(parsed) = Response::try_parse(&head)? {
            break parsed;
        }
        ensure!(
            head.len() < RESPONSE_BYTES_MAX,
            "the upgrade response is longer than {RESPONSE_BYTES_MAX} bytes"
        );
    };
    judge_response(&response, &key)?;
    Ok(head.split_off(used))
}

/// # Errors
/// Anything but an upgrade with the right key.
pub(super) fn judge_response(response: &Response, key: &str) -> anyhow::Result<()> {
    if response.status() != 101 {
        bail!("the server answered {}", response.status());
    }
    let accept = response
        .headers()
        .get("sec-websocket-accept")
        .map(tungstenite::http::HeaderValue::as_bytes);
    ensure!(
        accept == Some(derive_accept_key(key.as_bytes()).as_bytes()),
        "wrong Sec-WebSocket-Accept"
    );
    Ok(())
}

fn closed(payload: &[u8]) -> Lost {
    match payload.split_at_checked(2) {
        Some((code, reason)) => Lost::Closed {
            code: Some(u16::from_be_bytes([code[0], code[1]])),
            reason: String::from_utf8_lossy(reason).into_owned(),
        },
        None => Lost::Closed { code: None, reason: String::new() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn pair() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let connection = Connection::new(stream, Vec::new(), Vec::new());
        (connection, listener.accept().unwrap().0)
    }

    fn texts(connection: &mut Connection, reads: usize) -> Result<Vec<String>, Lost> {
        let mut buffer = vec![0; 1024];
        let mut seen = Vec::new();
        for _ in 0..reads {
            connection.receive(&mut buffer, |text| {
                seen.push(String::from_utf8_lossy(text).into_owned());
            })?;
        }
        Ok(seen)
    }

    #[test]
    fn messages_survive_any_cut_and_fragmentation() {
        let (mut connection, mut server) = pair();
        let wire = [&[0x81, 2][..], b"ab", &[0x01, 1], b"c", &[0x80, 2], b"de"].concat();
        let mut seen = Vec::new();
        for byte in wire {
            server.write_all(&[byte]).unwrap();
            seen.extend(texts(&mut connection, 1).unwrap());
        }
        assert_eq!(seen, ["ab", "cde"]);
    }

    #[test]
    fn a_ping_is_answered_and_a_close_ends_it() {
        let (mut connection, mut server) = pair();
        server.write_all(&[0x89, 1, b'p']).unwrap();
        assert!(texts(&mut connection, 1).unwrap().is_empty());
        let mut pong = [0; 7];
        server.read_exact(&mut pong).unwrap();
        assert_eq!((pong[0], pong[1], pong[6] ^ PONG_MASK[0]), (0x8a, 0x81, b'p'));
        server.write_all(&[0x88, 2, 0x03, 0xf0]).unwrap();
        assert!(matches!(texts(&mut connection, 1), Err(Lost::Closed { code: Some(1008), .. })));
    }

    #[test]
    fn only_loopback_is_a_target_by_itself() {
        let resolve = |url: &str, remote: bool, spread: u8| {
            Target::resolve(url, remote, Duration::from_secs(1), spread)
        };
        assert!(resolve("ws://127.0.0.1:7777", false, 1).is_ok());
        assert!(resolve("ws://[::1]:7777/path", false, 1).is_ok());
        assert!(resolve("ws://192.0.2.1:7777", false, 1).is_err());
        assert!(resolve("ws://192.0.2.1:7777", true, 1).is_ok());
        assert!(resolve("wss://127.0.0.1", false, 1).is_err());
        assert!(resolve("http://127.0.0.1", false, 1).is_err());
        assert!(resolve("ws://[::1]:7777", false, 4).is_err());
    }
}
