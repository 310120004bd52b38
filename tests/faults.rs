//! Workers while things go wrong: brokers killed, leaders moved, connections reset, silent, slow or spoilt, ports that are no
//! broker, a worker stopped for longer than its session.
//!
//! What holds through all of it: no command is lost, and none is started while it runs.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use support::broker::{Broker, Cluster};
use support::kafka::KeyValue;
use support::proxy::{Fault, Proxy};
use support::scene::{Scene, stop};
use support::worker::{Worker, wait_until_within};

/// How soon work has to go on once what was wrong is over. Far more than it takes, so that a busy machine does not matter.
const DEADLINE: Duration = Duration::from_secs(30);

fn on_broker(broker: &Broker, brokers: &str, partitions: usize) -> Scene {
    Scene::new(broker.client(), brokers, partitions, |name, partitions| broker.create_topic(name, partitions))
}

/// Waits until `count` more commands have ended than now.
fn wait_for_progress(scene: &Scene, worker: &Worker, count: usize) {
    let wanted = scene.ended() + count;
    worker.wait_until("progress", || scene.ended() >= wanted);
}

/// How many threads and open files a process has.
fn holds(worker: &Worker) -> (usize, usize) {
    let count = |what| fs::read_dir(format!("/proc/{}/{what}", worker.pid())).unwrap().count();
    (count("task"), count("fd"))
}

#[test]
fn a_broker_that_is_killed_again_and_again_costs_nothing() {
    let broker = Broker::start();
    let partitions = 4;
    let scene = on_broker(&broker, broker.address(), partitions);
    let rounds: usize =
        std::env::var("AIRKAFKA_TEST_BROKER_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    let worker = scene.worker(&["--threads", "4"]);
    let mut records = scene.traced(["first"], 0.0);
    scene.spread(&records);
    scene.wait_for_commit(&worker, 1);
    let held = holds(&worker);
    for round in 0..rounds {
        // The last partition has no backlog: what comes there has not to wait for its turn.
        let load = scene.traced((0..150).map(|n| format!("{round}-{n}")), 0.02);
        scene.client.spread(&scene.commands, partitions - 1, &load);
        records.extend(load);
        wait_for_progress(&scene, &worker, 30);
        broker.kill();
        broker.start_again();
        let back = Instant::now();
        let fresh = format!("fresh-{round}");
        let record = scene.traced([&fresh], 0.0);
        scene.client.produce(&scene.commands, partitions as i32 - 1, &record);
        records.extend(record);
        let started = wait_until_within(DEADLINE, || scene.starts().contains_key(&fresh));
        assert!(started, "nothing new was started {DEADLINE:?} after the broker was back\n{}", worker.log());
        eprintln!("round {round}: a new command started {:?} after the broker was back", back.elapsed());
    }
    scene.wait_for_commit(&worker, records.len());
    let holds = holds(&worker);
    assert!(holds.0 <= held.0 && holds.1 <= held.1 + 2, "threads and files grew from {held:?} to {holds:?}");
    scene.assert_nothing_alive_twice(&[&worker]);
    scene.assert_none_lost(&records, &[&worker]);
    stop(worker);
}

/// One cluster for the tests that take its nodes down, one test at a time.
fn cluster() -> MutexGuard<'static, Option<Cluster>> {
    static CLUSTER: Mutex<Option<Cluster>> = Mutex::new(None);
    let mut cluster = CLUSTER.lock().unwrap_or_else(PoisonError::into_inner);
    if cluster.is_none() {
        *cluster = Some(Cluster::start(&Broker::version()));
    }
    cluster
}

