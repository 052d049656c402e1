//! The real binary as a child process: started, watched, and gone when the test is, however it ends.
#![allow(unsafe_code)]

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::raw::Raw;
use super::{Client, Counts, PATIENCE, wait_until};

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_rheostr");

/// How to start a relay.
#[derive(Clone, Debug)]
pub struct Launch {
    shards: usize,
    backend: String,
    listen: String,
    data: Option<PathBuf>,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    refuse_io_uring: bool,
}

/// Why a relay did not get ready.
#[derive(Debug)]
pub struct NotReady {
    /// `None` when it had to be killed.
    pub status: Option<ExitStatus>,
    pub stdout: String,
    pub stderr: String,
}

impl Default for Launch {
    fn default() -> Self {
        Self {
            shards: 1,
            backend: backend_of_the_run(),
            listen: "127.0.0.1:0".into(),
            data: None,
            arguments: Vec::new(),
            environment: Vec::new(),
            refuse_io_uring: false,
        }
    }
}

/// What relays run on where a test does not choose: `RHEOSTR_TEST_BACKEND`, so that `tests/run` can have
/// the same tests on each.
fn backend_of_the_run() -> String {
    std::env::var("RHEOSTR_TEST_BACKEND").unwrap_or_else(|_| "auto".into())
}

/// `--set tuning.receive=…` where `RHEOSTR_TEST_RECEIVE` says so.
fn receive_of_the_run() -> Vec<String> {
    let receive = std::env::var("RHEOSTR_TEST_RECEIVE").ok();
    receive.map_or_else(Vec::new, |how| vec!["--set".into(), format!("tuning.receive={how}")])
}

impl Launch {
    pub fn shards(mut self, shards: usize) -> Self {
        self.shards = shards;
        self
    }

    pub fn backend(mut self, backend: &str) -> Self {
        self.backend = backend.into();
        self
    }

    pub fn listen(mut self, address: impl ToString) -> Self {
        self.listen = address.to_string();
        self
    }

    /// Keeps the data here; a directory of its own, removed afterwards, otherwise.
    pub fn data(mut self, path: &Path) -> Self {
        self.data = Some(path.into());
        self
    }

    /// Serves its counts, for [`Server::counts`].
    pub fn counted(self) -> Self {
        self.set("admin.listen", "127.0.0.1:0")
    }

    /// A flag with its value.
    pub fn flag(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.arguments.extend([name.into(), value.into()]);
        self
    }

    /// `--set key=value`.
    pub fn set(mut self, key: &str, value: impl std::fmt::Display) -> Self {
        self.arguments.extend(["--set".into(), format!("{key}={value}").into()]);
        self
    }

    pub fn environment(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Runs the relay where io_uring's system calls fail with EPERM, as container runtimes make them.
    pub fn refuse_io_uring(mut self) -> Self {
        self.refuse_io_uring = true;
        self
    }

    /// Starts a relay and waits for its ready line.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start(self) -> Server {
        self.try_start().unwrap_or_else(|error| panic!("the relay did not start: {error:#?}"))
    }

    /// Starts a relay, or says why it did not get ready.
    pub fn try_start(self) -> Result<Server, Box<NotReady>> {
        let dir = tempfile::Builder::new().prefix("rheostr-").tempdir().expect("a directory");
        let data = self.data.clone().unwrap_or_else(|| dir.path().join("data"));
        let stderr = dir.path().join("stderr");
        let mut command = Command::new(PROGRAM);
        command
            .args(["relay", "--listen", &self.listen, "--backend", &self.backend])
            .arg("--shards")
            .arg(self.shards.to_string())
            .arg("--data")
            .arg(&data)
            .args(["--set", "admin.listen="])
            .args(receive_of_the_run())
            .args(&self.arguments)
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&stderr).expect("a file in a new directory"));
        die_with_the_test(&mut command);
        if self.refuse_io_uring {
            refuse_io_uring(&mut command);
        }
        let mut child = command.spawn().expect("the binary was built");
        let lines = follow(&mut child);
        let mut stdout = Vec::new();
        let end = Instant::now() + PATIENCE;
        let ready = loop {
            match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) if line.starts_with("rheostr ready ") => break Some(line),
                Ok(line) => stdout.push(line),
                Err(_) => break None,
            }
        };
        let lines = Mutex::new(lines);
        let mut server = Server { child, data, ready: String::new(), lines, stderr, _dir: dir };
        let Some(ready) = ready else {
            let status = server.wait(Duration::from_secs(2));
            return Err(Box::new(NotReady {
                status,
                stdout: stdout.join("\n"),
                stderr: server.stderr(),
            }));
        };
        assert_eq!(stdout, [""; 0], "stdout before the ready line");
        server.ready = ready;
        Ok(server)
    }
}

/// The kernel kills the child if the thread that started it is gone: a test that is killed itself
/// leaves nothing behind.
fn die_with_the_test(command: &mut Command) {
    let ask = || {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        Ok(())
    };
    // SAFETY: between fork and exec only one prctl is called, which is async-signal-safe.
    unsafe { command.pre_exec(ask) };
}

