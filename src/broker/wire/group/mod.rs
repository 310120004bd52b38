//! Membership in a consumer group: find the coordinator, join, sync, heartbeat, leave; and, in `offsets`, its commits.
//!
//! A state machine that [`Group::drive`] moves on as far as it goes without waiting, so that heartbeats never wait for a
//! command and reading never waits for a rebalance. Join and Sync, which a broker may answer late, have a connection of
//! their own; commits and offsets go over a second one. The classic protocol (JoinGroup and so on), as it has been served
//! since Kafka 0.9: <https://kafka.apache.org/protocol.html>.
//!
//! Who cannot reach the coordinator for a session timeout counts as gone there. We count ourselves gone no later: all
//! partitions are lost then, and nothing new of them is started.

mod offsets;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use kafka_protocol::ResponseError;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::join_group_response::JoinGroupResponse;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::{GroupId, HeartbeatRequest, JoinGroupRequest, LeaveGroupRequest, SyncGroupRequest};
use kafka_protocol::protocol::StrBytes;
use log::debug;

use super::assignor::{self, Assignment, PROTOCOL, Said, Subscription};
use super::cluster::{Cluster, Purpose};
use super::conn::Connection;
use super::errors::{self, Doing};
use super::millis;
use crate::config;
use crate::error::{Error, Kind, Result};
pub use offsets::Committed;

/// The newest versions that are built here.
const JOIN: i16 = 9;
const SYNC: i16 = 5;
const HEARTBEAT: i16 = 4;
const LEAVE: i16 = 5;

const PROTOCOL_TYPE: &str = "consumer";

/// How the group is to be taken part in.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The group's name.
    pub group: String,
    /// The topic that is read.
    pub topic: String,
    /// A name that stays over restarts (static membership, KIP-345).
    pub instance_id: Option<String>,
    /// After this time without a sign the coordinator takes a member for gone.
    pub session_timeout: Duration,
    /// How often a sign is given.
    pub heartbeat_interval: Duration,
    /// How long an answer may take.
    pub patience: Duration,
}

impl Settings {
    /// As configured.
    pub fn of(config: &config::Kafka) -> Settings {
        let settings = &config.settings;
        Settings {
            group: config.group.clone(),
            topic: config.topic.clone(),
            instance_id: config.instance_id.clone(),
            session_timeout: settings.session_timeout,
            heartbeat_interval: settings.heartbeat_interval,
            patience: settings.request_timeout.min(settings.session_timeout / 3),
        }
    }
}

/// How long the cluster may take to answer what a member waits for.
pub fn patience(settings: &config::client::Settings) -> Duration {
    settings.request_timeout.min(settings.session_timeout / 4).min(Duration::from_secs(10))
}

/// What has changed.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// A new generation: these are our partitions from now on.
    Assigned(Assignment),
    /// We may count as gone: nothing is ours any more.
    Lost(String),
}

/// Where membership stands.
enum Phase {
    /// About to join, or to join again, over the connection if there is one.
    Outside(Option<Connection>),
    /// JoinGroup is under way, since the time given.
    Joining(Connection, Instant),
    /// SyncGroup is under way, since the time given.
    Syncing(Connection, Instant),
    /// A member of a settled generation.
    Stable(Stable),
}

/// Heartbeats in a settled generation.
struct Stable {
    /// `None`: it was lost, which costs no membership as long as there is another in time.
    conn: Option<Connection>,
    beat_at: Instant,
    /// When the heartbeat was sent that is not answered yet.
    asked: Option<Instant>,
}

/// One membership.
pub struct Group {
    settings: Settings,
    phase: Phase,
    member_id: StrBytes,
    generation: i32,
    /// The coordinator's broker id, while it is believed to be that.
    coordinator: Option<i32>,
    /// For commits and offsets.
    offsets: Option<Connection>,
    /// When the request was sent that the coordinator has answered last. As long as we are a member, we stay one for a
    /// session timeout after this.
    seen: Instant,
    member: bool,
    /// Join again when nothing else is under way: a join that is under way does not tell what has come up since.
    rejoin: bool,
    /// The generation of the last assignment.
    owned_since: i32,
    partitions: i32,
}

