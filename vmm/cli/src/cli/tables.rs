//! Formats objects of the API as tables for people.

use std::fmt::Write as _;
use std::io::IsTerminal;

use comfy_table::{Attribute, Cell, CellAlignment, Color, Table, presets};

use mkvmm_api::Range;
use mkvmm_api::channel::{Channel, OwnChannel};
use mkvmm_api::devices::Device;
use mkvmm_api::instance::{E820Row, Instance};
use mkvmm_api::plan::Plan;
use mkvmm_api::pool::{Audit, Capacity, Health, IomemRow, Pool};
use mkvmm_base::is_plain;
use mkvmm_base::state::State;

/// Formats a size such as `256M`, with one decimal if it is not a whole number.
pub fn size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] = [
        (1 << 40, "T"),
        (1 << 30, "G"),
        (1 << 20, "M"),
        (1 << 10, "K"),
    ];
    let unit = UNITS.iter().find(|(unit, _)| bytes >= *unit);
    match unit {
        None => bytes.to_string(),
        Some((unit, name)) if bytes.is_multiple_of(*unit) => format!("{}{name}", bytes / unit),
        Some((unit, name)) => {
            format!("{}.{}{name}", bytes / unit, bytes % unit * 10 / unit)
        }
    }
}

/// Creates an empty table, with colours on a terminal only.
pub fn table() -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    if !std::io::stdout().is_terminal() {
        table.force_no_tty();
    }
    table
}

/// Renders the table without trailing blanks.
pub fn text(table: &Table) -> String {
    let lines = table.lines().map(|line| format!("{}\n", line.trim_end()));
    lines.collect()
}

fn state(instance: &Instance) -> Cell {
    let text = match &instance.reason {
        Some(reason) if instance.restarting => format!("restarting ({reason})"),
        Some(reason) => format!("{} ({reason})", instance.state),
        None => instance.state.to_string(),
    };
    let colour = match instance.state {
        State::Active => Color::Green,
        State::Paused | State::Stalled => Color::Yellow,
        State::Failed => Color::Red,
        _ => return Cell::new(text),
    };
    Cell::new(text).fg(colour)
}

/// Returns text that a client chose, such as a path. Whoever looks at an
/// instance need not be who created it, so everything that a terminal would
/// interpret is replaced.
pub fn harmless(text: &str) -> String {
    let shown = |c: char| if is_plain(c) { c } else { '?' };
    text.chars().map(shown).collect()
}

fn chosen(text: impl AsRef<str>) -> Cell {
    Cell::new(harmless(text.as_ref()))
}

/// Formats instances, one per line.
pub fn instances(all: &[Instance]) -> String {
    let mut table = table();
    let titles = [
        "ID", "NAME", "STATE", "MEMORY", "CPUS", "START", "CHUNKS", "KERNEL",
    ];
    table.set_header(titles.map(|t| Cell::new(t).add_attribute(Attribute::Bold)));
    for one in all {
        let start = one.chunks.first();
        let start = start.map_or_else(String::new, |chunk| format!("{:#x}", chunk.start));
        table.add_row([
            Cell::new(one.id).set_alignment(CellAlignment::Right),
            Cell::new(one.name.as_str()),
            state(one),
            Cell::new(size(one.memory)).set_alignment(CellAlignment::Right),
            Cell::new(one.cpus).set_alignment(CellAlignment::Right),
            Cell::new(start),
            Cell::new(one.chunks.len()).set_alignment(CellAlignment::Right),
            chosen(one.kernel.as_ref().map_or("-", |kernel| &kernel.path)),
        ]);
    }
    text(&table)
}

/// Formats channels, each with a line per member.
pub fn channels(all: &[Channel]) -> String {
    let mut table = table();
    let titles = [
        "ID", "NAME", "SIZE", "START", "BELLS", "MEMBER", "ACCESS", "STATE", "BOOTS",
    ];
    table.set_header(titles.map(|t| Cell::new(t).add_attribute(Attribute::Bold)));
    for one in all {
        for (index, member) in one.members.iter().enumerate() {
            let first = |text: String| if index == 0 { text } else { String::new() };
            table.add_row([
                Cell::new(first(one.id.to_string())).set_alignment(CellAlignment::Right),
                Cell::new(first(one.name.clone())),
                Cell::new(first(size(one.range.size))).set_alignment(CellAlignment::Right),
                Cell::new(first(format!("{:#x}", one.range.start))),
                Cell::new(first(one.doorbells.to_string())).set_alignment(CellAlignment::Right),
                Cell::new(member.name.as_str()),
                Cell::new(if member.read_only { "ro" } else { "rw" }),
                Cell::new(if member.present { "present" } else { "absent" }),
                Cell::new(member.boots).set_alignment(CellAlignment::Right),
            ]);
        }
    }
    text(&table)
}

