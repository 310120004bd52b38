//! Properties files, as Java's `Properties` and librdkafka's tools read them.
//!
//! Pure: text to keys and values, each with its line; what they mean is checked elsewhere. A value runs to the end of its
//! line: `#` and `!` begin a comment only in front of a key.

use std::iter::Peekable;
use std::str::Chars;

/// One property.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Property {
    /// Where it stands.
    pub(super) line: usize,
    /// Its key, without escapes.
    pub(super) key: String,
    /// Its value, without escapes.
    pub(super) value: String,
}

/// Understands the text of a file; an error is the line and what is wrong there.
pub(super) fn parse(text: &str) -> Result<Vec<Property>, (usize, String)> {
    let mut properties = Vec::new();
    let mut lines = text.trim_start_matches('\u{feff}').lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let line = line.trim_start_matches(BLANKS);
        if line.is_empty() || line.starts_with(['#', '!']) {
            continue;
        }
        let mut whole = line.to_string();
        // An odd number of backslashes at the end: the last one continues the line.
        while whole.bytes().rev().take_while(|&byte| byte == b'\\').count() % 2 == 1 {
            whole.pop();
            match lines.next() {
                Some((_, next)) => whole += next.trim_start_matches(BLANKS),
                None => break,
            }
        }
        let property = property(index + 1, &whole).map_err(|why| (index + 1, why))?;
        properties.push(property);
    }
    Ok(properties)
}

const BLANKS: [char; 3] = [' ', '\t', '\u{c}'];

fn property(line: usize, text: &str) -> Result<Property, String> {
    let mut chars = text.chars().peekable();
    let mut key = String::new();
    while let Some(&c) = chars.peek() {
        if BLANKS.contains(&c) || matches!(c, '=' | ':') {
            break;
        }
        chars.next();
        key.push(if c == '\\' { escaped(&mut chars)? } else { c });
    }
    while chars.next_if(|c| BLANKS.contains(c)).is_some() {}
    if chars.next_if(|c| matches!(c, '=' | ':')).is_some() {
        while chars.next_if(|c| BLANKS.contains(c)).is_some() {}
    }
    let mut value = String::new();
    while let Some(c) = chars.next() {
        value.push(if c == '\\' { escaped(&mut chars)? } else { c });
    }
    if key.is_empty() {
        return Err("has no key; write KEY=VALUE".into());
    }
    Ok(Property { line, key, value })
}

/// What the characters behind a backslash stand for. Java drops the backslash before any other character.
fn escaped(chars: &mut Peekable<Chars<'_>>) -> Result<char, String> {
    Ok(match chars.next() {
        Some('t') => '\t',
        Some('n') => '\n',
        Some('r') => '\r',
        Some('f') => '\u{c}',
        Some('u') => {
            let first = unit(chars)?;
            // Characters beyond the first 65,536 are written as two escapes.
            let mut units = vec![first];
            if (0xd800..0xdc00).contains(&first) && chars.next() == Some('\\') && chars.next() == Some('u') {
                units.push(unit(chars)?);
            }
            let decoded = char::decode_utf16(units).next();
            decoded.and_then(Result::ok).ok_or("has half a surrogate pair; write both \\uXXXX of it")?
        }
        Some(c) => c,
        None => '\\',
    })
}

fn unit(chars: &mut Peekable<Chars<'_>>) -> Result<u16, String> {
    let digits: String = chars.by_ref().take(4).collect();
    let is_hex = digits.len() == 4 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = is_hex.then(|| u16::from_str_radix(&digits, 16).ok()).flatten();
    number
        .ok_or_else(|| "has \\u without four hexadecimal digits; write \\uXXXX, or \\\\u for the two characters".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Vec<(usize, String, String)> {
        let properties = parse(text).unwrap_or_else(|(line, why)| panic!("{text:?}: line {line} {why}"));
        properties.into_iter().map(|property| (property.line, property.key, property.value)).collect()
    }

    #[test]
    fn a_file_is_read_as_java_reads_it() {
        let text = "\u{feff}# comment\n! another = one\n\n  a=1\nb : 2 \nc 3\r\nd\t=\t4 = 5 # all of it\nempty=\nbare\n\
                    e\\=f\\:g\\ h=i\n";
        let expected = [
            (4, "a", "1"),
            (5, "b", "2 "),
            (6, "c", "3"),
            (7, "d", "4 = 5 # all of it"),
            (8, "empty", ""),
            (9, "bare", ""),
            (10, "e=f:g h", "i"),
        ];
        assert_eq!(pairs(text), expected.map(|(line, key, value)| (line, key.to_string(), value.to_string())));
    }

    #[test]
    fn lines_are_continued_and_escapes_resolved() {
        let text = "a = one \\\n    two\\\\\nb=\\u00fc\\n\\t\\q\\ud83d\\ude00\nc=x\\\n# no comment\nd=end\\";
        let expected = [(1, "a", "one two\\"), (3, "b", "ü\n\tq\u{1f600}"), (4, "c", "x# no comment"), (6, "d", "end")];
        assert_eq!(pairs(text), expected.map(|(line, key, value)| (line, key.to_string(), value.to_string())));
    }

    #[test]
    fn what_cannot_be_read_is_told_with_its_line() {
        for (text, line, why) in [
            ("a=1\n=2", 2, "has no key"),
            ("\na=\\u12x4", 2, "four hexadecimal digits"),
            ("a=\\u+123", 1, "four hexadecimal digits"),
            ("a=\\u12", 1, "four hexadecimal digits"),
            ("a=\\ud83d", 1, "half a surrogate pair"),
            ("a=\\ud83dx", 1, "half a surrogate pair"),
        ] {
            let (at, text) = parse(text).err().unwrap();
            assert!(at == line && text.contains(why), "{at} {text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics(text in "(\\PC|[\\\\u=:# \n0-9d])*") {
            let _ = parse(&text);
        }
    }
}
