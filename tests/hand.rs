//! By hand: `send`, `results`, `doctor`, `init` and `--dry-run`, with the real binary on a real broker.

mod support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Output, Stdio};

use serde_json::{Value, json};
use support::broker::Broker;
use support::client::Client;
use support::kafka::{count, produce, read_all};
use support::topics::{Topics, record};
use support::worker::{Worker, wait_until};

/// What came of one call.
#[derive(Debug)]
struct Called {
    code: Option<i32>,
    out: String,
    log: String,
}

impl Called {
    fn expect(self, code: i32) -> Called {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    fn lines(&self) -> Vec<&str> {
        self.out.lines().collect()
    }

    /// The only line that begins so.
    fn line(&self, start: &str) -> &str {
        let found: Vec<&str> = self.out.lines().filter(|line| line.starts_with(start)).collect();
        assert_eq!(found.len(), 1, "{start:?} in {self:#?}");
        found[0]
    }
}

/// Runs the program to its end.
fn call(args: &[&str], stdin: &str) -> Called {
    let mut command = Worker::command();
    let spawned = command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.expect("the worker's binary");
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes()); // it need not read it
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).expect("text");
    Called { code: status.code(), out: text(stdout), log: text(stderr) }
}

/// A file that only we may read.
fn private_file(dir: &tempfile::TempDir, text: &str) -> String {
    let file = dir.path().join("client.properties");
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    file.display().to_string()
}

/// Calls a subcommand on these topics.
fn on(topics: &Topics, subcommand: &str, args: &[&str], stdin: &str) -> Called {
    let base = [subcommand, "--brokers", &topics.broker, "--connect-timeout", "20s"];
    let topic = if subcommand == "results" { &[][..] } else { &["--topic", &topics.commands] };
    let group = if subcommand == "doctor" { &["--group", &topics.group][..] } else { &[] };
    call(&[&base[..], topic, group, &["--results-topic", &topics.results], args].concat(), stdin)
}

/// Whether the brokers have share groups.
fn has_share_groups() -> bool {
    Broker::version().starts_with("4.")
}

fn topics() -> Topics {
    Topics::new(Broker::shared(), 2)
}

/// Makes a topic with these settings on the shared broker, and waits until it is there.
fn plant(topic: &str, partitions: usize, settings: &[(&str, &str)]) {
    let client = Broker::shared().client();
    client.create_topic_with(topic, partitions, 1, settings).unwrap();
    (0..partitions as i32).for_each(|partition| assert!(client.leader(topic, partition) >= 0));
}

/// A worker on them that has no more to say than this.
fn worker(topics: &Topics) -> Worker {
    topics.worker(&["--threads", "2"])
}

#[test]
fn send_writes_the_command_and_prints_key_and_position() {
    let topics = topics();
    let called = on(&topics, "send", &["--key", "k", "--", "echo", "a b", "--", "-x"], "").expect(0);
    let (key, place) = called.out.trim_end().split_once('\t').unwrap();
    assert!(key == "k" && place.starts_with(&format!("{}-", topics.commands)) && place.ends_with("@0"), "{called:?}");
    assert_eq!(read_all(&topics.broker, &topics.commands), [record("k", json!(["echo", "a b", "--", "-x"]))]);
    assert_eq!(called.log, "");
}

#[test]
fn without_a_key_each_record_gets_one_of_its_own() {
    let topics = topics();
    for _ in 0..3 {
        on(&topics, "send", &["--", "true"], "").expect(0);
    }
    let mut keys: Vec<_> = read_all(&topics.broker, &topics.commands).into_iter().map(|(key, _)| key).collect();
    keys.dedup();
    assert_eq!(keys.len(), 3);
}

