//! README.md tells the truth: its help is the program's own, its commands run, and they print what it shows.
//!
//! In its fenced blocks a line `$ COMMAND` is a command, and the lines after it are what it prints:
//! - `console`: run as it stands, all of them in one fresh directory; each has to end with 0, unless `$ echo $?` follows;
//! - `console broker`: needs a broker at host:9092. Run with an address where nobody listens in its place, it has to get
//!   as far as being refused there: then its options, variables and files are understood;
//! - `sh`, `text`, `json`: not run, and without `$`.
//!
//! A block `ini NAME` is written to the file NAME. In what is shown `...` stands for anything, on a line of its own for
//! any number of lines; times, durations, process ids and host names may differ. `UPDATE_README=1` writes the help anew.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use airkafka_worker::cli::Subcommand;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use wait_timeout::ChildExt;

const WORKER: &str = env!("CARGO_BIN_EXE_airkafka-worker");
const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
/// No command of the README takes longer.
const PATIENCE: Duration = Duration::from_secs(60);
/// The address in the README that stands for a broker, and one where nobody listens.
const BROKER: &str = "host:9092";
const NOBODY: &str = "127.0.0.1:1";

/// A fenced block: the number of its first line, what stands behind the fence, and its lines.
struct Block {
    number: usize,
    info: String,
    lines: Vec<String>,
}

/// A command and what the README says it prints.
struct Example {
    number: usize,
    command: String,
    shown: Vec<String>,
}

fn readme() -> String {
    fs::read_to_string(README).expect("README.md")
}

fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (line, number) in text.lines().zip(1..) {
        match (line.strip_prefix("```"), &mut open) {
            (Some(info), None) => open = Some(Block { number: number + 1, info: info.trim().into(), lines: vec![] }),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some(block)) => block.lines.push(line.into()),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "the last block of README.md is not closed");
    blocks
}

fn examples(block: &Block) -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    let mut continued = false;
    for (line, number) in block.lines.iter().zip(block.number..) {
        if let Some(command) = line.strip_prefix("$ ") {
            examples.push(Example { number, command: command.into(), shown: vec![] });
        } else {
            let last = examples.last_mut().unwrap_or_else(|| panic!("line {number}: output without a command"));
            if continued {
                last.command += &format!("\n{line}");
            } else {
                last.shown.push(line.clone());
                continue;
            }
        }
        continued = line.ends_with(['\\', '|']);
    }
    examples
}

/// Runs a command line after one that ended with `before`; what it printed, stderr included, and its exit code.
fn run(command: &str, before: i32, dir: &Path) -> (Vec<String>, i32) {
    let log = tempfile::NamedTempFile::new().unwrap();
    let stream = |file: &File| Stdio::from(file.try_clone().unwrap());
    // Appended to by both streams, in the order of the writes, as on a terminal.
    let file = File::options().append(true).open(log.path()).unwrap();
    let bin = Path::new(WORKER).parent().unwrap().display();
    let mut child = Command::new("sh")
        .args(["-c", &format!("(exit {before})\n{command}")])
        .current_dir(dir)
        .env_clear()
        .env("PATH", format!("{bin}:/usr/local/bin:/usr/bin:/bin"))
        .stdin(Stdio::null())
        .stdout(stream(&file))
        .stderr(stream(&file))
        .process_group(0)
        .spawn()
        .expect("sh");
    let status = child.wait_timeout(PATIENCE).unwrap();
    if status.is_none() {
        let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
        let _ = child.wait();
    }
    let printed: Vec<String> = fs::read_to_string(log.path()).unwrap().lines().map(str::to_owned).collect();
    let code = status.and_then(|status| status.code());
    let code = code.unwrap_or_else(|| panic!("{command}\ndoes not end, or is killed; it printed {printed:#?}"));
    (printed, code)
}

/// The line without what differs from run to run.
fn masked(line: &str) -> String {
    let mut line = line.to_owned();
    let is_time = |text: &str| text.starts_with("20") && text.ends_with('Z') && text.contains('T');
    if line.get(..24).is_some_and(is_time) {
        line.replace_range(..24, "TIME");
    }
    let digit = |c: char| c.is_ascii_digit();
    let text = |c: char| c != '"';
    let variable: [(&str, &dyn Fn(char) -> bool); 5] = [
        ("\"started\":\"", &text),
        ("\"host\":\"", &text),
        ("\"duration_ms\":", &digit),
        ("\"pid\":", &digit),
        (" ms=", &digit),
    ];
    for (name, is_value) in variable {
        if let Some(at) = line.find(name).map(|at| at + name.len()) {
            let length = line[at..].find(|c| !is_value(c)).unwrap_or(line.len() - at);
            line.replace_range(at..at + length, "");
        }
    }
    line
}

