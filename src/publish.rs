//! The publish thread: takes outcomes, writes their results, and says which offsets are settled.
//!
//! An offset is settled when, and only when, everything that is to be written for it was acknowledged. What could not be
//! written is kept and written again; the command is never run again for it. Does not decide what is done or committed.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError, never, select};
use log::{error, warn};

use crate::broker::outage::Outage;
use crate::broker::{Outgoing, Sink};
use crate::error::{Error, Result};
use crate::pool::{Returns, Settled};
use crate::record::{self, Finished, ResultStyle};
use crate::shutdown::{Level, Shutdown};

/// Results that are written at once, at the most.
const BATCH: usize = 500;

/// What the publish thread owns.
pub struct Publisher<'a> {
    /// Where results go.
    pub sink: Box<dyn Sink>,
    /// What they look like.
    pub style: ResultStyle,
    /// Whether there is a topic for records that are no command.
    pub dead_letter: bool,
    /// The shared level.
    pub shutdown: &'a Shutdown,
}

impl Publisher<'_> {
    /// Runs until `outcomes` is closed and everything is written. Returns an error if it had to give up: the results that
    /// were not written are not settled, so their commands run again.
    pub fn run(mut self, outcomes: &Receiver<Finished>, returns: &Returns) -> Result<()> {
        let mut outage = Outage::new("writing results");
        let mut unsent = Vec::new();
        let mut refusal: Option<Error> = None; // an error that waiting will not mend
        loop {
            if unsent.is_empty() {
                match outcomes.recv() {
                    Ok(finished) => self.take(finished, &mut unsent),
                    Err(_) => return refusal.map_or(Ok(()), Err),
                }
            }
            let mut closed = false;
            // Once refused we take whatever comes, so that running commands can end; there are no new ones.
            while unsent.len() < BATCH || refusal.is_some() {
                match outcomes.try_recv() {
                    Ok(finished) => self.take(finished, &mut unsent),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => {
                        closed = true;
                        break;
                    }
                }
            }
            let failure = self.send(&mut unsent, returns).err();
            let Some(failure) = failure else {
                outage.over(Instant::now());
                continue;
            };
            if refusal.is_none() && !failure.is_transient() {
                error!("results cannot be written: {failure}; draining");
                self.shutdown.raise(Level::Drain);
                refusal = Some(failure.clone());
            }
            let pause = outage.failed(&failure, Instant::now());
            let gives_up = closed && refusal.is_some();
            if gives_up || !self.pause(pause, closed || unsent.len() >= BATCH, outcomes, &mut unsent) {
                warn!("{} result(s) could not be written; their commands will run again", unsent.len());
                return Err(refusal.unwrap_or(failure));
            }
        }
    }

    /// Waits before the next try, no longer than until there is something new to write: what hinders one result need not
    /// hinder the next. False: told to end at once.
    fn pause(&self, pause: Duration, full: bool, outcomes: &Receiver<Finished>, unsent: &mut Vec<Outgoing>) -> bool {
        let nothing = never();
        select! {
            recv(self.shutdown.at(Level::Kill)) -> _ => return false,
            recv(if full { &nothing } else { outcomes }) -> finished => {
                if let Ok(finished) = finished {
                    self.take(finished, unsent);
                }
            }
            default(pause) => {}
        }
        true
    }

    fn take(&self, finished: Finished, unsent: &mut Vec<Outgoing>) {
        unsent.extend(record::encode(finished, self.style, self.dead_letter));
    }

    /// Sends, and settles what was acknowledged.
    fn send(&mut self, unsent: &mut Vec<Outgoing>, returns: &Returns) -> Result<()> {
        let mut positions: Vec<_> = unsent.iter().map(|out| (out.at.clone(), out.unfit)).collect();
        positions.dedup(); // a dead letter stands beside its result
        let sent = self.sink.send(unsent);
        let left: HashSet<(i32, i64)> = unsent.iter().map(|out| (out.at.partition, out.at.offset)).collect();
        for (at, unfit) in positions {
            if !left.contains(&(at.partition, at.offset)) {
                returns.settle(Settled::Reported { at, unfit });
            }
        }
        sent
    }
}
