//! Which kind of group a worker takes part in: a consumer group or a share group; and the source for it.

use std::collections::BTreeSet;
use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::{
    DescribeGroupsRequest, GroupId, ShareAcknowledgeRequest, ShareFetchRequest, ShareGroupHeartbeatRequest,
};
use kafka_protocol::protocol::{Request, StrBytes};
use log::{info, warn};

use super::cluster::{Cluster, Purpose};
use super::dial::Dialer;
use super::errors::{self, Doing};
use super::group::{self, Group};
use super::share::setup::GroupFacts;
use super::share::{self, ShareSource};
use super::source::WireSource;
use crate::broker::Source;
use crate::config::{self, GroupType};
use crate::error::{Error, Kind, Result};

/// The newest DescribeGroups that answers for a group that is not there as if it were dead.
const DESCRIBE_GROUPS: i16 = 5;

/// Which kind of group it is to be, and why.
pub struct Choice {
    /// What is known of the share group; `None`: it is a consumer group.
    pub share: Option<GroupFacts>,
    /// Why it is of this kind.
    pub why: String,
}

/// The kind that `--group-type` says, or that suits cluster and group; the topic has to be known.
pub fn choose(config: &config::Kafka, cluster: &mut Cluster) -> Result<Choice> {
    let consumer = |why: String| Ok(Choice { share: None, why });
    if config.group_type == GroupType::Consumer {
        return consumer("--group-type".into());
    }
    let facts = match offered(cluster, &config.group)? {
        Ok(facts) => facts,
        Err(why) if config.group_type == GroupType::Share => {
            return Err(Error::new(Kind::Config, format!("--group-type share: {why}"))
                .hint("use brokers from 4.2 on with renewal switched on, or --group-type consumer"));
        }
        Err(why) => return consumer(why),
    };
    if config.group_type == GroupType::Share {
        return Ok(Choice { share: Some(facts), why: "--group-type".into() });
    }
    if config.instance_id.is_some() {
        return consumer("it has static members (--instance-id)".into());
    }
    if let Some(why) = is_consumer_group(cluster, config)? {
        return consumer(why);
    }
    Ok(Choice { share: Some(facts), why: "the brokers offer it, and no offsets are committed for it".into() })
}

/// A source, and the sentence that says of which kind of group it is a member, and why.
pub type Chosen = (Box<dyn Source>, String);

/// A source of that kind.
pub fn connect(config: &config::Kafka, max_deliveries: u32, dialer: &Arc<Dialer>) -> Result<Chosen> {
    if config.group_type == GroupType::Consumer {
        return consumer(config, dialer, "--group-type");
    }
    let mut cluster = Cluster::new(dialer.clone(), config.brokers.clone(), group::patience(&config.settings));
    cluster.refresh(&[&config.topic], Purpose::Read)?;
    let group = &config.group;
    let Choice { share, why } = choose(config, &mut cluster)?;
    let Some(facts) = share else { return consumer(config, dialer, &why) };
    if max_deliveries > facts.deliveries {
        warn!(
            "--max-deliveries {} is more than the broker allows: it drops a record after its {}th delivery, whatever came of it; \
             give --max-deliveries {1} or raise share.delivery.count.limit of the group",
            max_deliveries, facts.deliveries
        );
    }
    if let Some(topic) = facts.dead_letter_topic() {
        info!("share group {group}: the broker writes what is rejected to {topic}");
    }
    facts.prepare(&mut cluster, config)?;
    let source = ShareSource::connect(config, dialer.clone(), &facts)?;
    Ok((Box::new(source), format!("group {group}: taking part in it as a share group ({why})")))
}

fn consumer(config: &config::Kafka, dialer: &Arc<Dialer>, why: &str) -> Result<Chosen> {
    let source = WireSource::connect(config, dialer.clone())?;
    Ok((Box::new(source), format!("group {}: taking part in it as a consumer group ({why})", config.group)))
}

/// What is known of the group where the cluster offers share groups with renewal; otherwise why it does not.
fn offered(cluster: &mut Cluster, group: &str) -> Result<std::result::Result<GroupFacts, String>> {
    let lacks = cluster.ask(|conn, _| {
        let apis = [ShareFetchRequest::KEY, ShareAcknowledgeRequest::KEY];
        if !apis.iter().all(|&api| conn.serves(api, share::VERSION)) || !conn.serves(ShareGroupHeartbeatRequest::KEY, 1) {
            return Ok(Some("the brokers do not serve share groups with renewal; those from 4.2 on do"));
        }
        let is_on = conn.feature("share.version").is_some_and(|level| level >= 1);
        Ok((!is_on).then_some(
            "share groups are switched off in this cluster; kafka-features.sh upgrade --feature share.version=1 switches them on",
        ))
    })?;
    if let Some(lacks) = lacks {
        return Ok(Err(lacks.into()));
    }
    let facts = GroupFacts::ask(cluster, group)?;
    if !facts.renews {
        let why = "renewal of locks is switched off for it (share.renew.acknowledge.enable=false), so no command could run for longer \
                   than a lock lasts";
        return Ok(Err(why.into()));
    }
    Ok(Ok(facts))
}

/// Why the group is a consumer group already, if it is one.
fn is_consumer_group(cluster: &mut Cluster, config: &config::Kafka) -> Result<Option<String>> {
    let coordinator = cluster.find_coordinator(&config.group)?;
    let mut conn = cluster.open(coordinator)?;
    let request =
        DescribeGroupsRequest::default().with_groups(vec![GroupId(StrBytes::from_string(config.group.clone()))]);
    let version = conn.version::<DescribeGroupsRequest>(DESCRIBE_GROUPS)?;
    let response = conn.call(version, &request, cluster.deadline())?;
    for described in response.groups {
        if let Some(code) = ResponseError::try_from_code(described.error_code) {
            return Err(errors::explain(code, &Doing::new("Describe", "Group", &config.group)));
        }
        let state = described.group_state.as_str();
        if !described.members.is_empty() {
            return Ok(Some(format!("it is one, with {} member(s), {state}", described.members.len())));
        }
    }
    let partitions: BTreeSet<i32> =
        (0..i32::try_from(cluster.partition_count(&config.topic)).unwrap_or(i32::MAX)).collect();
    let committed = Group::new(group::Settings::of(config)).committed(cluster, &partitions)?;
    Ok((!committed.is_empty()).then(|| "offsets are committed for it".to_string()))
}
