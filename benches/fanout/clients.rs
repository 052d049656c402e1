//! The receiving ends: one epoll set, drained by the thread that starts the rounds.

use std::io::{ErrorKind, Read};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::time::Timespec;

/// A round that takes longer has failed.
const ROUND_WAIT: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// See the module.
pub struct Clients {
    epoll: OwnedFd,
    sockets: Vec<TcpStream>,
    buffer: Vec<u8>,
}

impl Clients {
    /// Takes connected sockets.
    pub fn new(sockets: Vec<TcpStream>) -> Self {
        let epoll = epoll::create(CreateFlags::CLOEXEC).expect("a free descriptor");
        for (number, socket) in (0..).zip(&sockets) {
            socket.set_nonblocking(true).expect("an open socket");
            epoll::add(&epoll, socket, EventData::new_u64(number), EventFlags::IN)
                .expect("an open socket");
        }
        Self { epoll, sockets, buffer: vec![0; 256 << 10] }
    }

    /// Reads until `bytes` have come, over all sockets.
    pub fn receive(&mut self, bytes: usize) {
        let mut left = bytes;
        while left > 0 {
            let mut space = [const { MaybeUninit::<Event>::uninit() }; 256];
            let (ready, _) = epoll::wait(&self.epoll, &mut space, Some(&ROUND_WAIT)).expect("wait");
            assert!(!ready.is_empty(), "{left} bytes did not come");
            for event in ready {
                let number = usize::try_from(event.data.u64()).expect("an index");
                match self.sockets[number].read(&mut self.buffer) {
                    Ok(count) => {
                        assert!((1..=left).contains(&count), "{count} bytes where {left} were due");
                        left -= count;
                    }
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
                }
            }
        }
    }
}

/// `count` loopback connections: the sending ends and the receiving ends.
pub fn pairs(count: usize) -> (Vec<TcpStream>, Vec<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    (0..count)
        .map(|_| {
            let client = TcpStream::connect(address).expect("loopback");
            let (server, _) = listener.accept().expect("a connection");
            server.set_nodelay(true).expect("an open socket");
            (server, client)
        })
        .unzip()
}
