//! The real binary under test: started, watched, signalled; its whole log is printed when a test fails.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{fs, thread};

use serde_json::Value;

/// No test waits longer than this for anything.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A running worker. Killed when dropped.
pub struct Worker {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Lines,
    log: Lines,
    signalled: std::cell::Cell<bool>,
}

/// What a stream has brought so far.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    fn collect(stream: impl Read + Send + 'static) -> Lines {
        let lines = Lines::default();
        let to = lines.clone();
        thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                to.0.lock().unwrap().push(String::from_utf8_lossy(&line).into_owned());
            }
        });
        lines
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

impl Worker {
    /// A command for the binary, without any AIRKAFKA or AIRFLOW variable of ours. Its group is a consumer group, unless an
    /// option says otherwise: `auto` would make of it what the broker offers.
    pub fn command() -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_airkafka-worker"));
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("AIRKAFKA_") || text.starts_with("AIRFLOW_") {
                command.env_remove(&name);
            }
        }
        command.env("AIRKAFKA_GROUP_TYPE", "consumer");
        command
    }

    /// Starts it with `args`.
    pub fn start(args: &[&str]) -> Worker {
        Self::start_command(Self::command().args(args))
    }

    /// Starts `command`, made by [`command`](Self::command).
    pub fn start_command(command: &mut Command) -> Worker {
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.expect("the worker's binary");
        let stdout = Lines::collect(child.stdout.take().unwrap());
        let log = Lines::collect(child.stderr.take().unwrap());
        let stdin = child.stdin.take();
        Worker { child, stdin, stdout, log, signalled: false.into() }
    }

    /// Starts it on the topics of a broker; more `args` go after.
    pub fn on(broker: &str, topic: &str, results: &str, args: &[&str]) -> Worker {
        let group = format!("{topic}-group");
        let level = if args.iter().any(|arg| arg.starts_with("-q")) { &[][..] } else { &["-v"] };
        let base = ["--brokers", broker, "--topic", topic, "--results-topic", results, "--group", &group];
        Self::start(&[&base[..], level, args].concat())
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes a line to its stdin.
    pub fn write(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("stdin is open");
        writeln!(stdin, "{line}").and_then(|()| stdin.flush()).expect("write to the worker");
    }

    /// Ends its stdin.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        self.log.all().join("\n")
    }

    /// Its stdout so far, a JSON value a line.
    pub fn results(&self) -> Vec<Value> {
        self.stdout
            .all()
            .iter()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line:?}")))
            .collect()
    }

    /// Waits until stdout has `count` lines.
    pub fn wait_for_results(&self, count: usize) -> Vec<Value> {
        self.wait_until(&format!("{count} results"), || self.stdout.all().len() >= count);
        self.results()
    }

    /// Waits until the log holds `text`.
    pub fn wait_for_log(&self, text: &str) {
        self.wait_until(&format!("log line with {text:?}"), || self.log().contains(text));
    }

    /// Waits until `is_so`; fails with all it has printed if that takes too long.
    pub fn wait_until(&self, what: &str, is_so: impl Fn() -> bool) {
        let has_ended = || stat(self.pid()).is_none_or(|(state, _)| state == "Z");
        if !wait_until(|| is_so() || has_ended()) || !is_so() {
            let how = if has_ended() { "before the worker ended".into() } else { format!("within {PATIENCE:?}") };
            panic!("no {what} {how}\n--- log\n{}\n--- stdout\n{}", self.log(), self.stdout.all().join("\n"));
        }
    }

    /// Sends it a signal by name, as kill(1) knows it. A second one has to keep its distance to count as a second one.
    pub fn signal(&self, name: &str) {
        if self.signalled.replace(true) {
            thread::sleep(Duration::from_millis(60));
        }
        let status = Command::new("kill").args(["-s", name, &self.pid().to_string()]).status().expect("kill(1)");
        assert!(status.success(), "kill -s {name}");
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        self.close_stdin();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("wait for the worker") {
                thread::sleep(Duration::from_millis(50)); // for the last lines of its log
                return status;
            }
            assert!(Instant::now() < deadline, "the worker does not end\n--- log\n{}", self.log());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for its end and returns its exit code, which has to be `code`.
    pub fn expect_exit(&mut self, code: i32) {
        let status = self.wait();
        assert_eq!(status.code(), Some(code), "{status}\n--- log\n{}", self.log());
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.child.kill().expect("kill the worker");
        self.child.wait().expect("wait for the worker");
    }

    /// A figure in KiB of its `/proc/PID/status`, such as `VmHWM`.
    pub fn status_kib(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the worker's status");
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the field");
        line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().expect("a number")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- log of the worker\n{}", self.log());
        }
    }
}

/// Waits until `is_so`, up to [`PATIENCE`].
pub fn wait_until(is_so: impl Fn() -> bool) -> bool {
    wait_until_within(PATIENCE, is_so)
}

/// Waits until `is_so`, for what may take longer than usual.
pub fn wait_until_within(patience: Duration, is_so: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    while !is_so() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
    true
}

/// Runs the worker on lines of input; its results by key. It has to end with exit code 0.
pub fn run_input(lines: &[String], args: &[&str]) -> std::collections::BTreeMap<String, Value> {
    let mut worker = Worker::start(&[&["--input", "-"], args].concat());
    lines.iter().for_each(|line| worker.write(line));
    worker.expect_exit(0);
    let results = worker.results();
    assert_eq!(results.len(), lines.len(), "one result per line\n--- log\n{}", worker.log());
    results.into_iter().map(|result| (result["key"].as_str().unwrap_or_default().to_owned(), result)).collect()
}

/// The processes with `text` among their arguments, zombies left out.
pub fn processes_with(text: &str) -> Vec<u32> {
    let has_text = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|&b| b == 0).any(|arg| arg == text.as_bytes())
    };
    processes().filter(has_text).collect()
}

/// The children of `parent` that are zombies.
pub fn zombies_of(parent: u32) -> usize {
    processes().filter(|&pid| stat(pid).is_some_and(|stat| stat == ("Z".to_owned(), parent))).count()
}

fn processes() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// State and parent of a process.
fn stat(pid: u32) -> Option<(String, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit(')').next()?.split_whitespace();
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}

/// What matters of an outcome: state, reason, exit code, signal.
pub fn outcome(result: &Value) -> (&str, &str, Option<i64>, Option<i64>) {
    let text = |name| result[name].as_str().unwrap();
    (text("state"), text("reason"), result["exit_code"].as_i64(), result["signal"].as_i64())
}

/// An argument for `sleep` that no other process has: the tree can be found by it, whatever it has moved away from.
pub fn lifetime(seed: u32) -> String {
    format!("{}.{:03}", 100_000 + std::process::id() % 100_000, seed)
}
