//! A line per point: what a spreadsheet or a data frame wants.

use crate::bench::results::{BenchReport, Estimate, Metric, Point};

use super::words;

/// A line per point, after a line of names; RFC 4180. Latencies are in milliseconds, intervals only for
/// rates and for the share of good requests: JSON has them all.
pub fn csv(report: &BenchReport) -> String {
    let mut text = String::new();
    let blank = Line::default();
    let head = match report.points.first() {
        Some(point) => line(report, point),
        None => blank,
    };
    row(&mut text, head.cells.iter().map(|(name, _)| name.as_str()));
    for point in &report.points {
        row(
            &mut text,
            line(report, point)
                .cells
                .iter()
                .map(|(_, cell)| cell.as_str()),
        );
    }
    text
}

fn row<'a>(text: &mut String, cells: impl Iterator<Item = &'a str>) {
    let cells: Vec<String> = cells.map(quoted).collect();
    text.push_str(&cells.join(","));
    text.push_str("\r\n");
}

/// Quoted where commas, quotes or line ends ask for it. Text that a spreadsheet would take for a formula
/// gets an apostrophe: some of it comes from a server.
fn quoted(cell: &str) -> String {
    let is_number = cell.parse::<f64>().is_ok();
    let formula = cell.starts_with(['=', '+', '-', '@', '\t', '\r']) && !is_number;
    let cell = if formula {
        format!("'{cell}")
    } else {
        cell.to_owned()
    };
    match cell.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", cell.replace('"', "\"\"")),
        false => cell,
    }
}

#[derive(Default)]
struct Line {
    cells: Vec<(String, String)>,
}

impl Line {
    fn text(&mut self, name: &str, value: &str) {
        self.cells.push((name.to_owned(), value.to_owned()));
    }

    fn number(&mut self, name: &str, value: Option<f64>) {
        let value = value.map(|value| value.to_string()).unwrap_or_default();
        self.cells.push((name.to_owned(), value));
    }

    fn count(&mut self, name: &str, value: u64) {
        self.cells.push((name.to_owned(), value.to_string()));
    }

    fn estimate(&mut self, name: &str, value: Option<Estimate>) {
        self.number(name, value.map(|value| value.value));
        self.number(&format!("{name}_low"), value.and_then(|value| value.low));
        self.number(&format!("{name}_high"), value.and_then(|value| value.high));
    }
}

fn line(report: &BenchReport, point: &Point) -> Line {
    let mut line = Line::default();
    line.text("model", &report.server.model);
    line.text("purpose", &point.purpose);
    line.count("repeat", u64::from(point.repeat));
    line.number("load", Some(point.offered.amount()));
    line.text("load_unit", point.offered.unit());
    line.text("outcome", words::outcome(point.verdict.outcome));
    line.text("reasons", &point.verdict.reasons.join("; "));
    line.number("started_seconds", Some(point.started_seconds));
    line.number("warm_up_seconds", Some(point.windows.warm_up_seconds));
    line.number("measured_seconds", Some(point.windows.measured_seconds));
    line.number("drain_seconds", Some(point.windows.drain_seconds));
    line.text(
        "steady",
        if point.windows.steady.reached {
            "yes"
        } else {
            "no"
        },
    );
    let counts = &point.counts;
    for (name, count) in [
        ("due", counts.due),
        ("completed", counts.completed),
        ("refused", counts.refused),
        ("timed_out", counts.timed_out),
        ("truncated", counts.truncated),
        ("no_finish_reason", counts.no_finish_reason),
        ("errors", counts.errors),
        ("good", point.goodput.good),
        ("prompt_tokens", counts.prompt_tokens),
        ("output_tokens", counts.output_tokens),
        ("images", counts.images),
    ] {
        line.count(name, count);
    }
    let throughput = &point.throughput;
    line.estimate("good_share", Some(point.goodput.share));
    line.estimate(
        "good_requests_per_second",
        Some(point.goodput.requests_per_second),
    );
    line.estimate("requests_per_second", Some(throughput.requests_per_second));
    line.estimate(
        "prompt_tokens_per_second",
        throughput.prompt_tokens_per_second,
    );
    line.estimate(
        "output_tokens_per_second",
        throughput.output_tokens_per_second,
    );
    line.estimate("images_per_second", throughput.images_per_second);
    for metric in Metric::ALL {
        let found = point.latencies.get(metric);
        let key = metric.key();
        line.count(
            &format!("{key}_samples"),
            found.map_or(0, |found| found.count),
        );
        line.number(
            &format!("{key}_mean_ms"),
            found.and_then(|found| found.mean),
        );
        for name in ["p50", "p90", "p95", "p99"] {
            let value = words::percentile(point, metric, name).map(|value| value.value);
            line.number(&format!("{key}_{name}_ms"), value);
        }
        line.number(&format!("{key}_max_ms"), found.and_then(|found| found.max));
    }
    let law = point.littles_law;
    line.number("in_flight", law.map(|law| law.in_flight));
    line.number("littles_law_difference", law.map(|law| law.difference));
    line.count(
        "cached_prompt_tokens",
        point.cache.as_ref().map_or(0, |cache| cache.cached_tokens),
    );
    let energy = point.energy.as_ref();
    line.number("joules", energy.map(|energy| energy.joules));
    line.number(
        "joules_per_output_token",
        energy.and_then(|energy| energy.joules_per_output_token),
    );
    line.number(
        "joules_per_image",
        energy.and_then(|energy| energy.joules_per_image),
    );
    let cost = point.cost.as_ref();
    line.text("currency", cost.map_or("", |cost| &cost.currency));
    line.number(
        "cost_per_million_output_tokens",
        cost.and_then(|cost| cost.per_million_output_tokens),
    );
    line.number(
        "cost_per_thousand_images",
        cost.and_then(|cost| cost.per_thousand_images),
    );
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_quoted_where_they_must_be() {
        for (cell, expected) in [
            ("plain", "plain"),
            ("a,b", "\"a,b\""),
            ("say \"no\"", "\"say \"\"no\"\"\""),
            ("two\nlines", "\"two\nlines\""),
            ("-1.5", "-1.5"),
            ("=1+1", "'=1+1"),
            ("@sum", "'@sum"),
            ("-a,b", "\"'-a,b\""),
            ("", ""),
        ] {
            assert_eq!(quoted(cell), expected);
        }
    }
}
