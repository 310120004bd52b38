//! The configuration, rule by rule: what goes before what, what is refused and how that is told.

use super::*;
use crate::cli;
use crate::cli::options::OPTIONS;
use crate::error::ExitCode;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;

const CPUS: NonZeroUsize = NonZeroUsize::new(3).unwrap();

fn args(words: &[&str]) -> Args {
    match cli::parse(words.iter().map(Into::into)) {
        cli::Parsed::Run(args) => *args,
        other => panic!("{words:?}: {other:?}"),
    }
}

fn env(variables: &[(&str, &str)]) -> Env {
    Env::new(variables.iter().copied(), CPUS)
}

fn load(words: &[&str], variables: &[(&str, &str)]) -> Result<Config, Mistakes> {
    Config::load(&args(words), &env(variables))
}

fn ok(words: &[&str], variables: &[(&str, &str)]) -> Config {
    load(words, variables).unwrap_or_else(|mistakes| panic!("{words:?} {variables:?}: {mistakes}"))
}

fn mistakes(words: &[&str], variables: &[(&str, &str)]) -> (Vec<String>, ExitCode) {
    let mistakes = load(words, variables).unwrap_err();
    (mistakes.0.iter().map(|mistake| mistake.text.clone()).collect(), mistakes.exit_code())
}

/// A directory with an airflow.cfg of this text, and its path.
fn cfg(text: &str) -> (tempfile::TempDir, String) {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("airflow.cfg");
    fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_string();
    (root, path)
}

