//! Fleet files: any number of instances, in TOML.
//!
//! ```toml
//! [[instance]]
//! name = "web"
//! memory = "128M"
//! kernel = "/boot/vmlinuz"
//! ```

use std::path::{Path, PathBuf};

use mkpool::parse_size;
use serde::Deserialize;

use crate::cli::serve::nearest;
use crate::error::CliError;
use mkvmm::control::objects::CreateBody;

/// One `[[instance]]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FleetEntry {
    pub name: String,
    pub memory: String,
    pub kernel: String,
    pub initrd: Option<String>,
    pub cmdline: Option<String>,
    pub cpus: Option<u8>,
    pub violation: Option<String>,
    #[serde(rename = "console-log")]
    pub console_log: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FleetFile {
    instance: Vec<FleetEntry>,
}

const KEYS: [&str; 8] = [
    "name",
    "memory",
    "kernel",
    "initrd",
    "cmdline",
    "cpus",
    "violation",
    "console-log",
];

/// Reads a fleet file. Paths in it are relative to the file.
pub fn read(path: &Path) -> Result<Vec<FleetEntry>, CliError> {
    let text = std::fs::read_to_string(path).map_err(|source| CliError::ConfigRead {
        path: path.to_owned(),
        source,
    })?;
    let wrong = |source| CliError::Config {
        path: path.to_owned(),
        source: Box::new(source),
    };
    let table: toml::Table = text.parse().map_err(wrong)?;
    let unknown = |key: &str, known: &[&'static str]| CliError::ConfigKey {
        path: path.to_owned(),
        key: key.to_owned(),
        nearest: nearest(key, known).unwrap_or_default(),
    };
    if let Some(key) = table.keys().find(|key| *key != "instance") {
        return Err(unknown(key, &["instance"]));
    }
    let instances = table.get("instance").and_then(toml::Value::as_array);
    let entries = instances
        .into_iter()
        .flatten()
        .filter_map(toml::Value::as_table);
    for key in entries.flat_map(toml::Table::keys) {
        if !KEYS.contains(&key.as_str()) {
            return Err(unknown(key, &KEYS));
        }
    }
    let file: FleetFile = table.try_into().map_err(wrong)?;
    let base = path.parent().map(Path::to_owned).unwrap_or_default();
    let entries = file.instance.into_iter();
    Ok(entries.map(|entry| entry.in_directory(&base)).collect())
}

impl FleetEntry {
    fn in_directory(mut self, base: &Path) -> Self {
        self.kernel = whole(base, &self.kernel);
        self.initrd = self.initrd.map(|path| whole(base, &path));
        self.console_log = self.console_log.map(|path| whole(base, &path));
        self
    }

    /// As the API takes it.
    pub fn body(&self) -> Result<CreateBody, CliError> {
        let memory = parse_size(&self.memory).map_err(|source| CliError::Size {
            option: "memory",
            source,
        })?;
        Ok(CreateBody {
            name: self.name.clone(),
            memory,
            cpus: self.cpus,
            order: None,
            violation: self.violation.clone(),
            kernel: Some(self.kernel.clone()),
            initrd: self.initrd.clone(),
            cmdline: self.cmdline.clone(),
            console_log: self.console_log.clone(),
        })
    }

    /// As `--guest` takes it.
    pub fn guest(&self) -> String {
        let value = |text: &str| text.replace(',', ",,");
        let cpus = self.cpus.map(|cpus| cpus.to_string());
        let pairs = [
            ("name", Some(&self.name)),
            ("memory", Some(&self.memory)),
            ("kernel", Some(&self.kernel)),
            ("initrd", self.initrd.as_ref()),
            ("cmdline", self.cmdline.as_ref()),
            ("cpus", cpus.as_ref()),
            ("violation", self.violation.as_ref()),
            ("console-log", self.console_log.as_ref()),
        ];
        let pairs = pairs.into_iter();
        let pair = |(key, text): (&str, Option<&String>)| Some(format!("{key}={}", value(text?)));
        pairs.filter_map(pair).collect::<Vec<_>>().join(",")
    }
}

/// The absolute form of a path that is relative to `base`.
fn whole(base: &Path, path: &str) -> String {
    if path == "probe" {
        return path.to_owned();
    }
    let path: PathBuf = base.join(path);
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
                    cmdline = \"x,y\"\n\
                    [[instance]]\nname = \"b\"\nmemory = \"8M\"\nkernel = \"vmlinuz\"\n";
        std::fs::write(&path, text).unwrap();
        let fleet = read(&path).unwrap();
        assert_eq!(
            fleet[0].guest(),
            "name=a,memory=8M,kernel=probe,cmdline=x,,y"
        );
        assert_eq!(Path::new(&fleet[1].kernel), dir.join("vmlinuz"));
        assert_eq!(fleet[1].body().unwrap().memory, 8 << 20);
        std::fs::write(&path, "[[instance]]\nnam = \"a\"\n").unwrap();
        assert!(matches!(
            read(&path),
            Err(CliError::ConfigKey {
                nearest: "name",
                ..
            })
        ));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