#[test]
fn send_says_how_the_command_is_to_be_run_and_exits_as_it_did() {
    let topics = topics();
    let mut worker = worker(&topics);
    let script = "cat; pwd; echo $A; exit 7";
    let more = ["--wait", "--stdin", "-", "--env", "A=1=2", "--cwd", "/usr", "--timeout", "60s", "--"];
    let called = on(&topics, "send", &[&more[..], &["sh", "-c", script]].concat(), "typed\n").expect(7);
    assert!(called.lines()[1].starts_with("state=failed reason=exit exit=7 ms="), "{called:?}");
    assert_eq!(called.lines()[2..], ["typed", "/usr", "1=2"]);
    let (_, value) = read_all(&topics.broker, &topics.commands).remove(0);
    let expected = json!({"command": ["sh", "-c", script], "stdin": "typed\n", "env": {"A": "1=2"}, "cwd": "/usr",
        "timeout": 60.0});
    assert_eq!(serde_json::from_slice::<Value>(&value).unwrap(), expected);
    on(&topics, "send", &["--wait", "--", "true"], "").expect(0);
    on(&topics, "send", &["--wait", "--", "nosuch"], "").expect(127);
    on(&topics, "send", &["--wait", "--", "sh", "-c", "kill -9 $$"], "").expect(137);
    on(&topics, "send", &["--wait", "--timeout", "100ms", "--", "sleep", "60"], "").expect(124);
    worker.signal("TERM");
    worker.expect_exit(0);
}

#[test]
fn a_tail_cannot_steer_the_terminal() {
    let topics = topics();
    let _worker = worker(&topics);
    let called = on(&topics, "send", &["--wait", "--", "printf", r"\033[31mred\r\n\302\233x\tend\n"], "").expect(0);
    assert_eq!(called.lines()[2..], ["\\u{1b}[31mred\\r", "\\u{9b}x\tend"]);
}

#[test]
fn a_result_of_an_earlier_command_with_the_same_key_is_not_taken() {
    let topics = topics();
    let dir = tempfile::tempdir().unwrap();
    let gate = dir.path().join("gate");
    let wait = format!("while [ ! -e {} ]; do sleep 0.02; done; exit 1", gate.display());
    on(&topics, "send", &["--key", "k", "--", "sh", "-c", &wait], "").expect(0);
    let worker = worker(&topics);
    worker.wait_for_log("started ");
    // The first command ends only after the second one has been written.
    let open =
        format!("touch {}; while ! [ -s {}/ended ]; do sleep 0.02; done; exit 5", gate.display(), dir.path().display());
    let ended = dir.path().join("ended");
    let (broker, results) = (topics.broker.clone(), topics.results.clone());
    let watch = std::thread::spawn(move || {
        wait_until(|| count(&broker, &results) >= 1);
        fs::write(ended, "x").unwrap();
    });
    on(&topics, "send", &["--key", "k", "--wait", "--", "sh", "-c", &open], "").expect(5);
    watch.join().unwrap();
    assert_eq!(count(&topics.broker, &topics.results), 2);
}

#[test]
fn a_result_of_the_original_worker_is_enough() {
    let topics = topics();
    let broker = topics.broker.clone();
    let (commands, results) = (topics.commands.clone(), topics.results.clone());
    let answer = std::thread::spawn(move || {
        wait_until(|| count(&broker, &commands) >= 1);
        for (key, value) in [("other", "success"), ("k", "{garbage"), ("k", "failed")] {
            produce(&broker, &results, 0, &[(key.into(), value.into())]);
        }
    });
    let called = on(&topics, "send", &["--key", "k", "--wait", "--wait-timeout", "60s", "--", "true"], "").expect(1);
    assert_eq!(called.lines()[1..], ["state=failed"]);
    answer.join().unwrap();
}

#[test]
fn no_result_in_time_is_exit_code_75() {
    let topics = topics();
    let called = on(&topics, "send", &["--key", "k", "--wait", "--wait-timeout", "300ms", "--", "true"], "").expect(75);
    assert!(called.log.contains("no result within --wait-timeout for 1 command(s): k; "), "{called:?}");
    assert_eq!(count(&topics.broker, &topics.commands), 1);
}

