//! The validated configuration: flag > environment > file > default, all mistakes told at once, each naming its flag.
//!
//! What leaves here is typed and checked; nothing behind it looks at a flag or a variable again. Reads the file that
//! `--config` names and looks whether programs and directories are there; opens no socket, starts no thread or child.

pub mod by_hand;
pub mod client;
mod file;
mod lookup;
mod mistakes;
mod paths;
mod summary;
mod units;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use log::LevelFilter;

use crate::cli::{Args, Subcommand};
pub use lookup::Env;
use lookup::{Checked, Lookup};
pub use mistakes::{Mistake, Mistakes, Source};
pub use summary::Sources;
pub use units::show_duration;

/// Everything the worker needs to know, typed and checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// What is done by hand instead of running the worker.
    pub by_hand: Option<by_hand::ByHand>,
    /// Where records come from and results go.
    pub origin: Origin,
    /// Commands that run at once.
    pub threads: NonZeroUsize,
    /// How commands are run.
    pub exec: Exec,
    /// Whether tasks of Airflow are forked from a process that has imported it.
    pub preload: Preload,
    /// When the worker ends by itself, and how.
    pub ending: Ending,
    /// How long a drain may take before commands are stopped; `None` waits for them.
    pub drain_timeout: Option<Duration>,
    /// What a result's value looks like.
    pub result_format: ResultFormat,
    /// What is logged.
    pub log_level: LevelFilter,
    /// What a line of the log is.
    pub log_format: LogFormat,
    /// Remarks to log once the logger stands (settings that are accepted but deserve a word).
    pub remarks: Vec<String>,
    /// Where the settings that are not defaults came from, for [`Config::summary`].
    pub sources: Sources,
}

/// Where records come from and results go.
#[derive(Clone, Debug)]
pub enum Origin {
    /// Topics of a Kafka cluster.
    Kafka(Box<Kafka>),
    /// `--input`: a file of records (`None`: stdin), results on stdout.
    Input(Option<PathBuf>),
}

/// The Kafka side.
#[derive(Clone, Debug)]
pub struct Kafka {
    /// `host:port` of the brokers to ask first.
    pub brokers: Vec<String>,
    /// Topic the commands are read from.
    pub topic: String,
    /// Topic the results are written to; never `topic`.
    pub results_topic: String,
    /// Topic for records that are no command.
    pub dead_letter_topic: Option<String>,
    /// The group that the workers share.
    pub group: String,
    /// The kind of group it is.
    pub group_type: GroupType,
    /// Where a new group starts.
    pub from: StartFrom,
    /// Which client talks to the brokers.
    pub client: Client,
    /// How long to look for the brokers at start.
    pub connect_timeout: Duration,
    /// Name under which the worker is a static member of the group.
    pub instance_id: Option<String>,
    /// How to connect and what to ask for.
    pub settings: client::Settings,
}

/// Where a group without a committed offset starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartFrom {
    /// At the oldest record.
    Earliest,
    /// Behind the newest record.
    Latest,
}

impl StartFrom {
    /// All there are.
    const ALL: [StartFrom; 2] = [StartFrom::Earliest, StartFrom::Latest];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            StartFrom::Earliest => "earliest",
            StartFrom::Latest => "latest",
        }
    }
}

/// Which client talks to the brokers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// The best one that the brokers understand.
    Auto,
    /// Our own (`broker::wire`): Kafka 0.11 or newer.
    Wire,
    /// The `kafka` crate.
    Kafka,
}

impl Client {
    /// All there are.
    const ALL: [Client; 3] = [Client::Auto, Client::Wire, Client::Kafka];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Client::Auto => "auto",
            Client::Wire => "wire",
            Client::Kafka => "kafka",
        }
    }
}

/// The kind of group that the workers form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupType {
    /// A share group where the brokers offer it and the group is not a consumer group already.
    Auto,
    /// Partitions belong to workers.
    Consumer,
    /// Records belong to workers (KIP-932): Kafka 4.2 or newer.
    Share,
}

impl GroupType {
    /// All there are.
    const ALL: [GroupType; 3] = [GroupType::Auto, GroupType::Consumer, GroupType::Share];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            GroupType::Auto => "auto",
            GroupType::Consumer => "consumer",
            GroupType::Share => "share",
        }
    }
}

/// What becomes of a command whose record's lock is lost while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnLostLock {
    /// It is stopped, and nothing is reported: the record may run elsewhere.
    Stop,
    /// It runs to its end, and is reported.
    Finish,
}

