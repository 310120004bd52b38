//! The partitions that are ours: their ledgers, the records that wait, what runs, and what others run of them.
//!
//! Pure bookkeeping of the consumer thread: no channel, clock or source.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use log::{debug, trace, warn};

use crate::broker::{At, Commit, Record};
use crate::ledger::runs::Runs;
use crate::ledger::{Admission, PartitionLedger};

/// All partitions, and what runs on our threads, whosever partition it is by now.
#[derive(Debug, Default)]
pub struct Partitions {
    ours: BTreeMap<i32, Partition>,
    running: BTreeSet<At>,
    /// Records that are ours by themselves, and wait.
    acquired: VecDeque<Record>,
    /// The partition whose turn it is, so that a long backlog in one does not hold up the others.
    turn: i32,
}

/// One partition.
#[derive(Debug)]
struct Partition {
    ledger: PartitionLedger,
    committed: i64,
    /// Something was settled since the last commit.
    dirty: bool,
    /// Taken from us: nothing of it is started any more, and after its last commit it is gone.
    leaving: bool,
    /// Read and not opened yet; the source would give them again.
    queue: VecDeque<Record>,
    /// Opened, and to be started here after all: who ran them is gone.
    reclaimed: VecDeque<Record>,
    /// Run by another member: the offset, and the record once it has been read.
    claims: BTreeMap<i64, Option<Record>>,
}

/// Whose the account of a settled record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Account {
    /// Ours.
    Here,
    /// That of whoever owns the partition now.
    Elsewhere,
}

impl Partitions {
    /// The partition is ours, from what was committed.
    pub fn assign(&mut self, partition: i32, offset: i64, metadata: &str) {
        let (ledger, bad) = PartitionLedger::restore(offset, metadata);
        if let Some(bad) = bad {
            warn!("partition {partition}: {bad}; commands from offset {offset} on may run again");
        }
        let new = Partition {
            ledger,
            committed: offset,
            dirty: false,
            leaving: false,
            queue: VecDeque::new(),
            reclaimed: VecDeque::new(),
            claims: BTreeMap::new(),
        };
        self.ours.insert(partition, new);
    }

    /// The partition is to go to another member: what was not started is dropped, the rest waits for its last commit.
    pub fn revoke(&mut self, partition: i32) {
        if let Some(partition) = self.ours.get_mut(&partition) {
            partition.leaving = true;
            partition.dirty = true; // so that there is a last commit
            partition.queue.clear();
            partition.reclaimed.clear();
            partition.claims.clear();
        }
    }

    /// Nothing is ours any more, and nothing of it can be committed. Returns what was settled since the last commit, by
    /// partition: whoever comes to own it has to know.
    pub fn lose_all(&mut self) -> Vec<(i32, Runs)> {
        let lost = std::mem::take(&mut self.ours);
        let settled = lost.into_iter().map(|(id, partition)| (id, partition.ledger.settled_from(partition.committed)));
        settled.filter(|(_, runs)| !runs.is_empty()).collect()
    }

    /// Queues a record that was read.
    pub fn push(&mut self, record: Record) {
        if let Some(partition) = self.ours.get_mut(&record.at.partition).filter(|partition| !partition.leaving) {
            partition.queue.push_back(record);
        }
    }

    /// Queues a record that is ours by itself.
    pub fn acquire(&mut self, record: Record) {
        self.acquired.push_back(record);
    }

    /// What others run of our partition, and have run and reported.
    pub fn set_claims(&mut self, id: i32, running: &[i64], done: &[Range<i64>]) {
        let Some(partition) = self.ours.get_mut(&id).filter(|partition| !partition.leaving) else { return };
        for run in done {
            partition.claims.retain(|offset, _| !run.contains(offset));
            partition.dirty |= partition.ledger.settle_elsewhere(run.clone());
        }
        let before = std::mem::take(&mut partition.claims);
        for (offset, record) in before {
            if running.contains(&offset) {
                partition.claims.insert(offset, record);
            } else if let Some(record) = record {
                debug!("{} is run again: who ran it is gone", record.at);
                partition.reclaimed.push_back(record);
            }
        }
        for &offset in running {
            let waiting = partition.reclaimed.iter().position(|record| record.at.offset == offset);
            let record = waiting.and_then(|index| partition.reclaimed.remove(index));
            let claim = partition.claims.entry(offset).or_default();
            if record.is_some() {
                *claim = record;
            }
        }
    }

