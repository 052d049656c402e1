//! Stored queries that the newest events, which every shard has at hand, answer whole.

use crate::support::server::rheostr;
use crate::support::{Author, Draft, Filter, Launch, now};

#[test]
fn the_newest_events_are_at_hand_until_somebody_deletes_them() {
    let directory = tempfile::tempdir().unwrap();
    let launch = || {
        let launch = Launch::default().shards(2).counted().data(directory.path());
        launch.set("limits.recent_events_max", 20)
    };
    let server = launch().start();
    let mut client = server.connect();
    let author = Author::new(1);
    let at = now() - 1_000;
    let notes: Vec<_> = (0..30).map(|n| author.note(at - n, "a note")).collect();
    notes.iter().rev().for_each(|note| client.publish_ok(note));
    let profile = |at| Draft::new(0, at).sign(&author);
    client.publish_ok(&profile(at + 1));
    client.publish_ok(&profile(at + 2));

    let newest = |limit| Filter::default().limit(limit);
    let recalled = |count: u64| {
        let wanted = |counts: &crate::support::counts::Counts| counts.get("scans_recalled");
        crate::support::wait_until("the query to be counted", || wanted(&server.counts()) >= count);
        assert_eq!(wanted(&server.counts()), count);
    };
    // On either shard, and the old version of the profile on none.
    for _ in 0..2 {
        let mut client = server.connect();
        let expected: Vec<_> = [&[profile(at + 2)], &notes[..9]].concat();
        assert_eq!(client.query(&[newest(10)]), expected);
    }
    recalled(2);
    // More than are at hand; and, by id, what is.
    assert_eq!(client.query(&[newest(25)]).len(), 25);
    assert_eq!(client.query(&[Filter::default().ids([&*notes[0].id])]), [notes[0].clone()]);
    recalled(2);
    assert_eq!(client.query(&[newest(20).kinds([1])]).len(), 20, "one makes room for the profile");

    let by_operator = r#"{"kinds":[0]}"#;
    let deleted = rheostr(["delete", "--filter", by_operator], &server.data);
    assert_eq!(String::from_utf8_lossy(&deleted.stdout), "1 events deleted\n");
    let request = Draft::new(5, at + 3).tag(["e", &*notes[0].id]).sign(&author);
    client.publish_ok(&request);
    let expected: Vec<_> = [&[request.clone()], &notes[1..3]].concat();
    for _ in 0..2 {
        assert_eq!(server.connect().query(&[newest(3)]), expected);
    }
    assert!(server.stop().success());

    // One that starts knows them too.
    let server = launch().start();
    assert_eq!(server.connect().query(&[newest(3)]), expected);
    crate::support::wait_until("the query to be counted", || {
        server.counts().get("scans_recalled") == 1
    });
    assert!(server.stop().success());
}
