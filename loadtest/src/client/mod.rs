//! A raw WebSocket client that stays off the bottleneck.
//!
//! A generator that is slower than the relay measures itself. So frames are masked before the run starts
//! ([`frame`]), sockets are nonblocking and read in large pieces into one buffer a thread ([`connection`]), one epoll
//! set a thread drives them ([`poller`]), and replies are recognized by their first bytes, with a full JSON parse as
//! the fallback ([`message`]). Beside the socket, a relay is asked what it is ([`nip11`]).

pub mod connection;
pub mod frame;
pub mod inquiry;
pub mod message;
pub mod nip11;
pub mod opening;
pub mod poller;

pub use connection::{Connection, Lost, Target};
pub use message::{Id, RelayMessage};
pub use opening::Opening;
pub use poller::Poller;
