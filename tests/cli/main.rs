//! The command line from outside: the real binary, in directories of its own.

#![allow(clippy::unwrap_used, clippy::format_collect)]

mod support;

mod beside;
mod configuration;
mod copies;
mod data;
mod exchange;
mod relay;
mod replaced;
mod retain;
