//! The completion for bash. It needs no package of completions beside it.

use std::fmt::Write;

use super::{KINDS, Mode, Takes, WORD, first_words, quoted, spellings};
use crate::cli::NAME;

const HEAD: &str = r#"  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} mode=start all
  COMPREPLY=()
  # Bash takes --name=value apart at the sign.
  if [[ $cur == = ]]; then
    cur=''
  elif [[ $prev == = ]]; then
    prev=${COMP_WORDS[COMP_CWORD - 2]}
  fi
"#;

pub(super) fn completion(modes: &[Mode]) -> String {
    let mut text =
        format!("# Completion of {NAME} for bash; made by `{NAME} {WORD} bash`.\n_airkafka_worker() {{\n{HEAD}");
    let others: Vec<&str> = modes.iter().skip(1).map(|mode| mode.word).chain([WORD]).collect();
    let _ = write!(text, "  [[ $COMP_CWORD -eq 1 ]] || case ${{COMP_WORDS[1]}} in\n    ");
    let _ = writeln!(text, "{}) mode=${{COMP_WORDS[1]}} ;;\n  esac\n  case $mode in", others.join(" | "));
    for mode in modes {
        let _ = writeln!(text, "    {})\n      case $prev in", mode.word);
        for opt in &mode.options {
            let action = match Takes::of(opt) {
                Takes::Nothing => continue,
                Takes::Words(words) => reply(&words.join(" ")),
                // Readline's own, which knows about ~ and blanks.
                Takes::File => "compopt -o default".into(),
                Takes::Directory => "compopt -o dirnames".into(),
                Takes::Program => "mapfile -t COMPREPLY < <(compgen -c -- \"$cur\")".into(),
                Takes::Text => ":".into(),
            };
            let _ = writeln!(text, "        {}) {action}; return ;;", spellings(opt).join(" | "));
        }
        let all: Vec<String> = mode.options.iter().flat_map(|opt| spellings(opt)).collect();
        let _ = writeln!(text, "      esac\n      all={}\n      ;;", quoted(&all.join(" ")));
    }
    let _ = writeln!(text, "    {WORD}) all={} ;;\n  esac", quoted(&KINDS.join(" ")));
    let first = quoted(&format!(" {}", first_words(modes).join(" ")));
    let _ = writeln!(text, "  [[ $COMP_CWORD -ne 1 ]] || all+={first}");
    text + "  mapfile -t COMPREPLY < <(compgen -W \"$all\" -- \"$cur\")\n}\n"
        + &format!("complete -F _airkafka_worker {NAME}\n")
}

fn reply(words: &str) -> String {
    format!("mapfile -t COMPREPLY < <(compgen -W {} -- \"$cur\")", quoted(words))
}
