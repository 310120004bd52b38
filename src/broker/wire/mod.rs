//! Kafka's protocol on blocking calls of our own: connections, groups, reading, writing; the codec is `kafka-protocol`.

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

/// The oldest version of Fetch that is used here: that of Kafka 0.11, with record batches.
pub const OLDEST_FETCH: i16 = 4;
