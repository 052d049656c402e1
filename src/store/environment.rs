//! The LMDB environment and its tables: opening, creating, locking the directory.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::Path;

use heed::types::Bytes;
use heed::{Database, Env, EnvFlags, EnvOpenOptions, RoTxn, WithoutTls};
use rustix::fs::{FlockOperation, flock};

use super::error::StoreError;
use super::isolated::Isolated;
use super::migrate;
use super::schema::{
    Hasher, META_HASH_KEY, META_LAST_SEQUENCE, META_MIGRATING, META_SCHEMA, SCHEMA_VERSION, short,
    unseal,
};
use crate::nostr::EventView;
use crate::relay::ports::Sequence;

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes the store may ever grow to. Address space only: the file grows with its content.
    /// Rounded down to a multiple of 64 KiB. A part, [`reserve_bytes`], is for erasing only.
    pub map_bytes_max: u64,
    /// Read transactions at once, of all processes together.
    pub readers_max: u32,
    /// When what is committed is on the disk.
    pub durability: Durability,
}

/// When a commit is on the disk. In either case nothing that a power cut leaves is damaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// When it is told of.
    #[default]
    AtOnce,
    /// With the next commit, or [`super::Store::sync`]: until then a power cut undoes it.
    Later,
}

impl Default for Options {
    fn default() -> Self {
        Self { map_bytes_max: 1 << 40, readers_max: 512, durability: Durability::AtOnce }
    }
}

/// Of a map, what only erasing may use: it copies pages before it frees any. An event takes some
/// fifteen leaves out of the indexes, so this is a thousand of them; where it is less, fewer are erased
/// at once.
fn reserve_bytes(map_bytes_max: u64) -> u64 {
    (map_bytes_max / 4).min(64 << 20)
}

/// Whether an environment may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    ReadWrite,
    ReadOnly,
}

/// A table: bytes to bytes, in byte order of the keys.
pub(super) type Table = Database<Bytes, Bytes>;

/// The tables of [`super::schema`].
#[derive(Clone, Copy)]
pub(super) struct Tables {
    pub event: Table,
    pub id: Table,
    pub time: Table,
    pub author_kind: Table,
    pub kind: Table,
    pub tag: Table,
    pub expire: Table,
    pub replace: Table,
    pub tomb_id: Table,
    pub tomb_addr: Table,
    pub vanish: Table,
    pub backlog: Table,
    pub meta: Table,
    /// `None` where only builds that knew no archive have written: reading alone makes no table.
    pub archive: Option<ArchiveTables>,
}

/// Those of the archive.
#[derive(Clone, Copy)]
pub(super) struct ArchiveTables {
    pub archive: Table,
    pub id: Table,
    pub expire: Table,
    pub backlog: Table,
}

/// Names in the file of tables whose layout has changed: while a store is migrated it has the old one, too.
const EVENT: &str = "event.2";
const TIME: &str = "time.2";

/// Number of [`Tables`].
const TABLES: u32 = 17;

