//! Bytes on a socket, for what no client library would send.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use socket2::{Domain, Socket, Type};

use super::PATIENCE;

/// A well-formed handshake.
pub const HANDSHAKE: &str = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// The opcodes of RFC 6455 §11.8.
pub mod opcode {
    pub const CONTINUATION: u8 = 0;
    pub const TEXT: u8 = 1;
    pub const BINARY: u8 = 2;
    pub const CLOSE: u8 = 8;
    pub const PING: u8 = 9;
    pub const PONG: u8 = 10;
}

/// A frame, as broken as one likes.
#[derive(Clone, Debug)]
pub struct Frame {
    /// FIN, the reserved bits and the opcode.
    pub first: u8,
    pub masked: bool,
    pub payload: Vec<u8>,
    /// The length field's bytes after the first two, and its 7 bits, if not the right ones.
    pub length: Option<(u8, Vec<u8>)>,
}

impl Frame {
    /// A good final frame.
    pub fn new(opcode: u8, payload: impl Into<Vec<u8>>) -> Self {
        Self { first: 0x80 | opcode, masked: true, payload: payload.into(), length: None }
    }

    pub fn fragment(mut self) -> Self {
        self.first &= 0x7f;
        self
    }

    pub fn bits(mut self, bits: u8) -> Self {
        self.first |= bits;
        self
    }

    pub fn unmasked(mut self) -> Self {
        self.masked = false;
        self
    }

    pub fn length(mut self, short: u8, rest: &[u8]) -> Self {
        self.length = Some((short, rest.to_vec()));
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let len = self.payload.len();
        let (short, rest) = self.length.clone().unwrap_or_else(|| match len {
            0..=125 => (u8::try_from(len).expect("checked"), vec![]),
            126..=0xffff => (126, u16::try_from(len).expect("checked").to_be_bytes().to_vec()),
            _ => (127, (len as u64).to_be_bytes().to_vec()),
        });
        let mut out = vec![self.first, short | if self.masked { 0x80 } else { 0 }];
        out.extend(rest);
        if self.masked {
            let mask = [0x37, 0xfa, 0x21, 0x3d];
            out.extend(mask);
            out.extend(self.payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
        } else {
            out.extend(&self.payload);
        }
        out
    }
}

/// What comes from the relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    Text(String),
    Pong(Vec<u8>),
    Close(Option<u16>),
    /// The stream ended, well or badly.
    End,
}

/// A socket with a buffer.
#[derive(Debug)]
pub struct Raw {
    pub stream: TcpStream,
    buffer: Vec<u8>,
    at: usize,
}

impl Raw {
    pub fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).expect("the relay listens"))
    }

    /// Connected from 127.0.0.`host`, with a kernel that takes about `receive_bytes` before the program
    /// reads.
    pub fn narrow(address: SocketAddr, host: u8, receive_bytes: usize) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_recv_buffer_size(receive_bytes).expect("a socket option");
        let source = SocketAddr::from(([127, 0, 0, host], 0));
        socket.bind(&source.into()).expect("a free source port");
        socket.connect(&address.into()).expect("the relay listens");
        Self::over(socket.into())
    }

    /// Over a stream that is connected already.
    pub fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket option");
        stream.set_write_timeout(Some(PATIENCE)).expect("a socket option");
        stream.set_nodelay(true).expect("a socket option");
        Self { stream, buffer: Vec::new(), at: 0 }
    }

    /// Connected, and the handshake done.
    pub fn open(address: SocketAddr) -> Self {
        let mut raw = Self::connect(address);
        raw.upgrade();
        raw
    }

    /// The same connection for another thread; only one of the two may read.
    pub fn twin(&self) -> Self {
        Self::over(self.stream.try_clone().expect("a free descriptor"))
    }

    /// The handshake.
    pub fn upgrade(&mut self) {
        self.send(HANDSHAKE.as_bytes());
        let head = self.head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    }

    /// Sends bytes; the relay may have closed already.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    pub fn text(&mut self, text: &str) {
        self.send(&Frame::new(opcode::TEXT, text).bytes());
    }

    /// A response head, up to its empty line; what came when the stream ended first.
    pub fn head(&mut self) -> String {
        loop {
            let rest = &self.buffer[self.at..];
            if let Some(end) = rest.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&rest[..end + 4]).into_owned();
                self.at += end + 4;
                return head;
            }
            if !self.fill() {
                return String::from_utf8_lossy(&self.buffer[self.at..]).into_owned();
            }
        }
    }

    /// Everything up to the end of the stream.
    pub fn rest(&mut self) -> Vec<u8> {
        while self.fill() {}
        self.buffer.split_off(self.at)
    }

    /// The next frame but pings, which must be well-formed, unmasked and whole.
    pub fn next(&mut self) -> Seen {
        let Some((opcode, payload)) = self.frame() else { return Seen::End };
        match opcode {
            opcode::TEXT => Seen::Text(String::from_utf8(payload).expect("text is UTF-8")),
            opcode::PONG => Seen::Pong(payload),
            opcode::PING => self.next(),
            opcode::CLOSE => Seen::Close(match payload[..] {
                [] => None,
                [high, low, ..] => Some(u16::from_be_bytes([high, low])),
                [_] => panic!("a close with half a code"),
            }),
            other => panic!("the relay sent opcode {other}"),
        }
    }

    /// The next frame's opcode and payload; `None` when the stream ended first.
    pub fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let header = self.take(2)?;
        let (first, short) = (header[0], header[1]);
        assert_eq!(first & 0xf0, 0x80, "the relay sends whole messages without extensions");
        assert_eq!(short & 0x80, 0, "the relay does not mask");
        let len = match short {
            126 => {
                let len = self.take(2)?;
                usize::from(u16::from_be_bytes([len[0], len[1]]))
            }
            127 => {
                let len = u64::from_be_bytes(self.take(8)?.try_into().expect("eight bytes"));
                usize::try_from(len).expect("64 bits")
            }
            short => usize::from(short),
        };
        Some((first & 0x0f, self.take(len)?))
    }

    /// Bytes received and not taken.
    pub fn buffered(&self) -> usize {
        self.buffer.len() - self.at
    }

    fn take(&mut self, len: usize) -> Option<Vec<u8>> {
        while self.buffer.len() - self.at < len {
            if !self.fill() {
                return None;
            }
        }
        let bytes = self.buffer[self.at..self.at + len].to_vec();
        self.at += len;
        Some(bytes)
    }

    /// Reads once; `false` at the end of the stream, however it ended.
    fn fill(&mut self) -> bool {
        if self.at > 1 << 20 {
            self.buffer.drain(..self.at);
            self.at = 0;
        }
        let mut bytes = [0; 16 << 10];
        match self.stream.read(&mut bytes) {
            Ok(0) => false,
            Ok(n) => {
                self.buffer.extend_from_slice(&bytes[..n]);
                true
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                panic!("nothing from the relay in time")
            }
            Err(_) => false,
        }
    }
}
