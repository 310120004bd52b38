//! How to talk to the brokers: the properties of `--kafka-config` and `-X`, typed and checked.
//!
//! -X > file > default, each property for itself. Reads the properties file and what references in it name; looks into no
//! certificate, which is for the one who opens connections.

mod bag;
mod jaas;
mod keys;
mod properties;
mod secret;
mod security;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::lookup::{Checked, Env, Lookup};
use super::units;
use crate::broker::CLIENT_ID;
use crate::cli::Args;
use bag::Bag;
pub use secret::Secret;

/// Everything about the connections to the brokers, and what is asked over them.
#[derive(Clone, Debug)]
pub struct Settings {
    /// TLS; `None`: plaintext.
    pub tls: Option<Tls>,
    /// Authentication; `None`: none but the certificate of `tls`, if that has one.
    pub sasl: Option<Sasl>,
    /// How we call ourselves to a broker; it stands in its logs, metrics and quotas.
    pub client_id: String,
    /// How long a member of a group may be silent before it is taken for dead.
    pub session_timeout: Duration,
    /// How often a member says that it lives.
    pub heartbeat_interval: Duration,
    /// How long an answer may take.
    pub request_timeout: Duration,
    /// How long connecting to one address may take.
    pub connection_setup_timeout: Duration,
    /// Bytes of one fetch.
    pub fetch_max_bytes: i32,
    /// Bytes of one partition in one fetch.
    pub partition_fetch_bytes: i32,
    /// How long a fetch waits for records.
    pub fetch_max_wait: Duration,
    /// After this what is known of the cluster is asked again.
    pub metadata_max_age: Duration,
    /// A connection that was not used for so long is not used again.
    pub connections_max_idle: Duration,
    /// Which records are read.
    pub isolation: Isolation,
    /// How results are compressed.
    pub compression: Compression,
    /// What was given that is no secret, as `KEY=VALUE (from SOURCE)`, for the log.
    pub given: Vec<String>,
}

/// TLS.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Whom to believe; `None`: the system's certificates.
    pub roots: Option<Pem>,
    /// Our own certificate.
    pub identity: Option<Identity>,
    /// How much of the broker's certificate is checked.
    pub verify: Verify,
    /// Whether TLS 1.2 and TLS 1.3 are spoken; at least one is.
    pub versions: (bool, bool),
}

/// Something in PEM.
#[derive(Clone, Debug)]
pub enum Pem {
    /// In a file; the property that names it.
    File(PathBuf, &'static str),
    /// Given itself; the property that holds it.
    Text(Secret, &'static str),
}

impl fmt::Display for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pem::File(path, key) => write!(f, "{key} {}", path.display()),
            Pem::Text(_, key) => f.write_str(key),
        }
    }
}

/// A certificate of our own and its key.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate, and those between it and its root.
    pub certificates: Pem,
    /// The private key.
    pub key: Pem,
    /// The password of the key.
    pub password: Option<Secret>,
}

/// How much of the broker's certificate is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// Who signed it, and that it is one of this host.
    Full,
    /// Who signed it.
    Chain,
    /// Nothing.
    Nothing,
}

/// Authentication.
#[derive(Clone, Debug)]
pub enum Sasl {
    /// User and password, sent as they are.
    Plain(Login),
    /// User and password, proven without being sent, with SHA-256.
    ScramSha256(Login),
    /// The same with SHA-512.
    ScramSha512(Login),
    /// A token.
    OAuthBearer(Token),
}

impl Sasl {
    /// The mechanism's name on the wire.
    pub fn mechanism(&self) -> &'static str {
        match self {
            Sasl::Plain(_) => "PLAIN",
            Sasl::ScramSha256(_) => "SCRAM-SHA-256",
            Sasl::ScramSha512(_) => "SCRAM-SHA-512",
            Sasl::OAuthBearer(_) => "OAUTHBEARER",
        }
    }

    /// Who is authenticated, for messages.
    pub fn principal(&self) -> String {
        match self {
            Sasl::Plain(login) | Sasl::ScramSha256(login) | Sasl::ScramSha512(login) => {
                format!("user {:?}", login.user)
            }
            Sasl::OAuthBearer(Token { source: TokenSource::File(path), .. }) => {
                format!("the token in {}", path.display())
            }
            Sasl::OAuthBearer(Token { source: TokenSource::Command(argv), .. }) => format!("the token of {}", argv[0]),
        }
    }
}

