//! A worker that ends by itself, as cron jobs want it: when all is done, when it is idle, after so much, one at a time.

mod support;

use serde_json::json;
use support::broker::Broker;
use support::topics::{Client, Topics, trace, traced};
use support::worker::{Worker, wait_until};

macro_rules! for_both_clients {
    ($($name:ident),*) => {
        mod own_client { $( #[test] fn $name() { super::$name(super::Client::Own) } )* }
        mod kafka_crate { $( #[test] fn $name() { super::$name(super::Client::Crate) } )* }
    };
}

for_both_clients!(once_runs_what_is_there_and_ends, idle_exit_waits_for_what_comes, max_leaves_the_rest_on_the_topic);

fn once_runs_what_is_there_and_ends(client: Client) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace");
    let topics = Topics::new(Broker::shared(), 3).with(client);
    topics.worker(&["--once"]).expect_exit(0); // nothing there
    let records: Vec<_> = (0..40).map(|n| traced(&n.to_string(), &file, 0.0)).collect();
    topics.spread(3, &records);
    topics.worker(&["--once", "--threads", "4"]).expect_exit(0);
    assert_eq!((trace(&file, "end").len(), topics.committed(), topics.states().len()), (40, 40, 40));
    topics.worker(&["--once"]).expect_exit(0);
    assert!(trace(&file, "start").values().all(|&times| times == 1));
}

fn idle_exit_waits_for_what_comes(client: Client) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace");
    let topics = Topics::new(Broker::shared(), 1).with(client);
    topics.spread(1, &[traced("a", &file, 0.0)]);
    let mut worker = topics.worker(&["--idle-exit", "6s"]);
    worker.wait_until("the first", || trace(&file, "end").len() == 1);
    topics.spread(1, &[traced("b", &file, 8.0)]); // longer than that: it is not idle meanwhile
    worker.expect_exit(0);
    assert_eq!((trace(&file, "end").len(), topics.committed()), (2, 2));
}

fn max_leaves_the_rest_on_the_topic(client: Client) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace");
    let topics = Topics::new(Broker::shared(), 2).with(client);
    let records: Vec<_> = (0..10).map(|n| traced(&n.to_string(), &file, 0.0)).collect();
    topics.spread(2, &records);
    topics.worker(&["--max", "3", "--threads", "4"]).expect_exit(0);
    assert_eq!(trace(&file, "start").values().sum::<usize>(), 3);
    topics.worker(&["--once"]).expect_exit(0);
    assert!(trace(&file, "start").values().all(|&times| times == 1));
    assert_eq!((trace(&file, "end").len(), topics.committed()), (10, 10));
}

#[test]
fn max_runtime_drains() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace");
    let topics = Topics::new(Broker::shared(), 1);
    let records: Vec<_> = (0..200).map(|n| traced(&n.to_string(), &file, 1.0)).collect();
    topics.spread(1, &records);
    let mut worker = topics.worker(&["--max-runtime", "7s", "--threads", "2"]);
    worker.expect_exit(0);
    let (started, ended) = (trace(&file, "start").len(), trace(&file, "end").len());
    assert!(started == ended && (2..200).contains(&ended), "{started} started, {ended} ended");
    assert!(worker.log().contains("--max-runtime is over: draining"), "{}", worker.log());
    assert_eq!(topics.committed() as usize, ended);
}

/// A worker with `--input -` that waits for its input.
fn waiting(args: &[&str]) -> Worker {
    Worker::start(&[&["--input", "-"], args].concat())
}

#[test]
fn a_lock_is_for_one_and_ends_with_its_process() {
    let dir = tempfile::tempdir().unwrap();
    let lock = dir.path().join("lock");
    let lock = lock.to_str().unwrap();
    let mut first = waiting(&["--lock", lock]);
    assert!(wait_until(|| std::fs::read(lock).is_ok_and(|text| !text.is_empty())));
    let mut second = waiting(&["--lock", lock]);
    second.expect_exit(75);
    let told = format!("{lock} is held by process {} on ", first.pid());
    assert!(second.log().contains(&told), "{}", second.log());
    waiting(&["--lock", lock, "--lock-busy-ok"]).expect_exit(0);
    first.kill();
    let mut third = waiting(&["--lock", lock]);
    third.close_stdin();
    third.expect_exit(0);
    let mut broken = waiting(&["--lock", dir.path().join("no/lock").to_str().unwrap()]);
    broken.expect_exit(78);
    assert!(broken.log().contains("no such file or directory; give a file that can be written"), "{}", broken.log());
}

#[test]
fn a_failed_command_can_be_the_exit_code() {
    let run = |command: &[&str], args: &[&str]| {
        let mut worker = waiting(args);
        worker.write(&json!({"key": "a", "command": ["true"]}).to_string());
        worker.write(&json!({"key": "b", "command": command}).to_string());
        worker.close_stdin();
        worker.wait().code()
    };
    assert_eq!(run(&["true"], &["--fail-on-error"]), Some(0));
    assert_eq!(run(&["false"], &["--fail-on-error"]), Some(3));
    assert_eq!(run(&["no-such-program"], &["--fail-on-error"]), Some(3));
    assert_eq!(run(&["false"], &[]), Some(0));
}

#[test]
fn a_cron_job_that_goes_well_prints_nothing() {
    let topics = Topics::new(Broker::shared(), 1);
    topics.spread(1, &[(b"k".to_vec(), br#"["true"]"#.to_vec())]);
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/bin/true", dir.path().join("airflow")).unwrap();
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    let output = Worker::command()
        .args(["--brokers", &topics.broker, "--topic", &topics.commands, "--results-topic", &topics.results])
        .args(["--group", &topics.group, "--once", "--quiet", "--fail-on-error"])
        .args(["--lock", dir.path().join("lock").to_str().unwrap()])
        .env("PATH", path)
        .output()
        .unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!((output.status.code(), text.as_str()), (Some(0), ""));
    assert_eq!(topics.states().len(), 1);
}
