//! Our own Kafka client: connections, groups, reading, writing; the codec is `kafka-protocol`. For Kafka 0.11 and newer.
//!
//! From the socket up: `stream` and `tls`, `conn` (with `guard`), `dial` (with `sasl`, `scram`), `cluster`; then `group` with
//! `assignor`, and `fetch` with `records`, which `source` puts together; and `producer` with `sink`. `errors` says what the
//! codes of the broker mean.

pub mod assignor;
pub mod cluster;
pub mod conn;
pub mod dial;
pub mod errors;
pub mod fetch;
pub mod group;
pub mod guard;
pub mod producer;
pub mod records;
pub mod sasl;
pub mod scram;
pub mod sink;
pub mod source;
pub mod stream;
pub mod tls;
pub mod token;

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
