//! The worker as a service: what it tells the service manager, here a socket of the test's own.

mod support;

use std::io;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use support::worker::{PATIENCE, Worker};

/// Reads what the worker tells until a line is `wanted`; returns all lines up to it.
fn told_until(socket: &UnixDatagram, worker: &Worker, wanted: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut buffer = [0; 4096];
    while !lines.iter().any(|line| line == wanted) {
        let told = socket.recv(&mut buffer);
        let length = told.unwrap_or_else(|e: io::Error| panic!("no {wanted} after {lines:?}: {e}\n{}", worker.log()));
        lines.extend(String::from_utf8_lossy(&buffer[..length]).lines().map(str::to_owned));
    }
    lines
}

#[test]
fn it_tells_that_it_is_ready_that_it_is_alive_and_that_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let go = dir.path().join("go");
    let mut command = Worker::command();
    command.args(["--input", "-", "--threads", "2"]);
    command.env("NOTIFY_SOCKET", dir.path().join("notify")).env("WATCHDOG_USEC", "400000");
    let mut worker = Worker::start_command(&mut command);
    assert!(told_until(&socket, &worker, "READY=1").contains(&"STATUS=taking commands".to_owned()));
    told_until(&socket, &worker, "WATCHDOG=1"); // while it is idle
    let waits = format!("while ! test -e {}; do sleep 0.05; done", go.display());
    worker.write(&serde_json::json!({"key": "long", "command": ["sh", "-c", waits]}).to_string());
    // Commands know nothing of it.
    worker.write(r#"{"key":"env","command":["sh","-c","env | grep -E '^(NOTIFY|WATCHDOG)_'"]}"#);
    let results = worker.wait_for_results(1);
    assert_eq!((&results[0]["key"], &results[0]["tail"]), (&"env".into(), &"".into()));
    for _ in 0..3 {
        told_until(&socket, &worker, "WATCHDOG=1"); // while a command runs
    }
    worker.signal("TERM");
    assert!(told_until(&socket, &worker, "STOPPING=1").contains(&"STATUS=draining".to_owned()));
    for _ in 0..3 {
        told_until(&socket, &worker, "WATCHDOG=1"); // while it drains
    }
    std::fs::write(&go, "").unwrap();
    worker.expect_exit(0);
}

#[test]
fn a_service_manager_that_does_not_listen_is_no_trouble() {
    let mut command = Worker::command();
    command.args(["--input", "-"]).env("NOTIFY_SOCKET", "/nonexistent/notify").env("WATCHDOG_USEC", "100000");
    let mut worker = Worker::start_command(&mut command);
    worker.write(r#"{"key":"k","command":["true"]}"#);
    worker.wait_for_results(1);
    std::thread::sleep(Duration::from_millis(300)); // longer than the watchdog
    worker.expect_exit(0);
}

#[test]
fn the_log_can_be_json() {
    let mut worker = Worker::start(&["--input", "-", "--log-format", "json"]);
    worker.write(r#"{"key":"a\u001bb","command":["true"]}"#);
    worker.wait_for_results(1);
    worker.expect_exit(0);
    let log = worker.log();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let told = lines.iter().find(|line| line["message"].as_str().unwrap().contains("state=success")).expect("a result");
    assert_eq!(told["level"], "INFO");
    assert!(told["time"].as_str().unwrap().ends_with('Z'), "{told}");
    assert!(told["message"].as_str().unwrap().ends_with(r"key=a\u{1b}b"), "{told}");
}