/// User and password.
#[derive(Clone, Debug)]
pub struct Login {
    /// User.
    pub user: String,
    /// Password.
    pub password: Secret,
}

/// Where OAUTHBEARER tokens come from.
#[derive(Clone, Debug)]
pub struct Token {
    /// Read anew for each authentication.
    pub source: TokenSource,
    /// What is sent beside it (KIP-342).
    pub extensions: Vec<(String, String)>,
}

/// What gives a token.
#[derive(Clone, Debug)]
pub enum TokenSource {
    /// A file that holds it.
    File(PathBuf),
    /// A program, with arguments, that prints it.
    Command(Vec<String>),
}

/// Which records are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// All.
    ReadUncommitted,
    /// Not those of open or aborted transactions.
    ReadCommitted,
}

/// How results are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Compression {
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

impl Settings {
    /// Whom the brokers take us for, as far as we know.
    pub fn principal(&self) -> String {
        match (&self.sasl, self.tls.as_ref().and_then(|tls| tls.identity.as_ref())) {
            (Some(sasl), _) => sasl.principal(),
            (None, Some(identity)) => format!("the certificate of {}", identity.certificates),
            (None, None) => "User:ANONYMOUS".into(),
        }
    }

    /// The name of our principal in ACLs, where it is ours to say: that of a certificate or token is the broker's.
    pub fn user(&self) -> Option<&str> {
        match (&self.sasl, &self.tls) {
            (Some(Sasl::Plain(login) | Sasl::ScramSha256(login) | Sasl::ScramSha512(login)), _) => Some(&login.user),
            (None, None) => Some("ANONYMOUS"),
            _ => None,
        }
    }

    /// The name of `security.protocol`.
    pub fn protocol(&self) -> &'static str {
        match (&self.tls, &self.sasl) {
            (None, None) => "PLAINTEXT",
            (Some(_), None) => "SSL",
            (None, Some(_)) => "SASL_PLAINTEXT",
            (Some(_), Some(_)) => "SASL_SSL",
        }
    }
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            tls: None,
            sasl: None,
            client_id: CLIENT_ID.into(),
            session_timeout: Duration::from_secs(30),
            heartbeat_interval: Duration::from_secs(3),
            request_timeout: Duration::from_secs(30),
            connection_setup_timeout: Duration::from_secs(10),
            fetch_max_bytes: 8 << 20, // a worker keeps no more than this, beside what runs
            partition_fetch_bytes: 1 << 20,
            fetch_max_wait: Duration::from_millis(500),
            metadata_max_age: Duration::from_secs(300),
            // Brokers close idle ones after ten minutes, and some load balancers forget them after four without a word.
            connections_max_idle: Duration::from_secs(180),
            isolation: Isolation::ReadCommitted,
            compression: Compression::None,
            given: Vec::new(),
        }
    }
}

/// The settings, and the instance id if a property gives one (the option `--instance-id` goes before).
pub(super) fn settings(look: &mut Lookup, args: &Args, env: &Env) -> Checked<(Settings, Option<String>)> {
    let file = look.value("kafka-config", units::or_none(|name| Ok(name.to_string())));
    let before = look.mistakes.len();
    let place = look.sources.get("kafka-config").cloned();
    let mut bag = Bag::new(env);
    if let Some((Some(name), place)) = file.as_ref().map(|file| (file.as_ref(), place)) {
        bag.add_file(name, &place.expect("it is no default"));
    }
    bag.add_typed(&args.properties);
    let built = build(&mut bag);
    look.mistakes.append(&mut bag.mistakes);
    look.remarks.append(&mut bag.remarks);
    file?;
    built.filter(|_| look.mistakes.len() == before)
}

