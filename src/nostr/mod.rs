//! The vocabulary: events, filters and the messages that carry them (NIP-01).
//!
//! Pure: bytes in, values out. Nothing here knows of sockets, clocks, threads or storage.
//! A value of [`Event`] exists only when its shape was checked; a [`VerifiedEvent`] only when its
//! id and signature were checked too, so nobody downstream can forget to.

pub mod event;
pub mod filter;
pub mod tag;

pub use event::{Event, EventView, Kind};
pub use filter::Filter;
pub use tag::{TagRef, TagValue};
