//! The leaders of our partitions, our session with each, and how much each is asked for.
//!
//! When a leader has failed, its locks are gone, and what runs is there for anybody to take. So after that each worker first
//! asks for what it runs itself, and for more only when the others have had time to do the same: see [`Settling`]. What it is
//! given instead it keeps aside, locked, until it has what it looked for; then it gives that back. Two that keep aside what the
//! other looks for give it back halfway, and look again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::session::Session;
use crate::broker::outage::Outage;

/// All leaders, by broker id.
#[derive(Default)]
pub struct Leaders {
    all: BTreeMap<i32, Leader>,
    /// Which leader a partition was last dealt with by.
    routes: BTreeMap<i32, i32>,
}

/// One leader.
pub struct Leader {
    /// Our session with it.
    pub session: Option<Session>,
    /// It is not asked before.
    pub retry_at: Instant,
    /// Trouble with it.
    pub outage: Outage,
    /// When it was last asked for records.
    pub asked_at: Instant,
    /// It is not asked for records before.
    pub ask_from: Instant,
    /// How many fetches in a row have brought nothing.
    pub dry: u32,
    /// Whether it has taken over, or started anew.
    pub settling: Settling,
}

/// How long after a leader has taken over, or started anew, it is asked for nothing but what runs here.
const SETTLE: Duration = Duration::from_secs(3);
/// Halfway: what was given to us instead is given back, once.
const GIVE_BACK: Duration = Duration::from_millis(1500);

/// Whether a leader may have given up locks lately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settling {
    /// It has not.
    No,
    /// It may, and has not answered since.
    Awaited,
    /// It may, and answers since then.
    Since(Instant),
}

impl Settling {
    /// It has answered.
    pub fn answered(&mut self, now: Instant) {
        if *self == Settling::Awaited {
            *self = Settling::Since(now);
        }
    }

    /// Whether nothing but what runs here is to be asked for.
    pub fn is_on(self, now: Instant) -> bool {
        self.ends().map_or(self == Settling::Awaited, |end| now < end)
    }

    /// Whether it is before the middle of it.
    pub fn is_early(self, now: Instant) -> bool {
        matches!(self, Settling::Since(since) if now < since + GIVE_BACK)
    }

    fn ends(self) -> Option<Instant> {
        match self {
            Settling::Since(since) => Some(since + SETTLE),
            Settling::No | Settling::Awaited => None,
        }
    }

    /// When something is to be done next.
    fn due(self, now: Instant) -> Option<Instant> {
        let Settling::Since(since) = self else { return None };
        [since + GIVE_BACK, since + SETTLE].into_iter().find(|&at| at > now)
    }
}

impl Leaders {
    /// A partition is led by `leader`. Returns whether it was led by another one before.
    pub fn route(&mut self, partition: i32, leader: i32) -> bool {
        let now = Instant::now();
        self.all.entry(leader).or_insert_with(|| Leader {
            session: None,
            retry_at: now,
            outage: Outage::new("reading"),
            asked_at: now,
            ask_from: now,
            dry: 0,
            settling: Settling::No,
        });
        let has_moved = self.routes.insert(partition, leader).is_some_and(|before| before != leader);
        if has_moved {
            let leading = self.leading();
            self.all.retain(|id, _| leading.contains(id)); // with the session: nothing of it is ours any more
            if let Some(leader) = self.all.get_mut(&leader) {
                leader.settling = Settling::Awaited;
            }
        }
        has_moved
    }

    /// The leader of a partition.
    pub fn of(&self, partition: i32) -> Option<&Leader> {
        self.all.get(self.routes.get(&partition)?)
    }

    /// The same, by its id.
    pub fn id_of(&self, partition: i32) -> Option<i32> {
        self.routes.get(&partition).copied()
    }

    /// The partitions that a leader leads.
    pub fn led_by(&self, leader: i32) -> BTreeSet<i32> {
        self.routes.iter().filter(|(_, led_by)| **led_by == leader).map(|(&partition, _)| partition).collect()
    }

    /// A leader by its id.
    pub fn get_mut(&mut self, id: i32) -> Option<&mut Leader> {
        self.all.get_mut(&id)
    }

