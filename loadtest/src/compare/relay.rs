//! A contender's process: started in a data directory of its own, stopped with everything it started.

use super::plan::{Known, Plan, Relay};
use crate::client::{Connection, Target};
use anyhow::{Context, bail, ensure};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use rustix::thread::{CpuSet, sched_setaffinity};
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const LOG: &str = "relay.log";
const LOG_LINES_SHOWN: usize = 5;
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// It leads a process group of its own; dropped, the group is ended, and the directory removed.
pub struct Running {
    child: Child,
    pub url: String,
    data: tempfile::TempDir,
    stop_max: Duration,
}

impl Running {
    /// Starts it on these CPUs and waits until it answers a WebSocket handshake.
    ///
    /// # Errors
    /// A program that is not there, that ends, or that does not answer in time; with the last lines of its log.
    pub fn start(
        plan: &Plan,
        cpus: &[usize],
        relay: &Relay,
        known: &Known,
        root: &Path,
    ) -> anyhow::Result<Self> {
        let data = tempfile::tempdir_in(root)?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let mut known = known.clone();
        known.set("port", port.to_string());
        known.set("data", data.path().display().to_string());
        for (name, text) in &relay.files {
            let path = data.path().join(name);
            fs::create_dir_all(path.parent().context("a file has a directory")?)?;
            fs::write(path, known.fill(text)?)?;
        }
        let words = relay
            .command
            .iter()
            .map(|word| known.fill(word))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let environment = relay.environment.iter();
        let environment = environment
            .map(|(name, value)| Ok((name, known.fill(value)?)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let log = File::create(data.path().join(LOG))?;
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .current_dir(data.path())
            .envs(environment)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        let child =
            spawn_on(cpus, &mut command).with_context(|| format!("{} does not start", words[0]))?;
        let (url, stop_max) = (known.fill(&relay.url)?, Duration::from_secs(plan.stop_s_max));
        let mut running = Self { child, url, data, stop_max };
        running.answers(Duration::from_secs(plan.ready_s_max)).with_context(|| running.log())?;
        Ok(running)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn answers(&mut self, patience: Duration) -> anyhow::Result<()> {
        let target = Target::resolve(&self.url, false, Duration::from_secs(1), 1)?;
        let deadline = Instant::now() + patience;
        loop {
            match Connection::open(&target, 0) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() >= deadline => {
                    return Err(error.context(format!("not ready within {patience:?}")));
                }
                Err(_) => {}
            }
            ensure!(!self.has_ended()?, "it ended before it was ready");
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// Without reaping it: until then its process group is its own.
    fn has_ended(&self) -> anyhow::Result<bool> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        Ok(waitid(WaitId::Pid(self.group()?), options)?.is_some())
    }

    fn group(&self) -> anyhow::Result<Pid> {
        Pid::from_raw(self.child.id().try_into()?).context("a child has a pid")
    }

    /// The end of what it wrote.
    pub fn log(&self) -> String {
        let log = fs::read_to_string(self.data.path().join(LOG)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        let group = self.group()?;
        if !self.has_ended()? {
            kill_process_group(group, Signal::TERM)?;
        }
        let deadline = Instant::now() + self.stop_max;
        while !self.has_ended()? && Instant::now() < deadline {
            thread::sleep(LOOK_AGAIN);
        }
        // Whoever is left of the group, its leader too if it would not stop.
        match kill_process_group(group, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH | Errno::PERM) => {}
            Err(error) => bail!(error),
        }
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("compare: process {} was not stopped: {error:#}", self.child.id());
        }
    }
}

/// Starts a process that may use these CPUs only, and so may whatever it starts.
///
/// # Errors
/// No such CPU, no such program.
pub fn spawn_on(cpus: &[usize], command: &mut Command) -> anyhow::Result<Child> {
    let mut set = CpuSet::new();
    for &cpu in cpus {
        ensure!(cpu < CpuSet::MAX_CPU, "CPU {cpu}: no such CPU");
        set.set(cpu);
    }
    // A child has the affinity of the thread that starts it.
    thread::scope(|scope| {
        let spawn = || -> anyhow::Result<Child> {
            sched_setaffinity(None, &set).with_context(|| format!("CPUs {cpus:?}"))?;
            Ok(command.spawn()?)
        };
        scope.spawn(spawn).join().expect("it does not panic")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        let text = "rounds = 1\nevents = 1\nserver_cpus = [0]\ngenerator_cpus = [0]\nready_s_max = 1\nstop_s_max = 1\n\
            relay = []\nrun = []\n";
        toml::from_str(text).unwrap()
    }

    fn relay(script: &str) -> Relay {
        let quoted = toml::Value::String(script.to_owned());
        let text = format!(
            "name = \"x\"\ncommand = [\"sh\", \"-c\", {quoted}]\ndurability = \"none\"\nfiles = {{ \"a/b\" = \"{{port}}\" }}\n"
        );
        toml::from_str(&text).unwrap()
    }

    fn alive(pid: &str) -> bool {
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !state.is_empty() && !state.contains(") Z")
    }

    #[test]
    fn what_never_answers_is_an_error_with_its_last_words_and_leaves_nobody_behind() {
        let root = tempfile::tempdir().unwrap();
        let pids = root.path().join("pids");
        // It and its child ignore SIGTERM, so only SIGKILL of the whole group ends them.
        let script = format!(
            "trap '' TERM; cat a/b; echo; grep Cpus_allowed_list /proc/self/status; sleep 60 & echo $! $$ > {}; wait",
            pids.display()
        );
        let error = Running::start(&plan(), &[0], &relay(&script), &Known::default(), root.path());
        let error = format!("{:#}", error.err().unwrap());
        assert!(
            error.contains("not ready within") && error.contains("Cpus_allowed_list:\t0"),
            "{error}"
        );
        let pids = fs::read_to_string(pids).unwrap();
        for pid in pids.split_whitespace() {
            // The child is not ours to wait for, and dies when the kernel has its turn for it.
            let deadline = Instant::now() + Duration::from_secs(5);
            while alive(pid) && Instant::now() < deadline {
                thread::sleep(LOOK_AGAIN);
            }
            assert!(!alive(pid), "{pid} is alive");
        }
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "the data directory is gone");
    }

    #[test]
    fn what_ends_at_once_is_not_waited_for() {
        let root = tempfile::tempdir().unwrap();
        let error = Running::start(
            &plan(),
            &[0],
            &relay("echo no config; exit 1"),
            &Known::default(),
            root.path(),
        );
        let error = format!("{:#}", error.err().unwrap());
        assert!(error.contains("ended before") && error.contains("no config"), "{error}");
        let mut missing = relay("");
        missing.command = vec!["/no/such/program".into()];
        assert!(Running::start(&plan(), &[0], &missing, &Known::default(), root.path()).is_err());
    }
}
