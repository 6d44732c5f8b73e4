//! Draws the pool in block characters; a cell shows the owner of most of it.

use std::fmt::Write as _;

use anstyle::{Ansi256Color, Color, Effects, Style};
use mkvmm_api::pool::{Owner, PoolMap};

use crate::cli::pool_map::picture::{
    Grid, Legend, PALETTE, Piece, Use, Who, colours, count, free_line, key, pieces, plain, rows_for,
};
use crate::cli::tables::size;

/// The space that the picture may use.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// The number of columns of a line.
    pub width: usize,
    /// The number of lines of the legend.
    pub legend: usize,
}

/// The target for the number of rows; round addresses may double it.
const MOST_ROWS: u64 = 16;
/// The minimum number of cells in a row.
const LEAST_CELLS: u64 = 16;
/// The approximate number of cells per segment.
const CELLS_EACH: u64 = 8;
/// The number of offsets printed above the rows.
const TICKS: u64 = 4;
/// The number of columns of a legend entry, excluding the name.
const LEGEND_NUMBERS: usize = 3 + 2 + 8 + 7 + 2 + 6 + 3;
const DIM: Style = Style::new().effects(Effects::DIMMED);
const BOLD: Style = Style::new().bold();

/// The contents of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Cell {
    /// The cell lies outside the pool.
    Outside,
    /// The cell belongs to one owner, or mostly to one.
    Of(Who, Use),
    /// The cell belongs to several owners, none of which has more than half.
    Several,
}

impl Cell {
    fn glyph(self) -> char {
        match self {
            Self::Outside => ' ',
            Self::Of(Who::Free, _) => '·',
            Self::Of(Who::Instance(_), Use::Image) => '█',
            Self::Of(Who::Instance(_), Use::Vmm) => '▓',
            Self::Of(Who::Instance(_), Use::Memory) => '▒',
            Self::Of(Who::Channel, _) => '=',
            Self::Of(Who::ChannelArea, _) => '-',
            Self::Of(Who::Allocation, _) => '+',
            Self::Of(Who::Held, _) => '╳',
            Self::Of(Who::Lost, _) => '!',
            Self::Several => '#',
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::Outside => "",
            Self::Of(Who::Free, _) => "free",
            Self::Of(Who::Instance(_), Use::Image) => "kernel, initramfs",
            Self::Of(Who::Instance(_), Use::Vmm) => "low window, control block",
            Self::Of(Who::Instance(_), Use::Memory) => "guest memory",
            Self::Of(Who::Channel, _) => "channel",
            Self::Of(Who::ChannelArea, _) => "channel area",
            Self::Of(Who::Allocation, _) => "allocation",
            Self::Of(Who::Held, _) => "held",
            Self::Of(Who::Lost, _) => "lost",
            Self::Several => "several owners",
        }
    }

    /// Returns the style of the cell; `colours` are those of the owners.
    fn style(self, colours: &[usize]) -> Style {
        match self {
            Self::Of(Who::Instance(i), _) => Style::new().fg_color(Some(ansi(colours[i]))),
            Self::Of(Who::Free, _) => DIM,
            Self::Of(Who::Lost, _) => BOLD,
            _ => Style::new(),
        }
    }

    fn instance(self) -> Option<usize> {
        match self {
            Self::Of(Who::Instance(i), _) => Some(i),
            _ => None,
        }
    }
}

fn ansi(colour: usize) -> Color {
    Ansi256Color(PALETTE[colour].0).into()
}

/// Returns the style of a label on a colour: black or white text.
fn label_style(colour: usize) -> Style {
    let [_, r, g, b] = PALETTE[colour].1.to_be_bytes().map(u32::from);
    let luminance = (299 * r + 587 * g + 114 * b) / 1000;
    let text = if luminance < 120 { 231 } else { 16 };
    Style::new()
        .fg_color(Some(Ansi256Color(text).into()))
        .bg_color(Some(ansi(colour)))
}

