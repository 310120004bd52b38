//! Reading the partitions that are ours: one long-polling Fetch at a time to each leader, all of them at once.
//!
//! Never waits: [`Fetchers::send`] asks whoever is not asked yet, [`Fetchers::receive`] takes what has come. A leader that
//! does not answer holds up its own partitions alone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use kafka_protocol::ResponseError;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::fetch_response::PartitionData;
use kafka_protocol::messages::{BrokerId, FetchRequest};

use super::cluster::Cluster;
use super::conn::Connection;
use super::ends;
use super::errors::{self, Doing};
use super::records::{self, Aborted, Batches};
use super::{millis, topic_name};
use crate::broker::outage::Outage;
use crate::config::client::Isolation;
use crate::config::{self, StartFrom};
use crate::error::{Error, Result};

/// The newest Fetch by topic name.
const FETCH: i16 = 12;

/// How much longer than its long poll a Fetch may be silent; a large answer on a slow line is not silent.
const PATIENCE: Duration = Duration::from_secs(10);

/// How to read.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The topic.
    pub topic: String,
    /// Bytes asked for of each partition; one record is given whole, however large.
    pub partition_bytes: i32,
    /// Bytes asked for of each broker.
    pub broker_bytes: i32,
    /// Whether records of aborted transactions are left out.
    pub read_committed: bool,
    /// How long a fetch waits at the broker for something to come.
    pub long_poll: Duration,
    /// How much longer than the long poll an answer may take.
    pub patience: Duration,
}

impl Settings {
    /// Those for `topic`, by the properties of `config`.
    pub fn of(config: &config::Kafka, topic: &str) -> Settings {
        let settings = &config.settings;
        Settings {
            topic: topic.to_string(),
            partition_bytes: settings.partition_fetch_bytes,
            broker_bytes: settings.fetch_max_bytes,
            read_committed: settings.isolation == Isolation::ReadCommitted,
            long_poll: settings.fetch_max_wait,
            patience: settings.request_timeout.min(PATIENCE),
        }
    }
}

/// Where reading stands in each partition, and the connections to the leaders.
pub struct Fetchers {
    settings: Settings,
    positions: BTreeMap<i32, Position>,
    leaders: BTreeMap<i32, Fetcher>,
}

#[derive(Debug, Default)]
struct Position {
    offset: i64,
    /// A batch there cannot be read, as was said at the time.
    corrupt: Option<String>,
    /// Not before this, after trouble.
    pause: Option<Instant>,
}

/// The connection to one leader.
struct Fetcher {
    conn: Option<Connection>,
    /// What is asked for, and since when; empty: nothing.
    asked: Vec<(i32, i64)>,
    since: Instant,
    retry_at: Instant,
    outage: Outage,
}

/// What has come.
pub enum Came {
    /// The next records of a partition.
    Records(i32, Batches),
    /// The offset does not exist (any more).
    OutOfRange(i32),
    /// The leader is another one by now: ask the cluster.
    Moved,
}

impl Fetchers {
    /// Reads nothing yet.
    pub fn new(settings: Settings) -> Fetchers {
        Fetchers { settings, positions: BTreeMap::new(), leaders: BTreeMap::new() }
    }

    /// Reads a partition no longer.
    pub fn forget(&mut self, partition: i32) {
        self.positions.remove(&partition);
    }

    /// Reads nothing any more.
    pub fn forget_all(&mut self) {
        self.positions.clear();
    }

    /// Reads a partition from `offset` on.
    pub fn seek(&mut self, partition: i32, offset: i64) {
        self.positions.insert(partition, Position { offset, ..Position::default() });
    }

    /// Where reading stands in a partition.
    pub fn offset(&self, partition: i32) -> Option<i64> {
        self.positions.get(&partition).map(|position| position.offset)
    }

