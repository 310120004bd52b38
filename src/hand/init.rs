//! `init`: creates the topics that are missing, and a section of settings where there is none.
//!
//! What is there stays as it is: topics, files, and what stands in them.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::{CreateTopicsRequest, TopicName};
use kafka_protocol::protocol::StrBytes;

use super::view::{Topic, View};
use super::{Out, Reach};
use crate::broker::wire::errors::{self, Doing};
use crate::cli::options::{Fallback, OPTIONS, WORKER_SECTION};
use crate::cli::wrapped;
use crate::config::by_hand::Init;
use crate::error::{Error, Kind, Result, os_text};
use crate::record::printable;

/// The newest CreateTopics that is built here.
const CREATE_TOPICS: i16 = 5;
/// How long the controller may take.
const CREATION: Duration = Duration::from_secs(30);
/// Width of the comments in the section.
const WIDTH: usize = 98;

/// A topic that there is to be.
struct Wanted<'a> {
    name: &'a str,
    of: &'static str,
    partitions: i32,
    days: u32,
}

/// Makes them.
pub fn run(reach: &Reach, init: &Init, out: &mut Out) -> Result<()> {
    let kafka = reach.kafka;
    let mut wanted = vec![
        Wanted { name: &kafka.topic, of: "commands", partitions: init.partitions, days: 7 },
        // One partition: as much as results need, and all that the executor of Airflow 1.9 reads.
        Wanted { name: &kafka.results_topic, of: "results", partitions: 1, days: 7 },
    ];
    if let Some(name) = &kafka.dead_letter_topic {
        wanted.push(Wanted { name, of: "dead letters", partitions: 1, days: 30 });
    }
    let names: Vec<&str> = wanted.iter().map(|topic| topic.name).collect();
    let mut cluster = reach.cluster();
    let view = reach.patiently("connecting", || View::of(&mut cluster, &names))?;
    let before = names.iter().filter(|name| matches!(view.topic(name), Topic::There(_))).count();
    let replicas = i16::try_from(view.brokers.len().clamp(1, 3)).unwrap_or(1);
    for topic in &wanted {
        match view.topic(topic.name) {
            Topic::There(there) => {
                let count = there.partitions.len();
                out.line(&format!(
                    "topic {} ({}): is there, {count} partition(s); left as it is",
                    topic.name, topic.of
                ))?;
            }
            Topic::Refused(code) => return Err(errors::explain(code, &Doing::new("Describe", "Topic", topic.name))),
            Topic::Missing => create(reach, &view, topic, replicas, out)?,
        }
    }
    if before < wanted.len() {
        reach.patiently("waiting for the new topics", || {
            let view = View::of(&mut cluster, &names)?;
            let late = names.iter().find(|name| !view.is_led(name));
            late.map_or(Ok(()), |name| Err(Error::new(Kind::Later, format!("topic {name}: has no leader yet"))))
        })?;
    }
    settings(init, out)
}

fn create(reach: &Reach, view: &View, topic: &Wanted, replicas: i16, out: &mut Out) -> Result<()> {
    let Wanted { name, of, partitions, days } = *topic;
    let mut settings = vec![("cleanup.policy", "delete".to_string())];
    settings.push(("retention.ms", Duration::from_secs(u64::from(days) * 86_400).as_millis().to_string()));
    if replicas == 3 {
        settings.push(("min.insync.replicas", "2".into())); // so that one broker may be away, and nothing is lost
    }
    let settings = settings.into_iter().map(|(name, value)| {
        let name = StrBytes::from_static_str(name);
        CreatableTopicConfig::default().with_name(name).with_value(Some(StrBytes::from_string(value)))
    });
    let request = CreateTopicsRequest::default().with_timeout_ms(CREATION.as_millis() as i32).with_topics(vec![
        CreatableTopic::default()
            .with_name(TopicName(StrBytes::from_string(name.to_string())))
            .with_num_partitions(partitions)
            .with_replication_factor(replicas)
            .with_configs(settings.collect()),
    ]);
    let response = reach.patiently("creating topics", || {
        let mut conn = view.open_controller(reach)?;
        let version = conn.version::<CreateTopicsRequest>(CREATE_TOPICS)?;
        conn.call(version, &request, Instant::now() + CREATION)
    })?;
    let answer = response.topics.first();
    let said = answer.and_then(|topic| topic.error_message.as_ref()).map_or(String::new(), |text| format!(": {text}"));
    match answer.and_then(|topic| ResponseError::try_from_code(topic.error_code)) {
        None => out.line(&format!(
            "topic {name} ({of}): created, {partitions} partition(s), {replicas} replica(s), records kept for {days} days"
        )),
        Some(ResponseError::TopicAlreadyExists) => {
            out.line(&format!("topic {name} ({of}): was created a moment ago; left as it is"))
        }
        Some(code @ (ResponseError::TopicAuthorizationFailed | ResponseError::ClusterAuthorizationFailed)) => {
            Err(errors::explain(code, &Doing::new("Create", "Topic", name)))
        }
        Some(code) => {
            let what = format!("topic {name}: the broker does not create it: {code:?}{}", printable(&said));
            Err(Error::new(Kind::Config, what).hint("create it as your cluster allows: kafka-topics.sh --create"))
        }
    }
}

