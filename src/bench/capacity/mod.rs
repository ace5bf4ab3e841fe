//! `bench capacity`: how many users a server carries within given objectives, how sure that is, and what it is that
//! stops more.

mod answer;
pub mod limits;
pub mod presets;
mod repeats;
pub mod search;
#[cfg(test)]
mod simulation;

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use self::answer::{Ending, answer};
use self::repeats::combined;
use self::search::{Found, Question, Search, SearchConfig};
use super::load::Pattern;
use super::options::{Axis, CapacityOptions};
use super::report_of::assemble;
use super::results::{self, BenchKind, BenchReport, Metric, Objectives, Outcome};
use super::run::{Measured, Plan, PointSpec, Rigour, RunError, Watcher};
use super::setup::{Opened, described_arrivals, settings};

/// Quick tests last at least this long, and at least so many requests' times.
const MIN_SCREEN: (Duration, u32) = (Duration::from_secs(2), 2);
/// Confirmations.
const MIN_CONFIRM: (Duration, u32) = (Duration::from_secs(5), 4);
/// A quick test ends after this share of a point's time.
const SCREEN_SHARE: f64 = 0.5;
/// Points in a row that a search may lose to a slow client.
const MAX_VOIDS: u32 = 4;
/// No point is shorter than what a good answer may take, so many times: or nothing due in it is known at its end.
const PATIENCE: f64 = 1.5;
/// From one load to the next until something fails.
const FIRST_GROWTH: f64 = 2.0;
/// In a search that begins where one before it has ended, times the precision.
const NEXT_GROWTH: f64 = 4.0;

/// Searches for the capacity.
///
/// # Errors
/// There is no server, or the client fails. A server that carries nothing is a result.
pub fn run(
    options: &CapacityOptions,
    serve_with: &[(String, String)],
    watcher: &mut dyn Watcher,
) -> Result<BenchReport, RunError> {
    let opened = Opened::open(&options.load, serve_with)?;
    let mut measured: Vec<(f64, Measured)> = Vec::new();
    let mut searches: Vec<Found> = Vec::new();
    let ending = loop {
        let (found, ending) = search(options, &opened, &searches, &mut measured, watcher)?;
        searches.push(found);
        if ending != Ending::Narrow || searches.len() >= options.repeats as usize {
            break ending;
        }
    };
    let found = combined(&searches, options.axis == Axis::Users);
    let mut capacity = answer(options, &opened, &found, &measured, &ending);
    capacity.searches = searches.iter().map(|found| found.capacity.value).collect();
    let arrivals = match options.axis {
        Axis::Users => results::Arrivals::Users {
            think_seconds: opened.think_seconds(&options.load),
            turns: options.load.turns,
        },
        Axis::Rate => described_arrivals(options.load.arrivals),
    };
    let points = measured
        .into_iter()
        .map(|(_, measured)| measured.point)
        .collect();
    Ok(assemble(
        BenchKind::Capacity,
        &options.load,
        &opened,
        arrivals,
        all_settings(options),
        points,
        Some(capacity),
    ))
}

