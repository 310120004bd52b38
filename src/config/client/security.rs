//! `security.protocol` and what belongs to it: TLS and SASL.
//!
//! Decides from texts alone, but for the program of `airkafka.token.command`, which has to be there. What the named files
//! hold is looked at when connections are opened.

use super::bag::{Bag, NOT_TYPED};
use super::secret::is_reference;
use super::{Identity, Login, Pem, Sasl, Secret, Tls, Token, TokenSource, Verify, jaas};
use crate::cli::words::shown;
use crate::config::lookup::Checked;
use crate::config::{paths, units};
use crate::record::words;

/// Whether there is TLS, and whether there is SASL.
const PROTOCOLS: &[(&str, (bool, bool))] = &[
    ("PLAINTEXT", (false, false)),
    ("SSL", (true, false)),
    ("SASL_PLAINTEXT", (false, true)),
    ("SASL_SSL", (true, true)),
];

const TLS_KEYS: [&str; 8] = [
    "ssl.ca.location",
    "ssl.truststore.location",
    "ssl.truststore.certificates",
    "ssl.certificate.location",
    "ssl.key.location",
    "ssl.keystore.location",
    "ssl.keystore.certificate.chain",
    "ssl.keystore.key",
];
const SASL_KEYS: [&str; 6] = [
    "sasl.mechanism",
    "sasl.username",
    "sasl.password",
    "sasl.jaas.config",
    "airkafka.token.file",
    "airkafka.token.command",
];

/// What a login module is used for.
const MODULES: &[(&str, &[&str])] = &[
    ("PlainLoginModule", &["PLAIN"]),
    ("ScramLoginModule", &["SCRAM-SHA-256", "SCRAM-SHA-512"]),
    ("OAuthBearerLoginModule", &["OAUTHBEARER"]),
];

pub(super) fn build(bag: &mut Bag) -> Checked<(Option<Tls>, Option<Sasl>)> {
    let (with_tls, with_sasl) = bag.value("security.protocol", (false, false), |text| units::word(text, PROTOCOLS))?;
    for (used, keys, with) in [(with_tls, &TLS_KEYS[..], "SSL or SASL_SSL"), (with_sasl, &SASL_KEYS, "SASL_SSL")] {
        let idle = keys.iter().find(|key| !used && bag.has(key));
        let Some(key) = idle else { continue };
        if bag.has("security.protocol") {
            bag.remarks.push(format!("{} has no effect with this security.protocol", bag.label(key)));
        } else {
            bag.mistake(key, &format!("has no effect without security.protocol; give security.protocol={with}"));
        }
    }
    let tls = if with_tls { tls(bag).map(Some) } else { Some(None) };
    let sasl = if with_sasl { sasl(bag).map(Some) } else { Some(None) };
    let (tls, sasl) = (tls?, sasl?);
    if let (None, Some(Sasl::Plain(_) | Sasl::OAuthBearer(_))) = (&tls, &sasl) {
        bag.remarks.push("security.protocol=SASL_PLAINTEXT: the password or token travels unencrypted".into());
    }
    Some((tls, sasl))
}

fn tls(bag: &mut Bag) -> Checked<Tls> {
    let (trust, key) = (store_type(bag, "ssl.truststore.type"), store_type(bag, "ssl.keystore.type"));
    let roots = roots(bag);
    let identity = identity(bag);
    let verify = verify(bag);
    let versions = bag.value("ssl.enabled.protocols", (true, true), |text| {
        let names: Vec<&str> = text.split(',').map(str::trim).collect();
        let versions = (names.contains(&"TLSv1.2"), names.contains(&"TLSv1.3"));
        if versions == (false, false) {
            Err("holds neither TLSv1.2 nor TLSv1.3; give one or both".into())
        } else {
            Ok(versions)
        }
    });
    trust?;
    key?;
    Some(Tls { roots: roots?, identity: identity?, verify: verify?, versions: versions? })
}

fn store_type(bag: &mut Bag, key: &str) -> Checked<()> {
    bag.value(key, (), |text| match text.to_uppercase().as_str() {
        "PEM" => Ok(()),
        _ => {
            Err("is no kind of store that is read here; make it PEM (keytool -importkeystore to PKCS12, then openssl \
                  pkcs12) and give ssl.ca.location, ssl.certificate.location and ssl.key.location"
                .into())
        }
    })
}

