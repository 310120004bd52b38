//! `send`: writes commands to their topic, and waits for their results if asked to.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use log::error;
use ring::rand::{SecureRandom, SystemRandom};

use super::wait::Waiter;
use super::{Out, Progress, Reach};
use crate::broker::wire::cluster::Purpose;
use crate::broker::wire::sink::WireSink;
use crate::broker::{At, Outgoing, Position, Sink, Target};
use crate::config;
use crate::config::by_hand::{Send, What};
use crate::error::{self, Error, Kind, Result, os_text};
use crate::record::result::{ResultRecord, TABLE_HEAD, Told};
use crate::record::{self, Outcome, State, printable, printable_but, show_key};

/// How many records are written before it is told how far it has come.
const AT_ONCE: usize = 500;
/// How many lines that are wrong, or keys without a result, are named.
const NAMED: usize = 10;

/// A command to write.
struct Item {
    key: Vec<u8>,
    value: Vec<u8>,
}

/// Writes what is to be written. The exit code is that of the command, where there is one and it is waited for.
pub fn run(reach: &Reach, send: &Send, out: &mut Out) -> Result<ExitCode> {
    let (items, is_file) = match &send.what {
        What::One { key, command, stdin } => {
            let stdin = stdin.as_ref().map(|file| text_of("--stdin", file.as_deref())).transpose()?;
            let command = record::Command { stdin, ..command.clone() };
            let key = key.clone().map_or_else(unique_key, |key| Ok(key.into_bytes()))?;
            (vec![Item { key, value: record::encode_command(command) }], false)
        }
        What::File(file) => match lines(file.as_ref())? {
            Ok(items) => (items, true),
            Err(wrong) => {
                wrong.iter().take(NAMED).for_each(|line| error!("--file: {line}"));
                error!("--file: {} line(s) hold no command; nothing was written", wrong.len());
                return Ok(error::ExitCode::Usage.into());
            }
        },
    };
    let progress = Progress::new(is_file);
    // Where the results begin has to be known before there can be any.
    let mut waiter = if send.wait { Some(Waiter::connect(reach)?) } else { None };
    write(reach, &items, &progress, |index, at| {
        let key = &items[index].key;
        if let Some(waiter) = &mut waiter {
            waiter.await_result(key, at);
        }
        let place = match at {
            Some((partition, offset)) => format!("{}-{partition}@{offset}", reach.kafka.topic),
            None => reach.kafka.topic.clone(),
        };
        progress.clear();
        out.line(&format!("{}\t{place}", printable(&String::from_utf8_lossy(key))))
    })?;
    out.flush()?;
    match waiter {
        None => Ok(error::ExitCode::Clean.into()),
        Some(waiter) if is_file => wait_for_all(waiter, send, &progress, out),
        Some(waiter) => wait_for_one(waiter, send, &progress, out),
    }
}

/// Shows the result of one command, and exits as it did.
fn wait_for_one(mut waiter: Waiter, send: &Send, progress: &Progress, out: &mut Out) -> Result<ExitCode> {
    let mut found = None;
    waiter.wait(send.wait_timeout, progress, |record| {
        found = Some(record);
        Ok(())
    })?;
    let Some(record) = found else { return Ok(none_in_time(&waiter)) };
    match &record.told {
        Told::Outcome(outcome) => {
            show(outcome, out)?;
            let code = outcome.exit_code.and_then(|code| u8::try_from(code).ok());
            Ok(code.unwrap_or(u8::from(outcome.state != State::Success)).into())
        }
        _ => {
            out.line(&format!("state={}", if record.is_success() { "success" } else { "failed" }))?;
            Ok(u8::from(!record.is_success()).into())
        }
    }
}

/// An outcome in a line, and the end of the command's output below it.
fn show(outcome: &Outcome, out: &mut Out) -> Result<()> {
    let Outcome { state, reason, exit_code, duration_ms, host, tail, error, .. } = outcome;
    let exit = exit_code.map_or(String::new(), |code| format!(" exit={code}"));
    let error = error.as_ref().map_or(String::new(), |error| format!(": {error}"));
    let line = format!("state={} reason={}{exit} ms={duration_ms} host={host}{error}", state.as_str(), reason.as_str());
    out.line(&printable(&line))?;
    let tail = printable_but(tail, &['\n', '\t']);
    if tail.is_empty() { Ok(()) } else { out.line(tail.trim_end_matches('\n')) }
}

/// Shows the results as they come, and how many there were of each kind.
fn wait_for_all(mut waiter: Waiter, send: &Send, progress: &Progress, out: &mut Out) -> Result<ExitCode> {
    let all = waiter.count();
    let (mut succeeded, mut failed) = (0, 0);
    out.line(TABLE_HEAD)?;
    waiter.wait(send.wait_timeout, progress, |record: ResultRecord| {
        *if record.is_success() { &mut succeeded } else { &mut failed } += 1;
        out.line(&record.table_line())?;
        out.flush()
    })?;
    let missing = waiter.count();
    out.line(&format!("{all} command(s): {succeeded} succeeded, {failed} failed, {missing} without a result"))?;
    Ok(match (missing, failed) {
        (0, 0) => error::ExitCode::Clean.into(),
        (0, _) => error::ExitCode::CommandFailed.into(),
        _ => none_in_time(&waiter),
    })
}

