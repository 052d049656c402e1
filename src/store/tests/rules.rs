//! What is stored and what is visible, against a model that knows no tables and no order.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use crate::nostr::event::Id;
use crate::nostr::{Event, EventView, Filter, Pubkey, TagRef};
use crate::relay::ports::{CommitBatch, Verdict};
use crate::relay::recent::Recent;
use crate::store::testing::*;
use crate::store::{Store, Terms};

/// An event of small domains; references are resolved when all ids are known.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    rank: u8,
    author: u8,
    kind: u16,
    created_at: u64,
    expiration: Option<u64>,
    d: u8,
    p: u8,
    names_us: bool,
    e: Vec<Index>,
    a: Vec<(u16, u8, u8)>,
}

const KINDS: &[u16] = &[0, 1, 5, 5, 62, 1059, 30023];

fn author() -> impl Strategy<Value = u8> {
    prop::sample::select(&[0u8, 100, 101][..])
}

pub(super) fn spec() -> impl Strategy<Value = Spec> {
    let kind = prop::sample::select(KINDS);
    let a = (prop::sample::select(&[0u16, 30023, 1, 5][..]), author(), 0..2u8);
    (
        (0..3u8, author(), kind, 1..7u64, prop::option::weighted(0.2, 8..14u64)),
        (0..2u8, author(), prop::bool::weighted(0.7)),
        (prop::collection::vec(any::<Index>(), 0..3), prop::collection::vec(a, 0..2)),
    )
        .prop_map(
            |((rank, author, kind, created_at, expiration), (d, p, names_us), (e, a))| Spec {
                rank,
                author,
                kind,
                created_at,
                expiration,
                d,
                p,
                names_us,
                e,
                a,
            },
        )
}

pub(super) fn build(specs: &[Spec]) -> Vec<Event> {
    let ids: Vec<Id> = (0..).zip(specs).map(|(n, spec)| id(spec.rank, n)).collect();
    let build = |(spec, id): (&Spec, &Id)| {
        let mut tags: Vec<[String; 2]> = Vec::new();
        let mut tag = |name: &str, value: String| tags.push([name.into(), value]);
        match spec.kind {
            5 => {
                spec.e.iter().for_each(|e| tag("e", hex(&e.get(&ids)[..])));
                for (kind, author, d) in &spec.a {
                    let d = if *kind == 0 { String::new() } else { format!("d{d}") };
                    tag("a", format!("{kind}:{}:{d}", hex(&key(*author))));
                }
            }
            62 => tag("relay", if spec.names_us { URL } else { "wss://other.example" }.into()),
            1059 => tag("p", hex(&key(spec.p))),
            30023 => tag("d", format!("d{}", spec.d)),
            _ => {}
        }
        if let Some(at) = spec.expiration {
            tag("expiration", at.to_string());
        }
        let tags: Vec<[&str; 2]> = tags.iter().map(|[a, b]| [a.as_str(), b.as_str()]).collect();
        event(*id, spec.author, spec.kind, spec.created_at, &tags)
    };
    specs.iter().zip(&ids).map(build).collect()
}

/// One batch, the time it takes to come, and whether the background gets a turn after it.
type Step = (Vec<Index>, u64, bool);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let batch = prop::collection::vec(any::<Index>(), 0..6);
    prop::collection::vec((batch, 0..2u64, any::<bool>()), 1..12)
}

/// What a shard makes of a commit.
fn follow(recent: &mut Recent, batch: &CommitBatch) {
    recent.forget(batch);
    for (sequence, event) in &batch.stored {
        recent.keep(*sequence, event, batch);
    }
}

