//! What tests on a broker have in common: topics of their own, commands that leave a trace, dice.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

use serde_json::{Value, json};

use super::broker::Broker;
use super::kafka::{KeyValue, committed, count, spread, states};
use super::worker::Worker;

/// Which client the worker uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    Own,
    Crate,
}

impl Client {
    pub fn args(self) -> &'static [&'static str] {
        match self {
            // A short session, so that a worker that was killed is missed soon.
            Client::Own => &["-X", "session.timeout.ms=6000"],
            Client::Crate => &["--client", "kafka"],
        }
    }
}

/// Topics of one test, on the shared broker or on its own.
pub struct Topics {
    pub broker: String,
    pub commands: String,
    pub results: String,
    pub group: String,
    client: Client,
}

impl Topics {
    pub fn new(broker: &Broker, partitions: usize) -> Topics {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let commands = format!("commands-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let results = format!("{commands}-results");
        broker.create_topic(&commands, partitions);
        broker.create_topic(&results, 1);
        let group = format!("{commands}-group");
        Topics { broker: broker.address().to_owned(), commands, results, group, client: Client::Own }
    }

    pub fn with(self, client: Client) -> Topics {
        Topics { client, ..self }
    }

    pub fn worker(&self, args: &[&str]) -> Worker {
        Worker::on(&self.broker, &self.commands, &self.results, &[self.client.args(), args].concat())
    }

    pub fn spread(&self, partitions: i32, records: &[KeyValue]) {
        spread(&self.broker, &self.commands, partitions, records);
    }

    pub fn wait_for_results(&self, worker: &Worker, wanted: usize) {
        worker.wait_until(&format!("{wanted} results"), || count(&self.broker, &self.results) >= wanted);
    }

    pub fn committed(&self) -> i64 {
        committed(&self.broker, &self.group, &self.commands).values().sum()
    }

    pub fn states(&self) -> BTreeMap<Vec<u8>, Vec<String>> {
        states(&self.broker, &self.results)
    }
}

/// The records of the original, byte for byte.
pub fn originals() -> Vec<KeyValue> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/records/original-records.jsonl");
    let text = fs::read_to_string(file).unwrap();
    let record = |line| {
        let line: Value = serde_json::from_str(line).unwrap();
        (base64(&line["key_b64"]), base64(&line["value_b64"]))
    };
    text.lines().map(record).collect()
}

fn base64(text: &Value) -> Vec<u8> {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut count, mut bytes) = (0u32, 0, Vec::new());
    for c in text.as_str().unwrap().bytes().filter(|&c| c != b'=') {
        bits = bits << 6 | alphabet.iter().position(|&a| a == c).expect("base64") as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    bytes
}

pub fn record(key: &str, command: Value) -> KeyValue {
    (key.into(), command.to_string().into_bytes())
}

/// A command that appends its name to a file when it starts and when it ends.
pub fn traced(name: &str, file: &Path, seconds: f32) -> KeyValue {
    let script = format!("echo start {name} >>{0}; sleep {seconds}; echo end {name} >>{0}", file.display());
    record(name, json!(["sh", "-c", script]))
}

/// How often each name stands in the file behind `word`.
pub fn trace(file: &Path, word: &str) -> BTreeMap<String, usize> {
    let mut times = BTreeMap::new();
    for line in fs::read_to_string(file).unwrap_or_default().lines() {
        if let Some(name) = line.strip_prefix(word) {
            *times.entry(name.trim().to_owned()).or_default() += 1;
        }
    }
    times
}

/// Numbers that differ from run to run; the seed is printed with a failure.
pub struct Dice(u64);

impl Dice {
    pub fn new() -> Dice {
        let seed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().subsec_nanos().into();
        eprintln!("seed {seed}");
        Dice(seed)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % limit
    }
}
