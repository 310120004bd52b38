//! The writer of results against brokers of our own making, which answer what a test wants, late or with an error; and
//! against real ones, with lines that break when an answer is due. What it says is written has to be in the log, once.

mod fake;
mod support;

use std::cell::RefCell;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use airkafka_worker::broker::wire::dial::Dialer;
use airkafka_worker::broker::wire::sink::WireSink;
use airkafka_worker::broker::{Outgoing, Position, Sink, Target};
use airkafka_worker::config::client::Settings;
use airkafka_worker::config::{Client, GroupType, Kafka, StartFrom};
use airkafka_worker::error::Kind;
use fake::{DEAD_LETTERS, Fake, RESULTS};
use support::broker::{Broker, tool};
use support::kafka::read_all;
use support::proxy::{Fault, Proxy};

const MESSAGE_TOO_LARGE: i16 = 10;
const NOT_ENOUGH_REPLICAS: i16 = 19;
const TOPIC_AUTHORIZATION_FAILED: i16 = 29;
const OUT_OF_ORDER_SEQUENCE: i16 = 45;

fn sink_on(fake: &Fake) -> WireSink {
    connect(&fake.address(), RESULTS, Some(DEAD_LETTERS))
}

fn connect(broker: &str, results: &str, dead_letters: Option<&str>) -> WireSink {
    let config = Kafka {
        brokers: vec![broker.to_string()],
        topic: "commands".into(),
        results_topic: results.into(),
        dead_letter_topic: dead_letters.map(Into::into),
        group: "group".into(),
        group_type: GroupType::Consumer,
        from: StartFrom::Earliest,
        client: Client::Wire,
        connect_timeout: Duration::from_secs(10),
        instance_id: None,
        settings: Settings::default(),
    };
    let dialer = Arc::new(Dialer::new(&config).unwrap());
    // A broker that has just started has no producer ids to give yet.
    let sink = RefCell::new(None);
    let is_there = support::worker::wait_until(|| match WireSink::connect(&config, dialer.clone()) {
        Ok(connected) => sink.replace(Some(connected)).is_none(),
        Err(e) if e.is_transient() => false,
        Err(e) => panic!("{e}"),
    });
    assert!(is_there, "no sink on {broker}");
    sink.into_inner().unwrap()
}

/// A result without a key: it goes to the partition of its command.
fn outgoing(target: Target, partition: i32, offset: i64, value: &str) -> Outgoing {
    let at = Position { topic: "commands".into(), partition, offset };
    Outgoing {
        target,
        at,
        key: None,
        value: Some(value.into()),
        headers: vec![("airkafka-outcome", b"{}".to_vec())],
        unfit: false,
    }
}

fn left(unsent: &[Outgoing]) -> Vec<&str> {
    unsent.iter().map(|out| std::str::from_utf8(out.value.as_deref().unwrap()).unwrap()).collect()
}

/// Sends until everything is written.
fn send_all(sink: &mut dyn Sink, unsent: &mut Vec<Outgoing>) {
    let (sink, unsent) = (RefCell::new(sink), RefCell::new(unsent));
    let written = support::worker::wait_until(|| sink.borrow_mut().send(&mut unsent.borrow_mut()).is_ok());
    assert!(written, "never written: {:?}", left(&unsent.borrow()));
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
    let mut sink = sink_on(&fake);
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
    let mut sink = sink_on(&fake);
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
    let mut sink = sink_on(&fake);
    let mut unsent = vec![outgoing(Target::Results, 0, 1, "a"), outgoing(Target::Results, 1, 2, "b")];
    send_all(&mut sink, &mut unsent);
    assert_eq!(fake.values(), ["a", "b"]);
    assert_eq!(fake.producers(), 2);
}

#[test]
fn what_has_gathered_goes_out_in_one_request() {
    let fake = Fake::start(1, 3, Box::new(|_, _, _| (Duration::ZERO, 0)));
    let mut sink = sink_on(&fake);
    let values: Vec<String> = (0..30).map(|n| format!("{n:02}")).collect();
    let mut unsent: Vec<Outgoing> =
        values.iter().zip(0..).map(|(value, n)| outgoing(Target::Results, n % 3, n.into(), value)).collect();
    unsent.push(outgoing(Target::DeadLetter, 0, 30, "letter"));
    sink.send(&mut unsent).unwrap();
    assert!(unsent.is_empty());
    assert_eq!(fake.values(), [&values[..], &["letter".to_string()]].concat());
    assert_eq!(fake.requests(), 1);
    assert_eq!(fake.places(), 4, "three partitions and another topic");
}

