//! Puts a report together, and measures the points of `bench run`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::capacity::limits::shown;
use super::load::Pattern;
use super::options::{LoadOptions, Offer, RunOptions};
use super::results::{
    self, BenchKind, BenchReport, Capacity, MIN_SAMPLES_ABOVE, Objectives, Outcome, Point, SCHEMA,
    SCHEMA_VERSION,
};
use super::run::{Plan, PointSpec, RunError, Watcher};
use super::setup::{Opened, described_arrivals, settings};
use crate::time::unix_seconds;

/// Measures what was asked for, one point after another.
///
/// # Errors
/// There is no server, or the client fails. What the server does wrong is a result.
pub fn run(
    options: &RunOptions,
    serve_with: &[(String, String)],
    watcher: &mut dyn Watcher,
) -> Result<BenchReport, RunError> {
    let opened = Opened::open(&options.load, serve_with)?;
    let patterns: Vec<Pattern> = match &options.offer {
        Offer::Rates(rates) => rates
            .iter()
            .map(|rate| Pattern::Open {
                rate: *rate,
                arrivals: options.load.arrivals,
            })
            .collect(),
        Offer::Users(users) => users
            .iter()
            .map(|users| opened.users(&options.load, *users))
            .collect(),
        Offer::Trace(trace) => vec![Pattern::Trace(trace.clone())],
    };
    let mut points = Vec::new();
    'all: for pattern in &patterns {
        let is_trace = matches!(pattern, Pattern::Trace(_));
        for repeat in 0..options.repeats {
            let spec = PointSpec {
                pattern: pattern.clone(),
                purpose: "asked",
                repeat,
                seed: options.load.seed.wrapping_add((points.len() as u64) << 20),
                ramp: opened.ramp(pattern),
                // A trace has its own beginning.
                warm_up: if is_trace {
                    Duration::ZERO
                } else {
                    options.load.warm_up
                },
                plan: Plan::Fixed {
                    measured: options.duration,
                },
            };
            match opened.session.measure(&spec, watcher) {
                Ok(measured) => points.push(measured.point),
                Err(RunError::Stopped) if !points.is_empty() => break 'all,
                Err(error) => return Err(error),
            }
        }
    }
    let arrivals = match &options.offer {
        Offer::Rates(_) => described_arrivals(options.load.arrivals),
        Offer::Users(_) => results::Arrivals::Users {
            think_seconds: opened.think_seconds(&options.load),
            turns: options.load.turns,
        },
        Offer::Trace(trace) => {
            let file = std::path::Path::new(&trace.name).file_name();
            results::Arrivals::Trace {
                file: file.map_or(String::new(), |name| name.to_string_lossy().into_owned()),
            }
        }
    };
    let mut all_settings = settings(&options.load);
    all_settings.insert("duration".to_owned(), json!(options.duration.as_secs_f64()));
    all_settings.insert("repeats".to_owned(), json!(options.repeats));
    let (asked, measured) = (patterns.len() * options.repeats as usize, points.len());
    let mut report = assemble(
        BenchKind::Run,
        &options.load,
        &opened,
        arrivals,
        all_settings,
        points,
        None,
    );
    if measured < asked {
        let warning = format!("stopped: {measured} of {asked} points were measured");
        report.warnings.push(warning);
    }
    Ok(report)
}

/// What a reader of percentiles wants to know: at which points too few requests were seen for the one that the
/// objectives speak of.
fn few_samples(objectives: &Objectives, points: &[Point]) -> Option<String> {
    let needed = (MIN_SAMPLES_ABOVE / (1.0 - objectives.good_share).max(1e-3) - 1e-6).ceil() as u64;
    let few = points
        .iter()
        .filter(|point| point.counts.completed < needed);
    let few = few.count();
    (few > 0).then(|| {
        format!(
            "{few} of {} points saw fewer than the {needed} completed requests that a percentile of {} % needs; they \
             show lower percentiles. Their verdicts rest on counts of good and bad requests, which need fewer",
            points.len(),
            shown(objectives.good_share * 100.0)
        )
    })
}

/// Everything about a measurement in one object.
pub(super) fn assemble(
    kind: BenchKind,
    options: &LoadOptions,
    opened: &Opened,
    arrivals: results::Arrivals,
    settings: BTreeMap<String, Value>,
    points: Vec<Point>,
    capacity: Option<Capacity>,
) -> BenchReport {
    let mut warnings = opened.warnings();
    let voids = points
        .iter()
        .filter(|point| point.verdict.outcome == Outcome::Void)
        .count();
    if voids > 0 {
        warnings.push(format!(
            "{voids} of {} points are void: see their reasons",
            points.len()
        ));
    }
    warnings.extend(few_samples(opened.session.objectives(), &points));
    let duration = opened.session.elapsed();
    BenchReport {
        schema: SCHEMA.to_owned(),
        schema_version: SCHEMA_VERSION,
        kind,
        label: options.label.clone(),
        started_unix_seconds: unix_seconds().saturating_sub(duration.as_secs()),
        duration_seconds: duration.as_secs_f64(),
        client: opened.client_side(options, arrivals, settings),
        server: opened.server_side(options),
        capacity,
        points,
        warnings,
    }
}
