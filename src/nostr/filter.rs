//! Filters (NIP-01): fields AND, filters OR.

use super::event::{EventView, Id, Pubkey};
use super::tag::{TagRef, TagValue};

/// One filter. Lists are sorted and free of repeats; an absent field matches everything and an
/// empty list nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Event ids.
    pub ids: Option<Vec<Id>>,
    /// Authors.
    pub authors: Option<Vec<Pubkey>>,
    /// Kinds.
    pub kinds: Option<Vec<u16>>,
    /// For each letter asked for, once and in order, the values of which one must be there.
    pub tags: Vec<(u8, Vec<TagValue>)>,
    /// Oldest `created_at`, inclusive.
    pub since: Option<u64>,
    /// Newest `created_at`, inclusive.
    pub until: Option<u64>,
    /// Most stored events to return; does not bound the live part.
    pub limit: Option<u64>,
    /// What the text of stored events is searched for (NIP-50): what is found comes best first, and there is
    /// no live part.
    pub search: Option<String>,
}

impl Filter {
    /// Whether the event matches, `limit` and `search` aside.
    #[must_use]
    pub fn matches(&self, event: EventView<'_>) -> bool {
        self.kinds.as_ref().is_none_or(|kinds| kinds.binary_search(&event.kind().0).is_ok())
            && self.since.is_none_or(|since| event.created_at() >= since)
            && self.until.is_none_or(|until| event.created_at() <= until)
            && self.ids.as_ref().is_none_or(|ids| ids.binary_search(event.id()).is_ok())
            && self.authors.as_ref().is_none_or(|a| a.binary_search(event.pubkey()).is_ok())
            && self.tags_match(event)
    }

    /// One walk over the event's tags, however many letters are asked for.
    fn tags_match(&self, event: EventView<'_>) -> bool {
        if self.tags.is_empty() {
            return true;
        }
        // There are 52 letters.
        let mut missing = (1u64 << self.tags.len()) - 1;
        for (letter, value) in event.tags() {
            let Ok(at) = self.tags.binary_search_by_key(&letter, |(letter, _)| *letter) else {
                continue;
            };
            if missing & (1 << at) != 0 && contains(&self.tags[at].1, value) {
                missing &= !(1 << at);
                if missing == 0 {
                    return true;
                }
            }
        }
        false
    }

    /// Whether no event can match: an empty list, or `since` after `until`.
    #[must_use]
    pub fn is_unsatisfiable(&self) -> bool {
        self.ids.as_ref().is_some_and(Vec::is_empty)
            || self.authors.as_ref().is_some_and(Vec::is_empty)
            || self.kinds.as_ref().is_some_and(Vec::is_empty)
            || self.tags.iter().any(|(_, values)| values.is_empty())
            || matches!((self.since, self.until), (Some(since), Some(until)) if since > until)
    }
}

fn contains(values: &[TagValue], value: TagRef<'_>) -> bool {
    values.binary_search_by(|probe| probe.as_ref().cmp(&value)).is_ok()
}
