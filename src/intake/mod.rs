//! The consumer thread: reads records, hands them to idle threads, settles what is done and commits it.
//!
//! Owns the source and the ledgers. Runs no command, sends no result, and never waits longer than one fetch.

mod partitions;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select};
use log::{debug, error, info, warn};

use crate::broker::outage::Outage;
use crate::broker::{Demand, Event, Position, Record, Source};
use crate::config::Until;
use crate::error::{Kind, Result};
use crate::pool::{Job, Settled};
use crate::shutdown::{Level, Shutdown};
use crate::systemd::Watchdog;
use partitions::{Account, Partitions};

/// How long a fetch may wait while nothing runs: a record that comes ends the wait at once.
const IDLE_WAIT: Duration = Duration::from_millis(500);
/// How long it may wait while commands run: they have to be settled and committed in time.
const BUSY_WAIT: Duration = Duration::from_millis(100);
/// How often it is looked for more while there are still records in the queue.
const TOP_UP: Duration = Duration::from_millis(100);
/// Shortest time between two commits: what a crash in between makes run again is what ended within it.
const COMMIT_EVERY: Duration = Duration::from_millis(50);
/// How often everything is committed though nothing has moved: brokers forget the offsets of a group without members after
/// a week (`offsets.retention.minutes`), and the kafka crate is no member.
const RECOMMIT: Duration = Duration::from_secs(3600);
/// How soon again after the source could not commit for the moment.
const COMMIT_LATER: Duration = Duration::from_millis(20);
/// A drain that takes longer than this hands its partitions over meanwhile.
const HAND_OVER_AFTER: Duration = Duration::from_secs(1);
/// How long the last commit and the farewell are tried.
const LAST_COMMIT: Duration = Duration::from_secs(30);
/// The same, when the worker has to end at once.
const LAST_COMMIT_AT_ONCE: Duration = Duration::from_secs(5);

/// What the consumer thread owns.
pub struct Intake<'a> {
    source: Box<dyn Source>,
    shutdown: &'a Shutdown,
    threads: usize,
    /// Threads that have something to do; they say themselves when they have not.
    busy: Arc<AtomicUsize>,
    /// Somebody wants to know how things stand.
    asked: Arc<AtomicBool>,
    watchdog: Watchdog,
    until: Until,
    /// How many were handed over.
    started: u64,
    /// Since when there was nothing to run.
    idle_since: Option<Instant>,
    partitions: Partitions,
    /// The next one to hand over; open in its ledger, but not started.
    next: Option<Record>,
    /// The source has no more records.
    ended: bool,
    reading: Outage,
    committing: Outage,
    /// Not read before, after trouble.
    retry_at: Instant,
    /// Not read before, while records wait.
    top_up_at: Instant,
    commit_at: Instant,
    recommit_at: Instant,
}

impl<'a> Intake<'a> {
    /// Reads from `source` for `threads` threads, of which `busy` have something to do; logs how things stand when it is `asked`.
    pub fn new(
        source: Box<dyn Source>,
        threads: usize,
        busy: Arc<AtomicUsize>,
        asked: Arc<AtomicBool>,
        until: Until,
        shutdown: &'a Shutdown,
    ) -> Self {
        let now = Instant::now();
        Intake {
            source,
            shutdown,
            threads,
            busy,
            asked,
            watchdog: Watchdog::of_process(),
            until,
            started: 0,
            idle_since: None,
            partitions: Partitions::default(),
            next: None,
            ended: false,
            reading: Outage::new("reading commands"),
            committing: Outage::new("committing offsets"),
            retry_at: now,
            top_up_at: now,
            commit_at: now,
            recommit_at: now + RECOMMIT,
        }
    }

    /// Runs until the drain, or the end of the source; then until all that was handed over is settled and committed.
    pub fn run(mut self, jobs: Sender<Option<Job>>, settled: &Receiver<Settled>) -> Result<()> {
        let taken = self.take_in(&jobs, settled);
        if let Err(e) = &taken {
            error!("{e}; draining");
            self.shutdown.raise(Level::Drain);
        }
        drop(jobs); // the pool ends when its threads are idle
        let next = self.next.take();
        let unstarted = self.partitions.unstarted() + usize::from(next.is_some());
        if unstarted > 0 {
            info!("{unstarted} command(s) that were read but not started stay on the topic");
        }
        let acquired = self.partitions.forget_waiting();
        let next = next.filter(|record| record.lock.is_some()).map(|record| record.place());
        acquired.into_iter().chain(next).for_each(|at| self.source.not_running(at));
        self.finish(settled);
        let left = self.leave();
        taken.and(left)
    }

