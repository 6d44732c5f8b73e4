//! Tests of what users get besides the program: examples, man pages, completions, the
//! installation, the package, and the examples in Python and Rust.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use mkvmm_client::Client;
use mkvmm_test_harness::mkvmm::binary;
use mkvmm_test_harness::tier::{skip, skips_without_kvm, skips_without_tool};
use mkvmm_test_harness::{Mkvmm, Scratch, root};

use crate::server::Server;

#[path = "../../vmm/client/examples/fleet.rs"]
#[expect(dead_code, reason = "the test calls what the example's main does")]
mod rust_example;

/// The commands with examples, in the order in which those make a session.
const SESSION: [&str; 31] = [
    "run",
    "create",
    "load",
    "start",
    "wait",
    "logs",
    "list",
    "show",
    "pause",
    "resume",
    "restart",
    "reset",
    "debug regs",
    "debug mem",
    "iomem",
    "pool show",
    "pool map",
    "pool log",
    "audit",
    "capacity",
    "health",
    "events",
    "metrics",
    "kill",
    "unload",
    "delete",
    "plan",
    "apply",
    "dump",
    "doctor",
    // They do not end.
    "serve",
];

/// The fleet that the examples use.
const FLEET: &str = r#"
[[instance]]
name = "web"
memory = "32M"
kernel = "probe"
cmdline = "shell"

[[instance]]
name = "db"
memory = "16M"
kernel = "probe"
"#;

/// Runs a line in a shell that finds mkvmm, in `scratch`.
fn shell(line: &str, scratch: &Scratch, socket: &Path) -> Output {
    let program = binary();
    let directory = program.parent().expect("it is a file");
    let path = std::env::var("PATH").unwrap_or_default();
    Command::new("sh")
        .args(["-c", line])
        .current_dir(scratch.dir())
        .env("PATH", format!("{}:{path}", directory.display()))
        .env("MKVMM_SOCKET", socket)
        .output()
        .expect("there is a shell")
}

