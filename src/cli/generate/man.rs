//! The man page, in the macros of man(7): what the help says, filled to the reader's width, and the names of the settings.

use std::fmt::Write;

use super::{Mode, spellings};
use crate::cli::help::WIDTH;
use crate::cli::options::{Fallback, Opt};
use crate::cli::{NAME, VERSION};

/// What the program is, in one sentence.
const ABOUT: &str = env!("CARGO_PKG_DESCRIPTION");

pub(super) fn page(modes: &[Mode], date: &str) -> String {
    let title = roff(&NAME.to_uppercase());
    let mut text = format!(".\\\" Made by `{NAME} generate man`; do not edit.\n");
    let _ = writeln!(text, ".TH {title} 1 {date} \"{} {VERSION}\" \"User Commands\"", roff(NAME));
    let about = ABOUT.trim_end_matches('.');
    let (initial, rest) = about.split_at(1);
    let _ = writeln!(text, ".SH NAME\n{} \\- {}{}", roff(NAME), initial.to_lowercase(), roff(rest));
    for (index, mode) in modes.iter().enumerate() {
        let (usage, about) = mode.head.split_once("\n\n").unwrap_or((mode.head, ""));
        let usage: Vec<String> =
            usage.lines().map(|line| roff(line.trim_start_matches("Usage:").trim_start())).collect();
        let heading = if index == 0 { "SYNOPSIS".into() } else { roff(&mode.word.to_uppercase()) };
        let _ = writeln!(text, ".SH {heading}\n.nf\n{}\n.fi", usage.join("\n"));
        let _ = writeln!(text, "{}\n{}", if index == 0 { ".SH DESCRIPTION" } else { ".PP" }, roff(about.trim()));
        if index == 0 {
            text += ".SH OPTIONS\n";
        }
        options(&mut text, &mode.options);
        sections(&mut text, mode.tail, if index == 0 { ".SH" } else { ".SS" });
    }
    text
}

fn options(text: &mut String, options: &[&Opt]) {
    let mut heading = "";
    for opt in options {
        if opt.heading != heading {
            heading = opt.heading;
            let _ = writeln!(text, ".SS {}", roff(heading));
        }
        let names: Vec<String> = spellings(opt).iter().map(|name| format!("\\fB{}\\fR", roff(name))).collect();
        let value = opt.value.map(|value| format!(" \\fI{}\\fR", roff(value))).unwrap_or_default();
        let _ = writeln!(text, ".TP\n{}{value}\n{}", names.join(", "), roff(opt.help));
        if let Fallback::Value(default) | Fallback::Computed(default) = opt.fallback {
            let _ = writeln!(text, "[default: {}]", roff(default));
        }
        let variable = opt.variable().filter(|_| opt.value.is_some());
        let names: Vec<String> =
            variable.into_iter().chain(opt.file_keys().map(|(section, key)| format!("[{section}] {key}"))).collect();
        if !names.is_empty() {
            let _ = writeln!(text, ".br\nSet by {}", roff(&names.join(", ")));
        }
    }
}

/// What stands behind the options: sections with an empty line between them, the first without a heading. `macro_` makes
/// the heading of one.
fn sections(text: &mut String, tail: &str, macro_: &str) {
    for section in tail.trim_matches('\n').split("\n\n") {
        let (heading, body) = match section.split_once('\n') {
            Some((heading, body)) if body.starts_with(' ') => (heading, body),
            _ => ("", section),
        };
        if !heading.is_empty() {
            let _ = writeln!(text, "{macro_} {}", roff(&capitals(heading)));
        }
        if heading == "Examples" {
            let lines: Vec<String> = body.lines().map(|line| roff(line.trim_start())).collect();
            let _ = writeln!(text, ".nf\n{}\n.fi", lines.join("\n"));
        } else {
            paragraphs(text, body, heading.is_empty());
        }
    }
}

/// A heading as man pages have it. What is typed stays as it is typed.
fn capitals(heading: &str) -> String {
    let words = heading.split(' ').map(|word| if word.contains('-') { word.into() } else { word.to_uppercase() });
    words.collect::<Vec<String>>().join(" ")
}

/// Lines of the help as paragraphs. A line begins a new one if its first word had room on the line before it, or if it
/// stands further left: then the end of that line is meant. Numbers stand out to the left of what they number.
fn paragraphs(text: &mut String, body: &str, parted: bool) {
    let mut before: Option<&str> = None;
    for line in body.lines() {
        let words = line.trim_start();
        let first = words.split(' ').next().unwrap_or_default();
        let filled = before
            .is_some_and(|before| before.len() + 1 + first.len() > WIDTH && indentation(before) <= indentation(line));
        let number = first.trim_end_matches('.').parse::<u8>().is_ok();
        if number {
            let _ = writeln!(text, ".TP 4\n{}\n{}", roff(first), roff(words[first.len()..].trim_start()));
        } else {
            if !filled && (before.is_some() || parted) {
                text.push_str(".PP\n");
            }
            let _ = writeln!(text, "{}", roff(words));
        }
        before = Some(line);
    }
}

fn indentation(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// The text as a line of roff that means nothing but itself.
fn roff(text: &str) -> String {
    let mut line = String::new();
    if text.starts_with(['.', '\'']) {
        line += "\\&";
    }
    for c in text.chars() {
        match c {
            '\\' => line += "\\e",
            '-' => line += "\\-",
            '\'' => line += "\\(aq",
            '`' => line += "\\(ga",
            '~' => line += "\\(ti",
            '^' => line += "\\(ha",
            '\n' => line += "\n",
            c => line.push(c),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_stays_what_it_is() {
        assert_eq!(roff(r".a-'b'\n ~"), r"\&.a\-\(aqb\(aq\en \(ti");
    }

    #[test]
    fn the_end_of_a_line_is_kept_where_it_is_meant() {
        let mut text = String::new();
        let long = "x".repeat(WIDTH - 5);
        sections(&mut text, &format!("Unit: s\n\nA - b\n  {long}\n  goes on\n  new\n   1. one\n  2  two\n"), ".SH");
        assert_eq!(
            text,
            format!(".PP\nUnit: s\n.SH A \\- B\n{long}\ngoes on\n.PP\nnew\n.TP 4\n1.\none\n.TP 4\n2\ntwo\n")
        );
    }
}
