//! Workers in a share group on real brokers: many on one partition, locks that are renewed, workers that die, freeze and
//! leave, brokers that restart. On Kafka 4.4.0, or 4.2.1 if `AIRKAFKA_TEST_KAFKA_VERSION` says so.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use serde_json::{Value, json};
use support::broker::{Broker, Cluster, tool_of};
use support::client::Client;
use support::kafka::KeyValue;
use support::scene::{Scene, stop};
use support::topics::{Dice, record};
use support::worker::{Worker, wait_until};

/// Lets a group have short locks.
const SHORT_LOCKS: &str = "group.share.min.record.lock.duration.ms=1000";
const SHARE: [&str; 2] = ["--group-type", "share"];

fn version() -> String {
    env::var("AIRKAFKA_TEST_KAFKA_VERSION").ok().filter(|version| version.starts_with("4.")).unwrap_or("4.4.0".into())
}

fn start() -> Broker {
    Broker::start_version(&version(), &[SHORT_LOCKS])
}

fn shared() -> &'static Broker {
    static SHARED: OnceLock<Broker> = OnceLock::new();
    SHARED.get_or_init(start)
}

fn scene_on(broker: &Broker, partitions: usize) -> Scene {
    Scene::new(broker.client(), broker.address(), partitions, |name, count| broker.create_topic(name, count))
}

fn scene(partitions: usize) -> Scene {
    scene_on(shared(), partitions)
}

/// A worker in a share group, once it knows from where to read.
fn worker(scene: &Scene, args: &[&str]) -> Worker {
    let worker = scene.worker(&[&SHARE[..], args].concat());
    worker.wait_for_log("reading partition(s) 0");
    worker
}

/// Makes settings for a group, with Kafka's own tool.
fn configure_group(broker: &str, group: &str, settings: &str) {
    configure(broker, "groups", group, settings);
}

fn configure(broker: &str, kind: &str, name: &str, settings: &str) {
    let class = "kafka.admin.ConfigCommand";
    let what = ["--entity-type", kind, "--entity-name", name, "--add-config", settings];
    tool_of(&version(), &[&[class, "--bootstrap-server", broker, "--alter"], &what[..]].concat());
}

/// The outcomes that stand in the result topic as JSON, by key.
fn outcomes(client: &Client, topic: &str) -> BTreeMap<String, Vec<Value>> {
    let mut outcomes = BTreeMap::<String, Vec<Value>>::new();
    for (key, value) in client.read_all(topic) {
        let outcome = serde_json::from_slice(&value).expect("an outcome");
        outcomes.entry(String::from_utf8(key).unwrap()).or_default().push(outcome);
    }
    outcomes
}

fn results(scene: &Scene) -> usize {
    scene.client.count(&scene.results).unwrap_or(0)
}

/// What is still to be run: a worker that takes what is there finds nothing.
fn assert_nothing_left(scene: &Scene) {
    let mut last = scene.worker(&[&SHARE[..], &["--once"]].concat());
    last.expect_exit(0);
    assert!(last.log().contains("0 command(s) were started"), "{}", last.log());
}

fn pids(workers: &[Worker]) -> BTreeSet<u32> {
    workers.iter().map(Worker::pid).collect()
}

#[test]
fn three_workers_of_eight_threads_run_twenty_four_commands_of_one_partition_at_once() {
    let scene = scene(1);
    let workers: Vec<Worker> = (0..3).map(|_| worker(&scene, &["--threads", "8"])).collect();
    let records = scene.traced(0..240, 0.5);
    scene.spread(&records);
    workers[0].wait_until("all results", || results(&scene) == 240);
    assert_eq!(scene.most_alive(), 24);
    let starts = scene.starts();
    assert!(starts.values().all(|starts| starts.len() == 1), "{starts:?}");
    let mut by_worker = BTreeMap::<u32, usize>::new();
    starts.values().flatten().for_each(|start| *by_worker.entry(start.worker).or_default() += 1);
    assert_eq!(by_worker.keys().copied().collect::<BTreeSet<_>>(), pids(&workers));
    assert!(by_worker.values().all(|count| (64..=96).contains(count)), "within 20 % of 80: {by_worker:?}");
    scene.assert_none_lost(&records, &workers.iter().collect::<Vec<_>>());
    workers.into_iter().for_each(stop);
    assert_nothing_left(&scene);
}