#[test]
fn a_broker_that_is_away_does_not_hold_up_the_others() {
    let fake = Fake::start_without(3, 2, 3, Box::new(|_, _, _| (Duration::ZERO, 0)));
    let mut sink = sink_on(&fake);
    let mut unsent: Vec<Outgoing> =
        (0..3).map(|n| outgoing(Target::Results, n, n.into(), ["a", "b", "c"][n as usize])).collect();
    for more in ["d", "e"] {
        assert!(sink.send(&mut unsent).unwrap_err().is_transient());
        assert_eq!(left(&unsent), ["b"]);
        unsent.push(outgoing(Target::Results, 0, unsent.len() as i64 + 10 + i64::from(more == "e"), more));
    }
    let _ = sink.send(&mut unsent);
    assert_eq!((left(&unsent), fake.values()), (vec!["b"], ["a", "c", "d", "e"].map(String::from).into()));
}

#[test]
fn a_record_that_is_too_large_does_not_hold_up_the_others() {
    let too_large = |_: &str, _, values: &[String]| {
        (Duration::ZERO, if values.contains(&"huge".into()) { MESSAGE_TOO_LARGE } else { 0 })
    };
    let fake = Fake::start(1, 1, Box::new(too_large));
    let mut sink = sink_on(&fake);
    let values = ["a", "huge", "b", "c"];
    let mut unsent: Vec<Outgoing> =
        values.iter().zip(0..).map(|(value, n)| outgoing(Target::Results, 0, n, value)).collect();
    for _ in 0..4 {
        let e = sink.send(&mut unsent).unwrap_err();
        assert!(e.is_transient() && e.to_string().contains("max.message.bytes"), "{e}");
    }
    assert_eq!((left(&unsent), fake.values()), (vec!["huge"], ["a", "b", "c"].map(String::from).into()));
}

/// With a key, to the partition where the Java producer puts that key; with its headers.
#[test]
fn a_real_broker_has_it_as_the_java_client_would_write_it() {
    let broker = Broker::shared();
    let (ours, javas) = ("like-java-ours", "like-java-javas");
    broker.create_topic(ours, 5);
    broker.create_topic(javas, 5);
    let keys: Vec<String> = (0..40).map(|n| format!("('dag', 'task-{n}', '2026-01-{n}')")).collect();
    let mut unsent: Vec<Outgoing> = keys
        .iter()
        .zip(0..)
        .map(|(key, n)| Outgoing {
            key: Some(key.clone().into_bytes()),
            ..outgoing(Target::Results, 0, n, &format!("value-{n}"))
        })
        .collect();
    connect(broker.address(), ours, None).send(&mut unsent).unwrap();
    let lines: String = keys.iter().enumerate().map(|(n, key)| format!("{key}\tvalue-{n}\n")).collect();
    java_produce(broker.address(), javas, &lines);
    let (ours, javas) = (consumed(broker.address(), ours, 40), consumed(broker.address(), javas, 40));
    let partition = |lines: &[String]| -> Vec<String> {
        lines.iter().map(|line| line.replace("airkafka-outcome:{}\t", "").replace("NO_HEADERS\t", "")).collect()
    };
    assert_eq!(partition(&ours), partition(&javas));
    assert!(ours.iter().all(|line| line.contains("airkafka-outcome:{}")), "{ours:?}");
}

/// Writes lines, KEY TAB VALUE, with Kafka's own producer.
fn java_produce(broker: &str, topic: &str, lines: &str) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/broker/kafka.sh");
    let mut child =
        Command::new(script).args(["produce", broker, topic]).stdin(Stdio::piped()).spawn().expect("kafka.sh");
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

