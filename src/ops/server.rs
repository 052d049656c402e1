//! The relay's side of the admin socket: one blocking thread per connection, few of them.

use std::fs::{self, Permissions};
use std::io::{self, BufReader, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::Value;

use super::admin::{
    CHUNK_BYTES_MAX, CHUNK_EVENTS_MAX, ChunkHead, LINE_BYTES_MAX, PATIENCE, Reach, Reply, Request,
    Running, SOCKET_NAME, Word, socket_path,
};
use super::line::read_line;
use crate::nostr::{Event, Filter, KindClass, MessageReader, VerifiedEvent};
use crate::relay::ports::{CommitBatch, Origin, Query, Submission, Ticket, Verdict};
use crate::store::{CommitSink, Doomed, Store, StoreError, WriterHandle};

/// Events erased by one step of a deletion.
const DELETE_STEP_EVENTS: usize = 1_000;
/// How long the writer may take over one chunk.
const COMMIT_WAIT: Duration = Duration::from_secs(30);
/// To whoever comes too late.
const SHUTTING_DOWN: &str = "it is shutting down";

/// Makes the socket of `data`, mode 0600. The caller holds the directory's lock, so one that is
/// there was left behind.
///
/// # Errors
/// When the file system refuses.
pub fn bind(data: &Path) -> io::Result<UnixListener> {
    const UNFINISHED: &str = "admin.sock.new";
    let unfinished = data.join(UNFINISHED);
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let (_dir, short) = socket_path(data, UNFINISHED)?;
    let listener = UnixListener::bind(short)?;
    // Nobody finds the socket under its name before its mode is set.
    fs::set_permissions(&unfinished, Permissions::from_mode(0o600))?;
    fs::rename(&unfinished, data.join(SOCKET_NAME))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Takes the admin origin's verdicts out of the writer's commits.
#[derive(Debug)]
pub struct AdminSink {
    origin: Origin,
    verdicts: flume::Sender<(u64, Verdict)>,
}

impl CommitSink for AdminSink {
    fn publish(&self, batch: &Arc<CommitBatch>) {
        for (ticket, verdict) in &batch.verdicts {
            if ticket.origin == self.origin {
                // Never full: one chunk is outstanding, and the channel holds one.
                let _ = self.verdicts.try_send((ticket.token, verdict.clone()));
            }
        }
    }
}

/// The relay's writer as the admin socket uses it, so that subscribers get what is imported.
pub struct Writes {
    writer: WriterHandle,
    origin: Origin,
    verdicts: flume::Receiver<(u64, Verdict)>,
    next_token: u64,
}

/// The admin origin's ends of the writer's verdicts: the sink goes to the writer when it starts, the
/// receiver to [`Writes::new`]. `origin` comes after the shards.
#[must_use]
pub fn verdict_channel(origin: Origin) -> (AdminSink, flume::Receiver<(u64, Verdict)>) {
    let (sender, receiver) = flume::bounded(CHUNK_EVENTS_MAX);
    (AdminSink { origin, verdicts: sender }, receiver)
}

impl Writes {
    /// Joins the parts.
    #[must_use]
    pub fn new(
        writer: WriterHandle,
        origin: Origin,
        verdicts: flume::Receiver<(u64, Verdict)>,
    ) -> Self {
        Self { writer, origin, verdicts, next_token: 0 }
    }

    /// Submits a chunk and waits until all of it has its verdict.
    fn store(&mut self, events: Vec<Event>) -> Result<Vec<Verdict>, String> {
        assert!(events.len() <= CHUNK_EVENTS_MAX, "the channel holds one chunk's verdicts");
        // What an earlier chunk left when it ran out of time.
        self.verdicts.drain().for_each(drop);
        let first = self.next_token;
        self.next_token += events.len() as u64;
        let mut verdicts: Vec<Option<Verdict>> = vec![None; events.len()];
        let ticket = |token| Ticket { origin: self.origin, token };
        let submit = |(token, event)| Submission { event, ticket: ticket(token) };
        // Together: one by one each wakes the writer, which commits it alone if it is idle.
        let submissions = (first..).zip(events).map(submit).collect();
        self.writer.submit_blocking(submissions).map_err(|_| SHUTTING_DOWN)?;
        let mut missing = verdicts.len();
        while missing > 0 {
            let (token, verdict) = self
                .verdicts
                .recv_timeout(COMMIT_WAIT)
                .map_err(|_| "the writer did not answer in time")?;
            let at = token.checked_sub(first).and_then(|at| usize::try_from(at).ok());
            if let Some(slot) = at.and_then(|at| verdicts.get_mut(at)) {
                missing -= usize::from(slot.is_none());
                *slot = Some(verdict);
            }
        }
        Ok(verdicts.into_iter().flatten().collect())
    }

    /// Has the writer erase events, so that shards forget them too; answers how many.
    fn erase(&self, doomed: Doomed) -> Result<u64, Fault> {
        let erased = self.writer.erase_blocking(doomed);
        Ok(erased.ok_or_else(|| Fault::Told(SHUTTING_DOWN.into()))??)
    }
}

/// Deletes what matches, step by step, with `erase`, which answers how many events it erased; `progress`
/// is told the sum so far after each and may end it. Archived versions match filters without a `limit`.
///
/// # Errors
/// What the store or `erase` said; earlier steps stay done.
pub fn delete<E: From<StoreError>>(
    store: &Store,
    filters: Vec<Filter>,
    reach: Reach,
    mut erase: impl FnMut(Doomed) -> Result<u64, E>,
    mut progress: impl FnMut(u64) -> ControlFlow<()>,
) -> Result<u64, E> {
    let mut deleted = 0;
    let mut replaced = store.replaced(&filters);
    if reach == Reach::All {
        let mut scan = store.scan(Query { filters, limit_max: u64::MAX })?;
        while !scan.is_done() {
            let events = store.next_events(&mut scan, DELETE_STEP_EVENTS, unix_now())?;
            deleted += erase(Doomed::Stored(events))?;
            if progress(deleted).is_break() {
                return Ok(deleted);
            }
        }
    }
    while !replaced.is_done() {
        let versions = replaced.next_ids(store, DELETE_STEP_EVENTS, unix_now())?;
        deleted += erase(Doomed::Replaced(versions))?;
        if progress(deleted).is_break() {
            break;
        }
    }
    Ok(deleted)
}

pub(super) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What every connection shares.
pub(super) struct Shared {
    pub running: Running,
    pub writes: Mutex<Writes>,
    pub store: Store,
}

/// Serves one connection to its end. Blocks.
pub(super) fn serve(stream: UnixStream, shared: &Shared) {
    let outcome =
        Connection::new(stream).and_then(|mut connection| match connection.serve(shared) {
            Ok(()) => Ok(()),
            Err(Fault::Broken(error)) => Err(error),
            Err(Fault::Told(text)) => {
                tracing::warn!(error = %text, "admin command refused");
                connection.send(&Reply { error: Some(text), ..Reply::default() })
            }
        });
    if let Err(error) = outcome {
        tracing::warn!(%error, "admin connection broke");
    }
}

/// Tells a client that there is no room for it.
pub(super) fn refuse(stream: UnixStream) {
    let reply = Reply { error: Some("too many admin connections".into()), ..Reply::default() };
    // It is told, or it is gone.
    let _ = Connection::new(stream).and_then(|mut connection| connection.send(&reply));
}

enum Fault {
    /// The connection is gone.
    Broken(io::Error),
    /// The client is told, then the connection ends.
    Told(String),
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Told(error.to_string())
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

struct Connection {
    stream: BufReader<UnixStream>,
    line: Vec<u8>,
    reader: MessageReader,
}

impl Connection {
    fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let reader = MessageReader::default();
        Ok(Self { stream: BufReader::new(stream), line: Vec::new(), reader })
    }

    fn serve(&mut self, shared: &Shared) -> Result<(), Fault> {
        if !self.read()? {
            return Ok(());
        }
        let request = serde_json::from_slice(&self.line)
            .map_err(|error| Fault::Told(format!("not a request: {error}")))?;
        match request {
            Request::Info {} => Ok(self.send(&shared.running)?),
            Request::Import {} => self.import(&shared.writes),
            Request::Delete { filters, reach, dry_run } => {
                self.delete(shared, &filters, reach, dry_run)
            }
        }
    }

    fn import(&mut self, writes: &Mutex<Writes>) -> Result<(), Fault> {
        tracing::info!("import through the admin socket begins");
        self.send(&Reply { ready: Some(true), ..Reply::default() })?;
        let mut total = 0;
        while self.read()? {
            let head: ChunkHead = serde_json::from_slice(&self.line)
                .map_err(|error| Fault::Told(format!("not the head of a chunk: {error}")))?;
            if head.events > CHUNK_EVENTS_MAX {
                return Err(Fault::Told(format!("at most {CHUNK_EVENTS_MAX} events in a chunk")));
            }
            let mut events = Vec::with_capacity(head.events);
            let mut bytes = 0;
            for number in 1..=head.events {
                if !self.read()? {
                    return Err(Fault::Told("the chunk ends early".into()));
                }
                bytes += self.line.len();
                if bytes > CHUNK_BYTES_MAX {
                    return Err(Fault::Told(format!("at most {CHUNK_BYTES_MAX} bytes in a chunk")));
                }
                let event = self.event();
                events.push(event.map_err(|why| Fault::Told(format!("event {number}: {why}")))?);
            }
            total += events.len();
            // One chunk at a time; commands take turns chunk by chunk.
            let verdicts = writes
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .store(events)
                .map_err(Fault::Told)?;
            let verdicts = Some(verdicts.into_iter().map(Word::from).collect());
            self.send(&Reply { verdicts, ..Reply::default() })?;
        }
        tracing::info!(events = total, "import through the admin socket ends");
        Ok(())
    }

    /// The event on the line just read. The client has checked the signature, and could as well
    /// write the files.
    fn event(&mut self) -> Result<Event, &'static str> {
        simdutf8::basic::from_utf8(&self.line).map_err(|_| "not UTF-8")?;
        let candidate = self.reader.read_event(&mut self.line)?;
        match candidate.event().view().kind().class() {
            KindClass::Ephemeral => Err("an ephemeral event is not stored"),
            _ => Ok(VerifiedEvent::trust(candidate).into_event()),
        }
    }

    fn delete(
        &mut self,
        shared: &Shared,
        filters: &[Value],
        reach: Reach,
        dry_run: bool,
    ) -> Result<(), Fault> {
        let filters: Vec<Filter> = filters
            .iter()
            .map(|filter| self.reader.read_filter(filter.to_string().into_bytes().as_mut_slice()))
            .collect::<Result<_, _>>()
            .map_err(Fault::Told)?;
        let mut broken = Ok(());
        let erase = |doomed: Doomed| match dry_run {
            true => Ok(doomed.len() as u64),
            false => shared.writes.lock().unwrap_or_else(PoisonError::into_inner).erase(doomed),
        };
        let deleted = delete(&shared.store, filters, reach, erase, |sum| {
            broken = self.send(&Reply { deleted: Some(sum), ..Reply::default() });
            if broken.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        tracing::info!(events = deleted, dry_run, "deletion through the admin socket");
        broken?;
        Ok(self.send(&Reply { deleted: Some(deleted), done: Some(true), ..Reply::default() })?)
    }

    /// Reads the next line; false at the end.
    fn read(&mut self) -> Result<bool, Fault> {
        let taken = read_line(&mut self.stream, LINE_BYTES_MAX, &mut self.line)?;
        if self.line.len() > LINE_BYTES_MAX {
            return Err(Fault::Told(format!("a line is longer than {LINE_BYTES_MAX} bytes")));
        }
        Ok(taken > 0)
    }

    fn send(&mut self, message: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(message).expect("plain fields serialize");
        line.push(b'\n');
        self.stream.get_mut().write_all(&line)
    }
}
