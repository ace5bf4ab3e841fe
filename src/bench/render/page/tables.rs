//! The tables of the page: points, machines, counters, and the whole configuration.

use serde_json::Value;

use super::markup::Markup;
use super::plot::mark_of;
use crate::bench::render::words::{self, UNKNOWN};
use crate::bench::results::{BenchReport, Counts, Metric, Outcome, Point};
use crate::bench::table::number;

/// Rows of a table of counters at most; the JSON has all.
const MAX_COUNTERS: usize = 60;

/// One line a point.
pub(super) fn points(markup: &mut Markup, report: &BenchReport) {
    let points: Vec<&Point> = report.points.iter().collect();
    let metrics: Vec<(Metric, Vec<&str>)> = words::metrics(&points)
        .into_iter()
        .map(|metric| (metric, words::column_percentiles(&points, metric)))
        .collect();
    let unit = points
        .first()
        .map_or("requests/s", |point| words::output(point).1);
    markup.element("div", &[("class", &"scroll")], |markup| {
        markup.element("table", &[("class", &"points")], |markup| {
            markup.element("thead", &[], |markup| {
                markup.element("tr", &[], |markup| {
                    markup.raw(
                        "<th class=\"left\">load</th><th class=\"left\">verdict</th><th>good</th>",
                    );
                    markup.raw("<th>requests/s</th>");
                    if unit != "requests/s" {
                        markup.tagged("th", "", unit);
                    }
                    for (metric, names) in &metrics {
                        markup.element("th", &[], |markup| {
                            markup.text(metric.title());
                            markup.tagged("small", "", format!("{}, ms", names.join(" · ")));
                        });
                    }
                    markup.raw("<th>bad<small>of requests</small></th>");
                });
            });
            markup.element("tbody", &[], |markup| {
                for point in &points {
                    markup.element(
                        "tr",
                        &[("class", &words::outcome(point.verdict.outcome))],
                        |markup| {
                            markup.tagged("td", "left", words::offered(&point.offered));
                            markup.element("td", &[("class", &"left")], |markup| {
                                verdict(markup, point.verdict.outcome)
                            });
                            let share = point.goodput.share;
                            markup.element("td", &[], |markup| {
                                markup.text(words::percent(share.value));
                                if let Some((low, high)) = share.interval() {
                                    let low = words::percent(low);
                                    let low = low.trim_end_matches(" %");
                                    let range = format!("{low} to {}", words::percent(high));
                                    markup.tagged("small", "", range);
                                }
                            });
                            markup.tagged(
                                "td",
                                "",
                                number(point.throughput.requests_per_second.value),
                            );
                            if unit != "requests/s" {
                                markup.tagged("td", "", number(words::output(point).0.value));
                            }
                            for (metric, names) in &metrics {
                                markup.element("td", &[], |markup| {
                                    for (index, name) in names.iter().enumerate() {
                                        if index > 0 {
                                            markup.raw(" <b>·</b> ");
                                        }
                                        let value = words::percentile(point, *metric, name);
                                        markup.text(value.map_or_else(
                                            || UNKNOWN.to_owned(),
                                            |value| number(value.value),
                                        ));
                                    }
                                    let count =
                                        point.latencies.get(*metric).map_or(0, |found| found.count);
                                    markup.tagged("small", "", format!("of {count}"));
                                });
                            }
                            markup.element("td", &[], |markup| {
                                markup.text(point.counts.bad());
                                markup.tagged("small", "", format!("of {}", point.counts.due));
                            });
                        },
                    );
                    reasons(
                        markup,
                        point,
                        5 + metrics.len() + usize::from(unit != "requests/s"),
                    );
                    markup.line();
                }
            });
        });
    });
}

fn reasons(markup: &mut Markup, point: &Point, columns: usize) {
    let bad = bad_in_words(&point.counts);
    if point.verdict.reasons.is_empty() && bad.is_none() {
        return;
    }
    markup.element("tr", &[("class", &"why")], |markup| {
        markup.element(
            "td",
            &[("colspan", &columns), ("class", &"left")],
            |markup| {
                let all = point.verdict.reasons.iter().chain(&bad);
                for reason in all {
                    markup.tagged("span", "", reason);
                }
            },
        );
    });
}

