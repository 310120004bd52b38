//! A TCP proxy in front of a broker, with faults that are switched on and off: resets, silence, delay, a narrow line,
//! frames cut short or spoilt.
//!
//! It knows Kafka's frames, and which request a response belongs to. One thread accepts, and each connection has one; all
//! end when it is dropped.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::broker::Broker;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Of this many requests, one resets its connection: by turns before the broker has seen it, and when it has answered.
    ResetEvery(usize),
    /// Everything is taken and nothing passed on or answered. Connections that met this stay silent afterwards.
    BlackHole,
    /// Each frame takes this long.
    Latency(Duration),
    /// No more than this many bytes a second, on each connection and way.
    Rate(usize),
    /// Of this many responses, one ends in its middle, with its connection.
    TruncateEvery(usize),
    /// Of this many responses, one is spoilt: its length, its correlation id, its body, or the last byte of its records.
    CorruptEvery(usize),
}

/// The key of the Fetch API.
const FETCH: i16 = 1;
/// How often a connection looks whether the fault has changed.
const TICK: Duration = Duration::from_millis(20);

/// A proxy, and the broker behind it.
pub struct Proxy {
    address: String,
    shared: Arc<Shared>,
}

struct Shared {
    target: Mutex<Option<String>>,
    fault: Mutex<Fault>,
    /// Grows with each order to reset what is open.
    resets: AtomicUsize,
    requests: AtomicUsize,
    responses: AtomicUsize,
    /// How often a fault struck.
    struck: AtomicUsize,
    ended: AtomicBool,
}

impl Proxy {
    /// Listens, and starts a broker that tells its clients to come here. Whoever is to get past the proxy uses the broker's
    /// own address.
    pub fn with_broker(version: &str) -> (Proxy, Broker) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address").to_string();
        let shared = Arc::new(Shared {
            target: Mutex::new(None),
            fault: Mutex::new(Fault::None),
            resets: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            responses: AtomicUsize::new(0),
            struck: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
        });
        let accepting = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                if accepting.ended.load(Ordering::Relaxed) {
                    return;
                }
                let shared = accepting.clone();
                thread::spawn(move || stream.and_then(|stream| Line::new(stream, &shared)?.run()));
            }
        });
        let proxy = Proxy { address, shared };
        let advertised = format!("advertised.listeners=CLIENT://{}", proxy.address);
        let broker = Broker::start_version(version, &[&advertised]);
        *proxy.shared.target.lock().unwrap() = Some(broker.address().to_owned());
        (proxy, broker)
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// From now on this goes wrong, and nothing else.
    pub fn set(&self, fault: Fault) {
        *self.shared.fault.lock().unwrap() = fault;
    }

    /// Resets every connection that is open.
    pub fn reset_all(&self) {
        self.shared.resets.fetch_add(1, Ordering::Relaxed);
    }

    /// How often a fault struck so far.
    pub fn struck(&self) -> usize {
        self.shared.struck.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(&self.address); // so that the accepting thread looks
    }
}

/// One connection of a client, and the one to the broker that goes with it.
struct Line<'a> {
    shared: &'a Shared,
    client: TcpStream,
    broker: Option<TcpStream>,
    resets: usize,
    to_broker: Way,
    to_client: Way,
    /// The APIs of the requests that are not answered.
    asked: VecDeque<i16>,
    /// Nothing comes through any more.
    silent: bool,
    /// The line is reset with the next response.
    doomed: bool,
}

/// What is on its way in one direction.
#[derive(Default)]
struct Way {
    inbox: Vec<u8>,
    /// Each is not to be written before its time.
    outbox: VecDeque<(Instant, Vec<u8>)>,
    /// When the narrow line is free again.
    free_at: Option<Instant>,
    /// The line is closed when everything is written.
    last: bool,
}

