//! Made events, the same for the same seed: keys that write unevenly, kinds and tags as they come on open
//! relays. Nobody signed them and their ids are drawn, so they go to the store past every check.

use faster_hex::hex_string;
use rheostr::nostr::event::{Fields, Id, Kind, Pubkey};
use rheostr::nostr::{Event, tag};

/// `created_at` of the first event.
pub const FIRST_S: u64 = 1_700_000_000;

/// Events of one second.
const PER_SECOND: u64 = 10;

/// Events that replies, reactions and deletions choose from: the last ones.
const RECENT: usize = 2_000;

/// What events look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Notes of 400 bytes with one tag.
    Plain,
    /// Kinds and sizes of many sorts, replaceable ones and deletions among them.
    Mixed,
}

/// An endless stream of events.
pub struct Stream {
    random: fastrand::Rng,
    shape: Shape,
    authors: u64,
    number: u64,
    /// A ring of the last events.
    recent: Vec<(Id, u64)>,
}

impl Stream {
    /// The stream of this seed; `authors` keys write it, few of them most.
    #[must_use]
    pub fn new(seed: u64, shape: Shape, authors: u64) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        Self { random, shape, authors, number: 0, recent: Vec::new() }
    }

    /// The newest `created_at` so far.
    #[must_use]
    pub fn now_s(&self) -> u64 {
        FIRST_S + self.number / PER_SECOND
    }

    /// A number below `count`, small ones more often: the n-th in proportion to 1/n.
    fn uneven_below(&mut self, count: u64) -> u64 {
        let drawn = (count as f64).powf(self.random.f64());
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within count")]
        let whole = drawn as u64;
        whole.saturating_sub(1).min(count - 1)
    }

    fn recent(&mut self) -> (Id, u64) {
        match self.recent.len() {
            0 => ([0x11; 32], 0),
            count => self.recent[self.random.usize(..count)],
        }
    }

    fn event(&mut self, author: u64, kind: u16, tags: &[Tag], content_bytes: usize) -> Event {
        let mut id = [0; 32];
        self.random.fill(&mut id);
        let pubkey = key(author);
        // One in twenty comes up to a day late, from another relay.
        let late_s = if self.random.u8(..) < 13 { self.random.u64(..86_400) } else { 0 };
        let created_at = self.now_s() - late_s;
        let mut packed = Vec::new();
        let mut listed = String::new();
        for (letter, value) in tags {
            tag::pack(&mut packed, *letter, value);
            let comma = if listed.is_empty() { "" } else { "," };
            listed += &format!(r#"{comma}["{}","{value}"]"#, char::from(*letter));
        }
        let mut sig = [0; 64];
        self.random.fill(&mut sig);
        let content = "made of words that mean nothing ".repeat(content_bytes / 32 + 1);
        let json = format!(
            r#"{{"id":"{}","pubkey":"{}","created_at":{created_at},"kind":{kind},"tags":[{listed}],"content":"{}","sig":"{}"}}"#,
            hex_string(&id),
            hex_string(&pubkey),
            &content[..content_bytes],
            hex_string(&sig),
        );
        let place = usize::try_from(self.number).expect("64 bits") % RECENT;
        match self.recent.get_mut(place) {
            Some(old) => *old = (id, author),
            None => self.recent.push((id, author)),
        }
        self.number += 1;
        Event::build(&Fields {
            id,
            pubkey,
            created_at,
            expiration: None,
            kind: Kind(kind),
            protected: false,
            packed_tags: &packed,
            json: json.as_bytes(),
        })
    }

    fn plain(&mut self) -> Event {
        const SKELETON_BYTES: usize = 342 + r#"["t","0000"]"#.len();
        let topic = self.uneven_below(5_000);
        let author = self.uneven_below(self.authors);
        self.event(author, 1, &[(b't', format!("{topic:04}"))], 400 - SKELETON_BYTES)
    }

    fn mixed(&mut self) -> Event {
        let author = self.uneven_below(self.authors);
        let (id, other) = self.recent();
        let reply = |letter| [(letter, hex_string(&id)), (b'p', hex_string(&key(other)))];
        // Of a hundred events.
        match self.random.u8(..100) {
            // Notes, half of them replies, a third under a topic.
            0..45 => {
                let mut tags = Vec::new();
                if self.random.bool() {
                    tags.extend(reply(b'e'));
                }
                if self.random.u8(..3) == 0 {
                    tags.push((b't', format!("topic{}", self.uneven_below(5_000))));
                }
                let content_bytes = 20 + usize::try_from(self.uneven_below(1_500)).expect("small");
                self.event(author, 1, &tags, content_bytes)
            }
            // Reactions, reposts, zaps.
            45..70 => self.event(author, 7, &reply(b'e'), 1),
            70..76 => self.event(author, 6, &reply(b'e'), 300),
            76..82 => self.event(author, 9735, &reply(b'e'), 0),
            // Profiles, lists of relays, follows.
            82..84 => self.event(author, 0, &[], 400),
            84..86 => self.event(author, 10002, &[(b'r', "wss://relay.example".into())], 0),
            86 => {
                let count = self.random.u64(20..60);
                let follows: Vec<Tag> = (0..count)
                    .map(|_| (b'p', hex_string(&key(self.uneven_below(self.authors)))))
                    .collect();
                self.event(author, 3, &follows, 0)
            }
            // Data of applications, articles.
            87..91 => {
                let place = self.random.u8(..20);
                self.event(author, 30078, &[(b'd', format!("app/{place}"))], 200)
            }
            91 => {
                let title = self.random.u16(..);
                self.event(author, 30023, &[(b'd', format!("article-{title}"))], 1_500)
            }
            // Private messages.
            92..99 => self.event(author, 1059, &reply(b'e')[1..], 600),
            // A deletion by the author.
            _ => self.event(other, 5, &reply(b'e')[..1], 0),
        }
    }
}

impl Iterator for Stream {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        Some(match self.shape {
            Shape::Plain => self.plain(),
            Shape::Mixed => self.mixed(),
        })
    }
}

/// A single-letter tag.
type Tag = (u8, String);

/// The key of an author.
#[must_use]
pub fn key(author: u64) -> Pubkey {
    let mut key = [0; 32];
    fastrand::Rng::with_seed(author ^ 0x6b65_7973).fill(&mut key);
    key
}
