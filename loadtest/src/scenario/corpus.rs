//! What a query must answer, from the file alone.

use crate::client::Id;
use crate::events::{EventFields, IdIndex, Random, SignedEvent};
use crate::report::Violations;
use anyhow::{Context, ensure};
use clap::ValueEnum;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};

/// Ids in a filter that says no limit.
const IDS_UNLIMITED: usize = 50;

/// What a query asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// The newest of one author
    Author,
    /// The newest of one kind
    Kind,
    /// The newest of all
    Global,
    /// As many ids as the limit says
    Ids,
    /// The newest with one value of a single-letter tag
    Tag,
}

/// One filter and what it selects.
#[derive(Clone, Debug)]
pub struct Query {
    pub filter: String,
    selector: Selector,
    limit: usize,
}

#[derive(Clone, Debug)]
enum Selector {
    All,
    /// A number into [`Corpus::groups`].
    Group(usize),
    Ids(HashSet<Id>),
}

/// The file, in the order of NIP-01 (newest first, lowest id on a tie), with its groups.
pub struct Corpus {
    positions: IdIndex,
    /// Rank 0 is the newest. Indexed by position in the file.
    rank: Vec<u32>,
    created_at: Vec<u64>,
    ids_by_rank: Vec<Id>,
    /// Filter and members (as ranks, ascending) of each author, kind and tag value.
    groups: Vec<(Value, Vec<u32>)>,
    by_shape: HashMap<&'static str, Vec<usize>>,
}

impl Corpus {
    /// # Errors
    /// An event with missing fields; with `exact`, one whose kind replaces, deletes or is not stored.
    pub fn new(events: &[SignedEvent], positions: IdIndex, exact: bool) -> anyhow::Result<Self> {
        let fields =
            events.iter().map(SignedEvent::fields).collect::<anyhow::Result<Vec<EventFields>>>()?;
        if exact {
            let plain = |kind: u16| !matches!(kind, 0 | 3 | 5 | 62 | 10_000..=39_999);
            let odd = fields.iter().find(|event| !plain(event.kind)).map(|event| event.kind);
            ensure!(
                odd.is_none(),
                "--exact knows no replacement or deletion, and the file holds kind {odd:?}"
            );
        }
        let mut order: Vec<u32> = (0..events.len() as u32).collect();
        order.sort_by_key(|&i| {
            (std::cmp::Reverse(fields[i as usize].created_at), events[i as usize].id)
        });
        let mut rank = vec![0; events.len()];
        let mut corpus = Self {
            positions,
            rank: Vec::new(),
            created_at: fields.iter().map(|event| event.created_at).collect(),
            ids_by_rank: order.iter().map(|&i| events[i as usize].id).collect(),
            groups: Vec::new(),
            by_shape: HashMap::new(),
        };
        let mut known = HashMap::new();
        for (at, &position) in order.iter().enumerate() {
            rank[position as usize] = at as u32;
            let event = &fields[position as usize];
            corpus.file("author", json!({"authors": [event.pubkey]}), at as u32, &mut known);
            corpus.file("kind", json!({"kinds": [event.kind]}), at as u32, &mut known);
            for tag in &event.tags {
                if let [name, value, ..] = &tag[..]
                    && name.len() == 1
                    && name.as_bytes()[0].is_ascii_alphabetic()
                {
                    corpus.file("tag", json!({format!("#{name}"): [value]}), at as u32, &mut known);
                }
            }
        }
        corpus.rank = rank;
        Ok(corpus)
    }

    fn file(
        &mut self,
        shape: &'static str,
        filter: Value,
        rank: u32,
        known: &mut HashMap<String, usize>,
    ) {
        let group = *known.entry(filter.to_string()).or_insert_with(|| {
            self.groups.push((filter, Vec::new()));
            self.by_shape.entry(shape).or_default().push(self.groups.len() - 1);
            self.groups.len() - 1
        });
        let members = &mut self.groups[group].1;
        // A tag may be repeated within one event.
        if members.last() != Some(&rank) {
            members.push(rank);
        }
    }

