//! What an error code of the broker means for us: is it worth waiting, or is something to be changed, and what.
//!
//! Codes: <https://kafka.apache.org/protocol.html#protocol_error_codes>.

use kafka_protocol::ResponseError;

use crate::error::{Error, Kind};

/// What was attempted: Kafka's operation on a resource, in the words of its ACLs.
#[derive(Clone, Copy, Debug)]
pub struct Doing<'a> {
    operation: &'a str,
    resource: &'a str,
    name: &'a str,
}

impl<'a> Doing<'a> {
    /// `operation` (Read, Write, Describe, ...) on the `resource` (Topic, Group, Cluster, ...) called `name`.
    pub fn new(operation: &'a str, resource: &'a str, name: &'a str) -> Doing<'a> {
        Doing { operation, resource, name }
    }
}

/// The error for `code`.
pub fn explain(code: ResponseError, doing: &Doing<'_>) -> Error {
    use ResponseError::*;
    let Doing { operation, resource, name } = doing;
    let subject =
        if *resource == "Cluster" { "the cluster".into() } else { format!("{} {name}", resource.to_lowercase()) };
    let error = |kind, why: &str| Error::new(kind, format!("{subject}: {why}"));
    match code {
        TopicAuthorizationFailed
        | GroupAuthorizationFailed
        | ClusterAuthorizationFailed
        | TransactionalIdAuthorizationFailed => error(
            Kind::Refused,
            &format!("operation {operation} is not authorised"),
        )
        .hint(format!(
            "an ACL has to allow it: kafka-acls --add --allow-principal User:NAME --operation {operation} --{} {name}",
            resource.to_lowercase()
        )),
        UnknownTopicOrPartition => error(Kind::Unavailable, "does not exist")
            .hint(format!("create it: kafka-topics.sh --create --topic {name} --partitions N")),
        InvalidTopicException => error(Kind::Config, "is not a valid name for a topic"),
        LeaderNotAvailable => error(Kind::Unavailable, "has no leader yet"),
        NotLeaderOrFollower | FencedLeaderEpoch => error(Kind::Unavailable, "the leader has moved"),
        CoordinatorLoadInProgress | CoordinatorNotAvailable | NotCoordinator => {
            error(Kind::Later, "the coordinator is not ready")
        }
        InvalidGroupId => error(Kind::Config, "the broker does not accept this name").hint("give another --group"),
        InconsistentGroupProtocol => error(
            Kind::Config,
            "it is a share group, and this worker takes it for a consumer group; or its members are other consumers, not \
             airkafka-worker",
        )
        .hint("give all its workers the same --group-type, or this one another --group"),
        GroupMaxSizeReached => error(Kind::Config, "it has as many members as the broker allows (group.max.size)"),
        InvalidSessionTimeout => error(Kind::Config, "the broker does not allow this session timeout")
            .hint("set session.timeout.ms between its group.min.session.timeout.ms and group.max.session.timeout.ms"),
        FencedInstanceId => error(Kind::Config, "another worker has taken over this --instance-id")
            .hint("give each worker an id of its own"),
        GroupIdNotFound => error(Kind::Unavailable, "does not exist"),
        OffsetMetadataTooLarge => {
            error(Kind::Unavailable, "the commit metadata is larger than the broker takes (offset.metadata.max.bytes)")
        }
        MessageTooLarge | RecordListTooLarge => {
            error(Kind::Unavailable, "a record is larger than it takes").hint("raise its max.message.bytes")
        }
        NotEnoughReplicas | NotEnoughReplicasAfterAppend => {
            error(Kind::Unavailable, "too few replicas are in sync (min.insync.replicas)")
        }
        UnsupportedVersion => error(Kind::Config, "the broker does not know this version of the request"),
        code => error(Kind::Unavailable, &format!("{operation}: the broker answers {code:?} ({})", code.code())),
    }
}

/// The error for a partition that nobody leads.
pub fn no_leader(topic: &str, partition: i32) -> Error {
    Error::new(Kind::Unavailable, format!("{topic}-{partition} has no leader"))
}
