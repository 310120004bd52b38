//! The preloaded runner of Airflow's tasks (`executor/airkafka_runner.py`): says which commands go to it, starts it,
//! watches it and starts it again.
//!
//! A thread of its own does that once it is wanted. To everything else such a command is a subprocess like any other: the
//! program that is started is [`client`], which stands for a child of the runner. The listening socket is ours and stays
//! when a runner goes, so that commands wait for the next one.

pub mod client;

use std::collections::VecDeque;
use std::fs::{self, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, select, unbounded};
use log::{debug, info, warn};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::config;
use crate::error::os_text;
use crate::exec::registry::Registry;
use crate::exec::tree::COOKIE;

/// The variable that tells a client where the runner listens.
const SOCKET: &str = "AIRKAFKA_RUNNER";
/// The variable that tells a client the program to execute where there is no runner.
const INSTEAD: &str = "AIRKAFKA_RUNNER_INSTEAD";
/// As many characters as any cookie has; the children write theirs over it.
const COOKIE_SPACE: usize = 96;

/// How often is looked after those that have retired, and whether a ping is due.
const TICK: Duration = Duration::from_secs(1);
/// How long importing may take.
const START_LIMIT: Duration = Duration::from_secs(180);
/// How often the runner is asked whether it lives.
const PING_EVERY: Duration = Duration::from_secs(15);
/// How long it may take to answer.
const PING_LIMIT: Duration = Duration::from_secs(20);
/// One that has been up for so long was all right.
const PROVEN: Duration = Duration::from_secs(60);
/// After so many in a row that were not, commands do without for a while.
const FAILURES: u32 = 3;
/// So long.
const REST: Duration = Duration::from_secs(60);
/// Lines of its output that are shown when it fails.
const LAST_LINES: usize = 12;

/// Which commands go to a runner, and where it listens.
#[derive(Debug)]
pub struct Preload {
    registry: Arc<Registry>,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    /// Not wanted so far.
    Idle,
    /// A thread looks after it.
    Watched(Watched),
    /// It cannot be had.
    Off,
}

#[derive(Debug)]
struct Watched {
    program: PathBuf,
    dir: TempDir,
    /// False: commands do without for now.
    usable: bool,
    wishes: Sender<Wish>,
}

/// What the thread is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    /// Start a fresh one; the old one ends with its last child.
    Reload,
    /// Nothing runs any more.
    End,
}

impl Preload {
    /// None so far; `None` where none is ever wanted.
    pub fn new(mode: config::Preload, registry: Arc<Registry>) -> Option<Arc<Preload>> {
        (mode != config::Preload::None).then(|| Arc::new(Preload { registry, state: Mutex::new(State::Idle) }))
    }

    /// Where the runner of `program` listens, which is started if this is the first command for it. `None`: to be run
    /// without.
    pub fn socket_for(self: &Arc<Self>, program: &Path) -> Option<PathBuf> {
        let mut state = self.state();
        if matches!(*state, State::Idle) {
            *state = self.start(program);
        }
        match &*state {
            State::Watched(watched) if watched.usable && watched.program == program => Some(socket(&watched.dir)),
            _ => None,
        }
    }

    /// Starts a fresh runner, as after an upgrade of Airflow. False: there is none.
    pub fn reload(&self) -> bool {
        self.wish(Wish::Reload)
    }

    /// Ends it; to be called when no command runs any more.
    pub fn end(&self) {
        self.wish(Wish::End);
        *self.state() = State::Off; // and its directory is gone
    }

