//! The help texts, rendered from the table of options: one for each subcommand, with its own options alone.
//!
//! Pure text at 100 columns; prints nothing itself.

use super::options::{self, Fallback, Opt};
use super::subcommand::Subcommand;
use super::{NAME, VERSION, generate};

/// Width of the help text.
pub(super) const WIDTH: usize = 100;
/// Column in which the explanations begin.
const COLUMN: usize = 30;

/// Stands for a blank at which no line is broken.
const UNBROKEN: &str = "\u{a0}";

/// What the help of the worker ends with.
pub(super) const TAIL: &str = "
DURATION: 250ms, 30s, 5m, 1h, 7d or several as in 1h30m; a bare number counts seconds.
SIZE: bytes, or with KiB, MiB, GiB, TiB (K, M, G, T are the same): powers of 1024.

Settings
  Every option with a value can also be set in the environment, and in the file that --config (or
  AIRKAFKA_CONFIG) names, but for those about one record or one look. The first of these that is
  set, and not empty, counts:
    1. --results-topic results
    2. AIRKAFKA_RESULTS_TOPIC=results
    3. AIRFLOW__KAFKA__RESULTS_TOPIC=results (AIRFLOW__SECTION__KEY for any key below)
    4. results_topic = results in the file, in section [AirKafka_worker] or else [kafka]
    5. the default
  Keys that Airflow and AirKafka already use: [kafka] broker_url, topic, results_topic, group_id;
  [core] parallelism (it sets --threads); [AirKafka_worker] logging_level (DEBUG, INFO, WARN, ERROR
  or CRITICAL; in the environment AIRKAFKA_LOGGING_LEVEL).

