//! The writer of results against brokers of our own making, which answer what a test wants, late or with an error; and
//! against real ones, with lines that break when an answer is due. What it says is written has to be in the log, once.

mod support;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use airkafka_worker::broker::wire::dial::Dialer;
use airkafka_worker::broker::wire::records;
use airkafka_worker::broker::wire::sink::WireSink;
use airkafka_worker::broker::{Outgoing, Position, Sink, Target};
use airkafka_worker::config::client::Settings;
use airkafka_worker::config::{Client, Kafka, StartFrom};
use airkafka_worker::error::Kind;
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

const RESULTS: &str = "results";
const DEAD_LETTERS: &str = "dead-letters";
const NOT_ENOUGH_REPLICAS: i16 = 19;
const TOPIC_AUTHORIZATION_FAILED: i16 = 29;
const OUT_OF_ORDER_SEQUENCE: i16 = 45;

/// How a node answers a batch of these values for a partition: after what time, with which code.
type Answer = Box<dyn Fn(&str, i32, &[String]) -> (Duration, i16) + Send + Sync>;

/// Brokers 1, 2, ...: partition N of every topic is led by number N % count + 1, but for dead letters, which the last leads.
struct Fake {
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
    fn start(nodes: usize, partitions: i32, answer: Answer) -> Arc<Fake> {
        let listeners: Vec<TcpListener> = (0..nodes).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses = listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        let fake = Arc::new(Fake { addresses, partitions, answer, log: Mutex::default() });
        for listener in listeners {
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

    fn sink(&self) -> WireSink {
        connect(&format!("127.0.0.1:{}", self.addresses[0]), RESULTS, Some(DEAD_LETTERS))
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

    fn values(&self) -> Vec<String> {
        let mut all: Vec<String> = self.log.lock().unwrap().values.values().flatten().cloned().collect();
        all.sort();
        all
    }
}

fn connect(broker: &str, results: &str, dead_letters: Option<&str>) -> WireSink {
    let config = Kafka {
        brokers: vec![broker.to_string()],
        topic: "commands".into(),
        results_topic: results.into(),
        dead_letter_topic: dead_letters.map(Into::into),
        group: "group".into(),
        from: StartFrom::Earliest,
        client: Client::Wire,
        connect_timeout: Duration::from_secs(10),
        instance_id: None,
        settings: Settings::default(),
    };
    WireSink::connect(&config, Arc::new(Dialer::new(&config).unwrap())).unwrap()
}

/// A result without a key: it goes to the partition of its command.
fn outgoing(target: Target, partition: i32, offset: i64, value: &str) -> Outgoing {
    let at = Position { topic: "commands".into(), partition, offset };
    Outgoing { target, at, key: None, value: Some(value.into()), headers: vec![("airkafka-outcome", b"{}".to_vec())] }
}

fn left(unsent: &[Outgoing]) -> Vec<&str> {
    unsent.iter().map(|out| std::str::from_utf8(out.value.as_deref().unwrap()).unwrap()).collect()
}

/// Sends until everything is written.
fn send_all(sink: &mut dyn Sink, unsent: &mut Vec<Outgoing>) {
    for _ in 0..200 {
        if sink.send(unsent).is_ok() {
            return;
        }
        thread::sleep(Duration::from_millis(50));
    }
    panic!("never written: {:?}", left(unsent));
}

/// Broker 1 takes its time for results, and has too few replicas when "second" comes for the first time; broker 2 refuses
/// dead letters `times` times.
fn refusing(times: usize) -> Arc<Fake> {
    let (refusals, turned_down) = (Mutex::new(times), Mutex::new(false));
    Fake::start(
        2,
        1,
        Box::new(move |topic, _, values| {
            if topic == DEAD_LETTERS {
                let mut refusals = refusals.lock().unwrap();
                let code = if *refusals > 0 { TOPIC_AUTHORIZATION_FAILED } else { 0 };
                *refusals = refusals.saturating_sub(1);
                return (Duration::ZERO, code);
            }
            let turn_down =
                values.contains(&"second".into()) && !std::mem::replace(&mut *turned_down.lock().unwrap(), true);
            (Duration::from_millis(300), if turn_down { NOT_ENOUGH_REPLICAS } else { 0 })
        }),
    )
}

/// What is not left to be written has to be in the log.
fn assert_none_lost(fake: &Fake, unsent: &[Outgoing], values: &[&str]) {
    let written = fake.values();
    for value in values {
        let is_left = left(unsent).contains(value);
        assert!(is_left || written.contains(&value.to_string()), "{value} is lost; written: {written:?}");
    }
}

/// A broker refuses while the answer of another one is under way: that is taken all the same.
#[test]
fn a_refusal_does_not_keep_other_results_from_being_settled() {
    let fake = refusing(usize::MAX);
    let mut sink = fake.sink();
    let mut unsent = vec![outgoing(Target::Results, 0, 1, "first"), outgoing(Target::DeadLetter, 0, 2, "letter")];
    assert_eq!(sink.send(&mut unsent).unwrap_err().kind(), Kind::Refused);
    assert_eq!((left(&unsent), fake.values()), (vec!["letter"], vec!["first".to_string()]));
    // The publisher goes on with what still runs.
    unsent.push(outgoing(Target::Results, 0, 3, "second"));
    for _ in 0..2 {
        assert_eq!(sink.send(&mut unsent).unwrap_err().kind(), Kind::Refused);
        assert_none_lost(&fake, &unsent, &["first", "second"]);
    }
    assert_eq!((left(&unsent), fake.values()), (vec!["letter"], vec!["first".to_string(), "second".into()]));
}

/// The same, and then it is allowed: no answer is left on a connection that would be taken for that to another request.
#[test]
fn an_answer_is_never_taken_for_that_to_another_request() {
    let fake = refusing(1);
    let mut sink = fake.sink();
    let mut unsent = vec![outgoing(Target::Results, 0, 1, "first"), outgoing(Target::DeadLetter, 0, 2, "letter")];
    assert_eq!(sink.send(&mut unsent).unwrap_err().kind(), Kind::Refused);
    unsent.push(outgoing(Target::Results, 0, 3, "second"));
    let _ = sink.send(&mut unsent);
    assert_none_lost(&fake, &unsent, &["first", "letter", "second"]);
    send_all(&mut sink, &mut unsent);
    assert_eq!(fake.values(), ["first", "letter", "second"]);
}

/// One broker wants another producer while the answer of another one is under way.
#[test]
fn what_was_answered_before_a_new_producer_is_not_written_twice() {
    let first = Mutex::new(true);
    let fake = Fake::start(
        2,
        2,
        Box::new(move |_, partition, _| match partition {
            0 if std::mem::take(&mut *first.lock().unwrap()) => (Duration::ZERO, OUT_OF_ORDER_SEQUENCE),
            0 => (Duration::ZERO, 0),
            _ => (Duration::from_millis(300), 0),
        }),
    );
    let mut sink = fake.sink();
    let mut unsent = vec![outgoing(Target::Results, 0, 1, "a"), outgoing(Target::Results, 1, 2, "b")];
    send_all(&mut sink, &mut unsent);
    assert_eq!(fake.values(), ["a", "b"]);
    assert_eq!(fake.log.lock().unwrap().producers, 2);
}
