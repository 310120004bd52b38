//! TLS, client certificates and every SASL mechanism against a real broker; and each way to be refused, told as what it is.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::json;
use support::broker::{Broker, tool};
use support::topics::{Topics, record};
use support::worker::Worker;

/// A broker with a listener for each kind of security, and the certificates to talk to it.
struct Secure {
    broker: Broker,
    dir: PathBuf,
    ssl: String,
    mtls: String,
    sasl: String,
    sasl_ssl: String,
}

/// A CA that signs certificates.
struct Ca(Issuer<'static, KeyPair>, String);

impl Ca {
    fn new(name: &str) -> Ca {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let pem = params.self_signed(&key).unwrap().pem();
        Ca(Issuer::new(params, key), pem)
    }

    /// A certificate for `name`, and its key.
    fn sign(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }
}

fn secure() -> &'static Secure {
    static SECURE: OnceLock<Secure> = OnceLock::new();
    SECURE.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("secure-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let ca = Ca::new("a CA");
        fs::write(dir.join("ca.pem"), &ca.1).unwrap();
        fs::write(dir.join("other-ca.pem"), Ca::new("another CA").1).unwrap();
        let (certificate, key) = ca.sign("localhost");
        fs::write(dir.join("broker.pem"), format!("{key}{certificate}")).unwrap();
        let (certificate, key) = ca.sign("worker-7");
        fs::write(dir.join("client.pem"), certificate).unwrap();
        fs::write(dir.join("client.key"), key).unwrap();
        let broker = Broker::start();
        for (mechanism, user) in [("SCRAM-SHA-256", "sha256"), ("SCRAM-SHA-512", "sha512")] {
            let password = format!("{mechanism}=[password={user}-secret]");
            let add = ["--alter", "--add-config", &password, "--entity-type", "users", "--entity-name", user];
            tool(&[&["kafka.admin.ConfigCommand", "--bootstrap-server", broker.address()], &add[..]].concat());
        }
        let listeners = [("SECURE", "SSL"), ("MUTUAL", "SSL"), ("LOGIN", "SASL_PLAINTEXT"), ("BOTH", "SASL_SSL")];
        let path = |name: &str| dir.join(name).display().to_string();
        let module = "org.apache.kafka.common.security";
        let mut settings = format!(
            "ssl.keystore.type=PEM\nssl.keystore.location={}\nssl.truststore.type=PEM\nssl.truststore.location={}\n\
             listener.name.mutual.ssl.client.auth=required\n\
             sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER\n",
            path("broker.pem"),
            path("ca.pem")
        );
        for listener in ["login", "both"] {
            settings.push_str(&format!(
                "listener.name.{listener}.plain.sasl.jaas.config={module}.plain.PlainLoginModule required user_alice=\"alice-secret\";\n\
                 listener.name.{listener}.scram-sha-256.sasl.jaas.config={module}.scram.ScramLoginModule required;\n\
                 listener.name.{listener}.scram-sha-512.sasl.jaas.config={module}.scram.ScramLoginModule required;\n\
                 listener.name.{listener}.oauthbearer.sasl.jaas.config={module}.oauthbearer.OAuthBearerLoginModule required \
                 unsecuredLoginStringClaim_sub=\"broker\";\n"
            ));
        }
        settings.push_str("listener.name.both.connections.max.reauth.ms=3000\n");
        let [ssl, mtls, sasl, sasl_ssl] = <[String; 4]>::try_from(broker.add_listeners(&listeners, &settings)).unwrap();
        Secure { broker, dir, ssl, mtls, sasl, sasl_ssl }
    })
}

