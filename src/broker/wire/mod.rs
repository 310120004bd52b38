//! Our own Kafka client: connections, groups, reading, writing; the codec is `kafka-protocol`. For Kafka 0.11 and newer.
//!
//! From the socket up: `stream` and `tls`, `conn` (with `guard`), `dial` (with `sasl`, `scram`), `cluster` (with `freshness`); then `group` with
//! `assignor`, and `fetch` with `records`, which `source` puts together for consumer groups; `share` for share groups; and
//! `producer` with `sink`. `kind` chooses between the two kinds of group. `errors` says what the codes of the broker mean.

pub mod assignor;
pub mod cluster;
pub mod conn;
pub mod dial;
pub mod ends;
pub mod errors;
pub mod fetch;
pub mod freshness;
pub mod group;
pub mod guard;
pub mod kind;
pub mod producer;
pub mod records;
pub mod sasl;
pub mod scram;
pub mod share;
pub mod sink;
pub mod source;
pub mod stream;
pub mod tls;
pub mod token;

use std::collections::BTreeSet;
use std::time::Duration;

use kafka_protocol::messages::TopicName;
use kafka_protocol::protocol::StrBytes;

/// The oldest version of Fetch that is used here: that of Kafka 0.11, with record batches.
pub const OLDEST_FETCH: i16 = 4;

/// A topic's name as it stands in requests.
fn topic_name(topic: &str) -> TopicName {
    TopicName(StrBytes::from_string(topic.to_string()))
}

/// A duration as it stands in requests, in milliseconds.
fn millis(duration: Duration) -> i32 {
    duration.as_millis().try_into().unwrap_or(i32::MAX)
}

/// Partitions in short: `0-3,7`.
fn in_short(partitions: &BTreeSet<i32>) -> String {
    let mut runs: Vec<(i32, i32)> = Vec::new();
    for &partition in partitions {
        match runs.last_mut() {
            Some((_, end)) if *end + 1 == partition => *end = partition,
            _ => runs.push((partition, partition)),
        }
    }
    let runs: Vec<String> = runs
        .iter()
        .map(|(start, end)| if start == end { start.to_string() } else { format!("{start}-{end}") })
        .collect();
    if runs.is_empty() { "none".into() } else { runs.join(",") }
}
