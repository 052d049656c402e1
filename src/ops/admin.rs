//! The admin socket: how commands that write reach a running relay.
//!
//! A Unix socket in the data directory, mode 0600: whoever may open it may also write the files.
//! Every line is one JSON text. The client speaks first, with a [`Request`]; then:
//!
//! - `info` → the relay answers one [`Running`] and closes.
//! - `import` → the relay answers `{"ready":true}`. The client sends chunks: one `{"events":N}`, then N
//!   lines with one event each, their signatures checked. The relay answers each chunk, once it is
//!   durable, with `{"verdicts":[…]}`, N of them in order. The client closes when it is done. One chunk
//!   is in flight: the relay reads the next one when it has answered.
//! - `delete` → the relay answers `{"deleted":n}` after each durable step, with the sum so far, and at
//!   the end `{"deleted":n,"done":true}`.
//!
//! At any point the relay may answer `{"error":"…"}` and close.

use std::fs::File;
use std::io::{self, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::line::read_line;
use crate::nostr::Event;
use crate::relay::ports::Verdict;

/// Name of the socket in the data directory.
pub const SOCKET_NAME: &str = "admin.sock";
/// Bytes of one line, events included.
pub const LINE_BYTES_MAX: usize = 16 << 20;
/// Events of one chunk.
pub const CHUNK_EVENTS_MAX: usize = 1_000;
/// Bytes of one chunk's events.
pub const CHUNK_BYTES_MAX: usize = 32 << 20;
/// How long the other side may take to accept bytes, or a relay to answer one chunk.
pub(super) const PATIENCE: Duration = Duration::from_mins(1);

/// A client's first line.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// What runs here?
    Info {},
    /// Store the events that follow.
    Import {},
    /// Delete what matches.
    Delete {
        /// Filter objects; ORed, `limit`s honoured.
        filters: Vec<Value>,
        /// Among what.
        #[serde(default)]
        reach: Reach,
        /// Count only.
        #[serde(default)]
        dry_run: bool,
    },
}

/// Among what a deletion looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reach {
    /// Stored events and archived versions.
    #[default]
    All,
    /// Archived versions alone.
    Replaced,
}

/// What a running relay says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Where clients connect.
    pub url: String,
    /// Shards.
    pub shards: usize,
    /// Backend in use.
    pub backend: String,
    /// Where metrics are served.
    pub metrics: Option<String>,
}

/// The head of a chunk.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ChunkHead {
    pub events: usize,
}

/// An answer to `import`, to a chunk or to `delete`.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Reply {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdicts: Option<Vec<Word>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deleted: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub done: Option<bool>,
}

/// A [`Verdict`] on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Word {
    Stored,
    Duplicate,
    Superseded,
    Deleted,
    Vanished,
    Expired,
    Failed(String),
}

impl From<Verdict> for Word {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Stored => Self::Stored,
            Verdict::Duplicate => Self::Duplicate,
            Verdict::Superseded => Self::Superseded,
            Verdict::Deleted => Self::Deleted,
            Verdict::Vanished => Self::Vanished,
            Verdict::Expired => Self::Expired,
            Verdict::Failed(text) => Self::Failed(text),
        }
    }
}

impl From<Word> for Verdict {
    fn from(word: Word) -> Self {
        match word {
            Word::Stored => Self::Stored,
            Word::Duplicate => Self::Duplicate,
            Word::Superseded => Self::Superseded,
            Word::Deleted => Self::Deleted,
            Word::Vanished => Self::Vanished,
            Word::Expired => Self::Expired,
            Word::Failed(text) => Self::Failed(text),
        }
    }
}

/// Why a command did not get through.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Nobody listens: no relay runs on this directory, or it is starting or stopping.
    #[error("no relay answers at {}: {source}", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the relay's admin socket: {0}")]
    Broken(#[from] io::Error),
    /// The relay said something else than the protocol has it say.
    #[error("the relay's admin socket: unexpected answer {0:?}")]
    Unexpected(String),
    /// The relay refuses or fails.
    #[error("the relay says: {0}")]
    Refused(String),
}

/// The socket of the data directory, by a name short enough for a socket address (108 bytes). The
/// returned directory must stay open while the name is in use.
pub(super) fn socket_path(data: &Path, name: &str) -> io::Result<(Option<File>, PathBuf)> {
    const SOCKET_PATH_BYTES_MAX: usize = 100;
    let path = data.join(name);
    if path.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
        return Ok((None, path));
    }
    let dir = File::open(data)?;
    let path = format!("/proc/self/fd/{}/{name}", dir.as_raw_fd());
    Ok((Some(dir), path.into()))
}

