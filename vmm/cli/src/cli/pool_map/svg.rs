//! Draws the pool as one self-contained SVG file: rows of round addresses, to
//! scale, with tooltips.
//!
//! The background is part of the picture, light or dark as the reader's system
//! prefers.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use svg::Document;
use svg::node::element::{Group, Line, Pattern, Rectangle, Style, Text, Title};

use mkvmm_api::Range;
use mkvmm_api::pool::{PoolMap, Segment, SegmentKind};
use mkvmm_base::state::State;

use crate::cli::pool_map::picture::{
    Grid, Legend, PALETTE, Piece, Use, Who, colours, count, free_line, index, pieces, plain,
    rows_for, who,
};
use crate::cli::tables::size;

// These lengths are in pixels.
const WIDTH: f64 = 1120.0;
const MARGIN: f64 = 20.0;
/// The left edge of the rows; their addresses are printed to the left of it.
const LEFT: f64 = 130.0;
const ROW: f64 = WIDTH - LEFT - MARGIN;
const TOP: f64 = 112.0;
const BAR: f64 = 22.0;
const GAP: f64 = 5.0;
const LINE: f64 = 19.0;
/// The width of a character of the labels, estimated generously.
const CHAR: f64 = 6.9;
/// The smallest width that is visible.
const LEAST: f64 = 1.0;
/// The number of columns of the legend.
const COLUMNS: usize = 3;
const TICKS: u64 = 8;
/// The target for the number of rows; round addresses may double it.
const MOST_ROWS: u64 = 64;
/// The number of segments in a row that leaves room for short names.
const PER_ROW: usize = 16;

