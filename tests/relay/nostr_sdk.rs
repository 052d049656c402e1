//! The relay as `nostr-sdk` sees it: a client nobody here wrote.

use std::time::Duration;

use nostr_sdk::prelude::*;

use crate::support::{Launch, Server};

const PATIENCE: Duration = Duration::from_secs(30);

fn run<F: Future<Output = ()>>(test: impl FnOnce(Server) -> F) {
    let server = Launch::default()
        .shards(2)
        .set("limits.created_at_ahead_s_max", 0)
        .set("limits.event_tags_max", 2_000)
        .start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let test = async { tokio::time::timeout(4 * PATIENCE, test(server)).await.expect("in time") };
    runtime.expect("a runtime").block_on(test);
}

async fn connect(server: &Server, keys: &Keys) -> Client {
    let client = Client::builder().signer(keys.clone()).build();
    client.add_relay(server.url()).await.expect("a relay URL");
    let connected = client.try_connect(PATIENCE).await;
    assert!(connected.failed.is_empty(), "{connected:?}");
    client
}

/// Sends an event; the relay's reason when it refuses.
async fn publish(client: &Client, event: &Event) -> Option<String> {
    let output = client.send_event(event).await.expect("the relay is connected");
    assert_eq!(output.success.len() + output.failed.len(), 1);
    output.failed.into_values().next()
}

async fn fetch(client: &Client, filter: Filter) -> Vec<Event> {
    client.fetch_events(filter, PATIENCE).await.expect("EOSE").into_iter().collect()
}

#[test]
fn publishes_and_queries() {
    run(|server| async move {
        let keys = Keys::generate();
        let client = connect(&server, &keys).await;
        let text = "stored \u{1f600} \"\\\n\t";
        let note = EventBuilder::text_note(text).tag(Tag::hashtag("sdk")).sign_with_keys(&keys);
        let note = note.expect("a signature");
        assert_eq!(publish(&client, &note).await, None);
        let by_tag = Filter::new().author(keys.public_key()).hashtag("sdk");
        assert_eq!(fetch(&client, by_tag.clone()).await, std::slice::from_ref(&note));
        assert_eq!(fetch(&client, by_tag.kind(Kind::Metadata)).await, []);
        let expired = EventBuilder::text_note("late").tag(Tag::expiration(Timestamp::from(5)));
        let expired = expired.sign_with_keys(&keys).expect("a signature");
        let refused = publish(&client, &expired).await.expect("refused");
        assert!(refused.contains("invalid: "), "{refused}");
        client.shutdown().await;
    });
}

#[test]
fn counts() {
    run(|server| async move {
        let keys = Keys::generate();
        let client = connect(&server, &keys).await;
        for n in 0..5 {
            let note = EventBuilder::text_note(n.to_string()).sign_with_keys(&keys);
            assert_eq!(publish(&client, &note.expect("a signature")).await, None);
        }
        let relay = client.relay(server.url()).await.expect("a relay of the pool");
        let count = async |filter| relay.count_events(filter, PATIENCE).await.expect("a count");
        let by_author = Filter::new().author(keys.public_key());
        assert_eq!(count(by_author.clone()).await, 5);
        assert_eq!(count(by_author.hashtag("no")).await, 0);
        client.shutdown().await;
    });
}

#[test]
fn hears_live_events() {
    run(|server| async move {
        let (writer, reader) = (Keys::generate(), Keys::generate());
        let (publisher, listener) =
            (connect(&server, &writer).await, connect(&server, &reader).await);
        let mut notifications = listener.notifications();
        let filter = Filter::new().author(writer.public_key()).limit(0);
        let subscribed = listener.subscribe(filter, None).await.expect("a subscription");
        assert!(subscribed.failed.is_empty());
        let eose =
            |message: &RelayMessage<'_>| matches!(message, RelayMessage::EndOfStoredEvents(_));
        loop {
            match notifications.recv().await.expect("the pool runs") {
                RelayPoolNotification::Message { message, .. } if eose(&message) => break,
                _ => {}
            }
        }
        let mut sent = Vec::new();
        for n in 0..20 {
            let event = EventBuilder::text_note(format!("live {n}")).sign_with_keys(&writer);
            let event = event.expect("a signature");
            assert_eq!(publish(&publisher, &event).await, None);
            sent.push(event.id);
        }
        let mut heard = Vec::new();
        while heard.len() < sent.len() {
            if let RelayPoolNotification::Event { event, .. } =
                notifications.recv().await.expect("the pool runs")
            {
                heard.push(event.id);
            }
        }
        assert_eq!(heard, sent);
        publisher.shutdown().await;
        listener.shutdown().await;
    });
}

#[test]
fn replaces_and_deletes() {
    run(|server| async move {
        let keys = Keys::generate();
        let client = connect(&server, &keys).await;
        let profile = |name: &str, at: u64| {
            let metadata = Metadata::new().name(name);
            let builder = EventBuilder::metadata(&metadata).custom_created_at(Timestamp::from(at));
            builder.sign_with_keys(&keys).expect("a signature")
        };
        let (old, new) = (profile("old", 1_700_000_000), profile("new", 1_700_000_001));
        assert_eq!(publish(&client, &old).await, None);
        assert_eq!(publish(&client, &new).await, None);
        let refused = publish(&client, &profile("older", 1_699_999_999)).await.expect("refused");
        assert!(refused.contains("duplicate: "), "{refused}");
        let profiles = Filter::new().kind(Kind::Metadata).author(keys.public_key());
        assert_eq!(fetch(&client, profiles.clone()).await, std::slice::from_ref(&new));
        let request = EventBuilder::delete(EventDeletionRequest::new().id(new.id));
        let request = request.sign_with_keys(&keys).expect("a signature");
        assert_eq!(publish(&client, &request).await, None);
        assert_eq!(fetch(&client, profiles).await, []);
        let refused = publish(&client, &new).await.expect("refused");
        assert!(refused.contains("blocked: "), "{refused}");
        client.shutdown().await;
    });
}

/// Real events that the relay is to take, sent and fetched back by kind.
#[test]
fn takes_real_events() {
    let lines = crate::corpus::corpus();
    run(|server| async move {
        let client = connect(&server, &Keys::generate()).await;
        let mut kept = std::collections::BTreeMap::new();
        for line in lines.iter().filter(|line| matches!(line.event.kind, 1_063 | 1_985 | 42)) {
            let event = Event::from_json(&line.json).expect("a real event");
            assert_eq!(publish(&client, &event).await, None, "{}", line.json);
            kept.insert(event.id, event);
        }
        let kinds = [1_063, 1_985, 42].map(Kind::from);
        let found = fetch(&client, Filter::new().kinds(kinds)).await;
        assert_eq!(found.len(), kept.len());
        for event in found {
            assert_eq!(kept.get(&event.id), Some(&event));
        }
        client.shutdown().await;
    });
}
