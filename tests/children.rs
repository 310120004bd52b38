//! Children that behave badly: whatever they do, the outcome is true, the tree is gone, and the worker goes on.

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use support::worker::{Worker, lifetime, outcome, processes_with, run_input, wait_until, zombies_of};

fn fixture(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/children").join(name).to_str().unwrap().to_owned()
}

fn line(key: &str, command: &[&str]) -> String {
    json!({"key": key, "command": command}).to_string()
}

/// Runs the fixture with a timeout of half a second: it has to be reported as timed out, and nothing may be left of it.
fn times_out_and_leaves_nothing(name: &str, seed: u32) {
    let lifetime = lifetime(seed);
    let input = json!({"key": name, "command": [fixture(name), lifetime], "timeout": 0.5}).to_string();
    let results = run_input(&[input, line("next", &["true"])], &["--threads", "1", "--grace", "500ms"]);
    assert_eq!(outcome(&results[name]), ("failed", "timeout", Some(124), None));
    assert_eq!(outcome(&results["next"]), ("success", "exit", Some(0), None));
    assert_eq!(processes_with(&lifetime), [0; 0], "left behind");
}

#[test]
fn one_that_ignores_term_is_killed() {
    times_out_and_leaves_nothing("ignores-term", 1);
}

#[test]
fn ten_forks_are_killed() {
    times_out_and_leaves_nothing("forks-ten", 2);
}

#[test]
fn a_child_in_its_own_group_is_killed() {
    times_out_and_leaves_nothing("own-group", 3);
}

#[test]
fn a_child_in_its_own_session_is_killed() {
    times_out_and_leaves_nothing("own-session", 4);
}

#[test]
fn a_daemon_is_killed() {
    times_out_and_leaves_nothing("double-fork", 5);
}

#[test]
fn a_child_without_our_cookie_is_killed() {
    times_out_and_leaves_nothing("clears-environment", 6);
}

#[test]
fn one_that_is_stopped_is_woken_and_ended() {
    times_out_and_leaves_nothing("stops-itself", 7);
}

#[test]
fn one_that_leaves_stdout_open_is_reported_when_it_ends() {
    let lifetime = lifetime(8);
    let results = run_input(&[line("k", &[&fixture("holds-stdout"), &lifetime])], &["--threads", "1"]);
    assert_eq!(outcome(&results["k"]), ("failed", "exit", Some(7), None));
    assert_eq!(results["k"]["tail"], "done\n");
    let left = processes_with(&lifetime);
    assert_eq!(left.len(), 1, "what a command leaves behind on purpose is its own affair");
    left.iter().for_each(|pid| drop(std::process::Command::new("kill").arg(pid.to_string()).status()));
}

#[test]
fn every_exit_code_is_reported() {
    let lines: Vec<String> =
        (0..=255).map(|code| line(&code.to_string(), &["sh", "-c", &format!("exit {code}")])).collect();
    let results = run_input(&lines, &["--threads", "8"]);
    for code in 0..=255 {
        let state = if code == 0 { "success" } else { "failed" };
        assert_eq!(outcome(&results[&code.to_string()]), (state, "exit", Some(code), None));
    }
}

#[test]
fn every_deadly_signal_is_reported() {
    // Those that stop, continue or are ignored by default kill nobody; 32 and 33 belong to the C library.
    let harmless = [17, 18, 19, 20, 21, 22, 23, 28, 32, 33];
    let signals: Vec<i64> = (1..=64).filter(|signal| !harmless.contains(signal)).collect();
    let lines: Vec<String> =
        signals.iter().map(|n| line(&n.to_string(), &["sh", "-c", &format!("ulimit -c 0; kill -{n} $$")])).collect();
    let results = run_input(&lines, &["--threads", "8"]);
    for n in signals {
        assert_eq!(outcome(&results[&n.to_string()]), ("failed", "signal", Some(128 + n), Some(n)));
    }
}