#[test]
fn leaders_and_coordinators_die_and_work_goes_on() {
    let mut shared = cluster();
    let cluster = shared.take().expect("a cluster"); // a test that fails leaves none to the next
    let create = |name: &str, partitions| cluster.create_topic(name, partitions, 3);
    let scene = Scene::new(cluster.client(), &cluster.addresses(), 6, create);
    let mut records = Vec::new();
    let workers = [scene.worker(&["--threads", "4"]), scene.worker(&["--threads", "4"])];
    workers.iter().for_each(|worker| worker.wait_for_log("2 member(s)"));
    let [first, second] = &workers;
    for victim in ["leader of commands", "coordinator", "leader of results", "nobody"] {
        // Enough that there is something to do until the node is back.
        let load = scene.traced((0..800).map(|n| format!("{}-{n}", victim.replace(' ', "-"))), 0.05);
        scene.spread(&load);
        records.extend(load);
        wait_for_progress(&scene, first, 40);
        let node = match victim {
            "leader of commands" => scene.client.leader(&scene.commands, 0),
            "coordinator" => scene.client.coordinator(&scene.group),
            "leader of results" => scene.client.leader(&scene.results, 0),
            _ => break,
        };
        // Nodes are taken down one at a time: the replicas on the last one have to be in sync again.
        [&scene.commands, &scene.results].iter().for_each(|topic| scene.client.wait_in_sync(topic, 3));
        eprintln!("killing node {node}, the {victim}");
        let before = scene.client.count(&scene.results).expect("all leaders are there");
        let committed = scene.committed().expect("the coordinator is there");
        cluster.kill(node);
        // While it is down: commands are run, their results written, and both committed.
        first.wait_until("results without the node", || {
            scene.client.count(&scene.results).is_ok_and(|count| count >= before + 100)
        });
        second.wait_until("commits without the node", || scene.committed().is_some_and(|now| now >= committed + 100));
        cluster.start_again(node);
    }
    cluster.elect_preferred_leaders();
    scene.wait_for_commit(first, records.len());
    scene.assert_nothing_alive_twice(&[first, second]);
    scene.assert_none_lost(&records, &[first, second]);
    workers.into_iter().for_each(stop);
    *shared = Some(cluster);
}

#[test]
fn a_broker_that_stays_away_holds_up_its_own_partitions_alone() {
    let mut shared = cluster();
    let cluster = shared.take().expect("a cluster");
    // Commands without replicas, so that their partitions go away with the node; the rest has three.
    let create = |name: &str, partitions| cluster.create_topic(name, partitions, if partitions == 1 { 3 } else { 1 });
    let scene = Scene::new(cluster.client(), &cluster.addresses(), 6, create);
    let node = scene.client.leader(&scene.commands, 0);
    let led: Vec<i32> = (0..6).filter(|&partition| scene.client.leader(&scene.commands, partition) == node).collect();
    assert!(led.len() < 6, "one node leads all partitions");
    let before = scene.traced((0..60).map(|n| format!("before-{n}")), 0.0);
    scene.spread(&before);
    let worker = scene.worker(&["--threads", "4"]);
    scene.wait_for_commit(&worker, before.len());
    // Behind the node there is work that cannot be read once it is gone.
    let mut behind = Vec::new();
    for &partition in &led {
        let records = scene.traced((0..20).map(|n| format!("behind-{partition}-{n}")), 0.3);
        scene.client.produce(&scene.commands, partition, &records);
        behind.extend(records);
    }
    worker.wait_until("start of what is behind", || scene.starts().keys().any(|name| name.starts_with("behind")));
    cluster.kill(node);
    let mut elsewhere = Vec::new();
    for wave in 0..4 {
        for partition in (0..6).filter(|partition| !led.contains(partition)) {
            let records = scene.traced((0..10).map(|n| format!("elsewhere-{wave}-{partition}-{n}")), 0.0);
            scene.client.produce(&scene.commands, partition, &records);
            elsewhere.extend(records);
        }
        let has_run = |name: &[u8]| scene.starts().contains_key(std::str::from_utf8(name).unwrap());
        worker.wait_until("what is led by others", || elsewhere.iter().all(|(name, _)| has_run(name)));
        thread::sleep(Duration::from_secs(2)); // the fault lasts
    }
    worker.wait_for_log("fails: ");
    cluster.start_again(node);
    let all: Vec<KeyValue> = [before, behind, elsewhere].concat();
    scene.wait_for_commit(&worker, all.len());
    scene.assert_nothing_alive_twice(&[&worker]);
    scene.assert_none_lost(&all, &[&worker]);
    stop(worker);
    *shared = Some(cluster);
}

/// Work through a proxy.
struct Proxied {
    scene: Scene,
    worker: Worker,
    records: Vec<KeyValue>,
    proxy: Proxy,
    _broker: Broker,
}

impl Proxied {
    /// Begins to run `count` commands and lets the first ones end.
    fn start(count: usize, seconds: f32) -> Proxied {
        let (proxy, broker) = Proxy::with_broker(&Broker::version());
        let scene = on_broker(&broker, proxy.address(), 4);
        let records = scene.traced(0..count, seconds);
        scene.spread(&records);
        let worker = scene.worker(&["--threads", "4"]);
        wait_for_progress(&scene, &worker, 5);
        Proxied { scene, worker, records, proxy, _broker: broker }
    }

