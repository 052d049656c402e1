//! The archive's tables against each other, and against what is stored.

use super::Check;
use crate::nostr::EventView;
use crate::nostr::event::Id;
use crate::store::environment::{ArchiveTables, Table, number};
use crate::store::error::StoreError;
use crate::store::schema::{
    ARCHIVED, ArchiveBacklog, ArchiveKey, Mark, archive_expire_key, record_of, tomb_key, unseal,
};
use crate::store::transaction::find;
use crate::store::visible;

impl Check<'_> {
    pub(super) fn archive(&mut self) -> Result<(), StoreError> {
        let Some(tables) = self.environment.tables.archive else { return Ok(()) };
        let (mut ids, mut expirations) = (0, 0);
        for entry in tables.archive.iter(self.txn)? {
            let (bytes, value) = entry?;
            self.report.replaced += 1;
            let name = faster_hex::hex_string(&bytes[bytes.len().saturating_sub(32)..]);
            let event = record_of(value).and_then(EventView::new);
            let (Some(key), Some(event)) = (ArchiveKey::decode(bytes), event) else {
                self.difference(|| format!("archive: {name} is no version"));
                continue;
            };
            if unseal(ARCHIVED, value).is_none() {
                self.difference(|| format!("archive: {name} has the checksum of another record"));
            }
            self.record(event, format_args!("archived version {name}"));
            if ArchiveKey::of(event, &self.environment.hasher) != Some(key) {
                self.difference(|| format!("archive: {name} lies at another's place"));
            }
            ids += self.archive_entry("archive_id", tables.id, key.id(), key.place(), &name)?;
            if let Some(at) = event.expiration() {
                let expire = archive_expire_key(at, key.id());
                expirations +=
                    self.archive_entry("archive_expire", tables.expire, &expire, &[], &name)?;
            }
            self.archive_rules(event, &key, &tables, &name)?;
        }
        self.archive_strays(&tables, "archive_id", tables.id, ids)?;
        self.archive_strays(&tables, "archive_expire", tables.expire, expirations)?;
        self.archive_backlogs(&tables)
    }

    /// 1 when the entry is there, with the right value or not.
    fn archive_entry(
        &mut self,
        table_name: &str,
        table: Table,
        key: &[u8],
        value: &[u8],
        name: &str,
    ) -> Result<u64, StoreError> {
        self.report.entries += 1;
        let found = table.get(self.txn, key)?;
        if found != Some(value) {
            self.difference(|| format!("archive: {name} has no such {table_name} entry"));
        }
        Ok(found.is_some().into())
    }

    /// What must not be archived together with marks, tombstones, vanished keys and stored events.
    fn archive_rules(
        &mut self,
        event: EventView<'_>,
        key: &ArchiveKey,
        archive: &ArchiveTables,
        name: &str,
    ) -> Result<(), StoreError> {
        let tables = &self.environment.tables;
        let mark = tables.replace.get(self.txn, key.address())?.and_then(Mark::decode);
        if !mark.is_some_and(|mark| mark.beats(&Mark::of(event, 0))) {
            self.difference(|| format!("archive: nothing replaces {name}"));
        }
        match find(self.environment, self.txn, key.id()) {
            Ok(Some(_)) => self.difference(|| format!("archive: {name} is stored, too")),
            // An id entry without its event: told where the entries are walked.
            Ok(None) | Err(StoreError::Damaged(_)) => {}
            Err(error) => return Err(error),
        }
        if tables.tomb_id.get(self.txn, &tomb_key(key.id(), key.pubkey()))?.is_some() {
            self.difference(|| format!("archive: {name} is there, although deleted by id"));
        }
        let deleted = tables.tomb_addr.get(self.txn, key.address())?.map(number).transpose()?;
        let is_due = deleted.is_some_and(|up_to| up_to >= key.created_at())
            || visible::is_covered(tables.vanish, self.txn, event)?;
        let erases = |prefix: &[u8]| {
            let backlog = archive.backlog.get(self.txn, prefix)?.and_then(ArchiveBacklog::decode);
            Ok::<_, StoreError>(backlog.is_some_and(|backlog| backlog.covers(key)))
        };
        if is_due && !erases(key.pubkey())? && !erases(key.address())? {
            self.difference(|| format!("archive: {name} is there, although deleted or vanished"));
        }
        Ok(())
    }

    /// Entries without a version, in a table that holds another number than were found.
    fn archive_strays(
        &mut self,
        archive: &ArchiveTables,
        table_name: &str,
        table: Table,
        found: u64,
    ) -> Result<(), StoreError> {
        if table.len(self.txn)? == found {
            return Ok(());
        }
        for entry in table.iter(self.txn)? {
            let (key, _) = entry?;
            self.report.entries += 1;
            let id = key.last_chunk().copied();
            let event = id.map(|id| self.archived(archive, &id)).transpose()?.flatten();
            let belongs = event.is_some_and(|event| match event.expiration() {
                Some(at) if table_name == "archive_expire" => {
                    key == archive_expire_key(at, event.id())
                }
                _ => key == event.id(),
            });
            if !belongs {
                self.difference(|| {
                    format!("{table_name}: a stray entry {}", faster_hex::hex_string(key))
                });
            }
        }
        Ok(())
    }

    pub(super) fn archived(
        &self,
        archive: &ArchiveTables,
        id: &Id,
    ) -> Result<Option<EventView<'_>>, StoreError> {
        let place = archive.id.get(self.txn, id)?;
        let Some(key) = place.and_then(|place| ArchiveKey::found(id, place)) else {
            return Ok(None);
        };
        Ok(archive.archive.get(self.txn, &key.0)?.and_then(record_of).and_then(EventView::new))
    }

    /// A backlog never reaches further than the vanish or the deletion it belongs to.
    fn archive_backlogs(&mut self, archive: &ArchiveTables) -> Result<(), StoreError> {
        let tables = &self.environment.tables;
        for entry in archive.backlog.iter(self.txn)? {
            let (key, value) = entry?;
            self.report.entries += 1;
            let reach = match key.len() {
                32 => tables.vanish.get(self.txn, key)?,
                _ => tables.tomb_addr.get(self.txn, key)?,
            };
            let reach = reach.map(number).transpose()?;
            let backlog = ArchiveBacklog::decode(value).filter(|it| it.next.starts_with(key));
            if backlog.is_none_or(|backlog| reach.is_none_or(|reach| reach < backlog.up_to)) {
                self.difference(|| {
                    format!("archive_backlog: {} is due to nothing", faster_hex::hex_string(key))
                });
            }
        }
        Ok(())
    }
}