#[test]
fn a_file_of_commands_is_written_and_waited_for() {
    let topics = topics();
    let file = "[\"true\"]\n\n{\"key\":\"b\",\"command\":[\"false\"]}\n\"true 'c'\"\n";
    let called = on(&topics, "send", &["--file", "-", "--wait", "--wait-timeout", "300ms"], file).expect(75);
    assert!(called.out.ends_with("3 command(s): 0 succeeded, 0 failed, 3 without a result\n"), "{called:?}");
    let _worker = worker(&topics);
    let called = on(&topics, "send", &["--file", "-", "--wait"], file).expect(3);
    assert!(called.out.ends_with("3 command(s): 2 succeeded, 1 failed, 0 without a result\n"), "{called:?}");
    assert!(!called.log.contains('\r'), "progress is for terminals alone");
    let called = on(&topics, "send", &["--file", "-", "--wait"], "[\"true\"]\n[\"true\"]").expect(0);
    assert!(called.out.ends_with("2 command(s): 2 succeeded, 0 failed, 0 without a result\n"), "{called:?}");
    on(&topics, "send", &["--file", "-", "--wait"], "").expect(0);
}

#[test]
fn of_a_file_with_a_mistake_nothing_is_written() {
    let topics = topics();
    let called = on(&topics, "send", &["--file", "-"], "[\"true\"]\n{not\n[]\n").expect(2);
    assert!(called.log.contains("line 2: ") && called.log.contains("line 3: the command is empty"), "{called:?}");
    assert_eq!((called.out.as_str(), count(&topics.broker, &topics.commands)), ("", 0));
}

#[test]
fn thousands_of_commands_go_in_batches_and_each_has_its_place() {
    let topics = topics();
    let lines: String = (0..3000).map(|n| format!("{{\"key\":\"{n}\",\"command\":[\"true\"]}}\n")).collect();
    let called = on(&topics, "send", &["--file", "-"], &lines).expect(0);
    let mut places: Vec<&str> = called.out.lines().map(|line| line.split_once('\t').unwrap().1).collect();
    places.sort_unstable();
    places.dedup();
    assert_eq!((places.len(), count(&topics.broker, &topics.commands)), (3000, 3000));
    // Where it is said to stand it stands.
    let keys: Vec<String> = read_all(&topics.broker, &topics.commands)
        .into_iter()
        .map(|(key, _)| String::from_utf8(key).unwrap())
        .collect();
    let of_zero: Vec<&str> =
        called.out.lines().filter(|line| line.contains(&format!("\t{}-0@", topics.commands))).collect();
    for line in of_zero {
        let (key, place) = line.split_once('\t').unwrap();
        let offset: usize = place.rsplit('@').next().unwrap().parse().unwrap();
        assert_eq!(keys[offset], key);
    }
}

