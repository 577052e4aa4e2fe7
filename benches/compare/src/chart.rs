//! Tables as bar charts in SVG: a bar for the median, a whisker from the least to the most. Must
//! not know what the tables mean.

use crate::report::{Row, Table};
use plotters::prelude::*;
use std::error::Error;
use std::path::Path;

const WIDTH: u32 = 860;
const ROW: i32 = 22;
const LEFT: i32 = 210;
const RIGHT: i32 = 120;
const TOP: i32 = 44;
const OURS: RGBColor = RGBColor(31, 119, 180);
const BASE: RGBColor = RGBColor(90, 90, 90);
const OTHERS: RGBColor = RGBColor(170, 178, 189);

/// What writes the charts.
const COMMAND: &str = "cargo run --release --manifest-path benches/compare/Cargo.toml";

/// Writes one panel for each table, with the ratios to its baseline: shorter is better.
pub fn write(path: &Path, title: &str, tables: &[&Table]) -> Result<(), Box<dyn Error>> {
    let heights: Vec<i32> =
        tables.iter().map(|table| TOP + rows_with_ratio(table).count() as i32 * ROW + 14).collect();
    let area = SVGBackend::new(path, (WIDTH, (heights.iter().sum::<i32>() + 40) as u32))
        .into_drawing_area();
    area.fill(&WHITE)?;
    area.draw_text(title, &("sans-serif", 18).into_text_style(&area), (12, 12))?;
    let mut top = 40;
    for (table, height) in tables.iter().zip(&heights) {
        panel(&area, table, top)?;
        top += height;
    }
    area.present()?;
    drop(area);
    Ok(std::fs::write(path, with_description(&std::fs::read_to_string(path)?))?)
}

/// The file names the command that wrote it.
fn with_description(svg: &str) -> String {
    let (head, rest) = svg.split_once('\n').unwrap_or((svg, ""));
    format!("{head}\n<desc>Written by {COMMAND}</desc>\n{rest}")
}

fn rows_with_ratio(table: &Table) -> impl Iterator<Item = &Row> {
    table.rows.iter().filter(|row| row.ratio.is_some())
}

fn panel(
    area: &DrawingArea<SVGBackend, plotters::coord::Shift>,
    table: &Table,
    top: i32,
) -> Result<(), Box<dyn Error>> {
    let heading = format!("{}: {}, ratio to {}", table.title, table.unit, table.base);
    area.draw_text(&heading, &("sans-serif", 14).into_text_style(area), (12, top + 8))?;
    let most = rows_with_ratio(table)
        .filter_map(|row| row.ratio)
        .map(|ratio| ratio.median)
        .fold(1.0, f64::max)
        * 1.08;
    let scale = f64::from(WIDTH as i32 - LEFT - RIGHT) / most;
    let x = |ratio: f64| LEFT + (ratio.min(most) * scale) as i32;
    let end = top + TOP + rows_with_ratio(table).count() as i32 * ROW;
    area.draw(&PathElement::new([(x(1.0), top + TOP - 6), (x(1.0), end)], BASE.stroke_width(1)))?;
    for (index, row) in rows_with_ratio(table).enumerate() {
        let (ratio, y) = (row.ratio.expect("filtered"), top + TOP + index as i32 * ROW);
        let color = match &row.name {
            name if name.starts_with("proactor") => OURS,
            name if *name == table.base => BASE,
            _ => OTHERS,
        };
        let style = ("sans-serif", 13).into_text_style(area);
        area.draw_text(&row.name, &style, (12, y + 1))?;
        area.draw(&Rectangle::new([(LEFT, y), (x(ratio.median), y + ROW - 7)], color.filled()))?;
        let middle = y + (ROW - 7) / 2;
        area.draw(&PathElement::new(
            [(x(ratio.least), middle), (x(ratio.most), middle)],
            BLACK.stroke_width(1),
        ))?;
        let label = format!("{:.2}", ratio.median);
        area.draw_text(&label, &style, (x(ratio.most).max(x(ratio.median)) + 6, y + 1))?;
    }
    Ok(())
}
