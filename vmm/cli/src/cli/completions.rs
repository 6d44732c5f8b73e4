//! Shell completions, which also know the names of the instances that are there.

use clap::Command;
use clap_complete::{Shell, generate};

/// The commands whose arguments are names of instances.
const NAMED: &[&str] = &[
    "load", "start", "pause", "resume", "kill", "restart", "reset", "unload", "delete", "wait",
    "show", "logs", "console",
];

/// What zsh's completions say for names, and what is to be there.
const ZSH_NAMES: [(&str, &str); 3] = [
    (
        " -- The names of the instances:_default'",
        " -- The names of the instances:_mkvmm_instances'",
    ),
    (
        " -- The name of the instance:_default'",
        " -- The name of the instance:_mkvmm_instances'",
    ),
    (
        " -- The name of the instance; all instances if absent:_default'",
        " -- The name of the instance; all instances if absent:_mkvmm_instances'",
    ),
];

/// Returns the completions of `command` for `shell`.
pub fn completions(command: &mut Command, shell: Shell) -> String {
    let mut text = Vec::new();
    generate(shell, command, "mkvmm", &mut text);
    let text = String::from_utf8_lossy(&text).into_owned();
    match shell {
        Shell::Bash => text + &bash(),
        Shell::Zsh => zsh(&text),
        Shell::Fish => text + &fish(),
        _ => text,
    }
}

/// Names first, for words that are no options; then what clap has generated.
fn bash() -> String {
    format!(
        r#"
_mkvmm_instances() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}}
    case ${{COMP_WORDS[1]}} in
        {})
            if [[ $word != -* && ( $before != -* || $before = --all || $before = --force ) ]]; then
                COMPREPLY=($(compgen -W "$(mkvmm list -q 2>/dev/null)" -- "$word"))
                return 0
            fi
            ;;
    esac
    _mkvmm "$@"
}}
complete -F _mkvmm_instances -o nosort -o bashdefault -o default mkvmm
"#,
        NAMED.join("|")
    )
}

fn zsh(text: &str) -> String {
    let text = ZSH_NAMES
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to));
    // Before the code that runs when the file is loaded.
    let end = "if [ \"$funcstack[1]\" = \"_mkvmm\" ]";
    let names = "_mkvmm_instances() {\n    local -a names\n    \
                 names=(${(f)\"$(mkvmm list -q 2>/dev/null)\"})\n    \
                 compadd -a names\n}\n\n";
    match text.find(end) {
        Some(at) => format!("{}{names}{}", &text[..at], &text[at..]),
        None => text + names,
    }
}

fn fish() -> String {
    format!(
        "complete -c mkvmm -n \"__fish_seen_subcommand_from {}\" -f -a \"(mkvmm list -q 2>/dev/null)\" -d instance\n",
        NAMED.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::CommandFactory;

    #[test]
    fn the_commands_with_names_exist_and_their_names_are_completed() {
        let mut command = Cli::command();
        for name in NAMED {
            assert!(command.find_subcommand(name).is_some(), "{name}");
        }
        let zsh = completions(&mut command, Shell::Zsh);
        assert!(
            zsh.matches(":_mkvmm_instances'").count() >= NAMED.len(),
            "{zsh}"
        );
        assert!(zsh.contains("\n_mkvmm_instances() {"));
        for shell in [Shell::Bash, Shell::Fish] {
            let text = completions(&mut command, shell);
            assert!(text.contains("mkvmm list -q"), "{shell}");
        }
    }
}