    /// The next record to start, from each partition in turn. `limit`: the characters of metadata a commit can take.
    pub fn next(&mut self, limit: usize) -> Option<Record> {
        // One that runs here still, under a lock that was lost, waits for its end.
        if let Some(index) = self.acquired.iter().position(|record| !self.running.contains(&record.place())) {
            return self.acquired.remove(index);
        }
        let from_turn = self.ours.range(self.turn..).map(|(&id, _)| id);
        let order: Vec<i32> = from_turn.chain(self.ours.range(..self.turn).map(|(&id, _)| id)).collect();
        for id in order {
            let partition = self.ours.get_mut(&id)?;
            if let Some(record) = partition.next(limit, &self.running) {
                self.turn = id.saturating_add(1);
                return Some(record);
            }
        }
        None
    }

    /// A thread has taken the record that [`next`](Self::next) gave.
    pub fn started(&mut self, record: &Record) {
        self.running.insert(record.place());
    }

    /// A record that was started is done.
    pub fn settle(&mut self, at: At) -> Account {
        self.running.remove(&at);
        self.acquired.retain(|record| record.place() != at);
        let Some(partition) = self.ours.get_mut(&at.0) else { return Account::Elsewhere };
        partition.dirty |= partition.ledger.settle_elsewhere(at.1..at.1.saturating_add(1));
        Account::Here
    }

    /// A record that was handed over was not started. Where it is ours still, it waits again; elsewhere others have to know.
    pub fn put_back(&mut self, record: Record) -> Account {
        let at = record.place();
        self.running.remove(&at);
        let Some(partition) = self.ours.get_mut(&at.0).filter(|partition| !partition.leaving) else {
            return Account::Elsewhere;
        };
        let is_read_again = partition.queue.iter().any(|queued| queued.at.offset == at.1);
        if let Some(claim) = partition.claims.get_mut(&at.1) {
            *claim = Some(record); // perhaps our own, from when the partition was not ours: the next generation knows
            return Account::Elsewhere;
        }
        if !is_read_again && !partition.ledger.is_settled(at.1) {
            partition.reclaimed.push_back(record);
        }
        Account::Here
    }

    /// A record that was started runs no more, and others may run it: it is nobody's account here.
    pub fn lost(&mut self, at: At) {
        self.running.remove(&at);
    }

    /// What runs on our threads.
    pub fn running(&self) -> &BTreeSet<At> {
        &self.running
    }

    /// How many records wait that could be started.
    pub fn waiting(&self, limit: usize) -> usize {
        let can_start = self.ours.values().filter(|partition| !partition.ledger.is_full(limit));
        let waiting = can_start.map(|partition| partition.queue.len() + partition.reclaimed.len());
        let acquired = self.acquired.iter().filter(|record| !self.running.contains(&record.place()));
        waiting.sum::<usize>() + acquired.count()
    }

    /// How many records wait at all.
    pub fn unstarted(&self) -> usize {
        let waiting = self.ours.values().map(|partition| partition.queue.len() + partition.reclaimed.len());
        waiting.sum::<usize>() + self.acquired.len()
    }

    /// In short, for the log: how far each partition is committed, and what is settled beyond.
    pub fn status(&self) -> String {
        let partitions = self.ours.iter().map(|(id, partition)| {
            let (committed, metadata) = (partition.committed, partition.ledger.metadata().len());
            format!("{id} committed to {committed}, {metadata} character(s) of metadata")
        });
        partitions.collect::<Vec<_>>().join("; ")
    }

    /// Forgets what waits: it stays on the topic. Returns the records that were ours by themselves.
    pub fn forget_waiting(&mut self) -> Vec<At> {
        let acquired = std::mem::take(&mut self.acquired).iter().map(Record::place).collect();
        for partition in self.ours.values_mut() {
            partition.queue.clear();
            partition.reclaimed.clear();
        }
        acquired
    }

    /// The partitions of which no more is to be read for now: what is settled out of order fills the commit metadata.
    pub fn paused(&self, limit: usize) -> BTreeSet<i32> {
        self.ours
            .iter()
            .filter(|(_, partition)| partition.leaving || partition.ledger.is_full(limit))
            .map(|(&id, _)| id)
            .collect()
    }

