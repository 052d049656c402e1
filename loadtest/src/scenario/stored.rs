//! What is asked once the window is over, on new connections: is what was acknowledged there, and does the relay
//! answer queries as a naive evaluation does?
//!
//! A relay may hold other events too. Every event of an answer must match the filter by its own JSON, come once, and
//! newest first; and every acknowledged event that matches must be in it, unless the limit cut it off.

use super::mix::Ledger;
use super::mixed::is_indexed;
use crate::client::{Connection, Target};
use crate::events::filter::Filter;
use crate::events::{EventFields, Random, SignedEvent};
use crate::report::Violations;
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::thread;
use std::time::{Duration, Instant};

/// Ids in one filter: more than some relays allow would tell nothing.
const IDS_PER_QUERY: usize = 100;
/// Of the ids that are asked for, so many are the last ones: those that a relay may have had in memory only.
const LAST_IDS: usize = 500;
/// A relay that died may take so long to come back.
const RECONNECT: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(100);
/// What is missing is asked for once more after this: acknowledged is not always visible at once.
const SECOND_LOOK: Duration = Duration::from_secs(1);
const QUERY_LIMIT_MAX: usize = 100;

// The names are those of the options.
#[allow(clippy::struct_field_names)]
#[derive(Args, Clone, Debug, Serialize)]
pub struct CheckArgs {
    /// Afterwards, look for up to so many of the acknowledged events by id, on a new connection
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(..=10_000_000))]
    pub check_ids: u32,
    /// Afterwards, ask so many queries and hold the answers against a naive evaluation
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(..=100_000))]
    pub check_queries: u32,
    /// Seed of the choice of these queries
    #[arg(long, default_value_t = 1)]
    pub check_seed: u64,
}

/// What was asked, and what it told.
#[derive(Debug, Default, Serialize)]
pub struct Checked {
    pub ids: u64,
    /// Not there at once, but a second later.
    pub ids_late: u64,
    pub queries: u64,
    pub query_events: u64,
}

/// Asks for what the ledger says was acknowledged.
///
/// # Errors
/// An event that cannot be read.
pub fn check(
    args: &CheckArgs,
    target: &Target,
    ledger: &Ledger<'_>,
    violations: &mut Violations,
) -> anyhow::Result<Checked> {
    let mut checked = Checked::default();
    let lasting = lasting(ledger)?;
    if lasting.is_empty() || args.check_ids + args.check_queries == 0 {
        return Ok(checked);
    }
    let mut connection = match reconnect(target) {
        Ok(connection) => connection,
        Err(error) => {
            violations.add("not_there_afterwards", || format!("{error:#}"));
            return Ok(checked);
        }
    };
    let mut ask = |filter: &Value| -> anyhow::Result<Vec<EventFields>> {
        let answer = connection.inquire("check", filter, target.connect_timeout)?;
        match answer.closed {
            Some(reason) => anyhow::bail!("CLOSED {reason:?} to {filter}"),
            None => connection.close_subscription("check")?,
        }
        answer.events.iter().map(|event| Ok(serde_json::from_str(event)?)).collect()
    };
    let asked = look_for(args.check_ids as usize, &lasting, &mut checked, &mut ask, violations)
        .and_then(|()| query(args, &lasting, &mut checked, &mut ask, violations));
    if let Err(error) = asked {
        violations.add("check_unanswered", || format!("{error:#}"));
    }
    Ok(checked)
}

fn reconnect(target: &Target) -> anyhow::Result<Connection> {
    let deadline = Instant::now() + RECONNECT;
    loop {
        match Connection::open(target, 0) {
            Err(_) if Instant::now() < deadline => thread::sleep(RETRY),
            result => return result,
        }
    }
}

/// The acknowledged events that nothing in the run may have replaced, deleted or let expire.
fn lasting(ledger: &Ledger<'_>) -> anyhow::Result<Vec<EventFields>> {
    let all = ledger.events.iter().map(SignedEvent::fields).collect::<anyhow::Result<Vec<_>>>()?;
    let of_kind = |kind: u16| all.iter().filter(move |event| event.kind == kind);
    let deletions = of_kind(5).flat_map(|event| &event.tags);
    let deleted: HashSet<&str> = deletions
        .filter(|tag| tag.first().is_some_and(|name| name == "e"))
        .filter_map(|tag| tag.get(1).map(String::as_str))
        .collect();
    let vanished: HashSet<&str> = of_kind(62).map(|event| event.pubkey.as_str()).collect();
    let lasts = |event: &EventFields| {
        let plain = !matches!(event.kind, 0 | 3 | 5 | 62 | 10_000..=39_999);
        let expires =
            event.tags.iter().any(|tag| tag.first().is_some_and(|name| name == "expiration"));
        plain
            && !expires
            && !deleted.contains(event.id.as_str())
            && !vanished.contains(event.pubkey.as_str())
    };
    let promised =
        ledger.promised().map(SignedEvent::fields).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(promised.into_iter().filter(lasts).collect())
}

