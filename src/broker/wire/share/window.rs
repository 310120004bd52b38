//! Watches the window of a share group's partitions: only so many records can be locked behind the oldest one, so a command
//! that runs long on a busy partition comes to hold up everything behind it. Says so before it does, and names it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use log::{debug, warn};

use crate::broker::At;
use crate::broker::wire::cluster::Cluster;
use crate::broker::wire::ends;
use crate::config::StartFrom;

/// How often it is looked, and for how long a lock is held at least before it is looked at.
const LOOK: Duration = Duration::from_secs(10);
/// From this part of the window on it is said.
const FULL: f64 = 0.75;

/// The windows of all partitions.
pub struct Window {
    /// Records that can be locked behind the oldest one.
    size: i64,
    look_at: Instant,
    /// How many records were behind the oldest lock of ours that is held for long.
    behind: BTreeMap<At, i64>,
    /// The locks of which it was said.
    told: BTreeSet<At>,
}

impl Window {
    /// Of `size` records.
    pub fn new(size: i64) -> Window {
        Window { size, look_at: Instant::now() + LOOK, behind: BTreeMap::new(), told: BTreeSet::new() }
    }

    /// From when on a lock has been held for long, if it is time to look.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        (now >= self.look_at).then(|| now - LOOK)
    }

    /// Looks how far the ends of the partitions are from the oldest lock of ours in each. `name` gives the key of a record.
    /// Waits for the leaders, no longer than `patience` for each.
    pub fn look(
        &mut self,
        oldest: &[At],
        cluster: &Cluster,
        topic: &str,
        patience: Duration,
        name: impl Fn(&At) -> String,
    ) {
        self.look_at = Instant::now() + LOOK;
        self.told.retain(|at| oldest.contains(at));
        self.behind.clear();
        let partitions: BTreeSet<i32> = oldest.iter().map(|at| at.0).collect();
        if partitions.is_empty() {
            return;
        }
        match ends::ask(cluster, topic, &partitions, StartFrom::Latest, false, patience) {
            Ok(ends) => {
                let behind = oldest.iter().filter_map(|&at| Some((at, ends.get(&at.0)? - at.1 - 1)));
                self.behind = behind.collect();
            }
            Err(e) => debug!("{e}"), // looked again soon
        }
        for (at, behind) in &self.behind {
            if (*behind as f64) < FULL * self.size as f64 || !self.told.insert(*at) {
                continue;
            }
            warn!(
                "{topic}-{}@{} key={} runs long, and {behind} record(s) were written behind it: no more than {} can be taken \
                 before it ends. Give long commands a topic of their own or more partitions, or raise \
                 share.partition.max.record.locks of the group",
                at.0,
                at.1,
                name(at),
                self.size
            );
        }
    }

    /// In short, for the log.
    pub fn status(&self) -> String {
        let windows = self.behind.iter().map(|((partition, offset), behind)| {
            format!(
                "; {behind} record(s) behind the oldest lock of partition {partition}, at {offset}, of {}",
                self.size
            )
        });
        windows.collect()
    }
}
