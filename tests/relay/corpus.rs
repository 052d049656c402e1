//! Real events, all of them, over WebSocket: each gets the verdict the oracle gives it, and random
//! filters select what a loop over a list selects, in the same order.
//!
//! The corpus is not ours to copy: it lies beside the repository (`../shared/corpus`), or where
//! `RHEOSTR_CORPUS` points. Without it these tests say so and pass; the synthetic events go in either
//! way. Limits in force: no bound on `created_at`, 2,000 tags, messages of 512,000 bytes.

use std::collections::HashMap;
use std::path::PathBuf;

use crate::support::event::Controls;
use crate::support::oracle::{Verdict, select};
use crate::support::server::rheostr;
use crate::support::{Answer, Author, Client, Draft, Event, Filter, Launch, Oracle, Rules, Server};
use crate::support::{alone, now};

/// Filters tried after the whole corpus is in.
const FILTERS: usize = 500;
const CONNECTIONS: usize = 4;
/// Events of one connection that wait for their OK.
const IN_FLIGHT: usize = 100;
/// What the relay is told, and the limit of a filter without one.
const FILTER_LIMIT_MAX: u64 = 5_000;

/// An event and the JSON it came as.
pub struct Line {
    pub event: Event,
    pub json: String,
}

pub fn corpus() -> Vec<Line> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/corpus/real-events.jsonl");
    let path = std::env::var_os("RHEOSTR_CORPUS").map_or_else(|| beside.into(), PathBuf::from);
    let Ok(text) = std::fs::read_to_string(&path) else {
        eprintln!("SKIPPED the corpus: {} is not there; synthetic events only", path.display());
        return Vec::new();
    };
    let read = |json: &str| {
        let event = serde_json::from_str(json).expect("the corpus holds events");
        Line { event, json: json.to_owned() }
    };
    let lines: Vec<_> = text.lines().map(read).collect();
    assert!(lines.len() > 4_000, "{} holds {} events", path.display(), lines.len());
    lines
}

/// What the corpus lacks: control characters signed in both serializations, versions in every order,
/// ties, deletions before and after, expired, ephemeral and protected events.
fn synthetic() -> Vec<Line> {
    let mut random = fastrand::Rng::with_seed(7);
    let mut events: Vec<Event> = Vec::new();
    let start = now() - 100_000;
    for n in 0..600_u64 {
        let author = Author::new(n % 12);
        let kind = [1, 1, 0, 3, 5, 7, 10_002, 20_000, 30_023, 30_023, 40_000, 65_535];
        let kind = kind[random.usize(..kind.len())];
        let mut draft = Draft::new(kind, start + random.u64(..60));
        let control = char::from(random.u8(..0x20));
        draft = draft.content(format!("{n} {control} \u{7f}\u{1f600}\\ \" / {control}"));
        if random.bool() {
            draft = draft.tag(["t", &format!("{}{control}", random.u8(..5)), "second"]);
        }
        if kind == 30_023 {
            draft =
                draft.tag(["d", ["", "a", "a:b", "\u{1}", &"d".repeat(300)][random.usize(..5)]]);
        }
        let own: Vec<_> = events.iter().filter(|event| event.pubkey == author.hex()).collect();
        if let (5, Some(target)) = (kind, random.choice(&own)) {
            draft = draft.tag(["e", &target.id]);
            let address = crate::support::oracle::address(target);
            if let Some((kind, pubkey, d)) = address.filter(|_| random.bool()) {
                draft = draft.tag(["a", &format!("{kind}:{pubkey}:{d}")]);
            }
        }
        match random.u8(..20) {
            0 => draft = draft.tag(["expiration", "1600000000"]),
            1 => draft = draft.tag(["expiration", "4000000000"]),
            2 => draft = draft.tag(["-"]),
            _ => {}
        }
        let controls = if random.bool() { Controls::Verbatim } else { Controls::Escaped };
        events.push(draft.sign_over(&author, controls));
    }
    random.shuffle(&mut events);
    let again: Vec<_> = events[..30].to_vec();
    events.extend(again);
    let line = |event: Event| Line { json: event.json(), event };
    events.into_iter().map(line).collect()
}

fn lines() -> Vec<Line> {
    let mut lines = corpus();
    lines.extend(synthetic());
    lines
}

fn launch(shards: usize) -> Launch {
    Launch::default()
        .shards(shards)
        .set("limits.created_at_age_s_max", 0)
        .set("limits.created_at_ahead_s_max", 0)
        .set("limits.event_tags_max", 2_000)
        .set("limits.message_bytes_max", 512_000)
        .set("limits.filter_limit_max", FILTER_LIMIT_MAX)
}

#[test]
fn every_verdict_and_filter_on_one_shard() {
    exact(1);
}

#[test]
fn every_verdict_and_filter_on_two_shards() {
    exact(2);
}

