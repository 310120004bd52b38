//! Finds each setting: flag > our variable > Airflow's variable > file > default; and keeps what was wrong.
//!
//! Reads the file that `--config` names, once. Knows the names of the options from their table and nothing of what they
//! mean.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::num::NonZeroUsize;
use std::path::Path;

use super::file::{self, CfgFile};
use super::mistakes::{Mistake, Source};
use super::units::Parsed;
use crate::cli::options::{self, Fallback, OPTIONS, Opt, WORKER_SECTION, airflow_variable};
use crate::cli::words::{near_miss, shown};
use crate::cli::{Args, Subcommand};

/// What the configuration takes from the process: its environment variables and the number of CPUs.
#[derive(Clone, Debug)]
pub struct Env {
    variables: BTreeMap<OsString, OsString>,
    /// How many threads run when nobody says.
    pub cpus: NonZeroUsize,
}

impl Env {
    /// That of this process.
    pub fn of_process() -> Env {
        let cpus = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Env { variables: std::env::vars_os().collect(), cpus }
    }

    /// One made of these variables.
    pub fn new<N: Into<OsString>, V: Into<OsString>>(
        variables: impl IntoIterator<Item = (N, V)>,
        cpus: NonZeroUsize,
    ) -> Env {
        Env { variables: variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect(), cpus }
    }

    /// The value of a variable, as it is.
    pub fn get(&self, name: &str) -> Option<&OsStr> {
        self.variables.get(OsStr::new(name)).map(OsString::as_os_str)
    }
}

/// A checked value; `None`: it is wrong, and that has been noted.
pub(super) type Checked<T> = Option<T>;

/// A value as it was found.
struct Found {
    value: String,
    source: Source,
}

/// The search.
pub(super) struct Lookup<'a> {
    args: &'a Args,
    env: &'a Env,
    file: CfgFile,
    /// Whether there is a file, but one that could not be used: then what is missing may well be in it.
    pub(super) file_failed: bool,
    /// Where each setting that is not a default came from.
    pub(super) sources: BTreeMap<&'static str, Source>,
    /// The file that `--config` names.
    pub(super) config_file: Option<String>,
    /// What is wrong, and would stop a worker, but not who looks for what is wrong.
    pub(super) forgiven: Vec<Mistake>,
    /// What is wrong.
    pub(super) mistakes: Vec<Mistake>,
    /// What deserves a word though it is no mistake.
    pub(super) remarks: Vec<String>,
}

