//! Every table against every event, both ways (`rheostr check`).
//!
//! Forward: each event has exactly the entries that its record asks for. Backward: when a table
//! holds another number of entries than were found that way, each of its entries is asked for its
//! event. Each record is made anew from its JSON, whose hash must be its id. One read transaction sees
//! it all: while a relay writes, the file grows for as long as the check runs.

mod archive;

use std::fmt::Arguments;

use heed::RoTxn;
use serde::Deserialize;

use super::apply::{may_delete, parse_address};
use super::environment::{Environment, Table, number, sequence};
use super::names::Text;
use super::schema::{
    Address, Backlog, Hasher, IndexKeys, META_SCHEMA, Mark, SCHEMA_VERSION, Suffix, address,
    address_of, id_rest, record_of, short, tag_hint, tag_key, tag_prefixes, tomb_key, unseal,
};
use super::transaction::find;
use super::{Store, StoreError, visible};
use crate::nostr::event::HEADER_BYTES;
use crate::nostr::{Event, EventView, Kind, MessageReader, TagRef, tag};
use crate::relay::ports::Sequence;

/// Differences described; all are counted.
const DESCRIBED_MAX: usize = 100;

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Events walked.
    pub events: u64,
    /// Archived versions walked.
    pub replaced: u64,
    /// Table entries walked or looked up.
    pub entries: u64,
    /// How many differences there are. 0 = the store is sound.
    pub differences: u64,
    /// The first hundred of them, for the operator.
    pub described: Vec<String>,
}

impl Store {
    /// Walks every table against every event, and every event against its id.
    ///
    /// # Errors
    /// When the store cannot be read; a difference is no error.
    pub fn check(&self) -> Result<Report, StoreError> {
        check(&*self.environment()?, Some(Rereader::default()))
    }
}

/// Walks every table against every event; against its id, too, if there is who reads it again.
pub(super) fn check(
    environment: &Environment,
    rereader: Option<Rereader>,
) -> Result<Report, StoreError> {
    let txn = environment.env.read_txn()?;
    let mut check = Check {
        environment,
        txn: &txn,
        rereader,
        found: Found::default(),
        unreadable: Vec::new(),
        report: Report::default(),
    };
    check.meta()?;
    check.records()?;
    check.events()?;
    check.indexes()?;
    check.marks()?;
    check.backlogs()?;
    check.archive()?;
    Ok(check.report)
}

/// Reads events again from the JSON of their records.
#[derive(Default)]
pub(super) struct Rereader {
    reader: MessageReader,
    text: Vec<u8>,
}

impl Rereader {
    /// The event that the record's JSON is; says what is wrong when it is none, or its id is not
    /// the hash of it.
    pub fn read(&mut self, event: EventView<'_>) -> Result<Event, &'static str> {
        self.text.clear();
        self.text.extend_from_slice(event.json());
        simdutf8::basic::from_utf8(&self.text).map_err(|_| "not UTF-8")?;
        Ok(self.reader.read_event(&mut self.text)?.event().clone())
    }
}

struct Check<'c> {
    environment: &'c Environment,
    txn: &'c RoTxn<'c>,
    rereader: Option<Rereader>,
    found: Found,
    /// Ascending; described already.
    unreadable: Vec<Sequence>,
    report: Report,
}

/// Entries found by looking for them.
#[derive(Default)]
struct Found {
    id: u64,
    time: u64,
    author_kind: u64,
    kind: u64,
    tag: u64,
    expire: u64,
}

impl<'c> Check<'c> {
    fn difference(&mut self, text: impl FnOnce() -> String) {
        self.report.differences += 1;
        if self.report.described.len() < DESCRIBED_MAX {
            self.report.described.push(text());
        }
    }

    fn meta(&mut self) -> Result<(), StoreError> {
        let meta = &self.environment.tables.meta;
        match meta.get(self.txn, META_SCHEMA)?.map(number) {
            Some(Ok(SCHEMA_VERSION)) => {}
            other => self.difference(|| format!("meta: the schema version is {other:?}")),
        }
        let last = self.environment.last_sequence(self.txn)?;
        if let Some((key, _)) = self.environment.tables.event.last(self.txn)?
            && number(key).is_ok_and(|seq| seq > last)
        {
            self.difference(|| format!("meta: the last sequence is {last}, later ones are used"));
        }
        Ok(())
    }

