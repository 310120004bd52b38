//! Records of a topic for a member of a consumer group: what the group says, and what the leaders give.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{debug, info, warn};

use super::assignor::{Assignment, Said, Told};
use super::cluster::{Cluster, Purpose};
use super::conn::{Connection, wait_readable};
use super::dial::Dialer;
use super::fetch::{self, Came, Fetchers};
use super::freshness::{Freshness, REFRESH_PAUSE};
use super::group::{self, Change, Group};
use super::in_short;
use crate::broker::outage::Outage;
use crate::broker::{At, Commit, Demand, Event, Position, Record, Source, reading};
use crate::config::{self, StartFrom};
use crate::error::{Error, Kind, Result};
use crate::ledger::{self, runs::Runs};

/// What a broker keeps of commit metadata unless told otherwise (`offset.metadata.max.bytes`).
const METADATA_LIMIT: usize = 4096;
/// How often, at most, a rejoin only tells what is done: until then the owner of the partition holds it open.
const TELL_EVERY: Duration = Duration::from_secs(3);

/// A member of a consumer group, and the reader of its partitions.
pub struct WireSource {
    topic: Arc<str>,
    from: StartFrom,
    cluster: Cluster,
    group: Group,
    fetchers: Fetchers,
    group_outage: Outage,
    group_retry_at: Instant,
    freshness: Freshness,
    /// What the last generation says, until it is carried out.
    assigned: Option<Assignment>,
    /// Ours, and read.
    owned: BTreeSet<i32>,
    /// Taken from us, and not yet committed for the last time.
    revoked: BTreeSet<i32>,
    /// Done, though not ours at the time, and not known to be settled by the owner.
    done: BTreeMap<i32, Runs>,
    /// What of `done` goes with the join that is under way.
    telling: BTreeMap<i32, Runs>,
    /// What of `done` the leader of a settled generation has passed on.
    told: BTreeMap<i32, Runs>,
    tell_at: Instant,
    /// Where the partitions that are ours ended when that was asked first.
    ends: BTreeMap<i32, i64>,
    draining: bool,
    /// Partitions without a leader, if that was said.
    leaderless: Outage,
}

impl WireSource {
    /// Connects, finds the topic, and begins to join the group.
    pub fn connect(config: &config::Kafka, dialer: Arc<Dialer>) -> Result<WireSource> {
        let settings = &config.settings;
        let mut cluster = Cluster::new(dialer, config.brokers.clone(), group::patience(settings));
        cluster.refresh(&[&config.topic], Purpose::Read)?;
        let group = Group::new(group::Settings::of(config));
        let fetchers = Fetchers::new(fetch::Settings::of(config, &config.topic));
        let now = Instant::now();
        Ok(WireSource {
            topic: config.topic.as_str().into(),
            from: config.from,
            cluster,
            group,
            fetchers,
            group_outage: Outage::new("taking part in the group"),
            group_retry_at: now,
            freshness: Freshness::new(settings.metadata_max_age),
            assigned: None,
            owned: BTreeSet::new(),
            revoked: BTreeSet::new(),
            done: BTreeMap::new(),
            telling: BTreeMap::new(),
            told: BTreeMap::new(),
            tell_at: now,
            ends: BTreeMap::new(),
            draining: false,
            leaderless: Outage::new("finding the leaders"),
        })
    }

    /// Everything that can be done without waiting.
    fn work(&mut self, demand: &Demand<'_>, events: &mut Vec<Event>) -> Result<()> {
        self.work_group(demand, events)?;
        self.freshness.refresh(&mut self.cluster, &self.topic);
        let mut came = Vec::new();
        if demand.want > 0 {
            let leaderless = self.fetchers.send(&self.cluster, demand.paused)?;
            self.note_leaderless(leaderless);
            let received = self.fetchers.receive(&mut came);
            self.take(came, events);
            received?;
        }
        Ok(())
    }

