//! The grammar of the command line, rule by rule.

use super::options::OPTIONS;
use super::*;
use proptest::prelude::*;
use std::os::unix::ffi::OsStringExt;

fn parse_words(words: &[&str]) -> Parsed {
    parse(words.iter().map(OsString::from))
}

fn args(words: &[&str]) -> Args {
    match parse_words(words) {
        Parsed::Run(args) => *args,
        other => panic!("{words:?}: {other:?}"),
    }
}

fn usage(words: &[&str]) -> String {
    match parse_words(words) {
        Parsed::Usage(text) => text.split_once("\nall options: airkafka-worker ").unwrap().0.to_string(),
        other => panic!("{words:?}: {other:?}"),
    }
}

#[test]
fn nothing_typed_is_nothing_set() {
    assert_eq!(args(&[]), Args::default());
}

#[test]
fn every_row_of_the_table_parses() {
    for (subcommand, opt) in Subcommand::ALL.iter().flat_map(|of| options::of(*of).map(move |opt| (of, opt))) {
        let (flag, of) = (opt.flag(), subcommand.name());
        let mut spellings = vec![flag.clone()];
        spellings.extend(opt.short.map(|short| format!("-{short}")));
        for spelling in spellings {
            match (opt.name, opt.value) {
                ("help", _) => assert_eq!(parse_words(&[of, &spelling]), Parsed::Print(help(*subcommand))),
                ("version", _) => assert_eq!(parse_words(&[of, &spelling]), Parsed::Print(version())),
                (_, None) => assert_ne!(args(&[of, &spelling]), args(&[of]), "{spelling}"),
                ("property", _) => assert_eq!(args(&[of, &spelling, "a value"]).properties, ["a value"]),
                ("env", _) => assert_eq!(args(&[of, &spelling, "a value"]).env, ["a value"]),
                (name, Some(_)) => {
                    let args = args(&[of, &spelling, "a value"]);
                    for other in OPTIONS {
                        assert_eq!(args.value(other.name), (other.name == name).then_some("a value"), "{name}");
                    }
                }
            }
        }
    }
}

#[test]
fn switches_are_counted() {
    for (words, verbose, quiet) in [
        (&["-v"][..], 1, 0),
        (&["-vv"], 2, 0),
        (&["-v", "--verbose", "-v"], 3, 0),
        (&["-qq"], 0, 2),
        (&["--quiet", "-q"], 0, 2),
        (&["-vqv"], 2, 1),
    ] {
        let args = args(words);
        assert_eq!((args.verbose, args.quiet), (verbose, quiet), "{words:?}");
    }
}

#[test]
fn a_value_may_look_like_anything() {
    assert_eq!(args(&["--input", "-"]).input.as_deref(), Some("-"));
    assert_eq!(args(&["--group=--threads"]).group.as_deref(), Some("--threads"));
    assert_eq!(args(&["--group=a=b=c"]).group.as_deref(), Some("a=b=c"));
    assert_eq!(args(&["--group", "a=b"]).group.as_deref(), Some("a=b"));
    assert_eq!(args(&["--group", "-x"]).group.as_deref(), Some("-x"));
    assert_eq!(args(&["--group", "help"]).group.as_deref(), Some("help"));
    assert_eq!(args(&["--group=--help"]).group.as_deref(), Some("--help"));
    assert_eq!(args(&["--group="]).group.as_deref(), Some(""));
    assert_eq!(args(&["--group", ""]).group.as_deref(), Some(""));
}

#[test]
fn a_property_may_be_attached_and_repeated() {
    let words = ["-X", "a=1", "-Xb=2", "--property", "c=3", "--property=d=4", "-vXe=5", "-X", "f=-X"];
    let args = args(&words);
    assert_eq!(args.properties, ["a=1", "b=2", "c=3", "d=4", "e=5", "f=-X"]);
    assert_eq!(args.verbose, 1);
    assert_eq!(usage(&["-X"]), "--property needs a value: --property KEY=VALUE");
    assert!(usage(&["-X", "--threads", "4"]).starts_with("--property needs a value, but --threads follows"));
}

#[test]
fn the_words_of_airkafka_still_work() {
    assert_eq!(args(&["start"]), Args::default());
    assert_eq!(args(&["start", "--threads", "4"]), args(&["--threads", "4"]));
    assert_eq!(parse_words(&["version"]), Parsed::Print(version()));
    assert_eq!(parse_words(&["help"]), Parsed::Print(help(Subcommand::Start)));
    assert!(usage(&["--threads", "4", "start"]).contains("may only come first"));
}

#[test]
fn what_stands_behind_two_dashes_is_the_command_of_send() {
    let sent = args(&["send", "--wait", "--", "ls", "-l", "--help", "--", "-v"]);
    assert_eq!((sent.subcommand, sent.wait, sent.verbose), (Subcommand::Send, true, 0));
    assert_eq!(sent.command, ["ls", "-l", "--help", "--", "-v"]);
    assert_eq!(args(&["send", "--"]).command, Vec::<String>::new());
}

