//! Runs the command of one record and says what came of it.
//!
//! Runs on a pool thread, which it blocks until the command is gone. Touches no broker and no offset.

mod child;
mod output;
pub mod program;
pub mod registry;
pub mod tree;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{self, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;
use jiff::Timestamp;
use log::{debug, info, warn};

use crate::broker::acquisition::Holding;
use crate::broker::{Position, Record};
use crate::config::{self, OnLostLock};
use crate::error::os_text;
use crate::pool::Job;
use crate::preload::{self, Preload};
use crate::record::{self, Command, Invalid, Outcome, Reason, State, printable, show_key};
use crate::shutdown::{Level, Shutdown};
use crate::systemd;
use child::{End, Running, Verdict};
use output::Output;
use program::Unusable;
use registry::Registry;

/// What our executor for Airflow has its tasks run with; it is installed beside `airflow`.
const AIRFLOW_ENTRY: &str = "airkafka-task";
/// Exit code of a command that was stopped for its output: what a shell shows for SIGXFSZ, "file size limit exceeded".
const OUTPUT_LIMIT_EXIT: i32 = 128 + libc::SIGXFSZ;
/// How often it is looked whether a lock that is in doubt is ours.
const DOUBT_LOOK: Duration = Duration::from_millis(20);
/// How long to wait before asking again a system that has no room for another process.
const NO_ROOM_PAUSE: Duration = Duration::from_millis(200);

/// What all pool threads share to run commands.
#[derive(Debug)]
pub struct Runner {
    settings: config::Exec,
    shutdown: Arc<Shutdown>,
    registry: Arc<Registry>,
    host: Arc<str>,
    /// First part of every cookie: no other worker, and no later one with our process id, has the same.
    instance: String,
    commands: AtomicU64,
    /// Where tasks of Airflow are forked instead.
    preload: Option<Arc<Preload>>,
    /// Whether the system had no room for another process the last time; for one log line at each change.
    crowded: AtomicBool,
}

/// Why a command was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Timeout,
    OutputLimit,
    /// The worker is told to end at once.
    Abort,
    /// Its record is another worker's by now.
    LostLock,
}

/// What came of a record on a pool thread.
#[derive(Debug)]
pub enum Ran {
    /// Its command has run, or never can.
    Done(Box<Outcome>),
    /// Stopped, or not started, because the worker ends at once: it is to be run again by somebody else.
    Aborted,
    /// Not started: it was too late for that.
    TooLate,
    /// Its record is another worker's by now, and `--on-lost-lock` says to leave it to that one.
    Lost,
}

/// All that starting a command takes.
struct Start<'a> {
    command: &'a Command,
    program: &'a Path,
    cwd: &'a Path,
    cookie: &'a str,
    at: &'a Position,
    slot: usize,
    /// Where the preloaded runner listens that is to have it.
    runner: Option<PathBuf>,
}

/// What is known of a command's end, before it becomes an [`Outcome`].
struct Ended {
    reason: Reason,
    exit_code: Option<i32>,
    signal: Option<i32>,
    pid: Option<u32>,
    duration: Duration,
    tail: String,
    error: Option<String>,
}

