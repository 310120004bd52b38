//! The token of OAUTHBEARER: read from a file, or printed by a program that is run for it.
//!
//! Fetched anew for each authentication, so that whoever renews it need not tell us. Never shown: what the program prints
//! goes nowhere else, its stderr is ours.

use std::fs;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::conn::wait_for;
use crate::config::client::{Secret, TokenSource};
use crate::error::{Error, Kind, Result, os_text};

/// How long a program may take, if there is so much time at all.
const PATIENCE: Duration = Duration::from_secs(30);
/// More than any token.
const LARGEST: usize = 1 << 20;

/// Fetches a token.
pub fn fetch(source: &TokenSource, deadline: Instant) -> Result<Secret> {
    let (text, origin) = match source {
        TokenSource::File(path) => {
            let origin = format!("airkafka.token.file {}", path.display());
            (fs::read_to_string(path).map_err(|e| os_text(&e)), origin)
        }
        TokenSource::Command(argv) => {
            let limit = deadline.min(Instant::now() + PATIENCE);
            (run(argv, limit), format!("airkafka.token.command {}", argv[0]))
        }
    };
    // Transient: a token that is being renewed may be missing for a moment.
    let wrong = |why: String| Error::new(Kind::Unavailable, format!("{origin} gives no token: {why}"));
    let text = text.map_err(wrong)?;
    let token = text.trim();
    if token.is_empty() {
        return Err(wrong("it is empty".into()));
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(wrong("more than one word of printable characters".into()));
    }
    Ok(Secret::new(token))
}

fn run(argv: &[String], deadline: Instant) -> std::result::Result<String, String> {
    let started = Instant::now();
    let mut command = Command::new(&argv[0]);
    // A group of its own: what it starts is stopped with it.
    command.args(&argv[1..]).stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(|e| format!("cannot be started: {}", os_text(&e)))?;
    let printed = read_to_end(&mut child, deadline);
    let ended = if printed.is_ok() { wait(&mut child, deadline) } else { None };
    match (printed, ended) {
        (_, Some(Ok(status))) if !status.success() => Err(format!("it ended with {status}")),
        // The reaper of orphans may have been quicker: then there is no status to be had, and what was printed has to do.
        (Ok(printed), Some(_)) => String::from_utf8(printed).map_err(|_| "it is not text".into()),
        (printed, _) => {
            let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
            let _ = wait(&mut child, Instant::now() + Duration::from_secs(1));
            let late = || format!("it took longer than {} s", started.elapsed().as_secs());
            Err(printed.err().flatten().unwrap_or_else(late))
        }
    }
}

/// What the program prints, until it closes its output; `Err(None)`: it takes too long.
fn read_to_end(child: &mut Child, deadline: Instant) -> std::result::Result<Vec<u8>, Option<String>> {
    let mut printed = Vec::new();
    let mut stdout = child.stdout.take().expect("it was asked for");
    rustix::io::ioctl_fionbio(&stdout, true).map_err(|e| os_text(&e.into()))?;
    let mut buffer = [0; 8192];
    while printed.len() <= LARGEST {
        match stdout.read(&mut buffer) {
            Ok(0) => return Ok(printed),
            Ok(count) => printed.extend_from_slice(&buffer[..count]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                if Instant::now() >= deadline {
                    return Err(None);
                }
                wait_for(stdout.as_fd(), false, deadline);
            }
            Err(e) => return Err(Some(os_text(&e))),
        }
    }
    Err(Some("it is larger than 1 MiB".into()))
}

/// Waits for its end; `None`: it goes on.
fn wait(child: &mut Child, deadline: Instant) -> Option<io::Result<std::process::ExitStatus>> {
    loop {
        match child.try_wait() {
            Ok(None) if Instant::now() >= deadline => return None,
            Ok(None) => thread::sleep(Duration::from_millis(5)),
            Ok(Some(status)) => return Some(Ok(status)),
            Err(e) => return Some(Err(e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(script: &str) -> TokenSource {
        TokenSource::Command(vec!["/bin/sh".into(), "-c".into(), script.into()])
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn a_program_prints_it() {
        assert_eq!(fetch(&command("echo abc.def."), soon()).unwrap().reveal(), "abc.def.");
        let long = fetch(&command("head -c 200000 /dev/zero | tr '\\0' x"), soon()).unwrap();
        assert_eq!(long.reveal().len(), 200_000);
    }

    #[test]
    fn a_file_holds_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let source = TokenSource::File(file.path().into());
        assert!(fetch(&source, soon()).unwrap_err().to_string().ends_with("gives no token: it is empty"));
        fs::write(file.path(), "  abc\n").unwrap();
        assert_eq!(fetch(&source, soon()).unwrap().reveal(), "abc");
    }

    #[test]
    fn what_is_no_token_is_told_without_showing_it() {
        for (source, why) in [
            (command("echo hidden; exit 3"), "it ended with exit status: 3"),
            (command("echo hidden hidden"), "more than one word"),
            (command("exec head -c 2000000 /dev/zero"), "larger than 1 MiB"),
            (TokenSource::Command(vec!["/absent/x".into()]), "cannot be started: no such file"),
            (TokenSource::File("/absent/x".into()), "no such file or directory"),
        ] {
            let error = fetch(&source, soon()).unwrap_err();
            let text = error.to_string();
            assert!(text.starts_with("airkafka.token.") && text.contains(why) && !text.contains("hidden"), "{text}");
            assert!(error.is_transient());
        }
    }

    #[test]
    fn a_program_that_hangs_is_stopped() {
        let begun = Instant::now();
        let error = fetch(&command("sleep 100 & echo x; sleep 100"), Instant::now() + Duration::from_millis(300));
        assert!(error.unwrap_err().to_string().ends_with("it took longer than 0 s"));
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}