    /// Asks every leader that is not asked yet for its partitions but those `paused`. Returns what is to be said of
    /// partitions that have no leader.
    pub fn send(&mut self, cluster: &Cluster, paused: &BTreeSet<i32>) -> Result<Option<Error>> {
        let now = Instant::now();
        let mut by_leader: BTreeMap<i32, Vec<(i32, i64)>> = BTreeMap::new();
        let mut leaderless = None;
        for (&partition, position) in &self.positions {
            if paused.contains(&partition) || position.pause.is_some_and(|until| until > now) {
                continue;
            }
            match cluster.leader(&self.settings.topic, partition) {
                Some(leader) => by_leader.entry(leader).or_default().push((partition, position.offset)),
                None => leaderless = Some(self.no_leader(partition)),
            }
        }
        let mut failure = Ok(());
        for (leader, wanted) in by_leader {
            let fetcher = self.leaders.entry(leader).or_insert_with(|| Fetcher::new(now));
            if fetcher.asked.is_empty() && fetcher.retry_at <= now {
                let sent = fetcher.send(leader, cluster, &self.settings, wanted);
                if let Err(e) = sent.or_else(|e| fetcher.failed(e)) {
                    failure = Err(e);
                }
            }
        }
        failure.map(|()| leaderless)
    }

    /// Takes what has come, without waiting.
    pub fn receive(&mut self, came: &mut Vec<Came>) -> Result<()> {
        let mut failure = Ok(());
        for fetcher in self.leaders.values_mut() {
            let answers = match fetcher.receive(&self.settings) {
                Ok(answers) => answers,
                Err(e) => {
                    came.push(Came::Moved); // perhaps
                    if let Err(e) = fetcher.failed(e) {
                        failure = Err(e);
                    }
                    continue;
                }
            };
            for answer in answers {
                let partition = answer.partition_index;
                let asked = fetcher.asked_for(partition);
                let Some(position) =
                    self.positions.get_mut(&partition).filter(|position| Some(position.offset) == asked)
                else {
                    continue; // it was revoked, or sought elsewhere, meanwhile
                };
                match position.take(answer, &self.settings) {
                    Ok(Some(news)) => came.push(news),
                    Ok(None) => {}
                    Err(e) => failure = Err(e),
                }
            }
            if fetcher.conn.as_ref().is_none_or(|conn| conn.under_way() == 0) {
                fetcher.asked.clear();
            }
        }
        failure
    }

    /// The connections that answers are awaited on.
    pub fn awaited(&self) -> impl Iterator<Item = &Connection> {
        self.leaders.values().filter(|fetcher| !fetcher.asked.is_empty()).filter_map(|fetcher| fetcher.conn.as_ref())
    }

    /// When something is to be done though nothing has come.
    pub fn due(&self) -> Option<Instant> {
        let answers = self.leaders.values().map(|fetcher| match fetcher.asked.is_empty() {
            true => fetcher.retry_at,
            false => fetcher.since + self.settings.long_poll + self.settings.patience,
        });
        let pauses = self.positions.values().filter_map(|position| position.pause);
        let now = Instant::now();
        answers.chain(pauses).filter(|&at| at > now).min()
    }

    /// The first, or the next, offset of each of these partitions.
    pub fn ends(&self, cluster: &Cluster, partitions: &BTreeSet<i32>, end: StartFrom) -> Result<BTreeMap<i32, i64>> {
        let Settings { topic, read_committed, patience, .. } = &self.settings;
        ends::ask(cluster, topic, partitions, end, *read_committed, *patience)
    }

    /// The first offset of each of these partitions whose record was written at `timestamp_ms` (since the epoch) or later; -1
    /// where there is none.
    pub fn since(
        &self,
        cluster: &Cluster,
        partitions: &BTreeSet<i32>,
        timestamp_ms: i64,
    ) -> Result<BTreeMap<i32, i64>> {
        let Settings { topic, read_committed, patience, .. } = &self.settings;
        ends::ask(cluster, topic, partitions, ends::Wanted::Since(timestamp_ms), *read_committed, *patience)
    }

    fn no_leader(&self, partition: i32) -> Error {
        errors::no_leader(&self.settings.topic, partition)
    }
}

impl Fetcher {
    fn new(now: Instant) -> Fetcher {
        Fetcher { conn: None, asked: Vec::new(), since: now, retry_at: now, outage: Outage::new("reading") }
    }