impl<'a> Lookup<'a> {
    /// Starts a search; reads the file, if there is one.
    pub(super) fn new(args: &'a Args, env: &'a Env) -> Lookup<'a> {
        let mut look = Lookup {
            args,
            env,
            file: CfgFile::default(),
            file_failed: false,
            sources: BTreeMap::new(),
            config_file: None,
            forgiven: Vec::new(),
            mistakes: Vec::new(),
            remarks: Vec::new(),
        };
        match look.find(option("config")) {
            Some(Some(Found { value, source })) => {
                look.config_file = Some(value.clone());
                look.read_file(&value, &source);
            }
            Some(None) => {}
            None => look.file_failed = true,
        }
        look.remark_on_variables();
        look
    }

    fn read_file(&mut self, name: &str, source: &Source) {
        if self.args.subcommand == Subcommand::Init && !Path::new(name).exists() {
            return; // it is about to be made
        }
        match CfgFile::read(name, &source.to_string(), source.is_flag()) {
            Ok(mut file) => {
                self.remarks.append(&mut file.remarks);
                self.file = file;
            }
            Err(mut mistakes) => {
                self.file_failed = true;
                self.mistakes.append(&mut mistakes);
            }
        }
    }

    /// Whether the file has our own section.
    pub(super) fn has_section(&self) -> bool {
        self.file.has_section
    }

    /// The value of an option that can only be typed.
    pub(super) fn typed<T>(&mut self, name: &str, parse: impl Fn(&str) -> Parsed<T>) -> Checked<Option<T>> {
        let Some(value) = self.args.value(name) else { return Some(None) };
        let source = Source::Flag(format!("--{name}"));
        parse(value).map(Some).map_err(|why| self.mistake(&source, format!("{source}: {} {why}", shown(value)))).ok()
    }

    /// The value of an option that has a default in the table.
    pub(super) fn value<T>(&mut self, name: &'static str, parse: impl Fn(&str) -> Parsed<T>) -> Checked<T> {
        let opt = option(name);
        match self.optional(name, &parse)? {
            Some(value) => Some(value),
            None => match opt.fallback {
                Fallback::Value(text) => Some(parse(text).expect("the defaults of the table are valid")),
                _ => unreachable!("--{name} has no default in the table"),
            },
        }
    }

    /// The value of an option that has no default in the table.
    pub(super) fn optional<T>(&mut self, name: &'static str, parse: impl Fn(&str) -> Parsed<T>) -> Checked<Option<T>> {
        let Some(Found { value, source }) = self.find(option(name))? else { return Some(None) };
        match parse(&value) {
            Ok(parsed) => {
                self.sources.insert(name, source);
                Some(Some(parsed))
            }
            Err(why) => {
                let text = format!("{source}: {} {why}", shown(&value));
                // The doctor is there to say so, among other things; without brokers and topics it can say little else.
                if self.args.subcommand == Subcommand::Doctor && option(name).heading != options::KAFKA {
                    self.forgiven.push(Mistake { typed: source.is_flag(), text });
                    return Some(None);
                }
                self.mistake(&source, text);
                None
            }
        }
    }

    /// Notes a mistake about what came from `source`.
    pub(super) fn mistake(&mut self, source: &Source, text: String) {
        self.mistakes.push(Mistake { typed: source.is_flag(), text });
    }

    /// What was said about an option; nothing, if it does not belong to the subcommand.
    fn find(&mut self, opt: &Opt) -> Checked<Option<Found>> {
        if !opt.is_of(self.args.subcommand) {
            return Some(None);
        }
        if let Some(value) = self.args.value(opt.name).filter(|value| !value.trim().is_empty()) {
            return Some(Some(Found { value: value.to_string(), source: Source::Flag(opt.flag()) }));
        }
        let airflow = opt.file_keys().map(|(section, key)| Source::AirflowVariable(airflow_variable(section, key)));
        for source in opt.variable().map(Source::Variable).into_iter().chain(airflow) {
            let Some(value) = self.env.get(&source.to_string()) else { continue };
            let Some(text) = value.to_str() else {
                let value = shown(&value.to_string_lossy());
                self.mistake(&source, format!("{source}: {value} is not valid UTF-8; set it again or unset it"));
                return None;
            };
            let text = file::unquoted(text);
            if !text.is_empty() {
                return Some(Some(Found { value: text.to_string(), source }));
            }
        }
        for (section, key) in opt.file_keys() {
            if let Some(value) = self.file.get(section, key) {
                let source = Source::File(self.file.place(section, key));
                return Some(Some(Found { value: value.to_string(), source }));
            }
        }
        Some(None)
    }

    /// Variables that look like ours and are not, and those of AirKafka that have no effect. No mistakes: a container
    /// platform may set variables of any name.
    fn remark_on_variables(&mut self) {
        let settings: Vec<String> = OPTIONS.iter().filter_map(|opt| opt.setting).map(str::to_uppercase).collect();
        for name in self.env.variables.keys().filter_map(|name| name.to_str()) {
            let Some(rest) = name.strip_prefix("AIRKAFKA_").filter(|rest| settings.iter().all(|known| known != rest))
            else {
                continue;
            };
            if let Some(meant) = near_miss(rest, settings.iter().map(String::as_str)) {
                let name = name.escape_debug();
                self.remarks.push(format!("{name} is not a setting and is ignored; did you mean AIRKAFKA_{meant}?"));
            }
        }
        for name in file::UNUSED.map(|key| airflow_variable(WORKER_SECTION, key)) {
            if self.env.get(&name).is_some() {
                self.remarks.push(format!("{name}: {}", file::UNUSED_REMARK));
            }
        }
    }
}

fn option(name: &str) -> &'static Opt {
    options::find(name).unwrap_or_else(|| unreachable!("--{name} is not in the table"))
}