/// Renders the picture and its legend, with colours.
pub fn render(map: &PoolMap, room: Room) -> String {
    let axis = format!("{:#x}", map.pool.range.last()).len();
    let space = room.width.saturating_sub(axis + 2) as u64;
    let cells = match space.checked_ilog2() {
        Some(log) => (1 << log).max(LEAST_CELLS),
        None => LEAST_CELLS,
    };
    let per_row = usize::try_from(cells / CELLS_EACH).unwrap_or(1);
    let rows = rows_for(map.segments.len(), per_row, MOST_ROWS);
    let grid = Grid::new(map, rows, cells * map.granule);
    let cell = grid.row / cells;
    let picture = Picture::new(map, grid, cells);
    let mut text = String::new();
    heading(&mut text, map);
    picture.key(&mut text, cell);
    picture.ticks(&mut text, axis);
    for row in 0..grid.rows {
        picture.row(&mut text, row, axis);
    }
    text.push('\n');
    legend(&mut text, map, &picture.colours, room);
    text
}

fn heading(text: &mut String, map: &PoolMap) {
    let pool = &map.pool;
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "{BOLD}pool {:#x}-{:#x}{BOLD:#}  {}, {} free, {} of it in one piece; {}",
        pool.range.start,
        pool.range.last(),
        size(pool.range.size),
        size(pool.avail),
        size(pool.largest_free),
        count(pool.instances, "instance")
    );
}

/// The cells of all rows of the picture.
struct Picture<'a> {
    map: &'a PoolMap,
    grid: Grid,
    cells: Vec<Cell>,
    per_row: usize,
    colours: Vec<usize>,
}

impl<'a> Picture<'a> {
    fn new(map: &'a PoolMap, grid: Grid, per_row: u64) -> Self {
        let cell = grid.row / per_row;
        let all = pieces(map);
        let mut next = 0;
        let mut cells = Vec::new();
        for i in 0..grid.rows * per_row {
            let (from, to) = (grid.start + i * cell, grid.start + (i + 1) * cell);
            // Pieces that end here are not needed again.
            while all.get(next).is_some_and(|p| p.start + p.size <= from) {
                next += 1;
            }
            cells.push(show(&all[next..], from, to));
        }
        Self {
            map,
            grid,
            cells,
            per_row: usize::try_from(per_row).unwrap_or(1),
            colours: colours(map),
        }
    }

    /// Writes the meaning of the glyphs that occur.
    fn key(&self, text: &mut String, cell: u64) {
        let _ = write!(text, "each cell {}:", size(cell));
        let mut seen = Vec::new();
        for cell in &self.cells {
            let one = (cell.glyph(), cell.meaning());
            if *cell != Cell::Outside && !seen.contains(&one) {
                seen.push(one);
            }
        }
        for (glyph, meaning) in seen {
            let _ = write!(text, "  {glyph} {meaning}");
        }
        text.push_str("\n\n");
    }

    fn ticks(&self, text: &mut String, axis: usize) {
        let _ = write!(text, "{DIM}{:axis$}  ", "");
        let width = self.per_row / usize::try_from(TICKS).unwrap_or(1);
        for i in 0..TICKS {
            let offset = format!("+{}", size(self.grid.row / TICKS * i));
            let _ = write!(text, "{offset:width$}");
        }
        *text = text.trim_end().to_owned();
        let _ = writeln!(text, "{DIM:#}");
    }

    fn row(&self, text: &mut String, row: u64, axis: usize) {
        let start = self.grid.start + row * self.grid.row;
        let _ = write!(text, "{DIM}{:>axis$}{DIM:#}  ", format!("{start:#x}"));
        let first = usize::try_from(row).unwrap_or(0) * self.per_row;
        let cells = &self.cells[first..first + self.per_row];
        for run in cells.chunk_by(|a, b| a.instance() == b.instance()) {
            let Some(i) = run[0].instance() else {
                self.glyphs(text, run);
                continue;
            };
            let (label, at) = self.label(i, run.len());
            let style = label_style(self.colours[i]);
            self.glyphs(text, &run[..at]);
            let _ = write!(text, "{style}{label}{style:#}");
            self.glyphs(text, &run[at + label.chars().count()..]);
        }
        end_line(text);
    }

