//! Plots the cost against the pool size, as an SVG.

use crate::Row;
use plotters::prelude::*;
use std::error::Error;

/// Draws three charts side by side with logarithmic axes, and a legend below them.
pub fn draw(path: &str, sizes: &[u64], rows: &[Row]) -> Result<(), Box<dyn Error>> {
    let root = SVGBackend::new(path, (1500, 580)).into_drawing_area();
    root.fill(&WHITE)?;
    let rows: Vec<&Row> = rows
        .iter()
        .filter(|row| !row.name.starts_with('('))
        .collect();
    let (charts_area, names_area) = root.split_vertically(510);
    for (i, row) in rows.iter().enumerate() {
        let (x, y) = (70 + 480 * (i as i32 % 3), 14 + 24 * (i as i32 / 3));
        let line = vec![(x, y + 7), (x + 28, y + 7)];
        names_area.draw(&PathElement::new(line, Palette99::pick(i).stroke_width(3)))?;
        let style = ("sans-serif", 16).into_font();
        names_area.draw(&Text::new(row.name, (x + 38, y), style))?;
    }
    let areas = charts_area.split_evenly((1, 3));
    let charts = [
        ("fresh, 4 KiB: ns per call", 0),
        ("90 % full churn: ns per call", 1),
        ("worst case, 1 MiB: ns per pair", 3),
    ];
    for (area, (title, work)) in areas.iter().zip(charts) {
        let high = rows
            .iter()
            .flat_map(|row| &row.cells[work])
            .flatten()
            .fold(1000.0, |a: f64, cell| a.max(cell.ns));
        let last = *sizes.last().ok_or("no sizes")? as f64;
        let mut chart = ChartBuilder::on(area)
            .caption(title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(36)
            .y_label_area_size(64)
            .build_cartesian_2d((1.0..last).log_scale(), (1.0..high * 2.0).log_scale())?;
        chart
            .configure_mesh()
            .x_desc("pool size, GiB")
            .x_label_formatter(&|gib| format!("{gib:.0}"))
            .y_label_formatter(&|ns| format!("{ns:.0}"))
            .light_line_style(TRANSPARENT)
            .draw()?;
        for (i, row) in rows.iter().enumerate() {
            let color = Palette99::pick(i).to_rgba();
            let points: Vec<(f64, f64)> = sizes
                .iter()
                .zip(&row.cells[work])
                .filter_map(|(&gib, cell)| Some((gib as f64, cell.as_ref()?.ns)))
                .collect();
            chart.draw_series(
                LineSeries::new(points.iter().copied(), color.stroke_width(2)).point_size(3),
            )?;
        }
    }
    root.present()?;
    Ok(())
}
