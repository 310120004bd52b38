//! The settings of a share group: asked for at start, and those made that have to stand before its first use.
//!
//! Brokers keep them by group (resource type GROUP of DescribeConfigs and IncrementalAlterConfigs), since 4.2; some they
//! have only for all groups, and tell as settings of the broker.

use std::collections::BTreeMap;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use kafka_protocol::messages::{DescribeConfigsRequest, IncrementalAlterConfigsRequest};
use kafka_protocol::protocol::StrBytes;
use log::{info, warn};

use crate::broker::wire::cluster::Cluster;
use crate::config::{self, StartFrom, client::Isolation};
use crate::error::{Error, Kind, Result};

const DESCRIBE: i16 = 4;
const ALTER: i16 = 1;
/// Resource types.
const BROKER: i8 = 4;
const GROUP: i8 = 32;
/// Where a group's setting comes from that was made for this group.
const OF_GROUP: i8 = 8;
/// The operation that sets a value.
const SET: i8 = 0;

/// How long a lock lasts where nobody has said for this group: a worker that dies frees its locks by closing its
/// connections; only one that freezes, or a host that vanishes, holds them for that long.
const LOCK_MS: &str = "30000";
const RESET: &str = "share.auto.offset.reset";
const LOCK: &str = "share.record.lock.duration.ms";
const ISOLATION: &str = "share.isolation.level";

/// What is known of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupFacts {
    /// Whether locks can be renewed.
    pub renews: bool,
    /// Records that can be locked behind the oldest one of a partition.
    pub window: i64,
    /// How often a record is delivered before the broker drops it.
    pub deliveries: u32,
    /// What is set for this group, by name.
    own: BTreeMap<String, String>,
    /// What holds for it, by name.
    effective: BTreeMap<String, String>,
}

impl GroupFacts {
    /// Asks a broker. What we may not know is taken for Kafka's default.
    pub fn ask(cluster: &mut Cluster, group: &str) -> Result<GroupFacts> {
        let broker = cluster.any_broker().ok_or_else(|| Error::new(Kind::Unavailable, "no broker is known"))?;
        let mut conn = cluster.open(broker)?;
        let resource = |kind, name: &str| {
            DescribeConfigsResource::default()
                .with_resource_type(kind)
                .with_resource_name(StrBytes::from_string(name.to_string()))
                .with_configuration_keys(None)
        };
        let resources = vec![resource(GROUP, group), resource(BROKER, &broker.to_string())];
        let version = conn.version::<DescribeConfigsRequest>(DESCRIBE)?;
        let request = DescribeConfigsRequest::default().with_resources(resources);
        let response = conn.call(version, &request, cluster.deadline())?;
        let (mut own, mut effective) = (BTreeMap::new(), BTreeMap::new());
        // The group's own words last: they go before those of the broker.
        let mut results = response.results;
        results.sort_by_key(|result| result.resource_type == GROUP);
        for result in results {
            for config in result.configs {
                let (name, value) = (config.name.to_string(), config.value.unwrap_or_default().to_string());
                let name = name.strip_prefix("group.").map_or(name.clone(), ToString::to_string);
                if result.resource_type == GROUP && config.config_source == OF_GROUP {
                    own.insert(name.clone(), value.clone());
                }
                effective.insert(name, value);
            }
        }
        let number =
            |name: &str, default: i64| effective.get(name).and_then(|text| text.parse().ok()).unwrap_or(default);
        Ok(GroupFacts {
            renews: effective.get("share.renew.acknowledge.enable").is_none_or(|value| value != "false"),
            window: number("share.partition.max.record.locks", 2000),
            deliveries: u32::try_from(number("share.delivery.count.limit", 5)).unwrap_or(5),
            own,
            effective,
        })
    }

    /// Where a partition begins that the group has not begun with.
    pub fn starts(&self, config: &config::Kafka) -> StartFrom {
        match self.own.get(RESET).map(String::as_str) {
            Some("latest") => StartFrom::Latest,
            Some(_) => StartFrom::Earliest,
            None => config.from, // as a worker sets it
        }
    }

    /// Where the broker itself writes what is rejected.
    pub fn dead_letter_topic(&self) -> Option<&str> {
        let topic = self.effective.get("errors.deadletterqueue.topic.name")?;
        Some(topic.as_str()).filter(|topic| !topic.is_empty())
    }

    /// What has to be set for the group, as nobody has yet.
    fn missing(&self, config: &config::Kafka) -> Vec<(&'static str, &'static str)> {
        let mut wanted = vec![(RESET, config.from.as_str()), (LOCK, LOCK_MS)];
        if config.settings.isolation == Isolation::ReadCommitted {
            wanted.push((ISOLATION, "read_committed"));
        }
        let holds = |name: &str, value: &str| self.effective.get(name).is_some_and(|effective| effective == value);
        wanted.retain(|(name, value)| !self.own.contains_key(*name) && !holds(name, value));
        wanted
    }

    /// Makes the settings that have to stand before the group's first use, or says what to run where we may not.
    pub fn prepare(&self, cluster: &mut Cluster, config: &config::Kafka) -> Result<()> {
        let group = &config.group;
        if let Some(own) = self.own.get(RESET).filter(|own| *own != config.from.as_str()) {
            info!("share group {group}: its own setting {RESET}={own} goes before --from {}", config.from.as_str());
        }
        let missing = self.missing(config);
        if missing.is_empty() {
            return Ok(());
        }
        let listed = missing.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",");
        match alter(cluster, group, &missing)? {
            None => info!("share group {group}: set {listed}"),
            Some(why) => warn!(
                "share group {group}: {listed} could not be set ({why}); without it the group starts and locks as the brokers have it. \
                 Run: kafka-configs.sh --bootstrap-server {} --alter --entity-type groups --entity-name {group} --add-config {listed}",
                config.brokers.join(",")
            ),
        }
        Ok(())
    }
}

/// Sets these for a group. Returns why the broker does not.
fn alter(cluster: &mut Cluster, group: &str, settings: &[(&'static str, &'static str)]) -> Result<Option<String>> {
    let configs = settings.iter().map(|(name, value)| {
        AlterableConfig::default()
            .with_name(StrBytes::from_static_str(name))
            .with_config_operation(SET)
            .with_value(Some(StrBytes::from_static_str(value)))
    });
    let resource = AlterConfigsResource::default()
        .with_resource_type(GROUP)
        .with_resource_name(StrBytes::from_string(group.to_string()))
        .with_configs(configs.collect());
    let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
    let response = cluster.ask(|conn, deadline| {
        let version = conn.version::<IncrementalAlterConfigsRequest>(ALTER)?;
        conn.call(version, &request, deadline)
    })?;
    let refused = response.responses.iter().find_map(|result| {
        let code = ResponseError::try_from_code(result.error_code)?;
        let message = result.error_message.as_ref().map_or("", |message| message);
        Some(crate::record::printable(&format!("{code:?} {message}")).trim().to_string())
    });
    Ok(refused)
}
