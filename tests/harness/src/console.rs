//! Parses the standard output of `run`: whole lines, each with its guest's
//! name.

use std::collections::BTreeMap;

/// The lines of each guest, without their prefixes.
#[derive(Debug)]
pub struct Consoles {
    lines: BTreeMap<String, Vec<String>>,
}

impl Consoles {
    /// Parses `stdout` into the lines of each guest.
    ///
    /// # Errors
    /// Returns the first line that is incomplete or belongs to none of `names`.
    pub fn parse(stdout: &str, names: &[&str]) -> Result<Self, String> {
        let empty = |name: &&str| ((*name).to_owned(), Vec::new());
        let mut lines: BTreeMap<String, Vec<String>> = names.iter().map(empty).collect();
        if !stdout.is_empty() && !stdout.ends_with('\n') {
            return Err("the last line of stdout is not whole".to_owned());
        }
        for line in stdout.lines() {
            let guest = line
                .split_once(": ")
                .and_then(|(name, rest)| Some((lines.get_mut(name)?, rest)));
            match guest {
                Some((of_guest, rest)) => of_guest.push(rest.to_owned()),
                None => return Err(format!("stdout has a line of no guest: {line:?}")),
            }
        }
        Ok(Self { lines })
    }

    /// Returns the lines of one guest, in order.
    pub fn of(&self, name: &str) -> &[String] {
        self.lines.get(name).map_or(&[], Vec::as_slice)
    }

    /// Returns its lines that begin with `BIOS-e820: `.
    pub fn e820(&self, name: &str) -> Vec<&str> {
        self.starting(name, "BIOS-e820: ")
    }

    /// Returns its lines that begin with `start`.
    pub fn starting(&self, name: &str, start: &str) -> Vec<&str> {
        let lines = self.of(name).iter().map(String::as_str);
        lines.filter(|line| line.starts_with(start)).collect()
    }

    /// Returns whether it printed exactly this line.
    pub fn has(&self, name: &str, line: &str) -> bool {
        self.of(name).iter().any(|l| l == line)
    }
}
