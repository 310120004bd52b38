//! What was typed: the grammar of the command line, the help and the version.
//!
//! Puts the words into [`Args`] and no further: whether a value makes sense is for [`config`](crate::config) to say.
//! Prints nothing and ends nothing; the caller does what [`Parsed`] tells.

mod generate;
mod help;
pub mod options;
pub mod subcommand;
pub mod words;

use std::collections::HashMap;
use std::ffi::OsString;

use argh::FromArgs;

pub(crate) use help::wrapped;
pub use help::{help, version};
use options::Opt;
pub use subcommand::Subcommand;
use words::{near_miss, shown};

/// Name of the program, in messages.
pub const NAME: &str = env!("CARGO_PKG_NAME");
/// Its version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Options as they were typed; [`options`] says what they mean.
#[derive(Clone, Debug, Default, PartialEq, Eq, FromArgs)]
#[argh(help_triggers("--help", "-h"))]
pub struct Args {
    /// what to do; put in by the grammar, since no option has this name
    #[argh(option, default = "Subcommand::Start")]
    pub subcommand: Subcommand,
    /// the words behind `--`
    #[argh(positional)]
    pub command: Vec<String>,
    /// value of `--brokers`
    #[argh(option)]
    pub brokers: Option<String>,
    /// value of `--topic`
    #[argh(option)]
    pub topic: Option<String>,
    /// value of `--results-topic`
    #[argh(option)]
    pub results_topic: Option<String>,
    /// value of `--dead-letter-topic`
    #[argh(option)]
    pub dead_letter_topic: Option<String>,
    /// value of `--group`
    #[argh(option)]
    pub group: Option<String>,
    /// value of `--group-type`
    #[argh(option)]
    pub group_type: Option<String>,
    /// value of `--on-lost-lock`
    #[argh(option)]
    pub on_lost_lock: Option<String>,
    /// value of `--max-deliveries`
    #[argh(option)]
    pub max_deliveries: Option<String>,
    /// value of `--from`
    #[argh(option)]
    pub from: Option<String>,
    /// value of `--client`
    #[argh(option)]
    pub client: Option<String>,
    /// value of `--connect-timeout`
    #[argh(option)]
    pub connect_timeout: Option<String>,
    /// value of `--instance-id`
    #[argh(option)]
    pub instance_id: Option<String>,
    /// value of `--kafka-config`
    #[argh(option)]
    pub kafka_config: Option<String>,
    /// values of `--property`
    #[argh(option, short = 'X', long = "property")]
    pub properties: Vec<String>,
    /// value of `--threads`
    #[argh(option)]
    pub threads: Option<String>,
    /// value of `--timeout`
    #[argh(option)]
    pub timeout: Option<String>,
    /// value of `--grace`
    #[argh(option)]
    pub grace: Option<String>,
    /// value of `--drain-timeout`
    #[argh(option)]
    pub drain_timeout: Option<String>,
    /// value of `--shell`
    #[argh(option)]
    pub shell: Option<String>,
    /// value of `--airflow`
    #[argh(option)]
    pub airflow: Option<String>,
    /// value of `--preload`
    #[argh(option)]
    pub preload: Option<String>,
    /// value of `--output-dir`
    #[argh(option)]
    pub output_dir: Option<String>,
    /// value of `--output-limit`
    #[argh(option)]
    pub output_limit: Option<String>,
    /// value of `--tail-bytes`
    #[argh(option)]
    pub tail_bytes: Option<String>,
    /// value of `--result-format`
    #[argh(option)]
    pub result_format: Option<String>,
    /// whether `--once`
    #[argh(switch)]
    pub once: bool,
    /// whether `--dry-run`
    #[argh(switch)]
    pub dry_run: bool,
    /// value of `--key`
    #[argh(option)]
    pub key: Option<String>,
    /// value of `--stdin`
    #[argh(option)]
    pub stdin: Option<String>,
    /// values of `--env`
    #[argh(option)]
    pub env: Vec<String>,
    /// value of `--cwd`
    #[argh(option)]
    pub cwd: Option<String>,
    /// value of `--file`
    #[argh(option)]
    pub file: Option<String>,
    /// whether `--wait`
    #[argh(switch)]
    pub wait: bool,
    /// value of `--wait-timeout`
    #[argh(option)]
    pub wait_timeout: Option<String>,
    /// whether `--failed`
    #[argh(switch)]
    pub failed: bool,
    /// value of `--since`
    #[argh(option)]
    pub since: Option<String>,
    /// value of `--output`
    #[argh(option)]
    pub output: Option<String>,
    /// whether `--follow`
    #[argh(switch)]
    pub follow: bool,
    /// value of `--partitions`
    #[argh(option)]
    pub partitions: Option<String>,
    /// value of `--idle-exit`
    #[argh(option)]
    pub idle_exit: Option<String>,
    /// value of `--max`
    #[argh(option)]
    pub max: Option<String>,
    /// value of `--max-runtime`
    #[argh(option)]
    pub max_runtime: Option<String>,
    /// whether `--fail-on-error`
    #[argh(switch)]
    pub fail_on_error: bool,
    /// value of `--lock`
    #[argh(option)]
    pub lock: Option<String>,
    /// whether `--lock-busy-ok`
    #[argh(switch)]
    pub lock_busy_ok: bool,
    /// value of `--input`
    #[argh(option)]
    pub input: Option<String>,
    /// value of `--config`
    #[argh(option)]
    pub config: Option<String>,
    /// value of `--log-format`
    #[argh(option)]
    pub log_format: Option<String>,
    /// how often `--verbose`
    #[argh(switch, short = 'v')]
    pub verbose: u8,
    /// how often `--quiet`
    #[argh(switch, short = 'q')]
    pub quiet: u8,
    /// whether `--version`
    #[argh(switch, short = 'V')]
    pub version: bool,
}

