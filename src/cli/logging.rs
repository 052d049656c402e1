//! What goes to standard error.

use std::io::IsTerminal;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{fmt, registry};

use crate::config::{Log, LogFormat, LogLevel};

/// Starts logging. Only the first call has an effect.
pub fn start(log: &Log) {
    let level = match log.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let filter = registry().with(Targets::new().with_default(level));
    let outcome = match log.format {
        LogFormat::Text => {
            let ansi = std::io::stderr().is_terminal();
            filter.with(fmt::layer().with_writer(std::io::stderr).with_ansi(ansi)).try_init()
        }
        LogFormat::Json => filter.with(fmt::layer().json().with_writer(std::io::stderr)).try_init(),
    };
    debug_assert!(outcome.is_ok(), "logging starts once");
}