/// A connection to a running relay.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    line: Vec<u8>,
}

impl Client {
    /// Connects to the relay that runs on `data`.
    ///
    /// # Errors
    /// [`AdminError::Unreachable`] when none answers.
    pub fn connect(data: &Path) -> Result<Self, AdminError> {
        let path = data.join(SOCKET_NAME);
        let stream = socket_path(data, SOCKET_NAME)
            .and_then(|(_dir, short)| UnixStream::connect(short))
            .map_err(|source| AdminError::Unreachable { path, source })?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::new(stream), line: Vec::new() })
    }

    /// Asks what runs.
    ///
    /// # Errors
    /// When the relay does not answer as it should.
    pub fn info(mut self) -> Result<Running, AdminError> {
        self.send(&Request::Info {})?;
        self.receive()
    }

    /// Opens an import.
    ///
    /// # Errors
    /// When the relay refuses.
    pub fn import(mut self) -> Result<Import, AdminError> {
        self.send(&Request::Import {})?;
        match self.reply()? {
            Reply { ready: Some(true), .. } => Ok(Import { client: self }),
            other => Err(unexpected(&other)),
        }
    }

    /// Deletes what matches `filters`, or counts it, and tells `progress` the sum after each step.
    ///
    /// # Errors
    /// When the relay refuses or fails; steps already told are done.
    pub fn delete(
        mut self,
        filters: Vec<Value>,
        reach: Reach,
        dry_run: bool,
        mut progress: impl FnMut(u64),
    ) -> Result<u64, AdminError> {
        self.send(&Request::Delete { filters, reach, dry_run })?;
        loop {
            match self.reply()? {
                Reply { deleted: Some(sum), done: Some(true), .. } => return Ok(sum),
                Reply { deleted: Some(sum), .. } => progress(sum),
                other => return Err(unexpected(&other)),
            }
        }
    }

    fn send(&mut self, message: &impl Serialize) -> Result<(), AdminError> {
        let mut line = serde_json::to_vec(message).expect("plain fields serialize");
        line.push(b'\n');
        Ok(self.stream.get_mut().write_all(&line)?)
    }

    fn reply(&mut self) -> Result<Reply, AdminError> {
        match self.receive()? {
            Reply { error: Some(text), .. } => Err(AdminError::Refused(text)),
            reply => Ok(reply),
        }
    }

    fn receive<T: DeserializeOwned>(&mut self) -> Result<T, AdminError> {
        if read_line(&mut self.stream, LINE_BYTES_MAX, &mut self.line)? == 0 {
            let closed = io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the relay");
            return Err(closed.into());
        }
        let text = || String::from_utf8_lossy(&self.line).chars().take(200).collect();
        serde_json::from_slice(&self.line).map_err(|_| AdminError::Unexpected(text()))
    }
}

fn unexpected(reply: &Reply) -> AdminError {
    AdminError::Unexpected(serde_json::to_string(reply).expect("plain fields serialize"))
}

/// An open import.
#[derive(Debug)]
pub struct Import {
    client: Client,
}

impl Import {
    /// Stores at most [`CHUNK_EVENTS_MAX`] events, whose signatures were checked; the verdicts come
    /// when they are durable, in order.
    ///
    /// # Errors
    /// When the relay refuses or fails; then none, some or all of the chunk may be stored.
    pub fn store(&mut self, events: &[Event]) -> Result<Vec<Verdict>, AdminError> {
        let head = ChunkHead { events: events.len() };
        let mut chunk = serde_json::to_vec(&head).expect("plain fields serialize");
        chunk.push(b'\n');
        for event in events {
            chunk.extend_from_slice(event.view().json());
            chunk.push(b'\n');
        }
        // A relay that stops says why before it closes; a write it no longer reads must not hide it.
        let sent = self.client.stream.get_mut().write_all(&chunk);
        match self.client.reply() {
            Ok(Reply { verdicts: Some(words), .. }) if words.len() == events.len() => {
                sent?;
                Ok(words.into_iter().map(Verdict::from).collect())
            }
            Ok(other) => Err(unexpected(&other)),
            Err(AdminError::Broken(error)) => Err(sent.err().unwrap_or(error).into()),
            Err(error) => Err(error),
        }
    }
}
