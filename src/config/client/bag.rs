//! The properties that were given, each with where it stands; and what is wrong with them.
//!
//! -X goes before the file. Values are taken out by key, references in them replaced; a secret that was typed is refused.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::keys::{self, Fate};
use super::properties;
use super::secret::{Resolver, Secret, is_reference};
use crate::cli::words::shown;
use crate::config::lookup::{Checked, Env};
use crate::config::mistakes::{Mistake, Source};
use crate::config::units::Parsed;
use crate::error::os_text;

/// What was given.
pub(super) struct Bag<'a> {
    env: &'a Env,
    given: BTreeMap<&'static str, Given>,
    resolver: Resolver<'a>,
    /// What is wrong.
    pub(super) mistakes: Vec<Mistake>,
    /// What deserves a word though it is no mistake.
    pub(super) remarks: Vec<String>,
}

/// One property, as it was given.
struct Given {
    raw: String,
    /// Where it stands: `-X` or `client.properties:3`.
    place: String,
    /// The name it was given under.
    name: String,
    typed: bool,
    secret: bool,
}

impl Given {
    /// How a message begins: `-X sasl.mechanism`, `client.properties:3: sasl.mechanism`.
    fn label(&self) -> String {
        label(&self.place, &self.name, self.typed)
    }
}

fn label(place: &str, name: &str, typed: bool) -> String {
    let name = shown(name);
    let name = name.trim_matches('"');
    if typed { format!("{place} {name}") } else { format!("{place}: {name}") }
}

impl<'a> Bag<'a> {
    /// An empty one; variables are taken from `env`.
    pub(super) fn new(env: &'a Env) -> Bag<'a> {
        Bag { env, given: BTreeMap::new(), resolver: Resolver::new(env), mistakes: Vec::new(), remarks: Vec::new() }
    }

    /// Adds what stands in the file of that name, which was given in `source`.
    pub(super) fn add_file(&mut self, name: &str, source: &Source) {
        let parsed = match fs::read(name).map(String::from_utf8) {
            Ok(Ok(text)) => properties::parse(&text),
            Ok(Err(_)) => return self.wrong(false, format!("{name}: is not UTF-8; write other characters as \\uXXXX")),
            Err(error) => {
                let why = os_text(&error);
                let text = format!("{source}: {} cannot be read: {why}; give a properties file", shown(name));
                return self.wrong(source.is_flag(), text);
            }
        };
        let properties = match parsed {
            Ok(properties) => properties,
            Err((line, why)) => return self.wrong(false, format!("{name}:{line}: {why}")),
        };
        let mut bare_secret = false;
        for property in properties {
            let place = format!("{name}:{}", property.line);
            bare_secret |= matches!(keys::find(&property.key), Ok((_, Fate::Secret))) && !is_reference(&property.value);
            self.add(property.key, property.value, place, false);
        }
        let mode = fs::metadata(name).map_or(0, |metadata| metadata.permissions().mode());
        if bare_secret && mode & 0o004 != 0 {
            self.remarks.push(format!("{name} holds a secret and every user can read it; chmod 600 {name}"));
        }
    }

    /// Adds what was typed as `-X KEY=VALUE`. Nothing of a value is shown: it may be a secret under a mistyped key.
    pub(super) fn add_typed(&mut self, properties: &[String]) {
        for text in properties {
            match text.split_once('=').map(|(key, value)| (key.trim(), value.trim())) {
                Some((key, value)) if !key.is_empty() => self.add(key.into(), value.into(), "-X".into(), true),
                _ => {
                    self.wrong(true, "-X: is not of the form KEY=VALUE; give one such as -X client.id=worker-7".into())
                }
            }
        }
    }

    fn add(&mut self, name: String, raw: String, place: String, typed: bool) {
        let label = label(&place, &name, typed);
        let (key, fate) = match keys::find(&name) {
            Ok(found) => found,
            Err(why) => return self.wrong(typed, format!("{label} {why}")),
        };
        let secret = fate == Fate::Secret;
        match fate {
            Fate::Refused(advice) => return self.wrong(typed, format!("{label}: {advice}")),
            Fate::Option(option) if typed => {
                return self.wrong(typed, format!("{label}: has an option of its own; give {option}"));
            }
            Fate::Option(option) => return self.remarks.push(format!("{label} has no effect; {option} says it")),
            Fate::Idle(why) => return self.remarks.push(format!("{label} has no effect: {why}")),
            Fate::Taken | Fate::Secret | Fate::Alias(_) => {}
        }
        // In a login module only the password is secret, and that is looked at where it is taken apart.
        if secret && typed && !is_reference(&raw) && key != "sasl.jaas.config" {
            self.wrong(typed, format!("{label}: {NOT_TYPED}"));
        }
        let given = Given { raw, place, name, typed, secret };
        if let Some(before) = self.given.get(key).filter(|before| before.typed == typed) {
            let text = format!("{label} is given twice, as {} too; give it once", before.label());
            return self.wrong(typed, text);
        }
        self.given.insert(key, given);
    }

    /// Where variables are taken from.
    pub(super) fn env(&self) -> &'a Env {
        self.env
    }

