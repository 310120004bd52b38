//! The file that only one worker at a time holds: a kernel lock (flock(2)), which ends with the process, whatever ends that.
//!
//! Who holds it has its number and start written into the file, for whoever comes next.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::os_text;

/// A lock that is held; given back when dropped.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held, not read")] File);

/// Why it is not held.
#[derive(Debug)]
pub enum NotHeld {
    /// Another process has it; the text says which.
    Busy(String),
    /// The file cannot be used, for this reason.
    Broken(String),
}

impl Lock {
    /// Takes the lock of `path`, without waiting.
    pub fn take(path: &Path) -> Result<Lock, NotHeld> {
        let broken = |e: io::Error| NotHeld::Broken(format!("{}: {}", path.display(), os_text(&e)));
        // Not truncated: until it is ours it tells of another one.
        let mut options = OpenOptions::new();
        let mut file =
            options.read(true).write(true).create(true).truncate(false).mode(0o644).open(path).map_err(broken)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                let _ = file.take(200).read_to_string(&mut holder); // it may not have written yet
                let holder = if holder.trim().is_empty() { "another process" } else { holder.trim() };
                return Err(NotHeld::Busy(format!("{} is held by {holder}", path.display())));
            }
            Err(e) => return Err(broken(e.into())),
        }
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let us = format!("process {} on {host} since {:.0}\n", std::process::id(), jiff::Timestamp::now());
        file.set_len(0).and_then(|()| file.write_all(us.as_bytes())).map_err(broken)?;
        Ok(Lock(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holds_it_and_the_other_is_told_who() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = Lock::take(&path).unwrap();
        let told = format!("is held by process {} on ", std::process::id());
        assert!(matches!(Lock::take(&path), Err(NotHeld::Busy(why)) if why.contains(&told)));
        drop(held);
        assert!(Lock::take(&path).is_ok());
        assert!(matches!(Lock::take(dir.path()), Err(NotHeld::Broken(_))));
    }
}
