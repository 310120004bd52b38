//! The validated configuration: flag > environment > file > default, all mistakes told at once, each naming its flag.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

/// Everything the worker needs to know, typed and checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where records come from and results go.
    pub origin: Origin,
    /// Commands that run at once.
    pub threads: NonZeroUsize,
    /// How commands are run.
    pub exec: Exec,
    /// How long a drain may take before commands are stopped; `None` waits for them.
    pub drain_timeout: Option<Duration>,
    /// What a result's value looks like.
    pub result_format: ResultFormat,
    /// What is logged.
    pub log_level: log::LevelFilter,
    /// Remarks to log once the logger stands (settings that are accepted but deserve a word).
    pub remarks: Vec<String>,
}

/// Where records come from and results go.
#[derive(Clone, Debug)]
pub enum Origin {
    /// Topics of a Kafka cluster.
    Kafka(Kafka),
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
    /// Consumer group the offsets are committed under.
    pub group: String,
    /// Where a new group starts.
    pub from: StartFrom,
    /// Which client talks to the brokers.
    pub client: Client,
    /// How long to look for the brokers at start.
    pub connect_timeout: Duration,
}

/// Where a group without a committed offset starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartFrom {
    /// At the oldest record.
    Earliest,
    /// Behind the newest record.
    Latest,
}

/// Which client talks to the brokers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// The best one that the brokers understand.
    Auto,
    /// The `kafka` crate.
    Kafka,
}

/// What a result's value looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResultFormat {
    /// Bare `success` or `failed`, as AirKafka writes it.
    State,
    /// The outcome object.
    Json,
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
}