const STYLE: &str = "
text{font:12px system-ui,'DejaVu Sans',sans-serif;fill:#24292f}
.mono{font-family:ui-monospace,'DejaVu Sans Mono',monospace}
.h{font-size:16px;font-weight:600}
.b{font-weight:600}
.dim{fill:#6e7781}
.label{font-size:11px;font-weight:600;text-anchor:middle;paint-order:stroke;\
stroke:#fff;stroke-width:3px;stroke-linejoin:round;stroke-opacity:.75}
.label.dim{font-weight:400}
.end{text-anchor:end}
.panel{fill:#fff;stroke:#d0d7de}
.free{fill:#eaeef2}
.tick{stroke:#8c959f;stroke-opacity:.35}
.memory{fill-opacity:.4}
.held{fill:url(#held)}
.line{stroke:#6e7781;stroke-width:2.5px}
.channel{fill:#1b7c83}
.area{fill:#b3dfe1}
.allocation{fill:#24292f}
.lost{fill:#cf222e}
.sample{fill:#8c959f}
.sample.image{fill:#57606a}
@media(prefers-color-scheme:dark){
text{fill:#e6edf3}
.dim{fill:#8b949e}
.label{stroke:#0d1117}
.panel{fill:#0d1117;stroke:#30363d}
.free{fill:#21262d}
.channel{fill:#39c5cf}
.area{fill:#154b50}
.allocation{fill:#e6edf3}
.sample{fill:#8b949e}
.sample.image{fill:#656d76}
}
";

/// Renders the picture; its legend lists at most `most` instances.
pub fn render(map: &PoolMap, most: usize) -> String {
    let rows = rows_for(map.segments.len(), PER_ROW, MOST_ROWS);
    let picture = Picture {
        map,
        colours: colours(map),
        grid: Grid::new(map, rows, map.granule),
    };
    let legend = Legend::new(map, most, size);
    let bars = TOP + picture.grid.rows as f64 * (BAR + GAP);
    let lines = legend.listed.len().div_ceil(COLUMNS) + usize::from(legend.rest.is_some());
    let height = bars + 30.0 + lines as f64 * LINE + LINE + MARGIN / 2.0;
    let document = Document::new()
        .set("viewBox", format!("0 0 {WIDTH} {height}"))
        .set("width", WIDTH)
        .set("height", height)
        .set("role", "img")
        .add(Title::new("Map of the mkvmm pool"))
        .add(Style::new(style()))
        .add(hatching())
        .add(rect("panel", 0.5, 0.5, WIDTH - 1.0, height - 1.0).set("rx", 8));
    let document = heading(document, map)
        .add(picture.rows())
        .add(picture.axis(bars))
        .add(picture.segments())
        .add(write_legend(map, &legend, &picture.colours, bars + 30.0));
    format!("{document}\n")
}

fn style() -> String {
    let mut text = STYLE.to_owned();
    for (i, (_, rgb)) in PALETTE.iter().enumerate() {
        // Writing to a String cannot fail.
        let dark = rgb >> 1 & 0x7f7f7f;
        let _ = writeln!(
            text,
            ".c{i}{{fill:#{rgb:06x}}}.c{i}.image{{fill:#{dark:06x}}}"
        );
    }
    text
}

/// Returns the pattern of held ranges, which are neither free nor owned.
fn hatching() -> Pattern {
    let line = Line::new().set("class", "line").set("y2", 6);
    Pattern::new()
        .set("id", "held")
        .set("width", 6)
        .set("height", 6)
        .set("patternUnits", "userSpaceOnUse")
        .set("patternTransform", "rotate(45)")
        .add(line)
}

/// Rounds to hundredths of a pixel.
fn round(pixels: f64) -> f64 {
    (pixels * 100.0).round() / 100.0
}

fn rect(class: &str, x: f64, y: f64, width: f64, height: f64) -> Rectangle {
    Rectangle::new()
        .set("class", class)
        .set("x", round(x))
        .set("y", round(y))
        .set("width", round(width))
        .set("height", round(height))
}

fn text(class: &str, x: f64, y: f64, content: impl Into<String>) -> Text {
    Text::new(content)
        .set("class", class)
        .set("x", round(x))
        .set("y", round(y))
}

fn span(range: &Range) -> String {
    let (start, last) = (range.start, range.last());
    format!("{start:#x}-{last:#x}, {}", size(range.size))
}

fn heading(document: Document, map: &PoolMap) -> Document {
    let pool = &map.pool;
    let title = format!("pool {:#x}-{:#x}", pool.range.start, pool.range.last());
    let numbers = format!(
        "{}, {} free, {} of it in one piece, {}, granule {}",
        size(pool.range.size),
        size(pool.avail),
        size(pool.largest_free),
        count(pool.instances, "instance"),
        size(map.granule)
    );
    let mut document = document
        .add(text("h mono", MARGIN, 32.0, title))
        .add(text("dim", MARGIN, 52.0, numbers));
    let has = |kind: &SegmentKind| map.segments.iter().any(|segment| segment.kind == *kind);
    let is_channel = |kind: &SegmentKind| matches!(kind, SegmentKind::Channel { .. });
    let has_channel = map.segments.iter().any(|segment| is_channel(&segment.kind));
    let uses: HashSet<Use> = pieces(map).iter().filter_map(Piece::of_instance).collect();
    let has_use = |one| uses.contains(&one);
    let samples = [
        ("sample image", "kernel, initramfs", has_use(Use::Image)),
        ("sample", "low window, control block", has_use(Use::Vmm)),
        ("sample memory", "guest memory", has_use(Use::Memory)),
        ("free", "free", has(&SegmentKind::Free)),
        ("held", "held", has(&SegmentKind::Held)),
        ("channel", "channel", has_channel),
        ("area", "channel area", has(&SegmentKind::ChannelArea)),
        ("allocation", "allocation", has(&SegmentKind::Allocation)),
        ("lost", "lost", has(&SegmentKind::Lost)),
    ];
    let mut x = MARGIN;
    for (class, meaning, _) in samples.iter().filter(|(_, _, occurs)| *occurs) {
        document = document.add(rect(class, x, 65.0, 12.0, 12.0)).add(text(
            "dim",
            x + 18.0,
            75.0,
            *meaning,
        ));
        x += 18.0 + meaning.len() as f64 * CHAR + 18.0;
    }
    document
}

/// The part of a range that lies in one row.
#[derive(Debug, Clone, Copy)]
struct Slice {
    x: f64,
    y: f64,
    width: f64,
}

struct Picture<'a> {
    map: &'a PoolMap,
    /// The colours of the owners.
    colours: Vec<usize>,
    grid: Grid,
}

impl Picture<'_> {
    fn y(&self, row: u64) -> f64 {
        TOP + row as f64 * (BAR + GAP)
    }

    /// Returns the slices of `range`, one for each row that it touches.
    fn slices(&self, range: &Range) -> impl Iterator<Item = Slice> {
        let Grid { start, row, .. } = self.grid;
        let (from, to) = (range.start - start, range.start - start + range.size);
        (from / row..to.div_ceil(row)).map(move |index| {
            let begin = from.max(index * row) - index * row;
            let end = to.min((index + 1) * row) - index * row;
            let x = |offset: u64| LEFT + offset as f64 / row as f64 * ROW;
            Slice {
                x: x(begin),
                y: self.y(index),
                width: x(end) - x(begin),
            }
        })
    }

    /// Draws the pool itself; what nothing is drawn over is free.
    fn rows(&self) -> Group {
        let bars = self
            .slices(&self.map.pool.range)
            .map(|s| rect("free", s.x, s.y, s.width, BAR));
        bars.fold(Group::new(), Group::add)
    }

    fn axis(&self, bottom: f64) -> Group {
        let mut group = Group::new();
        for row in 0..self.grid.rows {
            let start = self.grid.start + row * self.grid.row;
            let y = self.y(row) + BAR / 2.0 + 4.0;
            group = group.add(text("mono dim end", LEFT - 10.0, y, format!("{start:#x}")));
        }
        for tick in 0..=TICKS {
            let x = LEFT + tick as f64 / TICKS as f64 * ROW;
            let line = Line::new()
                .set("class", "tick")
                .set("x1", round(x))
                .set("x2", round(x))
                .set("y1", TOP - 6.0)
                .set("y2", bottom - GAP);
            group = group.add(line);
            if tick < TICKS {
                let offset = format!("+{}", size(self.grid.row / TICKS * tick));
                group = group.add(text("mono dim", x, TOP - 10.0, offset));
            }
        }
        group
    }

    fn segments(&self) -> Group {
        let index = index(self.map);
        let states = self.map.owners.iter();
        let states: HashMap<&str, State> = states.map(|o| (o.name.as_str(), o.state)).collect();
        let mut labels = Group::new();
        let mut group = Group::new();
        for segment in &self.map.segments {
            let (class, title) = match (who(segment, &index), &segment.kind) {
                (Who::Instance(i), SegmentKind::Instance { instance, .. }) => {
                    let state = states.get(instance.as_str());
                    let state = state.map_or_else(String::new, State::to_string);
                    let colour = self.colours[i];
                    let title = format!("{} ({state})", plain(instance));
                    (format!("c{colour} memory"), title)
                }
                (Who::Free, _) => ("free".to_owned(), "free".to_owned()),
                (Who::Channel, SegmentKind::Channel { channel }) => {
                    ("channel".to_owned(), format!("channel {}", plain(channel)))
                }
                (Who::ChannelArea, _) => ("area".to_owned(), "channel area".to_owned()),
                (Who::Allocation, _) => ("allocation".to_owned(), "allocation".to_owned()),
                (Who::Held, _) => ("held".to_owned(), "held".to_owned()),
                _ => ("lost".to_owned(), "lost".to_owned()),
            };
            group = self.draw(group, &segment.range, &class, &title);
            if let SegmentKind::Instance { instance, parts } = &segment.kind {
                for part in parts.iter().filter(|p| Use::of(&p.name) != Use::Memory) {
                    let shade = match Use::of(&part.name) {
                        Use::Image => " image",
                        _ => "",
                    };
                    let class = class.replace(" memory", shade);
                    let title = format!("{}: {}", plain(instance), part.name);
                    group = self.draw_visible(group, &part.range, &class, &title);
                }
            }
            if let Some(label) = self.label(segment) {
                labels = labels.add(label);
            }
        }
        group.add(labels)
    }

    /// Draws `range`, with each slice at least as wide as is visible.
    fn draw(&self, group: Group, range: &Range, class: &str, title: &str) -> Group {
        let title = format!("{title}\n{}", span(range));
        self.slices(range).fold(group, |group, slice| {
            // Leave a thin gap between neighbours of the same colour.
            let gap = if slice.width > 4.0 { 0.75 } else { 0.0 };
            let width = (slice.width - gap).max(LEAST);
            let bar = rect(class, slice.x, slice.y, width, BAR);
            group.add(bar.add(Title::new(title.as_str())))
        })
    }

    /// Draws only slices that are wide enough not to hide their neighbours.
    fn draw_visible(&self, group: Group, range: &Range, class: &str, title: &str) -> Group {
        if self.slices(range).any(|slice| slice.width >= LEAST) {
            self.draw(group, range, class, title)
        } else {
            group
        }
    }

    /// Returns the segment's name where it fits, preferably on guest memory
    /// rather than on a kernel.
    fn label(&self, segment: &Segment) -> Option<Text> {
        let (class, label) = match &segment.kind {
            SegmentKind::Instance { instance, .. } => ("label", plain(instance)),
            SegmentKind::Free => ("label dim", size(segment.range.size)),
            _ => return None,
        };
        let memory: Vec<&Range> = match &segment.kind {
            SegmentKind::Instance { parts, .. } => {
                let memory = parts.iter().filter(|p| Use::of(&p.name) == Use::Memory);
                memory.map(|p| &p.range).collect()
            }
            _ => Vec::new(),
        };
        let needed = label.chars().count() as f64 * CHAR + 6.0;
        let widest = |ranges: &mut dyn Iterator<Item = &Range>| {
            let slices = ranges.flat_map(|range| self.slices(range));
            let fits = slices.filter(|slice| slice.width >= needed);
            // Take the first of several equal ones.
            fits.reduce(|a, b| if b.width > a.width { b } else { a })
        };
        let on_memory = widest(&mut memory.into_iter());
        let slice = on_memory.or_else(|| widest(&mut std::iter::once(&segment.range)))?;
        let x = slice.x + slice.width / 2.0;
        let label = text(class, x, slice.y + BAR / 2.0 + 4.0, label);
        Some(label.set("pointer-events", "none"))
    }
}

fn write_legend(map: &PoolMap, legend: &Legend<'_>, colours: &[usize], top: f64) -> Group {
    let width = (WIDTH - 2.0 * MARGIN) / COLUMNS as f64;
    let lines = legend.listed.len().div_ceil(COLUMNS);
    let mut group = Group::new();
    for (i, (instance, owner)) in legend.listed.iter().enumerate() {
        let x = MARGIN + (i / lines) as f64 * width;
        let y = top + (i % lines) as f64 * LINE;
        let chunks = count(owner.chunks, "chunk");
        let name = plain(&owner.name);
        let after = x + 18.0 + name.chars().count() as f64 * (CHAR + 0.8) + 10.0;
        let facts = format!("{}, {}, {chunks}", owner.state, size(owner.memory));
        let colour = format!("c{}", colours[*instance]);
        group = group
            .add(rect(&colour, x, y - 10.0, 12.0, 12.0).set("rx", 2))
            .add(text("b", x + 18.0, y, name))
            .add(text("dim", after, y, facts));
    }
    let mut y = top + lines as f64 * LINE;
    for line in legend.rest.iter().chain([&free_line(map, size)]) {
        group = group.add(text("dim", MARGIN, y, line.as_str()));
        y += LINE;
    }
    group
}
