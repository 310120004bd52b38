//! The pool: N threads, each of which takes a record, has its command run and sends what came of it.
//! A record that is not started after all goes back to the consumer thread.
//!
//! A thread survives anything a record can do, a panic of ours included. It ends when `jobs` is closed, or when there is
//! nobody left to send to.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};
use log::{debug, error, info, warn};

use crate::broker::acquisition::Holding;
use crate::broker::waker::Waker;
use crate::broker::{Position, Record};
use crate::error::{Error, Kind, Result, os_text};
use crate::exec::{Ran, Runner};
use crate::record::{Finished, Outcome, State, printable, show_key};

/// The way back to the consumer thread: what became of records, and how many threads are busy.
#[derive(Clone, Debug)]
pub struct Returns {
    settled: Sender<Settled>,
    busy: Arc<AtomicUsize>,
    /// Rung where the consumer thread waits for more than the channel.
    waker: Option<Arc<Waker>>,
}

impl Returns {
    /// Through `settled`; `busy` counts the threads that have something to do.
    pub fn new(settled: Sender<Settled>, busy: Arc<AtomicUsize>, waker: Option<Arc<Waker>>) -> Returns {
        Returns { settled, busy, waker }
    }

    /// A record is settled, or not started. If the consumer thread is gone, nothing will be committed any more.
    pub fn settle(&self, settled: Settled) {
        let _ = self.settled.send(settled);
        self.wake();
    }

    /// A thread has nothing to do any more.
    fn idle(&self) {
        self.busy.fetch_sub(1, Ordering::AcqRel);
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake();
        }
    }
}

/// A record to run.
#[derive(Debug)]
pub struct Job {
    /// The record.
    pub record: Record,
    /// From then on it is not to be started: its partition may be another worker's.
    pub start_before: Option<Instant>,
}

impl Job {
    /// Whether it is too late to start it.
    pub fn is_late(&self) -> bool {
        self.start_before.is_some_and(|before| Instant::now() >= before)
            || self.record.lock.as_ref().is_some_and(|lock| lock.holding() != Holding::Ours)
    }
}

/// What the consumer thread gets back.
#[derive(Debug)]
pub enum Settled {
    /// Its result is acknowledged.
    Reported {
        /// The record.
        at: Position,
        /// Whether it can never be run.
        unfit: bool,
    },
    /// Not started.
    NotStarted(Record),
    /// It was ours no more while it ran; nothing is reported.
    Lost(Position),
}

/// Starts `threads` threads named `airkafka-exec-N`. `failed` gets to know if any command has.
pub fn start(
    threads: usize,
    runner: &Arc<Runner>,
    jobs: &Receiver<Option<Job>>,
    outcomes: &Sender<Finished>,
    returns: &Returns,
    failed: &Arc<AtomicBool>,
) -> Result<Vec<JoinHandle<()>>> {
    (0..threads)
        .map(|slot| {
            let (runner, jobs, outcomes) = (runner.clone(), jobs.clone(), outcomes.clone());
            let (returns, failed) = (returns.clone(), failed.clone());
            thread::Builder::new()
                .name(format!("airkafka-exec-{slot}"))
                .spawn(move || work(slot, &runner, &jobs, &outcomes, &returns, &failed))
                .map_err(|e| {
                    Error::new(
                        Kind::Unexpected,
                        format!("cannot start thread {} of {threads}: {}", slot + 1, os_text(&e)),
                    )
                    .hint("give fewer --threads or raise the limits (ulimit -u)")
                })
        })
        .collect()
}

fn work(
    slot: usize,
    runner: &Runner,
    jobs: &Receiver<Option<Job>>,
    outcomes: &Sender<Finished>,
    returns: &Returns,
    failed: &AtomicBool,
) {
    for job in jobs {
        let Some(job) = job else { continue }; // there was one, but it is not ours to start any more
        let is_heard = run(job, slot, runner, outcomes, returns, failed);
        returns.idle();
        if !is_heard {
            return;
        }
    }
}

