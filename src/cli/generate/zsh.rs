//! The completion for zsh: a function to be found as `_airkafka-worker` in a directory of `fpath`.

use std::fmt::Write;

use super::{KINDS, Mode, Takes, WORD, brief, first_words, quoted, spellings};
use crate::cli::NAME;
use crate::cli::options::Opt;

pub(super) fn completion(modes: &[Mode]) -> String {
    let mut text = format!("#compdef {NAME}\n# Completion of {NAME} for zsh; made by `{NAME} {WORD} zsh`.\n");
    let words: Vec<&str> = modes.iter().map(|mode| mode.word).chain([WORD]).collect();
    let first = quoted(&format!("1: :({})", first_words(modes).join(" ")));
    let _ = writeln!(text, "_airkafka_worker() {{\n  local mode=start\n  local -a first=({first})");
    let _ = writeln!(text, "  (( CURRENT == 2 )) || case $words[2] in\n    {})", words.join("|"));
    let _ = writeln!(
        text,
        "      mode=$words[2]\n      first=()\n      shift words\n      (( CURRENT-- ))\n      ;;\n  esac"
    );
    text += "  case $mode in\n";
    for mode in modes {
        let _ = write!(text, "    {})\n      _arguments -s $first", mode.word);
        for opt in &mode.options {
            let _ = write!(text, " \\\n        {}", specs(opt).join(" "));
        }
        text += "\n      ;;\n";
    }
    let _ = writeln!(text, "    {WORD}) _arguments {} ;;", quoted(&format!("1: :({})", KINDS.join(" "))));
    // As zsh has it: read from fpath, the file is the function's first call; sourced, it only announces it.
    text + "  esac\n}\nif [[ $funcstack[1] == _airkafka-worker ]]; then\n  _airkafka_worker \"$@\"\nelse\n"
        + &format!("  compdef _airkafka_worker {NAME}\nfi\n")
}

/// One specification for each spelling. Those of one option exclude each other, unless it counts.
fn specs(opt: &Opt) -> Vec<String> {
    let takes = Takes::of(opt);
    let action = match &takes {
        Takes::Nothing => String::new(),
        Takes::Words(words) => format!("({})", words.join(" ")),
        Takes::File => "_files".into(),
        Takes::Directory => "_files -/".into(),
        Takes::Program => "_command_names -e".into(),
        Takes::Text => " ".into(),
    };
    let value = opt.value.map(|what| format!(":{}:{action}", escaped(what))).unwrap_or_default();
    let repeats = opt.repeats() || (takes == Takes::Nothing && opt.short.is_some());
    let before = if repeats { "*".to_string() } else { format!("({})", spellings(opt).join(" ")) };
    let about = escaped(brief(opt));
    let sign = |spelling: &str| match (&takes, spelling.starts_with("--")) {
        (Takes::Nothing, _) => "",
        (_, true) => "=",  // its value follows the sign, or is the next word
        (_, false) => "+", // its value is the rest of the word, or the next one
    };
    spellings(opt).iter().map(|name| quoted(&format!("{before}{name}{}[{about}]{value}", sign(name)))).collect()
}

/// Without what has a meaning in a specification.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        if matches!(c, '[' | ']' | ':' | '\\') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}
