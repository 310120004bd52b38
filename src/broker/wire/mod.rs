//! Kafka's protocol on blocking calls of our own: connections, groups, reading, writing; the codec is `kafka-protocol`.

pub mod assignor;
pub mod cluster;
pub mod conn;
pub mod dial;
pub mod errors;
pub mod group;
pub mod guard;
pub mod stream;
