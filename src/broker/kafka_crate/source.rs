//! Reads all partitions of the commands topic with the `kafka` crate, and commits their offsets.
//!
//! Two traps of the crate are handled here. A record larger than the fetch size is never delivered: the size grows until
//! it is. And of an answer with uncompressed records in front of a compressed batch the former are dropped: see
//! [`KafkaSource::read_gap`].

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use kafka::client::{CommitOffset, FetchOffset, FetchPartition, KafkaClient};
use kafka::error::{Error as CrateError, KafkaCode};
use log::{debug, info, warn};

use super::{connect, explain, explain_code, guarded, leaders, load_metadata};
use crate::broker::{Commit, Demand, Event, Position, Record, Source, reading};
use crate::config::{self, StartFrom};
use crate::error::{Error, Kind, Result};

/// Bytes asked for of each partition.
const FETCH_BYTES: i32 = 1024 * 1024;
/// The most that is asked for in search of a large record.
const LARGEST_FETCH: i32 = 256 * 1024 * 1024;
/// How often new partitions are looked for.
const REFRESH: Duration = Duration::from_secs(300);
/// Pause after an answer that came at once and brought nothing, so that no anomaly becomes a busy loop.
const NOTHING_PAUSE: Duration = Duration::from_millis(50);

/// Owns a client of its own, and where reading stands.
#[derive(Debug)]
pub struct KafkaSource {
    config: config::Kafka,
    topic: Arc<str>,
    client: Option<KafkaClient>,
    partitions: BTreeMap<i32, Reading>,
    refreshed: Instant,
    /// Events that were found while connecting, for the next poll.
    assigned: Vec<Event>,
    /// Where the partitions ended when that was asked first.
    ends: Option<Vec<(i32, i64)>>,
}

/// Where reading a partition stands.
#[derive(Debug)]
struct Reading {
    offset: i64,
    fetch_bytes: i32,
}

/// One record of an answer.
struct Fetched {
    offset: i64,
    key: Vec<u8>,
    value: Vec<u8>,
}

/// What an answer says of one partition: its records and the high watermark, or what is wrong.
type Answer = std::result::Result<(Vec<Fetched>, i64), KafkaCode>;

impl KafkaSource {
    /// Connects, and finds the topic and where the group stands.
    pub fn connect(config: &config::Kafka) -> Result<KafkaSource> {
        let mut source = KafkaSource {
            config: config.clone(),
            topic: config.topic.as_str().into(),
            client: None,
            partitions: BTreeMap::new(),
            refreshed: Instant::now(),
            assigned: Vec::new(),
            ends: None,
        };
        let mut client = source.new_client()?;
        source.discover(&mut client)?;
        source.client = Some(client);
        warn!(
            "client kafka: no group membership, so run one worker per topic and group; two would both run every command. \
             Offsets are committed in order: after a crash behind a long command, what had ended after it runs again"
        );
        Ok(source)
    }

    /// The client, or a new one; to be put back if all goes well: after an error its state is unknown.
    fn take_client(&mut self) -> Result<KafkaClient> {
        self.client.take().map_or_else(|| self.new_client(), Ok)
    }

    fn new_client(&self) -> Result<KafkaClient> {
        let mut client = connect(&self.config.brokers, &[&self.config.topic])?;
        client.set_fetch_min_bytes(1);
        Ok(client)
    }

