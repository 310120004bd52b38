//! The worker on a real Kafka broker: records as AirKafka writes them, delivery, drain, crashes.

mod support;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use support::broker::Broker;
use support::kafka::{KeyValue, committed, produce, read_all};
use support::topics::{Client, Dice, Topics, originals, record, trace, traced};
use support::worker::Worker;

/// Makes two tests of each: with our own client and with the kafka crate.
macro_rules! with_both_clients {
    ($($test:ident),* $(,)?) => {
        mod own_client {
            $(#[test] fn $test() { super::$test(super::Client::Own) })*
        }
        mod kafka_crate {
            $(#[test] fn $test() { super::$test(super::Client::Crate) })*
        }
    };
}

with_both_clients!(
    the_original_records_are_run_and_answered_under_their_very_keys,
    the_state_format_is_what_the_original_writes,
    hostile_records_are_each_answered_and_their_neighbours_unharmed,
    a_dead_letter_topic_gets_what_is_no_command_unchanged,
    a_record_larger_than_the_fetch_size_is_run,
    latest_passes_over_what_is_old_but_nothing_that_comes,
    threads_run_beyond_the_partition_count,
    a_drain_settles_what_runs_and_leaves_the_rest_to_the_next,
    what_a_cut_drain_aborts_runs_again,
    killed_ten_times_it_loses_nothing,
    the_broker_restarts_under_load_and_nothing_is_lost,
    a_result_waits_for_a_broker_that_is_away,
    a_broker_that_comes_late_is_waited_for,
);

fn the_original_records_are_run_and_answered_under_their_very_keys(client: Client) {
    let topics = Topics::new(Broker::shared(), 1).with(client);
    let records = originals();
    let neighbour = record("neighbour", json!(["true"]));
    produce(&topics.broker, &topics.commands, 0, &records);
    produce(&topics.broker, &topics.commands, 0, std::slice::from_ref(&neighbour));

    let asked = tempfile::tempdir().unwrap();
    let bin = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/bin");
    let mut command = Worker::command();
    command
        .args(["--brokers", &topics.broker, "--topic", &topics.commands, "--results-topic", &topics.results])
        .args(["--threads", "4", "--result-format", "json"])
        .args(client.args())
        .env("PATH", format!("{}:{}", bin.display(), std::env::var("PATH").unwrap()))
        .env("ASKED_DIR", asked.path());
    let mut worker = Worker::start_command(&mut command);
    topics.wait_for_results(&worker, records.len() + 1);
    worker.signal("TERM");
    worker.expect_exit(0);

    let results = read_all(&topics.broker, &topics.results);
    let mut keys: Vec<_> = results.iter().map(|(key, _)| key.clone()).collect();
    let mut wanted: Vec<_> = records.iter().chain([&neighbour]).map(|(key, _)| key.clone()).collect();
    keys.sort();
    wanted.sort();
    assert_eq!(keys, wanted, "one result per record, under a byte-identical key");
    // Of each record, by its offset: what has to come of it. The last but one is 3.x's workload bare in a JSON string, and
    // the last one that workload as an object: neither is a command.
    let invalid = [14, 16];
    for (_, value) in &results {
        let outcome: Value = serde_json::from_slice(value).unwrap();
        let offset = outcome["offset"].as_u64().unwrap() as usize;
        let expected = if invalid.contains(&offset) { ("failed", "invalid") } else { ("success", "exit") };
        assert_eq!((outcome["state"].as_str().unwrap(), outcome["reason"].as_str().unwrap()), expected, "{outcome}");
    }
    // What the programs were asked to run is what the record says, word for word.
    let mut seen: Vec<Vec<String>> = fs::read_dir(asked.path())
        .unwrap()
        .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap().lines().skip(1).map(str::to_owned).collect())
        .collect();
    let mut wanted: Vec<Vec<String>> = Vec::new();
    for (_, value) in &records {
        let words: Vec<String> = match serde_json::from_slice(value).unwrap() {
            Value::String(text) => text.split(' ').map(str::to_owned).collect(), // none of them has quotes or escapes
            Value::Array(argv) => argv.iter().map(|arg| arg.as_str().unwrap().to_owned()).collect(),
            _ => continue,
        };
        if ["airflow", "python"].contains(&words[0].as_str()) {
            wanted.push(words[1..].to_vec());
        }
    }
    seen.sort();
    wanted.sort();
    assert_eq!(seen, wanted);
    assert_eq!(committed(&topics.broker, "AirflowGroupId", &topics.commands)[&0], records.len() as i64 + 1);
}

fn the_state_format_is_what_the_original_writes(client: Client) {
    let topics = Topics::new(Broker::shared(), 1).with(client);
    topics.spread(1, &[record("a", json!(["true"])), record("b", json!(["false"])), ("c".into(), b"{".to_vec())]);
    let mut worker = topics.worker(&["--threads", "2"]);
    topics.wait_for_results(&worker, 3);
    worker.signal("TERM");
    worker.expect_exit(0);
    let expected = [("a", "success"), ("b", "failed"), ("c", "failed")];
    assert_eq!(topics.states(), expected.map(|(key, state)| (key.into(), vec![state.into()])).into());
    assert!(worker.log().contains("is new: it starts at the earliest record"), "{}", worker.log());
    assert_eq!(worker.log().contains("run one worker per topic"), client == Client::Crate);
}

fn hostile_records_are_each_answered_and_their_neighbours_unharmed(client: Client) {
    let topics = Topics::new(Broker::shared(), 1).with(client);
    let mut dice = Dice::new();
    let seeds = [r#"["true","a"]"#, r#""true 'b'""#, r#"{"command":["true"],"env":{"A":"1"},"stdin":"x","timeout":5}"#];
    let mut records = Vec::new();
    for n in 0..1000u64 {
        let mut value = seeds[dice.below(3) as usize].as_bytes().to_vec();
        for _ in 0..1 + dice.below(4) {
            let at = dice.below(value.len() as u64) as usize;
            match dice.below(3) {
                0 => value[at] = dice.below(256) as u8,
                1 => drop(value.remove(at)),
                _ => value.insert(at, b"{}[]\",:\\\0"[dice.below(9) as usize]),
            }
        }
        records.push((format!("bad {n}").into_bytes(), value));
        records.push(record(&format!("good {n}"), json!(["true"])));
    }
    records.push(("empty".into(), Vec::new()));
    topics.spread(1, &records);
    let mut worker = topics.worker(&["--threads", "8", "--timeout", "10s", "-qq"]);
    topics.wait_for_results(&worker, records.len());
    worker.signal("TERM");
    worker.expect_exit(0);
    let states = topics.states();
    assert_eq!(states.len(), records.len());
    assert!(
        states.iter().all(|(key, states)| states.len() == 1 && (!key.starts_with(b"good") || states[0] == "success"))
    );
    assert_eq!(topics.committed(), records.len() as i64);
}

fn a_dead_letter_topic_gets_what_is_no_command_unchanged(client: Client) {
    let broker = Broker::shared();
    let topics = Topics::new(broker, 1).with(client);
    let dead = format!("{}-dead", topics.commands);
    broker.create_topic(&dead, 2);
    let bad: Vec<KeyValue> = vec![("k1".into(), b"\xff\x00".to_vec()), ("k2".into(), b"[]".to_vec())];
    topics.spread(1, &[bad.clone(), vec![record("good", json!(["false"]))]].concat());
    let mut worker = topics.worker(&["--threads", "2", "--dead-letter-topic", &dead]);
    topics.wait_for_results(&worker, 3);
    worker.signal("TERM");
    worker.expect_exit(0);
    let mut letters = read_all(broker.address(), &dead);
    letters.sort();
    assert_eq!(letters, bad);
    assert_eq!(topics.states().len(), 3);
}

fn a_record_larger_than_the_fetch_size_is_run(client: Client) {
    let broker = Broker::start_with(&["message.max.bytes=20000000", "replica.fetch.max.bytes=20000000"]);
    let topics = Topics::new(&broker, 1).with(client);
    let large = json!({"command": ["sh", "-c", "test $(wc -c) = 5000000"], "stdin": "x".repeat(5_000_000)});
    topics.spread(1, &[record("before", json!(["true"]))]);
    topics.spread(1, &[record("large", large)]);
    topics.spread(1, &[record("after", json!(["true"]))]);
    let mut worker = topics.worker(&["--threads", "2"]);
    topics.wait_for_results(&worker, 3);
    worker.signal("TERM");
    worker.expect_exit(0);
    let expected = ["after", "before", "large"].map(|key| (key.into(), vec!["success".to_owned()]));
    assert_eq!(topics.states(), expected.into());
}

fn latest_passes_over_what_is_old_but_nothing_that_comes(client: Client) {
    let topics = Topics::new(Broker::shared(), 1).with(client);
    topics.spread(1, &[record("old", json!(["true"]))]);
    let mut worker = topics.worker(&["--threads", "1", "--from", "latest"]);
    worker.wait_for_log("is new: it starts at the latest record");
    worker.wait_until("first commit", || committed(&topics.broker, &topics.group, &topics.commands).contains_key(&0));
    worker.kill(); // before it has run anything: the next one has to start at the same place
    topics.spread(1, &[record("new", json!(["true"]))]);
    let mut worker = topics.worker(&["--threads", "1", "--from", "latest"]);
    topics.wait_for_results(&worker, 1);
    worker.signal("TERM");
    worker.expect_exit(0);
    assert_eq!(topics.states().into_keys().collect::<Vec<_>>(), [b"new".to_vec()]);
}

fn threads_run_beyond_the_partition_count(client: Client) {
    let dir = tempfile::tempdir().unwrap();
    let topics = Topics::new(Broker::shared(), 1).with(client);
    // Each waits until all eight run.
    let script = format!("touch {0}/$$; while [ $(ls {0} | wc -l) -lt 8 ]; do sleep 0.02; done", dir.path().display());
    let records: Vec<KeyValue> =
        (0..8).map(|n| record(&n.to_string(), json!({"command": ["sh", "-c", script], "timeout": 60}))).collect();
    topics.spread(1, &records);
    let mut worker = topics.worker(&["--threads", "8"]);
    topics.wait_for_results(&worker, 8);
    worker.signal("TERM");
    worker.expect_exit(0);
    assert!(topics.states().values().all(|states| states == &["success"]));
}

fn a_drain_settles_what_runs_and_leaves_the_rest_to_the_next(client: Client) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace");
    let topics = Topics::new(Broker::shared(), 2).with(client);
    let records: Vec<KeyValue> = (0..100).map(|n| traced(&n.to_string(), &file, 0.05)).collect();
    topics.spread(2, &records);
    let mut drains = 0;
    while topics.committed() < 100 {
        let mut worker = topics.worker(&["--threads", "4"]);
        let done = trace(&file, "end").len();
        worker.wait_until("some progress", || trace(&file, "end").len() >= (done + 12).min(100));
        worker.signal("TERM");
        worker.expect_exit(0);
        drains += 1;
    }
    assert!(drains >= 2, "never drained in the middle");
    assert!(trace(&file, "start").values().all(|&times| times == 1), "run twice: {:?}", trace(&file, "start"));
    let states = topics.states();
    assert_eq!(states.len(), 100);
    assert!(states.values().all(|states| states == &["success"]), "{states:?}");
}

fn what_a_cut_drain_aborts_runs_again(client: Client) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace");
    let topics = Topics::new(Broker::shared(), 1).with(client);
    topics.spread(1, &[traced("short", &file, 0.0), traced("long", &file, 1.0)]);
    let mut worker = topics.worker(&["--threads", "2", "--drain-timeout", "0", "--grace", "1s"]);
    worker.wait_until("start of the long one", || trace(&file, "start").contains_key("long"));
    topics.wait_for_results(&worker, 1);
    worker.signal("TERM");
    worker.expect_exit(75);
    assert_eq!(topics.committed(), 1);
    let mut worker = topics.worker(&["--threads", "2"]);
    topics.wait_for_results(&worker, 2);
    worker.signal("TERM");
    worker.expect_exit(0);
    assert_eq!(trace(&file, "start"), [("long".to_owned(), 2), ("short".to_owned(), 1)].into());
    assert!(topics.states().values().all(|states| states == &["success"]));
}

