//! Draws the model: a pure function of it and of the size of the terminal.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Table, TableState};

use crate::cli::tables::{harmless, size};
use crate::cli::top::model::{Model, Snapshot};
use mkvmm_api::instance::Instance;
use mkvmm_base::state::State;

/// The lines of the console, with its title.
const CONSOLE_HEIGHT: u16 = 9;
/// The height from which on there is a console.
const HEIGHT_FOR_CONSOLE: u16 = 20;

/// A column of the table.
struct Column {
    title: &'static str,
    width: Constraint,
    /// The width of the terminal from which on there is this column.
    from: u16,
    text: fn(&Model, &Instance) -> String,
}

/// The columns. Numbers are as wide as their largest values.
const COLUMNS: [Column; 10] = [
    column("ID", Constraint::Length(5), 60, |_, one| one.id.to_string()),
    column("NAME", Constraint::Min(8), 0, |_, one| one.name.to_string()),
    column("STATE", Constraint::Length(10), 0, |_, one| state(one)),
    column("CPU%", Constraint::Length(6), 0, |model, one| {
        let rates = model.rates.get(&one.id);
        rates.map_or_else(String::new, |rates| format!("{:.1}", rates.cpu))
    }),
    column("RESIDENT", Constraint::Length(8), 0, |_, one| {
        size(one.resident)
    }),
    column("MEMORY", Constraint::Length(8), 60, |_, one| {
        size(one.memory)
    }),
    column("CPUS", Constraint::Length(4), 60, |_, one| {
        one.cpus.to_string()
    }),
    column("EXITS/s", Constraint::Length(9), 72, |model, one| {
        let rates = model.rates.get(&one.id);
        rates.map_or_else(String::new, |rates| format!("{:.0}", rates.exits))
    }),
    column("VIOLATIONS", Constraint::Length(10), 80, |_, one| {
        one.violations.to_string()
    }),
    column("KERNEL", Constraint::Min(20), 110, |_, one| {
        harmless(one.kernel.as_ref().map_or("-", |kernel| &kernel.path))
    }),
];

const fn column(
    title: &'static str,
    width: Constraint,
    from: u16,
    text: fn(&Model, &Instance) -> String,
) -> Column {
    Column {
        title,
        width,
        from,
        text,
    }
}

/// Draws the whole screen.
pub fn draw(frame: &mut Frame<'_>, model: &Model) {
    let area = frame.area();
    let has_console = area.height >= HEIGHT_FOR_CONSOLE;
    let console = if has_console { CONSOLE_HEIGHT } else { 0 };
    let parts = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Min(2),
        Constraint::Length(console),
        Constraint::Length(1),
    ]);
    let [head, map, table, console, foot] = parts.areas(area);
    let Some(snapshot) = &model.snapshot else {
        frame.render_widget(Paragraph::new("waiting for the VMM"), head);
        frame.render_widget(footer(model, foot.width), foot);
        return;
    };
    frame.render_widget(Paragraph::new(summary(snapshot, head.width)), head);
    frame.render_widget(Paragraph::new(pool_map(model, snapshot, map.width)), map);
    instances(frame, model, table);
    if has_console {
        frame.render_widget(console_tail(model, console), console);
    }
    frame.render_widget(footer(model, foot.width), foot);
}

/// The first line: how many instances there are, and how full the pool is.
fn summary(snapshot: &Snapshot, width: u16) -> Line<'static> {
    let pool = &snapshot.pool;
    let active = snapshot.instances.iter().filter(|one| one.state.is_live());
    let (used, whole) = (size(pool.used), size(pool.range.size));
    let instances = snapshot.instances.len();
    let active = active.count();
    let mut text = format!("{active}/{instances} active  pool {used}/{whole}");
    if width >= 70 {
        let largest = size(pool.largest_free);
        text += &format!("  largest free piece {largest} of {}", pool.free_extents);
    }
    Line::from(text).bold()
}

