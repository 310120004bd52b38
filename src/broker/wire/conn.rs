//! One connection to one broker: frames, correlation ids, negotiated versions; requests may be under way while others
//! are waited for.
//!
//! The socket never blocks: whoever waits, waits in [`wait_readable`] with a deadline, for one connection or for several.
//! A connection that has met any error is to be dropped: its state is unknown.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use kafka_protocol::messages::{RequestHeader, ResponseHeader};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes, VersionRange};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::guard::Guarded;
use super::stream::Stream;
use crate::broker::waker::Waker;
use crate::error::{Error, Kind, Result, os_text};

/// The largest response that is believed: far above what we ask for, far below what would hurt.
const LARGEST_FRAME: usize = 512 << 20;
const API_VERSIONS: i16 = 18;
/// How much is read at once.
const READ_BYTES: usize = 64 << 10;

/// An open connection.
pub struct Connection {
    stream: Stream,
    /// How the broker is named in messages: its address, and its id if known.
    peer: String,
    client_id: StrBytes,
    /// Not used for so long, it is not used again.
    max_idle: Duration,
    /// When its authentication is about to run out.
    usable_until: Option<Instant>,
    /// Whether what has come is not Kafka's protocol.
    foreign: bool,
    /// Whether a whole frame has come: then the other side does speak it.
    spoken: bool,
    versions: BTreeMap<i16, VersionRange>,
    features: BTreeMap<String, i16>,
    next_id: i32,
    /// Requests whose response has not come, in the order they were sent, which is that of the responses.
    awaited: VecDeque<Awaited>,
    /// What has come of the next response.
    inbox: BytesMut,
    /// When a response, or a part of it, came last.
    heard: Instant,
}

/// A request whose response has not come.
#[derive(Clone, Copy, Debug)]
struct Awaited {
    id: i32,
    api: i16,
    version: i16,
    header_version: i16,
}

impl Connection {
    /// Takes over a stream that has no request under way.
    pub fn new(stream: Stream, peer: String, client_id: StrBytes, max_idle: Duration) -> Connection {
        Connection {
            stream,
            peer,
            client_id,
            max_idle,
            usable_until: None,
            foreign: false,
            spoken: false,
            versions: BTreeMap::new(),
            features: BTreeMap::new(),
            next_id: 1,
            awaited: VecDeque::new(),
            inbox: BytesMut::new(),
            heard: Instant::now(),
        }
    }

    /// How the broker is named in messages.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Which versions the broker serves, by API key, and which features the cluster has at which level, by name; told once,
    /// by who opens the connection.
    pub fn set_versions(&mut self, versions: BTreeMap<i16, VersionRange>, features: BTreeMap<String, i16>) {
        (self.versions, self.features) = (versions, features);
    }

    /// The level of a feature in this cluster (KIP-584), if it has it.
    pub fn feature(&self, name: &str) -> Option<i16> {
        self.features.get(name).copied()
    }

    /// The newest version of a request, up to `newest`, that both sides know. An error names the API.
    pub fn version<R: Request>(&self, newest: i16) -> Result<i16> {
        let ours = VersionRange { min: R::VERSIONS.min, max: R::VERSIONS.max.min(newest) };
        let theirs = self.versions.get(&R::KEY);
        let common = theirs.map(|theirs| theirs.intersect(&ours)).filter(|common| !common.is_empty());
        common.map(|common| common.max).ok_or_else(|| {
            let served = theirs.map_or("does not serve it".to_string(), |theirs| format!("serves {theirs}"));
            Error::new(
                Kind::Config,
                format!("{}: {} {ours} is needed, but the broker {served}", self.peer, api_name(R::KEY)),
            )
            .hint("use a broker from 0.11 on, or --client kafka for one before 3.10")
        })
    }

    /// Whether the broker serves this version of a request, whatever we know of it.
    pub fn serves(&self, api: i16, version: i16) -> bool {
        self.versions.get(&api).is_some_and(|range| (range.min..=range.max).contains(&version))
    }