#[test]
fn what_cannot_be_started_is_told_apart_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let script = |name: &str, text: &str, mode: u32| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(at(name), text).unwrap();
        std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(mode)).unwrap();
        at(name)
    };
    let cases: BTreeMap<&str, (Value, &str, Option<i64>, &str)> = BTreeMap::from([
        ("bare", (json!(["no-such-program-here"]), "not_found", Some(127), "no-such-program-here: not found on PATH")),
        ("path", (json!([at("absent")]), "not_found", Some(127), "absent: no such file")),
        ("plain file", (json!([script("plain", "x", 0o644)]), "not_executable", Some(126), "plain: not executable")),
        ("directory", (json!([dir.path()]), "not_executable", Some(126), "is a directory")),
        (
            "no shebang",
            (json!([script("noshebang", "echo\n", 0o755)]), "not_executable", Some(126), "noshebang: neither a binary"),
        ),
        (
            "interpreter",
            (
                json!([script("interp", "#!/no/such/interpreter\n", 0o755)]),
                "not_found",
                Some(127),
                "interp: its interpreter",
            ),
        ),
        ("too long", (json!(["echo", "x".repeat(3_000_000)]), "spawn_error", None, "argument list too long")),
    ]);
    let mut lines: Vec<String> =
        cases.iter().map(|(key, (command, ..))| json!({"key": key, "command": command}).to_string()).collect();
    lines.push(json!({"key": "cwd", "command": ["true"], "cwd": at("nowhere")}).to_string());
    lines.push(json!({"key": "PATH", "command": ["plain"], "env": {"PATH": dir.path()}}).to_string());
    lines.push(json!({"key": "relative", "command": ["./hello"], "cwd": dir.path()}).to_string());
    script("hello", "#!/bin/sh\necho hello\n", 0o755);
    let results = run_input(&lines, &["--threads", "4"]);
    for (key, (_, reason, code, error)) in &cases {
        assert_eq!(outcome(&results[*key]), ("failed", *reason, *code, None), "{key}");
        assert!(results[*key]["error"].as_str().unwrap().contains(error), "{key}: {}", results[*key]);
        assert_eq!(results[*key]["pid"], Value::Null);
    }
    assert_eq!(outcome(&results["cwd"]), ("failed", "spawn_error", None, None));
    assert!(results["cwd"]["error"].as_str().unwrap().contains("nowhere: no such directory"));
    assert_eq!(outcome(&results["PATH"]), ("failed", "not_executable", Some(126), None));
    assert_eq!(results["relative"]["tail"], "hello\n");
}

#[test]
fn a_command_runs_as_its_record_says() {
    let dir = tempfile::tempdir().unwrap();
    let secret = "s".repeat(200_000); // more than a pipe holds
    let command =
        "pwd; echo $A; wc -c; head -c 3 /dev/stdin; test -n \"$AIRKAFKA_COMMAND_ID\" && echo cookie; echo err >&2";
    let input =
        json!({"key": "k", "command": ["sh", "-c", command], "cwd": dir.path(), "env": {"A": "ü"}, "stdin": secret});
    let results = run_input(&[input.to_string(), line("empty", &["wc", "-c"])], &["--threads", "1"]);
    let tail = results["k"]["tail"].as_str().unwrap();
    assert_eq!(
        tail.trim_start_matches("/private"),
        format!("{}\nü\n200000\nssscookie\nerr\n", dir.path().display()),
        "{tail}"
    );
    assert_eq!(results["empty"]["tail"], "0\n");
}

