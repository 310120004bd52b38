//! Words from outside: how they are shown in a message, and which known word was meant by a mistyped one.
//!
//! Pure; knows nothing of options or configuration.

/// How many characters of a value a message shows.
const SHOWN: usize = 60;

/// Beyond this a word is like none of ours, however it ends.
const LONGEST: usize = 64;

/// The value in double quotes, short, with control characters escaped: fit for one line on a terminal.
pub fn shown(value: &str) -> String {
    shown_up_to(value, SHOWN)
}

/// Like [`shown`], with room for `limit` characters.
pub fn shown_up_to(value: &str, limit: usize) -> String {
    let start: String = value.chars().take(limit).flat_map(char::escape_debug).collect();
    let more = if value.chars().nth(limit).is_some() { "..." } else { "" };
    format!("\"{start}{more}\"")
}

/// The candidate that `word` was probably meant to be, if one is near enough to be worth naming.
pub fn near_miss<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word: String = word.chars().take(LONGEST).collect::<String>().to_lowercase();
    let allowed = (word.chars().count() / 3).clamp(1, 3);
    candidates
        .into_iter()
        .map(|candidate| {
            let lower = candidate.to_lowercase();
            // An abbreviation counts as near, though less so than a slip of the finger.
            let abbreviated = word.len() >= 3 && lower.starts_with(&word);
            let far = distance(&word, &lower);
            (if abbreviated { far.min(allowed) } else { far }, candidate)
        })
        .filter(|(far, _)| *far <= allowed)
        .min_by_key(|(far, _)| *far)
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions, replacements and swaps of neighbours that turn `a` into `b`.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_shown_short_and_without_control_characters() {
        assert_eq!(shown("abc"), r#""abc""#);
        assert_eq!(shown("a\n\x1b[31mb\"\u{202e}"), r#""a\n\u{1b}[31mb\"\u{202e}""#);
        assert_eq!(shown("ünïcode"), r#""ünïcode""#);
        assert_eq!(shown_up_to("abcdef", 3), r#""abc...""#);
        assert_eq!(shown_up_to("abc", 3), r#""abc""#);
    }

    #[test]
    fn the_nearest_word_is_found() {
        let words = ["threads", "timeout", "topic", "results-topic", "tail-bytes", "from"];
        for (typed, meant) in [
            ("thread", Some("threads")),
            ("THREADS", Some("threads")),
            ("timeotu", Some("timeout")),
            ("result-topic", Some("results-topic")),
            ("results", Some("results-topic")),
            ("tail", Some("tail-bytes")),
            ("form", Some("from")),
            ("frobnicate", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(near_miss(typed, words), meant, "{typed}");
        }
    }
}
