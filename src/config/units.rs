//! Text to typed value, one function per kind of setting, and back to text for the start-up line.
//!
//! Pure: no file, no environment. An error is the rest of the sentence that begins with the value:
//! `is not ...; give ...`.

use std::fmt::Display;
use std::net::Ipv6Addr;
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use log::LevelFilter;

use super::by_hand::Output;
use super::{Client, GroupType, LogFormat, OnLostLock, Preload, ResultFormat, StartFrom};

/// A value, or what is wrong with it.
pub(super) type Parsed<T> = Result<T, String>;

/// Longest duration: far beyond any command, and safe to add to any clock.
const LONGEST: Duration = Duration::from_secs(3650 * 24 * 60 * 60);
/// Most threads.
const MOST_THREADS: usize = 1024;
/// Longest tail: escaped as JSON it takes up to six times its size, in the header and, with `--result-format json`, in
/// the value too, and a broker takes no record over 1 MiB unless told to.
const LONGEST_TAIL: u64 = 64 << 10;
/// Port of a broker when none is given.
const KAFKA_PORT: u16 = 9092;

/// Units of a duration with their milliseconds, the largest first.
const DURATIONS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
/// Units of a size, the largest first.
const SIZES: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// `parse`, where the word `none` is a value too.
pub(super) fn or_none<T>(parse: impl Fn(&str) -> Parsed<T>) -> impl Fn(&str) -> Parsed<Option<T>> {
    move |text| if text.eq_ignore_ascii_case("none") { Ok(None) } else { parse(text).map(Some) }
}

/// Like [`or_none`], for a limit: the message says how to have none.
pub(super) fn or_no_limit<T>(parse: impl Fn(&str) -> Parsed<T>) -> impl Fn(&str) -> Parsed<Option<T>> {
    or_none(move |text| parse(text).map_err(|why| format!("{why}, or none for no limit")))
}

/// A duration, zero included.
pub(super) fn duration(text: &str) -> Parsed<Duration> {
    let millis = if text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse::<u64>().ok().and_then(|seconds| seconds.checked_mul(1000))
    } else {
        combined(text)
    };
    let duration =
        millis.map(Duration::from_millis).ok_or("is not a duration; give one such as 250ms, 30s, 5m or 1h30m")?;
    if duration > LONGEST {
        return Err(format!("is too long; give at most {}", show_duration(LONGEST)));
    }
    Ok(duration)
}

/// A duration that is more than nothing.
pub(super) fn positive_duration(text: &str) -> Parsed<Duration> {
    match duration(text)? {
        Duration::ZERO => Err("is no time at all; give a duration such as 30s, 5m or 1h30m".into()),
        duration => Ok(duration),
    }
}

/// Milliseconds of `1h30m`: each unit once, the largest first.
fn combined(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut units = DURATIONS.iter();
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let letters = rest[digits..].bytes().take_while(u8::is_ascii_alphabetic).count();
        let (number, unit) = (&rest[..digits], &rest[digits..digits + letters]);
        let (_, millis) = units.find(|(name, _)| *name == unit)?;
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(*millis)?)?;
        rest = &rest[digits + letters..];
    }
    Some(total)
}

/// A duration as it can be typed.
pub fn show_duration(duration: Duration) -> String {
    let total = duration.as_millis() as u64;
    let mut left = total;
    let mut text = String::new();
    // 24h reads better than 1d and is what people type.
    for (unit, millis) in DURATIONS.iter().filter(|(unit, _)| *unit != "d" || total >= 2 * 86_400_000) {
        if left >= *millis {
            text += &format!("{}{unit}", left / millis);
            left %= millis;
        }
    }
    if text.is_empty() { "0s".into() } else { text }
}

/// A size in bytes.
pub(super) fn size(text: &str) -> Parsed<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor = SIZES
        .iter()
        .find(|(name, _)| unit.eq_ignore_ascii_case(name) || unit.eq_ignore_ascii_case(&name[..1]))
        .map(|(_, factor)| *factor)
        .or((unit.is_empty() || unit == "B").then_some(1));
    let bytes = factor.and_then(|factor| number.parse::<u64>().ok()?.checked_mul(factor));
    bytes.ok_or("is not a size; give bytes such as 512, or 2KiB, 10MiB, 1GiB".into())
}

/// A size of at least one byte.
pub(super) fn positive_size(text: &str) -> Parsed<u64> {
    match size(text)? {
        0 => Err("is no size at all; give 1 or more bytes, such as 512, 2KiB, 10MiB".into()),
        size => Ok(size),
    }
}