impl Secure {
    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// A token that the broker's unsecured validator takes.
    fn token_file(&self) -> String {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let claims = json!({"sub": "worker", "iat": now, "exp": now + 3600}).to_string();
        let file = self.dir.join("token");
        fs::write(&file, format!("{}.{}.\n", base64url(br#"{"alg":"none"}"#), base64url(claims.as_bytes()))).unwrap();
        file.display().to_string()
    }

    /// A worker at `address` with these properties in a file.
    fn worker(&self, topics: &Topics, address: &str, properties: &str, args: &[&str]) -> Worker {
        let file = self.dir.join(format!("{}.properties", topics.commands));
        fs::write(&file, properties).unwrap();
        let more = ["--kafka-config", file.to_str().unwrap(), "--threads", "2"];
        Worker::on(address, &topics.commands, &topics.results, &[&more, args].concat())
    }

    /// With these properties the main job is done.
    fn works(&self, address: &str, properties: &str) {
        let topics = Topics::new(&self.broker, 2);
        topics.spread(2, &[record("a", json!(["true"])), record("b", json!(["false"]))]);
        let mut worker = self.worker(&topics, address, properties, &[]);
        topics.wait_for_results(&worker, 2);
        worker.signal("TERM");
        worker.expect_exit(0);
        assert_eq!(topics.committed(), 2, "{}", worker.log());
        assert!(!worker.log().contains("-secret"), "a password in the log: {}", worker.log());
    }

    /// With these properties it ends with `code`, and says these words.
    fn fails(&self, address: &str, properties: &str, code: i32, words: &[&str]) {
        let topics = Topics::new(&self.broker, 1);
        let mut worker = self.worker(&topics, address, properties, &["--connect-timeout", "2s"]);
        worker.expect_exit(code);
        let log = worker.log();
        assert!(words.iter().all(|word| log.contains(word)), "{words:?} in\n{log}");
        assert!(!log.contains("-secret") && !log.contains("panicked"), "{log}");
    }
}

fn base64url(bytes: &[u8]) -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0u32, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
        (0..=chunk.len()).for_each(|index| text.push(LETTERS[(bits >> (18 - 6 * index) & 63) as usize].into()));
    }
    text
}

fn login(mechanism: &str, user: &str, password: &str) -> String {
    format!("sasl.mechanism={mechanism}\nsasl.username={user}\nsasl.password={password}\n")
}

#[test]
fn tls_with_a_ca_of_ones_own() {
    let secure = secure();
    secure.works(&secure.ssl, &format!("security.protocol=SSL\nssl.ca.location={}\n", secure.path("ca.pem")));
}

#[test]
fn tls_with_a_client_certificate() {
    let secure = secure();
    let (ca, cert, key) = (secure.path("ca.pem"), secure.path("client.pem"), secure.path("client.key"));
    let trust = format!("security.protocol=SSL\nssl.ca.location={ca}\n");
    secure.works(&secure.mtls, &format!("{trust}ssl.certificate.location={cert}\nssl.key.location={key}\n"));
    secure.fails(&secure.mtls, &trust, 77, &["the broker refuses us", "client certificate"]);
}

#[test]
fn every_mechanism_over_plaintext_and_over_tls() {
    let secure = secure();
    let token = format!("sasl.mechanism=OAUTHBEARER\nairkafka.token.file={}\n", secure.token_file());
    let jaas = "sasl.mechanism=PLAIN\nsasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
                username=\"alice\" password=\"alice-secret\";\n";
    for properties in [
        &login("PLAIN", "alice", "alice-secret"),
        jaas,
        &login("SCRAM-SHA-256", "sha256", "sha256-secret"),
        &login("SCRAM-SHA-512", "sha512", "sha512-secret"),
        &token,
    ] {
        secure.works(&secure.sasl, &format!("security.protocol=SASL_PLAINTEXT\n{properties}"));
    }
    let tls = format!("security.protocol=SASL_SSL\nssl.ca.location={}\n", secure.path("ca.pem"));
    secure.works(&secure.sasl_ssl, &format!("{tls}{}", login("SCRAM-SHA-512", "sha512", "sha512-secret")));
}

#[test]
fn who_is_refused_is_told_with_77_and_by_name() {
    let secure = secure();
    let plaintext = "security.protocol=SASL_PLAINTEXT\n";
    let with = |properties: String| format!("{plaintext}{properties}");
    secure.fails(
        &secure.sasl,
        &with(login("PLAIN", "alice", "bad-secret")),
        77,
        &["user \"alice\"", "by PLAIN failed"],
    );
    secure.fails(
        &secure.sasl,
        &with(login("SCRAM-SHA-256", "sha256", "bad-secret")),
        77,
        &["user \"sha256\"", "by SCRAM-SHA-256 failed"],
    );
    secure.fails(&secure.sasl, &with(login("SCRAM-SHA-512", "nobody", "bad-secret")), 77, &["user \"nobody\""]);
    let file = secure.dir.join("bad-token");
    fs::write(&file, "not.a.token").unwrap();
    let token = format!("sasl.mechanism=OAUTHBEARER\nairkafka.token.file={}\n", file.display());
    secure.fails(&secure.sasl, &with(token), 77, &["by OAUTHBEARER failed"]);
}

#[test]
fn a_certificate_that_does_not_hold_is_told_as_what_it_is() {
    let secure = secure();
    let trust = |file: &str| format!("security.protocol=SSL\nssl.ca.location={}\n", secure.path(file));
    secure.fails(&secure.ssl, &trust("other-ca.pem"), 77, &["signed by nobody we believe", "ssl.ca.location"]);
    let by_number = secure.ssl.replace("localhost", "127.0.0.1");
    secure.fails(&by_number, &trust("ca.pem"), 77, &["for another host name"]);
    let lax = format!("{}ssl.endpoint.identification.algorithm=\n", trust("ca.pem"));
    secure.works(&by_number, &lax);
    secure.fails(&secure.ssl, &trust("absent.pem"), 78, &["absent.pem", "no such file"]);
    secure.fails(&secure.ssl, &trust("client.key"), 78, &["client.key", "holds no certificate"]);
}

#[test]
fn the_wrong_kind_of_port_is_told_as_what_it_is() {
    let secure = secure();
    let tls = format!("security.protocol=SSL\nssl.ca.location={}\n", secure.path("ca.pem"));
    secure.fails(secure.broker.address(), &tls, 69, &["TLS"]);
    secure.fails(&secure.ssl, "", 69, &["TLS"]);
    secure.fails(&secure.sasl, "", 69, &["closed the connection"]);
    secure.fails(
        secure.broker.address(),
        &format!("security.protocol=SASL_PLAINTEXT\n{}", login("PLAIN", "alice", "alice-secret")),
        77,
        &["SASL"],
    );
}

#[test]
fn a_session_that_runs_out_is_replaced_in_time() {
    let secure = secure();
    let topics = Topics::new(&secure.broker, 1);
    let properties = format!(
        "security.protocol=SASL_SSL\nssl.ca.location={}\n{}",
        secure.path("ca.pem"),
        login("SCRAM-SHA-256", "sha256", "sha256-secret")
    );
    let mut worker = secure.worker(&topics, &secure.sasl_ssl, &properties, &[]);
    for round in 0..4 {
        topics.spread(1, &[record(&round.to_string(), json!(["true"]))]);
        topics.wait_for_results(&worker, round + 1);
        thread::sleep(Duration::from_secs(2)); // sessions last three
    }
    worker.signal("TERM");
    worker.expect_exit(0);
    assert!(!worker.log().contains("fails"), "{}", worker.log());
    assert_eq!(topics.committed(), 4);
}

#[test]
fn what_is_not_authorised_is_told_with_operation_resource_and_principal() {
    let broker = Broker::start();
    let settings = "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
                    super.users=User:ANONYMOUS\nsasl.enabled.mechanisms=PLAIN\n\
                    listener.name.login.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule \
                    required user_alice=\"alice-secret\";\n";
    let addresses = broker.add_listeners(&[("LOGIN", "SASL_PLAINTEXT")], settings);
    let topics = Topics::new(&broker, 1);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("client.properties");
    fs::write(&file, format!("security.protocol=SASL_PLAINTEXT\n{}", login("PLAIN", "alice", "alice-secret"))).unwrap();
    // It moved between the two versions that the tests use.
    let version = std::env::var("AIRKAFKA_TEST_KAFKA_VERSION").unwrap_or_default();
    let is_new = version.starts_with("4.");
    let acl_command = if is_new { "org.apache.kafka.tools.AclCommand" } else { "kafka.admin.AclCommand" };
    let grant = |operation: &str, resource: &[&str]| {
        let acl = ["--add", "--allow-principal", "User:alice", "--operation", operation];
        let class = [acl_command, "--bootstrap-server", broker.address()];
        tool(&[&class, &acl[..], resource].concat());
    };
    // Each right that is missing ends the worker and is named, until it has them all.
    for (operation, kind, name) in
        [("Read", "topic", &topics.commands), ("Write", "topic", &topics.results), ("Read", "group", &topics.group)]
    {
        topics.spread(1, &[record(name, json!(["true"]))]);
        let more = ["--kafka-config", file.to_str().unwrap(), "--connect-timeout", "5s"];
        let mut worker = Worker::on(&addresses[0], &topics.commands, &topics.results, &more);
        worker.expect_exit(77);
        let refused = format!("{kind} {name}: operation {operation} is not authorised (as user \"alice\")");
        assert!(worker.log().contains(&refused), "{refused} in\n{}", worker.log());
        grant(operation, &[&format!("--{kind}"), name]);
    }
    let more = ["--kafka-config", file.to_str().unwrap()];
    let mut worker = Worker::on(&addresses[0], &topics.commands, &topics.results, &more);
    topics.wait_for_results(&worker, 3);
    worker.signal("TERM");
    worker.expect_exit(0);
}

#[test]
fn kafka_0_11_with_everything_it_has() {
    // The mechanisms' messages go bare there, not in SaslAuthenticate; who is refused is cut off without a word. Its stores
    // of keys are Java's own, its users stand in ZooKeeper.
    let broker = Broker::start_version("0.11.0.3", &[]);
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let ca = Ca::new("a CA");
    let (certificate, key) = ca.sign("worker-7");
    for (name, text) in [("ca.pem", &ca.1), ("client.pem", &certificate), ("client.key", &key)] {
        fs::write(path(name), text).unwrap();
    }
    let keytool = |args: &[&str]| {
        let store = ["-storetype", "JKS", "-storepass", "changeit", "-noprompt"];
        let output = Command::new("keytool").args(args).args(store).output().expect("keytool, which is part of Java");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
    };
    let own = ["-alias", "broker", "-keystore", &path("broker.jks")];
    let pair = ["-genkeypair", "-keyalg", "RSA", "-dname", "CN=localhost", "-ext", "SAN=dns:localhost"];
    keytool(&[&pair[..], &own, &["-keypass", "changeit"]].concat());
    keytool(&[&["-exportcert", "-rfc", "-file", &path("broker.pem")][..], &own].concat());
    keytool(&["-importcert", "-alias", "ca", "-file", &path("ca.pem"), "-keystore", &path("trust.jks")]);
    for (mechanism, user) in [("SCRAM-SHA-256", "sha256"), ("SCRAM-SHA-512", "sha512")] {
        let password = format!("{mechanism}=[password={user}-secret]");
        let add = ["--alter", "--add-config", &password, "--entity-type", "users", "--entity-name", user];
        broker.old_tool(&[&["kafka.admin.ConfigCommand", "--zookeeper", &broker.zookeeper()], &add[..]].concat());
    }
    let module = "org.apache.kafka.common.security";
    let jaas = format!(
        "KafkaServer {{ {module}.plain.PlainLoginModule required user_alice=\"alice-secret\"; \
         {module}.scram.ScramLoginModule required; }};\n"
    );
    broker.write_file("jaas.conf", &jaas);
    let settings = format!(
        "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512\nssl.client.auth=required\n\
         ssl.keystore.location={}\nssl.keystore.password=changeit\nssl.key.password=changeit\n\
         ssl.truststore.location={}\nssl.truststore.password=changeit\n",
        path("broker.jks"),
        path("trust.jks")
    );
    let addresses = broker.add_listeners(&[("LOGIN", "SASL_PLAINTEXT"), ("SECURE", "SSL")], &settings);
    let plaintext = |mechanism: &str, user: &str, password: &str| {
        format!("security.protocol=SASL_PLAINTEXT\n{}", login(mechanism, user, password))
    };
    let tls = format!(
        "security.protocol=SSL\nssl.ca.location={}\nssl.certificate.location={}\nssl.key.location={}\n",
        path("broker.pem"),
        path("client.pem"),
        path("client.key")
    );
    for (address, properties) in [
        (&addresses[0], plaintext("PLAIN", "alice", "alice-secret")),
        (&addresses[0], plaintext("SCRAM-SHA-256", "sha256", "sha256-secret")),
        (&addresses[0], plaintext("SCRAM-SHA-512", "sha512", "sha512-secret")),
        (&addresses[1], tls),
    ] {
        let topics = Topics::new(&broker, 1);
        topics.spread(1, &[record("a", json!(["true"]))]);
        fs::write(path("good"), properties).unwrap();
        let mut worker = Worker::on(address, &topics.commands, &topics.results, &["--kafka-config", &path("good")]);
        topics.wait_for_results(&worker, 1);
        worker.signal("TERM");
        worker.expect_exit(0);
    }
    let topics = Topics::new(&broker, 1);
    fs::write(path("bad"), plaintext("PLAIN", "alice", "bad-secret")).unwrap();
    let mut worker = Worker::on(&addresses[0], &topics.commands, &topics.results, &["--kafka-config", &path("bad")]);
    worker.expect_exit(77);
    assert!(worker.log().contains("authentication of user \"alice\" by PLAIN failed"), "{}", worker.log());
}
