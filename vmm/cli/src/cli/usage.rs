//! Formats clap's messages like mkvmm's own errors.

/// The commands that end guests or delete something. None is ever suggested to
/// somebody who has mistyped another: shells' histories repeat suggestions.
const DESTRUCTIVE: [&str; 5] = ["kill", "restart", "reset", "unload", "delete"];

/// Returns whether a tip suggests a command that destroys something.
fn is_destructive(tip: &str) -> bool {
    let mut quoted = tip.split('\'').skip(1).step_by(2);
    tip.contains("subcommand") && quoted.any(|word| DESTRUCTIVE.contains(&word))
}

/// Formats a message of clap as `error: …` and `help: …`, one line each. Clap
/// writes the error, indented details, tips and usage as separate paragraphs.
pub fn one_line(message: &str) -> String {
    let mut paragraphs = message.split("\n\n");
    let mut lines = paragraphs.next().unwrap_or_default().lines().map(str::trim);
    let mut text = lines.next().unwrap_or_default().to_owned();
    let details: Vec<&str> = lines.collect();
    if !details.is_empty() {
        text.push(' ');
        text.push_str(&details.join(", "));
    }
    let rest = paragraphs.flat_map(str::lines).map(str::trim);
    let help = |line: &str| {
        let tip = line
            .strip_prefix("tip: ")
            .filter(|tip| !is_destructive(tip));
        tip.or_else(|| line.strip_prefix("Usage: "))
            .map(str::to_owned)
    };
    if let Some(help) = rest.filter_map(help).next() {
        text.push_str("\nhelp: ");
        text.push_str(&help);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clap_says_becomes_an_error_and_a_help() {
        let missing = "error: the following required arguments were not provided:\n  \
                       --pool <SIZE>\n  --guest <KEY>\n\nUsage: mkvmm run --pool <SIZE>\n\n\
                       For more information, try '--help'.\n";
        assert_eq!(
            one_line(missing),
            "error: the following required arguments were not provided: --pool <SIZE>, --guest <KEY>\n\
             help: mkvmm run --pool <SIZE>"
        );
        let typo = "error: unexpected argument '--shw' found\n\n  tip: a similar argument \
                    exists: '--show'\n\nUsage: mkvmm run\n";
        assert_eq!(
            one_line(typo),
            "error: unexpected argument '--shw' found\nhelp: a similar argument exists: '--show'"
        );
        assert_eq!(one_line("error: no\n"), "error: no");
    }

    #[test]
    fn no_suggestion_leads_to_a_command_that_destroys() {
        let message = |word: &str| {
            format!(
                "error: unrecognized subcommand 'x'\n\n  tip: a similar subcommand exists: \
                 '{word}'\n\nUsage: mkvmm <COMMAND>\n"
            )
        };
        let help = |word: &str| one_line(&message(word)).lines().nth(1).map(str::to_owned);
        assert_eq!(
            help("list").as_deref(),
            Some("help: a similar subcommand exists: 'list'")
        );
        for word in DESTRUCTIVE {
            assert_eq!(help(word).as_deref(), Some("help: mkvmm <COMMAND>"));
        }
    }
}
