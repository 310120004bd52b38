//! The pool: N threads, each of which takes a record, has its command run and sends what came of it.
//! A record that is not started after all goes back to the consumer thread.
//!
//! A thread survives anything a record can do, a panic of ours included. It ends when `jobs` is closed, or when there is
//! nobody left to send to.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};
use log::{debug, error, info, warn};

use crate::broker::{Position, Record};
use crate::error::{Error, Kind, Result, os_text};
use crate::exec::{Ran, Runner};
use crate::record::{Finished, Outcome, Reason, State, printable, show_key};

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
    }
}

/// What the consumer thread gets back.
#[derive(Debug)]
pub enum Settled {
    /// Its result is acknowledged.
    Reported(Position),
    /// Not started.
    NotStarted(Record),
}

/// Starts `threads` threads named `airkafka-exec-N`. `failed` gets to know if any command has.
pub fn start(
    threads: usize,
    runner: &Arc<Runner>,
    jobs: &Receiver<Option<Job>>,
    outcomes: &Sender<Finished>,
    settled: &Sender<Settled>,
    failed: &Arc<AtomicBool>,
) -> Result<Vec<JoinHandle<()>>> {
    (0..threads)
        .map(|slot| {
            let (runner, jobs, outcomes) = (runner.clone(), jobs.clone(), outcomes.clone());
            let (settled, failed) = (settled.clone(), failed.clone());
            thread::Builder::new()
                .name(format!("airkafka-exec-{slot}"))
                .spawn(move || work(slot, &runner, &jobs, &outcomes, &settled, &failed))
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
    settled: &Sender<Settled>,
    failed: &AtomicBool,
) {
    for job in jobs {
        let Some(job) = job else { continue }; // there was one, but it is not ours to start any more
        let ran = catch_unwind(AssertUnwindSafe(|| runner.run(&job, slot))).unwrap_or_else(|_| {
            error!("{}: the worker failed on this record; please report it with the lines above", job.record.at);
            Ran::Done(Box::new(runner.panicked(&job.record)))
        });
        let mut record = job.record;
        let outcome = match ran {
            Ran::Done(outcome) => *outcome,
            Ran::Aborted => {
                debug!("aborted {}: it will run again", record.at);
                continue;
            }
            Ran::TooLate => {
                debug!("not started {}: its partition may be another worker's by now", record.at);
                let _ = settled.send(Settled::NotStarted(record)); // the consumer gave up
                continue;
            }
        };
        report(&record, &outcome);
        if outcome.state == State::Failed {
            failed.store(true, Ordering::Relaxed);
        }
        if outcome.reason != Reason::Invalid {
            record.value = None; // only a dead letter needs it
        }
        if outcomes.send(Finished { record, outcome }).is_err() {
            return;
        }
    }
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
            let record = Record { at, key: None, value: Some(value.into()), timestamp_ms: None, attempt: None };
            jobs_in.send(Some(Job { record, start_before })).unwrap();
        }
        drop(jobs_in);
        let threads = start(1, &runner, &jobs, &outcomes_in, &settled_in, &Arc::default()).unwrap();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        drop((outcomes_in, settled_in));
        let back: Vec<i64> = settled
            .iter()
            .map(|settled| match settled {
                Settled::NotStarted(record) => record.at.offset,
                Settled::Reported(at) => panic!("{at}"),
            })
            .collect();
        assert_eq!(back, [0, 1]);
        assert_eq!(outcomes.iter().map(|done| done.record.at.offset).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "outputs");
    }
}
