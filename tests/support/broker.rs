//! Real Kafka brokers for tests: starts, kills and restarts them through `fixtures/broker/kafka.sh`.
//!
//! Each has its own directory under the target directory and its own ports on loopback. It ends with the test process,
//! even when that is killed with -9: the script watches us.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

/// One broker, and its directory; both are gone when it is dropped.
pub struct Broker {
    dir: PathBuf,
    address: String,
}

impl Broker {
    /// Starts a broker of our own. A broker that cannot be had fails the test with a line that says how to get one.
    pub fn start() -> Broker {
        Self::start_with(&[])
    }

    /// Like [`start`](Self::start), with broker settings such as `"message.max.bytes=2000000"` beside those of the script.
    pub fn start_with(settings: &[&str]) -> Broker {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("broker-{}-{number}", process::id()));
        let mut broker = Broker { dir, address: String::new() };
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

    /// Creates a topic and waits until every partition has a leader, so that no client has to try twice.
    pub fn create_topic(&self, name: &str, partitions: usize) {
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut trouble = match create_topic(&self.address, name, partitions) {
            Ok(0) => String::new(),
            Ok(code) => panic!("create topic {name} on {}: the broker answers error {code}", self.address),
            Err(e) => panic!("create topic {name} on {}: {e}", self.address),
        };
        while Instant::now() < deadline {
            match leaders(&self.address, name) {
                Ok(count) if count == partitions => return,
                Ok(count) => trouble = format!("{count} of {partitions} partitions have a leader"),
                Err(e) => trouble = e.to_string(),
            }
            thread::sleep(Duration::from_millis(20));
        }
        panic!("topic {name} on {} was not there after 30 s: {trouble}", self.address);
    }

    fn dir(&self) -> &str {
        self.dir.to_str().expect("the target directory's name is UTF-8")
    }

    fn launch(&self, settings: &[&str]) -> String {
        let (version, watched) = (Self::version(), process::id().to_string());
        let mut args = vec!["start", &version, self.dir(), "--watch", &watched, "--temporary"];
        settings.iter().for_each(|setting| args.extend(["-c", setting]));
        script(&args)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = run(&["stop", self.dir(), "--kill"]);
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// What the script prints on stdout; fails the test with its stderr.
fn script(args: &[&str]) -> String {
    let (success, stdout, stderr) = run(args);
    assert!(success, "no Kafka broker for this test; `make broker` gets what it needs. kafka.sh {args:?}:\n{stderr}");
    stdout.trim_end().to_owned()
}

fn run(args: &[&str]) -> (bool, String, String) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/broker/kafka.sh");
    let output = Command::new(&script).args(args).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|e| panic!("run {}: {e}", script.display()));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

// Two requests of Kafka's protocol by hand: the Java tool takes a second per topic, and the tests must not lean on the
// code they test.

/// CreateTopics v2 for one topic: its error code.
fn create_topic(address: &str, name: &str, partitions: usize) -> io::Result<i16> {
    let mut body = Vec::new();
    body.extend(1i32.to_be_bytes()); // one topic
    string(&mut body, name);
    body.extend((partitions as i32).to_be_bytes());
    body.extend(1i16.to_be_bytes()); // replication factor
    body.extend(0i32.to_be_bytes()); // assignments
    body.extend(0i32.to_be_bytes()); // settings
    body.extend(30_000i32.to_be_bytes()); // timeout
    body.push(0); // not only validate
    let mut answer = request(address, 19, 2, &body)?;
    answer.int32()?; // throttle
    answer.int32()?; // one topic
    answer.string()?;
    answer.int16()
}

/// Metadata v0 for one topic: how many of its partitions have a leader.
fn leaders(address: &str, name: &str) -> io::Result<usize> {
    let mut body = Vec::new();
    body.extend(1i32.to_be_bytes()); // one topic
    string(&mut body, name);
    let mut answer = request(address, 3, 0, &body)?;
    for _ in 0..answer.int32()? {
        answer.int32()?; // node
        answer.string()?; // host
        answer.int32()?; // port
    }
    answer.int32()?; // one topic
    answer.int16()?; // its error
    answer.string()?;
    let mut count = 0;
    for _ in 0..answer.int32()? {
        let error = answer.int16()?;
        answer.int32()?; // partition
        count += usize::from(error == 0 && answer.int32()? >= 0); // leader
        for _ in 0..2 {
            // replicas, in-sync replicas
            for _ in 0..answer.int32()? {
                answer.int32()?;
            }
        }
    }
    Ok(count)
}

/// OffsetFetch v1 for partition 0 of one topic: what is committed beside the offset. The one broker coordinates all groups.
pub fn committed_metadata(address: &str, group: &str, topic: &str) -> io::Result<String> {
    let mut body = Vec::new();
    string(&mut body, group);
    body.extend(1i32.to_be_bytes()); // one topic
    string(&mut body, topic);
    body.extend(1i32.to_be_bytes()); // one partition
    body.extend(0i32.to_be_bytes());
    let mut answer = request(address, 9, 1, &body)?;
    answer.int32()?; // one topic
    answer.string()?;
    answer.int32()?; // one partition
    answer.int32()?;
    answer.bytes::<8>()?; // offset
    answer.string()
}

fn string(to: &mut Vec<u8>, text: &str) {
    to.extend((text.len() as i16).to_be_bytes());
    to.extend(text.as_bytes());
}

/// Sends one request on a connection of its own; the answer after the correlation id.
fn request(address: &str, api: i16, version: i16, body: &[u8]) -> io::Result<Answer> {
    let mut frame = Vec::new();
    frame.extend(api.to_be_bytes());
    frame.extend(version.to_be_bytes());
    frame.extend(1i32.to_be_bytes()); // correlation id
    string(&mut frame, "test");
    frame.extend(body);
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(35)))?;
    stream.write_all(&[&(frame.len() as i32).to_be_bytes(), &frame[..]].concat())?;
    let mut size = [0; 4];
    stream.read_exact(&mut size)?;
    let mut answer = vec![0; u32::from_be_bytes(size).min(1 << 20) as usize];
    stream.read_exact(&mut answer)?;
    let mut answer = Answer(io::Cursor::new(answer));
    answer.int32()?; // correlation id
    Ok(answer)
}

struct Answer(io::Cursor<Vec<u8>>);

impl Answer {
    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn int16(&mut self) -> io::Result<i16> {
        self.bytes().map(i16::from_be_bytes)
    }

    fn int32(&mut self) -> io::Result<i32> {
        self.bytes().map(i32::from_be_bytes)
    }

    fn string(&mut self) -> io::Result<String> {
        let mut text = vec![0; self.int16()?.max(0) as usize];
        self.0.read_exact(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}
