//! The run list: what is settled beyond the commit offset of a partition, as the text that is committed beside it.
//!
//! Owns the text format and nothing else: no ledger, no I/O. Reads text that anyone may have written, so [`decode`]
//! must never panic, never overflow, and never do more work or keep more memory than the length of its input asks for,
//! whatever the numbers in it claim.
//!
//! # Format, version 1
//!
//! Printable ASCII, so characters are bytes wherever a broker counts either. With nothing settled beyond the commit
//! offset the text is empty. Otherwise:
//!
//! ```text
//! metadata = version ":" offset ":" runs *( ";" section )
//! version  = "1"
//! offset   = the commit offset, decimal, no sign, no leading zeros
//! runs     = 1*( open settled )
//! open     = 1*( "A".."Z" )      how many offsets in a row are not settled
//! settled  = 1*( "a".."z" )      how many offsets in a row are settled
//! section  = tag "=" text        none is defined yet
//! ```
//!
//! **Runs** start at the commit offset, which is never settled, so an open run comes first; they alternate, and the
//! last one is settled. Every offset after it is not settled. Upper case ends where lower case starts: no separators.
//!
//! **Lengths** are written as spreadsheets name their columns (bijective base 26), the most significant letter first:
//! `a` = 1, `z` = 26, `aa` = 27, `zz` = 702, `aaa` = 703. There is no zero and no leading zero, so there is one text
//! for a list of runs and one list of runs for a text.
//!
//! **The offset** is in the text although it is committed beside it, because others copy the text and change the offset
//! (a mirror that translates offsets does). Runs counted from a wrong start would skip commands that never ran.
//!
//! **Limits.** The last settled offset plus one fits a signed 64-bit integer.
//!
//! For example, commit offset 40 and `1:40:AcBa`: 40 is open, 41 to 43 are settled, 44 and 45 are open, 46 is settled,
//! everything from 47 on is open. 64 open offsets spread evenly over 1,000,000 take 4 characters each.
//!
//! # Reading what is not understood
//!
//! A text is used whole or not at all. Another version, another offset, a section that the reader does not know, or
//! anything that the grammar does not derive: the reader falls back to the commit offset alone. Commands that were
//! settled beyond it then run again; none is lost.
//!
//! # Growing
//!
//! A new *section* may be added to version 1: a reader that does not know it falls back, as above. Tags are lower case
//! letters, each occurs at most once, in alphabetical order, and the text holds no `;`. With sections, `runs` may be
//! empty. What changes the meaning of `runs` or of the header takes a new *version*. Texts that were ever written stay
//! in `fixtures/ledger/` and stay readable.

use std::fmt;
use std::ops::Range;

/// What every text of this version starts with.
const VERSION: &str = "1";

/// The longest text before the first run: version, offset and their colons.
pub(super) const HEADER_MAX: usize = "1:9223372036854775807:".len();

/// The most letters that the length of a run takes.
pub(super) const LETTERS_MAX: usize = 14;

/// The most characters of foreign text that a [`BadMetadata`] repeats.
const EXCERPT_MAX: usize = 40;

/// Why commit metadata was not used; prints as one short line, whatever the metadata was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadMetadata {
    reason: Reason,
    /// The start of the text: escaped, at most `EXCERPT_MAX` characters and an ellipsis.
    excerpt: String,
}

/// What is wrong with commit metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It does not start as a run list does: somebody else's.
    Foreign,
    /// A version other than 1.
    Version,
    /// It was made for another commit offset.
    Offset,
    /// It has a section that is not known here.
    Section,
    /// The runs do not follow the grammar.
    Runs,
    /// The runs go on past the largest offset there can be.
    Overflow,
}

impl BadMetadata {
    fn new(reason: Reason, metadata: &str) -> BadMetadata {
        let mut escaped = metadata.chars().flat_map(char::escape_default);
        let mut excerpt: String = escaped.by_ref().take(EXCERPT_MAX).collect();
        if escaped.next().is_some() {
            excerpt.push_str("...");
        }
        BadMetadata { reason, excerpt }
    }

    /// What is wrong with it.
    pub fn reason(&self) -> Reason {
        self.reason
    }
}

impl fmt::Display for BadMetadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.reason {
            Reason::Foreign => "not a run list",
            Reason::Version => "a run list of an unknown version",
            Reason::Offset => "a run list for another offset",
            Reason::Section => "a run list with an unknown section",
            Reason::Runs => "a damaged run list",
            Reason::Overflow => "a run list past the largest offset",
        };
        write!(f, "{what}: \"{}\"", self.excerpt)
    }
}