impl Runner {
    /// A runner for the threads of `registry`.
    pub fn new(
        settings: config::Exec,
        shutdown: Arc<Shutdown>,
        registry: Arc<Registry>,
        preload: Option<Arc<Preload>>,
    ) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into();
        let instance = format!("{:x}-{:x}", process::id(), Timestamp::now().as_nanosecond());
        let (commands, crowded) = (AtomicU64::new(0), AtomicBool::new(false));
        Runner { settings, shutdown, registry, host, instance, commands, preload, crowded }
    }

    /// Runs what the record of `job` asks for on the thread that owns `slot`.
    pub fn run(&self, job: &Job, slot: usize) -> Ran {
        if job.is_late() {
            return Ran::TooLate;
        }
        let started = Timestamp::now();
        if let Some(attempt) = job.record.attempt.filter(|&attempt| attempt >= self.settings.max_deliveries) {
            let why =
                format!("delivered {attempt} times, and never seen to its end; not started again (--max-deliveries)");
            return Ran::Done(Box::new(self.outcome(Ended::unstarted(Reason::Poison, why), &job.record, started)));
        }
        let ended = match record::decode(job.record.value.as_deref(), self.settings.shell.as_deref()) {
            Ok(command) => match self.run_command(&command, job, slot) {
                Ok(ended) => ended,
                Err(unfinished) => return unfinished,
            },
            Err(Invalid(why)) => Ended::unstarted(Reason::Invalid, why),
        };
        if let Err(gone) = self.may_report(&job.record) {
            return gone;
        }
        Ran::Done(Box::new(self.outcome(ended, &job.record, started)))
    }

    fn run_command(&self, command: &Command, job: &Job, slot: usize) -> Result<Ended, Ran> {
        let record = &job.record;
        let (program, cwd) = match locate(command, &self.settings) {
            Ok(located) => located,
            Err(Unusable { reason, error }) => return Ok(Ended::unstarted(reason, error)),
        };
        let cookie = format!("{}-{}", self.instance, self.commands.fetch_add(1, Ordering::Relaxed));
        let timeout = command.timeout.or(self.settings.timeout);
        let preload = self.preload.as_ref().filter(|_| command.argv[0] == AIRFLOW_ENTRY);
        let runner = preload.and_then(|preload| preload.socket_for(&program));
        let start = Start { command, program: &program, cwd: &cwd, cookie: &cookie, at: &record.at, slot, runner };
        if job.is_late() {
            return Err(Ran::TooLate); // stopped just now
        }
        let (running, output) = match self.start(&start, timeout) {
            Ok(Some(started)) => started,
            Ok(None) => return Err(Ran::Aborted),
            Err(e) => return Ok(refused(&e, &program)),
        };
        let pid = running.pid();
        debug!("started {} key={} program={} pid={pid}", record.at, show_key(record.key.as_deref()), program.display());
        let (end, duration) = running.wait(timeout.map(|after| (after, Why::Timeout)), self.settings.grace, || {
            if self.shutdown.level() == Level::Kill {
                Verdict::Stop(Why::Abort)
            } else if self.is_lost(record) {
                Verdict::Stop(Why::LostLock)
            } else if self.settings.output_limit.is_some_and(|limit| output.len() > limit) {
                Verdict::Stop(Why::OutputLimit)
            } else {
                Verdict::GoOn
            }
        });
        let ended = match end {
            End::Stopped(Why::Abort) => return Err(Ran::Aborted),
            End::Stopped(Why::LostLock) => return Err(Ran::Lost),
            End::Stopped(Why::Timeout) => Ended::new(Reason::Timeout, Some(124)),
            End::Stopped(Why::OutputLimit) => Ended::new(Reason::OutputLimit, Some(OUTPUT_LIMIT_EXIT)),
            End::Exited(status) => Ended::by_itself(status),
            End::Lost(e) => {
                let error = format!("its exit status is lost: {}", os_text(&e));
                Ended { error: Some(error), ..Ended::new(Reason::SpawnError, None) }
            }
        };
        Ok(Ended { pid: Some(pid), duration, tail: output.tail(self.settings.tail_bytes), ..ended })
    }

    /// Whether the record is another worker's by now, and its command to be left to that one.
    fn is_lost(&self, record: &Record) -> bool {
        self.settings.on_lost_lock == OnLostLock::Stop
            && record.lock.as_ref().is_some_and(|lock| lock.holding() == Holding::Lost)
    }

    /// Waits until it is certain whether the record is still ours. While it is in doubt - the broker is away, or this process
    /// was stopped for longer than a lock lasts - nothing is reported that another worker may have run by now.
    fn may_report(&self, record: &Record) -> Result<(), Ran> {
        let Some(lock) = record.lock.as_ref().filter(|_| self.settings.on_lost_lock == OnLostLock::Stop) else {
            return Ok(());
        };
        loop {
            match lock.holding() {
                Holding::Ours => return Ok(()),
                Holding::Lost => return Err(Ran::Lost),
                Holding::InDoubt => {}
            }
            let told = self.shutdown.at(Level::Kill).recv_timeout(DOUBT_LOOK);
            if told == Err(RecvTimeoutError::Disconnected) {
                return Err(Ran::Aborted);
            }
        }
    }

    /// Starts a command, waiting while the system has no room for it.
    /// `None`: told to end at once meanwhile.
    fn start(&self, start: &Start<'_>, timeout: Option<Duration>) -> io::Result<Option<(Running<'_>, Output)>> {
        let since = Instant::now();
        loop {
            match self.try_start(start) {
                Err(e) if is_no_room(&e) && timeout.is_none_or(|timeout| since.elapsed() < timeout) => {
                    if !self.crowded.swap(true, Ordering::Relaxed) {
                        let why = os_text(&e);
                        warn!("cannot start commands for now: {why}; they wait (limits: ulimit -u, ulimit -n, memory)");
                    }
                    let told = self.shutdown.at(Level::Kill).recv_timeout(NO_ROOM_PAUSE);
                    if told == Err(RecvTimeoutError::Disconnected) {
                        return Ok(None);
                    }
                }
                Err(e) => return Err(e),
                Ok(started) => {
                    if self.crowded.load(Ordering::Relaxed) && self.crowded.swap(false, Ordering::Relaxed) {
                        info!("commands can be started again");
                    }
                    return Ok(Some(started));
                }
            }
        }
    }

    fn try_start(&self, start: &Start<'_>) -> io::Result<(Running<'_>, Output)> {
        let Start { command, program, cwd, cookie, at, slot, ref runner } = *start;
        let output = Output::open(self.settings.output_dir.as_deref(), at)?;
        let mut os_command = match runner {
            Some(socket) => preload::client::command(socket, program),
            None => process::Command::new(program),
        };
        os_command.args(&command.argv[1..]).current_dir(cwd);
        for name in systemd::VARIABLES {
            os_command.env_remove(name);
        }
        os_command
            .envs(&command.env)
            .env(tree::COOKIE, cookie)
            .stdin(stdin_with(command.stdin.as_deref())?)
            .stdout(output.stdio()?)
            .stderr(output.stdio()?);
        if runner.is_some() || program.file_name() == Some(OsStr::new(&command.argv[0])) {
            os_command.arg0(&command.argv[0]); // a bare name stays one, as in a shell: busybox and its like look at it
        }
        Ok((Running::start(&mut os_command, cookie, &self.registry, slot)?, output))
    }

    fn outcome(&self, ended: Ended, record: &Record, started: Timestamp) -> Outcome {
        let success = ended.reason == Reason::Exit && ended.exit_code == Some(0);
        Outcome {
            state: if success { State::Success } else { State::Failed },
            reason: ended.reason,
            exit_code: ended.exit_code,
            signal: ended.signal,
            started: format!("{started:.3}"),
            duration_ms: millis(ended.duration),
            queued_ms: record.timestamp_ms.map(|written| (started.as_millisecond() - written).max(0).cast_unsigned()),
            host: self.host.clone(),
            pid: ended.pid,
            attempt: record.attempt,
            topic: record.at.topic.clone(),
            partition: record.at.partition,
            offset: record.at.offset,
            tail: ended.tail,
            error: ended.error,
        }
    }

    /// The outcome of a record that brought a thread of ours to panic: a bug, which must not stall the record.
    pub fn panicked(&self, record: &Record) -> Outcome {
        let ended = Ended::unstarted(Reason::SpawnError, "the worker failed on this record (see its log)".into());
        self.outcome(ended, record, Timestamp::now())
    }
}

