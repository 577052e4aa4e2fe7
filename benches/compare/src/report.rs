//! Tables of series. Owns: what a table contains and its Markdown. Must not know how a series was
//! measured.

use crate::measure::{Series, Spread, ratio};

/// The columns of the documents that are written.
const COLUMNS: usize = 100;

/// A paragraph of Markdown, whose lines end at column 100.
pub fn paragraph(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("one at least");
        if line.is_empty() {
            *line += word;
        } else if line.len() + 1 + word.len() <= COLUMNS {
            *line += " ";
            *line += word;
        } else {
            lines.push(word.to_owned());
        }
    }
    lines.join("\n")
}

/// The figure of one contender, and its ratio to the baseline.
#[derive(Clone, Debug)]
pub struct Row {
    pub name: String,
    /// The median of the figure.
    pub figure: Option<f64>,
    /// To the baseline in the same round.
    pub ratio: Option<Spread>,
    pub per_second: Option<f64>,
    pub failure: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Table {
    pub title: String,
    /// The head of the column of figures.
    pub unit: &'static str,
    /// The head of the last column; empty if there is none.
    pub rate: &'static str,
    pub base: String,
    pub rows: Vec<Row>,
    pub note: String,
}

impl Table {
    /// A table of CPU time per request and requests per second. Ratios are to the series at `base`.
    pub fn of_cpu(title: &str, base: usize, series: &[Series], note: &str) -> Table {
        Table { rate: "requests/s", ..Table::of(title, "us CPU/request", base, series, note) }
    }

    /// A table of any figure. Ratios are to the series at `base`.
    pub fn of(
        title: &str,
        unit: &'static str,
        base: usize,
        series: &[Series],
        note: &str,
    ) -> Table {
        let row = |series_of: &Series| Row {
            name: series_of.name.clone(),
            figure: Spread::of(series_of.samples.iter().map(|sample| sample.figure))
                .map(|spread| spread.median),
            ratio: ratio(series_of, &series[base], |sample| sample.figure),
            per_second: Spread::of(series_of.samples.iter().map(|sample| sample.per_second))
                .map(|s| s.median),
            failure: series_of.failure.clone(),
        };
        Table {
            title: title.into(),
            unit,
            rate: "",
            base: series[base].name.clone(),
            rows: series.iter().map(row).collect(),
            note: note.into(),
        }
    }

    pub fn markdown(&self) -> String {
        let mut text = format!("### {}\n\n", self.title);
        if !self.note.is_empty() {
            text += &format!("{}\n\n", self.note);
        }
        let rate = if self.rate.is_empty() { String::new() } else { format!(" {} |", self.rate) };
        text += &format!("| | {} | ratio to {} (least to most) |{rate}\n", self.unit, self.base);
        text += if self.rate.is_empty() { "|---|---|---|\n" } else { "|---|---|---|---|\n" };
        for row in &self.rows {
            text += &self.line(row);
        }
        text + "\n"
    }

    fn line(&self, row: &Row) -> String {
        let Row { name, figure: Some(figure), ratio: Some(ratio), .. } = row else {
            let why = row.failure.as_deref().unwrap_or("not measured");
            let last = if self.rate.is_empty() { "" } else { " |" };
            return format!("| {} | | {why} |{last}\n", row.name);
        };
        let Spread { median, least, most } = ratio;
        let name = if name.starts_with("proactor") { format!("**{name}**") } else { name.clone() };
        let mut line =
            format!("| {name} | {} | {median:.2} ({least:.2} to {most:.2}) |", digits(*figure));
        if let Some(per_second) = row.per_second.filter(|_| !self.rate.is_empty()) {
            line += &format!(" {} |", grouped(per_second));
        }
        line + "\n"
    }
}

fn digits(value: f64) -> String {
    match value {
        0.0..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => grouped(value),
    }
}

/// The integer part, with commas between thousands.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Sample;

    fn series(name: &str, cpu: &[f64]) -> Series {
        let samples =
            cpu.iter().map(|&cpu_us| Sample { figure: cpu_us, per_second: 1e6 / cpu_us }).collect();
        Series { name: name.into(), samples, failure: None }
    }

    #[test]
    fn ratios_are_within_the_round() {
        // The machine was half as fast in the second round, which does not change the ratio.
        let table = Table::of_cpu(
            "t",
            0,
            &[series("base", &[2.0, 4.0, 2.0]), series("other", &[1.0, 2.0, 1.0])],
            "",
        );
        let ratio = table.rows[1].ratio.unwrap();
        assert_eq!((ratio.median, ratio.least, ratio.most), (0.5, 0.5, 0.5));
        assert!(table.markdown().contains("| other | 1.00 | 0.50 (0.50 to 0.50) | 1,000,000 |"));
    }

    #[test]
    fn a_failure_is_shown_with_its_reason() {
        let mut failed = series("other", &[]);
        failed.failure = Some("no ring".into());
        let table = Table::of_cpu("t", 0, &[series("base", &[2.0]), failed], "");
        assert!(table.markdown().contains("| other | | no ring | |"));
    }

    #[test]
    fn a_paragraph_wraps_at_100_columns() {
        let (words, long) = ("word ".repeat(30), "w".repeat(120));
        let text = paragraph(&format!("{words} {long} end"));
        let lines: Vec<usize> = text.lines().map(str::len).collect();
        assert_eq!(lines, [99, 49, 120, 3]);
        assert_eq!(text.split_whitespace().count(), 32);
    }
}
