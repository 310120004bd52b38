//! What is known of the cluster: its brokers' addresses, the partitions of our topics and their leaders.
//!
//! Owned by one thread. Asks one broker at a time and returns; when to ask again is the caller's affair.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kafka_protocol::ResponseError;
use kafka_protocol::messages::find_coordinator_response::FindCoordinatorResponse;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::MetadataResponse;
use kafka_protocol::messages::{BrokerId, FindCoordinatorRequest, MetadataRequest};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use super::conn::Connection;
use super::dial::Dialer;
use super::errors::{self, Doing};
use super::topic_name;
use crate::error::{Error, Kind, Result};

/// The newest Metadata that is built here; from version 10 on it tells the topics' ids.
const METADATA: i16 = 12;
/// The newest FindCoordinator for one group at a time.
const FIND_COORDINATOR: i16 = 3;

/// What topics are asked about for. A topic that is read has to be there, so that a mistyped one does not come into being;
/// one that is written to may be made by a broker that does so by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Purpose {
    Read,
    Write,
}

impl Purpose {
    /// The operation that an ACL has to allow; it includes Describe.
    fn operation(self) -> &'static str {
        match self {
            Purpose::Read => "Read",
            Purpose::Write => "Write",
        }
    }
}

/// A topic as it was last seen.
struct Topic {
    /// Nil where brokers do not tell (before 2.8).
    id: Uuid,
    /// The leader of each partition.
    leaders: Vec<Option<i32>>,
}

/// The cluster as it was last seen.
pub struct Cluster {
    dialer: Arc<Dialer>,
    bootstrap: Vec<String>,
    patience: Duration,
    brokers: BTreeMap<i32, String>,
    topics: BTreeMap<String, Topic>,
    /// The connection such questions go over, once there is one.
    control: Option<Connection>,
    /// How many addresses were tried in vain since the last success.
    tried: usize,
}

impl Cluster {
    /// Nothing known but the addresses to ask first; an answer may take `patience`.
    pub fn new(dialer: Arc<Dialer>, bootstrap: Vec<String>, patience: Duration) -> Cluster {
        let (brokers, topics) = (BTreeMap::new(), BTreeMap::new());
        Cluster { dialer, bootstrap, patience, brokers, topics, control: None, tried: 0 }
    }

    /// Asks one broker for the partitions of `topics` and their leaders. After an error the next call asks another one.
    /// A topic that does not exist is an error that names it; what was learnt of the others is kept.
    pub fn refresh(&mut self, topics: &[&str], purpose: Purpose) -> Result<()> {
        let names = topics.iter().map(|topic| MetadataRequestTopic::default().with_name(Some(topic_name(topic))));
        let request = MetadataRequest::default()
            .with_topics(Some(names.collect()))
            .with_allow_auto_topic_creation(purpose == Purpose::Write);
        let response =
            self.ask(|conn, deadline| conn.call(conn.version::<MetadataRequest>(METADATA)?, &request, deadline))?;
        self.learn(response, purpose)
    }

    fn learn(&mut self, response: MetadataResponse, purpose: Purpose) -> Result<()> {
        self.brokers = response
            .brokers
            .iter()
            .map(|broker| (broker.node_id.0, format!("{}:{}", broker.host, broker.port)))
            .collect();
        let mut failure = Ok(());
        for topic in response.topics {
            let name = topic.name.unwrap_or_default().0.to_string();
            match ResponseError::try_from_code(topic.error_code) {
                None => {
                    let mut leaders = vec![None; topic.partitions.len()];
                    for partition in &topic.partitions {
                        let led = partition.leader_id.0 >= 0;
                        if let Some(leader) =
                            usize::try_from(partition.partition_index).ok().and_then(|index| leaders.get_mut(index))
                        {
                            *leader = led.then_some(partition.leader_id.0);
                        }
                    }
                    self.topics.insert(name, Topic { id: topic.topic_id, leaders });
                }
                Some(code) => failure = Err(errors::explain(code, &Doing::new(purpose.operation(), "Topic", &name))),
            }
        }
        failure
    }

