//! `--dry-run`: what the worker would make of what is on the topic, and why it would not run the rest. Runs nothing, joins
//! no group, commits nothing: whoever works there is not disturbed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_share_group_offsets_request::{
    DescribeShareGroupOffsetsRequestGroup, DescribeShareGroupOffsetsRequestTopic,
};
use kafka_protocol::messages::{DescribeShareGroupOffsetsRequest, GroupId, TopicName};
use kafka_protocol::protocol::StrBytes;

use super::reader::{Offsets, Reader};
use super::{Out, Reach};
use crate::broker::local::LineSource;
use crate::broker::wire::errors::{self, Doing};
use crate::broker::wire::group::{self, Group};
use crate::broker::wire::kind;
use crate::broker::wire::records::Fetched;
use crate::broker::wire::share::setup::GroupFacts;
use crate::broker::{Demand, Event, Position, Source};
use crate::config::{self, Client, Config, Origin, StartFrom, show_duration};
use crate::error::{Error, Kind, Result};
use crate::exec::locate;
use crate::ledger::{self, runs::Runs};
use crate::record::{self, Invalid, Reason, printable, show_key};

/// How long is waited for a line of the input before it is asked again.
const GLANCE: Duration = Duration::from_secs(1);

/// What was shown.
#[derive(Default)]
struct Shown {
    would_run: usize,
    would_fail: usize,
    done: usize,
}

/// Shows it.
pub fn run(config: &Config, out: &mut Out) -> Result<()> {
    let mut shown = Shown::default();
    match &config.origin {
        Origin::Input(file) => {
            let mut source = LineSource::open(file.as_deref())?;
            let none = BTreeSet::new();
            let demand = Demand { want: 1, paused: &none, running: &BTreeSet::new() };
            let mut events = Vec::new();
            while !events.iter().any(|event| matches!(event, Event::End)) {
                events.clear();
                source.poll(GLANCE, &demand, &mut events)?;
                for event in &events {
                    if let Event::Record(record) = event {
                        shown.show(&record.at, record.key.as_deref(), record.value.as_deref(), &config.exec, out)?;
                    }
                }
            }
        }
        Origin::Kafka(kafka) if kafka.client == Client::Kafka => {
            return Err(Error::new(Kind::Config, "--dry-run reads with our own client, not with the kafka crate")
                .hint("leave out --client kafka"));
        }
        Origin::Kafka(kafka) => of_topic(kafka, &config.exec, &mut shown, out)?,
    }
    let Shown { would_run, would_fail, done } = shown;
    out.line(&format!("dry run: {would_run} would be run, {would_fail} would fail at once, {done} are done already"))
}

/// Where the group stands.
struct Standing {
    starts: Offsets,
    /// What is done, by partition; what is missing here has not been begun with.
    done: BTreeMap<i32, Runs>,
    is_share: bool,
}

fn of_topic(kafka: &config::Kafka, exec: &config::Exec, shown: &mut Shown, out: &mut Out) -> Result<()> {
    let reach = Reach::new(kafka)?;
    let topic: Arc<str> = kafka.topic.as_str().into();
    let (mut reader, standing, ends) = reach.patiently("connecting", || {
        let mut reader = Reader::connect(&reach, &topic)?;
        let ends = reader.ends(StartFrom::Latest)?;
        let standing = match kind::choose(kafka, reader.cluster())?.share {
            Some(facts) => of_share_group(&reach, &mut reader, &facts)?,
            None => of_consumer_group(kafka, &mut reader)?,
        };
        Ok((reader, standing, ends))
    })?;
    let Standing { starts, done, is_share } = standing;
    let group = printable(&kafka.group);
    let mut empty = 0;
    for (partition, &start) in &starts {
        let end = ends.get(partition).copied().unwrap_or(start);
        if start >= end {
            empty += 1;
            continue;
        }
        let why = match (done.contains_key(partition), is_share) {
            (true, false) => format!("where group {group} has committed"),
            (true, true) => format!("where share group {group} begins"),
            (false, _) => format!("since group {group} has settled nothing of it yet (--from)"),
        };
        out.line(&format!("{topic}-{partition}: read from {start}, {why}, to {end}"))?;
    }
    if empty > 0 {
        out.line(&format!("{empty} partition(s) of {topic}: nothing to read"))?;
    }
    let unknown =
        if is_share { "what is done or under way beyond that" } else { "what a live worker runs at this moment" };
    out.line(&format!("{unknown} is not told from outside, and shown as if it were to be run"))?;
    reader.seek(&starts);
    reader.read_to(&ends, |partition, fetched: Fetched| {
        let at = Position { topic: topic.clone(), partition, offset: fetched.offset };
        let run = fetched.offset..fetched.offset + 1;
        if done.get(&partition).is_some_and(|done| done.covers(&run)) {
            shown.done += 1;
            out.line(&format!("{at} key={}: done already", show_key(fetched.key.as_deref())))?;
        } else {
            shown.show(&at, fetched.key.as_deref(), fetched.value.as_deref(), exec, out)?;
        }
        Ok(!out.closed)
    })
}

