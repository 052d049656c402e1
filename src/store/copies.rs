//! Copies of a whole store: backup beside whoever writes it, restoring, compaction.
//!
//! LMDB copies the pages in use, one table after the other, and drops the free ones. What was
//! committed when the copy began is in it, and nothing that came later.
//!
//! A data file is replaced by whoever holds the directory alone: LMDB finds the lock file by its
//! name, and that of an old file says nothing true about a new one.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use heed::CompactionOption;

use super::beside::{Beside, Over};
use super::environment::{Environment, Hold, Mode, hold_files, lock_directory};
use super::{Options, Store, StoreError, migrate};
use crate::relay::ports::Sequence;

/// Name of the directory in which a store's next data file is made.
pub(super) const REBUILD: &str = "rebuild.tmp";

/// What is in a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    /// Events, those included that wait to be erased.
    pub events: u64,
    /// The last sequence number given when the copy began.
    pub last_sequence: Sequence,
    /// Length of the file.
    pub bytes: u64,
}

/// What a backup did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    /// What it holds.
    pub copied: Copied,
    /// Bytes the data file grew by while it was copied: pages that are being copied are not used
    /// again, so a relay that writes much meanwhile takes new ones.
    pub grown_bytes: u64,
}

/// What a compaction did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compacted {
    /// What is in the file now.
    pub copied: Copied,
    /// Length of the file before.
    pub bytes_before: u64,
}

impl Store {
    /// Writes a snapshot of the store to `to`, a file that does not exist yet, also while another
    /// process writes the store. Durable when this returns; a crash leaves nothing at `to`.
    /// One read transaction lasts for the whole copy. `progress` is told the bytes written.
    ///
    /// # Errors
    /// [`StoreError::Exists`]; [`StoreError::Replaced`] while another process writes the same
    /// backup; otherwise what LMDB or the file system said.
    pub fn backup(&self, to: &Path, progress: &mut dyn FnMut(u64)) -> Result<Backup, StoreError> {
        if to.symlink_metadata().is_ok() {
            return Err(StoreError::Exists { path: to.into() });
        }
        let mut beside = to.as_os_str().to_owned();
        beside.push(".tmp");
        let beside = Beside::new(beside.into())?;
        let environment = self.environment()?;
        let before = environment.env.real_disk_size()?;
        copy(&environment, &beside, progress)?;
        let grown_bytes = environment.env.real_disk_size()?.saturating_sub(before);
        let copied = look(beside.dir(), &self.shared.options)?;
        beside.install(to, Over::Nothing)?;
        Ok(Backup { copied, grown_bytes })
    }

