//! What is particular to the kafka crate, on a real broker: its traps, and what it cannot do.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use kafka::client::{Compression, KafkaClient, ProduceMessage, RequiredAcks};
use serde_json::json;
use support::broker::{Broker, java_produce};
use support::kafka::KeyValue;
use support::topics::{Client, Topics, record};
use support::worker::{Worker, wait_until};

/// Writes records to a partition, as one batch, compressed.
fn produce(broker: &str, topic: &str, partition: i32, compression: Compression, records: &[KeyValue]) {
    let mut client = KafkaClient::new(vec![broker.to_owned()]);
    client.load_metadata(&[topic]).expect("metadata");
    client.set_compression(compression);
    let messages = records.iter().map(|(key, value)| ProduceMessage::new(topic, partition, Some(key), Some(value)));
    let confirms = client.produce_messages(RequiredAcks::All, Duration::from_secs(10), messages).expect("produce");
    for confirm in confirms.iter().flat_map(|confirm| &confirm.partition_confirms) {
        confirm.offset.expect("acknowledged");
    }
}

#[test]
fn records_in_front_of_a_compressed_batch_are_not_lost() {
    // The kafka crate drops them from an answer that holds both.
    let topics = Topics::new(Broker::shared(), 1).with(Client::Crate);
    let mut wanted = BTreeSet::new();
    let mut write = |compression, numbers: std::ops::Range<u32>| {
        let records: Vec<KeyValue> = numbers.map(|n| record(&format!("{n:03}"), json!(["true"]))).collect();
        wanted.extend(records.iter().map(|(key, _)| key.clone()));
        produce(&topics.broker, &topics.commands, 0, compression, &records);
    };
    write(Compression::NONE, 0..10);
    write(Compression::NONE, 10..11);
    write(Compression::GZIP, 11..30);
    write(Compression::NONE, 30..31);
    write(Compression::SNAPPY, 31..32);
    write(Compression::NONE, 32..90);
    write(Compression::GZIP, 90..91);
    write(Compression::GZIP, 91..150);
    write(Compression::NONE, 150..160);
    let mut worker = topics.worker(&["--threads", "4"]);
    topics.wait_for_results(&worker, wanted.len());
    worker.signal("TERM");
    worker.expect_exit(0);
    let states = topics.states();
    assert!(states.values().all(|states| states.len() == 1), "run twice: {states:?}");
    assert_eq!(states.into_keys().collect::<BTreeSet<_>>(), wanted);
    assert!(worker.log().contains("in front of a compressed batch"), "the trap was met at all");
    assert_eq!(topics.committed(), 160);
}

#[test]
fn a_codec_that_is_not_known_is_refused_and_the_record_named() {
    let topics = Topics::new(Broker::shared(), 1).with(Client::Crate);
    topics.spread(1, &[record("before", json!(["true"]))]);
    for codec in ["lz4", "zstd"] {
        java_produce(&topics.broker, &topics.commands, codec);
    }
    let mut worker = topics.worker(&["--threads", "1"]);
    worker.expect_exit(78);
    let log = worker.log();
    assert!(log.contains(&format!("{}-0@", topics.commands)) && log.contains("codec") && log.contains("lz4"), "{log}");
    let states = topics.states();
    assert!(states.values().all(|states| states == &["success"]), "{states:?}");
    assert_eq!(topics.committed(), states.len() as i64);
}

#[test]
fn a_broker_that_is_too_new_for_the_client_is_refused_at_once() {
    // Answers ApiVersions as Kafka 4 does: Fetch from version 4 on.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 12];
            stream.read_exact(&mut request).unwrap();
            let body = [&request[8..12], &[0, 0, 0, 0, 0, 1, 0, 1, 0, 4, 0, 17]].concat();
            let answer = [&(body.len() as i32).to_be_bytes()[..], &body].concat();
            let _ = stream.write_all(&answer);
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    let mut worker = Worker::start(&["--brokers", &address, "--connect-timeout", "60s", "--client", "kafka"]);
    worker.expect_exit(78);
    assert!(worker.log().contains("serves Fetch 4 to 17") && worker.log().contains("up to 3.9"), "{}", worker.log());
}

#[test]
fn a_group_with_living_members_is_not_joined_silently() {
    let topics = Topics::new(Broker::shared(), 1).with(Client::Crate);
    topics.spread(1, &[record("k", json!(["true"]))]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/broker/kafka.sh");
    let out: PathBuf = tempfile::tempdir().unwrap().keep().join("consumed");
    let mut member = std::process::Command::new(script)
        .args(["consume", &topics.broker, &topics.commands, "--group", &topics.group, "--from-beginning"])
        .stdout(fs::File::create(&out).unwrap())
        .spawn()
        .expect("kafka.sh");
    assert!(wait_until(|| fs::metadata(&out).is_ok_and(|meta| meta.len() > 0)), "the other consumer reads");
    let mut worker = topics.worker(&["--threads", "1"]);
    worker.expect_exit(78);
    let _ = member.kill();
    let _ = member.wait();
    assert!(worker.log().contains("other consumers are members of this group"), "{}", worker.log());
}
