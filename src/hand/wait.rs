//! Waiting for the results of commands that were just written.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::reader::Reader;
use super::results::understood;
use super::{Progress, Reach};
use crate::broker::At;
use crate::config::StartFrom;
use crate::error::Result;
use crate::record::result::{ResultRecord, Told};

/// How long is waited for more before the time is looked at.
const GLANCE: Duration = Duration::from_secs(1);

/// A reader of results that begins where the topic ended before anything was written.
pub struct Waiter<'a> {
    reach: &'a Reach<'a>,
    reader: Reader,
    /// Whose results are awaited: by key the places of the commands, where they are known.
    awaited: HashMap<Vec<u8>, Vec<Option<At>>>,
}

impl<'a> Waiter<'a> {
    /// From the end of the topic on.
    pub fn connect(reach: &'a Reach) -> Result<Waiter<'a>> {
        let reader = reach.patiently("connecting", || {
            let mut reader = Reader::connect(reach, &reach.kafka.results_topic)?;
            // All partitions: whoever writes results may have other ideas of where a key belongs than we.
            let ends = reader.ends(StartFrom::Latest)?;
            reader.seek(&ends);
            Ok(reader)
        })?;
        Ok(Waiter { reach, reader, awaited: HashMap::new() })
    }

    /// Awaits the result of the command with this key, which stands at `at`.
    pub fn await_result(&mut self, key: &[u8], at: Option<At>) {
        self.awaited.entry(key.to_vec()).or_default().push(at);
    }

    /// How many are awaited.
    pub fn count(&self) -> usize {
        self.awaited.values().map(Vec::len).sum()
    }

    /// Some of the keys that are awaited.
    pub fn keys(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.awaited.keys()
    }

    /// Gives each result to `take`, until all are there or the time is over.
    pub fn wait(
        &mut self,
        timeout: Option<Duration>,
        progress: &Progress,
        mut take: impl FnMut(ResultRecord) -> Result<()>,
    ) -> Result<()> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let all = self.count();
        while self.count() > 0 {
            progress.show("ended", all - self.count(), all);
            let left = deadline.map_or(GLANCE, |deadline| deadline.saturating_duration_since(Instant::now()));
            let came = self.reader.poll(left.min(GLANCE))?;
            let none = came.is_empty();
            for (partition, fetched) in came {
                let record = understood(&self.reach.kafka.results_topic, partition, fetched);
                if self.is_awaited(&record) {
                    progress.clear();
                    take(record)?;
                }
            }
            if none && deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                break;
            }
        }
        progress.clear();
        Ok(())
    }

    /// Whether it is one of those that are awaited; it is not any more then.
    fn is_awaited(&mut self, record: &ResultRecord) -> bool {
        let Some(key) = &record.key else { return false };
        let Some(places) = self.awaited.get_mut(key) else { return false };
        let topic = &self.reach.kafka.topic;
        let index = match &record.told {
            Told::Nothing(_) => None,
            // A key can be used again; where the command stands tells whose result this is.
            Told::Outcome(outcome) => {
                let at = (outcome.topic.as_ref() == topic).then_some((outcome.partition, outcome.offset));
                places.iter().position(|place| place.is_none() || *place == at)
            }
            Told::State(_) => Some(0),
        };
        let Some(index) = index else { return false };
        places.remove(index);
        if places.is_empty() {
            self.awaited.remove(key);
        }
        true
    }
}
