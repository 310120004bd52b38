//! Splits a command line into words by the quoting rules of a POSIX shell, and refuses what only a shell could do.
//!
//! No expansion takes place. What a shell would expand or obey - operators, `$`, globs, braces, `~`, an assignment in
//! front - is an error that names `--shell`, instead of a command that silently means something else.
//! Rules: <https://pubs.opengroup.org/onlinepubs/9699919799/utilities/V3_chap02.html>, section 2.2.

use std::iter::Peekable;
use std::str::Chars;

/// Splits `line`; the error is one line for a human.
pub fn split(line: &str) -> Result<Vec<String>, String> {
    let mut chars = line.trim_end_matches('\n').chars().peekable();
    let mut words = Vec::new();
    while let Some(word) = next_word(&mut chars, words.is_empty())? {
        words.push(word);
    }
    Ok(words)
}

fn needs_shell(what: &str) -> String {
    format!(
        "{what} needs a shell: quote it to have it taken literally, send an array, or start the worker with --shell"
    )
}

/// The next word, or `None` at the end. `first`: it is the command word, where `NAME=value` would be an assignment.
fn next_word(chars: &mut Peekable<Chars<'_>>, first: bool) -> Result<Option<String>, String> {
    while chars.next_if(|c| matches!(c, ' ' | '\t')).is_some() {}
    let Some(&start) = chars.peek() else { return Ok(None) };
    if matches!(start, '~' | '#') {
        return Err(needs_shell(&format!("`{start}` at the start of a word")));
    }
    let mut word = String::new();
    let mut braces = Braces::default();
    let mut quoted = false; // whether any part so far was: a quoted name is no assignment
    while let Some(&c) = chars.peek() {
        match c {
            ' ' | '\t' => break,
            '\n' | '|' | '&' | ';' | '<' | '>' | '(' | ')' | '$' | '`' | '*' | '?' | '[' => {
                return Err(needs_shell(&format!("unquoted `{}`", c.escape_debug())));
            }
            '\'' => {
                quoted = true;
                chars.next();
                single_quoted(chars, &mut word)?;
            }
            '"' => {
                quoted = true;
                chars.next();
                double_quoted(chars, &mut word)?;
            }
            '\\' => {
                quoted = true;
                chars.next();
                match chars.next() {
                    Some('\n') => {} // a continued line
                    Some(c) => word.push(c),
                    None => return Err("the command ends in a backslash".into()),
                }
            }
            '=' if first && !quoted && is_name(&word) => {
                return Err(needs_shell(&format!("the assignment `{word}=` in front of the command")));
            }
            c => {
                if braces.would_expand(c) {
                    return Err(needs_shell("an unquoted brace list such as `{a,b}`"));
                }
                word.push(c);
                chars.next();
            }
        }
    }
    Ok(Some(word))
}

fn single_quoted(chars: &mut Peekable<Chars<'_>>, word: &mut String) -> Result<(), String> {
    for c in chars.by_ref() {
        if c == '\'' {
            return Ok(());
        }
        word.push(c);
    }
    Err("a single quote is not closed".into())
}

fn double_quoted(chars: &mut Peekable<Chars<'_>>, word: &mut String) -> Result<(), String> {
    while let Some(c) = chars.next() {
        match c {
            '"' => return Ok(()),
            '$' | '`' => return Err(needs_shell(&format!("`{c}` within double quotes"))),
            '\\' => match chars.next() {
                Some(c @ ('"' | '\\' | '$' | '`')) => word.push(c),
                Some('\n') => {}
                Some(c) => word.extend(['\\', c]),
                None => break,
            },
            c => word.push(c),
        }
    }
    Err("a double quote is not closed".into())
}

/// A shell variable's name.
fn is_name(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Follows the unquoted characters of a word: `{a,b}` and `{1..3}` expand in bash, while `{}` and `{a}` do not.
#[derive(Default)]
struct Braces {
    open: u32,
    list: bool,
    last: Option<char>,
}

impl Braces {
    /// Takes the next unquoted character; true if it completes a list.
    fn would_expand(&mut self, c: char) -> bool {
        match c {
            '{' => self.open += 1,
            ',' if self.open > 0 => self.list = true,
            '.' if self.open > 0 && self.last == Some('.') => self.list = true,
            '}' if self.open > 0 && self.list => return true,
            '}' => self.open = self.open.saturating_sub(1),
            _ => {}
        }
        self.last = Some(c);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn words_are_split_as_a_shell_splits_them() {
        for (line, words) in [
            ("", &[][..]),
            ("  \n", &[]),
            (
                "airflow run d t 2018-01-01T00:00:00 --local\n",
                &["airflow", "run", "d", "t", "2018-01-01T00:00:00", "--local"],
            ),
            ("a  'b c'\t\"d e\" f\\ g", &["a", "b c", "d e", "f g"]),
            ("a ''  \"\"", &["a", "", ""]),
            (r#"a "q\"q" 'b\n' "b\n""#, &["a", "q\"q", r"b\n", r"b\n"]),
            (r"a \$HOME '$HOME' \; '|' \*", &["a", "$HOME", "$HOME", ";", "|", "*"]),
            (r#"a "\$x \`y""#, &["a", "$x `y"]),
            ("find -exec rm {} x{a} a..b a,b", &["find", "-exec", "rm", "{}", "x{a}", "a..b", "a,b"]),
            ("a --x=1 b#c b~", &["a", "--x=1", "b#c", "b~"]),
            ("a con\\\ntinued", &["a", "continued"]),
            ("echo caf\u{e9}", &["echo", "caf\u{e9}"]),
            ("./x=1 'A'=2", &["./x=1", "A=2"]),
        ] {
            let got = split(line);
            assert_eq!(
                got.as_deref(),
                Ok(words.iter().map(|w| w.to_string()).collect::<Vec<_>>().as_slice()),
                "{line:?}"
            );
        }
    }

    #[test]
    fn what_only_a_shell_could_do_is_refused_and_names_the_option() {
        for line in [
            "a | b",
            "a && b",
            "a; b",
            "a > f",
            "a < f",
            "(a)",
            "a $HOME",
            "a \"$HOME\"",
            "a `b`",
            "a \"`b`\"",
            "ls *",
            "ls ?",
            "ls [a]",
            "ls ~",
            "a # b",
            "A=1 b",
            "echo {a,b}",
            "echo {1..3}",
            "a\nb",
        ] {
            let error = split(line).expect_err(line);
            assert!(error.contains("--shell"), "{line:?}: {error}");
        }
    }

    #[test]
    fn an_open_quote_is_named() {
        assert_eq!(split("a 'b"), Err("a single quote is not closed".into()));
        assert_eq!(split("a \"b"), Err("a double quote is not closed".into()));
        assert_eq!(split("a \"b\\"), Err("a double quote is not closed".into()));
        assert_eq!(split("a \\"), Err("the command ends in a backslash".into()));
    }
}
