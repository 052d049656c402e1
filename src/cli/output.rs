//! Where results go.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::failure::Failure;

/// A buffered file, or standard output.
pub struct Output {
    writer: BufWriter<Box<dyn Write>>,
    path: PathBuf,
}

/// Buffered bytes.
const BUFFER_BYTES: usize = 256 << 10;

impl Output {
    /// Standard output.
    pub fn stdout() -> Self {
        let stdout: Box<dyn Write> = Box::new(io::stdout().lock());
        let path = "standard output".into();
        Self { writer: BufWriter::with_capacity(BUFFER_BYTES, stdout), path }
    }

    /// The file at `path`, emptied if it is there; standard output for `-`.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        if path == Path::new("-") {
            return Ok(Self::stdout());
        }
        let file =
            File::create(path).map_err(|source| Failure::File { path: path.to_owned(), source })?;
        Ok(Self {
            writer: BufWriter::with_capacity(BUFFER_BYTES, Box::new(file)),
            path: path.to_owned(),
        })
    }

    /// Writes one line.
    pub fn line(&mut self, text: &[u8]) -> Result<(), Failure> {
        let written = self.writer.write_all(text).and_then(|()| self.writer.write_all(b"\n"));
        written.map_err(|error| self.failure(error))
    }

    /// Hands on what is buffered.
    pub fn finish(mut self) -> Result<(), Failure> {
        self.writer.flush().map_err(|error| self.failure(error))
    }

    fn failure(&self, source: io::Error) -> Failure {
        match source.kind() {
            io::ErrorKind::BrokenPipe => Failure::BrokenPipe,
            _ => Failure::File { path: self.path.clone(), source },
        }
    }
}
