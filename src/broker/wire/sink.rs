//! Writes results: one Produce request to each leader at a time, to all of them at once, acknowledged by all in-sync
//! replicas.
//!
//! Owned by the publish thread. Nothing lingers: what has gathered while the last answers were awaited goes out together.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kafka_protocol::ResponseError;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::produce_response::ProduceResponse;
use kafka_protocol::messages::{InitProducerIdRequest, ProduceRequest};
use kafka_protocol::records::Compression;
use log::{debug, warn};

use super::cluster::{Cluster, Purpose};
use super::conn::{Connection, wait_readable};
use super::dial::Dialer;
use super::errors::{self, Doing};
use super::producer::{Place, Producer, Verdict};
use super::{millis, topic_name};
use crate::broker::route::{self, Topics};
use crate::broker::{At, Outgoing, Sink, Target};
use crate::config;
use crate::error::{Error, Kind, Result};

/// The newest Produce by topic name.
const PRODUCE: i16 = 9;
/// The newest InitProducerId that is built here.
const INIT_PRODUCER_ID: i16 = 4;

/// The longest an answer is waited for: a batch can be sent again without harm, and a black hole gives none.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a leader that did not answer is left alone.
const REST: Duration = Duration::from_millis(500);

/// The writer of results.
pub struct WireSink {
    topics: Topics,
    compression: Compression,
    /// How long an answer may take; three quarters of it are for the replicas.
    patience: Duration,
    cluster: Cluster,
    connections: BTreeMap<i32, Connection>,
    /// `None`: a new producer id is to be asked for.
    producer: Option<Producer>,
    idempotent: bool,
    /// Who leads is to be asked before anything is sent.
    stale: bool,
    /// Leaders that did not answer, and until when they are left alone: the others must not wait for them.
    resting: BTreeMap<i32, Instant>,
    /// Where what was written stands, for who wants to know.
    written: Option<Vec<Written>>,
}

/// A record that was written: the place of its command, and its own.
pub type Written = (At, At);

/// What is to be done once every answer of a round has been taken: one that is left on its connection would later be taken
/// for that to another request.
#[derive(Default)]
struct Findings {
    /// What hinders a part of the results for now.
    hindrance: Option<Error>,
    /// What waiting will not mend.
    refusal: Option<Error>,
    /// The producer is of no use any more.
    renew: bool,
}

impl WireSink {
    /// Connects and finds the topics.
    pub fn connect(config: &config::Kafka, dialer: Arc<Dialer>) -> Result<WireSink> {
        let settings = &config.settings;
        let cluster =
            Cluster::new(dialer, config.brokers.clone(), settings.request_timeout.min(Duration::from_secs(10)));
        let mut sink = WireSink {
            topics: Topics::new(config),
            compression: compression(settings.compression),
            patience: settings.request_timeout.min(PATIENCE),
            cluster,
            connections: BTreeMap::new(),
            producer: None,
            idempotent: true,
            stale: true,
            resting: BTreeMap::new(),
            written: None,
        };
        sink.prepare()?;
        Ok(sink)
    }

    /// Keeps from now on where what is written stands, until [`take_written`](Self::take_written).
    pub fn keep_written(&mut self) {
        self.written = Some(Vec::new());
    }

