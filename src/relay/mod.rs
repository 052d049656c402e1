//! Decisions.
pub mod limits;
pub mod ports;