    /// The loop while work goes on.
    fn take_in(&mut self, jobs: &Sender<Option<Job>>, settled: &Receiver<Settled>) -> Result<()> {
        let (nowhere, _nobody) = bounded(0); // nobody takes from it
        while self.shutdown.level() == Level::Run
            && !(self.ended && self.next.is_none() && self.partitions.unstarted() == 0)
        {
            settled.try_iter().for_each(|settled| self.settle(settled));
            self.goes_round();
            self.read()?;
            if self.next.is_none() {
                self.next = self.partitions.next(self.source.metadata_limit());
            }
            if self.is_enough()? {
                info!(
                    "{} command(s) were started, and that is enough (--once, --idle-exit or --max): ending",
                    self.started
                );
                self.shutdown.raise(Level::Drain);
                break;
            }
            let (out, wait) = match self.next {
                Some(_) => (jobs, TOP_UP),
                None => (&nowhere, self.retry_at.saturating_duration_since(Instant::now())),
            };
            select! {
                // Evaluated only when a thread is there to take it.
                send(out, self.start_next()) -> sent => if sent.is_err() { break },
                recv(settled) -> settled => match settled {
                    Ok(settled) => self.settle(settled),
                    Err(_) => break, // publish gave up
                },
                recv(self.shutdown.at(Level::Drain)) -> _ => {}
                default(wait) => {}
            }
            self.commit_if_due()?; // it waits for the coordinator: not before what has come is handed over
        }
        Ok(())
    }

    /// The record to start, for a thread that has just said it is idle. `None` if the lease has run out: this process
    /// was stopped for a while, or the machine, and others may have our partitions by now.
    fn start_next(&mut self) -> Option<Job> {
        let start_before = self.source.lease();
        if start_before.is_some_and(|until| Instant::now() >= until) {
            return None;
        }
        let record = self.next.take()?;
        self.started += 1;
        self.busy.fetch_add(1, Ordering::AcqRel);
        self.partitions.started(&record);
        Some(Job { record, start_before })
    }

    /// Whether it is time to end without being told.
    fn is_enough(&mut self) -> Result<bool> {
        if self.until == Until::default() {
            return Ok(false);
        }
        if self.until.commands.is_some_and(|most| self.started >= most) {
            return Ok(true);
        }
        // Committed, too: to leave then costs nothing.
        let is_idle = self.next.is_none() && self.partitions.unstarted() == 0 && self.partitions.is_idle();
        self.idle_since = if is_idle { self.idle_since.or_else(|| Some(Instant::now())) } else { None };
        if !is_idle {
            return Ok(false);
        }
        if self.until.once {
            match self.source.has_read_all() {
                Ok(false) => {}
                Err(e) if e.is_transient() => debug!("{e}"), // reading says so, if it lasts
                all => return all,
            }
        }
        Ok(self.until.idle.is_some_and(|most| self.idle_since.is_some_and(|since| since.elapsed() >= most)))
    }