impl Args {
    /// What was typed for the option of that long name; `None` for a switch too, and for one that repeats.
    pub fn value(&self, name: &str) -> Option<&str> {
        let field = match name {
            "brokers" => &self.brokers,
            "topic" => &self.topic,
            "results-topic" => &self.results_topic,
            "dead-letter-topic" => &self.dead_letter_topic,
            "group" => &self.group,
            "group-type" => &self.group_type,
            "on-lost-lock" => &self.on_lost_lock,
            "max-deliveries" => &self.max_deliveries,
            "from" => &self.from,
            "client" => &self.client,
            "connect-timeout" => &self.connect_timeout,
            "instance-id" => &self.instance_id,
            "kafka-config" => &self.kafka_config,
            "threads" => &self.threads,
            "timeout" => &self.timeout,
            "grace" => &self.grace,
            "drain-timeout" => &self.drain_timeout,
            "shell" => &self.shell,
            "airflow" => &self.airflow,
            "preload" => &self.preload,
            "output-dir" => &self.output_dir,
            "output-limit" => &self.output_limit,
            "tail-bytes" => &self.tail_bytes,
            "result-format" => &self.result_format,
            "key" => &self.key,
            "stdin" => &self.stdin,
            "cwd" => &self.cwd,
            "file" => &self.file,
            "wait-timeout" => &self.wait_timeout,
            "since" => &self.since,
            "output" => &self.output,
            "partitions" => &self.partitions,
            "idle-exit" => &self.idle_exit,
            "max" => &self.max,
            "max-runtime" => &self.max_runtime,
            "lock" => &self.lock,
            "input" => &self.input,
            "config" => &self.config,
            "log-format" => &self.log_format,
            _ => &None,
        };
        field.as_deref()
    }
}

/// What the command line asks for. The texts end with a newline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Run, with these options.
    Run(Box<Args>),
    /// Print this to stdout and end well.
    Print(String),
    /// Print this to stderr and end with [`ExitCode::Usage`](crate::error::ExitCode::Usage).
    Usage(String),
}

