//! SCRAM, the client's side: a password is proven without being sent, and the server has to prove that it knows it too.
//!
//! Pure but for the nonce. RFC 5802 and, for SHA-256, RFC 7677.

use std::num::NonZeroU32;

use base64ct::{Base64, Encoding};
use ring::rand::SecureRandom;
use ring::{digest, hmac, pbkdf2, rand};

/// Fewest iterations that are accepted (RFC 7677), and the most: what a broker could make us compute.
const ITERATIONS: std::ops::RangeInclusive<u32> = 4096..=10_000_000;

/// The hash a mechanism is named after.
#[derive(Clone, Copy, Debug)]
pub enum Hash {
    /// SCRAM-SHA-256.
    Sha256,
    /// SCRAM-SHA-512.
    Sha512,
}

impl Hash {
    fn hmac(self) -> hmac::Algorithm {
        match self {
            Hash::Sha256 => hmac::HMAC_SHA256,
            Hash::Sha512 => hmac::HMAC_SHA512,
        }
    }

    fn digest(self) -> &'static digest::Algorithm {
        match self {
            Hash::Sha256 => &digest::SHA256,
            Hash::Sha512 => &digest::SHA512,
        }
    }

    fn pbkdf2(self) -> pbkdf2::Algorithm {
        match self {
            Hash::Sha256 => pbkdf2::PBKDF2_HMAC_SHA256,
            Hash::Sha512 => pbkdf2::PBKDF2_HMAC_SHA512,
        }
    }
}

/// An exchange that has begun.
pub struct Client<'a> {
    hash: Hash,
    password: &'a str,
    nonce: String,
    first_bare: String,
}

/// An exchange that waits for the server's proof.
pub struct Proven {
    server_key: hmac::Key,
    signed: String,
}

impl<'a> Client<'a> {
    /// Begins, with a nonce of its own.
    pub fn new(hash: Hash, user: &str, password: &'a str) -> Result<Client<'a>, String> {
        let mut random = [0; 24];
        rand::SystemRandom::new().fill(&mut random).map_err(|_| "the system has no random numbers")?;
        Ok(Client::with_nonce(hash, user, password, Base64::encode_string(&random)))
    }

    fn with_nonce(hash: Hash, user: &str, password: &'a str, nonce: String) -> Client<'a> {
        let user = user.replace('=', "=3D").replace(',', "=2C");
        let first_bare = format!("n={user},r={nonce}");
        Client { hash, password, nonce, first_bare }
    }

    /// The first message.
    pub fn first(&self) -> String {
        format!("n,,{}", self.first_bare)
    }

    /// The last message, in answer to the server's first one.
    pub fn last(self, server_first: &str) -> Result<(String, Proven), String> {
        let field = |name: &str| server_first.split(',').find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
        if let Some(error) = field("e") {
            return Err(format!("the server says {error:?}"));
        }
        let missing = || "the server's first message is malformed".to_string();
        let nonce = field("r").ok_or_else(missing)?;
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err("the server's nonce does not begin with ours".into());
        }
        let salt = Base64::decode_vec(field("s").ok_or_else(missing)?).map_err(|_| missing())?;
        let iterations: u32 = field("i").and_then(|text| text.parse().ok()).ok_or_else(missing)?;
        if !ITERATIONS.contains(&iterations) {
            return Err(format!("the server asks for {iterations} iterations; {ITERATIONS:?} are accepted"));
        }
        let iterations = NonZeroU32::new(iterations).ok_or_else(missing)?;
        let mut salted = vec![0; self.hash.digest().output_len()];
        pbkdf2::derive(self.hash.pbkdf2(), iterations, &salt, self.password.as_bytes(), &mut salted);

        let sign = |key: &[u8], text: &[u8]| hmac::sign(&hmac::Key::new(self.hash.hmac(), key), text).as_ref().to_vec();
        let client_key = sign(&salted, b"Client Key");
        let stored_key = digest::digest(self.hash.digest(), &client_key);
        let without_proof = format!("c=biws,r={nonce}");
        let signed = format!("{},{server_first},{without_proof}", self.first_bare);
        let signature = sign(stored_key.as_ref(), signed.as_bytes());
        let proof: Vec<u8> = client_key.iter().zip(&signature).map(|(key, signature)| key ^ signature).collect();
        let server_key = hmac::Key::new(self.hash.hmac(), &sign(&salted, b"Server Key"));
        let message = format!("{without_proof},p={}", Base64::encode_string(&proof));
        Ok((message, Proven { server_key, signed }))
    }
}

impl Proven {
    /// Whether the server's last message proves that it knows the password.
    pub fn check(&self, server_last: &str) -> Result<(), String> {
        if let Some(error) = server_last.strip_prefix("e=") {
            return Err(format!("the server says {error:?}"));
        }
        let signature =
            server_last.strip_prefix("v=").and_then(|text| Base64::decode_vec(text.split(',').next()?).ok());
        let proven = signature.is_some_and(|s| hmac::verify(&self.server_key, self.signed.as_bytes(), &s).is_ok());
        if proven { Ok(()) } else { Err("the server has not proven that it knows the password".into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exchange_of_rfc_7677_comes_out() {
        let client = Client::with_nonce(Hash::Sha256, "user", "pencil", "rOprNGfwEbeRWgbNEkqO".into());
        assert_eq!(client.first(), "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let server_first = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let (last, proven) = client.last(server_first).unwrap();
        assert_eq!(
            last,
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        proven.check("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=").unwrap();
        assert!(proven.check("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G5=").is_err());
        assert!(proven.check("e=invalid-proof").unwrap_err().contains("invalid-proof"));
    }

    #[test]
    fn a_server_that_cheats_is_found_out() {
        let last = |server_first: &str| {
            let client = Client::with_nonce(Hash::Sha512, "a=b,c", "p", "abc".into());
            assert_eq!(client.first(), "n,,n=a=3Db=2Cc,r=abc");
            client.last(server_first).err().expect(server_first)
        };
        assert!(last("r=abX,s=QQ==,i=4096").contains("nonce"));
        assert!(last("r=abc,s=QQ==,i=4096").contains("nonce"));
        assert!(last("r=abcd,s=QQ==,i=1").contains("1 iterations"));
        assert!(last("r=abcd,s=QQ==,i=4000000000").contains("iterations"));
        assert!(last("r=abcd,s=!,i=4096").contains("malformed"));
        assert!(last("").contains("malformed"));
    }
}
