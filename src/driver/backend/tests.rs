//! What the shard loop expects of every backend of this build.

use std::cell::{Cell, RefCell};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send};
use rustix::time::{ClockId, clock_gettime};
use socket2::{Domain, SockRef, Type};

use super::epoll::Epoll;
#[cfg(feature = "glommio")]
use super::glommio::Glommio;
use super::tokio_uring::TokioUring;
use super::*;
use crate::driver::bus::{self, FromThread};
use crate::driver::listener;
use crate::driver::watched::watched;
use crate::wire::frame::Opcode;

macro_rules! on_every_backend {
    ($($test:ident),* $(,)?) => {
        mod on_epoll {
            $(#[test] fn $test() { super::$test::<super::Epoll>(); })*
        }
        mod on_tokio_uring {
            $(#[test] fn $test() { super::$test::<super::TokioUring>(); })*
        }
        #[cfg(feature = "glommio")]
        mod on_glommio {
            $(#[test] fn $test() { super::$test::<super::Glommio>(); })*
        }
    };
}

on_every_backend! {
    a_reader_who_opens_its_window_slowly_gets_every_byte,
    a_shut_ends_a_read_and_a_write_that_wait,
    a_reset_reaches_the_next_read,
    a_buffer_comes_back_with_what_was_received,
    a_closed_connection_leaves_no_descriptor,
    two_thousand_sockets_wait_at_once,
    a_listener_wakes_for_each_connection_and_for_its_stop,
    an_urgent_byte_keeps_nobody_busy,
    a_task_that_breathes_lets_the_others_in,
    other_threads_wake_the_shard,
    the_panic_of_a_task_is_told,
}

const PATIENCE: Duration = Duration::from_secs(30);

/// Asks again and again, while the other tasks run.
async fn until<B: Backend>(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "waited {PATIENCE:?} for: {what}");
        B::sleep(Duration::from_millis(1)).await;
    }
}

/// A listener as the relay's.
fn listen() -> (OwnedFd, SocketAddr) {
    let (mut sockets, address) =
        listener::listen("127.0.0.1:0".parse().unwrap(), 1, 256 << 10, 128 << 10, PATIENCE)
            .unwrap();
    (sockets.remove(0), address)
}

/// A connected pair: the relay's end and the client's.
fn pair() -> (OwnedFd, TcpStream) {
    let (listener, address) = listen();
    let client = TcpStream::connect(address).unwrap();
    (accept_waiting(&listener), client)
}

fn accept_waiting(listener: &OwnedFd) -> OwnedFd {
    let end = Instant::now() + PATIENCE;
    loop {
        match accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            Ok(socket) => return socket,
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
    }
}

/// A connected pair between which the kernel holds next to nothing.
fn narrow_pair() -> (OwnedFd, TcpStream) {
    let (listener, address) = listen();
    let client = socket2::Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    client.set_recv_buffer_size(2048).unwrap();
    client.set_tcp_mss(536).unwrap();
    client.connect(&address.into()).unwrap();
    let socket = accept_waiting(&listener);
    SockRef::from(&socket).set_send_buffer_size(4096).unwrap();
    SockRef::from(&socket).set_tcp_nodelay(true).unwrap();
    (socket, client.into())
}

fn read_some<S: Socket>(socket: &S, into: &mut [u8]) -> io::Result<usize> {
    socket.try_read(|fd| Ok(recv(fd, &mut *into, RecvFlags::DONTWAIT)?.0))
}

/// Reads what comes until it would wait.
async fn wait_and_read<S: Socket>(socket: &S) -> io::Result<Vec<u8>> {
    let mut bytes = [0; 4096];
    loop {
        socket.readable().await?;
        match read_some(socket, &mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result.map(|count| bytes[..count].to_vec()),
        }
    }
}

/// Frames of all sizes, copied and chained.
fn batch(random: &mut fastrand::Rng) -> Box<Batch> {
    let mut batch = Box::<Batch>::default();
    for _ in 0..random.usize(1..40) {
        let body: Vec<u8> = (0..random.usize(0..3000)).map(|_| random.u8(..)).collect();
        batch.push_frame(Opcode::Text, b"[\"EVENT\",\"s\",", &Bytes::from(body), b"]");
    }
    batch
}

/// The reader starts when the writer has long been stuck, and reads a little at a time: what it gets is
/// what was sent, wherever the writes broke off.
fn a_reader_who_opens_its_window_slowly_gets_every_byte<B: Backend>() {
    const BATCHES: usize = 12;
    let (socket, mut client) = narrow_pair();
    let (start, started) = flume::bounded(1);
    let reader = std::thread::spawn(move || {
        started.recv().unwrap();
        let (mut all, mut piece) = (Vec::new(), [0; 700]);
        while let Ok(count @ 1..) = client.read(&mut piece) {
            all.extend_from_slice(&piece[..count]);
            if all.len() < 50_000 {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        all
    });
    let (expected, partial, longest) = B::run(&Tuning::default(), async move {
        let socket = B::socket(socket).unwrap();
        let mut random = fastrand::Rng::with_seed(7);
        let (mut expected, mut partial, mut longest) = (Vec::new(), 0, 0);
        let sent = Rc::new(Cell::new(0));
        let progress = sent.clone();
        B::spawn_local(async move {
            loop {
                let before = progress.get();
                B::sleep(Duration::from_millis(50)).await;
                if before > 0 && progress.get() == before {
                    break start.send(()).unwrap();
                }
            }
        });
        for _ in 0..BATCHES {
            let mut batch = batch(&mut random);
            batch.unwritten().for_each(|piece| expected.extend_from_slice(piece));
            let mut writes = 0;
            while batch.left() > 0 {
                let (count, returned) = socket.send(batch).await;
                batch = returned;
                let count = count.unwrap();
                assert!(count > 0);
                partial += usize::from(count < batch.left());
                writes += 1;
                batch.advance(count);
                sent.set(sent.get() + count);
            }
            longest = longest.max(writes);
        }
        (expected, partial, longest)
    })
    .unwrap();
    assert!(partial > 20 && longest > 5, "{partial} writes broke off, {longest} for one batch");
    let all = reader.join().unwrap();
    assert!(all == expected, "{} of {} bytes, or other ones", all.len(), expected.len());
}

fn a_shut_ends_a_read_and_a_write_that_wait<B: Backend>() {
    let (socket, _client) = narrow_pair();
    B::run(&Tuning::default(), async move {
        let socket = Rc::new(B::socket(socket).unwrap());
        let read = Rc::new(RefCell::new(None));
        let written = Rc::new(RefCell::new(None));
        let (reader, writer) = (socket.clone(), socket.clone());
        let (was_read, was_written) = (read.clone(), written.clone());
        B::spawn_local(async move {
            let result = wait_and_read(&*reader).await;
            *was_read.borrow_mut() = Some(result);
        });
        B::spawn_local(async move {
            let mut random = fastrand::Rng::with_seed(7);
            let error = loop {
                if let (Err(error), _) = writer.send(batch(&mut random)).await {
                    break error;
                }
            };
            *was_written.borrow_mut() = Some(error);
        });
        B::sleep(Duration::from_millis(100)).await;
        assert!(read.borrow().is_none() && written.borrow().is_none(), "both wait");
        rustix::net::shutdown(&*socket, rustix::net::Shutdown::Both).unwrap();
        until::<B>("both to end", || read.borrow().is_some() && written.borrow().is_some()).await;
        assert_eq!(read.take().unwrap().unwrap(), b"");
        assert_eq!(written.take().unwrap().kind(), io::ErrorKind::BrokenPipe);
    })
    .unwrap();
}

fn a_reset_reaches_the_next_read<B: Backend>() {
    let (socket, client) = pair();
    B::run(&Tuning::default(), async move {
        let socket = B::socket(socket).unwrap();
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        let breaker = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(client);
        });
        let error = wait_and_read(&socket).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(wait_and_read(&socket).await.unwrap(), b"", "and it stays ended");
        breaker.join().unwrap();
    })
    .unwrap();
}

/// Receives once, whatever it takes.
async fn receive_some<S: Socket>(socket: &S, mut buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
    loop {
        let received;
        (received, buffer) = socket.receive(buffer).await;
        match received {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            received => return (received, buffer),
        }
    }
}

fn a_buffer_comes_back_with_what_was_received<B: Backend>() {
    let (socket, mut client) = pair();
    let (broken, breaker) = pair();
    B::run(&Tuning::default(), async move {
        let socket = Rc::new(B::socket(socket).unwrap());
        let mut buffer = vec![0; 4];
        client.write_all(b"abcdefg").unwrap();
        for expected in [&b"abcd"[..], b"efg"] {
            let received;
            (received, buffer) = receive_some(&*socket, buffer).await;
            assert_eq!(&buffer[..received.unwrap()], expected);
        }
        let ended = Rc::new(RefCell::new(None));
        let (receiver, has_ended) = (socket.clone(), ended.clone());
        B::spawn_local(async move {
            let received = receive_some(&*receiver, buffer).await;
            *has_ended.borrow_mut() = Some(received);
        });
        B::sleep(Duration::from_millis(50)).await;
        assert!(ended.borrow().is_none(), "it waits");
        rustix::net::shutdown(&*socket, rustix::net::Shutdown::Both).unwrap();
        until::<B>("it to end", || ended.borrow().is_some()).await;
        let (received, buffer) = ended.take().unwrap();
        assert_eq!(received.unwrap(), 0);
        let broken = B::socket(broken).unwrap();
        SockRef::from(&breaker).set_linger(Some(Duration::ZERO)).unwrap();
        drop(breaker);
        let error = receive_some(&broken, buffer).await.0.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    })
    .unwrap();
}

/// Open descriptors of this process that lead to the same socket as `fd` did.
fn descriptors_of(link: &std::path::Path) -> usize {
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    open.filter(|entry| {
        std::fs::read_link(entry.as_ref().unwrap().path()).is_ok_and(|target| target == link)
    })
    .count()
}

/// The last reference to a socket whose waits have ended closes it.
fn a_closed_connection_leaves_no_descriptor<B: Backend>() {
    B::run(&Tuning::default(), async {
        for peer_first in [true, false] {
            let (socket, client) = pair();
            let path = format!("/proc/self/fd/{}", socket.as_raw_fd());
            let link = std::fs::read_link(path).unwrap();
            let socket = Rc::new(B::socket(socket).unwrap());
            assert_eq!(descriptors_of(&link), 1);
            let (reader, ended) = (socket.clone(), Rc::new(Cell::new(false)));
            let has_ended = ended.clone();
            B::spawn_local(async move {
                assert_eq!(wait_and_read(&*reader).await.unwrap(), b"");
                has_ended.set(true);
            });
            B::sleep(Duration::from_millis(10)).await;
            if peer_first {
                client.shutdown(Shutdown::Both).unwrap();
            } else {
                rustix::net::shutdown(&*socket, rustix::net::Shutdown::Both).unwrap();
            }
            drop(socket);
            until::<B>("its reader to end", || ended.get()).await;
            until::<B>("its descriptor to be closed", || descriptors_of(&link) == 0).await;
            drop(client);
        }
    })
    .unwrap();
}

/// More than any ring holds at once: each wait ends when its own byte comes, and each gets an answer.
fn two_thousand_sockets_wait_at_once<B: Backend>() {
    const SOCKETS: usize = 2_000;
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: files.maximum, ..files };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    let (listener, address) = listen();
    let (sockets, clients): (Vec<_>, Vec<_>) = (0..SOCKETS)
        .map(|_| {
            let client = TcpStream::connect(address).unwrap();
            (accept_waiting(&listener), client)
        })
        .unzip();
    let talker = B::run(&Tuning::default(), async move {
        let (ready, is_ready) = flume::bounded::<()>(1);
        let talker = std::thread::spawn(move || {
            is_ready.recv().unwrap();
            for (n, mut client) in clients.iter().enumerate() {
                client.write_all(&n.to_le_bytes()).unwrap();
            }
            for (n, mut client) in clients.iter().enumerate() {
                let mut answer = [0; 10];
                client.set_read_timeout(Some(PATIENCE)).unwrap();
                client.read_exact(&mut answer).unwrap();
                assert_eq!(answer[2..], n.to_le_bytes());
            }
        });
        let done = Rc::new(Cell::new(0));
        for (n, socket) in sockets.into_iter().enumerate() {
            let done = done.clone();
            B::spawn_local(async move {
                let socket = B::socket(socket).unwrap();
                assert_eq!(wait_and_read(&socket).await.unwrap(), n.to_le_bytes());
                let mut batch = Box::<Batch>::default();
                batch.push_small(Opcode::Binary, &n.to_le_bytes());
                assert_eq!(socket.send(batch).await.0.unwrap(), 10);
                done.set(done.get() + 1);
            });
        }
        B::sleep(Duration::from_millis(50)).await;
        ready.send(()).unwrap();
        until::<B>("all to be answered", || done.get() == SOCKETS).await;
        talker
    })
    .unwrap();
    talker.join().unwrap();
}

