//! Cost against pool size, as an SVG.

use crate::Row;
use plotters::prelude::*;
use std::error::Error;

/// Three charts side by side, both axes logarithmic.
pub fn draw(path: &str, sizes: &[u64], rows: &[Row]) -> Result<(), Box<dyn Error>> {
    let root = SVGBackend::new(path, (1500, 520)).into_drawing_area();
    root.fill(&WHITE)?;
    let areas = root.split_evenly((1, 3));
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
            .build_cartesian_2d((1.0..last).log_scale(), (10.0..high * 2.0).log_scale())?;
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
            chart
                .draw_series(
                    LineSeries::new(points.iter().copied(), color.stroke_width(2)).point_size(3),
                )?
                .label(row.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .draw()?;
    }
    root.present()?;
    Ok(())
}
