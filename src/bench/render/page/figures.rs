//! The diagrams over all points: throughput against latency, percentiles and good requests over load,
//! and what one user gets against what all get.

use super::markup::Markup;
use super::plot::{self, Axis, Plot, Size};
use super::scale::Scale;
use crate::bench::render::words;
use crate::bench::results::{BenchReport, Estimate, Metric, Objective, Offered, Outcome, Point};
use crate::bench::table::number;

const WIDE: Size = Size {
    width: 1160.0,
    height: 400.0,
};
const HALF: Size = Size {
    width: 560.0,
    height: 320.0,
};
/// Diagrams of percentiles at most; the table has all latencies.
const MAX_PANELS: usize = 6;

/// The points that diagrams show.
pub(super) struct Shown<'a> {
    report: &'a BenchReport,
    /// All of them.
    all: Vec<&'a Point>,
    /// Those whose load is counted like most, by load: only they can share an axis.
    by_load: Vec<&'a Point>,
}

impl<'a> Shown<'a> {
    pub(super) fn of(report: &'a BenchReport) -> Self {
        let all: Vec<&Point> = report.points.iter().collect();
        let in_users = |point: &&&Point| matches!(point.offered, Offered::Users { .. });
        let users = all.iter().filter(in_users).count();
        let most_in_users = 2 * users > all.len();
        let mut by_load: Vec<&Point> = all
            .iter()
            .copied()
            .filter(|point| in_users(&point) == most_in_users)
            .collect();
        by_load.sort_by(|a, b| a.offered.amount().total_cmp(&b.offered.amount()));
        Shown {
            report,
            all,
            by_load,
        }
    }

    /// How many points stand in no diagram over load.
    pub(super) fn left_out(&self) -> usize {
        self.all.len() - self.by_load.len()
    }

    /// Whether there is anything to draw over load.
    pub(super) fn has_loads(&self) -> bool {
        let ends = self.by_load.first().zip(self.by_load.last());
        ends.is_some_and(|(least, most)| least.offered != most.offered)
    }

    fn load_axis(&self) -> Axis {
        let amounts: Vec<f64> = self
            .by_load
            .iter()
            .map(|point| point.offered.amount())
            .collect();
        let title = match self.by_load.first().map(|point| point.offered.unit()) {
            Some("users") => "users at once",
            _ => "requests due per second",
        };
        Axis {
            scale: Scale::fitting(&amounts),
            title: title.to_owned(),
            write: plot::plain,
        }
    }

    /// The capacity on the load axis, in the unit of the axis.
    fn knee(&self) -> Option<Estimate> {
        let in_users = matches!(self.by_load.first()?.offered, Offered::Users { .. });
        let answer = self
            .report
            .capacity
            .as_ref()
            .and_then(|capacity| match in_users {
                true => capacity.users,
                false => capacity.requests_per_second,
            });
        answer.or_else(|| {
            let best = self.best()?;
            Some(Estimate::point(best.offered.amount()))
        })
    }

    /// The highest load that passed, if a higher one failed.
    pub(super) fn best(&self) -> Option<&'a Point> {
        let passed = |point: &&&Point| point.verdict.outcome == Outcome::Pass;
        let best = self.by_load.iter().rfind(passed)?;
        let beyond = self.by_load.iter().filter(|point| {
            point.verdict.outcome == Outcome::Fail && point.offered.amount() > best.offered.amount()
        });
        (beyond.count() > 0).then_some(*best)
    }

    fn share(&self) -> f64 {
        let objectives = &self.report.client.objectives;
        match objectives.limits.is_empty() {
            true => 0.99,
            false => objectives.good_share,
        }
    }

    fn objective(&self, metric: Metric) -> Option<&'a Objective> {
        let limits = &self.report.client.objectives.limits;
        limits.iter().find(|limit| limit.metric == metric)
    }

    /// The latencies that matter most: those with a limit, else the first one.
    fn leading(&self) -> Vec<Metric> {
        let metrics = words::metrics(&self.all);
        let limited: Vec<Metric> = metrics
            .iter()
            .copied()
            .filter(|metric| self.objective(*metric).is_some())
            .collect();
        if !limited.is_empty() {
            return limited;
        }
        let first = metrics.into_iter().find(|metric| !metric.is_of_client());
        first.into_iter().collect()
    }
}

/// What a point says under the pointer.
fn hint(point: &Point) -> String {
    let (out, unit) = words::output(point);
    format!(
        "{}: {}, {} good, {} {unit}",
        words::offered(&point.offered),
        words::outcome(point.verdict.outcome),
        words::percent(point.goodput.share.value),
        number(out.value)
    )
}

