//! Records of a topic for a member of a share group (KIP-932): each is acquired by itself, kept by renewing its lock while
//! its command runs (KIP-1222), and accepted when its result is acknowledged.
//!
//! From the bottom up: `session` (one with each of the `leaders`), `contents` (what an answer holds), `locks` (what is ours,
//! pure), `member` (which partitions to fetch from), `setup` (the group's settings), `window` (who holds up a partition);
//! this puts them together. It asks for no more records than there are idle threads.

mod contents;
mod leaders;
mod locks;
mod member;
mod session;
pub mod setup;
mod window;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64ct::{Base64UrlUnpadded, Encoding};
use kafka_protocol::ResponseError;
use log::{debug, error, info, warn};
use ring::rand::{SecureRandom, SystemRandom};

use super::cluster::{Cluster, Purpose};
use super::conn::{Connection, wait_readable_or};
use super::dial::Dialer;
use super::errors::{self, Doing};
use super::freshness::{Freshness, REFRESH_PAUSE};
use super::in_short;
use crate::broker::outage::Outage;
use crate::broker::waker::Waker;
use crate::broker::{At, Commit, Demand, Event, Position, Record, Source};
use crate::config;
use crate::error::{Error, Kind, Result};
use crate::record::show_key;
use contents::{Content, Given};
use leaders::{Leaders, Settling};
use locks::{Acquired, Answer, Answers, Locks, Lost};
use member::Member;
pub use session::VERSION;
use session::{Identity, Limits, Part, Reply, Session};
use window::Window;

/// How long a lock lasts as long as no leader has said: Kafka's default.
const LOCK_TIME: Duration = Duration::from_secs(30);
/// How long a fetch may wait at the leader while we hold locks: answers wait behind it.
const BUSY_WAIT: Duration = Duration::from_millis(100);
/// How much longer than its wait an answer may take. Locks are renewed over the same connection.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait after a leader has refused something that will pass.
const PAUSE: Duration = Duration::from_millis(100);
/// The longest pause before a leader is tried again that has to say whether what runs here is ours still.
const RECLAIM_PAUSE: Duration = Duration::from_millis(200);
/// So many deliveries before the last one a record is not given back any more for whoever may run it: the broker would drop
/// it in the end.
const DELIVERIES_LEFT: u32 = 2;
/// The longest pause after something was given back, for others to take it; each worker has its own.
const LONGEST_JITTER: u32 = 400;
/// How many fetches in a row have to bring nothing until nothing is there: the first may come before the leader is ready.
const READ_ALL: u32 = 2;

/// A member of a share group.
pub struct ShareSource {
    topic: Arc<str>,
    who: Identity,
    cluster: Cluster,
    member: Member,
    leaders: Leaders,
    locks: Locks,
    /// The keys of the records that are locked, for messages.
    keys: BTreeMap<At, Option<Vec<u8>>>,
    waker: Arc<Waker>,
    settings: Settings,
    group_outage: Outage,
    group_retry_at: Instant,
    freshness: Freshness,
    window: Window,
    /// Records that may run elsewhere, which we were given when we asked for what runs here.
    aside: Vec<Aside>,
    jitter: Duration,
    /// A record that was delivered more often is not given back.
    most_given_back: u32,
    /// Records whose batch cannot be read, as was said.
    corrupt: BTreeSet<At>,
    /// Whether it is to be found out soon that nothing is left.
    ends_when_empty: bool,
}

/// A record that is kept aside.
struct Aside {
    record: Record,
    /// It is given back halfway.
    early: bool,
}

/// How to read.
#[derive(Clone, Debug)]
struct Settings {
    long_poll: Duration,
    bytes: i32,
}