#[test]
fn who_closes_stdout_does_not_stop_the_writing() {
    let topics = topics();
    let lines = "[\"true\"]\n".repeat(1200);
    let mut command = Worker::command();
    command.args(["send", "--brokers", &topics.broker, "--topic", &topics.commands, "--file", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(count(&topics.broker, &topics.commands), 1200);
}

#[test]
fn without_a_broker_every_subcommand_says_so() {
    for words in [
        &["send", "--wait", "--", "true"][..],
        &["send", "--", "true"],
        &["results"],
        &["init"],
        &["start", "--dry-run"],
    ] {
        let options = ["--brokers", "127.0.0.1:1", "--connect-timeout", "1ms"];
        let called = call(&[&words[..1], &options, &words[1..]].concat(), "").expect(69);
        assert!(called.log.contains("ERROR broker 127.0.0.1:1: connection refused"), "{called:?}");
    }
    let called = call(&["doctor", "--brokers", "127.0.0.1:1"], "").expect(1);
    assert_eq!(called.line("problem"), "problem  broker 127.0.0.1:1: connection refused");
    assert_eq!(called.line("         fix: nc"), "         fix: nc -vz 127.0.0.1 1");
}

#[test]
fn a_topic_that_is_missing_is_named_and_does_not_come_into_being() {
    let topics = topics();
    let missing = format!("{}-missing", topics.commands);
    let broker = ["--brokers", &topics.broker, "--connect-timeout", "1ms"];
    for (subcommand, args) in
        [("send", &["--topic", &missing, "--", "true"][..]), ("results", &["--results-topic", &missing])]
    {
        let called = call(&[&[subcommand], &broker[..], args].concat(), "").expect(69);
        assert!(called.log.contains(&format!("topic {missing}: does not exist; create it: ")), "{called:?}");
    }
    assert!(Client::new(&topics.broker).metadata(&missing).is_err_and(|e| e.to_string().contains("error 3")));
}

#[test]
fn an_unknown_word_is_told_with_the_one_that_was_meant() {
    for (words, told) in [
        (
            &["sned", "--", "true"][..],
            "unexpected argument \"sned\"; did you mean send?\nall options: airkafka-worker --help\n",
        ),
        (
            &["send", "--wiat", "--", "x"],
            "unknown option --wiat; did you mean --wait?\nall options: airkafka-worker send --help\n",
        ),
        (&["results", "--wait"], "--wait is no option of results, but of send\n"),
        (
            &["frobnicate"],
            "unexpected argument \"frobnicate\"; a subcommand is one of: start, send, results, doctor, init, generate\n",
        ),
    ] {
        let called = call(words, "").expect(2);
        assert!(called.log.starts_with(&format!("airkafka-worker: {told}")), "{called:?}");
    }
}

#[test]
fn results_are_shown_as_a_table_and_as_json() {
    let topics = topics();
    let _worker = worker(&topics);
    on(&topics, "send", &["--key", "good", "--wait", "--", "true"], "").expect(0);
    on(&topics, "send", &["--key", "bad", "--wait", "--", "sh", "-c", "exit 3"], "").expect(3);
    let called = on(&topics, "results", &[], "").expect(0);
    assert!(called.lines().len() == 3 && called.lines()[0].starts_with("TIME "), "{called:?}");
    let fields: Vec<&str> = called.lines()[2].split_whitespace().collect();
    assert_eq!((fields[1], fields[2], fields[3], fields[7]), ("failed", "exit", "3", "bad"), "{called:?}");
    assert!(fields[6].starts_with(&topics.commands), "{called:?}");
    let called = on(&topics, "results", &["--failed", "--output", "json", "--since", "1h"], "").expect(0);
    assert_eq!(called.lines().len(), 1, "{called:?}");
    let shown: Value = serde_json::from_str(called.lines()[0]).unwrap();
    assert_eq!((&shown["key"], &shown["state"], &shown["exit_code"]), (&json!("bad"), &json!("failed"), &json!(3)));
    assert_eq!(on(&topics, "results", &["--since", "0"], "").expect(0).lines().len(), 1);
}

#[test]
fn garbage_among_the_results_is_shown_as_such_and_harmless() {
    let topics = topics();
    let nasty = b"\x1b[2J\xff\n\xc2\x9b".to_vec();
    let garbage = [(nasty.clone(), nasty), (Vec::new(), Vec::new()), ("k".into(), b"{\"state\":\"success\"}".to_vec())];
    produce(&topics.broker, &topics.results, 0, &garbage);
    produce(&topics.broker, &topics.results, 0, &[("k".into(), "success".into())]);
    let called = on(&topics, "results", &[], "").expect(0);
    assert!(!called.out.contains(|c: char| c.is_control() && c != '\n'), "{called:?}");
    assert_eq!(called.out.matches("no result").count(), 3, "{called:?}");
    assert_eq!(on(&topics, "results", &["--failed"], "").expect(0).lines().len(), 4);
    let called = on(&topics, "results", &["--output", "json"], "").expect(0);
    assert!(!called.out.contains(|c: char| c.is_control() && c != '\n'), "{called:?}");
    let shown: Vec<Value> = called.lines().iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((shown.len(), &shown[3]["state"], &shown[0]["state"]), (4, &json!("success"), &Value::Null));
}

#[test]
fn follow_shows_what_comes() {
    let topics = topics();
    produce(&topics.broker, &topics.results, 0, &[("old".into(), "success".into())]);
    let args =
        ["results", "--brokers", &topics.broker, "--results-topic", &topics.results, "--output", "json", "--follow"];
    let worker = Worker::start(&args);
    assert_eq!(worker.wait_for_results(1)[0]["key"], "old");
    produce(&topics.broker, &topics.results, 0, &[("new".into(), "failed".into())]);
    assert_eq!(worker.wait_for_results(2)[1]["key"], "new");
}

#[test]
fn init_makes_what_is_missing_and_leaves_alone_what_is_there() {
    let broker = Broker::shared();
    let topics = topics();
    let dead = format!("{}-dead", topics.commands);
    let fresh = format!("{}-fresh", topics.commands);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("airflow.cfg");
    fs::write(&file, "[core]\nparallelism = 6").unwrap();
    let file = file.to_str().unwrap();
    let args = ["init", "--brokers", &topics.broker, "--topic", &fresh, "--results-topic", &topics.results];
    let args = [&args[..], &["--dead-letter-topic", &dead, "--config", file]].concat();
    let called = call(&args, "").expect(0);
    assert!(
        called.out.contains(&format!("topic {fresh} (commands): created, 6 partition(s), 1 replica(s)")),
        "{called:?}"
    );
    assert!(
        called.out.contains(&format!("topic {} (results): is there, 1 partition(s); left", topics.results)),
        "{called:?}"
    );
    assert!(called.out.contains(&format!("topic {dead} (dead letters): created, 1 partition(s)")), "{called:?}");
    assert_eq!(broker.client().metadata(&fresh).unwrap().leaders.len(), 6);
    let written = fs::read_to_string(file).unwrap();
    assert!(written.starts_with("[core]\nparallelism = 6\n\n[AirKafka_worker]\n"), "{written}");
    assert!(written.contains(&format!("\ntopic = {fresh}\n")) && written.contains("\n# timeout = 24h\n"), "{written}");
    // A worker starts with it as it is, and so does a second init, which changes nothing.
    call(&["--config", file, "--once", "--group", &fresh], "").expect(0);
    let called = call(&["init", "--config", file], "").expect(0);
    assert_eq!(called.out.matches("left as it is").count(), 4, "{called:?}");
    assert_eq!(fs::read_to_string(file).unwrap(), written);
}

#[test]
fn init_without_a_file_prints_the_section_and_makes_a_file_that_is_not_there() {
    let topics = topics();
    let called = on(&topics, "init", &[], "").expect(0);
    assert!(called.out.contains("\n[AirKafka_worker]\n"), "{called:?}");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("new.cfg");
    on(&topics, "init", &["--config", file.to_str().unwrap()], "").expect(0);
    let section = called.out.split_once("[AirKafka_worker]").unwrap().1;
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("[AirKafka_worker]{section}"));
    // What stands in the comments can be taken out of them as it is.
    let is_key = |line: &str| line.split_once(" =").is_some_and(|(key, _)| !key.contains([' ', '#']));
    let bare = |line: &str| line.strip_prefix("# ").filter(|rest| is_key(rest)).unwrap_or(line).to_owned() + "\n";
    let uncommented: String = fs::read_to_string(&file).unwrap().lines().map(bare).collect();
    assert!(uncommented.contains("\ngrace = 10s\n"), "{uncommented}");
    fs::write(&file, uncommented).unwrap();
    call(&["--config", file.to_str().unwrap(), "--once"], "").expect(0);
}

#[test]
fn doctor_finds_nothing_wrong_where_nothing_is() {
    let topics = topics();
    let mut worker = worker(&topics);
    on(&topics, "send", &["--wait", "--", "true"], "").expect(0);
    let called = on(&topics, "doctor", &["--threads", "2"], "").expect(0);
    assert!(!called.out.contains("problem  "), "{called:?}");
    assert!(called.out.contains(&format!("ok       group {}: 1 worker(s), Stable", topics.group)), "{called:?}");
    worker.signal("TERM");
    worker.expect_exit(0);
}

#[test]
fn doctor_finds_three_planted_faults_and_its_fixes_mend_them() {
    let topics = topics();
    let (planted, missing) = (format!("{}-planted", topics.commands), format!("{}-missing", topics.commands));
    let settings = [("cleanup.policy", "compact"), ("retention.ms", "60000")];
    plant(&planted, 1, &settings);
    let args = ["doctor", "--brokers", &topics.broker, "--topic", &planted, "--results-topic", &missing];
    let args =
        [&args[..], &["--group", &topics.group, "--output-dir", "/absent/dir", "--group-type", "consumer"]].concat();
    let called = call(&args, "").expect(1);
    let (compact, absent) = (format!("problem  topic {planted} (commands): "), format!("problem  topic {missing} "));
    assert!(called.line(&compact).contains("cleanup.policy is compact"), "{called:?}");
    assert!(called.line(&absent).ends_with("does not exist"), "{called:?}");
    assert!(called.line("problem  settings: --output-dir").contains("does not exist"), "{called:?}");
    assert!(called.out.ends_with("3 problem(s), 2 warning(s)\n"), "{called:?}");
    assert!(called.line("warn     partitions: 1 for ").ends_with("and a second one would stand by"), "{called:?}");
    let fixes: Vec<&str> = called.out.lines().filter_map(|line| line.strip_prefix("         fix: ")).collect();
    let fix = |start: &str| fixes.iter().find(|fix| fix.starts_with(start)).unwrap_or_else(|| panic!("{called:?}"));
    assert!(fix("kafka-configs.sh").starts_with(&format!("kafka-configs.sh --bootstrap-server {} ", topics.broker)));
    assert!(fix("kafka-configs.sh").ends_with(" --add-config cleanup.policy=delete"), "{called:?}");
    assert!(fix("create it: mkdir -p /absent/dir").len() > 10);
    // The call of init that is given is one that can be pasted.
    let init: Vec<&str> = fix("airkafka-worker init").split(' ').skip(1).collect();
    call(&init, "").expect(0);
    let called = call(&args, "").expect(1);
    assert!(called.out.contains("2 problem(s)"), "{called:?}");
}

#[test]
fn doctor_finds_records_that_are_deleted_too_soon() {
    let topics = topics();
    let planted = format!("{}-short", topics.commands);
    plant(&planted, 2, &[("retention.ms", "3600000")]);
    let args = ["doctor", "--brokers", &topics.broker, "--topic", &planted, "--results-topic", &topics.results];
    let called = call(&[&args[..], &["--group", &topics.group]].concat(), "").expect(1);
    let told = called.line(&format!("problem  topic {planted} (commands): "));
    assert!(
        told.ends_with("keeps records for 1h only (retention.ms): what is not read by then is never run"),
        "{called:?}"
    );
    assert!(called.out.contains("--add-config retention.ms=604800000\n"), "{called:?}");
}

#[test]
fn doctor_names_the_rights_that_are_missing_and_the_calls_that_grant_them() {
    let broker = Broker::start();
    let settings = "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
                    super.users=User:ANONYMOUS\nsasl.enabled.mechanisms=PLAIN\n\
                    listener.name.login.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule \
                    required user_alice=\"alice-secret\";\n";
    let addresses = broker.add_listeners(&[("LOGIN", "SASL_PLAINTEXT")], settings);
    let topics = Topics::new(&broker, 2);
    let dir = tempfile::tempdir().unwrap();
    let login =
        "security.protocol=SASL_PLAINTEXT\nsasl.mechanism=PLAIN\nsasl.username=alice\nsasl.password=alice-secret\n";
    let file = private_file(&dir, login);
    let args = ["doctor", "--brokers", &addresses[0], "--kafka-config", &file, "--topic", &topics.commands];
    let args = [&args[..], &["--results-topic", &topics.results, "--group", &topics.group]].concat();
    let called = call(&args, "").expect(1);
    assert!(called.out.contains(&format!("broker {}: answers user \"alice\"", addresses[0])), "{called:?}");
    for (kind, name) in [("topic", &topics.commands), ("topic", &topics.results), ("group", &topics.group)] {
        let told = called.line(&format!("problem  {kind} {name}{}", if kind == "topic" { " (" } else { ":" }));
        assert!(told.contains("is not authorised"), "{called:?}");
        let grant = format!("--{kind} '{name}'");
        let fix = called.out.lines().find(|line| line.ends_with(&grant)).unwrap_or_else(|| panic!("{called:?}"));
        let call = format!(
            "         fix: kafka-acls.sh --bootstrap-server {} --command-config client.properties --add \
             --allow-principal 'User:alice' --operation ",
            addresses[0]
        );
        assert!(fix.starts_with(&call), "{fix}");
    }
    assert!(!called.out.contains("alice-secret") && !called.log.contains("alice-secret"));
    let sent = ["send", "--brokers", &addresses[0], "--kafka-config", &file, "--topic", &topics.commands];
    let called = call(&[&sent[..], &["--", "true"]].concat(), "").expect(77);
    assert!(called.log.contains("(as user \"alice\")"), "{called:?}");
}

#[test]
fn a_dry_run_shows_what_would_run_and_disturbs_nobody() {
    let topics = topics();
    let values = [r#"["true","a","b"]"#, r#"["nosuch"]"#, r#""ls *""#, r#"{"command":["sleep","9"],"timeout":5}"#];
    let records: Vec<_> = values.iter().map(|value| (value.as_bytes().to_vec(), value.as_bytes().to_vec())).collect();
    produce(&topics.broker, &topics.commands, 0, &records);
    let dry = |args: &[&str]| {
        let base =
            ["start", "--dry-run", "--brokers", &topics.broker, "--topic", &topics.commands, "--group", &topics.group];
        call(&[&base[..], &["--results-topic", &topics.results], args].concat(), "")
    };
    let called = dry(&[]).expect(0);
    let told = |offset: usize| called.line(&format!("{}-0@{offset} key=", topics.commands));
    assert!(
        told(0).contains("would run /") && told(0).ends_with("/true with 2 argument(s), timeout 24h"),
        "{called:?}"
    );
    assert!(told(1).contains("would fail, not_found: nosuch: not found on PATH"), "{called:?}");
    assert!(told(2).contains("would fail, invalid: unquoted `*` needs a shell"), "{called:?}");
    assert!(told(3).ends_with("/sleep with 1 argument(s), timeout 5s"), "{called:?}");
    assert!(called.line(&format!("{}-0: read from 0, since group ", topics.commands)).ends_with("to 4"), "{called:?}");
    assert!(called.out.ends_with("dry run: 2 would be run, 2 would fail at once, 0 are done already\n"), "{called:?}");
    assert_eq!((count(&topics.broker, &topics.results), topics.committed()), (0, 0));
    // From where the group stands.
    let consumer = ["--group-type", "consumer"];
    topics.worker(&[&consumer[..], &["--max", "1"]].concat()).expect_exit(0);
    let called = dry(&consumer).expect(0);
    let told = called.line(&format!("{}-0: read from 1, where group ", topics.commands));
    assert!(told.ends_with("has committed, to 4"), "{called:?}");
    let called = dry(&["--client", "kafka"]).expect(78);
    assert!(called.log.contains("--dry-run reads with our own client"), "{called:?}");
}

#[test]
fn a_dry_run_reads_from_where_a_share_group_begins() {
    if !has_share_groups() {
        return;
    }
    let topics = topics();
    let mut worker = topics.worker(&["--group-type", "share", "--threads", "1"]);
    on(&topics, "send", &["--wait", "--", "true"], "").expect(0);
    let group = ["--group", &topics.group, "--results-topic", &topics.results];
    let args = ["--dry-run", "--brokers", &topics.broker, "--topic", &topics.commands, "--group-type", "auto"];
    let told = format!(", where share group {} begins, to 1\n", topics.group);
    // The result comes first, the acknowledgement of the command after it.
    let is_told = || {
        let called = call(&[&args[..], &group].concat(), "").expect(0);
        assert!(called.out.contains("is not told from outside"), "{called:?}");
        called.out.contains(&told) || called.out.contains("2 partition(s) of ")
    };
    assert!(wait_until(is_told), "{told}");
    let called = on(&topics, "doctor", &["--group-type", "share", "--max-deliveries", "9"], "").expect(0);
    assert!(called.out.contains(&format!("ok       group {}: is a share group, Stable", topics.group)), "{called:?}");
    assert!(called.line("warn     group").contains("is delivered 5 times at the most"), "{called:?}");
    let called = on(&topics, "doctor", &["--group-type", "consumer"], "").expect(1);
    assert!(
        called
            .line("problem  group")
            .contains("is of the kind share, and such a worker joins groups of the kind classic")
    );
    worker.signal("TERM");
    worker.expect_exit(0);
}

#[test]
fn a_dry_run_of_a_file_needs_no_broker() {
    let called = call(&["--input", "-", "--dry-run"], "{\"key\":\"k\",\"command\":[\"true\"]}\n[]\n").expect(0);
    assert!(
        called.line("stdin-0@1 key=k: would run /").ends_with("/true with 0 argument(s), timeout 24h"),
        "{called:?}"
    );
    assert_eq!(called.line("stdin-0@2"), "stdin-0@2 key=(none): would fail, invalid: the command is empty");
}
