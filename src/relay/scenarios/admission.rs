//! Who is let in, and on whose account, behind a proxy.

use core::net::IpAddr;

use super::super::Admission;
use super::*;

const PROXY: IpAddr = IpAddr::V4(core::net::Ipv4Addr::new(10, 0, 0, 1));

fn forwarded(values: &str) -> String {
    HANDSHAKE.replacen("Host: r\r\n", &format!("Host: r\r\nX-Forwarded-For: {values}\r\n"), 1)
}

impl Relay {
    fn arrive(&mut self, peer: IpAddr, arrival: Arrival, bytes: &[u8]) -> ConnectionKey {
        let key = self.core.handle_accept(peer, arrival, self.now);
        self.send(key, bytes);
        key
    }

    /// Whom the driver is asked to count.
    fn asked(&mut self, key: ConnectionKey) -> Option<IpAddr> {
        let asked = self.take(|effect| match effect {
            Effect::Admit(of, address) if of == key => Some(address),
            _ => None,
        });
        assert!(asked.len() <= 1, "asked once: {asked:?}");
        asked.first().copied()
    }

    fn admit(&mut self, key: ConnectionKey, admission: Admission) {
        self.core.handle_admission(key, admission, self.now);
        self.act();
    }

    fn status(&mut self, key: ConnectionKey) -> String {
        let heard = String::from_utf8(self.hear_raw(key)).unwrap();
        heard.get(9..12).unwrap_or_default().to_owned()
    }
}

#[test]
fn behind_a_proxy_the_client_is_asked_for_when_its_head_is_read() {
    let mut relay = Relay::new(Limits::default());
    let head = forwarded("1.1.1.1, 203.0.113.9");
    let key = relay.arrive(PROXY, Arrival::Proxy, &head.as_bytes()[..head.len() - 1]);
    assert_eq!(relay.asked(key), None, "its head is not complete");
    relay.send(key, b"\n");
    // What comes before the answer waits for it.
    relay.frame(key, Opcode::Ping, b"early");
    assert!(relay.fill(key).is_none());
    assert_eq!(relay.asked(key).unwrap().to_string(), "203.0.113.9");
    relay.admit(key, Admission::Granted);
    let heard = relay.hear_raw(key);
    assert!(heard.starts_with(b"HTTP/1.1 101 ") && heard.ends_with(b"early"));
    assert_eq!(relay.asked(key), None);
}

/// More may follow the head than one turn acts on: the reader waits for the answer, and is told to go on.
#[test]
fn what_follows_the_head_is_read_to_its_end() {
    let mut relay = Relay::new(Limits::default());
    let key = relay.core.handle_accept(PROXY, Arrival::Proxy, relay.now);
    let mut bytes = forwarded("203.0.113.9").into_bytes();
    (0..1_000).for_each(|_| bytes.extend(masked(Opcode::Text, br#"["CLOSE","x"]"#)));
    bytes.extend(masked(Opcode::Text, LIVE.as_bytes()));
    assert_eq!(relay.send(key, &bytes), Reading::Paused);
    assert!(relay.asked(key).is_some());
    relay.admit(key, Admission::Granted);
    let resumed =
        |effect: Effect| matches!(effect, Effect::ResumeRead(k) if k == key).then_some(());
    let mut turns = 0;
    while !relay.take(resumed).is_empty() {
        relay.core.handle_resumed(key, relay.now);
        turns += 1;
    }
    assert_eq!((relay.core.reading(key), turns), (Reading::Ready, 3));
    assert!(relay.hear_raw(key).ends_with(EOSE.as_bytes()));
}

#[test]
fn who_has_enough_connections_is_told_so() {
    let mut relay = Relay::new(Limits::default());
    let key = relay.arrive(PROXY, Arrival::Proxy, forwarded("203.0.113.9").as_bytes());
    assert!(relay.asked(key).is_some());
    relay.admit(key, Admission::Refused);
    assert_eq!(relay.status(key), "429");
    relay.core.handle_eof(key, relay.now);
    assert!(relay.was_released(key));
    let unheard = relay.arrive(PROXY, Arrival::Proxy, forwarded("203.0.113.9").as_bytes());
    relay.core.handle_admission(unheard, Admission::Unheard, relay.now);
    assert!(relay.fill(unheard).is_none());
    assert!(relay.was_released(unheard));
    relay.core.handle_unheard(false);
    let counters = relay.core.counters();
    assert_eq!((counters.accepted, counters.closed_per_ip, counters.connections), (3, 3, 0));
}

#[test]
fn only_a_proxy_speaks_for_others() {
    let mut relay = Relay::new(Limits::default());
    for values in ["203.0.113.9", "rubbish"] {
        let key = relay.arrive(CLIENT, Arrival::Client, forwarded(values).as_bytes());
        assert_eq!(relay.asked(key), None);
        assert_eq!(relay.status(key), "101");
    }
    let health = relay.arrive(PROXY, Arrival::Proxy, b"GET / HTTP/1.1\r\nHost: r\r\n\r\n");
    assert_eq!(relay.asked(health), Some(PROXY), "it names nobody");
    relay.admit(health, Admission::Granted);
    assert_eq!(relay.status(health), "200");
}

#[test]
fn a_bad_request_is_nobodys() {
    let mut relay = Relay::new(Limits::default());
    for (head, status) in [
        (forwarded("unknown"), "400"),
        (forwarded("203.0.113.9").replace("GET", "POST"), "405"),
        (forwarded("203.0.113.9").replace("Version: 13", "Version: 7"), "426"),
    ] {
        let key = relay.arrive(PROXY, Arrival::Proxy, head.as_bytes());
        assert_eq!(relay.asked(key), None);
        assert_eq!(relay.status(key), status);
    }
}

/// Whatever happens between the question and its answer, the answer finds things in order.
#[test]
fn an_answer_may_come_late() {
    let page = "GET / HTTP/1.1\r\nHost: r\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n";
    for admission in [Admission::Granted, Admission::Refused, Admission::Unheard] {
        let mut relay = Relay::new(Limits::default());
        let late = relay.arrive(PROXY, Arrival::Proxy, page.as_bytes());
        relay.pass(5_000);
        assert_eq!(relay.status(late), "408");
        relay.admit(late, admission);
        assert!(relay.fill(late).is_none(), "it has been answered");
        // It has said all it will say, and is answered all the same.
        let half = relay.arrive(PROXY, Arrival::Proxy, page.as_bytes());
        relay.core.handle_eof(half, relay.now);
        relay.admit(half, admission);
        let status = match admission {
            Admission::Granted => "200",
            Admission::Refused => "429",
            Admission::Unheard => "",
        };
        assert_eq!(relay.status(half), status);
        assert!(relay.was_released(half));
        let gone = relay.arrive(PROXY, Arrival::Proxy, page.as_bytes());
        relay.core.handle_broken(gone);
        relay.admit(gone, admission);
        assert!(relay.was_released(gone));
        let stopped = relay.arrive(PROXY, Arrival::Proxy, page.as_bytes());
        relay.core.handle_shutdown(relay.now);
        relay.admit(stopped, admission);
        assert!(relay.was_released(stopped));
    }
}
