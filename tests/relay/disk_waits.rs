//! Shards never wait for a disk: beside a walk over a store that is not in memory, and as much ingest as
//! there can be, they take no major fault, move no byte of a file and call nothing that names or holds one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::fs::{Advice, fadvise, statfs};

use crate::support::server::rheostr;
use crate::support::{Author, Draft, Event, Filter, Launch, Server, alone, now, wait_until};

const STORED: u64 = 6_000;
const PUBLISHED: u64 = 900;
/// One of them must be without a wait.
const ROUNDS: usize = 3;
/// Events of one query.
const PAGE: u64 = 2_000;
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// Calls that may wait for a disk. Those that also serve sockets are told apart by their descriptor.
const CALLS: &str = "trace=%file,read,readv,pread64,preadv,preadv2,write,writev,pwrite64,pwritev,\
    pwritev2,lseek,fsync,fdatasync,sync,syncfs,sync_file_range,msync,fallocate,ftruncate,fadvise64,\
    readahead,sendfile,splice,copy_file_range,getdents64,flock,fcntl,fstat";

fn shards_wait_for_no_disk(backend: &str) {
    let _alone = alone();
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let data = dir.path().join("data");
    let oldest = now() - 2 * STORED;
    store(&data, oldest);
    let in_memory = statfs(&data).unwrap().f_type == TMPFS_MAGIC;
    let server = Launch::default().backend(backend).shards(2).data(&data).start();
    let author = Author::new(1);
    let notes: Vec<_> = (0..PUBLISHED).map(|n| author.note(now(), &n.to_string())).collect();
    let (mut publisher, mut reader) = (server.connect(), server.connect());
    let traced = dir.path().join("traced");
    let tracer = trace(&server, &traced);

    // A page of the program itself may have to be read, once.
    let mut left_memory = in_memory;
    let mut rounds = notes.chunks(notes.len() / ROUNDS);
    let calm = rounds.any(|notes| {
        evict(&data);
        let before = threads(&server);
        publisher.send_all(notes.iter().map(Event::message));
        let mut until = oldest + STORED;
        while until > oldest {
            let page = reader.query(&[Filter::default().until(until).limit(PAGE)]);
            assert_eq!(page.len() as u64, PAGE);
            until -= PAGE;
        }
        notes.iter().for_each(|note| assert!(publisher.wait_ok(&note.id).0));
        let after = threads(&server);
        let spent = |name: &str| -> Vec<Waits> {
            let named = after.iter().filter(|((known, _), _)| known.starts_with(name));
            // glommio's helpers are called as the shard that began them, and come after it.
            let first: BTreeMap<&str, _> =
                named.rev().map(|(key, waits)| (key.0.as_str(), (key, waits))).collect();
            first.into_values().map(|(key, waits)| waits.since(before.get(key))).collect()
        };
        let (shards, readers) = (spent("shard-"), spent("reader-"));
        eprintln!("shards {shards:?}, readers {readers:?}");
        assert_eq!(shards.len(), 2);
        left_memory |= readers.iter().any(|waits| waits.major_faults > 0);
        shards.iter().all(|waits| *waits == Waits::default())
    });
    assert!(left_memory, "nothing had to be read");
    assert!(calm, "the shards waited in each of {ROUNDS} rounds");
    assert!(server.stop().success());
    if let Some(mut tracer) = tracer {
        assert!(tracer.wait().unwrap().success());
        let text = std::fs::read_to_string(&traced).unwrap();
        let calls: Vec<_> = text.lines().filter(|line| is_of_a_file(line)).collect();
        assert!(calls.is_empty(), "{calls:#?}");
    }
}
on_every_backend!(shards_wait_for_no_disk);

