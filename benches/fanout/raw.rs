//! The floors: threads that only send.

use std::cell::RefCell;
use std::io::{IoSlice, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use bytes::Bytes;
use rheostr::wire::frame::{Opcode, write_header};

use crate::clients::{Clients, pairs};
use crate::clock::ThreadClock;
use crate::ring::{Message, Ring};
use crate::{Contender, PREFIX, SENDER_CORE, SUBSCRIBERS, event_json, pin};

/// How a floor makes and sends the frames of a round.
#[derive(Clone, Copy)]
pub enum How {
    /// Copied into a buffer a socket, sent by one entry a socket on one ring.
    Copied,
    /// Headers copied into a buffer a socket, the events chained; one entry a socket.
    Chained,
    /// One buffer a socket, filled once; one entry a socket.
    Prebuilt,
    /// Prebuilt, a `send(2)` a frame.
    EachFrame,
}

/// The name of what batching is measured against.
pub const EACH_FRAME: &str = "a write a frame";

/// The floors share a thread and its sockets.
pub fn contenders() -> Vec<Contender> {
    let (servers, clients) = pairs(SUBSCRIBERS);
    let clients = Rc::new(RefCell::new(Clients::new(clients)));
    let (jobs, to_do) = channel::<(How, usize)>();
    let (clock, its_clock) = channel();
    thread::spawn(move || {
        pin(SENDER_CORE);
        clock.send(ThreadClock::of_this_thread()).expect("waited for");
        let mut floor = Floor::new(servers);
        for (how, frames) in to_do {
            floor.send(how, frames);
        }
    });
    let clock = its_clock.recv().expect("it begins with that");
    let contender = |name, how| {
        let jobs: Sender<_> = jobs.clone();
        let go = Box::new(move |frames| jobs.send((how, frames)).expect("the thread lives"));
        Contender { name, clock, clients: clients.clone(), go, sent: None }
    };
    vec![
        contender("raw ring, copied", How::Copied),
        contender("raw ring, chained", How::Chained),
        contender("raw ring, prebuilt", How::Prebuilt),
        contender(EACH_FRAME, How::EachFrame),
    ]
}

struct Floor {
    servers: Vec<TcpStream>,
    ring: Ring,
    events: Vec<Bytes>,
    /// First event of the next round.
    next: usize,
    buffers: Vec<Vec<u8>>,
    /// Frames in each of `buffers`.
    frames: usize,
}

impl Floor {
    fn new(servers: Vec<TcpStream>) -> Self {
        let events = (0..256).map(|_| Bytes::from(event_json())).collect();
        let buffers = vec![Vec::new(); servers.len()];
        Self { servers, ring: Ring::new(), events, next: 0, buffers, frames: 0 }
    }

    fn send(&mut self, how: How, frames: usize) {
        if matches!(how, How::Chained) {
            return self.chain(frames);
        }
        if self.frames != frames || matches!(how, How::Copied) {
            self.copy(frames);
        }
        if matches!(how, How::EachFrame) {
            for (mut server, buffer) in self.servers.iter().zip(&self.buffers) {
                for frame in buffer.chunks(buffer.len() / frames) {
                    server.write_all(frame).expect("the peer reads");
                }
            }
            return;
        }
        let mut slices: Vec<_> = self.buffers.iter().map(|buffer| [IoSlice::new(buffer)]).collect();
        let mut messages: Vec<_> = (self.servers.iter().zip(&mut slices))
            .map(|(server, slices)| Message { socket: server.as_fd(), slices })
            .collect();
        self.ring.send(&mut messages);
    }

    fn turn(&mut self, frames: usize) -> Range<usize> {
        self.next = (self.next + frames) % (self.events.len() - frames);
        self.next..self.next + frames
    }

    /// As `wire::batch` chains: one piece holds the `]` of a frame and the header of the next.
    fn chain(&mut self, frames: usize) {
        self.frames = 0;
        let turn = self.turn(frames);
        let events = &self.events[turn];
        let mut head = Vec::new();
        write_header(&mut head, Opcode::Text, PREFIX.len() + events[0].len() + 1);
        let first = head.len() + PREFIX.len();
        for buffer in &mut self.buffers {
            buffer.clear();
            for _ in events {
                buffer.extend_from_slice(&head);
                buffer.extend_from_slice(PREFIX);
                buffer.push(b']');
            }
        }
        let mut slices: Vec<Vec<_>> = (self.buffers.iter())
            .map(|buffer| {
                let mut slices = Vec::with_capacity(2 * frames + 1);
                let mut from = 0;
                for (number, event) in events.iter().enumerate() {
                    let to = number * (first + 1) + first;
                    slices.extend([IoSlice::new(&buffer[from..to]), IoSlice::new(event)]);
                    from = to;
                }
                slices.push(IoSlice::new(&buffer[from..]));
                slices
            })
            .collect();
        let mut messages: Vec<_> = (self.servers.iter().zip(&mut slices))
            .map(|(server, slices)| Message { socket: server.as_fd(), slices })
            .collect();
        self.ring.send(&mut messages);
    }

    fn copy(&mut self, frames: usize) {
        self.frames = frames;
        let turn = self.turn(frames);
        let events = &self.events[turn];
        for buffer in &mut self.buffers {
            buffer.clear();
            for event in events {
                write_header(buffer, Opcode::Text, PREFIX.len() + event.len() + 1);
                buffer.extend_from_slice(PREFIX);
                buffer.extend_from_slice(event);
                buffer.push(b']');
            }
        }
    }
}