fn refuse_io_uring(command: &mut Command) {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
    let calls = [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];
    let filter = SeccompFilter::new(
        calls.map(|call| (call, Vec::new())).into(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM.cast_unsigned()),
        std::env::consts::ARCH.try_into().expect("an architecture seccomp knows"),
    )
    .expect("a filter");
    let program: BpfProgram = filter.try_into().expect("a short program");
    // SAFETY: applying a finished filter makes two system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            seccompiler::apply_filter(&program).map_err(|_| std::io::ErrorKind::Other.into())
        });
    }
}

fn follow(child: &mut Child) -> Receiver<String> {
    let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in stdout.lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// A running relay; killed when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    pub data: PathBuf,
    /// The ready line.
    pub ready: String,
    lines: Mutex<Receiver<String>>,
    stderr: PathBuf,
    _dir: TempDir,
}

impl Server {
    /// Where it listens, as its ready line says.
    pub fn address(&self) -> SocketAddr {
        let url = self.ready.split(' ').nth(2).expect("a URL");
        url.strip_prefix("ws://").expect("a ws:// URL").parse().expect("an address and a port")
    }

    pub fn url(&self) -> String {
        format!("ws://{}", self.address())
    }

    /// A value of the ready line, such as `backend`.
    pub fn said(&self, name: &str) -> &str {
        let fields = self.ready.split(' ').filter_map(|field| field.split_once('='));
        fields.into_iter().find(|(key, _)| *key == name).expect("a field of the ready line").1
    }

    pub fn connect(&self) -> Client {
        Client::connect(self.address())
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to stderr so far.
    pub fn stderr(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Open file descriptors.
    pub fn descriptors(&self) -> usize {
        let path = format!("/proc/{}/fd", self.id());
        std::fs::read_dir(path).expect("the relay runs").count()
    }

    /// Memory of its own, in bytes: no mapped file is in it.
    pub fn memory_bytes(&self) -> usize {
        let path = format!("/proc/{}/status", self.id());
        let status = std::fs::read_to_string(path).expect("the relay runs");
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).expect("a size");
        kib.parse::<usize>().expect("a number") << 10
    }

    /// Time it has spent on processors, in hundredths of a second.
    pub fn processor_ticks(&self) -> u64 {
        let path = format!("/proc/{}/stat", self.id());
        let stat = std::fs::read_to_string(path).expect("the relay runs");
        let (_, fields) = stat.rsplit_once(") ").expect("a name in parentheses");
        let times = fields.split(' ').skip(11).take(2);
        times.map(|ticks| ticks.parse::<u64>().expect("a number")).sum()
    }

    /// What it has counted; see [`Launch::counted`].
    pub fn counts(&self) -> Counts {
        Counts::of_scrape(&self.scrape())
    }

    /// The text of a scrape; see [`Launch::counted`].
    pub fn scrape(&self) -> String {
        self.ask_admin("/metrics")
    }

    /// What the admin listener answers.
    pub fn ask_admin(&self, path: &str) -> String {
        let log = self.stderr();
        let line = log.lines().find(|line| line.contains("metrics are served"));
        let address = line.and_then(|line| line.split("address=").nth(1)).expect("it is counted");
        let mut raw = Raw::connect(address.trim().parse().expect("an address and a port"));
        let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        raw.send(head.as_bytes());
        String::from_utf8(raw.rest()).expect("text")
    }

    /// As [`counts`](Self::counts), once every live event that matched a subscription is accounted for:
    /// delivered, served by the stored query, or counted as abandoned.
    pub fn conserved(&self) -> Counts {
        wait_until("matched = delivered + suppressed + abandoned", || self.counts().waiting() == 0);
        self.counts()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, signal).expect("the relay is our child");
    }

    /// SIGTERM, and the exit status; stdout must have held the ready line and nothing else.
    pub fn stop(mut self) -> ExitStatus {
        self.signal(rustix::process::Signal::TERM);
        let status = self.wait(PATIENCE);
        let Some(status) = status else { panic!("SIGTERM did not end it:\n{}", self.stderr()) };
        let rest: Vec<_> =
            self.lines.get_mut().expect("nobody panicked with it").try_iter().collect();
        assert_eq!(rest, [""; 0], "stdout after the ready line");
        status
    }

    /// As [`stop`](Self::stop); the data directory outlives the relay under another path.
    pub fn stop_and_keep(self, kept: &Path) -> ExitStatus {
        let data = self.data.clone();
        self.signal(rustix::process::Signal::TERM);
        let mut server = self;
        let status = server.wait(PATIENCE).expect("SIGTERM ends it");
        std::fs::rename(data, kept).expect("both are on one file system");
        status
    }

    /// SIGKILL, and nothing of it is left.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// The exit status; `None`, and the process killed, when it takes too long.
    pub fn wait(&mut self, within: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + within;
        while Instant::now() < end {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.kill();
        None
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.stderr();
            let tail: Vec<_> = log.lines().rev().take(30).collect();
            for line in tail.iter().rev() {
                eprintln!("relay: {line}");
            }
        }
    }
}

/// Runs one command of the program to its end.
pub fn rheostr<'a>(arguments: impl IntoIterator<Item = &'a str>, data: &Path) -> Output {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).arg("--data").arg(data).stdin(Stdio::null());
    die_with_the_test(&mut command);
    command.output().expect("the binary was built")
}