/// Understands the command line; `args` is what follows the name of the program.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Parsed {
    let words: Vec<OsString> = args.into_iter().collect();
    if let Some(parsed) = generate::asked(&words) {
        return parsed;
    }
    let (subcommand, rest) = split(&words);
    match understand(subcommand, &words, rest) {
        Ok(parsed) => parsed,
        // Who appends --help to a line that failed wants help, not the same message again.
        Err(_) if rest.iter().take_while(|word| *word != "--").any(|word| word == "--help" || word == "-h") => {
            Parsed::Print(help(subcommand))
        }
        Err(why) => {
            let of = if subcommand == Subcommand::Start { String::new() } else { format!("{} ", subcommand.name()) };
            Parsed::Usage(format!("{why}\nall options: {NAME} {of}--help\n"))
        }
    }
}

/// The subcommand, and what follows it. The command line of AirKafka began with `start` or `version`.
fn split(words: &[OsString]) -> (Subcommand, &[OsString]) {
    let subcommand = words.first().and_then(|word| word.to_str()?.parse().ok());
    subcommand.map_or((Subcommand::Start, words), |subcommand| (subcommand, &words[1..]))
}

fn understand(subcommand: Subcommand, words: &[OsString], rest: &[OsString]) -> Result<Parsed, String> {
    let before = words.len() - rest.len();
    let numbered = rest.iter().zip(before + 1..).map(|(word, number)| match word.to_str() {
        Some(word) => Ok(word),
        None => Err(format!("argument {number} is not valid UTF-8: {}", shown(&word.to_string_lossy()))),
    });
    let rest = numbered.collect::<Result<Vec<&str>, String>>()?;
    match rest.first() {
        Some(&"version") if before == 0 => return Ok(Parsed::Print(version())),
        // `help send` is the help of send.
        Some(&"help") if before == 0 => {
            let of = rest.get(1).and_then(|word| word.parse().ok());
            return Ok(Parsed::Print(help(of.unwrap_or_default())));
        }
        _ => {}
    }
    let Some(plain) = normalise(subcommand, &rest)? else { return Ok(Parsed::Print(help(subcommand))) };
    let plain: Vec<&str> = plain.iter().map(String::as_str).collect();
    match Args::from_args(&[NAME], &plain) {
        Ok(args) if args.version => Ok(Parsed::Print(version())),
        Ok(args) => Ok(Parsed::Run(Box::new(args))),
        Err(exit) if exit.status.is_ok() => Ok(Parsed::Print(help(subcommand))),
        Err(exit) => Err(exit.output.trim_end().to_string()),
    }
}

/// Brings the words into the form that argh takes: `--name`, `value`, one switch a word. `None`: help is asked for.
///
/// argh alone would refuse `--name=value` and `-vv`, and say little about what is wrong.
fn normalise(subcommand: Subcommand, words: &[&str]) -> Result<Option<Vec<String>>, String> {
    let mut plain = vec!["--subcommand".to_string(), subcommand.name().to_string()];
    let mut given: HashMap<&str, String> = HashMap::new();
    let mut rest = words.iter().copied();
    while let Some(word) = rest.next() {
        if word == "--" {
            if subcommand != Subcommand::Send {
                match rest.next() {
                    Some(word) => return Err(unexpected(subcommand, word, plain.len() > 2)),
                    None => break,
                }
            }
            plain.push(word.to_string());
            plain.extend(rest.by_ref().map(str::to_string));
        } else if let Some(long) = word.strip_prefix("--") {
            let (name, attached) = match long.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (long, None),
            };
            let found = options::of(subcommand).find(|opt| opt.name == name);
            let opt = found.ok_or_else(|| unknown(subcommand, name, "--"))?;
            let flag = opt.flag();
            if opt.value.is_none() {
                match (name, attached) {
                    (_, Some(value)) => return Err(format!("{flag} takes no value, but {} is given", shown(value))),
                    ("help", None) => return Ok(None),
                    (_, None) => plain.push(flag),
                }
                continue;
            }
            let value = match attached {
                Some(value) => value,
                None => following(subcommand, &flag, opt.value.unwrap_or_default(), rest.next())?,
            };
            let before = given.insert(opt.name, value.to_string());
            if let Some(before) = before.filter(|_| !opt.repeats()) {
                return Err(format!("{flag} is given twice ({} and {}); give it once", shown(&before), shown(value)));
            }
            plain.extend([flag, value.to_string()]);
        } else if let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) {
            for (index, letter) in letters.char_indices() {
                match options::of(subcommand).find(|opt| opt.short == Some(letter)) {
                    Some(opt) if opt.name == "help" => return Ok(None),
                    // The rest of the word is its value, or else the next word.
                    Some(opt @ Opt { value: Some(what), .. }) => {
                        let attached = &letters[index + letter.len_utf8()..];
                        let value = match attached {
                            "" => following(subcommand, &opt.flag(), what, rest.next())?,
                            attached => attached,
                        };
                        plain.extend([format!("-{letter}"), value.to_string()]);
                        break;
                    }
                    Some(opt) => plain.push(opt.flag()),
                    None => return Err(unknown(subcommand, letters, "-")),
                }
            }
        } else {
            return Err(unexpected(subcommand, word, plain.len() > 2));
        }
    }
    Ok(Some(plain))
}