/// Formats all properties of one instance.
pub fn instance(one: &Instance) -> String {
    let mut table = table();
    let mut row = |key: &str, value: Cell| {
        table.add_row([Cell::new(key).add_attribute(Attribute::Bold), value]);
    };
    row("name", Cell::new(one.name.as_str()));
    row("id", Cell::new(one.id));
    row("owner", Cell::new(one.owner));
    row("state", state(one));
    for label in &one.spec.label {
        row("label", chosen(label.to_string()));
    }
    let free = size(one.avail);
    row(
        "memory",
        Cell::new(format!("{}, {free} free", size(one.memory))),
    );
    for chunk in &one.chunks {
        let (start, last) = (chunk.start, chunk.last());
        let text = format!("{start:#x}-{last:#x} {}", size(chunk.size));
        row("chunk", Cell::new(text));
    }
    row("resident", Cell::new(size(one.resident)));
    row("cpus", Cell::new(one.cpus));
    let time = std::time::Duration::from_micros(one.cpu_us).as_secs_f64();
    row("cpu time", Cell::new(format!("{time:.3} s")));
    if let Some(pid) = one.pid {
        let own = one
            .process_memory
            .map_or_else(String::new, |own| format!(", {} of its own", size(own)));
        row("process", Cell::new(format!("{pid}{own}")));
    }
    if let Some(cgroup) = &one.cgroup {
        row("cgroup", chosen(cgroup));
    }
    if let Some(kernel) = &one.kernel {
        let format = match &kernel.compression {
            Some(compression) => format!("{} ({compression})", kernel.format),
            None => kernel.format.clone(),
        };
        let (at, entry) = (kernel.range.start, kernel.entry);
        row(
            "kernel",
            chosen(format!(
                "{} {format} at {at:#x}, entry {entry:#x}",
                kernel.path
            )),
        );
    }
    if let Some(initrd) = &one.initrd {
        row(
            "initrd",
            chosen(format!("{} at {:#x}", initrd.path, initrd.range.start)),
        );
    }
    if let Some(cmdline) = &one.cmdline {
        row("cmdline", chosen(cmdline));
    }
    if let Some(path) = &one.spec.console_log {
        row("console log", chosen(path.to_string_lossy()));
    }
    for device in &one.devices {
        row("device", chosen(self::device(device)));
    }
    for channel in &one.channels {
        row("channel", chosen(own_channel(channel)));
    }
    row("violations", Cell::new(one.violations));
    let mut stages: Vec<(&String, &u64)> = one.timeline.iter().collect();
    stages.sort_by_key(|(_, at)| **at);
    for (stage, at) in stages {
        let ms = std::time::Duration::from_nanos(*at).as_secs_f64() * 1e3;
        row(stage, Cell::new(format!("{ms:.3} ms")));
    }
    text(&table)
}

fn device(device: &Device) -> String {
    let value = device.value.as_ref();
    let value = value.map_or_else(String::new, |value| format!("={value}"));
    let faults = match device.faults {
        0 => String::new(),
        count => format!(", stopped {count} times"),
    };
    format!("{} {}{value}{faults}", device.address, device.kind)
}

fn own_channel(channel: &OwnChannel) -> String {
    let OwnChannel { name, range, .. } = channel;
    let access = if channel.read_only { ", read-only" } else { "" };
    let absent = if channel.present {
        ""
    } else {
        ", from the next boot on"
    };
    let (start, last) = (range.start, range.last());
    format!(
        "{name} {start:#x}-{last:#x} {}, member {}{access}{absent}",
        size(range.size),
        channel.member
    )
}

