//! The disk of `lose_unsynced.c`, and what became of it.

use std::path::{Path, PathBuf};

use crate::support::{Launch, preloadable};

/// The shim, compiled, with the files it works on.
pub struct Disk {
    pub data: PathBuf,
    shadow: PathBuf,
    library: PathBuf,
}

impl Disk {
    pub fn new(directory: &Path) -> Self {
        let library = preloadable("crash/lose_unsynced.c", directory);
        Self { data: directory.join("data"), shadow: directory.join("shadow"), library }
    }

    /// A relay on this disk; `settings` are the shim's.
    pub fn launch(&self, settings: &[(&str, String)]) -> Launch {
        let launch = Launch::default()
            .data(&self.data)
            .environment("LD_PRELOAD", &self.library)
            .environment("LOSE_UNSYNCED_SHADOW", &self.shadow);
        settings.iter().fold(launch, |launch, (name, value)| launch.environment(name, value))
    }

    /// The file becomes what was synced of it. The shadow stays: the next relay goes on with it.
    pub fn cut_power(&self) {
        let file = self.data.join("data.mdb");
        let lost = std::fs::metadata(&file).expect("the store").len();
        let kept = std::fs::metadata(&self.shadow).expect("the shim saw the store").len();
        assert!(kept > 0 && kept <= lost, "{kept} of {lost} bytes were synced");
        std::fs::copy(&self.shadow, &file).expect("a copy");
    }
}

/// What was done to a disk, as the shim logs it.
pub enum Operation {
    /// Durable at once, or when a sync follows.
    Write {
        at: usize,
        bytes: Vec<u8>,
        durable: bool,
    },
    Cut(usize),
    Sync,
}

/// The operations of a log, each with the length of the log behind it.
pub fn read_log(log: &[u8]) -> Vec<(Operation, u64)> {
    const HEAD_BYTES: usize = 24;
    let mut operations = Vec::new();
    let mut rest = log;
    while let Some((head, behind)) = rest.split_at_checked(HEAD_BYTES) {
        let number = |at: usize| {
            let bytes = head[at..at + 8].try_into().expect("8 bytes");
            usize::try_from(u64::from_ne_bytes(bytes)).expect("64 bits")
        };
        let (what, at, len) = (head[0], number(8), number(16));
        let bytes = &behind[..len];
        rest = &behind[len..];
        let operation = match what {
            b'w' | b'd' => Operation::Write { at, bytes: bytes.into(), durable: what == b'd' },
            b'c' => Operation::Cut(at),
            b's' => Operation::Sync,
            other => panic!("no operation: {other}"),
        };
        operations.push((operation, (log.len() - rest.len()) as u64));
    }
    assert!(rest.is_empty(), "half an operation");
    operations
}
