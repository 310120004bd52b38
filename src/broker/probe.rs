//! Asks an address whether a Kafka broker answers there and which request versions it serves: one ApiVersions request
//! on a connection of its own, with time limits.
//!
//! The `kafka` crate believes any port: it would take the first bytes of an HTTP answer for a length and allocate 1.2 GB,
//! and it connects without a time limit. Request and answer are ApiVersions version 0, which every broker since 0.10 reads:
//! <https://kafka.apache.org/protocol.html#The_Messages_ApiVersions>.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use crate::error::{Error, Kind, Result, os_text};

/// Limit for connecting, and for each read and write.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest answer believed; real ones are below 1 KB.
const LONGEST_ANSWER: usize = 64 * 1024;
const CORRELATION_ID: i32 = 0x61_69_72_6b;

/// The key of the Fetch API.
pub const FETCH: i16 = 1;
const API_VERSIONS: i16 = 18;

/// The versions a broker serves: API key, lowest and highest version.
#[derive(Debug)]
pub struct Served(Vec<(i16, i16, i16)>);

impl Served {
    /// Lowest and highest version served of an API.
    pub fn range(&self, api: i16) -> Option<(i16, i16)> {
        self.0.iter().find(|(key, ..)| *key == api).map(|&(_, low, high)| (low, high))
    }
}

/// Asks `address` (`host:port`). `Ok(None)`: the broker closed the connection without an answer, as those before 0.10 do.
pub fn probe(address: &str) -> Result<Option<Served>> {
    let failed = |why: String| Error::new(Kind::Unavailable, format!("broker {address}: {why}"));
    let mut stream = connect(address).map_err(|e| failed(os_text(&e)))?;
    let asked = ask(&mut stream).map_err(|e| match e.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            failed(format!("connected, but no answer within {} s", PATIENCE.as_secs()))
        }
        _ => failed(format!("connected, then {}", os_text(&e))),
    })?;
    match asked {
        Answer::Closed => Ok(None),
        Answer::Frame(frame) => match parse(&frame) {
            Some(served) => Ok(Some(served)),
            None => Err(failed("its answer is not Kafka's".into()).hint("is this the port of a broker?")),
        },
        Answer::Foreign(bytes) => Err(match bytes {
            [b'H', b'T', b'T', b'P'] => failed("speaks HTTP, not Kafka".into()).hint("is this the port of a broker?"),
            [0x15 | 0x16, 3, ..] => failed("speaks TLS; this client does not".into()).hint("give a plaintext listener"),
            _ => failed("does not speak Kafka".into()).hint("is this the port of a broker?"),
        }),
    }
}

enum Answer {
    Closed,
    Frame(Vec<u8>),
    Foreign([u8; 4]),
}

fn connect(address: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
    for addr in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&addr, PATIENCE) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                return Ok(stream);
            }
            Err(e) => last = e,
        }
    }
    Err(last)
}

fn ask(stream: &mut TcpStream) -> io::Result<Answer> {
    let client_id = crate::broker::CLIENT_ID.as_bytes();
    let mut request = Vec::new();
    request.extend((10 + client_id.len() as i32).to_be_bytes());
    request.extend(API_VERSIONS.to_be_bytes());
    request.extend(0i16.to_be_bytes());
    request.extend(CORRELATION_ID.to_be_bytes());
    request.extend((client_id.len() as i16).to_be_bytes());
    request.extend(client_id);
    stream.write_all(&request)?;
    let mut size = [0; 4];
    match stream.read_exact(&mut size) {
        Err(e) if matches!(e.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
            return Ok(Answer::Closed);
        }
        other => other?,
    }
    let Some(length) = usize::try_from(i32::from_be_bytes(size)).ok().filter(|&length| length <= LONGEST_ANSWER) else {
        return Ok(Answer::Foreign(size));
    };
    let mut frame = vec![0; length];
    stream.read_exact(&mut frame)?;
    Ok(Answer::Frame(frame))
}

/// Correlation id, error code, then an array of (API key, lowest, highest).
fn parse(frame: &[u8]) -> Option<Served> {
    let (head, apis) = frame.split_at_checked(10)?;
    let correlation_id = i32::from_be_bytes(head[..4].try_into().ok()?);
    let error_code = i16::from_be_bytes(head[4..6].try_into().ok()?);
    let count = usize::try_from(i32::from_be_bytes(head[6..].try_into().ok()?)).ok()?;
    if correlation_id != CORRELATION_ID || error_code != 0 || count.checked_mul(6)? > apis.len() {
        return None;
    }
    let number = |bytes: &[u8]| i16::from_be_bytes([bytes[0], bytes[1]]);
    Some(Served(
        apis.chunks_exact(6).take(count).map(|api| (number(api), number(&api[2..]), number(&api[4..]))).collect(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    /// What is said of a server that answers every request with `answer`.
    fn told_of(answer: &'static [u8]) -> Result<Option<Served>> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 10 + 4 + crate::broker::CLIENT_ID.len()];
            stream.read_exact(&mut request).unwrap();
            stream.write_all(answer).unwrap();
        });
        let told = probe(&address);
        server.join().unwrap();
        told
    }

    #[test]
    fn a_port_that_is_no_broker_is_named_as_what_it_is() {
        for (answer, what) in [
            (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "speaks HTTP"),
            (b"\x15\x03\x03\x00\x02\x02\x46", "speaks TLS"),
            (b"\xff\xff\xff\xff", "does not speak Kafka"),
            (b"SSH-2.0-x\r\n", "does not speak Kafka"),
            (b"\x00\x00\x00\x00", "not Kafka's"),
            (b"\x00\x00\x00\x0aabcdefghij", "not Kafka's"),
            (b"\x00\x00\x00\x0aairk\x00\x00\x7f\xff\xff\xff", "not Kafka's"),
            (b"\x00\x00\x00\x0aairk", "connected, then"),
        ] {
            let error = told_of(answer).expect_err(what).to_string();
            assert!(error.contains(what), "{error}");
        }
        assert!(told_of(b"").unwrap().is_none());
    }

    #[test]
    fn the_versions_are_read() {
        let served =
            told_of(b"\x00\x00\x00\x16airk\x00\x00\x00\x00\x00\x02\x00\x00\x00\x03\x00\x0b\x00\x01\x00\x04\x00\x11")
                .unwrap()
                .unwrap();
        assert_eq!((served.range(0), served.range(FETCH), served.range(9)), (Some((3, 11)), Some((4, 17)), None));
    }

    #[test]
    fn nobody_there_is_said_with_the_address() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let error = probe(&address).unwrap_err();
        assert!(
            error.is_transient() && error.to_string().contains(&address) && error.to_string().contains("refused"),
            "{error}"
        );
    }
}
