//! Result records, read back: what a worker says became of a command, whoever wrote it and in whichever form.
//!
//! Pure, and written for bytes from outside: what is no result is said to be none, and shown without control characters.

use serde::Serialize;

use super::{OUTCOME_HEADER, Outcome, State, printable, show_key};

/// A record of a result topic.
#[derive(Clone, Debug, PartialEq)]
pub struct ResultRecord {
    /// The command's key.
    pub key: Option<Vec<u8>>,
    /// When it was written, in milliseconds since the epoch.
    pub timestamp_ms: Option<i64>,
    /// Where it stands, as text.
    pub at: String,
    /// What it says.
    pub told: Told,
}

/// What a result says.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    /// The whole outcome.
    Outcome(Box<Outcome>),
    /// Only whether it went well: all that AirKafka writes, and what is written without headers.
    State(State),
    /// It is no result; the value, in short.
    Nothing(String),
}

/// Understands a result by its value and its headers.
pub fn read<'a>(value: Option<&[u8]>, headers: impl IntoIterator<Item = (&'a [u8], Option<&'a [u8]>)>) -> Told {
    let header = headers.into_iter().find(|(name, _)| *name == OUTCOME_HEADER.as_bytes()).and_then(|(_, value)| value);
    let outcome = |bytes: &[u8]| serde_json::from_slice(bytes).ok().map(Told::Outcome);
    let value = value.unwrap_or_default();
    let state = || [State::Success, State::Failed].into_iter().find(|state| state.as_str().as_bytes() == value);
    header
        .and_then(outcome)
        .or_else(|| outcome(value))
        .or_else(|| state().map(Told::State))
        .unwrap_or_else(|| Told::Nothing(show_key(Some(value))))
}

/// The object of `results --output json`.
#[derive(Serialize)]
struct Line<'a> {
    time: Option<String>,
    key: Option<String>,
    result: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<State>,
    #[serde(flatten)]
    outcome: Option<&'a Outcome>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
}

/// What `results` shows above its table.
pub const TABLE_HEAD: &str =
    "TIME                      STATE    REASON          EXIT       MS  HOST          POSITION                    KEY";

impl ResultRecord {
    /// Whether it says that the command succeeded.
    pub fn is_success(&self) -> bool {
        self.state() == Some(State::Success)
    }

    fn state(&self) -> Option<State> {
        match &self.told {
            Told::Outcome(outcome) => Some(outcome.state),
            Told::State(state) => Some(*state),
            Told::Nothing(_) => None,
        }
    }

    fn time(&self) -> Option<String> {
        let at = jiff::Timestamp::from_millisecond(self.timestamp_ms?).ok()?;
        Some(format!("{at:.3}"))
    }

    /// It as a line under [`TABLE_HEAD`].
    pub fn table_line(&self) -> String {
        let dash = || "-".to_string();
        let state = self.state().map_or("?", State::as_str);
        let (reason, exit, ms, host, at, more) = match &self.told {
            Told::Outcome(outcome) => {
                let at = format!("{}-{}@{}", outcome.topic, outcome.partition, outcome.offset);
                let exit = outcome.exit_code.map_or_else(dash, |code| code.to_string());
                let more = outcome.error.as_ref().map_or_else(String::new, |error| format!(": {error}"));
                (outcome.reason.as_str(), exit, outcome.duration_ms.to_string(), outcome.host.to_string(), at, more)
            }
            Told::State(_) => ("-", dash(), dash(), dash(), format!("result {}", self.at), String::new()),
            Told::Nothing(value) => {
                ("no result", dash(), dash(), dash(), format!("result {}", self.at), format!(": {value:?}"))
            }
        };
        let time = self.time().unwrap_or_else(dash);
        let key = show_key(self.key.as_deref());
        printable(&format!(
            "{time:<24}  {state:<7}  {reason:<14}  {exit:>4}  {ms:>7}  {host:<12}  {at:<26}  {key}{more}"
        ))
    }