fn kafka_of(config: Config) -> Kafka {
    match config.origin {
        Origin::Kafka(kafka) => *kafka,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_defaults() {
    let config = ok(&["--brokers", "b"], &[]);
    assert_eq!(config.threads, CPUS);
    assert_eq!(config.drain_timeout, None);
    assert_eq!(config.result_format, ResultFormat::State);
    assert_eq!(config.log_level, LevelFilter::Info);
    let Exec { timeout, grace, shell, airflow, output_dir, output_limit, tail_bytes, on_lost_lock, max_deliveries } =
        config.exec.clone();
    assert_eq!((on_lost_lock, max_deliveries), (OnLostLock::Stop, 5));
    assert_eq!((timeout, grace), (Some(Duration::from_secs(86_400)), Duration::from_secs(10)));
    assert_eq!((shell, airflow, output_dir), (None, None, None));
    assert_eq!((output_limit, tail_bytes), (Some(10 << 30), 2048));
    let kafka = kafka_of(config);
    assert_eq!(kafka.brokers, ["b:9092"]);
    assert_eq!((kafka.topic.as_str(), kafka.results_topic.as_str()), ("AirflowKafkaTopic", "AirflowKafkaResultsTopic"));
    assert_eq!((kafka.dead_letter_topic, kafka.group.as_str()), (None, "AirflowGroupId"));
    assert_eq!((kafka.from, kafka.client), (StartFrom::Earliest, Client::Auto));
    assert_eq!(kafka.connect_timeout, Duration::from_secs(30));
}

#[test]
fn what_is_nearer_goes_before() {
    let (_root, path) = cfg("[kafka]\ntopic = f2\n[AirKafka_worker]\ntopic = f1\n");
    let (_other, plain) = cfg("[kafka]\ntopic = f2\n");
    let all = [
        ("AIRKAFKA_TOPIC", "v1"),
        ("AIRFLOW__AIRKAFKA_WORKER__TOPIC", "v2"),
        ("AIRFLOW__KAFKA__TOPIC", "v3"),
        ("AIRKAFKA_CONFIG", &path),
    ];
    let topic = |words: &[&str], variables: &[(&str, &str)]| {
        let config = ok(&[&["--brokers", "b"], words].concat(), variables);
        let source = config.sources.of("topic").map(ToString::to_string);
        (kafka_of(config).topic, source.unwrap_or_default())
    };
    let expect = |topic: &str, source: &str| (topic.to_string(), source.to_string());
    assert_eq!(topic(&["--topic", "t"], &all), expect("t", "--topic"));
    assert_eq!(topic(&[], &all), expect("v1", "AIRKAFKA_TOPIC"));
    assert_eq!(topic(&[], &all[1..]), expect("v2", "AIRFLOW__AIRKAFKA_WORKER__TOPIC"));
    assert_eq!(topic(&[], &all[2..]), expect("v3", "AIRFLOW__KAFKA__TOPIC"));
    assert_eq!(topic(&[], &all[3..]), expect("f1", &format!("{path}: [AirKafka_worker] topic")));
    assert_eq!(topic(&["--config", &plain], &all[3..]), expect("f2", &format!("{plain}: [kafka] topic")));
    assert_eq!(topic(&[], &[]), expect("AirflowKafkaTopic", ""));
}

#[test]
fn an_empty_value_counts_as_not_set() {
    let (_root, path) = cfg("[kafka]\ntopic = from-file\n");
    let variables = [("AIRKAFKA_TOPIC", ""), ("AIRFLOW__KAFKA__TOPIC", " \"\" "), ("AIRKAFKA_CONFIG", &path)];
    assert_eq!(kafka_of(ok(&["--brokers", "b", "--topic", " "], &variables)).topic, "from-file");
}

/// A value for each option that is right, and not the default.
fn sample(name: &str, root: &str) -> String {
    match name {
        "brokers" => "b".into(),
        "topic" | "results-topic" | "dead-letter-topic" | "group" | "instance-id" => format!("my-{name}"),
        "group-type" => "consumer".into(),
        "on-lost-lock" => "finish".into(),
        "from" => "latest".into(),
        "client" => "kafka".into(),
        "threads" | "max" | "max-deliveries" | "partitions" => "7".into(),
        "output" => "json".into(),
        "preload" => "none".into(),
        "lock" => format!("{root}/lock"),
        "connect-timeout" | "timeout" | "grace" | "drain-timeout" | "idle-exit" | "max-runtime" | "wait-timeout" => {
            "77s".into()
        }
        "shell" | "airflow" | "kafka-config" => format!("{root}/tool"),
        "output-dir" => root.into(),
        "output-limit" | "tail-bytes" => "7KiB".into(),
        "result-format" | "log-format" => "json".into(),
        "input" => format!("{root}/tool"),
        "verbose" => "DEBUG".into(),
        other => panic!("a value for {other} is missing here"),
    }
}

/// Options put in behind the subcommand.
fn with<'a>(words: &[&'a str], options: &[&'a str]) -> Vec<&'a str> {
    [&words[..1], options, &words[1..]].concat()
}

#[test]
fn every_setting_can_be_given_in_every_way() {
    let root = tempfile::tempdir().unwrap();
    let (tool, file) = (root.path().join("tool"), root.path().join("airflow.cfg"));
    fs::write(&tool, "").unwrap();
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
    for opt in OPTIONS.iter().filter(|opt| opt.setting.is_some() && opt.name != "config") {
        let value = sample(opt.name, root.path().to_str().unwrap());
        let of = opt.of[0].name();
        let words = [of, "--brokers", "b", "--wait", "--", "true"];
        let base = match opt.name {
            "brokers" | "input" => &words[..1],
            "wait-timeout" => &words,
            _ => &words[..3],
        };
        let mut summaries = Vec::new();
        let mut add = |config: Config| {
            let source = config.sources.of(opt.name).unwrap().to_string();
            summaries.push(config.summary().replace(&source, "SOURCE"));
        };
        if opt.value.is_some() {
            add(ok(&with(base, &[&opt.flag(), &value]), &[]));
        }
        add(ok(base, &[(&opt.variable().unwrap(), &value)]));
        for (section, key) in opt.file_keys() {
            let variable = format!("AIRFLOW__{}__{}", section.to_uppercase(), key.to_uppercase());
            add(ok(base, &[(&variable, &value)]));
            fs::write(&file, format!("[{section}]\n{key} = '{value}'\n")).unwrap();
            add(ok(&with(base, &["--config", file.to_str().unwrap()]), &[]));
        }
        summaries.dedup();
        assert_eq!(summaries.len(), 1, "{}: {summaries:#?}", opt.name);
        assert!(summaries[0].contains("(from SOURCE)"), "{}", summaries[0]);
    }
}

#[test]
fn all_mistakes_are_told_at_once_with_where_they_came_from() {
    let (_root, path) = cfg("[core]\nparallelism = many\n[AirKafka_worker]\ngrace = \"soon\"\n");
    let words = ["--config", &path, "--timeout", "0", "--from", "mid\ndle", "--tail-bytes", "1G"];
    let variables = [("AIRKAFKA_OUTPUT_LIMIT", "big"), ("AIRFLOW__KAFKA__TOPIC", "a/b"), ("AIRKAFKA_BROKERS", "::1")];
    let mistakes = load(&words, &variables).unwrap_err();
    assert_eq!(mistakes.exit_code(), ExitCode::Config);
    let expected = [
        "configuration invalid: 8 mistakes",
        "  AIRKAFKA_BROKERS: \"::1\" is not a list of brokers: \"::1\" has several colons; an IPv6 address goes in \
         brackets: [ADDRESS]:PORT",
        "  AIRFLOW__KAFKA__TOPIC: \"a/b\" is not the name of a topic; give 1 to 249 of a-z A-Z 0-9 . _ - (but not . or ..)",
        r#"  --from: "mid\ndle" is not known; give one of: earliest, latest"#,
        "  FILE: [core] parallelism: \"many\" is not a number of threads; give a whole number from 1 to 1024",
        "  --timeout: \"0\" is no time at all; give a duration such as 30s, 5m or 1h30m, or none for no limit",
        "  FILE: [AirKafka_worker] grace: \"soon\" is not a duration; give one such as 250ms, 30s, 5m or 1h30m",
        "  AIRKAFKA_OUTPUT_LIMIT: \"big\" is not a size; give bytes such as 512, or 2KiB, 10MiB, 1GiB, or none for no limit",
        "  --tail-bytes: \"1G\" is more than fits into a result; give at most 64KiB, and see --output-dir to keep it all",
    ];
    assert_eq!(mistakes.to_string().replace(&path, "FILE"), expected.join("\n"));
}

#[test]
fn the_exit_code_tells_what_was_typed_from_what_was_configured() {
    let bad = [("AIRKAFKA_THREADS", "0")];
    assert_eq!(mistakes(&["--brokers", "b", "--threads", "0"], &[]).1, ExitCode::Usage);
    assert_eq!(mistakes(&["--brokers", "b"], &bad).1, ExitCode::Config);
    assert_eq!(mistakes(&["--brokers", "b", "--grace", "x"], &bad).1, ExitCode::Config);
    let one = load(&["--brokers", "b", "--threads", "0"], &[]).unwrap_err().to_string();
    assert!(one.starts_with("configuration invalid: 1 mistake\n  --threads: \"0\" "), "{one}");
}

#[test]
fn brokers_are_required_unless_there_is_input() {
    let (texts, code) = mistakes(&[], &[]);
    assert!(texts.len() == 1 && texts[0].starts_with("--brokers: not given; give "), "{texts:?}");
    assert_eq!(code, ExitCode::Usage);
    assert!(matches!(ok(&["--input", "-"], &[]).origin, Origin::Input(None)));
    // Together with a broken file the message would mislead: the brokers may well be in it.
    let (texts, _) = mistakes(&["--config", "/absent/airflow.cfg"], &[]);
    assert!(texts.len() == 1 && texts[0].starts_with("--config: "), "{texts:?}");
}

#[test]
fn input_and_brokers_in_the_same_place_contradict() {
    let (_root, path) = cfg("[kafka]\nbroker_url = b\n");
    let (texts, code) = mistakes(&["--input", "-", "--brokers", "b"], &[]);
    assert_eq!(texts, ["--input: cannot go together with --brokers; choose one"]);
    assert_eq!(code, ExitCode::Usage);
    let both = [("AIRKAFKA_INPUT", "-"), ("AIRKAFKA_BROKERS", "b")];
    assert_eq!(mistakes(&[], &both).0, ["AIRKAFKA_INPUT: cannot go together with AIRKAFKA_BROKERS; choose one"]);
    // Otherwise the nearer one counts.
    for variables in [&both[1..], &[("AIRFLOW__KAFKA__BROKER_URL", "b")], &[("AIRKAFKA_CONFIG", &path)]] {
        assert!(matches!(ok(&["--input", "-"], variables).origin, Origin::Input(None)));
    }
    let config = ok(&["--brokers", "b"], &both[..1]);
    assert!(!config.summary().contains("input"), "{}", config.summary());
    assert!(matches!(config.origin, Origin::Kafka(_)));
}

#[test]
fn what_has_no_effect_with_input_is_remarked_on() {
    let config = ok(&["--input", "-", "--topic", "t", "--threads", "2"], &[("AIRKAFKA_GROUP", "g")]);
    assert_eq!(config.remarks, ["--topic has no effect with --input"]);
}

#[test]
fn the_topics_must_differ() {
    let base = ["--brokers", "b"];
    for (words, variables, place, reason) in [
        (&["--results-topic", "AirflowKafkaTopic"][..], &[][..], "--results-topic", "eat its own results"),
        (&["--topic", "AirflowKafkaResultsTopic"], &[], "--topic", "eat its own results"),
        (&["--topic", "t"], &[("AIRKAFKA_RESULTS_TOPIC", "t")], "AIRKAFKA_RESULTS_TOPIC", "eat its own results"),
        (&["--dead-letter-topic", "AirflowKafkaTopic"], &[], "--dead-letter-topic", "eat its own dead letters"),
        (&["--dead-letter-topic", "AirflowKafkaResultsTopic"], &[], "--dead-letter-topic", "pass for results"),
    ] {
        let (texts, _) = mistakes(&[&base, words].concat(), variables);
        assert!(texts.len() == 1 && texts[0].starts_with(&format!("{place}: \"")), "{texts:?}");
        assert!(texts[0].contains(reason) && texts[0].ends_with("give two different topics"), "{texts:?}");
    }
    assert_eq!(mistakes(&["--topic", "t", "--results-topic", "t", "--dead-letter-topic", "t"], &[]).0.len(), 4);
    assert_eq!(kafka_of(ok(&["--brokers", "b", "--dead-letter-topic", "d"], &[])).dead_letter_topic.unwrap(), "d");
    // They are of no concern without Kafka.
    ok(&["--input", "-", "--results-topic", "AirflowKafkaTopic"], &[]);
}

#[test]
fn none_takes_back_what_lies_further_away() {
    let (_root, path) =
        cfg("[AirKafka_worker]\ntimeout = 1h\noutput_limit = 1M\ndrain_timeout = 5m\nshell = /bin/sh\n");
    let base = ["--brokers", "b", "--config", &path];
    assert_eq!(ok(&base, &[]).exec.timeout, Some(Duration::from_secs(3600)));
    let none = ["--timeout", "none", "--output-limit=none", "--drain-timeout", "none", "--shell", "none"];
    let config = ok(&[&base[..], &none].concat(), &[]);
    assert_eq!((config.exec.timeout, config.exec.output_limit, config.drain_timeout), (None, None, None));
    assert_eq!(config.exec.shell, None);
    assert_eq!(mistakes(&["--brokers", "b", "--grace", "none"], &[]).1, ExitCode::Usage);
}

#[test]
fn programs_become_absolute_paths() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().to_str().unwrap();
    for name in ["mysh", "airflow"] {
        fs::write(root.path().join(name), "").unwrap();
        fs::set_permissions(root.path().join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let config = ok(&["--brokers", "b", "--shell", "mysh"], &[("PATH", path)]);
    assert_eq!(config.exec.shell, Some(root.path().join("mysh")));
    assert_eq!(config.exec.airflow, Some(root.path().join("airflow")));
    assert_eq!(config.remarks, Vec::<String>::new());
    assert_eq!(config.sources.of("airflow"), None);
    let (texts, _) =
        mistakes(&["--brokers", "b", "--shell", "absent", "--airflow", "/absent/airflow"], &[("PATH", path)]);
    assert!(texts[0].starts_with("--shell: \"absent\" is not on PATH (\""), "{texts:?}");
    assert!(texts[1].starts_with("--airflow: \"/absent/airflow\" cannot be run: "), "{texts:?}");
}

#[test]
fn airflow_that_is_not_found_is_remarked_on_for_kafka_alone() {
    let remark = "airflow is not on PATH (\"/absent\"): commands that begin with `airflow` will be reported as not \
                  found; give --airflow PATH";
    assert_eq!(ok(&["--brokers", "b"], &[("PATH", "/absent")]).remarks, [remark]);
    assert_eq!(ok(&["--input", "-"], &[("PATH", "/absent")]).remarks, Vec::<String>::new());
}

#[test]
fn an_output_directory_must_be_there() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().to_str().unwrap();
    assert_eq!(ok(&["--brokers", "b", "--output-dir", path], &[]).exec.output_dir, Some(root.path().into()));
    let (texts, _) = mistakes(&["--brokers", "b", "--output-dir", &format!("{path}/new")], &[]);
    assert!(texts[0].ends_with(&format!("does not exist; create it: mkdir -p {path}/new")), "{texts:?}");
}

#[test]
fn the_log_level() {
    let level =
        |words: &[&str], variables: &[(&str, &str)]| ok(&[&["--input", "-"], words].concat(), variables).log_level;
    let warn = [("AIRFLOW__AIRKAFKA_WORKER__LOGGING_LEVEL", "WARN")];
    for (words, expected) in [
        (&["-v"][..], LevelFilter::Debug),
        (&["-vv"], LevelFilter::Trace),
        (&["-vvv"], LevelFilter::Trace),
        (&["-q"], LevelFilter::Warn),
        (&["-qq"], LevelFilter::Error),
        (&["-qqq"], LevelFilter::Error),
    ] {
        assert_eq!(level(words, &[]), expected, "{words:?}");
        assert_eq!(level(words, &warn), expected, "{words:?}");
    }
    assert_eq!((level(&[], &[]), level(&[], &warn)), (LevelFilter::Info, LevelFilter::Warn));
    assert_eq!(level(&[], &[("AIRKAFKA_LOGGING_LEVEL", "critical")]), LevelFilter::Error);
    let (texts, code) = mistakes(&["--input", "-", "-vq"], &[]);
    assert_eq!((texts.len(), code), (1, ExitCode::Usage));
    assert!(ok(&["--input", "-", "-vv"], &[]).summary().ends_with("log=trace (from -vv)"));
}

#[test]
fn what_is_accepted_without_effect_is_remarked_on() {
    let (_root, path) = cfg("[AirKafka_worker]\nlogging_file_name = w.log\nlogs_rotate_when = midnight\n[Kafka]\n");
    let variables = [("AIRFLOW__AIRKAFKA_WORKER__LOGGING_DIR", "/var/log"), ("AIRKAFKA_PORT", "tcp://10.0.0.1:80")];
    let remarks = ok(&["--input", "-", "--config", &path], &variables).remarks;
    assert_eq!(remarks.len(), 4, "{remarks:?}");
    assert_eq!(remarks.iter().filter(|text| text.ends_with("not used yet: the log goes to stderr")).count(), 3);
}

#[test]
fn a_mistyped_variable_is_remarked_on() {
    let remarks = ok(&["--input", "-"], &[("AIRKAFKA_THREAD", "3"), ("AIRKAFKA_SERVICE_HOST", "10.0.0.1")]).remarks;
    assert_eq!(remarks, ["AIRKAFKA_THREAD is not a setting and is ignored; did you mean AIRKAFKA_THREADS?"]);
}

#[test]
fn a_variable_that_is_not_utf8_is_a_mistake() {
    let name = std::ffi::OsStr::new("AIRKAFKA_OUTPUT_DIR");
    let value = std::ffi::OsStr::from_bytes(b"/tmp/\xff");
    let mistakes = Config::load(&args(&["--input", "-"]), &Env::new([(name, value)], CPUS)).unwrap_err();
    assert_eq!(
        mistakes.0[0].text,
        "AIRKAFKA_OUTPUT_DIR: \"/tmp/\u{fffd}\" is not valid UTF-8; set it again or unset it"
    );
    assert_eq!((mistakes.0.len(), mistakes.exit_code()), (1, ExitCode::Config));
}

#[test]
fn the_summary_is_one_line_with_sources() {
    let (_root, path) = cfg("[kafka]\ngroup_id = my group\n");
    let variables = [("AIRFLOW__CORE__PARALLELISM", "8"), ("PATH", "/absent")];
    let config = ok(&["--brokers", "a,b:1", "--config", &path, "--drain-timeout", "90s"], &variables);
    assert_eq!(
        config.summary().replace(&path, "airflow.cfg"),
        "brokers=a:9092,b:1 (from --brokers) topic=AirflowKafkaTopic results-topic=AirflowKafkaResultsTopic \
         dead-letter-topic=none group=\"my group\" (from airflow.cfg: [kafka] group_id) group-type=auto on-lost-lock=stop \
         max-deliveries=5 from=earliest client=auto connect-timeout=30s instance-id=none security=PLAINTEXT threads=8 (from AIRFLOW__CORE__PARALLELISM) timeout=24h grace=10s drain-timeout=1m30s \
         (from --drain-timeout) shell=none airflow=none preload=auto output-dir=none output-limit=10GiB tail-bytes=2KiB \
         idle-exit=none max=none max-runtime=none lock=none result-format=state log-format=text log=info"
    );
    let config = ok(&["--input", "-"], &[("PATH", "/absent")]);
    assert!(config.summary().starts_with("input=stdin (from --input) threads=3 timeout=24h "), "{}", config.summary());
}

#[test]
fn what_belongs_to_another_subcommand_is_not_looked_at() {
    let elsewhere = [("AIRKAFKA_OUTPUT_DIR", "/absent"), ("AIRKAFKA_TIMEOUT", "bogus"), ("AIRKAFKA_INPUT", "-")];
    for words in [&["send", "--brokers", "b", "--", "true"][..], &["results", "--brokers", "b"]] {
        assert!(matches!(ok(words, &elsewhere).origin, Origin::Kafka(_)), "{words:?}");
    }
    assert_eq!(mistakes(&["--brokers", "b"], &elsewhere[..2]).0.len(), 2);
}

#[test]
fn the_doctor_goes_on_where_settings_are_wrong_that_do_not_lead_to_brokers() {
    let config = ok(&["doctor", "--brokers", "b", "--output-dir", "/absent"], &[("AIRKAFKA_TIMEOUT", "bogus")]);
    let Some(by_hand::ByHand::Doctor(asked)) = config.by_hand else { panic!() };
    assert_eq!((asked.found.len(), asked.init.as_str()), (2, "airkafka-worker init --brokers b"), "{asked:?}");
    assert_eq!(mistakes(&["doctor", "--brokers", "b", "--topic", "a/b"], &[]).0.len(), 1);
}

#[test]
fn what_send_cannot_do_is_told() {
    for (words, told) in [
        (&["--"][..], "send: no command is given; put it behind --"),
        (&["--", ""], "send: no command is given"),
        (&["--file", "-", "--", "true"], "--file: cannot go together with a command"),
        (&["--file", "-", "--key", "k"], "--key: is about one command"),
        (&["--file", "-", "--env", "A=1"], "--env: is about one command"),
        (&["--file", "/absent"], "--file: \"/absent\" cannot be read"),
        (&["--env", "A", "--", "true"], "--env: \"A\" is no variable; give NAME=VALUE"),
        (&["--env", "A=1", "--env", "A=2", "--", "true"], "--env: \"A\" is given twice"),
        (&["--timeout", "0", "--", "true"], "--timeout: \"0\" is no time at all"),
        (&["--cwd", "", "--", "true"], "--cwd: \"\" is no directory"),
        (&["--wait-timeout", "5s", "--", "true"], "--wait-timeout: has no effect without --wait"),
    ] {
        let (texts, code) = mistakes(&[&["send", "--brokers", "b"], words].concat(), &[]);
        assert!(texts.len() == 1 && texts[0].starts_with(told), "{texts:?}");
        assert_eq!(code, ExitCode::Usage);
    }
}
