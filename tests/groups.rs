//! Several workers in one consumer group on a real broker: sharing, handing over, leaving and dying.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use serde_json::json;
use support::broker::{Broker, committed_metadata};
use support::kafka::KeyValue;
use support::topics::{Dice, Topics, record, trace};
use support::worker::Worker;

/// A command that appends its name and its worker to a file when it starts, and its name when it ends.
fn traced(name: &str, file: &Path, seconds: f32) -> KeyValue {
    let file = file.display();
    let script =
        format!("echo start {name} ${{AIRKAFKA_COMMAND_ID%%-*}} >>{file}; sleep {seconds}; echo end {name} >>{file}");
    record(name, json!(["sh", "-c", script]))
}

/// Who started each command, in order: the workers' process ids.
fn starts(file: &Path) -> BTreeMap<String, Vec<u32>> {
    let mut starts = BTreeMap::<String, Vec<u32>>::new();
    for line in fs::read_to_string(file).unwrap_or_default().lines() {
        if let Some((name, worker)) = line.strip_prefix("start ").and_then(|rest| rest.split_once(' ')) {
            starts.entry(name.to_owned()).or_default().push(u32::from_str_radix(worker, 16).expect("a process id"));
        }
    }
    starts
}

/// What a worker's log says of a command and of the group.
fn told_of(pid: u32, log: &str, name: &str) -> String {
    let record = format!("key={name}");
    let line = log.lines().find(|line| line.split(' ').any(|word| word == record));
    let at = line.and_then(|line| line.split(' ').find(|word| word.contains('@'))).unwrap_or("@@");
    let telling = |line: &&str| {
        [at, "generation", "lost", "draining", "revoked", "left", "ended;", "fails"]
            .iter()
            .any(|word| line.contains(word))
    };
    format!("--- worker {pid}\n{}\n", log.lines().filter(telling).collect::<Vec<_>>().join("\n"))
}

fn stop(mut worker: Worker) {
    worker.signal("TERM");
    worker.expect_exit(0);
}

#[test]
fn three_workers_share_eight_partitions() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace");
    let topics = Topics::new(Broker::shared(), 8);
    let workers: Vec<Worker> = (0..3).map(|_| topics.worker(&["--threads", "2"])).collect();
    for worker in &workers {
        worker.wait_for_log("3 member(s)");
        worker.signal("USR1");
        worker.wait_for_log("status: 0 command(s) started, 0 of 2 thread(s) busy, 0 waiting");
    }
    let records: Vec<KeyValue> = (0..120).map(|n| traced(&n.to_string(), &file, 0.05)).collect();
    topics.spread(8, &records);
    topics.wait_for_results(&workers[0], 120);
    let pids: BTreeSet<u32> = workers.iter().map(Worker::pid).collect();
    workers.into_iter().for_each(stop);
    let starts = starts(&file);
    assert!(starts.values().all(|workers| workers.len() == 1), "{starts:?}");
    assert_eq!(starts.values().map(|workers| workers[0]).collect::<BTreeSet<_>>(), pids, "all three took part");
    assert_eq!(topics.committed(), 120);
    assert!(topics.states().values().all(|states| states == &["success"]));
}

#[test]
fn a_partition_that_moves_takes_along_what_still_runs() {
    let dir = tempfile::tempdir().unwrap();
    let (file, go) = (dir.path().join("trace"), dir.path().join("go"));
    let topics = Topics::new(Broker::shared(), 2);
    let wait = |name: &str| {
        let script = format!(
            "echo start {name} ${{AIRKAFKA_COMMAND_ID%%-*}} >>{0}; while ! test -e {1}; do sleep 0.05; done",
            file.display(),
            go.display()
        );
        record(name, json!(["sh", "-c", script]))
    };
    topics.spread(2, &[wait("long-0"), wait("long-1")]);
    let old = topics.worker(&["--threads", "3"]);
    old.wait_until("both long ones", || starts(&file).len() == 2);
    let new = topics.worker(&["--threads", "3"]);
    new.wait_for_log("2 member(s), here partition(s) 1 ");
    // Behind the long one of each partition: both workers go on with theirs.
    let records: Vec<KeyValue> = (0..40).map(|n| traced(&n.to_string(), &file, 0.0)).collect();
    topics.spread(2, &records);
    topics.wait_for_results(&new, 40);
    assert_eq!(topics.committed(), 0, "both positions are held by the long ones");
    fs::write(&go, "").unwrap();
    topics.wait_for_results(&new, 42);
    new.wait_until("all offsets committed", || topics.committed() == 42);
    stop(old);
    stop(new);
    let starts = starts(&file);
    assert_eq!(starts.len(), 42);
    assert!(starts.values().all(|workers| workers.len() == 1), "started twice: {starts:?}");
    assert!(topics.states().values().all(|states| states == &["success"]));
}