impl<'a> Line<'a> {
    fn new(client: TcpStream, shared: &'a Shared) -> io::Result<Line<'a>> {
        client.set_nonblocking(true)?;
        client.set_nodelay(true)?;
        let resets = shared.resets.load(Ordering::Relaxed);
        let (to_broker, to_client) = Default::default();
        let asked = VecDeque::new();
        Ok(Line { shared, client, broker: None, resets, to_broker, to_client, asked, silent: false, doomed: false })
    }

    fn run(&mut self) -> io::Result<()> {
        while !self.shared.ended.load(Ordering::Relaxed) {
            let fault = *self.shared.fault.lock().unwrap();
            if self.shared.resets.load(Ordering::Relaxed) != self.resets {
                return self.reset();
            }
            self.silent |= fault == Fault::BlackHole;
            if self.silent {
                self.swallow()?;
                continue;
            }
            self.wait();
            if self.broker.is_none() {
                let Some(target) = self.shared.target.lock().unwrap().clone() else { return Ok(()) };
                let broker = TcpStream::connect(target)?;
                broker.set_nonblocking(true)?;
                broker.set_nodelay(true)?;
                self.broker = Some(broker);
            }
            let broker = self.broker.as_mut().expect("connected");
            fill(&mut self.client, &mut self.to_broker.inbox)?;
            fill(broker, &mut self.to_client.inbox)?;
            while let Some(frame) = cut(&mut self.to_broker.inbox) {
                if !self.request(frame, fault) {
                    return self.reset();
                }
            }
            while let Some(frame) = cut(&mut self.to_client.inbox) {
                if !self.response(frame, fault) {
                    return self.reset();
                }
            }
            self.to_broker.write(self.broker.as_mut().expect("connected"), fault)?;
            self.to_client.write(&mut self.client, fault)?;
            if self.to_client.last && self.to_client.outbox.is_empty() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Passes a request on; `false`: the line is to be reset.
    fn request(&mut self, frame: Vec<u8>, fault: Fault) -> bool {
        let count = self.shared.requests.fetch_add(1, Ordering::Relaxed) + 1;
        if let Fault::ResetEvery(every) = fault
            && count.is_multiple_of(every)
        {
            if (count / every).is_multiple_of(2) {
                return false;
            }
            self.doomed = true;
        }
        self.asked.push_back(i16::from_be_bytes([frame[4], frame[5]]));
        self.to_broker.outbox.push_back((due(fault), frame));
        true
    }

    /// Passes a response on; `false`: the line is to be reset.
    fn response(&mut self, mut frame: Vec<u8>, fault: Fault) -> bool {
        if self.doomed {
            return false;
        }
        let api = self.asked.pop_front();
        let count = self.shared.responses.fetch_add(1, Ordering::Relaxed) + 1;
        match fault {
            Fault::TruncateEvery(every) if count.is_multiple_of(every) => {
                self.shared.struck.fetch_add(1, Ordering::Relaxed);
                frame.truncate(frame.len() / 2);
                self.to_client.last = true;
            }
            Fault::CorruptEvery(every) if count.is_multiple_of(every) => {
                self.shared.struck.fetch_add(1, Ordering::Relaxed);
                let length = frame.len();
                match (count / every) % 4 {
                    0 => frame[..4].copy_from_slice(&[0x7f, 0xff, 0xff, 0xff]),
                    1 => frame[7] ^= 0x55,
                    2 if length > 8 => frame[8..].fill(0xff),
                    // Of what is read, the records have a check sum.
                    3 if api == Some(FETCH) && length > 200 => frame[length - 1] ^= 0x55,
                    _ => frame[4] ^= 0x55,
                }
            }
            _ => {}
        }
        self.to_client.outbox.push_back((due(fault), frame));
        true
    }

    /// Takes what comes, and drops it.
    fn swallow(&mut self) -> io::Result<()> {
        self.wait();
        let mut dropped = Vec::new();
        fill(&mut self.client, &mut dropped)?;
        if let Some(broker) = &mut self.broker {
            fill(broker, &mut dropped)?;
        }
        if !dropped.is_empty() {
            self.shared.struck.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Waits until something comes or is due.
    fn wait(&self) {
        let mut fds = vec![PollFd::new(&self.client, PollFlags::IN)];
        fds.extend(self.broker.as_ref().map(|broker| PollFd::new(broker, PollFlags::IN)));
        let fronts = [self.to_broker.outbox.front(), self.to_client.outbox.front()];
        let next = fronts.into_iter().flatten().map(|(due, _)| *due);
        let left = next.min().map_or(TICK, |due| due.saturating_duration_since(Instant::now()).min(TICK));
        let left = left.max(Duration::from_millis(1));
        let _ = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() }));
    }

    /// Closes the client's connection so that it gets a reset, not an end.
    fn reset(&self) -> io::Result<()> {
        self.shared.struck.fetch_add(1, Ordering::Relaxed);
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        let size = size_of::<libc::linger>() as libc::socklen_t;
        // SAFETY: the descriptor is open, and `linger` lives and is as large as `size` says.
        let set = unsafe {
            libc::setsockopt(
                self.client.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_LINGER,
                (&raw const linger).cast::<libc::c_void>(),
                size,
            )
        };
        if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl Way {
    /// Writes what is due, without waiting.
    fn write(&mut self, to: &mut TcpStream, fault: Fault) -> io::Result<()> {
        let now = Instant::now();
        while let Some((due, bytes)) = self.outbox.front_mut() {
            if *due > now || self.free_at.is_some_and(|at| at > now) {
                return Ok(());
            }
            let some = match fault {
                Fault::Rate(rate) => bytes.len().min((rate / 50).max(1)), // what goes in a tick
                _ => bytes.len(),
            };
            match to.write(&bytes[..some]) {
                Ok(written) => {
                    bytes.drain(..written);
                    if let Fault::Rate(_) = fault {
                        self.free_at = Some(now + TICK);
                    }
                    if bytes.is_empty() {
                        self.outbox.pop_front();
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

fn due(fault: Fault) -> Instant {
    match fault {
        Fault::Latency(latency) => Instant::now() + latency,
        _ => Instant::now(),
    }
}

/// Reads what there is. The end of the stream is an error.
fn fill(from: &mut TcpStream, into: &mut Vec<u8>) -> io::Result<()> {
    let mut buffer = [0; 16 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => into.extend(&buffer[..count]),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(e) => return Err(e),
        }
    }
}

/// Takes a whole frame out, its length included.
fn cut(inbox: &mut Vec<u8>) -> Option<Vec<u8>> {
    let length = 4 + u32::from_be_bytes(*inbox.first_chunk()?) as usize;
    (inbox.len() >= length).then(|| inbox.drain(..length).collect())
}
