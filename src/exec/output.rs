//! The file that takes a command's output, and its end.
//!
//! A file and not a pipe: a grandchild that holds it open makes nobody wait, and its size is no memory of ours. Opened
//! for appending, so that stdout and stderr, and whoever opens `/dev/stdout` again, do not overwrite each other.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Stdio;

use crate::broker::Position;

/// Where a command's stdout and stderr go.
#[derive(Debug)]
pub struct Output {
    file: File,
    /// The file's length before the command: a kept file may hold the output of an earlier run of the same record.
    start: u64,
}

impl Output {
    /// A file of its own in `dir`, named after the record; without `dir` a private one that has no name any more.
    pub fn open(dir: Option<&Path>, at: &Position) -> io::Result<Output> {
        let file = match dir {
            Some(dir) => {
                OpenOptions::new().read(true).append(true).create(true).mode(0o640).open(dir.join(file_name(at)))?
            }
            None => tempfile::Builder::new().append(true).tempfile()?.into_file(),
        };
        let start = file.metadata()?.len();
        Ok(Output { file, start })
    }

    /// A handle for the command's stdout or stderr.
    pub fn stdio(&self) -> io::Result<Stdio> {
        Ok(self.file.try_clone()?.into())
    }

    /// How much the command has written.
    pub fn len(&self) -> u64 {
        self.file.metadata().map_or(0, |meta| meta.len().saturating_sub(self.start))
    }

    /// The last `bytes` bytes of it, as text, from a character's start.
    pub fn tail(&self, bytes: usize) -> String {
        let len = self.len();
        let take = len.min(bytes as u64);
        let mut buffer = vec![0; take as usize];
        if self.file.read_exact_at(&mut buffer, self.start + len - take).is_err() {
            return String::new(); // it was truncated meanwhile
        }
        let cut_off = if take < len { buffer.iter().take(3).take_while(|&&b| b & 0xC0 == 0x80).count() } else { 0 };
        String::from_utf8_lossy(&buffer[cut_off..]).into_owned()
    }
}

/// `TOPIC-PARTITION-OFFSET.log`; the characters of a topic are fit for a file name, those of an `--input` path are made so.
fn file_name(at: &Position) -> String {
    let topic = at.topic.replace(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '_' | '-'), "_");
    format!("{topic}-{}-{}.log", at.partition, at.offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn the_tail_starts_at_a_character_and_at_this_run() {
        let dir = tempfile::tempdir().unwrap();
        let at = Position { topic: "some/file".into(), partition: 0, offset: 7 };
        std::fs::write(dir.path().join("some_file-0-7.log"), "an earlier run\n").unwrap();
        let mut output = Output::open(Some(dir.path()), &at).unwrap();
        assert_eq!(output.tail(100), "");
        output.file.write_all("aé".as_bytes()).unwrap();
        assert_eq!(
            (output.len(), output.tail(100), output.tail(2), output.tail(1)),
            (3, "aé".into(), "é".into(), "".into())
        );
        assert_eq!(output.tail(0), "");
        output.file.write_all(b"\xff").unwrap();
        assert_eq!(output.tail(100), "aé\u{fffd}");
    }
}