    /// What was written since this was called last, if it is kept.
    pub fn take_written(&mut self) -> Vec<Written> {
        self.written.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Sees to it that the leaders and a producer id are known.
    fn prepare(&mut self) -> Result<()> {
        if self.stale {
            self.cluster.refresh(&self.topics.all(), Purpose::Write)?;
            self.stale = false;
        }
        if self.producer.is_none() {
            let id = if self.idempotent { self.producer_id()? } else { None };
            self.producer = Some(Producer::new(id, self.compression));
        }
        Ok(())
    }

    /// A new producer id; `None`: we may not have one.
    fn producer_id(&mut self) -> Result<Option<(i64, i16)>> {
        let request =
            InitProducerIdRequest::default().with_transactional_id(None).with_transaction_timeout_ms(i32::MAX);
        let response = self.cluster.ask(|conn, deadline| {
            let version = conn.version::<InitProducerIdRequest>(INIT_PRODUCER_ID)?;
            conn.call(version, &request, deadline)
        })?;
        match ResponseError::try_from_code(response.error_code) {
            None => {
                debug!("producer id {} epoch {}", response.producer_id.0, response.producer_epoch);
                Ok(Some((response.producer_id.0, response.producer_epoch)))
            }
            Some(ResponseError::ClusterAuthorizationFailed) => {
                self.forgo_idempotence("the broker does not allow IdempotentWrite on the cluster");
                Ok(None)
            }
            Some(code) => Err(errors::explain(code, &Doing::new("IdempotentWrite", "Cluster", "kafka-cluster"))),
        }
    }

    fn forgo_idempotence(&mut self, why: &str) {
        if std::mem::take(&mut self.idempotent) {
            warn!(
                "results are written without a producer id, so that one may stand twice in its topic after an outage: {why}"
            );
        }
    }

    /// One round: sends what can be sent, and waits for the answers. Returns what hindered a part of it.
    fn round(&mut self, unsent: &mut Vec<Outgoing>) -> Result<Option<Error>> {
        self.prepare()?;
        let mut found = Findings::default();
        let mut requests: Vec<_> = self.requests(unsent, &mut found.hindrance).into_iter().collect();
        // To those at hand first: connecting may take a while.
        requests.sort_by_key(|(leader, _)| !self.connections.contains_key(leader));
        let deadline = Instant::now() + self.patience;
        let mut asked = Vec::new();
        for (leader, (places, request)) in requests {
            match self.send(leader, &request, deadline) {
                Ok(()) => asked.push((leader, places)),
                Err(e) => found.hindrance = Some(self.lost(leader, e)),
            }
        }
        while !asked.is_empty() {
            let mut still = Vec::new();
            for (leader, places) in asked {
                let received =
                    self.connections.get_mut(&leader).map_or(Ok(None), |conn| conn.receive::<ProduceRequest>());
                match received {
                    Ok(None) if Instant::now() < deadline => still.push((leader, places)),
                    Ok(None) => {
                        let e =
                            Error::new(Kind::Unavailable, format!("broker {leader}: no answer to a Produce in time"));
                        found.hindrance = Some(self.lost(leader, e));
                    }
                    Ok(Some(response)) => self.take(&response, &places, unsent, &mut found),
                    Err(e) => found.hindrance = Some(self.lost(leader, e)),
                }
            }
            asked = still;
            let awaited: Vec<&Connection> =
                asked.iter().filter_map(|(leader, _)| self.connections.get(leader)).collect();
            if !awaited.is_empty() {
                wait_readable(&awaited, deadline);
            }
        }
        if found.renew {
            self.producer = None;
        }
        found.refusal.map_or(Ok(found.hindrance), Err)
    }

    /// A request to each leader, with the batches it carries.
    fn requests(
        &mut self,
        unsent: &[Outgoing],
        hindrance: &mut Option<Error>,
    ) -> BTreeMap<i32, (Vec<Place>, ProduceRequest)> {
        let now_ms = jiff::Timestamp::now().as_millisecond();
        let Some(mut producer) = self.producer.take() else { return BTreeMap::new() };
        let mut by_leader: BTreeMap<i32, BTreeMap<Target, Vec<PartitionProduceData>>> = BTreeMap::new();
        for (&(target, partition), batch) in producer.batches(unsent, |out| self.place(out), now_ms) {
            let data = PartitionProduceData::default().with_index(partition).with_records(Some(batch.bytes.clone()));
            match self.cluster.leader(self.topics.name(target), partition) {
                Some(leader) if self.resting.get(&leader).is_some_and(|until| Instant::now() < *until) => {
                    *hindrance = Some(Error::new(Kind::Unavailable, format!("broker {leader} is not heard from")));
                }
                Some(leader) => by_leader.entry(leader).or_default().entry(target).or_default().push(data),
                None => {
                    *hindrance = Some(Error::new(
                        Kind::Unavailable,
                        format!("{}-{partition} has no leader", self.topics.name(target)),
                    ));
                    self.stale = true;
                }
            }
        }
        self.producer = Some(producer);
        let request = |topics: BTreeMap<Target, Vec<PartitionProduceData>>| {
            let places =
                topics.iter().flat_map(|(&target, data)| data.iter().map(move |data| (target, data.index))).collect();
            let topics = topics.into_iter().map(|(target, data)| {
                let name = topic_name(self.topics.name(target));
                TopicProduceData::default().with_name(name).with_partition_data(data)
            });
            let timeout_ms = millis(self.patience * 3 / 4);
            let request = ProduceRequest::default()
                .with_transactional_id(None)
                .with_acks(-1)
                .with_timeout_ms(timeout_ms)
                .with_topic_data(topics.collect());
            (places, request)
        };
        by_leader.into_iter().map(|(leader, topics)| (leader, request(topics))).collect()
    }

    /// Over all partitions of the topic, those without a leader included.
    fn place(&self, out: &Outgoing) -> Place {
        let count = self.cluster.partition_count(self.topics.name(out.target)).max(1);
        (out.target, route::partition(out, count))
    }

    fn send(&mut self, leader: i32, request: &ProduceRequest, deadline: Instant) -> Result<()> {
        if self.connections.get(&leader).is_none_or(|conn| !conn.is_fresh()) {
            self.connections.insert(leader, self.cluster.open(leader)?);
        }
        let conn = self.connections.get_mut(&leader).expect("just opened");
        let version = conn.version::<ProduceRequest>(PRODUCE)?;
        conn.send(version, request, deadline)
    }

    /// The connection is gone; what was sent over it is not answered, and the leader may be another one.
    fn lost(&mut self, leader: i32, e: Error) -> Error {
        self.connections.remove(&leader);
        self.resting.insert(leader, Instant::now() + REST);
        self.stale = true;
        e
    }

    /// Takes the answer for each partition.
    fn take(&mut self, response: &ProduceResponse, places: &[Place], unsent: &mut Vec<Outgoing>, found: &mut Findings) {
        let Some(mut producer) = self.producer.take() else { return };
        let answers: usize = response.responses.iter().map(|topic| topic.partition_responses.len()).sum();
        if answers < places.len() {
            found.hindrance = Some(Error::new(Kind::Unavailable, "the answer to a Produce leaves out partitions"));
        }
        for topic in &response.responses {
            for answer in &topic.partition_responses {
                let of_topic =
                    |place: &&Place| self.topics.name(place.0) == topic.name.0.as_str() && place.1 == answer.index;
                let Some(&place) = places.iter().find(of_topic) else { continue };
                let code = ResponseError::try_from_code(answer.error_code);
                if let Some(written) = self.written.as_mut().filter(|_| code.is_none()) {
                    let offsets = (answer.base_offset..).map(|offset| (answer.index, offset));
                    written.extend(producer.unanswered(place).zip(offsets));
                }
                let verdict = producer.answered(place, code, unsent);
                let at = format!("{}-{}", topic.name.0, answer.index);
                let explained =
                    code.map(|code| errors::explain(code, &Doing::new("Write", "Topic", topic.name.0.as_str())));
                match verdict {
                    Verdict::Written | Verdict::Split => {}
                    Verdict::Again => {
                        self.stale = true;
                        found.hindrance = explained;
                    }
                    Verdict::TooLarge => {
                        // It must not hold up the others: to the end of the queue with it.
                        let of_place = |out: &Outgoing| self.place(out) == place;
                        if let Some(index) = unsent.iter().position(of_place) {
                            let out = unsent.remove(index);
                            unsent.push(out);
                        }
                        found.hindrance = explained;
                    }
                    Verdict::NewProducer => {
                        warn!(
                            "{at} has lost track of our producer id ({code:?}): a new one, and what is not answered is written again"
                        );
                        found.renew = true;
                    }
                    Verdict::NotIdempotent => {
                        self.forgo_idempotence(&format!("{at} does not take it ({code:?})"));
                        found.renew = true;
                    }
                    Verdict::Refused => found.refusal = explained,
                }
            }
        }
        self.producer = Some(producer);
    }
}

impl Sink for WireSink {
    fn send(&mut self, unsent: &mut Vec<Outgoing>) -> Result<()> {
        while !unsent.is_empty() {
            if let Some(hindrance) = self.round(unsent)? {
                return Err(hindrance);
            }
        }
        Ok(())
    }
}

fn compression(setting: config::client::Compression) -> Compression {
    match setting {
        config::client::Compression::None => Compression::None,
        config::client::Compression::Gzip => Compression::Gzip,
        config::client::Compression::Snappy => Compression::Snappy,
        config::client::Compression::Lz4 => Compression::Lz4,
        config::client::Compression::Zstd => Compression::Zstd,
    }
}
