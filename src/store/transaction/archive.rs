//! The archive: versions of replaceable and addressable events that newer ones have replaced, where the
//! operator keeps them ([`Terms::keep_replaced`](crate::store::Terms)).
//!
//! What it holds does not depend on the order of arrival: every version that came and is not the newest of
//! its address, unless it was deleted, has expired, or its author has vanished. So a version that comes after a
//! newer one is archived, too, once, though its sender is told that a newer one is stored; and one that is
//! replaced while it waits to be erased is erased. An id is never both stored and archived: whatever is archived
//! is beaten by the mark of its address, and marks only rise.
//!
//! The archive is in no index that answers queries: clients see the newest version (NIP-01). Deletion by
//! id erases at once. An address or a key may have any number of versions: of these an entry in `archive_backlog`
//! has the background erase some at a time, and until then `tomb_addr` and `vanish` hide them
//! ([`visible::is_archived_visible`](crate::store::visible)).
//!
//! Where versions are no longer kept, those archived stay, and go by the same rules.

use heed::PutFlags;

use super::Transaction;
use crate::nostr::event::{EventView, Id};
use crate::relay::ports::Sequence;
use crate::store::environment::ArchiveTables;
use crate::store::error::StoreError;
use crate::store::schema::{
    ARCHIVED, ArchiveBacklog, ArchiveKey, archive_expire_key, seal, unseal,
};

/// A key of `archive_expire`, and that of the version it names.
type Expired = (Vec<u8>, Option<ArchiveKey>);

