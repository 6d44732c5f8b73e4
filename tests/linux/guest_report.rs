//! Parses the output of the init in `guest-images/linux`.
//! `guest-images/README.md` describes the format.

use mkvmm_test_harness::report::TreeLine;

/// The prefix of the init's own lines.
const MARK: &str = "mkvmm-guest: ";

/// The report of one guest.
#[derive(Debug)]
pub struct GuestReport {
    /// The output of `uname -r`.
    pub release: String,
    /// The content of `/proc/cmdline`.
    pub cmdline: String,
    /// The output of `nproc`.
    pub nproc: u64,
    /// The number of processors in `/proc/cpuinfo`.
    pub cpuinfo: u64,
    /// The MemTotal of `/proc/meminfo` in KiB.
    pub mem_total_kib: u64,
    /// The size of the file `/padding`, if it exists.
    pub padding: Option<u64>,
    /// The current clock source.
    pub clocksource: String,
    /// The kernel's lines `BIOS-e820: …`.
    pub e820: Vec<String>,
    /// The entries of `/sys/firmware/memmap`, as `0xSTART-0xLAST TYPE`.
    pub memmap: Vec<String>,
    /// The lines of `/proc/iomem`.
    pub iomem: Vec<TreeLine>,
    /// The nodes of `/sys/kernel/boot_params/setup_data`: type and data.
    pub setup_data: Vec<(u32, Vec<u8>)>,
    /// Selected lines of the kernel's log, in its order.
    pub kernel: Vec<String>,
    /// What Linux's tools said, where they were asked.
    pub tools: Vec<String>,
}

impl GuestReport {
    /// Finds the report among a guest's console lines.
    ///
    /// # Errors
    /// Returns an error for the first part that is missing or malformed.
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
        Ok(Self {
            release: value("uname")?,
            cmdline: value("cmdline")?,
            nproc: number("nproc")?,
            cpuinfo: number("cpuinfo")?,
            mem_total_kib: number("MemTotal")?,
            padding: number("padding").ok(),
            clocksource: value("clocksource")?,
            e820: section(lines, "e820")?.to_vec(),
            memmap: section(lines, "memmap")?.to_vec(),
            iomem: section(lines, "iomem")?
                .iter()
                .map(|line| TreeLine::parse(line).ok_or(format!("not of an iomem: {line:?}")))
                .collect::<Result<_, _>>()?,
            setup_data: setup_data(section(lines, "setup_data")?)?,
            kernel: section(lines, "kernel")?.to_vec(),
            tools: section(lines, "tools").unwrap_or_default().to_vec(),
        })
    }

    /// Returns the first line of the kernel's log that contains `text`, with
    /// its number.
    pub fn log_line(&self, text: &str) -> Option<(usize, &str)> {
        let lines = self.kernel.iter().map(String::as_str).enumerate();
        lines.into_iter().find(|(_, line)| line.contains(text))
    }
}

/// Returns the lines between `NAME begin` and `NAME end`.
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

/// Parses nodes from pairs of lines `N/type 0xTYPE` and `N/data HEX`.
fn setup_data(lines: &[String]) -> Result<Vec<(u32, Vec<u8>)>, String> {
    let node = |pair: &[String]| {
        let [kind, data] = pair else { return None };
        let kind = kind.split_once("/type 0x")?.1;
        let hex = data.split_once("/data")?.1.trim();
        let byte = |at: usize| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
        let bytes: Option<_> = (0..hex.len()).step_by(2).map(byte).collect();
        Some((u32::from_str_radix(kind, 16).ok()?, bytes?))
    };
    let pairs = lines.chunks(2);
    let parse = |pair| node(pair).ok_or_else(|| format!("not a node: {pair:?}"));
    pairs.map(parse).collect()
}
