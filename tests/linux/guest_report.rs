//! What the init of `guest-images/linux` prints, taken apart.
//! `guest-images/README.md` has the format.

use mkvmm_test_harness::report::TreeLine;

/// In front of the init's own lines.
const MARK: &str = "mkvmm-guest: ";

/// One guest's words.
#[derive(Debug)]
pub struct GuestReport {
    /// `uname -r`.
    pub release: String,
    /// `nproc`.
    pub nproc: u32,
    /// MemTotal of `/proc/meminfo`, KiB.
    pub mem_total_kib: u64,
    /// The kernel's lines `BIOS-e820: …`.
    pub e820: Vec<String>,
    /// `/sys/firmware/memmap`, as `0xSTART-0xLAST TYPE`.
    pub memmap: Vec<String>,
    /// `/proc/iomem`.
    pub iomem: Vec<TreeLine>,
}

impl GuestReport {
    /// Finds the report among a guest's console lines.
    ///
    /// # Errors
    /// The first part that is not there or cannot be read.
    pub fn parse(lines: &[String]) -> Result<Self, String> {
        let own = || lines.iter().filter_map(|line| line.strip_prefix(MARK));
        if !own().any(|line| line == "begin") {
            return Err("it did not reach its init".to_owned());
        }
        if !own().any(|line| line == "end") {
            return Err("its init did not report to the end".to_owned());
        }
        let value = |key: &str| {
            let of_key = |line: &str| line.strip_prefix(key)?.strip_prefix(' ').map(str::to_owned);
            own()
                .find_map(of_key)
                .ok_or_else(|| format!("its init did not say {key}"))
        };
        let number = |key: &str| {
            let text = value(key)?;
            let digits = text.split(' ').next().unwrap_or_default();
            let number = digits.parse::<u64>();
            number.map_err(|error| format!("{key} {text}: {error}"))
        };
        let nproc = number("nproc")?;
        Ok(Self {
            release: value("uname")?,
            nproc: u32::try_from(nproc).map_err(|error| error.to_string())?,
            mem_total_kib: number("MemTotal")?,
            e820: section(lines, "e820")?.to_vec(),
            memmap: section(lines, "memmap")?.to_vec(),
            iomem: section(lines, "iomem")?
                .iter()
                .map(|line| TreeLine::parse(line).ok_or(format!("not of an iomem: {line:?}")))
                .collect::<Result<_, _>>()?,
        })
    }
}

/// The lines between `NAME begin` and `NAME end`.
fn section<'a>(lines: &'a [String], name: &str) -> Result<&'a [String], String> {
    let find = |word| {
        let mark = format!("{MARK}{name} {word}");
        lines.iter().position(|line| *line == mark)
    };
    match (find("begin"), find("end")) {
        (Some(begin), Some(end)) if begin < end => Ok(&lines[begin + 1..end]),
        _ => Err(format!("its init printed no section {name}")),
    }
}
