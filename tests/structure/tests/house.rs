//! Checks the repository against its rules: `cargo test -p mkvmm-structure`.
//!
//! `WALLS` lists which crate may depend on which; inside each crate, files
//! import each other in one order. Neither has exceptions.

#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::fs;
use std::path::{Path, PathBuf};

use mkvmm_structure::circles::circles;
use mkvmm_structure::counts::{Counts, count};
use mkvmm_structure::imports::imports;
use mkvmm_structure::source::{Crate, Disk};
use mkvmm_structure::walls::{Manifest, Wall, breaches};

/// The packages for HTTP.
const HTTP: &[&str] = &["axum", "hyper", "hyper-util", "utoipa", "utoipa-axum"];
/// The packages for KVM.
const KVM: &[&str] = &["kvm-bindings", "kvm-ioctls"];
/// The packages for KVM and guest memory, which clients of the API do not need.
const NOT_FOR_CLIENTS: &[&str] = &["kvm-bindings", "kvm-ioctls", "vm-memory", "linux-loader"];

/// Every crate, and the others that it may depend on, from the bottom up: a row
/// names only crates of rows above it.
const WALLS: &[Wall] = &[
    wall("mkpool", &[], NOT_FOR_CLIENTS),
    wall("mkpool-replay", &["mkpool"], NOT_FOR_CLIENTS),
    // It is published separately, for guests and programs of others.
    wall("mkvmm-ring", &[], NOT_FOR_CLIENTS),
    wall("mkvmm-base", &[], KVM),
    wall("mkvmm-api", &["mkpool", "mkvmm-base"], NOT_FOR_CLIENTS),
    wall("mkvmm-memory", &["mkpool", "mkvmm-base"], KVM),
    wall("mkvmm-wire", &["mkvmm-base"], KVM),
    // It knows rings and requests only: no transport, no manager.
    wall("mkvmm-virtio", &[], KVM),
    // The built-in kernel is one of its images.
    wall("mkvmm-image", &["mkvmm-base", "mkvmm-guest-images"], KVM),
    // It never parses; its tests have images unpacked.
    wall("mkvmm-images", &["mkvmm-base"], KVM).tested_with(&["mkvmm-image"]),
    // It knows processes only; it uses the wire for waiting for a descriptor in
    // tokio, and its tests use a channel.
    wall("mkvmm-keeper", &["mkvmm-wire"], KVM),
    // It knows the kernel only: it uses KVM for the numbers of the ioctls. Its
    // tests have the ring of a disk.
    wall("mkvmm-sandbox", &[], &["kvm-ioctls"]).tested_with(&["mkvmm-virtio"]),
    // It uses memory for the rows of the e820 map, which it writes.
    wall(
        "mkvmm-machine",
        &[
            "mkpool",
            "mkvmm-base",
            "mkvmm-memory",
            "mkvmm-wire",
            "mkvmm-virtio",
        ],
        HTTP,
    ),
    // It implements child processes: a worker, an unpacker, a cleaner.
    wall(
        "mkvmm-children",
        &[
            "mkvmm-base",
            "mkvmm-memory",
            "mkvmm-wire",
            "mkvmm-image",
            "mkvmm-keeper",
            "mkvmm-sandbox",
            "mkvmm-machine",
        ],
        HTTP,
    ),
    // It knows no KVM and no parser; the program of its tests is its own child.
    wall(
        "mkvmm-manager",
        &[
            "mkpool",
            "mkvmm-base",
            "mkvmm-api",
            "mkvmm-memory",
            "mkvmm-wire",
            "mkvmm-images",
            "mkvmm-keeper",
        ],
        KVM,
    )
    .tested_with(&["mkvmm-image", "mkvmm-children"]),
    // The client's side of the socket, for programs of others, too.
    wall(
        "mkvmm-client",
        &["mkvmm-base", "mkvmm-api"],
        NOT_FOR_CLIENTS,
    ),
    // The binary depends on all, and no crate depends on it.
    wall(
        "mkvmm",
        &[
            "mkpool",
            "mkpool-replay",
            "mkvmm-base",
            "mkvmm-api",
            "mkvmm-memory",
            "mkvmm-wire",
            "mkvmm-image",
            "mkvmm-images",
            "mkvmm-keeper",
            "mkvmm-sandbox",
            "mkvmm-machine",
            "mkvmm-children",
            "mkvmm-manager",
            "mkvmm-client",
            "mkvmm-guest-images",
        ],
        &[],
    ),
];

/// The packages that all tests may use in addition.
const FOR_TESTS: &[&str] = &[
    "mkvmm-guest-images",
    "mkvmm-test-harness",
    "mkvmm-test-power",
];

/// Returns a row of the table.
const fn wall(
    name: &'static str,
    sees: &'static [&'static str],
    never: &'static [&'static str],
) -> Wall {
    Wall {
        name,
        sees,
        never,
        tested_with: &[],
    }
}

/// Returns the repository, or the directory in MKVMM_STRUCTURE_ROOT, for
/// example an older commit to compare with.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let root = std::env::var_os("MKVMM_STRUCTURE_ROOT").map_or(here, PathBuf::from);
    root.canonicalize().unwrap()
}

/// A crate of the workspace.
struct Package {
    manifest: Manifest,
    directory: PathBuf,
}

impl Package {
    /// Returns the root files of its library and of its binaries.
    fn roots(&self) -> Vec<PathBuf> {
        let source = self.directory.join("src");
        let mut roots = vec![source.join("lib.rs"), source.join("main.rs")];
        if let Ok(others) = fs::read_dir(source.join("bin")) {
            roots.extend(others.map(|entry| entry.unwrap().path()));
        }
        roots.retain(|file| file.is_file());
        roots
    }
}