impl ShareSource {
    /// Finds the topic, and begins to join the group.
    pub fn connect(config: &config::Kafka, dialer: Arc<Dialer>, group: &setup::GroupFacts) -> Result<ShareSource> {
        let settings = &config.settings;
        let patience = settings.request_timeout.min(PATIENCE);
        let mut cluster = Cluster::new(dialer, config.brokers.clone(), patience);
        cluster.refresh(&[&config.topic], Purpose::Read)?;
        let member = new_member_id()?;
        let now = Instant::now();
        Ok(ShareSource {
            topic: config.topic.as_str().into(),
            who: Identity {
                group: config.group.clone(),
                member: member.clone(),
                topic: cluster.topic_id(&config.topic).unwrap_or_default(),
            },
            cluster,
            member: Member::new(config.group.clone(), config.topic.clone(), member.clone(), patience),
            leaders: Leaders::default(),
            locks: Locks::new(LOCK_TIME),
            keys: BTreeMap::new(),
            waker: Arc::new(Waker::new()?),
            settings: Settings { long_poll: settings.fetch_max_wait, bytes: settings.fetch_max_bytes },
            group_outage: Outage::new("taking part in the share group"),
            group_retry_at: now,
            freshness: Freshness::new(settings.metadata_max_age),
            window: Window::new(group.window),
            aside: Vec::new(),
            jitter: Duration::from_millis(u64::from(crc32c::crc32c(member.as_bytes()) % LONGEST_JITTER)),
            most_given_back: group.deliveries.saturating_sub(DELIVERIES_LEFT),
            corrupt: BTreeSet::new(),
            ends_when_empty: false,
        })
    }

    /// Everything that can be done without waiting.
    fn work(&mut self, demand: &Demand<'_>, events: &mut Vec<Event>) -> Result<()> {
        self.locks.expire(Instant::now());
        self.work_group()?;
        self.refresh();
        self.find_routes();
        let mut wanted = demand.want;
        for leader in self.leaders.in_turn() {
            self.receive(leader, &mut wanted, events)?;
        }
        self.give_back(events);
        self.ask(wanted)?;
        self.watch_window();
        Ok(())
    }

    fn work_group(&mut self) -> Result<()> {
        let now = Instant::now();
        if now < self.group_retry_at {
            return Ok(());
        }
        match self.member.drive(&mut self.cluster) {
            Ok(changed) => {
                self.group_outage.over(now);
                if changed && let Some(assigned) = self.member.assigned() {
                    info!(
                        "share group {}: reading partition(s) {} of {}",
                        self.who.group,
                        in_short(assigned),
                        self.topic
                    );
                }
            }
            Err(e) if e.is_transient() => {
                let pause = self.group_outage.failed(&e, now);
                self.group_retry_at = now + if e.kind() == Kind::Later { REFRESH_PAUSE } else { pause };
            }
            Err(e) => return Err(e),
        }
        Ok(())
    }

    fn refresh(&mut self) {
        if !self.freshness.refresh(&mut self.cluster, &self.topic) {
            return;
        }
        let topic = self.cluster.topic_id(&self.topic).unwrap_or(self.who.topic);
        if topic != self.who.topic {
            warn!("topic {} was made anew; what was locked in the old one is gone with it", self.topic);
            self.who.topic = topic;
            for leader in self.leaders.in_turn() {
                self.forget_session(leader);
            }
            // Before an offset of the new topic is taken for one of the old.
            for lost in self.locks.lose_all() {
                self.lost(lost, "its topic is gone");
            }
        }
    }

    /// Where each partition has moved to another leader, its locks stay behind.
    fn find_routes(&mut self) {
        let assigned = self.member.assigned().into_iter().flatten().copied();
        let partitions: BTreeSet<i32> = assigned.chain(self.locks.partitions()).collect();
        for partition in partitions {
            let Some(leader) = self.cluster.leader(&self.topic, partition) else {
                self.freshness.mark_stale();
                continue;
            };
            if self.leaders.route(partition, leader) {
                self.locks.doubt(partition);
            }
        }
    }