/// Formats the size of the pool, its free memory and its backing, one per row.
pub fn pool(pool: &Pool) -> String {
    let mut table = table();
    let backing = &pool.backing;
    let node = backing
        .numa_node
        .map_or_else(String::new, |node| format!(", node {node}"));
    let prealloc = if backing.prealloc { ", prealloc" } else { "" };
    let area = pool.channel_area.as_ref().map_or_else(
        || "none".to_owned(),
        |area| format!("{:#x}-{:#x}", area.start, area.last()),
    );
    for (key, value) in [
        (
            "range",
            format!("{:#x}-{:#x}", pool.range.start, pool.range.last()),
        ),
        ("size", size(pool.range.size)),
        ("used", size(pool.used)),
        ("avail", size(pool.avail)),
        ("largest free", size(pool.largest_free)),
        ("free extents", pool.free_extents.to_string()),
        ("granule", size(1 << pool.min_order)),
        (
            "backing",
            format!(
                "{} ({}{prealloc}{node})",
                backing.kind,
                size(backing.page_size)
            ),
        ),
        ("channel area", area),
        ("instances", pool.instances.to_string()),
    ] {
        table.add_row([
            Cell::new(key).add_attribute(Attribute::Bold),
            Cell::new(value),
        ]);
    }
    text(&table)
}

/// Formats the ranges of a plan and the memory that would be left.
pub fn plan(plan: &Plan) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    for channel in &plan.channels {
        let Channel { name, range, .. } = channel;
        let _ = writeln!(text, "channel {name}: {}", size(range.size));
        let _ = writeln!(text, "  {} : channel", span(range));
    }
    for (instance, pieces) in plan.instances.iter().zip(&plan.pieces) {
        let _ = writeln!(text, "{}: {}", instance.name, size(instance.memory));
        for chunk in &instance.chunks {
            let _ = writeln!(text, "  {} : chunk", span(chunk));
        }
        for piece in pieces {
            let _ = writeln!(text, "    {} : {}", span(&piece.range), piece.name);
        }
    }
    for problem in &plan.problems {
        let _ = writeln!(text, "does not fit: {}", harmless(&problem.error.message));
    }
    let pool = &plan.pool;
    let _ = writeln!(
        text,
        "left: {}, {} in one piece, {} extents",
        size(pool.avail),
        size(pool.largest_free),
        pool.free_extents
    );
    text
}

fn span(range: &Range) -> String {
    format!("{:08x}-{:08x}", range.start, range.last())
}

/// Formats the resource tree as `/proc/iomem` prints it.
pub fn iomem(rows: &[IomemRow]) -> String {
    let mut text = String::new();
    for row in rows {
        let indent = usize::try_from(row.depth).unwrap_or(0) * 2;
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{:indent$}{} : {}", "", span(&row.range), row.name);
    }
    text
}

/// Formats a memory map as Linux prints it.
pub fn e820(rows: &[E820Row]) -> String {
    let mut text = String::new();
    for row in rows {
        let (start, last) = (row.range.start, row.range.last());
        let kind = if row.kind == 1 { "usable" } else { "reserved" };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "BIOS-e820: [mem {start:#018x}-{last:#018x}] {kind}");
    }
    text
}

/// Formats the capacity of the pool.
pub fn capacity(capacity: &Capacity) -> String {
    let largest = capacity.largest_image;
    let largest = largest.map_or_else(|| "what fits".to_owned(), size);
    format!(
        "granule        {}\ngranules       {}\nfree           {}\nlargest image  {largest}\n",
        size(capacity.granule),
        capacity.granules,
        capacity.free
    )
}

/// Formats the health of the VMM.
pub fn health(health: &Health) -> String {
    if health.ok {
        return format!("ok: {} instances\n", health.instances);
    }
    let lines = health.problems.iter();
    lines.map(|line| format!("{}\n", harmless(line))).collect()
}

/// Formats the result of an audit.
pub fn audit(audit: &Audit) -> String {
    let mut text = String::new();
    for problem in &audit.problems {
        text.push_str(problem);
        text.push('\n');
    }
    let verdict = if audit.ok { "ok" } else { "WRONG" };
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "{verdict}: {} checks, {} problems",
        audit.checks,
        audit.problems.len()
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short_and_whole_where_they_are() {
        for (bytes, text) in [
            (0, "0"),
            (1023, "1023"),
            (4095, "3.9K"),
            (4096, "4K"),
            (256 << 20, "256M"),
            ((1 << 30) + (1 << 29), "1.5G"),
            (1 << 40, "1T"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
