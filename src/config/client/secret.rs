//! Values that must not be seen, and references to values that are kept elsewhere.
//!
//! `${env:NAME}` is a variable, `${file:PATH}` what a file holds, `${fd:N}` what can be read from a descriptor; `$${`
//! stands for `${`. One line end behind a file's content is dropped. Reads what is referred to, and logs nothing.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::Read;

use crate::cli::words::shown;
use crate::config::lookup::Env;
use crate::sys;

/// More than any key, certificate chain or token.
const LARGEST: u64 = 1 << 20;

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides `text`.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text, for the one who needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Replaces references.
pub(super) struct Resolver<'a> {
    env: &'a Env,
    /// What was read already: a pipe can be read once only.
    known: HashMap<String, String>,
}

impl<'a> Resolver<'a> {
    /// Takes variables from `env`.
    pub(super) fn new(env: &'a Env) -> Resolver<'a> {
        Resolver { env, known: HashMap::new() }
    }

    /// `text` with each reference replaced by what it stands for. An error names the reference and never a value.
    pub(super) fn resolve(&mut self, text: &str) -> Result<String, String> {
        let mut resolved = String::new();
        for part in parts(text)? {
            match part {
                Part::Literal(literal) => resolved += literal,
                Part::Reference(name) => resolved += self.value(name)?,
            }
        }
        Ok(resolved)
    }

    fn value(&mut self, name: &str) -> Result<&str, String> {
        if !self.known.contains_key(name) {
            let value = match name.split_once(':') {
                Some(("env", variable)) => self.variable(variable),
                Some(("file", path)) => read(path).map_err(|why| format!("cannot be read: {why}")),
                Some(("fd", number)) => descriptor(number),
                _ => Err("is no reference; give ${env:NAME}, ${file:PATH} or ${fd:N}, or $${ for a literal ${".into()),
            };
            let value = value.map_err(|why| format!("${{{}}} {why}", shown(name).trim_matches('"')))?;
            self.known.insert(name.to_string(), value);
        }
        Ok(&self.known[name])
    }

    fn variable(&self, name: &str) -> Result<String, String> {
        match self.env.get(name).map(|value| value.to_str()) {
            Some(Some(value)) => Ok(value.to_string()),
            Some(None) => Err("is not valid UTF-8; set the variable again".into()),
            None => Err("is not set; set the variable".into()),
        }
    }
}

/// Whether `text` is made of references alone: a secret is then not in it.
pub(super) fn is_reference(text: &str) -> bool {
    parts(text).is_ok_and(|parts| !parts.is_empty() && parts.iter().all(|part| matches!(part, Part::Reference(_))))
}

enum Part<'a> {
    Literal(&'a str),
    Reference(&'a str),
}

fn parts(text: &str) -> Result<Vec<Part<'_>>, String> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            parts.extend([Part::Literal(&rest[..at - 1]), Part::Literal("${")]);
            rest = &rest[at + 2..];
            continue;
        }
        if at > 0 {
            parts.push(Part::Literal(&rest[..at]));
        }
        let inner = &rest[at + 2..];
        let end = inner.find('}').ok_or("has ${ without }; write ${env:NAME}, or $${ for a literal ${")?;
        parts.push(Part::Reference(&inner[..end]));
        rest = &inner[end + 1..];
    }
    if !rest.is_empty() {
        parts.push(Part::Literal(rest));
    }
    Ok(parts)
}

fn descriptor(number: &str) -> Result<String, String> {
    let number = number.parse::<i32>().ok().filter(|&number| number > 2);
    let number = number.ok_or("is no descriptor; give one from 3 on, opened as in 3<FILE")?;
    let content = read(&format!("/dev/fd/{number}")).map_err(|why| format!("cannot be read: {why}"));
    // Or every command would inherit it, and could read it too.
    sys::close_on_exec(number);
    content
}

fn read(path: &str) -> Result<String, String> {
    let mut text = String::new();
    let file = File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_string(&mut text));
    file.map_err(|error| crate::error::os_text(&error))?;
    if text.len() as u64 > LARGEST {
        return Err("is larger than 1 MiB".into());
    }
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, Write};
    use std::num::NonZeroUsize;
    use std::os::fd::AsRawFd;

    fn resolve(text: &str) -> Result<String, String> {
        let env = Env::new([("PW", "s3cr\"et"), ("EMPTY", "")], NonZeroUsize::MIN);
        Resolver::new(&env).resolve(text)
    }

    #[test]
    fn references_are_replaced() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"from file\r\n").unwrap();
        let path = file.path().to_str().unwrap();
        for (text, expected) in [
            ("plain", "plain".to_string()),
            ("a ${env:PW} b ${env:PW}${env:EMPTY}", "a s3cr\"et b s3cr\"et".to_string()),
            ("$${env:PW} $5 {x}", "${env:PW} $5 {x}".to_string()),
            (&format!("${{file:{path}}}"), "from file".to_string()),
        ] {
            assert_eq!(resolve(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_descriptor_is_read_and_not_left_to_commands() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"from descriptor\n").unwrap();
        file.rewind().unwrap();
        rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
        assert_eq!(resolve(&format!("${{fd:{}}}", file.as_raw_fd())), Ok("from descriptor".into()));
        assert!(rustix::io::fcntl_getfd(&file).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[test]
    fn what_is_missing_is_named() {
        for (text, why) in [
            ("${env:ABSENT}", "${env:ABSENT} is not set"),
            ("${file:/absent/x}", "${file:/absent/x} cannot be read: no such file or directory"),
            ("${fd:1}", "${fd:1} is no descriptor"),
            ("${fd:x}", "${fd:x} is no descriptor"),
            ("${fd:987}", "${fd:987} cannot be read"),
            ("${PW}", "${PW} is no reference; give ${env:NAME}"),
            ("${env:PW", "has ${ without }"),
        ] {
            let error = resolve(text).unwrap_err();
            assert!(error.starts_with(why), "{text}: {error}");
        }
    }

    #[test]
    fn only_references_alone_hold_no_secret() {
        for (text, expected) in [
            ("${env:A}", true),
            ("${env:A}${fd:3}", true),
            ("x${env:A}", false),
            ("x", false),
            ("", false),
            ("$${env:A}", false),
        ] {
            assert_eq!(is_reference(text), expected, "{text}");
        }
    }

    #[test]
    fn a_secret_is_not_shown() {
        assert_eq!(format!("{:?}", Some(Secret::new("hidden"))), "Some(***)");
    }
}