    /// The newest version of a request that the broker serves, whatever we know of it.
    pub fn newest(&self, api: i16) -> Option<i16> {
        self.versions.get(&api).map(|range| range.max)
    }

    /// Sends a request, encoded as `version`. Its response is the next one that is not awaited yet.
    pub fn send<R: Request>(&mut self, version: i16, request: &R, deadline: Instant) -> Result<()> {
        let mut body = BytesMut::new();
        request
            .encode(&mut body, version)
            .map_err(|e| self.broken::<R>(format!("cannot be encoded as version {version}: {e}")))?;
        let header_version = <R::Response as HeaderVersion>::header_version(version);
        self.send_raw(R::KEY, version, R::header_version(version), header_version, &body, deadline)
    }

    /// Sends a request whose body is encoded already.
    pub fn send_raw(
        &mut self,
        api: i16,
        version: i16,
        request_header: i16,
        response_header: i16,
        body: &[u8],
        deadline: Instant,
    ) -> Result<()> {
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1).max(1);
        let header = RequestHeader::default()
            .with_request_api_key(api)
            .with_request_api_version(version)
            .with_correlation_id(id)
            .with_client_id(Some(self.client_id.clone()));
        let mut frame = BytesMut::from(&[0; 4][..]);
        header.encode(&mut frame, request_header).map_err(|e| self.failed(format!("request header: {e}")))?;
        frame.extend_from_slice(body);
        let length = i32::try_from(frame.len() - 4).map_err(|_| self.failed("a request larger than 2 GiB".into()))?;
        frame[..4].copy_from_slice(&length.to_be_bytes());
        self.write(&frame, deadline)?;
        self.awaited.push_back(Awaited { id, api, version, header_version: response_header });
        Ok(())
    }

    /// How many responses are awaited.
    pub fn under_way(&self) -> usize {
        self.awaited.len()
    }

    /// Whether it can be used for another request: it was in use lately (or may be closed on the other side), and what it
    /// has authenticated with still holds.
    pub fn is_fresh(&self) -> bool {
        !self.awaited.is_empty() || (!self.is_expiring() && self.heard.elapsed() < self.max_idle)
    }

    /// Whether what it has authenticated with is about to run out: another connection is to be used, or this one is to be
    /// authenticated anew.
    pub fn is_expiring(&self) -> bool {
        self.usable_until.is_some_and(|until| Instant::now() >= until)
    }

    /// Until when, for the broker ends the connection soon after (KIP-368); `None`: there is no end.
    pub fn use_until(&mut self, until: Option<Instant>) {
        self.usable_until = until;
    }

    /// Whether the other side has sent what is not Kafka's protocol.
    pub fn is_foreign(&self) -> bool {
        self.foreign
    }

    /// When it was heard of last: opened, or a part of a response.
    pub fn heard(&self) -> Instant {
        self.heard
    }

    /// The next response, if it is all there; it has to be one to an `R`. Does not wait.
    pub fn receive<R: Request>(&mut self) -> Result<Option<R::Response>> {
        let Some((awaited, body)) = self.receive_raw()? else { return Ok(None) };
        if awaited.0 != R::KEY {
            return Err(self.failed(format!(
                "a response to {} was taken for one to {}",
                api_name(awaited.0),
                api_name(R::KEY)
            )));
        }
        let version = awaited.1;
        // ApiVersions is flexible from version 3 on, though its header never is.
        let flexible = R::Response::header_version(version) > 0 || R::KEY == API_VERSIONS && version >= 3;
        let mut body = Guarded::new(body, flexible);
        match R::Response::decode(&mut body, version) {
            Ok(response) => Ok(Some(response)),
            Err(e) => Err(self.broken::<R>(format!("its response (version {version}) cannot be decoded: {e}"))),
        }
    }

    /// The next response as API key and version of its request, and its body. Does not wait.
    pub fn receive_raw(&mut self) -> Result<Option<((i16, i16), Bytes)>> {
        let Some(mut frame) = self.read_frame(4)? else { return Ok(None) };
        let Some(awaited) = self.awaited.pop_front() else {
            return Err(self.failed("it sent something nobody asked for".into()));
        };
        let header = ResponseHeader::decode(&mut Guarded::new(frame.clone(), true), 0)
            .map_err(|e| self.failed(format!("response header: {e}")))?;
        if header.correlation_id != awaited.id {
            let (got, wanted) = (header.correlation_id, awaited.id);
            return Err(self.failed(format!("it answers request {got} where the answer to {wanted} is due")));
        }
        frame.advance(4);
        if awaited.header_version > 0 {
            skip_tags(&mut frame)
                .ok_or_else(|| self.failed("response header: the tagged fields are cut off".into()))?;
        }
        Ok(Some(((awaited.api, awaited.version), frame)))
    }

    /// Sends a request and waits for its response; nothing else may be under way.
    pub fn call<R: Request>(&mut self, version: i16, request: &R, deadline: Instant) -> Result<R::Response> {
        self.send(version, request, deadline)?;
        let response = self.wait_for(deadline, Self::receive::<R>)?;
        response.ok_or_else(|| self.failed(format!("no answer to {} in time", api_name(R::KEY))))
    }

    /// Sends bytes behind their length and waits for bytes behind theirs: how SASL was spoken before 1.0.
    pub fn call_bare(&mut self, message: &[u8], deadline: Instant) -> Result<Bytes> {
        let length = i32::try_from(message.len()).map_err(|_| self.failed("a message larger than 2 GiB".into()))?;
        self.write(&[&length.to_be_bytes()[..], message].concat(), deadline)?;
        let answer = self.wait_for(deadline, |conn| conn.read_frame(0))?;
        answer.ok_or_else(|| self.failed("no answer in time".into()))
    }

    /// What `receive` gives, as soon as it gives something; `None`: not in time.
    fn wait_for<T>(
        &mut self,
        deadline: Instant,
        mut receive: impl FnMut(&mut Self) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        loop {
            let received = receive(self)?;
            if received.is_some() || Instant::now() >= deadline {
                return Ok(received);
            }
            wait_readable(&[&*self], deadline);
        }
    }

    /// An error on this connection: the broker is away, or does not talk as it should.
    pub fn failed(&self, why: String) -> Error {
        Error::new(Kind::Unavailable, format!("broker {}: {why}", self.peer))
    }

    fn broken<R: Request>(&self, why: String) -> Error {
        self.failed(format!("{}: {why}", api_name(R::KEY)))
    }

    fn write(&mut self, mut bytes: &[u8], deadline: Instant) -> Result<()> {
        loop {
            let done = if bytes.is_empty() { self.stream.flush().map(|()| 0) } else { self.stream.write(bytes) };
            match done {
                Ok(0) if bytes.is_empty() && !self.stream.wants_write() => return Ok(()),
                Ok(0) if bytes.is_empty() => {}
                Ok(0) => return Err(self.failed("closed the connection".into())),
                Ok(written) => bytes = &bytes[written..],
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if Instant::now() >= deadline {
                        return Err(self.failed("takes no more bytes".into()));
                    }
                    wait(&mut [PollFd::new(&self.stream.as_fd(), PollFlags::OUT)], deadline);
                }
                Err(e) => return Err(self.failed(os_text(&e))),
            }
        }
    }

    /// The next frame, of at least `shortest` bytes, if it is all there.
    fn read_frame(&mut self, shortest: usize) -> Result<Option<Bytes>> {
        loop {
            if let Some(length) = self.frame_length(shortest)? {
                if self.inbox.len() >= 4 + length {
                    self.inbox.advance(4);
                    self.spoken = true;
                    return Ok(Some(self.inbox.split_to(length).freeze()));
                }
                // Reserved as it comes, not as it is claimed.
                self.inbox.reserve((4 + length - self.inbox.len()).min(READ_BYTES));
            }
            let filled = self.inbox.len();
            self.inbox.resize(filled + READ_BYTES, 0);
            let read = self.stream.read(&mut self.inbox[filled..]);
            self.inbox.truncate(filled + read.as_ref().map_or(0, |&count| count));
            match read {
                Ok(0) => return Err(self.closed()),
                Ok(_) => self.heard = Instant::now(),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.failed(os_text(&e))),
            }
        }
    }

    fn frame_length(&mut self, shortest: usize) -> Result<Option<usize>> {
        let Some(&size) = self.inbox.first_chunk::<4>() else { return Ok(None) };
        let is_tls = matches!(size, [0x15 | 0x16, 3, ..]) && !self.spoken; // it would pass for a length of 350 MB
        match usize::try_from(i32::from_be_bytes(size)) {
            Ok(length) if !is_tls && (shortest..=LARGEST_FRAME).contains(&length) => Ok(Some(length)),
            _ => Err(self.foreign(size)),
        }
    }

    /// The first bytes are no length of a response.
    fn foreign(&mut self, bytes: [u8; 4]) -> Error {
        self.foreign = true;
        match bytes {
            [b'H', b'T', b'T', b'P'] => {
                self.failed("speaks HTTP, not Kafka".into()).hint("is this the port of a broker?")
            }
            [0x15 | 0x16, 3, ..] => self
                .failed("speaks TLS".into())
                .hint("set security.protocol=SSL or SASL_SSL, or use a plaintext listener"),
            _ => self.failed("does not speak Kafka".into()).hint("is this the port of a broker?"),
        }
    }

    fn closed(&self) -> Error {
        let asked = self.awaited.front().map(|awaited| format!(" instead of answering {}", api_name(awaited.api)));
        self.failed(format!("closed the connection{}", asked.unwrap_or_default()))
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Waits until one of the connections may have something to read, or until `deadline`.
pub fn wait_readable(connections: &[&Connection], deadline: Instant) {
    wait_all(connections.iter().map(|connection| connection.as_fd()).collect(), deadline);
}

/// The same, or until the bell rings.
pub fn wait_readable_or(connections: &[&Connection], bell: &Waker, deadline: Instant) {
    wait_all(connections.iter().map(|connection| connection.as_fd()).chain([bell.as_fd()]).collect(), deadline);
}

fn wait_all(fds: Vec<BorrowedFd<'_>>, deadline: Instant) {
    let mut polled: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    wait(&mut polled, deadline);
}

/// Waits until a socket can be read from or, if `write`, written to, or until `deadline`.
pub fn wait_for(socket: BorrowedFd<'_>, write: bool, deadline: Instant) {
    wait(&mut [PollFd::new(&socket, if write { PollFlags::OUT } else { PollFlags::IN })], deadline);
}

fn wait(fds: &mut [PollFd<'_>], deadline: Instant) {
    let left = deadline.saturating_duration_since(Instant::now()).min(Duration::from_secs(3600));
    let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
    let _ = poll(fds, Some(&left)); // interrupted: the caller looks again anyway
}

/// Passes over tagged fields, of which response headers have none that we know.
fn skip_tags(bytes: &mut Bytes) -> Option<()> {
    for _ in 0..varint(bytes)? {
        varint(bytes)?; // tag
        let size = usize::try_from(varint(bytes)?).ok()?;
        (size <= bytes.len()).then(|| bytes.advance(size))?;
    }
    Some(())
}

/// An unsigned varint.
pub fn varint(bytes: &mut Bytes) -> Option<u32> {
    let mut value = 0;
    for shift in (0..35).step_by(7) {
        let byte = bytes.try_get_u8().ok()?;
        value |= u32::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// The name of an API, for messages.
pub fn api_name(api: i16) -> String {
    kafka_protocol::messages::ApiKey::try_from(api).map_or_else(|_| format!("API {api}"), |key| format!("{key:?}"))
}