fn a_listener_wakes_for_each_connection_and_for_its_stop<B: Backend>() {
    let (listener, address) = listen();
    B::run(&Tuning::default(), async move {
        let listener = Rc::new(B::socket(listener).unwrap());
        let (accepted, stopped) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
        let (count, has_stopped, shared) = (accepted.clone(), stopped.clone(), listener.clone());
        B::spawn_local(async move {
            loop {
                shared.readable().await.unwrap();
                match shared.try_read(|fd| Ok(accept_with(fd, SocketFlags::CLOEXEC)?)) {
                    Ok(_) => count.set(count.get() + 1),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => break has_stopped.set(true),
                }
            }
        });
        for n in 0..5 {
            B::sleep(Duration::from_millis(5)).await;
            assert_eq!(accepted.get(), n);
            let _client = TcpStream::connect(address).unwrap();
            until::<B>("it to be accepted", || accepted.get() == n + 1).await;
        }
        listener::stop(&*listener);
        until::<B>("the listener to stop", || stopped.get()).await;
    })
    .unwrap();
}

/// glommio's poll asks for urgent data too, which ordinary reads pass by.
fn an_urgent_byte_keeps_nobody_busy<B: Backend>() {
    let (socket, client) = pair();
    B::run(&Tuning::default(), async move {
        let socket = Rc::new(B::socket(socket).unwrap());
        let (seen, reader) = (Rc::new(RefCell::new(Vec::new())), socket.clone());
        let (bytes, ended) = (seen.clone(), Rc::new(Cell::new(false)));
        let has_ended = ended.clone();
        B::spawn_local(async move {
            loop {
                match wait_and_read(&*reader).await.unwrap() {
                    more if more.is_empty() => break has_ended.set(true),
                    more => bytes.borrow_mut().extend(more),
                }
            }
        });
        send(&client, b"before", SendFlags::empty()).unwrap();
        send(&client, b"!", SendFlags::OOB).unwrap();
        let (from, used) = (Instant::now(), cpu_time());
        B::sleep(Duration::from_millis(400)).await;
        let (passed, used) = (from.elapsed(), cpu_time().saturating_sub(used));
        assert!(used < passed / 4, "busy for {used:?} of {passed:?} with nothing to do");
        send(&client, b"after", SendFlags::empty()).unwrap();
        drop(client);
        until::<B>("the reader to end", || ended.get()).await;
        assert_eq!(*seen.borrow(), b"beforeafter");
    })
    .unwrap();
}