/// Whether a line is what is shown.
fn fits(shown: &str, printed: &str) -> bool {
    let (shown, printed) = (masked(shown), masked(printed));
    let Some((start, rest)) = shown.split_once("...") else { return shown == printed };
    let Some(mut printed) = printed.strip_prefix(start) else { return false };
    let mut parts: Vec<&str> = rest.split("...").collect();
    let end = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(at) = printed.find(part) else { return false };
        printed = &printed[at + part.len()..];
    }
    printed.ends_with(end)
}

fn all_fit(shown: &[String], printed: &[String]) -> bool {
    match shown.split_first() {
        None => printed.is_empty(),
        Some((line, rest)) if line == "..." => (0..=printed.len()).any(|skipped| all_fit(rest, &printed[skipped..])),
        Some((line, rest)) => {
            printed.split_first().is_some_and(|(first, more)| fits(line, first) && all_fit(rest, more))
        }
    }
}

#[test]
fn every_command_does_what_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let (mut run_as_it_stands, mut run_against_nobody) = (0, 0);
    for block in blocks(&readme()) {
        match block.info.as_str() {
            "console" => {
                let mut code = 0;
                for example in examples(&block) {
                    let Example { number, command, shown } = &example;
                    let asked = command == "echo $?";
                    assert!(
                        asked || code == 0,
                        "line {number}: the command before it ended with {code}, nobody asks why"
                    );
                    let printed;
                    (printed, code) = run(command, code, dir.path());
                    assert!(
                        shown.is_empty() || all_fit(shown, &printed),
                        "line {number}: {command}\nREADME shows {shown:#?}\nprinted {printed:#?}"
                    );
                    run_as_it_stands += usize::from(command.contains("airkafka-worker"));
                }
                // The last one may fail only if the block is about that.
                assert!(
                    code == 0,
                    "line {}: the block ends with exit code {code}, which it does not show",
                    block.number
                );
            }
            "console broker" => {
                for Example { number, command, .. } in examples(&block) {
                    assert!(command.contains("airkafka-worker "), "line {number}: not the worker: {command}");
                    let mut changed = command
                        .replace(BROKER, NOBODY)
                        .replace("airkafka-worker --", "airkafka-worker --connect-timeout=1ms --");
                    for subcommand in
                        Subcommand::ALL.map(|subcommand| format!("airkafka-worker {} ", subcommand.name()))
                    {
                        changed = changed.replace(&subcommand, &format!("{subcommand}--connect-timeout=1ms "));
                    }
                    let (printed, code) = run(&changed, 0, dir.path());
                    let is_doctor = command.contains("airkafka-worker doctor ");
                    let level = if is_doctor { "problem " } else { "ERROR" };
                    let refused = format!("{level} broker {NOBODY}: connection refused");
                    assert!(
                        code == if is_doctor { 1 } else { 69 } && printed.iter().any(|line| line.contains(&refused)),
                        "line {number}: {changed}\nended with {code} and printed {printed:#?}"
                    );
                    run_against_nobody += 1;
                }
            }
            info => {
                let known = ["sh", "text", "json", "ini"];
                assert!(known.contains(&info.split(' ').next().unwrap()), "line {}: ```{info}", block.number);
                let command = block.lines.iter().find(|line| line.starts_with("$ "));
                assert!(command.is_none(), "line {}: not run: {command:?}", block.number);
                if let Some(name) = info.strip_prefix("ini ") {
                    let text = block.lines.join("\n").replace(BROKER, NOBODY);
                    fs::write(dir.path().join(name), text).unwrap();
                }
            }
        }
    }
    assert!(run_as_it_stands >= 10, "only {run_as_it_stands} commands were found and run");
    assert!(run_against_nobody >= 3, "only {run_against_nobody} commands for a broker were found and checked");
}