    /// Takes up the partitions that are not known yet, where the group stands in them.
    fn discover(&mut self, client: &mut KafkaClient) -> Result<()> {
        self.refreshed = Instant::now();
        let topic = self.config.topic.as_str();
        let new: Vec<i32> = leaders(client, topic)
            .into_iter()
            .map(|(id, _)| id)
            .filter(|id| !self.partitions.contains_key(id))
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        let group = self.config.group.as_str();
        let trying = || format!("asking where group {group} stands in {topic}");
        let committed = guarded(|| client.fetch_group_topic_offset(group, topic)).map_err(|e| explain(e, trying()))?;
        let committed: BTreeMap<i32, i64> =
            committed.iter().filter(|p| p.offset >= 0).map(|p| (p.partition, p.offset)).collect();
        let mut starts = committed.clone();
        if new.iter().any(|id| !committed.contains_key(id)) {
            // A partition that appears while we run holds only what was written meanwhile.
            let from = if self.partitions.is_empty() { self.config.from } else { StartFrom::Earliest };
            for (id, offset) in self.ends(client, from)? {
                starts.entry(id).or_insert(offset);
            }
            if self.partitions.is_empty() && committed.is_empty() {
                info!("group {group} is new: it starts at the {} record of {topic} (--from)", from.as_str());
            }
        }
        let mut first_commits = Vec::new();
        for id in new {
            let Some(&offset) = starts.get(&id) else { continue };
            self.partitions.insert(id, Reading { offset, fetch_bytes: FETCH_BYTES });
            self.assigned.push(Event::Assigned { partition: id, offset, metadata: String::new() });
            if !committed.contains_key(&id) {
                first_commits.push(CommitOffset::new(topic, id, offset));
            }
        }
        // So that `latest` means latest now, and not once more after a crash before the first commit.
        guarded(|| client.commit_offsets(group, first_commits)).map_err(|e| explain(e, committing(group, topic)))
    }

    /// The first or the next offset of every partition.
    fn ends(&self, client: &mut KafkaClient, end: StartFrom) -> Result<Vec<(i32, i64)>> {
        let offset = if end == StartFrom::Earliest { FetchOffset::Earliest } else { FetchOffset::Latest };
        let ends = guarded(|| client.fetch_topic_offsets(&self.config.topic, offset))
            .map_err(|e| explain(e, format!("asking for the offsets of {}", self.topic)))?;
        Ok(ends.iter().map(|end| (end.partition, end.offset)).collect())
    }

    fn poll_with(&mut self, client: &mut KafkaClient, wait: Duration, events: &mut Vec<Event>) -> Result<()> {
        if self.refreshed.elapsed() > REFRESH {
            load_metadata(client, &[&self.config.topic])?;
            self.discover(client)?;
        }
        events.append(&mut self.assigned);
        let mut by_leader: BTreeMap<String, Vec<i32>> = BTreeMap::new();
        for (id, leader) in leaders(client, &self.config.topic) {
            if self.partitions.contains_key(&id) {
                by_leader.entry(leader).or_default().push(id);
            }
        }
        // Leaders are asked one after the other, so that the time to wait is shared among them.
        let wait = wait / u32::try_from(by_leader.len()).unwrap_or(u32::MAX).max(1);
        client.set_fetch_max_wait_time(wait).map_err(|e| explain(e, "setting the fetch wait".into()))?;
        let mut queues = Vec::new();
        let mut failure = None;
        for (leader, ids) in by_leader {
            for (id, answer) in self.fetch(client, &leader, &ids)? {
                match self.take(client, id, answer) {
                    Ok(records) => queues.push(VecDeque::from(records)),
                    Err(e) => failure = Some(e), // it must not hold up the other partitions
                }
            }
        }
        reading::in_turn(queues, events);
        failure.map_or(Ok(()), Err)
    }

    /// Asks one leader for the next records of its partitions.
    fn fetch(&self, client: &mut KafkaClient, leader: &str, ids: &[i32]) -> Result<Vec<(i32, Answer)>> {
        let topic = self.config.topic.as_str();
        let requests = ids.iter().map(|id| {
            let reading = &self.partitions[id];
            FetchPartition::new(topic, *id, reading.offset).with_max_bytes(reading.fetch_bytes)
        });
        match ask(client, requests) {
            Ok(answers) => Ok(answers),
            Err(e @ CrateError::Io(_)) => Err(explain(e, format!("reading {topic} from {leader}"))),
            // The crate throws away the whole answer for one record it cannot read: find out whose it is.
            Err(_) if ids.len() > 1 => {
                let mut answers = Vec::new();
                for id in ids {
                    answers.extend(self.fetch(client, leader, &[*id])?);
                }
                Ok(answers)
            }
            Err(e) => Err(self.unreadable(ids[0], e)),
        }
    }

