//! The write path under attack, over real sockets: readers that never read, a flood with pings in it,
//! a stop with every queue full, connections that break off, publishers that do not read their answers,
//! a query for everything there is, windows that open slowly, compressed floods, clients that only read on. On every backend.

mod bombs;
mod broken_off;
mod deaf;
mod ends;
mod flood;
mod half_closed;
mod pings;
mod publisher;
mod stop;
mod stored;
mod window;

use crate::support::raw::{Raw, Seen};

/// What `limits.send_buffer_bytes_max` lets the kernel hold for one peer, its own bookkeeping included.
const KERNEL_BYTES_MAX: usize = 2 * 212_992;

/// Opens a subscription and reads up to its EOSE.
fn subscribe(raw: &mut Raw, request: &str) {
    raw.text(request);
    loop {
        match raw.next() {
            Seen::Text(text) if text.starts_with("[\"EOSE\"") => return,
            Seen::Text(_) => {}
            other => panic!("{other:?}"),
        }
    }
}
