//! Whether the topics are there, have leaders, and are open to us.

use kafka_protocol::messages::metadata_response::MetadataResponseTopic;

use super::Report;
use crate::broker::wire::errors::{self, Doing};
use crate::config::by_hand::Doctor;
use crate::error::Result;
use crate::hand::Reach;
use crate::hand::view::{Operation, Topic, View};

/// What a topic is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Commands are read from it.
    Commands,
    /// Results are written to it.
    Results,
    /// What is no command is written to it.
    DeadLetters,
}

impl Use {
    /// How a topic is called in the report.
    pub fn of(self, name: &str) -> String {
        let what = match self {
            Use::Commands => "commands",
            Use::Results => "results",
            Use::DeadLetters => "dead letters",
        };
        format!("topic {name} ({what})")
    }
}

impl Use {
    /// What a worker has to be allowed; it includes Describe.
    fn needs(self) -> Operation {
        if self == Use::Commands { Operation::Read } else { Operation::Write }
    }
}

/// Checks each; returns those that are there.
pub fn check(reach: &Reach, view: &View, asked: &Doctor, report: &mut Report) -> Result<Vec<(Use, String)>> {
    let kafka = reach.kafka;
    let mut topics = vec![(Use::Commands, kafka.topic.clone()), (Use::Results, kafka.results_topic.clone())];
    topics.extend(kafka.dead_letter_topic.clone().map(|name| (Use::DeadLetters, name)));
    let mut there = Vec::new();
    for (what, name) in topics {
        match view.topic(&name) {
            Topic::Missing => report.problem(&what.of(&name), "does not exist", &asked.init)?,
            Topic::Refused(code) => {
                let operation = what.needs();
                let e = errors::explain(code, &Doing::new(operation.name(), "Topic", &name));
                let grant = reach.grant(operation.name(), "topic", &name);
                report.problem(&what.of(&name), e.without(&format!("topic {name}")), &grant)?;
            }
            Topic::There(topic) => {
                replicas(reach, &what.of(&name), &name, topic, report)?;
                rights(reach, what, &name, topic, report)?;
                there.push((what, name));
            }
        }
    }
    Ok(there)
}

fn replicas(reach: &Reach, what: &str, name: &str, topic: &MetadataResponseTopic, report: &mut Report) -> Result<()> {
    let fix =
        reach.tool("kafka-topics", &format!("--describe --topic '{name}'")) + "  # and start the brokers that are away";
    let leaderless = topic.partitions.iter().filter(|partition| partition.leader_id.0 < 0).count();
    let behind = topic.partitions.iter().filter(|it| it.isr_nodes.len() < it.replica_nodes.len()).count();
    let count = topic.partitions.len();
    if leaderless > 0 {
        return report.problem(what, &format!("{leaderless} of {count} partition(s) have no leader"), &fix);
    }
    if behind > 0 {
        return report.warn(what, &format!("replicas of {behind} of {count} partition(s) are not in sync"), &fix);
    }
    report.ok(what, &format!("is there, {count} partition(s), all with a leader"))
}

fn rights(reach: &Reach, what: Use, name: &str, topic: &MetadataResponseTopic, report: &mut Report) -> Result<()> {
    let operation = what.needs();
    if operation.is_in(topic.topic_authorized_operations) {
        return Ok(());
    }
    let told = format!("operation {} is not authorised", operation.name());
    report.problem(&what.of(name), &told, &reach.grant(operation.name(), "topic", name))
}
