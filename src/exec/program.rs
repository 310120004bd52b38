//! Finds the program of a command: a word of the command line to an absolute path.
//!
//! Done here and not by `Command`, because std leaves its fast spawn path when it has to search a changed PATH, and so
//! that the reason - no such program, or not executable - is known by name.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use crate::record::{Reason, printable};

/// Why a program cannot be run.
#[derive(Debug)]
pub struct Unusable {
    /// `NotFound` or `NotExecutable`.
    pub reason: Reason,
    /// One line that names the program.
    pub error: String,
}

/// Resolves `word` in directory `cwd`, searching `path` (a PATH variable) if it has no slash.
pub fn resolve(word: &str, path: &OsStr, cwd: &Path) -> Result<PathBuf, Unusable> {
    let shown = printable(word);
    if word.contains('/') {
        let program = cwd.join(word);
        return match check(&program) {
            Check::Fine => Ok(program),
            Check::Missing(why) => Err(not_found(format!("{shown}: {why}"))),
            Check::NotExecutable(why) => Err(not_executable(format!("{shown}: {why}"))),
        };
    }
    let mut unusable = None;
    for dir in std::env::split_paths(path) {
        let program = cwd.join(dir).join(word); // an empty or relative entry of PATH is relative to the command's cwd
        match check(&program) {
            Check::Fine => return Ok(program),
            Check::Missing(_) => {}
            Check::NotExecutable(why) => {
                unusable.get_or_insert_with(|| format!("{shown}: {}: {why}", program.display()));
            }
        }
    }
    Err(match unusable {
        Some(error) => not_executable(error),
        None => not_found(format!("{shown}: not found on PATH ({})", printable(&path.to_string_lossy()))),
    })
}

enum Check {
    Fine,
    Missing(String),
    NotExecutable(&'static str),
}

fn check(program: &Path) -> Check {
    match program.metadata() {
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => Check::NotExecutable("permission denied"),
        Err(e) => Check::Missing(crate::error::os_text(&e)),
        Ok(meta) if meta.is_dir() => Check::NotExecutable("is a directory"),
        Ok(_) if access(program, Access::EXEC_OK).is_err() => Check::NotExecutable("not executable (chmod +x it)"),
        Ok(_) => Check::Fine,
    }
}

fn not_found(error: String) -> Unusable {
    Unusable { reason: Reason::NotFound, error }
}

fn not_executable(error: String) -> Unusable {
    Unusable { reason: Reason::NotExecutable, error }
}
