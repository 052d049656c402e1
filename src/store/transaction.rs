//! One write transaction: what an event is in the tables, how it comes and how it goes.
//!
//! Index entries of new events are held back and put in key order just before the commit; what a
//! later event of the same batch must see (`event`, `id`, `replace`, tombstones, the archive) is put at once.

mod archive;

use std::cmp::Reverse;

use heed::{PutFlags, RwTxn};

use super::environment::{Environment, Table, number, sequence};
use super::error::StoreError;
use super::schema::{
    Address, Backlog, IdRest, IndexKeys, META_LAST_SEQUENCE, Mark, SEQUENCE_MAX, Suffix, TagHint,
    address_of, id_rest, seal, short, tag_hint, tag_key, tag_prefixes,
};
use super::visible;
use crate::nostr::event::{Event, EventView, Id, Pubkey};
use crate::relay::ports::{Erased, Sequence, Vanished};

pub(super) struct Transaction<'e> {
    txn: RwTxn<'e>,
    environment: &'e Environment,
    /// `last_before <= last_sequence`; the new events are those in between.
    last_before: Sequence,
    last_sequence: Sequence,
    /// Whether something was archived.
    adds: bool,
    held_back: HeldBack,
    gone: Gone,
    /// Scratch: the record of one event, and its tag prefixes.
    record: Vec<u8>,
    prefixes: Vec<[u8; 9]>,
}

/// What a transaction takes away from readers.
#[derive(Debug, Default)]
pub(super) struct Gone {
    /// Events erased, those of this very transaction included; in order once it is committed.
    pub erased: Vec<Erased>,
    /// Keys that have vanished.
    pub vanished: Vec<Vanished>,
}

/// Entries of new events, table by table.
#[derive(Default)]
struct HeldBack {
    time: Vec<([u8; 19], IdRest)>,
    author_kind: Vec<([u8; 29], [u8; 0])>,
    kind: Vec<([u8; 21], [u8; 0])>,
    tag: Vec<([u8; 28], TagHint)>,
    expire: Vec<([u8; 14], [u8; 0])>,
}

impl<'e> Transaction<'e> {
    pub fn begin(environment: &'e Environment) -> Result<Self, StoreError> {
        let txn = environment.env.write_txn()?;
        let last_sequence = environment.last_sequence(&txn)?;
        Ok(Self {
            txn,
            environment,
            last_before: last_sequence,
            last_sequence,
            adds: false,
            held_back: HeldBack::default(),
            gone: Gone::default(),
            record: Vec::new(),
            prefixes: Vec::new(),
        })
    }

    /// Makes room for the entries of so many new events, so that they are not moved as they grow.
    pub fn expect_events(&mut self, count: usize) {
        let HeldBack { time, author_kind, kind, tag, expire: _ } = &mut self.held_back;
        time.reserve(count);
        author_kind.reserve(count);
        kind.reserve(count);
        tag.reserve(count);
    }

    /// Makes everything durable. A transaction that changed nothing costs no sync. One that adds events
    /// leaves some of the map to those that erase.
    pub fn commit(mut self) -> Result<Gone, StoreError> {
        self.gone.erased.sort_unstable();
        self.gone.vanished.sort_unstable_by_key(|v| (v.pubkey, Reverse(v.up_to)));
        self.gone.vanished.dedup_by_key(|v| v.pubkey);
        self.put_held_back()?;
        if self.last_sequence != self.last_before {
            let last = self.last_sequence.to_be_bytes();
            self.environment.tables.meta.put(&mut self.txn, META_LAST_SEQUENCE, &last)?;
            self.adds = true;
        }
        if self.adds && !self.environment.has_room(&self.txn)? {
            return Err(StoreError::map_full());
        }
        self.txn.commit()?;
        Ok(self.gone)
    }

