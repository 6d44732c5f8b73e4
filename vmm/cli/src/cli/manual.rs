//! The man pages: one per command, made from its arguments, and one for fleet files.

use std::fs;
use std::io;
use std::path::Path;

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use mkvmm_api::InstanceSpec;
use mkvmm_api::reader::keys;

use crate::cli::examples::EXAMPLES;
use crate::cli::spec_args::key_help;

/// The exit statuses, which are the same for all commands.
const STATUSES: &[(&str, &str)] = &[
    ("0", "Everything that was requested is done."),
    ("1", "The VMM or KVM failed."),
    ("2", "The usage is wrong, or a value was refused."),
    ("3", "A file could not be read."),
    (
        "4",
        "There is no such instance, it is another user's, its state does not allow the request, or it is busy.",
    ),
    (
        "5",
        "The pool or the host lacks the memory or another resource.",
    ),
    ("6", "A guest ended badly (run)."),
    (
        "75",
        "The VMM does not answer or was lost, or the process of a guest was: a cluster's scheduler may run the job again.",
    ),
    ("130", "Ended by SIGINT."),
    (
        "143",
        "Ended by SIGTERM. serve ends with 0 then, unless guests had to be killed.",
    ),
];

/// The variables that mkvmm reads.
const ENVIRONMENT: &[(&str, &str)] = &[
    (
        "MKVMM_SOCKET",
        "The control socket, if --socket is not given.",
    ),
    (
        "XDG_RUNTIME_DIR",
        "The directory of the control socket mkvmm.sock, if neither is given.",
    ),
    ("NO_COLOR", "If set, nothing is printed in colour."),
    (
        "LISTEN_FDS, NOTIFY_SOCKET, JOURNAL_STREAM",
        "Set by a service manager for serve: its socket, where it reports that it is ready, and that the log needs no times.",
    ),
];

/// The files that mkvmm uses.
const FILES: &[(&str, &str)] = &[
    (
        "$XDG_RUNTIME_DIR/mkvmm.sock, /run/mkvmm.sock",
        "The control socket; a lock is beside it.",
    ),
    (
        "/etc/mkvmm.toml",
        "The configuration of the service (mkvmm-serve(1)).",
    ),
    (
        "/var/lib/mkvmm/state",
        "The state directory of the service: the socket of its keeper, and instances.toml.",
    ),
];

/// The description of fleet files.
const FLEET: &[&str] = &[
    "A fleet file lists instances, in TOML. run --fleet launches them in a pool of their own, plan prints where they would be placed, apply makes a pool that is served be what the file says, and serve --fleet begins with them. dump prints such a file.",
    "Each instance is a table [[instance]] with the keys below, which are those of --guest and the options of create. Paths are relative to the file. Sizes are numbers of bytes, or text as the kernel's memparse reads it, such as \"128M\". An instance without a name is called guest1, guest2 and so on by its position.",
];

