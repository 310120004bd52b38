//! Wire formats, pure: bytes of a command record to a [`Command`], an [`Outcome`] to the bytes of a result record.
//!
//! Wire names live only here. Anything a record can hold is answered: bytes that are no command are an [`Invalid`] with
//! the reason, never a panic.

pub mod result;
pub mod words;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::broker::{Outgoing, Position, Record, Target};
use crate::config::ResultFormat;

/// Header of a result record that carries the outcome object.
const OUTCOME_HEADER: &str = "airkafka-outcome";

/// What a record asks for: an argument vector that is not empty, and how to run it.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    /// Program and arguments, without NUL.
    pub argv: Vec<String>,
    /// What it reads on stdin; `None`: nothing.
    pub stdin: Option<String>,
    /// Variables set over the worker's own.
    pub env: BTreeMap<String, String>,
    /// Working directory; `None`: the worker's.
    pub cwd: Option<PathBuf>,
    /// How long it may run; `None`: the worker's `--timeout`.
    pub timeout: Option<Duration>,
}

/// Why a record is no command; one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid(pub String);

/// The object form of a command, as it stands in JSON.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct CommandObject {
    command: ArgvOrLine,
    #[serde(skip_serializing_if = "Option::is_none")]
    stdin: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    env: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cwd: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<f64>,
}

/// The two ways to write what to run.
#[derive(Deserialize, Serialize)]
#[serde(untagged, expecting = "`command` has to be an array of strings or a string")]
enum ArgvOrLine {
    Argv(Vec<String>),
    Line(String),
}

/// Reads a record's value. With `shell` a string becomes `SHELL -c STRING`; without, it is split into words.
pub fn decode(value: Option<&[u8]>, shell: Option<&Path>) -> Result<Command, Invalid> {
    let invalid = |why: String| Err(Invalid(why));
    let Some(value) = value.filter(|value| !value.is_empty()) else {
        return invalid("the record has no value".into());
    };
    let text = match std::str::from_utf8(value) {
        Ok(text) => text,
        Err(e) => return invalid(format!("the value is not UTF-8 (byte {})", e.valid_up_to())),
    };
    // By its first character, so that errors speak of the form that was meant.
    let object = match text.trim_start().as_bytes().first() {
        Some(b'[') => serde_json::from_str::<Vec<String>>(text)
            .map(|argv| CommandObject::from(ArgvOrLine::Argv(argv)))
            .map_err(|e| format!("the value is not a JSON array of strings: {e}")),
        Some(b'"') => serde_json::from_str::<String>(text)
            .map(|line| CommandObject::from(ArgvOrLine::Line(line)))
            .map_err(|e| format!("the value is not a JSON string: {e}")),
        Some(b'{') => serde_json::from_str::<CommandObject>(text).map_err(|e| format!("the command object: {e}")),
        _ => match serde_json::from_str::<serde_json::Value>(text) {
            Ok(_) => Err("the value is neither an array, a string nor an object".into()),
            Err(e) => Err(format!("the value is not JSON: {e}")),
        },
    };
    // serde_json says where, but may quote what it met: keep control characters off the terminal and the log.
    let object = object.map_err(|e| Invalid(printable(&e)))?;
    object.into_command(shell)
}

/// The value of a record that asks for this command: the array alone, if that says it all.
pub fn encode_command(command: Command) -> Vec<u8> {
    let Command { argv, stdin, env, cwd, timeout } = command;
    if stdin.is_none() && env.is_empty() && cwd.is_none() && timeout.is_none() {
        return to_json(&argv);
    }
    let timeout = timeout.map(|timeout| timeout.as_secs_f64());
    to_json(&CommandObject { command: ArgvOrLine::Argv(argv), stdin, env, cwd, timeout })
}

impl From<ArgvOrLine> for CommandObject {
    fn from(command: ArgvOrLine) -> Self {
        CommandObject { command, stdin: None, env: BTreeMap::new(), cwd: None, timeout: None }
    }
}