/// A command that runs for `seconds`, under locks of `lock_ms`, is started once.
fn runs_long(broker: &Broker, lock_ms: u32, seconds: f32, renewals: usize, restart: bool) {
    let scene = scene_on(broker, 1);
    configure_group(&scene.brokers, &scene.group, &format!("share.record.lock.duration.ms={lock_ms}"));
    let worker = worker(&scene, &["--threads", "2", "--result-format", "json"]);
    scene.spread(&scene.traced(["long"], seconds));
    worker.wait_until("start", || scene.starts().len() == 1);
    if restart {
        broker.kill();
        broker.start_again();
    }
    let patience = Duration::from_secs_f32(120.0 + seconds);
    let ended = support::worker::wait_until_within(patience, || results(&scene) == 1);
    assert!(ended, "no result\n{}", worker.log());
    let log = worker.log();
    stop(worker);
    let outcomes = outcomes(&scene.client, &scene.results);
    let outcome = &outcomes["long"][0];
    assert_eq!(
        (outcome["state"].as_str(), outcome["attempt"].as_u64()),
        (Some("success"), Some(1)),
        "{outcome}\n{log}"
    );
    let starts = scene.starts();
    assert_eq!(starts["long"].len(), 1, "{starts:?}\n{log}");
    let renewed = log.matches("renewed the lock of").count();
    assert!(renewed >= renewals, "renewed {renewed} times\n{log}");
    assert_nothing_left(&scene);
}

#[test]
fn a_command_that_outlasts_its_lock_many_times_is_started_once() {
    runs_long(shared(), 2000, 12.0, 15, false);
}

#[test]
fn a_command_goes_on_while_its_broker_restarts_and_is_started_once() {
    runs_long(&start(), 3000, 40.0, 5, true);
}

#[test]
#[ignore = "takes eleven minutes"]
fn a_command_of_five_minutes_under_locks_of_fifteen_seconds_is_started_once() {
    let broker = start();
    runs_long(&broker, 15_000, 300.0, 15, false);
    runs_long(&broker, 15_000, 300.0, 15, true);
}

#[test]
fn what_a_killed_worker_ran_is_started_elsewhere_before_its_locks_end() {
    let scene = scene(1);
    let mut first = worker(&scene, &["--threads", "4"]);
    let records = scene.traced(0..4, 3.0);
    scene.spread(&records);
    first.wait_until("four starts", || scene.starts().len() == 4);
    let second = worker(&scene, &["--threads", "4"]);
    first.kill();
    let killed = Instant::now();
    let again = || scene.starts().values().all(|starts| starts.len() == 2);
    second.wait_until("four starts anew", again);
    let took = killed.elapsed();
    eprintln!("started elsewhere {took:?} after the kill");
    assert!(took.as_secs() < 30, "the locks last 30 s: {took:?}");
    second.wait_until("all results", || results(&scene) == 4);
    scene.assert_none_lost(&records, &[&second]);
    stop(second);
    assert_nothing_left(&scene);
}

/// Freezes a worker for longer than its lock lasts while it runs a command; another one runs the command meanwhile.
/// Returns the frozen worker, awake again, and the scene.
fn freeze(args: &[&str]) -> (Worker, Scene) {
    let scene = scene(1);
    configure_group(&scene.brokers, &scene.group, "share.record.lock.duration.ms=2000");
    let frozen = worker(&scene, &[&["--threads", "1"], args].concat());
    scene.spread(&scene.traced(["it"], 4.0));
    frozen.wait_until("start", || scene.starts().len() == 1);
    let other = worker(&scene, &["--threads", "1"]);
    frozen.signal("STOP");
    other.wait_until("start elsewhere", || scene.starts()["it"].len() == 2);
    other.wait_until("result", || results(&scene) == 1);
    frozen.signal("CONT");
    stop(other);
    (frozen, scene)
}

