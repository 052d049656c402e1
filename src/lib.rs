//! rheostr.
pub mod config;
pub mod nostr;
pub mod ops;
pub mod relay;
