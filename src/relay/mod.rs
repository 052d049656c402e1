//! Decisions.
pub mod ports;
