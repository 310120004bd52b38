//! SASL on a new connection: PLAIN, SCRAM, OAUTHBEARER.
//!
//! Brokers before 1.0 take the mechanism's messages bare, each behind its length, instead of in SaslAuthenticate.

use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::{SaslAuthenticateRequest, SaslHandshakeRequest};
use kafka_protocol::protocol::{Request, StrBytes};

use super::conn::Connection;
use super::scram::{self, Hash};
use super::token;
use crate::config::client::{Login, Sasl, Token};
use crate::error::{Error, Kind, Result};

/// The newest SaslAuthenticate.
const AUTHENTICATE: i16 = 2;

/// Authenticates. Returns how long the broker takes it for valid, if that is limited (KIP-368).
///
/// `before`: it went well before, so that a broker of old that cuts us off is more likely on its way down.
pub fn authenticate(conn: &mut Connection, sasl: &Sasl, before: bool, deadline: Instant) -> Result<Option<Duration>> {
    let mechanism = sasl.mechanism();
    let framed = conn.serves(SaslHandshakeRequest::KEY, 1) && conn.serves(SaslAuthenticateRequest::KEY, 0);
    let request = SaslHandshakeRequest::default().with_mechanism(StrBytes::from_static_str(mechanism));
    let response = conn.call(i16::from(framed), &request, deadline)?;
    if let Some(code) = ResponseError::try_from_code(response.error_code) {
        let offered: Vec<String> =
            response.mechanisms.iter().map(|mechanism| crate::record::printable(mechanism)).collect();
        let why = format!(
            "broker {}: SASL mechanism {mechanism} is refused ({code:?}); it offers {}",
            conn.peer(),
            offered.join(", ")
        );
        return Err(Error::new(Kind::Refused, why).hint("set sasl.mechanism to one of these"));
    }
    let mut exchange = Exchange { conn, sasl, framed, before, deadline, lifetime: None };
    match sasl {
        Sasl::Plain(Login { user, password }) => {
            exchange.ask(format!("\0{user}\0{}", password.reveal()).into_bytes())?;
        }
        Sasl::ScramSha256(login) => exchange.scram(Hash::Sha256, login)?,
        Sasl::ScramSha512(login) => exchange.scram(Hash::Sha512, login)?,
        Sasl::OAuthBearer(token) => exchange.bearer(token)?,
    }
    Ok(exchange.lifetime)
}

struct Exchange<'a> {
    conn: &'a mut Connection,
    sasl: &'a Sasl,
    framed: bool,
    before: bool,
    deadline: Instant,
    lifetime: Option<Duration>,
}

impl Exchange<'_> {
    /// Sends a message of the mechanism; the broker's answer.
    fn ask(&mut self, message: Vec<u8>) -> Result<Bytes> {
        if !self.framed {
            // A broker of that time closes the connection when it refuses.
            let answer = self.conn.call_bare(&message, self.deadline);
            return answer.map_err(|e| if self.before { e } else { self.refused(&e.to_string()) });
        }
        let request = SaslAuthenticateRequest::default().with_auth_bytes(message.into());
        let version = self.conn.version::<SaslAuthenticateRequest>(AUTHENTICATE)?;
        let response = self.conn.call(version, &request, self.deadline)?;
        if let Some(code) = ResponseError::try_from_code(response.error_code) {
            let why = response
                .error_message
                .map_or_else(|| format!("{code:?}"), |message| crate::record::printable(&message));
            return Err(self.refused(&why));
        }
        if response.session_lifetime_ms > 0 {
            self.lifetime = Some(Duration::from_millis(response.session_lifetime_ms.cast_unsigned()));
        }
        Ok(response.auth_bytes)
    }

    fn scram(&mut self, hash: Hash, login: &Login) -> Result<()> {
        let client =
            scram::Client::new(hash, &login.user, login.password.reveal()).map_err(|why| self.refused(&why))?;
        let server_first = self.ask_text(client.first())?;
        let (last, proven) = client.last(&server_first).map_err(|why| self.refused(&why))?;
        let server_last = self.ask_text(last)?;
        proven.check(&server_last).map_err(|why| self.refused(&why))
    }

    fn bearer(&mut self, token: &Token) -> Result<()> {
        let text = token::fetch(&token.source, self.deadline)?;
        let mut message = format!("n,,\u{1}auth=Bearer {}\u{1}", text.reveal());
        for (name, value) in &token.extensions {
            message.push_str(&format!("{name}={value}\u{1}"));
        }
        message.push('\u{1}');
        let answer = self.ask(message.into_bytes())?;
        if answer.is_empty() {
            return Ok(());
        }
        // A refusal comes as JSON and wants a last message of one byte, upon which the broker says it again.
        let _ = self.ask(vec![1]);
        Err(self.refused(&crate::record::printable(&String::from_utf8_lossy(&answer))))
    }

    fn ask_text(&mut self, message: String) -> Result<String> {
        let answer = self.ask(message.into_bytes())?;
        String::from_utf8(answer.to_vec()).map_err(|_| self.refused("the server's message is not UTF-8"))
    }

    fn refused(&self, why: &str) -> Error {
        let (principal, mechanism) = (self.sasl.principal(), self.sasl.mechanism());
        Error::new(
            Kind::Refused,
            format!("broker {}: authentication of {principal} by {mechanism} failed: {why}", self.conn.peer()),
        )
        .hint("check user, password or token, and that the broker knows them for this mechanism")
    }
}
