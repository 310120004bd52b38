//! The other side of the topics: writes command records and reads results, offsets and commits, as Airflow would.

use std::collections::BTreeMap;
use std::time::Duration;

use kafka::client::{
    Compression, FetchOffset, FetchPartition, GroupOffsetStorage, KafkaClient, ProduceMessage, RequiredAcks,
};

use super::worker::wait_until;

/// A record's key and value.
pub type KeyValue = (Vec<u8>, Vec<u8>);

fn client(broker: &str, topic: &str) -> KafkaClient {
    let mut client = KafkaClient::new(vec![broker.to_owned()]);
    client.set_group_offset_storage(Some(GroupOffsetStorage::Kafka));
    client.set_fetch_max_bytes_per_partition(8 << 20);
    let there = wait_until(|| {
        let mut probe = KafkaClient::new(vec![broker.to_owned()]);
        probe.load_metadata(&[topic]).is_ok()
            && probe.topics().partitions(topic).is_some_and(|p| !p.available_ids().is_empty())
    });
    assert!(there, "topic {topic} is not on {broker}");
    client.load_metadata(&[topic]).expect("metadata");
    client
}

/// Writes records to a partition, as one batch.
pub fn produce(broker: &str, topic: &str, partition: i32, compression: Compression, records: &[KeyValue]) {
    let mut client = client(broker, topic);
    client.set_compression(compression);
    let messages = records.iter().map(|(key, value)| ProduceMessage::new(topic, partition, Some(key), Some(value)));
    let confirms = client.produce_messages(RequiredAcks::All, Duration::from_secs(10), messages).expect("produce");
    for confirm in confirms.iter().flat_map(|confirm| &confirm.partition_confirms) {
        confirm.offset.expect("acknowledged");
    }
}

/// Writes records by turns to `partitions` partitions, not compressed.
pub fn spread(broker: &str, topic: &str, partitions: i32, records: &[KeyValue]) {
    for partition in 0..partitions {
        let own: Vec<KeyValue> =
            records.iter().skip(partition as usize).step_by(partitions as usize).cloned().collect();
        own.chunks(200).for_each(|chunk| produce(broker, topic, partition, Compression::NONE, chunk));
    }
}

/// All records of a topic, partition after partition. The broker may be away for a while.
pub fn read_all(broker: &str, topic: &str) -> Vec<KeyValue> {
    let mut client = client(broker, topic);
    let mut records = Vec::new();
    let ends = client.fetch_topic_offsets(topic, FetchOffset::Latest).expect("offsets");
    for end in ends {
        let mut offset = 0;
        while offset < end.offset {
            let request = FetchPartition::new(topic, end.partition, offset);
            let responses = client.fetch_messages([request]).expect("fetch");
            let data = responses[0].topics()[0].partitions()[0].data().expect("data");
            assert!(!data.messages().is_empty(), "no progress at {topic}-{}@{offset}", end.partition);
            for message in data.messages() {
                records.push((message.key.to_vec(), message.value.to_vec()));
                offset = message.offset + 1;
            }
        }
    }
    records
}

/// How many records were ever written to a topic.
pub fn count(broker: &str, topic: &str) -> usize {
    let ends = client(broker, topic).fetch_topic_offsets(topic, FetchOffset::Latest);
    ends.map_or(0, |ends| ends.iter().map(|end| end.offset as usize).sum())
}

/// What a group has committed in a topic, by partition.
pub fn committed(broker: &str, group: &str, topic: &str) -> BTreeMap<i32, i64> {
    let committed = client(broker, topic).fetch_group_topic_offset(group, topic).expect("committed offsets");
    committed.into_iter().filter(|p| p.offset >= 0).map(|p| (p.partition, p.offset)).collect()
}

/// The states of the results by key; a key with several has them all.
pub fn states(broker: &str, topic: &str) -> BTreeMap<Vec<u8>, Vec<String>> {
    let mut states = BTreeMap::<_, Vec<String>>::new();
    for (key, value) in read_all(broker, topic) {
        states.entry(key).or_default().push(String::from_utf8(value).expect("a state"));
    }
    states
}
