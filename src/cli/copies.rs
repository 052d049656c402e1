//! `backup`, `restore`, `compact`, `migrate`: the data file as a whole.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::arguments::{BackupArguments, RestoreArguments, StoreArguments};
use super::failure::Failure;
use super::output::Output;
use super::read::{configure, open, store_options, unix_now};
use super::tend::tell;
use crate::store::{Copied, SCHEMA_VERSION, Store, StoreError};

/// Runs `backup`.
pub fn backup(arguments: &BackupArguments) -> Result<(), Failure> {
    let (store, _) = open(&arguments.store)?;
    let to = file_name(&arguments.to);
    let bar = progress(Some(store.info()?.used_bytes));
    let started = Instant::now();
    let done = store.backup(&to, &mut |bytes| bar.set_position(bytes))?;
    bar.finish_and_clear();
    let Copied { events, bytes, .. } = done.copied;
    let mut output = Output::stdout();
    let text = format!(
        "{}: {events} events, {bytes} bytes, in {:.1} s; the data file grew by {} bytes meanwhile",
        to.display(),
        started.elapsed().as_secs_f64(),
        done.grown_bytes,
    );
    output.line(text.as_bytes())?;
    output.finish()
}

/// The file to write: in a directory, one named by the time.
fn file_name(to: &Path) -> PathBuf {
    match to.is_dir() {
        true => to.join(format!("rheostr-{}.mdb", unix_now())),
        false => to.to_owned(),
    }
}

/// Runs `restore`.
pub fn restore(arguments: &RestoreArguments) -> Result<(), Failure> {
    let config = configure(&arguments.store)?;
    let failed = |source| Failure::File { path: arguments.from.clone(), source };
    let bar = progress(Some(std::fs::metadata(&arguments.from).map_err(failed)?.len()));
    let started = Instant::now();
    let options = store_options(&config);
    let restored = Store::restore(&arguments.from, &config.data, &options, &mut |bytes| {
        bar.set_position(bytes);
    })?;
    bar.finish_and_clear();
    let Copied { events, bytes, .. } = restored;
    let mut output = Output::stdout();
    let text = format!(
        "{}: {events} events, {bytes} bytes, in {:.1} s",
        config.data.display(),
        started.elapsed().as_secs_f64(),
    );
    output.line(text.as_bytes())?;
    output.finish()?;
    if arguments.no_check {
        return Ok(());
    }
    tell(&Store::open_read_only(&config.data, &options)?.check()?)
}

/// Runs `migrate`.
pub fn migrate(arguments: &StoreArguments) -> Result<(), Failure> {
    let config = configure(arguments)?;
    let options = store_options(&config);
    // Opening for writing makes a store where there is none, which is not what is meant here.
    let text = match Store::open_read_only(&config.data, &options) {
        Ok(store) => {
            let version = store.info()?.schema_version;
            format!("{}: schema {version} already", config.data.display())
        }
        Err(StoreError::Schema { found, .. }) if found < SCHEMA_VERSION => {
            let started = Instant::now();
            let info = Store::open(&config.data, &options)?.info()?;
            format!(
                "{}: {} events, schema {}, in {:.1} s",
                config.data.display(),
                info.events,
                info.schema_version,
                started.elapsed().as_secs_f64(),
            )
        }
        Err(error) => return Err(error.into()),
    };
    let mut output = Output::stdout();
    output.line(text.as_bytes())?;
    output.finish()
}

/// Runs `compact`.
pub fn compact(arguments: &StoreArguments) -> Result<(), Failure> {
    let config = configure(arguments)?;
    let bar = progress(None);
    let started = Instant::now();
    let done = Store::compact(&config.data, &store_options(&config), &mut |bytes| {
        bar.set_position(bytes);
    })?;
    bar.finish_and_clear();
    let mut output = Output::stdout();
    let text = format!(
        "{} events; {} bytes before, {} after, in {:.1} s",
        done.copied.events,
        done.bytes_before,
        done.copied.bytes,
        started.elapsed().as_secs_f64(),
    );
    output.line(text.as_bytes())?;
    output.finish()
}

/// A bar of bytes on a terminal, nothing elsewhere.
fn progress(bytes: Option<u64>) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match bytes {
        Some(bytes) => (ProgressBar::new(bytes), "{bar:30} {bytes}/{total_bytes}  {eta} left"),
        None => (ProgressBar::new_spinner(), "{spinner} {bytes}  {elapsed}"),
    };
    bar.set_draw_target(ProgressDrawTarget::stderr());
    bar.with_style(ProgressStyle::with_template(template).expect("the template is sound"))
}