/// Runs one job, and sends on what came of it. Returns whether there is somebody left to send to.
fn run(
    job: Job,
    slot: usize,
    runner: &Runner,
    outcomes: &Sender<Finished>,
    returns: &Returns,
    failed: &AtomicBool,
) -> bool {
    let ran = catch_unwind(AssertUnwindSafe(|| runner.run(&job, slot))).unwrap_or_else(|_| {
        error!("{}: the worker failed on this record; please report it with the lines above", job.record.at);
        Ran::Done(Box::new(runner.panicked(&job.record)))
    });
    let mut record = job.record;
    let outcome = match ran {
        Ran::Done(outcome) => *outcome,
        Ran::Aborted => {
            debug!("aborted {}: it will run again", record.at);
            return true;
        }
        Ran::TooLate => {
            debug!("not started {}: it may be another worker's by now", record.at);
            returns.settle(Settled::NotStarted(record));
            return true;
        }
        Ran::Lost => {
            warn!(
                "{} key={} is not reported: it is another worker's by now",
                record.at,
                show_key(record.key.as_deref())
            );
            returns.settle(Settled::Lost(record.at));
            return true;
        }
    };
    report(&record, &outcome);
    if outcome.state == State::Failed {
        failed.store(true, Ordering::Relaxed);
    }
    if !outcome.reason.is_unfit() {
        record.value = None; // only a dead letter needs it
    }
    outcomes.send(Finished { record, outcome }).is_ok()
}

/// The one line a command leaves in the log. Never its arguments, environment or stdin: secrets travel there.
fn report(record: &Record, outcome: &Outcome) {
    let (key, state, reason) = (show_key(record.key.as_deref()), outcome.state.as_str(), outcome.reason.as_str());
    let mut line = format!("{} state={state} reason={reason}", record.at);
    for (name, value) in [("exit", outcome.exit_code), ("signal", outcome.signal)] {
        if let Some(value) = value {
            line.push_str(&format!(" {name}={value}"));
        }
    }
    line.push_str(&format!(" ms={} key={key}", outcome.duration_ms));
    if let Some(error) = &outcome.error {
        line.push_str(": ");
        line.push_str(error);
    }
    match outcome.state {
        State::Success => info!("{line}"),
        State::Failed => warn!("{line}"),
    }
    if !outcome.tail.is_empty() {
        debug!("{} output ends: {}", record.at, printable(&outcome.tail));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::exec::registry::Registry;
    use crossbeam_channel::unbounded;
    use std::time::Duration;

    #[test]
    fn what_may_not_be_started_any_more_goes_back_and_leaves_no_trace() {
        let dir = tempfile::tempdir().unwrap();
        let exec = config::Exec {
            timeout: None,
            grace: Duration::from_secs(1),
            shell: None,
            airflow: None,
            output_dir: Some(dir.path().into()),
            output_limit: None,
            tail_bytes: 0,
            on_lost_lock: config::OnLostLock::Stop,
            max_deliveries: 5,
        };
        let runner = Arc::new(Runner::new(exec, Arc::default(), Arc::new(Registry::new(1)), None));
        let ((jobs_in, jobs), (outcomes_in, outcomes), (settled_in, settled)) = (unbounded(), unbounded(), unbounded());
        let now = Instant::now();
        let late = Some(now);
        let jobs_to_be = [
            (0, r#"["true"]"#, late),
            (1, "no command", late),
            (2, r#"["true"]"#, None),
            (3, r#"["true"]"#, Some(now + Duration::from_secs(3600))),
        ];
        for (offset, value, start_before) in jobs_to_be {
            let at = Position { topic: "t".into(), partition: 0, offset };
            let record = Record::new(at, None, Some(value.into()));
            jobs_in.send(Some(Job { record, start_before })).unwrap();
        }
        drop(jobs_in);
        let returns = Returns::new(settled_in, Arc::new(AtomicUsize::new(4)), None);
        let threads = start(1, &runner, &jobs, &outcomes_in, &returns, &Arc::default()).unwrap();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        drop((outcomes_in, returns));
        let back: Vec<i64> = settled
            .iter()
            .map(|settled| match settled {
                Settled::NotStarted(record) => record.at.offset,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(back, [0, 1]);
        assert_eq!(outcomes.iter().map(|done| done.record.at.offset).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "outputs");
    }
}