Kafka properties (--kafka-config and -X)
  security.protocol=PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL
  TLS, in PEM: ssl.ca.location (default: the system's certificates), ssl.certificate.location,
    ssl.key.location, ssl.key.password; Java's ssl.truststore.* and ssl.keystore.* with .type=PEM
  SASL: sasl.mechanism=PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER; sasl.username and
    sasl.password, or sasl.jaas.config; for OAUTHBEARER airkafka.token.file=PATH, or
    airkafka.token.command=PROGRAM ARG...: read, or run, again whenever a token is needed
  Tuning: client.id, session.timeout.ms, heartbeat.interval.ms, request.timeout.ms, fetch.max.bytes,
    max.partition.fetch.bytes, fetch.max.wait.ms, isolation.level, compression.type and others
  ${env:NAME}, ${file:PATH} and ${fd:N} in a value stand for a variable, the content of a file, and
  what can be read from descriptor N. A secret is never an argument: -X takes only such references.

Signals
  The first TERM or INT drains: take no more commands, finish those that run, report them, exit. The
  second stops them (they run again elsewhere), the third exits at once.

Exit codes
   0  clean end (a command that failed is a result, not a failure of the worker)
   1  unexpected
   2  command line not understood, or a value typed there is invalid
   3  a command has failed, with --fail-on-error
  69  brokers or topic unreachable
  75  drain cut short, by --drain-timeout or a second signal; or another worker holds the --lock
  77  authentication or authorisation refused by the broker
  78  configuration invalid, in the environment or the file

Examples
  airkafka-worker --brokers localhost:9092 --threads 8
  airkafka-worker --config ~/airflow/airflow.cfg --timeout 2h --output-dir /var/log/airkafka
  AIRKAFKA_BROKERS=kafka1,kafka2:9093 airkafka-worker --result-format json -v
  airkafka-worker --brokers kafka1:9094 --kafka-config client.properties -X client.id=worker-7
  echo '{\"key\":\"k\",\"command\":[\"echo\",\"hello\"]}' | airkafka-worker --input -
";

/// Where the help of the other subcommands leaves off.
const ELSEWHERE: &str = "
What a DURATION is, settings in the environment and in the file, Kafka properties (TLS, SASL) and
exit codes: airkafka-worker --help
";

/// What `--version` prints.
pub fn version() -> String {
    format!("{NAME} {VERSION}\n")
}

/// What `--help` prints.
pub fn help(subcommand: Subcommand) -> String {
    let mut text = String::from(subcommand.head());
    if subcommand == Subcommand::Start {
        text += "\nSubcommands (each has its own --help)\n";
        for subcommand in Subcommand::ALL {
            text += &format!("  {:<10}{}\n", subcommand.name(), subcommand.about());
        }
        text += &format!("  {:<10}print the man page, or the completion for a shell\n", generate::WORD);
        text += &format!("  {:<10}print the version\n", "version");
    }
    let mut heading = "";
    for opt in options::of(subcommand) {
        if opt.heading != heading {
            heading = opt.heading;
            text += &format!("\n{heading}\n");
        }
        text += &row(opt);
    }
    if subcommand != Subcommand::Start {
        text += ELSEWHERE;
    }
    text + subcommand.tail()
}

fn row(opt: &Opt) -> String {
    let mut left = format!("  {}", opt.flag());
    if let Some(short) = opt.short {
        left += &format!(", -{short}");
    }
    if let Some(value) = opt.value {
        left += &format!(" {value}");
    }
    let default = match opt.fallback {
        Fallback::Nothing => String::new(),
        // Unbroken, for the eye runs down the list looking for it.
        Fallback::Value(text) | Fallback::Computed(text) => format!(" [default: {text}]").replace(' ', UNBROKEN),
    };
    let default = default.replacen(UNBROKEN, " ", 1);
    let mut lines = String::new();
    if left.len() >= COLUMN {
        lines += &format!("{left}\n"); // on a line of its own
        left.clear();
    }
    for (index, line) in wrapped(&format!("{}{default}", opt.help), WIDTH - COLUMN).iter().enumerate() {
        lines += &format!("{:COLUMN$}{}\n", if index == 0 { &left } else { "" }, line.replace(UNBROKEN, " "));
    }
    lines
}

/// Lines of at most `width` bytes, where words allow it.
pub(crate) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("never empty");
        if !line.is_empty() && line.len() + 1 + word.len() > width {
            lines.push(word.to_string());
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ExitCode;

    #[test]
    fn every_option_stands_in_it_with_its_value_and_default() {
        for subcommand in Subcommand::ALL {
            let text = help(subcommand);
            for opt in options::OPTIONS {
                assert_eq!(text.contains(&row(opt)), opt.is_of(subcommand), "{} of {subcommand:?}", opt.name);
            }
        }
        let text = help(Subcommand::Start);
        for opt in options::OPTIONS {
            let row = row(opt);
            assert!(row.starts_with(&format!("  --{}", opt.name)));
            let first = row.lines().next().unwrap();
            let stands_alone = first.split(' ').count() <= 4; // its help begins on the next line
            assert!(stands_alone || first.chars().nth(COLUMN - 1) == Some(' '), "{row}");
            let flat = row.split_whitespace().collect::<Vec<_>>().join(" ");
            if let Fallback::Value(text) | Fallback::Computed(text) = opt.fallback {
                assert!(flat.ends_with(&format!("[default: {text}]")), "{flat}");
            }
            if let Some((section, key)) = opt.airflow {
                assert!(text.contains(&format!("[{section}]")) && text.contains(key), "{key}");
            }
        }
    }

    #[test]
    fn it_fits_the_terminal() {
        for line in Subcommand::ALL.map(help).join("").lines() {
            assert!(line.chars().count() <= WIDTH, "{line}");
            assert_eq!(line, line.trim_end());
        }
    }

    #[test]
    fn it_names_every_exit_code() {
        use ExitCode::*;
        for code in [Clean, Unexpected, Usage, Unavailable, DrainCut, Refused, Config] {
            assert!(help(Subcommand::Start).contains(&format!("\n  {:>2}  ", code as u8)), "{code:?}");
        }
    }

    #[test]
    fn the_version_is_that_of_the_crate() {
        assert_eq!(version(), concat!("airkafka-worker ", env!("CARGO_PKG_VERSION"), "\n"));
    }
}