/// By what the group has committed.
fn of_consumer_group(kafka: &config::Kafka, reader: &mut Reader) -> Result<Standing> {
    let partitions = reader.partitions().clone();
    let committed = Group::new(group::Settings::of(kafka)).committed(reader.cluster(), &partitions)?;
    let fresh = if committed.is_empty() { kafka.from } else { StartFrom::Earliest };
    let mut starts = reader.ends(fresh)?;
    starts.extend(committed.iter().map(|(&partition, (offset, _))| (partition, *offset)));
    let done = committed
        .into_iter()
        .map(|(partition, (offset, metadata))| (partition, ledger::committed_runs(offset, &metadata)));
    Ok(Standing { starts, done: done.collect(), is_share: false })
}

/// By where the brokers say that the group begins; they tell no more.
fn of_share_group(reach: &Reach, reader: &mut Reader, facts: &GroupFacts) -> Result<Standing> {
    let kafka = reach.kafka;
    let mut starts = reader.ends(facts.starts(kafka))?;
    let topic = DescribeShareGroupOffsetsRequestTopic::default()
        .with_topic_name(TopicName(StrBytes::from_string(kafka.topic.clone())))
        .with_partitions(reader.partitions().iter().copied().collect());
    let group = DescribeShareGroupOffsetsRequestGroup::default()
        .with_group_id(GroupId(StrBytes::from_string(kafka.group.clone())))
        .with_topics(Some(vec![topic]));
    let request = DescribeShareGroupOffsetsRequest::default().with_groups(vec![group]);
    let coordinator = reader.cluster().find_coordinator(&kafka.group)?;
    let mut conn = reader.cluster().open(coordinator)?;
    let version = conn.version::<DescribeShareGroupOffsetsRequest>(0)?;
    let response = conn.call(version, &request, Instant::now() + reach.patience())?;
    let mut done = BTreeMap::new();
    for group in response.groups {
        match ResponseError::try_from_code(group.error_code) {
            None | Some(ResponseError::GroupIdNotFound) => {}
            Some(code) => return Err(errors::explain(code, &Doing::new("Describe", "Group", &kafka.group))),
        }
        for partition in group.topics.into_iter().flat_map(|topic| topic.partitions) {
            if partition.error_code == 0 && partition.start_offset >= 0 {
                starts.insert(partition.partition_index, partition.start_offset);
                done.insert(partition.partition_index, ledger::committed_runs(partition.start_offset, ""));
            }
        }
    }
    Ok(Standing { starts, done, is_share: true })
}

impl Shown {
    fn show(
        &mut self,
        at: &Position,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        exec: &config::Exec,
        out: &mut Out,
    ) -> Result<()> {
        let verdict = match record::decode(value, exec.shell.as_deref()) {
            Err(Invalid(why)) => Err((Reason::Invalid, why)),
            Ok(command) => match locate(&command, exec) {
                Err(unusable) => Err((unusable.reason, unusable.error)),
                Ok((program, _)) => {
                    let timeout = command.timeout.or(exec.timeout).map_or("none".into(), show_duration);
                    let arguments = command.argv.len() - 1;
                    Ok(format!("would run {} with {arguments} argument(s), timeout {timeout}", program.display()))
                }
            },
        };
        *if verdict.is_ok() { &mut self.would_run } else { &mut self.would_fail } += 1;
        let verdict = verdict.unwrap_or_else(|(reason, why)| format!("would fail, {}: {why}", reason.as_str()));
        out.line(&printable(&format!("{at} key={}: {verdict}", show_key(key))))
    }
}