    fn glyphs(&self, text: &mut String, cells: &[Cell]) {
        for same in cells.chunk_by(|a, b| a == b) {
            let (style, glyph) = (same[0].style(&self.colours), same[0].glyph());
            let glyphs: String = same.iter().map(|_| glyph).collect();
            let _ = write!(text, "{style}{glyphs}{style:#}");
        }
    }

    /// Returns the label of a run of `room` cells and its position: the name in
    /// the middle, if that leaves some of the run visible, or a letter.
    fn label(&self, instance: usize, room: usize) -> (String, usize) {
        let name = plain(&self.map.owners[instance].name);
        match room.checked_sub(name.chars().count()) {
            Some(rest) if rest >= 2 => (name, rest / 2),
            _ => (key(instance).to_string(), 0),
        }
    }
}

/// Returns the owner of most of `from..to`, the lower of two equal ones; `Free`
/// only if no part is owned.
fn show(pieces: &[Piece], from: u64, to: u64) -> Cell {
    let mut owners: Vec<(Who, u64)> = Vec::new();
    let mut uses: Vec<((Who, Use), u64)> = Vec::new();
    for piece in pieces.iter().take_while(|p| p.start < to) {
        let (start, end) = (piece.start.max(from), (piece.start + piece.size).min(to));
        let part = end.saturating_sub(start);
        add(&mut owners, piece.who, part);
        add(&mut uses, (piece.who, piece.what), part);
    }
    if owners.is_empty() {
        return Cell::Outside;
    }
    owners.retain(|(who, _)| *who != Who::Free);
    let taken: u64 = owners.iter().map(|(_, bytes)| bytes).sum();
    let Some((who, most)) = largest(&owners) else {
        return Cell::Of(Who::Free, Use::Memory);
    };
    if most * 2 < taken {
        return Cell::Several;
    }
    uses.retain(|((whose, _), _)| *whose == who);
    Cell::Of(
        who,
        largest(&uses).map_or(Use::Memory, |((_, what), _)| what),
    )
}

fn add<T: PartialEq>(sums: &mut Vec<(T, u64)>, of: T, bytes: u64) {
    match sums.iter_mut().find(|(one, _)| *one == of) {
        Some((_, sum)) => *sum += bytes,
        None => sums.push((of, bytes)),
    }
}

/// Returns the first of the largest elements.
fn largest<T: Copy>(sums: &[(T, u64)]) -> Option<(T, u64)> {
    let larger = |a: (T, u64), b: (T, u64)| if b.1 > a.1 { b } else { a };
    sums.iter().copied().reduce(larger)
}

fn legend(text: &mut String, map: &PoolMap, colours: &[usize], room: Room) {
    let names = map.owners.iter().map(|o| plain(&o.name).chars().count());
    let names = names.max().unwrap_or(0).max(4);
    let columns = (room.width / (names + LEGEND_NUMBERS)).max(1);
    let most = room.legend.saturating_mul(columns);
    let Legend { listed, rest } = Legend::new(map, most, size);
    let lines = listed.len().div_ceil(columns);
    let columns: Vec<&[(usize, &Owner)]> = listed.chunks(lines.max(1)).collect();
    for _ in &columns {
        let _ = write!(
            text,
            "{BOLD}   {:names$}  {:8}{:>7}  CHUNKS{BOLD:#}   ",
            "NAME", "STATE", "SIZE"
        );
    }
    end_line(text);
    for line in 0..lines {
        for (i, owner) in columns.iter().filter_map(|column| column.get(line)) {
            let (style, name) = (label_style(colours[*i]), plain(&owner.name));
            let _ = write!(
                text,
                "{style}{}{style:#}  {name:names$}  {:8}{:>7}  {:>6}   ",
                key(*i),
                owner.state,
                size(owner.memory),
                owner.chunks
            );
        }
        end_line(text);
    }
    for line in rest.into_iter().chain([free_line(map, size)]) {
        text.push_str(&line);
        text.push('\n');
    }
}

/// Ends a line, without trailing blanks.
fn end_line(text: &mut String) {
    text.truncate(text.trim_end_matches(' ').len());
    if !text.ends_with('\n') {
        text.push('\n');
    }
}
