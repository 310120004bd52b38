//! Real Kafka brokers for tests, and clusters of them: starts, kills and restarts them through `fixtures/broker/kafka.sh`.
//!
//! Each has its own directory under the target directory and its own ports on loopback. It ends with the test process,
//! even when that is killed with -9: the script watches us.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

use super::client::Client;

/// One broker, and its directory; both are gone when it is dropped.
pub struct Broker {
    dir: PathBuf,
    version: String,
    address: String,
}

/// Nodes that form one cluster, on loopback; numbered from 1 on. Internal topics have three replicas, of which two have to
/// be in sync. Gone when it is dropped.
pub struct Cluster {
    dir: PathBuf,
    version: String,
    addresses: Vec<String>,
}

impl Broker {
    /// Starts a broker of our own. A broker that cannot be had fails the test with a line that says how to get one.
    pub fn start() -> Broker {
        Self::start_with(&[])
    }

    /// Like [`start`](Self::start), with broker settings such as `"message.max.bytes=2000000"` beside those of the script.
    pub fn start_with(settings: &[&str]) -> Broker {
        Self::start_version(&Self::version(), settings)
    }

    /// Like [`start_with`](Self::start_with), of a version of Kafka.
    pub fn start_version(version: &str, settings: &[&str]) -> Broker {
        let mut broker = Broker { dir: new_dir(), version: version.to_owned(), address: String::new() };
        broker.address = broker.launch(settings);
        broker
    }

    /// The broker that the tests of one binary share: use topics and groups with names of your own.
    pub fn shared() -> &'static Broker {
        static SHARED: OnceLock<Broker> = OnceLock::new();
        SHARED.get_or_init(Broker::start)
    }

    /// The version tested against: `AIRKAFKA_TEST_KAFKA_VERSION`, or 3.9.2.
    pub fn version() -> String {
        env::var("AIRKAFKA_TEST_KAFKA_VERSION").unwrap_or_else(|_| "3.9.2".into())
    }

    /// `127.0.0.1:PORT`; it stays the same over [`start_again`](Self::start_again).
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its log, for a test that fails.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("broker.log")).unwrap_or_default()
    }

    /// kill -9. Returns when it is gone.
    pub fn kill(&self) {
        script(&["stop", self.dir(), "--kill"]);
    }

    /// Ends it in good order. Returns when it is gone.
    pub fn stop(&self) {
        script(&["stop", self.dir()]);
    }

    /// Starts it again after [`kill`](Self::kill) or [`stop`](Self::stop): same port, same data. After a kill this takes
    /// some seconds, until the broker's old session has run out.
    pub fn start_again(&self) {
        let address = self.launch(&[]);
        assert_eq!(address, self.address, "the broker came back elsewhere");
    }

    /// Restarts it with more listeners beside its own, by name and security protocol, and with more settings. Returns the
    /// address of each, in order.
    pub fn add_listeners(&self, listeners: &[(&str, &str)], settings: &str) -> Vec<String> {
        self.stop();
        let file = self.dir.join("server.properties");
        let mut text = fs::read_to_string(&file).expect("the broker's settings");
        let mut addresses = Vec::new();
        for (key, with_port) in
            [("listeners", true), ("advertised.listeners", true), ("listener.security.protocol.map", false)]
        {
            let prefix = format!("{key}=");
            let own =
                text.lines().find_map(|line| line.strip_prefix(&prefix)).expect("a setting of the script").to_owned();
            let more: Vec<String> = listeners
                .iter()
                .enumerate()
                .map(|(index, (name, protocol))| {
                    if !with_port {
                        return format!("{name}:{protocol}");
                    }
                    if addresses.len() <= index {
                        let free =
                            std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
                        addresses.push(format!("localhost:{}", free.expect("a free port").port()));
                    }
                    format!("{name}://{}", addresses[index])
                })
                .collect();
            text.push_str(&format!("{key}={own},{}\n", more.join(","))); // of two settings of one name the last counts
        }
        text.push_str(settings);
        fs::write(&file, text).expect("write the broker's settings");
        self.start_again();
        addresses
    }

    /// The address of its ZooKeeper, if it is a broker of old.
    pub fn zookeeper(&self) -> String {
        let text = fs::read_to_string(self.dir.join("zookeeper/server.properties")).expect("a ZooKeeper");
        let port = text.lines().find_map(|line| line.strip_prefix("clientPort=")).expect("its port");
        format!("127.0.0.1:{port}")
    }

    /// Runs a tool of its own version.
    pub fn old_tool(&self, args: &[&str]) {
        let jars = format!("{}/*", script(&["jars", &self.version]));
        let output = Command::new("java").args(["-cp", &jars]).args(args).stdin(Stdio::null()).output().expect("java");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Writes a file into its directory, for its next start.
    pub fn write_file(&self, name: &str, text: &str) {
        fs::write(self.dir.join(name), text).expect("write into the broker's directory");
    }

    /// Creates a topic and waits until every partition has a leader, so that no client has to try twice.
    pub fn create_topic(&self, name: &str, partitions: usize) {
        create_topic(&self.client(), name, partitions, 1);
    }

    /// Talks to it.
    pub fn client(&self) -> Client {
        Client::new(&self.address)
    }

    fn dir(&self) -> &str {
        self.dir.to_str().expect("the target directory's name is UTF-8")
    }

    fn launch(&self, settings: &[&str]) -> String {
        let watched = process::id().to_string();
        let mut args = vec!["start", &self.version, self.dir(), "--watch", &watched, "--temporary"];
        settings.iter().for_each(|setting| args.extend(["-c", setting]));
        script(&args)
    }
}