/// The ids of the newest events, if these are all among those at hand.
fn recalled(recent: &Recent, limit: u64, now: u64) -> Option<Vec<Id>> {
    let events = recent.answer(&[Filter::default()], limit, (u64::MAX, now), &mut 100_000)?;
    Some(events.into_iter().map(|event| *event.view().id()).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn verdicts_and_visible_events_are_the_models(
        specs in prop::collection::vec(spec(), 1..14),
        steps in steps(),
        keep_replaced in any::<bool>(),
    ) {
        let (store, _dir) = store();
        let terms = Terms { keep_replaced, ..terms() };
        let mut model = Model::default();
        let events = build(&specs);
        let mut now = 7;
        let mut last_sequence = 0;
        let [mut few, mut all] = [4, 1000].map(|most| Recent::new(most, 1 << 20));
        for (batch, pause, maintain) in &steps {
            now += pause;
            let batch: Vec<Event> = batch.iter().map(|n| n.get(&events).clone()).collect();
            let expected: Vec<Verdict> = batch.iter().map(|e| model.arrive(e, now)).collect();
            let committed = apply_by(&terms, &store, &batch, now);
            let got: Vec<Verdict> = committed.verdicts.iter().map(|(_, v)| v.clone()).collect();
            prop_assert_eq!(got, expected);
            [&mut few, &mut all].into_iter().for_each(|recent| follow(recent, &committed));
            for (seq, _) in &committed.stored {
                prop_assert_eq!(*seq, last_sequence + 1);
                last_sequence = *seq;
            }
            prop_assert_eq!(committed.last_sequence, last_sequence);
            if *maintain {
                let erased = store.maintain(now, 1).unwrap().erased;
                let erasure = CommitBatch { erased, ..CommitBatch::default() };
                [&mut few, &mut all].into_iter().for_each(|recent| follow(recent, &erasure));
            }
            let expected = evaluate(&model.visible(now), &[Filter::default()], 1000);
            prop_assert_eq!(recalled(&all, 1000, now), Some(expected.clone()));
            let mut opened = Recent::new(4, 1 << 20);
            opened.begin(&store.newest(4, 1 << 20, now).unwrap());
            for limit in [1, 4, 1000] {
                let first: Vec<Id> = expected.iter().copied().take(limit).collect();
                let is_here = limit <= 4 || expected.len() <= 4;
                let answer = recalled(&opened, limit as u64, now);
                prop_assert_eq!(answer, is_here.then(|| first.clone()));
                let few = recalled(&few, limit as u64, now);
                prop_assert!(few.is_none_or(|few| few == first));
            }
            prop_assert_eq!(visible_ids(&store, now), expected);
            let replaced = if keep_replaced { model.replaced(now) } else { Vec::new() };
            prop_assert_eq!(replaced_ids(&store, now), replaced);
            assert_sound(&store);
        }
        while store.maintain(now, 2).unwrap().more {}
        let expected = evaluate(&model.visible(now), &[Filter::default()], 1000);
        let replaced = if keep_replaced { model.replaced(now) } else { Vec::new() };
        let info = store.info().unwrap();
        prop_assert_eq!(info.events, expected.len() as u64);
        prop_assert_eq!(info.replaced, replaced.len() as u64);
        prop_assert_eq!(visible_ids(&store, now), expected);
        prop_assert_eq!(replaced_ids(&store, now), replaced);
        assert_sound(&store);
    }

    /// Whatever the order, the batches and the moments at which the background has its turn. Nothing expires
    /// while they arrive: what has expired before it comes does nothing.
    #[test]
    fn any_order_ends_in_the_same_visible_events_and_the_same_archive(
        specs in prop::collection::vec(spec(), 1..24),
        orders in prop::collection::vec((any::<u64>(), prop::collection::vec(batch(), 1..8)), 2),
        keep_replaced in any::<bool>(),
    ) {
        let terms = Terms { keep_replaced, ..terms() };
        let events: Vec<Event> =
            build(&specs).into_iter().filter(|event| !(EARLY..=LATE).contains(&expiration(event))).collect();
        let mut model = Model::default();
        for event in &events {
            model.arrive(event, EARLY);
        }
        let replaced = |now| if keep_replaced { model.replaced(now) } else { Vec::new() };
        for (order, batches) in orders {
            let (store, _dir) = store();
            take(&terms, &store, &shuffled(&events, order), &batches);
            let expected = evaluate(&model.visible(LATE), &[Filter::default()], 1000);
            prop_assert_eq!(visible_ids(&store, LATE), expected);
            prop_assert_eq!(replaced_ids(&store, LATE), replaced(LATE));
            // What has come may come again, and changes nothing.
            take(&terms, &store, &shuffled(&events, !order), &batches);
            for now in LATE..LAST {
                let expected = evaluate(&model.visible(now), &[Filter::default()], 1000);
                prop_assert_eq!(visible_ids(&store, now), expected, "at {}", now);
                prop_assert_eq!(replaced_ids(&store, now), replaced(now), "at {}", now);
            }
            while store.maintain(LATE, 2).unwrap().more {}
            assert_sound(&store);
            let expected = evaluate(&model.visible(LATE), &[Filter::default()], 1000);
            prop_assert_eq!(visible_ids(&store, LATE), expected);
            prop_assert_eq!(store.info().unwrap().replaced, replaced(LATE).len() as u64);
            prop_assert_eq!(replaced_ids(&store, LATE), replaced(LATE));
        }
    }
}

/// Events arrive between these two moments; the last of them has expired at the third.
const EARLY: u64 = 7;
const LATE: u64 = 9;
const LAST: u64 = 15;

/// Events of one batch, whether time goes on after it, and how many events the background then erases.
type Batch = (usize, bool, Option<usize>);

fn batch() -> impl Strategy<Value = Batch> {
    (1..6usize, any::<bool>(), prop::option::of(1..4usize))
}

fn take(terms: &Terms, store: &Store, events: &[Event], batches: &[Batch]) {
    let (mut now, mut batches) = (EARLY, batches.iter().cycle());
    let mut rest = events;
    while !rest.is_empty() {
        let (count, goes_on, erased_max) = batches.next().expect("a cycle");
        let (batch, more) = rest.split_at(rest.len().min(*count));
        apply_by(terms, store, batch, now);
        now = LATE.min(now + u64::from(*goes_on));
        if let Some(events_max) = erased_max {
            store.maintain(now, *events_max).unwrap();
        }
        rest = more;
    }
}

/// Later than all of them where there is none.
fn expiration(event: &Event) -> u64 {
    event.view().expiration().unwrap_or(u64::MAX)
}

fn shuffled(events: &[Event], mut state: u64) -> Vec<Event> {
    let mut events = events.to_vec();
    for n in (1..events.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        events.swap(n, usize::try_from(state >> 33).unwrap() % (n + 1));
    }
    events
}

/// The histories above hold every case that the rules name, each often enough to be met.
#[test]
fn histories_hold_every_case() {
    let mut runner = TestRunner::deterministic();
    let specs = prop::collection::vec(spec(), 1..24);
    let mut found = std::collections::BTreeMap::<&str, u32>::new();
    for _ in 0..300 {
        let events = build(&specs.new_tree(&mut runner).unwrap().current());
        let cases: BTreeSet<_> = events
            .iter()
            .flat_map(|one| events.iter().flat_map(|other| cases(one, other)))
            .collect();
        cases.into_iter().for_each(|case| *found.entry(case).or_default() += 1);
    }
    assert_eq!(found.len(), 11, "{found:#?}");
    assert!(found.values().all(|count| *count >= 10), "{found:#?}");
}

/// What two events are to each other.
fn cases(one: &Event, other: &Event) -> Vec<&'static str> {
    let (one, other) = (one.view(), other.view());
    let names = |request: EventView<'_>, event: EventView<'_>| {
        let named = hex(event.id());
        request.kind().0 == 5 && request.tags().any(|(l, v)| l == b'e' && v.to_text() == named)
    };
    let wrapped_for = |key: &Pubkey, event: EventView<'_>| {
        event.kind().0 == 1059 && event.tags().any(|tag| tag == (b'p', TagRef::Hex(key)))
    };
    let own = one.pubkey() == other.pubkey();
    let address = |event: EventView<'_>| match event.kind().0 {
        0 => Some((*event.pubkey(), 0, String::new())),
        30023 => Some((*event.pubkey(), 30023, event.d_tag().to_text())),
        _ => None,
    };
    let versions =
        address(one).is_some() && address(one) == address(other) && one.id() != other.id();
    let by_address = |request: EventView<'_>, event: EventView<'_>| {
        let text = address(event).map(|(key, kind, d)| format!("{kind}:{}:{d}", hex(&key)));
        request.kind().0 == 5 && request.tags().any(|(l, v)| l == b'a' && Some(v.to_text()) == text)
    };
    let reaches = one.created_at() >= other.created_at();
    let forgets = one.kind().0 == 62 && names_us(one);
    [
        ("two versions", versions),
        ("two versions of one second", versions && one.created_at() == other.created_at()),
        ("deletion by id", own && names(one, other)),
        ("deletion of a version by id", own && names(one, other) && address(other).is_some()),
        ("deletion of a deletion", own && names(one, other) && other.kind().0 == 5),
        ("deletion by somebody else", !own && names(one, other)),
        (
            "deletion of a gift wrap by who it is for",
            names(one, other) && wrapped_for(one.pubkey(), other),
        ),
        ("deletion by address, of what is older", own && reaches && by_address(one, other)),
        ("deletion by address, of what is newer", own && !reaches && by_address(one, other)),
        ("vanish", own && reaches && forgets && other.kind().0 != 62),
        (
            "vanish of who a gift wrap is for",
            reaches && forgets && wrapped_for(one.pubkey(), other),
        ),
    ]
    .into_iter()
    .filter_map(|(name, is)| is.then_some(name))
    .collect()
}

fn names_us(event: EventView<'_>) -> bool {
    names().are_asked_to_forget(event)
}