/// The value that stands behind its option. A word that is an option of ours is hardly meant as a value.
fn following<'a>(subcommand: Subcommand, flag: &str, what: &str, next: Option<&'a str>) -> Result<&'a str, String> {
    let Some(next) = next else { return Err(format!("{flag} needs a value: {flag} {what}")) };
    let name = next.split('=').next().unwrap_or(next);
    let is_option = options::of(subcommand).any(|opt| {
        name == opt.flag() || opt.short.is_some_and(|short| next.strip_prefix('-') == Some(&short.to_string()))
    });
    if is_option {
        return Err(format!("{flag} needs a value, but {name} follows; if that is the value, write {flag}={next}"));
    }
    Ok(next)
}

/// The message about an option that does not exist, or belongs to another subcommand; `dashes` is what stood before `name`.
fn unknown(subcommand: Subcommand, name: &str, dashes: &str) -> String {
    let typed: String = format!("{dashes}{name}").chars().take(60).flat_map(char::escape_debug).collect();
    let name = name.split('=').next().unwrap_or(name);
    if let Some(opt) = options::find(name).filter(|_| dashes == "--") {
        let others: Vec<&str> = opt.of.iter().map(|other| other.name()).collect();
        return format!("{typed} is no option of {}, but of {}", subcommand.name(), others.join(", "));
    }
    match near_miss(name, options::of(subcommand).map(|opt| opt.name)) {
        Some(meant) => format!("unknown option {typed}; did you mean --{meant}?"),
        None => format!("unknown option {typed}"),
    }
}

/// The message about a word that is neither an option nor the value of one; `late`: options stand before it.
fn unexpected(subcommand: Subcommand, word: &str, late: bool) -> String {
    let typed = shown(word);
    if subcommand == Subcommand::Send {
        return format!(
            "unexpected argument {typed}; the command goes behind --: {NAME} send [OPTION...] -- COMMAND..."
        );
    }
    let subcommands: Vec<&str> = Subcommand::ALL.map(Subcommand::name).into_iter().chain([generate::WORD]).collect();
    if subcommand == Subcommand::Start
        && let Some(meant) = near_miss(word, subcommands.iter().copied())
    {
        return match late {
            true => format!("unexpected argument {typed}; the word {meant} may only come first"),
            false => format!("unexpected argument {typed}; did you mean {meant}?"),
        };
    }
    match near_miss(word, options::of(subcommand).map(|opt| opt.name)) {
        Some(meant) => format!("unexpected argument {typed}; did you mean --{meant}?"),
        None if late || subcommand != Subcommand::Start => {
            format!("unexpected argument {typed}; every value belongs to an option")
        }
        None => format!("unexpected argument {typed}; a subcommand is one of: {}", subcommands.join(", ")),
    }
}

#[cfg(test)]
mod tests;
