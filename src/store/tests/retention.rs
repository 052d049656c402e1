//! Rules against a naive evaluation.

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::scan::{build, specs};
use crate::nostr::event::{Event, Id};
use crate::relay::ports::Sequence;
use crate::store::testing::*;
use crate::store::{Erasure, Keep, Retention, Rule, Store, Surplus, Writer, WriterOptions};

const NOW: u64 = 10;

fn rule() -> impl Strategy<Value = Rule> {
    let kinds = prop::sample::subsequence(vec![1_u16, 4, 7, 1059], 1..4);
    let keep = prop_oneof![
        (0..10_u64).prop_map(Keep::AgeS),
        (1..6_u64).prop_map(Keep::OfAuthor),
        (1..8_000_u64).prop_map(Keep::Bytes),
    ];
    (prop::option::of(kinds), keep).prop_map(|(kinds, keep)| Rule { kinds, keep })
}

/// What a rule keeps, and how many events and bytes it does not.
fn naive(events: &[Event], rule: &Rule) -> (Vec<Event>, (u64, u64)) {
    let mut sorted = events.to_vec();
    sorted.sort_by_key(|event| (Reverse(event.view().created_at()), *event.view().id()));
    let mut of_author = std::collections::BTreeMap::<_, u64>::new();
    let (mut bytes, mut gone) = (0, (0, 0));
    let keep = |event: &Event| {
        let view = event.view();
        let about = match &rule.kinds {
            Some(kinds) => kinds.contains(&view.kind().0),
            None => !matches!(view.kind().0, 5 | 62),
        };
        let kept = !about
            || match rule.keep {
                Keep::AgeS(age) => view.created_at() + age >= NOW,
                Keep::OfAuthor(most) => {
                    let count = of_author.entry(*view.pubkey()).or_default();
                    *count += 1;
                    *count <= most
                }
                Keep::Bytes(most) => {
                    bytes += event.record().len() as u64;
                    bytes <= most
                }
            };
        if !kept {
            gone.0 += 1;
            gone.1 += event.record().len() as u64;
        }
        kept
    };
    (sorted.into_iter().filter(keep).collect(), gone)
}

/// Runs a pass; events and bytes by rule.
fn run(store: &Store, rules: &[Rule], dry_run: bool) -> Vec<(u64, u64)> {
    run_at(store, rules, dry_run, NOW)
}

fn run_at(store: &Store, rules: &[Rule], dry_run: bool, now: u64) -> Vec<(u64, u64)> {
    let mut sums = vec![(0, 0); rules.len()];
    let mut pass = store.retain(rules.to_vec(), now, dry_run);
    while let Some(Surplus { rule, events, replaced, bytes }) = pass.slice(store).unwrap() {
        sums[rule].0 += (events.len() + replaced.len()) as u64;
        sums[rule].1 += bytes;
        if !dry_run {
            erase(store, &events);
            let mut erased = 0;
            store.erase_replaced(&replaced, &mut |part| erased += part).unwrap();
            assert_eq!(erased, replaced.len() as u64);
        }
    }
    sums
}

fn erase(store: &Store, events: &[Sequence]) {
    let mut erased = 0;
    store.erase(events, &mut |part| erased += part.len()).unwrap();
    assert_eq!(erased, events.len());
}

