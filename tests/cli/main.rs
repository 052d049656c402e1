//! The command line from outside: the real binary, in directories of its own.

mod support;

mod beside;
mod configuration;
mod data;
mod relay;