/// A size that a tail may have.
pub(super) fn tail(text: &str) -> Parsed<usize> {
    match size(text)? {
        size if size > LONGEST_TAIL => Err(format!(
            "is more than fits into a result; give at most {}, and see --output-dir to keep it all",
            show_size(LONGEST_TAIL)
        )),
        size => Ok(size as usize),
    }
}

/// A size as it can be typed.
pub(super) fn show_size(bytes: u64) -> String {
    match SIZES.iter().find(|(_, factor)| bytes > 0 && bytes.is_multiple_of(*factor)) {
        Some((unit, factor)) => format!("{}{unit}", bytes / factor),
        None => bytes.to_string(),
    }
}

/// A number of threads.
pub(super) fn threads(text: &str) -> Parsed<NonZeroUsize> {
    text.parse::<NonZeroUsize>()
        .ok()
        .filter(|number| number.get() <= MOST_THREADS)
        .ok_or(format!("is not a number of threads; give a whole number from 1 to {MOST_THREADS}"))
}

/// As many threads as there are CPUs, within what is allowed.
pub(super) fn threads_for(cpus: NonZeroUsize) -> NonZeroUsize {
    cpus.min(NonZeroUsize::new(MOST_THREADS).expect("not zero"))
}

/// A list of brokers, each with its port.
pub(super) fn brokers(text: &str) -> Parsed<Vec<String>> {
    let mut brokers = Vec::new();
    for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        let broker = broker(entry)?;
        if !brokers.contains(&broker) {
            brokers.push(broker);
        }
    }
    if brokers.is_empty() {
        return Err("names no broker; give HOST:PORT[,HOST:PORT...]".into());
    }
    Ok(brokers)
}

fn broker(entry: &str) -> Parsed<String> {
    let wrong = |why: &str| Err(format!("is not a list of brokers: {} {why}", crate::cli::words::shown(entry)));
    if let Some((_, rest)) = entry.split_once("://") {
        return wrong(&format!("has a scheme; give {} alone", crate::cli::words::shown(rest)));
    }
    let (host, port) = if let Some(rest) = entry.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return wrong("lacks the closing bracket") };
        let (digits, _zone) = address.split_once('%').unwrap_or((address, ""));
        if digits.parse::<Ipv6Addr>().is_err() {
            return wrong("has no IPv6 address in its brackets; give [ADDRESS]:PORT");
        }
        (format!("[{address}]"), port)
    } else {
        let (host, port) = entry.split_at(entry.find(':').unwrap_or(entry.len()));
        if port[port.len().min(1)..].contains(':') {
            return wrong("has several colons; an IPv6 address goes in brackets: [ADDRESS]:PORT");
        }
        if host.is_empty() || !host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) {
            return wrong("has no valid host name; give HOST:PORT");
        }
        (host.to_string(), port)
    };
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => KAFKA_PORT,
        // Not `parse` alone: it takes a plus sign.
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().unwrap_or(0),
        _ => 0,
    };
    match port {
        0 => wrong("has no valid port; give a number from 1 to 65535"),
        port => Ok(format!("{host}:{port}")),
    }
}

/// A name that Kafka takes for a topic.
pub(super) fn topic(text: &str) -> Parsed<String> {
    let legal = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if text.is_empty() || text.len() > 249 || !legal || text == "." || text == ".." {
        return Err("is not the name of a topic; give 1 to 249 of a-z A-Z 0-9 . _ - (but not . or ..)".into());
    }
    Ok(text.to_string())
}

/// A name for a consumer group.
pub(super) fn group(text: &str) -> Parsed<String> {
    name(text, "is not the name of a group")
}

/// A name that may hold anything but control characters; `wrong` is how the message begins if it does.
pub(super) fn name(text: &str, wrong: &str) -> Parsed<String> {
    if text.is_empty() || text.len() > 249 || text.chars().any(char::is_control) {
        return Err(format!("{wrong}; give 1 to 249 bytes without control characters"));
    }
    Ok(text.to_string())
}

/// A whole number within `range`; `what` it counts.
pub(super) fn whole<T: FromStr + PartialOrd + Display>(text: &str, range: RangeInclusive<T>, what: &str) -> Parsed<T> {
    // Not `parse` alone: it takes a plus sign.
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse::<T>().ok().filter(|number| is_plain && range.contains(number));
    number
        .ok_or_else(|| format!("is no number of {what}; give a whole number from {} to {}", range.start(), range.end()))
}

/// A name for a static member of a group; Kafka takes what it takes as a topic.
pub(super) fn instance_id(text: &str) -> Parsed<String> {
    topic(text).map_err(|why| why.replace("name of a topic", "id of a member"))
}

/// One of a few words.
pub(super) fn word<T: Copy>(text: &str, words: &[(&str, T)]) -> Parsed<T> {
    let names = || words.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    words
        .iter()
        .find(|(name, _)| text.eq_ignore_ascii_case(name))
        .map(|(_, value)| *value)
        .ok_or_else(|| format!("is not known; give one of: {}", names()))
}

