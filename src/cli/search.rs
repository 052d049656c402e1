//! Full-text search (NIP-50), where it is built in and switched on.

#[cfg(feature = "search")]
pub use built_in::Searching;
#[cfg(not(feature = "search"))]
pub use left_out::Searching;

#[cfg(feature = "search")]
mod built_in {
    use std::sync::Arc;

    use crate::cli::failure::Failure;
    use crate::config::Config;
    use crate::search::{Erasures, SearchIndex, Tail, directory};
    use crate::store::{CommitSink, Store};

    /// The index, and the thread that keeps it up.
    pub enum Searching {
        /// What the writer's commits wake, before there are any.
        Prepared(SearchIndex, Erasures, flume::Receiver<()>),
        /// It is kept up.
        Running(Tail),
    }

    impl Searching {
        /// Opens the index, if `store.search` is on; before anything is written to the store.
        pub fn prepare(config: &Config, store: &Store) -> Result<Option<Self>, Failure> {
            if !config.store.search {
                return Ok(None);
            }
            let index = SearchIndex::open(&directory(&config.data)).map_err(failed)?;
            let (erasures, woken) = Tail::channel(store)?;
            Ok(Some(Self::Prepared(index, erasures, woken)))
        }

        /// Where the writer tells what it commits.
        pub fn sink(&self) -> Option<Box<dyn CommitSink>> {
            match self {
                Self::Prepared(_, erasures, _) => Some(Box::new(erasures.clone())),
                Self::Running(_) => None,
            }
        }

        /// Answers the store's searches, and keeps the index up with it.
        pub fn start(self, store: &Store) -> Result<Self, Failure> {
            let Self::Prepared(index, erasures, woken) = self else { return Ok(self) };
            store.set_search(Arc::new(index.clone()));
            let tail = Tail::spawn(store.clone(), index, erasures, woken).map_err(failed)?;
            Ok(Self::Running(tail))
        }

        /// Ends the thread; what it has taken in is kept.
        pub fn close(self) {
            if let Self::Running(tail) = self {
                tail.close();
            }
        }
    }

    fn failed(error: impl std::fmt::Display) -> Failure {
        Failure::Failed(format!("the search index: {error}"))
    }
}

#[cfg(not(feature = "search"))]
mod left_out {
    use crate::cli::failure::Failure;
    use crate::config::Config;
    use crate::store::{CommitSink, Store};

    /// There is none.
    pub enum Searching {}

    impl Searching {
        /// Refuses `store.search`.
        pub fn prepare(config: &Config, _store: &Store) -> Result<Option<Self>, Failure> {
            match config.store.search {
                false => Ok(None),
                true => Err(Failure::Failed(
                    "this program was built without search: build it with --features search, or set \
                     store.search = false"
                        .into(),
                )),
            }
        }

        pub fn sink(&self) -> Option<Box<dyn CommitSink>> {
            match *self {}
        }

        pub fn start(self, _store: &Store) -> Result<Self, Failure> {
            match self {}
        }

        pub fn close(self) {
            match self {}
        }
    }
}
