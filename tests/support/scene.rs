//! What a test under faults plays on: topics, workers in one group, commands that leave a trace, and what came of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::json;

use super::client::Client;
use super::kafka::KeyValue;
use super::topics::record;
use super::worker::Worker;

/// Gives a worker a short session, so that a member that is gone is missed soon.
fn short_session(command: &mut Command) {
    command.args(["-X", "session.timeout.ms=6000"]);
}

/// Topics with a trace of the commands that ran.
pub struct Scene {
    /// Talks to the brokers, past any proxy.
    pub client: Client,
    /// What the workers are told.
    pub brokers: String,
    pub commands: String,
    pub results: String,
    pub group: String,
    pub partitions: usize,
    dir: tempfile::TempDir,
}

/// One start of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The worker's process id.
    pub worker: u32,
    /// It had been started before, and not ended yet.
    pub twice_alive: bool,
}

impl Scene {
    /// Of topics that `create` makes (name, partitions); workers are told `brokers`.
    pub fn new(client: Client, brokers: &str, partitions: usize, create: impl Fn(&str, usize)) -> Scene {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let commands = format!("scene-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let (results, group) = (format!("{commands}-results"), format!("{commands}-group"));
        create(&commands, partitions);
        create(&results, 1);
        let (brokers, dir) = (brokers.to_owned(), tempfile::tempdir().unwrap());
        Scene { client, brokers, commands, results, group, partitions, dir }
    }

    /// Starts a worker on the topics, with a short session.
    pub fn worker(&self, args: &[&str]) -> Worker {
        self.worker_with(args, |_| {})
    }

    /// The same, with more to its command.
    pub fn worker_with(&self, args: &[&str], more: impl FnOnce(&mut Command)) -> Worker {
        let mut command = Worker::command();
        command.args(["--brokers", &self.brokers, "--topic", &self.commands, "--results-topic", &self.results]);
        command.args(["--group", &self.group, "-v"]).args(args);
        short_session(&mut command);
        more(&mut command);
        Worker::start_command(&mut command)
    }

    /// Commands that write their name and their worker to the trace when they start, and their name when they end.
    pub fn traced(&self, names: impl IntoIterator<Item = impl ToString>, seconds: f32) -> Vec<KeyValue> {
        let trace = self.trace();
        let trace = trace.display();
        let traced = |name: String| {
            let script = format!(
                "echo start {name} ${{AIRKAFKA_COMMAND_ID%%-*}} >>{trace}; sleep {seconds}; echo end {name} >>{trace}"
            );
            record(&name, json!(["sh", "-c", script]))
        };
        names.into_iter().map(|name| traced(name.to_string())).collect()
    }

    fn trace(&self) -> PathBuf {
        self.dir.path().join("trace")
    }

    /// Writes commands by turns to all partitions.
    pub fn spread(&self, records: &[KeyValue]) {
        self.client.spread(&self.commands, self.partitions, records);
    }

    /// Every start of each command, in order.
    pub fn starts(&self) -> BTreeMap<String, Vec<Start>> {
        let mut starts = BTreeMap::<String, Vec<Start>>::new();
        let mut alive = BTreeSet::new();
        for line in fs::read_to_string(self.trace()).unwrap_or_default().lines() {
            if let Some((name, worker)) = line.strip_prefix("start ").and_then(|rest| rest.split_once(' ')) {
                let worker = u32::from_str_radix(worker, 16).expect("a process id");
                let twice_alive = !alive.insert(name.to_owned());
                starts.entry(name.to_owned()).or_default().push(Start { worker, twice_alive });
            } else if let Some(name) = line.strip_prefix("end ") {
                alive.remove(name);
            }
        }
        starts
    }

    /// The most commands that were ever alive at once.
    pub fn most_alive(&self) -> usize {
        let (mut alive, mut most) = (BTreeSet::new(), 0);
        for line in fs::read_to_string(self.trace()).unwrap_or_default().lines() {
            if let Some((name, _)) = line.strip_prefix("start ").and_then(|rest| rest.split_once(' ')) {
                alive.insert(name.to_owned());
                most = most.max(alive.len());
            } else if let Some(name) = line.strip_prefix("end ") {
                alive.remove(name);
            }
        }
        most
    }

    /// How many commands have ended, each counted once.
    pub fn ended(&self) -> usize {
        let trace = fs::read_to_string(self.trace()).unwrap_or_default();
        trace.lines().filter_map(|line| line.strip_prefix("end ")).collect::<BTreeSet<_>>().len()
    }

    /// The sum of the committed offsets, if the coordinator answers.
    pub fn committed(&self) -> Option<i64> {
        let committed = self.client.committed(&self.group, &self.commands, self.partitions);
        committed.ok().map(|committed| committed.values().map(|(offset, _)| offset).sum())
    }

    /// Waits until this many records are committed, and nothing is left beyond.
    pub fn wait_for_commit(&self, worker: &Worker, records: usize) {
        worker.wait_until(&format!("commit of {records} records"), || self.committed() == Some(records as i64));
    }

    /// The states of the results by key; a key with several has them all.
    pub fn states(&self) -> BTreeMap<String, Vec<String>> {
        let mut states = BTreeMap::<_, Vec<String>>::new();
        for (key, value) in self.client.read_all(&self.results) {
            let text = |bytes| String::from_utf8(bytes).expect("text");
            states.entry(text(key)).or_default().push(text(value));
        }
        states
    }

    /// Fails unless each of `records` has run and has a result, and all results are `success`.
    pub fn assert_none_lost(&self, records: &[KeyValue], workers: &[&Worker]) {
        let states = self.states();
        let starts = self.starts();
        let name = |(key, _): &KeyValue| String::from_utf8(key.clone()).unwrap();
        let without: Vec<String> = records.iter().map(name).filter(|name| !states.contains_key(name)).collect();
        let never: Vec<&String> = without.iter().filter(|name| !starts.contains_key(*name)).collect();
        let failed: Vec<_> =
            states.iter().filter(|(_, states)| states.iter().any(|state| state != "success")).collect();
        assert!(
            without.is_empty() && failed.is_empty(),
            "without a result: {without:?}, of them never started: {never:?}; not a success: {failed:?}\n{}",
            logs(workers)
        );
        let again: usize = starts.values().map(|starts| starts.len() - 1).sum();
        let results: usize = states.values().map(Vec::len).sum();
        eprintln!("{} commands, {again} started again, {results} results", records.len());
    }

    /// Fails if a result stands in its topic more often than its command was started: a result whose answer was lost is
    /// written again, but not a second time.
    pub fn assert_results_once(&self) {
        let starts = self.starts();
        let states = self.states();
        let times = |name: &String| starts.get(name).map_or(0, Vec::len);
        let twice: Vec<_> = states.iter().filter(|(name, states)| states.len() > times(name)).collect();
        assert!(twice.is_empty(), "more results than starts: {twice:?}");
    }

    /// Fails if a command was started while it ran.
    pub fn assert_nothing_alive_twice(&self, workers: &[&Worker]) {
        let starts = self.starts();
        let twice: Vec<_> = starts.iter().filter(|(_, starts)| starts.iter().any(|start| start.twice_alive)).collect();
        assert!(twice.is_empty(), "started while it ran: {twice:?}\n{}", logs(workers));
    }
}

fn logs(workers: &[&Worker]) -> String {
    workers.iter().map(|worker| format!("--- log of worker {:x}\n{}\n", worker.pid(), worker.log())).collect()
}

/// Drains a worker; it has to end well, and not to have panicked.
pub fn stop(mut worker: Worker) {
    worker.signal("TERM");
    worker.expect_exit(0);
    let log = worker.log();
    assert!(!log.contains("panicked"), "{log}");
}