    /// Each record by itself. Those that cannot be worked with are left out of the rest.
    fn records(&mut self) -> Result<(), StoreError> {
        for entry in self.environment.tables.event.iter(self.txn)? {
            let (key, value) = entry?;
            self.report.events += 1;
            let Ok(key) = key.try_into() else {
                self.difference(|| format!("event: a key of {} bytes", key.len()));
                continue;
            };
            let seq = Sequence::from_be_bytes(key);
            let sealed = unseal(seq, value).is_some();
            let sound = match record_of(value).and_then(EventView::new) {
                Some(event) => self.record(event, format_args!("event {seq}")) && sealed,
                None => {
                    self.difference(|| format!("event {seq}: not a record"));
                    false
                }
            };
            if !sealed {
                self.difference(|| format!("event {seq}: its checksum is that of another record"));
            }
            if !sound {
                self.unreadable.push(seq);
            }
        }
        Ok(())
    }

    /// Forward: from each event to its entries.
    fn events(&mut self) -> Result<(), StoreError> {
        let mut prefixes = Vec::new();
        for entry in self.environment.tables.event.iter(self.txn)? {
            let Ok(key) = entry?.0.try_into() else { continue };
            let seq = Sequence::from_be_bytes(key);
            if let Some(event) = self.readable(seq)? {
                self.entries_of(event, seq, &mut prefixes)?;
                self.rules(event, seq)?;
            }
        }
        Ok(())
    }

