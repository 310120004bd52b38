//! What is generated has every option of every mode. Whether shells and man take it is for fixtures/packaging/check.sh.

use super::super::options::{Fallback, OPTIONS, find};
use super::super::{NAME, parse};
use super::*;

fn generated(kind: &str) -> String {
    match parse(["generate", kind].map(OsString::from)) {
        Parsed::Print(text) => text,
        other => panic!("{kind}: {other:?}"),
    }
}

#[test]
fn every_option_is_in_all_of_them() {
    let man = generated("man").replace("\\-", "-");
    let (bash, zsh, fish) = (generated("bash"), generated("zsh"), generated("fish"));
    for opt in OPTIONS {
        assert!(man.contains(&format!("\\fB{}\\fR", opt.flag())), "{}", opt.name);
        assert!(opt.variable().filter(|_| opt.value.is_some()).is_none_or(|name| man.contains(&name)), "{}", opt.name);
        assert!(bash.split([' ', '\'']).any(|word| word == opt.flag()), "{bash}");
        assert!(zsh.contains(&format!("{}=[", opt.flag())) || zsh.contains(&format!("{}[", opt.flag())), "{zsh}");
        assert!(fish.contains(&format!(" -l {} ", opt.name)), "{}", opt.name);
    }
    for heading in ["NAME", "SYNOPSIS", "OPTIONS", "SIGNALS", "EXIT CODES", "EXAMPLES"] {
        assert!(man.contains(&format!("\n.SH {heading}\n")), "{heading}");
    }
}

#[test]
fn a_mode_has_its_own_options() {
    let opt = Opt { value: Some("left|right|DEGREES"), ..named("turn") };
    let other: &'static Opt = Box::leak(Box::new(opt));
    let head = "Usage: airkafka-worker send\n\nSends.\n";
    let mut modes = modes();
    modes.truncate(1);
    modes.push(Mode { word: "send", head, options: vec![other], tail: "\nMore\n  text\n" });
    let bash = bash::completion(&modes);
    assert!(bash.contains("    send | generate) mode=") && bash.contains("      all='--turn'\n"), "{bash}");
    let fish = fish::completion(&modes);
    assert!(fish.contains("-n '__fish_seen_subcommand_from send' -l turn -x -a 'left right' "), "{fish}");
    assert!(fish.contains("-n 'not __fish_seen_subcommand_from send generate' -l topic "), "{fish}");
    let zsh = zsh::completion(&modes);
    assert!(zsh.contains("    send)\n      _arguments -s $first \\\n        '(--turn)--turn=[x]"), "{zsh}");
    let man = man::page(&modes, "2026-01-02");
    assert!(man.contains(".SH SEND\n.nf\nairkafka\\-worker send\n.fi\n.PP\nSends.\n"), "{man}");
    assert!(man.ends_with(".SS MORE\ntext\n") && man.contains(".TH AIRKAFKA\\-WORKER 1 2026-01-02 "), "{man}");
}

fn named(name: &'static str) -> Opt {
    let (fallback, setting, airflow) = (Fallback::Nothing, Some(name), None);
    Opt { name, short: None, value: None, fallback, setting, airflow, of: &[], heading: "", help: "x; y" }
}

#[test]
fn the_kind_of_a_value_is_known() {
    for (name, takes) in [
        ("once", Takes::Nothing),
        ("client", Takes::Words(vec!["auto", "wire", "kafka"])),
        ("input", Takes::File),
        ("output-dir", Takes::Directory),
        ("shell", Takes::Program),
        ("brokers", Takes::Text),
    ] {
        assert_eq!(Takes::of(find(name).unwrap()), takes, "{name}");
    }
}

#[test]
fn quotes_stay_quotes() {
    assert_eq!(quoted("the system's"), r"'the system'\''s'");
    assert!(OPTIONS.iter().all(|opt| !opt.help.contains('\\')), "fish");
}

#[test]
fn what_cannot_be_generated_is_a_mistake() {
    for (words, said) in [
        (&["generate"][..], "generate needs to know what: man, bash, zsh, fish\n"),
        (&["generate", "tcsh"], "generate makes man, bash, zsh, fish, but no \"tcsh\"\n"),
        (&["generate", "man", "x"], "generate takes one word; what is \"x\"?\n"),
    ] {
        assert_eq!(parse(words.iter().map(OsString::from)), Parsed::Usage(said.into()));
    }
    assert_eq!(parse(["generate", "--help"].map(OsString::from)), Parsed::Print(crate::cli::help(Subcommand::Start)));
    assert!(generated("man").contains(NAME.to_uppercase().replace('-', "\\-").as_str()));
}