    /// Waits until all is done, and ends.
    fn finish(self) {
        let Proxied { scene, worker, records, .. } = &self;
        worker.wait_until("end of the backlog", || scene.ended() == records.len());
        scene.wait_for_commit(worker, records.len());
        scene.assert_nothing_alive_twice(&[worker]);
        scene.assert_results_once();
        scene.assert_none_lost(records, &[worker]);
        stop(self.worker);
    }
}

#[test]
fn connections_that_are_reset_all_the_time_lose_nothing() {
    let work = Proxied::start(1500, 0.05);
    let until = Instant::now() + Duration::from_secs(20);
    for every in [5, 17, 50, 9, 28].into_iter().cycle() {
        work.proxy.set(Fault::ResetEvery(every));
        thread::sleep(Duration::from_millis(900)); // the fault lasts
        work.proxy.reset_all();
        thread::sleep(Duration::from_millis(100));
        if Instant::now() > until {
            break;
        }
    }
    work.proxy.set(Fault::None);
    eprintln!("{} resets", work.proxy.struck());
    assert!(work.proxy.struck() >= 20, "{} resets", work.proxy.struck());
    work.finish();
}

#[test]
fn a_broker_that_falls_silent_is_noticed_and_found_again() {
    let work = Proxied::start(600, 0.05);
    work.proxy.set(Fault::BlackHole);
    thread::sleep(Duration::from_secs(15)); // the fault lasts
    let log = work.worker.log();
    assert!(log.contains("membership of the group is lost") && log.contains("fails: "), "it says nothing\n{log}");
    work.proxy.set(Fault::None);
    work.finish();
}

#[test]
fn a_slow_line_is_slow_but_works() {
    let mut work = Proxied::start(60, 0.0);
    for fault in [Fault::Latency(Duration::from_millis(500)), Fault::Rate(10_000)] {
        work.proxy.set(fault);
        let more = work.scene.traced((0..40).map(|n| format!("{fault:?}-{n}").replace(['(', ')'], "-")), 0.0);
        work.scene.spread(&more);
        let last = String::from_utf8(more[39].0.clone()).unwrap();
        work.records.extend(more);
        work.worker.wait_until("the last of them", || work.scene.states().contains_key(&last));
    }
    assert!(!work.worker.log().contains("membership of the group is lost"), "{}", work.worker.log());
    work.finish();
}

#[test]
fn frames_that_are_cut_short_are_survived() {
    let work = Proxied::start(600, 0.05);
    for every in [29, 13, 7] {
        work.proxy.set(Fault::TruncateEvery(every));
        thread::sleep(Duration::from_secs(4)); // the fault lasts
    }
    work.proxy.set(Fault::None);
    assert!(work.proxy.struck() >= 5, "{} frames", work.proxy.struck());
    let log = work.worker.log();
    assert!(log.contains("closed the connection instead of answering"), "it does not say what was wrong\n{log}");
    work.finish();
}

#[test]
fn frames_that_are_spoilt_are_survived() {
    let work = Proxied::start(600, 0.05);
    for every in [29, 13, 7] {
        work.proxy.set(Fault::CorruptEvery(every));
        thread::sleep(Duration::from_secs(4)); // the fault lasts
    }
    work.proxy.set(Fault::None);
    assert!(work.proxy.struck() >= 5, "{} frames", work.proxy.struck());
    let log = work.worker.log();
    assert!(log.contains("does not speak Kafka") || log.contains("answers request"), "it does not say what\n{log}");
    assert!(work.worker.status_kib("VmHWM") < 64 << 10, "{} KiB", work.worker.status_kib("VmHWM"));
    work.finish();
}

/// A server that sends `answer` to each request, and closes or stays.
fn serve(answer: Vec<u8>, closes: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let answer = answer.clone();
            thread::spawn(move || {
                let mut request = [0; 4096];
                while stream.read(&mut request).is_ok_and(|count| count > 0) {
                    if stream.write_all(&answer).is_err() || closes {
                        return;
                    }
                }
            });
        }
    });
    address
}

