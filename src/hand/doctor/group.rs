//! Whether the group is one that workers can join.

use std::time::Instant;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_groups_response::DescribedGroup;
use kafka_protocol::messages::{DescribeGroupsRequest, GroupId, ListGroupsRequest};
use kafka_protocol::protocol::StrBytes;

use super::Report;
use crate::broker::wire::assignor::PROTOCOL;
use crate::broker::wire::cluster::Cluster;
use crate::broker::wire::conn::Connection;
use crate::broker::wire::errors::{self, Doing};
use crate::error::{Kind, Result};
use crate::hand::Reach;
use crate::hand::view::Operation;

/// The newest DescribeGroups that says of a group that is not there that it is dead.
const DESCRIBE_GROUPS: i16 = 5;
/// The first one that tells what we may do.
const WITH_RIGHTS: i16 = 3;
/// The version of ListGroups that tells of which kind a group is.
const LIST_GROUPS: i16 = 5;

/// Checks it.
pub fn check(reach: &Reach, cluster: &mut Cluster, report: &mut Report) -> Result<()> {
    let group = &reach.kafka.group;
    let what = format!("group {group}");
    let found = reach.patiently("finding the group's coordinator", || {
        let coordinator = cluster.find_coordinator(group)?;
        let mut conn = cluster.open(coordinator)?;
        Ok((kind(&mut conn, reach)?, describe(&mut conn, reach)?))
    });
    let (kind, described) = match found {
        Ok(found) => found,
        Err(e) if e.kind() == Kind::Refused => {
            return report.problem(&what, e.without(&what), &reach.grant("Read", "group", group));
        }
        Err(e) => return report.error(&what, &e),
    };
    if !Operation::Read.is_in(described.authorized_operations) {
        report.problem(&what, "operation Read is not authorised", &reach.grant("Read", "group", group))?;
    }
    let members = reach.tool("kafka-consumer-groups", &format!("--describe --members --group '{group}'"));
    let kind = kind.map(|kind| kind.to_lowercase());
    match kind.as_deref() {
        // The place for what there is to say of a share group: its kind, and whether locks can be renewed (KIP-1222).
        Some(other) if other != "classic" => {
            let told = format!("is of the kind {other}: workers join groups of the kind classic");
            report.problem(&what, &told, "give another --group")
        }
        _ => classic(&what, &described, &members, report),
    }
}

fn classic(what: &str, described: &DescribedGroup, members: &str, report: &mut Report) -> Result<()> {
    let count = described.members.len();
    match described.group_state.as_str() {
        "Dead" => report.ok(what, "is new: it would start as --from says"),
        "Empty" => report.ok(what, "has no worker at the moment"),
        state if count > 0 && !described.protocol_data.is_empty() && described.protocol_data.as_str() != PROTOCOL => {
            let told =
                format!("{count} member(s) ({state}) that are no airkafka-worker: a worker would refuse to start");
            report.problem(what, &told, &format!("{members}  # stop them, or give another --group"))
        }
        state => report.ok(what, &format!("{count} worker(s), {state}")),
    }
}

/// Of which kind the group is; `None`: it is not there, or the broker knows one kind alone.
fn kind(conn: &mut Connection, reach: &Reach) -> Result<Option<String>> {
    if conn.version::<ListGroupsRequest>(LIST_GROUPS)? < LIST_GROUPS {
        return Ok(None);
    }
    let response = conn.call(LIST_GROUPS, &ListGroupsRequest::default(), Instant::now() + reach.patience())?;
    let group = response.groups.iter().find(|group| group.group_id.0.as_str() == reach.kafka.group);
    Ok(group.map(|group| group.group_type.to_string()))
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