    pub fn environment(&self) -> &'e Environment {
        self.environment
    }

    pub fn read(&self) -> &RwTxn<'e> {
        &self.txn
    }

    pub fn last_sequence(&self) -> Sequence {
        self.last_sequence
    }

    /// Where the event of this id is stored.
    pub fn find(&self, id: &Id) -> Result<Option<(Sequence, EventView<'_>)>, StoreError> {
        find(self.environment, &self.txn, id)
    }

    /// Whether a stored event may be served at `now`.
    pub fn is_visible(&self, event: EventView<'_>, now: u64) -> Result<bool, StoreError> {
        visible::is_visible(self.environment, &self.txn, event, now)
    }

    /// Whether the event's author, or the recipient of a gift wrap, has vanished (NIP-62).
    pub fn is_vanished(&self, event: EventView<'_>) -> Result<bool, StoreError> {
        visible::is_covered(self.environment.tables.vanish, &self.txn, event)
    }

    /// Adds an event in every index and at the end of the order: `seq` is later than all others.
    pub fn insert(&mut self, event: &Event, seq: Sequence) -> Result<(), StoreError> {
        assert!(self.last_sequence < seq, "the order only grows");
        assert!(seq <= SEQUENCE_MAX, "281 trillion events");
        self.last_sequence = seq;
        let view = event.view();
        let tables = &self.environment.tables;
        append_record(tables.event, &mut self.txn, seq, event.record(), &mut self.record)?;
        self.put_id(view.id(), seq)?;
        let keys = IndexKeys::of(view, seq);
        self.held_back.time.push((keys.time, id_rest(view.id())));
        self.held_back.author_kind.push((keys.author_kind, []));
        self.held_back.kind.push((keys.kind, []));
        self.held_back.expire.extend(keys.expire.map(|key| (key, [])));
        let hint = tag_hint(view);
        tag_prefixes(view, &self.environment.hasher, &mut self.prefixes);
        let tags = self.prefixes.iter().map(|prefix| (tag_key(prefix, &keys.suffix), hint));
        self.held_back.tag.extend(tags);
        Ok(())
    }

    /// Takes an event out of every table. Its address keeps the high-water mark.
    ///
    /// # Errors
    /// [`StoreError::Record`] when its record does not tell where it is; nothing has changed then.
    pub fn erase(&mut self, seq: Sequence) -> Result<(), StoreError> {
        let mut record = std::mem::take(&mut self.record);
        record.clear();
        let view = self.environment.indexed(&self.txn, seq)?;
        record.extend_from_slice(view.record());
        let view = EventView::new(&record).expect("it was one a moment ago");
        let tables = &self.environment.tables;
        tables.event.delete(&mut self.txn, &seq.to_be_bytes())?;
        self.delete_id(view.id(), seq)?;
        self.gone.erased.push(Erased {
            sequence: seq,
            created_at: view.created_at(),
            id: *view.id().first_chunk().expect("an id is longer"),
        });
        if seq <= self.last_before {
            self.delete_index_entries(view, seq)?;
        }
        if let Some(address) = address_of(view, &self.environment.hasher) {
            match self.mark(&address)? {
                Some(mark) if mark.seq == seq => {
                    self.put_mark(&address, &mark.emptied())?;
                }
                _ => {}
            }
        }
        self.record = record;
        Ok(())
    }

    pub fn mark(&self, address: &Address) -> Result<Option<Mark>, StoreError> {
        let Some(value) = self.environment.tables.replace.get(&self.txn, address)? else {
            return Ok(None);
        };
        let mark = Mark::decode(value);
        mark.map(Some).ok_or_else(|| StoreError::Damaged("a high-water mark is not one".into()))
    }

    pub fn put_mark(&mut self, address: &Address, mark: &Mark) -> Result<(), StoreError> {
        Ok(self.environment.tables.replace.put(&mut self.txn, address, &mark.encode())?)
    }

    /// Raises a `key → up to` entry; answers whether it was lower.
    pub fn raise(&mut self, table: Table, key: &[u8], up_to: u64) -> Result<bool, StoreError> {
        if let Some(value) = table.get(&self.txn, key)?
            && number(value)? >= up_to
        {
            return Ok(false);
        }
        table.put(&mut self.txn, key, &up_to.to_be_bytes())?;
        Ok(true)
    }

    pub fn put_backlog(&mut self, key: &Pubkey, backlog: &Backlog) -> Result<(), StoreError> {
        Ok(self.environment.tables.backlog.put(&mut self.txn, key, &backlog.encode())?)
    }

    /// Hides what a key wrote up to a second, and gift wraps to it, from now on; they are erased later, those
    /// archived too.
    pub fn vanish(&mut self, pubkey: &Pubkey, up_to: u64) -> Result<(), StoreError> {
        self.forget_archived(pubkey, up_to)?;
        self.put_backlog(pubkey, &Backlog::whole(up_to))?;
        self.gone.vanished.push(Vanished { pubkey: *pubkey, up_to });
        Ok(())
    }

    /// Takes an entry out of `expire` whose event is not there to be erased.
    pub fn forget_expiry(&mut self, key: &[u8]) -> Result<(), StoreError> {
        self.environment.tables.expire.delete(&mut self.txn, key)?;
        Ok(())
    }

    pub fn delete_backlog(&mut self, key: &Pubkey) -> Result<(), StoreError> {
        self.environment.tables.backlog.delete(&mut self.txn, key)?;
        Ok(())
    }

    fn put_id(&mut self, id: &Id, seq: Sequence) -> Result<(), StoreError> {
        let table = self.environment.tables.id;
        let seq = short(seq);
        // The prefix belongs to whoever came first.
        match table.put_with_flags(&mut self.txn, PutFlags::NO_OVERWRITE, &id[..16], &seq) {
            Err(heed::Error::Mdb(heed::MdbError::KeyExist)) => {
                Ok(table.put(&mut self.txn, id, &seq)?)
            }
            put => Ok(put?),
        }
    }

    fn delete_id(&mut self, id: &Id, seq: Sequence) -> Result<(), StoreError> {
        let table = self.environment.tables.id;
        for key in [&id[..16], &id[..]] {
            if table.get(&self.txn, key)? == Some(&short(seq)) {
                table.delete(&mut self.txn, key)?;
                return Ok(());
            }
        }
        tracing::error!(event = seq, "an event that is erased had no id entry");
        Ok(())
    }

    fn delete_index_entries(
        &mut self,
        event: EventView<'_>,
        seq: Sequence,
    ) -> Result<(), StoreError> {
        let tables = &self.environment.tables;
        let txn = &mut self.txn;
        let keys = IndexKeys::of(event, seq);
        let mut found = tables.time.delete(txn, &keys.time)?;
        found &= tables.author_kind.delete(txn, &keys.author_kind)?;
        found &= tables.kind.delete(txn, &keys.kind)?;
        if let Some(key) = &keys.expire {
            found &= tables.expire.delete(txn, key)?;
        }
        tag_prefixes(event, &self.environment.hasher, &mut self.prefixes);
        for prefix in &self.prefixes {
            found &= tables.tag.delete(txn, &tag_key(prefix, &keys.suffix))?;
        }
        if !found {
            // What was missing is no more missing.
            tracing::error!(event = seq, "an event that is erased lacked an index entry");
        }
        Ok(())
    }

    fn put_held_back(&mut self) -> Result<(), StoreError> {
        let gone = &self.gone.erased;
        let tables = &self.environment.tables;
        let rows = &mut self.held_back;
        put_sorted(&mut self.txn, tables.time, &mut rows.time, gone, |end| end.map(|byte| !byte))?;
        put_sorted(&mut self.txn, tables.author_kind, &mut rows.author_kind, gone, |end| end)?;
        put_sorted(&mut self.txn, tables.kind, &mut rows.kind, gone, |end| end)?;
        put_sorted(&mut self.txn, tables.tag, &mut rows.tag, gone, |end| end)?;
        put_sorted(&mut self.txn, tables.expire, &mut rows.expire, gone, |end| end)
    }
}