impl OnLostLock {
    /// All there are.
    const ALL: [OnLostLock; 2] = [OnLostLock::Stop, OnLostLock::Finish];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            OnLostLock::Stop => "stop",
            OnLostLock::Finish => "finish",
        }
    }
}

/// What a result's value looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResultFormat {
    /// Bare `success` or `failed`, as AirKafka writes it.
    State,
    /// The outcome object.
    Json,
}

impl ResultFormat {
    /// All there are.
    const ALL: [ResultFormat; 2] = [ResultFormat::State, ResultFormat::Json];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            ResultFormat::State => "state",
            ResultFormat::Json => "json",
        }
    }
}

/// What a line of the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Time, level and message.
    Text,
    /// The same as a JSON object.
    Json,
}

impl LogFormat {
    /// All there are.
    const ALL: [LogFormat; 2] = [LogFormat::Text, LogFormat::Json];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        }
    }
}

/// When the worker ends by itself, and how. Without any of it: never.
#[derive(Clone, Debug, Default)]
pub struct Ending {
    /// When enough has been taken.
    pub until: Until,
    /// After so long.
    pub runtime: Option<Duration>,
    /// Whether a command that failed makes the exit code 3.
    pub fail_on_error: bool,
    /// The file that is locked meanwhile.
    pub lock: Option<PathBuf>,
    /// Whether it is all right if another worker has it.
    pub lock_busy_ok: bool,
}

/// When a worker has taken enough commands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Until {
    /// What was on the topic at the start has been run.
    pub once: bool,
    /// For so long there was nothing to run.
    pub idle: Option<Duration>,
    /// So many commands.
    pub commands: Option<u64>,
}

/// When Airflow is imported ahead of its tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preload {
    /// With the first command that is a task of Airflow.
    Auto,
    /// At the start.
    Airflow,
    /// Never: each task has a new interpreter.
    None,
}

impl Preload {
    /// All there are.
    const ALL: [Preload; 3] = [Preload::Auto, Preload::Airflow, Preload::None];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Preload::Auto => "auto",
            Preload::Airflow => "airflow",
            Preload::None => "none",
        }
    }
}

/// How commands are run.
#[derive(Clone, Debug)]
pub struct Exec {
    /// How long a command may run; `None`: for ever. A record's own `timeout` goes before.
    pub timeout: Option<Duration>,
    /// Time between TERM and KILL.
    pub grace: Duration,
    /// Program that string commands go to, as `PROGRAM -c STRING`; `None`: they are split and run directly.
    pub shell: Option<PathBuf>,
    /// Absolute path that replaces a leading `airflow` word; `None`: left as it is.
    pub airflow: Option<PathBuf>,
    /// Directory that keeps each command's output; `None`: a private temporary file.
    pub output_dir: Option<PathBuf>,
    /// Bytes of output after which a command is stopped.
    pub output_limit: Option<u64>,
    /// Bytes from the end of the output that go into the outcome.
    pub tail_bytes: usize,
    /// What becomes of a command whose record is not ours any more.
    pub on_lost_lock: OnLostLock,
    /// At which delivery a record is not run any more but reported as failed, where deliveries are counted.
    pub max_deliveries: u32,
}

impl Config {
    /// Brings together what was typed, the environment, the file and the defaults; or tells everything that is wrong.
    pub fn load(args: &Args, env: &Env) -> Result<Config, Mistakes> {
        let mut look = Lookup::new(args, env);
        match (build(&mut look, args, env), look.mistakes) {
            (Some(mut config), mistakes) if mistakes.is_empty() => {
                config.remarks = look.remarks;
                config.sources = Sources(look.sources);
                Ok(config)
            }
            (_, mistakes) => Err(Mistakes(mistakes)),
        }
    }
}

