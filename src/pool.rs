//! The pool: N threads, each of which takes a record, has its command run and sends what came of it.
//!
//! A thread survives anything a record can do, a panic of ours included. It ends when `jobs` is closed, or when there is
//! nobody left to send to.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender};
use log::{debug, error, info, warn};

use crate::broker::Record;
use crate::error::{Error, Kind, Result, os_text};
use crate::exec::Runner;
use crate::record::{Finished, Outcome, Reason, State, printable, show_key};

/// Starts `threads` threads named `airkafka-exec-N`.
pub fn start(
    threads: usize,
    runner: &Arc<Runner>,
    jobs: &Receiver<Option<Record>>,
    outcomes: &Sender<Finished>,
) -> Result<Vec<JoinHandle<()>>> {
    (0..threads)
        .map(|slot| {
            let (runner, jobs, outcomes) = (runner.clone(), jobs.clone(), outcomes.clone());
            thread::Builder::new()
                .name(format!("airkafka-exec-{slot}"))
                .spawn(move || work(slot, &runner, &jobs, &outcomes))
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

fn work(slot: usize, runner: &Runner, jobs: &Receiver<Option<Record>>, outcomes: &Sender<Finished>) {
    for record in jobs {
        let Some(mut record) = record else { continue }; // there was one, but it is not ours to start any more
        let outcome = catch_unwind(AssertUnwindSafe(|| runner.run(&record, slot))).unwrap_or_else(|_| {
            error!("{}: the worker failed on this record; please report it with the lines above", record.at);
            Some(runner.panicked(&record))
        });
        let Some(outcome) = outcome else {
            debug!("aborted {}: it will run again", record.at);
            continue;
        };
        report(&record, &outcome);
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
