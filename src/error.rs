//! Expected errors: what was tried, on what, why it failed and what to do; and the exit code each kind ends with.
//!
//! A failed *command* is not an error of ours: it is an [`Outcome`](crate::record::Outcome).

use std::fmt;

/// How the process ends. The numbers are those of `sysexits.h` where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Clean end. A failed command is a result, not our failure.
    Clean = 0,
    /// Something nobody foresaw.
    Unexpected = 1,
    /// The command line was not understood.
    Usage = 2,
    /// A command has failed, and `--fail-on-error` asks to be told so.
    CommandFailed = 3,
    /// Brokers or topic unreachable (`EX_UNAVAILABLE`).
    Unavailable = 69,
    /// The drain was cut short, by its timeout or by a second signal; or another worker holds the lock (`EX_TEMPFAIL`).
    DrainCut = 75,
    /// Authentication or authorisation refused (`EX_NOPERM`).
    Refused = 77,
    /// The configuration is invalid (`EX_CONFIG`).
    Config = 78,
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        std::process::ExitCode::from(code as u8)
    }
}

/// What kind of trouble an [`Error`] is; decides whether it is tried again and how the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A broker, leader or topic is away: wait and try again.
    Unavailable,
    /// Not possible for the moment, in the ordinary course of things (a rebalance): try again soon, without a word.
    Later,
    /// The broker refuses us: authentication or authorisation.
    Refused,
    /// What was configured cannot work here.
    Config,
    /// Anything else.
    Unexpected,
}

/// An expected error, one line: what, where, why; with a hint of what to do.
#[derive(Clone, Debug)]
pub struct Error {
    kind: Kind,
    what: String,
    hint: Option<String>,
}

/// `Result` with our [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of `kind`; `what` names the attempt, the object and the cause, in lower case.
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Error { kind, what: what.into(), hint: None }
    }

    /// Adds what the reader can do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds who was refused, if that is what it says.
    pub fn refused_as(mut self, principal: &str) -> Self {
        if self.kind == Kind::Refused && !self.what.contains(principal) {
            self.what.push_str(&format!(" (as {principal})"));
        }
        self
    }

    /// What happened, without what to do about it.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// The same, without `subject` in front, where that stands already.
    pub fn without(&self, subject: &str) -> &str {
        self.what.strip_prefix(subject).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(&self.what)
    }

    /// What to do about it, if that was said.
    pub fn hint_given(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether waiting and trying again can help.
    pub fn is_transient(&self) -> bool {
        matches!(self.kind, Kind::Unavailable | Kind::Later)
    }

    /// How the process ends if this error ends it.
    pub fn exit_code(&self) -> ExitCode {
        match self.kind {
            Kind::Unavailable | Kind::Later => ExitCode::Unavailable,
            Kind::Refused => ExitCode::Refused,
            Kind::Config => ExitCode::Config,
            Kind::Unexpected => ExitCode::Unexpected,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// The system's own words for an error, without std's ` (os error N)`.
pub fn os_text(error: &std::io::Error) -> String {
    if error.kind() == std::io::ErrorKind::UnexpectedEof {
        return "the other side closed the connection".into();
    }
    let text = error.to_string();
    match text.rfind(" (os error ") {
        Some(at) => text[..at].to_lowercase(),
        None => text,
    }
}
