//! README.md tells the truth: its help is the binary's, and its commands run.

mod support;

use std::path::Path;
use std::process::{Command, Stdio};

use support::worker::Worker;

fn readme() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap()
}

#[test]
fn the_options_are_those_of_the_help() {
    let output = Worker::command().arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let readme = readme();
    let (before, rest) = readme.split_once("<!-- help -->").expect("a place for the help");
    let (_, after) = rest.split_once("<!-- /help -->").expect("an end of it");
    let right = format!("{before}<!-- help -->\n```text\n{help}```\n<!-- /help -->{after}");
    if std::env::var_os("UPDATE_README").is_some() {
        std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md"), &right).unwrap();
    }
    assert!(
        right == readme || std::env::var_os("UPDATE_README").is_some(),
        "run: UPDATE_README=1 cargo test --test readme"
    );
}

#[test]
fn its_commands_run() {
    let readme = readme();
    let consoles = readme.split("```console\n").skip(1).filter_map(|rest| rest.split("```").next());
    let commands: Vec<&str> = consoles.flat_map(str::lines).filter_map(|line| line.strip_prefix("$ ")).collect();
    assert!(commands.len() >= 3, "only {commands:?}");
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("airflow.cfg"), "[kafka]\nbroker_url = \"127.0.0.1:9\"\n").unwrap();
    std::fs::write(dir.path().join("client.properties"), "security.protocol=PLAINTEXT\n").unwrap();
    let bin = Path::new(env!("CARGO_BIN_EXE_airkafka-worker")).parent().unwrap();
    for command in commands {
        let output = Command::new("bash")
            .args(["-c", command])
            .current_dir(dir.path())
            .env("PATH", format!("{}:{}", bin.display(), std::env::var("PATH").unwrap()))
            .env("AIRKAFKA_CONNECT_TIMEOUT", "50ms")
            .env("AIRKAFKA_BROKERS", "127.0.0.1:9")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let told = format!(
            "{command}\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        // With a broker that is not there it gets as far as to look for it: all of its options are understood.
        let expected = if command.contains("--input") { 0 } else { 69 };
        assert_eq!(output.status.code(), Some(expected), "{told}");
    }
}