    /// Those that lead something.
    fn leading(&self) -> BTreeSet<i32> {
        self.routes.values().copied().collect()
    }

    /// How many lead something.
    pub fn count(&self) -> usize {
        self.leading().len()
    }

    /// Their ids; whoever was not asked for records for the longest time goes first.
    pub fn in_turn(&self) -> Vec<i32> {
        let mut order: Vec<(Instant, i32)> = self.all.iter().map(|(&id, leader)| (leader.asked_at, id)).collect();
        order.sort();
        order.into_iter().map(|(_, id)| id).collect()
    }

    /// How many records are asked for by now.
    pub fn asked_for(&self) -> usize {
        self.sessions().map(Session::asked_for).sum()
    }

    /// How many of `free` records a leader is asked for. One that had nothing lately is asked for a single one, so that
    /// those with more can fill the threads.
    pub fn share_of(&self, id: i32, free: usize) -> usize {
        let is_dry = |id: &i32| self.all.get(id).is_none_or(|leader| leader.dry > 0);
        let leading = self.leading();
        match (free, leading.len(), is_dry(&id)) {
            (0, ..) => 0,
            (_, 1, _) => free,
            (_, _, true) => 1,
            _ => free.div_ceil(leading.iter().filter(|id| !is_dry(id)).count().max(1)),
        }
    }

    /// Our sessions.
    pub fn sessions(&self) -> impl Iterator<Item = &Session> {
        self.all.values().filter_map(|leader| leader.session.as_ref())
    }

    /// Our sessions, to be closed.
    pub fn take_sessions(&mut self) -> impl Iterator<Item = Session> {
        self.all.values_mut().filter_map(|leader| leader.session.take())
    }

    /// When the next one may be asked again after trouble.
    pub fn next_retry(&self, now: Instant) -> Option<Instant> {
        let retries = self.all.values().map(|leader| leader.retry_at).filter(|&at| at > now);
        let asks = self.all.values().map(|leader| leader.ask_from).filter(|&at| at > now);
        retries.chain(asks).chain(self.all.values().filter_map(|leader| leader.settling.due(now))).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_that_had_nothing_is_asked_for_one_record_while_others_have_more() {
        let mut leaders = Leaders::default();
        assert!(!leaders.route(0, 1));
        assert_eq!(leaders.share_of(1, 8), 8, "alone it is asked for all, dry or not");
        leaders.get_mut(1).unwrap().dry = 5;
        assert_eq!((leaders.share_of(1, 8), leaders.share_of(1, 0)), (8, 0));
        leaders.route(1, 2);
        leaders.route(2, 3);
        assert_eq!((leaders.share_of(1, 8), leaders.share_of(2, 7), leaders.share_of(3, 3)), (1, 4, 2));
    }

    #[test]
    fn a_leader_that_has_taken_over_is_asked_for_more_only_after_a_while() {
        let (mut leaders, now) = (Leaders::default(), Instant::now());
        leaders.route(0, 1);
        assert!(!leaders.get_mut(1).unwrap().settling.is_on(now));
        leaders.route(0, 2);
        let settling = &mut leaders.get_mut(2).unwrap().settling;
        assert!(settling.is_on(now + 10 * SETTLE), "it has not answered yet");
        settling.answered(now);
        settling.answered(now + SETTLE);
        assert_eq!((settling.is_on(now), settling.is_on(now + SETTLE)), (true, false));
        assert_eq!((settling.is_early(now), settling.is_early(now + GIVE_BACK)), (true, false));
        assert_eq!(leaders.next_retry(now + GIVE_BACK), Some(now + SETTLE));
    }

    #[test]
    fn a_partition_that_moves_is_noticed() {
        let mut leaders = Leaders::default();
        assert_eq!((leaders.route(0, 1), leaders.route(0, 1), leaders.route(0, 2)), (false, false, true));
        assert_eq!((leaders.led_by(1), leaders.led_by(2)), ([].into(), [0].into()));
        assert!(leaders.get_mut(1).is_none(), "it leads nothing any more");
    }
}
