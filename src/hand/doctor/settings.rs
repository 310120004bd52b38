//! Whether the topics keep their records, for long enough: what is deleted before it was read is never run.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kafka_protocol::ResponseError;
use kafka_protocol::messages::DescribeConfigsRequest;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_configs_response::{DescribeConfigsResponse, DescribeConfigsResult};
use kafka_protocol::protocol::StrBytes;

use super::Report;
use super::topics::Use;
use crate::broker::wire::cluster::Cluster;
use crate::broker::wire::errors::{self, Doing};
use crate::config::show_duration;
use crate::error::{Error, Kind, Result};
use crate::hand::Reach;
use crate::hand::view::View;

/// The newest DescribeConfigs that is built here.
const DESCRIBE_CONFIGS: i16 = 4;
/// Kinds of resources.
const TOPIC: i8 = 2;
const BROKER: i8 = 4;

const DAY: Duration = Duration::from_secs(86_400);

/// Settings of a topic, or of a broker, by name.
type Settings = BTreeMap<String, String>;

/// How long a topic keeps its records; `None`: for ever.
pub type Kept = Option<Duration>;

/// Checks them; returns how long commands are kept, if that is told.
pub fn check(
    reach: &Reach,
    cluster: &mut Cluster,
    topics: &[(Use, String)],
    report: &mut Report,
) -> Result<Option<Kept>> {
    let mut commands_kept = None;
    for (what, name) in topics {
        let resource = resource(TOPIC, name, &["cleanup.policy", "retention.ms"]);
        let answer = cluster.ask(|conn, deadline| {
            conn.call(conn.version::<DescribeConfigsRequest>(DESCRIBE_CONFIGS)?, &resource, deadline)
        });
        match answer.and_then(|answer| understood(answer, "Topic", name)) {
            Err(e) => {
                let look = format!("--describe --all --entity-type topics --entity-name '{name}'");
                let (grant, look) = (reach.grant("DescribeConfigs", "topic", name), reach.tool("kafka-configs", &look));
                not_told(&what.of(name), &e, &grant, &look, report)?;
            }
            Ok(settings) => {
                let kept = retention(&settings, "retention.ms", 1);
                one_topic(reach, *what, name, &settings, kept, report)?;
                if *what == Use::Commands {
                    commands_kept = Some(kept);
                }
            }
        }
    }
    Ok(commands_kept)
}

fn one_topic(reach: &Reach, what: Use, name: &str, settings: &Settings, kept: Kept, report: &mut Report) -> Result<()> {
    let change = |setting: String| {
        let rest = format!("--alter --entity-type topics --entity-name '{name}' --add-config {setting}");
        reach.tool("kafka-configs", &rest)
    };
    let policy = settings.get("cleanup.policy").map_or("delete", String::as_str);
    let mut fine = true;
    if policy.contains("compact") {
        fine = false;
        let fix = change("cleanup.policy=delete".into());
        match what {
            Use::Commands => {
                let told = "cleanup.policy is compact: of two commands with one key the first may never be run";
                report.problem(&what.of(name), told, &fix)?;
            }
            _ => {
                let told =
                    "cleanup.policy is compact: it takes no record without a key, and keeps the last of each key";
                report.warn(&what.of(name), told, &fix)?;
            }
        }
    }
    let least = if what == Use::DeadLetters { 7 * DAY } else { DAY };
    if policy.contains("delete") && kept.is_some_and(|kept| kept < least) {
        fine = false;
        let told = format!("keeps records for {} only (retention.ms)", show_duration(kept.unwrap_or_default()));
        let fix = change(format!("retention.ms={}", (7 * DAY).as_millis()));
        match what {
            Use::Commands => {
                report.problem(&what.of(name), &format!("{told}: what is not read by then is never run"), &fix)?;
            }
            _ => report.warn(&what.of(name), &told, &fix)?,
        }
    }
    if fine {
        report.ok(&what.of(name), &format!("keeps records for {}", kept.map_or("ever".into(), show_duration)))?;
    }
    Ok(())
}

/// A consumer group that nobody is in forgets after a while where it stood. If the topic remembers for longer, all of it is
/// new then.
pub fn offsets(reach: &Reach, view: &View, kept: Kept, report: &mut Report) -> Result<()> {
    const NAME: &str = "offsets.retention.minutes";
    let Some((id, address)) = view.brokers.iter().next() else { return Ok(()) };
    let resource = resource(BROKER, &id.to_string(), &[NAME]);
    let answer = reach.dialer.open(address, Instant::now() + reach.patience()).and_then(|mut conn| {
        let version = conn.version::<DescribeConfigsRequest>(DESCRIBE_CONFIGS)?;
        conn.call(version, &resource, Instant::now() + reach.patience())
    });
    let settings = match answer.and_then(|answer| understood(answer, "Cluster", "kafka-cluster")) {
        Ok(settings) => settings,
        Err(e) => {
            let look = format!("--describe --all --entity-type brokers --entity-name {id}");
            let (grant, look) = (reach.grant("DescribeConfigs", "cluster", ""), reach.tool("kafka-configs", &look));
            return not_told("offsets", &e, &grant, &look, report);
        }
    };
    let Some(remembered) = retention(&settings, NAME, 60_000) else { return Ok(()) };
    let told = format!("a group without a worker remembers for {} what it has run ({NAME})", show_duration(remembered));
    if kept.is_some_and(|kept| kept <= remembered) {
        return report.ok("offsets", &told);
    }
    let fix = format!(
        "{NAME} in server.properties of the brokers, above what the topic keeps; or {}",
        reach.tool(
            "kafka-configs",
            &format!(
                "--alter --entity-type topics --entity-name '{}' --add-config retention.ms={}",
                reach.kafka.topic,
                remembered.as_millis()
            )
        )
    );
    let told =
        format!("{told}, but the topic keeps commands for longer: after such a pause all of them would run again");
    report.warn("offsets", &told, &fix)
}

/// The settings are not told: a right is missing, or the broker is too old to be asked; then one has to look oneself.
fn not_told(what: &str, e: &Error, grant: &str, look: &str, report: &mut Report) -> Result<()> {
    let fix = if e.kind() == Kind::Refused { grant } else { look };
    report.warn(what, &format!("its settings are not told: {}", e.what()), fix)
}

fn resource(kind: i8, name: &str, keys: &[&'static str]) -> DescribeConfigsRequest {
    let keys = keys.iter().map(|key| StrBytes::from_static_str(key)).collect();
    DescribeConfigsRequest::default().with_resources(vec![
        DescribeConfigsResource::default()
            .with_resource_type(kind)
            .with_resource_name(StrBytes::from_string(name.to_string()))
            .with_configuration_keys(Some(keys)),
    ])
}

fn understood(answer: DescribeConfigsResponse, resource: &str, name: &str) -> Result<Settings> {
    let DescribeConfigsResult { error_code, configs, .. } = answer.results.into_iter().next().unwrap_or_default();
    match ResponseError::try_from_code(error_code) {
        Some(code) => Err(errors::explain(code, &Doing::new("DescribeConfigs", resource, name))),
        None => Ok(configs
            .into_iter()
            .filter_map(|config| Some((config.name.to_string(), config.value?.to_string())))
            .collect()),
    }
}

/// A time among the settings, in units of so many milliseconds; `None`: for ever, or not told.
fn retention(settings: &Settings, name: &str, unit_ms: u64) -> Option<Duration> {
    let number: u64 = settings.get(name)?.parse().ok()?; // -1: for ever
    Some(Duration::from_millis(number.saturating_mul(unit_ms)))
}