fn cpu_time() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap()
}

fn a_task_that_breathes_lets_the_others_in<B: Backend>() {
    let (socket, mut client) = pair();
    B::run(&Tuning::default(), async move {
        let socket = B::socket(socket).unwrap();
        let came = Rc::new(Cell::new(false));
        let has_come = came.clone();
        B::spawn_local(async move {
            assert_eq!(wait_and_read(&socket).await.unwrap(), b"in");
            has_come.set(true);
        });
        B::breathe().await;
        let talker = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            client.write_all(b"in").unwrap();
            client
        });
        let end = Instant::now() + PATIENCE;
        while !came.get() {
            assert!(Instant::now() < end, "it never came in");
            B::breathe().await;
        }
        talker.join().unwrap();
    })
    .unwrap();
}

fn other_threads_wake_the_shard<B: Backend>() {
    const MESSAGES: usize = 300;
    let (address, mailbox) = bus::open(1);
    let sender = std::thread::spawn(move || {
        for n in 0..MESSAGES {
            address.send(FromThread::Shutdown).unwrap();
            if n % 3 == 0 {
                // Long enough for it to fall asleep.
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
    B::run(&Tuning::default(), async {
        let mut received = 0;
        while received < MESSAGES {
            mailbox.wait().await;
            while mailbox.from_threads().is_some() {
                received += 1;
            }
        }
    })
    .unwrap();
    sender.join().unwrap();
}

fn the_panic_of_a_task_is_told<B: Backend>() {
    let (_address, mailbox) = bus::open(1);
    let told = Rc::new(RefCell::new(Vec::new()));
    let tells = told.clone();
    let run = || {
        B::run(&Tuning::default(), async move {
            let mailbox = Rc::new(mailbox);
            for panics in [false, true] {
                let (told, wakes) = (tells.clone(), mailbox.clone());
                let task = async move { assert!(!panics, "as it should") };
                B::spawn_local(watched(task, move || {
                    told.borrow_mut().push(panics);
                    wakes.nudge();
                }));
            }
            mailbox.wait().await;
        })
    };
    // glommio lets the panic end the thread, which is as well.
    let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
    assert!(!matches!(ran, Ok(Err(_))), "the backend starts");
    assert_eq!(*told.borrow(), [true]);
}
