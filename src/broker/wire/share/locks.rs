//! The records whose acquisition locks are ours: when each is to be renewed, and what is still to be answered.
//!
//! Pure: time is passed in. A lock ends with an answer that the leader has acknowledged, or is lost. When a session breaks,
//! or the time of a lock is over, it is in doubt, not lost: the leader may have given it up (it does when a connection
//! closes), and then the record comes again, to us if we are in luck. So a command that runs is not stopped, and what has
//! run is not run again, for a broker that restarts.
//!
//! A renewal cannot end the doubt: leaders acknowledge it also for a record that another worker has run to its end (one
//! below the group's start offset). So a record in doubt is released, and only its coming again counts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::broker::At;
use crate::broker::acquisition::AcquisitionLock;

/// What the leader is told of a record; the numbers are the protocol's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i8)]
pub enum Answer {
    /// There is no such record: a marker, or compacted away.
    Gap = 0,
    /// It has run, and is reported.
    Accept = 1,
    /// It was not run: others may have it.
    Release = 2,
    /// It is not to be delivered again.
    Reject = 3,
    /// It still runs.
    Renew = 4,
}

/// Answers by partition and offset.
pub type Answers = BTreeMap<i32, BTreeMap<i64, Answer>>;

/// How long after the leader answers again a lock may stay in doubt before it counts as lost.
pub const DOUBT: Duration = Duration::from_secs(4);

/// All our locks.
#[derive(Debug)]
pub struct Locks {
    held: BTreeMap<At, Held>,
    lock_time: Duration,
    /// How often locks were renewed.
    renewals: u64,
}

#[derive(Debug)]
struct Held {
    lock: Arc<AcquisitionLock>,
    acquired: Instant,
    /// Until when it is ours, unless it is renewed.
    until: Instant,
    renew_at: Instant,
    /// What is to be answered, once that is known.
    answer: Option<Answer>,
    /// It is part of the request under way.
    in_flight: bool,
    /// To be answered in a request of its own: the leader takes all or nothing of a partition's answers.
    alone: bool,
    doubt: Option<Doubt>,
}

/// A lock that the leader may have given up.
#[derive(Clone, Copy, Debug, Default)]
struct Doubt {
    /// The leader has it back: it can only come again.
    released: bool,
    /// When it counts as lost; known once the leader answers again.
    until: Option<Instant>,
}

/// What it means that a record was acquired.
#[derive(Debug)]
pub enum Acquired {
    /// It is to be run.
    New(Arc<AcquisitionLock>),
    /// It is ours again: it runs here, or has run and is answered once more.
    Again,
}

/// A lock that is gone, and what was to be answered under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Whose record it was.
    pub at: At,
    /// What the leader was to be told; `None`: it runs, or waits.
    pub answer: Option<Answer>,
}

impl Locks {
    /// None yet; locks last `lock_time` as long as no leader has said otherwise.
    pub fn new(lock_time: Duration) -> Locks {
        Locks { held: BTreeMap::new(), lock_time, renewals: 0 }
    }

    /// How long locks last, as a leader says.
    pub fn set_lock_time(&mut self, lock_time: Duration) {
        self.lock_time = lock_time;
    }

    /// How long locks last.
    pub fn lock_time(&self) -> Duration {
        self.lock_time
    }

    /// The leader has given us a record, no earlier than `since`.
    pub fn acquire(&mut self, at: At, since: Instant, now: Instant) -> Acquired {
        let (until, renew_at) = (since + self.lock_time, now.min(since + self.lock_time) + self.lock_time / 3);
        if let Some(held) = self.held.get_mut(&at) {
            held.lock.extend(until);
            (held.until, held.renew_at, held.doubt, held.alone) = (until, renew_at, None, false);
            return Acquired::Again;
        }
        let lock = AcquisitionLock::new(until);
        let (answer, in_flight, alone, doubt) = (None, false, false, None);
        let held = Held { lock: lock.clone(), acquired: now, until, renew_at, answer, in_flight, alone, doubt };
        self.held.insert(at, held);
        Acquired::New(lock)
    }

    /// What the leader is to be told of a record; nothing, if its lock is gone already.
    pub fn answer(&mut self, at: At, answer: Answer) {
        if let Some(held) = self.held.get_mut(&at) {
            held.answer = Some(answer);
        }
    }

