//! The main job on the brokers from the oldest to the newest: records as AirKafka writes them, two workers in one group, and
//! what Kafka's own tool says of that group.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use support::broker::{Broker, java_produce, tool};
use support::kafka::KeyValue;
use support::scene::{Scene, stop};
use support::topics::{originals, record};

const PARTITIONS: usize = 4;

#[test]
fn kafka_0_11() {
    do_the_main_job("0.11.0.3");
}

#[test]
fn kafka_3_9() {
    do_the_main_job("3.9.2");
}

#[test]
fn kafka_4_4() {
    do_the_main_job("4.4.0");
}

fn do_the_main_job(version: &str) {
    let broker = Broker::start_version(version, &[]);
    let scene =
        Scene::new(broker.client(), broker.address(), PARTITIONS, |name, count| broker.create_topic(name, count));
    let asked = tempfile::tempdir().unwrap();
    let bin = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/bin");
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let worker = || {
        scene.worker_with(&["--threads", "2", "--result-format", "json"], |command| {
            command.env("PATH", &path).env("ASKED_DIR", asked.path());
        })
    };
    let workers = [worker(), worker()];
    workers.iter().for_each(|worker| worker.wait_for_log("2 member(s)"));
    let first = &workers[0];

    // Records as they are, in all partitions, between some of ours.
    let originals = originals();
    let mut records: Vec<KeyValue> = Vec::new();
    for (index, original) in originals.iter().enumerate() {
        records.push(original.clone());
        records.extend((0..5).map(|n| record(&format!("neighbour-{index}-{n}"), json!(["true"]))));
    }
    scene.spread(&records);
    first.wait_until("all results", || scene.client.count(&scene.results).is_ok_and(|count| count >= records.len()));
    scene.wait_for_commit(first, records.len());

    // One result each, under the very key, and of the outcome that is due.
    let mut results = BTreeMap::<Vec<u8>, Vec<Value>>::new();
    for (key, value) in scene.client.read_all(&scene.results) {
        results.entry(key).or_default().push(serde_json::from_slice(&value).unwrap());
    }
    let mut wanted = BTreeMap::<Vec<u8>, usize>::new();
    records.iter().for_each(|(key, _)| *wanted.entry(key.clone()).or_default() += 1);
    let counts: BTreeMap<_, _> = results.iter().map(|(key, outcomes)| (key.clone(), outcomes.len())).collect();
    assert_eq!(counts, wanted, "one result per record, under a byte-identical key");
    // The last but one is 3.x's workload bare in a JSON string, and the last one that workload as an object: no commands.
    let invalid = [14 * 6, 16 * 6];
    for outcome in results.values().flatten() {
        let (partition, offset) = (outcome["partition"].as_u64().unwrap(), outcome["offset"].as_u64().unwrap());
        let index = offset as usize * PARTITIONS + partition as usize;
        let expected = if invalid.contains(&index) { ("failed", "invalid") } else { ("success", "exit") };
        assert_eq!((outcome["state"].as_str().unwrap(), outcome["reason"].as_str().unwrap()), expected, "{outcome}");
    }
    // What the programs were asked to run is what the records say.
    let programs = originals.iter().filter(|(_, value)| {
        let first = match serde_json::from_slice(value).unwrap() {
            Value::String(text) => text.split(' ').next().unwrap().to_owned(),
            Value::Array(argv) => argv[0].as_str().unwrap().to_owned(),
            _ => String::new(),
        };
        ["airflow", "python"].contains(&first.as_str())
    });
    assert_eq!(fs::read_dir(asked.path()).unwrap().count(), programs.count());

    // What the Java client has compressed, by every codec that the broker knows.
    let codecs: &[&str] = if version.starts_with("0.") {
        &["none", "gzip", "snappy", "lz4"]
    } else {
        &["none", "gzip", "snappy", "lz4", "zstd"]
    };
    codecs.iter().for_each(|codec| java_produce(broker.address(), &scene.commands, codec));
    let all = records.len() + codecs.len();
    first.wait_until("results of all codecs", || scene.client.count(&scene.results).is_ok_and(|count| count >= all));
    scene.wait_for_commit(first, all);
    let last = scene.client.read_all(&scene.results).split_off(records.len());
    for (key, value) in &last {
        let outcome: Value = serde_json::from_slice(value).unwrap();
        assert_eq!(outcome["state"], "success", "{}: {outcome}", String::from_utf8_lossy(key));
    }
    assert_eq!(last.len(), codecs.len());

    // What Kafka's tool says of the group while the workers run: who has what, and that nothing is left.
    let described = describe(&broker, &scene.group);
    eprintln!("{described}");
    let rows: Vec<BTreeMap<&str, &str>> = table(&described);
    let of_topic: Vec<_> = rows.iter().filter(|row| row.get("TOPIC") == Some(&scene.commands.as_str())).collect();
    assert_eq!(of_topic.len(), PARTITIONS, "{described}");
    let members: BTreeSet<&str> = of_topic.iter().map(|row| row["CONSUMER-ID"]).collect();
    assert_eq!(members.len(), 2, "both are members with partitions of their own\n{described}");
    assert!(members.iter().all(|id| id.contains("airkafka-worker")), "{described}");
    for row in of_topic {
        assert_eq!((row["CURRENT-OFFSET"], row["LAG"]), (row["LOG-END-OFFSET"], "0"), "{row:?}");
    }

    // Each leaves in good order: the other has everything at once, and then nobody is left.
    let [first, second] = workers;
    stop(first);
    second.wait_for_log("1 member(s), here partition(s) 0-3");
    stop(second);
    assert_eq!(scene.committed(), Some(all as i64));
    let left = describe(&broker, &scene.group);
    assert!(table(&left).iter().all(|row| row.get("CONSUMER-ID").is_none_or(|id| *id == "-")), "{left}");
}

/// `kafka-consumer-groups --describe`, of the tools the tests use, which talk to every version.
fn describe(broker: &Broker, group: &str) -> String {
    let class = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand";
    tool(&[class, "--bootstrap-server", broker.address(), "--describe", "--group", group])
}

/// The rows of a table by the words of its head.
fn table(text: &str) -> Vec<BTreeMap<&str, &str>> {
    let mut lines = text.lines().skip_while(|line| !line.contains("CURRENT-OFFSET"));
    let head: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
    let rows = lines.map(|line| head.iter().copied().zip(line.split_whitespace()).collect());
    rows.collect()
}
