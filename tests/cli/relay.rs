//! Starting and ending a relay.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use serde_json::Value;

use crate::support::{Directory, Relay, get, run};

#[test]
fn standard_output_is_the_ready_line() {
    let dir = Directory::new();
    let data = dir.file("data");
    for backend in ["epoll", "auto"] {
        let relay = Relay::start(&data, &["--shards", "2", "--backend", backend]);
        let address = relay.address.clone();
        assert!(address.starts_with("127.0.0.1:") && !address.ends_with(":0"), "{address}");
        let expected = |backend: &str| {
            format!("rheostr ready ws://{address} shards=2 backend={backend} data={data}")
        };
        assert!(
            relay.ready == expected("epoll")
                || backend == "auto" && relay.ready == expected("tokio-uring"),
            "{}",
            relay.ready
        );
        let done = relay.stop();
        assert_eq!((done.code, done.out.as_str()), (0, ""), "{}", done.err);
        assert!(done.err.contains("memory bound "), "{}", done.err);
    }
}

#[test]
fn the_configuration_reaches_the_relay() {
    let dir = Directory::new();
    let data = dir.file("data");
    let config = dir.file("relay.toml");
    std::fs::write(
        &config,
        "relay_url = \"wss://relay.example/here\"\n[info]\nname = \"<b>Name</b>\"\n\
         [limits]\nmessage_bytes_max = 70000\n",
    )
    .unwrap();
    let sets =
        ["--config", &config, "--set", "limits.filter_limit_max=123", "--log-format", "json"];
    let relay = Relay::start(&data, &sets);
    let document =
        get(&relay.address, "/here", "Accept: application/nostr+json\r\nConnection: close\r\n");
    let (_, body) = document.split_once("\r\n\r\n").unwrap();
    let document: Value = serde_json::from_str(body).unwrap();
    assert_eq!(document["name"], "<b>Name</b>");
    assert_eq!(document["limitation"]["max_message_length"], 70_000);
    assert_eq!(document["limitation"]["max_limit"], 123);
    assert_eq!(document["limitation"]["durability"], "commit");
    let page = get(&relay.address, "/here", "Connection: close\r\n");
    assert!(page.contains("&lt;b&gt;Name&lt;/b&gt;") && page.contains("wss://relay.example/here"));
    assert!(get(&relay.address, "/", "Connection: close\r\n").starts_with("HTTP/1.1 404"));
    let done = relay.stop();
    for line in done.err.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert!(line["level"].is_string());
    }
}

/// What `tracing` says about where metrics are.
fn metrics_address(err: &str) -> Option<&str> {
    let line = err.lines().find(|line| line.contains("metrics are served"))?;
    line.split("address=").nth(1).map(str::trim)
}

/// A port nobody uses at the moment.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// By the log, to clients, and in the metrics.
#[test]
fn that_an_ok_is_less_than_durable_is_said() {
    let dir = Directory::new();
    let admin = format!("admin.listen=127.0.0.1:{}", free_port());
    let sets = ["--set", "store.durability=interval", "--set", &admin];
    let relay = Relay::start(&dir.file("data"), &sets);
    let document =
        get(&relay.address, "/", "Accept: application/nostr+json\r\nConnection: close\r\n");
    assert!(document.contains("\"durability\":\"interval\""), "{document}");
    let (_, address) = admin.split_once('=').unwrap();
    let text = get(address, "/metrics", "Connection: close\r\n");
    assert!(text.contains("\nrelay_store_unsynced_ms_max 1000\n"), "{text}");
    let done = relay.stop();
    assert!(done.err.contains("a power cut may undo the last commit"), "{}", done.err);
}