fn killed_ten_times_it_loses_nothing(client: Client) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace");
    let topics = Topics::new(Broker::shared(), 4).with(client);
    let records: Vec<KeyValue> = (0..2000).map(|n| traced(&n.to_string(), &file, 0.0)).collect();
    topics.spread(4, &records);
    let mut dice = Dice::new();
    for kill in 0..10 {
        let mut worker = topics.worker(&["--threads", "8", "-q"]);
        let done = trace(&file, "end").len();
        let more = 1 + dice.below(180) as usize;
        let wanted = (done + more).min(1990);
        worker.wait_until(&format!("progress before kill {kill}"), || trace(&file, "end").len() >= wanted);
        thread::sleep(Duration::from_millis(dice.below(50)));
        worker.kill();
    }
    let mut worker = topics.worker(&["--threads", "8", "-q"]);
    worker.wait_until("end of the backlog", || topics.committed() == 2000);
    worker.signal("TERM");
    worker.expect_exit(0);
    let states = topics.states();
    assert_eq!(states.len(), 2000, "keys with a result");
    assert!(states.values().flatten().all(|state| state == "success"));
    assert_eq!(trace(&file, "end").len(), 2000, "commands that ran");
    let again: usize = trace(&file, "start").values().map(|times| times - 1).sum();
    eprintln!("run again after ten kills: {again} of 2000");
}