fn none_in_time(waiter: &Waiter) -> ExitCode {
    let keys: Vec<String> = waiter.keys().take(NAMED).map(|key| show_key(Some(key))).collect();
    let more = if waiter.count() > keys.len() { ", ..." } else { "" };
    error!(
        "no result within --wait-timeout for {} command(s): {}{more}; they are on the topic and will be run; does a worker \
         run? airkafka-worker doctor tells",
        waiter.count(),
        keys.join(", ")
    );
    error::ExitCode::DrainCut.into()
}

/// Writes `items`, and tells of each where it stands once the broker has acknowledged it.
fn write(
    reach: &Reach,
    items: &[Item],
    progress: &Progress,
    mut written: impl FnMut(usize, Option<At>) -> Result<()>,
) -> Result<()> {
    let topic: &str = &reach.kafka.topic;
    // The sink writes results; here the commands stand in their place.
    let kafka = config::Kafka { results_topic: topic.to_string(), dead_letter_topic: None, ..reach.kafka.clone() };
    let mut sink = reach.patiently("connecting", || {
        // The sink lets the broker make the topic; a mistyped one must not come into being.
        reach.cluster().refresh(&[topic], Purpose::Read)?;
        WireSink::connect(&kafka, reach.dialer.clone())
    })?;
    sink.keep_written();
    let mut done = 0;
    for (chunk, first) in items.chunks(AT_ONCE).zip((0..).step_by(AT_ONCE)) {
        progress.show("written", done, items.len());
        let mut unsent: Vec<Outgoing> =
            chunk.iter().zip(first..).map(|(item, index)| outgoing(topic, item, index)).collect();
        let sent = reach.patiently("writing commands", || sink.send(&mut unsent));
        let mut places: BTreeMap<i64, At> =
            sink.take_written().into_iter().map(|((_, index), at)| (index, at)).collect();
        let left: Vec<i64> = unsent.iter().map(|out| out.at.offset).collect();
        for index in (first..).take(chunk.len()).filter(|index| !left.contains(index)) {
            written(usize::try_from(index).expect("an index"), places.remove(&index))?;
            done += 1;
        }
        if sent.is_err() {
            error!("{} of {} command(s) are not written, or not known to be", items.len() - done, items.len());
        }
        sent?;
    }
    progress.clear();
    Ok(())
}

/// As it goes to the topic; its own place stands for the line that it comes from.
fn outgoing(topic: &str, item: &Item, index: i64) -> Outgoing {
    Outgoing {
        target: Target::Results,
        at: Position { topic: topic.into(), partition: 0, offset: index },
        key: Some(item.key.clone()),
        value: Some(item.value.clone()),
        headers: Vec::new(),
        unfit: false,
    }
}

/// A key that nobody else has.
fn unique_key() -> Result<Vec<u8>> {
    let mut random = [0; 8];
    SystemRandom::new()
        .fill(&mut random)
        .map_err(|_| Error::new(Kind::Unexpected, "the system gives no random numbers").hint("give --key KEY"))?;
    Ok(format!("send-{:016x}", u64::from_be_bytes(random)).into_bytes())
}

/// The whole text of a file, or of stdin.
fn text_of(option: &str, file: Option<&Path>) -> Result<String> {
    let mut text = String::new();
    let read = match file {
        Some(file) => fs::read_to_string(file).map(|read| text = read),
        None => io::stdin().read_to_string(&mut text).map(drop),
    };
    let name = file.map_or("stdin".into(), |file| printable(&file.to_string_lossy()));
    read.map(|()| text).map_err(|e| {
        let why = if e.kind() == io::ErrorKind::InvalidData { "it is not UTF-8".into() } else { os_text(&e) };
        Error::new(Kind::Config, format!("{option}: {name} cannot be read: {why}"))
    })
}

/// The commands in the lines of a file, or the lines that hold none.
fn lines(file: Option<&PathBuf>) -> Result<std::result::Result<Vec<Item>, Vec<String>>> {
    let text = text_of("--file", file.map(PathBuf::as_path))?;
    let (mut items, mut wrong) = (Vec::new(), Vec::new());
    for (line, number) in text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty()) {
        let (key, value) = record::from_input_line(line.as_bytes());
        // What a string means depends on the worker's --shell; whether it is one does not.
        if let Err(record::Invalid(why)) = record::decode(value.as_deref(), Some(Path::new("sh"))) {
            wrong.push(format!("line {number}: {why}"));
            continue;
        }
        items.push(Item { key: key.map_or_else(unique_key, Ok)?, value: value.unwrap_or_default() });
    }
    Ok(if wrong.is_empty() { Ok(items) } else { Err(wrong) })
}
