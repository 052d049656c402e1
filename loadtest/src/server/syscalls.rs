//! System calls of the server inside the measured window.
//!
//! `perf stat` counts tracepoints in the kernel, cheaply enough to leave the run's other figures usable (they are
//! still marked), and its control pipe opens and closes the count with the window. Where perf may not, `strace -c`
//! counts by stopping the server at every call: the counts hold, every time in that run is invalid, and the report
//! says so. Where neither works, the report says that instead of a number.

use crate::report::round;
use anyhow::{Context, bail, ensure};
use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const ALL: &str = "raw_syscalls:sys_enter";
/// What a relay spends its calls on; the difference to the total is reported as `other`.
const NAMES: &[&str] = &[
    "read",
    "write",
    "writev",
    "readv",
    "recvfrom",
    "recvmsg",
    "sendto",
    "sendmsg",
    "epoll_wait",
    "epoll_pwait",
    "epoll_ctl",
    "io_uring_enter",
    "futex",
    "fdatasync",
    "fsync",
    "msync",
    "pwrite64",
    "pwritev",
    "pread64",
    "accept4",
    "close",
    "clock_nanosleep",
];
const TOOL_PATIENCE: Duration = Duration::from_secs(10);

/// A count that runs beside the server.
pub struct SyscallCount {
    tool: Tool,
    child: Child,
    scratch: PathBuf,
}

enum Tool {
    Perf { control: File, acknowledge: File },
    Strace,
}

impl SyscallCount {
    /// Attaches perf, or else strace.
    ///
    /// # Errors
    /// Neither can; the text says what each of them answered.
    pub fn attach(pids: &[u32]) -> anyhow::Result<Self> {
        let scratch = std::env::temp_dir().join(format!("rheostr-loadtest-{}", std::process::id()));
        fs::create_dir_all(&scratch)?;
        let perf = match Self::perf(pids, &scratch) {
            Ok(count) => return Ok(count),
            Err(error) => error,
        };
        match Self::strace(pids, &scratch) {
            Ok(count) => Ok(count),
            Err(strace) => {
                fs::remove_dir_all(&scratch).ok();
                bail!("perf: {perf:#}; strace: {strace:#}")
            }
        }
    }

    fn perf(pids: &[u32], scratch: &Path) -> anyhow::Result<Self> {
        let (control, acknowledge) = (scratch.join("control"), scratch.join("acknowledge"));
        let open = |path: &Path| -> anyhow::Result<File> {
            fs::remove_file(path).ok();
            mkfifoat(CWD, path, Mode::RUSR | Mode::WUSR)?;
            // Both ways, so that neither side's open waits for the other.
            Ok(OpenOptions::new().read(true).write(true).open(path)?)
        };
        let tool = Tool::Perf { control: open(&control)?, acknowledge: open(&acknowledge)? };
        let named = NAMES.iter().map(|name| format!("syscalls:sys_enter_{name}"));
        let events = std::iter::once(ALL.to_owned()).chain(named).collect::<Vec<_>>().join(",");
        let child = Command::new("perf")
            .args(["stat", "-x", ",", "-D", "-1", "-e", &events, "-p", &list(pids), "-o"])
            .arg(scratch.join("counts"))
            .arg(format!("--control=fifo:{},{}", control.display(), acknowledge.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(scratch.join("errors"))?)
            .spawn()
            .context("perf does not start")?;
        Self { tool, child, scratch: scratch.to_owned() }.survive(Duration::from_millis(700))
    }

    fn strace(pids: &[u32], scratch: &Path) -> anyhow::Result<Self> {
        let child = Command::new("strace")
            .args(["-f", "-c", "-p", &list(pids), "-o"])
            .arg(scratch.join("counts"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(scratch.join("errors"))?)
            .spawn()
            .context("strace does not start")?;
        Self { tool: Tool::Strace, child, scratch: scratch.to_owned() }
            .survive(Duration::from_millis(700))
    }

    /// Both tools exit within this time if they may not attach.
    fn survive(mut self, patience: Duration) -> anyhow::Result<Self> {
        thread::sleep(patience);
        if let Some(status) = self.child.try_wait()? {
            let errors = fs::read_to_string(self.scratch.join("errors")).unwrap_or_default();
            bail!("{status}: {}", errors.trim());
        }
        Ok(self)
    }

    /// The window opens.
    ///
    /// # Errors
    /// perf does not acknowledge.
    pub fn start(&mut self) -> anyhow::Result<()> {
        self.command(b"enable\n")
    }

    fn command(&mut self, command: &[u8]) -> anyhow::Result<()> {
        let Tool::Perf { control, acknowledge } = &mut self.tool else { return Ok(()) };
        control.write_all(command)?;
        let mut pipe = acknowledge.try_clone()?;
        let (done, answer) = std::sync::mpsc::channel();
        // A pipe has no read timeout; this thread ends with its answer, or with the process.
        thread::spawn(move || done.send(pipe.read(&mut [0; 16]).is_ok()));
        ensure!(answer.recv_timeout(TOOL_PATIENCE).unwrap_or(false), "perf does not acknowledge");
        Ok(())
    }

    /// The window closes.
    ///
    /// # Errors
    /// perf does not acknowledge, or the tool is gone.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.command(b"disable\n")?;
        let pid = Pid::from_raw(self.child.id().try_into()?).context("a child has a pid")?;
        Ok(kill_process(pid, Signal::INT)?)
    }

    /// The counts of the closed window.
    ///
    /// # Errors
    /// The tool does not end, or its output has another shape.
    pub fn finish(mut self, operations: u64) -> anyhow::Result<Value> {
        let deadline = Instant::now() + TOOL_PATIENCE;
        while self.child.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "the tool does not end");
            thread::sleep(Duration::from_millis(10));
        }
        let output = fs::read_to_string(self.scratch.join("counts"))?;
        let (tool, timing, (total, counts)) = match self.tool {
            Tool::Perf { .. } => (
                "perf stat",
                "slightly higher: every call passes tracepoints",
                parse_perf(&output)?,
            ),
            Tool::Strace => (
                "strace -c",
                "INVALID: strace stops the server at every call",
                parse_strace(&output)?,
            ),
        };
        let per_op =
            |count: u64| (operations > 0).then(|| round(count as f64 / operations as f64, 4));
        let mut by_name: Vec<(String, u64)> =
            counts.into_iter().filter(|(_, count)| *count > 0).collect();
        by_name.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        let by_name: serde_json::Map<String, Value> = by_name
            .into_iter()
            .map(|(name, count)| (name, json!({"count": count, "per_op": per_op(count)})))
            .collect();
        Ok(json!({
            "tool": tool, "effect_on_times": timing, "total": total, "per_op": per_op(total),
            "by_name": by_name,
        }))
    }
}