/// Looks at every setting, so that every mistake is noted, before it gives up on any.
fn build(look: &mut Lookup, args: &Args, env: &Env) -> Checked<Config> {
    let path = env.get("PATH");
    let origin = origin(look, args, env);
    let threads = look.optional("threads", units::threads);
    let timeout = look.value("timeout", units::or_no_limit(units::positive_duration));
    let grace = look.value("grace", units::duration);
    let drain_timeout = look.value("drain-timeout", units::or_no_limit(units::duration));
    let shell = look.value("shell", units::or_none(|value| paths::program(value, path)));
    let runs_airflow = args.subcommand == Subcommand::Start && matches!(origin, Some(Origin::Kafka(_)));
    let airflow = airflow(look, env, runs_airflow);
    let preload = look.value("preload", units::preload);
    let output_dir = look.value("output-dir", units::or_none(paths::directory));
    let output_limit = look.value("output-limit", units::or_no_limit(units::positive_size));
    let tail_bytes = look.value("tail-bytes", units::tail);
    let on_lost_lock = look.value("on-lost-lock", units::on_lost_lock);
    let max_deliveries = look.value("max-deliveries", |text| units::whole(text, 2..=1000, "deliveries"));
    let result_format = look.value("result-format", units::result_format);
    let log_level = log_level(look, args);
    let log_format = look.value("log-format", units::log_format);
    let ending = ending(look, args);
    let threads = threads.map(|threads| threads.unwrap_or(units::threads_for(env.cpus)));
    let by_hand = by_hand::by_hand(look, args, threads.map_or(1, NonZeroUsize::get));
    Some(Config {
        by_hand: by_hand?,
        origin: origin?,
        threads: threads?,
        exec: Exec {
            timeout: timeout?,
            grace: grace?,
            shell: shell?,
            airflow: airflow?,
            output_dir: output_dir?,
            output_limit: output_limit?,
            tail_bytes: tail_bytes?,
            on_lost_lock: on_lost_lock?,
            max_deliveries: max_deliveries?,
        },
        preload: preload?,
        ending: ending?,
        drain_timeout: drain_timeout?,
        result_format: result_format?,
        log_level: log_level?,
        log_format: log_format?,
        remarks: Vec::new(),
        sources: Sources::default(),
    })
}

/// Options that have no effect with `--input`.
const OF_KAFKA: [&str; 14] = [
    "topic",
    "results-topic",
    "dead-letter-topic",
    "group",
    "group-type",
    "on-lost-lock",
    "max-deliveries",
    "from",
    "client",
    "connect-timeout",
    "instance-id",
    "kafka-config",
    "property",
    "result-format",
];

/// Kafka or a file. Who types `--input -` means it, whatever brokers the environment names; only two that are given in
/// the same place contradict each other.
fn origin(look: &mut Lookup, args: &Args, env: &Env) -> Checked<Origin> {
    let input = look.optional("input", paths::input);
    let brokers = look.optional("brokers", units::brokers);
    let kafka = kafka(look, args, env);
    let (input, brokers) = (input?, brokers?);
    let rank = |name| look.sources.get(name).map(Source::rank);
    let (input_rank, brokers_rank) = (rank("input"), rank("brokers"));
    match (input, brokers) {
        (Some(_), Some(_)) if input_rank == brokers_rank => {
            let (one, other) = (look.sources["input"].clone(), look.sources["brokers"].clone());
            look.mistake(&one, format!("{one}: cannot go together with {other}; choose one"));
            None
        }
        (Some(input), brokers) if brokers.is_none() || input_rank > brokers_rank => {
            look.sources.remove("brokers");
            let typed =
                |name| if name == "property" { !args.properties.is_empty() } else { args.value(name).is_some() };
            for name in OF_KAFKA.into_iter().filter(|name| typed(name)) {
                look.remarks.push(format!("--{name} has no effect with --input"));
            }
            Some(Origin::Input(input))
        }
        (_, Some(brokers)) => {
            look.sources.remove("input");
            let kafka = Kafka { brokers, ..kafka? };
            topics_differ(look, &kafka)?;
            Some(Origin::Kafka(Box::new(kafka)))
        }
        (_, None) => {
            if !look.file_failed {
                let flag = Source::Flag("--brokers".into());
                let or = if args.subcommand == Subcommand::Start { ", or try it without Kafka: --input -" } else { "" };
                let text = format!(
                    "--brokers: not given; give --brokers HOST:PORT, AIRKAFKA_BROKERS, a --config file with [kafka] broker_url{or}"
                );
                look.mistake(&flag, text);
            }
            // A bad name is told already; equal ones are told together with the rest.
            topics_differ(look, &kafka?)?;
            None
        }
    }
}