#[test]
fn a_worker_that_wakes_up_does_not_report_what_it_no_longer_owns() {
    let (frozen, scene) = freeze(&[]);
    frozen.wait_for_log("key=it is not reported: it is another worker's by now");
    stop(frozen);
    assert_eq!(scene.states()["it"], ["success"], "once, by the other");
    assert_nothing_left(&scene);
}

#[test]
fn a_worker_that_wakes_up_reports_all_the_same_if_it_is_told_to_finish() {
    let (frozen, scene) = freeze(&["--on-lost-lock", "finish"]);
    frozen.wait_until("result of its own", || results(&scene) == 2);
    stop(frozen);
    assert_eq!(scene.states()["it"], ["success", "success"]);
}

#[test]
fn a_command_is_stopped_when_its_lock_is_lost() {
    let scene = scene(1);
    configure_group(&scene.brokers, &scene.group, "share.record.lock.duration.ms=2000");
    let frozen = worker(&scene, &["--threads", "1"]);
    let forever = support::worker::lifetime(77);
    scene.spread(&[record("long", json!(["sleep", forever]))]);
    frozen.wait_until("start", || support::worker::processes_with(&forever).len() == 1);
    let other = worker(&scene, &["--threads", "1"]);
    frozen.signal("STOP");
    other.wait_until("start elsewhere", || support::worker::processes_with(&forever).len() == 2);
    frozen.signal("CONT");
    frozen.wait_for_log("its acquisition lock is lost");
    frozen.wait_for_log("key=long is not reported: it is another worker's by now");
    assert_eq!(support::worker::processes_with(&forever).len(), 1, "stopped here, and runs there");
    stop(frozen);
}

