//! Opens connections (plaintext).

use std::collections::BTreeMap;
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Instant;

use kafka_protocol::messages::ApiVersionsRequest;
use kafka_protocol::protocol::VersionRange;

use super::conn::Connection;
use super::stream::Stream;
use crate::config;
use crate::error::{Error, Kind, Result, os_text};

/// Opens connections.
#[derive(Debug)]
pub struct Dialer;

impl Dialer {
    /// For the brokers of `config`.
    pub fn new(_config: &config::Kafka) -> Result<Dialer> {
        Ok(Dialer)
    }

    /// Opens a connection.
    pub fn open(&self, address: &str, deadline: Instant) -> Result<Connection> {
        let failed = |e: std::io::Error| Error::new(Kind::Unavailable, format!("broker {address}: {}", os_text(&e)));
        let addr = address.to_socket_addrs().map_err(failed)?.next().expect("an address");
        let stream =
            TcpStream::connect_timeout(&addr, deadline.saturating_duration_since(Instant::now())).map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        stream.set_nonblocking(true).map_err(failed)?;
        let mut conn = Connection::new(Stream::Plain(stream), address.to_string());
        let response = conn.call(0, &ApiVersionsRequest::default(), deadline)?;
        let versions: BTreeMap<i16, VersionRange> = response
            .api_keys
            .iter()
            .map(|k| (k.api_key, VersionRange { min: k.min_version, max: k.max_version }))
            .collect();
        conn.set_versions(versions);
        Ok(conn)
    }
}