/// Every latency of a point, with intervals.
pub(super) fn latencies(markup: &mut Markup, point: &Point) {
    let known = Metric::ALL
        .into_iter()
        .filter_map(|metric| Some((metric, point.latencies.get(metric)?)));
    markup.raw("<div class=\"scroll\"><table><thead><tr><th class=\"left\">milliseconds</th>");
    markup.raw("<th>samples</th><th>mean</th><th>p50</th><th>p90</th><th>p95</th><th>p99</th><th>longest</th>");
    markup.raw("</tr></thead><tbody>");
    let one = |value: Option<f64>| value.map_or_else(|| UNKNOWN.to_owned(), number);
    for (metric, found) in known {
        markup.element("tr", &[], |markup| {
            markup.tagged("td", "left title", metric.title());
            markup.tagged("td", "", found.count);
            markup.tagged("td", "", one(found.mean));
            for (_, value) in found.percentiles() {
                markup.element("td", &[], |markup| {
                    markup.text(one(value.map(|value| value.value)));
                    if let Some(interval) = value.and_then(|value| words::interval(&value)) {
                        markup.tagged("small", "", interval);
                    }
                });
            }
            markup.tagged("td", "", one(found.max));
        });
        markup.line();
    }
    markup.raw("</tbody></table></div>");
}

/// `3 refused, 1 timed out`
fn bad_in_words(counts: &Counts) -> Option<String> {
    let kinds = [
        (counts.refused, "refused"),
        (counts.timed_out, "timed out"),
        (counts.truncated, "truncated"),
        (counts.no_finish_reason, "without finish reason"),
        (counts.errors, "other errors"),
    ];
    let told: Vec<String> = kinds
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, name)| format!("{count} {name}"))
        .collect();
    (!told.is_empty()).then(|| told.join(", "))
}

/// The mark and the word.
pub(super) fn verdict(markup: &mut Markup, outcome: Outcome) {
    let (class, path) = mark_of(outcome);
    markup.element(
        "svg",
        &[
            ("class", &"badge"),
            ("viewBox", &"-8 -8 16 16"),
            ("aria-hidden", &"true"),
        ],
        |markup| {
            markup.element("g", &[("class", &class)], |markup| {
                markup.empty("path", &[("d", &path)])
            });
        },
    );
    markup.text(words::outcome(outcome));
}

/// What the machines did at each point, what it took and what it costs. Nothing if nobody knows.
pub(super) fn machines(markup: &mut Markup, report: &BenchReport) {
    let known = |point: &&Point| {
        let devices = &point.devices;
        devices.client.is_some()
            || devices.server.is_some()
            || !devices.gpus.is_empty()
            || point.energy.is_some()
    };
    let points: Vec<&Point> = report.points.iter().filter(known).collect();
    if points.is_empty() {
        return;
    }
    markup.raw("<section><h2>Machines, energy and cost</h2>");
    markup.element("div", &[("class", &"scroll")], |markup| {
        markup.raw("<table><thead><tr><th class=\"left\">load</th><th>client</th><th>server</th>");
        markup.raw("<th class=\"left\">GPU</th><th>energy</th><th>cost</th></tr></thead><tbody>");
        for point in points {
            markup.element("tr", &[], |markup| {
                markup.tagged("td", "left", words::offered(&point.offered));
                for process in [&point.devices.client, &point.devices.server] {
                    let told = process.as_ref().map(|process| {
                        let memory = words::bytes(process.peak_memory_bytes);
                        format!("{} cores, {memory}", number(process.cores))
                    });
                    markup.tagged("td", "", told.unwrap_or_else(|| UNKNOWN.to_owned()));
                }
                markup.element("td", &[("class", &"left")], |markup| gpus(markup, point));
                markup.tagged(
                    "td",
                    "",
                    energy(point).unwrap_or_else(|| UNKNOWN.to_owned()),
                );
                markup.tagged("td", "", cost(point).unwrap_or_else(|| UNKNOWN.to_owned()));
            });
        }
        markup.raw("</tbody></table>");
    });
    markup.raw("</section>\n");
}

