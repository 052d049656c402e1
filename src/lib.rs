//! rheostr.
pub mod nostr;
pub mod relay;