/// Puts a record behind all others; `scratch` may hold any.
pub(super) fn append_record(
    table: Table,
    txn: &mut RwTxn<'_>,
    seq: Sequence,
    record: &[u8],
    scratch: &mut Vec<u8>,
) -> Result<(), StoreError> {
    seal(seq, record, scratch);
    match table.put_with_flags(txn, PutFlags::APPEND, &seq.to_be_bytes(), scratch) {
        // A key that a disk has changed may be the last.
        Err(heed::Error::Mdb(heed::MdbError::KeyExist)) => {
            let once = PutFlags::NO_OVERWRITE;
            Ok(table.put_with_flags(txn, once, &seq.to_be_bytes(), scratch)?)
        }
        put => Ok(put?),
    }
}

/// Puts rows in key order, without those of events in `gone`. `short` makes the sequence of what a key ends in.
fn put_sorted<const K: usize, const V: usize>(
    txn: &mut RwTxn<'_>,
    table: Table,
    rows: &mut Vec<([u8; K], [u8; V])>,
    gone: &[Erased],
    short: impl Fn([u8; 6]) -> [u8; 6],
) -> Result<(), StoreError> {
    rows.sort_unstable_by_key(|row| row.0);
    for (key, value) in rows.drain(..) {
        let seq = super::schema::long(short(*key.last_chunk().expect("a key ends in it")));
        if gone.is_empty() || gone.binary_search_by_key(&seq, |event| event.sequence).is_err() {
            table.put(txn, &key, &value)?;
        }
    }
    Ok(())
}

/// Where the event of this id is stored: the entry under its prefix, or, when that is another
/// event's, the one right behind it. A damaged record is not an event that is stored.
pub(super) fn find<'t>(
    environment: &Environment,
    txn: &'t heed::RoTxn<'_>,
    id: &Id,
) -> Result<Option<(Sequence, EventView<'t>)>, StoreError> {
    let table = environment.tables.id;
    let Some((key, value)) = table.get_greater_than_or_equal_to(txn, &id[..16])? else {
        return Ok(None);
    };
    if !key.starts_with(&id[..16]) {
        return Ok(None);
    }
    let seq = sequence(value)?;
    match environment.indexed(txn, seq) {
        Ok(event) if event.id() == id => return Ok(Some((seq, event))),
        Ok(_) | Err(StoreError::Record { .. }) => {}
        Err(error) => return Err(error),
    }
    let Some(value) = table.get(txn, id)? else { return Ok(None) };
    let seq = sequence(value)?;
    match environment.indexed(txn, seq) {
        Ok(event) => Ok(Some((seq, event))),
        Err(StoreError::Record { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The suffix an erased or walked index key ends in.
pub(super) fn suffix_of(key: &[u8]) -> Result<Suffix, StoreError> {
    Suffix::ending(key).ok_or_else(|| StoreError::Damaged("an index key is too short".into()))
}
