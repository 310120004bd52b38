//! The preloaded runner, with stubs for Airflow: its children are commands like any other, whatever they do and whatever
//! becomes of it.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use support::worker::{Worker, lifetime, outcome, processes_with, wait_until};

/// A worker with `--input -` whose commands `airkafka-task` go to the stubs.
fn worker(args: &[&str], env: &[(&str, &str)]) -> Worker {
    let airflow = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/preload/airflow.sh");
    let base = ["--input", "-", "--airflow", airflow.to_str().unwrap(), "-v"];
    let env = [("AIRKAFKA_GRACE", "500ms")].iter().chain(env).copied();
    Worker::start_command(Worker::command().args(base).args(args).envs(env))
}

/// A command that runs Python code.
fn python(key: &str, code: &str) -> Value {
    json!({"key": key, "command": ["airkafka-task", code]})
}

fn by_key(results: &[Value]) -> BTreeMap<String, &Value> {
    results.iter().map(|result| (result["key"].as_str().unwrap().to_owned(), result)).collect()
}

/// Runs commands and waits for the end.
fn run(worker: &mut Worker, commands: &[Value]) -> Vec<Value> {
    commands.iter().for_each(|command| worker.write(&command.to_string()));
    worker.close_stdin();
    worker.expect_exit(0);
    worker.results()
}