fn list(pids: &[u32]) -> String {
    pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

impl Drop for SyscallCount {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // SIGINT, not SIGKILL: a tracer must detach, or the server stays stopped.
            if let Some(pid) = self.child.id().try_into().ok().and_then(Pid::from_raw) {
                kill_process(pid, Signal::INT).ok();
            }
            self.child.wait().ok();
        }
        fs::remove_dir_all(&self.scratch).ok();
    }
}

type Counts = (u64, Vec<(String, u64)>);

/// Lines `count,unit,event,…`.
fn parse_perf(output: &str) -> anyhow::Result<Counts> {
    let mut total = None;
    let mut counts = Vec::new();
    for line in output.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let fields: Vec<&str> = line.split(',').collect();
        let [count, _, event, ..] = fields[..] else { continue };
        let Ok(count) = count.parse() else { continue };
        match event.strip_prefix("syscalls:sys_enter_") {
            Some(name) => counts.push((name.to_owned(), count)),
            None if event == ALL => total = Some(count),
            None => {}
        }
    }
    let total: u64 = total.context("perf counted nothing")?;
    let named: u64 = counts.iter().map(|(_, count)| count).sum();
    counts.push(("other".to_owned(), total.saturating_sub(named)));
    Ok((total, counts))
}

/// The table of `strace -c`: percent, seconds, usecs/call, calls, [errors,] name.
fn parse_strace(output: &str) -> anyhow::Result<Counts> {
    let mut counts = Vec::new();
    for line in output.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (Some(calls), Some(name)) = (fields.get(3), fields.last()) else { continue };
        if let (Ok(calls), true) = (calls.parse::<u64>(), fields.len() >= 5 && *name != "total") {
            counts.push(((*name).to_owned(), calls));
        }
    }
    ensure!(!counts.is_empty(), "strace counted nothing");
    Ok((counts.iter().map(|(_, count)| count).sum(), counts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_tables_are_read() {
        let perf = "# started on Sun\n\n29,,raw_syscalls:sys_enter,100,100.00,,\n20,,syscalls:sys_enter_read,1,100.00,,\n\
                    <not counted>,,syscalls:sys_enter_write,0,0.00,,\n";
        let expected = vec![("read".to_owned(), 20), ("other".to_owned(), 9)];
        assert_eq!(parse_perf(perf).unwrap(), (29, expected));
        let strace = "% time     seconds  usecs/call     calls    errors syscall\n\
                      ------ ----------- ----------- --------- --------- ----------------\n \
                      90.00    0.000010           5         2           sendto\n  \
                      10.00    0.000001           1         1         1 access\n\
                      ------ ----------- ----------- --------- --------- ----------------\n\
                      100.00    0.000011           3         3         1 total\n";
        let expected = vec![("sendto".to_owned(), 2), ("access".to_owned(), 1)];
        assert_eq!(parse_strace(strace).unwrap(), (3, expected));
        assert!(parse_perf("").is_err());
        assert!(parse_strace("").is_err());
    }
}
