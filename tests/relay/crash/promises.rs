//! What the relay said of each event, and what a store must and must not hold because of it.
//!
//! What is visible follows from the set of events that came in, whatever their order, and each event that
//! is not visible has another one to thank for it. So an event with `OK true` must be there unless one that
//! was answered, or may have come in, takes it away; and must not be there if one that was answered does.

use std::collections::{HashMap, HashSet};

use crate::support::Event;
use crate::support::oracle::{Address, address, order, recipients};

/// What the relay was told and what it said.
#[derive(Default)]
pub struct Promises {
    /// Answered, and whether by `OK true`.
    answered: HashMap<String, (Event, bool)>,
    /// Sent and not answered: it came in, or it did not.
    unanswered: HashMap<String, Event>,
    /// Counts over all time.
    pub accepted: usize,
    pub refused: usize,
    pub never_answered: usize,
}

impl Promises {
    pub fn sent(&mut self, event: &Event) {
        self.unanswered.insert(event.id.clone(), event.clone());
    }

    /// Notes an OK.
    pub fn answered(&mut self, id: &str, accepted: bool, text: &str) {
        let event = self.unanswered.remove(id).expect("an OK for each event, once");
        let reasons = ["duplicate: a newer", "blocked: its", "invalid: event has expired"];
        let known = reasons.iter().any(|reason| text.starts_with(reason));
        assert!(if accepted { text.is_empty() } else { known }, "{accepted} {text}: {event:?}");
        self.answered.insert(id.into(), (event, accepted));
        *if accepted { &mut self.accepted } else { &mut self.refused } += 1;
    }

    /// How the ids that a store handed out between two moments differ from what they must be.
    pub fn broken(&self, found: &HashSet<String>, from: u64, until: u64) -> Vec<String> {
        let (surely, possibly) = self.effects();
        let mut broken = Vec::new();
        for (id, (event, accepted)) in &self.answered {
            let must = *accepted && !possibly.take_away(event) && !is_expired(event, until);
            let may = *accepted && !surely.take_away(event) && !is_expired(event, from);
            match found.contains(id) {
                false if must => broken.push(format!("lost: {}", event.json())),
                true if !may => broken.push(format!("there all the same: {}", event.json())),
                _ => {}
            }
        }
        for id in found.iter().filter(|id| !self.answered.contains_key(*id)) {
            match self.unanswered.get(id) {
                Some(event) if !surely.take_away(event) && !is_expired(event, from) => {}
                Some(event) => broken.push(format!("there all the same: {}", event.json())),
                None => broken.push(format!("there, and never sent: {id}")),
            }
        }
        broken
    }

    /// After a restart: what was not answered is there to stay, or came to nothing.
    pub fn settle(&mut self, found: &HashSet<String>, now: u64) {
        let (_, possibly) = self.effects();
        for (id, event) in std::mem::take(&mut self.unanswered) {
            if found.contains(&id) {
                self.answered.insert(id, (event, true));
            } else if possibly.take_away(&event) || is_expired(&event, now) {
                self.unanswered.insert(id, event);
                continue;
            }
            self.never_answered += 1;
        }
    }

    /// Forgets the events of keys of which all is gone, but for their last words.
    pub fn forget_the_vanished(&mut self) {
        let (surely, _) = self.effects();
        let mut last: HashMap<&str, u64> = HashMap::new();
        let answered = self.answered.values().map(|(event, _)| event);
        for event in answered.chain(self.unanswered.values()).filter(|event| event.kind != 62) {
            for key in std::iter::once(&*event.pubkey).chain(recipients(event)) {
                let at = last.entry(key).or_default();
                *at = event.created_at.max(*at);
            }
        }
        let vanished = surely.vanished.iter();
        let gone = vanished.filter(|(key, at)| last.get(&***key).is_none_or(|last| last <= *at));
        let gone: HashSet<String> = gone.map(|(key, _)| key.clone()).collect();
        let stays = |event: &Event| event.kind == 62 || !gone.contains(&event.pubkey);
        self.answered.retain(|_, (event, _)| stays(event));
        self.unanswered.retain(|_, event| stays(event));
    }

    /// Ids that a relay must serve.
    pub fn kept(&self, until: u64) -> Vec<&str> {
        let (_, possibly) = self.effects();
        let accepted = self.answered.values().filter(|(_, accepted)| *accepted);
        let kept = accepted.map(|(event, _)| event);
        let kept = kept.filter(|event| !possibly.take_away(event) && !is_expired(event, until));
        kept.map(|event| &*event.id).collect()
    }

    /// What was answered to the event of this id.
    pub fn of(&self, id: &str) -> &(Event, bool) {
        &self.answered[id]
    }

    fn effects(&self) -> (Effects, Effects) {
        let mut surely = Effects::default();
        self.answered.values().for_each(|(event, _)| surely.add(event));
        let mut possibly = surely.clone();
        self.unanswered.values().for_each(|event| possibly.add(event));
        (surely, possibly)
    }
}

/// What a set of events does to events.
#[derive(Clone, Default)]
struct Effects {
    newest: HashMap<Address, (std::cmp::Reverse<u64>, String)>,
    /// Event and who asked.
    deleted_ids: HashSet<(String, String)>,
    deleted_addresses: HashMap<Address, u64>,
    vanished: HashMap<String, u64>,
}

impl Effects {
    fn add(&mut self, event: &Event) {
        if let Some(address) = address(event) {
            let (at, id) = order(event);
            let version = (at, id.to_owned());
            let newest = self.newest.entry(address).or_insert_with(|| version.clone());
            *newest = version.min(newest.clone());
        }
        let raise = |up_to: &mut u64| *up_to = event.created_at.max(*up_to);
        match event.kind {
            5 => {
                for tag in &event.tags {
                    let [name, value] = &tag[..] else { panic!("not drawn: {tag:?}") };
                    if name == "e" {
                        self.deleted_ids.insert((value.clone(), event.pubkey.clone()));
                    } else {
                        let parts: Vec<_> = value.splitn(3, ':').collect();
                        let kind = parts[0].parse().expect("a kind");
                        assert_eq!(parts[1], event.pubkey, "not drawn");
                        let address = (kind, parts[1].into(), parts[2].into());
                        raise(self.deleted_addresses.entry(address).or_default());
                    }
                }
            }
            62 => raise(self.vanished.entry(event.pubkey.clone()).or_default()),
            _ => {}
        }
    }

    fn take_away(&self, event: &Event) -> bool {
        if matches!(event.kind, 5 | 62) {
            return self.are_of_the_vanished(event);
        }
        let asked = |key: &str| self.deleted_ids.contains(&(event.id.clone(), key.into()));
        let address = address(event);
        let beaten =
            |newest: &(std::cmp::Reverse<u64>, String)| (newest.0, &*newest.1) < order(event);
        self.are_of_the_vanished(event)
            || asked(&event.pubkey)
            || (event.kind == 1059 && recipients(event).any(asked))
            || address.is_some_and(|address| {
                let up_to = self.deleted_addresses.get(&address);
                up_to.is_some_and(|up_to| event.created_at <= *up_to)
                    || self.newest.get(&address).is_some_and(beaten)
            })
    }

    fn are_of_the_vanished(&self, event: &Event) -> bool {
        let gone = |key: &str| self.vanished.get(key).is_some_and(|at| event.created_at <= *at);
        event.kind != 62
            && (gone(&event.pubkey) || (event.kind == 1059 && recipients(event).any(gone)))
    }
}

fn is_expired(event: &Event, now: u64) -> bool {
    event.tag("expiration").is_some_and(|at| at.parse::<u64>().expect("a number") <= now)
}
