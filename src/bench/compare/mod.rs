//! Two reports of the same load: which differences are real.
//!
//! A difference is told from chance only where both figures have 95 % intervals and these do not meet.
//! That is stricter than a test at 5 %, on purpose: dozens of figures are compared at once, and a
//! comparison that cries wolf in every tenth nightly run is soon switched off.

mod estimates;
mod table;

use std::path::PathBuf;

use serde::Serialize;

use super::results::{BenchReport, Estimate, Metric, Offered, Outcome, Point};
use estimates::combined;

/// What `bench compare` is to do. Built by the command line only.
#[derive(Clone, Debug, PartialEq)]
pub struct CompareOptions {
    /// The report that is the measure.
    pub before: PathBuf,
    /// The report that is judged.
    pub after: PathBuf,
    /// How much worse a figure may be, as a share of the one before.
    pub allowed: f64,
    /// Whether figures that do not differ are shown, too.
    pub all: bool,
    /// Whether JSON is written instead of a table.
    pub json: bool,
}

/// What became of one figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Beyond the intervals, for the better.
    Better,
    /// Beyond the intervals, for the worse, and by more than is allowed.
    Worse,
    /// Beyond the intervals, for the worse, but within what is allowed.
    Allowed,
    /// The intervals meet.
    Same,
    /// One of them has no interval.
    Unknown,
}

/// One figure in both reports.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// The load; none for the capacity.
    pub load: Option<Offered>,
    /// Which figure.
    pub figure: String,
    /// Its unit.
    pub unit: &'static str,
    /// In the first report.
    pub before: Estimate,
    /// In the second.
    pub after: Estimate,
    /// `after / before - 1`; none where before is zero.
    pub relative: Option<f64>,
    /// What became of it.
    pub change: Change,
}

/// What the comparison says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Judgement {
    /// Nothing is worse by more than is allowed.
    NoRegression,
    /// Something is.
    Regression,
    /// The reports cannot be compared.
    Unusable,
}

impl Judgement {
    /// The program's exit code.
    pub fn exit_code(self) -> u8 {
        match self {
            Judgement::NoRegression => 0,
            Judgement::Regression => 1,
            Judgement::Unusable => 2,
        }
    }
}

/// Two reports, figure by figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// What it says.
    pub judgement: Judgement,
    /// Why the reports cannot be compared; empty if they can.
    pub obstacles: Vec<String>,
    /// What else differs, and may explain a difference.
    pub notes: Vec<String>,
    /// Every figure that both have.
    pub differences: Vec<Difference>,
}

/// Compares them, with `allowed` as the share that a figure may be worse by.
pub fn compare(before: &BenchReport, after: &BenchReport, allowed: f64) -> Comparison {
    let mut obstacles = obstacles(before, after);
    let mut notes = notes(before, after);
    let mut differences = Vec::new();
    if obstacles.is_empty() {
        differences = capacity(before, after, allowed);
        for (load, old, new) in shared_loads(before, after, &mut notes) {
            differences.extend(at_load(load, &old, &new, allowed));
        }
        if differences.is_empty() {
            obstacles.push("they have no load in common that is not void".to_owned());
        }
    }
    let worse = differences
        .iter()
        .any(|found| found.change == Change::Worse);
    let judgement = match (obstacles.is_empty(), worse) {
        (false, _) => Judgement::Unusable,
        (true, true) => Judgement::Regression,
        (true, false) => Judgement::NoRegression,
    };
    Comparison {
        judgement,
        obstacles,
        notes,
        differences,
    }
}

/// Differences in what was asked for: figures of different questions are not compared.
fn obstacles(before: &BenchReport, after: &BenchReport) -> Vec<String> {
    let (old, new) = (&before.client.load, &after.client.load);
    let same = [
        ("kinds of answer", old.task == new.task),
        ("interfaces", old.api == new.api),
        ("arrivals", old.arrivals == new.arrivals),
        ("prompt lengths", old.prompt_tokens == new.prompt_tokens),
        ("answer lengths", old.output_tokens == new.output_tokens),
        ("shared prefixes", old.shared_prefix == new.shared_prefix),
        ("salts", old.unique_salt == new.unique_salt),
        ("mixes of images", old.images == new.images),
        (
            "objectives",
            before.client.objectives.limits == after.client.objectives.limits
                && before.client.objectives.good_share == after.client.objectives.good_share,
        ),
    ];
    let differs = same.into_iter().filter(|(_, same)| !same);
    differs.map(|(name, _)| format!("{name} differ")).collect()
}

/// What else differs.
fn notes(before: &BenchReport, after: &BenchReport) -> Vec<String> {
    let (old, new) = (&before.server, &after.server);
    let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".to_owned());
    let pairs = [
        ("model", old.model.clone(), new.model.clone()),
        ("server", text(&old.software), text(&new.software)),
        ("version", text(&old.version), text(&new.version)),
        ("device", text(&old.device), text(&new.device)),
        (
            "client's processor",
            before.client.machine.processor.clone(),
            after.client.machine.processor.clone(),
        ),
        (
            "client's cores",
            before.client.machine.cores.to_string(),
            after.client.machine.cores.to_string(),
        ),
        (
            "seed",
            before.client.seed.to_string(),
            after.client.seed.to_string(),
        ),
    ];
    let differs = pairs.into_iter().filter(|(_, old, new)| old != new);
    differs
        .map(|(name, old, new)| format!("the {name} differs: {old} and {new}"))
        .collect()
}

