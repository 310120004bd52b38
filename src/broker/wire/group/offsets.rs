//! The group's offsets: committed as a member of its generation, and asked for; over a connection of their own, so that they
//! never wait for a join.

use std::collections::{BTreeMap, BTreeSet};

use kafka_protocol::ResponseError;
use kafka_protocol::messages::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestTopic;
use kafka_protocol::messages::{OffsetCommitRequest, OffsetFetchRequest};
use kafka_protocol::protocol::{Request, StrBytes};

use super::Group;
use crate::broker::Commit;
use crate::broker::wire::cluster::Cluster;
use crate::broker::wire::conn::Connection;
use crate::broker::wire::topic_name;
use crate::error::{Error, Kind, Result};

/// The newest versions that are built here.
const OFFSET_COMMIT: i16 = 9;
const OFFSET_FETCH: i16 = 7;

/// A committed offset and its metadata.
pub type Committed = (i64, String);

impl Group {
    /// Commits offsets of our topic, as this member in this generation.
    pub fn commit(&mut self, cluster: &mut Cluster, commits: &[Commit]) -> Result<()> {
        if !self.member {
            return Err(Error::new(Kind::Later, "not a member of the group at the moment"));
        }
        let partitions = commits.iter().map(|commit| {
            OffsetCommitRequestPartition::default()
                .with_partition_index(commit.partition)
                .with_committed_offset(commit.offset)
                .with_committed_metadata(Some(StrBytes::from_string(commit.metadata.clone())))
        });
        let topic = OffsetCommitRequestTopic::default()
            .with_name(topic_name(&self.settings.topic))
            .with_partitions(partitions.collect());
        let instance_id = self.settings.instance_id.clone().map(StrBytes::from_string);
        let mut request = OffsetCommitRequest::default()
            .with_group_id(self.group_id())
            .with_generation_id_or_member_epoch(self.generation)
            .with_member_id(self.member_id.clone())
            .with_topics(vec![topic]);
        let response = self.ask::<OffsetCommitRequest>(cluster, OFFSET_COMMIT, |version| {
            request.group_instance_id = instance_id.filter(|_| version >= 7);
            request
        })?;
        for partition in response.topics.iter().flat_map(|topic| &topic.partitions) {
            match ResponseError::try_from_code(partition.error_code) {
                None => {}
                Some(ResponseError::RebalanceInProgress) => {
                    return Err(Error::new(Kind::Later, "a rebalance is under way"));
                }
                // The heartbeat will be told the same, and what follows from it.
                Some(code @ (ResponseError::UnknownMemberId | ResponseError::IllegalGeneration)) => {
                    return Err(Error::new(Kind::Later, format!("no longer a member ({code:?})")));
                }
                Some(code) => {
                    return Err(self.refused_offsets(code));
                }
            }
        }
        Ok(())
    }

    /// What is committed for these partitions; those that are missing were never committed.
    pub fn committed(&mut self, cluster: &mut Cluster, partitions: &BTreeSet<i32>) -> Result<BTreeMap<i32, Committed>> {
        let topic = OffsetFetchRequestTopic::default()
            .with_name(topic_name(&self.settings.topic))
            .with_partition_indexes(partitions.iter().copied().collect());
        let request = OffsetFetchRequest::default().with_group_id(self.group_id()).with_topics(Some(vec![topic]));
        let response = self.ask::<OffsetFetchRequest>(cluster, OFFSET_FETCH, |_| request)?;
        let of_partitions = response.topics.iter().flat_map(|topic| &topic.partitions);
        let code = of_partitions
            .clone()
            .map(|partition| partition.error_code)
            .chain([response.error_code])
            .find(|&code| code != 0);
        if let Some(code) = code.and_then(ResponseError::try_from_code) {
            return Err(self.refused_offsets(code));
        }
        let committed = of_partitions.filter(|partition| partition.committed_offset >= 0).map(|partition| {
            let metadata = partition.metadata.as_ref().map(ToString::to_string).unwrap_or_default();
            (partition.partition_index, (partition.committed_offset, metadata))
        });
        Ok(committed.collect())
    }

    /// The coordinator does not do it: it may be another broker by now, so it is looked for again.
    fn refused_offsets(&mut self, code: ResponseError) -> Error {
        self.offsets = None;
        self.coordinator = None;
        self.explain(code)
    }

    /// One request and its answer over the connection for offsets; that is dropped after any error.
    pub(super) fn ask<R: Request>(
        &mut self,
        cluster: &mut Cluster,
        newest: i16,
        request: impl FnOnce(i16) -> R,
    ) -> Result<R::Response> {
        let mut conn = match self.offsets.take().filter(Connection::is_fresh) {
            Some(conn) => conn,
            None => self.connect(cluster)?,
        };
        let version = conn.version::<R>(newest)?;
        let response =
            conn.call(version, &request(version), self.deadline()).inspect_err(|_| self.coordinator = None)?;
        self.offsets = Some(conn);
        Ok(response)
    }
}