/// Python's names beside ours. There is nothing above ERROR here, so CRITICAL means that.
const LEVEL: &[(&str, LevelFilter)] = &[
    ("debug", LevelFilter::Debug),
    ("info", LevelFilter::Info),
    ("warn", LevelFilter::Warn),
    ("warning", LevelFilter::Warn),
    ("error", LevelFilter::Error),
    ("critical", LevelFilter::Error),
    ("trace", LevelFilter::Trace),
];

/// Where a new group starts.
pub(super) fn start_from(text: &str) -> Parsed<StartFrom> {
    word(text, &StartFrom::ALL.map(|from| (from.as_str(), from)))
}

/// Which client.
pub(super) fn client(text: &str) -> Parsed<Client> {
    word(text, &Client::ALL.map(|client| (client.as_str(), client)))
}

/// The kind of group.
pub(super) fn group_type(text: &str) -> Parsed<GroupType> {
    word(text, &GroupType::ALL.map(|kind| (kind.as_str(), kind)))
}

/// `stop` or `finish`.
pub(super) fn on_lost_lock(text: &str) -> Parsed<OnLostLock> {
    word(text, &OnLostLock::ALL.map(|what| (what.as_str(), what)))
}

/// When Airflow is imported.
pub(super) fn preload(text: &str) -> Parsed<Preload> {
    word(text, &Preload::ALL.map(|preload| (preload.as_str(), preload)))
}

/// The value of a result.
pub(super) fn result_format(text: &str) -> Parsed<ResultFormat> {
    word(text, &ResultFormat::ALL.map(|format| (format.as_str(), format)))
}

/// The form of what is shown.
pub(super) fn output(text: &str) -> Parsed<Output> {
    word(text, &Output::ALL.map(|output| (output.as_str(), output)))
}

/// `text` or `json`.
pub(super) fn log_format(text: &str) -> Parsed<LogFormat> {
    word(text, &LogFormat::ALL.map(|format| (format.as_str(), format)))
}