/// The example of a fleet file.
const FLEET_EXAMPLE: &str = "[[instance]]
name = \"web\"
memory = \"256M\"
cpus = 2
kernel = \"/boot/vmlinuz\"
initrd = [\"web.cpio.gz\"]
cmdline = \"console=ttyS0 quiet\"
net = [\"passt,forward=8080:80\"]
on-panic = \"restart\"

[[instance]]
name = \"spare\"
memory = \"128M\"
kernel = \"probe\"
autostart = false";

/// Writes the pages of all commands, and mkvmm-fleet(5), into `dir`.
///
/// # Errors
/// Returns the error of the file system.
pub fn write_all(command: &Command, dir: &Path) -> io::Result<()> {
    let command = command.clone().disable_help_subcommand(true);
    write_one(&command, &["mkvmm".to_owned()], dir)?;
    fs::write(dir.join("mkvmm-fleet.5"), fleet())
}

/// Writes the page of a command and those below it; hidden ones have none.
fn write_one(command: &Command, words: &[String], dir: &Path) -> io::Result<()> {
    let name = words.join("-");
    let mut text = Vec::new();
    write_page(command, words, &mut text)?;
    fs::write(dir.join(format!("{name}.1")), text)?;
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let words = [words, &[sub.get_name().to_owned()]].concat();
        write_one(sub, &words, dir)?;
    }
    Ok(())
}

/// Writes the page of one command.
///
/// # Errors
/// Returns the error of `to`.
pub fn write_page(command: &Command, words: &[String], to: &mut dyn io::Write) -> io::Result<()> {
    let command = command
        .clone()
        // They have a section of their own.
        .after_help("")
        .display_name(words.join("-"))
        .bin_name(words.join(" "))
        .version(env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone()).manual("mkvmm");
    man.render_title(to)?;
    man.render_name_section(to)?;
    man.render_synopsis_section(to)?;
    man.render_description_section(to)?;
    man.render_options_section(to)?;
    if command.get_subcommands().any(|sub| !sub.is_hide_set()) {
        man.render_subcommands_section(to)?;
    }
    let mut roff = Roff::new();
    let own = words.get(1..).unwrap_or_default().join(" ");
    if let Some((_, examples)) = EXAMPLES.iter().find(|(words, _)| *words == own) {
        roff.control("SH", ["EXAMPLES"]);
        for (line, what) in *examples {
            roff.control("PP", []);
            roff.text([roman(format!("{what}:"))]);
            literal(&mut roff, line);
        }
    }
    definitions(&mut roff, "EXIT STATUS", STATUSES);
    definitions(&mut roff, "ENVIRONMENT", ENVIRONMENT);
    definitions(&mut roff, "FILES", FILES);
    roff.control("SH", ["SEE ALSO"]);
    let others = match own.is_empty() {
        true => "mkvmm-serve(1), mkvmm-run(1), mkvmm-fleet(5)",
        false => "mkvmm(1), mkvmm-fleet(5)",
    };
    roff.text([roman(others)]);
    roff.to_writer(to)
}

fn definitions(roff: &mut Roff, title: &str, all: &[(&str, &str)]) {
    roff.control("SH", [title]);
    for (word, meaning) in all {
        roff.control("TP", []);
        roff.text([bold(*word)]);
        roff.text([roman(*meaning)]);
    }
}

/// Adds text whose lines stay as they are.
fn literal(roff: &mut Roff, text: &str) {
    roff.control("PP", []);
    roff.control("nf", []);
    roff.control("RS", ["4"]);
    for line in text.lines() {
        roff.text([roman(line)]);
    }
    roff.control("RE", []);
    roff.control("fi", []);
}

/// Returns the page mkvmm-fleet(5), about fleet files.
fn fleet() -> String {
    let version = format!("mkvmm {}", env!("CARGO_PKG_VERSION"));
    let mut roff = Roff::new();
    roff.control("TH", ["mkvmm-fleet", "5", "", &version, "mkvmm"]);
    roff.control("SH", ["NAME"]);
    roff.text([roman("mkvmm-fleet - fleet files: instances of a pool")]);
    roff.control("SH", ["DESCRIPTION"]);
    for paragraph in FLEET {
        roff.control("PP", []);
        roff.text([roman(*paragraph)]);
    }
    roff.control("SH", ["KEYS"]);
    for key in keys::<InstanceSpec>() {
        roff.control("TP", []);
        roff.text([bold(*key)]);
        roff.text([roman(format!("{}.", key_help(key)))]);
    }
    roff.control("SH", ["EXAMPLE"]);
    literal(&mut roff, FLEET_EXAMPLE);
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman(
        "mkvmm(1), mkvmm-apply(1), mkvmm-plan(1), mkvmm-run(1)",
    )]);
    roff.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fleet_of_the_manual_is_one() {
        let fleet: toml::Table = FLEET_EXAMPLE.parse().unwrap();
        let instances = fleet["instance"].as_array().unwrap();
        for one in instances {
            let spec: InstanceSpec = one.clone().try_into().unwrap();
            spec.check().unwrap();
        }
        let text = self::fleet();
        for words in ["autostart", "cpus\\-affinity", "[[instance]]", "MEMORY"] {
            let found = text.to_lowercase().contains(&words.to_lowercase());
            assert!(found, "{words}: {text}");
        }
    }

    #[test]
    fn every_page_has_the_sections_that_readers_look_for() {
        let command = Command::new("mkvmm").subcommand(Command::new("audit").about("Checks"));
        let mut text = Vec::new();
        let audit = command.find_subcommand("audit").unwrap();
        let words = ["mkvmm", "audit"].map(str::to_owned);
        write_page(audit, &words, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        for section in [
            "NAME",
            "SYNOPSIS",
            "EXAMPLES",
            "EXIT STATUS",
            "ENVIRONMENT",
            "FILES",
        ] {
            let quoted = [format!(".SH {section}"), format!(".SH \"{section}\"")];
            assert!(
                quoted.iter().any(|line| text.contains(line)),
                "{section}: {text}"
            );
        }
    }
}
