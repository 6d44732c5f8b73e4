//! Whose call it is, as procfs tells while the call waits.

use std::fs;

use super::{MANAGER, NEWBORN};

/// Roles that children have by their names.
const CHILDREN: [&str; 4] = ["keeper", "worker", "unpacker", "cleaner"];

/// A thread of mkvmm's.
#[derive(Debug)]
pub(super) struct Caller {
    directory: String,
    /// What its process is.
    pub role: &'static str,
}

impl Caller {
    /// Finds the thread; `None` where it is the test's, or gone.
    pub fn find(thread: u32, manager: i32) -> Option<Self> {
        let directory = format!("/proc/{thread}");
        let words = fs::read(format!("{directory}/cmdline")).ok()?;
        let role = match words.strip_prefix(b"mkvmm-") {
            Some(rest) => {
                let is = |role: &&&str| rest.starts_with(role.as_bytes());
                CHILDREN.iter().find(is).copied()?
            }
            None => {
                let status = fs::read_to_string(format!("{directory}/status")).ok()?;
                let number = |key: &str| {
                    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
                    line.trim().parse::<i32>().ok()
                };
                match (number("Tgid:")?, number("PPid:")?) {
                    (process, _) if process == manager => MANAGER,
                    (_, parent) if parent == manager => NEWBORN,
                    _ => return None,
                }
            }
        };
        Some(Self { directory, role })
    }

    /// The name of the thread.
    pub fn thread(&self) -> String {
        let name = fs::read_to_string(format!("{}/comm", self.directory));
        name.unwrap_or_default().trim().to_owned()
    }

    /// What a descriptor of the process stands for; nothing where it is none,
    /// or procfs does not tell.
    pub fn descriptor(&self, number: u64) -> String {
        let link = fs::read_link(format!("{}/fd/{number}", self.directory));
        link.map(|link| link.display().to_string())
            .unwrap_or_default()
    }
}