/// The mean at each load, without what is void: the line through repeated points.
fn trend(points: &[(f64, f64, &Point)]) -> Vec<(f64, f64)> {
    let mut loads: Vec<(f64, Vec<(f64, f64)>)> = Vec::new();
    for (x, y, point) in points {
        if point.verdict.outcome == Outcome::Void {
            continue;
        }
        let load = point.offered.amount();
        match loads.last_mut() {
            Some((last, at)) if *last == load => at.push((*x, *y)),
            _ => loads.push((load, vec![(*x, *y)])),
        }
    }
    let mean = |at: &[(f64, f64)], of: fn(&(f64, f64)) -> f64| {
        at.iter().map(of).sum::<f64>() / at.len() as f64
    };
    loads
        .iter()
        .map(|(_, at)| (mean(at, |point| point.0), mean(at, |point| point.1)))
        .collect()
}

/// A figure with its caption.
fn figure(markup: &mut Markup, size: Size, caption: &str, inside: impl FnOnce(&mut Markup)) {
    let class = if size.width > HALF.width {
        "wide"
    } else {
        "half"
    };
    markup.element("figure", &[("class", &class)], |markup| {
        markup.tagged("figcaption", "", caption);
        inside(markup);
    });
}

/// Throughput against latency: one diagram for each latency that has a limit.
pub(super) fn throughput_against_latency(markup: &mut Markup, shown: &Shown<'_>) {
    let metrics = shown.leading();
    let size = if metrics.len() == 1 { WIDE } else { HALF };
    for metric in metrics {
        let name = words::telling_percentile(&shown.by_load, metric, shown.share());
        let points: Vec<(f64, f64, &Point)> = shown
            .by_load
            .iter()
            .filter_map(|point| {
                let latency = words::percentile(point, metric, name)?;
                Some((words::output(point).0.value, latency.value, *point))
            })
            .collect();
        let Some((_, _, first)) = points.first() else {
            continue;
        };
        let (_, unit) = words::output(first);
        let limit = shown.objective(metric);
        let caption = format!("{unit}, all together, against {name} of {}", metric.title());
        figure(markup, size, &caption, |markup| {
            let x = Axis {
                scale: Scale::linear(points.iter().map(|point| point.0)),
                title: unit.to_owned(),
                write: plot::plain,
            };
            let limits = limit.map(|limit| limit.limit_ms);
            let y = Axis {
                scale: Scale::log(points.iter().map(|point| point.1).chain(limits)),
                title: format!("{} {name}", metric.title()),
                write: plot::latency,
            };
            Plot::draw(markup, size, &caption, x, y, |plot, markup| {
                if let Some(limit) = limit {
                    let text = format!("limit {}", words::milliseconds(limit.limit_ms));
                    plot.level(markup, limit.limit_ms, &text);
                }
                let best = shown.best();
                if let Some((x, _, point)) = points
                    .iter()
                    .rfind(|(_, _, point)| best.is_some_and(|best| std::ptr::eq(best, *point)))
                {
                    let text = format!("knee: {}", words::offered(&point.offered));
                    plot.upright(markup, &Estimate::point(*x), &text);
                }
                plot.path(markup, "s1", &trend(&points));
                for (x, y, point) in &points {
                    plot.mark(markup, (*x, *y), point.verdict.outcome, &hint(point));
                }
            });
        });
    }
}

/// Percentiles over load: one diagram a latency.
pub(super) fn percentiles_over_load(markup: &mut Markup, shown: &Shown<'_>) {
    const LINES: [(&str, &str); 4] = [("p50", "s1"), ("p90", "s2"), ("p95", "s3"), ("p99", "s4")];
    let metrics = words::metrics(&shown.by_load);
    let metrics = metrics.into_iter().filter(|metric| !metric.is_of_client());
    for metric in metrics.take(MAX_PANELS) {
        let line = |name: &str| -> Vec<(f64, f64)> {
            let points: Vec<(f64, f64, &Point)> = shown
                .by_load
                .iter()
                .filter_map(|point| {
                    let value = words::percentile(point, metric, name)?;
                    Some((point.offered.amount(), value.value, *point))
                })
                .collect();
            trend(&points)
        };
        let lines = LINES.map(|(name, class)| (name, class, line(name)));
        let all = || {
            lines
                .iter()
                .flat_map(|(_, _, line)| line.iter().map(|point| point.1))
        };
        if all().count() == 0 {
            continue;
        }
        let limit = shown.objective(metric);
        let caption = format!("{} over load", metric.title());
        figure(markup, HALF, &caption, |markup| {
            let y = Axis {
                scale: Scale::log(all().chain(limit.map(|limit| limit.limit_ms))),
                title: metric.title().to_owned(),
                write: plot::latency,
            };
            Plot::draw(
                markup,
                HALF,
                &caption,
                shown.load_axis(),
                y,
                |plot, markup| {
                    if let Some(knee) = shown.knee() {
                        plot.upright(markup, &knee, "");
                    }
                    if let Some(limit) = limit {
                        let text = format!("limit {}", words::milliseconds(limit.limit_ms));
                        plot.level(markup, limit.limit_ms, &text);
                    }
                    let mut ends = Vec::new();
                    for (name, class, line) in &lines {
                        plot.path(markup, class, line);
                        plot.dots(markup, class, line);
                        ends.extend(line.last().map(|last| (*name, *class, *last)));
                    }
                    plot.line_names(markup, &ends);
                },
            );
        });
    }
}

