//! Counting (NIP-45).

use serde_json::json;

use crate::nip01::on_one_and_two_shards;
use crate::support::client::Answer;
use crate::support::{Author, Draft, Filter, Launch, now};

on_one_and_two_shards!(
    what_matches_is_counted_once,
    what_may_not_be_seen_is_not_counted,
    the_authors_of_reactions_make_registers,
    a_count_that_would_cost_too_much_is_closed,
    a_count_sees_what_was_acknowledged_before,
);

fn what_matches_is_counted_once(launch: Launch) {
    let server = launch.start();
    let mut client = server.connect();
    for author in 0..3 {
        for kind in [1, 1, 7] {
            let draft = Draft::new(kind, now() - 10).content(format!("{}", fastrand::u64(..)));
            client.publish_ok(&draft.sign(&Author::new(author)));
        }
    }
    let authors = |list: &[u64]| {
        Filter::default().authors(list.iter().map(|n| Author::new(*n).hex()).collect::<Vec<_>>())
    };
    let notes = Filter::default().kinds([1]);
    assert_eq!(client.count(&[Filter::default()]), json!({"count": 9}));
    assert_eq!(client.count(&[notes.clone()]), json!({"count": 6}));
    assert_eq!(client.count(&[notes.clone(), authors(&[0])]), json!({"count": 7}));
    assert_eq!(client.count(&[authors(&[0]), authors(&[0, 2])]), json!({"count": 6}));
    assert_eq!(client.count(&[notes.limit(4)]), json!({"count": 4}), "a limit is a limit");
    assert_eq!(client.count(&[Filter::nothing()]), json!({"count": 0}));
    client.nothing_else();
}

fn what_may_not_be_seen_is_not_counted(launch: Launch) {
    let url = "wss://relay.example/";
    let server = launch.set("relay_url", url).start();
    let mut client = server.connect();
    let (gone, stays) = (Author::new(1), Author::new(2));
    for n in 0..20 {
        client.publish_ok(&gone.note(now() - 100, &n.to_string()));
        client.publish_ok(&stays.note(now() - 100, &n.to_string()));
    }
    let soon = (now() + 2).to_string();
    client.publish_ok(&Draft::new(1, now() - 5).tag(["expiration", &soon]).sign(&stays));
    let withdrawn = stays.note(now() - 50, "withdrawn");
    client.publish_ok(&withdrawn);
    client.publish_ok(&Draft::new(5, now()).tag(["e", &withdrawn.id]).sign(&stays));
    client.publish_ok(&Draft::new(62, now()).tag(["relay", url]).sign(&gone));
    let notes = [Filter::default().kinds([1])];
    let count = client.count(&notes)["count"].as_u64().expect("a number");
    assert!(matches!(count, 20 | 21), "{count}");
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_eq!(client.count(&notes), json!({"count": 20}));
}

/// The registers by the words of the NIP, over whoever reacted.
fn the_authors_of_reactions_make_registers(launch: Launch) {
    let server = launch.start();
    let mut client = server.connect();
    let note = Author::new(1_000).note(now() - 100, "hello");
    let digit = u8::from_str_radix(&note.id[32..33], 16).expect("hex");
    let offset = usize::from(digit) + 8;
    let mut registers = [0_u8; 256];
    for n in 0..40 {
        let author = Author::new(n);
        for _ in 0..=n % 2 {
            let draft = Draft::new(7, now() - 50).tag(["e", &note.id]);
            client.publish_ok(&draft.content(format!("+{}", fastrand::u64(..))).sign(&author));
        }
        let hex = author.hex();
        let pubkey: Vec<u8> = (0..32)
            .map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).expect("hex"))
            .collect();
        let bits = pubkey.iter().flat_map(|byte| (0..8).map(move |bit| byte << bit & 0x80 != 0));
        let zeros = bits.skip(8 * (offset + 1)).take_while(|bit| !bit).count();
        let register = &mut registers[usize::from(pubkey[offset])];
        *register = (*register).max(u8::try_from(zeros + 1).expect("few"));
    }
    let reactions = Filter::default().kinds([7]).tag('e', [note.id.as_str()]);
    let answer = client.count(&[reactions.clone()]);
    assert_eq!(answer["count"], 60);
    assert_eq!(answer["hll"], faster_hex::hex_string(&registers));
    let two = client.count(&[reactions.clone(), reactions.clone()]);
    assert_eq!(two, json!({"count": 60}), "only for a single filter");
    let cut = client.count(&[reactions.limit(5)]);
    assert_eq!(cut, json!({"count": 5}), "only of all that match");
}

fn a_count_that_would_cost_too_much_is_closed(launch: Launch) {
    let server = launch.set("limits.count_entries_max", 20).start();
    let mut client = server.connect();
    let author = Author::new(1);
    let notes: Vec<_> = (0..30).map(|n| author.note(now() - 100 + n, "x")).collect();
    notes.iter().for_each(|note| client.publish_ok(note));
    client.send(r#"["COUNT","q",{}]"#);
    let text = "error: more than 20 index entries to count through".to_owned();
    assert_eq!(client.next(), Answer::Closed { subscription: "q".into(), text });
    let ids = Filter::default().ids(notes[..10].iter().map(|note| note.id.as_str()));
    assert_eq!(client.count(&[ids]), json!({"count": 10}), "ids cost what they find");
    client.nothing_else();
}

fn a_count_sees_what_was_acknowledged_before(launch: Launch) {
    let server = launch.start();
    let (mut writer, mut reader) = (server.connect(), server.connect());
    let author = Author::new(1);
    for n in 1..=50 {
        writer.publish_ok(&author.note(now() - 100 + n, "x"));
        assert_eq!(writer.count(&[Filter::default()]), json!({"count": n}));
    }
    // Many at once, more than are under way together, are all answered.
    for n in 0..60 {
        reader.send(format!("[\"COUNT\",\"{n}\",{{\"kinds\":[1]}}]"));
    }
    let mut answered: Vec<u32> = (0..60)
        .map(|_| match reader.next() {
            Answer::Count { query, answer } if answer == json!({"count": 50}) => {
                query.parse().expect("a number")
            }
            other => panic!("{other:?}"),
        })
        .collect();
    answered.sort_unstable();
    assert!(answered.into_iter().eq(0..60));
}