    /// The event of `seq`, if it is stored and its record can be worked with.
    fn readable(&self, seq: Sequence) -> Result<Option<EventView<'c>>, StoreError> {
        if self.is_unreadable(seq) {
            return Ok(None);
        }
        let value = self.environment.tables.event.get(self.txn, &seq.to_be_bytes())?;
        Ok(value.and_then(record_of).and_then(EventView::new))
    }

    fn is_unreadable(&self, seq: Sequence) -> bool {
        self.unreadable.binary_search(&seq).is_ok()
    }

    /// The header and the packed tags against the JSON they were made of, the JSON against the id;
    /// false when the record cannot be worked with.
    fn record(&mut self, event: EventView<'_>, name: Arguments<'_>) -> bool {
        let Ok(body) = serde_json::from_slice::<Body<'_>>(event.json()) else {
            self.difference(|| format!("{name}: its JSON is not an event's"));
            return false;
        };
        let same = body.id == faster_hex::hex_string(event.id())
            && body.pubkey == faster_hex::hex_string(event.pubkey())
            && body.created_at == event.created_at()
            && body.kind == event.kind().0;
        if !same {
            self.difference(|| format!("{name}: its header differs from its JSON"));
        }
        let mut packed = Vec::new();
        for strings in &body.tags {
            if let [name, value, ..] = strings.as_slice()
                && let [letter] = name.0.as_bytes()
                && letter.is_ascii_alphabetic()
            {
                tag::pack(&mut packed, *letter, &value.0);
            }
        }
        let tags = &event.record()[HEADER_BYTES..event.record().len() - event.json().len()];
        if tags != packed {
            self.difference(|| format!("{name}: its packed tags differ from its JSON"));
            return false;
        }
        match self.rereader.as_mut().map(|rereader| rereader.read(event)) {
            Some(Err(why)) => {
                self.difference(|| format!("{name}: not what was signed: {why}"));
                false
            }
            Some(Ok(again)) if same && again.record() != event.record() => {
                self.difference(|| format!("{name}: its record differs from its JSON"));
                true
            }
            _ => true,
        }
    }

    fn entries_of(
        &mut self,
        event: EventView<'_>,
        seq: Sequence,
        prefixes: &mut Vec<[u8; 9]>,
    ) -> Result<(), StoreError> {
        let tables = &self.environment.tables;
        let keys = IndexKeys::of(event, seq);
        let value = short(seq);
        let at = if tables.id.get(self.txn, &event.id()[..16])? == Some(&value[..]) {
            &event.id()[..16]
        } else {
            &event.id()[..]
        };
        self.found.id += self.expect("id", tables.id, at, &value, seq)?;
        let rest = id_rest(event.id());
        self.found.time += self.expect("time", tables.time, &keys.time, &rest, seq)?;
        self.found.author_kind +=
            self.expect("author_kind", tables.author_kind, &keys.author_kind, &[], seq)?;
        self.found.kind += self.expect("kind", tables.kind, &keys.kind, &[], seq)?;
        if let Some(key) = keys.expire {
            self.found.expire += self.expect("expire", tables.expire, &key, &[], seq)?;
        }
        let hint = tag_hint(event);
        tag_prefixes(event, &self.environment.hasher, prefixes);
        for prefix in prefixes {
            let key = tag_key(prefix, &keys.suffix);
            self.found.tag += self.expect("tag", tables.tag, &key, &hint, seq)?;
        }
        Ok(())
    }

    /// 1 when the entry is there, with the right value or not.
    fn expect(
        &mut self,
        name: &str,
        table: Table,
        key: &[u8],
        value: &[u8],
        seq: Sequence,
    ) -> Result<u64, StoreError> {
        self.report.entries += 1;
        match table.get(self.txn, key)? {
            Some(found) if found == value => Ok(1),
            Some(_) => {
                self.difference(|| format!("event {seq}: its {name} entry has another value"));
                Ok(1)
            }
            None => {
                self.difference(|| format!("event {seq}: it has no {name} entry"));
                Ok(0)
            }
        }
    }

    /// What must not be stored together with tombstones, marks and vanished keys.
    fn rules(&mut self, event: EventView<'_>, seq: Sequence) -> Result<(), StoreError> {
        let tables = &self.environment.tables;
        let unstoppable = matches!(event.kind(), Kind::DELETION | Kind::VANISH);
        let wrapped = event.kind() == Kind::GIFT_WRAP;
        let recipients = wrapped.then(|| visible::recipients(event)).into_iter().flatten();
        for deleter in std::iter::once(event.pubkey()).chain(recipients) {
            let tomb = tables.tomb_id.get(self.txn, &tomb_key(event.id(), deleter))?;
            if !unstoppable && tomb.is_some() {
                self.difference(|| format!("event {seq}: stored, although deleted by id"));
            }
        }
        if visible::is_covered(tables.vanish, self.txn, event)?
            && !visible::is_covered(tables.backlog, self.txn, event)?
        {
            self.difference(|| format!("event {seq}: stored, although its key vanished"));
        }
        if event.kind() == Kind::DELETION {
            self.request(event, seq)?;
        }
        let Some(address) = address_of(event, &self.environment.hasher) else { return Ok(()) };
        if let Some(up_to) = tables.tomb_addr.get(self.txn, &address)?
            && number(up_to)? >= event.created_at()
        {
            self.difference(|| format!("event {seq}: stored, although deleted by address"));
        }
        let mark = tables.replace.get(self.txn, &address)?.map(Mark::decode);
        if mark != Some(Some(Mark::of(event, seq))) {
            self.difference(|| format!("event {seq}: it is not what its replace mark names"));
        }
        Ok(())
    }

    /// A stored deletion request has done its work.
    fn request(&mut self, request: EventView<'_>, seq: Sequence) -> Result<(), StoreError> {
        for (letter, value) in request.tags() {
            let undone = match (letter, value) {
                (b'e', TagRef::Hex(id)) => {
                    let named = match find(self.environment, self.txn, id) {
                        Ok(found) => found.map(|(seq, _)| seq),
                        // An id entry without its event: told where the entries are walked.
                        Err(StoreError::Damaged(_)) => None,
                        Err(error) => return Err(error),
                    };
                    let named = named.map(|seq| self.readable(seq)).transpose()?.flatten();
                    let archive = self.environment.tables.archive;
                    let archived =
                        archive.map(|archive| self.archived(&archive, id)).transpose()?;
                    [named, archived.flatten()]
                        .iter()
                        .flatten()
                        .any(|named| may_delete(request.pubkey(), *named))
                }
                (b'a', TagRef::Text(text)) => match parse_address(text, request.pubkey()) {
                    Some((kind, d)) => {
                        let hasher = &self.environment.hasher;
                        let key = address(request.pubkey(), kind, d.as_ref(), hasher);
                        let up_to = self.environment.tables.tomb_addr.get(self.txn, &key)?;
                        up_to.map(number).transpose()?.unwrap_or(0) < request.created_at()
                    }
                    None => false,
                },
                _ => false,
            };
            if undone {
                self.difference(|| format!("event {seq}: a deletion request not carried out"));
            }
        }
        Ok(())
    }

    /// Backward: from each entry to its event, in tables that hold more or less than was found.
    fn indexes(&mut self) -> Result<(), StoreError> {
        let tables = self.environment.tables;
        let found = &self.found;
        let counted = [
            ("id", tables.id, found.id),
            ("time", tables.time, found.time),
            ("author_kind", tables.author_kind, found.author_kind),
            ("kind", tables.kind, found.kind),
            ("tag", tables.tag, found.tag),
            ("expire", tables.expire, found.expire),
        ];
        for (name, table, found) in counted {
            if table.len(self.txn)? == found {
                continue;
            }
            for entry in table.iter(self.txn)? {
                let (key, value) = entry?;
                self.report.entries += 1;
                if !self.belongs(name, key, value)? {
                    self.difference(|| {
                        format!("{name}: a stray entry {}", faster_hex::hex_string(key))
                    });
                }
            }
        }
        Ok(())
    }

    /// Whether an index entry is one that its event asks for.
    fn belongs(&self, name: &str, key: &[u8], value: &[u8]) -> Result<bool, StoreError> {
        let seq = match name {
            "id" => sequence(value).ok(),
            "expire" => key.last_chunk().copied().map(super::schema::long),
            "time" => Suffix::ending(key).map(|suffix| suffix.turned().seq()),
            _ => Suffix::ending(key).map(|suffix| suffix.seq()),
        };
        let Some(seq) = seq else { return Ok(false) };
        let Some(event) = self.readable(seq)? else { return Ok(self.is_unreadable(seq)) };
        let keys = IndexKeys::of(event, seq);
        Ok(match name {
            "id" => key == &event.id()[..16] || key == event.id(),
            "time" => key == keys.time,
            "author_kind" => key == keys.author_kind,
            "kind" => key == keys.kind,
            "expire" => keys.expire.is_some_and(|expire| key == expire),
            "tag" => is_tag_key(event, key, &keys.suffix, &self.environment.hasher),
            other => unreachable!("{other} is no index"),
        })
    }

    /// Each mark names a stored event of its address, or none.
    fn marks(&mut self) -> Result<(), StoreError> {
        for entry in self.environment.tables.replace.iter(self.txn)? {
            let (key, value) = entry?;
            self.report.entries += 1;
            if !self.is_mark(key, value)? {
                self.difference(|| {
                    format!("replace: {} names no version of it", faster_hex::hex_string(key))
                });
            }
        }
        Ok(())
    }

    fn is_mark(&self, key: &[u8], value: &[u8]) -> Result<bool, StoreError> {
        let (Ok(key), Some(mark)) = (Address::try_from(key), Mark::decode(value)) else {
            return Ok(false);
        };
        if mark.seq == 0 {
            return Ok(true);
        }
        let Some(event) = self.readable(mark.seq)? else { return Ok(self.is_unreadable(mark.seq)) };
        Ok(address_of(event, &self.environment.hasher) == Some(key)
            && mark == Mark::of(event, mark.seq))
    }

    /// A backlog never reaches further than the vanish it belongs to.
    fn backlogs(&mut self) -> Result<(), StoreError> {
        let tables = &self.environment.tables;
        for entry in tables.backlog.iter(self.txn)? {
            let (key, value) = entry?;
            self.report.entries += 1;
            let up_to = tables.vanish.get(self.txn, key)?.map(number).transpose()?;
            if up_to.is_none() || up_to != Backlog::decode(value).map(|backlog| backlog.up_to) {
                self.difference(|| {
                    format!("backlog: {} has no such vanish", faster_hex::hex_string(key))
                });
            }
        }
        for (name, table, key_len) in [
            ("vanish", tables.vanish, 32),
            ("tomb_id", tables.tomb_id, 64),
            ("tomb_addr", tables.tomb_addr, 50),
        ] {
            for entry in table.iter(self.txn)? {
                let (key, value) = entry?;
                self.report.entries += 1;
                if key.len() != key_len || value.len() != 8 {
                    self.difference(|| format!("{name}: a malformed entry"));
                }
            }
        }
        Ok(())
    }
}

fn is_tag_key(event: EventView<'_>, key: &[u8], suffix: &[u8; 19], hasher: &Hasher) -> bool {
    let mut prefixes = Vec::new();
    tag_prefixes(event, hasher, &mut prefixes);
    prefixes.iter().any(|prefix| key == tag_key(prefix, suffix))
}

#[derive(Deserialize)]
struct Body<'a> {
    id: &'a str,
    pubkey: &'a str,
    created_at: u64,
    kind: u16,
    #[serde(borrow)]
    tags: Vec<Vec<Text<'a>>>,
}