#[test]
fn each_subcommand_has_its_own_help() {
    for subcommand in Subcommand::ALL {
        let name = subcommand.name();
        for words in [&[name, "--help"][..], &["help", name], &[name, "--frobnicate", "-h"]] {
            assert_eq!(parse_words(words), Parsed::Print(help(subcommand)), "{words:?}");
        }
    }
    let Parsed::Usage(text) = parse_words(&["send", "--frobnicate", "--", "-h"]) else { panic!() };
    assert!(text.ends_with("\nall options: airkafka-worker send --help\n"), "{text}");
}

#[test]
fn help_goes_before_a_mistake() {
    for words in [&["-h"][..], &["-vh"], &["start", "--help"], &["--thread", "4", "--help"], &["--brokers", "--help"]] {
        assert_eq!(parse_words(words), Parsed::Print(help(Subcommand::Start)), "{words:?}");
    }
    assert_eq!(parse_words(&["--threads", "4", "-V"]), Parsed::Print(version()));
}

#[test]
fn usage_errors_say_what_to_do() {
    for (words, expected) in [
        (&["--thread", "4"][..], "unknown option --thread; did you mean --threads?"),
        (&["--thread=4"], "unknown option --thread; did you mean --threads?"),
        (&["--result-topic=x"], "unknown option --result-topic; did you mean --results-topic?"),
        (&["-threads", "4"], "unknown option -threads; did you mean --threads?"),
        (&["--frobnicate"], "unknown option --frobnicate"),
        (&["--fro\n\u{1b}bnicate"], r"unknown option --fro\n\u{1b}bnicate"),
        (&["-x"], "unknown option -x"),
        (&["--threads"], "--threads needs a value: --threads N"),
        (
            &["--brokers", "--threads", "8"],
            "--brokers needs a value, but --threads follows; if that is the value, write --brokers=--threads",
        ),
        (&["--group", "-v"], "--group needs a value, but -v follows; if that is the value, write --group=-v"),
        (&["--verbose=2"], "--verbose takes no value, but \"2\" is given"),
        (&["--threads", "4", "--threads=8"], "--threads is given twice (\"4\" and \"8\"); give it once"),
        (&["-v", "localhost:9092"], "unexpected argument \"localhost:9092\"; every value belongs to an option"),
        (&["threads", "8"], "unexpected argument \"threads\"; did you mean --threads?"),
        (&["-v", "--", "x:y"], "unexpected argument \"x:y\"; every value belongs to an option"),
        (&["results", "-"], "unexpected argument \"-\"; every value belongs to an option"),
        (&[""], "unexpected argument \"\"; a subcommand is one of: start, send, results, doctor, init, generate"),
        (
            &["b:9092"],
            "unexpected argument \"b:9092\"; a subcommand is one of: start, send, results, doctor, init, generate",
        ),
        (&["doktor"], "unexpected argument \"doktor\"; did you mean doctor?"),
        (&["-v", "result"], "unexpected argument \"result\"; the word results may only come first"),
        (
            &["send", "true"],
            "unexpected argument \"true\"; the command goes behind --: airkafka-worker send [OPTION...] -- \
          COMMAND...",
        ),
        (&["send", "--threads", "4"], "--threads is no option of send, but of start, doctor, init"),
        (&["--wait"], "--wait is no option of start, but of send"),
        (&["send", "--wiat"], "unknown option --wiat; did you mean --wait?"),
    ] {
        assert_eq!(usage(words), expected, "{words:?}");
    }
    assert_eq!(args(&["--threads", "4", "--"]).threads.as_deref(), Some("4"));
}

#[test]
fn every_option_given_twice_is_named() {
    for opt in OPTIONS.iter().filter(|opt| opt.value.is_some() && !opt.repeats()) {
        assert!(
            usage(&[opt.of[0].name(), &opt.flag(), "a", &opt.flag(), "a"])
                .starts_with(&format!("{} is given twice", opt.flag()))
        );
    }
}

#[test]
fn an_argument_that_is_not_utf8_is_named() {
    let words = ["--output-dir".into(), OsString::from_vec(b"/tmp/\xff".to_vec())];
    let Parsed::Usage(text) = parse(words) else { panic!() };
    assert!(text.starts_with("argument 2 is not valid UTF-8: \"/tmp/\u{fffd}\"\n"), "{text}");
}

#[test]
fn the_message_ends_with_a_pointer_to_the_help() {
    let Parsed::Usage(text) = parse_words(&["--thread", "4"]) else { panic!() };
    assert_eq!(text, "unknown option --thread; did you mean --threads?\nall options: airkafka-worker --help\n");
}

proptest! {
    #[test]
    fn attached_and_separate_values_mean_the_same(value in "\\PC*", twice in "[-=a-z]*") {
        for opt in OPTIONS.iter().filter(|opt| opt.value.is_some()) {
            for value in [&value, &twice] {
                // A separate word that is an option of ours is asked about instead.
                let of = opt.of[0];
                if following(of, "", "", Some(value)).is_ok() {
                    let attached = format!("{}={value}", opt.flag());
                    prop_assert_eq!(args(&[of.name(), &opt.flag(), value]), args(&[of.name(), &attached]));
                }
            }
        }
    }

    #[test]
    fn no_command_line_panics(words in proptest::collection::vec("-{0,3}[a-z=-]{0,8}|--threads|--config|\\PC*", 0..6)) {
        parse(words.into_iter().map(OsString::from));
    }
}