/// The pool from its first address to its last, with the selected instance's
/// part in another colour.
fn pool_map(model: &Model, snapshot: &Snapshot, width: u16) -> Line<'static> {
    let range = snapshot.pool.range;
    let selected = model.selected().map(|one| one.id);
    // Each cell of the line stands for the addresses from one to the next.
    let at = |cell: u16| {
        let part = u128::from(range.size) * u128::from(cell) / u128::from(width.max(1));
        // A part of the size, which has 64 bits.
        range.start + u64::try_from(part).unwrap_or(range.size)
    };
    let owner = |from: u64, to: u64| {
        let overlaps = |one: &&Instance| {
            let mut chunks = one.chunks.iter();
            chunks.any(|chunk| chunk.start < to && from < chunk.start + chunk.size)
        };
        // The selected one is seen even where it shares its cell.
        let mut owners = snapshot.instances.iter().filter(overlaps);
        let own = owners.clone().find(|one| Some(one.id) == selected);
        own.or_else(|| owners.next())
    };
    let cell = |cell: u16| match owner(at(cell), at(cell + 1)) {
        None => Span::styled("·", Style::new().fg(Color::DarkGray)),
        Some(one) if Some(one.id) == selected => Span::styled("█", Style::new().fg(Color::Cyan)),
        Some(one) => Span::styled("▒", Style::new().fg(colour(one.state))),
    };
    Line::from_iter((0..width).map(cell))
}

fn instances(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let columns = || COLUMNS.iter().filter(|column| area.width >= column.from);
    let title = |column: &Column| Cell::from(column.title).add_modifier(Modifier::BOLD);
    let row = |one: &Instance| {
        let cell = |column: &Column| Cell::from((column.text)(model, one));
        Row::new(columns().map(cell).collect::<Vec<_>>()).fg(colour(one.state))
    };
    // Only rows that can be seen are formatted: there may be thousands.
    let rows = model.rows();
    let height = usize::from(area.height.saturating_sub(1)).max(1);
    let selected = model.selected_row().unwrap_or(0);
    let first = selected.saturating_sub(height / 2);
    let first = first.min(rows.len().saturating_sub(height));
    let visible = rows.iter().skip(first).take(height);
    let table = Table::new(
        visible.map(|one| row(one)),
        columns().map(|column| column.width),
    )
    .header(Row::new(columns().map(title).collect::<Vec<_>>()))
    .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = TableState::new().with_selected(model.selected_row().map(|row| row - first));
    frame.render_stateful_widget(table, area, &mut state);
}

fn console_tail(model: &Model, area: Rect) -> Paragraph<'_> {
    let name = model
        .selected()
        .map_or("no instance", |one| one.name.as_str());
    let height = usize::from(area.height.saturating_sub(1));
    let first = model.console.len().saturating_sub(height);
    let lines = model.console.iter().skip(first);
    let lines: Vec<Line<'_>> = lines.map(|line| Line::from(line.as_str())).collect();
    let block = Block::new()
        .borders(ratatui::widgets::Borders::TOP)
        .title(format!(" console of {name} "));
    Paragraph::new(lines).block(block)
}

/// The last line: a question, the last message, or as many of the keys as fit.
fn footer(model: &Model, width: u16) -> Line<'_> {
    if let Some((verb, name)) = &model.question {
        return Line::from(format!("{} {name}? y/n", verb.word()))
            .bold()
            .yellow();
    }
    if let Some(message) = &model.message {
        return Line::from(message.as_str()).yellow();
    }
    let mut keys = "q quit".to_owned();
    let order = format!("o order: {}", model.order.word());
    for key in ["↑↓ select", "s start", "k kill", "p pause/resume", &order] {
        let longer = format!("{keys}  {key}");
        if Line::from(longer.as_str()).width() > usize::from(width) {
            break;
        }
        keys = longer;
    }
    Line::from(keys).dim()
}

fn state(one: &Instance) -> String {
    if one.restarting {
        return "restarting".to_owned();
    }
    match one.reason {
        Some(reason) if one.state == State::Failed => reason.to_string(),
        _ => one.state.to_string(),
    }
}

const fn colour(state: State) -> Color {
    match state {
        State::Active => Color::Green,
        State::Paused | State::Stalled => Color::Yellow,
        State::Failed => Color::Red,
        _ => Color::Reset,
    }
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
