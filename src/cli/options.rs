//! The one table of options: what each is called on the command line, in the environment and in airflow.cfg, what it
//! defaults to and what the help says of it.
//!
//! The command line, the help and the configuration all read it, so they cannot drift apart. It holds no logic beyond
//! deriving names.

use super::subcommand::Subcommand::{self, *};

/// The section of airflow.cfg that is ours.
pub const WORKER_SECTION: &str = "AirKafka_worker";

/// One option. Two subcommands may have different ones of the same name.
#[derive(Debug)]
pub struct Opt {
    /// Long name, without dashes.
    pub name: &'static str,
    /// One-letter name.
    pub short: Option<char>,
    /// What the help calls the value; `None`: a switch.
    pub value: Option<&'static str>,
    /// What holds when it is not given.
    pub fallback: Fallback,
    /// Its name in the environment (with a prefix, in capitals) and in our section of airflow.cfg; `None`: it can only
    /// be typed.
    pub setting: Option<&'static str>,
    /// Section and key under which Airflow or AirKafka already have it.
    pub airflow: Option<(&'static str, &'static str)>,
    /// The subcommands it belongs to; any other refuses it, and takes its default for a setting.
    pub of: &'static [Subcommand],
    /// The heading it stands under in the help.
    pub heading: &'static str,
    /// What the help says, without the default.
    pub help: &'static str,
}

/// What holds when an option is not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// Nothing.
    Nothing,
    /// As if this had been given.
    Value(&'static str),
    /// Found out at start; the text says how.
    Computed(&'static str),
}

impl Opt {
    /// As it is typed: `--results-topic`.
    pub fn flag(&self) -> String {
        format!("--{}", self.name)
    }

    /// Whether it may be given more than once.
    pub fn repeats(&self) -> bool {
        REPEATED.contains(&self.name)
    }

    /// Whether it belongs to `subcommand`.
    pub fn is_of(&self, subcommand: Subcommand) -> bool {
        self.of.contains(&subcommand)
    }

    /// Its environment variable: `AIRKAFKA_RESULTS_TOPIC`.
    pub fn variable(&self) -> Option<String> {
        self.setting.map(|setting| format!("AIRKAFKA_{}", setting.to_uppercase()))
    }

    /// Sections and keys of airflow.cfg, the one that goes first first. A file does not name another file.
    pub fn file_keys(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let own = self.setting.filter(|setting| *setting != "config").map(|setting| (WORKER_SECTION, setting));
        own.into_iter().chain(self.airflow)
    }
}

/// Airflow's environment variable for a key of airflow.cfg: `AIRFLOW__KAFKA__BROKER_URL`.
pub fn airflow_variable(section: &str, key: &str) -> String {
    format!("AIRFLOW__{}__{}", section.to_uppercase(), key.to_uppercase())
}

/// The options of `subcommand`.
pub fn of(subcommand: Subcommand) -> impl Iterator<Item = &'static Opt> + Clone {
    OPTIONS.iter().filter(move |opt| opt.is_of(subcommand))
}

/// The option of that long name; where two have it, the one that is a setting.
pub fn find(name: &str) -> Option<&'static Opt> {
    OPTIONS.iter().find(|opt| opt.name == name)
}

/// Options that may be given more than once.
const REPEATED: [&str; 2] = ["property", "env"];

const ALL: &[Subcommand] = &Subcommand::ALL;
/// Settings of the worker; the doctor looks at all of them.
const WORKER: &[Subcommand] = &[Start, Doctor];
const START: &[Subcommand] = &[Start];

/// An option that can only be typed; what differs goes in front of it.
const TYPED: Opt = Opt {
    name: "",
    short: None,
    value: None,
    fallback: Fallback::Nothing,
    setting: None,
    airflow: None,
    of: &[],
    heading: "",
    help: "",
};

const RECORD: &str = "The command";
const RESULTS: &str = "Results";
const TOPICS: &str = "Topics";
/// The heading of what leads to the brokers, topics and group.
pub const KAFKA: &str = "Kafka";
const COMMANDS: &str = "Commands";
const ENDING: &str = "Ending by itself";
const GENERAL: &str = "General";

