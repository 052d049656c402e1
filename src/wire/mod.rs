//! Bytes ⇄ frames, and the HTTP request before them. Pure; knows nothing of Nostr.
//!
//! In: [`http`] (one request head), then [`websocket`] (bytes → messages). Out: [`frame`] (one
//! header), [`batch`] (many frames → one gather write). Both ways: [`deflate`].

pub mod batch;
pub mod deflate;
pub mod frame;
pub mod http;
pub mod websocket;
