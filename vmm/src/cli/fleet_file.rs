//! Fleet files: any number of instances, in TOML, with the keys of `--guest`.
//!
//! ```toml
//! [[instance]]
//! name = "web"
//! memory = "128M"
//! kernel = "/boot/vmlinuz"
//! ```

use std::path::{Path, PathBuf};

use crate::cli::serve::nearest;
use crate::error::{CliError, TomlError};
use mkvmm::control::bodies::{CreateBody, Pairs};
use mkvmm::spec::{GuestSpec, KEYS};

/// An `[[instance]]`, read and found right.
#[derive(Debug)]
pub struct FleetEntry {
    /// As `run` takes it.
    pub spec: GuestSpec,
    /// As the API takes it.
    pub body: CreateBody,
}

/// Reads a fleet file. Paths in it are relative to the file.
pub fn read(path: &Path) -> Result<Vec<FleetEntry>, CliError> {
    let text = std::fs::read_to_string(path).map_err(|source| CliError::ConfigRead {
        path: path.to_owned(),
        source,
    })?;
    let table: toml::Table = text.parse().map_err(|error| CliError::Config {
        path: path.to_owned(),
        source: TomlError::new(&text, &error),
    })?;
    if let Some(key) = table.keys().find(|key| *key != "instance") {
        return Err(unknown(path, key, &["instance"]));
    }
    let instances = table.get("instance").and_then(toml::Value::as_array);
    let tables = instances.into_iter().flatten();
    let base = path.parent().unwrap_or(Path::new(""));
    let mut entries = Vec::new();
    for (index, value) in tables.enumerate() {
        let value = value
            .as_table()
            .ok_or_else(|| wrong_type(path, "instance"))?;
        let pairs = pairs(path, base, index, value)?;
        let instance = |source| CliError::Fleet {
            path: path.to_owned(),
            number: index + 1,
            source,
        };
        entries.push(FleetEntry {
            spec: GuestSpec::from_pairs(pairs.iter().cloned()).map_err(instance)?,
            body: CreateBody::from_pairs(&pairs).map_err(instance)?,
        });
    }
    if entries.is_empty() {
        return Err(wrong_type(path, "instance"));
    }
    Ok(entries)
}

fn unknown(path: &Path, key: &str, known: &[&'static str]) -> CliError {
    CliError::ConfigKey {
        path: path.to_owned(),
        key: key.to_owned(),
        nearest: nearest(key, known).unwrap_or_default(),
    }
}

fn wrong_type(path: &Path, key: &str) -> CliError {
    CliError::ConfigType {
        path: path.to_owned(),
        key: key.to_owned(),
    }
}

/// The keys of one instance; without a name it is `guest1`, `guest2`, … by its
/// place in the file.
fn pairs(path: &Path, base: &Path, index: usize, table: &toml::Table) -> Result<Pairs, CliError> {
    let mut pairs = Pairs::new();
    if !table.contains_key("name") {
        pairs.push(("name", format!("guest{}", index + 1)));
    }
    for (key, value) in table {
        let Some(&known) = KEYS.iter().find(|known| *known == key) else {
            return Err(unknown(path, key, &KEYS));
        };
        let values = match value {
            toml::Value::Array(several) if known == "initrd" => several.as_slice(),
            one => std::slice::from_ref(one),
        };
        for value in values {
            let text = match value {
                toml::Value::String(text) => text.clone(),
                toml::Value::Integer(number) => number.to_string(),
                _ => return Err(wrong_type(path, key)),
            };
            pairs.push((known, whole(base, known, text)));
        }
    }
    Ok(pairs)
}

/// The value of a key; a path, which is relative to `base`, in its absolute form.
fn whole(base: &Path, key: &str, text: String) -> String {
    let is_path = match key {
        "kernel" => text != "probe" && !text.starts_with("fd:"),
        "initrd" => !text.starts_with("fd:"),
        key => key == "console-log",
    };
    if !is_path {
        return text;
    }
    let path: PathBuf = base.join(text);
    let path = std::path::absolute(&path).unwrap_or(path);
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fleet_is_read_with_paths_relative_to_it() {
        let dir = std::env::temp_dir().join(format!("mkvmm-fleet-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("fleet.toml");
        let text = "[[instance]]\nname = \"a\"\nmemory = \"8M\"\nkernel = \"probe\"\n\
                    cmdline = \"x,y\"\ncpus = 2\non-panic = \"restart\"\n\
                    [[instance]]\nmemory = 8388608\nkernel = \"vmlinuz\"\n\
                    initrd = [\"i\", \"/j\"]\nconsole-log = \"probe\"\n";
        std::fs::write(&path, text).unwrap();
        let fleet = read(&path).unwrap();
        let guest = "name=a,memory=8M,kernel=probe,cmdline=x,,y,cpus=2,on-panic=restart";
        assert_eq!(fleet[0].spec, guest.parse().unwrap());
        let dir_text = dir.display();
        let guest = format!(
            "name=guest2,memory=8M,kernel={dir_text}/vmlinuz,initrd={dir_text}/i,initrd=/j,\
             console-log={dir_text}/probe"
        );
        assert_eq!(fleet[1].spec, guest.parse().unwrap());
        assert_eq!(fleet[1].body.memory, 8 << 20);

        let error = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read(&path).unwrap_err()
        };
        assert!(matches!(
            error("[[instance]]\nnam = \"a\"\n"),
            CliError::ConfigKey {
                nearest: "name",
                ..
            }
        ));
        for text in ["", "instance = 3", "[[instance]]\nname = 1.5\n"] {
            assert!(matches!(error(text), CliError::ConfigType { .. }), "{text}");
        }
        let zero = "[[instance]]\nkernel = \"probe\"\n[[instance]]\nmemory = 0\n";
        assert!(matches!(error(zero), CliError::Fleet { number: 2, .. }));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
