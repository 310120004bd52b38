//! Which processes are the leaders of running commands, so that orphans can be told from them and reaped.
//!
//! As their subreaper (see prctl(2)) we inherit what commands leave behind. Such an orphan has to be reaped, but never a
//! leader: its exit status belongs to the thread that waits for it. Each pool thread writes only its own slot; spawning
//! holds the gate shared, from before the process exists until its slot says so; reaping holds it exclusively.

use std::io;
use std::process::Child;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard, RwLock};

use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, waitpid};

use crate::sys;

/// One slot per pool thread; 0: it runs nothing.
#[derive(Debug)]
pub struct Registry {
    gate: RwLock<()>,
    slots: Box<[AtomicI32]>,
    /// Other children of ours, which run no command.
    helpers: Mutex<Vec<i32>>,
}

impl Registry {
    /// For `threads` threads, numbered from 0.
    pub fn new(threads: usize) -> Self {
        let slots = (0..threads).map(|_| AtomicI32::new(0)).collect();
        Registry { gate: RwLock::new(()), slots, helpers: Mutex::default() }
    }

    /// Runs `spawn` and enters the leader it made.
    pub fn enter(&self, slot: usize, spawn: impl FnOnce() -> io::Result<Child>) -> io::Result<Child> {
        let _gate = self.gate.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        let child = spawn()?;
        self.slots[slot].store(child.id().cast_signed(), Ordering::Release);
        Ok(child)
    }

    /// The leader of `slot` has been reaped, or given up.
    pub fn leave(&self, slot: usize) {
        self.slots[slot].store(0, Ordering::Release);
    }

    /// Runs `spawn` and enters the helper it made: whoever has it reaps it.
    pub fn enter_helper(&self, spawn: impl FnOnce() -> io::Result<Child>) -> io::Result<Child> {
        let _gate = self.gate.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        let child = spawn()?;
        self.helpers().push(child.id().cast_signed());
        Ok(child)
    }

    /// The helper has been reaped.
    pub fn leave_helper(&self, pid: u32) {
        self.helpers().retain(|&helper| helper != pid.cast_signed());
    }

    fn helpers(&self) -> MutexGuard<'_, Vec<i32>> {
        self.helpers.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Reaps the orphans that have ended. To be called now and then; costs one system call when there are none.
    pub fn reap_orphans(&self) {
        let _gate = self.gate.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        // A dead leader that its thread has not reaped yet may hide an orphan behind it: that one is met next time.
        while let Some(pid) = sys::peek_dead_child().filter(|&pid| !self.is_leader(pid)) {
            if !matches!(waitpid(Some(pid), WaitOptions::NOHANG), Ok(Some(_))) {
                break;
            }
        }
    }

    /// Kills the process group of every leader: for the exit at once, when nobody will wait for them any more.
    pub fn kill_all(&self) {
        let _gate = self.gate.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        for pid in self.slots.iter().filter_map(|slot| Pid::from_raw(slot.load(Ordering::Acquire))) {
            let _ = kill_process_group(pid, Signal::KILL); // it may have ended just now
        }
    }

    fn is_leader(&self, pid: Pid) -> bool {
        let pid = pid.as_raw_nonzero().get();
        self.slots.iter().any(|slot| slot.load(Ordering::Acquire) == pid) || self.helpers().contains(&pid)
    }
}
