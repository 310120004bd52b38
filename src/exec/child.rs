//! One child from its start to its end: spawn, wait, and stop the whole tree.
//!
//! The thread that starts a child is the only one that waits for it or signals it.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use log::warn;
use rustix::process::{Pid, Signal};
use wait_timeout::ChildExt;

use super::registry::Registry;
use super::tree::Tree;

/// How often a running command's output and the shutdown level are looked at. With 64 threads each look costs about
/// a ten-thousandth of a core.
const LOOK: Duration = Duration::from_millis(500);
/// How often a tree that is being stopped is looked at.
const STOP_LOOK: Duration = Duration::from_millis(20);
/// How long killed processes may take to go away. One in uninterruptible sleep (a dead NFS server) may never do so.
const KILL_WAIT: Duration = Duration::from_secs(5);

/// A started command.
#[derive(Debug)]
pub struct Running<'a> {
    child: Child,
    tree: Tree,
    started: Instant,
    registry: &'a Registry,
    slot: usize,
}

/// What a look at a running command decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<W> {
    /// It may go on.
    GoOn,
    /// It has to be stopped, for this reason.
    Stop(W),
}

/// How a command ended.
#[derive(Debug)]
pub enum End<W> {
    /// By itself.
    Exited(ExitStatus),
    /// It was stopped.
    Stopped(W),
    /// The system does not tell.
    Lost(io::Error),
}

impl<'a> Running<'a> {
    /// Starts `command` as the leader of a new process group; `cookie` is what it has in its environment.
    pub fn start(command: &mut Command, cookie: &str, registry: &'a Registry, slot: usize) -> io::Result<Self> {
        command.process_group(0);
        let child = registry.enter(slot, || command.spawn())?;
        let leader = Pid::from_child(&child);
        Ok(Running { child, tree: Tree::new(leader, cookie), started: Instant::now(), registry, slot })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end, asking `look` now and then (after `timeout` at the latest) whether it may go on.
    pub fn wait<W>(
        mut self,
        timeout: Option<(Duration, W)>,
        grace: Duration,
        mut look: impl FnMut() -> Verdict<W>,
    ) -> (End<W>, Duration) {
        let mut timeout = timeout.map(|(after, why)| (self.started + after, why));
        let end = loop {
            let left = timeout.as_ref().map_or(LOOK, |(at, _)| at.saturating_duration_since(Instant::now()));
            match self.exited_within(left.min(LOOK)) {
                Ok(Some(status)) => break End::Exited(status),
                Err(e) => break End::Lost(e),
                Ok(None) => {}
            }
            let why = match timeout.take_if(|(at, _)| *at <= Instant::now()) {
                Some((_, why)) => why,
                None => match look() {
                    Verdict::GoOn => continue,
                    Verdict::Stop(why) => why,
                },
            };
            self.stop(grace);
            break End::Stopped(why);
        };
        (end, self.started.elapsed())
    }

    /// Ends the whole tree: TERM, and KILL for what is left after `grace`.
    fn stop(&mut self, grace: Duration) {
        self.tree.signal(Signal::TERM, true);
        self.tree.signal(Signal::CONT, true); // a stopped process would not see the TERM
        if self.is_gone_within(grace) {
            return;
        }
        let deadline = Instant::now() + KILL_WAIT;
        while Instant::now() < deadline {
            let leader_waits = !matches!(self.child.try_wait(), Ok(Some(_)));
            self.tree.signal(Signal::KILL, leader_waits);
            if self.is_gone_within(STOP_LOOK) {
                return;
            }
        }
        let left: Vec<String> = self.tree.members().iter().map(|pid| pid.as_raw_nonzero().to_string()).collect();
        warn!(
            "process(es) {} of a stopped command survive KILL (uninterruptible sleep?); going on without them",
            left.join(", ")
        );
    }

    /// Whether leader and members are all gone within `time`.
    fn is_gone_within(&mut self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        let mut leader_gone = false;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if !leader_gone {
                leader_gone = !matches!(self.exited_within(left.min(STOP_LOOK)), Ok(None));
            } else {
                if self.tree.members().is_empty() {
                    return true;
                }
                thread::sleep(left.min(STOP_LOOK));
            }
            if left.is_zero() {
                return leader_gone && self.tree.members().is_empty();
            }
        }
    }

    /// Waits up to `time` for the leader. Short of descriptors (`wait-timeout` needs two) it asks without waiting.
    fn exited_within(&mut self, time: Duration) -> io::Result<Option<ExitStatus>> {
        self.child.wait_timeout(time).or_else(|e| match e.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS) => {
                thread::sleep(time.min(STOP_LOOK));
                self.child.try_wait()
            }
            _ => Err(e),
        })
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.registry.leave(self.slot);
    }
}
