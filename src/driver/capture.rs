//! What clients said, written down as JSON lines: `--capture FILE`.
//!
//! A line is `{"us":…,"shard":…,"connection":…,"text":…}`: microseconds since the capture began, who said
//! it, and the message as a JSON string. The last line is `{"dropped_messages":…}`: those that found no room
//! in memory, or in a file of [`FILE_BYTES_MAX`]. A thread writes; shards never wait for it.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::file_thread::FileThread;
use crate::relay::capture::Captured;

/// Turns that may wait for the thread, each with a megabyte at most.
const TURNS_MAX: usize = 64;
/// Bytes of messages after which the file takes no more.
pub const FILE_BYTES_MAX: usize = 4 << 30;

/// What was said in one turn of a shard.
struct Turn {
    us: u64,
    shard: usize,
    captured: Captured,
}

/// Where a shard hands what was said. Cheap to clone.
#[derive(Clone)]
pub struct Capture {
    turns: flume::Sender<Turn>,
}

/// Creates the file, for its owner alone, and starts the thread.
///
/// # Errors
/// When the file or the thread cannot be had.
pub fn open(path: &Path) -> io::Result<(Capture, FileThread)> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let file = BufWriter::new(options.open(path)?);
    let (turns, received) = flume::bounded(TURNS_MAX);
    let thread = FileThread::spawn("capture", move || write(file, &received))?;
    Ok((Capture { turns }, thread))
}

fn write(mut file: impl Write, turns: &flume::Receiver<Turn>) -> io::Result<()> {
    let (mut dropped, mut bytes, mut began_us) = (0, 0, None);
    for Turn { us, shard, captured } in turns {
        let us = us.saturating_sub(*began_us.get_or_insert(us));
        dropped += captured.dropped;
        for (key, text) in captured.messages {
            bytes += text.len();
            if bytes > FILE_BYTES_MAX {
                dropped += 1;
                continue;
            }
            let text = serde_json::to_string(&String::from_utf8_lossy(&text))?;
            let connection = key.0;
            writeln!(
                file,
                r#"{{"us":{us},"shard":{shard},"connection":{connection},"text":{text}}}"#
            )?;
        }
    }
    writeln!(file, r#"{{"dropped_messages":{dropped}}}"#)?;
    file.flush()
}

impl Capture {
    /// Hands over what was said in a turn; gives what could not be handed over back as a number of
    /// messages that were dropped, for the next turn.
    pub(super) fn hand_over(&self, us: u64, shard: usize, captured: Captured) -> u64 {
        if captured == Captured::default() {
            return 0;
        }
        match self.turns.try_send(Turn { us, shard, captured }) {
            Ok(()) => 0,
            Err(error) => {
                let captured = error.into_inner().captured;
                captured.dropped + captured.messages.len() as u64
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::ConnectionKey;

    fn captured(texts: &[&str], dropped: u64) -> Captured {
        let messages =
            texts.iter().map(|text| (ConnectionKey(7), text.as_bytes().into())).collect();
        let mut captured = Captured::default();
        (captured.messages, captured.dropped) = (messages, dropped);
        captured
    }

    #[test]
    fn lines_hold_what_was_said_and_the_last_what_was_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("capture.jsonl");
        let (capture, thread) = open(&path).unwrap();
        assert_eq!(capture.hand_over(100, 1, captured(&["[\"a\\n\"]", "no\njson"], 0)), 0);
        assert_eq!(capture.hand_over(350, 0, captured(&[], 3)), 0);
        drop(capture);
        thread.join().unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[0]["text"], "[\"a\\n\"]");
        assert_eq!(lines[1]["text"], "no\njson");
        assert_eq!((&lines[1]["us"], &lines[1]["connection"]), (&0.into(), &7.into()));
        assert_eq!(lines[2]["dropped_messages"], 3);
        assert_eq!(lines.len(), 3);
    }

    #[test]
    fn what_finds_no_room_is_told() {
        let (turns, _received) = flume::bounded(1);
        let capture = Capture { turns };
        assert_eq!(capture.hand_over(1, 0, captured(&["a"], 0)), 0);
        assert_eq!(capture.hand_over(1, 0, captured(&["b", "c"], 2)), 4);
        assert_eq!(capture.hand_over(1, 0, captured(&[], 0)), 0);
    }
}