    /// Whether a property was given.
    pub(super) fn has(&self, key: &str) -> bool {
        self.given.contains_key(key)
    }

    /// Whether a property was typed.
    pub(super) fn is_typed(&self, key: &str) -> bool {
        self.given.get(key).is_some_and(|given| given.typed)
    }

    /// How a message about a property begins.
    pub(super) fn label(&self, key: &str) -> String {
        self.given.get(key).map_or_else(|| key.to_string(), Given::label)
    }

    /// The value as it stands, for a property whose references are replaced in its parts.
    pub(super) fn raw(&self, key: &str) -> Option<String> {
        self.given.get(key).map(|given| given.raw.clone())
    }

    /// Replaces the references in a part of the value of `key`.
    pub(super) fn resolve(&mut self, key: &str, text: &str) -> Checked<String> {
        match self.resolver.resolve(text) {
            Ok(value) => Some(value),
            Err(why) => {
                self.mistake(key, &why);
                None
            }
        }
    }

    /// The value of a property; `Some(None)`: it was not given, or is empty.
    pub(super) fn text(&mut self, key: &str) -> Checked<Option<String>> {
        let Some(raw) = self.raw(key) else { return Some(None) };
        let value = self.resolve(key, &raw)?;
        Some(Some(value).filter(|value| !value.is_empty()))
    }

    /// Like [`text`](Self::text), for a secret.
    pub(super) fn secret(&mut self, key: &str) -> Checked<Option<Secret>> {
        Some(self.text(key)?.map(Secret::new))
    }

    /// The typed value of a property that is no secret.
    pub(super) fn value<T>(&mut self, key: &str, default: T, parse: impl Fn(&str) -> Parsed<T>) -> Checked<T> {
        let Some(text) = self.text(key)? else { return Some(default) };
        match parse(text.trim()) {
            Ok(value) => Some(value),
            Err(why) => {
                self.mistake(key, &format!("{} {why}", shown(&text)));
                None
            }
        }
    }

    /// Notes a mistake about a property.
    pub(super) fn mistake(&mut self, key: &str, why: &str) {
        self.wrong(self.is_typed(key), format!("{}: {why}", self.label(key)));
    }

    fn wrong(&mut self, typed: bool, text: String) {
        self.mistakes.push(Mistake { typed, text });
    }

    /// What was given, for the log: each as it was written, none that is a secret.
    pub(super) fn shown(&self) -> Vec<String> {
        let value = |given: &Given| if given.secret { "***".to_string() } else { shown(&given.raw) };
        let shown = |(key, given): (&&str, &Given)| format!("{key}={} (from {})", value(given), given.place);
        self.given.iter().map(shown).collect()
    }
}

/// What is said of a secret that was typed.
pub(super) const NOT_TYPED: &str = "a secret is never an argument, for every user of the machine can read it there; put \
                                    it into the --kafka-config file, or refer to it: ${env:NAME}, ${file:PATH} or ${fd:N}";