    fn receive(&mut self, id: i32, wanted: &mut usize, events: &mut Vec<Event>) -> Result<()> {
        let Some(session) = self.leaders.get_mut(id).and_then(|leader| leader.session.as_mut()) else { return Ok(()) };
        match session.receive(PATIENCE) {
            Ok(None) => Ok(()),
            Ok(Some(reply)) => self.take(id, reply, wanted, events),
            Err(e) => self.broken(id, e),
        }
    }

    /// Gives back what was kept aside, when we have what we looked for, and once halfway.
    fn give_back(&mut self, events: &mut Vec<Event>) {
        let now = Instant::now();
        for Aside { record, early } in std::mem::take(&mut self.aside) {
            let (at, id) = (record.place(), self.leaders.id_of(record.at.partition).unwrap_or_default());
            let is_found = self.leaders.led_by(id).iter().all(|&partition| self.locks.missing(partition) == 0);
            let leader = self.leaders.get_mut(id);
            let is_halfway = early && !leader.as_ref().is_some_and(|leader| leader.settling.is_early(now));
            if !is_found && !is_halfway {
                self.aside.push(Aside { record, early });
                continue;
            }
            if let Some(leader) = leader.filter(|_| !is_found) {
                leader.ask_from = now + self.jitter; // not to take it again at once
            }
            if record.attempt.is_some_and(|deliveries| deliveries > self.most_given_back) {
                debug!("{} is not given back any more", record.at);
                self.keys.insert(at, record.key.clone());
                events.push(Event::Acquired(record)); // it waits for a thread, locked
            } else {
                self.settle(at, Answer::Release);
            }
        }
    }

    /// Makes of a leader's answer what it means.
    fn take(&mut self, id: i32, reply: Reply, wanted: &mut usize, events: &mut Vec<Event>) -> Result<()> {
        if let Some(code) = reply.error {
            let e = match code {
                ResponseError::ShareSessionNotFound | ResponseError::InvalidShareSessionEpoch => {
                    Error::new(Kind::Later, format!("broker {id}: the share session is gone ({code:?})"))
                }
                code => errors::explain(code, &Doing::new("Read", "Group", &self.who.group)),
            };
            return self.broken(id, e);
        }
        let now = Instant::now();
        if let Some(leader) = self.leaders.get_mut(id) {
            leader.settling.answered(now);
        }
        if let Some(lock_time) = reply.lock_time {
            self.locks.set_lock_time(lock_time);
        }
        let mut trouble = None;
        for (&partition, answers) in &reply.answers {
            match reply.partitions.get(&partition).and_then(|part| part.answer_error) {
                None => {
                    self.locks.acknowledged(partition, answers, reply.sent);
                    debug_renewals(&self.topic, partition, answers);
                }
                Some(ResponseError::InvalidRecordState) => {
                    if let Some(lost) = self.locks.refused(partition, answers) {
                        self.lost(lost, "the broker refuses to renew it");
                    }
                }
                Some(ResponseError::UnknownTopicOrPartition) if self.locks.unknown(partition) => {}
                Some(code) => {
                    self.locks.unanswered(partition, answers);
                    trouble = Some(code);
                }
            }
        }
        let is_fetch = reply.asked_for > 0;
        let (mut came, mut answering) = (0, self.leaders.led_by(id));
        for (partition, part) in reply.partitions {
            match part.fetch_error {
                None => came += self.acquire(partition, part, reply.sent, wanted, events),
                code => {
                    trouble = code;
                    answering.remove(&partition);
                }
            }
        }
        if is_fetch {
            for partition in answering {
                for lost in self.locks.contact(partition, now) {
                    self.lost(lost, "the broker has given it up, and another worker has it by now");
                }
            }
        }
        let Some(leader) = self.leaders.get_mut(id) else { return Ok(()) };
        if is_fetch {
            leader.dry = if came == 0 { leader.dry.saturating_add(1) } else { 0 };
        }
        let Some(code) = trouble else {
            leader.outage.over(now);
            return Ok(());
        };
        leader.retry_at = now + PAUSE;
        self.freshness.mark_stale();
        let e = errors::explain(code, &Doing::new("Read", "Topic", &self.topic));
        if !e.is_transient() {
            return Err(e);
        }
        leader.outage.failed(&e, now);
        Ok(())
    }

