//! Full-text search beside the store (NIP-50), through tantivy. A cargo feature: `search`.
//!
//! **Owner threads.** One [`Tail`] thread follows the store by sequence number and owns the index's writer;
//! the store's readers ask [`SearchIndex`]. What is found are sequence numbers: the store loads the records and
//! decides what is served, so an index that is a second behind leaves out what is new, and never serves what
//! is gone.
//!
//! **In:** the store's `event` table, commit batches. **Out:** sequence numbers, best first.
//!
//! The index lies in `DATA/search`. It is made from the store, and made anew whenever it is not of this store or
//! cannot be read: nothing is lost with it.

mod tail;
mod text;

#[cfg(test)]
mod tests;

use std::fs;
use std::path::Path;

use tantivy::collector::{FilterCollector, TopDocs};
use tantivy::directory::MmapDirectory;
use tantivy::query::{
    BooleanQuery, ConstScoreQuery, EmptyQuery, Occur, PhraseQuery, Query, TermQuery, TermSetQuery,
};
use tantivy::schema::{FAST, Field, INDEXED, IndexRecordOption, NumericOptions, Schema, TEXT};
use tantivy::tokenizer::TextAnalyzer;
use tantivy::{Index, IndexReader, ReloadPolicy, Searcher, TantivyError, Term};

pub use tail::{Erasures, Tail, directory};

use crate::nostr::{EventView, Filter};
use crate::relay::ports::Sequence;
use crate::store::{Search, StoreError};

/// Words of one search that are looked for; further ones are ignored.
const WORDS_MAX: usize = 32;

/// Authors of one filter whose events are counted, to see whether they are fewer than have the words.
const COUNTED_AUTHORS_MAX: usize = 64;

/// What of an event the index has.
#[derive(Clone, Copy, Debug)]
struct Fields {
    text: Field,
    sequence: Field,
    kind: Field,
    /// The author's first eight bytes; the record decides.
    author: Field,
    created_at: Field,
}

/// The index, to be searched. Cheap to clone.
#[derive(Clone)]
pub struct SearchIndex {
    index: Index,
    reader: IndexReader,
    fields: Fields,
}

impl std::fmt::Debug for SearchIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SearchIndex").finish_non_exhaustive()
    }
}

fn schema() -> (Schema, Fields) {
    let mut schema = Schema::builder();
    let number = || NumericOptions::from(INDEXED | FAST);
    let fields = Fields {
        text: schema.add_text_field("text", TEXT),
        sequence: schema.add_u64_field("sequence", number()),
        kind: schema.add_u64_field("kind", number()),
        author: schema.add_u64_field("author", number()),
        created_at: schema.add_u64_field("created_at", number()),
    };
    (schema.build(), fields)
}

impl SearchIndex {
    /// Opens the index in `dir`, or makes an empty one where there is none, or none that can be read.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn open(dir: &Path) -> Result<Self, TantivyError> {
        match Self::open_or_create(dir) {
            Err(error @ (TantivyError::IoError(_) | TantivyError::OpenDirectoryError(_))) => {
                Err(error)
            }
            Err(error) => {
                tracing::warn!(%error, "the search index cannot be read: it is made anew");
                fs::remove_dir_all(dir)?;
                Self::open_or_create(dir)
            }
            opened => opened,
        }
    }

    fn open_or_create(dir: &Path) -> Result<Self, TantivyError> {
        fs::create_dir_all(dir)?;
        let (schema, fields) = schema();
        let index = Index::open_or_create(MmapDirectory::open(dir)?, schema)?;
        let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into()?;
        Ok(Self { index, reader, fields })
    }

    /// Events in the index.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.reader.searcher().num_docs()
    }

    /// What is to be asked, and how many documents that walks: those with the rarest of the words, or those of
    /// the authors, where they are fewer.
    fn plan(
        &self,
        searcher: &Searcher,
        filter: &Filter,
    ) -> Result<(Box<dyn Query>, u64), TantivyError> {
        let text = filter.search.as_deref().unwrap_or_default();
        let mut analyzer = self.index.tokenizer_for_field(self.fields.text)?;
        let mut musts: Vec<Box<dyn Query>> = Vec::new();
        let (mut left, mut walked) = (WORDS_MAX, u64::MAX);
        for phrase in text::phrases(text) {
            if left == 0 {
                break;
            }
            let words = words(&mut analyzer, phrase, left);
            left -= words.len();
            let terms: Vec<Term> =
                words.iter().map(|word| Term::from_field_text(self.fields.text, word)).collect();
            for term in &terms {
                walked = walked.min(searcher.doc_freq(term)?);
            }
            match &terms[..] {
                [] => {}
                [term] => {
                    musts
                        .push(Box::new(TermQuery::new(term.clone(), IndexRecordOption::WithFreqs)));
                }
                _ => musts.push(Box::new(PhraseQuery::new(terms))),
            }
        }
        if musts.is_empty() {
            return Ok((Box::new(EmptyQuery), 0));
        }
        if let Some(authors) = filter.authors.as_ref().filter(|a| a.len() <= COUNTED_AUTHORS_MAX) {
            let term = |key| Term::from_field_u64(self.fields.author, head(key));
            let terms: Vec<Term> = authors.iter().map(term).collect();
            let mut theirs = 0;
            for term in &terms {
                theirs += searcher.doc_freq(term)?;
            }
            if theirs < walked {
                walked = theirs;
                // It narrows, and has no part in what is best.
                let theirs = Box::new(TermSetQuery::new(terms));
                musts.push(Box::new(ConstScoreQuery::new(theirs, 0.0)));
            }
        }
        let musts = musts.into_iter().map(|query| (Occur::Must, query)).collect();
        Ok((Box::new(BooleanQuery::new(musts)), walked))
    }
}

