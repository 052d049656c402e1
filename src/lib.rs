//! rheostr.
pub mod nostr;
pub mod relay;
pub mod store;
pub mod wire;