fn ids(events: &[Event]) -> Vec<Id> {
    events.iter().map(|event| *event.view().id()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn what_goes_is_what_a_naive_evaluation_does_not_keep(
        specs in specs(),
        rules in prop::collection::vec(rule(), 1..4),
    ) {
        let (store, _dir) = store();
        let events = build(&specs);
        apply(&store, &events, NOW);
        let (mut kept, mut gone) = (events.clone(), Vec::new());
        for rule in &rules {
            let (left, went) = naive(&kept, rule);
            kept = left;
            gone.push(went);
        }
        prop_assert_eq!(run(&store, &rules, true), gone.clone());
        prop_assert_eq!(store.info().unwrap().events, events.len() as u64, "nothing has gone");
        prop_assert_eq!(run(&store, &rules, false), gone);
        let visible = visible_ids(&store, NOW);
        kept.sort_by_key(|event| (Reverse(event.view().created_at()), *event.view().id()));
        prop_assert_eq!(visible, ids(&kept));
        assert_sound(&store);
        // A second pass finds nothing, and whoever has them may store the same events again.
        prop_assert!(run(&store, &rules, true).iter().all(|sums| *sums == (0, 0)));
        apply(&store, &events, NOW);
        prop_assert_eq!(store.info().unwrap().events, events.len() as u64);
    }
}

/// Of 500 events, over slices and chunks, with keys that begin alike.
#[test]
fn many_events_go_chunk_by_chunk() {
    let (store, _dir) = store();
    let author = |n: u32| [1, 2, 100, 101][n as usize % 4];
    let events: Vec<_> =
        (0..2_500).map(|n| event(id(1, n), author(n), 1, 100 + u64::from(n), &[])).collect();
    apply(&store, &events, NOW);
    let rules = [Rule { kinds: Some(vec![1]), keep: Keep::OfAuthor(7) }];
    assert_eq!(run(&store, &rules, false)[0].0, 2_500 - 4 * 7);
    let newest: Vec<_> = events.iter().rev().take(28).cloned().collect();
    assert_eq!(visible_ids(&store, NOW), ids(&newest));
    assert_sound(&store);
}

/// A rule without kinds leaves deletions alone; what was taken back does not return by it.
#[test]
fn deletions_stay_unless_they_are_named() {
    let (store, _dir) = store();
    let note = event(id(1, 1), 1, 1, 2, &[]);
    let events = [
        note.clone(),
        event(id(1, 2), 1, 5, 3, &[["e", &hex(&id(1, 1))]]),
        event(id(1, 3), 1, 1, 2, &[]),
        event(id(1, 4), 2, 62, 3, &[["relay", URL]]),
    ];
    apply(&store, &events, NOW);
    let all = [Rule { kinds: None, keep: Keep::AgeS(1) }];
    assert_eq!(run(&store, &all, false)[0].0, 1);
    assert_eq!(visible_ids(&store, NOW), [id(1, 2), id(1, 4)]);
    let named = [Rule { kinds: Some(vec![5, 62]), keep: Keep::AgeS(1) }];
    assert_eq!(run(&store, &named, false)[0].0, 2);
    assert_eq!(store.info().unwrap().events, 0);
    // What they did stays done.
    let verdict = &verdicts(&store, &[note], NOW)[0];
    assert_eq!(*verdict, crate::relay::ports::Verdict::Deleted);
    assert_sound(&store);
}

/// Archived versions grow too old as what is stored does, each found by one rule; they are not counted among
/// an author's events and bytes.
#[test]
fn rules_of_age_are_about_archived_versions_too() {
    let (store, _dir) = store();
    let version = |kind, n: u32| event(id(1, n), 1, kind, 100 + u64::from(n), &[["d", "x"]]);
    let articles = (0..600).map(|n| version(30023, n));
    let versions: Vec<_> = articles.chain((1_000..1_600).map(|n| version(0, n))).collect();
    let now = 2_000;
    apply_by(&keeping(), &store, &versions, now);
    let rule = |kinds, keep| Rule { kinds, keep };
    let kept = [rule(None, Keep::OfAuthor(2)), rule(None, Keep::Bytes(100_000))];
    assert_eq!(run_at(&store, &kept, false, now), [(0, 0), (0, 0)]);
    // 500 articles, then what is left of both that came before the second 1,300, a stored article with it.
    let old = [rule(Some(vec![30023]), Keep::AgeS(1_400)), rule(None, Keep::AgeS(700))];
    let dry = run_at(&store, &old, true, now);
    assert_eq!((dry[0].0, dry[1].0), (500, 100 + 200));
    assert_eq!(store.info().unwrap().replaced, 2 * 599);
    assert_eq!(run_at(&store, &old, false, now), dry);
    assert_eq!(replaced_ids(&store, now), (1_200..1_599).map(|n| id(1, n)).collect::<Vec<_>>());
    assert_eq!(visible_ids(&store, now), [id(1, 1_599)]);
    assert_sound(&store);
}

#[test]
fn a_running_relay_applies_its_rules_by_its_writer() {
    let (store, _dir) = store();
    let mut events: Vec<_> = (0..500).map(|n| event(id(1, n), 1, 1, 100, &[])).collect();
    events.extend((0..500).map(|n| event(id(2, n), 1, 0, 200 + u64::from(n), &[])));
    apply_by(&keeping(), &store, &events, NOW);
    let options = WriterOptions::default();
    let writer = Writer::spawn(store.clone(), options, terms(), Vec::new(), Box::new(|_| {}));
    let writer = writer.unwrap();
    let old = Rule { kinds: Some(vec![0]), keep: Keep::AgeS(1_000) };
    let rules = vec![Rule { kinds: None, keep: Keep::OfAuthor(3) }, old];
    let (tell, told) = flume::unbounded();
    let observer = Box::new(move |keep, erasure| tell.send((keep, erasure)).unwrap());
    let retention = Retention::spawn(store.clone(), writer.handle(), rules, observer).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let left = || store.info().map(|info| (info.events, info.replaced)).unwrap();
    while left() != (2, 0) {
        assert!(Instant::now() < deadline, "the first pass begins at once");
        std::thread::sleep(Duration::from_millis(5));
    }
    retention.close();
    writer.close();
    let mut sums = [(0, 0); 2];
    for (keep, Erasure { events, bytes }) in told {
        let sum = &mut sums[usize::from(matches!(keep, Keep::AgeS(_)))];
        *sum = (sum.0 + events, sum.1 + bytes);
    }
    assert_eq!(sums.map(|(events, _)| events), [498, 500]);
    assert!(sums.iter().all(|(_, bytes)| *bytes > 0));
    assert_sound(&store);
}