    /// Takes over the records that were acquired. Returns how many that were.
    fn acquire(&mut self, id: i32, part: Part, since: Instant, wanted: &mut usize, events: &mut Vec<Event>) -> usize {
        let (now, given) = (Instant::now(), contents::sort_out(part));
        let count = given.len();
        let (settling, looks) =
            (self.leaders.of(id).map_or(Settling::No, |leader| leader.settling), self.locks.missing(id) > 0);
        for Given { offset, deliveries, content } in given {
            let at = (id, offset);
            let Acquired::New(lock) = self.locks.acquire(at, since, now) else {
                debug!("{}-{id}@{offset} is ours again", self.topic);
                continue;
            };
            let fetched = match content {
                Content::Record(fetched) => fetched,
                Content::Unread => {
                    self.locks.answer(at, Answer::Release);
                    continue;
                }
                Content::Gap => {
                    self.locks.answer(at, Answer::Gap);
                    continue;
                }
                Content::Corrupt(why) => {
                    self.hold_corrupt(at, &why);
                    continue;
                }
            };
            let position = Position { topic: self.topic.clone(), partition: id, offset };
            let record = Record {
                timestamp_ms: fetched.timestamp_ms,
                attempt: Some(deliveries),
                lock: Some(lock),
                ..Record::new(position, fetched.key.map(Into::into), fetched.value.map(Into::into))
            };
            if settling.is_on(now) || looks && *wanted == 0 {
                debug!("{} is kept aside: it may run elsewhere", record.at);
                self.aside.push(Aside { record, early: settling.is_early(now) });
            } else if *wanted > 0 {
                *wanted -= 1;
                self.keys.insert(at, record.key.clone());
                events.push(Event::Acquired(record));
            } else {
                self.locks.answer(at, Answer::Release); // a drain has begun since it was asked for
            }
        }
        count
    }

    /// A record that cannot be read is kept: it would be gone for good if it were delivered too often.
    fn hold_corrupt(&mut self, at: At, why: &str) {
        if self.corrupt.insert(at) {
            error!(
                "{}-{}@{}: {why}; it is kept locked, since to pass over it might lose a command; repair the log, or move the \
                 group's start past it (kafka-share-groups.sh --reset-offsets)",
                self.topic, at.0, at.1
            );
        }
    }

    fn lost(&mut self, lost: Lost, why: &str) {
        let key = self.keys.remove(&lost.at).flatten();
        let what = match lost.answer {
            None => "another worker may run it",
            Some(Answer::Accept | Answer::Reject) => "its result is reported, and it may run again elsewhere",
            Some(_) => return,
        };
        let Lost { at: (partition, offset), .. } = lost;
        let key = show_key(key.as_deref());
        warn!("{}-{partition}@{offset} key={key}: its acquisition lock is lost: {why}; {what}", self.topic);
    }

    /// A session is gone, and perhaps every lock in it. Passes on what waiting will not mend.
    fn broken(&mut self, id: i32, e: Error) -> Result<()> {
        self.forget_session(id);
        if !e.is_transient() {
            return Err(e);
        }
        let now = Instant::now();
        self.freshness.mark_stale();
        let runs_here = self.leaders.led_by(id).into_iter().any(|partition| self.locks.holds(partition));
        if let Some(leader) = self.leaders.get_mut(id) {
            let pause = leader.outage.failed(&e, now);
            leader.retry_at = now + if runs_here { pause.min(RECLAIM_PAUSE) } else { pause };
        }
        Ok(())
    }

    fn forget_session(&mut self, id: i32) {
        if let Some(leader) = self.leaders.get_mut(id) {
            leader.session = None;
            leader.settling = Settling::Awaited;
        }
        for partition in self.leaders.led_by(id) {
            self.locks.doubt(partition);
        }
    }

