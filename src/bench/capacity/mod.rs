//! `bench capacity`: how many users a server carries within given objectives, how sure that is, and what it is that
//! stops more.

pub mod limits;
pub mod presets;
pub mod search;
#[cfg(test)]
mod simulation;

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use self::limits::{limits, shown};
use self::search::{Found, Search, SearchConfig};
use super::load::Pattern;
use super::options::{Axis, CapacityOptions};
use super::report_of::assemble;
use super::results::{
    self, BenchKind, BenchReport, Capacity, Estimate, LittlesLaw, Outcome, Point,
};
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
/// How the end of a search that lost more begins.
const VOID: &str = "the measurement is void";
/// How far users and requests a second may differ from what Little's law makes of each other.
const LITTLE_TOLERANCE: f64 = 0.1;

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
    let allowed = 1.0 - opened.session.objectives().good_share;
    let mut search = Search::new(SearchConfig {
        whole: options.axis == Axis::Users,
        start: options.start,
        min: match options.axis {
            Axis::Users => 1.0,
            Axis::Rate => options.start / 1024.0,
        },
        max: options.max,
        precision: options.precision,
        allowed,
        max_points: options.max_points,
    });
    let mut measured: Vec<(f64, Measured)> = Vec::new();
    let mut ended =
        "the interval is as narrow as asked, and both its ends were confirmed".to_owned();
    let mut voids = 0;
    while let Some(question) = search.next() {
        if opened.session.elapsed() >= options.time_limit {
            ended = format!(
                "the time was over (--time-limit {} s)",
                options.time_limit.as_secs()
            );
            break;
        }
        let spec = spec(options, &opened, &question, measured.len() as u64);
        let found = opened.session.measure(&spec, watcher)?;
        let is_void = found.point.verdict.outcome == Outcome::Void;
        measured.push((question.level, found));
        let (_, found) = &measured[measured.len() - 1];
        // A client that was slow says nothing about the server; once more may help, for ever will not.
        if is_void {
            voids += 1;
            if voids == MAX_VOIDS {
                ended = format!(
                    "{VOID}: {voids} points in a row were void: {}",
                    found.point.verdict.reasons.join("; ")
                );
                break;
            }
            continue;
        }
        voids = 0;
        search.record(&question, found.tally, found.judgement);
    }
    let found = search.found();
    if ended.starts_with(VOID) {
        // Said already.
    } else if measured.len() >= options.max_points {
        ended = format!(
            "as many points were measured as allowed (--max-points {})",
            options.max_points
        );
    } else if found.lower_bound {
        ended = format!(
            "nothing failed up to the greatest load that may be tried (--max {})",
            shown(options.max)
        );
    }
    if let Some((failed, passed)) = found.contradiction {
        ended = format!(
            "{ended}; {} failed at one time and {} passed at another: the server's speed wandered while it was measured",
            shown(failed),
            shown(passed)
        );
    }
    let capacity = answer(options, &opened, &found, &measured, ended);
    let arrivals = match options.axis {
        Axis::Users => results::Arrivals::Users {
            think_seconds: opened.think_seconds(&options.load),
            turns: options.load.turns,
        },
        Axis::Rate => described_arrivals(options.load.arrivals),
    };
    let mut all_settings: BTreeMap<_, _> = settings(&options.load);
    all_settings.insert(
        "by".to_owned(),
        json!(if options.axis == Axis::Users {
            "users"
        } else {
            "rate"
        }),
    );
    all_settings.insert("precision".to_owned(), json!(options.precision));
    all_settings.insert("start".to_owned(), json!(options.start));
    all_settings.insert("max".to_owned(), json!(options.max));
    all_settings.insert(
        "point-seconds".to_owned(),
        json!(options.point.as_secs_f64()),
    );
    all_settings.insert(
        "time-limit".to_owned(),
        json!(options.time_limit.as_secs_f64()),
    );
    all_settings.insert("max-points".to_owned(), json!(options.max_points));
    let points = measured
        .into_iter()
        .map(|(_, measured)| measured.point)
        .collect();
    Ok(assemble(
        BenchKind::Capacity,
        &options.load,
        &opened,
        arrivals,
        all_settings,
        points,
        Some(capacity),
    ))
}

