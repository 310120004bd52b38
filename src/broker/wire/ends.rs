//! Where partitions begin and end: ListOffsets, of each leader over a connection of its own. Waits for the answers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use kafka_protocol::ResponseError;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::{BrokerId, ListOffsetsRequest};

use super::cluster::Cluster;
use super::errors::{self, Doing};
use super::topic_name;
use crate::config::StartFrom;
use crate::error::Result;

/// The newest ListOffsets that asks for one offset by its meaning.
const LIST_OFFSETS: i16 = 5;

/// Which offset is wanted of a partition.
#[derive(Clone, Copy, Debug)]
pub enum Wanted {
    /// The first, or the next.
    End(StartFrom),
    /// That of the first record written at this time (in milliseconds since the epoch) or later; -1 if there is none.
    Since(i64),
}

impl From<StartFrom> for Wanted {
    fn from(end: StartFrom) -> Wanted {
        Wanted::End(end)
    }
}

/// An offset of each of these partitions; `read_committed`: without what is not committed. Each leader may take `patience`
/// to answer.
pub fn ask(
    cluster: &Cluster,
    topic: &str,
    partitions: &BTreeSet<i32>,
    wanted: impl Into<Wanted>,
    read_committed: bool,
    patience: Duration,
) -> Result<BTreeMap<i32, i64>> {
    let mut by_leader: BTreeMap<i32, Vec<ListOffsetsPartition>> = BTreeMap::new();
    let timestamp = match wanted.into() {
        Wanted::End(StartFrom::Earliest) => -2,
        Wanted::End(StartFrom::Latest) => -1,
        Wanted::Since(timestamp_ms) => timestamp_ms,
    };
    for &partition in partitions {
        let leader = cluster.leader(topic, partition).ok_or_else(|| errors::no_leader(topic, partition))?;
        let asked = ListOffsetsPartition::default().with_partition_index(partition).with_timestamp(timestamp);
        by_leader.entry(leader).or_default().push(asked.with_current_leader_epoch(-1));
    }
    let mut ends = BTreeMap::new();
    for (leader, asked) in by_leader {
        let mut conn = cluster.open(leader)?;
        let asked_topic = ListOffsetsTopic::default().with_name(topic_name(topic)).with_partitions(asked);
        let request = ListOffsetsRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_isolation_level(read_committed.into()) // what is not committed is not read
            .with_topics(vec![asked_topic]);
        let version = conn.version::<ListOffsetsRequest>(LIST_OFFSETS)?;
        let response = conn.call(version, &request, Instant::now() + patience)?;
        for partition in response.topics.iter().flat_map(|topic| &topic.partitions) {
            if let Some(code) = ResponseError::try_from_code(partition.error_code) {
                return Err(errors::explain(code, &Doing::new("Describe", "Topic", topic)));
            }
            ends.insert(partition.partition_index, partition.offset);
        }
    }
    Ok(ends)
}
