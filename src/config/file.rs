//! airflow.cfg: the few settings in it that concern the worker, as Python's configparser would read them.
//!
//! The rest of the file is Airflow's: whatever stands there is no business of ours and must not stop us. Gives texts;
//! what they mean is checked elsewhere.

use std::collections::{BTreeMap, HashMap};
use std::fs;

use configparser::ini::Ini;

use super::mistakes::Mistake;
use crate::cli::options::{OPTIONS, WORKER_SECTION};
use crate::cli::words::{near_miss, shown};

/// Keys of AirKafka that have no effect here.
pub(super) const UNUSED: [&str; 4] =
    ["logging_dir", "logging_file_name", "logs_rotate_when", "logs_rotate_backup_count"];
/// What is said about them.
pub(super) const UNUSED_REMARK: &str = "not used yet: the log goes to stderr";

/// What a file said.
#[derive(Debug, Default)]
pub(super) struct CfgFile {
    /// The file as it was named.
    name: String,
    values: HashMap<(String, String), String>,
    /// Whether our own section is in it.
    pub(super) has_section: bool,
    /// What deserves a word though it is no mistake.
    pub(super) remarks: Vec<String>,
}

/// The text that is left for the parser, and where each key stands in it.
struct Unfolded {
    plain: String,
    lines: BTreeMap<(String, String), Vec<usize>>,
}

impl CfgFile {
    /// Reads the file of that name, which was given in `source` (`--config` or its variable).
    pub(super) fn read(name: &str, source: &str, typed: bool) -> Result<CfgFile, Vec<Mistake>> {
        let unreadable = |why: String| {
            vec![Mistake {
                typed,
                text: format!("{source}: {} cannot be read: {why}; give an airflow.cfg", shown(name)),
            }]
        };
        let bytes = fs::read(name).map_err(|error| unreadable(error.to_string()))?;
        match std::str::from_utf8(&bytes) {
            Ok(text) => CfgFile::parse(name, text),
            Err(error) => {
                let line = bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count() + 1;
                Err(vec![mistake(name, line, "is not UTF-8; save the file as UTF-8")])
            }
        }
    }

    /// Understands the text of a file.
    pub(super) fn parse(name: &str, text: &str) -> Result<CfgFile, Vec<Mistake>> {
        let mut file = CfgFile { name: name.to_string(), ..CfgFile::default() };
        let Unfolded { plain, lines } = file.unfold(text).map_err(|mistake| vec![mistake])?;
        let mut defaults = Ini::new_cs().defaults();
        // As in Python 3: a comment has its own line, for a `#` or `;` can be part of a value.
        defaults.enable_inline_comments = false;
        let sections = Ini::new_from_defaults(defaults).read(plain).map_err(|why| {
            // The parser's own messages: "line 3: Found opening bracket ...".
            vec![Mistake { typed: false, text: format!("{name}: {}; correct the file", why.to_lowercase()) }]
        })?;
        let mut mistakes = Vec::new();
        for ((section, key), numbers) in lines {
            let mut wrong = |line, text: String| mistakes.push(mistake(name, line, &text));
            if let [first, .., last] = numbers[..] {
                wrong(last, format!("sets [{section}] {key} again after line {first}; keep one"));
            }
            if !is_used(&section, &key) {
                wrong(numbers[0], unknown_key(&key));
            }
            match sections.get(&section).and_then(|keys| keys.get(&key)) {
                Some(Some(value)) => match literal(value) {
                    Ok(value) => drop(file.values.insert((section, key), value)),
                    Err(why) => wrong(numbers[0], format!("[{section}] {key}: {why}")),
                },
                _ => wrong(numbers[0], format!("has {} without a value; write KEY = VALUE", shown(&key))),
            }
        }
        let unused = UNUSED.iter().filter(|key| file.get(WORKER_SECTION, key).is_some());
        let remarks: Vec<String> =
            unused.map(|key| format!("{}: {UNUSED_REMARK}", file.place(WORKER_SECTION, key))).collect();
        file.remarks.extend(remarks);
        if mistakes.is_empty() { Ok(file) } else { Err(mistakes) }
    }

    /// The value of a key, without quotes; `None` when it is not there or empty.
    pub(super) fn get(&self, section: &str, key: &str) -> Option<&str> {
        let value = self.values.get(&(section.to_string(), key.to_string()))?;
        Some(value.as_str()).filter(|value| !value.is_empty())
    }

    /// Where a key stands, for a message.
    pub(super) fn place(&self, section: &str, key: &str) -> String {
        format!("{}: [{section}] {key}", self.name)
    }