    /// A filter of this shape, each author, kind or tag value as likely as any other.
    ///
    /// # Errors
    /// The file has none, such as no tags.
    pub fn draw(
        &self,
        shape: Shape,
        limit: Option<usize>,
        random: &mut Random,
    ) -> anyhow::Result<Query> {
        let (mut filter, selector) = self.select(shape, limit, random)?;
        if let Some(limit) = limit {
            filter["limit"] = json!(limit);
        }
        let limit = limit.unwrap_or(usize::MAX);
        Ok(Query { filter: filter.to_string(), selector, limit })
    }

    fn select(
        &self,
        shape: Shape,
        limit: Option<usize>,
        random: &mut Random,
    ) -> anyhow::Result<(Value, Selector)> {
        let name = match shape {
            Shape::Global => return Ok((json!({}), Selector::All)),
            Shape::Ids => {
                let count = limit.unwrap_or(IDS_UNLIMITED).min(self.ids_by_rank.len());
                let mut ids = HashSet::new();
                while ids.len() < count {
                    ids.insert(self.ids_by_rank[random.below(self.ids_by_rank.len())]);
                }
                let mut hex: Vec<String> =
                    ids.iter().map(|id| faster_hex::hex_string(id)).collect();
                hex.sort();
                return Ok((json!({"ids": hex}), Selector::Ids(ids)));
            }
            Shape::Author => "author",
            Shape::Kind => "kind",
            Shape::Tag => "tag",
        };
        let groups = self
            .by_shape
            .get(name)
            .with_context(|| format!("the file has no {name} to ask for"))?;
        let group = groups[random.below(groups.len())];
        Ok((self.groups[group].0.clone(), Selector::Group(group)))
    }

    /// Judges a COUNT of a relay that holds this file and nothing else.
    pub fn check_count(&self, query: &Query, count: u64, violations: &mut Violations) {
        let expected = self.expected(query).len() as u64;
        if count != expected {
            violations.add("count_wrong", || {
                format!("{count} instead of {expected} to {}", query.filter)
            });
        }
    }

    /// Judges one answer; returns how many of its events are not in the file (another run's, unless `exact`).
    pub fn check(
        &self,
        query: &Query,
        answer: &[Id],
        exact: bool,
        violations: &mut Violations,
    ) -> u64 {
        let mut seen = HashSet::with_capacity(answer.len());
        let mut unknown = 0;
        let mut last: Option<usize> = None;
        for id in answer {
            let hex =
                || format!("{} in the answer to {}", faster_hex::hex_string(id), query.filter);
            if !seen.insert(id) {
                violations.add("query_event_twice", hex);
            }
            let Some(position) = self.positions.get(id).map(|position| *position as usize) else {
                unknown += 1;
                continue;
            };
            if !self.matches(query, id, position) {
                violations.add("query_event_unasked", hex);
            }
            if let Some(last) = last {
                if self.created_at[position] > self.created_at[last] {
                    violations.add("query_order", hex);
                } else if exact && self.rank[position] < self.rank[last] {
                    violations.add("query_tie_order", hex);
                }
            }
            last = Some(position);
        }
        if answer.len() > query.limit {
            violations
                .add("query_over_limit", || format!("{} events to {}", answer.len(), query.filter));
        }
        if exact {
            violations.add_many("query_event_foreign", unknown, || query.filter.clone());
            let missing = self.expected(query).into_iter().filter(|id| !seen.contains(id)).count();
            violations.add_many("query_event_missing", missing as u64, || {
                format!("{missing} of the answer to {}", query.filter)
            });
        }
        unknown
    }

    fn matches(&self, query: &Query, id: &Id, position: usize) -> bool {
        match &query.selector {
            Selector::All => true,
            Selector::Group(group) => {
                self.groups[*group].1.binary_search(&self.rank[position]).is_ok()
            }
            Selector::Ids(ids) => ids.contains(id),
        }
    }