/// The process ids of runners that the log has told of as ready, in order.
fn runners(worker: &Worker) -> Vec<u32> {
    let log = worker.log();
    let told = log.lines().filter(|line| line.contains("is ready:"));
    told.map(|line| line.split("runner ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()).collect()
}

const FORKED: &str = "print('forked' if is_forked else 'new')";

#[test]
fn tasks_are_forked_and_nothing_else_is() {
    let mut worker = worker(&["--threads", "2"], &[]);
    let commands =
        [python("a", FORKED), python("b", FORKED), json!({"key": "c", "command": ["sh", "-c", "echo $PPID"]})];
    let results = run(&mut worker, &commands);
    let results = by_key(&results);
    assert_eq!((results["a"]["tail"].as_str(), results["b"]["tail"].as_str()), (Some("forked\n"), Some("forked\n")));
    assert_eq!(results["c"]["tail"].as_str(), Some(format!("{}\n", worker.pid()).as_str()), "started by the worker");
    assert_eq!(runners(&worker).len(), 1);
    let runner = runners(&worker)[0];
    assert!(wait_until(|| !Path::new(&format!("/proc/{runner}")).exists()), "the runner ends with the worker");
}

#[test]
fn without_it_everything_works_as_before() {
    let mut worker = worker(&["--threads", "1", "--preload", "none"], &[]);
    let results = run(&mut worker, &[python("a", FORKED)]);
    assert_eq!(results[0]["tail"].as_str(), Some("new\n"));
    assert!(!worker.log().contains("preloading"), "{}", worker.log());
}

#[test]
fn it_is_there_before_the_first_command_where_asked_for() {
    let mut worker = worker(&["--threads", "1", "--preload", "airflow"], &[]);
    worker.wait_for_log("is ready:");
    let results = run(&mut worker, &[python("a", FORKED)]);
    assert_eq!(results[0]["tail"].as_str(), Some("forked\n"));
}

#[test]
fn a_child_has_what_its_command_has_and_nothing_of_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().canonicalize().unwrap();
    let show = "import os, sys; print(os.getcwd(), os.environ.get('MINE'), sys.argv[0], len(sys.argv), sys.stdin.read(), \
                os.getpgrp() == os.getpid(), getattr(os, 'spoilt', None), 'spoilt' in sys.path, \
                'AIRKAFKA_RUNNER' in os.environ)";
    let spoil = "import os, sys; os.spoilt = 1; sys.path.append('spoilt'); os.environ['MINE'] = 'spoilt'; os.chdir('/'); \
                 os.umask(0o777); print(os.getpid())";
    let mut worker = worker(&["--threads", "1"], &[]);
    let a =
        json!({"key": "a", "command": ["airkafka-task", show], "cwd": dir, "env": {"MINE": "größe"}, "stdin": "in"});
    let results = run(&mut worker, &[a, python("spoil", spoil), python("b", show)]);
    let tail = |index: usize| results[index]["tail"].as_str().unwrap();
    assert_eq!(tail(0), format!("{} größe airkafka-task 2 in False None False False\n", dir.display()));
    assert_ne!(tail(1).trim().parse::<i64>().ok(), results[1]["pid"].as_i64(), "a process of its own");
    let here = std::env::current_dir().unwrap();
    assert_eq!(tail(2), format!("{} None airkafka-task 2  False None False False\n", here.display()));
}

#[test]
fn every_end_is_told_as_it_is() {
    let mut commands: Vec<Value> =
        [0, 1, 75, 255].iter().map(|code| python(&format!("exit {code}"), &format!("code = {code}"))).collect();
    for signal in [1, 9, 11, 15] {
        commands.push(python(&format!("signal {signal}"), &format!("import os; os.kill(os.getpid(), {signal})")));
    }
    commands.push(python("os._exit", "import os; os._exit(9)"));
    commands.push(python("sys.exit", "import sys; sys.exit(3)"));
    commands.push(python("sys.exit text", "import sys; sys.exit('why')"));
    commands.push(python("raise", "raise ValueError('a reason')"));
    let mut worker = worker(&["--threads", "4"], &[]);
    let results = run(&mut worker, &commands);
    let results = by_key(&results);
    for code in [1, 75, 255] {
        assert_eq!(outcome(results[&format!("exit {code}")]), ("failed", "exit", Some(code), None));
    }
    assert_eq!(outcome(results["exit 0"]), ("success", "exit", Some(0), None));
    for signal in [1, 9, 11, 15] {
        let expected = ("failed", "signal", Some(128 + signal), Some(signal));
        assert_eq!(outcome(results[&format!("signal {signal}")]), expected);
    }
    assert_eq!(outcome(results["os._exit"]), ("failed", "exit", Some(9), None));
    assert_eq!(outcome(results["sys.exit"]), ("failed", "exit", Some(3), None));
    assert_eq!(outcome(results["sys.exit text"]), ("failed", "exit", Some(1), None));
    assert_eq!(outcome(results["raise"]), ("failed", "exit", Some(70), None));
    assert!(results["raise"]["tail"].as_str().unwrap().ends_with("ValueError: a reason\n"));
    assert!(!worker.log().contains("has ended"), "the runner itself goes on");
}

#[test]
fn the_whole_tree_is_stopped_whatever_it_does() {
    let lifetime = lifetime(1);
    // Deaf to TERM; a child in a group and session of its own, made by fork alone as Airflow 3 does it, and one by exec.
    let deaf = format!(
        "import os, signal, subprocess, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen(['sleep', '{lifetime}'], start_new_session=True)
if os.fork() == 0:
    os.setsid()
    os.execvp('sleep', ['sleep', '{lifetime}'])
if os.fork() == 0:
    os.setpgid(0, 0)
    if os.fork() == 0:
        open('/proc/self/comm', 'w').write('{}')
        time.sleep(1000)
    os._exit(0)
time.sleep(1000)",
        &lifetime[..6]
    );
    let command = json!({"key": "deaf", "command": ["airkafka-task", deaf], "timeout": 3});
    let mut worker = worker(&["--threads", "1"], &[]);
    let results = run(&mut worker, &[command, python("next", FORKED)]);
    assert_eq!(outcome(&results[0]), ("failed", "timeout", Some(124), None));
    assert_eq!(results[1]["tail"].as_str(), Some("forked\n"));
    assert_eq!(processes_with(&lifetime), [0; 0], "left behind");
    let stat = |pid: &str| fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let stats = fs::read_dir("/proc").unwrap().flatten().map(|entry| stat(&entry.file_name().to_string_lossy()));
    let name = format!("({})", &lifetime[..6]);
    let left: Vec<String> = stats.filter(|stat| stat.contains(&name) && !stat.contains(") Z ")).collect();
    assert_eq!(left, [""; 0], "forked without exec");
}

#[test]
fn one_that_leaves_a_fork_behind_with_its_streams_is_reported_when_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let go = dir.path().join("go");
    let code = format!("import os, time\nif os.fork() == 0:\n    while not os.path.exists({go:?}): time.sleep(0.02)");
    let mut worker = worker(&["--threads", "1"], &[]);
    worker.write(&python("a", &code).to_string());
    let results = worker.wait_for_results(1);
    assert_eq!(outcome(&results[0]), ("success", "exit", Some(0), None));
    fs::write(&go, "").unwrap();
    worker.close_stdin();
    worker.expect_exit(0);
}

