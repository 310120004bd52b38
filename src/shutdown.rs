//! How far the ending has come: a [`Level`] that only grows, and a way to be woken when it does.
//!
//! Set by the signal thread and by the drain timer in `app`; read by every thread. Blocks nobody.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};

/// How far the ending has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// Work goes on.
    Run = 0,
    /// Take nothing new, finish what runs, report it, leave.
    Drain = 1,
    /// Stop the commands that run; what they did is neither reported nor settled.
    Kill = 2,
}

/// The shared level. Raising it wakes every holder of a [`Shutdown::at`] receiver.
#[derive(Debug)]
pub struct Shutdown {
    level: AtomicU8,
    // Never sent on: dropping the sender closes the channel, which wakes all receivers at once. Locked only in `raise`.
    senders: Mutex<[Option<Sender<()>>; 2]>,
    drain: Receiver<()>,
    kill: Receiver<()>,
}

impl Default for Shutdown {
    fn default() -> Self {
        let (drain_tx, drain) = bounded(0);
        let (kill_tx, kill) = bounded(0);
        Shutdown {
            level: AtomicU8::new(Level::Run as u8),
            senders: Mutex::new([Some(drain_tx), Some(kill_tx)]),
            drain,
            kill,
        }
    }
}

impl Shutdown {
    /// How far the ending has come.
    pub fn level(&self) -> Level {
        match self.level.load(Ordering::Acquire) {
            0 => Level::Run,
            1 => Level::Drain,
            _ => Level::Kill,
        }
    }

    /// Raises the level; never lowers it.
    pub fn raise(&self, to: Level) {
        self.level.fetch_max(to as u8, Ordering::AcqRel);
        let mut senders = self.senders.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        for sender in senders.iter_mut().take(to as usize) {
            *sender = None;
        }
    }

    /// A channel that disconnects when `level` is reached; nothing is ever sent on it. `Run` has none.
    pub fn at(&self, level: Level) -> &Receiver<()> {
        match level {
            Level::Run | Level::Drain => &self.drain,
            Level::Kill => &self.kill,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_only_grows_and_wakes_who_waits() {
        let shutdown = Shutdown::default();
        assert_eq!(shutdown.level(), Level::Run);
        shutdown.raise(Level::Drain);
        assert_eq!(shutdown.level(), Level::Drain);
        assert!(shutdown.at(Level::Drain).recv().is_err());
        assert_eq!(shutdown.at(Level::Kill).try_recv(), Err(crossbeam_channel::TryRecvError::Empty));
        shutdown.raise(Level::Kill);
        shutdown.raise(Level::Drain);
        assert_eq!(shutdown.level(), Level::Kill);
        assert!(shutdown.at(Level::Kill).recv().is_err());
    }
}