    /// Whether something is to be answered in a partition, or to be renewed by `now`.
    pub fn has_due(&self, partition: i32, now: Instant) -> bool {
        self.of(partition).any(|(_, held)| held.due(now).is_some())
    }

    /// Whether the leader of a partition is to be told something before it can be asked for records: that locks are to be
    /// renewed, or whether they are ours still.
    pub fn is_urgent(&self, partition: i32, now: Instant) -> bool {
        self.of(partition).any(|(_, held)| {
            held.due(now).is_some_and(|answer| answer == Answer::Renew || held.alone || held.doubt.is_some())
        })
    }

    /// Takes what is due in a partition, as part of a request.
    pub fn take(&mut self, partition: i32, now: Instant) -> BTreeMap<i64, Answer> {
        let mut taken = BTreeMap::new();
        let due = |held: &Held| held.due(now).is_some();
        let alone = self.of(partition).find(|(_, held)| held.alone && due(held)).map(|(at, _)| *at);
        for (at, held) in self.held.range_mut((partition, i64::MIN)..=(partition, i64::MAX)) {
            let Some(answer) = held.due(now).filter(|_| alone.is_none_or(|alone| alone == *at)) else { continue };
            held.in_flight = true;
            taken.insert(at.1, answer);
        }
        taken
    }

    /// A partition's leader has acknowledged `answers`, sent at `sent`.
    pub fn acknowledged(&mut self, partition: i32, answers: &BTreeMap<i64, Answer>, sent: Instant) {
        let (until, renew_at) = (sent + self.lock_time, sent + self.lock_time / 3);
        for (&offset, &answer) in answers {
            let Some(held) = self.held.get_mut(&(partition, offset)) else { continue };
            (held.in_flight, held.alone) = (false, false);
            match (&mut held.doubt, held.answer) {
                (Some(_), _) if answer == Answer::Renew => {} // it says nothing, see above
                (Some(doubt), None) => doubt.released = true,
                (None, _) if answer == Answer::Renew => {
                    held.lock.extend(until);
                    (held.until, held.renew_at) = (until, renew_at);
                    self.renewals += 1;
                }
                _ => drop(self.held.remove(&(partition, offset))),
            }
        }
    }

    /// A partition's leader says that of `answers` one or another is not about a lock of ours. Returns what is lost.
    pub fn refused(&mut self, partition: i32, answers: &BTreeMap<i64, Answer>) -> Option<Lost> {
        let is_one = answers.len() == 1;
        let mut lost = None;
        for &offset in answers.keys() {
            let at = (partition, offset);
            let Some(held) = self.held.get_mut(&at) else { continue };
            (held.in_flight, held.alone) = (false, !is_one);
            match (&mut held.doubt, held.answer) {
                _ if !is_one => {}
                (_, Some(Answer::Release | Answer::Gap)) => drop(self.held.remove(&at)),
                (Some(doubt), _) => doubt.released = true,
                (None, _) => lost = self.lose(at),
            }
        }
        lost
    }

    /// A partition's leader knows nothing of it yet, nor of any lock: one that has started anew. Returns whether that settles
    /// anything.
    pub fn unknown(&mut self, partition: i32) -> bool {
        let mut any = false;
        for (_, held) in self.held.range_mut((partition, i64::MIN)..=(partition, i64::MAX)) {
            let Some(doubt) = &mut held.doubt else { continue };
            (doubt.released, held.in_flight, held.alone, any) = (true, false, false, true);
        }
        any
    }

    /// What was sent may or may not have counted, and has to be sent again.
    pub fn unanswered(&mut self, partition: i32, answers: &BTreeMap<i64, Answer>) {
        for &offset in answers.keys() {
            if let Some(held) = self.held.get_mut(&(partition, offset)) {
                held.in_flight = false;
            }
        }
    }

    /// A partition's leader is gone, or the session with it: it may have given up our locks.
    pub fn doubt(&mut self, partition: i32) {
        for (_, held) in self.held.range_mut((partition, i64::MIN)..=(partition, i64::MAX)) {
            held.in_flight = false;
            held.fall_into_doubt();
        }
    }

    /// What was not renewed in time is in doubt from `now` on: this process was stopped, or the leader was silent.
    pub fn expire(&mut self, now: Instant) {
        for held in self.held.values_mut().filter(|held| held.until <= now && held.doubt.is_none()) {
            held.fall_into_doubt();
        }
    }

