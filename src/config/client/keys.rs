//! The properties that are known: which are taken, which are said elsewhere, which have no effect, which cannot be done.
//!
//! A table and the look-up in it; knows no values.

use crate::cli::words::near_miss;

/// What becomes of a property.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is a setting.
    Taken,
    /// It is a setting that holds a secret.
    Secret,
    /// Another name of this setting.
    Alias(&'static str),
    /// This option says it.
    Option(&'static str),
    /// It does no harm and has no effect; the text says why.
    Idle(&'static str),
    /// What it asks for cannot be done; the text says what to do.
    Refused(&'static str),
}
use Fate::{Alias, Idle, Option as ByOption, Refused, Secret, Taken};

const COMMITS: Fate = Idle("the worker commits what is settled, by itself");
const READING: Fate = Idle("the worker reads as its threads get idle");
const WRITING: Fate = Idle("the worker writes each result until all in-sync replicas have it");
const TYPES: Fate = Idle("the worker reads and writes bytes");
const FIXED: Fate = Idle("it is not adjustable here");
const TOKEN: Fate = Refused(
    "tokens are not fetched here; give airkafka.token.command a program that prints one, or airkafka.token.file",
);
const KERBEROS: Fate =
    Refused("Kerberos (GSSAPI) is not spoken here; use SCRAM-SHA-512, OAUTHBEARER, or TLS with a client certificate");
const JAVA: Fate = Refused("it names a Java class; leave it out");
const STORE_PASSWORD: Fate =
    Refused("a PEM store has no password; leave it out (the password of a PEM key is ssl.key.password)");

/// Every known property.
const KEYS: &[(&str, Fate)] = &[
    ("security.protocol", Taken),
    ("ssl.ca.location", Taken),
    ("ssl.truststore.type", Taken),
    ("ssl.truststore.location", Taken),
    ("ssl.truststore.certificates", Taken),
    ("ssl.ca.pem", Alias("ssl.truststore.certificates")),
    ("ssl.certificate.location", Taken),
    ("ssl.key.location", Taken),
    ("ssl.key.password", Secret),
    ("ssl.keystore.type", Taken),
    ("ssl.keystore.location", Taken),
    ("ssl.keystore.certificate.chain", Taken),
    ("ssl.certificate.pem", Alias("ssl.keystore.certificate.chain")),
    ("ssl.keystore.key", Secret),
    ("ssl.key.pem", Alias("ssl.keystore.key")),
    ("ssl.endpoint.identification.algorithm", Taken),
    ("enable.ssl.certificate.verification", Taken),
    ("ssl.enabled.protocols", Taken),
    ("sasl.mechanism", Taken),
    ("sasl.mechanisms", Alias("sasl.mechanism")),
    ("sasl.username", Taken),
    ("sasl.password", Secret),
    ("sasl.jaas.config", Secret),
    ("sasl.oauthbearer.extensions", Taken),
    ("airkafka.token.file", Taken),
    ("airkafka.token.command", Taken),
    ("client.id", Taken),
    ("group.instance.id", Taken),
    ("session.timeout.ms", Taken),
    ("heartbeat.interval.ms", Taken),
    ("request.timeout.ms", Taken),
    ("socket.timeout.ms", Alias("request.timeout.ms")),
    ("socket.connection.setup.timeout.ms", Taken),
    ("fetch.max.bytes", Taken),
    ("max.partition.fetch.bytes", Taken),
    ("fetch.message.max.bytes", Alias("max.partition.fetch.bytes")),
    ("fetch.max.wait.ms", Taken),
    ("fetch.wait.max.ms", Alias("fetch.max.wait.ms")),
    ("metadata.max.age.ms", Taken),
    ("connections.max.idle.ms", Taken),
    ("isolation.level", Taken),
    ("compression.type", Taken),
    ("compression.codec", Alias("compression.type")),
    ("bootstrap.servers", ByOption("--brokers")),
    ("metadata.broker.list", ByOption("--brokers")),
    ("group.id", ByOption("--group")),
    ("auto.offset.reset", ByOption("--from")),
    ("enable.auto.commit", COMMITS),
    ("auto.commit.interval.ms", COMMITS),
    ("enable.auto.offset.store", COMMITS),
    ("max.poll.interval.ms", Idle("a command may take as long as --timeout says")),
    ("max.poll.records", READING),
    ("fetch.min.bytes", READING),
    ("queued.min.messages", READING),
    ("partition.assignment.strategy", FIXED),
    ("group.protocol", FIXED),
    ("key.deserializer", TYPES),
    ("value.deserializer", TYPES),
    ("key.serializer", TYPES),
    ("value.serializer", TYPES),
    ("acks", WRITING),
    ("request.required.acks", WRITING),
    ("retries", WRITING),
    ("linger.ms", WRITING),
    ("batch.size", WRITING),
    ("delivery.timeout.ms", WRITING),
    ("enable.idempotence", WRITING),
    ("max.in.flight.requests.per.connection", WRITING),
    ("buffer.memory", WRITING),
    ("max.block.ms", WRITING),
    ("max.request.size", WRITING),
    ("reconnect.backoff.ms", FIXED),
    ("reconnect.backoff.max.ms", FIXED),
    ("retry.backoff.ms", FIXED),
    ("retry.backoff.max.ms", FIXED),
    ("default.api.timeout.ms", FIXED),
    ("receive.buffer.bytes", FIXED),
    ("send.buffer.bytes", FIXED),
    ("check.crcs", FIXED),
    ("allow.auto.create.topics", FIXED),
    ("client.dns.lookup", Idle("every address of a name is tried")),
    ("client.rack", FIXED),
    ("exclude.internal.topics", FIXED),
    ("socket.connection.setup.timeout.max.ms", FIXED),
    ("socket.keepalive.enable", Idle("it is always on")),
    ("socket.nagle.disable", Idle("it is always so")),
    ("sasl.oauthbearer.method", TOKEN),
    ("sasl.oauthbearer.config", TOKEN),
    ("sasl.oauthbearer.client.id", TOKEN),
    ("sasl.oauthbearer.client.secret", TOKEN),
    ("sasl.oauthbearer.scope", TOKEN),
    ("sasl.oauthbearer.token.endpoint.url", TOKEN),
    ("sasl.login.callback.handler.class", TOKEN),
    ("sasl.client.callback.handler.class", JAVA),
    ("sasl.login.class", JAVA),
    ("sasl.kerberos.service.name", KERBEROS),
    ("sasl.kerberos.principal", KERBEROS),
    ("sasl.kerberos.keytab", KERBEROS),
    ("sasl.kerberos.kinit.cmd", KERBEROS),
    ("sasl.login.refresh.window.factor", Idle("a token is read again whenever one is needed")),
    ("sasl.login.refresh.window.jitter", Idle("a token is read again whenever one is needed")),
    ("sasl.login.refresh.min.period.seconds", Idle("a token is read again whenever one is needed")),
    ("sasl.login.refresh.buffer.seconds", Idle("a token is read again whenever one is needed")),
    ("ssl.protocol", Idle("TLS 1.3 and 1.2 are spoken; ssl.enabled.protocols can leave one of them out")),
    ("ssl.truststore.password", STORE_PASSWORD),
    ("ssl.keystore.password", STORE_PASSWORD),
    ("ssl.cipher.suites", Refused("the cipher suites cannot be chosen, all are safe ones; leave it out")),
    ("ssl.crl.location", Refused("revocation lists are not read; leave it out")),
    ("ssl.provider", JAVA),
    ("ssl.engine.factory.class", JAVA),
    ("interceptor.classes", JAVA),
    ("metric.reporters", JAVA),
];

/// The key as the table has it, and what becomes of it; an error says what was probably meant.
pub(super) fn find(key: &str) -> Result<(&'static str, Fate), String> {
    let row = |name: &str| KEYS.iter().find(|(known, _)| *known == name).copied();
    match row(key) {
        Some((_, Alias(of))) => Ok(row(of).expect("an alias is one of something in the table")),
        Some(found) => Ok(found),
        None => Err(match near_miss(key, KEYS.iter().map(|(known, _)| *known)) {
            Some(meant) => format!("is not a known property; did you mean {meant}?"),
            None => "is not a known property; leave it out, or see --help for those that are".into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn keys_are_unique_and_aliases_lead_to_settings() {
        let mut seen = HashSet::new();
        for (key, fate) in KEYS {
            assert!(seen.insert(key), "{key}");
            if let Alias(of) = fate {
                assert!(matches!(find(key), Ok((name, Taken | Secret)) if name == *of), "{key}");
            }
        }
    }

    #[test]
    fn what_was_meant_is_named() {
        for (key, meant) in [
            ("sasl.mechansim", "did you mean sasl.mechanism?"),
            ("ssl.ca.locations", "did you mean ssl.ca.location?"),
            ("session.timeout", "did you mean session.timeout.ms?"),
            ("SASL.PASSWORD", "did you mean sasl.password?"),
            ("frobnicate", "see --help"),
        ] {
            let error = find(key).unwrap_err();
            assert!(error.ends_with(meant) || error.contains(meant), "{key}: {error}");
        }
    }
}
