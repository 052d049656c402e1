//! A damaged store made anew from its events (`rheostr check --repair`).
//!
//! A second data file is made beside and replaces the first when [`check`] finds nothing in it:
//!
//! 1. Tombstones and vanished keys are taken over: nothing else says what they say.
//! 2. The events follow in their order and with their sequence numbers, by the rules they came in
//!    by ([`super::apply`]). So every index, mark and deletion is what follows from them. A record is
//!    made from its JSON; where that is not what was signed, the event is left out. High-water marks whose version is
//!    gone are taken over first: what they beat does not come back.
//! 3. High-water marks without a stored version are taken over where they say more.
//! 4. Archived versions come by the same rules. One that nothing is known to replace any more is stored: it is
//!    the newest that could be read.
//!
//! Memory is bounded by a transaction, not by the store; disk space is that of a second file.

use std::fmt::Arguments;
use std::path::Path;

use heed::{PutFlags, RoTxn};

use super::apply::{check_storable, take};
use super::beside::Beside;
use super::check::{Rereader, check};
use super::copies::{Alone, REBUILD};
use super::environment::{Environment, Mode, Table, number};
use super::schema::{
    ARCHIVED, Address, Backlog, META_LAST_SEQUENCE, META_SCHEMA, Mark, SEQUENCE_MAX, record_of,
    unseal,
};
use super::transaction::Transaction;
use super::{Options, Store, StoreError, Terms};
use crate::nostr::{Event, EventView};
use crate::relay::ports::{Sequence, Verdict};

/// Events of one transaction: each touches some ten pages of indexes.
const COMMIT_EVENTS: usize = 2_000;
/// Bytes of their records, but for the last one.
const COMMIT_BYTES: usize = 16 << 20;
/// Entries of other tables in one transaction.
const COMMIT_ENTRIES: usize = 50_000;

/// What was left out or made anew, described; all are counted.
const DESCRIBED_MAX: usize = 100;

/// What a repair did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Events kept.
    pub events: u64,
    /// Replaced versions kept in the archive.
    pub replaced: u64,
    /// Events left out: not what was signed, or contradicting another one that was kept.
    pub left_out: u64,
    /// Events kept whose record was made anew from what was signed.
    pub made_anew: u64,
    /// Entries of other tables left out: they said nothing.
    pub entries_left_out: u64,
    /// The first hundred of all these, for the operator.
    pub described: Vec<String>,
}

impl Store {
    /// Makes the store of `dir` anew from its events. Nobody else may use the directory meanwhile.
    /// Durable when this returns; a crash leaves the old file or the new one. `progress` is told the
    /// number of events done.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::Held`] by a writer, [`StoreError::Read`] by others;
    /// [`StoreError::Damaged`] when the events themselves cannot be read. Then the old file is in
    /// place.
    pub fn repair(
        dir: &Path,
        options: &Options,
        terms: &Terms,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Repaired, StoreError> {
        let alone = Alone::with(dir)?;
        let old = Environment::open(dir, options, Mode::ReadOnly)?;
        let beside = Beside::new(dir.join(REBUILD))?;
        let repaired = Repair::run(&old, beside.dir(), options, terms, progress)
            .map_err(|error| error.in_directory(beside.dir(), options.map_bytes_max))?;
        drop(old);
        alone.install(beside)?;
        Ok(repaired)
    }
}

struct Repair<'r> {
    old: &'r Environment,
    txn: &'r RoTxn<'r>,
    new: &'r Environment,
    terms: &'r Terms,
    /// The highest sequence number under which something was found.
    last_key: Sequence,
    repaired: Repaired,
}