    /// How many records of a partition may come again.
    pub fn missing(&self, partition: i32) -> usize {
        self.of(partition).filter(|(_, held)| held.doubt.is_some_and(|doubt| doubt.released)).count()
    }

    /// The leader of a partition has answered a fetch. Returns what has been in doubt for too long.
    pub fn contact(&mut self, partition: i32, now: Instant) -> Vec<Lost> {
        let mut over = Vec::new();
        for (at, held) in self.held.range_mut((partition, i64::MIN)..=(partition, i64::MAX)) {
            let Some(doubt) = &mut held.doubt else { continue };
            if doubt.released && now >= *doubt.until.get_or_insert(now + DOUBT) {
                over.push(*at);
            }
        }
        over.into_iter().filter_map(|at| self.lose(at)).collect()
    }

    /// All of them are gone.
    pub fn lose_all(&mut self) -> Vec<Lost> {
        let all: Vec<At> = self.held.keys().copied().collect();
        all.into_iter().filter_map(|at| self.lose(at)).collect()
    }

    fn lose(&mut self, at: At) -> Option<Lost> {
        let held = self.held.remove(&at)?;
        held.lock.lose();
        Some(Lost { at, answer: held.answer })
    }

    /// When the next one is to be renewed.
    pub fn next_due(&self) -> Option<Instant> {
        self.held.values().filter(|held| !held.in_flight && held.doubt.is_none()).map(|held| held.renew_at).min()
    }

    /// The partitions with locks of ours.
    pub fn partitions(&self) -> Vec<i32> {
        let mut partitions: Vec<i32> = self.held.keys().map(|at| at.0).collect();
        partitions.dedup();
        partitions
    }

    /// Whether a lock of a partition is ours, or may be.
    pub fn holds(&self, partition: i32) -> bool {
        self.of(partition).next().is_some()
    }

    /// Whether something is decided and not acknowledged yet.
    pub fn owes_answers(&self) -> bool {
        self.held.values().any(|held| held.answer.is_some())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// In short, for the log.
    pub fn status(&self) -> String {
        let in_doubt = self.held.values().filter(|held| held.doubt.is_some()).count();
        format!("{} lock(s) held, {in_doubt} in doubt, {} renewal(s) so far", self.held.len(), self.renewals)
    }

    /// The lowest offset of each partition, where it has been held since before `before`.
    pub fn oldest(&self, before: Instant) -> Vec<At> {
        let mut oldest: BTreeMap<i32, i64> = BTreeMap::new();
        for (&(partition, offset), held) in &self.held {
            if held.acquired < before {
                oldest.entry(partition).or_insert(offset);
            }
        }
        oldest.into_iter().collect()
    }

    fn of(&self, partition: i32) -> impl Iterator<Item = (&At, &Held)> {
        self.held.range((partition, i64::MIN)..=(partition, i64::MAX))
    }
}

impl Held {
    /// What the leader is to be told by `now`.
    fn due(&self, now: Instant) -> Option<Answer> {
        match (self.doubt, self.answer) {
            _ if self.in_flight => None,
            (Some(doubt), _) if doubt.released => None,
            (_, Some(answer)) => Some(answer),
            (Some(_), None) => Some(Answer::Release),
            (None, None) => (now >= self.renew_at).then_some(Answer::Renew),
        }
    }