/// The absolute path of a command's program, and the directory it is run in.
pub fn locate(command: &Command, settings: &config::Exec) -> Result<(PathBuf, PathBuf), Unusable> {
    let unusable = |error| Unusable { reason: Reason::SpawnError, error };
    let here = std::env::current_dir().map_err(|e| unusable(format!("the worker's directory: {}", os_text(&e))))?;
    let cwd = command.cwd.as_ref().map_or_else(|| here.clone(), |cwd| here.join(cwd));
    if command.cwd.is_some() && !cwd.is_dir() {
        return Err(unusable(format!("cwd {}: no such directory", printable(&cwd.to_string_lossy()))));
    }
    let word = command.argv[0].as_str();
    match (word, &settings.airflow) {
        ("airflow", Some(airflow)) => return Ok((airflow.clone(), cwd)),
        (AIRFLOW_ENTRY, _) => {
            if let Some(beside) = beside_airflow(settings) {
                return Ok((beside, cwd));
            }
        }
        _ => {}
    }
    let path: OsString = match command.env.get("PATH") {
        Some(path) => path.into(),
        None => std::env::var_os("PATH").unwrap_or_default(),
    };
    Ok((program::resolve(word, &path, &cwd)?, cwd))
}

/// The program that runs tasks of Airflow, as a command without a PATH of its own finds it. An error says why there is none.
pub fn airflow_entry(settings: &config::Exec) -> Result<PathBuf, String> {
    if let Some(beside) = beside_airflow(settings) {
        return Ok(beside);
    }
    let here = std::env::current_dir().map_err(|e| os_text(&e))?;
    program::resolve(AIRFLOW_ENTRY, &std::env::var_os("PATH").unwrap_or_default(), &here)
        .map_err(|unusable| unusable.error)
}

