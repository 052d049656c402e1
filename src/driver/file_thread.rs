//! A thread that writes to a file of the operator's choice, so that no shard waits for a disk.

use std::io;
use std::thread::JoinHandle;

/// The thread; it ends with the last of those who hand it something.
#[derive(Debug)]
pub struct FileThread {
    what: &'static str,
    thread: JoinHandle<io::Result<()>>,
}

impl FileThread {
    /// Starts one that writes `what`.
    ///
    /// # Errors
    /// When the thread cannot be had.
    pub fn spawn(
        what: &'static str,
        write: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let thread = std::thread::Builder::new().name(what.into()).spawn(write)?;
        Ok(Self { what, thread })
    }

    /// Waits until all that was handed over is in the file.
    ///
    /// # Errors
    /// What the file said.
    pub fn join(self) -> io::Result<()> {
        let panicked =
            |_| Err(io::Error::other(format!("the thread of the {} panicked", self.what)));
        self.thread.join().unwrap_or_else(panicked)
    }

    /// What it writes.
    #[must_use]
    pub fn what(&self) -> &'static str {
        self.what
    }
}
