//! A data file is made beside its place and put there whole: a crash leaves what was there before,
//! or what is new, never half of it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;

use super::environment::sync_directory;
use super::error::StoreError;

/// Bytes handed to the disk at a time: what waits in the page cache would hold up the commits of a
/// relay that writes beside.
const SYNC_BYTES: u64 = 8 << 20;

/// What LMDB may leave in the directory of an environment.
const FILES: [&str; 2] = ["data.mdb", "lock.mdb"];

/// The directory beside a data file in which its successor is made; gone with the value. Held by
/// a lock, so that what is found in it was left behind by a process that has ended.
pub(super) struct Beside {
    dir: PathBuf,
    _lock: File,
}

impl Beside {
    /// Makes `dir`, or takes over what a process that has ended left there.
    pub fn new(dir: PathBuf) -> Result<Self, StoreError> {
        match fs::create_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(StoreError::io(&dir)(error));
            }
            _ => {}
        }
        let lock = File::open(&dir).map_err(StoreError::io(&dir))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(StoreError::Replaced { dir }),
            Err(error) => return Err(StoreError::io(&dir)(error.into())),
        }
        remove_files(&dir);
        Ok(Self { dir, _lock: lock })
    }

    /// Where an environment may be opened.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes the data file from `input` and syncs it; tells `progress` of the bytes so far.
    pub fn write(
        &self,
        mut input: impl Read,
        progress: &mut dyn FnMut(u64),
    ) -> Result<u64, StoreError> {
        let path = self.data();
        let failed = || StoreError::io(&path);
        // As LMDB makes its own: private messages are in it.
        let open = File::options().write(true).create_new(true).mode(0o600).open(&path);
        let mut file = open.map_err(failed())?;
        let mut bytes = 0;
        loop {
            let step = io::copy(&mut (&mut input).take(SYNC_BYTES), &mut file);
            let step = step.map_err(failed())?;
            if step == 0 {
                break;
            }
            file.sync_data().map_err(failed())?;
            bytes += step;
            progress(bytes);
        }
        file.sync_all().map_err(failed())?;
        Ok(bytes)
    }

    /// Gives the data file the owner and the mode of the one it is to replace, durably.
    pub fn resemble(&self, old: &Path) -> Result<(), StoreError> {
        let (new, like) = (self.data(), fs::metadata(old).map_err(StoreError::io(old))?);
        let made = fs::metadata(&new).map_err(StoreError::io(&new))?;
        if (made.uid(), made.gid()) != (like.uid(), like.gid()) {
            chown(&new, Some(like.uid()), Some(like.gid())).map_err(StoreError::io(&new))?;
        }
        let like = fs::set_permissions(&new, like.permissions());
        like.and_then(|()| File::open(&new)?.sync_all()).map_err(StoreError::io(&new))
    }

    /// Puts the data file at `place`; durable when this returns.
    ///
    /// # Errors
    /// [`StoreError::Exists`] when `place` is taken and `over` does not allow that.
    pub fn install(self, place: &Path, over: Over) -> Result<(), StoreError> {
        rename(&self.data(), place, over)?;
        sync_directory(place.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new(".")))
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data.mdb")
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        remove(&self.dir);
    }
}

/// Whether a file may be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    Nothing,
    TheOldOne,
}

fn rename(from: &Path, to: &Path, over: Over) -> Result<(), StoreError> {
    let exists = || StoreError::Exists { path: to.into() };
    if over == Over::Nothing {
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST) => return Err(exists()),
            // A file system that cannot refuse by itself.
            Err(_) if to.symlink_metadata().is_ok() => return Err(exists()),
            Err(_) => {}
        }
    }
    fs::rename(from, to).map_err(StoreError::io(to))
}

/// Removes what an interrupted process left at `dir`; nobody may be using it.
pub(super) fn remove(dir: &Path) {
    remove_files(dir);
    // Not there, as a rule; what somebody else put into it stays.
    let _ = fs::remove_dir(dir);
}

fn remove_files(dir: &Path) {
    for name in FILES {
        // What cannot be removed is met again where it is in the way.
        let _ = fs::remove_file(dir.join(name));
    }
}