impl Repair<'_> {
    /// Makes a store in `dir` from what is in `old`.
    fn run(
        old: &Environment,
        dir: &Path,
        options: &Options,
        terms: &Terms,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Repaired, StoreError> {
        let mut new = Environment::open(dir, options, Mode::ReadWrite)?;
        new.hasher = old.hasher;
        let txn = old.env.read_txn()?;
        let mut repair =
            Repair { old, txn: &txn, new: &new, terms, last_key: 0, repaired: Repaired::default() };
        repair.meta()?;
        repair.tombstones()?;
        repair.empty_marks()?;
        repair.events(progress)?;
        repair.marks()?;
        repair.archive()?;
        let repaired = repair.repaired;
        let report = check(&new, Some(Rereader::default()))?;
        match report.described.first() {
            None => Ok(repaired),
            Some(difference) => Err(StoreError::Damaged(format!(
                "even repaired it has differences ({difference}): left as it was"
            ))),
        }
    }

    fn describe(&mut self, text: impl FnOnce() -> String) {
        if self.repaired.described.len() < DESCRIBED_MAX {
            self.repaired.described.push(text());
        }
    }

    fn leave_out(&mut self, text: impl FnOnce() -> String) {
        self.repaired.left_out += 1;
        self.describe(text);
    }

    /// What is said of the store as a whole: the key of the hashes above all.
    fn meta(&mut self) -> Result<(), StoreError> {
        let mut txn = self.new.env.write_txn()?;
        for entry in self.old.tables.meta.iter(self.txn)? {
            let (name, value) = entry?;
            // The version is that of this build; sequence numbers are counted below.
            if name != META_SCHEMA && name != META_LAST_SEQUENCE {
                self.new.tables.meta.put(&mut txn, name, value)?;
            }
        }
        Ok(txn.commit()?)
    }

    fn tombstones(&mut self) -> Result<(), StoreError> {
        let (old, new) = (self.old.tables, self.new.tables);
        let shaped = |key_len: usize| {
            move |_: &RoTxn<'_>, key: &[u8], value: &[u8]| {
                Ok(key.len() == key_len && value.len() == 8)
            }
        };
        self.take_over("tomb_id", old.tomb_id, new.tomb_id, shaped(64))?;
        self.take_over("tomb_addr", old.tomb_addr, new.tomb_addr, shaped(50))?;
        self.take_over("vanish", old.vanish, new.vanish, shaped(32))?;
        self.take_over("backlog", old.backlog, new.backlog, |txn, key, value| {
            let up_to = new.vanish.get(txn, key)?.map(number).transpose()?;
            Ok(up_to.is_some() && up_to == Backlog::decode(value).map(|backlog| backlog.up_to))
        })
    }

    /// Copies the entries that say something.
    fn take_over(
        &mut self,
        name: &str,
        from: Table,
        to: Table,
        says: impl Fn(&RoTxn<'_>, &[u8], &[u8]) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let mut txn = self.new.env.write_txn()?;
        for (number, entry) in from.iter(self.txn)?.enumerate() {
            let (key, value) = entry?;
            if says(&txn, key, value)? {
                to.put_with_flags(&mut txn, PutFlags::APPEND, key, value)?;
            } else {
                self.leave_out_entry(name, key);
            }
            if number % COMMIT_ENTRIES == COMMIT_ENTRIES - 1 {
                txn.commit()?;
                txn = self.new.env.write_txn()?;
            }
        }
        Ok(txn.commit()?)
    }

    fn leave_out_entry(&mut self, name: &str, key: &[u8]) {
        self.repaired.entries_left_out += 1;
        self.describe(|| format!("{name}: {} says nothing", faster_hex::hex_string(key)));
    }

    fn events(&mut self, progress: &mut dyn FnMut(u64)) -> Result<(), StoreError> {
        let mut rereader = Rereader::default();
        let mut transaction = Transaction::begin(self.new)?;
        let (mut events, mut bytes) = (0, 0);
        let (mut done, mut stored) = (0, 0);
        for entry in self.old.tables.event.iter(self.txn)? {
            let (key, value) = entry?;
            done += 1;
            let Some((seq, event)) = self.event(key, value, &mut rereader) else { continue };
            match take(&mut transaction, &event, seq, 0, self.terms)? {
                Verdict::Stored => stored += 1,
                Verdict::Superseded if self.terms.keep_replaced => stored += 1,
                verdict => self.leave_out(|| format!("event {seq}: {}", reason(&verdict))),
            }
            events += 1;
            bytes += value.len();
            if events == COMMIT_EVENTS || bytes >= COMMIT_BYTES {
                transaction.commit()?;
                transaction = Transaction::begin(self.new)?;
                (events, bytes) = (0, 0);
                progress(done);
            }
        }
        transaction.commit()?;
        progress(done);
        let txn = self.new.env.read_txn()?;
        self.repaired.events = self.new.tables.event.len(&txn)?;
        let erased = stored - self.repaired.events - self.new.archived(&txn)?;
        drop(txn);
        if erased > 0 {
            self.repaired.left_out += erased;
            self.describe(|| format!("{erased} events: a later one replaces or deletes them"));
        }
        self.last_sequence()
    }

    /// What was replaced, too, whether or not the terms keep what is replaced from now on.
    fn archive(&mut self) -> Result<(), StoreError> {
        let Some(archive) = self.old.tables.archive else { return Ok(()) };
        let keeping = Terms { keep_replaced: true, ..self.terms.clone() };
        let mut rereader = Rereader::default();
        let mut transaction = Transaction::begin(self.new)?;
        let (mut events, mut bytes) = (0, 0);
        for entry in archive.archive.iter(self.txn)? {
            let (key, value) = entry?;
            let name = faster_hex::hex_string(&key[key.len().saturating_sub(32)..]);
            let name = format!("archived version {name}");
            let Some(event) = self.signed(value, ARCHIVED, &mut rereader, format_args!("{name}"))
            else {
                continue;
            };
            let seq = transaction.last_sequence() + 1;
            match take(&mut transaction, &event, seq, 0, &keeping)? {
                Verdict::Superseded => {}
                Verdict::Stored => self.describe(|| format!("{name}: stored, nothing replaces it")),
                verdict => self.leave_out(|| format!("{name}: {}", reason(&verdict))),
            }
            events += 1;
            bytes += value.len();
            if events == COMMIT_EVENTS || bytes >= COMMIT_BYTES {
                transaction.commit()?;
                transaction = Transaction::begin(self.new)?;
                (events, bytes) = (0, 0);
            }
        }
        transaction.commit()?;
        let txn = self.new.env.read_txn()?;
        self.repaired.events = self.new.tables.event.len(&txn)?;
        self.repaired.replaced = self.new.archived(&txn)?;
        Ok(())
    }

    /// The event of an entry, with its sequence number.
    fn event(
        &mut self,
        key: &[u8],
        value: &[u8],
        rereader: &mut Rereader,
    ) -> Option<(Sequence, Event)> {
        let seq = key.try_into().map(Sequence::from_be_bytes);
        let Some(seq) = seq.ok().filter(|seq| (1..=SEQUENCE_MAX).contains(seq)) else {
            self.leave_out(|| format!("event: the key {}", faster_hex::hex_string(key)));
            return None;
        };
        self.last_key = seq;
        let event = self.signed(value, seq, rereader, format_args!("event {seq}"))?;
        Some((seq, event))
    }

    /// The event of a record, made from what was signed.
    fn signed(
        &mut self,
        value: &[u8],
        seq: Sequence,
        rereader: &mut Rereader,
        name: Arguments<'_>,
    ) -> Option<Event> {
        let Some(view) = record_of(value).and_then(EventView::new) else {
            self.leave_out(|| format!("{name}: not a record"));
            return None;
        };
        let event = match rereader.read(view) {
            Ok(event) => event,
            Err(why) => {
                let id = faster_hex::hex_string(view.id());
                self.leave_out(|| format!("{name}: not what was signed as {id}: {why}"));
                return None;
            }
        };
        if let Err(why) = check_storable(event.view()) {
            self.leave_out(|| format!("{name}: {why}"));
            return None;
        }
        if unseal(seq, value) != Some(&event.record()[..]) {
            self.repaired.made_anew += 1;
            self.describe(|| format!("{name}: its record was made anew from its JSON"));
        }
        Some(event)
    }

    /// No sequence number comes twice, whatever was erased.
    fn last_sequence(&mut self) -> Result<(), StoreError> {
        let told = match self.old.last_sequence(self.txn) {
            Err(StoreError::Damaged(_)) => 0,
            told => told?,
        };
        let mut txn = self.new.env.write_txn()?;
        let last = told.min(SEQUENCE_MAX).max(self.last_key);
        self.new.tables.meta.put(&mut txn, META_LAST_SEQUENCE, &last.to_be_bytes())?;
        Ok(txn.commit()?)
    }

    /// The marks of addresses whose newest version is gone, before the events: or an older version would take its
    /// place.
    fn empty_marks(&mut self) -> Result<(), StoreError> {
        let mut txn = self.new.env.write_txn()?;
        for (number, entry) in self.old.tables.replace.iter(self.txn)?.enumerate() {
            let (key, value) = entry?;
            let mark = Mark::decode(value).filter(|_| Address::try_from(key).is_ok());
            if mark.is_some_and(|mark| mark.seq == 0) {
                self.new.tables.replace.put(&mut txn, key, value)?;
            }
            if number % COMMIT_ENTRIES == COMMIT_ENTRIES - 1 {
                txn.commit()?;
                txn = self.new.env.write_txn()?;
            }
        }
        Ok(txn.commit()?)
    }

    /// What an event is stored for follows from it. The others say that a version was there.
    fn marks(&mut self) -> Result<(), StoreError> {
        let mut txn = self.new.env.write_txn()?;
        for (number, entry) in self.old.tables.replace.iter(self.txn)?.enumerate() {
            let (key, value) = entry?;
            let mark = Mark::decode(value).filter(|_| Address::try_from(key).is_ok());
            let table = self.new.tables.replace;
            match (mark, table.get(&txn, key)?.and_then(Mark::decode)) {
                (None, _) => self.leave_out_entry("replace", key),
                (Some(mark), None)
                    if mark.seq != 0 && self.new.event(&txn, mark.seq)?.is_some() =>
                {
                    // That event is of another address.
                    self.leave_out_entry("replace", key);
                }
                (Some(mark), None) => table.put(&mut txn, key, &mark.emptied().encode())?,
                (Some(mark), Some(made)) if made.seq == 0 && mark.beats(&made) => {
                    table.put(&mut txn, key, &mark.emptied().encode())?;
                }
                _ => {}
            }
            if number % COMMIT_ENTRIES == COMMIT_ENTRIES - 1 {
                txn.commit()?;
                txn = self.new.env.write_txn()?;
            }
        }
        Ok(txn.commit()?)
    }
}

/// Why an event that was stored is not stored again.
fn reason(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Duplicate => "stored twice",
        Verdict::Superseded => "stored, although a newer version is",
        Verdict::Deleted => "stored, although it was deleted",
        Verdict::Vanished => "stored, although its key vanished",
        Verdict::Stored | Verdict::Expired | Verdict::Failed(_) => unreachable!("kept at any time"),
    }
}
