//! What one connection may have the store look at.

use crate::support::{Answer, Author, Client, Draft, Filter, Launch, now};

fn closed(client: &mut Client) -> String {
    client.wait("CLOSED", |answer| match answer {
        Answer::Closed { subscription, text } if subscription == "s" => Some(text.clone()),
        _ => None,
    })
}

#[test]
fn a_query_that_looks_at_too_much_is_closed_and_others_go_on() {
    let server = Launch::default()
        .counted()
        .set("limits.connection_query_entries_max", 300)
        .set("limits.connection_query_entries_per_s", 20)
        .set("limits.recent_events_max", 0)
        .set("tuning.slice_entries_max", 64)
        .start();
    let mut client = server.connect();
    let (author, at) = (Author::new(1), now() - 10_000);
    let notes: Vec<_> = (0..600).map(|n| author.note(at + n, "a note")).collect();
    notes.iter().for_each(|note| client.publish_ok(note));
    let topic = Draft::new(1, at).tag(["t", "x"]).sign(&author);
    client.publish_ok(&topic);

    // It walks along all there is.
    let everything = Filter::default().limit(5_000);
    client.req("s", &[everything.clone()]);
    assert_eq!(closed(&mut client), "rate-limited: the query looks at too many stored events");
    client.req("s", &[everything]);
    let refused = "rate-limited: this connection's queries have looked at too many stored events";
    assert_eq!(closed(&mut client), refused);

    // Others are served, and so is this client after a while.
    let few = Filter::default().tag('t', ["x"]).limit(10);
    assert_eq!(server.connect().query(&[few.clone()]), [topic.clone()]);
    let newest = Filter::default().limit(200);
    assert_eq!(server.connect().query(&[newest]).len(), 200);
    crate::support::wait_until("the connection to be served again", || {
        client.req("s", &[few.clone()]);
        client.wait("an answer", |answer| match answer {
            Answer::Eose { .. } => Some(true),
            Answer::Closed { text, .. } => {
                assert_eq!(text, refused);
                Some(false)
            }
            _ => None,
        })
    });
    crate::support::wait_until("the ended subscription to be counted", || {
        server.counts().of("subscriptions_ended", "over_budget") == 1
    });
    assert!(server.stop().success());
}