#[test]
fn workers_that_are_replaced_one_by_one_lose_nothing_and_run_nothing_twice() {
    let scene = scene(1);
    let mut workers: Vec<Worker> = (0..3).map(|_| worker(&scene, &["--threads", "4"])).collect();
    let records = scene.traced(0..900, 0.1);
    // A steady load meanwhile, from a thread with a client of its own.
    let (brokers, topic, load) = (scene.brokers.clone(), scene.commands.clone(), records.clone());
    let producer = thread::spawn(move || {
        for chunk in load.chunks(30) {
            Client::new(&brokers).produce(&topic, 0, chunk);
            thread::sleep(Duration::from_millis(250));
        }
    });
    for round in 0..9 {
        workers[0].wait_until("progress", || scene.ended() >= 90 * (round + 1));
        let mut old = workers.remove(0);
        old.signal("TERM");
        workers.push(worker(&scene, &["--threads", "4"]));
        old.expect_exit(0);
    }
    producer.join().expect("the load");
    workers[0].wait_until("all results", || results(&scene) >= records.len());
    let all: Vec<&Worker> = workers.iter().collect();
    scene.assert_none_lost(&records, &all);
    let starts = scene.starts();
    let twice: Vec<_> = starts.iter().filter(|(_, starts)| starts.len() != 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    assert_eq!(results(&scene), records.len());
    workers.into_iter().for_each(stop);
    assert_nothing_left(&scene);
}

/// Three workers run `count` commands while `kills` of them are killed at random moments.
fn survives_kills(count: usize, kills: usize) {
    const THREADS: usize = 4;
    let mut dice = Dice::new();
    let scene = scene(2);
    let new = || scene.worker(&[&SHARE[..], &["--threads", "4"]].concat());
    let records = scene.traced(0..count, 0.05);
    scene.spread(&records);
    let mut workers: Vec<Worker> = (0..3).map(|_| new()).collect();
    for kill in 0..kills {
        let wanted = (count * 9 / 10) * (kill + 1) / (kills + 1);
        workers[0].wait_until("progress", || scene.ended() >= wanted);
        thread::sleep(Duration::from_millis(dice.below(200)));
        let victim = dice.below(3) as usize;
        workers[victim].kill();
        workers[victim] = new();
    }
    let done = || scene.client.read_all(&scene.results).into_iter().map(|(key, _)| key).collect::<BTreeSet<_>>().len();
    workers[0].wait_until("all results", || results(&scene) >= count && done() == count);
    scene.assert_none_lost(&records, &workers.iter().collect::<Vec<_>>());
    let again: usize = scene.starts().values().map(|starts| starts.len() - 1).sum();
    eprintln!("{count} commands, {kills} kills: {again} started again, at most {} may be", kills * THREADS);
    assert!(again <= kills * THREADS, "{again}");
    workers.into_iter().for_each(stop);
    assert_nothing_left(&scene);
}

#[test]
fn kills_at_random_moments_lose_nothing_and_repeat_no_more_than_what_ran() {
    survives_kills(1000, 8);
}

#[test]
#[ignore = "takes minutes"]
fn fifty_kills_under_ten_thousand_commands() {
    survives_kills(10_000, 50);
}

#[test]
fn a_record_that_is_no_command_is_reported_and_rejected() {
    let (broker, scene) = (shared(), scene(1));
    let (ours, theirs) = (format!("{}-dead", scene.commands), format!("dlq.{}", scene.commands));
    broker.create_topic(&ours, 1);
    let has_dead_letters = !version().starts_with("4.2");
    if has_dead_letters {
        broker.create_topic(&theirs, 1);
        configure(&scene.brokers, "topics", &theirs, "errors.deadletterqueue.group.enable=true");
        let settings =
            format!("errors.deadletterqueue.topic.name={theirs},errors.deadletterqueue.copy.record.enable=true");
        configure_group(&scene.brokers, &scene.group, &settings);
    }
    let worker = worker(&scene, &["--threads", "1", "--result-format", "json", "--dead-letter-topic", &ours]);
    scene.spread(&[(b"bad".to_vec(), b"{".to_vec()), record("good", json!(["true"]))]);
    worker.wait_until("both results", || results(&scene) == 2);
    let outcomes = outcomes(&scene.client, &scene.results);
    assert_eq!((&outcomes["bad"][0]["reason"], &outcomes["good"][0]["state"]), (&json!("invalid"), &json!("success")));
    assert_eq!(scene.client.read_all(&ours), [(b"bad".to_vec(), b"{".to_vec())]);
    if has_dead_letters {
        assert!(worker.log().contains(&format!("the broker writes what is rejected to {theirs}")));
        worker.wait_until("the broker's dead letter", || scene.client.count(&theirs).unwrap_or(0) == 1);
    }
    stop(worker);
    assert_nothing_left(&scene);
}

#[test]
fn a_command_that_kills_its_worker_each_time_is_reported_as_poison_and_not_dropped() {
    let scene = scene(1);
    let dead = format!("{}-dead", scene.commands);
    shared().create_topic(&dead, 1);
    let poison = record("poison", json!(["sh", "-c", "kill -9 $PPID"]));
    scene.spread(std::slice::from_ref(&poison));
    let args = [&SHARE[..], &["--threads", "1", "--result-format", "json", "--dead-letter-topic", &dead]].concat();
    for _ in 0..4 {
        assert_eq!(scene.worker(&args).wait().code(), None, "killed");
    }
    let worker = scene.worker(&args);
    worker.wait_until("its result", || results(&scene) == 1);
    let outcome = &outcomes(&scene.client, &scene.results)["poison"][0];
    assert_eq!((&outcome["state"], &outcome["reason"]), (&json!("failed"), &json!("poison")), "{outcome}");
    assert_eq!(outcome["attempt"], json!(5));
    assert!(outcome["error"].as_str().unwrap().starts_with("delivered 5 times"), "{outcome}");
    assert_eq!(scene.client.read_all(&dead), [poison]);
    stop(worker);
    assert_nothing_left(&scene);
}

#[test]
fn the_kind_of_group_is_chosen_by_what_is_there_and_said() {
    let scene = scene(1);
    scene.spread(&[record("old", json!(["true"]))]);
    let auto = ["--group-type", "auto"];
    // A new group: shared, from the oldest record on.
    let worker = scene.worker(&auto);
    worker
        .wait_for_log("taking part in it as a share group (the brokers offer it, and no offsets are committed for it)");
    worker.wait_until("the result", || results(&scene) == 1);
    // Another kind beside it.
    let mut other = scene.worker(&["--group-type", "consumer"]);
    other.expect_exit(78);
    assert!(other.log().contains("is a share group") && other.log().contains("--group-type"), "{}", other.log());
    stop(worker);
    // And the other way round, with members and without.
    let scene = self::scene(1);
    let run = |kind: &str| scene.worker(&["--group-type", kind]);
    let consumer = run("consumer");
    consumer.wait_for_log("1 member(s)");
    let mut share = run("share");
    share.expect_exit(78);
    assert!(share.log().contains("is a consumer group, and this worker takes it for a share group"), "{}", share.log());
    let auto = run("auto");
    auto.wait_for_log("taking part in it as a consumer group (it is one, with 1 member(s)");
    stop(auto);
    stop(consumer);
    let auto = run("auto");
    auto.wait_for_log("taking part in it as a consumer group (offsets are committed for it)");
    stop(auto);
}

#[test]
fn where_renewal_is_switched_off_auto_falls_back_to_a_consumer_group() {
    let newest = Broker::start_version("4.4.0", &[]); // older ones have no such switch
    let scene = scene_on(&newest, 1);
    configure_group(&scene.brokers, &scene.group, "share.renew.acknowledge.enable=false");
    let mut share = scene.worker(&SHARE);
    share.expect_exit(78);
    assert!(share.log().contains("renewal of locks is switched off"), "{}", share.log());
    let auto = scene.worker(&["--group-type", "auto"]);
    auto.wait_for_log("taking part in it as a consumer group (renewal of locks is switched off");
    scene.spread(&[record("it", json!(["true"]))]);
    auto.wait_until("its result", || results(&scene) == 1);
    stop(auto);
}

#[test]
fn the_command_that_holds_up_its_partition_is_named() {
    let scene = scene(1);
    let worker = worker(&scene, &["--threads", "2"]);
    let dir = tempfile::tempdir().unwrap();
    let go = dir.path().join("go");
    let waits = format!("while ! test -e {}; do sleep 0.1; done", go.display());
    scene.spread(&[record("the long one", json!(["sh", "-c", waits]))]);
    worker.wait_for_log("started ");
    let others: Vec<KeyValue> = (0..2100).map(|n| record(&n.to_string(), json!(["true"]))).collect();
    scene.spread(&others);
    worker.wait_for_log("key=the long one runs long, and 2100 record(s) were written behind it");
    worker.signal("USR1");
    worker.wait_for_log("; 2100 record(s) behind the oldest lock of partition 0, at 0, of 2000");
    assert!(worker.log().contains("of 2 thread(s) busy, "), "{}", worker.log());
    // The window is 2,000 records: the rest comes when the long one has ended.
    worker.wait_until("the window's results", || results(&scene) >= 1999);
    fs::write(&go, "").unwrap();
    worker.wait_until("all results", || results(&scene) == 2101);
    stop(worker);
    assert_nothing_left(&scene);
}

#[test]
fn a_drain_gives_back_what_was_not_started_and_finishes_what_runs() {
    let scene = scene(1);
    let dir = tempfile::tempdir().unwrap();
    let go = dir.path().join("go");
    let waits = format!("while ! test -e {}; do sleep 0.05; done", go.display());
    let records: Vec<KeyValue> = (0..6).map(|n| record(&n.to_string(), json!(["sh", "-c", waits.clone()]))).collect();
    scene.spread(&records);
    let old = worker(&scene, &["--threads", "2"]);
    old.wait_until("two starts", || old.log().matches("started ").count() == 2);
    old.signal("TERM");
    old.wait_for_log("draining");
    let new = worker(&scene, &["--threads", "4"]);
    new.wait_until("the other four", || new.log().matches("DEBUG started ").count() == 4);
    fs::write(&go, "").unwrap();
    let mut old = old;
    old.expect_exit(0);
    new.wait_until("all results", || results(&scene) == 6);
    assert!(scene.states().values().all(|states| states == &["success"]));
    stop(new);
    assert!(wait_until(|| results(&scene) == 6));
    assert_nothing_left(&scene);
}

#[test]
fn without_rights_to_settings_it_says_what_to_run_and_a_session_that_runs_out_costs_no_lock() {
    let broker = start();
    let settings = "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
                    super.users=User:ANONYMOUS\nsasl.enabled.mechanisms=PLAIN\n\
                    listener.name.login.connections.max.reauth.ms=3000\n\
                    listener.name.login.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule \
                    required user_alice=\"alice-secret\";\n";
    let login = broker.add_listeners(&[("LOGIN", "SASL_PLAINTEXT")], settings).remove(0);
    let mut scene = scene_on(&broker, 1);
    let grant = |operation: &str, kind: &str, name: &str| {
        let what = ["--add", "--allow-principal", "User:alice", "--operation", operation, kind, name];
        let class = ["org.apache.kafka.tools.AclCommand", "--bootstrap-server", broker.address()];
        tool_of(&version(), &[&class, &what[..]].concat());
    };
    grant("Read", "--topic", &scene.commands);
    grant("Write", "--topic", &scene.results);
    grant("Read", "--group", &scene.group);
    configure_group(&scene.brokers, &scene.group, "share.auto.offset.reset=earliest");
    scene.spread(&scene.traced(["long"], 10.0));
    let jaas = "org.apache.kafka.common.security.plain.PlainLoginModule required username=\"alice\" password=\"alice-secret\";";
    let dir = tempfile::tempdir().unwrap();
    scene.brokers = login;
    let file = dir.path().join("client.properties");
    let properties = format!("security.protocol=SASL_PLAINTEXT\nsasl.mechanism=PLAIN\nsasl.jaas.config={jaas}\n");
    fs::write(&file, properties).unwrap();
    let worker = worker(&scene, &["--threads", "2", "--kafka-config", file.to_str().unwrap()]);
    let told =
        format!("--alter --entity-type groups --entity-name {} --add-config share.auto.offset.reset", scene.group);
    assert!(worker.log().contains(&told), "{}", worker.log());
    worker.wait_until("its result", || results(&scene) == 1);
    assert!(!worker.log().contains("fails:"), "{}", worker.log());
    stop(worker);
    assert_eq!(scene.starts()["long"].len(), 1);
}

#[test]
fn a_leader_that_dies_under_load_costs_no_command() {
    let cluster = Cluster::start(&version());
    let scene =
        Scene::new(cluster.client(), &cluster.addresses(), 3, |name, count| cluster.create_topic(name, count, 3));
    let workers: Vec<Worker> = (0..2).map(|_| scene.worker(&[&SHARE[..], &["--threads", "4"]].concat())).collect();
    let records = scene.traced(0..600, 0.1);
    scene.spread(&records);
    workers[0].wait_until("a third", || scene.ended() >= 200);
    let leader = scene.client.leader(&scene.commands, 0);
    cluster.kill(leader);
    let done = || scene.client.read_all(&scene.results).into_iter().map(|(key, _)| key).collect::<BTreeSet<_>>().len();
    workers[0].wait_until("all results", || results(&scene) >= 600 && done() == 600);
    cluster.start_again(leader);
    scene.assert_none_lost(&records, &workers.iter().collect::<Vec<_>>());
    workers.into_iter().for_each(stop);
    assert_nothing_left(&scene);
}

#[test]
fn after_a_broker_has_restarted_each_worker_has_back_what_it_runs_and_an_idle_one_starts_none_of_it() {
    let broker = start();
    let scene = scene_on(&broker, 1);
    let busy: Vec<Worker> = (0..3).map(|_| worker(&scene, &["--threads", "1"])).collect();
    let records = scene.traced(["a", "b", "c"], 45.0);
    scene.spread(&records);
    busy[0].wait_until("all starts", || scene.starts().len() == 3);
    let idle = worker(&scene, &["--threads", "4"]);
    broker.kill();
    broker.start_again();
    idle.wait_until("all results", || results(&scene) == 3);
    let all: Vec<&Worker> = busy.iter().chain([&idle]).collect();
    scene.assert_none_lost(&records, &all);
    scene.assert_nothing_alive_twice(&all);
    assert!(scene.starts().values().all(|starts| starts.len() == 1), "{:?}", scene.starts());
    busy.into_iter().for_each(stop);
    stop(idle);
    assert_nothing_left(&scene);
}
