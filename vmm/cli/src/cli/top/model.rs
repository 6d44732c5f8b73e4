//! What the view shows: the newest answers of the VMM, and what the user has
//! chosen.

use std::collections::HashMap;
use std::time::Duration;

use mkvmm_api::instance::Instance;
use mkvmm_api::pool::Pool;
use mkvmm_base::is_plain;

/// The number of lines of a console that are kept.
const CONSOLE_LINES: usize = 64;

/// One answer of the VMM to all questions of the view.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The time at which it was taken, since an arbitrary moment.
    pub at: Duration,
    /// The state of the pool.
    pub pool: Pool,
    /// All instances, ordered by number.
    pub instances: Vec<Instance>,
    /// The exits of each instance to the VMM so far, by its number.
    pub exits: HashMap<u32, u64>,
}

/// What an instance has used per second, between two snapshots.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rates {
    /// Percent of one processor.
    pub cpu: f64,
    /// Exits to the VMM per second.
    pub exits: f64,
}

/// A command for the selected instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Boot the instance.
    Start,
    /// Pause the vCPUs of the instance.
    Pause,
    /// Resume the vCPUs of the instance.
    Resume,
    /// End the instance, by its power button and then by force.
    Kill,
}

impl Verb {
    /// Returns the word of the verb, which is also the end of its path.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Kill => "kill",
        }
    }
}

/// The column by which instances are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// Their numbers, ascending.
    #[default]
    Number,
    /// Their CPU time per second, descending.
    Cpu,
    /// Their resident memory, descending.
    Memory,
}

impl Order {
    /// Returns the next one, of which the last is followed by the first.
    #[must_use]
    pub const fn next(self) -> Self {
        match self {
            Self::Number => Self::Cpu,
            Self::Cpu => Self::Memory,
            Self::Memory => Self::Number,
        }
    }

    /// Returns its word for the user.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Number => "number",
            Self::Cpu => "CPU",
            Self::Memory => "memory",
        }
    }
}

/// The state of the view.
#[derive(Debug, Default)]
pub struct Model {
    /// The newest snapshot, once there is one.
    pub snapshot: Option<Snapshot>,
    /// The rates of each instance, by its number.
    pub rates: HashMap<u32, Rates>,
    /// The order of the rows.
    pub order: Order,
    /// The number of the selected instance.
    selected: Option<u32>,
    /// The last lines of the console of the selected instance.
    pub console: Vec<String>,
    /// What went wrong last, or what was done.
    pub message: Option<String>,
    /// A verb that the user still has to confirm, and the name of its instance.
    pub question: Option<(Verb, String)>,
}

impl Model {
    /// Takes over a new snapshot.
    pub fn update(&mut self, new: Snapshot) {
        if let Some(old) = &self.snapshot {
            self.rates = rates(old, &new);
        }
        let is_there = |number: &u32| new.instances.iter().any(|one| one.id == *number);
        let first = || new.instances.first().map(|one| one.id);
        self.selected = self.selected.filter(is_there).or_else(first);
        self.snapshot = Some(new);
    }

    /// Replaces the console's lines by the end of `output`, without what a
    /// terminal would interpret.
    pub fn show_console(&mut self, output: &str) {
        let plain = anstream::adapter::strip_str(output).to_string();
        let clean = |line: &str| -> String { line.chars().filter(|c| is_plain(*c)).collect() };
        let mut lines: Vec<String> = plain.lines().map(clean).collect();
        lines.drain(..lines.len().saturating_sub(CONSOLE_LINES));
        self.console = lines;
    }

    /// Returns the instances in the chosen order.
    pub fn rows(&self) -> Vec<&Instance> {
        let mut rows: Vec<&Instance> = self.snapshot.iter().flat_map(|s| &s.instances).collect();
        match self.order {
            Order::Number => {}
            Order::Cpu => rows.sort_by(|a, b| {
                let of = |one: &Instance| self.rates.get(&one.id).map_or(0.0, |rates| rates.cpu);
                of(b).total_cmp(&of(a))
            }),
            Order::Memory => rows.sort_by_key(|one| std::cmp::Reverse(one.resident)),
        }
        rows
    }

    /// Returns the selected instance.
    pub fn selected(&self) -> Option<&Instance> {
        let number = self.selected?;
        let mut all = self.snapshot.iter().flat_map(|s| &s.instances);
        all.find(|one| one.id == number)
    }

    /// Returns the row of the selected instance.
    pub fn selected_row(&self) -> Option<usize> {
        let number = self.selected?;
        self.rows().iter().position(|one| one.id == number)
    }

    /// Selects the instance `by` rows further down, or the last or first one.
    pub fn select(&mut self, by: isize) {
        let rows = self.rows();
        let row = self.selected_row().unwrap_or(0).saturating_add_signed(by);
        let row = row.min(rows.len().saturating_sub(1));
        let number = rows.get(row).map(|one| one.id);
        if number != self.selected {
            self.selected = number;
            self.console.clear();
        }
    }
}

fn rates(old: &Snapshot, new: &Snapshot) -> HashMap<u32, Rates> {
    let seconds = new.at.saturating_sub(old.at).as_secs_f64();
    if seconds <= 0.0 {
        return HashMap::new();
    }
    let before: HashMap<u32, u64> = old.instances.iter().map(|o| (o.id, o.cpu_us)).collect();
    let of = |one: &Instance| {
        let used = one.cpu_us.saturating_sub(*before.get(&one.id)?);
        let exits = |of: &Snapshot| of.exits.get(&one.id).copied().unwrap_or(0);
        let exits = exits(new).saturating_sub(exits(old));
        let rates = Rates {
            cpu: Duration::from_micros(used).as_secs_f64() / seconds * 100.0,
            // Exact below 2^52.
            exits: exits as f64 / seconds,
        };
        Some((one.id, rates))
    };
    new.instances.iter().filter_map(of).collect()
}
