//! The seam to where records come from and results go: two traits and the plain types they speak.
//!
//! [`Source`] is owned by the consumer thread, [`Sink`] by the publish thread; no implementation knows of commands,
//! ledgers or channels. Three places implement both: `wire` (our own Kafka client), `kafka_crate` (for old brokers) and
//! `local` (a file or stdin in, stdout out).

pub mod acquisition;
pub mod kafka_crate;
pub mod local;
pub mod outage;
mod probe;
pub mod reading;
mod route;
pub mod waker;
pub mod wire;

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::Result;
use acquisition::AcquisitionLock;
use waker::Waker;

/// How we call ourselves to a broker; it stands in its logs and metrics.
pub const CLIENT_ID: &str = "airkafka-worker";

/// Where a record stands: its topic, partition and offset (for `--input`: the file, 0 and the line number).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// Topic, shared by all its records.
    pub topic: Arc<str>,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}@{}", self.topic, self.partition, self.offset)
    }
}

/// A record by partition and offset, where the topic goes without saying.
pub type At = (i32, i64);

/// A record as it was read.
#[derive(Clone, Debug)]
pub struct Record {
    /// Where it stands.
    pub at: Position,
    /// Key; opaque.
    pub key: Option<Vec<u8>>,
    /// Value; what `record::decode` reads.
    pub value: Option<Vec<u8>>,
    /// When it was written, in milliseconds since the epoch, where the source tells.
    pub timestamp_ms: Option<i64>,
    /// How often it was delivered, this time included, where the source tells.
    pub attempt: Option<u32>,
    /// Its lock, where records are given one by one (share groups) and not by partition.
    pub lock: Option<Arc<AcquisitionLock>>,
}

impl Record {
    /// A record of which nothing else is known.
    pub fn new(at: Position, key: Option<Vec<u8>>, value: Option<Vec<u8>>) -> Record {
        Record { at, key, value, timestamp_ms: None, attempt: None, lock: None }
    }

    /// By partition and offset.
    pub fn place(&self) -> At {
        (self.at.partition, self.at.offset)
    }
}

/// What a [`Source`] has to say.
#[derive(Debug)]
pub enum Event {
    /// From now on this partition is ours, and was committed up to `offset` (the next one to run) with `metadata`.
    Assigned {
        /// Partition.
        partition: i32,
        /// The first offset that is not committed.
        offset: i64,
        /// What was committed beside it.
        metadata: String,
    },
    /// The next record of an assigned partition; offsets grow within a partition.
    Record(Record),
    /// This record is ours alone, whosever the partition is; the source keeps the account of it.
    Acquired(Record),
    /// This partition is to go to another member of the group: start nothing more of it, commit it a last time, and it
    /// is [released](Source::released).
    Revoked {
        /// Partition.
        partition: i32,
    },
    /// All partitions are lost, and cannot be committed any more.
    Lost,
    /// Which records of this partition other members run, and have run and reported. Each time it replaces what was said
    /// before; it comes after `Assigned`, before the first record.
    Claims {
        /// Partition.
        partition: i32,
        /// Offsets whose command runs elsewhere.
        running: Vec<i64>,
        /// Offsets whose command has run elsewhere, or here before, its result acknowledged.
        done: Vec<Range<i64>>,
    },
    /// There will be no more records (`--input` at its end).
    End,
}

/// What to commit for one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Partition.
    pub partition: i32,
    /// The lowest offset that is not settled.
    pub offset: i64,
    /// The run list of what is settled beyond it (see `ledger`).
    pub metadata: String,
}

/// What the consumer thread wants, and has under way.
#[derive(Clone, Copy, Debug)]
pub struct Demand<'a> {
    /// How many records are wanted; a source that reads whole partitions may give more.
    pub want: usize,
    /// Partitions of which none are wanted for now.
    pub paused: &'a BTreeSet<i32>,
    /// What runs on our threads.
    pub running: &'a BTreeSet<At>,
}

