//! Why the store could not do what it was asked. What becomes of an *event* is a verdict, never
//! one of these.

use std::io;
use std::path::{Path, PathBuf};

use heed::MdbError;

use super::migrate;
use super::schema::SCHEMA_VERSION;
use crate::relay::ports::Sequence;

/// A failure of the store. Displayed to the operator, so each says what to look at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process, or this one, has the directory open for writing.
    #[error("{dir} is held by another writer{}: stop it first, or let it do the work",
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    Held {
        /// The data directory.
        dir: PathBuf,
        /// Who holds it, when the lock file says so.
        pid: Option<u32>,
    },
    /// This process has the directory open already; LMDB allows one environment a process.
    #[error("{dir} is already open in this process")]
    AlreadyOpen {
        /// The data directory.
        dir: PathBuf,
    },
    /// The directory holds no store, or something else.
    #[error("there is no store in {dir}")]
    Missing {
        /// The data directory.
        dir: PathBuf,
    },
    /// The store was written by a build with another schema.
    #[error(
        "the store in {dir} has schema {found}, that of {} build; this one reads schema \
         {SCHEMA_VERSION}: {}",
        if *found > SCHEMA_VERSION { "a newer" } else { "an older" },
        if *found == migrate::FROM {
            "`rheostr migrate` or a start of the relay brings it there"
        } else {
            "export it with the build that wrote it and import it here"
        }
    )]
    Schema {
        /// The data directory.
        dir: PathBuf,
        /// The version found there.
        found: u64,
    },
    /// Another process is about to put another data file in place.
    #[error("{dir} is being compacted, repaired, restored or backed up to by another process")]
    Replaced {
        /// The data directory, or that of the copy.
        dir: PathBuf,
    },
    /// Other processes read the store, so its file cannot be replaced.
    #[error("{dir} is being read by another process: wait for it to end, or end it")]
    Read {
        /// The data directory.
        dir: PathBuf,
    },
    /// A file is in the way, and is not written over.
    #[error("{path} exists")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The directory to be restored to is in use for something.
    #[error("{dir} is not empty (it holds {entry}): restore to a new directory")]
    NotEmpty {
        /// The data directory.
        dir: PathBuf,
        /// Something in it.
        entry: String,
    },
    /// The file to be restored is none that `backup` wrote, or not all of it.
    #[error("{path} is no backup: {why}")]
    NoBackup {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The memory map is used up (`MDB_MAP_FULL`), but for what erasing may need. Nothing of the
    /// transaction is durable.
    #[error(
        "the store is full: store.map_bytes_max = {map_bytes_max}; raise it, or erase events (rheostr delete)"
    )]
    Full {
        /// The bound in force.
        map_bytes_max: u64,
    },
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// LMDB refused.
    #[error("LMDB: {0}")]
    Lmdb(#[source] heed::Error),
    /// Pages of the data file are not what LMDB wrote: nothing read from it can be relied on.
    #[error(
        "{dir}/data.mdb is damaged ({source}): `rheostr check` says more; then `rheostr check --repair` or \
         `rheostr restore`"
    )]
    Structure {
        /// The data directory.
        dir: PathBuf,
        /// What LMDB met.
        source: MdbError,
    },
    /// The tables contradict each other; `rheostr check` tells more.
    #[error("the store is damaged: {0}")]
    Damaged(String),
    /// A record is not what was stored: its checksum says so. Others are not concerned.
    #[error("the record of event {sequence} is damaged: `rheostr check` says more")]
    Record {
        /// Its sequence number.
        sequence: Sequence,
    },
    /// The search index cannot be asked, or there is none.
    #[error("the search index: {0}")]
    Search(String),
    /// The caller submitted what the store must never see.
    #[error("event {id} cannot be stored: {reason}")]
    Unstorable {
        /// The event's id in hex.
        id: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A write to a store opened read-only.
    #[error("the store in {dir} is open read-only")]
    ReadOnly {
        /// The data directory.
        dir: PathBuf,
    },
    /// The environment could not be closed within its deadline, so it cannot be opened again.
    #[error("the store in {dir} is still in use and cannot be reopened")]
    Busy {
        /// The data directory.
        dir: PathBuf,
    },
}

impl StoreError {
    /// Why an event was not stored, in words that tell a client nothing about this machine.
    #[must_use]
    pub fn public(&self) -> &'static str {
        match self {
            Self::Full { .. } => "the store is full",
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                "the disk is full"
            }
            Self::Io { .. } => "the disk failed",
            Self::Busy { .. } => "the store is being reopened",
            _ => "the store failed",
        }
    }

    /// Whether the next transaction may well fail of the same: it is the place, not the content.
    #[must_use]
    pub fn lasts(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Io { .. } | Self::Lmdb(_) | Self::Busy { .. })
    }

    /// Whether a transaction found no free page in the map.
    pub(super) fn is_map_full(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Lmdb(heed::Error::Mdb(MdbError::MapFull)))
    }

    /// What a transaction ends with that may not take the last pages of the map.
    pub(super) fn map_full() -> Self {
        Self::Lmdb(heed::Error::Mdb(MdbError::MapFull))
    }

    /// Names `path` as what an I/O error is about.
    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.into(), source }
    }

    /// Puts what `Full` and `Io` cannot know by themselves into an LMDB error.
    pub(super) fn in_directory(self, dir: &Path, map_bytes_max: u64) -> Self {
        match self {
            Self::Lmdb(heed::Error::Mdb(MdbError::MapFull)) => Self::Full { map_bytes_max },
            Self::Lmdb(heed::Error::Io(source)) => {
                Self::Io { path: dir.into(), source: cause(source, dir) }
            }
            // The last is what LMDB says when it met the damage while it opened a cursor: no transaction
            // here goes on after an error that was told.
            Self::Lmdb(heed::Error::Mdb(
                source @ (MdbError::Corrupted
                | MdbError::PageNotFound
                | MdbError::CursorFull
                | MdbError::Invalid
                | MdbError::BadTxn),
            )) => Self::Structure { dir: dir.into(), source },
            Self::Lmdb(heed::Error::EnvAlreadyOpened) => Self::AlreadyOpen { dir: dir.into() },
            other => other,
        }
    }
}

impl From<heed::Error> for StoreError {
    fn from(error: heed::Error) -> Self {
        Self::Lmdb(error)
    }
}

/// A write that a full disk cuts short is EIO to LMDB; where no room is left, that is the cause.
fn cause(error: io::Error, dir: &Path) -> io::Error {
    let full = || rustix::fs::statvfs(dir).is_ok_and(|found| found.f_bavail == 0);
    if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) && full() {
        return rustix::io::Errno::NOSPC.into();
    }
    error
}
