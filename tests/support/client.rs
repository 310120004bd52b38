//! A small Kafka client for tests, by hand: creates topics, writes and reads records, asks for leaders, ends and commits.
//!
//! Speaks request versions that every broker from 0.11 to 4.4 serves, and uses nothing of the code under test. Each request
//! has a connection of its own; one that fails is tried again, at another broker if there is one, until its time is up.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use super::kafka::KeyValue;

/// How long a request may fail: leaders move, and brokers come back.
const PATIENCE: Duration = Duration::from_secs(60);

/// Knows the addresses to ask first.
pub struct Client {
    brokers: Vec<String>,
    /// Which of them is asked.
    turn: Cell<usize>,
}

/// What the cluster says of itself and of one topic.
#[derive(Debug, Default)]
pub struct Metadata {
    /// Addresses by node.
    pub nodes: BTreeMap<i32, String>,
    /// The leaders by partition; -1: none.
    pub leaders: BTreeMap<i32, i32>,
    /// How many replicas are in sync, by partition.
    pub in_sync: BTreeMap<i32, usize>,
}

impl Client {
    /// `brokers`: addresses, with commas between them. If there is one alone, everything goes there, whatever it says its
    /// address is.
    pub fn new(brokers: &str) -> Client {
        Client { brokers: brokers.split(',').map(str::to_owned).collect(), turn: Cell::new(0) }
    }

    /// Creates a topic; leaders may be missing for a moment.
    pub fn create_topic(&self, name: &str, partitions: usize, replication: i16) -> io::Result<()> {
        self.create_topic_with(name, partitions, replication, &[])
    }

    /// The same, with settings.
    pub fn create_topic_with(
        &self,
        name: &str,
        partitions: usize,
        replication: i16,
        settings: &[(&str, &str)],
    ) -> io::Result<()> {
        let mut body = Vec::new();
        body.extend(1i32.to_be_bytes()); // one topic
        string(&mut body, name);
        body.extend((partitions as i32).to_be_bytes());
        body.extend(replication.to_be_bytes());
        body.extend(0i32.to_be_bytes()); // assignments
        body.extend((settings.len() as i32).to_be_bytes());
        for (key, value) in settings {
            string(&mut body, key);
            string(&mut body, value);
        }
        body.extend(30_000i32.to_be_bytes()); // timeout
        body.push(0); // not only validate
        let mut answer = request(self.any(), 19, 2, &body)?;
        answer.int32()?; // throttle
        answer.int32()?; // one topic
        answer.string()?;
        answer.error("create the topic")
    }

    /// The cluster, and a topic of it.
    pub fn metadata(&self, topic: &str) -> io::Result<Metadata> {
        let mut body = Vec::new();
        body.extend(1i32.to_be_bytes()); // one topic
        string(&mut body, topic);
        let asked = self.any();
        let mut answer = request(asked, 3, 0, &body).inspect_err(|_| self.turn.set(self.turn.get() + 1))?;
        let mut metadata = Metadata::default();
        for _ in 0..answer.int32()? {
            let (node, host, port) = (answer.int32()?, answer.string()?, answer.int32()?);
            let address = if self.brokers.len() == 1 { asked.to_owned() } else { format!("{host}:{port}") };
            metadata.nodes.insert(node, address);
        }
        answer.int32()?; // one topic
        answer.error(topic)?;
        answer.string()?;
        for _ in 0..answer.int32()? {
            answer.int16()?; // error
            let (partition, leader) = (answer.int32()?, answer.int32()?);
            metadata.leaders.insert(partition, leader);
            for _ in 0..answer.int32()? {
                answer.int32()?; // replica
            }
            let in_sync = answer.int32()?;
            metadata.in_sync.insert(partition, in_sync as usize);
            for _ in 0..in_sync {
                answer.int32()?;
            }
        }
        Ok(metadata)
    }

    /// The node that leads a partition, as soon as there is one.
    pub fn leader(&self, topic: &str, partition: i32) -> i32 {
        patiently("find a leader", || self.leader_at(topic, partition).map(|(node, _)| node))
    }

    fn leader_at(&self, topic: &str, partition: i32) -> io::Result<(i32, String)> {
        let metadata = self.metadata(topic)?;
        let node = metadata.leaders.get(&partition).copied().unwrap_or(-1);
        let address = metadata.nodes.get(&node).cloned();
        address
            .map(|address| (node, address))
            .ok_or_else(|| io::Error::other(format!("{topic}-{partition} has no leader")))
    }