impl std::error::Error for BadMetadata {}

/// The text for what is settled beyond `offset`, the lowest offset that is not; empty if nothing is.
///
/// `settled` must grow, and leave at least one offset out before each of its ranges, none of them empty. Anything else
/// is a bug of the caller: there is no text for it.
pub fn encode(offset: i64, settled: impl IntoIterator<Item = Range<i64>>) -> String {
    let mut text = String::new();
    let mut end = offset;
    for run in settled {
        debug_assert!(0 <= offset && end < run.start && run.start < run.end, "{run:?} after {end} from {offset}");
        if text.is_empty() {
            text = format!("{VERSION}:{offset}:");
        }
        push_length(&mut text, b'A', run.start.abs_diff(end));
        push_length(&mut text, b'a', run.end.abs_diff(run.start));
        end = run.end;
    }
    text
}

/// What is settled beyond `offset`, as `metadata` that was committed with it tells: ranges as [`encode`] takes them.
///
/// Accepts exactly what [`encode`] can write for `offset`.
pub fn decode(offset: i64, metadata: &str) -> Result<Vec<Range<i64>>, BadMetadata> {
    if metadata.is_empty() {
        return Ok(Vec::new());
    }
    body(offset, metadata)
        .and_then(|runs| decode_runs(offset, runs))
        .map_err(|reason| BadMetadata::new(reason, metadata))
}

/// How many letters a run of this length takes; none if it is 0, since it is then not written.
pub(super) fn letters(mut length: u64) -> usize {
    let mut letters = 0;
    while length > 0 {
        length = (length - 1) / 26;
        letters += 1;
    }
    letters
}

fn push_length(text: &mut String, first: u8, mut length: u64) {
    let mut reversed = [0; LETTERS_MAX];
    let mut count = 0;
    while length > 0 && count < LETTERS_MAX {
        length -= 1;
        reversed[count] = first + (length % 26) as u8; // below 26
        length /= 26;
        count += 1;
    }
    text.extend(reversed[..count].iter().rev().map(|&letter| char::from(letter)));
}

/// Checks the header and gives what comes after it.
fn body(offset: i64, metadata: &str) -> Result<&str, Reason> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let (version, rest) = metadata.split_once(':').ok_or(Reason::Foreign)?;
    if version != VERSION {
        return Err(if is_number(version) { Reason::Version } else { Reason::Foreign });
    }
    let (start, runs) = rest.split_once(':').ok_or(Reason::Foreign)?;
    if !is_number(start) {
        return Err(Reason::Foreign);
    }
    // As text: so there is one way to write it, and no number to overflow.
    if start != offset.to_string() {
        return Err(Reason::Offset);
    }
    // Sections, once there are any, are taken off here.
    if runs.contains(';') { Err(Reason::Section) } else { Ok(runs) }
}

fn decode_runs(offset: i64, text: &str) -> Result<Vec<Range<i64>>, Reason> {
    let mut rest = text.as_bytes();
    if rest.is_empty() {
        return Err(Reason::Runs); // nothing settled is written as no text at all
    }
    let mut runs = Vec::new();
    let mut end = offset;
    while !rest.is_empty() {
        let start = end.checked_add(take_length(&mut rest, b'A')?).ok_or(Reason::Overflow)?;
        end = start.checked_add(take_length(&mut rest, b'a')?).ok_or(Reason::Overflow)?;
        runs.push(start..end);
    }
    Ok(runs)
}