/// What Kafka's consumer prints of `count` records: partition, headers, key and value.
fn consumed(broker: &str, topic: &str, count: usize) -> Vec<String> {
    let class = "org.apache.kafka.tools.consumer.ConsoleConsumer";
    let count = count.to_string();
    let mut args = vec![class, "--bootstrap-server", broker, "--topic", topic, "--from-beginning", "--max-messages"];
    args.push(&count);
    let version = Broker::version();
    let is_old = ["0.", "1.", "2.", "3.", "4.0.", "4.1."].iter().any(|old| version.starts_with(old));
    let option = if is_old { "--property" } else { "--formatter-property" };
    for property in ["print.partition=true", "print.headers=true", "print.key=true"] {
        args.extend([option, property]);
    }
    let mut lines: Vec<String> = tool(&args).lines().map(Into::into).collect();
    lines.sort();
    lines
}

/// A line that breaks before a request has come through, or before its answer has; and a broker that is killed.
#[test]
fn what_was_not_answered_is_sent_again_and_stands_once() {
    let (proxy, broker) = Proxy::with_broker(&Broker::version());
    broker.create_topic("once", 3);
    let mut sink = connect(proxy.address(), "once", None);
    let mut wanted = Vec::new();
    let mut unsent = Vec::new();
    for n in 0..90 {
        match n {
            0 => proxy.set(Fault::ResetEvery(7)), // a retry takes up to four requests
            59 => proxy.set(Fault::None),
            60 => {
                broker.kill();
                broker.start_again();
            }
            _ => {}
        }
        wanted.push(format!("value-{n:02}"));
        unsent.push(outgoing(Target::Results, n % 3, n.into(), &wanted[n as usize]));
        // As the publisher does: what is left goes out with what comes next.
        if n % 4 == 3 {
            send_all(&mut sink, &mut unsent);
        } else {
            let _ = sink.send(&mut unsent);
        }
    }
    send_all(&mut sink, &mut unsent);
    let mut written: Vec<String> =
        read_all(broker.address(), "once").into_iter().map(|(_, value)| String::from_utf8(value).unwrap()).collect();
    written.sort();
    assert_eq!(written, wanted);
}

/// A topic that is made anew knows nothing of our producer id and sequences.
#[test]
fn a_topic_that_was_deleted_and_made_again_is_written_to() {
    let broker = Broker::shared();
    let topic = "made-again";
    broker.create_topic(topic, 1);
    let mut sink = connect(broker.address(), topic, None);
    for n in 0..3 {
        sink.send(&mut vec![outgoing(Target::Results, 0, n, "before")]).unwrap();
    }
    let class = "org.apache.kafka.tools.TopicCommand";
    tool(&[class, "--bootstrap-server", broker.address(), "--delete", "--topic", topic]);
    // The metadata of the deleted topic may live on for a moment.
    assert!(support::worker::wait_until(|| broker.client().create_topic(topic, 1, 1).is_ok()), "create {topic} again");
    broker.client().wait_in_sync(topic, 1);
    let values = ["a", "b", "c"];
    for (n, value) in values.iter().enumerate() {
        send_all(&mut sink, &mut vec![outgoing(Target::Results, 0, 10 + n as i64, value)]);
    }
    let written: Vec<Vec<u8>> = read_all(broker.address(), topic).into_iter().map(|(_, value)| value).collect();
    assert_eq!(written, values.map(|value| value.as_bytes().to_vec()));
}

/// A compacted topic takes no record without a key.
#[test]
fn a_record_that_a_topic_never_takes_does_not_hold_up_the_others() {
    let broker = Broker::shared();
    let topic = "compacted";
    let class = "org.apache.kafka.tools.TopicCommand";
    let create = [class, "--bootstrap-server", broker.address(), "--create", "--topic", topic, "--partitions", "1"];
    tool(&[&create[..], &["--config", "cleanup.policy=compact"]].concat());
    let mut sink = connect(broker.address(), topic, None);
    let keyed = |offset, value| Outgoing { key: Some(b"key".to_vec()), ..outgoing(Target::Results, 0, offset, value) };
    let mut unsent = vec![keyed(0, "a"), outgoing(Target::Results, 0, 1, "no key"), keyed(2, "b"), keyed(3, "c")];
    for _ in 0..4 {
        let e = sink.send(&mut unsent).unwrap_err();
        assert!(e.is_transient() && e.to_string().contains("InvalidRecord"), "{e}");
    }
    assert_eq!(left(&unsent), ["no key"]);
    let written: Vec<Vec<u8>> = read_all(broker.address(), topic).into_iter().map(|(_, value)| value).collect();
    assert_eq!(written, ["a", "b", "c"].map(|value| value.as_bytes().to_vec()));
}
