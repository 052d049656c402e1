//! The newest events against a list of everything that was ever stored.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::nostr::event::{Fields, Id};
use crate::nostr::tag;

const AUTHORS: u8 = 3;
const KINDS: &[u16] = &[1, 7, 62, 1059];

fn key(author: u8) -> [u8; 32] {
    // The first two are alike in what is looked at before an event.
    let mut key = [author.max(1); 32];
    key[31] = author;
    key
}

/// An event of few bytes whose id is its number, lowest ids last.
fn event(number: u64, (author, kind, created_at, to): (u8, u16, u64, u8)) -> Event {
    let mut id: Id = [0xff; 32];
    id[..8].copy_from_slice(&(u64::MAX - number).to_be_bytes());
    let mut packed_tags = Vec::new();
    tag::pack(&mut packed_tags, b'p', &faster_hex::hex_string(&key(to)));
    Event::build(&Fields {
        id,
        pubkey: key(author),
        created_at,
        expiration: (number % 7 == 3).then_some(50 + number % 5),
        kind: Kind(kind),
        protected: false,
        packed_tags: &packed_tags,
        json: b"{}",
    })
}

type Spec = (u8, u16, u64, u8);

fn spec() -> impl Strategy<Value = Spec> {
    (0..AUTHORS, select(KINDS), 1..12u64, 0..AUTHORS)
}

fn filter() -> impl Strategy<Value = Filter> {
    let authors = prop::option::of(vec(0..AUTHORS, 0..3));
    let kinds = prop::option::of(vec(select(KINDS), 0..3));
    let bounds = (prop::option::of(0..12u64), prop::option::of(0..12u64));
    let p = prop::option::weighted(0.2, 0..AUTHORS);
    (authors, kinds, bounds, p, prop::option::weighted(0.7, 0..6u64)).prop_map(
        |(authors, kinds, (since, until), p, limit)| {
            let mut authors = authors.map(|a| a.into_iter().map(key).collect::<Vec<_>>());
            let mut kinds = kinds;
            authors.iter_mut().for_each(|a| a.sort_unstable());
            kinds.iter_mut().for_each(|k| k.sort_unstable());
            let value = |p| vec![TagRef::Hex(&key(p)).to_owned()];
            let tags = p.map(|p| (b'p', value(p))).into_iter().collect();
            Filter { authors, kinds, tags, since, until, limit, ..Filter::default() }
        },
    )
}

/// What one commit does: events that come, places in the list that are erased, a key that vanishes.
#[derive(Clone, Debug)]
struct Step {
    stored: Vec<Spec>,
    erased: Vec<usize>,
    vanished: Option<(u8, u64)>,
}

fn step() -> impl Strategy<Value = Step> {
    let vanished = prop::option::weighted(0.1, (0..AUTHORS, 1..12u64));
    (vec(spec(), 0..5), vec(0..60usize, 0..2), vanished)
        .prop_map(|(stored, erased, vanished)| Step { stored, erased, vanished })
}

/// Everything stored, and what became of it.
#[derive(Default)]
struct Everything(Vec<(Event, bool)>);

impl Everything {
    /// Stores, then takes away; what that is to a shard.
    fn commit(&mut self, step: &Step) -> CommitBatch {
        let mut batch = CommitBatch::default();
        for spec in &step.stored {
            let sequence = self.0.len() as u64 + 1;
            let event = event(sequence, *spec);
            self.0.push((event.clone(), true));
            batch.stored.push((sequence, event));
        }
        for at in &step.erased {
            if let Some((event, there @ true)) = self.0.get_mut(*at) {
                *there = false;
                let created_at = event.view().created_at();
                let id = *event.view().id().first_chunk().unwrap();
                batch.erased.push(Erased { sequence: *at as u64 + 1, created_at, id });
            }
        }
        batch.erased.sort_unstable();
        if let Some((author, up_to)) = step.vanished {
            let vanished = Vanished { pubkey: key(author), up_to };
            for (event, there) in &mut self.0 {
                let event = event.view();
                let mine = event.pubkey() == &key(author);
                let to_me = || event.tags().any(|(_, value)| value == TagRef::Hex(&key(author)));
                let gone = mine || event.kind().0 == 1059 && to_me();
                *there &= !(gone && event.kind().0 != 62 && event.created_at() <= up_to);
            }
            batch.vanished.push(vanished);
        }
        batch.last_sequence = self.0.len() as u64;
        batch
    }

