//! Properties, rule by rule: what goes before what, what is refused, and that secrets stay secret.

use std::fs;
use std::num::NonZeroUsize;

use super::*;
use crate::cli::{self, Parsed};
use crate::config::{Config, Mistakes, Origin};

fn load(words: &[&str], variables: &[(&str, &str)]) -> Result<Config, Mistakes> {
    let words = ["--brokers", "b"].iter().chain(words).map(Into::into);
    let Parsed::Run(args) = cli::parse(words) else { panic!("not understood") };
    Config::load(&args, &Env::new(variables.iter().copied(), NonZeroUsize::MIN))
}

fn settings(words: &[&str], variables: &[(&str, &str)]) -> Settings {
    match load(words, variables).unwrap_or_else(|mistakes| panic!("{mistakes}")).origin {
        Origin::Kafka(kafka) => kafka.settings,
        other => panic!("{other:?}"),
    }
}

fn refused(words: &[&str]) -> String {
    load(words, &[]).expect_err("a mistake").to_string()
}

/// A properties file of this text, and its path.
fn file(text: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("client.properties");
    fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (dir, path)
}

#[test]
fn without_properties_there_is_no_security() {
    let settings = settings(&[], &[]);
    assert_eq!((settings.protocol(), settings.principal().as_str()), ("PLAINTEXT", "User:ANONYMOUS"));
    assert_eq!(settings.session_timeout, Duration::from_secs(30));
    assert_eq!(settings.isolation, Isolation::ReadCommitted);
}

#[test]
fn what_is_typed_goes_before_the_file_and_the_file_before_the_default() {
    let (_dir, path) = file("session.timeout.ms=20000\nfetch.max.bytes=2048\n");
    let settings = settings(&["--kafka-config", &path, "-X", "session.timeout.ms=10000"], &[]);
    assert_eq!(settings.session_timeout, Duration::from_secs(10));
    assert_eq!(settings.heartbeat_interval, Duration::from_secs(1));
    assert_eq!(settings.fetch_max_bytes, 2048);
    assert_eq!(settings.partition_fetch_bytes, 1 << 20);
}

#[test]
fn a_login_is_taken_by_either_spelling() {
    let jaas = "org.apache.kafka.common.security.scram.ScramLoginModule required username=\"u\" password=\"p\";";
    for text in [
        "sasl.mechanism=SCRAM-SHA-256\nsasl.username=u\nsasl.password=p\n".to_owned(),
        "sasl.mechanisms=SCRAM-SHA-256\nsasl.username=u\nsasl.password=${env:SECRET}\n".to_owned(),
        format!("sasl.mechanism=SCRAM-SHA-256\nsasl.jaas.config={jaas}\n"),
    ] {
        let (_dir, path) = file(&format!("security.protocol=SASL_SSL\n{text}"));
        let settings = settings(&["--kafka-config", &path], &[("SECRET", "p")]);
        let Some(Sasl::ScramSha256(login)) = &settings.sasl else { panic!("{:?}", settings.sasl) };
        assert_eq!((login.user.as_str(), login.password.reveal()), ("u", "p"));
        assert!(settings.tls.is_some());
        assert_eq!(settings.principal(), "user \"u\"");
    }
}

#[test]
fn a_secret_is_never_shown_and_never_typed() {
    let (_dir, path) =
        file("security.protocol=SASL_SSL\nsasl.mechanism=PLAIN\nsasl.username=u\nsasl.password=hunter2\n");
    let config = load(&["--kafka-config", &path], &[]).unwrap();
    assert!(
        !format!("{config:?}").contains("hunter2") && !config.summary().contains("hunter2"),
        "{}",
        config.summary()
    );
    let typed = ["-X", "security.protocol=SASL_SSL", "-X", "sasl.mechanism=PLAIN", "-X", "sasl.username=u"];
    let told = refused(&[&typed[..], &["-X", "sasl.password=hunter2"]].concat());
    assert!(told.contains("a secret is never an argument") && !told.contains("hunter2"), "{told}");
    let by_reference = settings(&[&typed[..], &["-X", "sasl.password=${env:S}"]].concat(), &[("S", "hunter2")]);
    assert!(matches!(by_reference.sasl, Some(Sasl::Plain(login)) if login.password.reveal() == "hunter2"));
}

#[test]
fn mistakes_are_told_together_with_their_place_and_what_was_meant() {
    let (_dir, path) = file("# a comment\nsession.timout.ms=1\nsecurity.protocol=SLL\n");
    let told = refused(&["--kafka-config", &path, "-X", "isolation.level=none", "--threads", "0"]);
    for part in [
        "client.properties:2",
        "session.timeout.ms",
        "client.properties:3",
        "SSL",
        "isolation.level",
        "read_committed",
        "--threads",
    ] {
        assert!(told.contains(part), "{part} in\n{told}");
    }
}

#[test]
fn what_the_kafka_crate_cannot_do_is_refused() {
    let told = refused(&["--client", "kafka", "-X", "security.protocol=SSL"]);
    assert!(told.contains("speaks plaintext only"), "{told}");
    assert!(refused(&["--kafka-config", "/absent/file"]).contains("/absent/file"));
}