#[test]
fn the_help_is_the_programs_own() {
    let update = std::env::var_os("UPDATE_README").is_some_and(|value| value == "1");
    for subcommand in Subcommand::ALL {
        let marker = match subcommand {
            Subcommand::Start => "help".into(),
            other => format!("help {}", other.name()),
        };
        let (start, end) = (format!("<!-- {marker} -->\n"), format!("<!-- /{marker} -->\n"));
        let help = Command::new(WORKER).args([subcommand.name(), "--help"]).output().expect("the worker");
        let help = String::from_utf8(help.stdout).unwrap();
        assert!(help.starts_with("Usage: airkafka-worker") && help.contains("--brokers"), "{help}");
        let text = readme();
        let (before, rest) = text.split_once(&start).unwrap_or_else(|| panic!("no line {start} in README.md"));
        let (between, after) = rest.split_once(&end).unwrap_or_else(|| panic!("no line {end} in README.md"));
        let wanted = format!("```text\n{help}```\n");
        if between == wanted {
            continue;
        }
        if update {
            fs::write(README, [before, &start, &wanted, &end, after].concat()).unwrap();
            continue;
        }
        let (ours, theirs): (Vec<_>, Vec<_>) = (between.lines().collect(), wanted.lines().collect());
        let at = ours.iter().zip(&theirs).take_while(|(ours, theirs)| ours == theirs).count();
        let (ours, theirs) = (ours.get(at), theirs.get(at));
        panic!(
            "README.md has another {marker}, as of {ours:?} for {theirs:?}; UPDATE_README=1 cargo test --test readme"
        );
    }
}

/// The first cells of the table behind a marker, without back quotes.
fn first_cells(text: &str, marker: &str) -> BTreeSet<String> {
    let (_, rest) = text.split_once(&format!("<!-- {marker} -->\n\n")).unwrap_or_else(|| panic!("no {marker}"));
    let rows = rest.lines().take_while(|line| line.starts_with('|')).skip(2);
    let cells = rows.map(|row| row.split('|').nth(1).unwrap().trim().trim_matches('`').to_owned());
    cells.collect()
}

#[test]
fn the_tables_are_complete() {
    let text = readme();
    let dir = tempfile::tempdir().unwrap();
    let line = r#"echo '{"key":"k","command":["nosuch"]}' | airkafka-worker --input - -qq"#;
    let (printed, _) = run(line, 0, dir.path());
    let outcome: Value = serde_json::from_str(&printed[0]).unwrap();
    let members: BTreeSet<String> = outcome.as_object().unwrap().keys().cloned().collect();
    assert_eq!(first_cells(&text, "members"), members);

    let (help, _) = run("airkafka-worker --help", 0, dir.path());
    let codes = help.iter().skip_while(|line| *line != "Exit codes").skip(1).take_while(|line| !line.is_empty());
    let codes: BTreeSet<String> = codes.map(|line| line.split_whitespace().next().unwrap().to_owned()).collect();
    assert!(codes.len() > 1);
    assert_eq!(first_cells(&text, "exit codes"), codes);

    use airkafka_worker::record::Reason::*;
    let reasons = [Exit, Signal, Timeout, NotFound, NotExecutable, Invalid, OutputLimit, SpawnError, Poison];
    assert_eq!(first_cells(&text, "reasons"), reasons.map(|reason| reason.as_str().to_owned()).into());
}

#[test]
fn no_line_is_too_wide() {
    let changes = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/CHANGELOG.md")).expect("CHANGELOG.md");
    for line in readme().lines().chain(changes.lines()) {
        assert!(line.chars().count() <= 120, "{line}");
    }
}

/// The name under which a heading can be linked to.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let text = readme();
    let anchors: BTreeSet<String> = text.lines().filter(|line| line.starts_with('#')).map(anchor).collect();
    let links: Vec<&str> = text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()).collect();
    assert!(links.len() > 10);
    for link in links {
        let there = match link.strip_prefix('#') {
            Some(anchor) => anchors.contains(anchor),
            None => Path::new(env!("CARGO_MANIFEST_DIR")).join(link).exists(),
        };
        assert!(there, "{link}");
    }
}

#[test]
fn what_is_shown_is_compared() {
    assert!(fits("a ... c", "a b c") && fits("...c", "abc") && fits("a...b...c", "a-b-c") && fits("a...", "a"));
    assert!(!fits("a ... d", "a b c") && !fits("b...", "abc") && !fits("a...x...c", "abc") && !fits("a", "ab"));
    assert!(fits(r#"2026-01-01T00:00:00.000Z INFO  x ms=1 key=k"#, r#"2027-02-03T04:05:06.789Z INFO  x ms=234 key=k"#));
    assert!(!fits(r#"{"duration_ms":1,"a":1}"#, r#"{"duration_ms":2,"a":2}"#));
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    assert!(all_fit(&lines("a\n...\nd"), &lines("a\nb\nc\nd")) && all_fit(&lines("..."), &[]));
    assert!(!all_fit(&lines("a"), &lines("a\nb")) && !all_fit(&lines("a\nb"), &lines("a")));
}
