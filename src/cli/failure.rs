//! Why a command ends without having done its work.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::config::ConfigError;
use crate::ops::admin::AdminError;
use crate::store::StoreError;

/// Why a command ends.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// What was asked for makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The configuration is wrong.
    #[error("the configuration is wrong\n{0}")]
    Config(#[from] ConfigError),
    /// The store cannot do it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The running relay cannot do it.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// Another process holds the directory and does not answer on its socket.
    #[error("{held}; {unreachable}")]
    Held {
        /// Names the process.
        held: StoreError,
        /// Names the socket.
        unreachable: AdminError,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// Standard input or output.
    #[error("{0}")]
    Stream(io::Error),
    /// Whoever read standard output has left. Not worth a word.
    #[error("the reader of standard output has left")]
    BrokenPipe,
    /// The check found differences; they are told already.
    #[error("{0}")]
    Differences(String),
    /// Something else failed.
    #[error("{0}")]
    Failed(String),
}

impl Failure {
    /// The process's answer.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) | Self::Config(_) => ExitCode::from(2),
            Self::BrokenPipe => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::BrokenPipe,
            _ => Self::Stream(error),
        }
    }
}