fn the_broker_restarts_under_load_and_nothing_is_lost(client: Client) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace");
    let broker = Broker::start();
    let topics = Topics::new(&broker, 4).with(client);
    let mut worker = topics.worker(&["--threads", "4", "-q"]);
    let before = fs::read_dir(format!("/proc/{}/task", worker.pid())).unwrap().count();
    for round in 0..3 {
        // Each round brings its own: what was fetched before goes on while the broker is away, and may all be done.
        let records: Vec<KeyValue> = (0..400).map(|n| traced(&format!("{round}-{n}"), &file, 0.02)).collect();
        let done = trace(&file, "end").len();
        topics.spread(4, &records);
        worker.wait_until("progress", || trace(&file, "end").len() >= done + 60);
        if round == 1 {
            broker.stop()
        } else {
            broker.kill()
        }
        broker.start_again();
    }
    worker.wait_until("end of the backlog", || topics.committed() == 1200);
    let after = fs::read_dir(format!("/proc/{}/task", worker.pid())).unwrap().count();
    assert!(after <= before.max(8), "threads grew from {before} to {after}");
    worker.signal("TERM");
    worker.expect_exit(0);
    let states = topics.states();
    assert_eq!(states.len(), 1200, "keys with a result");
    assert!(states.values().flatten().all(|state| state == "success"));
    assert!(trace(&file, "start").values().all(|&times| times == 1), "a worker that lives starts nothing twice");
    assert!(worker.log().contains("works again after"), "{}", worker.log());
}