/// Returns the examples in the help of a command.
fn examples(words: &str) -> Vec<String> {
    let args = words.split_whitespace().chain(["--help"]);
    let help = Mkvmm::new(args).finish();
    help.expect_code(0);
    let Some((_, examples)) = help.stdout.split_once("\nExamples:\n") else {
        return Vec::new();
    };
    let lines = examples.lines().map(str::trim);
    lines
        .filter(|line| line.starts_with("mkvmm "))
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_examples_in_the_help_are_a_session_that_works() {
    if skips_without_kvm() {
        return;
    }
    let (server, scratch) = (Server::start("1G"), Scratch::new());
    scratch.file("fleet.toml", FLEET.as_bytes());
    let mut count = 0;
    for words in &SESSION {
        let examples = examples(words);
        assert!(!examples.is_empty(), "{words} has no examples");
        if *words == "unload" {
            server.ok("wait db --timeout 30s");
        }
        for line in examples.iter().filter(|_| *words != "serve") {
            let output = shell(line, &scratch, server.socket());
            assert!(output.status.success(), "{line}: {output:?}");
            count += 1;
        }
    }
    assert!(count > 30, "{count}");
    let serve = examples("serve");
    assert!(
        serve
            .iter()
            .all(|line| line.starts_with("mkvmm serve --pool "))
    );
    server.tear_down();
}

#[test]
fn every_command_has_a_man_page_that_can_be_read() {
    let scratch = Scratch::new();
    let man = Mkvmm::new(["man", "--out"]).arg(scratch.dir()).finish();
    man.expect_code(0);
    let mut with_examples = 0;
    for page in fs::read_dir(scratch.dir()).expect("it is ours") {
        let path = page.expect("it is ours").path();
        let text = fs::read_to_string(&path).expect("text");
        let name = path.display();
        let has = |section: &str| {
            let plain = format!(".SH {section}\n");
            text.contains(&plain) || text.contains(&format!(".SH \"{section}\"\n"))
        };
        assert!(has("NAME") && has("SEE ALSO"), "{name}: {text}");
        with_examples += usize::from(has("EXAMPLES"));
        if path.extension().is_some_and(|section| section == "1") {
            for section in ["EXIT STATUS", "ENVIRONMENT", "FILES"] {
                assert!(has(section), "{name}: {section}");
            }
        }
        if Command::new("groff").arg("--version").output().is_ok() {
            let groff = Command::new("groff")
                .args(["-Kutf8", "-man", "-Tutf8", "-ww"])
                .arg(&path)
                .output()
                .expect("it is there");
            let warnings = String::from_utf8_lossy(&groff.stderr);
            assert!(warnings.is_empty(), "{name}: {warnings}");
        }
    }
    // All that the session has, and the hidden commands have no pages.
    assert_eq!(with_examples, SESSION.len());
    assert!(!scratch.path("mkvmm-check-journal.1").exists());
    let fleet = fs::read_to_string(scratch.path("mkvmm-fleet.5")).expect("it is there");
    assert!(fleet.contains("autostart"), "{fleet}");
}

#[test]
fn completions_know_the_names_of_instances() {
    if skips_without_kvm() || skips_without_tool("bash") {
        return;
    }
    let (server, scratch) = (Server::start("64M@4G"), Scratch::new());
    server.ok("create web --memory 4M");
    server.ok("create worker --memory 4M");
    server.ok("create db --memory 4M");
    let bash = Mkvmm::new(["completions", "bash"]).finish();
    bash.expect_code(0);
    scratch.file("bash", bash.stdout.as_bytes());
    let complete = |words: &str| {
        let script = format!(
            "bash -c '. ./bash; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             COMP_LINE=\"{}\"; _mkvmm_instances mkvmm \"${{COMP_WORDS[COMP_CWORD]}}\" x; \
             printf \"%s\\n\" \"${{COMPREPLY[@]}}\"'",
            words.replace('"', "")
        );
        let output = shell(&script, &scratch, server.socket());
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(complete("mkvmm kill w"), "web\nworker\n");
    assert_eq!(complete("mkvmm delete web \"\""), "web\nworker\ndb\n");
    let options = complete("mkvmm kill --fo");
    assert!(options.contains("--force"), "{options}");
    let verbs = complete("mkvmm appl");
    assert!(verbs.contains("apply"), "{verbs}");
    server.tear_down();
}

#[test]
fn an_installation_is_complete_and_can_be_removed() {
    let scratch = Scratch::new();
    let run = |script: &str, args: &[&str]| {
        let output = Command::new(root().join("scripts").join(script))
            .args(args)
            .output()
            .expect("it is a program");
        assert!(output.status.success(), "{script}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let destination = scratch.dir().display().to_string();
    let program = binary().display().to_string();
    let place = ["--destdir", &destination, "--prefix", "/usr"];
    run("install", &[&place[..], &["--binary", &program]].concat());
    for file in [
        "usr/bin/mkvmm",
        "usr/share/man/man1/mkvmm.1.gz",
        "usr/share/man/man1/mkvmm-apply.1.gz",
        "usr/share/man/man5/mkvmm-fleet.5.gz",
        "usr/share/bash-completion/completions/mkvmm",
        "usr/share/zsh/site-functions/_mkvmm",
        "usr/share/fish/vendor_completions.d/mkvmm.fish",
        "lib/systemd/system/mkvmm.socket",
        "usr/share/doc/mkvmm/control.md",
        "usr/share/doc/mkvmm/grafana.json",
        "usr/share/doc/mkvmm/slurm/jobs/on-host.sh",
    ] {
        assert!(scratch.path(file).is_file(), "{file}");
    }
    let unit = scratch.path("lib/systemd/system/mkvmm.service");
    let unit = fs::read_to_string(unit).expect("it is there");
    assert!(unit.contains("ExecStart=/usr/bin/mkvmm serve"), "{unit}");
    run("install", &[&place[..], &["--uninstall"]].concat());
    let left = Command::new("find")
        .args([&destination, "-type", "f", "-o", "-path", "*/mkvmm"])
        .output()
        .expect("it is a program");
    assert!(left.stdout.is_empty(), "{left:?}");
}

#[test]
fn a_debian_package_has_what_the_installation_has() {
    if skips_without_tool("dpkg-deb") || skips_without_tool("objdump") {
        return;
    }
    let scratch = Scratch::new();
    let output = Command::new(root().join("scripts/deb"))
        .arg("--binary")
        .arg(binary())
        .arg("--out")
        .arg(scratch.dir())
        .output()
        .expect("it is a program");
    assert!(output.status.success(), "{output:?}");
    let package = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let show = |option: &str| {
        let output = Command::new("dpkg-deb").args([option, &package]).output();
        let output = output.expect("it is a program");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let info = show("--info");
    for words in [
        " Package: mkvmm\n",
        " Depends: libc6 (>= 2.",
        " Version: 0.1.0\n",
    ] {
        assert!(info.contains(words), "{info}");
    }
    let contents = show("--contents");
    for file in [
        "./usr/bin/mkvmm\n",
        "./etc/mkvmm.toml\n",
        "./lib/systemd/system/mkvmm.service\n",
        "./usr/share/man/man5/mkvmm-fleet.5.gz\n",
        "./usr/share/doc/mkvmm/copyright\n",
    ] {
        assert!(contents.contains(file), "{file}: {contents}");
    }
    let is_root = |line: &str| line.contains(" root/root ");
    assert!(contents.lines().all(is_root), "{contents}");
}

/// Returns what systemd says about a unit whose rating may be `most`, in tenths, and
/// whether it is; `None` if it cannot judge a file.
fn rating(unit: &Path, most: u32) -> Option<(bool, String)> {
    let output = Command::new("systemd-analyze")
        .args(["security", "--offline=true"])
        .arg(format!("--threshold={most}"))
        .arg(unit)
        .output()
        .expect("it is a program");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    (!said.is_empty()).then_some((output.status.success(), said))
}

#[test]
fn the_unit_takes_what_the_service_does_not_need() {
    if skips_without_tool("systemd-analyze") {
        return;
    }
    let unit = root().join("scripts/mkvmm.service");
    let Some((is_below, said)) = rating(&unit, 29) else {
        return skip("this systemd-analyze cannot judge a file");
    };
    assert!(is_below, "{said}");
    // The network costs what the documents say it does.
    let text = |path: &str| fs::read_to_string(root().join(path)).expect("it is there");
    let (before, install) = text("scripts/mkvmm.service")
        .split_once("[Install]")
        .map(|(before, install)| (before.to_owned(), install.to_owned()))
        .expect("it has both");
    let scratch = Scratch::new();
    let network = text("contrib/mkvmm-network.conf");
    let with_network = format!("{before}{network}[Install]{install}");
    let unit = scratch.file("mkvmm.service", with_network.as_bytes());
    let (is_below, said) = rating(&unit, 36).expect("it has judged one");
    assert!(is_below, "{said}");
    assert!(!rating(&unit, 29).expect("it has judged one").0);
}

#[test]
fn the_packages_configuration_is_one() {
    let scratch = Scratch::new();
    let text = fs::read_to_string(root().join("scripts/mkvmm.toml")).expect("it is there");
    // All keys, and a place where nobody else serves.
    let text = text.replace("\n#", "\n").replace("\n ", "\n# ");
    let keys = text.lines().filter(|line| line.contains(" = "));
    let keys: Vec<&str> = keys.filter(|line| !line.contains("fleet")).collect();
    assert!(keys.len() >= 4, "{keys:?}");
    let file = scratch.file("mkvmm.toml", keys.join("\n").as_bytes());
    let serve = Mkvmm::new([
        "serve",
        "--socket",
        "/nowhere/sock",
        "--pool",
        "3",
        "--config",
    ])
    .arg(&file)
    .finish();
    // The pool is too small, but nothing is wrong with the file.
    assert!(!serve.stderr.contains("mkvmm.toml"), "{serve}");
}

#[test]
fn the_example_in_python_works() {
    if skips_without_kvm() || skips_without_tool("python3") {
        return;
    }
    let server = Server::start("64M@4G");
    let example = root().join("contrib/example.py");
    // Ends of the first time are not those of the second.
    for _ in 0..2 {
        let output = Command::new("python3")
            .arg(&example)
            .arg(server.socket())
            .output()
            .expect("it is a program");
        assert!(output.status.success(), "{output:?}");
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "pool: 64M of 64M are free\none: create\ntwo: create\n\
             one: ended (reboot), 'probe: pass'\ntwo: ended (reboot), 'probe: pass'\naudit: ok\n"
        );
        server.expect_empty();
    }
    // What is refused is said.
    server.ok("pool alloc 60M");
    let output = Command::new("python3")
        .arg(&example)
        .arg(server.socket())
        .output();
    let output = output.expect("it is a program");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.starts_with("error: instance one: needs 8M, 4M are free"),
        "{said}"
    );
}

#[test]
fn the_example_in_rust_works() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    let client = Client::new(server.socket());
    let mut out = Vec::new();
    rust_example::fleet(&client, &mut out).expect("it works");
    assert_eq!(
        String::from_utf8_lossy(&out),
        "pool: 64M of 64M are free\none: Create\ntwo: Create\n\
         one: ended (reboot), 'probe: pass'\ntwo: ended (reboot), 'probe: pass'\naudit: ok\n"
    );
    server.expect_empty();
    // What is refused has changed nothing, and says why.
    server.ok("pool alloc 60M");
    let refused = rust_example::fleet(&client, &mut Vec::new()).expect_err("it has no room");
    let said = refused.to_string();
    assert!(
        said.starts_with("instance one: needs 8M, 4M are free"),
        "{said}"
    );
    assert_eq!(client.instances().expect("it serves"), []);
}