fn spec(
    options: &CapacityOptions,
    opened: &Opened,
    question: &search::Question,
    index: u64,
) -> PointSpec {
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

fn answer(
    options: &CapacityOptions,
    opened: &Opened,
    found: &Found,
    measured: &[(f64, Measured)],
    ended: String,
) -> Capacity {
    let model = &opened.session.config().target.model;
    // The last visit to a load is the one that decided.
    let at = |level: Option<f64>| {
        let level = level?;
        measured
            .iter()
            .rev()
            .find(|(at, _)| *at == level)
            .map(|(_, measured)| &measured.point)
    };
    let (carried, failed) = (at(found.passed), at(found.failed));
    let (first_limit, next_limit) =
        failed.map_or((None, None), |failed| limits(failed, carried, model));
    let think = opened.think_seconds(&options.load);
    let (users, rate) = both(options.axis, found, carried, think);
    let littles_law = carried.and_then(|point| cross_check(point, think));
    let sentence = sentence(
        opened,
        found,
        users,
        rate,
        first_limit.as_ref(),
        next_limit.as_ref(),
        options.axis,
    );
    let is_void = ended.starts_with(VOID);
    let sentence = match is_void {
        true => format!("No answer, {ended}. What was found until then: {sentence}"),
        false => sentence,
    };
    Capacity {
        sentence,
        users,
        requests_per_second: rate,
        lower_bound: found.lower_bound,
        first_limit,
        next_limit,
        littles_law,
        searches: vec![found.capacity.value],
        ended: if is_void || found.is_certain || found.lower_bound {
            ended
        } else {
            format!("{ended}; not both ends of the interval were confirmed")
        },
    }
}

/// Users and requests a second, one of which was searched for. The other follows from Little's law at the load that
/// is carried: users = requests a second x (time to answer + time to think).
fn both(
    axis: Axis,
    found: &Found,
    carried: Option<&Point>,
    think: f64,
) -> (Option<Estimate>, Option<Estimate>) {
    let scaled = |factor: f64| Estimate {
        value: found.capacity.value * factor,
        low: found.capacity.low.map(|low| low * factor),
        high: found.capacity.high.map(|high| high * factor),
    };
    let cycle =
        carried.and_then(|point| Some(point.latencies.end_to_end.as_ref()?.mean? / 1e3 + think));
    match axis {
        Axis::Users => {
            let rate = carried
                .map(|point| point.throughput.requests_per_second.value / point.offered.amount());
            (Some(found.capacity), rate.map(scaled))
        }
        Axis::Rate => (cycle.map(scaled), Some(found.capacity)),
    }
}

/// Of users: how many there were, against what their requests and times say.
fn cross_check(carried: &Point, think: f64) -> Option<LittlesLaw> {
    let results::Offered::Users { users } = carried.offered else {
        return carried.littles_law;
    };
    let mean_seconds = carried.latencies.end_to_end.as_ref()?.mean? / 1e3 + think;
    let requests_per_second = carried.throughput.requests_per_second.value;
    let difference =
        f64::from(users) / (requests_per_second * mean_seconds).max(f64::MIN_POSITIVE) - 1.0;
    let count = (requests_per_second * carried.windows.measured_seconds).max(1.0);
    Some(LittlesLaw {
        in_flight: f64::from(users),
        requests_per_second,
        mean_seconds,
        difference,
        holds: difference.abs() <= LITTLE_TOLERANCE + 2.0 / count.sqrt(),
    })
}

fn sentence(
    opened: &Opened,
    found: &Found,
    users: Option<Estimate>,
    rate: Option<Estimate>,
    first: Option<&results::Limit>,
    next: Option<&results::Limit>,
    axis: Axis,
) -> String {
    let objectives = opened.session.objectives();
    let limits: Vec<String> = objectives
        .limits
        .iter()
        .map(|limit| format!("{} within {} ms", limit.metric.title(), limit.limit_ms))
        .collect();
    let goal = format!(
        "{} for {} % of requests",
        limits.join(" and "),
        shown(objectives.good_share * 100.0)
    );
    let amount = |estimate: Option<Estimate>, unit: &str, whole: bool| {
        estimate.map(|estimate| {
            let show = |value: f64| {
                if whole {
                    format!("{value:.0}")
                } else {
                    shown(value)
                }
            };
            let interval = match (estimate.low, estimate.high) {
                (Some(low), Some(high)) => {
                    format!(" (95 % interval {} to {})", show(low), show(high))
                }
                (Some(low), None) => format!(" (at least {})", show(low)),
                (None, Some(high)) => format!(" (at most {})", show(high)),
                (None, None) => String::new(),
            };
            format!("{} {unit}{interval}", show(estimate.value))
        })
    };
    let (main, other) = match axis {
        Axis::Users => (
            amount(users, "users", true),
            amount(rate, "requests/s", false),
        ),
        Axis::Rate => (
            amount(rate, "requests/s", false),
            amount(users, "users", true),
        ),
    };
    let model = &opened.session.config().target.model;
    let Some(main) = main.filter(|_| found.passed.is_some()) else {
        let least = if axis == Axis::Users {
            "a single user"
        } else {
            "the least load that was tried"
        };
        let why = first.map_or(String::new(), |limit| format!(": {}", limit.explanation));
        return format!("{model} does not carry {least} with {goal}{why}.");
    };
    let at_least = if found.lower_bound { "at least " } else { "" };
    let mut text = format!("{model} carries {at_least}{main}");
    if let Some(other) = other {
        text += &format!(", that is {other},");
    }
    text += &format!(" with {goal}.");
    let proof = |limit: &results::Limit| {
        let bound = limit
            .bound
            .map_or(String::new(), |bound| format!(" of {}", shown(bound)));
        format!(
            "{} ({} {}{bound} {})",
            limit.name,
            limit.counter,
            shown(limit.value),
            limit.unit
        )
    };
    if let Some(first) = first {
        text += &format!(
            " The limit hit first is {}: {}.",
            proof(first),
            first.explanation
        );
    }
    if let Some(next) = next {
        text += &format!(" The next one is {}.", proof(next));
    }
    text
}
