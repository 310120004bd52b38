//! What is wrong with the configuration, all of it at once, and where each setting came from.
//!
//! Holds texts; finds no mistakes itself.

use std::fmt;

use crate::error::ExitCode;

/// Where a setting came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file, as `airflow.cfg: [core] parallelism`.
    File(String),
    /// A variable of Airflow.
    AirflowVariable(String),
    /// A variable of ours.
    Variable(String),
    /// The command line, as `--threads`.
    Flag(String),
}

impl Source {
    /// How near to the person at the keyboard it is.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Source::File(_) => 0,
            Source::AirflowVariable(_) => 1,
            Source::Variable(_) => 2,
            Source::Flag(_) => 3,
        }
    }

    /// Whether it was typed.
    pub fn is_flag(&self) -> bool {
        matches!(self, Source::Flag(_))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::File(name) | Source::AirflowVariable(name) | Source::Variable(name) | Source::Flag(name) => {
                f.write_str(name)
            }
        }
    }
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Whether it was typed on the command line (or should have been).
    pub typed: bool,
    /// One line: where the value came from, the value, what is wrong, what to do.
    pub text: String,
}

/// All mistakes of a configuration; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

impl Mistakes {
    /// [`ExitCode::Usage`] when everything that is wrong was typed, else [`ExitCode::Config`].
    pub fn exit_code(&self) -> ExitCode {
        if self.0.iter().all(|mistake| mistake.typed) { ExitCode::Usage } else { ExitCode::Config }
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.0.len();
        write!(f, "configuration invalid: {number} mistake{}", if number == 1 { "" } else { "s" })?;
        self.0.iter().try_for_each(|mistake| write!(f, "\n  {}", mistake.text))
    }
}

impl std::error::Error for Mistakes {}
