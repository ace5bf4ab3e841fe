//! The answer and the points as Markdown (GitHub's, with tables).

use std::fmt::Write as _;

use crate::bench::results::{BenchReport, Limit, LittlesLaw, Metric, Outcome, Point};
use crate::bench::table::number;

use super::words;

/// The answer, what limits it, the points, and the setup in a table each.
pub fn markdown(report: &BenchReport) -> String {
    let mut text = format!("# {}\n", escaped(&title(report)));
    let _ = writeln!(text, "\n**{}**", escaped(&words::headline(report)));
    for warning in &report.warnings {
        let _ = writeln!(text, "\n> {}", escaped(warning));
    }
    if let Some(capacity) = &report.capacity {
        text.push('\n');
        let lines = [
            ("first limit", capacity.first_limit.as_ref().map(limit)),
            ("next limit", capacity.next_limit.as_ref().map(limit)),
            ("Little's law", capacity.littles_law.as_ref().map(told_law)),
            ("search", Some(capacity.ended.clone())),
        ];
        for (name, line) in lines {
            if let Some(line) = line {
                let _ = writeln!(text, "- {name}: {}", escaped(&line));
            }
        }
    }
    text.push_str(&points(report));
    text.push_str(&setup(report));
    text
}

pub(super) fn title(report: &BenchReport) -> String {
    let what = match &report.capacity {
        Some(_) => "Capacity",
        None => "Measurement",
    };
    match &report.label {
        Some(label) => format!("{what} of {}: {label}", report.server.model),
        None => format!("{what} of {}", report.server.model),
    }
}

/// `slots: 64 of 64 rows (rows_running). All slots were ..`
pub(super) fn limit(limit: &Limit) -> String {
    let bound = limit
        .bound
        .map(|bound| format!(" of {}", words::tidy(bound)));
    format!(
        "{}: {}{} {} ({}). {}",
        limit.name,
        words::tidy(limit.value),
        bound.unwrap_or_default(),
        limit.unit,
        limit.counter,
        limit.explanation
    )
}

/// `12.1 in flight, counted, against 3/s × 4 s: 0.8 % apart`
pub(super) fn law(law: &LittlesLaw) -> String {
    format!(
        "{} in flight, counted, against {}/s × {}: {} apart",
        number(law.in_flight),
        number(law.requests_per_second),
        words::seconds(law.mean_seconds),
        words::percent(law.difference.abs())
    )
}

fn told_law(found: &LittlesLaw) -> String {
    let verdict = if found.holds {
        "holds"
    } else {
        "does not hold"
    };
    format!("{verdict}: {}", law(found))
}

fn points(report: &BenchReport) -> String {
    let points: Vec<&Point> = report.points.iter().collect();
    let metrics: Vec<(Metric, Vec<&str>)> = words::metrics(&points)
        .into_iter()
        .map(|metric| (metric, words::column_percentiles(&points, metric)))
        .collect();
    let unit = points.first().map_or("", |point| words::output(point).1);
    let mut head = vec!["load".to_owned(), "verdict".to_owned(), "good".to_owned()];
    head.push("requests/s".to_owned());
    if unit != "requests/s" {
        head.push(unit.to_owned());
    }
    for (metric, names) in &metrics {
        head.push(format!("{} {}", metric.title(), names.join(", ")));
    }
    head.extend(["bad".to_owned(), "requests".to_owned()]);
    let mut text = String::from("\n## Points\n\n");
    table_line(&mut text, &head);
    let rule: Vec<String> = (0..head.len())
        .map(|column| if column < 2 { "---" } else { "---:" }.to_owned())
        .collect();
    table_line(&mut text, &rule);
    for point in &points {
        let (out, _) = words::output(point);
        let mut cells = vec![
            words::offered(&point.offered),
            words::outcome(point.verdict.outcome).to_owned(),
            words::percent(point.goodput.share.value),
            number(point.throughput.requests_per_second.value),
        ];
        if unit != "requests/s" {
            cells.push(number(out.value));
        }
        for (metric, names) in &metrics {
            cells.push(words::percentile_cells(point, *metric, names).join(", "));
        }
        cells.push(point.counts.bad().to_string());
        cells.push(point.counts.due.to_string());
        table_line(&mut text, &cells);
    }
    let told = points
        .iter()
        .filter(|point| point.verdict.outcome != Outcome::Pass)
        .filter(|point| !point.verdict.reasons.is_empty());
    for (index, point) in told.enumerate() {
        if index == 0 {
            text.push('\n');
        }
        let _ = writeln!(
            text,
            "- {}, {}: {}",
            words::offered(&point.offered),
            words::outcome(point.verdict.outcome),
            escaped(&point.verdict.reasons.join("; "))
        );
    }
    text
}

/// What matters of the setup; JSON has all of it.
pub(super) fn setup_lines(report: &BenchReport) -> Vec<(&'static str, String)> {
    let (client, server) = (&report.client, &report.server);
    let software = match (&server.software, &server.version) {
        (Some(software), Some(version)) => format!("{software} {version}"),
        (Some(one), None) | (None, Some(one)) => one.clone(),
        (None, None) => "does not say".to_owned(),
    };
    let machine = &client.machine;
    let mut lines = vec![
        ("load", client.load.description.clone()),
        ("objectives", words::objectives(report)),
        ("server", format!("{software} at {}", server.url)),
        ("model", server.model.clone()),
    ];
    if let Some(device) = &server.device {
        lines.push(("device", device.clone()));
    }
    let place = match server.same_machine {
        true => ", shared with the server",
        false => "",
    };
    lines.push((
        "client",
        format!(
            "girandole {} on {}, {} cores{place}",
            client.girandole, machine.processor, machine.cores
        ),
    ));
    lines.push(("seed", client.seed.to_string()));
    lines.push((
        "time",
        format!(
            "{}, {}",
            words::date(report.started_unix_seconds),
            words::seconds(report.duration_seconds)
        ),
    ));
    lines.push(("command", client.command.join(" ")));
    lines
}

fn setup(report: &BenchReport) -> String {
    let mut text = String::from("\n## Setup\n\n| | |\n| --- | --- |\n");
    for (name, line) in setup_lines(report) {
        let _ = writeln!(text, "| {name} | {} |", escaped(&line));
    }
    text.push_str(
        "\nLatencies count from the intended start of a request. Intervals hold the true value with 95 % \
         confidence.\n",
    );
    text
}

fn table_line(text: &mut String, cells: &[String]) {
    let cells: Vec<String> = cells.iter().map(|cell| escaped(cell)).collect();
    let _ = writeln!(text, "| {} |", cells.join(" | "));
}

/// Text that Markdown leaves as it is: names come from a server, and HTML works in Markdown.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for character in text.chars() {
        match character {
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '#' | '~' => {
                out.push('\\');
                out.push(character);
            }
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            character if character.is_control() => out.push(' '),
            character => out.push(character),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markdown_shows_text_as_it_is() {
        for (text, expected) in [
            ("plain text", "plain text"),
            ("a|b", "a\\|b"),
            ("<img src=x>", "&lt;img src=x&gt;"),
            ("[x](y)", "\\[x\\](y)"),
            ("two\nlines & more", "two lines &amp; more"),
        ] {
            assert_eq!(escaped(text), expected);
        }
    }
}
