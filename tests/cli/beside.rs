//! Commands beside a running relay, and its admin socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    Directory, Relay, event, id_of, ids, lines, newest_first, note, ok, ok_with, run, run_with,
};

#[test]
fn commands_work_beside_a_running_relay() {
    let dir = Directory::new();
    let data = dir.file("data");
    let relay = Relay::start(&data, &[]);
    let mut events: Vec<Value> = (0..2_100).map(|n| note(1_700_000_000 + n, "x")).collect();
    let profile = event(2, 1_700_000_005, 0, json!([]), "");
    events.push(profile.clone());
    let older = event(2, 1_700_000_004, 0, json!([]), "");
    let input = format!("{}{older}\n{profile}\nnonsense\n", lines(&events));

    let done = run_with(&input, &["import", "--data", &data, "--json"]);
    assert_eq!(done.code, 0, "{}", done.err);
    let report: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(report["imported"], json!(2_101));
    assert_eq!(report["duplicate"], json!(1));
    assert_eq!(report["superseded"], json!(1));
    assert_eq!(report["rejected"], json!(1));
    assert!(done.err.contains("line 2104: not JSON"), "{}", done.err);

    let expected = newest_first(&events);
    assert_eq!(ids(&ok(&["scan", "--data", &data, "{}"])), expected);
    assert_eq!(ok(&["export", "--data", &data]).lines().count(), 2_101);
    let filter = r#"{"kinds":[1],"limit":1500}"#;
    let dry = ok(&["delete", "--data", &data, "--filter", filter, "--dry-run"]);
    assert_eq!(dry, "1500 events would be deleted\n");
    assert_eq!(ok(&["delete", "--data", &data, "--filter", filter]), "1500 events deleted\n");
    assert_eq!(ids(&ok(&["scan", "--data", &data, "{}"])), expected[1_500..]);
    ok(&["check", "--data", &data]);

    let info: Value = serde_json::from_str(&ok(&["info", "--data", &data, "--json"])).unwrap();
    assert_eq!(info["events"], json!(601));
    assert_eq!(info["relay"]["pid"], json!(relay.pid()));
    assert_eq!(info["relay"]["url"], json!(format!("ws://{}", relay.address)));
    assert_eq!(relay.stop().code, 0);
    assert_eq!(ok(&["count", "--data", &data, "{}"]), "601\n");
}

#[test]
fn one_directory_has_one_relay() {
    let dir = Directory::new();
    let data = dir.file("data");
    let relay = Relay::start(&data, &[]);
    let second = run(&["--data", &data, "--listen", "127.0.0.1:0"]);
    assert_eq!((second.code, second.out.as_str()), (1, ""));
    assert!(second.err.contains(&format!("pid {}", relay.pid())), "{}", second.err);

    // A relay that does not answer is named, and nothing is written.
    std::fs::remove_file(dir.path().join("data/admin.sock")).unwrap();
    for command in
        [&["import", "--data", &data][..], &["delete", "--data", &data, "--filter", "{}"]]
    {
        let done = run_with(&note(1, "a").to_string(), command);
        assert_eq!((done.code, done.out.as_str()), (1, ""));
        assert!(done.err.contains(&format!("pid {}", relay.pid())), "{}", done.err);
        assert!(done.err.contains("no relay answers at "), "{}", done.err);
    }
    assert_eq!(ok(&["count", "--data", &data, "{}"]), "0\n");
}

#[test]
fn a_socket_left_behind_is_no_obstacle() {
    let dir = Directory::new();
    let data = dir.file("data");
    // Dropping it kills it.
    drop(Relay::start(&data, &[]));
    let socket = dir.path().join("data/admin.sock");
    assert!(socket.exists());
    ok_with(&note(1, "a").to_string(), &["import", "--data", &data]);
    let relay = Relay::start(&data, &[]);
    ok_with(&note(2, "b").to_string(), &["import", "--data", &data]);
    assert_eq!(relay.stop().code, 0);
    assert!(!socket.exists());
}

#[test]
fn a_long_path_has_a_socket_too() {
    let dir = Directory::new();
    let data = dir.file(&format!("{}/data", "long".repeat(40)));
    let relay = Relay::start(&data, &[]);
    ok_with(&note(2, "b").to_string(), &["import", "--data", &data]);
    assert_eq!(relay.stop().code, 0);
}

