//! What a connected socket is told, and asked.
//!
//! Unsafe here: one `ioctl` that writes one integer.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::ioctl::{Getter, ioctl};
use rustix::net::sockopt::{set_socket_linger, set_tcp_nodelay};

/// Frames leave when they are written: the outbox does the gathering.
pub(super) fn send_at_once(socket: impl AsFd) {
    // It fails only on a socket that is closed already; the reader finds out.
    let _ = set_tcp_nodelay(socket, true);
}

/// Has the kernel drop what it holds for the peer when the socket closes, and reset the connection.
/// Otherwise it would keep that memory, and offer it to a peer that takes nothing, for minutes.
pub(super) fn reset_on_close(socket: impl AsFd) {
    // As above.
    let _ = set_socket_linger(socket, Some(Duration::ZERO));
}

/// Bytes written to a TCP socket that its peer has not acknowledged, sent or not (tcp(7), `SIOCOUTQ`).
///
/// # Errors
/// When this is no TCP socket.
pub(super) fn unacknowledged(socket: BorrowedFd<'_>) -> io::Result<u32> {
    const SIOCOUTQ: rustix::ioctl::Opcode = 0x5411;
    // SAFETY: `SIOCOUTQ` writes one `int` and reads nothing.
    let bytes = unsafe { ioctl(socket, Getter::<SIOCOUTQ, libc::c_int>::new()) }?;
    Ok(u32::try_from(bytes).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (listener.accept().unwrap().0, client)
    }

    #[test]
    fn what_a_peer_leaves_in_the_queue_is_told() {
        let (mut server, mut client) = pair();
        server.set_nonblocking(true).unwrap();
        assert_eq!(unacknowledged(server.as_fd()).unwrap(), 0);
        let mut written = 0;
        while let Ok(count) = server.write(&[7; 8_192]) {
            written += count;
        }
        let full = unacknowledged(server.as_fd()).unwrap();
        assert!(full > 0 && full as usize <= written, "{full} of {written}");
        let mut received = vec![0; written];
        // What the kernel could not take was not counted as written.
        client.read_exact(&mut received).unwrap();
        client.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        for _ in 0..100 {
            if unacknowledged(server.as_fd()).unwrap() == 0 {
                return;
            }
            let _ = client.read(&mut [0]);
        }
        panic!("all was read, and nothing of it is acknowledged");
    }

    #[test]
    fn a_reset_drops_what_was_queued() {
        let (mut server, mut client) = pair();
        server.set_nonblocking(true).unwrap();
        while server.write(&[7; 8_192]).is_ok() {}
        reset_on_close(&server);
        // The order in which a released connection goes.
        server.shutdown(std::net::Shutdown::Both).unwrap();
        drop(server);
        let mut rest = Vec::new();
        let error = client.read_to_end(&mut rest).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
