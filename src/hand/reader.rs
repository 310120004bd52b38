//! Reads a topic without a group: all of its partitions, from where one likes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use log::debug;

use super::Reach;
use crate::broker::wire::cluster::{Cluster, Purpose};
use crate::broker::wire::conn::{Connection, wait_readable};
use crate::broker::wire::fetch::{Came, Fetchers, Settings};
use crate::broker::wire::freshness::Freshness;
use crate::broker::wire::records::Fetched;
use crate::broker::{Position, reading};
use crate::config::StartFrom;
use crate::error::{Error, Kind, Result};

/// How long it waits for more before it looks whether there is any.
const GLANCE: Duration = Duration::from_millis(200);

/// Offsets by partition.
pub type Offsets = BTreeMap<i32, i64>;

/// A reader of one topic.
pub struct Reader {
    topic: String,
    cluster: Cluster,
    fetchers: Fetchers,
    partitions: BTreeSet<i32>,
    /// How long nothing may come although there is something.
    patience: Duration,
    /// It is refreshed also though no leader has moved: there may be new partitions.
    freshness: Freshness,
}

impl Reader {
    /// Finds the topic, which has to be there.
    pub fn connect(reach: &Reach, topic: &str) -> Result<Reader> {
        let mut cluster = reach.cluster();
        cluster.refresh(&[topic], Purpose::Read)?;
        Ok(Reader {
            topic: topic.to_string(),
            fetchers: Fetchers::new(Settings::of(reach.kafka, topic)),
            partitions: partitions(&cluster, topic),
            cluster,
            patience: reach.kafka.connect_timeout,
            freshness: Freshness::new(reach.kafka.settings.metadata_max_age),
        })
    }

    /// All partitions.
    pub fn partitions(&self) -> &BTreeSet<i32> {
        &self.partitions
    }

    /// The cluster, for other questions.
    pub fn cluster(&mut self) -> &mut Cluster {
        &mut self.cluster
    }

    /// The first offset of each partition, or the one behind the last.
    pub fn ends(&self, end: StartFrom) -> Result<Offsets> {
        self.fetchers.ends(&self.cluster, &self.partitions, end)
    }

    /// The offsets from `timestamp_ms` on.
    pub fn since(&self, timestamp_ms: i64) -> Result<Offsets> {
        let mut offsets = self.fetchers.since(&self.cluster, &self.partitions, timestamp_ms)?;
        let ends = self.ends(StartFrom::Latest)?;
        offsets.iter_mut().filter(|(_, offset)| **offset < 0).for_each(|(id, offset)| *offset = ends[id]);
        Ok(offsets)
    }

    /// Reads on from there.
    pub fn seek(&mut self, offsets: &Offsets) {
        offsets.iter().for_each(|(&partition, &offset)| self.fetchers.seek(partition, offset));
    }

    /// Reads up to `ends`, and gives `take` each record; it says whether it wants more.
    pub fn read_to(&mut self, ends: &Offsets, mut take: impl FnMut(i32, Fetched) -> Result<bool>) -> Result<()> {
        let mut heard = Instant::now();
        while !self.has_reached(ends) {
            let records = self.poll(GLANCE)?;
            if !records.is_empty() {
                heard = Instant::now();
            } else if heard.elapsed() > self.patience && !self.has_reached(ends) {
                let why = format!("{}: there is more to read, but for {:?} nothing came", self.topic, self.patience);
                return Err(Error::new(Kind::Unavailable, why));
            }
            for (partition, record) in records {
                if record.offset < ends.get(&partition).copied().unwrap_or(0) && !take(partition, record)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn has_reached(&self, ends: &Offsets) -> bool {
        ends.iter().all(|(&partition, &end)| self.fetchers.offset(partition).is_none_or(|offset| offset >= end))
    }

    /// The records that come within `wait`, as soon as there are some.
    pub fn poll(&mut self, wait: Duration) -> Result<Vec<(i32, Fetched)>> {
        let deadline = Instant::now() + wait;
        loop {
            self.refresh();
            let leaderless = self.fetchers.send(&self.cluster, &BTreeSet::new())?;
            if leaderless.is_some() {
                self.freshness.mark_stale();
            }
            let mut came = Vec::new();
            let received = self.fetchers.receive(&mut came);
            let records = self.take(came);
            received?;
            if !records.is_empty() || Instant::now() >= deadline {
                return Ok(records);
            }
            let connections: Vec<&Connection> = self.fetchers.awaited().collect();
            let due = [self.fetchers.due(), self.freshness.due()].into_iter().flatten();
            wait_readable(&connections, due.fold(deadline, Instant::min));
        }
    }

    fn take(&mut self, came: Vec<Came>) -> Vec<(i32, Fetched)> {
        let mut records = Vec::new();
        for news in came {
            match news {
                Came::Records(partition, batches) => {
                    records.extend(batches.records.into_iter().map(|record| (partition, record)));
                }
                Came::OutOfRange(partition) => self.go_on(partition),
                Came::Moved => self.freshness.mark_stale(),
            }
        }
        records
    }

    /// The offset does not exist (any more).
    fn go_on(&mut self, partition: i32) {
        let Some(offset) = self.fetchers.offset(partition) else { return };
        match self.fetchers.ends(&self.cluster, &[partition].into(), StartFrom::Earliest) {
            Ok(ends) => {
                let earliest = ends.get(&partition).copied().unwrap_or(0);
                reading::warn_of_gap(&Position { topic: self.topic.as_str().into(), partition, offset }, earliest);
                self.fetchers.seek(partition, earliest);
            }
            Err(e) => debug!("{e}"), // the fetch fails again, and so we come back
        }
    }

    fn refresh(&mut self) {
        if !self.freshness.refresh(&mut self.cluster, &self.topic) {
            return;
        }
        for partition in partitions(&self.cluster, &self.topic) {
            if self.partitions.insert(partition) {
                self.fetchers.seek(partition, 0); // it is new, and so is all that is in it
            }
        }
    }
}

/// All partitions that are known of a topic.
fn partitions(cluster: &Cluster, topic: &str) -> BTreeSet<i32> {
    (0..i32::try_from(cluster.partition_count(topic)).unwrap_or(i32::MAX)).collect()
}
