//! The end of a connection follows its last byte.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::{Launch, alone};

on_every_backend!(an_answered_request_ends_its_connection_at_once);

const REQUESTS: usize = 20;
/// Less than the timer's interval of 250 ms, which would find what nothing else has ended.
const FASTEST_MAX: Duration = Duration::from_millis(100);

fn an_answered_request_ends_its_connection_at_once(backend: &str) {
    let _alone = alone();
    let server = Launch::default().shards(1).backend(backend).start();
    let fastest = (0..REQUESTS)
        .map(|_| {
            let mut stream = TcpStream::connect(server.address()).unwrap();
            let begun = Instant::now();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            begun.elapsed()
        })
        .min();
    assert!(fastest < Some(FASTEST_MAX), "{fastest:?}");
    assert!(server.stop().success());
}
