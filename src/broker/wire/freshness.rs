//! Whether what is known of a topic's leaders still holds: when to ask the cluster again, and the asking.
//!
//! Whoever reads a topic has one. It asks when somebody has met a leader that is none, and after a while in any case.

use std::time::{Duration, Instant};

use log::debug;

use super::cluster::{Cluster, Purpose};

/// How often, at most, the cluster is asked.
pub const REFRESH_PAUSE: Duration = Duration::from_millis(100);
/// How soon again after it did not answer.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// When to ask again who leads.
#[derive(Debug)]
pub struct Freshness {
    /// It is to be asked, and not before the time given.
    stale: Option<Instant>,
    refreshed: Instant,
    /// After this time it is asked anyway.
    max_age: Duration,
}

impl Freshness {
    /// Of what was asked just now.
    pub fn new(max_age: Duration) -> Freshness {
        Freshness { stale: None, refreshed: Instant::now(), max_age }
    }

    /// A leader is none (any more): asked again soon.
    pub fn mark_stale(&mut self) {
        self.stale.get_or_insert(self.refreshed + REFRESH_PAUSE);
    }

    /// There is no leader: asked again at the time that `at` gives, unless it is to be asked already.
    pub fn mark_stale_at(&mut self, at: impl FnOnce() -> Instant) {
        self.stale.get_or_insert_with(at);
    }

    /// When it is to be asked.
    pub fn due(&self) -> Option<Instant> {
        self.stale
    }

    /// Asks if it is time. Returns whether it was.
    pub fn refresh(&mut self, cluster: &mut Cluster, topic: &str) -> bool {
        let now = Instant::now();
        if self.refreshed + self.max_age <= now {
            self.stale.get_or_insert(now);
        }
        if self.stale.is_none_or(|at| now < at) {
            return false;
        }
        self.refreshed = now;
        self.stale = match cluster.refresh(&[topic], Purpose::Read) {
            Ok(()) => None,
            Err(e) => {
                debug!("{e}"); // whoever cannot do without will say so
                Some(now + RETRY_PAUSE)
            }
        };
        true
    }
}