#[test]
fn a_worker_that_drains_hands_its_partitions_over_and_finishes_its_command() {
    let dir = tempfile::tempdir().unwrap();
    let (file, go) = (dir.path().join("trace"), dir.path().join("go"));
    let topics = Topics::new(Broker::shared(), 1);
    let script = format!(
        "echo start long ${{AIRKAFKA_COMMAND_ID%%-*}} >>{0}; while ! test -e {1}; do sleep 0.05; done",
        file.display(),
        go.display()
    );
    topics.spread(1, &[record("long", json!(["sh", "-c", script]))]);
    let mut old = topics.worker(&["--threads", "1"]);
    old.wait_until("start", || starts(&file).len() == 1);
    let new = topics.worker(&["--threads", "1"]);
    new.wait_for_log("2 member(s)");
    old.signal("TERM");
    topics.spread(1, &[traced("next", &file, 0.0)]);
    topics.wait_for_results(&new, 1); // the backlog goes on elsewhere, although the long one still runs
    fs::write(&go, "").unwrap();
    old.expect_exit(0);
    new.wait_until("all offsets committed", || topics.committed() == 2);
    stop(new);
    let starts = starts(&file);
    assert!(starts.values().all(|workers| workers.len() == 1), "started twice: {starts:?}");
    assert_eq!(topics.states().len(), 2);
}

#[test]
fn what_a_killed_worker_ran_runs_again_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace");
    let topics = Topics::new(Broker::shared(), 2);
    topics.spread(2, &[traced("a", &file, 1.0), traced("b", &file, 1.0)]);
    let mut old = topics.worker(&["--threads", "2"]);
    old.wait_until("start", || starts(&file).len() == 2);
    let new = topics.worker(&["--threads", "2"]);
    new.wait_for_log("2 member(s)");
    old.kill();
    topics.wait_for_results(&new, 2);
    new.wait_until("all offsets committed", || topics.committed() == 2);
    stop(new);
    assert!(starts(&file).values().all(|workers| workers.len() == 2), "{:?}", starts(&file));
    assert!(topics.states().values().all(|states| states == &["success"]));
}

#[test]
fn a_static_member_that_comes_back_has_its_partitions_at_once_and_a_double_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace");
    let topics = Topics::new(Broker::shared(), 2);
    let long = ["-X", "session.timeout.ms=30000"]; // nobody is missed while this test lasts
    let start = |id: &str| {
        let group = ["--brokers", &topics.broker, "--topic", &topics.commands, "--results-topic", &topics.results];
        let more = ["--group", &topics.group, "--instance-id", id, "--threads", "2", "-v"];
        Worker::start(&[&group[..], &more, &long].concat())
    };
    let mut one = start("one");
    let two = start("two");
    for worker in [&one, &two] {
        worker.wait_for_log("2 member(s), here partition(s) ");
    }
    let partition = |worker: &Worker| {
        let log = worker.log();
        let last = log.rsplit("here partition(s) ").next().unwrap();
        last.split(' ').next().unwrap().to_owned()
    };
    one.wait_until("a partition each", || partition(&one) != "none" && partition(&two) != "none");
    let (of_one, of_two) = (partition(&one), partition(&two));
    topics.spread(2, &[traced("a", &file, 1.0), traced("b", &file, 1.0)]);
    one.wait_until("start of both", || starts(&file).len() == 2);
    one.kill();
    let one_again = start("one");
    one_again.wait_for_log(&format!("here partition(s) {of_one} "));
    topics.wait_for_results(&two, 2);
    one_again.wait_until("all offsets committed", || topics.committed() == 2);
    assert_eq!(partition(&two), of_two, "nothing moved");
    let runs: Vec<usize> = starts(&file).values().map(Vec::len).collect();
    assert_eq!(runs.iter().sum::<usize>(), 3, "what ran on the one that was killed ran again, and nothing else");
    // A second worker of the same name takes over, and the first one ends and says so.
    let double = start("one");
    let mut one_again = one_again;
    one_again.expect_exit(78);
    assert!(one_again.log().contains("another worker has taken over this --instance-id"), "{}", one_again.log());
    stop(double);
    stop(two);
}

#[test]
fn a_long_command_costs_no_membership_and_holds_up_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace");
    let topics = Topics::new(Broker::shared(), 1);
    let seconds: f32 =
        std::env::var("AIRKAFKA_TEST_LONG_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20.0);
    topics.spread(1, &[traced("long", &file, seconds)]);
    let worker = topics.worker(&["--threads", "2"]);
    worker.wait_until("start", || starts(&file).len() == 1);
    let records: Vec<KeyValue> = (0..2000).map(|n| record(&n.to_string(), json!(["true"]))).collect();
    topics.spread(1, &records);
    topics.wait_for_results(&worker, 2000);
    assert_eq!(trace(&file, "end").len(), 0, "the long one still runs");
    let patience = Duration::from_secs_f32(seconds * 2.0 + 60.0);
    assert!(support::worker::wait_until_within(patience, || topics.committed() == 2001), "{}", worker.log());
    assert_eq!(worker.log().matches("member(s), here partition(s)").count(), 1, "no rebalance: {}", worker.log());
    stop(worker);
    assert_eq!(starts(&file)["long"].len(), 1);
}