    /// Asks every leader that is not busy for what is due: answers, renewals, records.
    fn ask(&mut self, wanted: usize) -> Result<()> {
        let now = Instant::now();
        let mut free = wanted.saturating_sub(self.leaders.asked_for());
        let mut failure = Ok(());
        for id in self.leaders.in_turn() {
            let share = self.leaders.share_of(id, free);
            match self.ask_leader(id, share, now) {
                Ok(asked) => free = free.saturating_sub(asked),
                Err(e) => failure = failure.and(self.broken(id, e)),
            }
        }
        failure
    }

    /// Sends a leader what is due. Returns how many records it was asked for.
    fn ask_leader(&mut self, id: i32, wanted: usize, now: Instant) -> Result<usize> {
        let partitions = self.leaders.led_by(id);
        let assigned: BTreeSet<i32> = self.member.assigned().map_or(BTreeSet::new(), |assigned| assigned & &partitions);
        let missing: usize = partitions.iter().map(|&partition| self.locks.missing(partition)).sum();
        let due: Vec<i32> =
            partitions.iter().copied().filter(|&partition| self.locks.has_due(partition, now)).collect();
        let from: BTreeSet<i32> =
            partitions.iter().copied().filter(|id| assigned.contains(id) || self.locks.missing(*id) > 0).collect();
        let others_have_more = self.leaders.count() > 1;
        let Some(leader) = self.leaders.get_mut(id) else { return Ok(0) };
        let wanted = if leader.settling.is_on(now) { missing } else { wanted + missing };
        let wanted = if from.is_empty() || now < leader.ask_from { 0 } else { wanted };
        // One that has failed is to answer, so that it is known from when on it does.
        let opens = leader.settling == Settling::Awaited || !due.is_empty();
        if now < leader.retry_at || leader.session.as_ref().is_some_and(Session::is_busy) || !(opens || wanted > 0) {
            return Ok(0);
        }
        let session = match &mut leader.session {
            Some(session) => session,
            None => leader.session.insert(Session::new(self.cluster.open(id)?)),
        };
        if let Some(conn) = session.idle_conn().filter(|conn| conn.is_expiring()) {
            self.cluster.authenticate(conn)?; // not over another connection: the locks would be lost with this one
        }
        if session.is_open() {
            leader.settling.answered(now); // it leads another partition already
        }
        let deadline = now + PATIENCE;
        let none = Limits { records: 0, wait: Duration::ZERO, bytes: self.settings.bytes };
        if !session.is_open() && opens {
            session.fetch(&self.who, &BTreeSet::new(), none, Answers::new(), deadline)?;
            return Ok(0);
        }
        let goes_alone = due.iter().any(|partition| !from.contains(partition) || self.locks.is_urgent(*partition, now));
        let answers: Answers = due.iter().map(|&partition| (partition, self.locks.take(partition, now))).collect();
        if answers.is_empty() && wanted == 0 {
            return Ok(0);
        }
        if wanted == 0 || goes_alone {
            session.acknowledge(&self.who, answers, false, deadline)?;
            return Ok(0);
        }
        let is_idle = self.locks.is_empty() && !others_have_more && !self.ends_when_empty;
        let wait = if is_idle { self.settings.long_poll } else { BUSY_WAIT };
        let wait = wait.min(self.settings.long_poll).min(self.locks.lock_time() / 10);
        leader.asked_at = now;
        session.fetch(&self.who, &from, Limits { records: wanted, wait, ..none }, answers, deadline)?;
        Ok(wanted)
    }

    fn watch_window(&mut self) {
        let Some(long_ago) = self.window.due(Instant::now()) else { return };
        let oldest = self.locks.oldest(long_ago);
        let keys = &self.keys;
        let name = |at: &At| show_key(keys.get(at).and_then(|key| key.as_deref()));
        // Renewals wait meanwhile.
        self.window.look(&oldest, &self.cluster, &self.topic, self.locks.lock_time() / 6, name);
    }

