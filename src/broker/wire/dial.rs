//! Opens connections: TCP, TLS, which versions the broker serves, and who we are.

use std::collections::BTreeMap;
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kafka_protocol::ResponseError;
use kafka_protocol::messages::{ApiVersionsRequest, ApiVersionsResponse};
use kafka_protocol::protocol::{StrBytes, VersionRange};
use rustix::net::sockopt;

use super::conn::Connection;
use super::stream::Stream;
use super::{sasl, tls};
use crate::config;
use crate::config::client::Sasl;
use crate::error::{Error, Kind, Result, os_text};

/// The newest ApiVersions.
const API_VERSIONS: i16 = 3;
/// What part of a session's lifetime is used: after that, a connection is replaced by a new one.
const OF_LIFETIME: f64 = 0.8;

/// Opens connections.
pub struct Dialer {
    tls: Option<Arc<rustls::ClientConfig>>,
    sasl: Option<Sasl>,
    client_id: StrBytes,
    /// How long TCP may take to connect to one address.
    setup: Duration,
    /// How long a connection may be unused.
    max_idle: Duration,
    /// Whether authentication has gone well once.
    authenticated: AtomicBool,
}

impl Dialer {
    /// For the brokers of `config`; reads the certificates.
    pub fn new(config: &config::Kafka) -> Result<Dialer> {
        let settings = &config.settings;
        Ok(Dialer {
            tls: settings.tls.as_ref().map(tls::client_config).transpose()?,
            sasl: settings.sasl.clone(),
            client_id: StrBytes::from_string(settings.client_id.clone()),
            setup: settings.connection_setup_timeout,
            max_idle: settings.connections_max_idle,
            authenticated: AtomicBool::new(false),
        })
    }

    /// Opens a connection to `address` (`host:port`) that is ready for requests.
    pub fn open(&self, address: &str, deadline: Instant) -> Result<Connection> {
        // From 2.4 on brokers tell everything in answer to version 3; those before answer that they do not know it, in the
        // form of version 0, or close the connection.
        let mut conn = self.connect(address, deadline)?;
        let request = ApiVersionsRequest::default()
            .with_client_software_name(StrBytes::from_static_str(env!("CARGO_PKG_NAME")))
            .with_client_software_version(StrBytes::from_static_str(env!("CARGO_PKG_VERSION")));
        let response = match conn.call(API_VERSIONS, &request, deadline) {
            Ok(response) if ResponseError::try_from_code(response.error_code).is_none() => response,
            Err(e) if !e.is_transient() || conn.is_foreign() || Instant::now() >= deadline => {
                return Err(self.explain(e, address));
            }
            _ => {
                conn = self.connect(address, deadline)?;
                conn.call(0, &ApiVersionsRequest::default(), deadline).map_err(|e| self.explain(e, address))?
            }
        };
        conn.set_versions(versions(&response, &conn)?, features(&response));
        self.authenticate(&mut conn, deadline)?;
        Ok(conn)
    }

    /// Says who we are, for the first time or anew (KIP-368); nothing may be under way.
    pub fn authenticate(&self, conn: &mut Connection, deadline: Instant) -> Result<()> {
        let Some(sasl) = &self.sasl else { return Ok(()) };
        let before = self.authenticated.load(Ordering::Relaxed);
        let lifetime = sasl::authenticate(conn, sasl, before, deadline)?;
        self.authenticated.store(true, Ordering::Relaxed);
        conn.use_until(lifetime.map(|lifetime| Instant::now() + lifetime.mul_f64(OF_LIFETIME)));
        Ok(())
    }

    fn connect(&self, address: &str, deadline: Instant) -> Result<Connection> {
        let failed = |why: String| Error::new(Kind::Unavailable, format!("broker {address}: {why}"));
        let mut failure = failed("the host name has no address".into());
        for addr in address.to_socket_addrs().map_err(|e| failed(os_text(&e)))? {
            let left = deadline.saturating_duration_since(Instant::now()).min(self.setup).max(Duration::from_millis(1));
            match TcpStream::connect_timeout(&addr, left) {
                Ok(socket) => return self.take_over(address, socket, deadline),
                Err(e) => failure = failed(os_text(&e)),
            }
        }
        Err(failure)
    }

    fn take_over(&self, address: &str, socket: TcpStream, deadline: Instant) -> Result<Connection> {
        let prepare = |socket: &TcpStream| {
            socket.set_nodelay(true)?;
            sockopt::set_socket_keepalive(socket, true)?;
            socket.set_nonblocking(true)
        };
        prepare(&socket).map_err(|e| Error::new(Kind::Unavailable, format!("broker {address}: {}", os_text(&e))))?;
        let stream = match &self.tls {
            None => Stream::Plain(socket),
            Some(config) => Stream::Tls(Box::new(tls::handshake(config, address, socket, deadline)?)),
        };
        Ok(Connection::new(stream, address.to_string(), self.client_id.clone(), self.max_idle))
    }

    /// A first request that fails tells more of the listener than of the request.
    fn explain(&self, e: Error, address: &str) -> Error {
        let told = e.to_string();
        if self.tls.is_some() && told.contains("alert") {
            // With TLS 1.3 a client certificate is refused only after the handshake.
            return tls::refused(address, &format!(": {told}"));
        }
        if self.tls.is_none() && told.contains("closed the connection") {
            return e.hint("is this the port of a listener with TLS, or of something else than Kafka?");
        }
        e
    }
}

fn versions(response: &ApiVersionsResponse, conn: &Connection) -> Result<BTreeMap<i16, VersionRange>> {
    if let Some(code) = ResponseError::try_from_code(response.error_code) {
        return Err(conn.failed(format!("ApiVersions: the broker answers {code:?}")));
    }
    let ranges =
        response.api_keys.iter().map(|api| (api.api_key, VersionRange { min: api.min_version, max: api.max_version }));
    Ok(ranges.collect())
}

fn features(response: &ApiVersionsResponse) -> BTreeMap<String, i16> {
    let features = response.finalized_features.iter();
    features.map(|feature| (feature.name.to_string(), feature.max_version_level)).collect()
}