#[test]
fn a_crash_behind_a_long_command_runs_that_one_alone_again() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace");
    let topics = Topics::new(Broker::shared(), 1);
    let after: usize = std::env::var("AIRKAFKA_TEST_AFTER").ok().and_then(|text| text.parse().ok()).unwrap_or(5000);
    topics.spread(1, &[traced("long", &file, 3600.0)]);
    let mut old = topics.worker(&["--threads", "8", "-q"]);
    old.wait_until("start", || starts(&file).len() == 1);
    let records: Vec<KeyValue> = (0..after).map(|n| record(&n.to_string(), json!(["true"]))).collect();
    topics.spread(1, &records);
    let patience = Duration::from_secs(600);
    assert!(support::worker::wait_until_within(patience, || support::kafka::count(&topics.broker, &topics.results)
        == after));
    let metadata = || committed_metadata(&topics.broker, &topics.group, &topics.commands).unwrap_or_default();
    // One open offset, and all behind it settled: their number in letters, as `src/ledger/codec.rs` has it.
    let mut letters = String::new();
    let mut rest = after;
    while rest > 0 {
        letters.insert(0, char::from(b'a' + ((rest - 1) % 26) as u8));
        rest = (rest - 1) / 26;
    }
    let all_but_one = |text: &str| text == format!("1:0:A{letters}");
    old.wait_until("commit of all that has ended", || all_but_one(&metadata()));
    eprintln!("metadata behind {after} finished commands: {}", metadata());
    old.kill();
    let mut new = topics.worker(&["--threads", "8", "-v"]);
    new.wait_until("start of the long one elsewhere", || starts(&file)["long"].len() == 2);
    new.signal("TERM");
    new.wait_for_log("draining");
    new.signal("TERM");
    new.expect_exit(75);
    assert_eq!(support::kafka::count(&topics.broker, &topics.results), after, "nothing else ran again");
    support::worker::processes_with("3600")
        .iter()
        .for_each(|pid| drop(std::process::Command::new("kill").arg(pid.to_string()).status()));
}

#[test]
fn a_rebalance_storm_loses_nothing_and_starts_nothing_alive_twice() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace");
    let topics = Topics::new(Broker::shared(), 8);
    let commands: usize = std::env::var("AIRKAFKA_TEST_STORM").ok().and_then(|text| text.parse().ok()).unwrap_or(3000);
    let threads = 8;
    let mut dice = Dice::new();
    let records: Vec<KeyValue> = (0..commands)
        .map(|n| {
            let seconds = match dice.below(100) {
                0..60 => 0.0,
                60..97 => dice.below(200) as f32 / 1000.0,
                _ => 1.0 + dice.below(6000) as f32 / 1000.0,
            };
            traced(&n.to_string(), &file, seconds)
        })
        .collect();
    topics.spread(8, &records);
    let start = || topics.worker(&["--threads", &threads.to_string()]);
    let mut workers: Vec<Worker> = (0..3).map(|_| start()).collect();
    let mut killed = BTreeSet::new();
    let mut logs = Vec::new(); // of those that are gone
    let mut leaving = Vec::new();
    let mut changes = 0;
    while topics.committed() < commands as i64 {
        thread::sleep(Duration::from_secs(3));
        changes += 1;
        assert!(changes < 200, "it does not come to an end: {} of {commands} committed", topics.committed());
        match dice.below(3) {
            0 if workers.len() > 1 => {
                let mut victim = workers.swap_remove(dice.below(workers.len() as u64) as usize);
                killed.insert(victim.pid());
                victim.kill();
                logs.push((victim.pid(), victim.log()));
            }
            1 if workers.len() > 1 => {
                let leaver = workers.swap_remove(dice.below(workers.len() as u64) as usize);
                leaver.signal("TERM");
                leaving.push(leaver);
            }
            _ if workers.len() < 5 => workers.push(start()),
            _ => {}
        }
        if workers.len() < 2 {
            workers.push(start());
        }
    }
    workers.iter().for_each(|worker| worker.signal("TERM")); // those that leave have had theirs
    for mut worker in leaving.into_iter().chain(workers) {
        worker.expect_exit(0);
        logs.push((worker.pid(), worker.log()));
    }
    let starts = starts(&file);
    let states = topics.states();
    eprintln!(
        "{commands} commands, {changes} changes, {} killed, run again {}",
        killed.len(),
        starts.values().map(|w| w.len() - 1).sum::<usize>()
    );
    assert_eq!(states.len(), commands, "keys with a result");
    assert!(states.values().flatten().all(|state| state == "success"));
    assert_eq!(starts.len(), commands, "commands that ran");
    let mut again: BTreeMap<u32, usize> = BTreeMap::new();
    for (name, workers) in &starts {
        for worker in &workers[..workers.len() - 1] {
            let of_both = || logs.iter().filter(|(pid, _)| workers.contains(pid));
            assert!(
                killed.contains(worker),
                "command {name} was started again though worker {worker} was not killed: {workers:?}\n{}",
                of_both().map(|(pid, log)| told_of(*pid, log, name)).collect::<String>()
            );
            *again.entry(*worker).or_default() += 1;
        }
    }
    // What ran on it, and what had ended within one commit interval.
    assert!(again.values().all(|&count| count <= 4 * threads), "{again:?}");
}