    fn sorted(&self) -> Vec<(Sequence, Event)> {
        let there = (1..).zip(&self.0).filter(|(_, (_, there))| *there);
        let mut events: Vec<_> = there.map(|(seq, (event, _))| (seq, event.clone())).collect();
        events.sort_by_key(|(seq, event)| rank(*seq, event.view()));
        events
    }

    fn result(&self, filters: &[Filter], limit_max: u64, last: u64, now: u64) -> Vec<Event> {
        let sorted = self.sorted();
        let mut chosen = vec![false; sorted.len()];
        for filter in filters.iter().filter(|filter| !filter.is_unsatisfiable()) {
            let limit = filter.limit.unwrap_or(u64::MAX).min(limit_max);
            let hits = (0..sorted.len()).filter(|at| {
                let (seq, event) = &sorted[*at];
                *seq <= last && !event.view().is_expired(now) && filter.matches(event.view())
            });
            hits.take(usize::try_from(limit).unwrap()).for_each(|at| chosen[at] = true);
        }
        let chosen = sorted.into_iter().zip(chosen).filter(|(_, chosen)| *chosen);
        chosen.map(|((_, event), _)| event).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, ..ProptestConfig::default() })]

    #[test]
    fn an_answer_is_the_whole_result_and_none_is_missing_where_all_is_here(
        before in vec(step(), 0..6),
        after in vec((step(), vec(filter(), 1..4), 0..4u64), 1..12),
        (events_max, bytes_max) in (select(&[0u16, 1, 3, 10, 100][..]), select(&[200u32, 1_000, 1 << 20][..])),
        limit_max in select(&[2u64, 5, 500][..]),
    ) {
        let mut everything = Everything::default();
        before.iter().for_each(|step| drop(everything.commit(step)));
        let mut newest = everything.sorted();
        let rest = newest.get(usize::from(events_max)).map(|(sequence, event)| {
            let view = event.view();
            (view.created_at(), *view.id().first_chunk().unwrap(), *sequence)
        });
        newest.truncate(events_max.into());
        let mut recent = Recent::new(events_max, bytes_max);
        recent.begin(&Newest { events: newest, rest });
        for (step, filters, back) in &after {
            let batch = everything.commit(step);
            recent.forget(&batch);
            for (sequence, event) in &batch.stored {
                recent.keep(*sequence, event, &batch);
            }
            let (events, bytes) = recent.held();
            prop_assert!(events <= usize::from(events_max) && bytes <= bytes_max as usize);
            let last = batch.last_sequence.saturating_sub(*back);
            let answer = recent.answer(filters, limit_max, (last, 52), &mut LOOKS_MAX.clone());
            let expected = everything.result(filters, limit_max, last, 52);
            if let Some(answer) = &answer {
                prop_assert!(answer.iter().copied().eq(&expected), "{answer:?} {expected:?}");
            }
            let held = bytes_max > 1_000 && events_max == 100;
            prop_assert!(answer.is_some() || !held, "no more than a hundred came");
        }
    }
}

fn filled(events_max: u16, count: u64) -> Recent {
    let mut recent = Recent::new(events_max, 1 << 20);
    for sequence in 1..=count {
        recent.keep(sequence, &event(sequence, (0, 1, sequence, 0)), &CommitBatch::default());
    }
    recent
}

fn answers(recent: &Recent, filter: &Filter) -> Option<usize> {
    let filters = std::slice::from_ref(filter);
    let answer = recent.answer(filters, 500, (u64::MAX, 0), &mut LOOKS_MAX.clone());
    answer.map(|events| events.len())
}