    /// It as one JSON object.
    pub fn json_line(&self) -> String {
        let (state, outcome, value) = match &self.told {
            Told::Outcome(outcome) => (None, Some(outcome.as_ref()), None),
            Told::State(state) => (Some(*state), None, None),
            Told::Nothing(value) => (None, None, Some(value.as_str())),
        };
        let key = self.key.as_deref().map(|key| String::from_utf8_lossy(key).into_owned());
        let line = Line { time: self.time(), key, result: &self.at, state, outcome, value };
        let json = serde_json::to_string(&line).expect("strings and numbers always serialise");
        // JSON leaves DEL and the C1 controls as they are, and some terminals obey these.
        json.chars().fold(String::with_capacity(json.len()), |mut out, c| {
            match c.is_control() {
                true => out += &format!("\\u{:04x}", u32::from(c)),
                false => out.push(c),
            }
            out
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTCOME: &str = r#"{"state":"failed","reason":"exit","exit_code":3,"signal":null,"started":"x","duration_ms":7,
        "queued_ms":null,"host":"h","pid":1,"attempt":null,"topic":"t","partition":0,"offset":5,"tail":"","new":true}"#;

    fn record(value: &str, header: Option<&str>, key: &str) -> ResultRecord {
        let headers = header.map(|header| (OUTCOME_HEADER.as_bytes(), Some(header.as_bytes())));
        let told = read(Some(value.as_bytes()), headers);
        ResultRecord { key: Some(key.into()), timestamp_ms: Some(0), at: "r-0@9".into(), told }
    }

    #[test]
    fn every_form_of_a_result_is_read() {
        for (value, header) in [("failed", Some(OUTCOME)), (OUTCOME, None), (OUTCOME, Some("{}"))] {
            let Told::Outcome(outcome) = record(value, header, "k").told else { panic!("{value}") };
            assert_eq!((outcome.exit_code, outcome.offset), (Some(3), 5));
        }
        assert_eq!(record("success", None, "k").told, Told::State(State::Success));
        for garbage in ["", "{}", "Success", "null", "\u{1b}[31m", "{\"state\":\"failed\"}"] {
            let record = record(garbage, Some("garbage"), "k");
            assert!(matches!(record.told, Told::Nothing(_)) && !record.is_success(), "{garbage}");
        }
        assert_eq!(read(None, []), Told::Nothing(String::new()));
    }

    #[test]
    fn lines_hold_no_control_characters() {
        let nasty = "\u{1b}[31m\n\u{9b}\u{7f}\r";
        for record in
            [record(nasty, None, nasty), record("success", Some(&OUTCOME.replace("\"h\"", r#""\u009b\n""#)), nasty)]
        {
            for line in [record.table_line(), record.json_line()] {
                assert!(!line.contains(char::is_control), "{line:?}");
            }
            serde_json::from_str::<serde_json::Value>(&record.json_line()).unwrap();
        }
    }

    #[test]
    fn the_columns_stand_below_each_other() {
        let line = record(OUTCOME, None, "the-key").table_line();
        for (name, value) in
            [("STATE", "failed"), ("REASON", "exit"), ("HOST", "h "), ("POSITION", "t-0@5"), ("KEY", "the-key")]
        {
            assert_eq!(TABLE_HEAD.find(name), line.find(value), "{name}\n{TABLE_HEAD}\n{line}");
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_comes_becomes_one_printable_line(
            key: Vec<u8>, value: Vec<u8>, text in "\\PC{0,40}|\\{\\PC{0,40}", timestamp_ms: Option<i64>
        ) {
            for (value, header) in [(&value[..], text.as_bytes()), (text.as_bytes(), &value[..])] {
                let told = read(Some(value), [(OUTCOME_HEADER.as_bytes(), Some(header))]);
                let record = ResultRecord { key: Some(key.clone()), timestamp_ms, at: "r-0@9".into(), told };
                for line in [record.table_line(), record.json_line()] {
                    proptest::prop_assert!(!line.contains(char::is_control));
                }
            }
        }
    }
}
