//! Groups of users, by name or number.

use std::fs;
use std::str::FromStr;

use mkvmm_base::{Class, Diagnose};
use rustix::process::Gid;

/// Where the host's own groups are.
const GROUPS: &str = "/etc/group";

/// There is no such group.
#[derive(Debug, thiserror::Error)]
#[error("--socket-group: there is no group {name} in {GROUPS}")]
pub struct NoGroup {
    /// The name as it was given.
    name: String,
}

impl Diagnose for NoGroup {
    fn class(&self) -> Class {
        Class::Invalid
    }

    fn hint(&self) -> Option<String> {
        Some("give its number, if another service knows it".to_owned())
    }
}

/// The number of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group(pub Gid);

impl FromStr for Group {
    type Err = NoGroup;

    fn from_str(name: &str) -> Result<Self, NoGroup> {
        let listed = || find(&fs::read_to_string(GROUPS).ok()?, name);
        let number = name.parse().ok().or_else(listed);
        // The last number means no group at all.
        let number = number.filter(|number| *number != u32::MAX);
        number
            .map(|number| Self(Gid::from_raw(number)))
            .ok_or_else(|| NoGroup {
                name: name.to_owned(),
            })
    }
}

/// Returns the number of a group in the text of `/etc/group`.
fn find(text: &str, name: &str) -> Option<u32> {
    let mut lines = text.lines().map(|line| line.split(':'));
    let mut fields = lines.find(|fields| fields.clone().next() == Some(name))?;
    fields.nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_found_by_name_and_by_number() {
        let text = "root:x:0:\nkvm:x:106:a,b\n";
        assert_eq!(find(text, "kvm"), Some(106));
        assert_eq!(find(text, "kv"), None);
        assert_eq!("12".parse::<Group>().unwrap(), Group(Gid::from_raw(12)));
        assert_eq!("root".parse::<Group>().unwrap(), Group(Gid::from_raw(0)));
        "no-such-group-here".parse::<Group>().unwrap_err();
        "4294967295".parse::<Group>().unwrap_err();
    }
}