impl Search for SearchIndex {
    fn cost(&self, filter: &Filter) -> Result<u64, StoreError> {
        let plan = self.plan(&self.reader.searcher(), filter);
        plan.map(|(_, walked)| walked).map_err(failed)
    }

    fn search(&self, filter: &Filter, most: usize) -> Result<Vec<Sequence>, StoreError> {
        let found = || {
            let searcher = self.reader.searcher();
            let (query, _) = self.plan(&searcher, filter)?;
            let best = TopDocs::with_limit(most.max(1)).order_by_score();
            // What else is asked is looked at where the words are found.
            let (since, until) = (filter.since.unwrap_or(0), filter.until.unwrap_or(u64::MAX));
            let in_time = move |at: u64| (since..=until).contains(&at);
            let best = FilterCollector::new("created_at".into(), in_time, best);
            let mut heads: Option<Vec<u64>> =
                filter.authors.as_ref().map(|keys| keys.iter().map(head).collect());
            heads.iter_mut().for_each(|heads| heads.sort_unstable());
            let of_author = move |head: u64| {
                heads.as_ref().is_none_or(|heads| heads.binary_search(&head).is_ok())
            };
            let best = FilterCollector::new("author".into(), of_author, best);
            let kinds = filter.kinds.clone();
            let of_kind = move |kind: u64| {
                let is_it = |kinds: &Vec<u16>| {
                    kinds.binary_search_by(|of| u64::from(*of).cmp(&kind)).is_ok()
                };
                kinds.as_ref().is_none_or(is_it)
            };
            let best = FilterCollector::new("kind".into(), of_kind, best);
            let mut sequences = Vec::new();
            for (_, at) in searcher.search(&*query, &best)? {
                let columns = searcher.segment_reader(at.segment_ord).fast_fields();
                sequences.extend(columns.u64("sequence")?.first(at.doc_id));
            }
            Ok(sequences)
        };
        found().map_err(failed)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn failed(error: TantivyError) -> StoreError {
    StoreError::Search(error.to_string())
}

/// The words of a text as the index has them.
fn words(analyzer: &mut TextAnalyzer, text: &str, most: usize) -> Vec<String> {
    let mut stream = analyzer.token_stream(text);
    let mut words = Vec::new();
    while words.len() < most && stream.advance() {
        words.push(stream.token().text.clone());
    }
    words
}

fn head(pubkey: &[u8; 32]) -> u64 {
    u64::from_be_bytes(*pubkey.first_chunk().expect("a key is longer"))
}

/// The document of an event; `None` when it has no text to be found by.
fn document(
    fields: &Fields,
    sequence: Sequence,
    event: EventView<'_>,
) -> Option<tantivy::TantivyDocument> {
    let text = text::of_event(event)?;
    let mut document = tantivy::TantivyDocument::new();
    document.add_text(fields.text, text);
    document.add_u64(fields.sequence, sequence);
    document.add_u64(fields.kind, event.kind().0.into());
    document.add_u64(fields.author, head(event.pubkey()));
    document.add_u64(fields.created_at, event.created_at());
    Some(document)
}