    fn fall_into_doubt(&mut self) {
        self.doubt = Some(Doubt::default());
        self.lock.doubt();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::acquisition::Holding;

    const LOCK: Duration = Duration::from_secs(30);

    fn new(at: &[At], now: Instant) -> (Locks, Vec<Arc<AcquisitionLock>>) {
        let mut locks = Locks::new(LOCK);
        let acquired = at.iter().map(|&at| match locks.acquire(at, now, now) {
            Acquired::New(lock) => lock,
            Acquired::Again => panic!("{at:?} twice"),
        });
        let acquired = acquired.collect();
        (locks, acquired)
    }

    #[test]
    fn a_lock_is_renewed_at_a_third_of_its_time_until_it_is_answered() {
        let now = Instant::now();
        let (mut locks, held) = new(&[(0, 7)], now);
        assert_eq!(locks.take(0, now + LOCK / 4), BTreeMap::new());
        let due = now + LOCK / 3;
        assert_eq!(locks.next_due(), Some(due));
        let renewal = locks.take(0, due);
        assert_eq!(renewal, [(7, Answer::Renew)].into());
        assert_eq!(locks.take(0, due), BTreeMap::new(), "one at a time");
        locks.acknowledged(0, &renewal, due);
        assert_eq!((locks.next_due(), held[0].holding()), (Some(due + LOCK / 3), Holding::Ours));
        locks.answer((0, 7), Answer::Accept);
        let accepted = locks.take(0, due);
        assert_eq!(accepted, [(7, Answer::Accept)].into());
        locks.acknowledged(0, &accepted, due);
        assert!(locks.is_empty());
    }

    #[test]
    fn one_bad_answer_among_several_is_found_by_sending_each_alone() {
        let now = Instant::now();
        let (mut locks, held) = new(&[(0, 1), (0, 2), (1, 1)], now);
        let due = now + LOCK / 2;
        let both = locks.take(0, due);
        assert_eq!(both.len(), 2);
        assert_eq!(locks.refused(0, &both), None);
        let first = locks.take(0, due);
        assert_eq!(first, [(1, Answer::Renew)].into());
        assert_eq!(locks.refused(0, &first), Some(Lost { at: (0, 1), answer: None }));
        let second = locks.take(0, due);
        assert_eq!(second, [(2, Answer::Renew)].into());
        locks.acknowledged(0, &second, due);
        assert_eq!(held[0].holding(), Holding::Lost);
        assert_eq!((held[1].holding(), locks.held.len()), (Holding::Ours, 2));
    }

    #[test]
    fn after_a_broken_session_a_lock_is_ours_again_or_lost_after_a_while() {
        let now = Instant::now();
        let (mut locks, held) = new(&[(0, 1), (0, 2), (0, 3)], now);
        locks.answer((0, 2), Answer::Accept);
        locks.doubt(0);
        assert_eq!(held[0].holding(), Holding::InDoubt);
        // The leader has given them up already.
        let sent = locks.take(0, now);
        assert_eq!(sent, [(1, Answer::Release), (2, Answer::Accept), (3, Answer::Release)].into());
        assert_eq!(locks.refused(0, &sent), None);
        for _ in 0..3 {
            let one = locks.take(0, now);
            assert_eq!((one.len(), locks.refused(0, &one)), (1, None));
        }
        assert_eq!((locks.missing(0), locks.has_due(0, now + LOCK)), (3, false));
        // Two of them come again: one runs, one has run.
        assert_eq!(locks.contact(0, now), []);
        assert!(matches!(locks.acquire((0, 1), now, now), Acquired::Again));
        assert!(matches!(locks.acquire((0, 2), now, now), Acquired::Again));
        assert_eq!(held[0].holding(), Holding::Ours);
        assert_eq!(locks.take(0, now), [(2, Answer::Accept)].into());
        assert_eq!(locks.contact(0, now + DOUBT), [Lost { at: (0, 3), answer: None }]);
        assert_eq!(held[2].holding(), Holding::Lost);
        locks.answer((0, 3), Answer::Release);
        assert_eq!((locks.held.len(), locks.missing(0)), (2, 0));
    }

    #[test]
    fn a_renewal_that_came_too_late_proves_nothing() {
        let now = Instant::now() - LOCK;
        let (mut locks, held) = new(&[(0, 1)], now);
        let renewal = locks.take(0, now + LOCK / 2);
        locks.expire(now + LOCK);
        assert_eq!(held[0].holding(), Holding::InDoubt);
        locks.acknowledged(0, &renewal, now + LOCK / 2);
        let release = locks.take(0, now + LOCK);
        assert_eq!((&release, locks.missing(0)), (&[(1, Answer::Release)].into(), 0));
        locks.acknowledged(0, &release, now + LOCK);
        assert_eq!((held[0].holding(), locks.missing(0)), (Holding::InDoubt, 1));
        assert_eq!(locks.contact(0, now + LOCK), []);
        assert_eq!(locks.contact(0, now + LOCK + DOUBT), [Lost { at: (0, 1), answer: None }]);
    }

    #[test]
    fn what_was_sent_in_vain_is_sent_again() {
        let now = Instant::now();
        let (mut locks, _held) = new(&[(0, 1)], now);
        locks.answer((0, 1), Answer::Reject);
        let sent = locks.take(0, now);
        locks.unanswered(0, &sent);
        assert_eq!(locks.take(0, now), sent);
        assert!(locks.owes_answers());
    }
}
