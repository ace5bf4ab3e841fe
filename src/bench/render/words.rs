//! Figures and findings in words, the same on a page and in Markdown.

use crate::bench::results::{
    BenchReport, Distribution, Estimate, Metric, Objective, Offered, Outcome, Point,
};
use crate::bench::table::number;
use crate::model::text::chat_template::format_utc;

/// Written where a figure is not known.
pub(in crate::bench) const UNKNOWN: &str = "–";

/// A number with three digits that count, fewer where that is all of it: `6.79`, `46`, `0.5`.
pub(in crate::bench) fn tidy(value: f64) -> String {
    let text = number(value);
    let is_exact = text
        .parse()
        .is_ok_and(|written: f64| (written - value).abs() <= 1e-9 * value.abs());
    match text.contains('.') && is_exact {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// `850 ms`, `1.25 s`, `2 min 5 s`.
pub(in crate::bench) fn milliseconds(ms: f64) -> String {
    match ms {
        ms if ms.abs() < 1000.0 => format!("{} ms", tidy(ms)),
        ms => seconds(ms / 1000.0),
    }
}

/// `1.25 s`, `2 min 5 s`, `1 h 3 min`.
pub(in crate::bench) fn seconds(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match seconds {
        seconds if seconds < 120.0 => format!("{} s", tidy(seconds)),
        seconds if seconds < 7200.0 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

/// `98.7 %`. All and nothing are written only where they are meant.
pub(in crate::bench) fn percent(share: f64) -> String {
    let percent = share * 100.0;
    match percent {
        percent if (percent - percent.round()).abs() < 1e-9 => format!("{percent:.0} %"),
        percent if percent > 99.9 => format!("{percent:.3} %"),
        percent if percent > 99.0 => format!("{percent:.2} %"),
        percent => format!("{percent:.1} %"),
    }
}

/// `1.94 GB`
pub(in crate::bench) fn bytes(bytes: u64) -> String {
    crate::bench::table::decimal(bytes as f64, "B")
}

/// `38 to 43`
pub(in crate::bench) fn interval(estimate: &Estimate) -> Option<String> {
    let (low, high) = estimate.interval()?;
    Some(format!("{} to {}", tidy(low), tidy(high)))
}

/// `2026-11-21 20:25 UTC`
pub(in crate::bench) fn date(unix_seconds: u64) -> String {
    format_utc("%F %H:%M UTC", unix_seconds).expect("the format knows its directives")
}

/// `32 users`, `4.50 requests/s`
pub(in crate::bench) fn offered(offered: &Offered) -> String {
    match offered {
        Offered::Users { users: 1 } => "1 user".to_owned(),
        Offered::Users { users } => format!("{users} users"),
        Offered::Rate {
            requests_per_second,
        } => format!("{} requests/s", tidy(*requests_per_second)),
    }
}

/// In a word.
pub(in crate::bench) fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Pass => "pass",
        Outcome::Fail => "fail",
        Outcome::Undecided => "undecided",
        Outcome::Void => "void",
    }
}

/// `99 % of requests with time to first token ≤ 500 ms and time per output token ≤ 50 ms`
pub(in crate::bench) fn objectives(report: &BenchReport) -> String {
    let objectives = &report.client.objectives;
    if objectives.limits.is_empty() {
        return "none: every completed request is good".to_owned();
    }
    let one = |objective: &Objective| {
        let limit = milliseconds(objective.limit_ms);
        format!("{} ≤ {limit}", objective.metric.title())
    };
    let all: Vec<String> = objectives.limits.iter().map(one).collect();
    let share = percent(objectives.good_share);
    format!("{share} of requests with {}", all.join(" and "))
}

/// The percentile that stands for the objectives' share, or the highest below it that most of
/// the points know: with few samples a p99 is not known, and it is not made up.
pub(in crate::bench) fn telling_percentile(
    points: &[&Point],
    metric: Metric,
    share: f64,
) -> &'static str {
    const PERCENTILES: [(&str, f64); 4] =
        [("p99", 0.99), ("p95", 0.95), ("p90", 0.9), ("p50", 0.5)];
    let known = |name: &str| {
        let known = |point: &&&Point| percentile(point, metric, name).is_some();
        points.iter().filter(known).count()
    };
    let have = points
        .iter()
        .filter(|point| point.latencies.get(metric).is_some())
        .count();
    PERCENTILES
        .iter()
        .filter(|(_, of)| *of <= share + 1e-9)
        .find(|(name, _)| 4 * known(name) >= 3 * have.max(1))
        .map_or("p50", |(name, _)| name)
}

/// The percentiles that a table's column shows: the median, and the highest one that most points know.
pub(in crate::bench) fn column_percentiles(points: &[&Point], metric: Metric) -> Vec<&'static str> {
    match telling_percentile(points, metric, 0.99) {
        "p50" => vec!["p50"],
        tail => vec!["p50", tail],
    }
}

