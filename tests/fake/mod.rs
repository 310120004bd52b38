//! Brokers of our own making, which answer a Produce as a test wants: late, or with an error. What they take stands in a log,
//! where a batch of one producer and sequence stands once, as in Kafka's.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use airkafka_worker::broker::wire::records;
use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use kafka_protocol::messages::{
    ApiKey, ApiVersionsResponse, BrokerId, InitProducerIdResponse, MetadataResponse, ProduceRequest, ProduceResponse,
    ProducerId, RequestHeader, ResponseHeader, TopicName,
};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};

/// The topic of results.
pub const RESULTS: &str = "results";
/// The topic of dead letters.
pub const DEAD_LETTERS: &str = "dead-letters";

/// How a node answers a batch of these values for a partition: after what time, with which code.
pub type Answer = Box<dyn Fn(&str, i32, &[String]) -> (Duration, i16) + Send + Sync>;

/// Brokers 1, 2, ...: partition N of every topic is led by number N % count + 1, but for dead letters, which the last leads.
pub struct Fake {
    addresses: Vec<u16>,
    partitions: i32,
    answer: Answer,
    log: Mutex<Log>,
}

#[derive(Default)]
struct Log {
    /// Values by topic and partition.
    values: BTreeMap<(String, i32), Vec<String>>,
    /// Producer, sequence and partition of what is in it: those are not taken twice.
    seen: Vec<(i64, i32, String, i32)>,
    producers: i64,
    requests: usize,
}

impl Fake {
    /// All of them there.
    pub fn start(nodes: usize, partitions: i32, answer: Answer) -> Arc<Fake> {
        Self::start_without(nodes, 0, partitions, answer)
    }

    /// Broker `away` is in the metadata alone.
    pub fn start_without(nodes: usize, away: usize, partitions: i32, answer: Answer) -> Arc<Fake> {
        let listeners: Vec<TcpListener> = (0..nodes).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses = listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        let fake = Arc::new(Fake { addresses, partitions, answer, log: Mutex::default() });
        for (listener, _) in listeners.into_iter().zip(1..).filter(|(_, node)| *node != away) {
            let fake = fake.clone();
            thread::spawn(move || {
                for stream in listener.incoming() {
                    let fake = fake.clone();
                    thread::spawn(move || while fake.serve(stream.as_ref().unwrap()).is_some() {});
                }
            });
        }
        fake
    }

