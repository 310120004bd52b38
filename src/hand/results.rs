//! `results`: what is on the results topic, as a table or as JSON.

use std::time::Duration;

use jiff::Timestamp;

use super::reader::Reader;
use super::{Out, Reach};
use crate::broker::wire::records::Fetched;
use crate::config::StartFrom;
use crate::config::by_hand::{Output, Results};
use crate::error::Result;
use crate::record::result::{self, ResultRecord, TABLE_HEAD};

/// How long is waited for more before it is looked whether anybody still reads.
const GLANCE: Duration = Duration::from_secs(1);

/// Shows them.
pub fn run(reach: &Reach, asked: &Results, out: &mut Out) -> Result<()> {
    let topic = &reach.kafka.results_topic;
    let since_ms = asked.since.map(|since| {
        let since = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
        Timestamp::now().as_millisecond().saturating_sub(since)
    });
    let (mut reader, ends) = reach.patiently("connecting", || {
        let mut reader = Reader::connect(reach, topic)?;
        let ends = reader.ends(StartFrom::Latest)?;
        let starts = match since_ms {
            // By offset, not by time: the clocks of those who write may differ from ours.
            Some(_) if asked.since == Some(Duration::ZERO) => ends.clone(),
            Some(since_ms) => reader.since(since_ms)?,
            None => reader.ends(StartFrom::Earliest)?,
        };
        reader.seek(&starts);
        Ok((reader, ends))
    })?;
    if asked.output == Output::Table {
        out.line(TABLE_HEAD)?;
    }
    let since_ms = since_ms.filter(|_| asked.since != Some(Duration::ZERO));
    let show = |partition, fetched: Fetched, out: &mut Out| {
        let is_old = fetched.timestamp_ms.zip(since_ms).is_some_and(|(written, since)| written < since);
        let record = understood(topic, partition, fetched);
        if is_old || asked.failed && record.is_success() {
            return Ok(());
        }
        out.line(&match asked.output {
            Output::Table => record.table_line(),
            Output::Json => record.json_line(),
        })
    };
    reader.read_to(&ends, |partition, fetched| show(partition, fetched, out).map(|()| !out.closed))?;
    while asked.follow && !out.closed {
        out.flush()?;
        for (partition, fetched) in reader.poll(GLANCE)? {
            show(partition, fetched, out)?;
        }
    }
    Ok(())
}

/// A record of the results topic, understood.
pub fn understood(topic: &str, partition: i32, fetched: Fetched) -> ResultRecord {
    let headers = fetched.headers.iter().map(|(name, value)| (name.as_ref(), value.as_deref()));
    ResultRecord {
        told: result::read(fetched.value.as_deref(), headers),
        key: fetched.key.map(Into::into),
        timestamp_ms: fetched.timestamp_ms,
        at: format!("{topic}-{partition}@{}", fetched.offset),
    }
}
