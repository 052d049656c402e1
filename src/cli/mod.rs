//! The command line. Standard output carries results and nothing else; what is said about the work
//! goes to standard error.
//!
//! Exit codes: 0 done, 1 failed or differences found, 2 wrong usage or configuration.

mod arguments;
mod bus_error;
mod config;
mod copies;
mod failure;
mod import;
mod lines;
mod logging;
mod output;
mod read;
mod relay;
mod search;
mod tend;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

use arguments::{Arguments, Command};
use failure::Failure;

/// Runs the command the process was started with.
#[must_use]
pub fn main() -> ExitCode {
    run(std::env::args_os())
}

/// Runs a command, whose first word is the program's name. For a process of its own: it takes over signals, and ends
/// the process where the command line is wrong.
#[must_use]
pub fn run(words: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> ExitCode {
    bus_error::explain();
    let arguments = Arguments::parse_from(words);
    let outcome = match arguments.command {
        None => relay::run(&arguments.relay),
        Some(Command::Relay(command)) => relay::run(&command),
        Some(Command::Import(command)) => import::run(&command),
        Some(Command::Export(command)) => read::export(&command),
        Some(Command::Scan(command)) => read::scan(&command),
        Some(Command::Count(command)) => read::count(&command),
        Some(Command::Delete(command)) => tend::delete(&command),
        Some(Command::Retain(command)) => tend::retain(&command),
        Some(Command::Info(command)) => tend::info(&command),
        Some(Command::Check(command)) => tend::check(&command),
        Some(Command::Backup(command)) => copies::backup(&command),
        Some(Command::Restore(command)) => copies::restore(&command),
        Some(Command::Compact(command)) => copies::compact(&command),
        Some(Command::Migrate(command)) => copies::migrate(&command),
        Some(Command::Config(command)) => config::run(&command),
    };
    match outcome {
        Ok(()) | Err(Failure::BrokenPipe) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("rheostr: {failure}");
            failure.exit_code()
        }
    }
}