/// All events of an author go over one connection, in order, so every verdict is determined.
fn exact(shards: usize) {
    let _alone = alone();
    let server = launch(shards).start();
    let lines = lines();
    let mut oracle = Oracle::new(Rules::open(now()));
    let expected: Vec<_> = lines.iter().map(|line| oracle.submit(&line.event)).collect();
    let mut parts: [Vec<usize>; CONNECTIONS] = Default::default();
    for (at, line) in lines.iter().enumerate() {
        let author = usize::from_str_radix(&line.event.pubkey[..4], 16).expect("hex");
        parts[author % CONNECTIONS].push(at);
    }
    publish(&server, &lines, &parts, &|at, answer| expected[at].is(answer), &expected);
    let accepted = expected.iter().filter(|verdict| verdict.accepted).count();
    let (sent, kept) = (lines.len(), oracle.stored().len());
    eprintln!("{shards} shards: {sent} events sent, {accepted} accepted, {kept} kept");
    compare(&server, &oracle, FILTERS);
    scan_agrees(&server, &oracle);
    let directory = tempfile::tempdir().expect("a directory");
    let kept = directory.path().join("data");
    assert!(server.stop_and_keep(&kept).success());
    assert!(rheostr(["check"], &kept).status.success(), "every index agrees with every event");
    let server = launch(shards).data(&kept).start();
    compare(&server, &oracle, 50);
}

/// Events go over any connection in any order; whatever it is, the same ones are visible in the end.
#[test]
fn any_order_ends_alike() {
    let _alone = alone();
    let server = launch(2).start();
    let lines = lines();
    let mut oracle = Oracle::new(Rules::open(now()));
    let first: Vec<_> = lines.iter().map(|line| oracle.submit(&line.event)).collect();
    let mut random = fastrand::Rng::with_seed(1);
    let mut order: Vec<_> = (0..lines.len()).collect();
    random.shuffle(&mut order);
    let mut parts: [Vec<usize>; CONNECTIONS] = Default::default();
    order.into_iter().for_each(|at| parts[random.usize(..CONNECTIONS)].push(at));
    let fits = |at: usize, answer: &(bool, String)| {
        let any = [Verdict::STORED, Verdict::DUPLICATE, Verdict::SUPERSEDED, Verdict::BLOCKED];
        if oracle.contains(&lines[at].event.id) {
            answer.0
        } else if any.contains(&first[at]) {
            any.iter().any(|verdict| verdict.is(answer))
        } else {
            first[at].is(answer)
        }
    };
    publish(&server, &lines, &parts, &fits, &first);
    compare(&server, &oracle, 100);
}

/// Sends each part over its own connection; every event gets exactly one OK, which must fit.
fn publish(
    server: &Server,
    lines: &[Line],
    parts: &[Vec<usize>],
    fits: &(dyn Fn(usize, &(bool, String)) -> bool + Sync),
    expected: &[Verdict],
) {
    std::thread::scope(|scope| {
        for part in parts {
            scope.spawn(move || {
                let mut client = server.connect();
                for chunk in part.chunks(IN_FLIGHT) {
                    let message = |at: &usize| format!("[\"EVENT\",{}]", lines[*at].json);
                    client.send_all(chunk.iter().map(message));
                    for at in chunk {
                        let answer = client.wait_ok(&lines[*at].event.id);
                        let json = &lines[*at].json;
                        let wanted = expected[*at];
                        assert!(fits(*at, &answer), "{answer:?}, not {wanted:?}: {json:.500}");
                    }
                }
                client.nothing_else();
            });
        }
    });
}

/// Random filters, over several connections, against the oracle.
fn compare(server: &Server, oracle: &Oracle, filters: usize) {
    let stored = oracle.stored();
    let mut clients: Vec<_> = (0..4).map(|_| server.connect()).collect();
    let all = receive(&mut clients[0], &[Filter::default()]);
    let ids = |events: &[&Event]| events.iter().map(|event| event.id.clone()).collect::<Vec<_>>();
    assert_eq!(all.len(), stored.len().min(usize::try_from(FILTER_LIMIT_MAX).expect("64 bits")));
    for (received, expected) in all.iter().zip(&stored) {
        assert_eq!(received, *expected, "events come back as they were sent");
    }
    let mut random = fastrand::Rng::with_seed(42);
    let mut found = 0;
    for n in 0..filters {
        let list: Vec<_> =
            (0..random.usize(1..=4)).map(|_| random_filter(&mut random, &stored)).collect();
        let list = if n % 2 == 0 { list[..1].to_vec() } else { list };
        let expected = select(&stored, &list, FILTER_LIMIT_MAX);
        let received = receive(&mut clients[n % 4], &list);
        let received: Vec<_> = received.iter().collect();
        let request = || crate::support::client::req("query", &list);
        assert_eq!(ids(&received), ids(&expected), "filter {n}: {:.2000}", request());
        let counted = clients[n % 4].count(&list);
        let expected = select(&stored, &list, u64::MAX);
        assert_eq!(counted["count"], expected.len(), "filter {n}: {:.2000}", request());
        found += expected.len();
    }
    assert!(found > filters * 10, "the filters find something: {found}");
}