#[test]
fn a_child_may_end_in_good_order_when_it_is_stopped() {
    let ready = tempfile::tempdir().unwrap();
    let file = ready.path().join("ready");
    let code = format!(
        "import signal, sys, time
def end(*_):
    print('ended well', flush=True)
    sys.exit(3)
signal.signal(signal.SIGTERM, end)
open({file:?}, 'w')
time.sleep(1000)"
    );
    let mut worker = worker(&["--threads", "1", "--drain-timeout", "0s"], &[("AIRKAFKA_GRACE", "100s")]);
    worker.write(&python("a", &code).to_string());
    worker.wait_until("start", || file.exists());
    worker.signal("TERM");
    worker.expect_exit(75); // and not after the grace period, in which the child alone could have been deaf
    assert!(!worker.log().contains("survive KILL"), "{}", worker.log());
}

#[test]
fn killed_with_tasks_running_it_is_replaced_and_they_tell_their_ends_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let wait = |name: &str| {
        format!(
            "import os, time\nopen({:?}, 'w').write(str(os.getpid()))\n\
             while not os.path.exists({:?}): time.sleep(0.02)\n",
            file(name),
            file("go")
        )
    };
    let mut worker = worker(&["--threads", "5"], &[]);
    for (name, end) in [("a", ""), ("b", "code = 7"), ("c", "import sys; sys.exit(8)"), ("d", "time.sleep(1000)")] {
        worker.write(&python(name, &format!("{}{end}", wait(name))).to_string());
    }
    let pids = || ["a", "b", "c", "d"].map(|name| fs::read_to_string(file(name)).ok().and_then(|pid| pid.parse().ok()));
    worker.wait_until("four tasks", || pids().iter().all(Option::is_some));
    let kill = |pid: u32| std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
    kill(runners(&worker)[0]);
    worker.wait_until("another runner", || runners(&worker).len() == 2);
    worker.write(&python("e", FORKED).to_string());
    worker.wait_for_results(1);
    fs::write(file("go"), "").unwrap();
    worker.wait_for_results(4);
    kill(pids()[3].unwrap()); // nobody is left who could tell its signal, but that it has not ended well is told
    worker.close_stdin();
    worker.expect_exit(0);
    let results = worker.results();
    let results = by_key(&results);
    assert_eq!(results["e"]["tail"].as_str(), Some("forked\n"));
    assert_eq!(outcome(results["a"]), ("success", "exit", Some(0), None));
    assert_eq!(outcome(results["b"]), ("failed", "exit", Some(7), None));
    assert_eq!(outcome(results["c"]), ("failed", "exit", Some(8), None));
    assert_eq!(outcome(results["d"]), ("failed", "signal", Some(137), Some(9)));
    assert!(worker.log().contains("has ended (signal: 9 (SIGKILL)); starting another one"), "{}", worker.log());
}

/// A task that waits for the file `go`, and says by `done` that it has come to its end.
fn waiting(dir: &Path) -> String {
    let (started, go, done) = (dir.join("started"), dir.join("go"), dir.join("done"));
    format!(
        "import os, time
open({started:?} + '.part', 'w').write(str(os.getpid()))
os.rename({started:?} + '.part', {started:?})
while not os.path.exists({go:?}): time.sleep(0.02)
open({done:?}, 'w')"
    )
}

#[test]
fn a_task_whose_client_is_killed_is_ended() {
    let dir = tempfile::tempdir().unwrap();
    let mut worker = worker(&["--threads", "1"], &[]);
    worker.write(&python("a", &waiting(dir.path())).to_string());
    worker.wait_until("start", || dir.path().join("started").exists());
    let task: u32 = fs::read_to_string(dir.path().join("started")).unwrap().parse().unwrap();
    let log = worker.log();
    let client = log.lines().find_map(|line| line.split("airkafka-task pid=").nth(1)).unwrap().to_owned();
    std::process::Command::new("kill").args(["-9", &client]).status().unwrap();
    assert!(wait_until(|| !Path::new(&format!("/proc/{task}")).exists()), "nobody waits for it any more");
    worker.close_stdin();
    worker.expect_exit(0);
    assert_eq!(outcome(&worker.results()[0]), ("failed", "signal", Some(137), Some(9)));
}

