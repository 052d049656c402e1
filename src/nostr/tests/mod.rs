//! Events and messages as clients write them.

mod corpus;
mod events;
mod messages;
mod signatures;