    /// Whether the owners know of all that is done.
    fn is_told(&self) -> bool {
        self.done.iter().all(|(partition, runs)| {
            self.told.get(partition).is_some_and(|told| runs.iter().all(|run| told.covers(run)))
        })
    }

    fn note_leaderless(&mut self, leaderless: Option<Error>) {
        let now = Instant::now();
        match leaderless {
            Some(e) => self.freshness.mark_stale_at(|| now + self.leaderless.failed(&e, now)),
            None => self.leaderless.over(now),
        }
    }

    /// Moves the membership on, and carries out what it says.
    fn work_group(&mut self, demand: &Demand<'_>, events: &mut Vec<Event>) -> Result<()> {
        let now = Instant::now();
        if now < self.group_retry_at {
            return Ok(());
        }
        if !self.is_told() && now >= self.tell_at {
            self.tell_at = now + TELL_EVERY;
            self.group.rejoin();
        }
        match self.move_on(demand, events) {
            Ok(()) => self.group_outage.over(now),
            Err(e) if e.is_transient() => {
                let pause = self.group_outage.failed(&e, now);
                self.group_retry_at = now + if e.kind() == Kind::Later { REFRESH_PAUSE } else { pause };
            }
            Err(e) => return Err(e),
        }
        Ok(())
    }

    fn move_on(&mut self, demand: &Demand<'_>, events: &mut Vec<Event>) -> Result<()> {
        // What was taken from us is ours until it is committed for the last time: nobody else may have it before.
        let kept: BTreeSet<i32> = self.owned.union(&self.revoked).copied().collect();
        let (done, telling, draining) = (&self.done, &mut self.telling, self.draining);
        let change = self.group.drive(&mut self.cluster, || {
            telling.clone_from(done);
            let away = demand.running.iter().filter(|at| !kept.contains(&at.0)).copied().collect();
            let runs =
                done.iter().flat_map(|(&partition, runs)| runs.iter().map(move |run| (partition, run.start, run.end)));
            let said = Said { generation: 0, draining, away, done: runs.collect() };
            (kept, said)
        })?;
        match change {
            Some(Change::Lost(why)) => self.lose(&why, events),
            Some(Change::Assigned(assignment)) => {
                // Of a partition that nobody has, nobody was told.
                self.told = std::mem::take(&mut self.telling);
                self.told.retain(|partition, _| !assignment.told.unowned.contains(partition));
                self.assigned = Some(assignment);
            }
            None => {}
        }
        self.carry_out(events)
    }

    fn lose(&mut self, why: &str, events: &mut Vec<Event>) {
        warn!("membership of the group is lost: {why}; what runs goes on, and joining anew");
        self.owned.clear();
        self.revoked.clear();
        self.assigned = None;
        self.told.clear();
        self.fetchers.forget_all();
        events.push(Event::Lost);
    }

    /// Carries out an assignment: lets go what is not ours any more, then takes up what is new.
    fn carry_out(&mut self, events: &mut Vec<Event>) -> Result<()> {
        let Some(assignment) = &self.assigned else { return Ok(()) };
        let going: Vec<i32> = self.owned.difference(&assignment.partitions).copied().collect();
        for partition in going {
            self.owned.remove(&partition);
            self.revoked.insert(partition);
            self.fetchers.forget(partition);
            events.push(Event::Revoked { partition });
        }
        if !assignment.partitions.is_disjoint(&self.revoked) {
            return Ok(()); // it comes back before it has gone: first its last commit
        }
        let new: BTreeSet<i32> = assignment.partitions.difference(&self.owned).copied().collect();
        let starts = if new.is_empty() { BTreeMap::new() } else { self.starts(&new)? };
        let Some(assignment) = self.assigned.take() else { return Ok(()) };
        for (partition, (offset, metadata)) in starts {
            self.fetchers.seek(partition, offset);
            self.owned.insert(partition);
            events.push(Event::Assigned { partition, offset, metadata });
        }
        for &partition in &self.owned {
            let Told { running, done, .. } = &assignment.told;
            let running = running.iter().filter(|at| at.0 == partition).map(|at| at.1).collect();
            let mut done: Vec<Range<i64>> =
                done.iter().filter(|run| run.0 == partition).map(|run| run.1..run.2).collect();
            done.extend(self.done.get(&partition).iter().flat_map(|runs| runs.iter().cloned())); // before it was ours again
            events.push(Event::Claims { partition, running, done });
        }
        let (generation, members) = (self.group.generation(), assignment.told.members);
        let partitions = in_short(&assignment.partitions);
        info!(
            "generation {generation} of the group: {members} member(s), here partition(s) {partitions} of {}",
            self.topic
        );
        self.forget_what_is_settled();
        Ok(())
    }