impl CommandObject {
    fn into_command(self, shell: Option<&Path>) -> Result<Command, Invalid> {
        let invalid = |why: &str| Err(Invalid(why.to_string()));
        let argv = match (self.command, shell) {
            (ArgvOrLine::Argv(argv), _) => argv,
            (ArgvOrLine::Line(line), Some(shell)) => vec![shell.to_string_lossy().into_owned(), "-c".into(), line],
            (ArgvOrLine::Line(line), None) => words::split(&line).map_err(Invalid)?,
        };
        if argv.first().is_none_or(String::is_empty) {
            return invalid("the command is empty");
        }
        if argv.iter().any(|arg| arg.contains('\0')) {
            return invalid("an argument holds a NUL character");
        }
        for (name, value) in &self.env {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return Err(Invalid(printable(&format!("env: `{name}` cannot be set: `=` or NUL in it, or no name"))));
            }
        }
        if self.cwd.as_ref().is_some_and(|cwd| cwd.as_os_str().is_empty() || cwd.to_string_lossy().contains('\0')) {
            return invalid("cwd is empty or holds a NUL character");
        }
        let timeout = match self.timeout.map(Duration::try_from_secs_f64) {
            None => None,
            Some(Ok(timeout)) if !timeout.is_zero() => Some(timeout),
            Some(_) => return invalid("timeout has to be a number of seconds above 0"),
        };
        Ok(Command { argv, stdin: self.stdin, env: self.env, cwd: self.cwd, timeout })
    }
}

/// Whether the command did what it was asked to; the words of the original's result value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It ended by itself with exit code 0.
    Success,
    /// Anything else.
    Failed,
}

impl State {
    /// The wire word.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Success => "success",
            State::Failed => "failed",
        }
    }
}

/// How a command came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It exited; `exit_code` is its own.
    Exit,
    /// A signal killed it; `exit_code` is 128 + `signal`.
    Signal,
    /// It ran longer than it may and was stopped; `exit_code` is 124.
    Timeout,
    /// There is no such program; `exit_code` is 127.
    NotFound,
    /// The program cannot be executed; `exit_code` is 126.
    NotExecutable,
    /// The record is no command.
    Invalid,
    /// It wrote more than `--output-limit` and was stopped; `exit_code` is 153, a shell's for SIGXFSZ.
    OutputLimit,
    /// The system would not start it.
    SpawnError,
    /// It was delivered too often: each time whoever had it was gone before it ended.
    Poison,
}

impl Reason {
    /// The wire word.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Exit => "exit",
            Reason::Signal => "signal",
            Reason::Timeout => "timeout",
            Reason::NotFound => "not_found",
            Reason::NotExecutable => "not_executable",
            Reason::Invalid => "invalid",
            Reason::OutputLimit => "output_limit",
            Reason::SpawnError => "spawn_error",
            Reason::Poison => "poison",
        }
    }

    /// Whether nobody can run the record: a dead letter may be made of it.
    pub fn is_unfit(self) -> bool {
        matches!(self, Reason::Invalid | Reason::Poison)
    }
}

/// What came of one command; its JSON form is the outcome object, members in this order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Whether it did what it was asked to.
    pub state: State,
    /// How it came to its end.
    pub reason: Reason,
    /// Exit code as a shell shows it; `None` where nothing ran that could have had one.
    pub exit_code: Option<i32>,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// When it was started, RFC 3339 in UTC.
    pub started: String,
    /// How long it ran.
    pub duration_ms: u64,
    /// How long its record waited, from its time stamp to the start; `None` where the source gives no time stamp.
    pub queued_ms: Option<u64>,
    /// The worker's host name.
    pub host: Arc<str>,
    /// The command's process id; `None` if there was none.
    pub pid: Option<u32>,
    /// How often the record was delivered; `None` where the source does not count.
    pub attempt: Option<u32>,
    /// Where the command record stands.
    pub topic: Arc<str>,
    /// See `topic`.
    pub partition: i32,
    /// See `topic`.
    pub offset: i64,
    /// The end of its output.
    pub tail: String,
    /// What went wrong, for a human, where the members above do not say it all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A command's record and what came of it.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The record; its value is kept only where a dead letter may be made of it.
    pub record: Record,
    /// What came of it.
    pub outcome: Outcome,
}