/// A level of Python's logging.
pub(super) fn level(text: &str) -> Parsed<LevelFilter> {
    word(text, LEVEL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn millis(text: &str) -> Option<u64> {
        duration(text).ok().map(|duration| duration.as_millis() as u64)
    }

    #[test]
    fn durations() {
        for (text, expected) in [
            ("250ms", Some(250)),
            ("30s", Some(30_000)),
            ("5m", Some(300_000)),
            ("1h", Some(3_600_000)),
            ("24h", Some(86_400_000)),
            ("7d", Some(604_800_000)),
            ("1h30m", Some(5_400_000)),
            ("1d2h3m4s5ms", Some(93_784_005)),
            ("90", Some(90_000)),
            ("0", Some(0)),
            ("0s", Some(0)),
            ("3650d", Some(LONGEST.as_millis() as u64)),
            ("3651d", None),
            ("99999999999999999999", None),
            ("18446744073709551615", None),
            ("18446744073709551615d", None),
            ("18446744073709551615ms1ms", None),
            ("", None),
            ("s", None),
            ("1h30", None),
            ("30m1h", None),
            ("1h1h", None),
            ("1.5h", None),
            ("-1s", None),
            ("+1s", None),
            ("1 h", None),
            ("1H", None),
            ("1µs", None),
            ("none", None),
        ] {
            assert_eq!(millis(text), expected, "{text}");
        }
        assert!(duration("soon").unwrap_err().contains("30s"));
        assert!(duration("9999d").unwrap_err().contains("3650d"));
        assert_eq!(or_none(duration)("none"), Ok(None));
        assert_eq!(or_none(duration)("1s"), Ok(Some(Duration::from_secs(1))));
        assert!(or_none(duration)("x").is_err());
        assert_eq!(or_no_limit(duration)("NONE"), Ok(None));
        assert!(or_no_limit(duration)("x").unwrap_err().ends_with(", or none for no limit"));
        assert!(positive_duration("0s").is_err());
        assert_eq!(show_duration(Duration::from_secs(86_400)), "24h");
        assert_eq!(show_duration(Duration::from_secs(2 * 86_400)), "2d");
        assert_eq!(show_duration(Duration::ZERO), "0s");
    }

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("512", Some(512)),
            ("512B", Some(512)),
            ("2KiB", Some(2048)),
            ("2K", Some(2048)),
            ("2k", Some(2048)),
            ("10MiB", Some(10 << 20)),
            ("10M", Some(10 << 20)),
            ("1GiB", Some(1 << 30)),
            ("1g", Some(1 << 30)),
            ("1TiB", Some(1 << 40)),
            ("0", Some(0)),
            ("2KB", None),
            ("1.5G", None),
            ("-1", None),
            ("+1", None),
            ("", None),
            ("K", None),
            ("1 K", None),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551615K", None),
            ("1é", None),
        ] {
            assert_eq!(size(text).ok(), expected, "{text}");
        }
        assert!(positive_size("0").is_err());
        assert_eq!(tail("64KiB"), Ok(65_536));
        assert_eq!(tail("0"), Ok(0));
        assert!(tail("65537").unwrap_err().contains("--output-dir"));
    }

    #[test]
    fn thread_counts() {
        for (text, expected) in [
            ("1", Some(1)),
            ("1024", Some(1024)),
            ("1025", None),
            ("0", None),
            ("-1", None),
            ("x", None),
            ("99999999999999999999999", None),
        ] {
            assert_eq!(threads(text).ok().map(NonZeroUsize::get), expected, "{text}");
        }
        assert_eq!(threads_for(NonZeroUsize::new(4096).unwrap()).get(), 1024);
        assert_eq!(threads_for(NonZeroUsize::new(2).unwrap()).get(), 2);
    }

    #[test]
    fn broker_lists() {
        for (text, expected) in [
            ("host", Some("host:9092")),
            ("host:9093", Some("host:9093")),
            (" a , b:1 ,, a:9092,", Some("a:9092 b:1")),
            ("10.0.0.1:65535", Some("10.0.0.1:65535")),
            ("my_broker-1.example.org", Some("my_broker-1.example.org:9092")),
            ("[::1]", Some("[::1]:9092")),
            ("[fe80::1%eth0]:9093", Some("[fe80::1%eth0]:9093")),
            ("a:1,\n[::1]:2", Some("a:1 [::1]:2")),
            ("", None),
            (",", None),
            (":9092", None),
            ("host:", None),
            ("host:0", None),
            ("host:65536", None),
            ("host:+1", None),
            ("host:http", None),
            ("::1", None),
            ("fe80::1:9092", None),
            ("[::1", None),
            ("[::1]9092", None),
            ("[nohost]:9092", None),
            ("kafka://host:9092", None),
            ("PLAINTEXT://host:9092", None),
            ("two words:9092", None),
            ("hé:9092", None),
            ("a;b", None),
        ] {
            assert_eq!(brokers(text).ok().map(|list| list.join(" ")).as_deref(), expected, "{text}");
        }
        assert!(brokers("::1").unwrap_err().contains("in brackets"));
        assert!(brokers("kafka://host:9092").unwrap_err().contains("\"host:9092\" alone"));
    }

    #[test]
    fn topic_names() {
        for name in ["t", "AirflowKafkaTopic", "a.b_c-D9", "...", &"x".repeat(249)] {
            assert_eq!(topic(name).as_deref(), Ok(name));
        }
        for name in ["", ".", "..", "a b", "a/b", "é", "a\n", "a,b", &"x".repeat(250)] {
            assert!(topic(name).is_err(), "{name}");
        }
    }

    #[test]
    fn group_names() {
        assert_eq!(group("my group/1").as_deref(), Ok("my group/1"));
        assert!(group("a\tb").is_err() && group(&"x".repeat(250)).is_err());
    }

    #[test]
    fn words() {
        assert_eq!(start_from("Latest"), Ok(StartFrom::Latest));
        assert_eq!(client("kafka"), Ok(Client::Kafka));
        assert_eq!(result_format("json"), Ok(ResultFormat::Json));
        assert_eq!(client("rdkafka"), Err("is not known; give one of: auto, wire, kafka".into()));
        for (text, expected) in [
            ("DEBUG", LevelFilter::Debug),
            ("INFO", LevelFilter::Info),
            ("WARN", LevelFilter::Warn),
            ("WARNING", LevelFilter::Warn),
            ("ERROR", LevelFilter::Error),
            ("CRITICAL", LevelFilter::Error),
            ("trace", LevelFilter::Trace),
        ] {
            assert_eq!(level(text), Ok(expected), "{text}");
        }
        assert!(level("LOUD").unwrap_err().contains("critical"));
    }

    proptest! {
        #[test]
        fn what_is_shown_can_be_typed(number in 0..LONGEST.as_millis() as u64, bytes in any::<u64>()) {
            prop_assert_eq!(millis(&show_duration(Duration::from_millis(number))), Some(number));
            prop_assert_eq!(size(&show_size(bytes)), Ok(bytes));
        }

        #[test]
        fn nothing_panics(text in "\\PC*") {
            let _ = (duration(&text), size(&text), threads(&text), brokers(&text), topic(&text), group(&text), level(&text));
        }
    }
}