/// Where records come from.
pub trait Source: Send {
    /// Adds to `events` what has come, waiting up to about `wait` for the first. Is called often, also when no records are
    /// wanted: a group expects signs of life. An error that [is transient](crate::error::Error::is_transient) leaves the
    /// source able to go on: call again later.
    fn poll(&mut self, wait: Duration, demand: &Demand<'_>, events: &mut Vec<Event>) -> Result<()>;

    /// Commits; on an error nothing is known to be committed.
    fn commit(&mut self, commits: &[Commit]) -> Result<()>;

    /// How many characters of commit metadata are kept for a partition; 0 if none are.
    fn metadata_limit(&self) -> usize;

    /// Whether records may be read before there is a thread for them.
    fn reads_ahead(&self) -> bool {
        true
    }

    /// What ends its waiting for records before anything has come.
    fn waker(&self) -> Option<Arc<Waker>> {
        None
    }

    /// Until when the partitions are ours, whatever comes; after that nothing is to be started before the next poll.
    fn lease(&self) -> Option<Instant> {
        None
    }

    /// A revoked partition has been committed a last time.
    fn released(&mut self, _partition: i32) {}

    /// Commands have ended, and are reported, whose account is not kept here: the partition is not ours any more, and its
    /// owner has to know; or the record alone was ours.
    fn done_elsewhere(&mut self, _partition: i32, _offsets: Range<i64>) {}

    /// The same for a record that can never be run: nobody is to get it again.
    fn rejected_elsewhere(&mut self, at: At) {
        self.done_elsewhere(at.0, at.1..at.1.saturating_add(1));
    }

    /// A record that was said to run runs no more, or will not be run here, and is not done; its account is not kept here.
    fn not_running(&mut self, _at: At) {}

    /// Whether all that was on the topic when this was first asked has been read, as far as our partitions go. False also
    /// where that cannot be said yet.
    fn has_read_all(&mut self) -> Result<bool> {
        Ok(false) // a source with an end says so: `Event::End`
    }

    /// How things stand, for the log, beyond what its partitions tell.
    fn status(&self) -> String {
        String::new()
    }

    /// No more records are wanted, for good: others may have our partitions while the last commands run.
    fn drain(&mut self) {}

    /// Leaves, after the last commit. Returns whether that is done; if not, poll and call again.
    fn leave(&mut self) -> Result<bool> {
        Ok(true)
    }
}

/// Which topic an [`Outgoing`] record goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// The results topic.
    Results,
    /// The dead-letter topic.
    DeadLetter,
}

/// A record to write, and whose result it carries.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// Which topic.
    pub target: Target,
    /// The command record it belongs to.
    pub at: Position,
    /// Key.
    pub key: Option<Vec<u8>>,
    /// Value.
    pub value: Option<Vec<u8>>,
    /// Headers; dropped by a sink that cannot carry them.
    pub headers: Vec<(&'static str, Vec<u8>)>,
    /// Whether the command record can never be run.
    pub unfit: bool,
}

/// Where results go.
pub trait Sink: Send {
    /// Writes `unsent` and takes out what was acknowledged, whether or not it returns an error; what is left is for the
    /// next call.
    fn send(&mut self, unsent: &mut Vec<Outgoing>) -> Result<()>;
}

/// Both ends of one place.
pub type Pair = (Box<dyn Source>, Box<dyn Sink>);

/// Whether the first broker that answers is one from before 0.11, which our own client does not talk to. If none
/// answers: no.
pub fn are_too_old(brokers: &[String]) -> bool {
    let served = brokers.iter().find_map(|broker| probe::probe(broker).ok());
    let newest =
        served.map(|served| served.and_then(|served| served.range(probe::FETCH)).map_or(0, |(_, newest)| newest));
    newest.is_some_and(|newest| newest < wire::OLDEST_FETCH)
}
