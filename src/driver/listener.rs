//! Listening sockets, one a shard, and the spread of connections over the shards.
//!
//! The kernel spreads connections over `SO_REUSEPORT` sockets by a hash, blind to how many each shard
//! holds. A shard that is ahead of the least loaded one hands a fresh socket over to it.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use socket2::{Domain, Protocol, Socket as RawSocket, Type};

use super::backend::{Backend, Socket};
use super::connection::Load;
use super::shard_loop::ShardLoop;

/// Connections the kernel completes ahead of `accept`.
const BACKLOG: i32 = 1024;

/// Accepts of one wake before other tasks have their turn.
const ACCEPTS_PER_TURN: usize = 64;

/// How long a shard that has no file descriptor left waits before it accepts again.
const OUT_OF_FILES_PAUSE: Duration = Duration::from_millis(100);

/// Opens `count` listening sockets on one address; port 0 is chosen by the kernel once for all. The
/// kernel holds `send_buffer_bytes_max` for each accepted socket, and takes about `not_sent_bytes_max`
/// beyond what it can send: what overtakes in the outbox waits behind no more than that and what is on its
/// way. What the peer does not acknowledge within `unacked_max` it drops, with the connection: also after
/// the socket is closed, when nobody else looks.
///
/// # Errors
/// When the address is taken, by whomever: `SO_REUSEPORT` alone would let two relays share a port
/// unawares, so the address is first bound without it.
pub fn listen(
    address: SocketAddr,
    count: usize,
    send_buffer_bytes_max: usize,
    not_sent_bytes_max: u32,
    unacked_max: Duration,
) -> io::Result<(Vec<OwnedFd>, SocketAddr)> {
    drop(TcpListener::bind(address)?);
    let mut address = address;
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count {
        let socket =
            RawSocket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        // Accepted sockets inherit all three. Left to itself the kernel takes some 4 MiB for a peer that
        // never reads, and keeps it for minutes when that has closed its side.
        socket.set_send_buffer_size(send_buffer_bytes_max)?;
        socket.set_tcp_notsent_lowat(not_sent_bytes_max)?;
        socket.set_tcp_user_timeout(Some(unacked_max))?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        if let Some(bound) = socket.local_addr()?.as_socket() {
            address = bound;
        }
        sockets.push(socket.into());
    }
    Ok((sockets, address))
}

/// Accepts until the shard stops.
pub(super) async fn accept<B: Backend>(listener: Rc<B::Socket>, shard: Rc<ShardLoop<B>>) {
    while !shard.stopping.get() {
        if listener.readable().await.is_err() {
            break;
        }
        for _ in 0..ACCEPTS_PER_TURN {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            match listener.try_read(|fd| Ok(accept_with(fd, flags)?)) {
                Ok(socket) => place(socket, &shard),
                Err(error) => match error.raw_os_error().map(Errno::from_raw_os_error) {
                    Some(Errno::AGAIN) => break,
                    Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                        tracing::warn!(%error, "cannot accept; raise the limit of open files or \
                            lower limits.connections_max");
                        B::sleep(OUT_OF_FILES_PAUSE).await;
                        break;
                    }
                    _ if shard.stopping.get() => return,
                    // The peer gave up between its SYN and here, or the like: the next one may do.
                    _ => {}
                },
            }
        }
    }
}

/// Gives a fresh socket to this shard, or to the least loaded one.
fn place<B: Backend>(socket: OwnedFd, shard: &Rc<ShardLoop<B>>) {
    let loads = &shard.loads;
    let (target, least) = least_loaded(loads);
    let own = loads[shard.number].load(Ordering::Relaxed);
    if target == shard.number || own <= least + slack(least) {
        return shard.adopt(socket, Load::take(loads.clone(), shard.number));
    }
    let load = Load::take(loads.clone(), target);
    if let Err((socket, load)) = shard.peers[target].hand_over(socket, load) {
        // The place it had there goes back before it takes one here.
        drop(load);
        shard.adopt(socket, Load::take(loads.clone(), shard.number));
    }
}

/// How far ahead of the least loaded shard one may be before it hands over.
fn slack(least: usize) -> usize {
    1 + least / 32
}

fn least_loaded(loads: &[AtomicUsize]) -> (usize, usize) {
    let loads = loads.iter().map(|load| load.load(Ordering::Relaxed)).enumerate();
    loads.min_by_key(|(_, load)| *load).expect("there is a shard")
}

/// Ends a listener's wait; what is in its backlog is reset.
pub(super) fn stop(listener: &impl AsFd) {
    // It fails on a listener that is closed already.
    let _ = rustix::net::shutdown(listener, rustix::net::Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNACKED_MAX: Duration = Duration::from_secs(1);

    fn open(address: SocketAddr, count: usize) -> io::Result<(Vec<OwnedFd>, SocketAddr)> {
        listen(address, count, 1 << 16, 1 << 14, UNACKED_MAX)
    }

    #[test]
    fn an_address_in_use_is_refused_even_by_reuseport_sockets() {
        let (first, address) = open("127.0.0.1:0".parse().unwrap(), 3).unwrap();
        assert_eq!(first.len(), 3);
        let error = open(address, 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(first);
        assert!(open(address, 2).is_ok());
    }

    /// A peer reads nothing and ends its side; the socket is closed with bytes for it, in order. The kernel
    /// would offer them to it for minutes.
    #[test]
    fn the_kernel_forgets_what_a_peer_does_not_take_after_the_end() {
        let (listeners, address) = open("127.0.0.1:0".parse().unwrap(), 1).unwrap();
        let client = RawSocket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        client.set_recv_buffer_size(2_304).unwrap();
        client.connect(&address.into()).unwrap();
        let served = accept_with(&listeners[0], SocketFlags::NONBLOCK).unwrap();
        while rustix::io::write(&served, &[7; 8_192]).is_ok() {}
        client.shutdown(std::net::Shutdown::Write).unwrap();
        rustix::net::shutdown(&served, rustix::net::Shutdown::Both).unwrap();
        let of_client = |state: &str| {
            let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
            let end = format!(":{:04X}", address.port());
            let mut rows = table.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
            rows.any(|row| row[1].ends_with(&end) && row[3] == state)
        };
        const LAST_ACK: &str = "09";
        drop(served);
        assert!(of_client(LAST_ACK), "the kernel keeps it for a while");
        for _ in 0..80 {
            if !of_client(LAST_ACK) {
                return;
            }
            std::thread::sleep(UNACKED_MAX / 8);
        }
        panic!("ten times as long as it may");
    }
}
