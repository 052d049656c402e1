//! One level-triggered epoll set and one read buffer a thread.

use super::Connection;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::time::Timespec;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::time::Duration;

const EVENTS_PER_WAIT_MAX: usize = 256;
/// Large enough that a burst of a few hundred deliveries is one read.
const READ_BUFFER_BYTES: usize = 256 << 10;

/// What a socket is ready for.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    /// The number given to [`Poller::add`].
    pub token: usize,
    pub readable: bool,
    pub writable: bool,
}

/// Owned by one thread; connections are told apart by their token.
pub struct Poller {
    epoll: OwnedFd,
    /// The buffer to lend to [`Connection::receive`].
    pub buffer: Vec<u8>,
}

impl Poller {
    /// # Errors
    /// No epoll set, usually for lack of file descriptors.
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        Ok(Self { epoll, buffer: vec![0; READ_BUFFER_BYTES] })
    }

    /// # Errors
    /// As `epoll_ctl(2)`.
    pub fn add(&self, connection: &mut Connection, token: usize) -> io::Result<()> {
        connection.write_interest = connection.has_unsent();
        epoll::add(
            &self.epoll,
            &*connection,
            EventData::new_u64(token as u64),
            interest(connection),
        )?;
        Ok(())
    }

    /// Follows a connection's unsent bytes: call it after every send or flush.
    ///
    /// # Errors
    /// As `epoll_ctl(2)`.
    pub fn sync(&self, connection: &mut Connection, token: usize) -> io::Result<()> {
        if connection.write_interest != connection.has_unsent() {
            connection.write_interest = connection.has_unsent();
            epoll::modify(
                &self.epoll,
                &*connection,
                EventData::new_u64(token as u64),
                interest(connection),
            )?;
        }
        Ok(())
    }

    /// Waits at most `timeout`, and fills `ready` with what woke it.
    ///
    /// # Errors
    /// As `epoll_wait(2)`, except that an interruption counts as a timeout.
    pub fn wait(&self, timeout: Duration, ready: &mut Vec<Ready>) -> io::Result<()> {
        ready.clear();
        let mut timeout: Timespec = timeout.try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
        // epoll_wait rounds up to milliseconds, which would make every paced event late; ppoll does not.
        if timeout.tv_nsec % 1_000_000 != 0 {
            match poll(&mut [PollFd::new(&self.epoll, PollFlags::IN)], Some(&timeout)) {
                Ok(_) => timeout = Timespec { tv_sec: 0, tv_nsec: 0 },
                Err(Errno::INTR) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        let mut space = [const { MaybeUninit::<Event>::uninit() }; EVENTS_PER_WAIT_MAX];
        let events = match epoll::wait(&self.epoll, &mut space, Some(&timeout)) {
            Ok((events, _)) => events,
            Err(Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        ready.extend(events.iter().map(|event| {
            let flags = event.flags;
            Ready {
                token: event.data.u64() as usize,
                readable: flags.intersects(
                    EventFlags::IN | EventFlags::HUP | EventFlags::ERR | EventFlags::RDHUP,
                ),
                writable: flags.contains(EventFlags::OUT),
            }
        }));
        Ok(())
    }
}

fn interest(connection: &Connection) -> EventFlags {
    if connection.has_unsent() { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN }
}