/// Returns all crates below `vmm/` and `pool/`, except those with a workspace
/// of their own, which are fuzz targets and comparisons.
fn packages() -> Vec<Package> {
    let mut packages = Vec::new();
    let mut left = vec![root().join("pool"), root().join("vmm")];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap_or_default();
            if path.is_dir() && name != "src" && name != "target" {
                left.push(path);
            }
        }
        let Ok(text) = fs::read_to_string(directory.join("Cargo.toml")) else {
            continue;
        };
        if text.lines().any(|line| line == "[workspace]") {
            continue;
        }
        let manifest = Manifest::parse(&text).unwrap().unwrap();
        packages.push(Package {
            manifest,
            directory,
        });
    }
    packages.sort_by(|a, b| a.manifest.name.cmp(&b.manifest.name));
    assert!(packages.len() >= 2, "mkpool and mkvmm at least");
    packages
}

#[test]
fn crates_see_only_what_the_table_lets_them_see() {
    let manifests: Vec<Manifest> = packages().into_iter().map(|it| it.manifest).collect();
    let breaches = breaches(&manifests, WALLS, FOR_TESTS);
    assert!(breaches.is_empty(), "\n{}", breaches.join("\n"));
}

#[test]
fn every_row_of_the_table_is_a_crate() {
    let packages = packages();
    let is_there = |wall: &&Wall| packages.iter().any(|it| it.manifest.name == wall.name);
    let missing: Vec<&str> = WALLS
        .iter()
        .filter(|wall| !is_there(wall))
        .map(|wall| wall.name)
        .collect();
    assert!(missing.is_empty(), "no crate of the name {missing:?}");
}

#[test]
fn the_table_reads_from_the_bottom_up() {
    for (row, wall) in WALLS.iter().enumerate() {
        let above = WALLS[row..].iter().find(|it| wall.sees.contains(&it.name));
        assert!(above.is_none(), "{} sees {above:?}", wall.name);
    }
}

/// Returns the first words in backquotes of the rows of a Markdown table.
fn named_in_table(text: &str, head: &str) -> Vec<String> {
    let rows = text.lines().skip_while(|line| *line != head).skip(2);
    let rows = rows.take_while(|line| line.starts_with('|'));
    let name = |row: &str| row.split('`').nth(1).map(str::to_owned);
    rows.filter_map(name).collect()
}

#[test]
fn the_design_names_the_crates_in_their_order() {
    let text = fs::read_to_string(root().join("docs/design.md")).unwrap();
    let named = named_in_table(&text, "| crate | knows | does not know |");
    let rows: Vec<&str> = WALLS.iter().map(|wall| wall.name).collect();
    assert_eq!(named, rows);
}

/// Returns the Rust files below the sources of all crates that contain an
/// unsafe block.
fn files_with_unsafe_code() -> Vec<String> {
    let mut left: Vec<PathBuf> = packages()
        .into_iter()
        .map(|package| package.directory.join("src"))
        .collect();
    let mut found = Vec::new();
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|it| it.unwrap().path()));
            continue;
        }
        let text = fs::read_to_string(&path).unwrap_or_default();
        if text.contains("unsafe {") || text.contains("unsafe impl") {
            let file = path.strip_prefix(root()).unwrap();
            found.push(file.display().to_string());
        }
    }
    found.sort();
    found
}

#[test]
fn unsafe_code_is_where_the_rules_say() {
    let text = fs::read_to_string(root().join("CONTRIBUTING.md")).unwrap();
    let rule = text.split("- **").find(|it| it.starts_with("Unsafe code"));
    let places: Vec<&str> = rule.unwrap().split('`').skip(1).step_by(2).collect();
    let files = files_with_unsafe_code();
    let elsewhere: Vec<&String> = files
        .iter()
        .filter(|file| !places.iter().any(|place| file.starts_with(place)))
        .collect();
    assert!(elsewhere.is_empty(), "{elsewhere:?} not in {places:?}");
    let idle =
        |place: &&&str| place.contains('/') && !files.iter().any(|it| it.starts_with(**place));
    let idle: Vec<&&str> = places.iter().filter(idle).collect();
    assert!(idle.is_empty(), "no unsafe code in {idle:?}");
}

#[test]
fn files_of_a_crate_import_each_other_in_one_order() {
    let mut found = String::new();
    for package in packages() {
        for file in package.roots() {
            let tree = Crate::read(&Disk, &file).unwrap();
            for circle in circles(tree.files.len(), &imports(&tree)) {
                let text = circle.describe(&tree, &root());
                found += &format!("{}: {text}", package.manifest.name);
            }
        }
    }
    assert!(found.is_empty(), "\n{found}");
}

#[test]
fn every_crate_has_sources_to_check() {
    let mut all = Counts::default();
    println!(
        "{:<16} {:>6} {:>8} {:>6}",
        "pub", "items", "methods", "both"
    );
    for package in packages() {
        let roots = package.roots();
        let name = &package.manifest.name;
        assert!(!roots.is_empty(), "{name} has no library and no binary");
        // The declarations of a binary cannot be imported.
        for file in roots.iter().filter(|file| file.ends_with("lib.rs")) {
            let own = count(&Crate::read(&Disk, file).unwrap());
            print(name, &own);
            all.public_items += own.public_items;
            all.public_methods += own.public_methods;
        }
    }
    print("in all", &all);
    assert!(all.public_items > 0, "the items of the libraries");
}

fn print(name: &str, counts: &Counts) {
    let (items, methods) = (counts.public_items, counts.public_methods);
    println!("{name:<16} {items:>6} {methods:>8} {:>6}", items + methods);
}