type Ask<'a> = dyn FnMut(&Value) -> anyhow::Result<Vec<EventFields>> + 'a;

fn look_for(
    count: usize,
    lasting: &[EventFields],
    checked: &mut Checked,
    ask: &mut Ask<'_>,
    violations: &mut Violations,
) -> anyhow::Result<()> {
    let sample = sample(lasting.len(), count);
    checked.ids = sample.len() as u64;
    let mut missing: Vec<&str> = sample.iter().map(|at| lasting[*at].id.as_str()).collect();
    for look in 0..2 {
        if missing.is_empty() {
            break;
        }
        if look > 0 {
            thread::sleep(SECOND_LOOK);
        }
        let before = missing.len();
        let mut found = HashSet::new();
        for ids in missing.chunks(IDS_PER_QUERY) {
            found.extend(ask(&json!({"ids": ids}))?.into_iter().map(|event| event.id));
        }
        missing.retain(|id| !found.contains(*id));
        if look > 0 {
            checked.ids_late = (before - missing.len()) as u64;
        }
    }
    violations.add_many("acknowledged_event_lost", missing.len() as u64, || {
        format!("{} of {}, one is {}", missing.len(), checked.ids, missing[0])
    });
    Ok(())
}

/// The last ones, and others evenly from all.
fn sample(total: usize, count: usize) -> Vec<usize> {
    if count >= total {
        return (0..total).collect();
    }
    let last = count.min(LAST_IDS);
    let rest = count - last;
    let mut sample: Vec<usize> = (0..rest).map(|i| i * (total - last) / rest).collect();
    sample.extend(total - last..total);
    sample
}

fn query(
    args: &CheckArgs,
    lasting: &[EventFields],
    checked: &mut Checked,
    ask: &mut Ask<'_>,
    violations: &mut Violations,
) -> anyhow::Result<()> {
    let mut random = Random::new(args.check_seed);
    for number in 0..args.check_queries as usize {
        let filter = draw(number, lasting, &mut random);
        let answer = ask(&filter)?;
        checked.queries += 1;
        checked.query_events += answer.len() as u64;
        judge(&filter, &answer, lasting, violations)?;
    }
    Ok(())
}

/// A filter around an event that is there, of each shape in turn.
fn draw(number: usize, lasting: &[EventFields], random: &mut Random) -> Value {
    let event = &lasting[random.below(lasting.len())];
    let limit = 1 + random.below(QUERY_LIMIT_MAX);
    let tag = event.tags.iter().find(|tag| is_indexed(tag));
    let mut filter = match (number % 6, tag) {
        (0, _) => json!({"authors": [event.pubkey]}),
        (1, Some(tag)) => json!({format!("#{}", tag[0]): [tag[1]]}),
        (2, _) => json!({"kinds": [event.kind], "until": event.created_at}),
        (3, _) => {
            let other = &lasting[random.below(lasting.len())];
            json!({"authors": [event.pubkey, other.pubkey], "kinds": [event.kind]})
        }
        (4, _) => {
            let ids: HashSet<&str> =
                (0..limit).map(|_| lasting[random.below(lasting.len())].id.as_str()).collect();
            json!({"ids": ids.into_iter().collect::<Vec<_>>()})
        }
        _ => {
            json!({"kinds": [event.kind], "since": event.created_at.saturating_sub(3600)})
        }
    };
    filter["limit"] = json!(limit);
    filter
}

