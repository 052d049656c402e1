//! What a relay has counted, and what the kernel holds for its sockets.

use std::collections::BTreeMap;
use std::net::SocketAddr;

/// A scrape of the metrics, summed over the shards.
#[derive(Clone, Debug)]
pub struct Counts(BTreeMap<(String, String), u64>);

impl Counts {
    /// What the admin listener answered.
    pub fn of_scrape(text: &str) -> Self {
        let mut counts = BTreeMap::new();
        for line in text.lines().filter_map(|line| line.strip_prefix("relay_")) {
            let (name, value) = line.rsplit_once(' ').expect("a name and a value");
            let (name, labels) = name.split_once('{').unwrap_or((name, ""));
            let mut labels = labels.split(',').filter(|label| !label.starts_with("shard="));
            let label = labels.next_back().and_then(|label| label.split('"').nth(1)).unwrap_or("");
            let key = (name.strip_suffix("_total").unwrap_or(name).into(), label.into());
            if let Ok(value) = value.parse::<u64>() {
                *counts.entry(key).or_default() += value;
            }
        }
        Self(counts)
    }

    /// The value of this name.
    pub fn get(&self, name: &str) -> u64 {
        self.of(name, "")
    }

    /// The value of this name and (last) label.
    pub fn of(&self, name: &str, label: &str) -> u64 {
        let found = self.0.get(&(name.into(), label.into()));
        *found.unwrap_or_else(|| panic!("no {name} {label} in {:?}", self.0.keys()))
    }

    /// Live events that were put into outboxes.
    pub fn delivered(&self) -> u64 {
        self.of("delivered", "live")
    }

    /// Matched live events that wait in their subscriptions.
    pub fn waiting(&self) -> i128 {
        let ended = self.delivered() + self.get("live_suppressed") + self.of("drops", "abandoned");
        i128::from(self.get("live_matched")) - i128::from(ended)
    }
}

/// What the kernel holds for one socket, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Queues {
    /// Written, and not acknowledged by the peer.
    pub sent: usize,
    /// Received, and not read.
    pub received: usize,
}

/// The queues of this machine's connections whose own end or, with `peer`, other end has this address.
pub fn queues(address: SocketAddr, peer: bool) -> Vec<Queues> {
    let SocketAddr::V4(address) = address else { panic!("{address} is no IPv4 address") };
    let (host, port) = (u32::from_ne_bytes(address.ip().octets()), address.port());
    let end = format!("{host:08X}:{port:04X}");
    let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux");
    let sockets = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let (own, other, state, queues) = (fields[1], fields[2], fields[3], fields[4]);
        const LISTEN: &str = "0A";
        let found = state != LISTEN && end == if peer { other } else { own };
        found.then(|| {
            let (sent, received) = queues.split_once(':').expect("two numbers");
            let bytes = |hex: &str| usize::from_str_radix(hex, 16).expect("hex");
            Queues { sent: bytes(sent), received: bytes(received) }
        })
    });
    sockets.collect()
}

/// The queues of a connected socket of ours.
pub fn queues_of(stream: &std::net::TcpStream) -> Queues {
    let own = queues(stream.local_addr().expect("a connected socket"), false);
    *own.first().expect("it is open")
}