/// Everything about Kafka but the brokers.
fn kafka(look: &mut Lookup, args: &Args, env: &Env) -> Checked<Kafka> {
    let topic = look.value("topic", units::topic);
    let results_topic = look.value("results-topic", units::topic);
    let dead_letter_topic = look.value("dead-letter-topic", units::or_none(units::topic));
    let group = look.value("group", units::group);
    let group_type = look.value("group-type", units::group_type);
    let from = look.value("from", units::start_from);
    let client = look.value("client", units::client);
    let connect_timeout = look.value("connect-timeout", units::positive_duration);
    let instance_id = look.value("instance-id", units::or_none(units::instance_id));
    let settings = client::settings(look, args, env);
    let (client, (settings, property), group_type) = (client?, settings?, group_type?);
    if client == Client::Kafka && group_type == GroupType::Share {
        let source = look.sources.get("group-type").cloned().unwrap_or_else(|| Source::Flag("--group-type".into()));
        let text =
            format!("{source}: the kafka crate knows no share groups; leave out --client kafka, or give consumer");
        look.mistake(&source, text);
        return None;
    }
    if client == Client::Kafka && settings.protocol() != "PLAINTEXT" {
        let source = look.sources.get("client").cloned().unwrap_or_else(|| Source::Flag("--client".into()));
        let text = format!(
            "{source}: the kafka crate speaks plaintext only, not security.protocol={}; leave out --client kafka",
            settings.protocol()
        );
        look.mistake(&source, text);
        return None;
    }
    Some(Kafka {
        brokers: Vec::new(),
        topic: topic?,
        results_topic: results_topic?,
        dead_letter_topic: dead_letter_topic?,
        group: group?,
        group_type,
        from: from?,
        client,
        connect_timeout: connect_timeout?,
        instance_id: instance_id?.or(property),
        settings,
    })
}

/// When the worker ends by itself.
fn ending(look: &mut Lookup, args: &Args) -> Checked<Ending> {
    let idle = look.value("idle-exit", units::or_none(units::duration));
    let commands = look.value("max", units::or_none(|text| units::whole(text, 1..=u64::MAX, "commands")));
    let runtime = look.value("max-runtime", units::or_none(units::positive_duration));
    let lock = look.value("lock", units::or_none(paths::absolute));
    Some(Ending {
        until: Until { once: args.once, idle: idle?, commands: commands? },
        runtime: runtime?,
        fail_on_error: args.fail_on_error,
        lock: lock?,
        lock_busy_ok: args.lock_busy_ok,
    })
}

/// A worker that wrote to the topic that it reads would take its own results for commands, for ever.
fn topics_differ(look: &mut Lookup, kafka: &Kafka) -> Checked<()> {
    let dead = kafka.dead_letter_topic.as_ref();
    let pairs = [
        ("results-topic", "topic", kafka.results_topic == kafka.topic, "the worker would eat its own results"),
        ("dead-letter-topic", "topic", dead == Some(&kafka.topic), "the worker would eat its own dead letters"),
        (
            "dead-letter-topic",
            "results-topic",
            dead == Some(&kafka.results_topic),
            "dead letters would pass for results",
        ),
    ];
    let before = look.mistakes.len();
    for (name, other, _, why) in pairs.into_iter().filter(|(_, _, equal, _)| *equal) {
        let topic = crate::cli::words::shown(if other == "topic" { &kafka.topic } else { &kafka.results_topic });
        let given = |name| look.sources.get(name).cloned();
        // One of the two was given: the defaults differ. That is where it has to be changed.
        let place = given(name).or_else(|| given(other)).unwrap_or_else(|| Source::Flag(format!("--{name}")));
        let text = format!("{place}: {topic} cannot be both --{other} and --{name}: {why}; give two different topics");
        look.mistake(&place, text);
    }
    (look.mistakes.len() == before).then_some(())
}

fn airflow(look: &mut Lookup, env: &Env, wanted: bool) -> Checked<Option<PathBuf>> {
    let path = env.get("PATH");
    let given = look.optional("airflow", |value| paths::program(value, path))?;
    let found = given.or_else(|| paths::on_path("airflow", path));
    if found.is_none() && wanted {
        look.remarks.push(format!(
            "airflow is not on PATH ({}): commands that begin with `airflow` will be reported as not found; give \
             --airflow PATH",
            paths::show_path(path)
        ));
    }
    Some(found)
}

fn log_level(look: &mut Lookup, args: &Args) -> Checked<LevelFilter> {
    let configured = look.value("verbose", units::level);
    let (level, flag) = match (args.verbose, args.quiet) {
        (0, 0) => return configured,
        (1, 0) => (LevelFilter::Debug, "-v"),
        (_, 0) => (LevelFilter::Trace, "-vv"),
        (0, 1) => (LevelFilter::Warn, "-q"),
        (0, _) => (LevelFilter::Error, "-qq"),
        (_, _) => {
            let flag = Source::Flag("--verbose".into());
            look.mistake(&flag, "--verbose: cannot go together with --quiet; choose one".into());
            return None;
        }
    };
    look.sources.insert("verbose", Source::Flag(flag.into()));
    Some(level)
}

#[cfg(test)]
mod tests;