/// Makes a store of unsigned notes, a second apart.
fn store(data: &Path, oldest: u64) {
    let file = data.with_extension("jsonl");
    let mut lines = File::create(&file).unwrap();
    let text = "x".repeat(6_000);
    let pubkey = Author::new(2).hex();
    for n in 0..STORED {
        let note = Draft::new(1, oldest + n).content(format!("{n} {text}")).unsigned(&pubkey);
        writeln!(lines, "{}", note.json()).unwrap();
    }
    let imported = rheostr(["import", "--no-verify", file.to_str().unwrap()], data);
    assert!(imported.status.success(), "{imported:?}");
}

/// Has the page cache forget the store; what is mapped at the moment stays.
fn evict(data: &Path) {
    let file = File::open(data.join("data.mdb")).unwrap();
    file.sync_all().unwrap();
    fadvise(&file, 0, None, Advice::DontNeed).unwrap();
}

/// What a thread has waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Waits {
    major_faults: u64,
    /// Bytes of files, not of the page cache.
    read: u64,
    written: u64,
}

impl Waits {
    fn since(self, before: Option<&Self>) -> Self {
        let before = before.copied().unwrap_or_default();
        Self {
            major_faults: self.major_faults - before.major_faults,
            read: self.read - before.read,
            written: self.written - before.written,
        }
    }
}

/// Of all threads of the relay, by name and number.
fn threads(server: &Server) -> BTreeMap<(String, u32), Waits> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.id())).unwrap();
    let ids = tasks.map(|task| task.unwrap().file_name().to_str().unwrap().parse().unwrap());
    ids.map(|id: u32| {
        let of = |name: &str| {
            std::fs::read_to_string(format!("/proc/{}/task/{id}/{name}", server.id())).unwrap()
        };
        let io = of("io");
        let bytes = |name: &str| {
            let line = io.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().parse().unwrap()
        };
        let stat = of("stat");
        let (_, fields) = stat.rsplit_once(')').unwrap();
        // majflt is the 12th field of all, and the 10th behind the name.
        let major_faults = fields.split_whitespace().nth(9).unwrap().parse().unwrap();
        let waits =
            Waits { major_faults, read: bytes("read_bytes:"), written: bytes("write_bytes:") };
        ((of("comm").trim().to_owned(), id), waits)
    })
    .collect()
}

/// Writes what the shards call to `file`, where strace is installed and allowed to.
fn trace(server: &Server, file: &Path) -> Option<Child> {
    let named = threads(server).into_keys().rev().filter(|(name, _)| name.starts_with("shard-"));
    let shards: Vec<u32> = named.collect::<BTreeMap<_, _>>().into_values().collect();
    let mut command = Command::new("strace");
    command.args(["-qq", "-y", "-e", CALLS, "-o"]).arg(file).stderr(Stdio::null());
    shards.iter().for_each(|id| {
        command.args(["-p", &id.to_string()]);
    });
    let Ok(mut child) = command.spawn() else {
        eprintln!("SKIPPED: no strace to look at the shards' calls with");
        return None;
    };
    let traced = |id: &u32| {
        let status = std::fs::read_to_string(format!("/proc/{}/task/{id}/status", server.id()));
        !status.unwrap().contains("TracerPid:\t0\n")
    };
    wait_until("strace", || shards.iter().all(traced) || child.try_wait().unwrap().is_some());
    if child.try_wait().unwrap().is_some() {
        eprintln!("SKIPPED: strace may not attach");
        return None;
    }
    Some(child)
}

/// Whether a line of strace is about a file: not a socket, nor what wakes a thread. The second half of a
/// call that another thread's cut in two tells nothing new.
fn is_of_a_file(line: &str) -> bool {
    const OTHERS: [&str; 3] = ["<socket:", "<anon_inode:", "<pipe:"];
    let descriptor = line
        .split_once('(')
        .map_or("", |(_, arguments)| arguments.split([',', ')']).next().expect("one at least"));
    let tcp = descriptor.contains("<TCP");
    let is_call = !line.contains(" resumed>") && !line.contains(" --- ");
    is_call && !tcp && !OTHERS.iter().any(|other| descriptor.contains(other))
}