/// These percentiles of a latency of a point, as far as they are known.
pub(in crate::bench) fn percentile_cells(
    point: &Point,
    metric: Metric,
    names: &[&str],
) -> Vec<String> {
    let cell = |name: &&str| {
        let value = percentile(point, metric, name);
        value.map_or_else(|| UNKNOWN.to_owned(), |value| milliseconds(value.value))
    };
    names.iter().map(cell).collect()
}

/// One percentile of one latency of a point.
pub(in crate::bench) fn percentile(point: &Point, metric: Metric, name: &str) -> Option<Estimate> {
    named(point.latencies.get(metric)?, name)
}

fn named(distribution: &Distribution, name: &str) -> Option<Estimate> {
    let all = distribution.percentiles();
    all.into_iter().find(|(other, _)| *other == name)?.1
}

/// What came out: tokens, else pictures, else requests, per second.
pub(in crate::bench) fn output(point: &Point) -> (Estimate, &'static str) {
    let throughput = &point.throughput;
    let tokens = throughput.output_tokens_per_second;
    let images = throughput.images_per_second;
    tokens
        .map(|tokens| (tokens, "tokens/s"))
        .or(images.map(|images| (images, "images/s")))
        .unwrap_or((throughput.requests_per_second, "requests/s"))
}

/// The answer in a sentence: that of the search, or what can be said of the points.
pub(in crate::bench) fn headline(report: &BenchReport) -> String {
    if let Some(capacity) = &report.capacity {
        return capacity.sentence.clone();
    }
    let usable = |point: &&Point| point.verdict.outcome != Outcome::Void;
    let most = report
        .points
        .iter()
        .filter(usable)
        .filter(|point| point.verdict.outcome == Outcome::Pass)
        .max_by(|a, b| {
            a.goodput
                .requests_per_second
                .value
                .total_cmp(&b.goodput.requests_per_second.value)
        });
    if let Some(point) = most {
        let (out, unit) = output(point);
        return format!(
            "{} at {} carries the objectives: {} {unit}, {} good.",
            report.server.model,
            offered(&point.offered),
            number(out.value),
            percent(point.goodput.share.value),
        );
    }
    let mut rest = report.points.iter().filter(usable);
    match (rest.next(), rest.count()) {
        (Some(point), 0) => {
            let (out, unit) = output(point);
            let verdict = match point.verdict.outcome {
                Outcome::Fail => "that is not within the objectives",
                _ => "too few requests to tell whether that is within the objectives",
            };
            format!(
                "{} at {}: {} {unit}, {} good; {verdict}.",
                report.server.model,
                offered(&point.offered),
                number(out.value),
                percent(point.goodput.share.value),
            )
        }
        (Some(_), more) => {
            format!(
                "None of {} points is within the objectives beyond doubt.",
                more + 1
            )
        }
        (None, _) if report.points.is_empty() => "Nothing was measured.".to_owned(),
        (None, _) => "No point can be used: all are void.".to_owned(),
    }
}

/// The latencies worth showing: those that any point has samples of.
pub(in crate::bench) fn metrics(points: &[&Point]) -> Vec<Metric> {
    let sampled = |metric: &Metric| {
        let mut found = points
            .iter()
            .filter_map(|point| point.latencies.get(*metric));
        found.any(|distribution| distribution.count > 0)
    };
    Metric::ALL.into_iter().filter(sampled).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_fitting_units() {
        for (ms, text) in [
            (0.5, "0.5 ms"),
            (0.1234, "0.123 ms"),
            (49.96, "50.0 ms"),
            (50.0, "50 ms"),
            (20_000.0, "20 s"),
            (850.0, "850 ms"),
            (1250.0, "1.25 s"),
            (119_000.0, "119 s"),
            (125_000.0, "2 min 5 s"),
            (7_380_000.0, "2 h 3 min"),
        ] {
            assert_eq!(milliseconds(ms), text);
        }
    }

    #[test]
    fn nearly_all_is_not_all() {
        for (share, text) in [
            (1.0, "100 %"),
            (0.999_96, "99.996 %"),
            (0.9949, "99.49 %"),
            (0.5, "50 %"),
            (0.0123, "1.2 %"),
            (0.0, "0 %"),
        ] {
            assert_eq!(percent(share), text);
        }
    }
}
