//! rheostr: a Nostr relay on pinned shards, with one writer per socket.
//!
//! This is the tour. It says what the rooms are, how an EVENT walks through them, and what always
//! holds.
//!
//! # Rooms
//!
//! Pure, without a clock, socket, channel, thread or randomness (a test in `tests/` keeps it so):
//!
//! - [`wire`]: bytes ⇄ frames. The HTTP request, the WebSocket decoder, compression, the gather batch.
//! - [`nostr`]: the vocabulary. Events, filters, messages, signatures.
//! - [`relay`]: decisions. One state machine a shard: `handle_*` in, effects out.
//!
//! The shell around it:
//!
//! - [`store`]: durable events in LMDB. One writer thread with group commit, a few readers.
//! - `search`: full text beside the store, in builds with that feature.
//! - [`driver`]: sockets and time. Shards on pinned threads, the flume bus between them, and the
//!   backend (tokio-uring, glommio or epoll) behind one small seam.
//! - [`ops`]: what an operator sees. Metrics, health, the admin socket.
//! - [`config`] and [`cli`]: how a relay is told what to do.
//!
//! # The life of an EVENT
//!
//! 1. `driver::connection`: the socket is readable; its bytes go into the shard's one scratch buffer.
//! 2. [`wire::websocket`]: frames become a text message, unmasked where it lies, or inflated by the
//!    shard's one inflater ([`wire::deflate`]).
//! 3. [`nostr::message`], [`nostr::parse`]: text becomes a candidate: shape checked, canonical JSON
//!    written, id recomputed.
//! 4. [`relay::policy`]: limits, before the signature is paid for. The candidate waits its turn.
//! 5. [`nostr::verify`]: a few signatures a tick, one connection after the other.
//! 6. [`store::Writer`]: what arrives during one commit is the next batch; one transaction, then a
//!    durable commit.
//! 7. [`driver::bus`]: the ordered commit batch goes to every shard; a sleeping one is woken.
//! 8. [`relay::shard`]: the shard that submitted the event answers `OK`; each asks its index
//!    ([`relay::subscriptions`]) who wants it.
//! 9. [`relay::outbox`]: the event waits in the stream lane of each subscriber's connection, as a
//!    reference to one shared JSON text, or to what that was deflated to for all who read it so; or, when
//!    that is full, in its subscription's own queue.
//! 10. [`wire::batch`]: at the end of the tick each connection with something to say takes what waits
//!     into one gather write; small frames are copied, large ones ride along.
//! 11. `driver::writes`: to a few sockets by a call each, to many by the backend together; one write in flight a
//!     socket, and the next batch gathers behind it.
//!
//! A REQ is filed in the index, and then asks for what is stored: the shard's own newest events
//! ([`relay::recent`]) where these are sure to hold all of it, else [`store::Readers`], slice by slice.
//!
//! An ephemeral event skips 6: it goes from shard to shard over the bus at once, and its `OK` says
//! whether anybody heard it.
//!
//! # What always holds
//!
//! - One total order of durable events: the writer's. `OK true` follows the commit,
//!   and the commit is on the disk unless the operator chose otherwise (`store.durability`).
//! - An event reaches a subscription once: its stored query covers what was committed up to the last
//!   sequence number its shard knew when it was filed, the live stream what came after.
//! - Every message that will be answered has its reply slot before it is decoded; a connection
//!   without a free slot is not read. So nothing that is owed can overflow.
//! - Shards never wait for each other or for the writer; the writer and the readers may wait for a
//!   shard. So there is no circle to lock up in.
//! - What a subscriber cannot take in time ends its subscription with a reason; nothing is dropped
//!   silently, and nobody else waits.
//! - A socket closes with the last reference to it; every count it took is given back in `Drop`.
//!
//! # Where this differs from the design it began with
//!
//! - Reads are a poll on the ring and then a plain `recv` into the shard's scratch buffer, on every
//!   backend: an idle connection owns no buffer, and no read can outlive its task. One operation of the
//!   ring with a buffer for each connection (`tuning.receive`) is there to be measured against.
//! - A stored query ends where its subscription was filed, not where its first slice looked: what a
//!   filter's limit leaves out of that slice would else be neither stored nor live.
//! - Shards share one table behind locks: connections by client address (`driver::places`). It is
//!   touched when a connection comes and when it goes, and a cap kept by each shard would be no cap.
//! - A connection has no standing writer task: the tick begins every write, and one is spawned where a
//!   socket takes less than it is given, until the outbox is empty. That is one task instead of two for
//!   an idle connection, and none for a write that ends at once.
//! - A live queue holds references to shared events, not places in a ring of recent ones: an event lives
//!   as long as somebody waits for it, and all their bytes have one bound (`limits.live_bytes_max`).
//! - While more events wait to be verified, those of several ticks go to the writer together. One by one
//!   each wakes it, and on a shared core it commits each alone, which makes small batches to listeners.
//! - The store has no index by author alone: what an author wrote is a merge over the kinds that are there. It
//!   was one of four pages written with each event, and filters by author name kinds, nearly always.
//! - A socket takes 16 KiB that it has not sent, less than a batch: the kernel's own queue is behind every
//!   lane of ours, and the thousandth deaf subscriber is served until it is full.

pub mod cli;
pub mod config;
pub mod driver;
pub mod nostr;
pub mod ops;
pub mod relay;
#[cfg(feature = "search")]
pub mod search;
pub mod store;
pub mod wire;