    fn unreadable(&self, id: i32, e: CrateError) -> Error {
        let at = self.at(id, self.partitions[&id].offset);
        match e {
            CrateError::UnsupportedCompression => Error::new(
                Kind::Config,
                format!("{at}: the record there, or the next one, is compressed by a codec this client does not know (lz4, zstd)"),
            )
            .hint("let the producers use none, gzip or snappy"),
            e => explain(e, format!("reading {at}")),
        }
    }

    /// Makes records of an answer, and moves the reading on.
    fn take(&mut self, client: &mut KafkaClient, id: i32, answer: Answer) -> Result<Vec<Record>> {
        let reading = &self.partitions[&id];
        let (offset, fetch_bytes) = (reading.offset, reading.fetch_bytes);
        let at = self.at(id, offset);
        let fetched = match answer {
            Ok((fetched, _)) if fetched.first().is_some_and(|first| first.offset > offset) => {
                self.read_gap(client, id, fetched)?
            }
            Ok((fetched, high_watermark)) => {
                if fetched.is_empty() && high_watermark > offset {
                    self.ask_for_more(id);
                }
                fetched
            }
            Err(KafkaCode::MessageSizeTooLarge) if fetch_bytes < LARGEST_FETCH => {
                self.ask_for_more(id);
                vec![]
            }
            Err(KafkaCode::OffsetOutOfRange) => {
                self.reset(client, id)?;
                vec![]
            }
            Err(KafkaCode::Unknown) => {
                return Err(Error::new(
                    Kind::Config,
                    format!("{at}: the broker will not give the record there to a client this old; it may be compressed with zstd"),
                )
                .hint("let the producers use none, gzip or snappy"));
            }
            Err(code) => return Err(explain_code(code, format!("reading {at}"))),
        };
        let Some(last) = fetched.last() else { return Ok(vec![]) };
        self.partitions.insert(id, Reading { offset: last.offset + 1, fetch_bytes: FETCH_BYTES });
        Ok(fetched
            .into_iter()
            .map(|Fetched { offset, key, value }| {
                // The crate does not tell an empty key from none; Airflow's are never empty.
                Record::new(self.at(id, offset), Some(key).filter(|key| !key.is_empty()), Some(value))
            })
            .collect())
    }

    fn at(&self, partition: i32, offset: i64) -> Position {
        Position { topic: self.topic.clone(), partition, offset }
    }

    /// There is more, but nothing whole came: a record may be larger than what was asked for.
    fn ask_for_more(&mut self, id: i32) {
        if let Some(reading) = self.partitions.get_mut(&id) {
            reading.fetch_bytes = reading.fetch_bytes.saturating_mul(2).min(LARGEST_FETCH);
            debug!("asking for {} bytes of {}-{id}", reading.fetch_bytes, self.topic);
        }
    }

    /// Reads what may be missing between the offset asked for and the first one that came.
    ///
    /// Such a gap is usual: compaction, retention and transaction markers leave them. But the crate makes one, too: it
    /// keeps nothing of what stands in front of a compressed batch in the same answer. To tell, the same offset is asked
    /// for with fewer bytes: a broker cuts its answer to a Fetch of version 0 at that size, so that the smallest answer
    /// with any record holds one batch alone, and of that nothing is dropped.
    fn read_gap(&self, client: &mut KafkaClient, id: i32, fetched: Vec<Fetched>) -> Result<Vec<Fetched>> {
        let offset = self.partitions[&id].offset;
        let (mut too_few, mut enough) = (0, self.partitions[&id].fetch_bytes);
        let mut best = fetched;
        client.set_fetch_max_wait_time(Duration::ZERO).map_err(|e| explain(e, "setting the fetch wait".into()))?;
        while enough - too_few > 1 && best.first().is_some_and(|first| first.offset > offset) {
            let bytes = too_few + (enough - too_few) / 2;
            let request = FetchPartition::new(&self.config.topic, id, offset).with_max_bytes(bytes);
            match ask(client, [request]) {
                Ok(answers) => match answers.into_iter().find(|(answered, _)| *answered == id) {
                    Some((_, Ok((smaller, _)))) if !smaller.is_empty() => (enough, best) = (bytes, smaller),
                    Some((_, Ok(_) | Err(KafkaCode::MessageSizeTooLarge))) | None => too_few = bytes,
                    Some((_, Err(code))) => return Err(explain_code(code, format!("reading {}", self.at(id, offset)))),
                },
                Err(e) => return Err(self.unreadable(id, e)),
            }
        }
        match best.first() {
            Some(first) if first.offset > offset => {
                debug!("no records in {}-{id} from {offset} to {}", self.topic, first.offset - 1);
            }
            _ => debug!(
                "{}-{id}@{offset}: uncompressed records in front of a compressed batch, read on their own",
                self.topic
            ),
        }
        Ok(best)
    }