#[test]
fn airkafka_task_is_taken_from_beside_airflow_or_else_from_path() {
    let dir = tempfile::tempdir().unwrap();
    let script = |folder: &str, name: &str| {
        use std::os::unix::fs::PermissionsExt;
        let path = dir.path().join(folder).join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, format!("#!/bin/sh\necho {folder}/{name} $*\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (with, without) = (script("with", "airflow"), script("without", "airflow"));
    script("with", "airkafka-task");
    script("path", "airkafka-task");
    let run = |airflow: &str, program: &str, path: &str| {
        let env = json!({"PATH": dir.path().join(path)});
        let input = json!({"key": "k", "command": [program, "a b"], "env": env}).to_string();
        run_input(&[input], &["--threads", "1", "--preload", "none", "--airflow", airflow]).remove("k").unwrap()
    };
    assert_eq!(run(&with, "airkafka-task", "path")["tail"], "with/airkafka-task a b\n");
    assert_eq!(run(&without, "airkafka-task", "path")["tail"], "path/airkafka-task a b\n");
    assert_eq!(run(&without, "airflow", "path")["tail"], "without/airflow a b\n");
    assert_eq!(outcome(&run(&without, "airkafka-task", "absent")), ("failed", "not_found", Some(127), None));
}

#[test]
fn a_gibibyte_of_output_costs_no_memory() {
    let mut worker = Worker::start(&["--input", "-", "--threads", "2"]);
    worker.write(&line("big", &["sh", "-c", "head -c 1073741824 /dev/zero; echo end"]));
    let results = worker.wait_for_results(1);
    let peak = worker.status_kib("VmHWM");
    worker.expect_exit(0);
    assert_eq!(outcome(&results[0]), ("success", "exit", Some(0), None));
    assert!(results[0]["tail"].as_str().unwrap().ends_with("end\n"));
    assert!(peak < 64 * 1024, "{peak} KiB resident");
}

#[test]
fn a_runaway_is_ended_by_the_output_limit() {
    let results = run_input(&[line("k", &["yes"])], &["--threads", "1", "--output-limit", "10MiB", "--grace", "1s"]);
    assert_eq!(outcome(&results["k"]), ("failed", "output_limit", Some(153), None));
}

#[test]
fn output_is_kept_in_a_directory_where_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--threads", "1", "--output-dir", dir.path().to_str().unwrap(), "--tail-bytes", "4"];
    let results = run_input(&[line("k", &["sh", "-c", "echo one; echo two >&2"])], &args);
    assert_eq!(results["k"]["tail"], "two\n");
    let kept: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(kept, [dir.path().join("stdin-0-1.log")]);
    assert_eq!(std::fs::read_to_string(&kept[0]).unwrap(), "one\ntwo\n");
}

#[test]
fn ten_thousand_commands_leave_no_zombie() {
    let mut worker = Worker::start(&["--input", "-", "--threads", "8", "-qq"]);
    for n in 0..10_000 {
        worker.write(&line(&n.to_string(), &["true"]));
    }
    for n in 0..50 {
        worker.write(&line(&format!("orphan {n}"), &[&fixture("leaves-orphans")]));
    }
    let results = worker.wait_for_results(10_050);
    assert!(results.iter().all(|result| result["state"] == "success"));
    worker.wait_until("end of all zombies", || zombies_of(worker.pid()) == 0);
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", worker.pid())).unwrap().count();
    assert!(descriptors < 40, "{descriptors} descriptors open");
    worker.expect_exit(0);
}

#[test]
fn it_works_where_sigchld_is_ignored() {
    // bash passes an ignored SIGCHLD on; std alone would lose every exit status there.
    let mut command = std::process::Command::new("bash");
    command.args(["-c", "trap '' CHLD; exec \"$0\" --input - --threads 4", env!("CARGO_BIN_EXE_airkafka-worker")]);
    let mut worker = Worker::start_command(&mut command);
    for code in 0..20 {
        worker.write(&line(&code.to_string(), &["sh", "-c", &format!("sleep 0.05; exit {code}")]));
    }
    worker.expect_exit(0);
    for result in worker.results() {
        assert_eq!(result["exit_code"].to_string(), result["key"].as_str().unwrap());
    }
}

#[test]
fn a_second_signal_stops_the_tree_and_reports_nothing() {
    let lifetime = lifetime(20);
    let mut worker = Worker::start(&["--input", "-", "--threads", "2", "--grace", "500ms"]);
    worker.write(&line("k", &[&fixture("double-fork"), &lifetime]));
    assert!(wait_until(|| !processes_with(&lifetime).is_empty()));
    worker.signal("TERM");
    worker.wait_for_log("draining");
    worker.signal("TERM");
    worker.expect_exit(75);
    assert_eq!(worker.results(), [Value::Null; 0]);
    assert!(wait_until(|| processes_with(&lifetime).is_empty()));
}

#[test]
fn a_third_signal_exits_at_once_and_takes_the_group_along() {
    let lifetime = lifetime(21);
    let mut worker = Worker::start(&["--input", "-", "--threads", "1", "--grace", "1h"]);
    worker.write(&line("k", &[&fixture("ignores-term"), &lifetime]));
    assert!(wait_until(|| !processes_with(&lifetime).is_empty()));
    for told in ["draining", "stopping what runs", "exiting at once"] {
        worker.signal("INT");
        worker.wait_for_log(told);
    }
    worker.expect_exit(75);
    assert!(wait_until(|| processes_with(&lifetime).is_empty()));
}

#[test]
fn a_drain_waits_for_what_runs_and_reports_it() {
    let dir = tempfile::tempdir().unwrap();
    let (marker, go) = (dir.path().join("started"), dir.path().join("go"));
    let script = format!("touch {}; while ! test -e {}; do sleep 0.02; done", marker.display(), go.display());
    let mut worker = Worker::start(&["--input", "-", "--threads", "1"]);
    worker.write(&line("runs", &["sh", "-c", &script]));
    worker.write(&line("waits", &["true"]));
    assert!(wait_until(|| marker.exists()));
    worker.signal("TERM");
    worker.wait_for_log("draining");
    std::fs::write(go, "").unwrap();
    worker.expect_exit(0);
    let keys: Vec<_> = worker.results().iter().map(|result| result["key"].clone()).collect();
    assert_eq!(keys, ["runs"]);
}

#[test]
fn a_drain_that_takes_too_long_is_cut() {
    let lifetime = lifetime(22);
    let mut worker = Worker::start(&["--input", "-", "--threads", "1", "--drain-timeout", "300ms", "--grace", "300ms"]);
    worker.write(&line("k", &["sleep", &lifetime]));
    assert!(wait_until(|| !processes_with(&lifetime).is_empty()));
    worker.signal("TERM");
    worker.expect_exit(75);
    assert_eq!(worker.results(), [Value::Null; 0]);
}
