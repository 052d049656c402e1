//! `--admin`: what rheostr itself counts, against what arrived. The relay is the real one, in a process of its own.

use super::{Run, assert_caught, assert_kept, generate};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;

const DATA: &str = "RHEOSTR_TEST_DATA";

/// The process that [`Relay::start`] starts.
#[test]
#[ignore = "a relay, which the_relay_counts_what_arrived and a_relay_that_counts_one_too_many_is_caught start"]
fn rheostr() {
    let Ok(data) = std::env::var(DATA) else { return };
    let words = "rheostr --listen 127.0.0.1:0 --shards 2 --set admin.listen=127.0.0.1:0 --data";
    assert_eq!(rheostr::cli::run(words.split(' ').chain([data.as_str()])), ExitCode::SUCCESS);
}

struct Relay {
    process: Child,
    url: String,
    admin: SocketAddr,
    _data: tempfile::TempDir,
}

impl Relay {
    fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "admin::rheostr", "--ignored", "--nocapture"])
            .env(DATA, data.path().join("db"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let after = |output: Box<dyn Read + Send>, mark: &str| {
            let mut lines = BufReader::new(output).lines().map_while(Result::ok);
            let line = lines.find(|line| line.contains(mark)).expect("it starts");
            // What it says from now on nobody reads, and it must not wait for that.
            thread::spawn(move || lines.for_each(drop));
            let rest = &line[line.find(mark).unwrap() + mark.len()..];
            rest.split(' ').next().unwrap().to_owned()
        };
        let admin = after(Box::new(process.stderr.take().unwrap()), "metrics are served address=");
        let url = after(Box::new(process.stdout.take().unwrap()), "rheostr ready ");
        Self { process, url, admin: admin.parse().unwrap(), _data: data }
    }

    fn run(&self, arguments: &str, admin: SocketAddr) -> Run {
        generate(&format!("{arguments} --url {} --admin {admin} --json", self.url))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// Tells what the metrics at `admin` say, with `line` counted one too high once it is above 0.
fn one_too_many(admin: SocketAddr, line: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut asker in listener.incoming().flatten() {
            let mut request = [0; 1000];
            let length = asker.read(&mut request).unwrap();
            let mut relay = TcpStream::connect(admin).unwrap();
            relay.write_all(&request[..length]).unwrap();
            let mut text = String::new();
            relay.read_to_string(&mut text).unwrap();
            let wrong = |told: &str| match told.strip_prefix(line).map(|rest| rest.trim().parse()) {
                Some(Ok(count @ 1..)) => format!("{line} {}\n", count + 1_u64),
                _ => told.to_owned(),
            };
            let text: String = text.split_inclusive('\n').map(wrong).collect();
            asker.write_all(text.as_bytes()).unwrap();
        }
    });
    address
}

#[test]
fn the_relay_counts_what_arrived() {
    let relay = Relay::start();
    let mixed = "mixed --duration-s 1 --rate 150 --followers 8 --query-rate 40";
    for arguments in [mixed, "fanout --events 60 --rate 200 --subscribers 7"] {
        let run = relay.run(arguments, relay.admin);
        assert_kept(&run);
        let (detail, counts) = (&run.report["detail"], &run.report["detail"]["relay_counts"]);
        assert!(detail["deliveries"].as_u64() > Some(0), "{detail}");
        let count = |name: &str| counts[name].as_u64().unwrap();
        assert_eq!(
            count("received"),
            count("delivered_live") + count("delivered_stored"),
            "{counts}"
        );
        assert_eq!(count("matched"), count("delivered_live"), "{counts}");
        if arguments == mixed {
            assert!(count("delivered_stored") > 0, "{counts}");
        } else {
            // There live events go to followers only, and not to queries that are about to end too.
            assert_eq!(counts["delivered_live"], detail["deliveries"], "{counts}");
        }
        assert!(detail["relay_tuning"].is_object(), "{detail}");
    }
}

#[test]
fn a_relay_that_counts_one_too_many_is_caught() {
    for (line, caught) in [
        ("relay_delivered_total{shard=\"0\",source=\"live\"}", "relay_counts_otherwise"),
        ("relay_live_matched_total{shard=\"0\"}", "relay_lost_count"),
    ] {
        let relay = Relay::start();
        let admin = one_too_many(relay.admin, line);
        let run = relay.run("fanout --events 40 --rate 200 --subscribers 12", admin);
        assert_caught(&run, caught);
    }
}
