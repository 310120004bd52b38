//! The consumer thread: reads records, hands them to idle threads, settles what is done and commits it.
//!
//! Owns the source and the ledgers. Runs no command, sends no result, and never waits longer than one fetch.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select};
use log::{debug, error, info, warn};

use crate::broker::outage::Outage;
use crate::broker::{Commit, Event, Position, Record, Source};
use crate::error::Result;
use crate::ledger::{Admission, PartitionLedger};
use crate::shutdown::{Level, Shutdown};

/// How long a fetch may wait while nothing runs: a record that comes ends the wait at once.
const IDLE_WAIT: Duration = Duration::from_millis(500);
/// How long it may wait while commands run: they have to be settled and committed in time.
const BUSY_WAIT: Duration = Duration::from_millis(100);
/// How often it is looked for more while there are still records in the queue.
const TOP_UP: Duration = Duration::from_millis(100);
/// Shortest time between two commits: what a crash in between makes run again is what ended within it.
const COMMIT_EVERY: Duration = Duration::from_millis(50);
/// How long the last commit is tried.
const LAST_COMMIT: Duration = Duration::from_secs(30);

/// What the consumer thread owns.
pub struct Intake<'a> {
    source: Box<dyn Source>,
    shutdown: &'a Shutdown,
    threads: usize,
    ledgers: HashMap<i32, Partition>,
    /// Read, but not handed over: still nobody's, and forgotten at the end.
    queue: VecDeque<Record>,
    /// The next one to hand over; open in its ledger.
    next: Option<Record>,
    /// The source has no more records.
    ended: bool,
    reading: Outage,
    committing: Outage,
    read_at: Instant,
    commit_at: Instant,
}

/// A partition that is ours.
struct Partition {
    ledger: PartitionLedger,
    committed: i64,
}

impl<'a> Intake<'a> {
    /// Reads from `source` for `threads` threads.
    pub fn new(source: Box<dyn Source>, threads: usize, shutdown: &'a Shutdown) -> Self {
        let now = Instant::now();
        Intake {
            source,
            shutdown,
            threads,
            ledgers: HashMap::new(),
            queue: VecDeque::new(),
            next: None,
            ended: false,
            reading: Outage::new("reading commands"),
            committing: Outage::new("committing offsets"),
            read_at: now,
            commit_at: now,
        }
    }

    /// Runs until the drain, or the end of the source; then until all that was handed over is settled and committed.
    pub fn run(mut self, jobs: Sender<Record>, settled: &Receiver<Position>) -> Result<()> {
        let taken = self.take_in(&jobs, settled);
        if let Err(e) = &taken {
            error!("{e}; draining");
            self.shutdown.raise(Level::Drain);
        }
        let unstarted = self.queue.len() + usize::from(self.next.is_some());
        if unstarted > 0 {
            info!("{unstarted} command(s) that were read but not started stay on the topic");
        }
        drop(jobs); // the pool ends when its threads are idle
        self.queue = VecDeque::new();
        loop {
            match settled.recv_timeout(BUSY_WAIT) {
                Ok(at) => self.settle(&at),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            let _ = self.commit_if_due(); // logged; the last commit tries again
        }
        let last = self.commit_last();
        taken.and(last)
    }

    /// The loop while work goes on.
    fn take_in(&mut self, jobs: &Sender<Record>, settled: &Receiver<Position>) -> Result<()> {
        let (nowhere, _nobody) = bounded(0); // nobody takes from it
        while self.shutdown.level() == Level::Run && !(self.ended && self.next.is_none() && self.queue.is_empty()) {
            settled.try_iter().for_each(|at| self.settle(&at));
            self.commit_if_due()?;
            self.read_if_wanted()?;
            self.choose_next();
            let (out, wait) = match self.next {
                Some(_) => (jobs, TOP_UP),
                None => (&nowhere, self.until_next_read()),
            };
            select! {
                // Evaluated only when a thread is there to take it.
                send(out, self.next.take().expect("only sent when there is one")) -> sent => if sent.is_err() { break },
                recv(settled) -> at => match at {
                    Ok(at) => self.settle(&at),
                    Err(_) => break, // publish gave up
                },
                recv(self.shutdown.at(Level::Drain)) -> _ => {}
                default(wait) => {}
            }
        }
        Ok(())
    }

    /// Reads on when the queue runs low. Waits in the source only if there is nothing else to do.
    fn read_if_wanted(&mut self) -> Result<()> {
        let waiting = self.queue.len() + usize::from(self.next.is_some());
        if self.ended || waiting >= self.threads || Instant::now() < self.read_at {
            return Ok(());
        }
        let wait = match (waiting, self.is_idle()) {
            (0, true) => IDLE_WAIT,
            (0, false) => BUSY_WAIT,
            _ => Duration::ZERO,
        };
        let mut events = Vec::new();
        let polled = self.source.poll(wait, &mut events);
        let now = Instant::now();
        if events.is_empty() && waiting > 0 {
            self.read_at = now + TOP_UP;
        }
        events.into_iter().for_each(|event| self.handle(event)); // also those that came before an error
        match polled {
            Ok(()) => self.reading.over(now),
            Err(e) if e.is_transient() => self.read_at = now + self.reading.failed(&e, now),
            Err(e) => return Err(e),
        }
        Ok(())
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Assigned { partition, offset, metadata } => {
                let (ledger, bad) = PartitionLedger::restore(offset, &metadata);
                if let Some(bad) = bad {
                    warn!(
                        "partition {partition}: committed metadata is not used: {bad}; commands from offset {offset} may run again"
                    );
                }
                debug!("partition {partition} starts at offset {offset}");
                self.ledgers.insert(partition, Partition { ledger, committed: offset });
            }
            Event::Record(record) => self.queue.push_back(record),
            Event::End => self.ended = true,
        }
    }