/// Every option, in the order of the help.
pub const OPTIONS: &[Opt] = &[
    Opt {
        name: "brokers",
        short: None,
        value: Some("HOST:PORT[,...]"),
        fallback: Fallback::Nothing,
        setting: Some("brokers"),
        airflow: Some(("kafka", "broker_url")),
        of: ALL,
        heading: KAFKA,
        help: "brokers to ask first; required unless --input is given; the port may be left out (9092); IPv6 \
               addresses go in brackets",
    },
    Opt {
        name: "topic",
        short: None,
        value: Some("TOPIC"),
        fallback: Fallback::Value("AirflowKafkaTopic"),
        setting: Some("topic"),
        airflow: Some(("kafka", "topic")),
        of: &[Start, Send, Doctor, Init],
        heading: KAFKA,
        help: "topic the commands are read from",
    },
    Opt {
        name: "results-topic",
        short: None,
        value: Some("TOPIC"),
        fallback: Fallback::Value("AirflowKafkaResultsTopic"),
        setting: Some("results_topic"),
        airflow: Some(("kafka", "results_topic")),
        of: ALL,
        heading: KAFKA,
        help: "topic the results are written to; never the topic of the commands",
    },
    Opt {
        name: "dead-letter-topic",
        short: None,
        value: Some("TOPIC"),
        fallback: Fallback::Value("none"),
        setting: Some("dead_letter_topic"),
        airflow: None,
        of: &[Start, Doctor, Init],
        heading: KAFKA,
        help: "topic that also gets the records that are no command, unchanged",
    },
    Opt {
        name: "group",
        short: None,
        value: Some("GROUP"),
        fallback: Fallback::Value("AirflowGroupId"),
        setting: Some("group"),
        airflow: Some(("kafka", "group_id")),
        of: WORKER,
        heading: KAFKA,
        help: "group that the workers form; each command goes to one of them",
    },
    Opt {
        name: "group-type",
        short: None,
        value: Some("auto|consumer|share"),
        fallback: Fallback::Value("auto"),
        setting: Some("group_type"),
        airflow: None,
        of: WORKER,
        heading: KAFKA,
        help: "share: any number of workers on a partition (Kafka 4.2 or newer); consumer: partitions belong to workers; \
               auto: share where the brokers offer it and the group is not a consumer group already",
    },
    Opt {
        name: "on-lost-lock",
        short: None,
        value: Some("stop|finish"),
        fallback: Fallback::Value("stop"),
        setting: Some("on_lost_lock"),
        airflow: None,
        of: WORKER,
        heading: KAFKA,
        help: "when a share group gives the record of a running command to another worker: stop the command and report \
               nothing, or let it finish and report it as well",
    },
    Opt {
        name: "max-deliveries",
        short: None,
        value: Some("N"),
        fallback: Fallback::Value("5"),
        setting: Some("max_deliveries"),
        airflow: None,
        of: WORKER,
        heading: KAFKA,
        help: "at its Nth delivery in a share group a command is not started again but reported as failed (poison); no \
               more than the brokers' share.delivery.count.limit, after which they drop it",
    },
    Opt {
        name: "from",
        short: None,
        value: Some("earliest|latest"),
        fallback: Fallback::Value("earliest"),
        setting: Some("from"),
        airflow: None,
        of: WORKER,
        heading: KAFKA,
        help: "where a new group starts: at the oldest record, or behind the newest",
    },
    Opt {
        name: "client",
        short: None,
        value: Some("auto|wire|kafka"),
        fallback: Fallback::Value("auto"),
        setting: Some("client"),
        airflow: None,
        of: WORKER,
        heading: KAFKA,
        help: "how to talk to the brokers: auto, the best way they understand; wire, as a member of the group (Kafka \
               0.11 or newer); or the kafka crate (older ones: one worker per topic, plaintext only)",
    },
    Opt {
        name: "connect-timeout",
        short: None,
        value: Some("DURATION"),
        fallback: Fallback::Value("30s"),
        setting: Some("connect_timeout"),
        airflow: None,
        of: ALL,
        heading: KAFKA,
        help: "how long to look for the brokers and the topic at start before giving up",
    },
    Opt {
        name: "instance-id",
        short: None,
        value: Some("ID"),
        fallback: Fallback::Value("none"),
        setting: Some("instance_id"),
        airflow: None,
        of: WORKER,
        heading: KAFKA,
        help: "static member of the group: restarted within the session timeout, the worker with this ID keeps its \
               partitions; each worker needs its own",
    },
    Opt {
        name: "kafka-config",
        short: None,
        value: Some("FILE"),
        fallback: Fallback::Value("none"),
        setting: Some("kafka_config"),
        airflow: None,
        of: ALL,
        heading: KAFKA,
        help: "properties of a Kafka client, as those in Java and librdkafka read them: TLS, SASL, tuning (see Kafka properties)",
    },
    Opt {
        name: "property",
        short: Some('X'),
        value: Some("KEY=VALUE"),
        fallback: Fallback::Nothing,
        setting: None,
        airflow: None,
        of: ALL,
        heading: KAFKA,
        help: "one such property; goes before the file; may be given several times",
    },
    Opt {
        name: "threads",
        short: None,
        value: Some("N"),
        fallback: Fallback::Computed("number of CPUs"),
        setting: Some("threads"),
        airflow: Some(("core", "parallelism")),
        of: &[Start, Doctor, Init],
        heading: COMMANDS,
        help: "commands that run at once, 1 to 1024",
    },
    Opt {
        name: "timeout",
        short: None,
        value: Some("DURATION"),
        fallback: Fallback::Value("24h"),
        setting: Some("timeout"),
        airflow: None,
        of: WORKER,
        heading: COMMANDS,
        help: "stop a command that runs longer; none: never; a record's own timeout goes before",
    },
    Opt {
        name: "grace",
        short: None,
        value: Some("DURATION"),
        fallback: Fallback::Value("10s"),
        setting: Some("grace"),
        airflow: None,
        of: WORKER,
        heading: COMMANDS,
        help: "time a command that is stopped gets between TERM and KILL",
    },
    Opt {
        name: "drain-timeout",
        short: None,
        value: Some("DURATION"),
        fallback: Fallback::Value("none"),
        setting: Some("drain_timeout"),
        airflow: None,
        of: WORKER,
        heading: COMMANDS,
        help: "after the first TERM or INT, how long running commands may finish before they are stopped; none: \
               wait for them",
    },
    Opt {
        name: "shell",
        short: None,
        value: Some("PROGRAM"),
        fallback: Fallback::Value("none"),
        setting: Some("shell"),
        airflow: None,
        of: WORKER,
        heading: COMMANDS,
        help: "give commands that are one string to PROGRAM -c; none: split them into words and run them directly",
    },
    Opt {
        name: "airflow",
        short: None,
        value: Some("PATH"),
        fallback: Fallback::Computed("found on PATH"),
        setting: Some("airflow"),
        airflow: None,
        of: WORKER,
        heading: COMMANDS,
        help: "program that runs commands beginning with the word airflow",
    },
    Opt {
        name: "preload",
        short: None,
        value: Some("auto|airflow|none"),
        fallback: Fallback::Value("auto"),
        setting: Some("preload"),
        airflow: None,
        of: WORKER,
        heading: COMMANDS,
        help: "import Airflow ahead and fork its tasks (commands airkafka-task): auto: with the first one; airflow: at \
               the start; none: each gets a new interpreter",
    },
    Opt {
        name: "output-dir",
        short: None,
        value: Some("DIR"),
        fallback: Fallback::Value("none"),
        setting: Some("output_dir"),
        airflow: None,
        of: WORKER,
        heading: COMMANDS,
        help: "keep the output of each command as a file in DIR; none: it is dropped, but for its tail",
    },
    Opt {
        name: "output-limit",
        short: None,
        value: Some("SIZE"),
        fallback: Fallback::Value("10GiB"),
        setting: Some("output_limit"),
        airflow: None,
        of: WORKER,
        heading: COMMANDS,
        help: "stop a command that writes more; none: no limit",
    },
    Opt {
        name: "tail-bytes",
        short: None,
        value: Some("SIZE"),
        fallback: Fallback::Value("2KiB"),
        setting: Some("tail_bytes"),
        airflow: None,
        of: WORKER,
        heading: COMMANDS,
        help: "how much of the end of the output goes into the result, at most 64KiB",
    },
    Opt {
        name: "result-format",
        short: None,
        value: Some("state|json"),
        fallback: Fallback::Value("state"),
        setting: Some("result_format"),
        airflow: None,
        of: WORKER,
        heading: COMMANDS,
        help: "value of a result: the bare word success or failed, or the whole outcome as JSON",
    },
    Opt {
        name: "once",
        short: None,
        value: None,
        fallback: Fallback::Nothing,
        setting: None,
        airflow: None,
        of: WORKER,
        heading: ENDING,
        help: "end when what is on the topic now has been run",
    },
    Opt {
        name: "dry-run",
        of: START,
        heading: ENDING,
        help: "run nothing: show what of the topic would be run, and why the rest would not, then end",
        ..TYPED
    },
    Opt {
        name: "idle-exit",
        short: None,
        value: Some("DURATION"),
        fallback: Fallback::Value("none"),
        setting: Some("idle_exit"),
        airflow: None,
        of: WORKER,
        heading: ENDING,
        help: "end when for so long there was nothing to run",
    },
    Opt {
        name: "max",
        short: None,
        value: Some("N"),
        fallback: Fallback::Value("none"),
        setting: Some("max"),
        airflow: None,
        of: WORKER,
        heading: ENDING,
        help: "end after N commands",
    },
    Opt {
        name: "max-runtime",
        short: None,
        value: Some("DURATION"),
        fallback: Fallback::Value("none"),
        setting: Some("max_runtime"),
        airflow: None,
        of: WORKER,
        heading: ENDING,
        help: "drain after so long",
    },
    Opt {
        name: "fail-on-error",
        short: None,
        value: None,
        fallback: Fallback::Nothing,
        setting: None,
        airflow: None,
        of: WORKER,
        heading: ENDING,
        help: "exit with 3 if a command has failed",
    },
    Opt {
        name: "lock",
        short: None,
        value: Some("FILE"),
        fallback: Fallback::Value("none"),
        setting: Some("lock"),
        airflow: None,
        of: WORKER,
        heading: ENDING,
        help: "run only if no other worker holds FILE; a kernel lock, which ends with the process",
    },
    Opt {
        name: "lock-busy-ok",
        short: None,
        value: None,
        fallback: Fallback::Nothing,
        setting: None,
        airflow: None,
        of: WORKER,
        heading: ENDING,
        help: "exit with 0, not 75, if another worker holds the lock",
    },
    Opt {
        name: "key",
        value: Some("KEY"),
        fallback: Fallback::Computed("one that nobody else has"),
        of: &[Send],
        heading: RECORD,
        help: "key of the record, which its result has too",
        ..TYPED
    },
    Opt {
        name: "stdin",
        value: Some("FILE"),
        of: &[Send],
        heading: RECORD,
        help: "text that the command reads on stdin (-: what stands on stdin here)",
        ..TYPED
    },
    Opt {
        name: "env",
        value: Some("NAME=VALUE"),
        of: &[Send],
        heading: RECORD,
        help: "a variable of the command; may be given several times. Put secrets into --stdin",
        ..TYPED
    },
    Opt {
        name: "cwd",
        value: Some("DIR"),
        of: &[Send],
        heading: RECORD,
        help: "directory the command runs in, on the worker's machine",
        ..TYPED
    },
    Opt {
        name: "timeout",
        value: Some("DURATION"),
        of: &[Send],
        heading: RECORD,
        help: "stop the command if it runs longer, whatever the worker's --timeout is",
        ..TYPED
    },
    Opt {
        name: "file",
        value: Some("FILE"),
        of: &[Send],
        heading: RECORD,
        help: "instead of one command all those in FILE (-: stdin), one a line: a JSON array, or an object as with \
               --input",
        ..TYPED
    },
    Opt {
        name: "wait",
        of: &[Send],
        heading: RESULTS,
        help: "wait for the result, show it, and exit as the command did",
        ..TYPED
    },
    Opt {
        name: "wait-timeout",
        value: Some("DURATION"),
        fallback: Fallback::Value("none"),
        setting: Some("wait_timeout"),
        of: &[Send],
        heading: RESULTS,
        help: "with --wait, give up after so long; the command runs nevertheless",
        ..TYPED
    },
    Opt { name: "failed", of: &[Results], heading: RESULTS, help: "only what is not a success", ..TYPED },
    Opt {
        name: "since",
        value: Some("DURATION"),
        fallback: Fallback::Computed("the oldest there is"),
        of: &[Results],
        heading: RESULTS,
        help: "only what was written within so long before now; 0: only what comes from now on",
        ..TYPED
    },
    Opt {
        name: "output",
        value: Some("table|json"),
        fallback: Fallback::Value("table"),
        setting: Some("output"),
        of: &[Results],
        heading: RESULTS,
        help: "a line for people, or a JSON object a line",
        ..TYPED
    },
    Opt {
        name: "follow",
        of: &[Results],
        heading: RESULTS,
        help: "wait for what comes, instead of ending when what is there has been shown",
        ..TYPED
    },
    Opt {
        name: "partitions",
        value: Some("N"),
        fallback: Fallback::Computed("as many as --threads, at least 4"),
        setting: Some("partitions"),
        of: &[Init],
        heading: TOPICS,
        help: "partitions of the commands topic; the other topics get one",
        ..TYPED
    },
    Opt {
        name: "input",
        short: None,
        value: Some("FILE"),
        fallback: Fallback::Nothing,
        setting: Some("input"),
        airflow: None,
        of: START,
        heading: GENERAL,
        help: "no Kafka: read the records from FILE, one JSON object a line (-: stdin), and write the results to \
               stdout",
    },
    Opt {
        name: "config",
        short: None,
        value: Some("FILE"),
        fallback: Fallback::Nothing,
        setting: Some("config"),
        airflow: None,
        of: ALL,
        heading: GENERAL,
        help: "an airflow.cfg to take settings from",
    },
    Opt {
        name: "log-format",
        short: None,
        value: Some("text|json"),
        fallback: Fallback::Value("text"),
        setting: Some("log_format"),
        airflow: None,
        of: ALL,
        heading: GENERAL,
        help: "what a line of the log is: text, or a JSON object with time, level and message",
    },
    Opt {
        name: "verbose",
        short: Some('v'),
        value: None,
        fallback: Fallback::Value("info"),
        setting: Some("logging_level"),
        airflow: None,
        of: ALL,
        heading: GENERAL,
        help: "log more, to stderr: -v debug, -vv trace",
    },
    Opt {
        name: "quiet",
        short: Some('q'),
        value: None,
        fallback: Fallback::Nothing,
        setting: None,
        airflow: None,
        of: ALL,
        heading: GENERAL,
        help: "log less: -q warnings and errors, -qq errors only",
    },
    Opt {
        name: "version",
        short: Some('V'),
        value: None,
        fallback: Fallback::Nothing,
        setting: None,
        airflow: None,
        of: START,
        heading: GENERAL,
        help: "print the version and exit",
    },
    Opt {
        name: "help",
        short: Some('h'),
        value: None,
        fallback: Fallback::Nothing,
        setting: None,
        airflow: None,
        of: ALL,
        heading: GENERAL,
        help: "print this help and exit",
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique() {
        for subcommand in Subcommand::ALL {
            let mut names = HashSet::new();
            for opt in of(subcommand) {
                assert!(names.insert(opt.flag()), "{}", opt.name);
                assert!(opt.short.is_none_or(|short| names.insert(format!("-{short}"))), "{}", opt.name);
            }
        }
        let mut names = HashSet::new();
        for opt in OPTIONS {
            assert!(!opt.of.is_empty(), "{} belongs to nothing", opt.name);
            assert!(opt.variable().is_none_or(|variable| names.insert(variable)), "{}", opt.name);
            for (section, key) in opt.file_keys() {
                assert!(names.insert(format!("[{section}] {key}")), "{}", opt.name);
            }
        }
    }

    #[test]
    fn the_setting_is_the_name_with_underscores() {
        for opt in OPTIONS.iter().filter(|opt| opt.value.is_some() && opt.setting.is_some()) {
            assert_eq!(opt.setting, Some(opt.name.replace('-', "_").as_str()));
        }
        assert_eq!(find("results-topic").unwrap().variable().unwrap(), "AIRKAFKA_RESULTS_TOPIC");
        assert_eq!(airflow_variable(WORKER_SECTION, "logging_level"), "AIRFLOW__AIRKAFKA_WORKER__LOGGING_LEVEL");
        assert_eq!(find("config").unwrap().file_keys().count(), 0);
        assert!(REPEATED.iter().all(|name| find(name).is_some_and(|opt| opt.setting.is_none())));
        assert!(find("timeout").unwrap().setting.is_some(), "of two the setting is found");
    }
}
