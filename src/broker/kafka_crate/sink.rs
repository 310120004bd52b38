//! Writes results with the `kafka` crate, acknowledged by all in-sync replicas.

use std::collections::HashSet;
use std::time::Duration;

use kafka::client::{KafkaClient, ProduceMessage, RequiredAcks};
use kafka::error::KafkaCode;

use super::{connect, explain, explain_code, guarded};
use crate::broker::route::{self, Topics};
use crate::broker::{Outgoing, Sink};
use crate::config;
use crate::error::{Error, Kind, Result};

/// How long the broker may wait for its replicas.
const ACK_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of keys and values in one request: what fits a socket's send buffer is written in one piece.
const REQUEST_BYTES: usize = 64 * 1024;

/// Owns a client of its own: a client is not shared between threads.
#[derive(Debug)]
pub struct KafkaSink {
    brokers: Vec<String>,
    topics: Topics,
    client: Option<KafkaClient>,
}

/// Why a request did not succeed.
enum Failure {
    /// A record in it is larger than its topic takes.
    TooLarge(Error),
    /// Anything else.
    Other(Error),
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        Failure::Other(e)
    }
}

impl KafkaSink {
    /// Connects and finds the topics.
    pub fn connect(config: &config::Kafka) -> Result<KafkaSink> {
        let topics = Topics::new(config);
        let client = Some(connect(&config.brokers, &topics.all())?);
        Ok(KafkaSink { brokers: config.brokers.clone(), topics, client })
    }

    /// Sends the first records of `unsent`, `limit` or a request full, and takes out what was acknowledged.
    fn send_some(&mut self, unsent: &mut Vec<Outgoing>, limit: usize) -> std::result::Result<(), Failure> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => connect(&self.brokers, &self.topics.all())?,
        };
        let mut places = Vec::new(); // topic and partition of each record of this request
        let mut bytes = 0;
        for out in unsent.iter().take(limit) {
            bytes += out.key.as_ref().map_or(0, Vec::len) + out.value.as_ref().map_or(0, Vec::len) + 64;
            if bytes > REQUEST_BYTES && !places.is_empty() {
                break;
            }
            let topic = self.topics.name(out.target);
            places.push((topic, choose_partition(&client, topic, out)?));
        }
        let messages = places.iter().zip(&*unsent).map(|(&(topic, partition), out)| {
            ProduceMessage::new(topic, partition, out.key.as_deref(), out.value.as_deref())
        });
        let confirms = guarded(|| client.produce_messages(RequiredAcks::All, ACK_TIMEOUT, messages))
            .map_err(|e| explain(e, "writing results".into()))?;

        let (mut acknowledged, mut failure) = (HashSet::new(), None);
        for (topic, confirm) in confirms.iter().flat_map(|c| c.partition_confirms.iter().map(|p| (c.topic.as_str(), p)))
        {
            match confirm.offset {
                Ok(_) => drop(acknowledged.insert((topic, confirm.partition))),
                Err(code) => {
                    let error = explain_code(code, format!("writing to {topic}-{}", confirm.partition));
                    failure = Some(match code {
                        KafkaCode::MessageSizeTooLarge | KafkaCode::RecordListTooLarge => Failure::TooLarge(error),
                        _ => Failure::Other(error),
                    });
                }
            }
        }
        if failure.is_none() && acknowledged.is_empty() {
            return Err(Error::new(Kind::Unavailable, "writing results: the broker's answer names no partition").into());
        }
        let mut places = places.iter();
        unsent.retain(|_| places.next().is_none_or(|place| !acknowledged.contains(place)));
        match failure {
            // The leaders may have moved: without its client, the next call looks for them again.
            Some(failure @ Failure::Other(_)) => Err(failure),
            failure => {
                self.client = Some(client);
                failure.map_or(Ok(()), Err)
            }
        }
    }
}

impl Sink for KafkaSink {
    fn send(&mut self, unsent: &mut Vec<Outgoing>) -> Result<()> {
        let (mut limit, mut too_large, mut last_error) = (usize::MAX, Vec::new(), Ok(()));
        while !unsent.is_empty() {
            match self.send_some(unsent, limit) {
                Ok(()) => {}
                Err(Failure::TooLarge(_)) if limit > 1 => limit = 1, // find out which it is
                Err(Failure::TooLarge(e)) => {
                    too_large.push(unsent.remove(0)); // it must not hold up the others
                    last_error = Err(e);
                }
                Err(Failure::Other(e)) => {
                    last_error = Err(e);
                    break;
                }
            }
        }
        unsent.append(&mut too_large);
        last_error
    }
}

/// Over all partitions of the topic, those without a leader included.
fn choose_partition(client: &KafkaClient, topic: &str, out: &Outgoing) -> Result<i32> {
    let no_leader = |what: String| Error::new(Kind::Unavailable, format!("{what} has no leader"));
    let topics = client.topics();
    let partitions = topics.partitions(topic).filter(|known| !known.is_empty());
    let partitions = partitions.ok_or_else(|| no_leader(topic.into()))?;
    let chosen = route::partition(out, partitions.len());
    match partitions.partition(chosen) {
        Some(partition) if partition.is_available() => Ok(chosen),
        _ => Err(no_leader(format!("{topic}-{chosen}"))),
    }
}
