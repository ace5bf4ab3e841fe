//! One HTML page that needs nothing else: style and diagrams are in it, there is no script, and its
//! content security policy forbids the browser to fetch anything. Light and dark, on screen and paper.

mod figures;
mod markup;
mod plot;
mod scale;
mod tables;
mod timeline;

use markup::Markup;

use super::markdown::{law, setup_lines, title};
use super::words;
use crate::bench::results::{BenchReport, Capacity, Estimate, Outcome, Point};
use figures::Shown;

const STYLE: &str = include_str!("page.css");

/// From this many characters on, a headline is set as text.
const LONG_HEADLINE: usize = 180;

/// Timelines that are drawn, the main one included; others are in the JSON.
const MAX_TIMELINES: usize = 24;

/// The page.
pub fn page(report: &BenchReport) -> String {
    let mut markup = Markup::default();
    markup.raw("<!DOCTYPE html>\n");
    markup.element(
        "html",
        &[("lang", &"en"), ("xmlns", &"http://www.w3.org/1999/xhtml")],
        |markup| {
            head(markup, report);
            markup.element("body", &[], |markup| {
                markup.element("main", &[], |markup| content(markup, report));
            });
        },
    );
    markup.line();
    markup.finish()
}

fn head(markup: &mut Markup, report: &BenchReport) {
    markup.element("head", &[], |markup| {
        markup.raw("<meta charset=\"utf-8\"/>");
        markup.raw(
            "<meta http-equiv=\"Content-Security-Policy\" \
             content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\"/>",
        );
        markup.raw("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>");
        markup.raw("<meta name=\"color-scheme\" content=\"light dark\"/>");
        markup.tagged("title", "", title(report));
        markup.element("style", &[], |markup| markup.raw(STYLE));
    });
    markup.line();
}

fn content(markup: &mut Markup, report: &BenchReport) {
    let shown = Shown::of(report);
    header(markup, report);
    if shown.has_loads() {
        over_load(markup, report, &shown);
    }
    let main = shown.best().or(report.points.last());
    if let Some(point) = main {
        markup.element("section", &[], |markup| {
            markup.element("h2", &[], |markup| {
                markup.text(format!("Latencies at {}", words::offered(&point.offered)));
            });
            tables::latencies(markup, point);
        });
        markup.line();
    }
    timelines(markup, report, shown.best());
    markup.element("section", &[], |markup| {
        markup.raw("<h2>All points</h2>");
        tables::points(markup, report);
    });
    markup.line();
    tables::machines(markup, report);
    markup.element("section", &[], |markup| {
        markup.raw("<h2>Setup</h2>");
        setup(markup, report);
        tables::configuration(markup, report);
    });
    markup.raw("<footer><p>Latencies count from the intended start of a request, so a late client cannot hide a slow \
                server. Intervals hold the true value with 95 % confidence.</p></footer>");
}

/// The diagrams that tell loads apart.
fn over_load(markup: &mut Markup, report: &BenchReport, shown: &Shown<'_>) {
    markup.element("section", &[], |markup| {
        markup.raw("<h2>Throughput against latency</h2>");
        legend(markup, report);
        markup.element("div", &[("class", &"grid")], |markup| {
            figures::throughput_against_latency(markup, shown);
        });
        markup.element("div", &[("class", &"grid")], |markup| {
            figures::good_over_load(markup, shown);
            figures::per_user_against_all(markup, shown);
        });
        if shown.left_out() > 0 {
            let text = format!(
                "{} points with a load of another kind are in the table only.",
                shown.left_out()
            );
            markup.tagged("p", "quiet", text);
        }
    });
    markup.line();
    markup.element("section", &[], |markup| {
        markup.raw("<h2>Percentiles over load</h2>");
        markup.raw("<p class=\"quiet\">A percentile is shown only where at least five samples lie above it.</p>");
        markup.element("div", &[("class", &"grid")], |markup| {
            figures::percentiles_over_load(markup, shown);
        });
    });
    markup.line();
}

fn header(markup: &mut Markup, report: &BenchReport) {
    markup.element("header", &[], |markup| {
        markup.tagged("p", "over name", title(report));
        if let Some(capacity) = &report.capacity {
            answer(markup, report, capacity);
        }
        let headline = words::headline(report);
        let class = match headline.chars().count() {
            0..=LONG_HEADLINE => "short",
            _ => "long",
        };
        markup.tagged("h1", class, headline);
        markup.element("p", &[("class", &"quiet")], |markup| {
            markup.text(format!("Good is {}.", words::objectives(report)));
        });
        for warning in &report.warnings {
            markup.tagged("p", "warning", warning);
        }
        if let Some(capacity) = &report.capacity {
            cards(markup, report, capacity);
        }
    });
    markup.line();
}

/// The number that everybody looks for first.
fn answer(markup: &mut Markup, report: &BenchReport, capacity: &Capacity) {
    let rate = report.client.load.task;
    let unit = match rate {
        crate::bench::results::Task::Text => "requests per second",
        crate::bench::results::Task::Image => "images requested per second",
    };
    let at_least = if capacity.lower_bound { "≥ " } else { "" };
    let mut one = |estimate: &Estimate, unit: &str| {
        markup.element("div", &[("class", &"answer")], |markup| {
            markup.element("strong", &[], |markup| {
                markup.text(at_least);
                markup.text(words::tidy(estimate.value));
            });
            markup.element("span", &[], |markup| {
                markup.tagged("b", "", unit);
                if let Some(interval) = words::interval(estimate) {
                    markup.tagged("small", "", format!("95 % interval {interval}"));
                }
            });
        });
    };
    if let Some(users) = &capacity.users {
        one(users, "users");
    }
    if let Some(requests) = &capacity.requests_per_second {
        one(requests, unit);
    }
}

