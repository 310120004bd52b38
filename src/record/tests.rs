//! Every form of a command record, every way to get one wrong, and the bytes of results.

use super::*;

fn argv(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| word.to_string()).collect()
}

fn decoded(value: &str) -> Command {
    decode(Some(value.as_bytes()), None).unwrap_or_else(|e| panic!("{value}: {}", e.0))
}

fn refused(value: &[u8]) -> String {
    match decode(Some(value), None) {
        Err(Invalid(why)) => why,
        Ok(command) => panic!("{}: taken as {command:?}", String::from_utf8_lossy(value)),
    }
}

#[test]
fn an_array_is_run_as_it_stands() {
    assert_eq!(
        decoded(r#" ["/bin/echo","a b","\"q\"","caf\u00e9",""]"#).argv,
        argv(&["/bin/echo", "a b", "\"q\"", "café", ""])
    );
}

#[test]
fn a_string_is_split_or_goes_to_the_shell() {
    let value = br#""airflow run d 'a b'""#;
    assert_eq!(decode(Some(value), None).unwrap().argv, argv(&["airflow", "run", "d", "a b"]));
    let with_shell = decode(Some(value), Some(Path::new("/bin/sh"))).unwrap();
    assert_eq!(with_shell.argv, argv(&["/bin/sh", "-c", "airflow run d 'a b'"]));
    assert_eq!(decode(Some(br#"["a","$b"]"#), Some(Path::new("/bin/sh"))).unwrap().argv, argv(&["a", "$b"]));
}

#[test]
fn an_object_says_how_to_run() {
    let command = decoded(r#"{"command":["cat"],"stdin":"hi","env":{"A":"1"},"cwd":"/tmp","timeout":1.5}"#);
    assert_eq!(command.argv, argv(&["cat"]));
    assert_eq!(command.stdin.as_deref(), Some("hi"));
    assert_eq!(command.env, BTreeMap::from([("A".to_string(), "1".to_string())]));
    assert_eq!(command.cwd, Some(PathBuf::from("/tmp")));
    assert_eq!(command.timeout, Some(Duration::from_millis(1500)));
    assert_eq!(decoded(r#"{"command":"cat 'a b'"}"#).argv, argv(&["cat", "a b"]));
}

#[test]
fn what_is_no_command_is_refused_with_its_reason() {
    for (value, why) in [
        ("", "no value"),
        ("\u{0}", "not JSON"),
        ("{not json", "command object"),
        ("null", "neither"),
        ("42", "neither"),
        ("[]", "empty"),
        (r#"[""]"#, "empty"),
        (r#""""#, "empty"),
        (r#""  ""#, "empty"),
        (r#"["a", 1]"#, "array of strings"),
        (r#"["a"] x"#, "array of strings"),
        (r#"["a\u0000b"]"#, "NUL"),
        (r#"["\ud800"]"#, "array of strings"),
        (r#""a | b""#, "--shell"),
        (r#"{"command":["a"],"tiemout":5}"#, "tiemout"),
        (r#"{"command":7}"#, "`command` has to be"),
        (r#"{"stdin":"x"}"#, "missing field `command`"),
        (r#"{"command":["a"],"command":["b"]}"#, "duplicate field `command`"),
        (r#"{"command":["a"],"env":{"A=B":"x"}}"#, "env"),
        (r#"{"command":["a"],"env":{"":"x"}}"#, "env"),
        (r#"{"command":["a"],"env":{"A":"x\u0000"}}"#, "env"),
        (r#"{"command":["a"],"env":{"A":1}}"#, "expected a string"),
        (r#"{"command":["a"],"cwd":""}"#, "cwd"),
        (r#"{"command":["a"],"timeout":0}"#, "timeout"),
        (r#"{"command":["a"],"timeout":-1}"#, "timeout"),
        (r#"{"command":["a"],"timeout":1e300}"#, "timeout"),
        (r#"{"command":["a"],"timeout":"5"}"#, "invalid type: string"),
    ] {
        let got = refused(value.as_bytes());
        assert!(got.contains(why), "{value}: {got}");
    }
    assert!(refused(b"[\"\xff\"]").contains("not UTF-8 (byte 2)"));
    assert!(decode(None, None).unwrap_err().0.contains("no value"));
    assert!(refused("[".repeat(100_000).as_bytes()).contains("array of strings"));
}

#[test]
fn an_error_brings_no_control_character_to_the_terminal() {
    let why = refused("{\"command\":[\"a\"],\"\\u001b[2J\\n\":1}".as_bytes());
    assert!(!why.chars().any(char::is_control), "{why:?}");
    assert_eq!(show_key(Some(b"a\x1b[2J\xff")), "a\\u{1b}[2J\u{fffd}");
    assert_eq!(show_key(Some(&[b'x'; 1000])).len(), 200 + "... (1000 bytes)".len());
}

fn finished(reason: Reason) -> Finished {
    let at = Position { topic: "t".into(), partition: 3, offset: 42 };
    let outcome = Outcome {
        state: State::Failed,
        reason,
        exit_code: Some(3),
        signal: None,
        started: "2026-01-01T00:00:00.000Z".into(),
        duration_ms: 12,
        queued_ms: None,
        host: "h".into(),
        pid: Some(7),
        attempt: None,
        topic: "t".into(),
        partition: 3,
        offset: 42,
        tail: "end".into(),
        error: None,
    };
    let record = Record::new(at, Some(b"\xffk".to_vec()), Some(b"{".to_vec()));
    Finished { record, outcome }
}

const OUTCOME: &str = concat!(
    r#"{"state":"failed","reason":"exit","exit_code":3,"signal":null,"started":"2026-01-01T00:00:00.000Z","#,
    r#""duration_ms":12,"queued_ms":null,"host":"h","pid":7,"attempt":null,"topic":"t","partition":3,"offset":42,"tail":"end"}"#
);

#[test]
fn a_result_has_the_key_and_the_value_the_original_writes_and_the_outcome_as_header() {
    let out = encode(finished(Reason::Exit), ResultStyle::Topic(ResultFormat::State), true);
    assert_eq!(out.len(), 1, "a command that failed is no dead letter");
    assert_eq!(out[0].key.as_deref(), Some(&b"\xffk"[..]));
    assert_eq!(out[0].value.as_deref(), Some(&b"failed"[..]));
    assert_eq!(out[0].headers, [("airkafka-outcome", OUTCOME.as_bytes().to_vec())]);
    let out = encode(finished(Reason::Exit), ResultStyle::Topic(ResultFormat::Json), false);
    assert_eq!(out[0].value.as_deref(), Some(OUTCOME.as_bytes()));
    let out = encode(finished(Reason::Exit), ResultStyle::Lines, false);
    let line = String::from_utf8(out[0].value.clone().unwrap()).unwrap();
    assert_eq!(line, OUTCOME.replacen('{', "{\"key\":\"\u{fffd}k\",", 1));
}

#[test]
fn a_dead_letter_is_the_record_unchanged_and_says_why_and_whence() {
    let mut bad = finished(Reason::Invalid);
    bad.outcome.error = Some("not JSON".into());
    assert_eq!(encode(bad.clone(), ResultStyle::Topic(ResultFormat::State), false).len(), 1);
    let out = encode(bad, ResultStyle::Topic(ResultFormat::State), true);
    let letter = out.iter().find(|o| o.target == Target::DeadLetter).expect("a dead letter");
    assert_eq!((letter.key.as_deref(), letter.value.as_deref()), (Some(&b"\xffk"[..]), Some(&b"{"[..])));
    let header =
        |name| letter.headers.iter().find(|(n, _)| *n == name).map(|(_, v)| String::from_utf8_lossy(v).into_owned());
    assert_eq!(header("airkafka-error").as_deref(), Some("not JSON"));
    assert_eq!(header("airkafka-offset").as_deref(), Some("42"));
    assert!(out.iter().any(|o| o.target == Target::Results));
}

#[test]
fn a_line_of_input_is_a_key_and_a_command() {
    let (key, value) = from_input_line(br#"{"key":"k","command":["a"],"timeout":5}"#);
    assert_eq!(key.as_deref(), Some(&b"k"[..]));
    assert_eq!(decode(value.as_deref(), None).unwrap().timeout, Some(Duration::from_secs(5)));
    let (key, value) = from_input_line(br#"{"command":"a b"}"#);
    assert_eq!((key, decode(value.as_deref(), None).unwrap().argv), (None, argv(&["a", "b"])));
    let (key, value) = from_input_line(b"oops");
    assert_eq!(key, None);
    assert!(decode(value.as_deref(), None).unwrap_err().0.contains("not JSON"));
    let (key, _) = from_input_line(br#"{"key":7,"command":["a"]}"#);
    assert_eq!(key.as_deref(), Some(&b"7"[..]));
}

#[test]
fn a_command_that_is_encoded_is_decoded_as_it_was() {
    let plain =
        Command { argv: vec!["a b".into(), "\"".into()], stdin: None, env: [].into(), cwd: None, timeout: None };
    assert_eq!(encode_command(plain.clone()), br#"["a b","\""]"#);
    let full = Command {
        stdin: Some("x\n".into()),
        env: [("A".into(), "1".into())].into(),
        cwd: Some("/tmp".into()),
        timeout: Some(Duration::from_millis(1500)),
        ..plain.clone()
    };
    for command in [plain, full] {
        assert_eq!(decode(Some(&encode_command(command.clone())), None), Ok(command));
    }
}
