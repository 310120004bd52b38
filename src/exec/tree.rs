//! The processes of one command: its leader, what that has started, and what has moved away from it.
//!
//! Process groups alone do not tell: a child may enter another group or session (Airflow 3's supervisor puts its task
//! process into a group of its own) or lose its parent by a double fork. So a process belongs to the command if it is in
//! the leader's group or session, or was started with the command's cookie in its environment, or descends from one that
//! belongs. Only a process that has left all four behind escapes.

use std::collections::{HashMap, HashSet};
use std::fs;

use rustix::process::{Pid, Signal, getpid, kill_process, kill_process_group};

/// The variable that carries the cookie.
pub const COOKIE: &str = "AIRKAFKA_COMMAND_ID";

/// A command's processes, by what they have in common.
#[derive(Debug)]
pub struct Tree {
    leader: Pid,
    cookie: Vec<u8>,
    /// Those that were seen to belong, with their start times: they still do when whatever told it is gone.
    known: HashMap<i32, u64>,
}

/// The fields of `/proc/PID/stat` that matter (see proc_pid_stat(5)).
struct Stat {
    dead: bool,
    parent: i32,
    group: i32,
    session: i32,
    /// In clock ticks since boot: with the number an identity that is not given out again.
    started: u64,
}

impl Tree {
    /// The tree of `leader`, which was started with `cookie` in its environment.
    pub fn new(leader: Pid, cookie: &str) -> Tree {
        Tree { leader, cookie: format!("{COOKIE}={cookie}\0").into_bytes(), known: HashMap::new() }
    }

    /// Its living processes.
    pub fn members(&mut self) -> Vec<Pid> {
        let processes = processes();
        let leader = self.leader.as_raw_nonzero().get();
        let mut members: HashSet<i32> = processes
            .iter()
            .filter(|&(&pid, stat)| {
                pid == leader
                    || stat.group == leader
                    || stat.session == leader
                    || self.known.get(&pid) == Some(&stat.started)
                    || self.has_cookie(pid)
            })
            .map(|(&pid, _)| pid)
            .collect();
        // Children of members are members, to any depth.
        loop {
            let before = members.len();
            members.extend(
                processes
                    .iter()
                    .filter(|(_, stat)| members.contains(&stat.parent))
                    .map(|(&pid, _)| pid)
                    .collect::<Vec<_>>(),
            );
            if members.len() == before {
                break;
            }
        }
        self.known = members.iter().map(|pid| (*pid, processes[pid].started)).collect();
        members.into_iter().filter(|pid| !processes[pid].dead).filter_map(Pid::from_raw).collect()
    }

    /// Signals every member. `leader_waits`: the leader has not been reaped, so that its group's number is still its own
    /// and the whole group can be reached in one step, whatever it forks meanwhile.
    pub fn signal(&mut self, signal: Signal, leader_waits: bool) {
        // Looked for before anything is signalled: a child in a session of its own, without our cookie, is known by its
        // parent alone, and that may be gone in a moment.
        let members = self.members();
        if leader_waits {
            let _ = kill_process_group(self.leader, signal); // ESRCH: nobody left, which is what we want
        }
        let group = self.leader.as_raw_nonzero().get();
        for pid in members {
            let in_group = stat(pid.as_raw_nonzero().get()).is_some_and(|stat| stat.group == group);
            if !(leader_waits && in_group) {
                let _ = kill_process(pid, signal);
            }
        }
    }

    fn has_cookie(&self, pid: i32) -> bool {
        // Unreadable: another user's, a kernel thread, or gone.
        fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environ| {
            environ.starts_with(&self.cookie)
                || environ.windows(self.cookie.len() + 1).any(|window| window[0] == 0 && window[1..] == self.cookie[..])
        })
    }
}

/// All processes but ourselves.
fn processes() -> HashMap<i32, Stat> {
    let us = getpid().as_raw_nonzero().get();
    let Ok(entries) = fs::read_dir("/proc") else { return HashMap::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&pid| pid != us)
        .filter_map(|pid| Some((pid, stat(pid)?)))
        .collect()
}

fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses and may hold anything, parentheses included.
    let after_name = text.iter().rposition(|&b| b == b')')? + 1;
    let mut fields = std::str::from_utf8(&text[after_name..]).ok()?.split_ascii_whitespace();
    let dead = matches!(fields.next()?, "Z" | "X");
    let mut number = || fields.next()?.parse().ok();
    let (parent, group, session) = (number()?, number()?, number()?);
    let started = fields.nth(15)?.parse().ok()?;
    Some(Stat { dead, parent, group, session, started })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_stat_is_read() {
        let us = getpid().as_raw_nonzero().get();
        let stat = stat(us).expect("/proc/self/stat");
        assert!(!stat.dead);
        assert_eq!(stat.parent, std::os::unix::process::parent_id().cast_signed());
        assert!(!processes().contains_key(&us));
    }
}