impl Tables {
    /// Makes every table with `make`, by name.
    fn new<E>(mut make: impl FnMut(&'static str) -> Result<Table, E>) -> Result<Self, E> {
        Ok(Self {
            event: make(EVENT)?,
            id: make("id")?,
            time: make(TIME)?,
            author_kind: make("author_kind")?,
            kind: make("kind")?,
            tag: make("tag")?,
            expire: make("expire")?,
            replace: make("replace")?,
            tomb_id: make("tomb_id")?,
            tomb_addr: make("tomb_addr")?,
            vanish: make("vanish")?,
            backlog: make("backlog")?,
            meta: make("meta")?,
            archive: None,
        })
    }

    /// The tables with their names.
    pub fn named(&self) -> Vec<(&'static str, Table)> {
        let mut named = vec![
            ("event", self.event),
            ("id", self.id),
            ("time", self.time),
            ("author_kind", self.author_kind),
            ("kind", self.kind),
            ("tag", self.tag),
            ("expire", self.expire),
            ("replace", self.replace),
            ("tomb_id", self.tomb_id),
            ("tomb_addr", self.tomb_addr),
            ("vanish", self.vanish),
            ("backlog", self.backlog),
            ("meta", self.meta),
        ];
        named.extend(self.archive.iter().flat_map(ArchiveTables::named));
        named
    }
}

impl ArchiveTables {
    /// Makes every table with `make`, by name; `None` when it makes none.
    fn new<E>(
        mut make: impl FnMut(&'static str) -> Result<Option<Table>, E>,
    ) -> Result<Option<Self>, E> {
        let archive = make("archive")?;
        let id = make("archive_id")?;
        let expire = make("archive_expire")?;
        let backlog = make("archive_backlog")?;
        let all = archive.zip(id).zip(expire).zip(backlog);
        Ok(all.map(|(((archive, id), expire), backlog)| Self { archive, id, expire, backlog }))
    }

    fn named(&self) -> [(&'static str, Table); 4] {
        [
            ("archive", self.archive),
            ("archive_id", self.id),
            ("archive_expire", self.expire),
            ("archive_backlog", self.backlog),
        ]
    }
}

/// An open environment. Closed when the last clone of its [`Env`] is gone.
pub(super) struct Environment {
    pub env: Env<WithoutTls>,
    pub tables: Tables,
    pub hasher: Hasher,
    pub isolated: Isolated,
    /// What pages in use may take after a transaction that adds events.
    store_bytes_max: u64,
}

impl Environment {
    /// Opens `dir`; in [`Mode::ReadWrite`] an empty directory becomes a store. One of an older schema is not to be
    /// used before [`migrate::go_on`] is done.
    pub fn open(dir: &Path, options: &Options, mode: Mode) -> Result<Self, StoreError> {
        let located = |error: StoreError| error.in_directory(dir, options.map_bytes_max);
        let env = open_env(dir, options, mode).map_err(|error| located(error.into()))?;
        let (tables, hash_key) = match mode {
            Mode::ReadWrite => create(&env, dir),
            Mode::ReadOnly => find(&env, dir),
        }
        .map_err(located)?;
        Ok(Self::new(env, &tables, hash_key))
    }

    fn new(env: Env<WithoutTls>, tables: &Tables, hash_key: [u8; 16]) -> Self {
        let map_bytes = env.info().map_size as u64;
        let store_bytes_max = map_bytes - reserve_bytes(map_bytes);
        let hasher = Hasher::new(hash_key);
        Self { env, tables: *tables, hasher, isolated: Isolated::default(), store_bytes_max }
    }

    /// Opens a copy that nobody writes, if it is whole: a page beyond the end of a mapped file
    /// would end the process.
    pub fn open_copy(dir: &Path, options: &Options) -> Result<Self, StoreError> {
        let located =
            |error: heed::Error| StoreError::from(error).in_directory(dir, options.map_bytes_max);
        let env = open_env(dir, options, Mode::ReadOnly).map_err(located)?;
        let pages = env.info().last_page_number as u64 + 1;
        let bytes = pages * u64::from(env.stat().page_size);
        let found = env.real_disk_size().map_err(located)?;
        if found < bytes {
            let text = format!("{found} bytes are there of {bytes}");
            return Err(StoreError::Damaged(text));
        }
        let (tables, hash_key) = find(&env, dir)?;
        Ok(Self::new(env, &tables, hash_key))
    }

    /// Whether a transaction that added events leaves enough of the map for erasing some.
    pub fn has_room(&self, txn: &RoTxn<'_>) -> Result<bool, StoreError> {
        let mut bytes = 0;
        for (_, table) in self.tables.named() {
            bytes += table_bytes(table, txn)?;
        }
        Ok(bytes <= self.store_bytes_max)
    }

    /// The last sequence number ever given.
    pub fn last_sequence(&self, txn: &RoTxn<'_>) -> Result<Sequence, StoreError> {
        meta_u64(&self.tables, txn, META_LAST_SEQUENCE)
    }

    /// How many replaced versions are archived.
    pub fn archived(&self, txn: &RoTxn<'_>) -> Result<u64, StoreError> {
        match self.tables.archive {
            Some(tables) => Ok(tables.archive.len(txn)?),
            None => Ok(0),
        }
    }

    /// The record of `seq`.
    ///
    /// # Errors
    /// [`StoreError::Record`] when it is not what was stored; what LMDB says.
    pub fn event<'t>(
        &self,
        txn: &'t RoTxn<'_>,
        seq: Sequence,
    ) -> Result<Option<EventView<'t>>, StoreError> {
        let Some(value) = self.tables.event.get(txn, &seq.to_be_bytes())? else {
            return Ok(None);
        };
        self.view(seq, value).map(Some)
    }

    /// The record in a value of `event`.
    ///
    /// # Errors
    /// As [`Self::event`].
    pub fn view<'t>(&self, seq: Sequence, value: &'t [u8]) -> Result<EventView<'t>, StoreError> {
        unseal(seq, value).and_then(EventView::new).ok_or_else(|| {
            self.isolated.meet(seq);
            StoreError::Record { sequence: seq }
        })
    }

    /// The record an index entry points to.
    ///
    /// # Errors
    /// As [`Self::event`], also when there is none.
    pub fn indexed<'t>(
        &self,
        txn: &'t RoTxn<'_>,
        seq: Sequence,
    ) -> Result<EventView<'t>, StoreError> {
        self.event(txn, seq)?.ok_or_else(|| {
            self.isolated.meet(seq);
            StoreError::Record { sequence: seq }
        })
    }
}

