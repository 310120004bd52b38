//! The `kafka` crate behind the seam: for brokers that still serve the first version of each request (up to 3.9).
//!
//! What the crate lacks or gets wrong (0.10.0), and what is done about it here:
//!
//! - no group membership: offsets are committed, but two workers of one group would each run everything. Said at start.
//! - no commit metadata, headers or time stamps: a crash behind a long command runs again what had ended after it.
//! - after an I/O error the dead connection is kept: a new client is built.
//! - it believes any port and connects without a time limit: `probe` asks first.
//! - it can panic on a broken answer: `guarded` makes an error of it.
//! - `send` is one `write()`, and its rest is forgotten if a signal interrupts it: the threads that use a client take no
//!   signals (`sys::take_no_signals`), and requests are kept small.
//! - after the last attempt a refused commit is tried again without a pause, for ever: attempts are not limited, so that
//!   there is always a pause.
//! - reads and writes may take up to 120 s, which cannot be changed: so long a black-holed broker blocks its thread.

mod sink;
mod source;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use kafka::client::{GroupOffsetStorage, KafkaClient};
use kafka::error::{Error as CrateError, KafkaCode};

use super::CLIENT_ID;
use super::probe::{self, probe};
use crate::error::{Error, Kind, Result, os_text};

pub use sink::KafkaSink;
pub use source::KafkaSource;

/// Connects to whichever of `brokers` answers, and loads what there is to know about `topics`, which have to exist.
fn connect(brokers: &[String], topics: &[&str]) -> Result<KafkaClient> {
    let mut answering = Vec::new();
    let mut failure = None;
    for broker in brokers {
        match check(broker) {
            Ok(()) => answering.push(broker.clone()),
            Err(e) if e.is_transient() => drop(failure.get_or_insert(e)),
            Err(e) => return Err(e),
        }
    }
    if let (true, Some(e)) = (answering.is_empty(), failure) {
        return Err(e);
    }
    let mut client = KafkaClient::new(answering);
    client.set_client_id(CLIENT_ID.into());
    client.set_group_offset_storage(Some(GroupOffsetStorage::Kafka));
    client.set_retry_backoff_time(Duration::from_millis(100));
    client.set_retry_max_attempts(u32::MAX);
    load_metadata(&mut client, topics)?;
    let leaders: BTreeSet<String> =
        topics.iter().flat_map(|topic| leaders(&client, topic)).map(|(_, leader)| leader).collect();
    for leader in leaders.iter().filter(|leader| !brokers.contains(leader)) {
        check(leader)
            .map_err(|e| e.hint("this is the address the cluster advertises for a leader (advertised.listeners)"))?;
    }
    Ok(client)
}

/// Whether the crate can talk to this broker.
fn check(broker: &str) -> Result<()> {
    match probe(broker)?.and_then(|served| served.range(probe::FETCH)) {
        Some((lowest, highest)) if lowest > 0 => Err(Error::new(
            Kind::Config,
            format!("broker {broker} serves Fetch {lowest} to {highest}, and --client kafka speaks only 0 (Kafka 4 removed it: KIP-896)"),
        )
        .hint("use a broker up to 3.9 with this client")),
        _ => Ok(()),
    }
}

/// Loads the partitions and leaders of `topics`.
fn load_metadata(client: &mut KafkaClient, topics: &[&str]) -> Result<()> {
    guarded(|| client.load_metadata(topics)).map_err(|e| explain(e, "asking for the leaders".into()))?;
    for topic in topics {
        if leaders(client, topic).is_empty() {
            return Err(Error::new(
                Kind::Unavailable,
                format!("topic {topic} does not exist, or none of its partitions has a leader"),
            )
            .hint(format!(
                "create it (kafka-topics.sh --create --topic {topic} --partitions N) or look at the brokers"
            )));
        }
    }
    Ok(())
}

/// The partitions of `topic` that have a leader, and its address.
fn leaders(client: &KafkaClient, topic: &str) -> Vec<(i32, String)> {
    let topics = client.topics();
    let partitions = topics.partitions(topic);
    let known = partitions.iter().flat_map(|partitions| partitions.iter());
    known.filter_map(|p| Some((p.id(), p.leader()?.host().to_string()))).collect()
}

/// Calls the crate; a panic in it becomes an error. The client must be dropped after any error.
fn guarded<T>(call: impl FnOnce() -> kafka::error::Result<T>) -> kafka::error::Result<T> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or(Err(CrateError::CodecError))
}

/// Says what the crate's error means: what was tried, why it failed, what to do.
fn explain(error: CrateError, trying: String) -> Error {
    match error {
        CrateError::Io(e) => Error::new(Kind::Unavailable, format!("{trying}: {}", os_text(&e))),
        CrateError::Kafka(code) | CrateError::TopicPartitionError { error_code: code, .. } => {
            explain_code(code, trying)
        }
        CrateError::NoHostReachable => Error::new(Kind::Unavailable, format!("{trying}: no broker can be reached")),
        CrateError::UnexpectedEOF => {
            Error::new(Kind::Unavailable, format!("{trying}: the broker closed the connection"))
                .hint("if this goes on: a listener that wants TLS or SASL, which this client does not speak")
        }
        CrateError::ArcSelf(e) => Error::new(Kind::Unavailable, format!("{trying}: {e}")),
        e => Error::new(Kind::Unavailable, format!("{trying}: {}", e.to_string().to_lowercase())),
    }
}

fn explain_code(code: KafkaCode, trying: String) -> Error {
    use KafkaCode::*;
    let error = |kind, why: &str| Error::new(kind, format!("{trying}: {why}"));
    match code {
        TopicAuthorizationFailed | GroupAuthorizationFailed | ClusterAuthorizationFailed => {
            error(Kind::Refused, &format!("the broker refuses it ({code:?})"))
                .hint("this client has no identity: allow User:ANONYMOUS or use another listener")
        }
        UnknownMemberId | IllegalGeneration | RebalanceInProgress | InconsistentGroupProtocol => {
            error(Kind::Config, "other consumers are members of this group, and this client cannot join them")
                .hint("stop them or give another --group")
        }
        InvalidGroupId => {
            error(Kind::Config, "the broker does not accept the group's name").hint("give another --group")
        }
        MessageSizeTooLarge | RecordListTooLarge | InvalidMessageSize => {
            error(Kind::Unavailable, "the record is larger than the topic takes")
                .hint("raise the topic's max.message.bytes")
        }
        UnknownTopicOrPartition => error(Kind::Unavailable, "no such topic or partition on this broker"),
        CorruptMessage => {
            error(Kind::Unavailable, "a record's checksum does not match").hint("look at the broker's disk")
        }
        code => error(Kind::Unavailable, &format!("the broker answers {code:?}")),
    }
}