/// Holds one answer against what was acknowledged.
fn judge(
    filter: &Value,
    answer: &[EventFields],
    acknowledged: &[EventFields],
    violations: &mut Violations,
) -> anyhow::Result<()> {
    let plain: Filter = serde_json::from_value(filter.clone())?;
    let limit = plain.limit.unwrap_or(usize::MAX);
    let mut seen = HashSet::new();
    for event in answer {
        let one = || format!("{} in the answer to {filter}", event.id);
        if !seen.insert(event.id.as_str()) {
            violations.add("stored_event_twice", one);
        }
        if !plain.matches(event) {
            violations.add("stored_event_unasked", one);
        }
    }
    let astray = answer.windows(2).filter(|pair| pair[0].created_at < pair[1].created_at).count();
    violations.add_many("stored_order", astray as u64, || format!("the answer to {filter}"));
    if answer.len() > limit {
        violations.add("stored_over_limit", || format!("{} to {filter}", answer.len()));
    }
    // At the limit, what is as old as the last one may have lost its place to it.
    let full = answer.len() >= limit;
    let oldest = answer.iter().map(|event| event.created_at).min().unwrap_or(0);
    let missing: Vec<&str> = acknowledged
        .iter()
        .filter(|event| plain.matches(event) && !(full && event.created_at <= oldest))
        .map(|event| event.id.as_str())
        .filter(|id| !seen.contains(id))
        .collect();
    violations.add_many("stored_event_missing", missing.len() as u64, || {
        format!("{} in the answer to {filter}, one is {}", missing.len(), missing[0])
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::generate::Generator;

    fn events() -> Vec<EventFields> {
        let mut generator = Generator::new(5, 7, Vec::new(), 1_800_000_000, 200).unwrap();
        (0..200).map(|_| generator.next_event().fields().unwrap()).collect()
    }

    /// As the plainest relay would: all that match, newest first, cut at the limit.
    fn answer(filter: &Value, events: &[EventFields]) -> Vec<EventFields> {
        let plain: Filter = serde_json::from_value(filter.clone()).unwrap();
        let mut answer: Vec<_> =
            events.iter().filter(|event| plain.matches(event)).cloned().collect();
        answer.sort_by_key(|event| (std::cmp::Reverse(event.created_at), event.id.clone()));
        answer.truncate(plain.limit.unwrap_or(usize::MAX));
        answer
    }

    fn judged(filter: &Value, answer: &[EventFields], events: &[EventFields]) -> Vec<&'static str> {
        let mut violations = Violations::default();
        judge(filter, answer, events, &mut violations).unwrap();
        violations.kinds().into_iter().map(|one| one.name).collect()
    }

    #[test]
    fn the_naive_answer_is_right_and_every_change_of_it_is_wrong() {
        let events = events();
        let mut random = Random::new(3);
        let mut changed = 0;
        for number in 0..60 {
            let filter = draw(number, &events, &mut random);
            let right = answer(&filter, &events);
            assert!(!right.is_empty(), "{filter} is drawn around an event");
            assert_eq!(judged(&filter, &right, &events), [""; 0], "{filter}");
            let stranger = events.iter().find(|one| !right.iter().any(|two| two.id == one.id));
            let plain: Filter = serde_json::from_value(filter.clone()).unwrap();
            if right.len() > 2 {
                changed += 1;
                let without = [&right[..1], &right[2..]].concat();
                assert_eq!(
                    judged(&filter, &without, &events),
                    ["stored_event_missing"],
                    "{filter}"
                );
                let mut swapped = right.clone();
                swapped.swap(0, 1);
                assert_eq!(judged(&filter, &swapped, &events), ["stored_order"], "{filter}");
                let mut twice = right[..right.len() - 1].to_vec();
                twice.push(twice[twice.len() - 1].clone());
                assert!(judged(&filter, &twice, &events).contains(&"stored_event_twice"));
            }
            if let Some(stranger) = stranger.filter(|stranger| !plain.matches(stranger)) {
                let with = [&right[..], std::slice::from_ref(stranger)].concat();
                assert!(judged(&filter, &with, &events).contains(&"stored_event_unasked"));
            }
        }
        assert!(changed > 20);
    }

    #[test]
    fn an_answer_beyond_its_limit_is_noticed() {
        let events = events();
        let right = answer(&json!({"kinds": [1], "limit": 11}), &events);
        let filter = json!({"kinds": [1], "limit": 10});
        assert_eq!(judged(&filter, &right[..10], &events), [""; 0]);
        assert_eq!(judged(&filter, &right, &events), ["stored_over_limit"]);
    }

    #[test]
    fn events_of_others_are_judged_by_their_own_json() {
        let events = events();
        let filter = json!({"kinds": [1], "limit": 10});
        let all = answer(&filter, &events);
        // The relay holds the newer ones too, but this run published only the older half.
        assert_eq!(judged(&filter, &all, &events[100..]), [""; 0]);
    }

    #[test]
    fn a_sample_holds_the_last_ones() {
        assert_eq!(sample(3, 5), [0, 1, 2]);
        let sample = sample(10_000, 600);
        assert_eq!(sample.len(), 600);
        assert!(sample.iter().rev().take(500).copied().eq((9_500..10_000).rev()));
        assert!(sample.is_sorted() && sample[0] == 0);
    }
}
