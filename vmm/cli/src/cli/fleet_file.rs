//! Fleet files: any number of instances, in TOML, with the keys of `--guest`.
//!
//! ```toml
//! [[instance]]
//! name = "web"
//! memory = "128M"
//! kernel = "/boot/vmlinuz"
//! ```

use std::path::Path;

use mkvmm_api::reader::keys;
use mkvmm_api::{InstanceSpec, SpecError};
use serde::Deserialize;

use crate::cli::HostIoError;
use crate::cli::config_file::{ConfigError, ConfigFile};
use crate::error::CliError;

/// The contents of a fleet file.
#[derive(Debug, Deserialize)]
struct Fleet {
    instance: Vec<InstanceSpec>,
}

/// Reads a fleet file. Paths in it are relative to the file; instances without
/// a name are called `guest1`, `guest2`, … by their position.
pub fn read(path: &Path) -> Result<Vec<InstanceSpec>, CliError> {
    let whole = std::path::absolute(path).map_err(HostIoError::WorkingDirectory)?;
    let base = whole.parent().unwrap_or(Path::new("/"));
    let mut instances = instances(path)?;
    for (index, spec) in instances.iter_mut().enumerate() {
        if spec.name.is_none() {
            let name = format!("guest{}", index + 1);
            spec.name = Some(name.parse().map_err(SpecError::from)?);
        }
        spec.rebase(base);
    }
    Ok(instances)
}

fn instances(path: &Path) -> Result<Vec<InstanceSpec>, ConfigError> {
    let file = ConfigFile::read(path)?;
    let table: toml::Table = file.parse()?;
    file.check_keys(&table, &["instance"])?;
    let several = table.get("instance").and_then(toml::Value::as_array);
    let tables = several.into_iter().flatten();
    for instance in tables.filter_map(toml::Value::as_table) {
        file.check_keys(instance, keys::<InstanceSpec>())?;
    }
    if table.is_empty() {
        let path = path.to_owned();
        return Err(ConfigError::NoInstance { path });
    }
    Ok(file.parse::<Fleet>()?.instance)
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
        assert_eq!(fleet[0], guest.parse().unwrap());
        let dir_text = dir.display();
        let guest = format!(
            "name=guest2,memory=8M,kernel={dir_text}/vmlinuz,initrd={dir_text}/i,initrd=/j,\
             console-log={dir_text}/probe"
        );
        assert_eq!(fleet[1], guest.parse().unwrap());

        let error = |text: &str| {
            std::fs::write(&path, text).unwrap();
            instances(&path).unwrap_err()
        };
        assert!(matches!(
            error("[[instance]]\nnam = \"a\"\n"),
            ConfigError::UnknownKey {
                nearest: "name",
                ..
            }
        ));
        assert!(matches!(error(""), ConfigError::NoInstance { .. }));
        for (text, place) in [
            ("instance = 3", "line 1, column 12: "),
            ("[[instance]]\nname = 1.5\n", "line 2, column 8: "),
            (
                "[[instance]]\nmemory = 0\n",
                "line 2, column 10: 0 bytes is out of range",
            ),
            (
                "[[instance]]\nkernel = \"k\"\ncpus = 65\n",
                "line 3, column 8: ",
            ),
        ] {
            let ConfigError::Toml { source, .. } = error(text) else {
                panic!("{text}");
            };
            assert!(source.to_string().starts_with(place), "{source}");
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
