//! The relay from the outside: the real binary, real sockets, clients nobody here wrote.
//!
//! One binary, so that linking is paid once. Every load is bounded in count and time, goes to
//! 127.0.0.1, and what a test starts ends with it.

#![allow(clippy::unwrap_used, clippy::cloned_ref_to_slice_refs)]

/// One test a backend.
macro_rules! on_every_backend {
    ($name:ident) => {
        mod $name {
            #[test]
            fn on_tokio_uring() {
                super::$name("tokio-uring");
            }

            #[test]
            fn on_epoll() {
                super::$name("epoll");
            }

            #[cfg(feature = "glommio")]
            #[test]
            fn on_glommio() {
                super::$name("glommio");
            }
        }
    };
}

mod accept_balance;
mod addresses;
mod bad_input;
mod budget;
mod capture;
mod corpus;
mod crash;
mod deflate;
mod disk_waits;
mod fanout;
mod faults;
mod fire;
mod hazards;
mod layers;
mod metrics;
mod nip01;
mod nip01_more;
mod nip45;
mod nostr_sdk;
mod recent;
mod retention;
#[cfg(feature = "search")]
mod search;
mod submits;
mod support;
mod trace;
