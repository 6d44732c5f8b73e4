//! The allowed dependencies between crates.

use std::collections::{BTreeMap, BTreeSet};

/// The dependencies that one manifest lists, by package name.
#[derive(Debug, Default)]
pub struct Manifest {
    /// The name of the package.
    pub name: String,
    /// The dependencies of the crate itself.
    pub dependencies: BTreeSet<String>,
    /// The dependencies of its tests and benches only.
    pub dev_dependencies: BTreeSet<String>,
}

impl Manifest {
    /// Parses the text of a `Cargo.toml`; `None` if it has no package.
    ///
    /// # Errors
    /// Returns the errors of the TOML parser.
    pub fn parse(text: &str) -> Result<Option<Manifest>, toml::de::Error> {
        let table: toml::Table = text.parse()?;
        let Some(name) = table
            .get("package")
            .and_then(|package| package.get("name"))
            .and_then(toml::Value::as_str)
        else {
            return Ok(None);
        };
        let mut manifest = Manifest {
            name: name.to_owned(),
            ..Manifest::default()
        };
        let targets = table.get("target").and_then(toml::Value::as_table);
        let targets = targets.into_iter().flat_map(toml::Table::values);
        for table in targets.filter_map(toml::Value::as_table).chain([&table]) {
            manifest.dependencies.extend(names(table, "dependencies"));
            manifest
                .dependencies
                .extend(names(table, "build-dependencies"));
            manifest
                .dev_dependencies
                .extend(names(table, "dev-dependencies"));
        }
        Ok(Some(manifest))
    }
}

/// Returns the package names in one table of dependencies.
fn names(table: &toml::Table, kind: &str) -> Vec<String> {
    let dependencies = table.get(kind).and_then(toml::Value::as_table);
    let name = |(key, value): (&String, &toml::Value)| {
        let package = value.get("package").and_then(toml::Value::as_str);
        package.unwrap_or(key).to_owned()
    };
    dependencies.into_iter().flatten().map(name).collect()
}

/// One row of the table: a crate and the workspace crates that it may depend
/// on.
#[derive(Debug)]
pub struct Wall {
    /// The name of the package.
    pub name: &'static str,
    /// The workspace packages that it may depend on.
    pub sees: &'static [&'static str],
    /// The external packages that it must not depend on.
    pub never: &'static [&'static str],
    /// The workspace packages that only its tests may depend on.
    pub tested_with: &'static [&'static str],
}

impl Wall {
    /// Returns the row with additional dependencies for its tests.
    #[must_use]
    pub const fn tested_with(self, packages: &'static [&'static str]) -> Self {
        Self {
            tested_with: packages,
            ..self
        }
    }
}

/// Compares `manifests` with `walls` and returns the violations, one per line.
/// Packages in `walls` or with the prefix `mkvmm` belong to the workspace;
/// tests may also use the packages in `for_tests`.
#[must_use]
pub fn breaches(manifests: &[Manifest], walls: &[Wall], for_tests: &[&str]) -> Vec<String> {
    let rows: BTreeMap<&str, &Wall> = walls.iter().map(|wall| (wall.name, wall)).collect();
    let is_ours = |name: &str| name.starts_with("mkvmm") || rows.contains_key(name);
    let mut breaches = Vec::new();
    for manifest in manifests {
        let name = manifest.name.as_str();
        let Some(wall) = rows.get(name) else {
            breaches.push(format!("{name} is not in the table of walls"));
            continue;
        };
        for other in &manifest.dependencies {
            if is_ours(other) && !wall.sees.contains(&other.as_str()) {
                breaches.push(format!(
                    "{name} depends on {other}; it may see {:?}",
                    wall.sees
                ));
            }
            if wall.never.contains(&other.as_str()) {
                breaches.push(format!(
                    "{name} depends on {other}, which it must never see"
                ));
            }
        }
        for other in &manifest.dev_dependencies {
            let allowed = wall.sees.contains(&other.as_str())
                || wall.tested_with.contains(&other.as_str())
                || for_tests.contains(&other.as_str())
                || other == name;
            if is_ours(other) && !allowed {
                breaches.push(format!("the tests of {name} depend on {other}"));
            }
        }
    }
    breaches
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALLS: [Wall; 2] = [
        Wall {
            name: "low",
            sees: &[],
            never: &["hyper"],
            tested_with: &["mkvmm-oracle"],
        },
        Wall {
            name: "mkvmm-high",
            sees: &["low"],
            never: &[],
            tested_with: &[],
        },
    ];

    fn check(text: &str) -> Vec<String> {
        let manifest = Manifest::parse(text).unwrap().unwrap();
        breaches(&[manifest], &WALLS, &["mkvmm-harness"])
    }

    #[test]
    fn what_stands_in_the_table_is_no_breach() {
        let text = "[package]\nname = 'mkvmm-high'\n[dependencies]\nlow.workspace = true\nlog = '1'
            [dev-dependencies]\nmkvmm-harness.workspace = true";
        assert!(check(text).is_empty());
    }

    #[test]
    fn a_dependency_upwards_is_a_breach_in_every_kind_of_table() {
        for table in [
            "dependencies",
            "build-dependencies",
            "dev-dependencies",
            "target.'cfg(loom)'.dependencies",
        ] {
            let text = format!("[package]\nname = 'low'\n[{table}]\nmkvmm-high = {{ path = '.' }}");
            assert_eq!(check(&text).len(), 1, "{table}");
        }
    }

    #[test]
    fn what_a_crate_is_tested_with_it_is_not_built_with() {
        let depend = |kind| {
            let text = format!("[package]\nname = 'low'\n[{kind}]\nmkvmm-oracle.workspace = true");
            check(&text).len()
        };
        assert_eq!((depend("dev-dependencies"), depend("dependencies")), (0, 1));
    }

    #[test]
    fn another_name_for_a_dependency_does_not_hide_it() {
        let text = "[package]\nname = 'low'\n[dependencies]\nx = { package = 'mkvmm-high' }";
        assert_eq!(check(text).len(), 1);
    }

    #[test]
    fn a_forbidden_outsider_and_an_unknown_crate_are_breaches() {
        assert_eq!(
            check("[package]\nname = 'low'\n[dependencies]\nhyper = '1'").len(),
            1
        );
        assert_eq!(check("[package]\nname = 'mkvmm-new'").len(), 1);
    }

    #[test]
    fn a_manifest_of_a_workspace_alone_has_no_package() {
        assert!(Manifest::parse("[workspace]").unwrap().is_none());
    }
}