/// Adds the section to the file, or prints it.
fn settings(init: &Init, out: &mut Out) -> Result<()> {
    let section = section(init);
    let Some(file) = &init.file else { return section.lines().try_for_each(|line| out.line(line)) };
    let name = printable(&file.to_string_lossy());
    if init.has_section {
        return out.line(&format!("{name}: has a section [{WORKER_SECTION}]; left as it is"));
    }
    append(file, &section).map_err(|e| {
        Error::new(Kind::Config, format!("{name} cannot be written to: {}", os_text(&e)))
            .hint("leave out --config: then the section is printed")
    })?;
    out.line(&format!("{name}: added a section [{WORKER_SECTION}]; start with: airkafka-worker --config {name}"))
}

fn append(file: &Path, section: &str) -> io::Result<()> {
    let before = match fs::read(file) {
        Ok(before) => before,
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(e),
    };
    let gap = match before.last() {
        None => "",
        Some(b'\n') => "\n",
        Some(_) => "\n\n",
    };
    OpenOptions::new().append(true).create(true).open(file)?.write_all(format!("{gap}{section}").as_bytes())
}

/// Every setting with what the help says of it, as a comment, but for those that were typed.
fn section(init: &Init) -> String {
    let mut text = format!("[{WORKER_SECTION}]\n");
    let mut heading = "";
    for opt in OPTIONS {
        let Some((_, key)) = opt.file_keys().find(|(section, _)| *section == WORKER_SECTION) else { continue };
        if heading != opt.heading {
            heading = opt.heading;
            text += &format!("\n# --- {heading}\n");
        }
        // What the help says of -v is about the flag.
        let help = if opt.name == "verbose" { "what is logged: DEBUG, INFO, WARN or ERROR" } else { opt.help };
        for line in wrapped(help, WIDTH) {
            text += &format!("# {line}\n");
        }
        let typed = init.typed.iter().find(|(typed, _)| *typed == key);
        text += &match (typed, opt.fallback) {
            (Some((_, value)), _) => format!("{key} = {}\n", value.replace('%', "%%")),
            (None, Fallback::Value(value)) => format!("# {key} = {value}\n"),
            (None, Fallback::Computed(_) | Fallback::Nothing) => format!("# {key} =\n"),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn init(typed: Vec<(&'static str, String)>) -> Init {
        Init { partitions: 4, file: None, has_section: false, typed }
    }

    #[test]
    fn the_section_sets_what_was_typed_and_nothing_else() {
        let section = section(&init(vec![("brokers", "b:1".into()), ("kafka_config", "/a%b".into())]));
        let set: Vec<&str> = section.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
        assert_eq!(set, ["[AirKafka_worker]", "brokers = b:1", "kafka_config = /a%%b"]);
        assert!(section.contains("\n# timeout = 24h\n") && section.contains("\n# logging_level = info\n"), "{section}");
    }

    #[test]
    fn it_is_added_behind_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("airflow.cfg");
        for (before, after) in [("", "[x]\n"), ("[core]\na = 1", "[core]\na = 1\n\n[x]\n"), ("a\n", "a\n\n[x]\n")] {
            fs::write(&file, before).unwrap();
            append(&file, "[x]\n").unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), after);
        }
        append(&dir.path().join("new.cfg"), "[x]\n").unwrap();
    }
}