    /// Waits until every partition of a topic has this many replicas in sync.
    pub fn wait_in_sync(&self, topic: &str, replicas: usize) {
        patiently("wait for the replicas", || {
            let in_sync = self.metadata(topic)?.in_sync;
            let all = in_sync.values().all(|&count| count >= replicas);
            if all { Ok(()) } else { Err(io::Error::other(format!("{topic}: {in_sync:?}"))) }
        });
    }

    /// The node that coordinates a group, as soon as there is one.
    pub fn coordinator(&self, group: &str) -> i32 {
        patiently("find the coordinator", || self.coordinator_at(group).map(|(node, _)| node))
    }

    fn coordinator_at(&self, group: &str) -> io::Result<(i32, String)> {
        let mut body = Vec::new();
        string(&mut body, group);
        let asked = self.any();
        let mut answer = request(asked, 10, 0, &body).inspect_err(|_| self.turn.set(self.turn.get() + 1))?;
        answer.error("find the coordinator")?;
        let (node, host, port) = (answer.int32()?, answer.string()?, answer.int32()?);
        Ok((node, if self.brokers.len() == 1 { asked.to_owned() } else { format!("{host}:{port}") }))
    }

    /// Writes records to a partition as one batch, acknowledged by all replicas. What was certainly not written is tried
    /// again; an answer that does not come fails the test, since the records might be there twice otherwise.
    pub fn produce(&self, topic: &str, partition: i32, records: &[KeyValue]) {
        let batch = batch(records);
        let mut body = Vec::new();
        body.extend((-1i16).to_be_bytes()); // no transaction
        body.extend((-1i16).to_be_bytes()); // acknowledged by all
        body.extend(30_000i32.to_be_bytes()); // timeout
        body.extend(1i32.to_be_bytes()); // one topic
        string(&mut body, topic);
        body.extend(1i32.to_be_bytes()); // one partition
        body.extend(partition.to_be_bytes());
        body.extend((batch.len() as i32).to_be_bytes());
        body.extend(batch);
        patiently("write", || {
            let (_, address) = self.leader_at(topic, partition)?;
            TcpStream::connect(&address)?;
            let answer = request(&address, 0, 3, &body).and_then(|mut answer| {
                answer.int32()?; // one topic
                answer.string()?;
                answer.int32()?; // one partition
                answer.int32()?;
                answer.int16()
            });
            match answer {
                Ok(0) => Ok(()),
                // Refused before anything was written: the topic or its leader is not known there yet, or any more, or too
                // few replicas are in sync.
                Ok(code @ (3 | 5 | 6 | 19)) => Err(io::Error::other(format!("the broker answers error {code}"))),
                answer => panic!("write to {topic}-{partition} on {address}: {answer:?}"),
            }
        });
    }

    /// Writes records by turns to the first `partitions` partitions.
    pub fn spread(&self, topic: &str, partitions: usize, records: &[KeyValue]) {
        for partition in 0..partitions {
            let own: Vec<KeyValue> = records.iter().skip(partition).step_by(partitions).cloned().collect();
            own.chunks(500).for_each(|chunk| self.produce(topic, partition as i32, chunk));
        }
    }

    /// How many records were ever written to a topic, if all its leaders answer.
    pub fn count(&self, topic: &str) -> io::Result<usize> {
        let metadata = self.metadata(topic)?;
        let mut count = 0;
        for (&partition, leader) in &metadata.leaders {
            let address = metadata.nodes.get(leader).ok_or_else(|| io::Error::other("no leader"))?;
            count += end(address, topic, partition)? as usize;
        }
        Ok(count)
    }

    /// All records of a topic, partition after partition.
    pub fn read_all(&self, topic: &str) -> Vec<KeyValue> {
        patiently("read all records", || self.try_read_all(topic))
    }