fn capacity(before: &BenchReport, after: &BenchReport, allowed: f64) -> Vec<Difference> {
    let (Some(old), Some(new)) = (&before.capacity, &after.capacity) else {
        return Vec::new();
    };
    let figures = [
        ("users", old.users.zip(new.users)),
        (
            "requests/s",
            old.requests_per_second.zip(new.requests_per_second),
        ),
    ];
    let known = figures
        .into_iter()
        .filter_map(|(unit, pair)| Some((unit, pair?)));
    known
        .map(|(unit, pair)| {
            difference(
                None,
                "capacity".to_owned(),
                unit,
                pair,
                Better::More,
                allowed,
            )
        })
        .collect()
}

/// Points at the same load in both, without those that are void.
fn shared_loads<'a>(
    before: &'a BenchReport,
    after: &'a BenchReport,
    notes: &mut Vec<String>,
) -> Vec<(Offered, Vec<&'a Point>, Vec<&'a Point>)> {
    let usable = |report: &'a BenchReport, load: Offered| -> Vec<&'a Point> {
        let points = report.points.iter();
        let usable = points.filter(|point| point.verdict.outcome != Outcome::Void);
        usable.filter(|point| point.offered == load).collect()
    };
    let mut loads: Vec<Offered> = Vec::new();
    for point in &before.points {
        if !loads.contains(&point.offered) {
            loads.push(point.offered);
        }
    }
    let void = |report: &BenchReport| {
        let void = report
            .points
            .iter()
            .filter(|point| point.verdict.outcome == Outcome::Void);
        void.count()
    };
    for (name, count) in [("first", void(before)), ("second", void(after))] {
        if count > 0 {
            notes.push(format!(
                "void points left out of the {name} report: {count}"
            ));
        }
    }
    loads.sort_by(|a, b| a.amount().total_cmp(&b.amount()));
    let both = loads
        .into_iter()
        .map(|load| (load, usable(before, load), usable(after, load)));
    both.filter(|(_, old, new)| !old.is_empty() && !new.is_empty())
        .collect()
}

/// Which way is better.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Better {
    More,
    Less,
}

type Figure<'a> = (
    String,
    &'static str,
    Better,
    Box<dyn Fn(&Point) -> Option<Estimate> + 'a>,
);

fn figures() -> Vec<Figure<'static>> {
    let mut figures: Vec<Figure<'static>> = vec![
        (
            "good requests".to_owned(),
            "share",
            Better::More,
            Box::new(|point| Some(point.goodput.share)),
        ),
        (
            "throughput".to_owned(),
            "requests/s",
            Better::More,
            Box::new(|point| Some(point.throughput.requests_per_second)),
        ),
        (
            "throughput".to_owned(),
            "tokens/s",
            Better::More,
            Box::new(|point| point.throughput.output_tokens_per_second),
        ),
        (
            "throughput".to_owned(),
            "images/s",
            Better::More,
            Box::new(|point| point.throughput.images_per_second),
        ),
    ];
    // The client's lag says nothing about the server.
    let metrics = Metric::ALL
        .into_iter()
        .filter(|metric| !metric.is_of_client());
    for metric in metrics {
        for index in 0..4 {
            let name = ["p50", "p90", "p95", "p99"][index];
            figures.push((
                format!("{} {name}", metric.title()),
                "ms",
                Better::Less,
                Box::new(move |point| point.latencies.get(metric)?.percentiles()[index].1),
            ));
        }
    }
    figures.push((
        "energy".to_owned(),
        "J/token",
        Better::Less,
        Box::new(|point| {
            point
                .energy
                .as_ref()?
                .joules_per_output_token
                .map(Estimate::point)
        }),
    ));
    figures.push((
        "energy".to_owned(),
        "J/image",
        Better::Less,
        Box::new(|point| point.energy.as_ref()?.joules_per_image.map(Estimate::point)),
    ));
    figures
}

fn at_load(load: Offered, old: &[&Point], new: &[&Point], allowed: f64) -> Vec<Difference> {
    let mut found = Vec::new();
    for (name, unit, better, get) in figures() {
        let all = |points: &[&Point]| {
            let values: Vec<Estimate> = points.iter().filter_map(|point| get(point)).collect();
            combined(&values)
        };
        if let Some(pair) = all(old).zip(all(new)) {
            found.push(difference(Some(load), name, unit, pair, better, allowed));
        }
    }
    found
}

fn difference(
    load: Option<Offered>,
    figure: String,
    unit: &'static str,
    (before, after): (Estimate, Estimate),
    better: Better,
    allowed: f64,
) -> Difference {
    let relative = (before.value != 0.0).then(|| after.value / before.value - 1.0);
    let change = match (before.interval(), after.interval()) {
        (Some((old_low, old_high)), Some((new_low, new_high))) => {
            let (more, less) = (new_low > old_high, new_high < old_low);
            let improved = match better {
                Better::More => more,
                Better::Less => less,
            };
            // From zero to something is more than any share.
            let by = relative.map_or(f64::INFINITY, f64::abs);
            match (more || less, improved) {
                (false, _) => Change::Same,
                (true, true) => Change::Better,
                // 12 % of 100 is 112 to within rounding.
                (true, false) if by > allowed + 1e-9 => Change::Worse,
                (true, false) => Change::Allowed,
            }
        }
        _ => Change::Unknown,
    };
    Difference {
        load,
        figure,
        unit,
        before,
        after,
        relative,
        change,
    }
}

#[cfg(test)]
mod tests;
