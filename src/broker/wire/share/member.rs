//! Membership in a share group: heartbeats to the coordinator, which says from which partitions to fetch.
//!
//! A state machine that never waits. Locks do not hang on it: they belong to the share sessions, so a membership that is
//! lost for a while costs nothing but new partitions. ShareGroupHeartbeat, KIP-932.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use kafka_protocol::ResponseError;
use kafka_protocol::messages::{GroupId, ShareGroupHeartbeatRequest, TopicName};
use kafka_protocol::protocol::StrBytes;

use crate::broker::wire::cluster::Cluster;
use crate::broker::wire::conn::Connection;
use crate::broker::wire::errors::{self, Doing};
use crate::broker::wire::topic_name;
use crate::error::{Error, Kind, Result};

const VERSION: i16 = 1;
/// The epochs that join and leave.
const JOIN: i32 = 0;
const LEAVE: i32 = -1;
/// How soon a member that has no partitions yet asks again: the coordinator may take a moment to assign them.
const ASK_SOON: Duration = Duration::from_millis(100);

/// One membership.
pub struct Member {
    group: String,
    topic: String,
    id: String,
    epoch: i32,
    coordinator: Option<i32>,
    conn: Option<Connection>,
    /// When the heartbeat was sent that is not answered yet.
    asked: Option<Instant>,
    beat_at: Instant,
    assigned: Option<BTreeSet<i32>>,
    patience: Duration,
}

impl Member {
    /// Not a member yet. `id`: a UUID of our own choice.
    pub fn new(group: String, topic: String, id: String, patience: Duration) -> Member {
        let (coordinator, conn, asked, assigned) = (None, None, None, None);
        Member { group, topic, id, epoch: JOIN, coordinator, conn, asked, beat_at: Instant::now(), assigned, patience }
    }

    /// The partitions to fetch from; `None`: not told yet.
    pub fn assigned(&self) -> Option<&BTreeSet<i32>> {
        self.assigned.as_ref()
    }

    /// The connection that an answer is awaited on.
    pub fn awaited(&self) -> Option<&Connection> {
        self.conn.as_ref().filter(|_| self.asked.is_some())
    }

    /// When [`drive`](Self::drive) has to be called again, even if nothing has come.
    pub fn due(&self) -> Instant {
        self.asked.map_or(self.beat_at, |asked| asked + self.patience)
    }

    /// Takes an answer, and sends the next heartbeat when it is due. Returns whether other partitions are assigned. After
    /// an error it is to be called again, after a pause.
    pub fn drive(&mut self, cluster: &mut Cluster) -> Result<bool> {
        self.beat(cluster).inspect_err(|_| {
            (self.conn, self.asked, self.coordinator) = (None, None, None);
        })
    }

    fn beat(&mut self, cluster: &mut Cluster) -> Result<bool> {
        let mut changed = false;
        if self.asked.is_some() {
            changed = self.receive()?;
        }
        let now = Instant::now();
        if self.asked.is_none() && now >= self.beat_at {
            self.send(cluster, now)?;
        }
        Ok(changed)
    }

    fn send(&mut self, cluster: &mut Cluster, now: Instant) -> Result<()> {
        let (request, deadline) = (self.heartbeat(), now + self.patience);
        let conn = self.connection(cluster)?;
        conn.send(conn.version::<ShareGroupHeartbeatRequest>(VERSION)?, &request, deadline)?;
        self.asked = Some(now);
        Ok(())
    }

    fn heartbeat(&self) -> ShareGroupHeartbeatRequest {
        let topics: Option<Vec<TopicName>> = (self.epoch == JOIN).then(|| vec![topic_name(&self.topic)]);
        ShareGroupHeartbeatRequest::default()
            .with_group_id(GroupId(StrBytes::from_string(self.group.clone())))
            .with_member_id(StrBytes::from_string(self.id.clone()))
            .with_member_epoch(self.epoch)
            .with_subscribed_topic_names(topics)
    }

    /// A connection to the coordinator.
    fn connection(&mut self, cluster: &mut Cluster) -> Result<&mut Connection> {
        if let Some(conn) = self.conn.take().filter(Connection::is_fresh) {
            return Ok(self.conn.insert(conn));
        }
        let coordinator = match self.coordinator {
            Some(coordinator) => coordinator,
            None => *self.coordinator.insert(cluster.find_coordinator(&self.group)?),
        };
        Ok(self.conn.insert(cluster.open(coordinator)?))
    }

    fn receive(&mut self) -> Result<bool> {
        let (Some(conn), Some(asked)) = (&mut self.conn, self.asked) else { return Ok(false) };
        let Some(response) = conn.receive::<ShareGroupHeartbeatRequest>()? else {
            if asked.elapsed() > self.patience {
                return Err(conn.failed(format!("no answer to a ShareGroupHeartbeat within {:?}", self.patience)));
            }
            return Ok(false);
        };
        self.asked = None;
        if let Some(code) = ResponseError::try_from_code(response.error_code) {
            return match code {
                ResponseError::UnknownMemberId | ResponseError::FencedMemberEpoch => {
                    self.epoch = JOIN; // under the same id; what is locked stays ours meanwhile
                    Ok(false)
                }
                code => Err(self.explain(code, response.error_message.as_deref())),
            };
        }
        self.epoch = response.member_epoch;
        let interval = u64::try_from(response.heartbeat_interval_ms).unwrap_or(5000).max(100);
        let now = Instant::now();
        self.beat_at = now + Duration::from_millis(interval);
        let mut changed = false;
        if let Some(assignment) = response.assignment {
            let partitions = assignment.topic_partitions.into_iter().flat_map(|topic| topic.partitions).collect();
            changed = self.assigned.as_ref() != Some(&partitions);
            self.assigned = Some(partitions);
        }
        if self.assigned.as_ref().is_none_or(BTreeSet::is_empty) {
            self.beat_at = now + ASK_SOON;
        }
        Ok(changed)
    }

    /// What it means that the coordinator answers `code`.
    fn explain(&self, code: ResponseError, message: Option<&str>) -> Error {
        let group = &self.group;
        match code {
            ResponseError::GroupIdNotFound | ResponseError::InconsistentGroupProtocol => other_kind(group),
            ResponseError::UnsupportedVersion => Error::new(
                Kind::Config,
                format!("group {group}: share groups are switched off in this cluster"),
            )
            .hint("kafka-features.sh --bootstrap-server HOST:PORT upgrade --feature share.version=1, or --group-type consumer"),
            ResponseError::InvalidRequest => {
                let why = crate::record::printable(message.unwrap_or("the request is invalid"));
                Error::new(Kind::Config, format!("group {group}: {why}"))
            }
            code => errors::explain(code, &Doing::new("Read", "Group", group)),
        }
    }

    /// Tells the coordinator that we go, and waits for its answer.
    pub fn leave(&mut self, cluster: &mut Cluster) -> Result<()> {
        if self.epoch == JOIN {
            return Ok(());
        }
        self.epoch = LEAVE;
        if self.asked.take().is_some() {
            self.conn = None; // an answer that nobody wants would be in the way
        }
        let (request, deadline) = (self.heartbeat(), Instant::now() + self.patience);
        let conn = self.connection(cluster)?;
        conn.call(conn.version::<ShareGroupHeartbeatRequest>(VERSION)?, &request, deadline)?;
        self.epoch = JOIN;
        Ok(())
    }
}

/// A group of one name cannot be of both kinds.
fn other_kind(group: &str) -> Error {
    Error::new(Kind::Config, format!("group {group} is a consumer group, and this worker takes it for a share group"))
        .hint("give its workers the same --group-type, or this one another --group")
}
