//! A WebSocket client by `tungstenite`, which nobody here wrote, with the words of NIP-01.

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{Error, Message, WebSocket};

use super::{Event, Filter, PATIENCE};

/// What a relay says.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Ok {
        id: String,
        accepted: bool,
        text: String,
    },
    Event {
        subscription: String,
        event: Event,
    },
    Eose {
        subscription: String,
    },
    Closed {
        subscription: String,
        text: String,
    },
    Notice {
        text: String,
    },
    /// The answer to a COUNT (NIP-45).
    Count {
        query: String,
        answer: Value,
    },
    Pong(Vec<u8>),
    /// A close frame, with its code.
    Close(Option<u16>),
    /// The connection is gone.
    Gone,
}

impl Answer {
    /// Reads one message of the relay, and refuses what NIP-01 does not know.
    pub fn read(text: &str) -> Self {
        let value: Vec<Value> = serde_json::from_str(text).expect("the relay sends JSON arrays");
        let string = |at: usize| value[at].as_str().expect("a string").to_owned();
        let count = |n: usize| assert_eq!(value.len(), n, "{text}");
        match value[0].as_str().expect("a type") {
            "OK" => {
                count(4);
                let accepted = value[2].as_bool().expect("a boolean");
                Self::Ok { id: string(1), accepted, text: string(3) }
            }
            "EVENT" => {
                count(3);
                let keys = value[2].as_object().expect("an object").len();
                assert_eq!(keys, 7, "an event has seven keys: {text}");
                let event = Event::deserialize_from(&value[2]);
                Self::Event { subscription: string(1), event }
            }
            "EOSE" => {
                assert!(matches!(value.len(), 2 | 3), "{text}");
                Self::Eose { subscription: string(1) }
            }
            "CLOSED" => {
                count(3);
                Self::Closed { subscription: string(1), text: string(2) }
            }
            "NOTICE" => {
                count(2);
                Self::Notice { text: string(1) }
            }
            "COUNT" => {
                count(3);
                Self::Count { query: string(1), answer: value[2].clone() }
            }
            other => panic!("the relay said {other}: {text}"),
        }
    }
}

impl Event {
    fn deserialize_from(value: &Value) -> Self {
        serde::Deserialize::deserialize(value).expect("an event")
    }
}