    /// While what runs comes to its end.
    fn finish(&mut self, settled: &Receiver<Settled>) {
        let hand_over_at = Instant::now() + HAND_OVER_AFTER;
        let mut handing_over = false;
        loop {
            self.goes_round();
            match settled.recv_timeout(TOP_UP) {
                Ok(settled) => self.settle(settled),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if !handing_over && Instant::now() >= hand_over_at {
                handing_over = true;
                self.source.drain();
            }
            // Both are logged; neither keeps a command from its end.
            let _ = self.commit_if_due();
            let _ = self.poll(Duration::ZERO, 0);
        }
    }

    /// Reads on when the queue runs low. Waits in the source only if there is nothing else to do.
    fn read(&mut self) -> Result<()> {
        let now = Instant::now();
        if self.ended || now < self.retry_at {
            return Ok(());
        }
        let waiting = self.partitions.waiting(self.source.metadata_limit()) + usize::from(self.next.is_some());
        if waiting > 0 && now < self.top_up_at {
            return Ok(());
        }
        let wait = match (waiting, self.partitions.is_idle()) {
            (0, true) => IDLE_WAIT,
            (0, false) => BUSY_WAIT,
            _ => Duration::ZERO,
        };
        let came = self.poll(wait, self.room(waiting))?;
        if !came {
            self.top_up_at = Instant::now() + TOP_UP;
        }
        Ok(())
    }

    /// How many more records may wait here.
    fn room(&self, waiting: usize) -> usize {
        if self.source.reads_ahead() {
            return self.threads.saturating_sub(waiting);
        }
        // No more than are going to be started: what is given back counts as delivered.
        let idle = self.threads.saturating_sub(self.busy.load(Ordering::Acquire));
        let allowed = self.until.commands.map_or(u64::MAX, |most| most.saturating_sub(self.started));
        idle.min(usize::try_from(allowed).unwrap_or(usize::MAX)).saturating_sub(waiting)
    }

    /// The loop goes round: time to tell those who want to know of it.
    fn goes_round(&mut self) {
        self.watchdog.feed();
        if self.asked.swap(false, Ordering::AcqRel) {
            self.tell();
        }
    }

    /// How things stand, for the log.
    fn tell(&self) {
        let (started, busy) = (self.started, self.busy.load(Ordering::Acquire));
        let waiting = self.partitions.unstarted() + usize::from(self.next.is_some());
        let (partitions, source) = (self.partitions.status(), self.source.status());
        let rest: String =
            [partitions, source].iter().filter(|text| !text.is_empty()).map(|text| format!("; {text}")).collect();
        info!(
            "status: {started} command(s) started, {busy} of {} thread(s) busy, {waiting} waiting{rest}",
            self.threads
        );
    }

    /// Lets the source work, and takes what it has to say. Returns whether that was anything.
    fn poll(&mut self, wait: Duration, want: usize) -> Result<bool> {
        let paused = self.partitions.paused(self.source.metadata_limit());
        let mut events = Vec::new();
        let polled =
            self.source.poll(wait, &Demand { want, paused: &paused, running: self.partitions.running() }, &mut events);
        let came = !events.is_empty();
        events.into_iter().for_each(|event| self.handle(event)); // also those that came before an error
        let now = Instant::now();
        match polled {
            Ok(()) => self.reading.over(now),
            Err(e) if e.is_transient() => self.retry_at = now + self.reading.failed(&e, now),
            Err(e) => return Err(e),
        }
        Ok(came)
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Assigned { partition, offset, metadata } => {
                debug!("partition {partition} starts at offset {offset}");
                self.partitions.assign(partition, offset, &metadata);
            }
            Event::Record(record) => self.partitions.push(record),
            Event::Acquired(record) => self.partitions.acquire(record),
            Event::Revoked { partition } => {
                debug!("partition {partition} is revoked");
                self.next.take_if(|next| next.at.partition == partition);
                self.partitions.revoke(partition);
                self.commit_at = Instant::now(); // others wait for it
            }
            Event::Lost => {
                self.next = None;
                for (partition, settled) in self.partitions.lose_all() {
                    settled.iter().for_each(|run| self.source.done_elsewhere(partition, run.clone()));
                }
            }
            Event::Claims { partition, running, done } => {
                if !running.is_empty() || !done.is_empty() {
                    debug!("partition {partition}: others run {running:?}, and have run {done:?}");
                }
                self.partitions.set_claims(partition, &running, &done);
            }
            Event::End => self.ended = true,
        }
    }

    fn settle(&mut self, settled: Settled) {
        match settled {
            Settled::Reported { at: Position { partition, offset, .. }, unfit } => {
                if self.partitions.settle((partition, offset)) == Account::Elsewhere {
                    match unfit {
                        true => self.source.rejected_elsewhere((partition, offset)),
                        false => self.source.done_elsewhere(partition, offset..offset + 1),
                    }
                }
            }
            Settled::NotStarted(record) => {
                let at = record.place();
                if self.partitions.put_back(record) == Account::Elsewhere {
                    self.source.not_running(at);
                }
            }
            Settled::Lost(at) => self.partitions.lost((at.partition, at.offset)),
        }
    }