    /// Takes the next record from the queue that has not been run yet, and opens it.
    fn choose_next(&mut self) {
        while self.next.is_none() {
            let Some(record) = self.queue.pop_front() else { return };
            let Some(partition) = self.ledgers.get_mut(&record.at.partition) else { continue };
            match partition.ledger.admit(record.at.offset) {
                Admission::New => self.next = Some(record),
                other => debug!("passed over {}: {other:?}", record.at),
            }
        }
    }

    fn settle(&mut self, at: &Position) {
        let known = self.ledgers.get_mut(&at.partition).is_some_and(|partition| partition.ledger.settle(at.offset));
        if !known {
            debug!("{at} was settled, but is not open here");
        }
    }

    /// Whether nothing runs and everything is committed.
    fn is_idle(&self) -> bool {
        self.ledgers
            .values()
            .all(|partition| partition.ledger.open() == 0 && partition.ledger.position() == partition.committed)
    }

    /// How long to wait, with nothing to hand over, before the source may be read again.
    fn until_next_read(&self) -> Duration {
        self.read_at.saturating_duration_since(Instant::now())
    }

    fn commit_if_due(&mut self) -> Result<()> {
        match Instant::now() < self.commit_at {
            true => Ok(()),
            false => self.commit().or_else(|e| if e.is_transient() { Ok(()) } else { Err(e) }),
        }
    }

    /// Commits every partition whose position has moved.
    fn commit(&mut self) -> Result<()> {
        let keeps_metadata = self.source.metadata_limit() > 0;
        let moved = self.ledgers.iter().filter(|(_, partition)| partition.ledger.position() > partition.committed);
        let commits: Vec<Commit> = moved
            .map(|(&partition, Partition { ledger, .. })| {
                let metadata = if keeps_metadata { ledger.metadata() } else { String::new() };
                Commit { partition, offset: ledger.position(), metadata }
            })
            .collect();
        if commits.is_empty() {
            return Ok(());
        }
        let result = self.source.commit(&commits);
        let now = Instant::now();
        match &result {
            Ok(()) => {
                self.committing.over(now);
                self.commit_at = now + COMMIT_EVERY;
                for commit in &commits {
                    self.ledgers.entry(commit.partition).and_modify(|partition| partition.committed = commit.offset);
                }
            }
            Err(e) => self.commit_at = now + self.committing.failed(e, now),
        }
        result
    }

    /// The commit at the end, tried for a while.
    fn commit_last(&mut self) -> Result<()> {
        let deadline = Instant::now() + LAST_COMMIT;
        loop {
            match self.commit() {
                Err(e) if e.is_transient() && self.commit_at < deadline && self.shutdown.level() < Level::Kill => {
                    let pause = self.commit_at.saturating_duration_since(Instant::now());
                    let _ = self.shutdown.at(Level::Kill).recv_timeout(pause);
                }
                Err(e) => {
                    warn!("the last commit failed: {e}; commands that have ended may run again");
                    return Err(e);
                }
                Ok(()) => return Ok(()),
            }
        }
    }
}