    fn wish(&self, wish: Wish) -> bool {
        match &*self.state() {
            State::Watched(watched) => watched.wishes.send(wish).is_ok(),
            _ => false,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn start(self: &Arc<Self>, program: &Path) -> State {
        let started = || -> io::Result<Watched> {
            let dir =
                tempfile::Builder::new().prefix("airkafka-").permissions(Permissions::from_mode(0o700)).tempdir()?;
            let listener = UnixListener::bind(socket(&dir))?;
            fs::set_permissions(socket(&dir), Permissions::from_mode(0o600))?;
            let (wishes, told) = unbounded();
            let watch = Watch {
                preload: self.clone(),
                program: program.into(),
                socket: socket(&dir),
                listener,
                told,
                failures: 0,
                retired: Vec::new(),
            };
            thread::Builder::new().name("airkafka-preload".into()).spawn(move || watch.run())?;
            Ok(Watched { program: program.into(), dir, usable: true, wishes })
        };
        match started() {
            Ok(watched) => {
                info!("preloading {}, so that tasks of Airflow are forked (--preload)", program.display());
                State::Watched(watched)
            }
            Err(e) => {
                warn!("nothing is preloaded: {}; tasks of Airflow run in new interpreters", os_text(&e));
                State::Off
            }
        }
    }

    fn set_usable(&self, is_usable: bool) {
        if let State::Watched(watched) = &mut *self.state() {
            watched.usable = is_usable;
        }
    }
}

fn socket(dir: &TempDir) -> PathBuf {
    dir.path().join("runner")
}

/// The thread that looks after runners.
struct Watch {
    preload: Arc<Preload>,
    program: PathBuf,
    socket: PathBuf,
    listener: UnixListener,
    told: Receiver<Wish>,
    /// How many in a row have not proven themselves.
    failures: u32,
    /// Those that take no more, and have children.
    retired: Vec<Runner>,
}

/// A runner's process.
struct Runner {
    child: Child,
    lines: Receiver<Line>,
    since: Instant,
    is_ready: bool,
    pinged: Instant,
    last_lines: VecDeque<String>,
}

/// What a runner writes.
enum Line {
    /// To us.
    Said(String),
    /// To whoever reads it.
    Noise(String),
}

/// How the time with one runner ends.
enum Over {
    /// It takes no more: another one, at once.
    Retired,
    /// It has ended, or could not be started.
    Failed(String),
    /// Nothing runs any more.
    End,
}

impl Watch {
    fn run(mut self) {
        loop {
            match self.one() {
                Over::Retired => self.failures = 0,
                Over::End => return,
                Over::Failed(why) => {
                    if self.failures < FAILURES {
                        warn!("{why}; starting another one");
                        thread::sleep(Duration::from_millis(200));
                    } else {
                        warn!("{why}; tasks of Airflow run in new interpreters for {REST:?}, then it is tried again");
                        self.preload.set_usable(false);
                        if self.rest() == Some(Wish::End) {
                            return;
                        }
                        self.preload.set_usable(true);
                    }
                }
            }
        }
    }

    /// Does without for a while, unless told otherwise. Who waits for a runner is sent away.
    fn rest(&self) -> Option<Wish> {
        let until = Instant::now() + REST;
        while Instant::now() < until {
            let _ = self.listener.set_nonblocking(true);
            while let Ok((mut client, _)) = self.listener.accept() {
                let _ = client.write_all(b"no it cannot be preloaded (see the worker's log)\n"); // it may be gone
            }
            let _ = self.listener.set_nonblocking(false);
            if let Ok(wish) = self.told.recv_timeout(TICK) {
                return Some(wish);
            }
        }
        None
    }

    /// Starts a runner, and looks after it as long as it takes commands.
    fn one(&mut self) -> Over {
        let mut runner = match self.start() {
            Ok(runner) => runner,
            Err(e) => {
                self.failures += 1;
                return Over::Failed(format!("{} cannot be started: {}", self.program.display(), os_text(&e)));
            }
        };
        let pid = runner.child.id();
        loop {
            select! {
                recv(runner.lines) -> line => match line {
                    Ok(Line::Said(said)) => match said.split_once(' ') {
                        Some(("ready", what)) => {
                            info!("the preloaded runner {pid} is ready: {what}");
                            (runner.is_ready, runner.pinged) = (true, Instant::now());
                        }
                        Some(("retiring", why)) => {
                            info!("the preloaded runner {pid} takes no more: {why}; a fresh one takes its place");
                            self.retired.push(runner);
                            return Over::Retired;
                        }
                        _ => debug!("the preloaded runner {pid} says {said:?}"),
                    },
                    Ok(Line::Noise(line)) => {
                        debug!("preloaded runner {pid}: {line}");
                        runner.last_lines.push_back(line);
                        if runner.last_lines.len() > LAST_LINES {
                            runner.last_lines.pop_front();
                        }
                    }
                    Err(_) => return self.failed(runner, "has ended"),
                },
                recv(self.told) -> wish => match wish {
                    Ok(Wish::Reload) => {
                        info!("a fresh runner is preloaded, as asked for");
                        runner.signal(Signal::TERM);
                        self.retired.push(runner);
                        return Over::Retired;
                    }
                    Ok(Wish::End) | Err(_) => {
                        self.retired.push(runner);
                        self.retired.iter_mut().for_each(|runner| runner.signal(Signal::TERM));
                        return Over::End;
                    }
                },
                default(TICK) => {}
            }
            let registry = self.preload.registry.clone();
            self.retired.retain_mut(|runner| !runner.has_ended(&registry));
            if !runner.is_ready && runner.since.elapsed() > START_LIMIT {
                return self.failed(runner, "has not come up in time");
            }
            if runner.is_ready && runner.pinged.elapsed() > PING_EVERY {
                if let Err(e) = ping(&self.socket) {
                    return self.failed(runner, &format!("does not answer ({})", os_text(&e)));
                }
                runner.pinged = Instant::now();
            }
        }
    }

    fn start(&self) -> io::Result<Runner> {
        let listener: OwnedFd = self.listener.try_clone()?.into();
        let mut command = Command::new(&self.program);
        command
            .arg("serve")
            .env(COOKIE, "-".repeat(COOKIE_SPACE))
            .stdin(Stdio::from(listener))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0); // Ctrl-C is for us; what runs is ended in good order
        let mut child = self.preload.registry.enter_helper(|| command.spawn())?;
        let (lines_in, lines) = unbounded();
        let said = child.stdout.take().map(|pipe| (pipe, lines_in.clone()));
        let noise = child.stderr.take().map(|pipe| (pipe, lines_in));
        if let (Some((said, to)), Some((noise, too))) = (said, noise) {
            pass_on(said, Line::Said, to)?;
            pass_on(noise, Line::Noise, too)?;
        }
        let now = Instant::now();
        Ok(Runner { child, lines, since: now, is_ready: false, pinged: now, last_lines: VecDeque::new() })
    }

    /// A runner is of no use any more. What it runs tells its end by itself.
    fn failed(&mut self, mut runner: Runner, how: &str) -> Over {
        let pid = runner.child.id();
        runner.signal(Signal::KILL);
        let status = runner.child.wait();
        self.preload.registry.leave_helper(pid);
        self.failures = if runner.is_ready && runner.since.elapsed() > PROVEN { 1 } else { self.failures + 1 };
        let mut why = format!(
            "the preloaded runner {pid} {how} ({})",
            status.map_or_else(|e| os_text(&e), |status| status.to_string())
        );
        if !runner.is_ready {
            for line in &runner.last_lines {
                why.push_str("\n    ");
                why.push_str(line);
            }
        }
        Over::Failed(why)
    }
}

impl Runner {
    fn signal(&mut self, signal: Signal) {
        // Not reaped yet, so the number is its own.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill_process(Pid::from_child(&self.child), signal);
        }
    }

    fn has_ended(&mut self, registry: &Registry) -> bool {
        let has_ended = !matches!(self.child.try_wait(), Ok(None));
        if has_ended {
            registry.leave_helper(self.child.id());
        }
        has_ended
    }
}

/// Reads lines to the end, whether or not anybody wants them: a full pipe would stop who writes.
fn pass_on(pipe: impl Read + Send + 'static, kind: fn(String) -> Line, to: Sender<Line>) -> io::Result<()> {
    let read = move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            let _ = to.send(kind(String::from_utf8_lossy(&line).into_owned()));
        }
    };
    thread::Builder::new().name("airkafka-preload".into()).spawn(read).map(drop)
}

fn ping(socket: &Path) -> io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PING_LIMIT))?;
    stream.write_all(&client::frame(&[b"ping"]))?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer)?;
    if &answer == b"pong\n" { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}