    fn expected(&self, query: &Query) -> Vec<Id> {
        match &query.selector {
            Selector::All => self.ids_by_rank.iter().take(query.limit).copied().collect(),
            Selector::Group(group) => {
                let members = self.groups[*group].1.iter().take(query.limit);
                members.map(|rank| self.ids_by_rank[*rank as usize]).collect()
            }
            Selector::Ids(ids) => ids.iter().copied().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{self, generate::Generator};

    fn corpus() -> Corpus {
        let mut generator = Generator::new(5, 7, Vec::new(), 1_800_000_000, 300).unwrap();
        let signed: Vec<_> = (0..300).map(|_| generator.next_event()).collect();
        let index = events::index(&signed).unwrap();
        Corpus::new(&signed, index, true).unwrap()
    }

    fn kinds(violations: &Violations) -> Vec<String> {
        violations.kinds().iter().map(|one| one.name.to_owned()).collect()
    }

    #[test]
    fn the_expected_answer_is_right_and_every_change_of_it_is_wrong() {
        let corpus = corpus();
        let mut random = Random::new(9);
        for shape in [Shape::Author, Shape::Kind, Shape::Global, Shape::Ids, Shape::Tag] {
            let query = corpus.draw(shape, Some(20), &mut random).unwrap();
            let mut answer = corpus.expected(&query);
            answer.sort_by_key(|id| corpus.rank[corpus.positions[id] as usize]);
            let judged = |answer: &[Id]| {
                let mut violations = Violations::default();
                corpus.check(&query, answer, true, &mut violations);
                kinds(&violations)
            };
            assert!(judged(&answer).is_empty(), "{shape:?}");
            assert_eq!(judged(&answer[1..]), ["query_event_missing"]);
            assert_eq!(judged(&[&answer[..], &[[7; 32]]].concat())[0], "query_event_foreign");
            if answer.len() > 1 {
                answer.swap(0, 1);
                assert_eq!(judged(&answer), ["query_order"]);
                answer.swap(0, 1);
                let last = *answer.last().unwrap();
                assert_eq!(judged(&[&answer[..], &[last]].concat())[0], "query_event_twice");
            }
        }
    }

    #[test]
    fn an_answer_beyond_its_limit_is_noticed() {
        let corpus = corpus();
        let query = corpus.draw(Shape::Kind, Some(20), &mut Random::new(2)).unwrap();
        let mut violations = Violations::default();
        corpus.check(&query, &corpus.ids_by_rank[..20], false, &mut violations);
        assert!(violations.is_empty());
        corpus.check(&query, &corpus.ids_by_rank[..21], false, &mut violations);
        assert_eq!(kinds(&violations), ["query_over_limit"]);
    }

    #[test]
    fn events_of_one_second_come_by_their_ids_from_a_relay_that_holds_the_file_alone() {
        let of_seed = |seed| Generator::new(seed, 7, Vec::new(), 1_800_000_000, 1).unwrap();
        let signed: Vec<_> = (0..5).map(|seed| of_seed(seed).next_event()).collect();
        let index = events::index(&signed).unwrap();
        let corpus = Corpus::new(&signed, index, true).unwrap();
        let query = corpus.draw(Shape::Global, Some(5), &mut Random::new(2)).unwrap();
        let mut answer = corpus.expected(&query);
        assert!(answer.is_sorted());
        answer.swap(1, 2);
        for (exact, expected) in [(true, &["query_tie_order"][..]), (false, &[])] {
            let mut violations = Violations::default();
            corpus.check(&query, &answer, exact, &mut violations);
            assert_eq!(kinds(&violations), expected);
        }
    }

    #[test]
    fn a_count_is_of_all_that_match() {
        let corpus = corpus();
        let query = corpus.draw(Shape::Kind, None, &mut Random::new(2)).unwrap();
        assert_eq!(query.filter, r#"{"kinds":[1]}"#);
        let mut violations = Violations::default();
        corpus.check_count(&query, 300, &mut violations);
        assert!(violations.is_empty());
        corpus.check_count(&query, 299, &mut violations);
        assert_eq!(kinds(&violations), ["count_wrong"]);
    }

    #[test]
    fn an_event_nobody_asked_for_is_noticed() {
        let corpus = corpus();
        let query = corpus.draw(Shape::Author, Some(300), &mut Random::new(2)).unwrap();
        let members = corpus.expected(&query);
        let stranger = corpus.ids_by_rank.iter().find(|id| !members.contains(id)).unwrap();
        let mut violations = Violations::default();
        corpus.check(&query, &[*stranger], false, &mut violations);
        assert_eq!(kinds(&violations), ["query_event_unasked"]);
    }
}
