//! `doctor`: checks what a worker needs, one line for each check, and says how to mend what is wrong. Changes nothing.
//!
//! What cannot be asked honestly is left out: a broker does not tell its clock, so that clocks are not compared.

mod brokers;
mod group;
mod here;
mod settings;
mod topics;

use std::process::ExitCode;

use super::view::View;
use super::{Out, Reach};
use crate::config::Config;
use crate::config::by_hand::Doctor;
use crate::error::{self, Error, Result};
use crate::record::printable;

/// Checks everything. The exit code says whether there is a problem.
pub fn run(reach: &Reach, config: &Config, asked: &Doctor, out: &mut Out) -> Result<ExitCode> {
    let mut report = Report { out, problems: 0, warnings: 0 };
    here::check(config, asked, &mut report)?;
    if brokers::answer(reach, &mut report)? {
        let kafka = reach.kafka;
        let mut cluster = reach.cluster();
        let topics = [Some(kafka.topic.as_str()), Some(&kafka.results_topic), kafka.dead_letter_topic.as_deref()];
        let names: Vec<&str> = topics.into_iter().flatten().collect();
        match View::of(&mut cluster, &names) {
            Err(e) => report.error("cluster", &e)?,
            Ok(view) => {
                brokers::advertised(reach, &view, &mut report)?;
                let there = topics::check(reach, &view, asked, &mut report)?;
                let kept = settings::check(reach, &mut cluster, &there, &mut report)?;
                let is_share = group::check(reach, config, &mut cluster, &view, &mut report)?;
                if let Some(kept) = kept.filter(|_| !is_share) {
                    settings::offsets(reach, &view, kept, &mut report)?;
                }
            }
        }
    }
    let Report { problems, warnings, .. } = report;
    out.line(&format!("{problems} problem(s), {warnings} warning(s)"))?;
    Ok(if problems == 0 { error::ExitCode::Clean } else { error::ExitCode::Unexpected }.into())
}

/// What was found so far.
struct Report<'a> {
    out: &'a mut Out,
    problems: usize,
    warnings: usize,
}

impl Report<'_> {
    fn ok(&mut self, what: &str, told: &str) -> Result<()> {
        self.line("ok", what, told, None)
    }

    /// It works, but may not do what is wanted of it.
    fn warn(&mut self, what: &str, told: &str, fix: &str) -> Result<()> {
        self.warnings += 1;
        self.line("warn", what, told, Some(fix))
    }

    /// A worker would not start, or lose commands.
    fn problem(&mut self, what: &str, told: &str, fix: &str) -> Result<()> {
        self.problems += 1;
        self.line("problem", what, told, Some(fix))
    }

    /// A problem that an error tells of, with what it says is to be done.
    fn error(&mut self, what: &str, e: &Error) -> Result<()> {
        self.problems += 1;
        self.line("problem", what, e.without(what), e.hint_given())
    }

    fn line(&mut self, verdict: &str, what: &str, told: &str, fix: Option<&str>) -> Result<()> {
        self.out.line(&printable(&format!("{verdict:<8} {what}: {told}")))?;
        fix.map_or(Ok(()), |fix| self.out.line(&printable(&format!("         fix: {fix}"))))
    }
}

impl Reach<'_> {
    /// A call of one of Kafka's tools on these brokers, to be pasted.
    fn tool(&self, name: &str, rest: &str) -> String {
        let secure =
            if self.kafka.settings.protocol() == "PLAINTEXT" { "" } else { " --command-config client.properties" };
        format!("{name}.sh --bootstrap-server {}{secure} {rest}", self.kafka.brokers.join(","))
    }

    /// The call that gives us a right; the cluster has no name.
    fn grant(&self, operation: &str, resource: &str, name: &str) -> String {
        let user = self.kafka.settings.user().unwrap_or("NAME");
        let rest = format!("--add --allow-principal 'User:{user}' --operation {operation} --{resource}");
        let rest = if name.is_empty() { rest } else { format!("{rest} '{name}'") };
        self.tool("kafka-acls", &rest)
    }
}