/// Bytes of a table's pages.
pub(super) fn table_bytes(table: Table, txn: &RoTxn<'_>) -> Result<u64, StoreError> {
    let stat = table.stat(txn)?;
    let pages = stat.branch_pages + stat.leaf_pages + stat.overflow_pages;
    Ok(pages as u64 * u64::from(stat.page_size))
}

/// Reads a number of the `meta` table; 0 when it was never written.
pub(super) fn meta_u64(tables: &Tables, txn: &RoTxn<'_>, name: &[u8]) -> Result<u64, StoreError> {
    match tables.meta.get(txn, name)? {
        None => Ok(0),
        Some(value) => number(value),
    }
}

/// An 8-byte value.
pub(super) fn number(value: &[u8]) -> Result<u64, StoreError> {
    let bytes = value.try_into().map_err(|_| StoreError::Damaged("a number is not 8 bytes".into()));
    bytes.map(u64::from_be_bytes)
}

/// A value of the `id` table.
pub(super) fn sequence(value: &[u8]) -> Result<Sequence, StoreError> {
    let bytes: Result<[u8; 6], _> = value.try_into();
    let bytes = bytes.map_err(|_| StoreError::Damaged("a sequence is not 6 bytes".into()))?;
    debug_assert_eq!(short(super::schema::long(bytes)), bytes);
    Ok(super::schema::long(bytes))
}

#[allow(unsafe_code)]
fn open_env(dir: &Path, options: &Options, mode: Mode) -> heed::Result<Env<WithoutTls>> {
    const GRAIN: u64 = 64 << 10;
    let map_bytes = (options.map_bytes_max / GRAIN).max(1) * GRAIN;
    let mut open = EnvOpenOptions::new().read_txn_without_tls();
    open.map_size(usize::try_from(map_bytes).unwrap_or(usize::MAX & !(64 * 1024 - 1)));
    open.max_readers(options.readers_max);
    open.max_dbs(TABLES + migrate::TABLES);
    // SAFETY: the map is shared with the file system, and what LMDB maps must change through LMDB
    // only. Writers of other processes are kept out by the lock on `writer.lock`, readers come in
    // through LMDB's own reader table; nothing in this crate touches `data.mdb` but LMDB, and heed
    // refuses to open one path twice in a process. READ_ONLY takes nothing of LMDB's locking or
    // syncing away. NO_META_SYNC leaves one page unsynced, the one that makes a commit count: all the
    // pages it leads to are on the disk before it is written, and no page that the commit before it
    // needs is written over until the next commit has synced it. (NO_SYNC promises neither.)
    unsafe {
        match (mode, options.durability) {
            (Mode::ReadOnly, _) => drop(open.flags(EnvFlags::READ_ONLY)),
            (Mode::ReadWrite, Durability::Later) => drop(open.flags(EnvFlags::NO_META_SYNC)),
            (Mode::ReadWrite, Durability::AtOnce) => {}
        }
        open.open(dir)
    }
}

/// Opens the tables for writing; makes them, and the hash key, when there are none.
fn create(env: &Env<WithoutTls>, dir: &Path) -> Result<(Tables, [u8; 16]), StoreError> {
    let mut txn = env.write_txn()?;
    let meta: Table = env.create_database(&mut txn, Some("meta"))?;
    if let Some(found) = meta.get(&txn, META_SCHEMA)?.map(number).transpose()? {
        if found == migrate::FROM {
            migrate::expect_readable(env, &txn)?;
            // A build that knows only the older tables must not take half of them for all.
            meta.put(&mut txn, META_MIGRATING, &[])?;
            meta.put(&mut txn, META_SCHEMA, &SCHEMA_VERSION.to_be_bytes())?;
        } else {
            check_version(dir, found)?;
        }
    } else {
        meta.put(&mut txn, META_SCHEMA, &SCHEMA_VERSION.to_be_bytes())?;
        meta.put(&mut txn, META_LAST_SEQUENCE, &0u64.to_be_bytes())?;
        meta.put(&mut txn, META_HASH_KEY, &random_key()?)?;
    }
    let mut tables = Tables::new(|name| env.create_database(&mut txn, Some(name)))?;
    tables.archive =
        ArchiveTables::new(|name| env.create_database(&mut txn, Some(name)).map(Some))?;
    let key = hash_key(&tables, &txn)?;
    txn.commit()?;
    env.clear_stale_readers()?;
    // LMDB syncs its file; that the file has a name is the directory's business.
    sync_directory(dir)?;
    Ok((tables, key))
}

