//! What a search has found, in words and figures.

use super::MAX_VOIDS;
use super::limits::{limits, shown};
use super::search::Found;
use crate::bench::options::{Axis, CapacityOptions};
use crate::bench::results::{self, Capacity, Estimate, LittlesLaw, Point};
use crate::bench::run::Measured;
use crate::bench::setup::Opened;

/// How far users and requests a second may differ from what Little's law makes of each other.
const LITTLE_TOLERANCE: f64 = 0.1;

/// Why a search has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// It knows what it was asked for.
    Narrow,
    TimeOver,
    PointsOver,
    /// By a signal.
    Stopped,
    /// The client was slow again and again, for these reasons.
    Void(String),
}

impl Ending {
    fn told(&self, options: &CapacityOptions, found: &Found) -> String {
        match self {
            Ending::Void(reasons) => {
                format!("the measurement is void: {MAX_VOIDS} points in a row were void: {reasons}")
            }
            Ending::Stopped => "it was stopped".to_owned(),
            Ending::TimeOver => format!(
                "the time was over (--time-limit {} s)",
                options.time_limit.as_secs()
            ),
            Ending::PointsOver => format!(
                "as many points were measured as allowed (--max-points {})",
                options.max_points
            ),
            Ending::Narrow if found.lower_bound => format!(
                "nothing failed up to the greatest load that may be tried (--max {})",
                shown(options.max)
            ),
            Ending::Narrow if found.is_certain => {
                "both ends of the interval were confirmed".to_owned()
            }
            Ending::Narrow => "nothing more can be told".to_owned(),
        }
    }
}

/// What the searches have found, in words and figures.
pub(super) fn answer(
    options: &CapacityOptions,
    opened: &Opened,
    found: &Found,
    measured: &[(f64, Measured)],
    ending: &Ending,
) -> Capacity {
    let mut ended = ending.told(options, found);
    if !found.is_certain && !found.lower_bound && !matches!(ending, Ending::Void(_)) {
        ended += "; not both ends of the interval were confirmed";
    }
    if let Some((failed, passed)) = found.contradiction {
        ended = format!(
            "{ended}; {} failed at one time and {} passed at another: the server's speed wandered while it was measured",
            shown(failed),
            shown(passed)
        );
    }
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
    let sentence = match ending {
        Ending::Void(_) => format!("No answer, {ended}. What was found until then: {sentence}"),
        _ => sentence,
    };
    Capacity {
        sentence,
        users,
        requests_per_second: rate,
        lower_bound: found.lower_bound,
        first_limit,
        next_limit,
        littles_law,
        searches: Vec::new(),
        ended,
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
        let Some(failed) = found.failed else {
            return "Nothing was measured to its end.".to_owned();
        };
        let too_much = match axis {
            Axis::Users if failed <= 1.0 => "a single user".to_owned(),
            Axis::Users => format!("{failed:.0} users"),
            Axis::Rate => format!("{} requests/s", shown(failed)),
        };
        let why = first.map_or(String::new(), |limit| format!(": {}", limit.explanation));
        return format!(
            "{model} does not carry {too_much} with {goal}{why}. Less was not seen to be carried."
        );
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
