//! Examples for the help of commands and for their man pages. They are a session: a
//! test runs all of them, in this order, as they are printed.

use clap::Command;

/// A command line, and what it does.
type Example = (&'static str, &'static str);

/// The examples of each command, which is given by its words.
pub const EXAMPLES: &[(&str, &[Example])] = &[
    (
        "run",
        &[
            (
                "mkvmm run --pool 64M --guest name=a,kernel=probe,memory=8M --guest name=b,kernel=probe,memory=8M",
                "Two built-in test guests from one pool, until both have ended",
            ),
            (
                "mkvmm run --pool 64M --fleet fleet.toml --dry-run --show",
                "The memory of a fleet, without starting it",
            ),
            (
                "mkvmm run --on \"$MKVMM_SOCKET\" --lease 30s --guest name=job,kernel=probe,memory=8M",
                "A guest in a pool that is served, which exists as long as this command",
            ),
        ],
    ),
    (
        "serve",
        &[
            (
                "mkvmm serve --pool 1G",
                "A pool of 1 GiB, for the commands below",
            ),
            (
                "mkvmm serve --pool 1G --fleet fleet.toml --metrics-listen 9464",
                "The same with guests from the beginning, and metrics for Prometheus",
            ),
            (
                "mkvmm serve --pool 1G --granule 32M",
                "Memory in multiples of 32 MiB, as a scheduler counts it",
            ),
        ],
    ),
    (
        "create",
        &[
            (
                "mkvmm create web --memory 32M --kernel probe --cmdline shell --start",
                "An instance that is booted at once",
            ),
            (
                "mkvmm create db --memory 16M --cpus 2",
                "Memory only; images come later",
            ),
        ],
    ),
    (
        "load",
        &[("mkvmm load db --kernel probe", "Give it a kernel")],
    ),
    ("start", &[("mkvmm start db", "Boot it")]),
    (
        "wait",
        &[("mkvmm wait db --timeout 30s", "Wait until it has ended")],
    ),
    (
        "logs",
        &[(
            "mkvmm logs db --tail 5",
            "The last lines that it has printed",
        )],
    ),
    (
        "list",
        &[
            ("mkvmm list --state active", "Instances that run"),
            ("mkvmm list -q", "Only the names"),
        ],
    ),
    (
        "show",
        &[
            ("mkvmm show web", "All about one instance"),
            ("mkvmm show web --e820", "Its memory map"),
        ],
    ),
    ("pause", &[("mkvmm pause web", "Stop its vCPUs")]),
    ("resume", &[("mkvmm resume web", "Let them go on")]),
    (
        "restart",
        &[("mkvmm restart db --grace 2s", "End it, and boot it again")],
    ),
    ("reset", &[("mkvmm reset db", "The same at once")]),
    (
        "debug regs",
        &[("mkvmm debug regs web --cpu 0", "Registers of a vCPU")],
    ),
    (
        "debug mem",
        &[("mkvmm debug mem web 0x7000 64", "Memory of a guest")],
    ),
    ("iomem", &[("mkvmm iomem", "Who owns what")]),
    ("pool show", &[("mkvmm pool show", "How much is free")]),
    (
        "pool map",
        &[("mkvmm pool map --svg pool.svg", "A picture of the pool")],
    ),
    ("pool log", &[("mkvmm pool log", "The last allocations")]),
    ("audit", &[("mkvmm audit", "Are the accounts right?")]),
    (
        "capacity",
        &[("mkvmm capacity --json", "How many granules are free?")],
    ),
    (
        "health",
        &[("mkvmm health", "Does it answer? For a health check")],
    ),
    (
        "events",
        &[
            ("mkvmm events --since 10", "What has happened since then"),
            ("mkvmm events --name web", "What has happened to one"),
        ],
    ),
    (
        "metrics",
        &[("mkvmm metrics", "The same as Prometheus gets")],
    ),
    (
        "kill",
        &[("mkvmm kill web --force", "End it without its power button")],
    ),
    ("unload", &[("mkvmm unload db", "Remove its images")]),
    (
        "delete",
        &[
            ("mkvmm delete db", "Free its memory"),
            ("mkvmm delete --all", "All instances, if none of them runs"),
        ],
    ),
    (
        "plan",
        &[("mkvmm plan fleet.toml", "Would it fit, and where?")],
    ),
    (
        "apply",
        &[
            ("mkvmm apply fleet.toml --dry-run", "What would be changed"),
            ("mkvmm apply fleet.toml", "Change it: all of it or nothing"),
            (
                "mkvmm apply fleet.toml --prune --grace 10s",
                "Also delete what the file does not have",
            ),
        ],
    ),
    ("dump", &[("mkvmm dump", "The fleet file of what is there")]),
    ("doctor", &[("mkvmm doctor", "What can this host do?")]),
];

/// Adds the examples to the help of all commands.
pub fn add(command: Command) -> Command {
    EXAMPLES.iter().fold(command, |command, (words, examples)| {
        let words: Vec<&str> = words.split(' ').collect();
        at(command, &words, |command| {
            command.after_help(help(examples))
        })
    })
}

/// Changes the command with these words.
fn at(command: Command, words: &[&str], change: impl FnOnce(Command) -> Command) -> Command {
    match words.split_first() {
        None => change(command),
        Some((first, rest)) => {
            let first = (*first).to_owned();
            command.mut_subcommand(first, |command| at(command, rest, change))
        }
    }
}

fn help(examples: &[Example]) -> String {
    let lines = examples
        .iter()
        .map(|(line, what)| format!("  # {what}\n  {line}"));
    format!("Examples:\n{}", lines.collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_ends_with_the_examples_of_its_command() {
        let command =
            Command::new("mkvmm").subcommand(Command::new("pool").subcommand(Command::new("map")));
        let command = at(command, &["pool", "map"], |command| {
            command.after_help(help(&[("mkvmm pool map", "A picture")]))
        });
        let mut map = command
            .find_subcommand("pool")
            .and_then(|pool| pool.find_subcommand("map"))
            .cloned()
            .unwrap();
        let text = map.render_help().to_string();
        assert!(
            text.ends_with("Examples:\n  # A picture\n  mkvmm pool map\n"),
            "{text}"
        );
    }
}