#[test]
fn a_port_that_is_no_broker_is_named_and_given_up() {
    let mut dice = support::topics::Dice::new();
    let noise = |dice: &mut support::topics::Dice| (0..5000).map(|_| dice.below(256) as u8).collect::<Vec<u8>>();
    // A frame with the right correlation id, whose body claims 2^31 - 1 elements; then with the rest random.
    let huge = [&[0, 0, 0, 14, 0, 0, 0, 1, 0, 0, 0x7f, 0xff, 0xff, 0xff][..], &[0xff; 4]].concat();
    let mut close = [&[0, 0, 0x10, 0, 0, 0, 0, 1][..], &noise(&mut dice)].concat();
    close.truncate(4 + 0x1000);
    let cases: Vec<(&str, Vec<u8>, bool, &str)> = vec![
        ("HTTP", b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n".to_vec(), true, "speaks HTTP"),
        ("TLS alert", b"\x15\x03\x03\x00\x02\x02\x46".to_vec(), true, "speaks TLS"),
        ("TLS alert, left open", b"\x15\x03\x03\x00\x02\x02\x46".to_vec(), false, "speaks TLS"),
        ("SSH", b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(), false, "does not speak Kafka"),
        ("largest length", vec![0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 1], false, "does not speak Kafka"),
        ("negative length", vec![0xff; 8], false, "does not speak Kafka"),
        ("no length", vec![0; 8], false, "does not speak Kafka"),
        ("a length of 500 MB and silence", vec![0x1d, 0, 0, 0, 0, 0, 0, 1], false, "ApiVersions"),
        ("a huge array", huge, false, "ApiVersions"),
        ("sound frame, random body", close, false, "127.0.0.1"),
        ("random bytes", noise(&mut dice), false, "127.0.0.1"),
        ("closes at once", Vec::new(), true, "closed the connection"),
        ("says nothing", Vec::new(), false, "ApiVersions"),
    ];
    let workers: Vec<_> = cases
        .into_iter()
        .map(|(what, answer, closes, told)| {
            let address = serve(answer, closes);
            let worker = Worker::start(&["--brokers", &address, "--connect-timeout", "3s"]);
            (what, told, worker)
        })
        .collect();
    let mut wrong = Vec::new();
    for (what, told, mut worker) in workers {
        let mut peak = 0;
        let deadline = Instant::now() + Duration::from_secs(60);
        let ended = loop {
            // It has no such figure any more once it has ended.
            let status = fs::read_to_string(format!("/proc/{}/status", worker.pid())).unwrap_or_default();
            let figure = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let Some(figure) = figure else { break true };
            peak = peak.max(figure.trim().trim_end_matches(" kB").parse().unwrap_or(0));
            if Instant::now() > deadline {
                break false;
            }
            thread::sleep(Duration::from_millis(10));
        };
        if !ended {
            wrong.push(format!("{what}: it does not end\n{}", worker.log()));
            worker.kill();
            continue;
        }
        let (code, log) = (worker.wait().code(), worker.log());
        if code != Some(69) || !log.contains(told) || log.contains("panicked") || peak > 64 << 10 {
            wrong.push(format!("{what}: exit {code:?}, peak {peak} KiB, expected {told:?} in\n{log}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn a_worker_that_was_stopped_for_longer_than_its_session_joins_anew() {
    let broker = Broker::shared();
    let scene = on_broker(broker, broker.address(), 4);
    let (stopped, other) = (scene.worker(&["--threads", "3"]), scene.worker(&["--threads", "3"]));
    [&stopped, &other].iter().for_each(|worker| worker.wait_for_log("2 member(s)"));
    let mut records = scene.traced((0..200).map(|n| format!("early-{n}")), 0.05);
    scene.spread(&records);
    wait_for_progress(&scene, &other, 40);
    stopped.signal("STOP");
    other.wait_for_log("1 member(s)");
    scene.wait_for_commit(&other, records.len());
    let taken_over = scene.starts();
    stopped.signal("CONT");
    stopped.wait_for_log("membership of the group is lost");
    stopped.wait_until("a group of two again", || {
        stopped.log().rsplit("membership of the group is lost").next().unwrap().contains("2 member(s)")
    });
    let late = scene.traced((0..100).map(|n| format!("late-{n}")), 0.05);
    scene.spread(&late);
    records.extend(late);
    scene.wait_for_commit(&other, records.len());
    let starts = scene.starts();
    // A thread that was stopped between taking a record and starting its command goes on where it was. Nothing else of
    // what others have run and committed meanwhile is started.
    let after_all = taken_over.iter().filter(|(name, before)| starts[*name] != **before).count();
    assert!(after_all <= 3, "{after_all} were started once more after all was committed\n{}", stopped.log());
    let by = |pid| starts.iter().filter(|(name, starts)| name.starts_with("late") && starts[0].worker == pid).count();
    assert!(by(stopped.pid()) > 0 && by(other.pid()) > 0, "both work again: {starts:?}");
    let again = taken_over.values().filter(|starts| starts.len() > 1);
    // What ran on it when it was stopped, and what had ended and was not committed.
    assert!(again.clone().count() <= 12, "{:?}", again.collect::<Vec<_>>());
    scene.assert_none_lost(&records, &[&stopped, &other]);
    stop(stopped);
    stop(other);
}