    /// The offset does not exist (any more): goes on at the earliest one.
    fn reset(&mut self, client: &mut KafkaClient, id: i32) -> Result<()> {
        let earliest = self.ends(client, StartFrom::Earliest)?.into_iter().find(|(partition, _)| *partition == id);
        let (Some((_, earliest)), Some(reading)) = (earliest, self.partitions.get_mut(&id)) else { return Ok(()) };
        let at = Position { topic: self.topic.clone(), partition: id, offset: reading.offset };
        reading::warn_of_gap(&at, earliest);
        *reading = Reading { offset: earliest, fetch_bytes: FETCH_BYTES };
        self.assigned.push(Event::Assigned { partition: id, offset: earliest, metadata: String::new() });
        Ok(())
    }
}

fn committing(group: &str, topic: &str) -> String {
    format!("committing offsets of group {group} in {topic}")
}

/// One Fetch request.
fn ask<'a>(
    client: &mut KafkaClient,
    requests: impl IntoIterator<Item = FetchPartition<'a>>,
) -> kafka::error::Result<Vec<(i32, Answer)>> {
    let responses = guarded(|| client.fetch_messages(requests))?;
    let mut answers = Vec::new();
    for partition in responses.iter().flat_map(|response| response.topics()).flat_map(|topic| topic.partitions()) {
        let answer = match partition.data() {
            Ok(data) => Ok((data.messages().iter().map(Fetched::from).collect(), data.highwatermark_offset())),
            Err(e) => match &*e {
                CrateError::Kafka(code) => Err(*code),
                _ => Err(KafkaCode::Unknown),
            },
        };
        answers.push((partition.partition(), answer));
    }
    Ok(answers)
}

impl From<&kafka::client::fetch::Message<'_>> for Fetched {
    fn from(message: &kafka::client::fetch::Message<'_>) -> Self {
        Fetched { offset: message.offset, key: message.key.to_vec(), value: message.value.to_vec() }
    }
}

impl Source for KafkaSource {
    fn poll(&mut self, wait: Duration, demand: &Demand<'_>, events: &mut Vec<Event>) -> Result<()> {
        if demand.want == 0 {
            return Ok(());
        }
        let asked = Instant::now();
        let before = events.len();
        let mut client = self.take_client()?;
        self.poll_with(&mut client, wait, events)?; // on any error the client is not put back: its state is unknown
        self.client = Some(client);
        if events.len() == before && asked.elapsed() < wait / 2 {
            thread::sleep(NOTHING_PAUSE.min(wait));
        }
        Ok(())
    }

    fn commit(&mut self, commits: &[Commit]) -> Result<()> {
        let mut client = self.take_client()?;
        let (group, topic) = (self.config.group.as_str(), self.config.topic.as_str());
        let offsets = commits.iter().map(|commit| CommitOffset::new(topic, commit.partition, commit.offset));
        guarded(|| client.commit_offsets(group, offsets)).map_err(|e| explain(e, committing(group, topic)))?;
        self.client = Some(client);
        Ok(())
    }

    fn metadata_limit(&self) -> usize {
        0
    }

    fn has_read_all(&mut self) -> Result<bool> {
        if self.ends.is_none() {
            let mut client = self.take_client()?;
            self.ends = Some(self.ends(&mut client, StartFrom::Latest)?);
            self.client = Some(client);
        }
        let ends = self.ends.as_deref().unwrap_or_default();
        Ok(ends.iter().all(|(id, end)| self.partitions.get(id).is_some_and(|reading| reading.offset >= *end)))
    }
}
