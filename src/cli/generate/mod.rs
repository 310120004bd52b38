//! What a package has beside the program: its man page, and the completions of three shells. All are rendered from the
//! table of options, as the help is, so that none of them can drift from it.
//!
//! The program makes them itself (`airkafka-worker generate man`): who has the program alone has them too, and no package
//! can hold those of another version. It is a word and no option, since it goes with none. Prints nothing.

mod bash;
mod fish;
mod man;
mod zsh;

use std::ffi::OsString;

use jiff::Timestamp;

use super::options::{self, Opt};
use super::words::shown;
use super::{Parsed, Subcommand};

/// The word that asks for one of [`KINDS`].
pub(super) const WORD: &str = "generate";
/// What there is, in the order of the help.
const KINDS: [&str; 4] = ["man", "bash", "zsh", "fish"];
/// First words that have no options of their own.
const PLAIN_WORDS: [&str; 2] = ["help", "version"];

/// A way to use the program: the word that it begins with, and all that the help says of it.
struct Mode {
    /// The word. That of the first mode may be left out.
    word: &'static str,
    /// `Usage:` lines, an empty line, a sentence.
    head: &'static str,
    options: Vec<&'static Opt>,
    /// Sections behind the options, each with a line for its heading.
    tail: &'static str,
}

/// Every mode, the one without a word first.
fn modes() -> Vec<Mode> {
    let mode =
        |of: Subcommand| Mode { word: of.name(), head: of.head(), options: options::of(of).collect(), tail: of.tail() };
    Subcommand::ALL.into_iter().map(mode).collect()
}

/// Understands a command line that begins with [`WORD`]; `None` for any other.
pub(super) fn asked(words: &[OsString]) -> Option<Parsed> {
    let (_, rest) = words.split_first().filter(|(first, _)| *first == WORD)?;
    let rest: Vec<_> = rest.iter().map(|word| word.to_string_lossy()).collect();
    let modes = modes();
    let parsed = match rest.iter().map(AsRef::as_ref).collect::<Vec<&str>>()[..] {
        ["man"] => Parsed::Print(man::page(&modes, &date())),
        ["bash"] => Parsed::Print(bash::completion(&modes)),
        ["zsh"] => Parsed::Print(zsh::completion(&modes)),
        ["fish"] => Parsed::Print(fish::completion(&modes)),
        ["--help" | "-h"] => Parsed::Print(super::help(Subcommand::Start)),
        [] => Parsed::Usage(format!("{WORD} needs to know what: {}\n", KINDS.join(", "))),
        [what] => Parsed::Usage(format!("{WORD} makes {}, but no {}\n", KINDS.join(", "), shown(what))),
        [_, more, ..] => Parsed::Usage(format!("{WORD} takes one word; what is {}?\n", shown(more))),
    };
    Some(parsed)
}

/// The date of the man page: that of SOURCE_DATE_EPOCH, which makes a build reproducible, else today's.
fn date() -> String {
    let epoch = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|seconds| seconds.parse().ok());
    let given = epoch.and_then(|seconds| Timestamp::from_second(seconds).ok());
    given.unwrap_or_else(Timestamp::now).to_string()[..10].to_owned()
}

/// What may stand as the value of an option, as far as a shell can help with it.
#[derive(Debug, PartialEq, Eq)]
enum Takes {
    /// It is a switch.
    Nothing,
    /// One of these.
    Words(Vec<&'static str>),
    File,
    Directory,
    Program,
    /// Something only the user knows.
    Text,
}

impl Takes {
    /// Read from what the help calls the value.
    fn of(opt: &Opt) -> Self {
        match opt.value {
            None => Self::Nothing,
            Some("FILE" | "PATH") => Self::File,
            Some("DIR") => Self::Directory,
            Some("PROGRAM") => Self::Program,
            // A word in capitals among them stands for something else.
            Some(value) if value.contains('|') => {
                Self::Words(value.split('|').filter(|word| !word.contains(char::is_uppercase)).collect())
            }
            Some(_) => Self::Text,
        }
    }
}

/// All words that the command line may begin with.
fn first_words(modes: &[Mode]) -> Vec<&'static str> {
    modes.iter().map(|mode| mode.word).chain([WORD]).chain(PLAIN_WORDS).collect()
}

/// The option as it is typed, long and short.
fn spellings(opt: &Opt) -> Vec<String> {
    let short = opt.short.map(|short| format!("-{short}"));
    [opt.flag()].into_iter().chain(short).collect()
}

/// The help of an option up to its first semicolon: as much as a shell has room for.
fn brief(opt: &Opt) -> &'static str {
    opt.help.split(';').next().unwrap_or_default()
}

/// The text as one word of a shell. Fish would take a backslash even there; no text of ours has one.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests;