impl Cluster {
    /// Starts three nodes.
    pub fn start(version: &str) -> Cluster {
        let mut cluster = Cluster { dir: new_dir(), version: version.to_owned(), addresses: Vec::new() };
        let printed = cluster.script("start", &["--nodes", "3"]);
        cluster.addresses = printed.lines().map(str::to_owned).collect();
        assert_eq!(cluster.addresses.len(), 3, "{printed}");
        cluster
    }

    /// The addresses of all nodes, with commas between them.
    pub fn addresses(&self) -> String {
        self.addresses.join(",")
    }

    /// Talks to it.
    pub fn client(&self) -> Client {
        Client::new(&self.addresses())
    }

    /// kill -9 of a node. Returns when it is gone; the others do not know yet.
    pub fn kill(&self, node: i32) {
        script(&["stop", self.dir(), "--node", &node.to_string(), "--kill"]);
    }

    /// Starts a node again on its port, with its data. Returns when it serves again.
    pub fn start_again(&self, node: i32) {
        let address = self.script("start", &["--node", &node.to_string()]);
        assert_eq!(address, self.addresses[node as usize - 1], "the node came back elsewhere");
    }

    /// Creates a topic and waits until every partition has a leader.
    pub fn create_topic(&self, name: &str, partitions: usize, replication: i16) {
        create_topic(&self.client(), name, partitions, replication);
    }

    /// Moves the lead of each partition back to the first of its replicas, while all of them are alive.
    pub fn elect_preferred_leaders(&self) {
        let brokers = self.addresses();
        let class = "org.apache.kafka.tools.LeaderElectionCommand";
        let which = ["--election-type", "PREFERRED", "--all-topic-partitions"];
        script(&[&["tool", class, "--bootstrap-server", &brokers], &which[..]].concat());
    }

    fn script(&self, command: &str, args: &[&str]) -> String {
        let watched = process::id().to_string();
        script(&[&[command, &self.version, self.dir(), "--watch", &watched, "--temporary"], args].concat())
    }

    fn dir(&self) -> &str {
        self.dir.to_str().expect("the target directory's name is UTF-8")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = run(None, &["stop", self.dir(), "--kill"]);
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn new_dir() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("broker-{}-{number}", process::id()))
}

fn create_topic(client: &Client, name: &str, partitions: usize, replication: i16) {
    let deadline = Instant::now() + Duration::from_secs(30);
    // A broker that has just started may answer before the controller knows of it (error 38, 0.11 does).
    while let Err(e) = client.create_topic(name, partitions, replication) {
        assert!(e.to_string().ends_with("error 38") && Instant::now() < deadline, "create topic {name}: {e}");
        thread::sleep(Duration::from_millis(50));
    }
    loop {
        let metadata = client.metadata(name);
        let led = metadata.as_ref().map_or(0, |found| found.leaders.values().filter(|&&leader| leader >= 0).count());
        if led == partitions {
            return;
        }
        assert!(Instant::now() < deadline, "topic {name} was not there after 30 s: {metadata:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Writes a record with Kafka's own producer, which knows every codec; its key is the codec's name.
pub fn java_produce(address: &str, topic: &str, codec: &str) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/broker/kafka.sh");
    let args = ["produce", address, topic, "--compression-codec", codec];
    let child = Command::new(script).args(args).stdin(Stdio::piped()).spawn();
    let mut child = child.expect("kafka.sh");
    let line = format!("{codec}\t[\"true\",\"{}\"]\n", "x".repeat(1000));
    io::Write::write_all(&mut child.stdin.take().unwrap(), line.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

/// What a tool of Kafka's prints.
pub fn tool(args: &[&str]) -> String {
    script(&[&["tool"], args].concat())
}

/// The same, of the tools that go with a version of the broker.
pub fn tool_of(version: &str, args: &[&str]) -> String {
    script_of(Some(version), &[&["tool"], args].concat())
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = run(None, &["stop", self.dir(), "--kill"]);
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// What the script prints on stdout; fails the test with its stderr.
fn script(args: &[&str]) -> String {
    script_of(None, args)
}

/// The same, with the tools of a version.
fn script_of(version: Option<&str>, args: &[&str]) -> String {
    let (success, stdout, stderr) = run(version, args);
    assert!(success, "no Kafka broker for this test; `make broker` gets what it needs. kafka.sh {args:?}:\n{stderr}");
    stdout.trim_end().to_owned()
}

fn run(version: Option<&str>, args: &[&str]) -> (bool, String, String) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/broker/kafka.sh");
    let mut command = Command::new(&script);
    if let Some(version) = version {
        command.env("AIRKAFKA_TEST_KAFKA_VERSION", version);
    }
    let output = command.args(args).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|e| panic!("run {}: {e}", script.display()));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

/// What is committed beside the offset of partition 0.
pub fn committed_metadata(address: &str, group: &str, topic: &str) -> io::Result<String> {
    let committed = Client::new(address).committed(group, topic, 1)?;
    Ok(committed.get(&0).map(|(_, metadata)| metadata.clone()).unwrap_or_default())
}
