//! Events of every kind that the store treats in its own way, drawn from a seed.

use crate::support::{Author, Draft, Event, now};

/// Keys of one [`Mix`].
const AUTHORS: u64 = 3;

/// A stream of events of a few keys, which replace, delete, wrap and make vanish one another.
pub struct Mix {
    rng: fastrand::Rng,
    authors: Vec<Author>,
    /// Events are of the thousand seconds before.
    base: u64,
    drawn: Vec<Event>,
    /// What is to come before anything is drawn.
    due: Vec<Event>,
}

impl Mix {
    /// The same seed has the same keys and makes the same choices.
    pub fn new(seed: u64) -> Self {
        let authors = (0..AUTHORS).map(|number| Author::new(1_000 * seed + number)).collect();
        let rng = fastrand::Rng::with_seed(seed);
        Self { rng, authors, base: now(), drawn: Vec::new(), due: Vec::new() }
    }

    /// One that begins with the end of this one's keys.
    pub fn succeeded_by(self, seed: u64) -> Self {
        let end = |author: &Author| Draft::new(62, now()).tag(["relay", "ALL_RELAYS"]).sign(author);
        Self { due: self.authors.iter().map(end).collect(), ..Self::new(seed) }
    }

    /// The next event; no two are the same.
    pub fn draw(&mut self) -> Event {
        let event = self.due.pop().unwrap_or_else(|| self.make());
        self.drawn.push(event.clone());
        event
    }

    fn make(&mut self) -> Event {
        let author = self.authors[self.rng.usize(0..self.authors.len())];
        // Few seconds, so that versions tie.
        let at = self.base - 25 * self.rng.u64(0..40);
        let number = self.drawn.len();
        let text = format!("{number} {}", "x".repeat(self.rng.usize(0..600)));
        let draft = |kind: u16| Draft::new(kind, at).content(text.as_str());
        let expiring = |at: u64| draft(1).tag(["expiration", &at.to_string()]);
        let d = self.rng.u8(0..4).to_string();
        let topic = self.rng.u8(0..7).to_string();
        match self.rng.u8(0..100) {
            0..30 => draft(1).tag(["t", &topic]),
            30..42 => draft(if self.rng.bool() { 0 } else { 10_002 }),
            42..57 => draft(30_023).tag(["d", &d]),
            57..63 => expiring(now() + self.rng.u64(1..4)),
            63..67 => expiring(now() + 86_400),
            67..79 => {
                let to = self.authors[self.rng.usize(0..self.authors.len())];
                draft(1059).tag(["p", &to.hex()])
            }
            79..91 => self.request(draft(5), &author, 1..4),
            91..94 => {
                let address = if self.rng.bool() { "10002:KEY:" } else { "30023:KEY:D" };
                let address = address.replace("KEY", &author.hex()).replace('D', &d);
                draft(5).tag(["a", &address])
            }
            94..98 => {
                // The request comes before what it names.
                let event = draft(self.rng.u16(0..2)).sign(&author);
                let request = Draft::new(5, at).tag(["e", &event.id]);
                self.due.push(event);
                request
            }
            // Of the oldest only, or little else would be stored.
            _ => Draft::new(62, self.base - 900 + 25 * (at % 3))
                .content(text.as_str())
                .tag(["relay", "ALL_RELAYS"]),
        }
        .sign(&author)
    }

    /// Names events of its author, wraps for it, and now and then one that is not its own to delete.
    fn request(&mut self, draft: Draft, author: &Author, count: std::ops::Range<usize>) -> Draft {
        let key = author.hex();
        let mut request = draft;
        for _ in 0..self.rng.usize(count) {
            let may_be = |event: &&Event| event.pubkey == key || event.tag("p") == Some(&key);
            let own: Vec<_> = self.drawn.iter().filter(may_be).collect();
            let named = if own.is_empty() || self.rng.u8(0..10) == 0 {
                self.rng.choice(&self.drawn)
            } else {
                self.rng.choice(own)
            };
            request = named.map_or(request.clone(), |event| request.tag(["e", &event.id]));
        }
        request
    }
}
