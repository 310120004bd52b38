//! The other side of the topics, for the tests that use one broker: writes command records and reads results and commits.

use std::collections::BTreeMap;

use super::client::Client;

/// A record's key and value.
pub type KeyValue = (Vec<u8>, Vec<u8>);

/// Writes records to one partition.
pub fn produce(broker: &str, topic: &str, partition: i32, records: &[KeyValue]) {
    Client::new(broker).produce(topic, partition, records);
}

/// Writes records by turns to `partitions` partitions.
pub fn spread(broker: &str, topic: &str, partitions: i32, records: &[KeyValue]) {
    Client::new(broker).spread(topic, partitions as usize, records);
}

/// All records of a topic, partition after partition.
pub fn read_all(broker: &str, topic: &str) -> Vec<KeyValue> {
    Client::new(broker).read_all(topic)
}

/// How many records were ever written to a topic; 0 while the broker is away.
pub fn count(broker: &str, topic: &str) -> usize {
    Client::new(broker).count(topic).unwrap_or(0)
}

/// What a group has committed in a topic, by partition; nothing while the broker is away.
pub fn committed(broker: &str, group: &str, topic: &str) -> BTreeMap<i32, i64> {
    let client = Client::new(broker);
    let partitions = client.metadata(topic).map_or(0, |metadata| metadata.leaders.len());
    let committed = client.committed(group, topic, partitions).unwrap_or_default();
    committed
        .into_iter()
        .filter(|(_, (offset, _))| *offset >= 0)
        .map(|(partition, (offset, _))| (partition, offset))
        .collect()
}

/// The states of the results by key; a key with several has them all.
pub fn states(broker: &str, topic: &str) -> BTreeMap<Vec<u8>, Vec<String>> {
    let mut states = BTreeMap::<_, Vec<String>>::new();
    for (key, value) in read_all(broker, topic) {
        states.entry(key).or_default().push(String::from_utf8(value).expect("a state"));
    }
    states
}
