//! The vocabulary: events, filters and the messages that carry them (NIP-01).
//!
//! Pure: bytes in, values out. Nothing here knows of sockets, clocks, threads or storage. A
//! [`Candidate`] exists only when an event's shape and id were checked, a [`VerifiedEvent`] only when
//! its signature was checked too, so nobody downstream can forget to.
//!
//! In the order an EVENT meets them: [`json`] (text → values) → [`message`] (which message) →
//! [`parse`] (shape, canonical text, id) → [`verify`] (signature) → [`event`] (the shared record).

pub mod event;
pub mod filter;
pub mod json;
pub mod message;
pub mod nip11;
pub mod parse;
pub mod sketch;
pub mod tag;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub mod verify;

pub use event::{Event, EventView, Id, Kind, KindClass, Pubkey};
pub use filter::Filter;
pub use message::{ClientMessage, MessageReader, RelayMessage, SubscriptionId};
pub use parse::Candidate;
pub use sketch::{Sketch, SketchOffset};
pub use tag::{TagRef, TagValue};
pub use verify::{VerifiedEvent, Verifier};