fn take_length(rest: &mut &[u8], first: u8) -> Result<i64, Reason> {
    let mut length = 0i64;
    let mut taken = 0;
    for digit in rest.iter().map(|byte| byte.wrapping_sub(first)).take_while(|&digit| digit < 26) {
        length = length.checked_mul(26).and_then(|l| l.checked_add(i64::from(digit) + 1)).ok_or(Reason::Overflow)?;
        taken += 1;
    }
    *rest = &rest[taken..];
    if taken == 0 { Err(Reason::Runs) } else { Ok(length) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reason(offset: i64, metadata: &str) -> Reason {
        decode(offset, metadata).expect_err(metadata).reason()
    }

    #[test]
    fn lengths_are_spreadsheet_columns() {
        for (length, text) in [(1, "a"), (26, "z"), (27, "aa"), (702, "zz"), (703, "aaa"), (15_624, "wbx")] {
            let mut written = String::new();
            push_length(&mut written, b'a', length);
            assert_eq!((written.as_str(), letters(length)), (text, text.len()));
            assert_eq!(take_length(&mut text.as_bytes(), b'a'), Ok(length as i64));
        }
        assert_eq!(letters(0), 0);
        assert_eq!(letters(i64::MAX as u64), LETTERS_MAX);
        assert_eq!(encode(i64::MAX, []).len(), 0);
    }

    #[test]
    fn the_example_of_the_specification() {
        assert_eq!(encode(40, [41..44, 46..47]), "1:40:AcBa");
        assert_eq!(decode(40, "1:40:AcBa"), Ok(vec![41..44, 46..47]));
        assert_eq!(encode(40, []), "");
        assert_eq!(decode(40, ""), Ok(vec![]));
    }

    #[test]
    fn sixty_four_open_in_a_million_take_260_characters() {
        let settled = |base: i64| (0..64).map(move |i| base + i * 15_625 + 1..base + (i + 1) * 15_625);
        assert_eq!(encode(0, settled(0)).len(), 260); // 476 is promised
        let base = i64::MAX - 1_000_000;
        assert_eq!(encode(base, settled(base)).len(), HEADER_MAX + 4 * 64);
    }

    #[test]
    fn what_is_not_understood_is_refused_with_its_reason() {
        for (metadata, expected) in [
            (" ", Reason::Foreign),
            ("consumer-7 at 2024-05-01T00:00:00Z", Reason::Foreign),
            ("1", Reason::Foreign),
            ("1:7", Reason::Foreign),
            ("1:-7:Aa", Reason::Foreign),
            ("1::Aa", Reason::Foreign),
            (":7:Aa", Reason::Foreign),
            ("2:7:Aa", Reason::Version),
            ("01:7:Aa", Reason::Version),
            ("99999999999999999999999:", Reason::Version),
            ("1:8:Aa", Reason::Offset),
            ("1:07:Aa", Reason::Offset),
            ("1:99999999999999999999999:Aa", Reason::Offset),
            ("1:7:Aa;c=w1+3", Reason::Section),
            ("1:7:;c=w1+3", Reason::Section),
            ("1:7:Aa;", Reason::Section),
            ("1:7:", Reason::Runs),
            ("1:7:A", Reason::Runs),
            ("1:7:a", Reason::Runs),
            ("1:7:AaA", Reason::Runs),
            ("1:7:Aa ", Reason::Runs),
            ("1:7:Aa:Aa", Reason::Runs),
            ("1:7:A\u{e9}", Reason::Runs),
            ("1:7:ZZZZZZZZZZZZZZa", Reason::Overflow),
            ("1:7:Azzzzzzzzzzzzzz", Reason::Overflow),
        ] {
            assert_eq!(reason(7, metadata), expected, "{metadata}");
        }
        assert_eq!(reason(i64::MAX, "1:9223372036854775807:Aa"), Reason::Overflow);
        assert_eq!(reason(-1, "1:-1:Aa"), Reason::Foreign);
    }

    #[test]
    fn a_reason_is_one_short_line() {
        let shown = decode(7, "pa\"ss\n\u{1b}[31m").unwrap_err().to_string();
        assert_eq!(shown, r#"not a run list: "pa\"ss\n\u{1b}[31m""#);
        let shown = decode(7, &"\u{1f600}".repeat(5_000)).unwrap_err().to_string();
        assert!(shown.len() < 100 && shown.is_ascii() && shown.ends_with("...\""), "{shown}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn decode_undoes_encode(
            offset in 0..i64::MAX / 2,
            lengths in prop::collection::vec((1..40_000i64, 1..40_000i64), 0..80),
        ) {
            let mut end = offset;
            let runs: Vec<_> = lengths.iter().map(|&(open, settled)| {
                let start = end + open;
                end = start + settled;
                start..end
            }).collect();
            let text = encode(offset, runs.clone());
            prop_assert!(text.bytes().all(|byte| byte.is_ascii_graphic()));
            prop_assert_eq!(decode(offset, &text), Ok(runs));
        }

        #[test]
        fn encode_undoes_decode(text in "(1:7:)?([A-Z]{1,3}[a-z]{1,15}){0,9}[ -~]?") {
            if let Ok(runs) = decode(7, &text) {
                prop_assert_eq!(encode(7, runs), text);
            }
        }

        #[test]
        fn any_text_is_read_or_refused(offset in any::<i64>(), text in any::<String>()) {
            let header = format!("1:{offset}:");
            for text in [text.clone(), header + &text] {
                if let Ok(runs) = decode(offset, &text) {
                    prop_assert_eq!(encode(offset, runs), text);
                }
            }
        }
    }
}