#[test]
fn metrics_are_served_where_they_are_asked_for() {
    let dir = Directory::new();
    let address = format!("127.0.0.1:{}", free_port());
    let set = format!("admin.listen={address}");
    let relay = Relay::start(
        &dir.file("data"),
        &[
            ["--set", &set, "--shards", "2"],
            ["--set", "tuning.batch_bytes_max=65536", "--set", "tuning.receive=ring"],
        ]
        .concat(),
    );
    let _open = TcpStream::connect(&relay.address).unwrap();
    let text = get(&address, "/metrics", "");
    let tuning = text.lines().find(|line| line.starts_with("relay_tuning_info{")).unwrap();
    for pair in ["batch_bytes_max=\"65536\"", "ring_entries=\"1024\"", "receive=\"ring\""] {
        assert!(tuning.contains(pair), "{tuning}");
    }
    assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
    for name in [
        "relay_connections{shard=\"1\"}",
        "relay_connections_accepted_total{shard=\"0\"}",
        "relay_connections_closed_total{shard=\"0\",reason=\"stalled\"}",
        "relay_events_total{shard=\"0\",result=\"accepted\",reason=\"stored\"}",
        "relay_subscriptions_ended_total{shard=\"0\",reason=\"slow_consumer\"}",
        "relay_queue_depth{shard=\"0\",queue=\"verify\"}",
        "relay_delivered_total{shard=\"0\",source=\"live\"}",
        "relay_wakes_total{shard=\"1\"}",
        "relay_commit_seconds_bucket{le=\"0.01\"}",
        "relay_scan_queue",
        "relay_store_events",
    ] {
        let start = format!("{name} ");
        assert!(text.lines().any(|line| line.starts_with(&start)), "{name} in\n{text}");
    }
    assert!(get(&address, "/ready", "").starts_with("HTTP/1.1 200"));
    assert!(get(&address, "/health", "").starts_with("HTTP/1.1 200"));
    let done = relay.stop();
    assert_eq!(metrics_address(&done.err), Some(address.as_str()), "{}", done.err);
    assert!(
        done.err.contains("tuning batch_bytes_max=65536 batch_pieces_max=256 "),
        "{}",
        done.err
    );
}

#[test]
fn a_metrics_port_that_is_taken_matters_only_if_it_was_chosen() {
    let dir = Directory::new();
    let data = dir.file("data");
    // If this fails another process has it, which will do.
    let _default = TcpListener::bind("127.0.0.1:7778");
    let relay = Relay::start(&data, &["--set", "admin.listen=127.0.0.1:7778"]);
    let done = relay.stop();
    assert_eq!(done.code, 0);
    assert!(done.err.contains("metrics are not served: the port is taken"), "{}", done.err);

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let set = format!("admin.listen={}", taken.local_addr().unwrap());
    let done = run(&["--data", &data, "--listen", "127.0.0.1:0", "--set", &set]);
    assert_eq!((done.code, done.out.as_str()), (1, ""));
    assert!(done.err.contains("admin.listen = 127.0.0.1:"), "{}", done.err);
}

#[test]
fn a_taken_address_is_a_clear_error() {
    let dir = Directory::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let done = run(&["--data", &dir.file("data"), "--listen", &address, "--set", "admin.listen="]);
    assert_eq!((done.code, done.out.as_str()), (1, ""));
    assert!(done.err.contains(&format!("cannot listen on {address}")), "{}", done.err);
    assert!(!dir.path().join("data/admin.sock").exists());
}

#[test]
fn a_second_signal_ends_the_relay_at_once() {
    let dir = Directory::new();
    let relay = Relay::start(&dir.file("data"), &["--set", "limits.drain_ms_max=60000"]);
    // A client that does not answer the close keeps the drain waiting.
    let mut client = TcpStream::connect(&relay.address).unwrap();
    write!(
        client,
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    .unwrap();
    let mut head = [0; 12];
    client.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 101");
    relay.signal();
    std::thread::sleep(Duration::from_millis(300));
    relay.signal();
    let done = relay.wait();
    assert_eq!(done.code, 130, "{}", done.err);
    assert!(done.err.contains("second signal"), "{}", done.err);
}