    /// How many partitions a topic has; 0 while it is not known.
    pub fn partition_count(&self, topic: &str) -> usize {
        self.topics.get(topic).map_or(0, |topic| topic.leaders.len())
    }

    /// The broker that leads a partition; `None`: not known, or nobody does.
    pub fn leader(&self, topic: &str, partition: i32) -> Option<i32> {
        *self.topics.get(topic)?.leaders.get(usize::try_from(partition).ok()?)?
    }

    /// The id of a topic.
    pub fn topic_id(&self, topic: &str) -> Option<Uuid> {
        self.topics.get(topic).map(|topic| topic.id).filter(|id| !id.is_nil())
    }

    /// The id of a broker.
    pub fn any_broker(&self) -> Option<i32> {
        self.brokers.keys().next().copied()
    }

    /// Until when an answer to what is asked now has to be there.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.patience
    }

    /// Opens a connection to a broker by its id.
    pub fn open(&self, broker: i32) -> Result<Connection> {
        let address = self.brokers.get(&broker).ok_or_else(|| {
            Error::new(Kind::Unavailable, format!("broker {broker} is not in the cluster (any more)"))
        })?;
        self.dialer.open(address, self.deadline())
    }

    /// Says anew who we are, over a connection on which nothing is under way.
    pub fn authenticate(&self, conn: &mut Connection) -> Result<()> {
        self.dialer.authenticate(conn, self.deadline())
    }

    /// Which broker coordinates a group.
    pub fn find_coordinator(&mut self, group: &str) -> Result<i32> {
        let request = FindCoordinatorRequest::default().with_key(StrBytes::from_string(group.to_string()));
        let response: FindCoordinatorResponse = self.ask(|conn, deadline| {
            conn.call(conn.version::<FindCoordinatorRequest>(FIND_COORDINATOR)?, &request, deadline)
        })?;
        match ResponseError::try_from_code(response.error_code) {
            None => {
                let BrokerId(id) = response.node_id;
                self.brokers.insert(id, format!("{}:{}", response.host, response.port));
                Ok(id)
            }
            Some(code) => Err(errors::explain(code, &Doing::new("Read", "Group", group))),
        }
    }

    /// Asks over the control connection, made anew to the next address after each failure.
    pub fn ask<T>(&mut self, question: impl FnOnce(&mut Connection, Instant) -> Result<T>) -> Result<T> {
        let mut conn = match self.control.take().filter(Connection::is_fresh) {
            Some(conn) => conn,
            None => self.open_any()?,
        };
        let answer = question(&mut conn, self.deadline());
        match &answer {
            Ok(_) => {
                self.tried = 0;
                self.control = Some(conn);
            }
            Err(_) => self.tried += 1,
        }
        answer
    }

    /// A connection to the next address in turn: the bootstrap ones first, then those the cluster has told.
    fn open_any(&mut self) -> Result<Connection> {
        let mut addresses: Vec<&String> = self.bootstrap.iter().collect();
        addresses.extend(self.brokers.values().filter(|address| !self.bootstrap.contains(address)));
        // All of them, one refusal after the other, but only one that takes its time.
        let started = Instant::now();
        let mut failure = None;
        for _ in 0..addresses.len() {
            let address = addresses[self.tried % addresses.len()];
            match self.dialer.open(address, self.deadline()) {
                Ok(conn) => return Ok(conn),
                Err(e) => {
                    self.tried += 1;
                    // The first is the most telling: it is what the user gave.
                    if !e.is_transient() || started.elapsed() > self.patience / 2 {
                        return Err(e);
                    }
                    failure.get_or_insert(e);
                }
            }
        }
        Err(failure.unwrap_or_else(|| Error::new(Kind::Config, "no broker address is known")))
    }
}
