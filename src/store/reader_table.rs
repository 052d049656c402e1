//! LMDB's table of read transactions: who keeps pages from being used again.
//!
//! It lies in `lock.mdb` as `MDB_txninfo` of `mdb.c` says, in a format that LMDB itself checks
//! when it opens the file; heed does not hand it out. For an operator to look at, nothing is
//! decided by it.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use rustix::process::{Pid, test_kill_process};

use super::error::StoreError;

/// `MDB_MAGIC`, the first word of the file.
const MAGIC: u32 = 0xBEEF_C0DE;
/// `CACHELINE`: what the parts of the table are padded to.
const LINE_BYTES: usize = 64;
/// Where the mutex of the table lies, behind magic, format, last transaction and number of slots.
const MUTEX_AT: usize = 24;
/// The head of the table: that, and the writers' mutex.
const HEAD_BYTES: usize = (MUTEX_AT + MUTEX_BYTES).next_multiple_of(LINE_BYTES)
    + MUTEX_BYTES.next_multiple_of(LINE_BYTES);
const MUTEX_BYTES: usize = size_of::<libc::pthread_mutex_t>();

/// An open read transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reader {
    /// The process that reads.
    pub pid: u32,
    /// Transactions committed since it began: pages that they freed are not used again yet.
    pub behind: u64,
    /// Whether the process is there. The slot of one that was killed is cleared by the next writer.
    pub alive: bool,
}

/// The read transactions on the store in `dir`, oldest first; those of this process are not seen.
///
/// # Errors
/// [`StoreError::AlreadyOpen`] where this process has the store open: to close the file would let
/// go of the locks by which LMDB knows that it is there (fcntl(2)). Otherwise what the file system
/// said.
pub fn readers(dir: &Path) -> Result<Vec<Reader>, StoreError> {
    let opened = dir.canonicalize().ok().and_then(heed::env_closing_event);
    if opened.is_some() {
        return Err(StoreError::AlreadyOpen { dir: dir.into() });
    }
    let path = dir.join("lock.mdb");
    match fs::read(&path) {
        Ok(table) => Ok(parse(&table, is_alive)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(StoreError::io(&path)(error)),
    }
}

fn is_alive(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| test_kill_process(pid) != Err(rustix::io::Errno::SRCH))
}

fn parse(table: &[u8], is_alive: impl Fn(u32) -> bool) -> Vec<Reader> {
    if table.len() < HEAD_BYTES || word(table, 0) != MAGIC {
        return Vec::new();
    }
    let (last, slots) = (long(table, 8), word(table, 16) as usize);
    let reader = |slot: &[u8]| {
        // A slot is a transaction, a process, a thread. Those in use have all three.
        let (transaction, pid) = (long(slot, 0), word(slot, 8));
        let open = pid != 0 && transaction != u64::MAX;
        open.then(|| Reader { pid, behind: last.saturating_sub(transaction), alive: is_alive(pid) })
    };
    let slots = table[HEAD_BYTES..].chunks_exact(LINE_BYTES).take(slots);
    let mut readers: Vec<_> = slots.filter_map(reader).collect();
    readers.sort_by_key(|reader| std::cmp::Reverse(reader.behind));
    readers
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(*bytes[at..].first_chunk().expect("the table is longer"))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(*bytes[at..].first_chunk().expect("the table is longer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_table_has_no_readers() {
        for table in [&b""[..], &[0; HEAD_BYTES], &[0xff; 4 * HEAD_BYTES]] {
            assert_eq!(parse(table, |_| true), []);
        }
        // More slots said to be in use than there are, and an idle one.
        let mut table = vec![0; HEAD_BYTES + 2 * LINE_BYTES + 10];
        table[..4].copy_from_slice(&MAGIC.to_ne_bytes());
        table[8..16].copy_from_slice(&7u64.to_ne_bytes());
        table[16..20].copy_from_slice(&u32::MAX.to_ne_bytes());
        table[HEAD_BYTES..HEAD_BYTES + 8].copy_from_slice(&3u64.to_ne_bytes());
        table[HEAD_BYTES + 8] = 9;
        table[HEAD_BYTES + LINE_BYTES..][..8].copy_from_slice(&u64::MAX.to_ne_bytes());
        table[HEAD_BYTES + LINE_BYTES + 8] = 9;
        let pid = u32::from_ne_bytes([9, 0, 0, 0]);
        assert_eq!(parse(&table, |_| false), [Reader { pid, behind: 4, alive: false }]);
    }
}
