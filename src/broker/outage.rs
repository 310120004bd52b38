//! Trouble with a broker over time: how long to wait before the next try, and what to log when the state changes.
//!
//! The consumer and the publish thread own one each; time is passed in, but for [`patiently`].

use std::collections::HashSet;
use std::time::{Duration, Instant};

use log::warn;

use crate::error::{Error, Kind, Result};

/// The first pause; it doubles with each failure.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause: what has come back is found again within this time.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How long what happens in the ordinary course of things (a coordinator that starts, a rebalance) may last unsaid.
const OF_COURSE: Duration = Duration::from_secs(3);

/// An ongoing or past trouble with one activity.
#[derive(Debug)]
pub struct Outage {
    activity: &'static str,
    since: Option<Instant>,
    failures: u32,
    /// What was said of this outage: each message once, though they may alternate.
    told: HashSet<String>,
}

impl Outage {
    /// Of `activity`, as it is to be named in the log ("reading commands").
    pub fn new(activity: &'static str) -> Self {
        Outage { activity, since: None, failures: 0, told: HashSet::new() }
    }

    /// It failed at `now`. Logged if this is news, and no matter of course. Returns how long to wait before the next try.
    pub fn failed(&mut self, error: &Error, now: Instant) -> Duration {
        let since = *self.since.get_or_insert(now);
        let told = error.to_string();
        let of_course = error.kind() == Kind::Later && now.duration_since(since) < OF_COURSE;
        if !of_course && !self.told.contains(&told) {
            warn!("{} fails: {told}; trying again", self.activity);
            self.told.insert(told);
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(10)).min(LONGEST_PAUSE);
        self.failures += 1;
        pause
    }

    /// It went well at `now`. Logged if it had failed before.
    pub fn over(&mut self, now: Instant) {
        let Some(since) = self.since.take() else { return };
        self.failures = 0;
        if !self.told.is_empty() {
            self.told.clear();
            warn!("{} works again after {:.1} s", self.activity, now.duration_since(since).as_secs_f64());
        }
    }
}

/// Tries `attempt` until it succeeds, or waiting does not help, or `patience` is over. `pause` waits so long, or says that
/// it is not to be tried again: then `None`.
pub fn patiently<T>(
    activity: &'static str,
    patience: Duration,
    mut pause: impl FnMut(Duration) -> bool,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<Option<T>> {
    let deadline = Instant::now() + patience;
    let mut outage = Outage::new(activity);
    loop {
        match attempt() {
            Ok(done) => {
                outage.over(Instant::now());
                return Ok(Some(done));
            }
            Err(e) if !e.is_transient() || Instant::now() >= deadline => return Err(e),
            Err(e) if pause(outage.failed(&e, Instant::now())) => {}
            Err(_) => return Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_grows_to_its_limit_and_starts_over() {
        let mut outage = Outage::new("testing");
        let (now, error) = (Instant::now(), Error::new(Kind::Unavailable, "down"));
        let pauses: Vec<u128> = (0..8).map(|_| outage.failed(&error, now).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 2000, 2000, 2000]);
        (0..100).for_each(|_| assert_eq!(outage.failed(&error, now), LONGEST_PAUSE));
        outage.over(now);
        assert_eq!(outage.failed(&error, now), FIRST_PAUSE);
    }
}
