//! The value of `sasl.jaas.config`: the class of a login module and its options.
//!
//! Pure. Grammar: `CLASS required|requisite|sufficient|optional NAME="VALUE"... ;`. Errors never repeat a value: it may be
//! a password.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::str::Chars;

/// A login module.
#[derive(PartialEq, Eq)]
pub(super) struct Jaas {
    /// Its class, without the package.
    pub(super) module: String,
    /// Its options.
    pub(super) options: BTreeMap<String, String>,
}

/// Understands `text`; an error is the rest of a sentence that begins with the key.
pub(super) fn parse(text: &str) -> Result<Jaas, String> {
    let mut chars = text.chars().peekable();
    let class =
        word(&mut chars)?.ok_or("names no login module; write CLASS required username=\"...\" password=\"...\";")?;
    match word(&mut chars)?.as_deref() {
        Some("required" | "requisite" | "sufficient" | "optional") => {}
        _ => return Err(format!("lacks the word required behind {class}")),
    }
    let mut options = BTreeMap::new();
    while let Some(name) = word(&mut chars)? {
        if chars.next() != Some('=') {
            return Err(format!(
                "has option {} without a value; write NAME=\"VALUE\"",
                crate::cli::words::shown(&name)
            ));
        }
        let value = word(&mut chars)?.ok_or_else(|| format!("has option {name} without a value"))?;
        options.insert(name, value);
    }
    if chars.next() != Some(';') {
        return Err("does not end in a semicolon".into());
    }
    while chars.next_if(|c| c.is_whitespace()).is_some() {}
    if chars.next().is_some() {
        return Err("has something behind its semicolon; give one login module".into());
    }
    Ok(Jaas { module: class.rsplit('.').next().unwrap_or(&class).to_string(), options })
}

/// The next word, quoted or bare; `None` at a semicolon or the end. Stops in front of `=`.
fn word(chars: &mut Peekable<Chars<'_>>) -> Result<Option<String>, String> {
    while chars.next_if(|c| c.is_whitespace()).is_some() {}
    let mut word = String::new();
    match chars.peek() {
        None | Some(';') => return Ok(None),
        Some(&quote @ ('"' | '\'')) => {
            chars.next();
            loop {
                match chars.next() {
                    Some(c) if c == quote => return Ok(Some(word)),
                    Some('\\') => word.extend(chars.next()),
                    Some(c) => word.push(c),
                    None => return Err("has a quote that is not closed".into()),
                }
            }
        }
        Some(_) => {}
    }
    while let Some(c) = chars.next_if(|c| !c.is_whitespace() && !matches!(c, '=' | ';' | '"')) {
        word.push(c);
    }
    while chars.next_if(|c| c.is_whitespace()).is_some() {}
    Ok(Some(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kafka_documents_is_understood() {
        let jaas = parse(
            "org.apache.kafka.common.security.scram.ScramLoginModule required\n  username=\"alice\" \
             password = \"a\\\"b;c=d \\\\\" serviceName='x' n=1;  ",
        );
        let jaas = jaas.unwrap_or_else(|why| panic!("{why}"));
        assert_eq!(jaas.module, "ScramLoginModule");
        let options: Vec<(&str, &str)> = jaas.options.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(options, [("n", "1"), ("password", "a\"b;c=d \\"), ("serviceName", "x"), ("username", "alice")]);
    }

    #[test]
    fn mistakes_are_named_without_the_password() {
        for (text, why) in [
            ("", "names no login module"),
            ("M username=\"hidden\";", "lacks the word required behind M"),
            ("M required password=\"hidden\"", "does not end in a semicolon"),
            ("M required password=\"hidden;", "quote that is not closed"),
            ("M required password;", "option \"password\" without a value"),
            ("M required a=\"hidden\"; N required;", "behind its semicolon"),
        ] {
            let error = parse(text).err().unwrap();
            assert!(error.contains(why) && !error.contains("hidden"), "{text}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics(text in "(M required )?(\\PC|[;=\"' \\\\a])*") {
            let _ = parse(&text);
        }
    }
}
