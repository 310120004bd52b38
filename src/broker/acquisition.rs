//! The acquisition lock of a record from a share group (KIP-932), as far as this worker knows of it.
//!
//! Written by the consumer thread, which renews it; read by the thread that runs the command, before it starts it, while
//! it runs, and before it reports it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// The value for a lock that another worker may have.
const LOST: u64 = u64::MAX;

/// A lock that is ours until a time, unless it is renewed.
#[derive(Debug)]
pub struct AcquisitionLock {
    /// Until when, in nanoseconds since this process first asked; or [`LOST`].
    until: AtomicU64,
}

/// Whose the record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holding {
    /// Ours.
    Ours,
    /// Perhaps not any more: its time is over, or the broker was lost. It may yet turn out to be ours.
    InDoubt,
    /// Not ours any more: it runs elsewhere, or will.
    Lost,
}

impl AcquisitionLock {
    /// Ours until `until`.
    pub fn new(until: Instant) -> Arc<AcquisitionLock> {
        Arc::new(AcquisitionLock { until: AtomicU64::new(nanos(until)) })
    }

    /// Ours until `until`, from now on; what is lost stays lost.
    pub fn extend(&self, until: Instant) {
        self.change(nanos(until));
    }

    /// Nobody knows until it is [extended](Self::extend) or [lost](Self::lose).
    pub fn doubt(&self) {
        self.change(0);
    }

    /// Not ours any more.
    pub fn lose(&self) {
        self.until.store(LOST, Ordering::Release);
    }

    /// Whose it is now.
    pub fn holding(&self) -> Holding {
        match self.until.load(Ordering::Acquire) {
            LOST => Holding::Lost,
            until if until > nanos(Instant::now()) => Holding::Ours,
            _ => Holding::InDoubt,
        }
    }

    fn change(&self, until: u64) {
        let keep_lost = |current| (current != LOST).then_some(until);
        let _ = self.until.fetch_update(Ordering::AcqRel, Ordering::Acquire, keep_lost);
    }
}

fn nanos(at: Instant) -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let since = at.saturating_duration_since(*START.get_or_init(Instant::now)).max(Duration::from_nanos(1));
    u64::try_from(since.as_nanos()).unwrap_or(LOST).min(LOST - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_ours_until_its_time_is_over_and_once_lost_stays_lost() {
        let now = Instant::now();
        let lock = AcquisitionLock::new(now + Duration::from_secs(3600));
        assert_eq!(lock.holding(), Holding::Ours);
        lock.extend(now);
        assert_eq!(lock.holding(), Holding::InDoubt);
        lock.extend(now + Duration::from_secs(3600));
        assert_eq!(lock.holding(), Holding::Ours);
        lock.doubt();
        assert_eq!(lock.holding(), Holding::InDoubt);
        lock.lose();
        lock.extend(now + Duration::from_secs(3600));
        assert_eq!(lock.holding(), Holding::Lost);
    }
}
