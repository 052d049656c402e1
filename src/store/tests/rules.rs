//! What is stored and what is visible, against a model that knows no tables and no order.

use proptest::prelude::*;
use proptest::sample::Index;

use crate::nostr::Event;
use crate::nostr::Filter;
use crate::nostr::event::Id;
use crate::relay::ports::{CommitBatch, Verdict};
use crate::relay::recent::Recent;
use crate::store::testing::*;

/// An event of small domains; references are resolved when all ids are known.
#[derive(Clone, Debug)]
struct Spec {
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

fn spec() -> impl Strategy<Value = Spec> {
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

fn build(specs: &[Spec]) -> Vec<Event> {
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
    let events = recent.answer(&[Filter::default()], limit, u64::MAX, now)?;
    Some(events.into_iter().map(|event| *event.view().id()).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn verdicts_and_visible_events_are_the_models(
        specs in prop::collection::vec(spec(), 1..14),
        steps in steps(),
    ) {
        let (store, _dir) = store();
        let mut model = Model::default();
        let events = build(&specs);
        let mut now = 7;
        let mut last_sequence = 0;
        let [mut few, mut all] = [4, 1000].map(|most| Recent::new(most, 1 << 20));
        for (batch, pause, maintain) in &steps {
            now += pause;
            let batch: Vec<Event> = batch.iter().map(|n| n.get(&events).clone()).collect();
            let expected: Vec<Verdict> = batch.iter().map(|e| model.arrive(e, now)).collect();
            let committed = apply(&store, &batch, now);
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
            assert_sound(&store);
        }
        while store.maintain(now, 2).unwrap().more {}
        let expected = evaluate(&model.visible(now), &[Filter::default()], 1000);
        prop_assert_eq!(store.info().unwrap().events, expected.len() as u64);
        prop_assert_eq!(visible_ids(&store, now), expected);
        assert_sound(&store);
    }

    #[test]
    fn any_order_ends_in_the_same_visible_events(
        specs in prop::collection::vec(spec(), 1..14),
        shuffled in any::<u64>(),
        split in 1..6usize,
    ) {
        let events = build(&specs);
        let mut other = events.clone();
        let mut state = shuffled | 1;
        for n in (1..other.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            other.swap(n, usize::try_from(state >> 33).unwrap() % (n + 1));
        }
        let (one, _dir) = store();
        apply(&one, &events, 9);
        let (two, _dir) = store();
        for batch in other.chunks(split) {
            apply(&two, batch, 9);
        }
        prop_assert_eq!(visible_ids(&one, 9), visible_ids(&two, 9));
    }
}