    /// Whether nothing is open and everything is committed.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && !self.ours.values().any(|partition| partition.dirty)
    }

    /// What there is to commit, or `all` there could be; with metadata only where it is kept.
    pub fn commits(&self, with_metadata: bool, all: bool) -> Vec<Commit> {
        let changed = self.ours.iter().filter(|(_, partition)| {
            all || partition.dirty
                && (with_metadata || partition.leaving || partition.ledger.position() > partition.committed)
        });
        let commits = changed.map(|(&partition, Partition { ledger, .. })| {
            let metadata = if with_metadata { ledger.metadata() } else { String::new() };
            Commit { partition, offset: ledger.position(), metadata }
        });
        commits.collect()
    }

    /// These are committed. Returns the partitions that this was the last commit of, and which are gone.
    pub fn committed(&mut self, commits: &[Commit]) -> Vec<i32> {
        let mut gone = Vec::new();
        for commit in commits {
            let Some(partition) = self.ours.get_mut(&commit.partition) else { continue };
            (partition.committed, partition.dirty) = (commit.offset, false);
            if partition.leaving {
                self.ours.remove(&commit.partition);
                gone.push(commit.partition);
            }
        }
        gone
    }
}

impl Partition {
    fn next(&mut self, limit: usize, running: &BTreeSet<At>) -> Option<Record> {
        if let Some(record) = self.reclaimed.pop_front() {
            return Some(record); // opened long ago: it takes no metadata
        }
        while !self.ledger.is_full(limit) {
            let record = self.queue.pop_front()?;
            let at = &record.at;
            match self.ledger.admit(at.offset) {
                Admission::New if running.contains(&(at.partition, at.offset)) => {
                    debug!("{at} runs here already, since before the partition went and came back");
                }
                Admission::New => match self.claims.get_mut(&at.offset) {
                    Some(claim) => *claim = Some(record), // runs elsewhere
                    None => return Some(record),
                },
                other => trace!("passed over {at}: {other:?}"),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Position;

    fn record(partition: i32, offset: i64) -> Record {
        let at = Position { topic: "t".into(), partition, offset };
        Record::new(at, None, None)
    }

    fn with(records: &[At]) -> Partitions {
        let mut partitions = Partitions::default();
        for &(partition, offset) in records {
            if !partitions.ours.contains_key(&partition) {
                partitions.assign(partition, 0, "");
            }
            partitions.push(record(partition, offset));
        }
        partitions
    }

    fn start(partitions: &mut Partitions) -> Option<At> {
        let record = partitions.next(4096)?;
        partitions.started(&record);
        Some((record.at.partition, record.at.offset))
    }

    #[test]
    fn partitions_take_turns() {
        let mut partitions = with(&[(0, 0), (0, 1), (0, 2), (1, 0), (3, 0)]);
        let order: Vec<At> = std::iter::from_fn(|| start(&mut partitions)).collect();
        assert_eq!(order, [(0, 0), (1, 0), (3, 0), (0, 1), (0, 2)]);
    }

    #[test]
    fn what_goes_is_committed_a_last_time_and_then_is_elsewhere() {
        let mut partitions = with(&[(0, 0), (0, 1), (0, 2)]);
        assert_eq!((start(&mut partitions), start(&mut partitions)), (Some((0, 0)), Some((0, 1))));
        partitions.revoke(0);
        assert_eq!((start(&mut partitions), partitions.unstarted()), (None, 0));
        assert_eq!(partitions.settle((0, 1)), Account::Here);
        let commits = partitions.commits(true, false);
        assert_eq!(commits, [Commit { partition: 0, offset: 0, metadata: "1:0:Aa".into() }]);
        assert_eq!(partitions.committed(&commits), [0]);
        assert_eq!(partitions.running(), &BTreeSet::from([(0, 0)]));
        assert_eq!(partitions.settle((0, 0)), Account::Elsewhere);
        assert!(partitions.is_idle());
    }

    #[test]
    fn a_claimed_record_is_not_started_while_its_worker_lives() {
        let mut partitions = with(&[(0, 0), (0, 1), (0, 2), (0, 3)]);
        partitions.set_claims(0, &[0, 2], &[]);
        assert_eq!(
            (start(&mut partitions), start(&mut partitions), start(&mut partitions)),
            (Some((0, 1)), Some((0, 3)), None)
        );
        partitions.settle((0, 1));
        assert_eq!(partitions.commits(true, false)[0].offset, 0, "a claim holds the position");
        partitions.set_claims(0, &[2], std::slice::from_ref(&(0..1)));
        assert_eq!(partitions.commits(true, false)[0].offset, 2, "done by its worker");
        partitions.set_claims(0, &[], &[]);
        assert_eq!((start(&mut partitions), start(&mut partitions)), (Some((0, 2)), None), "its worker is gone");
    }

    #[test]
    fn a_claim_that_ends_before_its_record_is_read_leaves_nothing_to_start() {
        let mut partitions = with(&[(0, 0)]);
        partitions.set_claims(0, &[0, 1], &[]);
        partitions.set_claims(0, &[1], std::slice::from_ref(&(0..1)));
        assert_eq!(start(&mut partitions), None);
        partitions.set_claims(0, &[], &[]);
        partitions.push(record(0, 1));
        assert_eq!(start(&mut partitions), Some((0, 1)), "nobody runs it any more");
    }

    #[test]
    fn a_partition_that_comes_back_does_not_start_again_what_still_runs_here() {
        let mut partitions = with(&[(0, 0), (0, 1)]);
        assert_eq!(start(&mut partitions), Some((0, 0)));
        assert_eq!(partitions.lose_all(), []);
        partitions.assign(0, 0, "");
        partitions.push(record(0, 0));
        partitions.push(record(0, 1));
        assert_eq!(start(&mut partitions), Some((0, 1)));
        assert_eq!(partitions.settle((0, 0)), Account::Here);
        assert_eq!(partitions.commits(false, false)[0].offset, 1);
    }

    #[test]
    fn what_was_not_started_is_started_once_where_it_is_still_to_be_run() {
        let mut partitions = with(&[(0, 0), (0, 1)]);
        assert_eq!((start(&mut partitions), start(&mut partitions)), (Some((0, 0)), Some((0, 1))));
        assert_eq!(partitions.put_back(record(0, 0)), Account::Here);
        assert_eq!(partitions.commits(true, true)[0].offset, 0);
        assert_eq!((start(&mut partitions), start(&mut partitions)), (Some((0, 0)), None));
        // Lost and ours again: others have run 0 and run 1.
        partitions.lose_all();
        assert_eq!(partitions.put_back(record(0, 0)), Account::Elsewhere);
        partitions.assign(0, 0, "");
        partitions.set_claims(0, &[1], std::slice::from_ref(&(0..1)));
        assert_eq!(partitions.put_back(record(0, 0)), Account::Here);
        assert_eq!(partitions.put_back(record(0, 1)), Account::Elsewhere);
        assert_eq!(start(&mut partitions), None);
        partitions.set_claims(0, &[], &[]);
        assert_eq!((start(&mut partitions), start(&mut partitions)), (Some((0, 1)), None));
        // Read again, and waiting: that one is it.
        let mut partitions = with(&[(0, 0)]);
        start(&mut partitions);
        partitions.lose_all();
        partitions.assign(0, 0, "");
        partitions.push(record(0, 0));
        partitions.put_back(record(0, 0));
        assert_eq!((start(&mut partitions), start(&mut partitions)), (Some((0, 0)), None));
    }

    #[test]
    fn a_full_partition_pauses_and_the_others_go_on() {
        let mut partitions = with(&[]);
        partitions.assign(0, 0, "");
        partitions.assign(1, 0, "");
        // Every second one finishes: each takes its place in the run list.
        for offset in 0..2000 {
            partitions.push(record(0, offset));
        }
        partitions.push(record(1, 0));
        let limit = 200;
        let mut started = Vec::new();
        while let Some(record) = partitions.next(limit) {
            partitions.started(&record);
            started.push((record.at.partition, record.at.offset));
            if record.at.offset % 2 == 1 {
                partitions.settle((record.at.partition, record.at.offset));
            }
        }
        assert!(started.contains(&(1, 0)));
        assert!(started.len() < 200, "{} started", started.len());
        assert_eq!((partitions.paused(limit), partitions.waiting(limit)), ([0].into(), 0));
        assert!(partitions.commits(true, false).iter().all(|commit| commit.metadata.len() <= limit));
        partitions.settle((0, 0));
        assert!(partitions.unstarted() > 0);
    }
}
