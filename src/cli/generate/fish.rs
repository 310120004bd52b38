//! The completion for fish.

use std::fmt::Write;

use super::{KINDS, Mode, Takes, WORD, brief, first_words, quoted};
use crate::cli::NAME;

pub(super) fn completion(modes: &[Mode]) -> String {
    let mut text = format!("# Completion of {NAME} for fish; made by `{NAME} {WORD} fish`.\ncomplete -c {NAME} -f\n");
    let first = quoted(&first_words(modes).join(" "));
    let _ = writeln!(text, "complete -c {NAME} -n __fish_is_first_arg -a {first}");
    let seen = |words: &[&str]| format!("__fish_seen_subcommand_from {}", words.join(" "));
    let _ = writeln!(text, "complete -c {NAME} -n '{}' -a {}", seen(&[WORD]), quoted(&KINDS.join(" ")));
    let others: Vec<&str> = modes.iter().skip(1).map(|mode| mode.word).chain([WORD]).collect();
    for (index, mode) in modes.iter().enumerate() {
        let when = if index == 0 { format!("not {}", seen(&others)) } else { seen(&[mode.word]) };
        for opt in &mode.options {
            let short = opt.short.map(|short| format!(" -s {short}")).unwrap_or_default();
            let takes = match Takes::of(opt) {
                Takes::Nothing => String::new(),
                Takes::Words(words) => format!(" -x -a {}", quoted(&words.join(" "))),
                Takes::File => " -r -F".into(),
                Takes::Directory => " -x -a '(__fish_complete_directories)'".into(),
                Takes::Program => " -x -a '(__fish_complete_command)'".into(),
                Takes::Text => " -x".into(),
            };
            let (name, about) = (opt.name, quoted(brief(opt)));
            let _ = writeln!(text, "complete -c {NAME} -n '{when}' -l {name}{short}{takes} -d {about}");
        }
    }
    text
}
