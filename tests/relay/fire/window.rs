//! A reader whose window opens slowly: every send is a partial one, and the stream is the same, byte for
//! byte.

use std::io::Read;
use std::time::Duration;

use super::subscribe;
use crate::support::raw::Raw;
use crate::support::{Author, Draft, Event, Filter, Launch, alone, client, now, wait_until};

on_every_backend!(what_a_slow_reader_gets_is_byte_for_byte_what_was_published);

/// Live events of all sizes, some copied and some chained into a batch, to a reader that takes a few
/// thousand bytes at a time, never the same number. What it gets is computed here.
fn what_a_slow_reader_gets_is_byte_for_byte_what_was_published(backend: &str) {
    const ROUNDS: usize = 8;
    let _alone = alone();
    let server = Launch::default()
        .backend(backend)
        .counted()
        .set("limits.ping_interval_ms", 0)
        .set("limits.live_queue_age_ms_max", 600_000)
        .set("limits.write_stall_ms_max", 600_000)
        .start();
    let mut reader = Raw::narrow(server.address(), 2, 24 << 10);
    reader.upgrade();
    subscribe(&mut reader, &client::req("s", &[Filter::default().kinds([1])]));
    assert_eq!(reader.buffered(), 0);
    let author = Author::new(1);
    let sizes = [0, 1, 90, 600, 1_000, 1_100, 3_000, 20_000, 65_000, 66_000, 70_000, 200, 7];
    let sizes = sizes.iter().cycle().take(ROUNDS * sizes.len());
    let signed = |(n, size): (usize, &usize)| {
        let content: String = ('a'..='z').cycle().skip(n).take(*size).collect();
        Draft::new(1, now()).content(format!("{n} {content}")).sign(&author)
    };
    let events: Vec<Event> = sizes.enumerate().map(signed).collect();
    let mut publisher = server.connect();
    publisher.send_all(events.iter().map(Event::message));
    events.iter().for_each(|event| assert!(publisher.wait_ok(&event.id).0));

    let expected: Vec<u8> = events.iter().flat_map(frame).collect();
    let mut got = 0;
    let mut buffer = vec![0; 8 << 10];
    for step in 1_usize.. {
        if got == expected.len() {
            break;
        }
        let want = 1 + step * 2_477 % buffer.len();
        let count = reader.stream.read(&mut buffer[..want]).expect("it goes on");
        assert_ne!(count, 0, "the stream ended after {got} of {} bytes", expected.len());
        let right = expected.get(got..got + count).expect("not more than was published");
        assert!(buffer[..count] == *right, "other bytes at {got}");
        got += count;
        if step.is_multiple_of(16) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    // The counts are told a few times a second.
    wait_until("all are counted", || server.counts().delivered() == events.len() as u64);
    server.conserved();
    let end = client::req("end", &[Filter::nothing()]);
    reader.text(&end);
    assert_eq!(reader.next(), crate::support::raw::Seen::Text(r#"["EOSE","end"]"#.into()));
}

/// The frame that brings an event to the subscription `s` (RFC 6455 §5.2).
fn frame(event: &Event) -> Vec<u8> {
    let payload = format!("[\"EVENT\",\"s\",{}]", event.json());
    let len = payload.len();
    let mut frame = vec![0x81];
    match (u8::try_from(len), u16::try_from(len)) {
        (Ok(short @ ..126), _) => frame.push(short),
        (_, Ok(middle)) => {
            frame.push(126);
            frame.extend(middle.to_be_bytes());
        }
        _ => {
            frame.push(127);
            frame.extend((len as u64).to_be_bytes());
        }
    }
    frame.extend(payload.into_bytes());
    frame
}