/// A connection to the relay. What comes while it waits for something else is kept, in order.
#[derive(Debug)]
pub struct Client {
    socket: WebSocket<TcpStream>,
    kept: VecDeque<Answer>,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the relay listens");
        Self::over(stream)
    }

    /// The handshake over a stream that is connected already.
    pub fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("a socket option");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket option");
        let url = format!("ws://{}/", stream.peer_addr().expect("a connected socket"));
        let config = WebSocketConfig::default().max_message_size(Some(64 << 20));
        let (socket, _) = tungstenite::client::client_with_config(url, stream, Some(config))
            .expect("a handshake");
        Self { socket, kept: VecDeque::new() }
    }

    pub fn send(&mut self, text: impl Into<String>) {
        self.socket.send(Message::text(text.into())).expect("the connection is open");
    }

    /// Sends many messages in as few writes as the library makes.
    pub fn send_all(&mut self, texts: impl IntoIterator<Item = String>) {
        for text in texts {
            self.socket.write(Message::text(text)).expect("the connection is open");
        }
        self.socket.flush().expect("the connection is open");
    }

    pub fn ping(&mut self, payload: &[u8]) {
        self.socket.send(Message::Ping(payload.to_vec().into())).expect("the connection is open");
    }

    /// Starts the closing handshake.
    pub fn close(&mut self) {
        self.socket.close(None).expect("the connection is open");
    }

    /// The next message.
    pub fn next(&mut self) -> Answer {
        self.next_within(PATIENCE).unwrap_or_else(|| panic!("no message in {PATIENCE:?}"))
    }

    /// The next message, kept ones first; `None` when there is none in time.
    pub fn next_within(&mut self, within: Duration) -> Option<Answer> {
        if let Some(answer) = self.kept.pop_front() {
            return Some(answer);
        }
        self.receive(within)
    }

    fn receive(&mut self, within: Duration) -> Option<Answer> {
        let end = Instant::now() + within;
        loop {
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.socket.get_ref().set_read_timeout(Some(left)).expect("a socket option");
            match self.socket.read() {
                Ok(Message::Text(text)) => return Some(Answer::read(&text)),
                Ok(Message::Pong(payload)) => return Some(Answer::Pong(payload.to_vec())),
                Ok(Message::Close(frame)) => {
                    return Some(Answer::Close(frame.map(|frame| frame.code.into())));
                }
                Ok(Message::Ping(_)) => {}
                Ok(other) => panic!("the relay sent {other:?}"),
                Err(Error::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    if Instant::now() >= end {
                        return None;
                    }
                }
                Err(Error::ConnectionClosed | Error::AlreadyClosed | Error::Io(_)) => {
                    return Some(Answer::Gone);
                }
                Err(Error::Protocol(_)) => return Some(Answer::Gone),
                Err(error) => panic!("the relay broke the protocol: {error}"),
            }
        }
    }

    /// The first message that `wanted` accepts; the others are kept.
    pub fn wait<T>(&mut self, what: &str, wanted: impl Fn(&Answer) -> Option<T>) -> T {
        for at in 0..self.kept.len() {
            if let Some(found) = wanted(&self.kept[at]) {
                self.kept.remove(at);
                return found;
            }
        }
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let Some(answer) = self.receive(left) else {
                panic!("no {what} in {PATIENCE:?}; kept: {:?}", self.kept);
            };
            if let Some(found) = wanted(&answer) {
                return found;
            }
            assert_ne!(answer, Answer::Gone, "the connection ended before {what}");
            self.kept.push_back(answer);
        }
    }

    /// The OK to this event.
    pub fn wait_ok(&mut self, id: &str) -> (bool, String) {
        self.wait("OK", |answer| match answer {
            Answer::Ok { id: named, accepted, text } if named == id => {
                Some((*accepted, text.clone()))
            }
            _ => None,
        })
    }

    /// Sends an event; its OK.
    pub fn publish(&mut self, event: &Event) -> (bool, String) {
        self.send(event.message());
        self.wait_ok(&event.id)
    }

    /// Sends an event that is to be taken.
    pub fn publish_ok(&mut self, event: &Event) {
        assert_eq!(self.publish(event), (true, String::new()), "{}", event.json());
    }

    /// Sends a REQ.
    pub fn req(&mut self, subscription: &str, filters: &[Filter]) {
        self.send(req(subscription, filters));
    }

    /// Sends a CLOSE.
    pub fn unsubscribe(&mut self, subscription: &str) {
        self.send(format!("[\"CLOSE\",{}]", Value::from(subscription)));
    }

    /// The stored events of this subscription, up to its EOSE.
    pub fn stored(&mut self, subscription: &str) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            let event = self.wait("stored event or EOSE", |answer| match answer {
                Answer::Event { subscription: named, event } if named == subscription => {
                    Some(Some(event.clone()))
                }
                Answer::Eose { subscription: named } if named == subscription => Some(None),
                Answer::Closed { subscription: named, text } if named == subscription => {
                    panic!("CLOSED {named}: {text}")
                }
                _ => None,
            });
            match event {
                Some(event) => events.push(event),
                None => return events,
            }
        }
    }

    /// Opens a subscription, reads what is stored, closes it.
    pub fn query(&mut self, filters: &[Filter]) -> Vec<Event> {
        self.req("query", filters);
        let events = self.stored("query");
        self.unsubscribe("query");
        events
    }

    /// Asks how many events match (NIP-45); the answer's object.
    pub fn count(&mut self, filters: &[Filter]) -> Value {
        self.send(ask("COUNT", "count", filters));
        self.wait("COUNT", |answer| match answer {
            Answer::Count { query, answer } if query == "count" => Some(answer.clone()),
            _ => None,
        })
    }

    /// The next live event of this subscription.
    pub fn live(&mut self, subscription: &str) -> Event {
        self.wait("live event", |answer| match answer {
            Answer::Event { subscription: named, event } if named == subscription => {
                Some(event.clone())
            }
            _ => None,
        })
    }

    /// Shows that nothing else has been sent: the EOSE of a REQ that matches nothing comes next.
    pub fn nothing_else(&mut self) {
        self.req("nothing else", &[Filter::nothing()]);
        assert_eq!(self.next(), Answer::Eose { subscription: "nothing else".into() });
        self.unsubscribe("nothing else");
    }
}

/// `["REQ",…]`
pub fn req(subscription: &str, filters: &[Filter]) -> String {
    ask("REQ", subscription, filters)
}

fn ask(verb: &str, id: &str, filters: &[Filter]) -> String {
    let mut message = vec![Value::from(verb), Value::from(id)];
    message.extend(filters.iter().map(Filter::json));
    Value::from(message).to_string()
}