fn cards(markup: &mut Markup, report: &BenchReport, capacity: &Capacity) {
    markup.element("div", &[("class", &"cards")], |markup| {
        let limits = [
            ("First limit", &capacity.first_limit),
            ("Next limit", &capacity.next_limit),
        ];
        for (title, limit) in limits {
            let Some(limit) = limit else {
                continue;
            };
            card(markup, title, &limit.name, |markup| {
                let bound = limit.bound.map(|bound| format!(" of {}", words::tidy(bound)));
                let value = format!("{}{} {}", words::tidy(limit.value), bound.unwrap_or_default(), limit.unit);
                if let Some(bound) = limit.bound.filter(|bound| *bound > 0.0) {
                    let share = (limit.value / bound).clamp(0.0, 1.0);
                    let width = format!("{:.1}", share * 100.0);
                    markup.raw("<svg class=\"meter\" viewBox=\"0 0 100 4\" preserveAspectRatio=\"none\" aria-hidden=\"true\">");
                    markup.raw("<rect class=\"meter-all\" width=\"100\" height=\"4\"/>");
                    markup.empty("rect", &[("class", &"meter-used"), ("width", &width), ("height", &"4")]);
                    markup.raw("</svg>");
                }
                markup.element("p", &[], |markup| {
                    markup.text(value);
                    markup.raw(" ");
                    markup.tagged("code", "", &limit.counter);
                });
                markup.tagged("p", "quiet", &limit.explanation);
            });
        }
        if let Some(found) = &capacity.littles_law {
            let name = if found.holds { "holds" } else { "does not hold" };
            card(markup, "Little's law", name, |markup| markup.tagged("p", "quiet", law(found)));
        }
        let best = report.points.iter().rfind(|point| point.verdict.outcome == Outcome::Pass);
        let told = best.map(|point| (tables::energy(point), tables::cost(point)));
        if let Some((energy, cost)) = told.filter(|(energy, cost)| energy.is_some() || cost.is_some()) {
            let name = cost.as_ref().or(energy.as_ref()).cloned().unwrap_or_default();
            card(markup, "At the capacity", &name, |markup| {
                if let (Some(energy), Some(_)) = (energy, cost) {
                    markup.tagged("p", "quiet", energy);
                }
            });
        }
    });
}

fn card(markup: &mut Markup, over: &'static str, name: &str, inside: impl FnOnce(&mut Markup)) {
    markup.element("div", &[("class", &"card")], |markup| {
        markup.tagged("p", "over", over);
        markup.tagged("h3", "", name);
        inside(markup);
    });
}

/// What the marks mean; only those that occur.
fn legend(markup: &mut Markup, report: &BenchReport) {
    let all = [
        (Outcome::Pass, "within the objectives, beyond doubt"),
        (Outcome::Fail, "not within the objectives"),
        (Outcome::Undecided, "too few requests to tell"),
        (Outcome::Void, "not to be used"),
    ];
    markup.element("p", &[("class", &"legend quiet")], |markup| {
        for (outcome, meaning) in all {
            if report
                .points
                .iter()
                .any(|point| point.verdict.outcome == outcome)
            {
                markup.element("span", &[], |markup| {
                    tables::verdict(markup, outcome);
                    markup.text(format!(": {meaning}"));
                });
            }
        }
    });
}

/// The point at the capacity open, the others folded.
fn timelines(markup: &mut Markup, report: &BenchReport, best: Option<&Point>) {
    let with = |point: &&Point| !point.timeline.seconds.is_empty();
    let points: Vec<&Point> = report.points.iter().filter(with).collect();
    let Some(main) = best
        .filter(|point| with(point))
        .or_else(|| points.last().copied())
    else {
        return;
    };
    markup.element("section", &[], |markup| {
        markup.element("h2", &[], |markup| {
            markup.text(format!("Timeline at {}", words::offered(&main.offered)));
        });
        markup.raw("<p class=\"quiet\">Shaded: warm-up and drain, which do not count.</p>");
        timeline::timeline(markup, main);
        tables::counters(markup, main);
        let others = points.iter().filter(|point| !std::ptr::eq(**point, main));
        for point in others.take(MAX_TIMELINES - 1) {
            markup.element("details", &[], |markup| {
                markup.element("summary", &[], |markup| {
                    markup.text(format!("Timeline at {} (", words::offered(&point.offered)));
                    markup.text(words::outcome(point.verdict.outcome));
                    markup.raw(")");
                });
                timeline::timeline(markup, point);
                tables::counters(markup, point);
            });
            markup.line();
        }
        if points.len() > MAX_TIMELINES {
            let more = points.len() - MAX_TIMELINES;
            markup.tagged(
                "p",
                "quiet",
                format!("{more} more timelines are in the JSON."),
            );
        }
    });
    markup.line();
}

fn setup(markup: &mut Markup, report: &BenchReport) {
    markup.element("dl", &[], |markup| {
        for (name, line) in setup_lines(report) {
            markup.tagged("dt", "", name);
            markup.tagged("dd", if name == "command" { "mono" } else { "" }, line);
        }
    });
}