fn build(bag: &mut Bag) -> Checked<(Settings, Option<String>)> {
    let default = Settings::default();
    let security = security::build(bag);
    let session_timeout = bag.value("session.timeout.ms", default.session_timeout, millis::<1>);
    let beat = session_timeout.unwrap_or(default.session_timeout) / 10;
    let beat = beat.clamp(Duration::from_millis(100), Duration::from_secs(3));
    let heartbeat_interval = bag.value("heartbeat.interval.ms", beat, millis::<1>);
    if let (Some(session), Some(beat)) = (session_timeout, heartbeat_interval)
        && beat * 2 > session
    {
        let key = if bag.has("heartbeat.interval.ms") { "heartbeat.interval.ms" } else { "session.timeout.ms" };
        bag.mistake(
            key,
            "leaves no time for a second heartbeat; give heartbeat.interval.ms at most a third of session.timeout.ms",
        );
    }
    let client_id = bag.value("client.id", default.client_id, |text| units::name(text, "is no name"));
    let instance_id = bag.value("group.instance.id", None, |text| units::instance_id(text).map(Some));
    let request_timeout = bag.value("request.timeout.ms", default.request_timeout, millis::<1>);
    let setup = bag.value("socket.connection.setup.timeout.ms", default.connection_setup_timeout, millis::<1>);
    let fetch_max_bytes = bag.value("fetch.max.bytes", default.fetch_max_bytes, bytes);
    let partition_fetch_bytes = bag.value("max.partition.fetch.bytes", default.partition_fetch_bytes, bytes);
    let fetch_max_wait = bag.value("fetch.max.wait.ms", default.fetch_max_wait, millis::<1>);
    let metadata_max_age = bag.value("metadata.max.age.ms", default.metadata_max_age, millis::<1>);
    let connections_max_idle = bag.value("connections.max.idle.ms", default.connections_max_idle, millis::<1>);
    let isolation = bag.value("isolation.level", default.isolation, |text| units::word(text, ISOLATION));
    let compression = bag.value("compression.type", default.compression, |text| units::word(text, COMPRESSION));
    let (tls, sasl) = security?;
    let settings = Settings {
        tls,
        sasl,
        client_id: client_id?,
        session_timeout: session_timeout?,
        heartbeat_interval: heartbeat_interval?,
        request_timeout: request_timeout?,
        connection_setup_timeout: setup?,
        fetch_max_bytes: fetch_max_bytes?,
        partition_fetch_bytes: partition_fetch_bytes?,
        fetch_max_wait: fetch_max_wait?,
        metadata_max_age: metadata_max_age?,
        connections_max_idle: connections_max_idle?,
        isolation: isolation?,
        compression: compression?,
        given: bag.shown(),
    };
    Some((settings, instance_id?))
}

const ISOLATION: &[(&str, Isolation)] =
    &[("read_committed", Isolation::ReadCommitted), ("read_uncommitted", Isolation::ReadUncommitted)];
const COMPRESSION: &[(&str, Compression)] = &[
    ("none", Compression::None),
    ("gzip", Compression::Gzip),
    ("snappy", Compression::Snappy),
    ("lz4", Compression::Lz4),
    ("zstd", Compression::Zstd),
];

/// Milliseconds from `LEAST` on.
fn millis<const LEAST: u64>(text: &str) -> units::Parsed<Duration> {
    const MOST: u64 = 7 * 24 * 60 * 60 * 1000;
    units::whole(text, LEAST..=MOST, "milliseconds").map(Duration::from_millis)
}

/// Bytes of an answer.
fn bytes(text: &str) -> units::Parsed<i32> {
    const MOST: i32 = 500 << 20; // what a connection believes, with room for the rest of the answer
    units::whole(text, 1024..=MOST, "bytes")
}

#[cfg(test)]
mod tests;