/// Whichever of these was given: properties that name a file, properties that hold PEM.
fn pem(bag: &mut Bag, keys: &[(&'static str, bool)]) -> Checked<Option<Pem>> {
    let given: Vec<(&'static str, bool)> = keys.iter().copied().filter(|(key, _)| bag.has(key)).collect();
    if let [(one, _), (other, _), ..] = given[..] {
        let other = bag.label(other);
        bag.mistake(one, &format!("says the same as {other}; give one of them"));
        return None;
    }
    let Some(&(key, is_file)) = given.first() else { return Some(None) };
    let text = bag.text(key)?;
    Some(text.map(|text| if is_file { Pem::File(text.into(), key) } else { Pem::Text(Secret::new(text), key) }))
}

fn roots(bag: &mut Bag) -> Checked<Option<Pem>> {
    let keys = [("ssl.ca.location", true), ("ssl.truststore.location", true), ("ssl.truststore.certificates", false)];
    let roots = pem(bag, &keys)?;
    // librdkafka's word for the system's certificates.
    Some(roots.filter(|roots| !matches!(roots, Pem::File(path, _) if path.as_os_str() == "probe")))
}

fn identity(bag: &mut Bag) -> Checked<Option<Identity>> {
    const CERTIFICATES: [(&str, bool); 3] = [
        ("ssl.certificate.location", true),
        ("ssl.keystore.location", true),
        ("ssl.keystore.certificate.chain", false),
    ];
    const KEYS: [(&str, bool); 3] =
        [("ssl.key.location", true), ("ssl.keystore.location", true), ("ssl.keystore.key", false)];
    let certificates = pem(bag, &CERTIFICATES);
    let (key, password) = (pem(bag, &KEYS), bag.secret("ssl.key.password"));
    match (certificates?, key?) {
        (Some(certificates), Some(key)) => Some(Some(Identity { certificates, key, password: password? })),
        (None, None) => {
            password?;
            Some(None)
        }
        (Some(Pem::File(_, name) | Pem::Text(_, name)), None) => {
            bag.mistake(name, "is a certificate without its key; give ssl.key.location too");
            None
        }
        (None, Some(Pem::File(_, name) | Pem::Text(_, name))) => {
            bag.mistake(name, "is a key without its certificate; give ssl.certificate.location too");
            None
        }
    }
}

fn verify(bag: &mut Bag) -> Checked<Verify> {
    const CHECK: &[(&str, bool)] = &[("true", true), ("false", false)];
    const NAMES: &[(&str, bool)] = &[("https", true), ("none", false)];
    let (certificates, names) = ("enable.ssl.certificate.verification", "ssl.endpoint.identification.algorithm");
    let is_empty = bag.raw(names).is_some_and(|raw| raw.trim().is_empty());
    let check = bag.value(certificates, true, |text| units::word(text, CHECK));
    let check_names = bag.value(names, !is_empty, |text| units::word(text, NAMES));
    let verify = match (check?, check_names?) {
        (false, _) => Verify::Nothing,
        (true, false) => Verify::Chain,
        (true, true) => return Some(Verify::Full),
    };
    let (key, what) = match verify {
        Verify::Nothing => {
            (certificates, "certificates of brokers are not checked: anybody on the way can read and forge")
        }
        _ => (
            names,
            "host names in certificates are not checked: whoever has a certificate of that CA can pose as a broker",
        ),
    };
    bag.remarks.push(format!("{}: {what}", bag.label(key)));
    Some(verify)
}

fn sasl(bag: &mut Bag) -> Checked<Sasl> {
    const MECHANISMS: &str = "PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER";
    let jaas = login_module(bag);
    let mechanism = bag.value("sasl.mechanism", None, |text| match text.to_uppercase().as_str() {
        name @ ("PLAIN" | "SCRAM-SHA-256" | "SCRAM-SHA-512" | "OAUTHBEARER") => Ok(Some(name.to_string())),
        "GSSAPI" => {
            Err(format!("is Kerberos, which is not spoken here; give {MECHANISMS}, or use a client certificate"))
        }
        _ => Err(format!("is not known; give {MECHANISMS}")),
    });
    let (jaas, mechanism) = (jaas?, mechanism?);
    let fits = jaas.as_ref().and_then(|jaas| MODULES.iter().find(|(module, _)| *module == jaas.module));
    let mechanism = match (mechanism, fits) {
        (Some(mechanism), Some((module, fits))) if !fits.contains(&mechanism.as_str()) => {
            bag.mistake("sasl.jaas.config", &format!("{module} does not fit sasl.mechanism {mechanism}"));
            return None;
        }
        (Some(mechanism), _) => mechanism,
        (None, Some((_, [only]))) => only.to_string(),
        (None, _) => {
            bag.mistake("sasl.mechanism", &format!("not given; give {MECHANISMS}"));
            return None;
        }
    };
    let options = jaas.map(|jaas| jaas.options).unwrap_or_default();
    if mechanism == "OAUTHBEARER" {
        return token(bag, options).map(Sasl::OAuthBearer);
    }
    let mut part = |key, option: &str| {
        let (given, option) = (bag.secret(key), options.get(option).map(|value| Secret::new(value.as_str())));
        match given? {
            Some(given) => Some(given),
            None if option.is_some() => option,
            None => {
                bag.mistake(key, &format!("not given, but {mechanism} needs it"));
                None
            }
        }
    };
    let (user, password) = (part("sasl.username", "username"), part("sasl.password", "password"));
    let login = Login { user: user?.reveal().to_string(), password: password? };
    // The fields of a PLAIN message end in NUL.
    if login.user.contains('\0') || login.password.reveal().contains('\0') {
        bag.mistake("sasl.username", "a user name or password holds a NUL byte");
        return None;
    }
    Some(match mechanism.as_str() {
        "PLAIN" => Sasl::Plain(login),
        "SCRAM-SHA-256" => Sasl::ScramSha256(login),
        _ => Sasl::ScramSha512(login),
    })
}

/// What `sasl.jaas.config` holds, references replaced in its options, so that a password may hold any character.
fn login_module(bag: &mut Bag) -> Checked<Option<jaas::Jaas>> {
    let key = "sasl.jaas.config";
    let Some(raw) = bag.raw(key).filter(|raw| !raw.trim().is_empty()) else { return Some(None) };
    let whole = is_reference(&raw);
    let text = if whole { bag.resolve(key, &raw)? } else { raw };
    let mut jaas = match jaas::parse(&text) {
        Ok(jaas) => jaas,
        Err(why) => {
            bag.mistake(key, &why);
            return None;
        }
    };
    if !MODULES.iter().any(|(module, _)| *module == jaas.module) {
        let known: Vec<&str> = MODULES.iter().map(|(module, _)| *module).collect();
        bag.mistake(
            key,
            &format!("{} is no login module that is known; give {}", shown(&jaas.module), known.join(", ")),
        );
        return None;
    }
    if !whole {
        for (name, value) in &mut jaas.options {
            if bag.is_typed(key) && name != "username" && !is_reference(value) {
                bag.mistake(key, &format!("{name}: {NOT_TYPED}"));
                return None;
            }
            *value = bag.resolve(key, value)?;
        }
    }
    Some(Some(jaas))
}

fn token(bag: &mut Bag, options: std::collections::BTreeMap<String, String>) -> Checked<Token> {
    let (file, command) = ("airkafka.token.file", "airkafka.token.command");
    if bag.has(file) && bag.has(command) {
        let other = bag.label(command);
        bag.mistake(file, &format!("says the same as {other}; give one of them"));
        return None;
    }
    let path = bag.env().get("PATH");
    let argv = bag.value(command, None, |text| argv(text, path).map(Some))?;
    let source = match (bag.text(file)?, argv) {
        (Some(path), _) => TokenSource::File(path.into()),
        (None, Some(argv)) => TokenSource::Command(argv),
        (None, None) => {
            bag.mistake(file, "not given, nor airkafka.token.command, but OAUTHBEARER needs one of them");
            return None;
        }
    };
    let mut extensions = bag.value("sasl.oauthbearer.extensions", Vec::new(), |text| {
        text.split(',').map(str::trim).filter(|pair| !pair.is_empty()).map(extension).collect()
    })?;
    for (name, value) in &options {
        match name.strip_prefix("extension_") {
            Some(name) => extensions.push((name.to_string(), value.clone())),
            None => bag.remarks.push(format!("{}: {name} has no effect", bag.label("sasl.jaas.config"))),
        }
    }
    let sound = |(name, value): &(String, String)| {
        let name_is_sound = name != "auth" && !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphabetic());
        name_is_sound && value.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\t' | b'\r' | b'\n'))
    };
    if !extensions.iter().all(sound) {
        let key = "sasl.oauthbearer.extensions";
        bag.mistake(
            key,
            "an extension is no NAME=VALUE of letters and printable characters; give it so, not named auth",
        );
        return None;
    }
    Some(Token { source, extensions })
}

fn extension(pair: &str) -> units::Parsed<(String, String)> {
    let (name, value) = pair.split_once('=').ok_or("is no list of extensions; give NAME=VALUE[,NAME=VALUE...]")?;
    Ok((name.to_string(), value.to_string()))
}

fn argv(text: &str, path: Option<&std::ffi::OsStr>) -> units::Parsed<Vec<String>> {
    const ADVICE: &str = "give PROGRAM ARG... quoted as for a shell, which it is not given to";
    let mut argv = words::split(text).map_err(|why| {
        let what = why.split(": ").next().unwrap_or_default().to_string();
        format!("is no command: {what}; {ADVICE} (or sh -c '...')")
    })?;
    let Some(program) = argv.first_mut() else { return Err(format!("is no command; {ADVICE}")) };
    let found = paths::program(program, path).map_err(|why| format!("is no command: {} {why}", shown(program)))?;
    *program = found.to_str().ok_or("is no command: its path is not UTF-8")?.to_string();
    Ok(argv)
}
