//! The stored queries of a shard: which slice is read next, and by whom.

use std::collections::{BTreeMap, VecDeque};

use super::bus::{Address, FromThread};
use crate::relay::ScanKey;
use crate::relay::ports::{Counting, Query, Sequence};
use crate::store::{ReadJob, ReadersHandle, Scan, Store, StoreError};

/// Cancelled queries that may wait for a reader beside as many that are wanted.
const CANCELLED_SLICES_MAX: usize = 256;

/// See the module.
pub struct Queries {
    store: Store,
    readers: ReadersHandle,
    /// The shard, to which the readers send what they have read.
    address: Address,
    /// Those of which no slice is being read.
    scans: BTreeMap<ScanKey, Box<Scan>>,
    /// Those of them whose next slice is wanted, in turn; cancelled ones among them are passed over.
    slices: VecDeque<ScanKey>,
    /// Those of them for which the readers of searches had no room: they keep nobody else waiting.
    searches: VecDeque<ScanKey>,
}

impl Queries {
    /// None yet.
    pub(super) fn new(store: Store, readers: ReadersHandle, address: Address) -> Self {
        let (slices, searches) = (VecDeque::new(), VecDeque::new());
        Self { store, readers, address, scans: BTreeMap::new(), slices, searches }
    }

    /// Begins one, which looks at what was committed up to `filed_at`, or counts it; its first slice is
    /// wanted.
    ///
    /// # Errors
    /// The store cannot begin it.
    pub(super) fn begin(
        &mut self,
        key: ScanKey,
        query: Query,
        filed_at: Sequence,
        counting: Option<Counting>,
    ) -> Result<(), StoreError> {
        let mut scan = self.store.scan(query)?.up_to(filed_at);
        if let Some(counting) = counting {
            scan = scan.counting(counting);
        }
        self.put_back(key, Box::new(scan));
        self.resume(key);
        Ok(())
    }

    /// Takes one back of which a slice has been read.
    pub(super) fn put_back(&mut self, key: ScanKey, scan: Box<Scan>) {
        self.scans.insert(key, scan);
    }

    /// Its next slice is wanted.
    pub(super) fn resume(&mut self, key: ScanKey) {
        self.slices.push_back(key);
    }

    /// Forgets one. What it leaves in the line is swept out now and then, so that a client that replaces
    /// its subscription over and over does not make the line grow.
    pub(super) fn cancel(&mut self, key: ScanKey) {
        self.scans.remove(&key);
        for line in [&mut self.slices, &mut self.searches] {
            if line.len() > 2 * self.scans.len() + CANCELLED_SLICES_MAX {
                line.retain(|waiting| self.scans.contains_key(waiting));
            }
        }
    }

    /// Hands slices to the readers while they have room; the rest waits for a later tick, which a
    /// returning slice brings, or the time.
    pub(super) fn ask(&mut self) {
        while let Some(key) = self.searches.pop_front() {
            if !self.submit(key) {
                self.searches.push_front(key);
                break;
            }
        }
        while let Some(key) = self.slices.pop_front() {
            if self.submit(key) {
                continue;
            }
            if !self.scans[&key].is_to_search() {
                self.slices.push_front(key);
                return;
            }
            self.searches.push_back(key);
        }
    }

    /// False where the readers have no room.
    fn submit(&mut self, key: ScanKey) -> bool {
        let Some(scan) = self.scans.remove(&key) else { return true };
        let address = self.address.clone();
        let job = ReadJob {
            scan,
            deliver: Box::new(move |scan, chunk| {
                // A shard that has ended reads no slice.
                let _ = address.send(FromThread::Chunk(key, scan, chunk));
            }),
        };
        match self.readers.try_submit(job) {
            Ok(()) => true,
            Err(job) => {
                self.scans.insert(key, job.scan);
                false
            }
        }
    }

    /// Gives the room of the line back.
    pub(super) fn shrink_to_fit(&mut self) {
        self.slices.shrink_to_fit();
        self.searches.shrink_to_fit();
    }
}
