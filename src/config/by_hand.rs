//! What is done by hand, instead of running the worker: the settings of `send`, `results`, `doctor` and `init`, and the
//! worker's `--dry-run`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::lookup::{Checked, Lookup};
use super::mistakes::{Mistake, Source};
use super::{paths, units};
use crate::cli::options::{self, WORKER_SECTION};
use crate::cli::words::shown;
use crate::cli::{Args, Subcommand};
use crate::record::Command;

/// Fewest partitions that `init` makes for commands, unless told: so that workers can be added later.
const FEWEST_PARTITIONS: i32 = 4;
/// The most it is asked for.
const MOST_PARTITIONS: i32 = 10_000;

/// What is done by hand.
#[derive(Clone, Debug)]
pub enum ByHand {
    /// Show what the worker would run.
    DryRun,
    /// Write commands.
    Send(Send),
    /// Show results.
    Results(Results),
    /// Check everything.
    Doctor(Doctor),
    /// Make topics and settings.
    Init(Init),
}

/// What `send` is to do.
#[derive(Clone, Debug)]
pub struct Send {
    /// What to write.
    pub what: What,
    /// Whether to wait for the results.
    pub wait: bool,
    /// For how long; `None`: until they are there.
    pub wait_timeout: Option<Duration>,
}

/// What to write.
#[derive(Clone, Debug)]
pub enum What {
    /// One command.
    One {
        /// The record's key; `None`: one is made up.
        key: Option<String>,
        /// What to run; its `stdin` is not read yet.
        command: Command,
        /// The file with its stdin, where it is to have one (inside, `None`: our own).
        stdin: Option<Option<PathBuf>>,
    },
    /// The lines of a file; `None`: of stdin.
    File(Option<PathBuf>),
}

/// What `results` is to show.
#[derive(Clone, Debug)]
pub struct Results {
    /// Only what is not a success.
    pub failed: bool,
    /// Only what was written within this time; `None`: everything.
    pub since: Option<Duration>,
    /// In which form.
    pub output: Output,
    /// Whether to wait for what comes.
    pub follow: bool,
}

/// The form of what is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// For people.
    Table,
    /// A JSON object a line.
    Json,
}

impl Output {
    /// All there are.
    pub(super) const ALL: [Output; 2] = [Output::Table, Output::Json];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Output::Table => "table",
            Output::Json => "json",
        }
    }
}

/// What `doctor` needs to know beside the settings of the worker.
#[derive(Clone, Debug)]
pub struct Doctor {
    /// What is wrong with the settings, but for those that lead to brokers, topics and group.
    pub found: Vec<Mistake>,
    /// The command line that makes the topics.
    pub init: String,
}

