//! TLS by rustls: whom to believe, who we are, and what a failed handshake means.
//!
//! Reads the certificates once, at start. Speaks TLS over a socket that does not block.

use std::fs;
use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme,
    StreamOwned,
};

use super::conn::wait_for;
use crate::config::client::{Identity, Pem, Tls, Verify};
use crate::error::{Error, Kind, Result, os_text};

/// A TLS stream.
pub type TlsStream = StreamOwned<ClientConnection, TcpStream>;

/// Makes rustls' configuration of ours; an error names the file or property and what is wrong with it.
pub fn client_config(tls: &Tls) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(ring::default_provider());
    let versions: Vec<_> = [(tls.versions.0, &rustls::version::TLS12), (tls.versions.1, &rustls::version::TLS13)]
        .into_iter()
        .filter_map(|(wanted, version)| wanted.then_some(version))
        .collect();
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&versions)
        .map_err(|e| invalid(format!("TLS: {e}")))?;
    let builder = match tls.verify {
        Verify::Full => builder.with_root_certificates(roots(tls.roots.as_ref())?),
        Verify::Chain => {
            let roots = Arc::new(roots(tls.roots.as_ref())?);
            let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider.clone()).build();
            let verifier = verifier.map_err(|e| invalid(format!("TLS: {e}")))?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Lax { chain: Some(verifier), provider }))
        }
        Verify::Nothing => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Lax { chain: None, provider }))
        }
    };
    let config = match &tls.identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let chain = certificates(&identity.certificates)?;
            let wrong = |e| invalid(format!("{} and {}: {e}", identity.certificates, identity.key));
            builder.with_client_auth_cert(chain, private_key(identity)?).map_err(wrong)?
        }
    };
    Ok(Arc::new(config))
}

fn roots(pem: Option<&Pem>) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    match pem {
        Some(pem) => {
            for certificate in certificates(pem)? {
                roots
                    .add(certificate)
                    .map_err(|e| invalid(format!("{pem}: a certificate in it cannot be used: {e}")))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(invalid("this system has no CA certificates".into())
                    .hint("install them (ca-certificates) or set ssl.ca.location"));
            }
        }
    }
    Ok(roots)
}

fn certificates(pem: &Pem) -> Result<Vec<CertificateDer<'static>>> {
    let bytes = read(pem)?;
    let found: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(invalid(format!("{pem}: holds no certificate in PEM"))),
        Err(e) => Err(invalid(format!("{pem}: {e}"))),
    }
}

fn private_key(identity: &Identity) -> Result<PrivateKeyDer<'static>> {
    let pem = &identity.key;
    let bytes = read(pem)?;
    let text = String::from_utf8_lossy(&bytes);
    let start = text.find("-----BEGIN ENCRYPTED PRIVATE KEY-----");
    let Some(start) = start else {
        return PrivateKeyDer::from_pem_slice(&bytes)
            .map_err(|_| invalid(format!("{pem}: holds no private key in PEM")));
    };
    let password = identity
        .password
        .as_ref()
        .ok_or_else(|| invalid(format!("{pem}: the private key is encrypted")).hint("set ssl.key.password"))?;
    let (_, document) = pkcs8::SecretDocument::from_pem(&text[start..]).map_err(|e| invalid(format!("{pem}: {e}")))?;
    let encrypted =
        pkcs8::EncryptedPrivateKeyInfo::try_from(document.as_bytes()).map_err(|e| invalid(format!("{pem}: {e}")))?;
    let key = encrypted.decrypt(password.reveal()).map_err(|_| {
        invalid(format!("{pem}: ssl.key.password does not open it, or its encryption is not known"))
            .hint("openssl pkcs8 -topk8 -v2 aes-256-cbc makes a key that is")
    })?;
    Ok(PrivatePkcs8KeyDer::from(key.as_bytes().to_vec()).into())
}

fn read(pem: &Pem) -> Result<Vec<u8>> {
    match pem {
        Pem::File(path, _) => fs::read(path).map_err(|e| invalid(format!("{pem}: {}", os_text(&e)))),
        Pem::Text(text, _) => Ok(text.reveal().as_bytes().to_vec()),
    }
}

fn invalid(what: String) -> Error {
    Error::new(Kind::Config, what)
}

/// Greets the broker at `address` (`host:port`) over a socket that does not block.
pub fn handshake(
    config: &Arc<ClientConfig>,
    address: &str,
    mut socket: TcpStream,
    deadline: Instant,
) -> Result<TlsStream> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
    let name = ServerName::try_from(host.to_string())
        .map_err(|_| invalid(format!("broker {address}: TLS needs a host name")))?;
    let mut connection =
        ClientConnection::new(config.clone(), name).map_err(|e| invalid(format!("broker {address}: TLS: {e}")))?;
    while connection.is_handshaking() {
        match connection.complete_io(&mut socket) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                if Instant::now() >= deadline {
                    return Err(Error::new(
                        Kind::Unavailable,
                        format!("broker {address}: no end of the TLS handshake in time"),
                    )
                    .hint("is this the port of a listener with TLS?"));
                }
                wait_for(socket.as_fd(), connection.wants_write(), deadline);
            }
            Err(e) => return Err(explain(&e, address)),
        }
    }
    Ok(StreamOwned::new(connection, socket))
}

/// What a failed handshake means.
pub fn explain(e: &io::Error, address: &str) -> Error {
    let rustls = e.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let error = |kind, what: String| Error::new(kind, format!("broker {address}: TLS: {what}"));
    match rustls {
        Some(rustls::Error::InvalidCertificate(why)) => match why {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                error(Kind::Refused, "its certificate is signed by nobody we believe".into())
                    .hint("set ssl.ca.location to the CA's certificate")
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                error(Kind::Refused, "its certificate is for another host name".into())
                    .hint("use a name that is in it (advertised.listeners too)")
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                error(Kind::Refused, "its certificate has expired".into())
            }
            other => error(Kind::Refused, format!("its certificate is not valid: {other:?}")),
        },
        Some(rustls::Error::InvalidMessage(_)) => {
            error(Kind::Unavailable, "the answer is no TLS".into()).hint("is this the port of a plaintext listener?")
        }
        Some(rustls::Error::AlertReceived(alert)) => refused(address, &format!(" ({alert:?})")),
        Some(other) => error(Kind::Refused, other.to_string().to_lowercase()),
        None if e.kind() == io::ErrorKind::UnexpectedEof => {
            error(Kind::Unavailable, "the broker closed the connection in the handshake".into())
                .hint("is this the port of a listener with TLS, and does it take our certificate?")
        }
        None => error(Kind::Unavailable, os_text(e)),
    }
}

/// The broker has ended the handshake, or what came first after it, by an alert.
pub fn refused(address: &str, why: &str) -> Error {
    Error::new(Kind::Refused, format!("broker {address}: TLS: the broker refuses us{why}"))
        .hint("it may want a client certificate (ssl.certificate.location, ssl.key.location) of a CA it believes")
}

/// A verifier that checks less than it should, as it was told to: no host name, or nothing at all.
#[derive(Debug)]
struct Lax {
    chain: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Lax {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        match chain.verify_server_cert(end_entity, intermediates, name, ocsp, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