/// The share of good requests over load: what verdicts rest on.
pub(super) fn good_over_load(markup: &mut Markup, shown: &Shown<'_>) {
    if shown.by_load.is_empty() {
        return;
    }
    let wanted = shown.report.client.objectives.good_share;
    let least = shown
        .by_load
        .iter()
        .map(|point| point.goodput.share.low.unwrap_or(point.goodput.share.value))
        .fold(wanted, f64::min);
    // Where all are near 100 %, the axis shows what lies between.
    let from = if least > 0.9 {
        0.9
    } else {
        (least * 5.0).floor() / 5.0
    };
    let caption = "good requests over load, with 95 % intervals";
    figure(markup, HALF, caption, |markup| {
        let y = Axis {
            scale: Scale::between(from, 1.0),
            title: "good requests".to_owned(),
            write: plot::share,
        };
        Plot::draw(
            markup,
            HALF,
            caption,
            shown.load_axis(),
            y,
            |plot, markup| {
                if let Some(knee) = shown.knee() {
                    let text = format!("carries {}", words::tidy(knee.value));
                    plot.upright(markup, &knee, &text);
                }
                plot.level(
                    markup,
                    wanted,
                    &format!("{} wanted", words::percent(wanted)),
                );
                for point in &shown.by_load {
                    let (x, share) = (point.offered.amount(), point.goodput.share);
                    if let Some((low, high)) = share.interval() {
                        plot.whisker(markup, x, low, high);
                    }
                    plot.mark(
                        markup,
                        (x, share.value),
                        point.verdict.outcome,
                        &hint(point),
                    );
                }
            },
        );
    });
}

/// What one user gets against what all get: whoever wants both stands at the upper right.
pub(super) fn per_user_against_all(markup: &mut Markup, shown: &Shown<'_>) {
    let per_user = |point: &Point| {
        let time = point.latencies.get(Metric::TimePerOutputToken)?.p50?;
        (time.value > 0.0).then(|| 1000.0 / time.value)
    };
    let mut points: Vec<(f64, f64, &Point)> = shown
        .by_load
        .iter()
        .filter_map(|point| {
            let all = point.throughput.output_tokens_per_second?;
            Some((per_user(point)?, all.value, *point))
        })
        .collect();
    if points.is_empty() {
        return;
    }
    points.sort_by(|a, b| a.2.offered.amount().total_cmp(&b.2.offered.amount()));
    let caption = "tokens/s of one user (median) against all users together, by load";
    figure(markup, HALF, caption, |markup| {
        let x = Axis {
            scale: Scale::linear(points.iter().map(|point| point.0)),
            title: "tokens/s of one user".to_owned(),
            write: plot::plain,
        };
        let y = Axis {
            scale: Scale::linear(points.iter().map(|point| point.1)),
            title: "tokens/s of all".to_owned(),
            write: plot::plain,
        };
        Plot::draw(markup, HALF, caption, x, y, |plot, markup| {
            plot.path(markup, "s1 front", &front(&points));
            for (x, y, point) in &points {
                plot.mark(markup, (*x, *y), point.verdict.outcome, &hint(point));
            }
            let on_front = front(&points);
            let mut told: Vec<f64> = Vec::new();
            for (x, y, point) in &points {
                let load = point.offered.amount();
                let is_near = |other: &f64| (load / other).ln().abs() < 0.3;
                if on_front.contains(&(*x, *y)) && !told.iter().any(is_near) {
                    plot.beside(markup, (*x, *y), &number_of(&point.offered));
                    told.push(load);
                }
            }
        });
    });
}

fn number_of(offered: &Offered) -> String {
    match offered {
        Offered::Users { users } => users.to_string(),
        Offered::Rate {
            requests_per_second,
        } => format!("{}/s", words::tidy(*requests_per_second)),
    }
}

/// The points that no usable other beats in both, by what one user gets.
fn front(points: &[(f64, f64, &Point)]) -> Vec<(f64, f64)> {
    let mut sorted: Vec<_> = points
        .iter()
        .filter(|(_, _, point)| point.verdict.outcome != Outcome::Void)
        .map(|(x, y, _)| (*x, *y))
        .collect();
    sorted.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.total_cmp(&a.1)));
    let mut most = f64::NEG_INFINITY;
    let mut front = Vec::new();
    for (x, y) in sorted {
        if y > most {
            most = y;
            front.push((x, y));
        }
    }
    front
}