/// One search. What it measured goes to the end of `measured`. A search after others begins where they ended.
fn search(
    options: &CapacityOptions,
    opened: &Opened,
    before: &[Found],
    measured: &mut Vec<(f64, Measured)>,
    watcher: &mut dyn Watcher,
) -> Result<(Found, Ending), RunError> {
    let is_whole = options.axis == Axis::Users;
    let min = match options.axis {
        Axis::Users => 1.0,
        Axis::Rate => options.start / 1024.0,
    };
    let (start, growth) = match before.last().map(|found| found.capacity.value) {
        Some(value) if value > 0.0 => (value, 1.0 + NEXT_GROWTH * options.precision),
        _ => (options.start, FIRST_GROWTH),
    };
    let mut search = Search::new(SearchConfig {
        whole: is_whole,
        start,
        growth,
        min,
        max: options.max,
        precision: options.precision,
        allowed: 1.0 - opened.session.objectives().good_share,
        max_points: options.max_points.saturating_sub(measured.len()),
    });
    let mut voids = 0;
    let mut ending = Ending::Narrow;
    while let Some(question) = search.next() {
        if opened.session.elapsed() >= options.time_limit {
            ending = Ending::TimeOver;
            break;
        }
        let spec = spec(options, opened, &question, measured.len() as u64);
        let found = match opened.session.measure(&spec, watcher) {
            Ok(found) => found,
            Err(RunError::Stopped) if !measured.is_empty() => {
                ending = Ending::Stopped;
                break;
            }
            Err(error) => return Err(error),
        };
        let verdict = &found.point.verdict;
        // A client that was slow says nothing about the server; once more may help, for ever will not.
        if verdict.outcome == Outcome::Void {
            voids += 1;
            if voids == MAX_VOIDS {
                ending = Ending::Void(verdict.reasons.join("; "));
            }
        } else {
            voids = 0;
            search.record(&question, found.tally, found.judgement);
        }
        measured.push((question.level, found));
        if matches!(ending, Ending::Void(_)) {
            break;
        }
    }
    let found = search.found();
    if ending == Ending::Narrow && measured.len() >= options.max_points {
        ending = Ending::PointsOver;
    }
    Ok((found, ending))
}

fn all_settings(options: &CapacityOptions) -> BTreeMap<String, Value> {
    let by = match options.axis {
        Axis::Users => "users",
        Axis::Rate => "rate",
    };
    let mut all = settings(&options.load);
    let own = [
        ("by", json!(by)),
        ("precision", json!(options.precision)),
        ("repeats", json!(options.repeats)),
        ("start", json!(options.start)),
        ("max", json!(options.max)),
        ("point-seconds", json!(options.point.as_secs_f64())),
        ("time-limit", json!(options.time_limit.as_secs_f64())),
        ("max-points", json!(options.max_points)),
    ];
    all.extend(own.map(|(name, value)| (name.to_owned(), value)));
    all
}

/// How long a good answer may be waited for.
fn patience(objectives: &Objectives) -> Duration {
    let waits = [
        Metric::TimeToFirstToken,
        Metric::TimeToFirstPreview,
        Metric::EndToEnd,
    ];
    let limits = objectives.limits.iter();
    let waiting = limits.filter(|limit| waits.contains(&limit.metric));
    let longest_ms = waiting.map(|limit| limit.limit_ms).fold(0.0, f64::max);
    Duration::from_secs_f64(longest_ms / 1e3)
}

fn spec(options: &CapacityOptions, opened: &Opened, question: &Question, index: u64) -> PointSpec {
    let pattern = match options.axis {
        Axis::Users => opened.users(&options.load, question.level as u32),
        Axis::Rate => Pattern::Open {
            rate: question.level,
            arrivals: options.load.arrivals,
        },
    };
    let idle = opened.session.idle();
    let is_screen = matches!(question.rigour, Rigour::Screen { .. });
    let (shortest, requests) = if is_screen { MIN_SCREEN } else { MIN_CONFIRM };
    let max = if is_screen {
        options.point.mul_f64(SCREEN_SHARE)
    } else {
        options.point
    };
    let max = max.max(shortest + patience(opened.session.objectives()).mul_f64(PATIENCE));
    PointSpec {
        purpose: if is_screen { "search" } else { "confirm" },
        repeat: question.repeat,
        // Far apart, so that points differ in everything that is drawn.
        seed: options.load.seed.wrapping_add((index + 1) << 20),
        ramp: opened.ramp(&pattern),
        warm_up: options.load.warm_up.max(idle).min(max),
        plan: Plan::Test {
            rigour: question.rigour,
            earlier: question.earlier,
            min: shortest.max(idle * requests).min(max),
            max,
        },
        pattern,
    }
}
