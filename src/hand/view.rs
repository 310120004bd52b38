//! The cluster as a broker describes it: who is in it, which topics there are, and what we may do with them.

use std::collections::BTreeMap;
use std::time::Instant;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::MetadataResponseTopic;
use kafka_protocol::messages::{MetadataRequest, TopicName};
use kafka_protocol::protocol::StrBytes;

use super::Reach;
use crate::broker::wire::cluster::Cluster;
use crate::broker::wire::conn::Connection;
use crate::error::{Error, Kind, Result};

/// The newest Metadata by topic name alone.
const METADATA: i16 = 9;
/// The first one that tells what we may do.
const WITH_RIGHTS: i16 = 8;

/// What was described.
pub struct View {
    /// Addresses by broker.
    pub brokers: BTreeMap<i32, String>,
    controller: i32,
    topics: BTreeMap<String, MetadataResponseTopic>,
}

/// A topic of it.
pub enum Topic<'a> {
    /// It is there.
    There(&'a MetadataResponseTopic),
    /// It is not.
    Missing,
    /// The broker does not tell.
    Refused(ResponseError),
}

/// What an ACL can allow, as a bit of what the brokers tell.
#[derive(Clone, Copy, Debug)]
pub enum Operation {
    /// Reading records, or being a member of a group.
    Read = 3,
    /// Writing records.
    Write = 4,
}

impl Operation {
    /// Its name in an ACL.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Read => "Read",
            Operation::Write => "Write",
        }
    }

    /// Whether it is among `operations`; a broker that does not tell is believed to allow it.
    pub fn is_in(self, operations: i32) -> bool {
        operations == i32::MIN || operations & (1 << self as i32) != 0
    }
}

impl View {
    /// Asks one broker. No topic comes into being by being asked for.
    pub fn of(cluster: &mut Cluster, topics: &[&str]) -> Result<View> {
        let names = topics.iter().map(|topic| {
            let name = TopicName(StrBytes::from_string(topic.to_string()));
            MetadataRequestTopic::default().with_name(Some(name))
        });
        let request =
            MetadataRequest::default().with_topics(Some(names.collect())).with_allow_auto_topic_creation(false);
        let response = cluster.ask(|conn, deadline| {
            let version = conn.version::<MetadataRequest>(METADATA)?;
            let request = request.with_include_topic_authorized_operations(version >= WITH_RIGHTS);
            conn.call(version, &request, deadline)
        })?;
        let address = |host: &StrBytes, port| format!("{host}:{port}");
        Ok(View {
            brokers: response.brokers.iter().map(|it| (it.node_id.0, address(&it.host, it.port))).collect(),
            controller: response.controller_id.0,
            topics: response
                .topics
                .into_iter()
                .map(|topic| (topic.name.clone().unwrap_or_default().0.to_string(), topic))
                .collect(),
        })
    }

    /// How many partitions a topic has; 0 if it is not there.
    pub fn partition_count(&self, name: &str) -> usize {
        match self.topic(name) {
            Topic::There(topic) => topic.partitions.len(),
            Topic::Missing | Topic::Refused(_) => 0,
        }
    }

    /// One of the topics that were asked for.
    pub fn topic(&self, name: &str) -> Topic<'_> {
        let Some(topic) = self.topics.get(name) else { return Topic::Missing };
        match ResponseError::try_from_code(topic.error_code) {
            None | Some(ResponseError::LeaderNotAvailable) => Topic::There(topic),
            Some(ResponseError::UnknownTopicOrPartition) => Topic::Missing,
            Some(code) => Topic::Refused(code),
        }
    }

    /// Whether a topic is there, and each of its partitions has a leader.
    pub fn is_led(&self, name: &str) -> bool {
        matches!(self.topic(name), Topic::There(topic) if topic.partitions.iter().all(|it| it.leader_id.0 >= 0))
    }

    /// A connection to the broker that makes topics.
    pub fn open_controller(&self, reach: &Reach) -> Result<Connection> {
        let address = self.brokers.get(&self.controller);
        let address =
            address.ok_or_else(|| Error::new(Kind::Unavailable, "the cluster has no controller at present"))?;
        reach.dialer.open(address, Instant::now() + reach.patience())
    }
}