    /// The settings that concern us, each on one line, on the line where it was.
    ///
    /// The parser takes any line that begins with a bracket for a section, although in a value of several lines (a list
    /// in JSON, IPv6 brokers) it is none. Python tells them apart by their indentation, and so do we.
    fn unfold(&mut self, text: &str) -> Result<Unfolded, Mistake> {
        let mut plain: Vec<String> = Vec::new();
        let mut lines: BTreeMap<(String, String), Vec<usize>> = BTreeMap::new();
        let mut section: Option<String> = None;
        // The line of the key that a deeper line continues, and its indentation.
        let mut open: Option<(usize, usize)> = None;
        for (index, raw) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            plain.push(String::new());
            let line = raw.trim();
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            let indent = raw.len() - raw.trim_start().len();
            if let Some((start, _)) = open.filter(|(_, outer)| indent > *outer) {
                if !plain[start].is_empty() {
                    plain[start] += " ";
                    plain[start] += line;
                }
                continue;
            }
            if line.starts_with('[') {
                plain[index] = line.to_string();
                let end = line.rfind(']').unwrap_or(line.len());
                let name = line[1..end.max(1)].trim().to_string();
                self.remark_on_case(&name);
                self.has_section |= name == WORKER_SECTION;
                section = Some(name);
                open = None;
                continue;
            }
            let Some(section) = &section else {
                return Err(mistake(&self.name, index + 1, "comes before the first [section]; give an airflow.cfg"));
            };
            open = Some((index, indent));
            let (key, rest) = line.split_at(line.find(['=', ':']).unwrap_or(line.len()));
            let key = key.trim().to_lowercase();
            if section == WORKER_SECTION || is_used(section, &key) {
                plain[index] = format!("{key}{rest}");
                lines.entry((section.clone(), key)).or_default().push(index + 1);
            }
        }
        Ok(Unfolded { plain: plain.join("\n"), lines })
    }

    fn remark_on_case(&mut self, section: &str) {
        let meant = our_sections().find(|ours| ours.eq_ignore_ascii_case(section) && *ours != section);
        if let Some(meant) = meant {
            self.remarks.push(format!(
                "{}: [{section}] is ignored, for case matters there; did you mean [{meant}]?",
                self.name
            ));
        }
    }
}

fn mistake(name: &str, line: usize, text: &str) -> Mistake {
    Mistake { typed: false, text: format!("{name}: line {line} {text}") }
}

/// The sections that have something for us.
fn our_sections() -> impl Iterator<Item = &'static str> {
    OPTIONS.iter().filter_map(|opt| opt.airflow).map(|(section, _)| section).chain([WORKER_SECTION])
}

/// Keys that may stand in our own section.
fn known_keys() -> impl Iterator<Item = &'static str> {
    let keys = OPTIONS.iter().flat_map(|opt| opt.file_keys());
    keys.filter(|(section, _)| *section == WORKER_SECTION).map(|(_, key)| key).chain(UNUSED)
}

/// Whether a key concerns us.
fn is_used(section: &str, key: &str) -> bool {
    let unused = UNUSED.map(|key| (WORKER_SECTION, key));
    OPTIONS.iter().flat_map(|opt| opt.file_keys()).chain(unused).any(|used| used == (section, key))
}

/// The message about a key in our section that is none of ours.
fn unknown_key(key: &str) -> String {
    let hint = match near_miss(key, known_keys()) {
        Some(meant) => format!("did you mean {meant}?"),
        None => "see --help for the options, written with _".into(),
    };
    format!("has {} in [{WORKER_SECTION}], which is no setting; {hint}", shown(key))
}

/// The value without its quotes and escapes.
fn literal(value: &str) -> Result<String, String> {
    let value = unquoted(value);
    if value.replace("%%", "").contains("%(") {
        return Err(format!("{} refers to another key, which is not done here; write the value itself", shown(value)));
    }
    Ok(value.replace("%%", "%"))
}

