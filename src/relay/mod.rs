//! Decisions: a state machine over one shard's connections, fed by the driver.
//!
//! Pure: no clock, socket, channel, thread or randomness; time and seeds come in as arguments, and
//! what is to be done goes out as effects. The path of an EVENT through here: [`shard`] (inputs and
//! effects) → `receive` (decode, verify) → [`policy`] → a [`ports::Submission`]; and, once it is
//! durable, a [`ports::CommitBatch`] → [`subscriptions`] (who wants it) → `delivery` → [`outbox`].
//! `counts` is what becomes of a COUNT, `closing` how a connection ends, `slow` whose subscription does
//! when live events cannot wait, `tide` when memory is given back.
//! `echo`, which no relay contains, lets a conformance suite talk to the decoder, outbox and writer.

pub mod admission;
mod budget;
pub mod capture;
pub mod client;
mod closing;
pub mod counters;
mod counts;
mod delivery;
#[cfg(any(test, feature = "echo-endpoint"))]
mod echo;
pub mod limits;
pub mod outbox;
mod planted;
pub mod policy;
pub mod ports;
mod receive;
pub mod recent;
#[cfg(test)]
mod scenarios;
pub mod session;
pub mod shard;
#[cfg(test)]
mod simulation;
mod slow;
pub mod subscriptions;
mod tide;
pub mod timings;
pub mod tuning;

pub use crate::wire::deflate::{Accept, DEFLATER_BYTES_MAX, WINDOW_BYTES};
pub use admission::{Admission, Arrival};
pub use client::Proxies;
pub use limits::Limits;
pub use ports::ScanKey;
pub use session::ConnectionKey;
pub use shard::{Effect, Now, Pages, Reading, Setup, Shard};
pub use tuning::{Receive, Tuning};