    /// Drops from `done` what the owners have committed since they were told.
    fn forget_what_is_settled(&mut self) {
        if self.done.is_empty() {
            return;
        }
        let partitions = self.done.keys().copied().collect();
        match self.group.committed(&mut self.cluster, &partitions) {
            Ok(committed) => {
                for (partition, (position, metadata)) in committed {
                    if let Some(runs) = self.done.get_mut(&partition) {
                        ledger::committed_runs(position, &metadata).iter().for_each(|run| runs.remove(run.clone()));
                    }
                }
                self.done.retain(|_, runs| !runs.is_empty());
            }
            Err(e) => debug!("{e}"), // the next generation is told once more, which does no harm
        }
    }

    /// Where to start in partitions that are new here: as committed, or else by `--from`.
    fn starts(&mut self, partitions: &BTreeSet<i32>) -> Result<BTreeMap<i32, group::Committed>> {
        let all = (0..i32::try_from(self.cluster.partition_count(&self.topic)).unwrap_or(i32::MAX))
            .chain(partitions.iter().copied());
        let mut starts = self.group.committed(&mut self.cluster, &all.collect())?;
        let group_is_new = starts.is_empty();
        starts.retain(|partition, _| partitions.contains(partition));
        let fresh: BTreeSet<i32> =
            partitions.iter().filter(|partition| !starts.contains_key(partition)).copied().collect();
        if fresh.is_empty() {
            return Ok(starts);
        }
        // A partition that appears while a group works holds only what was written meanwhile.
        let from = if group_is_new { self.from } else { StartFrom::Earliest };
        if group_is_new {
            info!("the group is new: it starts at the {} record of {} (--from)", from.as_str(), self.topic);
        }
        let ends = self.fetchers.ends(&self.cluster, &fresh, from)?;
        let commits: Vec<Commit> =
            ends.iter().map(|(&partition, &offset)| Commit { partition, offset, metadata: String::new() }).collect();
        // So that `latest` means latest now, and not once more after a crash before the first commit.
        self.group.commit(&mut self.cluster, &commits)?;
        starts.extend(ends.into_iter().map(|(partition, offset)| (partition, (offset, String::new()))));
        Ok(starts)
    }

    /// Makes events of what the leaders have given.
    fn take(&mut self, came: Vec<Came>, events: &mut Vec<Event>) {
        let mut queues: Vec<VecDeque<Record>> = Vec::new();
        for news in came {
            match news {
                Came::Records(partition, batches) => {
                    let record = |fetched: super::records::Fetched| Record {
                        at: Position { topic: self.topic.clone(), partition, offset: fetched.offset },
                        key: fetched.key.map(Into::into),
                        value: fetched.value.map(Into::into),
                        timestamp_ms: fetched.timestamp_ms,
                        attempt: None,
                        lock: None,
                    };
                    queues.push(batches.records.into_iter().map(record).collect());
                }
                Came::OutOfRange(partition) => self.reset(partition, events),
                Came::Moved => self.freshness.mark_stale(),
            }
        }
        reading::in_turn(queues, events);
    }