fn gpus(markup: &mut Markup, point: &Point) {
    if point.devices.gpus.is_empty() {
        markup.text(UNKNOWN);
    }
    for gpu in &point.devices.gpus {
        let mut told = vec![format!("{} {}", gpu.index, gpu.name)];
        told.extend(
            gpu.busy_share
                .map(|share| format!("{} busy", words::percent(share))),
        );
        told.extend(gpu.peak_memory_bytes.map(|used| match gpu.memory_bytes {
            Some(all) => format!("{} of {}", words::bytes(used), words::bytes(all)),
            None => words::bytes(used),
        }));
        told.extend(gpu.watts.map(|watts| match gpu.limit_watts {
            Some(limit) => format!("{} of {} W", number(watts), number(limit)),
            None => format!("{} W", number(watts)),
        }));
        told.extend(gpu.clock_mhz.map(|clock| format!("{} MHz", number(clock))));
        if !gpu.throttled.is_empty() {
            told.push(format!("slowed down: {}", gpu.throttled.join(", ")));
        }
        markup.tagged("div", "", told.join(", "));
    }
}

pub(super) fn energy(point: &Point) -> Option<String> {
    let energy = point.energy.as_ref()?;
    let per = energy
        .joules_per_output_token
        .map(|joules| format!("{} J per token", number(joules)))
        .or(energy
            .joules_per_image
            .map(|joules| format!("{} J per image", number(joules))))
        .unwrap_or_else(|| format!("{} J", number(energy.joules)));
    Some(format!("{per} ({})", energy.source))
}

pub(super) fn cost(point: &Point) -> Option<String> {
    let cost = point.cost.as_ref()?;
    let currency = &cost.currency;
    let tokens = cost.per_million_output_tokens;
    let images = cost.per_thousand_images;
    let requests = cost.per_million_good_requests;
    let per =
        tokens
            .map(|price| format!("{} {currency} per million tokens", number(price)))
            .or(images.map(|price| format!("{} {currency} per thousand images", number(price))))
            .or(requests
                .map(|price| format!("{} {currency} per million good requests", number(price))));
    Some(per.unwrap_or_else(|| format!("{} {currency} per hour", number(cost.per_hour))))
}

/// The server's counters of a point, folded.
pub(super) fn counters(markup: &mut Markup, point: &Point) {
    if point.counters.is_empty() {
        return;
    }
    markup.raw("<details><summary>Server counters over the measured window</summary>");
    markup.raw(
        "<div class=\"scroll\"><table><thead><tr><th class=\"left\">counter</th><th>before</th>",
    );
    markup.raw("<th>after</th><th>difference</th></tr></thead><tbody>");
    for counter in point.counters.iter().take(MAX_COUNTERS) {
        markup.element("tr", &[], |markup| {
            markup.element("td", &[("class", &"left")], |markup| {
                markup.tagged("code", "", &counter.name)
            });
            for value in [
                counter.before,
                counter.after,
                counter.after - counter.before,
            ] {
                markup.tagged("td", "", number_of_counter(value));
            }
        });
    }
    markup.raw("</tbody></table></div>");
    if let Some(more) = point.counters.len().checked_sub(MAX_COUNTERS + 1) {
        markup.tagged("p", "quiet", format!("{} more are in the JSON.", more + 1));
    }
    markup.raw("</details>\n");
}

/// Counters are whole numbers mostly, and read better so.
fn number_of_counter(value: f64) -> String {
    match value.fract() == 0.0 && value.abs() < 1e15 {
        true => format!("{value:.0}"),
        false => format!("{value:.3}"),
    }
}

/// The whole configuration of both sides, folded.
pub(super) fn configuration(markup: &mut Markup, report: &BenchReport) {
    let parts: [(&'static str, Value); 2] = [
        (
            "Configuration of the client: load, objectives, settings",
            value(&report.client),
        ),
        (
            "Configuration of the server, as far as it told",
            value(&report.server),
        ),
    ];
    for (title, value) in parts {
        markup.element("details", &[], |markup| {
            markup.tagged("summary", "", title);
            let text = serde_json::to_string_pretty(&value).unwrap_or_default();
            markup.element("pre", &[], |markup| markup.text(text));
        });
        markup.line();
    }
}

fn value(part: &impl serde::Serialize) -> Value {
    serde_json::to_value(part).unwrap_or_default()
}