    fn send(&mut self, leader: i32, cluster: &Cluster, settings: &Settings, wanted: Vec<(i32, i64)>) -> Result<()> {
        let conn = match &mut self.conn {
            Some(conn) if conn.is_fresh() => conn,
            _ => self.conn.insert(cluster.open(leader)?),
        };
        let version = conn.version::<FetchRequest>(FETCH)?;
        let partitions = wanted.iter().map(|&(partition, offset)| {
            FetchPartition::default()
                .with_partition(partition)
                .with_fetch_offset(offset)
                .with_current_leader_epoch(-1)
                .with_last_fetched_epoch(-1)
                .with_partition_max_bytes(settings.partition_bytes)
        });
        let topic = FetchTopic::default().with_topic(topic_name(&settings.topic)).with_partitions(partitions.collect());
        let request = FetchRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_max_wait_ms(millis(settings.long_poll))
            .with_min_bytes(1)
            .with_max_bytes(settings.broker_bytes)
            .with_isolation_level(settings.read_committed.into())
            .with_session_id(0)
            .with_session_epoch(-1) // no fetch session: which partitions are asked for changes all the time
            .with_topics(vec![topic]);
        self.since = Instant::now();
        conn.send(version, &request, self.since + settings.patience)?;
        self.asked = wanted;
        Ok(())
    }

    fn asked_for(&self, partition: i32) -> Option<i64> {
        self.asked.iter().find(|(asked, _)| *asked == partition).map(|(_, offset)| *offset)
    }

    fn receive(&mut self, settings: &Settings) -> Result<Vec<PartitionData>> {
        let Some(conn) = self.conn.as_mut().filter(|_| !self.asked.is_empty()) else { return Ok(Vec::new()) };
        let Some(response) = conn.receive::<FetchRequest>()? else {
            // A large answer over a slow line is on its way as long as something of it comes.
            let silent = self.since.max(conn.heard()).elapsed();
            if silent > settings.long_poll + settings.patience {
                return Err(conn.failed(format!("no answer to a Fetch within {silent:?}")));
            }
            return Ok(Vec::new());
        };
        if let Some(code) = ResponseError::try_from_code(response.error_code) {
            return Err(errors::explain(code, &Doing::new("Read", "Topic", &settings.topic)));
        }
        self.outage.over(Instant::now());
        Ok(response.responses.into_iter().flat_map(|topic| topic.partitions).collect())
    }

    /// Drops the connection and pauses; passes on what waiting will not mend.
    fn failed(&mut self, e: Error) -> Result<()> {
        self.conn = None;
        self.asked.clear();
        if !e.is_transient() {
            return Err(e);
        }
        let now = Instant::now();
        self.retry_at = now + self.outage.failed(&e, now);
        Ok(())
    }
}

impl Position {
    fn take(&mut self, answer: PartitionData, settings: &Settings) -> Result<Option<Came>> {
        use ResponseError::*;
        let partition = answer.partition_index;
        match ResponseError::try_from_code(answer.error_code) {
            None => {}
            Some(OffsetOutOfRange) => return Ok(Some(Came::OutOfRange(partition))),
            Some(
                NotLeaderOrFollower
                | FencedLeaderEpoch
                | UnknownLeaderEpoch
                | ReplicaNotAvailable
                | KafkaStorageError
                | UnknownTopicOrPartition
                | LeaderNotAvailable
                | OffsetNotAvailable,
            ) => {
                self.pause = Some(Instant::now() + Duration::from_millis(100));
                return Ok(Some(Came::Moved));
            }
            Some(code) => return Err(errors::explain(code, &Doing::new("Read", "Topic", &settings.topic))),
        }
        self.pause = None;
        let aborted = answer.aborted_transactions.unwrap_or_default();
        let aborted: Vec<Aborted> = aborted
            .iter()
            .map(|aborted| Aborted { producer_id: aborted.producer_id.0, first_offset: aborted.first_offset })
            .collect();
        let batches = records::decode(answer.records.unwrap_or_default(), self.offset, &aborted);
        if let Some(corrupt) = &batches.corrupt {
            let told = format!("{}-{partition}@{}: {}", settings.topic, corrupt.offset, corrupt.why);
            self.pause = Some(Instant::now() + Duration::from_secs(5));
            if self.corrupt.as_ref() != Some(&told) {
                log::error!(
                    "{told}; the partition stands still there, since to pass over it might lose commands. It is read again \
                     now and then; repair the log, or move the group's offset past it (kafka-consumer-groups.sh --reset-offsets)"
                );
                self.corrupt = Some(told);
            }
        } else if let Some(told) = self.corrupt.take() {
            log::warn!("can be read again: {told}");
        }
        self.offset = batches.next;
        Ok((!batches.records.is_empty()).then_some(Came::Records(partition, batches)))
    }
}