impl Group {
    /// Not a member yet.
    pub fn new(settings: Settings) -> Group {
        let now = Instant::now();
        Group {
            settings,
            phase: Phase::Outside(None),
            member_id: StrBytes::default(),
            generation: -1,
            coordinator: None,
            offsets: None,
            seen: now,
            member: false,
            rejoin: false,
            owned_since: -1,
            partitions: 0,
        }
    }

    /// The current generation.
    pub fn generation(&self) -> i32 {
        self.generation
    }

    /// The connection that an answer is awaited on.
    pub fn awaited(&self) -> Option<&Connection> {
        match &self.phase {
            Phase::Outside(_) => None,
            Phase::Joining(conn, _) | Phase::Syncing(conn, _) => Some(conn),
            Phase::Stable(stable) => stable.conn.as_ref().filter(|_| stable.asked.is_some()),
        }
    }

    /// When [`drive`](Self::drive) has to be called again, even if nothing has come.
    pub fn due(&self) -> Instant {
        match &self.phase {
            Phase::Outside(_) => Instant::now(),
            Phase::Joining(_, sent) | Phase::Syncing(_, sent) => *sent + self.settings.session_timeout,
            Phase::Stable(stable) if stable.asked.is_some() => self.lease(),
            Phase::Stable(_) if self.rejoin => Instant::now(),
            Phase::Stable(stable) => stable.beat_at,
        }
    }

    /// Moves on. `telling` is asked what to tell when it joins: the partitions that are not given up, and the rest. After
    /// an error it is to be called again, after a pause.
    pub fn drive(
        &mut self,
        cluster: &mut Cluster,
        telling: impl FnOnce() -> (BTreeSet<i32>, Said),
    ) -> Result<Option<Change>> {
        let now = Instant::now();
        let session = self.settings.session_timeout;
        if self.member && now >= self.lease() {
            return Ok(Some(self.lost(format!("no answer from the coordinator within {session:?}"))));
        }
        match std::mem::replace(&mut self.phase, Phase::Outside(None)) {
            Phase::Outside(conn) => self.join(conn, cluster, telling()),
            Phase::Joining(conn, sent) | Phase::Syncing(conn, sent) if now >= sent + session => {
                self.coordinator = None;
                Err(conn.failed(format!("no answer to a JoinGroup or SyncGroup within {session:?}")))
            }
            Phase::Joining(conn, sent) => self.joining(conn, sent),
            Phase::Syncing(conn, sent) => self.syncing(conn, sent),
            Phase::Stable(stable) => self.beat(stable, cluster),
        }
        .inspect_err(|_| self.coordinator = None)
    }

    /// Whether we are a member of a settled generation, and nothing has come up since.
    pub fn is_settled(&self) -> bool {
        matches!(self.phase, Phase::Stable(_)) && !self.rejoin
    }

    /// Joins again, as soon as nothing else is under way: to let partitions go, or to say what is done.
    pub fn rejoin(&mut self) {
        self.rejoin = true;
    }

    /// Until when the coordinator takes us for a member, whatever comes.
    pub fn lease(&self) -> Instant {
        self.seen + self.settings.session_timeout
    }

    /// Sends JoinGroup.
    fn join(
        &mut self,
        conn: Option<Connection>,
        cluster: &mut Cluster,
        (owned, said): (BTreeSet<i32>, Said),
    ) -> Result<Option<Change>> {
        cluster.refresh(&[&self.settings.topic], Purpose::Read)?;
        self.partitions = i32::try_from(cluster.partition_count(&self.settings.topic)).unwrap_or(i32::MAX);
        let mut conn = match conn.filter(Connection::is_fresh) {
            Some(conn) => conn,
            None => self.connect(cluster)?,
        };
        let said = Said { generation: self.owned_since, ..said };
        let subscription = Subscription { topic: self.settings.topic.clone(), owned, said };
        let version = conn.version::<JoinGroupRequest>(JOIN)?;
        let protocol = JoinGroupRequestProtocol::default()
            .with_name(StrBytes::from_static_str(PROTOCOL))
            .with_metadata(subscription.encode());
        let request = JoinGroupRequest::default()
            .with_group_id(self.group_id())
            .with_session_timeout_ms(millis(self.settings.session_timeout))
            // Half of it, so that a slow rebalance does not look like a lost coordinator.
            .with_rebalance_timeout_ms(millis(self.settings.session_timeout / 2))
            .with_member_id(self.member_id.clone())
            .with_group_instance_id(self.instance_id(version >= 5))
            .with_protocol_type(StrBytes::from_static_str(PROTOCOL_TYPE))
            .with_protocols(vec![protocol]);
        let sent = Instant::now();
        conn.send(version, &request, self.deadline())?;
        self.rejoin = false;
        self.phase = Phase::Joining(conn, sent);
        Ok(None)
    }