/// What result records look like.
#[derive(Clone, Copy, Debug)]
pub enum ResultStyle {
    /// Records of a result topic, their value as configured.
    Topic(ResultFormat),
    /// Lines on stdout: the outcome object with the key as its first member.
    Lines,
}

/// A line of `ResultStyle::Lines`.
#[derive(Serialize)]
struct Line<'a> {
    key: Option<std::borrow::Cow<'a, str>>,
    #[serde(flatten)]
    outcome: &'a Outcome,
}

/// The records to write for a finished command: its result and, where asked for and it can never be run, a dead letter.
pub fn encode(finished: Finished, style: ResultStyle, dead_letter: bool) -> Vec<Outgoing> {
    let Finished { record: Record { at, key, value, .. }, outcome } = finished;
    let mut outgoing = Vec::with_capacity(1);
    let unfit = outcome.reason.is_unfit();
    if dead_letter && unfit {
        outgoing.push(dead_letter_of(&at, key.clone(), value, &outcome));
    }
    let (value, headers) = match style {
        ResultStyle::Lines => {
            (to_json(&Line { key: key.as_deref().map(String::from_utf8_lossy), outcome: &outcome }), vec![])
        }
        ResultStyle::Topic(ResultFormat::Json) => {
            let json = to_json(&outcome);
            (json.clone(), vec![(OUTCOME_HEADER, json)])
        }
        ResultStyle::Topic(ResultFormat::State) => {
            (outcome.state.as_str().into(), vec![(OUTCOME_HEADER, to_json(&outcome))])
        }
    };
    outgoing.push(Outgoing { target: Target::Results, at, key, value: Some(value), headers, unfit });
    outgoing
}

/// A record that can never be run, unchanged; its headers say why and whence.
fn dead_letter_of(at: &Position, key: Option<Vec<u8>>, value: Option<Vec<u8>>, outcome: &Outcome) -> Outgoing {
    let headers = vec![
        ("airkafka-error", outcome.error.clone().unwrap_or_default().into_bytes()),
        ("airkafka-topic", at.topic.as_bytes().to_vec()),
        ("airkafka-partition", at.partition.to_string().into_bytes()),
        ("airkafka-offset", at.offset.to_string().into_bytes()),
    ];
    Outgoing { target: Target::DeadLetter, at: at.clone(), key, value, headers, unfit: true }
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("strings and numbers always serialise")
}

/// A line of `--input`: the members of a command object and the key.
#[derive(Deserialize)]
struct InputLine {
    key: Option<serde_json::Value>,
    #[serde(flatten)]
    rest: serde_json::Map<String, serde_json::Value>,
}

/// Key and value of the record that a line of `--input` stands for. A key that is no string is taken by its JSON text.
/// A line that is no object becomes a record without a key that [`decode`] refuses, so that it is answered like any other.
pub fn from_input_line(line: &[u8]) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
    match serde_json::from_slice::<InputLine>(line) {
        Ok(InputLine { key, rest }) => {
            let key = key.map(|key| match key {
                serde_json::Value::String(text) => text.into_bytes(),
                other => to_json(&other),
            });
            (key, Some(to_json(&rest)))
        }
        Err(_) => (None, Some(line.to_vec())),
    }
}

/// Text from outside, fit for a terminal or a log line: control characters escaped.
pub fn printable(text: &str) -> String {
    printable_but(text, &[])
}

/// The same, but for the control characters of `allowed`.
pub fn printable_but(text: &str, allowed: &[char]) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        if c.is_control() && !allowed.contains(&c) {
            out.extend(c.escape_default())
        } else {
            out.push(c)
        }
        out
    })
}

/// A key as the log shows it: printable and not longer than a line can bear.
pub fn show_key(key: Option<&[u8]>) -> String {
    const LONGEST: usize = 200;
    let Some(key) = key else { return "(none)".into() };
    let text = String::from_utf8_lossy(key);
    match text.char_indices().nth(LONGEST) {
        Some((cut, _)) => format!("{}... ({} bytes)", printable(&text[..cut]), key.len()),
        None => printable(&text),
    }
}

#[cfg(test)]
mod tests;
