//! Programs, files and directories that a setting names: found, made absolute, checked.
//!
//! Reads metadata only; opens, creates and runs nothing. Errors as in [`units`](super::units).

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use super::units::Parsed;
use crate::cli::words::shown_up_to;
use crate::error::os_text;

/// A program: a path, or a bare name that is looked up on `path` (the value of PATH).
pub(super) fn program(value: &str, path: Option<&OsStr>) -> Parsed<PathBuf> {
    if value.contains('/') {
        let program = absolute(value)?;
        executable(&program)?;
        return Ok(program);
    }
    on_path(value, path).ok_or_else(|| format!("is not on PATH ({}); give the path of a program", show_path(path)))
}

/// The first executable file of that name in a directory on `path`. A directory that is not absolute is passed over:
/// what it means would depend on where the worker was started.
pub(super) fn on_path(name: &str, path: Option<&OsStr>) -> Option<PathBuf> {
    std::env::split_paths(path?)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(name))
        .find(|candidate| executable(candidate).is_ok())
}

/// PATH, for a message.
pub(super) fn show_path(path: Option<&OsStr>) -> String {
    path.map_or("not set".into(), |path| shown_up_to(&path.to_string_lossy(), 200))
}

/// The system's reason.
fn why(error: impl Into<std::io::Error>) -> String {
    os_text(&error.into())
}

/// A directory that can be written to.
pub(super) fn directory(value: &str) -> Parsed<PathBuf> {
    let directory = absolute(value)?;
    match fs::metadata(&directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(format!("does not exist; create it: mkdir -p {}", quoted(&directory.to_string_lossy())))
        }
        Err(error) => Err(format!("cannot be used: {}; give a writable directory", why(error))),
        Ok(metadata) if !metadata.is_dir() => Err("is not a directory; give a writable directory".into()),
        Ok(_) => match access(&directory, Access::WRITE_OK | Access::EXEC_OK) {
            Ok(()) => Ok(directory),
            Err(error) => Err(format!("cannot be written to: {}; give a writable directory", why(error))),
        },
    }
}

/// The file of records; `None`: stdin.
pub(super) fn input(value: &str) -> Parsed<Option<PathBuf>> {
    if value == "-" {
        return Ok(None);
    }
    let file = absolute(value)?;
    match fs::metadata(&file) {
        Err(error) => Err(format!("cannot be read: {}; give a file of records, or - for stdin", why(error))),
        Ok(metadata) if metadata.is_dir() => Err("is a directory; give a file of records, or - for stdin".into()),
        Ok(_) => match access(&file, Access::READ_OK) {
            Ok(()) => Ok(Some(file)),
            Err(error) => Err(format!("cannot be read: {}; give a file of records, or - for stdin", why(error))),
        },
    }
}

/// A directory of another machine.
pub(super) fn of_elsewhere(value: &str) -> Parsed<PathBuf> {
    match value.is_empty() || value.contains('\0') {
        true => Err("is no directory; give its path on the worker's machine".into()),
        false => Ok(value.into()),
    }
}

/// A path from wherever the worker was started.
pub(super) fn absolute(value: &str) -> Parsed<PathBuf> {
    if value.contains('\0') {
        return Err("has a NUL character in it; give a path".into());
    }
    std::path::absolute(value).map_err(|error| format!("is not a path that can be made absolute: {error}"))
}

fn executable(program: &Path) -> Parsed<()> {
    match fs::metadata(program) {
        Err(error) => Err(format!("cannot be run: {}; give the path of a program", why(error))),
        Ok(metadata) if !metadata.is_file() => Err("is not a file; give the path of a program".into()),
        Ok(_) => access(program, Access::EXEC_OK)
            .map_err(|error| format!("is not executable: {}; chmod +x it, or give another program", why(error))),
    }
}

/// The text as a shell takes it.
pub(super) fn quoted(text: &str) -> String {
    let plain =
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-+@%:,=".contains(&byte));
    let text: String =
        text.chars().flat_map(|c| if c.is_control() { c.escape_debug().collect() } else { vec![c] }).collect();
    if plain { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn file(path: &Path, mode: u32) {
        fs::write(path, "").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_bare_name_is_looked_up_on_path() {
        let root = tempfile::tempdir().unwrap();
        let (one, two) = (root.path().join("one"), root.path().join("two"));
        fs::create_dir_all(one.join("directory")).unwrap();
        fs::create_dir_all(&two).unwrap();
        file(&one.join("plain"), 0o644);
        file(&two.join("plain"), 0o755);
        file(&two.join("tool"), 0o755);
        file(&two.join("directory"), 0o755);
        let path = std::env::join_paths([Path::new(""), Path::new("."), &one, &two]).unwrap();
        // Neither a file that cannot be run nor a directory hides a program further on.
        for name in ["plain", "tool", "directory"] {
            assert_eq!(program(name, Some(&path)), Ok(two.join(name)));
        }
        let why = program("absent", Some(&path)).unwrap_err();
        assert!(why.contains("is not on PATH (\"") && why.contains("two"), "{why}");
        assert!(program("tool", None).unwrap_err().contains("not set"));
    }

    #[test]
    fn a_directory_of_path_that_is_not_absolute_is_passed_over() {
        // The tests run in the root of the crate, so "." would find it.
        assert!(Path::new("src").is_dir());
        assert_eq!(on_path("Cargo.toml", Some(OsStr::new(":.:src"))), None);
    }

    #[test]
    fn a_path_must_be_a_program() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        file(&at("plain"), 0o644);
        file(&at("tool"), 0o755);
        let check = |path: PathBuf| program(path.to_str().unwrap(), None);
        assert_eq!(check(at("tool")), Ok(at("tool")));
        assert!(check(at("plain")).unwrap_err().contains("chmod +x"));
        assert!(check(at("absent")).unwrap_err().contains("cannot be run"));
        assert!(check(root.path().into()).unwrap_err().contains("is not a file"));
        assert!(program("a\0/b", None).is_err());
        assert!(program("./src/lib.rs", None).unwrap_err().contains("chmod +x"));
    }

    #[test]
    fn a_directory_must_exist() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name).to_str().unwrap().to_string();
        file(Path::new(&at("file")), 0o644);
        assert_eq!(directory(root.path().to_str().unwrap()), Ok(root.path().into()));
        assert!(directory(&at("it's new")).unwrap_err().contains(r"mkdir -p '/"));
        assert!(directory(&at("it's new")).unwrap_err().ends_with(r"/it'\''s new'"));
        assert!(directory(&at("new")).unwrap_err().ends_with("/new"));
        assert!(directory(&at("file")).unwrap_err().contains("is not a directory"));
        assert!(directory(&at("file/below")).unwrap_err().contains("cannot be used"));
    }

    #[test]
    fn a_directory_must_be_writable() {
        let root = tempfile::tempdir().unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o555)).unwrap();
        let result = directory(root.path().to_str().unwrap());
        // The mode does not bind root.
        if rustix::process::geteuid().is_root() {
            assert!(result.is_ok());
        } else {
            assert!(result.unwrap_err().contains("cannot be written to"));
        }
    }

    #[test]
    fn input_is_a_file_or_stdin() {
        let root = tempfile::tempdir().unwrap();
        file(&root.path().join("records"), 0o644);
        assert_eq!(input("-"), Ok(None));
        assert_eq!(input(root.path().join("records").to_str().unwrap()), Ok(Some(root.path().join("records"))));
        assert!(input(root.path().to_str().unwrap()).unwrap_err().contains("is a directory"));
        assert!(input("/absent/records").unwrap_err().contains("cannot be read"));
    }
}