    fn joining(&mut self, mut conn: Connection, sent: Instant) -> Result<Option<Change>> {
        let Some(response) = conn.receive::<JoinGroupRequest>()? else {
            self.phase = Phase::Joining(conn, sent);
            return Ok(None);
        };
        if let Some(code) = ResponseError::try_from_code(response.error_code) {
            if code == ResponseError::MemberIdRequired {
                self.member_id = response.member_id; // KIP-394: ask again, under the name that was given
                self.phase = Phase::Outside(Some(conn));
                return Ok(None);
            }
            return self.refused(code, conn);
        }
        self.seen = sent;
        self.member_id = response.member_id.clone();
        self.generation = response.generation_id;
        self.member = true;
        let assignments = if response.leader == response.member_id { self.lead(&response)? } else { Vec::new() };
        let version = conn.version::<SyncGroupRequest>(SYNC)?;
        let mut request = SyncGroupRequest::default()
            .with_group_id(self.group_id())
            .with_generation_id(self.generation)
            .with_member_id(self.member_id.clone())
            .with_group_instance_id(self.instance_id(version >= 3))
            .with_assignments(assignments);
        if version >= 5 {
            request = request
                .with_protocol_type(Some(StrBytes::from_static_str(PROTOCOL_TYPE)))
                .with_protocol_name(Some(StrBytes::from_static_str(PROTOCOL)));
        }
        let sent = Instant::now();
        conn.send(version, &request, self.deadline())?;
        self.phase = Phase::Syncing(conn, sent);
        Ok(None)
    }

    /// As the leader, assigns the partitions.
    fn lead(&self, response: &JoinGroupResponse) -> Result<Vec<SyncGroupRequestAssignment>> {
        let mut members = BTreeMap::new();
        for member in &response.members {
            let subscription =
                Subscription::decode(member.metadata.clone(), &self.settings.topic).ok_or_else(|| {
                    let who = crate::record::printable(&member.member_id);
                    Error::new(
                        Kind::Config,
                        format!(
                            "group {}: member {who} is not an airkafka-worker that we understand",
                            self.settings.group
                        ),
                    )
                    .hint("give the workers of one version a group of their own")
                })?;
            members.insert(member.member_id.to_string(), subscription);
        }
        let assigned = assignor::assign(&members, self.partitions);
        debug!(
            "group {}: leading generation {} with {} member(s)",
            self.settings.group,
            self.generation,
            members.len()
        );
        let encoded = assigned.iter().map(|(id, assignment)| {
            SyncGroupRequestAssignment::default()
                .with_member_id(StrBytes::from_string(id.clone()))
                .with_assignment(assignment.encode(&self.settings.topic))
        });
        Ok(encoded.collect())
    }

    fn syncing(&mut self, mut conn: Connection, sent: Instant) -> Result<Option<Change>> {
        let Some(response) = conn.receive::<SyncGroupRequest>()? else {
            self.phase = Phase::Syncing(conn, sent);
            return Ok(None);
        };
        if let Some(code) = ResponseError::try_from_code(response.error_code) {
            return self.refused(code, conn);
        }
        self.seen = sent;
        let assignment = Assignment::decode(response.assignment, &self.settings.topic)
            .ok_or_else(|| conn.failed("the leader's assignment cannot be read".into()))?;
        let beat_at = Instant::now() + self.settings.heartbeat_interval;
        self.phase = Phase::Stable(Stable { conn: Some(conn), beat_at, asked: None });
        self.owned_since = self.generation;
        Ok(Some(Change::Assigned(assignment)))
    }

    /// Takes the answer to a heartbeat, and sends the next one when it is due.
    fn beat(&mut self, mut stable: Stable, cluster: &mut Cluster) -> Result<Option<Change>> {
        match self.beat_over(&mut stable, cluster) {
            Ok(None) if self.rejoin && stable.asked.is_none() => {
                self.phase = Phase::Outside(stable.conn);
                Ok(None)
            }
            Ok(None) => {
                self.phase = Phase::Stable(stable);
                Ok(None)
            }
            Ok(Some(code)) => match stable.conn {
                Some(conn) => self.refused(code, conn),
                None => Ok(None), // there is no answer without a connection
            },
            // The membership does not hang on the connection: another one, soon, does as well.
            Err(e) => {
                self.phase = Phase::Stable(Stable { conn: None, asked: None, ..stable });
                Err(e)
            }
        }
    }