    fn try_read_all(&self, topic: &str) -> io::Result<Vec<KeyValue>> {
        let metadata = self.metadata(topic)?;
        let mut records = Vec::new();
        for (&partition, leader) in &metadata.leaders {
            let address = metadata.nodes.get(leader).ok_or_else(|| io::Error::other("no leader"))?;
            let (mut offset, end) = (0, end(address, topic, partition)?);
            while offset < end {
                let next = fetch(address, topic, partition, offset, &mut records)?;
                if next == offset {
                    return Err(io::Error::other(format!("no progress at {topic}-{partition}@{offset}")));
                }
                offset = next;
            }
        }
        Ok(records)
    }

    /// What a group has committed in the first `partitions` partitions of a topic; those without a commit are missing.
    pub fn committed(&self, group: &str, topic: &str, partitions: usize) -> io::Result<BTreeMap<i32, (i64, String)>> {
        let mut body = Vec::new();
        string(&mut body, group);
        body.extend(1i32.to_be_bytes()); // one topic
        string(&mut body, topic);
        body.extend((partitions as i32).to_be_bytes());
        (0..partitions as i32).for_each(|partition| body.extend(partition.to_be_bytes()));
        let (_, address) = self.coordinator_at(group)?;
        let mut answer = request(&address, 9, 1, &body)?;
        answer.int32()?; // one topic
        answer.string()?;
        let mut committed = BTreeMap::new();
        for _ in 0..answer.int32()? {
            let (partition, offset, metadata) = (answer.int32()?, answer.int64()?, answer.string()?);
            answer.error("ask for commits")?;
            if offset >= 0 {
                committed.insert(partition, (offset, metadata));
            }
        }
        Ok(committed)
    }

    fn any(&self) -> &str {
        &self.brokers[self.turn.get() % self.brokers.len()]
    }
}

/// Tries until it is done; fails the test after a while.
fn patiently<T>(what: &str, mut attempt: impl FnMut() -> io::Result<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Ok(done) => return done,
            Err(e) => assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}: {e}"),
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// The end of a partition: ListOffsets v1.
fn end(address: &str, topic: &str, partition: i32) -> io::Result<i64> {
    let mut body = Vec::new();
    body.extend((-1i32).to_be_bytes()); // no replica
    body.extend(1i32.to_be_bytes()); // one topic
    string(&mut body, topic);
    body.extend(1i32.to_be_bytes()); // one partition
    body.extend(partition.to_be_bytes());
    body.extend((-1i64).to_be_bytes()); // latest
    let mut answer = request(address, 2, 1, &body)?;
    answer.int32()?; // one topic
    answer.string()?;
    answer.int32()?; // one partition
    answer.int32()?;
    answer.error("ask for the end")?;
    answer.int64()?; // time stamp
    answer.int64()
}

/// Fetch v4 of one partition; returns the next offset.
fn fetch(address: &str, topic: &str, partition: i32, offset: i64, records: &mut Vec<KeyValue>) -> io::Result<i64> {
    let mut body = Vec::new();
    body.extend((-1i32).to_be_bytes()); // no replica
    body.extend(1000i32.to_be_bytes()); // wait
    body.extend(1i32.to_be_bytes()); // at least
    body.extend((8i32 << 20).to_be_bytes()); // at most
    body.push(0); // read uncommitted
    body.extend(1i32.to_be_bytes()); // one topic
    string(&mut body, topic);
    body.extend(1i32.to_be_bytes()); // one partition
    body.extend(partition.to_be_bytes());
    body.extend(offset.to_be_bytes());
    body.extend((8i32 << 20).to_be_bytes());
    let mut answer = request(address, 1, 4, &body)?;
    answer.int32()?; // throttle
    answer.int32()?; // one topic
    answer.string()?;
    answer.int32()?; // one partition
    answer.int32()?;
    answer.error("read")?;
    answer.int64()?; // high watermark
    answer.int64()?; // last stable offset
    for _ in 0..answer.int32()? {
        answer.int64()?; // aborted: producer
        answer.int64()?; // first offset
    }
    let length = answer.int32()?.max(0) as u64;
    let (mut next, end) = (offset, answer.0.position() + length);
    while end.saturating_sub(answer.0.position()) > 12 {
        let (base, length) = (answer.int64()?, answer.int32()? as u64);
        let behind = answer.0.position() + length;
        if behind > end {
            break; // cut off
        }
        let head = answer.bytes::<49>()?;
        let compressed = head[10] & 7;
        assert_eq!((head[4], compressed), (2, 0), "a batch of the new form, not compressed");
        let count = i32::from_be_bytes(head[45..].try_into().unwrap());
        for _ in 0..count {
            answer.varint()?; // length
            answer.bytes::<1>()?; // attributes
            answer.varint()?; // time
            let at = base + answer.varint()?;
            let (key, value) = (answer.counted()?, answer.counted()?);
            for _ in 0..2 * answer.varint()? {
                answer.counted()?; // headers
            }
            if at >= next {
                records.push((key, value));
                next = at + 1;
            }
        }
        answer.0.set_position(behind);
    }
    Ok(next)
}

