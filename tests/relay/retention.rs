//! A relay with rules of retention: what it refuses, and what it counts.

use crate::support::{Author, Draft, Filter, Launch, now, wait_until};

#[test]
fn what_a_rule_of_age_would_erase_is_refused() {
    let rules = "[{kinds = [7], age_s_max = 1000}, {age_s_max = 5000}]";
    let server = Launch::default().counted().set("retention", rules).start();
    let (author, mut client) = (Author::new(1), server.connect());
    let event = |kind, age| Draft::new(kind, now() - age).sign(&author);
    let refused = |age: u64, kind: u16| {
        let why = format!(
            "invalid: created_at is more than {age} seconds ago, and events of kind {kind} are kept no longer"
        );
        (false, why)
    };
    assert_eq!(client.publish(&event(7, 1_100)), refused(1_000, 7));
    assert_eq!(client.publish(&event(1, 5_100)), refused(5_000, 1));
    for (kind, age) in [(7, 900), (1, 4_900), (5, 9_000)] {
        client.publish_ok(&event(kind, age));
    }
    assert_eq!(client.query(&[Filter::default()]).len(), 3);
}

#[test]
fn what_the_rules_have_had_erased_is_counted_by_rule() {
    let directory = tempfile::tempdir().unwrap();
    let launch = || Launch::default().data(directory.path()).counted();
    let plain = launch().start();
    assert!(!plain.scrape().contains("retention"), "there are no rules");
    let (author, mut client) = (Author::new(1), plain.connect());
    for n in 0..10 {
        client.publish_ok(&author.note(now() - 2_000 * n, "note"));
    }
    assert!(plain.stop().success());
    let rules =
        "[{author_events_max = 7}, {kinds = [1], age_s_max = 11000}, {bytes_max = 1000000}]";
    let server = launch().set("retention", rules).start();
    let erased = |rule: &str| server.counts().of("retention_erased_events", rule);
    wait_until("a pass", || erased("age_s_max") == 1);
    assert_eq!((erased("author_events_max"), erased("bytes_max")), (3, 0));
    assert!(server.counts().of("retention_erased_bytes", "age_s_max") > 100);
    assert_eq!(server.connect().query(&[Filter::default()]).len(), 6);
}