impl Transaction<'_> {
    /// Takes a version that a newer one beats out of every index, and into the archive if it is to be kept and
    /// may be served at `now`.
    pub fn replace(&mut self, seq: Sequence, now: u64, keep: bool) -> Result<(), StoreError> {
        let replaced = match self.environment.indexed(&self.txn, seq) {
            // It is served no more either way.
            Err(StoreError::Record { .. }) => return Ok(()),
            replaced => replaced?,
        };
        if !keep || !self.is_visible(replaced, now)? {
            return self.erase(seq);
        }
        let record = replaced.record().to_vec();
        self.erase(seq)?;
        self.archive(EventView::new(&record).expect("it was one a moment ago"))
    }

    /// Adds a version that a newer one beats, unless it is there.
    pub fn archive(&mut self, event: EventView<'_>) -> Result<(), StoreError> {
        let key =
            ArchiveKey::of(event, &self.environment.hasher).expect("versions have an address");
        let tables = self.archive_tables();
        let txn = &mut self.txn;
        let once = PutFlags::NO_OVERWRITE;
        match tables.id.put_with_flags(txn, once, key.id(), key.place()) {
            Err(heed::Error::Mdb(heed::MdbError::KeyExist)) => {
                let found = tables.archive.get(txn, &key.0)?;
                if found.is_some_and(|value| unseal(ARCHIVED, value).is_some()) {
                    return Ok(());
                }
            }
            put => put?,
        }
        seal(ARCHIVED, event.record(), &mut self.record);
        tables.archive.put(txn, &key.0, &self.record)?;
        if let Some(at) = event.expiration() {
            tables.expire.put(txn, &archive_expire_key(at, key.id()), &[])?;
        }
        self.adds = true;
        Ok(())
    }

    /// The key of the archived version of this id.
    pub fn find_archived(&self, id: &Id) -> Result<Option<ArchiveKey>, StoreError> {
        let Some(place) = self.archive_tables().id.get(&self.txn, id)? else { return Ok(None) };
        let key = ArchiveKey::found(id, place);
        key.map(Some).ok_or_else(|| StoreError::Damaged("an archive_id value is not one".into()))
    }

    /// Takes a version out of the archive.
    pub fn erase_archived(&mut self, key: &ArchiveKey) -> Result<(), StoreError> {
        let tables = self.archive_tables();
        let Some(value) = tables.archive.get(&self.txn, &key.0)? else {
            let id = faster_hex::hex_string(key.id());
            return Err(StoreError::Damaged(format!("the archive lacks the version {id}")));
        };
        // A damaged record does not tell; its entry goes when its time has come.
        let event = unseal(ARCHIVED, value).and_then(EventView::new);
        let expiration = event.and_then(|event| event.expiration());
        let txn = &mut self.txn;
        let mut found = tables.archive.delete(txn, &key.0)?;
        found &= tables.id.delete(txn, key.id())?;
        if let Some(at) = expiration {
            found &= tables.expire.delete(txn, &archive_expire_key(at, key.id()))?;
        }
        if !found {
            let id = faster_hex::hex_string(key.id());
            tracing::error!(id, "an archived version that is erased lacked an entry");
        }
        Ok(())
    }

    /// Has the background erase what is archived under keys that begin so, a pubkey or an address, up to a
    /// `created_at`; nothing is archived there later. A reach is never lower than one before it.
    pub fn forget_archived(&mut self, prefix: &[u8], up_to: u64) -> Result<(), StoreError> {
        let tables = self.archive_tables();
        let backlog = ArchiveBacklog::new(prefix, up_to);
        let first = tables.archive.get_greater_than_or_equal_to(&self.txn, &backlog.next)?;
        if first.is_some_and(|(key, _)| key.starts_with(prefix)) {
            tables.backlog.put(&mut self.txn, prefix, &backlog.encode())?;
        }
        Ok(())
    }

    /// Erases archived versions that have expired, and some of what is to be forgotten: `most` at most, looking
    /// at sixteen for each. Answers whether more is to be done.
    pub fn tend_archive(&mut self, now: u64, most: usize) -> Result<bool, StoreError> {
        let tables = self.archive_tables();
        let expired = self.expired_archived(now, most)?;
        for (key, version) in &expired {
            if let Some(version) = version {
                self.erase_archived(version)?;
            }
            tables.expire.delete(&mut self.txn, key)?;
        }
        let left = most - expired.len();
        if left == 0 {
            return Ok(true);
        }
        let Some((prefix, value)) = tables.backlog.first(&self.txn)? else { return Ok(false) };
        let backlog = ArchiveBacklog::decode(value)
            .ok_or_else(|| StoreError::Damaged("an archive_backlog value is not one".into()))?;
        let prefix = prefix.to_vec();
        self.erase_forgotten(&prefix, backlog, left)?;
        Ok(tables.backlog.first(&self.txn)?.is_some())
    }

    /// Entries whose time has come, and the versions they name.
    fn expired_archived(&self, now: u64, most: usize) -> Result<Vec<Expired>, StoreError> {
        let mut keys = Vec::new();
        for entry in self.archive_tables().expire.iter(&self.txn)?.take(most) {
            let (key, _) = entry?;
            let (Some(at), Some(id)) = (key.first_chunk(), key.last_chunk()) else {
                return Err(StoreError::Damaged("an archive_expire key is too short".into()));
            };
            if u64::from_be_bytes(*at) > now {
                break;
            }
            keys.push((key.to_vec(), self.find_archived(id)?));
        }
        Ok(keys)
    }

    /// Goes on where the last chunk ended. Of each address the versions up to the backlog's reach come first, so
    /// that the rest of it is leapt over.
    fn erase_forgotten(
        &mut self,
        prefix: &[u8],
        mut backlog: ArchiveBacklog,
        most: usize,
    ) -> Result<(), StoreError> {
        let tables = self.archive_tables();
        let mut from = backlog.next.to_vec();
        let mut erased = 0;
        for _ in 0..most.saturating_mul(16) {
            let next = tables.archive.get_greater_than_or_equal_to(&self.txn, &from)?;
            let Some((key, _)) = next.filter(|(key, _)| key.starts_with(prefix)) else {
                tables.backlog.delete(&mut self.txn, prefix)?;
                return Ok(());
            };
            let key = ArchiveKey::decode(key)
                .ok_or_else(|| StoreError::Damaged("an archive key is not one".into()))?;
            backlog.next = *key.address();
            if erased == most {
                break;
            }
            if key.created_at() <= backlog.up_to {
                self.erase_archived(&key)?;
                erased += 1;
                from = key.0.to_vec();
            } else {
                from = key.address().to_vec();
                from.extend_from_slice(&[0xff; 37]);
            }
        }
        Ok(tables.backlog.put(&mut self.txn, prefix, &backlog.encode())?)
    }

    /// By value: handles, which do not keep the transaction borrowed.
    fn archive_tables(&self) -> ArchiveTables {
        self.environment.tables.archive.expect("made when the store was opened for writing")
    }
}