/// A record batch, version 2, not compressed.
fn batch(records: &[KeyValue]) -> Vec<u8> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
    let mut sum = Vec::new(); // what the check sum covers
    sum.extend(0i16.to_be_bytes()); // attributes
    sum.extend((records.len() as i32 - 1).to_be_bytes()); // last offset
    sum.extend(now.to_be_bytes());
    sum.extend(now.to_be_bytes());
    sum.extend((-1i64).to_be_bytes()); // producer
    sum.extend((-1i16).to_be_bytes());
    sum.extend((-1i32).to_be_bytes());
    sum.extend((records.len() as i32).to_be_bytes());
    for (index, (key, value)) in records.iter().enumerate() {
        let mut record = vec![0]; // attributes
        varint(&mut record, 0); // time
        varint(&mut record, index as i64);
        for bytes in [key, value] {
            varint(&mut record, bytes.len() as i64);
            record.extend(bytes);
        }
        varint(&mut record, 0); // headers
        varint(&mut sum, record.len() as i64);
        sum.extend(record);
    }
    let mut batch = Vec::new();
    batch.extend(0i64.to_be_bytes()); // base offset
    batch.extend((sum.len() as i32 + 9).to_be_bytes());
    batch.extend((-1i32).to_be_bytes()); // leader epoch
    batch.push(2);
    batch.extend(crc32c(&sum).to_be_bytes());
    batch.extend(sum);
    batch
}

fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step))
}

fn varint(to: &mut Vec<u8>, number: i64) {
    let mut rest = (number << 1 ^ number >> 63) as u64;
    while rest >= 0x80 {
        to.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    to.push(rest as u8);
}

fn string(to: &mut Vec<u8>, text: &str) {
    to.extend((text.len() as i16).to_be_bytes());
    to.extend(text.as_bytes());
}

/// Sends one request on a connection of its own; the answer after the correlation id.
fn request(address: &str, api: i16, version: i16, body: &[u8]) -> io::Result<Answer> {
    let mut frame = Vec::new();
    frame.extend(api.to_be_bytes());
    frame.extend(version.to_be_bytes());
    frame.extend(1i32.to_be_bytes()); // correlation id
    string(&mut frame, "test");
    frame.extend(body);
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(35)))?;
    stream.write_all(&[&(frame.len() as i32).to_be_bytes(), &frame[..]].concat())?;
    let mut size = [0; 4];
    stream.read_exact(&mut size)?;
    let mut answer = vec![0; u32::from_be_bytes(size).min(64 << 20) as usize];
    stream.read_exact(&mut answer)?;
    let mut answer = Answer(io::Cursor::new(answer));
    answer.int32()?; // correlation id
    Ok(answer)
}

struct Answer(io::Cursor<Vec<u8>>);

impl Answer {
    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn int16(&mut self) -> io::Result<i16> {
        self.bytes().map(i16::from_be_bytes)
    }

    fn int32(&mut self) -> io::Result<i32> {
        self.bytes().map(i32::from_be_bytes)
    }

    fn int64(&mut self) -> io::Result<i64> {
        self.bytes().map(i64::from_be_bytes)
    }

    fn varint(&mut self) -> io::Result<i64> {
        let mut number = 0u64;
        for shift in (0..70).step_by(7) {
            let [byte] = self.bytes()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        Ok((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    /// Bytes behind a varint that counts them.
    fn counted(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.varint()?.max(0) as usize];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn string(&mut self) -> io::Result<String> {
        let mut text = vec![0; self.int16()?.max(0) as usize];
        self.0.read_exact(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// An error code, as the error it is.
    fn error(&mut self, what: &str) -> io::Result<()> {
        match self.int16()? {
            0 => Ok(()),
            code => Err(io::Error::other(format!("{what}: the broker answers error {code}"))),
        }
    }
}
