//! Whether the group is one that workers can join, of which kind it is, and what that means for them.

use std::time::Instant;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_groups_response::DescribedGroup;
use kafka_protocol::messages::{DescribeGroupsRequest, GroupId, ListGroupsRequest};
use kafka_protocol::protocol::StrBytes;

use super::Report;
use crate::broker::wire::assignor::PROTOCOL;
use crate::broker::wire::cluster::{Cluster, Purpose};
use crate::broker::wire::conn::Connection;
use crate::broker::wire::errors::{self, Doing};
use crate::broker::wire::kind;
use crate::broker::wire::share::setup::GroupFacts;
use crate::config::Config;
use crate::error::{Kind, Result};
use crate::hand::Reach;
use crate::hand::view::{Operation, View};

/// The newest DescribeGroups that says of a group that is not there that it is dead.
const DESCRIBE_GROUPS: i16 = 5;
/// The first one that tells what we may do.
const WITH_RIGHTS: i16 = 3;
/// The version of ListGroups that tells of which kind a group is.
const LIST_GROUPS: i16 = 5;

/// Checks it. Returns whether it is to be a share group.
pub fn check(reach: &Reach, config: &Config, cluster: &mut Cluster, view: &View, report: &mut Report) -> Result<bool> {
    let kafka = reach.kafka;
    let what = format!("group {}", kafka.group);
    let partitions = view.partition_count(&kafka.topic);
    let found = reach.patiently("finding the group's coordinator", || {
        let coordinator = cluster.find_coordinator(&kafka.group)?;
        let mut conn = cluster.open(coordinator)?;
        let (listed, described) = (listed(&mut conn, reach)?, describe(&mut conn, reach)?);
        if partitions == 0 {
            return Ok((listed, described, None)); // which kind suits depends on what is committed in the topic
        }
        cluster.refresh(&[&kafka.topic], Purpose::Read)?;
        kind::choose(kafka, cluster).map(|choice| (listed, described, Some(choice)))
    });
    let (listed, described, choice) = match found {
        Ok(found) => found,
        Err(e) if e.kind() == Kind::Refused => {
            report.problem(&what, e.without(&what), &reach.grant("Read", "group", &kafka.group))?;
            return Ok(false);
        }
        Err(e) => return report.error(&what, &e).map(|()| false),
    };
    if !Operation::Read.is_in(described.authorized_operations) {
        report.problem(&what, "operation Read is not authorised", &reach.grant("Read", "group", &kafka.group))?;
    }
    let share = choice.as_ref().and_then(|choice| choice.share.as_ref());
    if let Some(choice) = &choice {
        let kind = if share.is_some() { "a share group" } else { "a consumer group" };
        report.ok(&what, &format!("a worker would take part in it as {kind} ({})", choice.why))?;
    }
    let wanted = if share.is_some() { "share" } else { "classic" };
    match &listed {
        Some((kind, _)) if choice.is_some() && kind != wanted => {
            let told = format!("is of the kind {kind}, and such a worker joins groups of the kind {wanted}");
            report.problem(&what, &told, "give another --group or another --group-type")?;
        }
        Some((kind, state)) if kind == "share" => report.ok(&what, &format!("is a share group, {state}"))?,
        None if share.is_some() => report.ok(&what, "is new: it would start as --from says")?,
        _ => classic(&what, &described, reach, report)?,
    }
    match share {
        Some(facts) => deliveries(&what, facts, config.exec.max_deliveries, report)?,
        None if partitions > 0 => workers(reach, partitions, config.threads.get(), report)?,
        None => {}
    }
    Ok(share.is_some())
}

/// A share group shares records; what limits it is how often one is delivered.
fn deliveries(what: &str, facts: &GroupFacts, max: u32, report: &mut Report) -> Result<()> {
    let told = format!("locks can be renewed; a record is delivered {} times at the most", facts.deliveries);
    if max <= facts.deliveries {
        return report.ok(what, &told);
    }
    let told = format!("{told}, and then dropped unreported: --max-deliveries is {max}");
    report.warn(what, &told, &format!("give --max-deliveries {}", facts.deliveries))
}

/// Threads run beyond the partitions; it is the number of workers of a consumer group that they limit.
fn workers(reach: &Reach, count: usize, threads: usize, report: &mut Report) -> Result<()> {
    let told = format!("{count} for {threads} thread(s) here; up to {count} worker(s) of a consumer group share them");
    if count > 1 {
        return report.ok("partitions", &told);
    }
    let rest = format!("--alter --topic '{}' --partitions {}", reach.kafka.topic, threads.max(4));
    let told = format!("{told}, and a second one would stand by");
    report.warn("partitions", &told, &reach.tool("kafka-topics", &rest))
}

fn classic(what: &str, described: &DescribedGroup, reach: &Reach, report: &mut Report) -> Result<()> {
    let count = described.members.len();
    match described.group_state.as_str() {
        "Dead" => report.ok(what, "is new: it would start as --from says"),
        "Empty" => report.ok(what, "has no worker at the moment"),
        state if count > 0 && !described.protocol_data.is_empty() && described.protocol_data.as_str() != PROTOCOL => {
            let told =
                format!("{count} member(s) ({state}) that are no airkafka-worker: a worker would refuse to start");
            let rest = format!("--describe --members --group '{}'", reach.kafka.group);
            let members = reach.tool("kafka-consumer-groups", &rest);
            report.problem(what, &told, &format!("{members}  # stop them, or give another --group"))
        }
        state => report.ok(what, &format!("{count} worker(s), {state}")),
    }
}

/// Kind and state of the group; `None`: it is not there, or the broker knows one kind alone.
fn listed(conn: &mut Connection, reach: &Reach) -> Result<Option<(String, String)>> {
    if conn.version::<ListGroupsRequest>(LIST_GROUPS)? < LIST_GROUPS {
        return Ok(None);
    }
    let response = conn.call(LIST_GROUPS, &ListGroupsRequest::default(), Instant::now() + reach.patience())?;
    let group = response.groups.iter().find(|group| group.group_id.0.as_str() == reach.kafka.group);
    Ok(group.map(|group| (group.group_type.to_lowercase(), group.group_state.to_string())))
}

fn describe(conn: &mut Connection, reach: &Reach) -> Result<DescribedGroup> {
    let group = &reach.kafka.group;
    let version = conn.version::<DescribeGroupsRequest>(DESCRIBE_GROUPS)?;
    let request = DescribeGroupsRequest::default()
        .with_groups(vec![GroupId(StrBytes::from_string(group.clone()))])
        .with_include_authorized_operations(version >= WITH_RIGHTS);
    let response = conn.call(version, &request, Instant::now() + reach.patience())?;
    let described = response.groups.into_iter().next().unwrap_or_default();
    match ResponseError::try_from_code(described.error_code) {
        None => Ok(described),
        Some(code) => Err(errors::explain(code, &Doing::new("Describe", "Group", group))),
    }
}
