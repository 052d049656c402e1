//! Full-text search (NIP-50), in builds with that feature.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::client::Answer;
use crate::support::raw::Raw;
use crate::support::server::Server;
use crate::support::{Author, Client, Draft, Event, Launch, now, wait_until};

fn search(client: &mut Client, filter: &Value) -> Vec<Event> {
    client.send(json!(["REQ", "search", filter]).to_string());
    let found = client.stored("search");
    client.unsubscribe("search");
    found
}

fn document(server: &Server) -> String {
    let mut raw = Raw::connect(server.address());
    raw.send(b"GET / HTTP/1.1\r\nHost: a\r\nAccept: application/nostr+json\r\n\r\n");
    String::from_utf8(raw.rest()).unwrap()
}

fn closed(client: &mut Client, message: &Value) -> String {
    client.send(message.to_string());
    client.wait("a CLOSED", |answer| match answer {
        Answer::Closed { text, .. } => Some(text.clone()),
        _ => None,
    })
}

#[test]
fn what_is_stored_is_found_by_its_words_and_not_when_it_is_deleted() {
    let server = Launch::default().shards(2).set("store.search", true).start();
    assert!(document(&server).contains(r#""supported_nips":[1,9,11,40,45,50,62]"#));
    let mut client = server.connect();
    let author = Author::new(1);
    let note = |at, text: &str| author.note(now() - at, text);
    let once = note(1, "A relay in a long text about many other things than relays.");
    let twice = note(2, "relay, relay");
    let profile = Draft::new(0, now()).content(r#"{"name":"relay"}"#).sign(&Author::new(2));
    let other = note(3, "nothing of that");
    [&once, &twice, &profile, &other].into_iter().for_each(|event| client.publish_ok(event));
    let asked = json!({"search": "RELAY", "kinds": [1]});
    wait_until("the index to have it", || search(&mut client, &asked).len() == 2);
    assert_eq!(search(&mut client, &asked), [twice.clone(), once.clone()], "the best first");
    let one = json!({"search": "relay language:en domain:example.com", "kinds": [1], "limit": 1});
    assert_eq!(search(&mut client, &one), [twice.clone()], "unknown extensions are ignored");
    let all = json!({"search": "relay"});
    assert_eq!(search(&mut client, &all).len(), 3);
    let only_extensions = json!({"search": "include:spam", "kinds": [0]});
    assert_eq!(search(&mut client, &only_extensions), [profile]);
    assert_eq!(search(&mut client, &json!({"search": "zebra"})), []);

    // A search has no live part, and does not disturb one.
    client.send(json!(["REQ", "open", asked]).to_string());
    assert_eq!(client.stored("open").len(), 2);
    let late = note(0, "relay again");
    client.publish_ok(&late);
    assert_eq!(client.next_within(Duration::from_millis(300)), None);
    client.publish_ok(&Draft::new(5, now()).tag(["e", &*twice.id]).sign(&author));
    assert_eq!(search(&mut client, &one), [once.clone()], "at once, whatever the index knows");
    wait_until("the index to have the last", || {
        search(&mut client, &asked) == [late.clone(), once.clone()]
    });

    let two = closed(&mut client, &json!(["REQ", "x", {"search": "relay"}, {"kinds": [1]}]));
    assert!(two.starts_with("unsupported: "), "{two}");
    assert!(closed(&mut client, &json!(["REQ", "x", {"search": 1}])).starts_with("invalid: "));
    assert!(closed(&mut client, &json!(["COUNT", "x", all])).starts_with("unsupported: "));
    assert!(server.stop().success());
}

#[test]
fn a_relay_that_searches_starts_with_what_it_has() {
    let directory = tempfile::tempdir().unwrap();
    let launch = || Launch::default().data(directory.path());
    let plain = launch().start();
    let note = Author::new(1).note(now(), "found later");
    plain.connect().publish_ok(&note);
    let text = closed(&mut plain.connect(), &json!(["REQ", "x", {"search": "later"}]));
    assert!(text.starts_with("unsupported: "), "it is off: {text}");
    assert!(plain.stop().success());
    for _ in 0..2 {
        let mut server = launch().set("store.search", true).start();
        let mut client = server.connect();
        wait_until("the index to have it", || {
            search(&mut client, &json!({"search": "later"})) == [note.clone()]
        });
        server.kill();
    }
}

#[test]
fn a_search_that_looks_at_too_much_is_refused_before_it_is_made() {
    let server = Launch::default()
        .set("store.search", true)
        .set("limits.connection_query_entries_max", 10)
        .set("limits.connection_query_entries_per_s", 1)
        .start();
    let mut publisher = server.connect();
    for n in 0..20 {
        let text = if n == 0 { "a rare word" } else { "a word" };
        publisher.publish_ok(&Author::new(1).note(now() - n, text));
    }
    let asked = |text: &str| json!({"search": text, "limit": 1});
    wait_until("the index to have it", || {
        // Each asks on a connection of its own, with all it may look at.
        search(&mut server.connect(), &asked("rare")).len() == 1
    });
    let text = closed(&mut server.connect(), &json!(["REQ", "x", asked("word")]));
    assert_eq!(text, "rate-limited: the query looks at too many stored events");
    assert_eq!(search(&mut server.connect(), &asked("rare word")).len(), 1);
}