#[test]
fn a_worker_that_is_killed_leaves_its_tasks_alive_and_nothing_else() {
    let (dir, place) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut worker = worker(&["--threads", "1"], &[("TMPDIR", place.path().to_str().unwrap())]);
    worker.write(&python("a", &waiting(dir.path())).to_string());
    worker.wait_until("start", || dir.path().join("started").exists());
    let runner = runners(&worker)[0];
    worker.kill();
    let is_there = || fs::read_dir(place.path()).unwrap().count() > 0;
    assert!(wait_until(|| !is_there()), "the socket is gone");
    assert!(Path::new(&format!("/proc/{runner}")).exists(), "its child has not ended");
    fs::write(dir.path().join("go"), "").unwrap();
    assert!(wait_until(|| dir.path().join("done").exists()));
    assert!(wait_until(|| !Path::new(&format!("/proc/{runner}")).exists()), "and then it ends");
}

#[test]
fn told_by_hup_or_after_enough_tasks_a_fresh_one_takes_over_and_nothing_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let go = dir.path().join("go");
    let mut worker = worker(&["--threads", "3"], &[("AIRKAFKA_RUNNER_TASKS", "4")]);
    let long = format!("import os, time\nwhile not os.path.exists({go:?}): time.sleep(0.02)");
    worker.write(&python("long", &long).to_string());
    for task in 0..6 {
        worker.write(&python(&task.to_string(), FORKED).to_string());
    }
    worker.wait_for_results(6);
    worker.wait_until("a second runner", || runners(&worker).len() == 2);
    assert!(worker.log().contains("takes no more: 4 tasks are enough"), "{}", worker.log());
    worker.signal("HUP");
    worker.wait_until("a third runner", || runners(&worker).len() == 3);
    worker.write(&python("after", FORKED).to_string());
    worker.wait_for_results(7);
    fs::write(&go, "").unwrap();
    worker.close_stdin();
    worker.expect_exit(0);
    let results = worker.results();
    assert_eq!(results.iter().filter(|result| result["tail"] == "forked\n").count(), 7);
    assert_eq!(outcome(by_key(&results)["long"]), ("success", "exit", Some(0), None));
    assert!(!worker.log().contains("new interpreter"), "{}", worker.log());
}

#[test]
fn one_that_grows_is_replaced() {
    let import = "import airkafka_runner; airkafka_runner.MOST_GROWTH = -(1 << 40)"; // too much after any task
    let mut worker = worker(&["--threads", "1"], &[("AIRKAFKA_TEST_IMPORT", import)]);
    let results = run(&mut worker, &[python("a", FORKED), python("b", FORKED), python("c", FORKED)]);
    assert!(results.iter().all(|result| result["tail"] == "forked\n"), "{results:?}");
    assert!(worker.log().contains("takes no more: grown by"), "{}", worker.log());
    assert!(runners(&worker).len() > 1);
}

#[test]
fn where_it_cannot_be_had_tasks_run_in_new_interpreters_and_the_log_says_why() {
    for (import, why) in [
        ("raise RuntimeError('broken import')", "RuntimeError: broken import"),
        (
            "import threading, time; threading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
            "thread Thread-1",
        ),
        ("import socket; engine = None; kept = socket.socket()", "descriptor"),
    ] {
        let mut worker = worker(&["--threads", "1"], &[("AIRKAFKA_TEST_IMPORT", import)]);
        let results = run(&mut worker, &[python("a", FORKED), python("b", FORKED)]);
        let log = worker.log();
        for result in &results {
            assert_eq!(outcome(result), ("success", "exit", Some(0), None), "{log}");
            assert!(result["tail"].as_str().unwrap().ends_with("new\n"), "{result}");
        }
        assert!(log.contains(why) && log.contains("tasks of Airflow run in new interpreters"), "{import}: {log}");
    }
}