    fn settle(&mut self, at: At, answer: Answer) {
        self.keys.remove(&at);
        self.locks.answer(at, answer);
    }

    /// Waits for an answer, for a connection to close, for the bell, or until something is due.
    fn wait(&self, deadline: Instant) {
        let mut connections: Vec<&Connection> = self.leaders.sessions().map(Session::conn).collect();
        connections.extend(self.member.awaited());
        let now = Instant::now();
        let until = self.leaders.next_retry(now).into_iter().chain(self.freshness.due());
        let until = until.chain(self.locks.next_due().filter(|&at| at > now));
        let until = until.chain([self.member.due().max(self.group_retry_at), deadline]).min();
        wait_readable_or(&connections, &self.waker, until.unwrap_or(deadline));
    }
}

fn debug_renewals(topic: &str, partition: i32, answers: &BTreeMap<i64, Answer>) {
    for (offset, _) in answers.iter().filter(|(_, answer)| **answer == Answer::Renew) {
        debug!("renewed the lock of {topic}-{partition}@{offset}");
    }
}

impl Source for ShareSource {
    fn poll(&mut self, wait: Duration, demand: &Demand<'_>, events: &mut Vec<Event>) -> Result<()> {
        let deadline = Instant::now() + wait;
        loop {
            self.work(demand, events)?;
            if !events.is_empty() || self.waker.take() || Instant::now() >= deadline {
                return Ok(());
            }
            self.wait(deadline);
        }
    }

    fn waker(&self) -> Option<Arc<Waker>> {
        Some(self.waker.clone())
    }

    fn reads_ahead(&self) -> bool {
        false
    }

    fn commit(&mut self, _: &[Commit]) -> Result<()> {
        Ok(()) // no partition is ours
    }

    fn metadata_limit(&self) -> usize {
        0
    }

    fn done_elsewhere(&mut self, partition: i32, offsets: Range<i64>) {
        offsets.for_each(|offset| self.settle((partition, offset), Answer::Accept));
    }

    fn rejected_elsewhere(&mut self, at: At) {
        self.settle(at, Answer::Reject);
    }

    fn not_running(&mut self, at: At) {
        self.settle(at, Answer::Release);
    }

    fn has_read_all(&mut self) -> Result<bool> {
        self.ends_when_empty = true;
        // A group that is new has no partitions for a moment.
        let Some(assigned) = self.member.assigned().filter(|assigned| !assigned.is_empty()) else { return Ok(false) };
        let is_dry = |id: &i32| self.leaders.of(*id).is_some_and(|leader| leader.dry >= READ_ALL);
        Ok(self.locks.is_empty() && assigned.iter().all(is_dry))
    }

    fn status(&self) -> String {
        let partitions = self.member.assigned().map_or("none yet".into(), in_short);
        format!("share group: partition(s) {partitions}, {}{}", self.locks.status(), self.window.status())
    }

    fn leave(&mut self) -> Result<bool> {
        if self.locks.owes_answers() || self.leaders.sessions().any(Session::is_busy) {
            return Ok(false); // they are sent, and taken, by polling
        }
        let deadline = Instant::now() + PATIENCE;
        for mut session in self.leaders.take_sessions().filter(Session::is_open) {
            // Frees what is still locked at once. If it fails, the connection's end does the same.
            if let Err(e) = session.close(&self.who, deadline) {
                debug!("{e}");
            }
        }
        self.member.leave(&mut self.cluster).map(|()| true)
    }
}

/// A new UUID in base64, which is how leaders read member ids.
fn new_member_id() -> Result<String> {
    let mut bytes = [0; 16];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Error::new(Kind::Unexpected, "the system gives no random bytes for a member id"))?;
    Ok(Base64UrlUnpadded::encode_string(&bytes))
}
