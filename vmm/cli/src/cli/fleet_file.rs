//! Fleet files: any number of instances, in TOML, with the keys of `--guest`, and of
//! channels between them.
//!
//! ```toml
//! [[channel]]
//! name = "ab"
//! size = "1M"
//! between = ["web", "db:ro"]
//!
//! [[instance]]
//! name = "web"
//! memory = "128M"
//! kernel = "/boot/vmlinuz"
//! ```

use std::fmt::Write as _;
use std::path::Path;

use mkvmm_api::channel::ChannelBody;
use mkvmm_api::reader::keys;
use mkvmm_api::{InstanceSpec, Size, SpecError};
use serde::{Deserialize, Serialize};

use crate::cli::HostIoError;
use crate::cli::config_file::{ConfigError, ConfigFile};
use crate::error::CliError;

/// Keys whose values are sizes.
const SIZES: [&str; 3] = ["memory", "memory-limit", "size"];

/// The contents of a fleet file.
#[derive(Debug, Default, PartialEq, Deserialize)]
pub struct FleetFile {
    /// The channels, which are created before the instances.
    #[serde(default)]
    pub channel: Vec<ChannelBody>,
    /// The instances in their order.
    pub instance: Vec<InstanceSpec>,
}

/// Reads a fleet file. Paths in it are relative to the file; instances without
/// a name are called `guest1`, `guest2`, … by their position.
pub fn read(path: &Path) -> Result<FleetFile, CliError> {
    let whole = std::path::absolute(path).map_err(HostIoError::WorkingDirectory)?;
    let base = whole.parent().unwrap_or(Path::new("/"));
    let mut fleet = parse(path)?;
    for (index, spec) in fleet.instance.iter_mut().enumerate() {
        if spec.name.is_none() {
            let name = format!("guest{}", index + 1);
            spec.name = Some(name.parse().map_err(SpecError::from)?);
        }
        spec.rebase(base);
    }
    Ok(fleet)
}

/// Returns the fleet file with these channels and instances, which is read as them
/// again.
pub fn text(channels: &[ChannelBody], instances: &[InstanceSpec]) -> String {
    let mut text = String::new();
    if instances.is_empty() && !channels.is_empty() {
        // A value, which precedes tables: a file without any instance is refused.
        text.push_str("instance = []\n");
    }
    for channel in channels {
        write(&mut text, "channel", channel, keys::<ChannelBody>());
    }
    for spec in instances {
        write(&mut text, "instance", spec, keys::<InstanceSpec>());
    }
    text
}

/// Adds the table of one channel or instance, with its keys in their order.
fn write(text: &mut String, kind: &str, one: &impl Serialize, keys: &[&str]) {
    if !text.is_empty() {
        text.push('\n');
    }
    // A struct of ours is a table. Writing to a String cannot fail.
    let table = toml::Table::try_from(one).unwrap_or_default();
    let _ = writeln!(text, "[[{kind}]]");
    for key in keys {
        if let Some(value) = table.get(*key) {
            let _ = writeln!(text, "{key} = {}", written(key, value));
        }
    }
}

/// Returns a value as people write it.
fn written(key: &str, value: &toml::Value) -> toml::Value {
    let size = || {
        let bytes = u64::try_from(value.as_integer()?).ok()?;
        Size::try_from(bytes).ok()
    };
    match size() {
        Some(size) if SIZES.contains(&key) => size.exact_text().into(),
        _ => value.clone(),
    }
}

fn parse(path: &Path) -> Result<FleetFile, ConfigError> {
    let file = ConfigFile::read(path)?;
    let table: toml::Table = file.parse()?;
    file.check_keys(&table, &["channel", "instance"])?;
    for (key, known) in [
        ("channel", keys::<ChannelBody>()),
        ("instance", keys::<InstanceSpec>()),
    ] {
        let several = table.get(key).and_then(toml::Value::as_array);
        let tables = several.into_iter().flatten();
        for one in tables.filter_map(toml::Value::as_table) {
            file.check_keys(one, known)?;
        }
    }
    if !table.contains_key("instance") {
        let path = path.to_owned();
        return Err(ConfigError::NoInstance { path });
    }
    file.parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let specs = [
            "name=a,memory=8M,kernel=probe,cmdline=x,,y \"quoted\"\nand\\more,on-panic=restart",
            "name=b,memory=4097,cpus=2,memory-limit=2G,autostart=false,kernel=/k,initrd=/i,\
             initrd=/j,disk=/d,,ro,net=passt,cpus-affinity=0",
        ];
        let specs: Vec<InstanceSpec> = specs.iter().map(|spec| spec.parse().unwrap()).collect();
        let text = text(&[], &specs);
        assert!(
            text.starts_with("[[instance]]\nname = \"a\"\nmemory = \"8M\"\ncpus = 1\n"),
            "{text}"
        );
        let name = format!("mkvmm-fleet-text-{}.toml", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, &text).unwrap();
        assert_eq!(read(&path).unwrap().instance, specs, "{text}");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_fleet_is_read_with_paths_relative_to_it() {
        let dir = std::env::temp_dir().join(format!("mkvmm-fleet-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("fleet.toml");
        let text = "[[channel]]\nname = \"ab\"\nsize = \"1M\"\nbetween = [\"a\", \"guest2:ro\"]\n\
                    [[instance]]\nname = \"a\"\nmemory = \"8M\"\nkernel = \"probe\"\n\
                    cmdline = \"x,y\"\ncpus = 2\non-panic = \"restart\"\n\
                    [[instance]]\nmemory = 8388608\nkernel = \"vmlinuz\"\n\
                    initrd = [\"i\", \"/j\"]\nconsole-log = \"probe\"\n";
        std::fs::write(&path, text).unwrap();
        let FleetFile { channel, instance } = read(&path).unwrap();
        let fleet = instance;
        let between: Vec<String> = channel[0].between.iter().map(ToString::to_string).collect();
        assert_eq!((channel.len(), channel[0].doorbells), (1, 1));
        assert_eq!(between, ["a", "guest2:ro"]);
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
            parse(&path).unwrap_err()
        };
        assert!(matches!(
            error("[[instance]]\nnam = \"a\"\n"),
            ConfigError::UnknownKey {
                nearest: "name",
                ..
            }
        ));
        assert!(matches!(
            error("[[channel]]\nnmae = \"a\"\n"),
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
