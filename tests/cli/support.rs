//! Running the binary, signing events.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use secp256k1::{Keypair, SecretKey};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The binary, free of what the environment may ask of it.
pub fn rheostr() -> Command {
    Command::new(env!("CARGO_BIN_EXE_rheostr"))
}

/// What a command did.
pub struct Done {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// Runs the binary to its end with `input` on standard input.
pub fn run_with(input: &str, arguments: &[&str]) -> Done {
    let mut child = rheostr()
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let feeder = std::thread::spawn(move || {
        // A command that fails early does not read it.
        let _ = stdin.write_all(input.as_bytes());
    });
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    Done {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs the binary to its end.
pub fn run(arguments: &[&str]) -> Done {
    run_with("", arguments)
}

/// As [`run`], and it must do well; answers its standard output.
pub fn ok(arguments: &[&str]) -> String {
    ok_with("", arguments)
}

/// As [`run_with`], and it must do well; answers its standard output.
pub fn ok_with(input: &str, arguments: &[&str]) -> String {
    let done = run_with(input, arguments);
    assert_eq!(done.code, 0, "{arguments:?}: {}", done.err);
    done.out
}

/// A directory that goes with the value.
pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("rheostr-cli-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The path of a file in it, as text.
    pub fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A signed event: author number, `created_at`, kind, tags, content.
pub fn event(author: u8, created_at: u64, kind: u16, tags: Value, content: &str) -> Value {
    let secret = SecretKey::from_secret_bytes([author; 32]).unwrap();
    let keys = Keypair::from_secret_key(&secret);
    let pubkey = hex(&keys.x_only_public_key().0.to_byte_array());
    let canonical = json!([0, pubkey, created_at, kind, tags, content]).to_string();
    let id: [u8; 32] = Sha256::digest(canonical.as_bytes()).into();
    let sig = secp256k1::schnorr::sign_no_aux_rand(&id, &keys);
    json!({
        "id": hex(&id), "pubkey": pubkey, "created_at": created_at, "kind": kind, "tags": tags,
        "content": content, "sig": hex(&sig.to_byte_array()),
    })
}

/// A note of author 1.
pub fn note(created_at: u64, content: &str) -> Value {
    event(1, created_at, 1, json!([]), content)
}

pub fn hex(bytes: &[u8]) -> String {
    faster_hex::hex_string(bytes)
}

/// JSON lines.
pub fn lines(events: &[Value]) -> String {
    events.iter().map(|event| format!("{event}\n")).collect()
}

/// Where real events are: `$RHEOSTR_CORPUS`, or a place beside the checkout.
pub fn corpus_path() -> Option<String> {
    let path = std::env::var("RHEOSTR_CORPUS").unwrap_or_else(|_| {
        concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/corpus/real-events.jsonl").to_owned()
    });
    if Path::new(&path).is_file() {
        return Some(path);
    }
    eprintln!("SKIPPED: no corpus at {path}; set RHEOSTR_CORPUS to a JSONL file of real events");
    None
}

/// The ids of JSON lines.
pub fn ids(lines: &str) -> Vec<String> {
    lines.lines().map(|line| id_of(&serde_json::from_str(line).unwrap())).collect()
}

pub fn id_of(event: &Value) -> String {
    event["id"].as_str().unwrap().to_owned()
}

/// Newest first, lowest id first on a tie (NIP-01).
pub fn newest_first(events: &[Value]) -> Vec<String> {
    let mut keys: Vec<_> = events
        .iter()
        .map(|event| (std::cmp::Reverse(event["created_at"].as_u64().unwrap()), id_of(event)))
        .collect();
    keys.sort();
    keys.into_iter().map(|(_, id)| id).collect()
}

/// A relay that runs; killed with the value.
pub struct Relay {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
    /// The ready line.
    pub ready: String,
    /// `ADDR:PORT`.
    pub address: String,
}

impl Relay {
    /// Starts a relay on `data`, on a free port and without metrics unless `more` says otherwise.
    pub fn start(data: &str, more: &[&str]) -> Self {
        let backend = std::env::var("RHEOSTR_TEST_BACKEND").unwrap_or_else(|_| "epoll".into());
        let mut child = rheostr()
            .args(["relay", "--data", data, "--listen", "127.0.0.1:0"])
            .args(["--set", "shards=1", "--set", "admin.listen="])
            .args(["--set", &format!("backend={backend}")])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut ready = String::new();
        stdout.read_line(&mut ready).unwrap();
        let address =
            ready.split(' ').nth(2).and_then(|url| url.strip_prefix("ws://")).map(str::to_owned);
        let Some(address) = address else {
            // It may be running all the same, and its standard error open.
            let _ = child.kill();
            let mut err = String::new();
            child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
            panic!("no ready line but {ready:?}: {err}");
        };
        Self { child, stdout, ready: ready.trim_end().to_owned(), address }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self) {
        let pid = rustix::process::Pid::from_raw(self.pid().cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    /// Waits for the end: exit code, the rest of standard output, standard error.
    pub fn wait(mut self) -> Done {
        let deadline = Instant::now() + Duration::from_secs(20);
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "the relay does not end");
            std::thread::sleep(Duration::from_millis(10));
        };
        let (mut out, mut err) = (String::new(), String::new());
        self.stdout.read_to_string(&mut out).unwrap();
        self.child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        Done { code: status.code().unwrap_or(-1), out, err }
    }

    /// SIGTERM, then as [`Relay::wait`].
    pub fn stop(self) -> Done {
        self.signal();
        self.wait()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An HTTP GET; answers the whole response.
pub fn get(address: &str, path: &str, fields: &str) -> String {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\n{fields}\r\n").unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response
}
