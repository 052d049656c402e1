//! `config check` and `config print`.

use super::arguments::{ConfigCommand, ConfigCommandArguments};
use super::failure::Failure;
use super::output::Output;
use crate::config::print::print;

/// Runs the command.
pub fn run(arguments: &ConfigCommandArguments) -> Result<(), Failure> {
    match &arguments.command {
        ConfigCommand::Check(config) => {
            config.read()?;
            eprintln!("the configuration is sound");
            Ok(())
        }
        ConfigCommand::Print(config) => {
            let mut output = Output::stdout();
            output.line(print(&config.read()?).trim_end().as_bytes())?;
            output.finish()
        }
    }
}
