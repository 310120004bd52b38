//! The command that stands for a child of the preloaded runner: a mode of this program, which the pool starts instead of
//! `airkafka-task`.
//!
//! It hands its arguments, environment, directory and standard streams over, and ends as the child ends. The child is in
//! our process group and bears our cookie, so that the worker stops both in one. Whatever keeps the runner from taking the
//! command, before it has: then the program itself is executed, in a new interpreter.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Pid, Signal, getpgrp, getppid, kill_process};

use super::{INSTEAD, SOCKET};
use crate::sys::{self, Signals};

/// How long the runner may take to take a command: as long as importing may take, and some more.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long to wait before asking again where one runner has gone and the next has not come.
const PAUSE: Duration = Duration::from_millis(100);
/// Exit code where even the program itself cannot be executed.
const NOT_EXECUTED: u8 = 126;

/// How handing over has gone.
enum Handed {
    /// The child has ended.
    Exited(u8),
    /// The child was killed, or is gone without a word.
    Killed(i32),
    /// It has not, for this reason; there is no child.
    Not(String),
}

/// The command that starts a client of the runner at `socket`, which stands for `program`.
pub fn command(socket: &Path, program: &Path) -> Command {
    let mut command = Command::new("/proc/self/exe"); // also when our file has been replaced
    command.env(SOCKET, socket).env(INSTEAD, program);
    command
}

/// Whether this process is to be a client.
pub fn is_meant() -> bool {
    env::var_os(SOCKET).is_some() && env::var_os(INSTEAD).is_some()
}

/// Does all of it.
pub fn run() -> ExitCode {
    let (socket, program) = (env::var_os(SOCKET).unwrap_or_default(), env::var_os(INSTEAD).unwrap_or_default());
    match hand_over(Path::new(&socket)) {
        Handed::Exited(code) => ExitCode::from(code),
        Handed::Killed(signal) => sys::die_by(signal),
        Handed::Not(why) => {
            eprintln!("airkafka-worker: in a new interpreter, since {why}");
            let mut args = env::args_os();
            let mut command = Command::new(program);
            command.arg0(args.next().unwrap_or_default()).args(args).env_remove(SOCKET).env_remove(INSTEAD);
            eprintln!("airkafka-worker: {}", command.exec());
            ExitCode::from(NOT_EXECUTED)
        }
    }
}

fn hand_over(socket: &Path) -> Handed {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let why = match offer(socket, deadline) {
            Ok(Answer::Taken(conn, signals)) => return follow(conn, signals),
            Ok(Answer::Refused(why)) => return Handed::Not(why),
            Err(e) => e,
        };
        if Instant::now() + PAUSE >= deadline {
            return Handed::Not(format!("the preloaded runner does not answer: {}", crate::error::os_text(&why)));
        }
        thread::sleep(PAUSE);
    }
}

/// What the runner says to an offer.
enum Answer {
    /// The child is ours; from now on signals are told to us.
    Taken(UnixStream, Signals),
    Refused(String),
}

fn offer(socket: &Path, deadline: Instant) -> io::Result<Answer> {
    let mut conn = UnixStream::connect(socket)?;
    let left = deadline.saturating_duration_since(Instant::now()).max(PAUSE);
    conn.set_write_timeout(Some(left))?;
    conn.set_read_timeout(Some(left))?;
    send(&mut conn, &request()?)?;
    let answer = read_line(&mut conn)?;
    match answer.split_once(' ') {
        None if answer == "take" => {
            // Not before: until then a signal ends us, and nothing has been started.
            let signals = Signals::take()?;
            conn.write_all(b"go\n")?;
            conn.set_read_timeout(None)?;
            Ok(Answer::Taken(conn, signals))
        }
        Some(("no", why)) => Ok(Answer::Refused(why.into())),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("it answers {answer:?}"))),
    }
}

/// Sends the request, and the standard streams with its first byte.
fn send(conn: &mut UnixStream, request: &[u8]) -> io::Result<()> {
    let streams = (io::stdin(), io::stdout(), io::stderr());
    let fds: [BorrowedFd<'_>; 3] = [streams.0.as_fd(), streams.1.as_fd(), streams.2.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let sent = sendmsg(conn.as_fd(), &[IoSlice::new(request)], &mut control, SendFlags::NOSIGNAL)?;
    conn.write_all(&request[sent..])
}

fn request() -> io::Result<Vec<u8>> {
    let cwd = env::current_dir()?;
    let group = getpgrp().as_raw_nonzero().to_string();
    let args: Vec<OsString> = env::args_os().collect();
    let count = args.len().to_string();
    let vars = env::vars_os().filter(|(name, _)| name != SOCKET && name != INSTEAD);
    let vars: Vec<Vec<u8>> = vars.map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat()).collect();
    let head: [&[u8]; 4] = [b"run", cwd.as_os_str().as_bytes(), group.as_bytes(), count.as_bytes()];
    let args = args.iter().map(|arg| OsStr::as_bytes(arg));
    Ok(frame(&head.into_iter().chain(args).chain(vars.iter().map(Vec::as_slice)).collect::<Vec<_>>()))
}

/// Fields with a NUL behind each, behind their length.
pub fn frame(fields: &[&[u8]]) -> Vec<u8> {
    let body: Vec<u8> = fields.iter().flat_map(|field| [field, &b"\0"[..]].concat()).collect();
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX); // which is refused
    [&length.to_be_bytes()[..], &body].concat()
}

fn read_line(conn: &mut UnixStream) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        conn.read_exact(&mut byte)?;
        match byte[0] {
            b'\n' => return Ok(String::from_utf8_lossy(&line).into_owned()),
            other => line.push(other),
        }
    }
}

/// Waits for the child's end, and passes signals on.
fn follow(mut conn: UnixStream, signals: Signals) -> Handed {
    let worker = getppid();
    let mut child = None;
    let mut missed = Vec::new();
    loop {
        let mut fds = [PollFd::new(&conn, PollFlags::IN), PollFd::new(&signals, PollFlags::IN)];
        let _ = poll(&mut fds, None); // interrupted: look again
        let (talks, signalled) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
        if signalled && let Some((signal, sender)) = signals.read() {
            match child {
                // The worker signals the whole group, and the child is in it.
                Some(_) if sender.is_some() && sender == worker => {}
                Some(pid) => pass_on(pid, signal),
                None => missed.push(signal), // it may not be in the group yet
            }
        }
        if !talks {
            continue;
        }
        // A line is written at once, so the rest of it is there.
        let Ok(line) = read_line(&mut conn) else { return Handed::Killed(libc::SIGKILL) };
        let number = line.split_once(' ').and_then(|(_, number)| number.parse::<i32>().ok()).unwrap_or(0);
        match line.split_once(' ') {
            Some(("pid", _)) => {
                child = Pid::from_raw(number);
                missed.drain(..).for_each(|signal| child.into_iter().for_each(|pid| pass_on(pid, signal)));
            }
            Some(("no", why)) if child.is_none() => {
                signals.give_back();
                return Handed::Not(why.into());
            }
            Some(("exit", _)) => return Handed::Exited(u8::try_from(number).unwrap_or(1)),
            Some(("signal", _)) => return Handed::Killed(number),
            _ => {}
        }
    }
}

fn pass_on(child: Pid, signal: i32) {
    if let Some(signal) = Signal::from_named_raw(signal) {
        let _ = kill_process(child, signal); // it may have ended just now
    }
}