    /// The address of the first one.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.addresses[0])
    }

    /// How many producer ids were given.
    pub fn producers(&self) -> i64 {
        self.log.lock().unwrap().producers
    }

    /// How many Produce requests have come.
    pub fn requests(&self) -> usize {
        self.log.lock().unwrap().requests
    }

    /// How many partitions hold something.
    pub fn places(&self) -> usize {
        self.log.lock().unwrap().values.len()
    }

    /// Answers one request; `None`: the client is gone.
    fn serve(&self, mut stream: &TcpStream) -> Option<()> {
        let mut size = [0; 4];
        stream.read_exact(&mut size).ok()?;
        let mut frame = vec![0; u32::from_be_bytes(size) as usize];
        stream.read_exact(&mut frame).ok()?;
        let (api, version) = (i16::from_be_bytes([frame[0], frame[1]]), i16::from_be_bytes([frame[2], frame[3]]));
        let key = ApiKey::try_from(api).unwrap();
        let mut frame = Bytes::from(frame);
        let header = RequestHeader::decode(&mut frame, key.request_header_version(version)).unwrap();
        let mut out = BytesMut::from(&[0; 4][..]);
        let response = ResponseHeader::default().with_correlation_id(header.correlation_id);
        response.encode(&mut out, key.response_header_version(version)).unwrap();
        match key {
            ApiKey::ApiVersions => self.versions().encode(&mut out, version),
            ApiKey::Metadata => self.metadata().encode(&mut out, version),
            ApiKey::InitProducerId => {
                let mut log = self.log.lock().unwrap();
                log.producers += 1;
                let id = ProducerId(log.producers);
                InitProducerIdResponse::default().with_producer_id(id).with_producer_epoch(0).encode(&mut out, version)
            }
            ApiKey::Produce => {
                self.produce(&ProduceRequest::decode(&mut frame, version).unwrap()).encode(&mut out, version)
            }
            other => panic!("{other:?} is not expected"),
        }
        .unwrap();
        let length = out.len() as u32 - 4;
        out[..4].copy_from_slice(&length.to_be_bytes());
        stream.write_all(&out).ok()
    }

    fn versions(&self) -> ApiVersionsResponse {
        let keys = [(ApiKey::ApiVersions, 3), (ApiKey::Metadata, 9), (ApiKey::InitProducerId, 4), (ApiKey::Produce, 9)];
        let api = |(key, max): (ApiKey, i16)| {
            ApiVersion::default().with_api_key(key as i16).with_min_version(3.min(max)).with_max_version(max)
        };
        ApiVersionsResponse::default().with_api_keys(keys.map(api).into())
    }

    fn metadata(&self) -> MetadataResponse {
        let brokers = self.addresses.iter().zip(1..).map(|(&port, id)| {
            MetadataResponseBroker::default()
                .with_node_id(BrokerId(id))
                .with_host(StrBytes::from_static_str("127.0.0.1"))
                .with_port(port.into())
        });
        let count = self.addresses.len() as i32;
        let topic = |name: &'static str| {
            let partitions = (0..self.partitions).map(|index| {
                let leader = if name == DEAD_LETTERS { count } else { index % count + 1 };
                MetadataResponsePartition::default().with_partition_index(index).with_leader_id(BrokerId(leader))
            });
            MetadataResponseTopic::default()
                .with_name(Some(TopicName(StrBytes::from_static_str(name))))
                .with_partitions(partitions.collect())
        };
        MetadataResponse::default()
            .with_brokers(brokers.collect())
            .with_topics(vec![topic(RESULTS), topic(DEAD_LETTERS)])
    }

    fn produce(&self, request: &ProduceRequest) -> ProduceResponse {
        self.log.lock().unwrap().requests += 1;
        let topics = request.topic_data.iter().map(|topic| {
            let name = topic.name.0.to_string();
            let partitions = topic.partition_data.iter().map(|data| {
                let batch = data.records.clone().unwrap();
                let read = records::decode(batch.clone(), 0, &[]);
                assert_eq!(read.corrupt, None);
                let text = |value: &Option<Bytes>| String::from_utf8(value.as_deref().unwrap().to_vec()).unwrap();
                let values: Vec<String> = read.records.iter().map(|record| text(&record.value)).collect();
                let (wait, code) = (self.answer)(&name, data.index, &values);
                if code == 0 {
                    self.append(&name, data.index, &batch, values);
                }
                thread::sleep(wait);
                PartitionProduceResponse::default().with_index(data.index).with_error_code(code)
            });
            TopicProduceResponse::default().with_name(topic.name.clone()).with_partition_responses(partitions.collect())
        });
        ProduceResponse::default().with_responses(topics.collect())
    }

    fn append(&self, topic: &str, partition: i32, batch: &[u8], values: Vec<String>) {
        let producer = i64::from_be_bytes(batch[43..51].try_into().unwrap());
        let sequence = i32::from_be_bytes(batch[53..57].try_into().unwrap());
        let entry = (producer, sequence, topic.to_string(), partition);
        let mut log = self.log.lock().unwrap();
        if !log.seen.contains(&entry) {
            log.seen.push(entry);
            log.values.entry((topic.to_string(), partition)).or_default().extend(values);
        }
    }

    /// What is in the log, in order of the values.
    pub fn values(&self) -> Vec<String> {
        let mut all: Vec<String> = self.log.lock().unwrap().values.values().flatten().cloned().collect();
        all.sort();
        all
    }
}