/// Opens the tables of a store that must be there.
fn find(env: &Env<WithoutTls>, dir: &Path) -> Result<(Tables, [u8; 16]), StoreError> {
    let missing = || StoreError::Missing { dir: dir.into() };
    let txn = env.read_txn()?;
    let meta: Table = env.open_database(&txn, Some("meta"))?.ok_or_else(missing)?;
    check_version(dir, number(meta.get(&txn, META_SCHEMA)?.ok_or_else(missing)?)?)?;
    if meta.get(&txn, META_MIGRATING)?.is_some() {
        return Err(StoreError::Schema { dir: dir.into(), found: migrate::FROM });
    }
    let mut tables = Tables::new(|name| {
        env.open_database(&txn, Some(name)).map_err(StoreError::from)?.ok_or_else(missing)
    })?;
    tables.archive = ArchiveTables::new(|name| env.open_database(&txn, Some(name)))?;
    let key = hash_key(&tables, &txn)?;
    // Committed, or the handles would end with the transaction.
    txn.commit()?;
    Ok((tables, key))
}

fn check_version(dir: &Path, found: u64) -> Result<(), StoreError> {
    match found {
        SCHEMA_VERSION => Ok(()),
        found => Err(StoreError::Schema { dir: dir.into(), found }),
    }
}

fn hash_key(tables: &Tables, txn: &RoTxn<'_>) -> Result<[u8; 16], StoreError> {
    let key = tables.meta.get(txn, META_HASH_KEY)?.and_then(|key| key.try_into().ok());
    key.ok_or_else(|| StoreError::Damaged("the hash key is not there".into()))
}

/// The one random thing about a store, drawn when it is made.
fn random_key() -> Result<[u8; 16], StoreError> {
    let source = Path::new("/dev/urandom");
    let mut key = [0; 16];
    let drawn = File::open(source).and_then(|mut file| file.read_exact(&mut key));
    drawn.map_err(StoreError::io(source))?;
    Ok(key)
}

/// Makes the names in `dir`, and its own, durable.
pub(super) fn sync_directory(dir: &Path) -> Result<(), StoreError> {
    let synced = |path: &Path| {
        File::open(path).and_then(|file| file.sync_all()).map_err(StoreError::io(path))
    };
    synced(dir)?;
    match dir.canonicalize().map_err(StoreError::io(dir))?.parent() {
        Some(parent) => synced(parent),
        None => Ok(()),
    }
}

/// Creates `dir` and takes its writer lock, which lasts as long as the file is open: also a
/// process that is killed lets go of it.
pub(super) fn lock_directory(dir: &Path) -> Result<File, StoreError> {
    fs::create_dir_all(dir).map_err(StoreError::io(dir))?;
    let path = dir.join("writer.lock");
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = open.map_err(StoreError::io(&path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            // The pid is a courtesy; without it the message still says what is wrong.
            let _ = file.read_to_string(&mut holder);
            return Err(StoreError::Held { dir: dir.into(), pid: holder.trim().parse().ok() });
        }
        Err(error) => return Err(StoreError::io(&path)(error.into())),
    }
    // Over what is there before it is cut: a full disk has no block to give back for one let go.
    let pid = format!("{}\n", std::process::id());
    let written = file
        .rewind()
        .and_then(|()| file.write_all(pid.as_bytes()))
        .and_then(|()| file.set_len(pid.len() as u64));
    if let Err(error) = written {
        tracing::warn!(%error, "{} does not say who holds it", path.display());
    }
    Ok(file)
}

/// Who else may have the files of a directory open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// Others that use the store.
    Shared,
    /// Nobody: the data file is about to be replaced.
    Alone,
}

/// Locks the files of `dir` for as long as the returned file is open.
pub(super) fn hold_files(dir: &Path, hold: Hold) -> Result<File, StoreError> {
    let file = File::open(dir).map_err(StoreError::io(dir))?;
    let operation = match hold {
        Hold::Shared => FlockOperation::NonBlockingLockShared,
        Hold::Alone => FlockOperation::NonBlockingLockExclusive,
    };
    match (flock(&file, operation), hold) {
        (Ok(()), _) => Ok(file),
        (Err(rustix::io::Errno::WOULDBLOCK), Hold::Shared) => {
            Err(StoreError::Replaced { dir: dir.into() })
        }
        (Err(rustix::io::Errno::WOULDBLOCK), Hold::Alone) => {
            Err(StoreError::Read { dir: dir.into() })
        }
        (Err(error), _) => Err(StoreError::io(dir)(error.into())),
    }
}