#[test]
fn a_query_that_reaches_below_the_floor_is_not_answered() {
    let recent = filled(10, 30);
    let of = |filter| answers(&recent, &filter);
    let wanting = |limit| Filter { limit: Some(limit), ..Filter::default() };
    assert_eq!((of(wanting(10)), of(wanting(11))), (Some(10), None));
    // The floor lies at second 20, where there may be more.
    assert_eq!(of(Filter { since: Some(21), ..wanting(20) }), Some(10));
    assert_eq!(of(Filter { since: Some(20), ..wanting(20) }), None);
    assert_eq!(of(Filter { until: Some(25), ..wanting(5) }), Some(5));
    assert_eq!(of(Filter { until: Some(25), ..wanting(6) }), None);
    assert_eq!(of(Filter { ids: Some(vec![[1; 32]]), ..wanting(1) }), None);
    assert_eq!(of(Filter { kinds: Some(vec![1]), ..wanting(10) }), Some(10));
    assert_eq!(of(Filter { authors: Some(vec![key(2)]), ..wanting(1) }), None);
}

/// What an answer costs, in looks, and whether there is one.
fn looks(recent: &Recent, filters: &[Filter]) -> (usize, bool) {
    let mut looks = LOOKS_MAX;
    let answer = recent.answer(filters, 5_000, (u64::MAX, 0), &mut looks);
    (LOOKS_MAX - looks, answer.is_some())
}

#[test]
fn nothing_takes_long_or_holds_much() {
    let recent = filled(u16::MAX - 500, 8_000);
    // Alike in what is looked at first, and nothing else says that they are others.
    let stranger = Filter { authors: Some(vec![key(1)]), ..Filter::default() };
    assert_eq!(looks(&recent, std::slice::from_ref(&stranger)), (LOOKS_MAX, false));
    let nobody = Filter { authors: Some(vec![[9; 32]]), ..stranger };
    assert_eq!(looks(&recent, &[nobody]), (0, true), "of whom nothing is counted");
    let many = |n: u16| {
        let mut key = [9; 32];
        key[..2].copy_from_slice(&n.to_be_bytes());
        key
    };
    let crowd = Filter { authors: Some((0..1 << 12).map(many).collect()), ..Filter::default() };
    assert_eq!(looks(&filled(9_000, 4_000), std::slice::from_ref(&crowd)), (13 * 4_000, true));
    assert_eq!(looks(&recent, &[crowd]), (LOOKS_MAX, false));
    assert!(!looks(&recent, &[Filter::default()]).1, "more than one answer holds");
    let most = Filter { limit: Some(ANSWER_EVENTS_MAX as u64), ..Filter::default() };
    assert!(looks(&recent, &[most]).1);
}

#[test]
fn tags_that_are_looked_at_cost_as_much_as_they_are_long() {
    let mut recent = Recent::new(5_000, 1 << 28);
    for sequence in 1..=100 {
        recent.keep(sequence, &wrap(sequence, 1_000), &CommitBatch::default());
    }
    let wanted = vec![TagRef::Hex(&key(9)).to_owned()];
    let asked = Filter { tags: vec![(b'p', wanted)], ..Filter::default() };
    let (spent, is_answered) = looks(&recent, &[asked]);
    assert_eq!((spent, is_answered), (LOOKS_MAX, false));
}

/// A gift wrap to so many keys.
fn wrap(number: u64, recipients: u64) -> Event {
    let mut packed_tags = Vec::new();
    for n in 0..recipients {
        let mut key = [7; 32];
        key[..8].copy_from_slice(&n.to_be_bytes());
        tag::pack(&mut packed_tags, b'p', &faster_hex::hex_string(&key));
    }
    let mut id: Id = [0xff; 32];
    id[..8].copy_from_slice(&(u64::MAX - number).to_be_bytes());
    Event::build(&Fields {
        id,
        pubkey: [3; 32],
        created_at: number,
        expiration: None,
        kind: Kind::GIFT_WRAP,
        protected: false,
        packed_tags: &packed_tags,
        json: b"{}",
    })
}