/// The value without blanks around it and without the quotes, single or double, that enclose it.
pub(super) fn unquoted(value: &str) -> &str {
    let value = value.trim();
    for quote in ['"', '\''] {
        if let Some(inner) = value.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote)) {
            return inner.trim();
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    const AIRFLOW_CFG: &str = r#"
# The settings of an Airflow that has been through some hands.
[DEFAULT]
home = /opt/airflow

[core]
= what
dags_folder = /old
dags_folder = %(home)s/dags
executor: KafkaExecutor
Parallelism = 32
fernet_key = abc%%def=
dag_bundle_config_list =
    [
      {"name": "dags", "classpath": "x"},
    ]
hostname_callable

[logging]
log_format = [%%(asctime)s] {%%(filename)s:%%(lineno)d} %%(levelname)s
  [kafka]
  topic = continued, not set
[smtp]
[kafka]
; where the brokers are
broker_url = "kafka1:9092,
  # the second moved
    kafka2:9093,

    [::1]:9094"
TOPIC: 'my-topic'
group_id =
results_topic = my%%results
unknown_key = is not ours to judge
[AirKafka_worker]
logging_level = "DEBUG"
logging_dir = /var/log/airkafka
output_dir = /var/a;b # c
"#;

    fn mistakes(text: &str) -> Vec<String> {
        CfgFile::parse("a.cfg", text).unwrap_err().into_iter().map(|mistake| mistake.text).collect()
    }

    #[test]
    fn it_is_read_as_python_reads_it() {
        let file = CfgFile::parse("a.cfg", AIRFLOW_CFG).unwrap();
        for (section, key, value) in [
            ("core", "parallelism", Some("32")),
            ("kafka", "broker_url", Some("kafka1:9092, kafka2:9093, [::1]:9094")),
            ("kafka", "topic", Some("my-topic")),
            ("kafka", "group_id", None),
            ("kafka", "results_topic", Some("my%results")),
            ("AirKafka_worker", "logging_level", Some("DEBUG")),
            ("AirKafka_worker", "output_dir", Some("/var/a;b # c")),
            ("AirKafka_worker", "threads", None),
        ] {
            assert_eq!(file.get(section, key), value, "[{section}] {key}");
        }
        assert_eq!(file.remarks, ["a.cfg: [AirKafka_worker] logging_dir: not used yet: the log goes to stderr"]);
        assert_eq!(file.place("core", "parallelism"), "a.cfg: [core] parallelism");
    }

    #[test]
    fn every_file_that_concerns_us_little_is_fine() {
        for text in
            ["", "\n\n", "# only a comment", "[kafka]", "\u{feff}[kafka]\ntopic=x", "  [kafka]\r\n  topic = x\r\n"]
        {
            let file = CfgFile::parse("a.cfg", text).unwrap();
            assert_eq!(file.get("kafka", "topic"), text.contains("topic").then_some("x"), "{text:?}");
        }
    }

    #[test]
    fn a_whole_file_may_be_indented() {
        let file = CfgFile::parse("a.cfg", "  [kafka]\n  topic = x\n  [core]\n  parallelism = 3\n").unwrap();
        assert_eq!((file.get("kafka", "topic"), file.get("core", "parallelism")), (Some("x"), Some("3")));
    }

    #[test]
    fn case_matters_for_sections() {
        let file = CfgFile::parse("a.cfg", "[Kafka]\ntopic = x\n[AIRKAFKA_WORKER]\nthreads = 3\n").unwrap();
        assert_eq!((file.get("kafka", "topic"), file.get("AirKafka_worker", "threads")), (None, None));
        assert_eq!(file.remarks[0], "a.cfg: [Kafka] is ignored, for case matters there; did you mean [kafka]?");
        assert!(file.remarks[1].ends_with("did you mean [AirKafka_worker]?"));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, expected) in [
            ("topic = x", "a.cfg: line 1 comes before the first [section]; give an airflow.cfg"),
            (
                "\n[kafka",
                "a.cfg: line 2: found opening bracket for section name but no closing bracket; correct the file",
            ),
            ("[AirKafka_worker]\n\n= x", "a.cfg: line 3:0: key cannot be empty; correct the file"),
            ("[kafka]\ntopic", "a.cfg: line 2 has \"topic\" without a value; write KEY = VALUE"),
            ("[kafka]\ntopic=a\nTopic=b", "a.cfg: line 3 sets [kafka] topic again after line 2; keep one"),
            (
                "[kafka]\ntopic = %(base)s-x",
                "a.cfg: line 2 [kafka] topic: \"%(base)s-x\" refers to another key, which is not done here; write the value \
                 itself",
            ),
            (
                "[AirKafka_worker]\n# long ago\ntimeuot = 2h",
                "a.cfg: line 3 has \"timeuot\" in [AirKafka_worker], which is no setting; did you mean timeout?",
            ),
            (
                "[AirKafka_worker]\nfrobnicate = 2h",
                "a.cfg: line 2 has \"frobnicate\" in [AirKafka_worker], which is no setting; see --help for the options, \
                 written with _",
            ),
        ] {
            assert_eq!(mistakes(text), [expected], "{text:?}");
        }
        assert_eq!(mistakes("[AirKafka_worker]\nconfig = other.cfg\nhelp = me\n").len(), 2);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let root = tempfile::tempdir().unwrap();
        let name = root.path().join("airflow.cfg");
        let name = name.to_str().unwrap();
        let read = || CfgFile::read(name, "--config", true).unwrap_err().remove(0);
        let Mistake { typed, text } = read();
        assert!(typed && text.starts_with("--config: \"") && text.contains("cannot be read: No such file"), "{text}");
        fs::write(name, b"[kafka]\n# gr\xfc\xdfe\n").unwrap();
        let Mistake { typed, text } = read();
        assert!(!typed && text == format!("{name}: line 2 is not UTF-8; save the file as UTF-8"), "{text}");
        fs::write(name, "[kafka]\ntopic = x\n").unwrap();
        assert_eq!(CfgFile::read(name, "--config", true).unwrap().get("kafka", "topic"), Some("x"));
    }

    #[test]
    fn quotes_are_removed_when_they_enclose() {
        for (text, expected) in [
            ("\"a\"", "a"),
            ("'a b'", "a b"),
            (" \" a \" ", "a"),
            ("\"\"", ""),
            ("\"", "\""),
            ("\"a'", "\"a'"),
            ("a\"b\"", "a\"b\""),
        ] {
            assert_eq!(unquoted(text), expected);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_file_panics(text in "(\\[|\\]|kafka|core|=|:|%|\n|\r|  |\t|#|;|topic|\\PC){0,40}") {
            let _ = CfgFile::parse("a.cfg", &text);
        }
    }
}
