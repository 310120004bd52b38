//! `--dry-run`: what the worker would make of what is on the topic, and why it would not run the rest. Runs nothing, joins
//! no group, commits nothing: whoever works there is not disturbed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::reader::{Offsets, Reader};
use super::{Out, Reach};
use crate::broker::local::LineSource;
use crate::broker::wire::group::{self, Group};
use crate::broker::wire::records::Fetched;
use crate::broker::{Demand, Event, Position, Source};
use crate::config::{self, Client, Config, Origin, show_duration};
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
            let demand = Demand { want: true, paused: &none, running: &BTreeSet::new() };
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

fn of_topic(kafka: &config::Kafka, exec: &config::Exec, shown: &mut Shown, out: &mut Out) -> Result<()> {
    let reach = Reach::new(kafka)?;
    let topic: Arc<str> = kafka.topic.as_str().into();
    let (mut reader, committed, starts, ends) = reach.patiently("connecting", || {
        let mut reader = Reader::connect(&reach, &topic)?;
        let partitions = reader.partitions().clone();
        let committed = Group::new(group::Settings::new(kafka)).committed(reader.cluster(), &partitions)?;
        let ends = reader.ends(config::StartFrom::Latest)?;
        let fresh = if committed.is_empty() { kafka.from } else { config::StartFrom::Earliest };
        let mut starts: Offsets = reader.ends(fresh)?;
        starts.extend(committed.iter().map(|(&partition, (offset, _))| (partition, *offset)));
        Ok((reader, committed, starts, ends))
    })?;
    let mut empty = 0;
    for (partition, &start) in &starts {
        let end = ends.get(partition).copied().unwrap_or(start);
        if start >= end {
            empty += 1;
            continue;
        }
        let why = match committed.contains_key(partition) {
            true => format!("where group {} has committed", printable(&kafka.group)),
            false => format!("since group {} has committed nothing (--from)", printable(&kafka.group)),
        };
        out.line(&format!("{topic}-{partition}: read from {start}, {why}, to {end}"))?;
    }
    if empty > 0 {
        out.line(&format!("{empty} partition(s) of {topic}: nothing to read"))?;
    }
    out.line("what a live worker runs at this moment is not committed, and shown as if it were to be run")?;
    reader.seek(&starts);
    let settled = |partition: i32| -> Runs {
        committed
            .get(&partition)
            .map(|(offset, metadata)| ledger::committed_runs(*offset, metadata))
            .unwrap_or_default()
    };
    reader.read_to(&ends, |partition, fetched: Fetched| {
        let at = Position { topic: topic.clone(), partition, offset: fetched.offset };
        if settled(partition).covers(&(fetched.offset..fetched.offset + 1)) {
            shown.done += 1;
            out.line(&format!("{at} key={}: done already", show_key(fetched.key.as_deref())))?;
        } else {
            shown.show(&at, fetched.key.as_deref(), fetched.value.as_deref(), exec, out)?;
        }
        Ok(!out.closed)
    })
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