#[test]
fn where_gift_wraps_are_long_a_vanish_lets_all_go_that_may_be_gone() {
    let mut recent = Recent::new(5_000, 1 << 28);
    let none = CommitBatch::default();
    for sequence in 1..=90 {
        recent.keep(sequence, &wrap(sequence, 100), &none);
    }
    let vanished = vec![Vanished { pubkey: key(2), up_to: 80 }];
    recent.forget(&CommitBatch { vanished: vanished.clone(), ..CommitBatch::default() });
    assert_eq!(recent.held().0, 10, "what is later than any of it stays");
    let wanting = |limit| Filter { limit: Some(limit), ..Filter::default() };
    assert_eq!((answers(&recent, &wanting(10)), answers(&recent, &wanting(11))), (Some(10), None));
    recent.forget(&CommitBatch { vanished, ..CommitBatch::default() });
    assert_eq!(recent.held().0, 10, "few are looked into");
    recent.keep(91, &event(91, (0, 1, 85, 0)), &none);
    assert_eq!(answers(&recent, &wanting(11)), Some(11));
}

#[test]
fn many_that_go_at_once_go_together() {
    let mut recent = filled(5_000, 1_000);
    let erased = (1..=1_000).filter(|n| n % 2 == 0).map(|n| {
        let id = *event(n, (0, 1, n, 0)).view().id().first_chunk().unwrap();
        Erased { sequence: n, created_at: n, id }
    });
    let erased: Vec<_> = erased.collect();
    recent.forget(&CommitBatch { erased: erased.clone(), ..CommitBatch::default() });
    assert_eq!(recent.held().0, 500);
    let odd = recent.answer(&[Filter::default()], 500, (u64::MAX, 0), &mut LOOKS_MAX.clone());
    let seconds = odd.unwrap().iter().map(|event| event.view().created_at()).collect::<Vec<_>>();
    assert!(seconds.iter().copied().eq((0..500).map(|n| 999 - 2 * n)));
    recent.forget(&CommitBatch { erased, ..CommitBatch::default() });
    assert_eq!(recent.held().0, 500, "they are gone already");
}

/// An event that is larger than all that may be kept is the floor, and what comes after it is kept.
#[test]
fn what_is_too_large_to_be_kept_is_in_nobodys_way() {
    let mut recent = Recent::new(10, 1_000);
    let first = wrap(5, 100);
    let id = *first.view().id().first_chunk().unwrap();
    recent.begin(&Newest { events: Vec::new(), rest: Some((5, id, 1)) });
    recent.keep(2, &event(2, (0, 1, 6, 0)), &CommitBatch::default());
    assert_eq!(answers(&recent, &Filter { since: Some(6), ..Filter::default() }), Some(1));
    recent.keep(3, &wrap(7, 100), &CommitBatch::default());
    assert_eq!(recent.held().0, 0);
    recent.keep(4, &event(4, (0, 1, 8, 0)), &CommitBatch::default());
    assert_eq!(answers(&recent, &Filter { since: Some(8), ..Filter::default() }), Some(1));
    assert_eq!(answers(&recent, &Filter { since: Some(7), ..Filter::default() }), None);
}

/// After a commit of which it is not known what became visible.
#[test]
fn what_is_told_anew_is_all_that_counts() {
    let mut recent = Recent::new(100, 1 << 20);
    let stored = |number, created_at| (number, event(number, (1, 1, created_at, 2)));
    let batch = |stored, renewed| CommitBatch { stored, renewed, ..CommitBatch::default() };
    let first = batch(vec![stored(1, 10), stored(2, 20)], None);
    for (number, event) in &first.stored {
        recent.keep(*number, event, &first);
    }
    let found = |recent: &Recent, since| {
        let filter = Filter { since, ..Filter::default() };
        let events = recent.answer(&[filter], 10, (Sequence::MAX, 0), &mut 1_000_000);
        events
            .map(|events| events.iter().map(|event| event.view().created_at()).collect::<Vec<_>>())
    };
    assert_eq!(found(&recent, None), Some(vec![20, 10]));
    let (_, left_out) = stored(1, 10);
    let id = *left_out.view().id().first_chunk().unwrap();
    recent.renew(&Newest { events: vec![stored(4, 30), stored(3, 15)], rest: Some((10, id, 1)) });
    assert_eq!(found(&recent, Some(11)), Some(vec![30, 15]));
    assert_eq!(found(&recent, None), None, "there are more");
    assert_eq!(recent.held().0, 2);
    recent.renew(&Newest::default());
    assert_eq!(found(&recent, None), Some(vec![]));
}
