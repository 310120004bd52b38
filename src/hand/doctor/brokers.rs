//! Whether the brokers answer, at the addresses that are configured and at those they give themselves.

use std::time::Instant;

use super::Report;
use crate::broker::wire::OLDEST_FETCH;
use crate::config::Client;
use crate::error::Result;
use crate::hand::Reach;
use crate::hand::view::View;

/// The key of the Fetch API.
const FETCH: i16 = 1;

/// Which release first served a version of Fetch; no broker tells its release.
const RELEASES: [(i16, &str); 8] =
    [(18, "4.1"), (17, "3.9"), (16, "3.7"), (15, "3.5"), (13, "3.1"), (12, "2.7"), (11, "2.3"), (OLDEST_FETCH, "0.11")];

/// Asks each of the addresses. Returns whether one of them answers.
pub fn answer(reach: &Reach, report: &mut Report) -> Result<bool> {
    let mut any = false;
    for address in &reach.kafka.brokers {
        let conn = reach.dialer.open(address, Instant::now() + reach.patience());
        match conn {
            Err(e) => {
                let e = e.refused_as(&reach.kafka.settings.principal());
                let fix = e.hint_given().map_or_else(|| can_it_be_reached(address), str::to_string);
                report.problem(&format!("broker {address}"), e.without(&format!("broker {address}")), &fix)?;
            }
            Ok(conn) => {
                any = true;
                let newest = conn.newest(FETCH).unwrap_or(0);
                let release = RELEASES.iter().find(|(version, _)| newest >= *version);
                match release {
                    _ if reach.kafka.client == Client::Kafka && !conn.serves(FETCH, 0) => {
                        let told = "does not understand the kafka crate, which is for brokers up to 3.9";
                        report.problem(&format!("broker {address}"), told, "leave out --client kafka")?;
                    }
                    Some((_, release)) => {
                        let who = reach.kafka.settings.principal();
                        let told = format!("answers {who}; Kafka {release} or newer (serves Fetch up to {newest})");
                        report.ok(&format!("broker {address}"), &told)?;
                    }
                    None => {
                        let fix = "use a broker from 0.11 on, or start the worker with --client kafka";
                        report.problem(&format!("broker {address}"), "is older than Kafka 0.11", fix)?;
                    }
                }
            }
        }
    }
    Ok(any)
}

/// Asks each broker where the cluster says it is, if it was not asked there already: that is where records go.
pub fn advertised(reach: &Reach, view: &View, report: &mut Report) -> Result<()> {
    let before = report.problems;
    for (id, address) in view.brokers.iter().filter(|(_, address)| !reach.kafka.brokers.contains(address)) {
        if let Err(e) = reach.dialer.open(address, Instant::now() + reach.patience()) {
            let told = format!("the cluster says it is at {address}: {}", e.without(&format!("broker {address}")));
            let check = can_it_be_reached(address);
            let fix = format!("correct its advertised.listeners, or make that address known here ({check})");
            report.problem(&format!("broker {id}"), &told, &fix)?;
        }
    }
    if report.problems > before {
        return Ok(());
    }
    report.ok("cluster", &format!("{} broker(s); all that were not asked above answer, too", view.brokers.len()))
}

fn can_it_be_reached(address: &str) -> String {
    match address.rsplit_once(':') {
        Some((host, port)) => format!("nc -vz {} {port}", host.trim_matches(['[', ']'])),
        None => format!("nc -vz {address} 9092"),
    }
}