    /// Commits if there is something and it is time. An error is one that waiting will not mend.
    fn commit_if_due(&mut self) -> Result<()> {
        match Instant::now() < self.commit_at {
            true => Ok(()),
            false => self.commit().map(drop).or_else(|e| if e.is_transient() { Ok(()) } else { Err(e) }),
        }
    }

    /// Commits every partition that has changed. Returns whether nothing is left to commit.
    fn commit(&mut self) -> Result<bool> {
        let now = Instant::now();
        let all = now >= self.recommit_at;
        let commits = self.partitions.commits(self.source.metadata_limit() > 0, all);
        if commits.is_empty() {
            return Ok(true);
        }
        let result = self.source.commit(&commits);
        let now = Instant::now();
        match result {
            Ok(()) => {
                self.committing.over(now);
                self.commit_at = now + COMMIT_EVERY;
                if all {
                    self.recommit_at = now + RECOMMIT;
                }
                for partition in self.partitions.committed(&commits) {
                    self.source.released(partition);
                }
                Ok(true)
            }
            Err(e) => {
                let pause = self.committing.failed(&e, now);
                self.commit_at = now + if e.kind() == Kind::Later { COMMIT_LATER } else { pause };
                Err(e)
            }
        }
    }

    /// The last commit, and the farewell; tried for a while.
    fn leave(&mut self) -> Result<()> {
        let deadline =
            Instant::now() + if self.shutdown.level() == Level::Kill { LAST_COMMIT_AT_ONCE } else { LAST_COMMIT };
        loop {
            self.watchdog.feed();
            let left = self.commit().and_then(|_| self.source.leave());
            let pause = match left {
                Ok(true) => return Ok(()),
                Ok(false) => Duration::ZERO,
                Err(e) if e.is_transient() && Instant::now() < deadline => {
                    self.commit_at.saturating_duration_since(Instant::now())
                }
                Err(e) => {
                    warn!("leaving without the last commit: {e}; commands that have ended may run again");
                    return Err(e);
                }
            };
            if Instant::now() >= deadline {
                warn!(
                    "leaving although the group was not told everything in time; commands that have ended may run again"
                );
                return Ok(());
            }
            self.poll(pause.max(COMMIT_LATER), 0)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Commit;

    /// Has one record, and counts how often it is asked.
    struct Scanty(Arc<AtomicUsize>);

    impl Source for Scanty {
        fn poll(&mut self, _: Duration, _: &Demand<'_>, events: &mut Vec<Event>) -> Result<()> {
            if self.0.fetch_add(1, Ordering::Relaxed) == 0 {
                events.push(Event::Assigned { partition: 0, offset: 0, metadata: String::new() });
                let at = Position { topic: "t".into(), partition: 0, offset: 0 };
                events.push(Event::Record(Record::new(at, None, None)));
            }
            Ok(())
        }

        fn commit(&mut self, _: &[Commit]) -> Result<()> {
            Ok(())
        }

        fn metadata_limit(&self) -> usize {
            4096
        }
    }

    #[test]
    fn reading_goes_on_at_once_when_nothing_waits_any_more() {
        let (asked, shutdown) = (Arc::new(AtomicUsize::new(0)), Shutdown::default());
        let mut intake = Intake::new(
            Box::new(Scanty(asked.clone())),
            2,
            Arc::default(),
            Arc::default(),
            Until::default(),
            &shutdown,
        );
        intake.read().unwrap();
        intake.next = intake.partitions.next(4096);
        assert!(intake.next.is_some());
        intake.read().unwrap(); // brings nothing: looked again after a pause, as long as that one waits
        assert!(intake.top_up_at > Instant::now() - TOP_UP);
        assert!(intake.start_next().is_some());
        let before = asked.load(Ordering::Relaxed);
        intake.top_up_at = Instant::now() + Duration::from_secs(3600);
        intake.read().unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), before + 1);
    }
}
