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
pub mod sink;
pub mod source;
pub mod stream;

/// temporary
pub struct Settings {
    pub request_timeout: std::time::Duration,
    pub session_timeout: std::time::Duration,
    pub heartbeat_interval: std::time::Duration,
    pub max_partition_fetch_bytes: i32,
    pub fetch_max_bytes: i32,
    pub read_committed: bool,
    pub metadata_max_age: std::time::Duration,
}
impl Default for Settings {
    fn default() -> Self {
        use std::time::Duration;
        let session: u64 = std::env::var("TMP_SESSION").ok().and_then(|s| s.parse().ok()).unwrap_or(30000);
        Settings {
            request_timeout: Duration::from_secs(30),
            session_timeout: Duration::from_millis(session),
            heartbeat_interval: Duration::from_millis(session / 10),
            max_partition_fetch_bytes: 1 << 20,
            fetch_max_bytes: 8 << 20,
            read_committed: true,
            metadata_max_age: Duration::from_secs(300),
        }
    }
}