#[test]
fn one_that_cannot_fork_lets_the_command_have_a_new_interpreter() {
    let import = "import os
def no(): raise BlockingIOError(11, 'no room')
os.fork = no";
    let mut worker = worker(&["--threads", "1"], &[("AIRKAFKA_TEST_IMPORT", import)]);
    // It can be ended as any other: what the client has kept from signals is not kept from the new program.
    let told = "import signal, sys, time
def end(*_):
    print('has heard', flush=True)
    sys.exit(3)
signal.signal(signal.SIGTERM, end)
time.sleep(1000)";
    let told = json!({"key": "b", "command": ["airkafka-task", told], "timeout": 2});
    let results = run(&mut worker, &[python("a", FORKED), told]);
    let tail = results[0]["tail"].as_str().unwrap();
    assert!(tail.contains("it cannot fork: [Errno 11] no room") && tail.ends_with("new\n"), "{tail}");
    assert_eq!(outcome(&results[1]), ("failed", "timeout", Some(124), None));
    assert!(results[1]["tail"].as_str().unwrap().ends_with("has heard\n"), "{}", results[1]);
}

#[test]
fn a_command_with_another_airflow_in_its_environment_gets_a_new_interpreter() {
    let mut worker = worker(&["--threads", "1"], &[]);
    let command = json!({"key": "a", "command": ["airkafka-task", FORKED], "env": {"AIRFLOW__CORE__X": "1"}});
    let results = run(&mut worker, &[command]);
    let tail = results[0]["tail"].as_str().unwrap();
    assert!(tail.contains("since the command has another AIRFLOW__CORE__X") && tail.ends_with("new\n"), "{tail}");
}

#[test]
fn one_that_hangs_is_replaced() {
    let mut worker = worker(&["--threads", "1", "--preload", "airflow"], &[]);
    worker.wait_until("a runner", || runners(&worker).len() == 1);
    let first = runners(&worker)[0];
    std::process::Command::new("kill").args(["-STOP", &first.to_string()]).status().unwrap();
    worker.write(&python("a", FORKED).to_string()); // it waits meanwhile
    worker.wait_until("another runner", || runners(&worker).len() == 2);
    assert!(worker.log().contains("does not answer"), "{}", worker.log());
    let results = run(&mut worker, &[]);
    assert_eq!(results[0]["tail"].as_str(), Some("forked\n"));
}

#[test]
fn five_hundred_tasks_leave_it_as_it_was() {
    let mut worker = worker(&["--threads", "4"], &[]);
    let warm: Vec<Value> = (0..50).map(|task| python(&format!("warm-{task}"), FORKED)).collect();
    warm.iter().for_each(|command| worker.write(&command.to_string()));
    worker.wait_for_results(50);
    let runner = runners(&worker)[0];
    let look = || {
        let status = fs::read_to_string(format!("/proc/{runner}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        (kib, fs::read_dir(format!("/proc/{runner}/fd")).unwrap().count())
    };
    let before = look();
    (0..500).for_each(|task| worker.write(&python(&task.to_string(), FORKED).to_string()));
    worker.wait_for_results(550);
    let after = look();
    assert!(
        after.0 <= before.0 + 1024 && after.1 <= before.1,
        "memory (KiB) and descriptors: {before:?}, then {after:?}"
    );
    worker.close_stdin();
    worker.expect_exit(0);
    assert!(worker.results().iter().all(|result| result["tail"] == "forked\n"));
}

#[test]
fn its_socket_is_for_us_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut worker = worker(&["--threads", "1", "--preload", "airflow"], &[("TMPDIR", dir.path().to_str().unwrap())]);
    worker.wait_for_log("is ready:");
    let made: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().map(|entry| entry.path()).collect();
    let place = made.iter().find(|path| path.join("runner").exists()).expect("a socket");
    let mode = |path: &Path| {
        use std::os::unix::fs::PermissionsExt;
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    };
    assert_eq!((mode(place), mode(&place.join("runner"))), (0o700, 0o600));
    run(&mut worker, &[]);
    assert!(!place.exists(), "gone with the worker");
}