fn a_result_waits_for_a_broker_that_is_away(client: Client) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace");
    let broker = Broker::start();
    let topics = Topics::new(&broker, 1).with(client);
    topics.spread(1, &[traced("k", &file, 1.0)]);
    let mut worker = topics.worker(&["--threads", "1"]);
    worker.wait_until("start", || trace(&file, "start").len() == 1);
    broker.kill();
    worker.wait_until("end", || trace(&file, "end").len() == 1);
    worker.wait_for_log("writing results fails");
    worker.signal("TERM"); // it drains, but does not leave without the result
    worker.wait_for_log("draining");
    broker.start_again();
    worker.expect_exit(0);
    assert_eq!(topics.states(), [(b"k".to_vec(), vec!["success".to_owned()])].into());
    assert_eq!(topics.committed(), 1);
}

#[test]
fn no_broker_at_start_is_said_and_ends_with_69() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut worker = Worker::start(&["--brokers", &address, "--connect-timeout", "1s"]);
    worker.expect_exit(69);
    assert!(worker.log().contains(&format!("broker {address}: connection refused")), "{}", worker.log());
    let mut worker = Worker::start(&["--brokers", &address, "--connect-timeout", "1h"]);
    worker.wait_for_log("trying again");
    worker.signal("TERM");
    worker.expect_exit(0);
}

fn a_broker_that_comes_late_is_waited_for(client: Client) {
    let broker = Broker::start();
    let topics = Topics::new(&broker, 1).with(client);
    topics.spread(1, &[record("k", json!(["true"]))]);
    broker.stop();
    let mut worker = topics.worker(&["--connect-timeout", "100s"]);
    worker.wait_for_log("connecting fails");
    broker.start_again();
    topics.wait_for_results(&worker, 1);
    worker.signal("TERM");
    worker.expect_exit(0);
}

#[test]
fn a_topic_that_is_not_there_is_named_with_the_way_to_make_it() {
    let broker = Broker::start_with(&["auto.create.topics.enable=false"]);
    let mut worker = Worker::on(broker.address(), "absent", "absent-results", &["--connect-timeout", "1s"]);
    worker.expect_exit(69);
    let log = worker.log();
    assert!(
        log.contains("topic absent: does not exist; create it: kafka-topics.sh --create --topic absent --partitions N"),
        "{log}"
    );
}