/// What `init` is to make.
#[derive(Clone, Debug)]
pub struct Init {
    /// Partitions of the commands topic.
    pub partitions: i32,
    /// The file that is to have a section of ours.
    pub file: Option<PathBuf>,
    /// Whether it has one.
    pub has_section: bool,
    /// Settings for that section, as they were typed.
    pub typed: Vec<(&'static str, String)>,
}

/// What is asked for; `None`: the worker.
pub(super) fn by_hand(look: &mut Lookup, args: &Args, threads: usize) -> Checked<Option<ByHand>> {
    Some(match args.subcommand {
        Subcommand::Start if !args.dry_run => None,
        Subcommand::Start => Some(ByHand::DryRun),
        Subcommand::Send => Some(ByHand::Send(send(look, args)?)),
        Subcommand::Results => Some(ByHand::Results(results(look, args)?)),
        Subcommand::Doctor => {
            Some(ByHand::Doctor(Doctor { found: std::mem::take(&mut look.forgiven), init: call_of_init(args) }))
        }
        Subcommand::Init => Some(ByHand::Init(init(look, args, threads)?)),
    })
}

fn send(look: &mut Lookup, args: &Args) -> Checked<Send> {
    let what = what(look, args);
    let wait_timeout = look.value("wait-timeout", units::or_no_limit(units::duration));
    if args.wait_timeout.is_some() && !args.wait {
        wrong(look, "--wait-timeout", "has no effect without --wait; add it");
        return None;
    }
    Some(Send { what: what?, wait: args.wait, wait_timeout: wait_timeout? })
}

fn what(look: &mut Lookup, args: &Args) -> Checked<What> {
    let file = look.typed("file", paths::input);
    let stdin = look.typed("stdin", paths::input);
    let cwd = look.typed("cwd", paths::of_elsewhere);
    let timeout = look.typed("timeout", units::positive_duration);
    let env = env(look, &args.env);
    let (file, stdin, cwd, timeout, env) = (file?, stdin?, cwd?, timeout?, env?);
    let Some(file) = file else {
        if args.command.first().is_none_or(String::is_empty) {
            let flag = "send";
            wrong(look, flag, "no command is given; put it behind --, as in: send -- echo hello; or give --file FILE");
            return None;
        }
        if args.command.iter().any(|word| word.contains('\0')) {
            wrong(look, "send", "the command holds a NUL character, which no argument can");
            return None;
        }
        let command = Command { argv: args.command.clone(), stdin: None, env, cwd, timeout };
        return Some(What::One { key: args.key.clone(), command, stdin });
    };
    let of_one = ["key", "stdin", "cwd", "timeout"].into_iter().find(|name| args.value(name).is_some());
    let of_one = of_one.or((!args.env.is_empty()).then_some("env"));
    if let Some(name) = of_one {
        wrong(look, &format!("--{name}"), "is about one command; with --file write it into the lines");
        return None;
    }
    if !args.command.is_empty() {
        wrong(look, "--file", "cannot go together with a command behind --; choose one");
        return None;
    }
    Some(What::File(file))
}

fn env(look: &mut Lookup, given: &[String]) -> Checked<BTreeMap<String, String>> {
    let mut env = BTreeMap::new();
    let before = look.mistakes.len();
    for text in given {
        let pair = text.split_once('=').filter(|(name, _)| !name.is_empty() && !text.contains('\0'));
        match pair {
            None => wrong(look, "--env", &format!("{} is no variable; give NAME=VALUE", shown(text))),
            Some((name, value)) => {
                if env.insert(name.to_string(), value.to_string()).is_some() {
                    wrong(look, "--env", &format!("{} is given twice; give it once", shown(name)));
                }
            }
        }
    }
    (look.mistakes.len() == before).then_some(env)
}

fn results(look: &mut Lookup, args: &Args) -> Checked<Results> {
    let since = look.typed("since", units::duration);
    let output = look.value("output", units::output);
    Some(Results { failed: args.failed, since: since?, output: output?, follow: args.follow })
}

fn init(look: &mut Lookup, args: &Args, threads: usize) -> Checked<Init> {
    let partitions = look
        .optional("partitions", |text| units::whole(text, 1..=MOST_PARTITIONS, "partitions"))?
        .unwrap_or_else(|| i32::try_from(threads).unwrap_or(MOST_PARTITIONS).max(FEWEST_PARTITIONS));
    let file = look.config_file.as_deref().map(paths::absolute).and_then(Result::ok);
    let own = options::of(Subcommand::Init).filter(|opt| opt.name != "partitions");
    let keys = own.filter_map(|opt| Some((opt.name, opt.file_keys().find(|(of, _)| *of == WORKER_SECTION)?.1)));
    let typed = keys.filter_map(|(name, key)| {
        let value = args.value(name).filter(|value| !value.trim().is_empty())?;
        // The file may be read from elsewhere.
        let path = (name == "kafka-config" && value != "none").then(|| paths::absolute(value).ok()).flatten();
        Some((key, path.map_or_else(|| value.to_string(), |path| path.to_string_lossy().into_owned())))
    });
    Some(Init { partitions, file, has_section: look.has_section(), typed: typed.collect() })
}

/// The command line of `init` with what was typed here.
fn call_of_init(args: &Args) -> String {
    let mut call = String::from("airkafka-worker init");
    for opt in options::of(Subcommand::Init) {
        if let Some(value) = args.value(opt.name) {
            call += &format!(" {} {}", opt.flag(), paths::quoted(value));
        }
    }
    for property in &args.properties {
        call += &format!(" -X {}", paths::quoted(property));
    }
    call
}

fn wrong(look: &mut Lookup, flag: &str, why: &str) {
    look.mistake(&Source::Flag(flag.into()), format!("{flag}: {why}"));
}