    /// Makes the backup at `from` the store of `dir`, which is empty or does not exist; one of an older schema is
    /// brought to this one. Durable
    /// when this returns; after a crash `dir` holds no store, and restoring may be tried again.
    ///
    /// # Errors
    /// [`StoreError::NotEmpty`]; [`StoreError::NoBackup`] when `from` is none or is cut short;
    /// [`StoreError::Schema`] when another build wrote it; otherwise what the file system said.
    pub fn restore(
        from: &Path,
        dir: &Path,
        options: &Options,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Copied, StoreError> {
        let input = File::open(from).map_err(StoreError::io(from))?;
        if input.metadata().map_err(StoreError::io(from))?.is_dir() {
            let why = "it is a directory: name the file that `backup` wrote".into();
            return Err(StoreError::NoBackup { path: from.into(), why });
        }
        expect_empty(dir)?;
        let _writer = lock_directory(dir)?;
        let _files = hold_files(dir, Hold::Alone)?;
        let beside = Beside::new(dir.join(REBUILD))?;
        if beside.write(input, progress)? == 0 {
            let why = "it is empty".into();
            return Err(StoreError::NoBackup { path: from.into(), why });
        }
        let mut copied = look(beside.dir(), options);
        if matches!(copied, Err(StoreError::Schema { found: migrate::FROM, .. })) {
            let environment = Environment::open(beside.dir(), options, Mode::ReadWrite)?;
            migrate::go_on(&environment, beside.dir())?;
            drop(environment);
            copied = look(beside.dir(), options);
        }
        let copied = copied.map_err(|error| match error {
            StoreError::Schema { found, .. } => StoreError::Schema { dir: from.into(), found },
            error => StoreError::NoBackup { path: from.into(), why: error.to_string() },
        })?;
        beside.install(&dir.join("data.mdb"), Over::Nothing)?;
        Ok(copied)
    }

    /// Rewrites the data file of `dir` without its free pages. Nobody else may use the directory
    /// meanwhile. Durable when this returns; a crash leaves the old file or the new one.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::Held`] by a writer, [`StoreError::Read`] by others;
    /// otherwise what LMDB or the file system said: then the old file is in place.
    pub fn compact(
        dir: &Path,
        options: &Options,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Compacted, StoreError> {
        let alone = Alone::with(dir)?;
        let environment = Environment::open(dir, options, Mode::ReadOnly)?;
        let bytes_before = environment.env.real_disk_size()?;
        let old = contents(&environment)?;
        let beside = Beside::new(dir.join(REBUILD))?;
        copy(&environment, &beside, progress)?;
        let copied = look(beside.dir(), options)?;
        if (copied.events, copied.last_sequence) != (old.events, old.last_sequence) {
            return Err(StoreError::Damaged("the compacted file holds something else".into()));
        }
        drop(environment);
        alone.install(beside)?;
        Ok(Compacted { copied, bytes_before })
    }
}

/// A store's directory that no other process uses.
pub(super) struct Alone {
    data: PathBuf,
    _writer: File,
    _files: File,
}

impl Alone {
    /// Locks `dir`, in which there must be a store.
    pub fn with(dir: &Path) -> Result<Self, StoreError> {
        let data = dir.join("data.mdb");
        if !data.is_file() {
            return Err(StoreError::Missing { dir: dir.into() });
        }
        let writer = lock_directory(dir)?;
        Ok(Self { data, _writer: writer, _files: hold_files(dir, Hold::Alone)? })
    }

    /// Replaces the data file; owner and mode stay. Its environment must be closed.
    pub fn install(&self, beside: Beside) -> Result<(), StoreError> {
        beside.resemble(&self.data)?;
        beside.install(&self.data, Over::TheOldOne)
    }
}

/// Writes a compacted copy of what is committed now. The copy passes through a pipe, so that it
/// reaches the disk in steps.
fn copy(
    environment: &Environment,
    beside: &Beside,
    progress: &mut dyn FnMut(u64),
) -> Result<(), StoreError> {
    let (reader, writer) = std::io::pipe().map_err(StoreError::io(beside.dir()))?;
    std::thread::scope(|scope| {
        let copier = scope.spawn(|| {
            // Closed at the end: so the other side learns of it.
            let mut writer = File::from(OwnedFd::from(writer));
            environment.env.copy_to_file(&mut writer, CompactionOption::Enabled)
        });
        // That the disk is full is the reason; that nobody reads the pipe any more follows from it.
        let written = beside.write(reader, progress);
        let copied = copier.join().expect("copying does not panic");
        written?;
        copied.map_err(|error| StoreError::from(error).in_directory(beside.dir(), 0))
    })
}

/// What a copy holds, if it is whole.
fn look(dir: &Path, options: &Options) -> Result<Copied, StoreError> {
    contents(&Environment::open_copy(dir, options)?)
}

fn contents(environment: &Environment) -> Result<Copied, StoreError> {
    let txn = environment.env.read_txn()?;
    Ok(Copied {
        events: environment.tables.event.len(&txn)?,
        last_sequence: environment.last_sequence(&txn)?,
        bytes: environment.env.real_disk_size()?,
    })
}

/// An error unless `dir` does not exist, or holds nothing but what an interrupted restore leaves.
fn expect_empty(dir: &Path) -> Result<(), StoreError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(StoreError::io(dir)(error)),
    };
    for entry in entries {
        let name = entry.map_err(StoreError::io(dir))?.file_name();
        if name != "writer.lock" && name != REBUILD {
            let entry = name.to_string_lossy().into_owned();
            return Err(StoreError::NotEmpty { dir: dir.into(), entry });
        }
    }
    Ok(())
}
