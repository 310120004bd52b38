//! Kafka's protocol on blocking calls of our own: connections, groups, reading, writing; the codec is `kafka-protocol`.

pub mod conn;
pub mod guard;
pub mod stream;