    /// The offset does not exist (any more): goes on at the earliest one.
    fn reset(&mut self, partition: i32, events: &mut Vec<Event>) {
        let Some(offset) = self.fetchers.offset(partition) else { return };
        let earliest = match self.fetchers.ends(&self.cluster, &[partition].into(), StartFrom::Earliest) {
            Ok(ends) => ends.get(&partition).copied(),
            Err(e) => {
                debug!("{e}"); // the fetch fails again, and so we come back
                None
            }
        };
        let Some(earliest) = earliest else { return };
        reading::warn_of_gap(&Position { topic: self.topic.clone(), partition, offset }, earliest);
        self.fetchers.seek(partition, earliest);
        events.push(Event::Assigned { partition, offset: earliest, metadata: String::new() });
    }

    /// Waits for an answer, or until something is due.
    fn wait(&self, deadline: Instant, want: bool) {
        let mut connections: Vec<&Connection> = Vec::new();
        let mut until = deadline;
        if want {
            connections.extend(self.fetchers.awaited());
            until = self.fetchers.due().map_or(until, |due| until.min(due));
        }
        connections.extend(self.group.awaited());
        until = until.min(self.group.due().max(self.group_retry_at));
        until = self.freshness.due().map_or(until, |at| until.min(at));
        wait_readable(&connections, until);
    }
}

impl Source for WireSource {
    fn poll(&mut self, wait: Duration, demand: &Demand<'_>, events: &mut Vec<Event>) -> Result<()> {
        let deadline = Instant::now() + wait;
        loop {
            self.work(demand, events)?;
            if !events.is_empty() || Instant::now() >= deadline {
                return Ok(());
            }
            self.wait(deadline, demand.want > 0);
        }
    }

    fn commit(&mut self, commits: &[Commit]) -> Result<()> {
        self.group.commit(&mut self.cluster, commits)
    }

    fn metadata_limit(&self) -> usize {
        METADATA_LIMIT
    }

    fn lease(&self) -> Option<Instant> {
        Some(self.group.lease())
    }

    fn released(&mut self, partition: i32) {
        self.revoked.remove(&partition);
        if self.revoked.is_empty() {
            self.group.rejoin(); // now others may have them
        }
    }

    fn done_elsewhere(&mut self, partition: i32, offsets: Range<i64>) {
        self.done.entry(partition).or_default().insert(offsets);
    }

    fn not_running(&mut self, _at: At) {
        self.group.rejoin();
    }

    fn has_read_all(&mut self) -> Result<bool> {
        if !self.group.is_settled() || self.assigned.is_some() {
            return Ok(false);
        }
        let unknown: BTreeSet<i32> = self.owned.iter().filter(|id| !self.ends.contains_key(id)).copied().collect();
        if !unknown.is_empty() {
            self.ends.extend(self.fetchers.ends(&self.cluster, &unknown, StartFrom::Latest)?);
        }
        Ok(self.owned.iter().all(|id| self.fetchers.offset(*id) >= self.ends.get(id).copied()))
    }

    fn drain(&mut self) {
        if !self.draining {
            self.draining = true;
            self.group.rejoin();
        }
    }

    fn leave(&mut self) -> Result<bool> {
        // The owners have to know what is done before we are gone.
        if !self.is_told() {
            if self.telling != self.done {
                self.group.rejoin();
            }
            return Ok(false);
        }
        if self.assigned.is_some() {
            return Ok(false); // it may concern us, and then be committed
        }
        // And to have committed it: if one of them dies before, who else could tell the next owner? A partition whose
        // owner has just died has none until that one's session is over.
        if !self.done.is_empty() {
            let now = Instant::now();
            if now >= self.tell_at {
                self.tell_at = now + REFRESH_PAUSE;
                self.forget_what_is_settled();
            }
            return Ok(false);
        }
        self.group.leave(&mut self.cluster).map(|()| true)
    }
}