    /// The error code that the coordinator answers with, if it does.
    fn beat_over(&mut self, stable: &mut Stable, cluster: &mut Cluster) -> Result<Option<ResponseError>> {
        let conn = match &mut stable.conn {
            Some(conn) if conn.is_fresh() => conn,
            _ => stable.conn.insert(self.connect(cluster)?),
        };
        if let Some(sent) = stable.asked
            && let Some(response) = conn.receive::<HeartbeatRequest>()?
        {
            stable.asked = None;
            match ResponseError::try_from_code(response.error_code) {
                None => self.seen = sent,
                Some(ResponseError::RebalanceInProgress) => {
                    self.seen = sent;
                    self.rejoin = true; // what is ours we keep meanwhile
                }
                code => return Ok(code),
            }
        }
        let now = Instant::now();
        if stable.asked.is_none() && !self.rejoin && now >= stable.beat_at {
            let version = conn.version::<HeartbeatRequest>(HEARTBEAT)?;
            let request = HeartbeatRequest::default()
                .with_group_id(self.group_id())
                .with_generation_id(self.generation)
                .with_member_id(self.member_id.clone())
                .with_group_instance_id(self.instance_id(version >= 3));
            conn.send(version, &request, self.deadline())?;
            (stable.asked, stable.beat_at) = (Some(now), now + self.settings.heartbeat_interval);
        }
        Ok(None)
    }

    /// The coordinator does not take us as who we say we are, or is not the coordinator.
    fn refused(&mut self, code: ResponseError, conn: Connection) -> Result<Option<Change>> {
        use ResponseError::*;
        match code {
            RebalanceInProgress => {
                self.phase = Phase::Outside(Some(conn));
                Ok(None)
            }
            UnknownMemberId | IllegalGeneration => {
                if code == UnknownMemberId {
                    self.member_id = StrBytes::default();
                }
                Ok(Some(self.lost(format!("the coordinator has taken us for gone ({code:?})"))))
            }
            code => Err(self.explain(code)),
        }
    }

    /// What it means that the coordinator answers `code`.
    fn explain(&self, code: ResponseError) -> Error {
        errors::explain(code, &Doing::new("Read", "Group", &self.settings.group))
    }

    /// Nothing is ours any more; joins anew.
    fn lost(&mut self, why: String) -> Change {
        self.phase = Phase::Outside(None);
        self.member = false;
        self.generation = -1;
        self.owned_since = -1;
        self.offsets = None;
        Change::Lost(why)
    }

    /// Tells the coordinator that we go, so that others get our partitions at once. A static member does not: it is
    /// expected back.
    pub fn leave(&mut self, cluster: &mut Cluster) -> Result<()> {
        if !self.member || self.settings.instance_id.is_some() {
            return Ok(());
        }
        let (group, member) = (self.group_id(), self.member_id.clone());
        self.ask::<LeaveGroupRequest>(cluster, LEAVE, |version| {
            let request = LeaveGroupRequest::default().with_group_id(group);
            match version {
                0..=2 => request.with_member_id(member),
                _ => request.with_members(vec![MemberIdentity::default().with_member_id(member)]),
            }
        })?;
        self.member = false;
        Ok(())
    }

    /// A new connection to the coordinator.
    fn connect(&mut self, cluster: &mut Cluster) -> Result<Connection> {
        let coordinator = match self.coordinator {
            Some(coordinator) => coordinator,
            None => cluster.find_coordinator(&self.settings.group)?,
        };
        self.coordinator = None; // unless it can be reached
        let conn = cluster.open(coordinator)?;
        self.coordinator = Some(coordinator);
        Ok(conn)
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.settings.patience
    }

    fn group_id(&self) -> GroupId {
        GroupId(StrBytes::from_string(self.settings.group.clone()))
    }

    fn instance_id(&self, served: bool) -> Option<StrBytes> {
        self.settings.instance_id.clone().filter(|_| served).map(StrBytes::from_string)
    }
}