/// As `Client::query`, but fails on anything that is not this query's.
fn receive(client: &mut Client, filters: &[Filter]) -> Vec<Event> {
    client.req("query", filters);
    let mut events = Vec::new();
    loop {
        match client.next() {
            Answer::Event { event, .. } => events.push(event),
            Answer::Eose { .. } => return events,
            other => panic!("{other:?}"),
        }
    }
}

/// A filter of values that occur in `events`, and of some that do not.
fn random_filter(random: &mut fastrand::Rng, events: &[&Event]) -> Filter {
    let mut filter = Filter::default();
    let pick = |random: &mut fastrand::Rng| events[random.usize(..events.len())];
    let nowhere = "ab".repeat(32);
    if random.u8(..10) < 2 {
        let count = random.usize(..30);
        let mut ids: Vec<_> = (0..count).map(|_| pick(random).id.clone()).collect();
        ids.push(nowhere.clone());
        filter = filter.ids(ids.iter().map(String::as_str));
    }
    if random.u8(..10) < 4 {
        let count = random.usize(..20);
        let mut authors: Vec<_> = (0..count).map(|_| pick(random).pubkey.clone()).collect();
        authors.extend(random.bool().then_some(nowhere));
        filter = filter.authors(authors);
    }
    if random.u8(..10) < 5 {
        let count = random.usize(..5);
        filter = filter.kinds((0..count).map(|_| pick(random).kind).collect::<Vec<_>>());
    }
    if random.u8(..10) < 4 {
        for _ in 0..random.usize(1..=2) {
            add_tag(random, &mut filter, events);
        }
    }
    let near = |random: &mut fastrand::Rng| pick(random).created_at + random.u64(..3) - 1;
    if random.u8(..10) < 3 {
        filter.since = Some(near(random));
    }
    if random.u8(..10) < 3 {
        filter.until = Some(near(random));
    }
    let wide = filter == Filter::default();
    if wide || random.u8(..10) < 4 {
        let limits = [0, 1, 2, 3, 7, 10, 50, 100, 499, 500, 5_000, u64::MAX];
        filter.limit = Some(limits[random.usize(..if wide { 8 } else { 12 })]);
    }
    filter
}

/// Adds a tag condition: one letter, some of its values.
fn add_tag(random: &mut fastrand::Rng, filter: &mut Filter, events: &[&Event]) {
    let key =
        |value: &str| value.len() == 64 && !value.contains(|c| !matches!(c, '0'..='9' | 'a'..='f'));
    let mut by_letter: HashMap<char, Vec<&str>> = HashMap::new();
    for _ in 0..200 {
        let event = events[random.usize(..events.len())];
        for tag in event.tags.iter().filter(|tag| tag[0].len() == 1).take(50) {
            let letter = tag[0].chars().next().expect("one character");
            let Some(value) = tag.get(1).filter(|_| letter.is_ascii_alphabetic()) else { continue };
            if !matches!(letter, 'e' | 'p') || key(value) {
                by_letter.entry(letter).or_default().push(value);
            }
        }
    }
    let mut letters: Vec<_> = by_letter.keys().copied().collect();
    letters.sort_unstable();
    let letter = letters[random.usize(..letters.len())];
    let values = &by_letter[&letter];
    let count = random.usize(1..10);
    let chosen: Vec<_> = (0..count).map(|_| values[random.usize(..values.len())]).collect();
    *filter = filter.clone().tag(letter, chosen);
}

/// The command line reads the same store while the relay runs on it.
fn scan_agrees(server: &Server, oracle: &Oracle) {
    let stored = oracle.stored();
    let mut random = fastrand::Rng::with_seed(9);
    for _ in 0..15 {
        let mut filter = random_filter(&mut random, &stored);
        filter.limit = filter.limit.map(|limit| limit.min(FILTER_LIMIT_MAX));
        let text = filter.json().to_string();
        let output = rheostr(["scan", &text], &server.data);
        assert!(output.status.success(), "{output:?}");
        let lines = String::from_utf8(output.stdout).expect("JSON is UTF-8");
        let events: Vec<Event> = lines
            .lines()
            .map(|line| serde_json::from_str(line).expect("one event a line"))
            .collect();
        let expected = select(&stored, std::slice::from_ref(&filter), u64::MAX);
        assert!(events.iter().eq(expected.iter().copied()), "scan {text:.2000}");
        filter.limit = None;
        let output = rheostr(["count", &filter.json().to_string()], &server.data);
        let count = select(&stored, &[filter], u64::MAX).len();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), count.to_string());
    }
}