fn beside_airflow(settings: &config::Exec) -> Option<PathBuf> {
    settings.airflow.as_ref().map(|airflow| airflow.with_file_name(AIRFLOW_ENTRY)).filter(|beside| beside.exists())
}

impl Ended {
    fn new(reason: Reason, exit_code: Option<i32>) -> Ended {
        Ended { reason, exit_code, signal: None, pid: None, duration: Duration::ZERO, tail: String::new(), error: None }
    }

    fn unstarted(reason: Reason, error: String) -> Ended {
        let exit_code = match reason {
            Reason::NotFound => Some(127),
            Reason::NotExecutable => Some(126),
            _ => None,
        };
        Ended { error: Some(error), ..Ended::new(reason, exit_code) }
    }

    fn by_itself(status: ExitStatus) -> Ended {
        match status.signal() {
            Some(signal) => Ended { signal: Some(signal), ..Ended::new(Reason::Signal, Some(128 + signal)) },
            None => Ended::new(Reason::Exit, status.code()),
        }
    }
}

/// Why the system would not execute a program that is there.
fn refused(e: &io::Error, program: &Path) -> Ended {
    let (reason, why) = match e.raw_os_error() {
        Some(libc::ENOENT) => (Reason::NotFound, "its interpreter (the `#!` line) was not found".to_string()),
        Some(libc::ENOEXEC) => {
            (Reason::NotExecutable, "neither a binary of this machine nor a script with a `#!` line".into())
        }
        Some(libc::EACCES) => (Reason::NotExecutable, os_text(e)),
        _ => (Reason::SpawnError, os_text(e)),
    };
    Ended::unstarted(reason, format!("{}: {why}", printable(&program.to_string_lossy())))
}

/// Whether the system may have room later. ETXTBSY: the program is being written, by an installer or by a fork of ours
/// that has not executed its own program yet.
fn is_no_room(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE | libc::ETXTBSY))
}

/// A stdin that holds `payload`: memory, so that secrets reach no disk and nobody has to feed a pipe.
fn stdin_with(payload: Option<&str>) -> io::Result<Stdio> {
    let Some(payload) = payload else { return Ok(Stdio::null()) };
    let mut file = File::from(rustix::fs::memfd_create("stdin", rustix::fs::MemfdFlags::CLOEXEC)?);
    file.write_all(payload.as_bytes())?;
    file.rewind()?;
    Ok(file.into())
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap_or(u64::MAX)
}
