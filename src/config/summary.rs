//! The configuration as one line of `name=value`, for the log at start.
//!
//! Only what is effective; where it came from is added to what is not a default.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;

use log::LevelFilter;

use super::by_hand::ByHand;
use super::units::{show_duration, show_size};
use super::{Config, Origin, Source};

/// Where each setting that is not a default came from.
#[derive(Clone, Debug, Default)]
pub struct Sources(pub(super) BTreeMap<&'static str, Source>);

impl Sources {
    /// Where the option of that long name came from; `None`: it is the default.
    pub fn of(&self, name: &str) -> Option<&Source> {
        self.0.get(name)
    }
}

impl Config {
    /// The effective settings in one line, those that are not defaults with where they came from.
    pub fn summary(&self) -> String {
        let mut line = Line { sources: &self.sources, text: String::new() };
        match &self.origin {
            Origin::Input(file) => line.add("input", file.as_deref().map_or("stdin".into(), path)),
            Origin::Kafka(kafka) => {
                line.add("brokers", kafka.brokers.join(","));
                line.add("topic", &kafka.topic);
                line.add("results-topic", &kafka.results_topic);
                line.add("dead-letter-topic", kafka.dead_letter_topic.as_deref().unwrap_or("none"));
                line.add("group", plain(&kafka.group));
                line.add("group-type", kafka.group_type.as_str());
                line.add("on-lost-lock", self.exec.on_lost_lock.as_str());
                line.add("max-deliveries", self.exec.max_deliveries);
                line.add("from", kafka.from.as_str());
                line.add("client", kafka.client.as_str());
                line.add("connect-timeout", show_duration(kafka.connect_timeout));
                line.add("instance-id", kafka.instance_id.as_deref().unwrap_or("none"));
                let settings = &kafka.settings;
                // The file itself says little; what was taken from it follows.
                if self.sources.of("kafka-config").is_some() {
                    line.add("kafka-config", "read");
                }
                let mechanism = settings.sasl.as_ref().map_or(String::new(), |sasl| format!("/{}", sasl.mechanism()));
                line.add("security", format!("{}{mechanism}", settings.protocol()));
                for given in &settings.given {
                    line.text += &format!(" {given}");
                }
            }
        }
        let exec = &self.exec;
        line.add("threads", self.threads);
        line.add("timeout", or_none(exec.timeout, show_duration));
        line.add("grace", show_duration(exec.grace));
        line.add("drain-timeout", or_none(self.drain_timeout, show_duration));
        line.add("shell", or_none(exec.shell.as_deref(), path));
        line.add("airflow", or_none(exec.airflow.as_deref(), path));
        line.add("preload", self.preload.as_str());
        line.add("output-dir", or_none(exec.output_dir.as_deref(), path));
        line.add("output-limit", or_none(exec.output_limit, show_size));
        line.add("tail-bytes", show_size(exec.tail_bytes as u64));
        let ending = &self.ending;
        line.add("idle-exit", or_none(ending.until.idle, show_duration));
        line.add("max", or_none(ending.until.commands, |most| most.to_string()));
        line.add("max-runtime", or_none(ending.runtime, show_duration));
        line.add("lock", or_none(ending.lock.as_deref(), path));
        line.add("result-format", self.result_format.as_str());
        match &self.by_hand {
            Some(ByHand::Send(send)) => line.add("wait-timeout", or_none(send.wait_timeout, show_duration)),
            Some(ByHand::Results(results)) => line.add("output", results.output.as_str()),
            Some(ByHand::Init(init)) => line.add("partitions", init.partitions),
            Some(ByHand::DryRun | ByHand::Doctor(_)) | None => {}
        }
        line.add("log-format", self.log_format.as_str());
        line.add_as("log", "verbose", level(self.log_level));
        line.text
    }
}

struct Line<'a> {
    sources: &'a Sources,
    text: String,
}

impl Line<'_> {
    fn add(&mut self, name: &str, value: impl Display) {
        self.add_as(name, name, value);
    }

    fn add_as(&mut self, label: &str, name: &str, value: impl Display) {
        if !self.text.is_empty() {
            self.text.push(' ');
        }
        self.text += &format!("{label}={value}");
        if let Some(source) = self.sources.of(name) {
            self.text += &format!(" (from {source})");
        }
    }
}

fn or_none<T>(value: Option<T>, show: impl Fn(T) -> String) -> String {
    value.map_or("none".into(), show)
}

fn path(path: &Path) -> String {
    plain(&path.to_string_lossy())
}

/// The text as it is, or in quotes when it would not be one word.
fn plain(text: &str) -> String {
    let quoted = format!("{text:?}");
    if text.contains([' ', '=']) || quoted.len() != text.len() + 2 { quoted } else { text.into() }
}

fn level(level: LevelFilter) -> String {
    level.as_str().to_lowercase()
}