/// The admin socket, spoken by hand.
struct Admin(BufReader<UnixStream>);

impl Admin {
    fn connect(dir: &Directory) -> Self {
        let stream = UnixStream::connect(dir.path().join("data/admin.sock")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Self(BufReader::new(stream))
    }

    fn say(&mut self, text: &str) {
        self.0.get_mut().write_all(format!("{text}\n").as_bytes()).unwrap();
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line
    }

    fn is_closed(&mut self) -> bool {
        self.hear().is_empty()
    }
}

#[test]
fn the_admin_socket_is_the_owner_s_and_survives_nonsense() {
    let dir = Directory::new();
    let data = dir.file("data");
    let relay = Relay::start(&data, &[]);
    let mode = std::fs::metadata(dir.path().join("data/admin.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    for (first, answer) in [
        ("nonsense", "not a request"),
        ("", "not a request"),
        (r#"{"command":"reboot"}"#, "unknown variant"),
        (r#"{"command":"info","x":1}"#, "unknown field"),
        (r#"{"command":"delete","filters":[{"colour":1}]}"#, "unsupported: no filter field"),
    ] {
        let mut admin = Admin::connect(&dir);
        admin.say(first);
        let heard = admin.hear();
        assert!(heard.starts_with("{\"error\":") && heard.contains(answer), "{first}: {heard}");
        assert!(admin.is_closed(), "{first}");
    }

    let good = note(5, "good");
    let ephemeral = event(1, 5, 20_001, json!([]), "");
    for (chunk, answer) in [
        ("{\"events\":1001}".to_owned(), "at most 1000 events"),
        ("nonsense".to_owned(), "not the head of a chunk"),
        ("{\"events\":2}\n{}\n{}".to_owned(), "event 1: "),
        (format!("{{\"events\":2}}\n{good}\n{ephemeral}"), "event 2: an ephemeral event"),
    ] {
        let mut admin = Admin::connect(&dir);
        admin.say(r#"{"command":"import"}"#);
        assert_eq!(admin.hear(), "{\"ready\":true}\n");
        admin.say(&chunk);
        let heard = admin.hear();
        assert!(heard.contains(answer), "{chunk}: {heard}");
        assert!(admin.is_closed(), "{chunk}");
    }
    assert_eq!(ok(&["count", "--data", &data, "{}"]), "0\n", "a refused chunk leaves nothing");

    // Several at once take turns; one too many is told so.
    let mut open: Vec<Admin> = (0..4)
        .map(|_| {
            let mut admin = Admin::connect(&dir);
            admin.say(r#"{"command":"import"}"#);
            assert_eq!(admin.hear(), "{\"ready\":true}\n");
            admin
        })
        .collect();
    let mut fifth = Admin::connect(&dir);
    assert!(fifth.hear().contains("too many admin connections"));
    for (n, admin) in (0..).zip(&mut open) {
        admin.say(&format!("{{\"events\":1}}\n{}", note(n, "one of four")));
    }
    for admin in &mut open {
        assert_eq!(admin.hear(), "{\"verdicts\":[\"stored\"]}\n");
    }

    // Idle clients do not hold up the end.
    let done = relay.stop();
    assert_eq!(done.code, 0, "{}", done.err);
    assert_eq!(ok(&["count", "--data", &data, "{}"]), "4\n");
}

#[test]
fn what_is_imported_reaches_subscribers() {
    let dir = Directory::new();
    let data = dir.file("data");
    let relay = Relay::start(&data, &[]);
    let stream = std::net::TcpStream::connect(&relay.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let (mut socket, _) = tungstenite::client(format!("ws://{}/", relay.address), stream).unwrap();
    socket.send(tungstenite::Message::text(r#"["REQ","s",{"kinds":[1]}]"#)).unwrap();
    let eose = socket.read().unwrap().into_text().unwrap();
    assert!(eose.as_str().starts_with("[\"EOSE\",\"s\""), "{eose}");
    let event = note(1_700_000_000, "imported");
    ok_with(&event.to_string(), &["import", "--data", &data]);
    let heard: Value = serde_json::from_str(socket.read().unwrap().to_text().unwrap()).unwrap();
    assert_eq!((&heard[0], &heard[2]["id"]), (&json!("EVENT"), &json!(id_of(&event))));
}
