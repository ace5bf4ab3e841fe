//! What is used up first, told from counters and not guessed.

use crate::bench::results::{Limit, Metric, Objective, Point};

/// A resource is used up from this share on.
const USED_UP: f64 = 0.9;

/// Something there is only so much of, with how much of it is used.
struct Candidate {
    limit: Limit,
    /// Used, by what there is.
    share: f64,
    /// Which objectives suffer when it is used up.
    hurts: &'static [Metric],
}

/// The first limit and the next one: `failed` is the least load beyond the capacity that was measured, `carried`
/// the greatest within it.
pub fn limits(
    failed: &Point,
    carried: Option<&Point>,
    model: &str,
) -> (Option<Limit>, Option<Limit>) {
    let broken = broken_objective(failed);
    let mut candidates = candidates(failed, model);
    let hurts = |candidate: &Candidate| {
        broken.is_none_or(|(objective, _)| candidate.hurts.contains(&objective.metric))
    };
    // What hurts the broken objective comes first, and of that what is used up the most.
    candidates.sort_by(|one, other| {
        let rank = |candidate: &Candidate| {
            (
                hurts(candidate) && candidate.share >= USED_UP,
                candidate.share,
            )
        };
        let ((one_first, one_share), (other_first, other_share)) = (rank(one), rank(other));
        other_first
            .cmp(&one_first)
            .then(other_share.total_cmp(&one_share))
    });
    let first = match (candidates.first(), broken) {
        (Some(found), _) if hurts(found) && found.share >= USED_UP => {
            Some(candidates.remove(0).limit)
        }
        (_, Some((objective, share))) => Some(seen_by_client(failed, objective, share)),
        _ => None,
    };
    let first = first.map(|limit| Limit {
        explanation: explanation(&limit, failed, carried, broken),
        ..limit
    });
    let next = candidates
        .into_iter()
        .next()
        .map(|candidate| candidate.limit);
    (first, next)
}

/// The objective that the fewest requests kept, with their share.
fn broken_objective(failed: &Point) -> Option<(Objective, f64)> {
    let results = failed.goodput.objectives.iter();
    let worst = results.min_by(|one, other| one.share.value.total_cmp(&other.share.value))?;
    (worst.kept < failed.counts.due).then_some((worst.objective, worst.share.value))
}

fn candidates(point: &Point, model: &str) -> Vec<Candidate> {
    const WAITING: &[Metric] = &[
        Metric::TimeToFirstToken,
        Metric::TimeToFirstPreview,
        Metric::EndToEnd,
    ];
    const STEPPING: &[Metric] = &[
        Metric::TimePerOutputToken,
        Metric::LongestStall,
        Metric::EndToEnd,
    ];
    const ALL: &[Metric] = &Metric::ALL;
    let mut found = Vec::new();
    let mut add =
        |name: &str, counter: &str, (value, bound): (f64, f64), unit: &str, what: &str, hurts| {
            if bound > 0.0 {
                let limit = Limit {
                    name: name.to_owned(),
                    counter: counter.to_owned(),
                    value,
                    bound: Some(bound),
                    unit: unit.to_owned(),
                    explanation: what.to_owned(),
                };
                found.push(Candidate {
                    limit,
                    share: value / bound,
                    hurts,
                });
            }
        };
    let seconds: Vec<_> = point
        .timeline
        .seconds
        .iter()
        .filter(|second| {
            (point.timeline.measured_from_seconds..=point.timeline.measured_to_seconds + 1.0)
                .contains(&second.at_seconds)
        })
        .collect();
    let mean = |values: Vec<f64>| {
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    };
    let running = mean(
        seconds
            .iter()
            .filter_map(|second| second.running_rows)
            .collect(),
    );
    let waiting = mean(
        seconds
            .iter()
            .filter_map(|second| second.queued_requests)
            .collect(),
    )
    .unwrap_or(0.0);
    if let Some((running, slots)) = running.zip(gauge(point, "girandole_slots", model)) {
        let what = format!(
            "on average {running:.1} of {slots:.0} slots held rows, and {waiting:.1} requests waited"
        );
        add(
            "slots (--batch-size)",
            "girandole_rows_running",
            (running, slots),
            "rows",
            &what,
            WAITING,
        );
    }
    if let Some(share) = mean(
        seconds
            .iter()
            .filter_map(|second| second.kv_share)
            .collect(),
    ) {
        let what = "running rows have reserved that share of the blocks";
        add(
            "K/V memory (--kv-cache-tokens)",
            "girandole_kv_blocks_used",
            (share, 1.0),
            "share",
            what,
            WAITING,
        );
    }
    let measured = point.windows.measured_seconds;
    // The samples lie up to a second outside of the window on both sides.
    let between = seconds.len().max(1) as f64;
    if let Some(steps) = grown(point, "girandole_step_seconds_sum", model, "") {
        let passes = grown(
            point,
            "girandole_step_seconds_sum",
            model,
            "phase=\"begin\"",
        )
        .unwrap_or(0.0)
            + grown(
                point,
                "girandole_step_seconds_sum",
                model,
                "phase=\"mixed\"",
            )
            .unwrap_or(0.0);
        // Each device has a series of its own, and computes all the time at most.
        let devices = series(point, "girandole_slots", model, "").count().max(1) as f64;
        let share = (steps / between.max(measured) / devices).min(1.0);
        let of_prompts = if steps > 0.0 {
            passes / steps * 100.0
        } else {
            0.0
        };
        let what = format!(
            "the engine computed {:.0} % of the time, {of_prompts:.0} % of that in passes with prompts",
            share * 100.0
        );
        add(
            "compute",
            "girandole_step_seconds",
            (share, 1.0),
            "share of time",
            &what,
            ALL,
        );
    }
    for result in &point.goodput.objectives {
        let objective = result.objective;
        let gap = point.latencies.step_gap.as_ref().and_then(|gap| gap.mean);
        if let (Metric::TimePerOutputToken, Some(gap)) = (objective.metric, gap) {
            let what = format!(
                "the engine took {gap:.1} ms from token to token, of {} ms allowed",
                objective.limit_ms
            );
            let share = (gap, objective.limit_ms);
            add(
                "step time (compute)",
                "girandole_inter_token_seconds",
                share,
                "ms",
                &what,
                STEPPING,
            );
        }
    }
    if point.counts.refused > 0 {
        let share = point.counts.refused as f64 / point.counts.due.max(1) as f64;
        let what = format!("{:.1} % of all requests were refused", share * 100.0);
        add(
            "places in the queue",
            "girandole_requests_rejected_total",
            (1.0, 1.0),
            "share",
            &what,
            ALL,
        );
    }
    if let Some(server) = &point.devices.server {
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        let what = format!(
            "the server's process used {:.2} of {cores:.0} cores",
            server.cores
        );
        add(
            "processor",
            "processor time of the server's process",
            (server.cores, cores),
            "cores",
            &what,
            ALL,
        );
    }
    for gpu in &point.devices.gpus {
        if let Some(share) = gpu.busy_share {
            let what = format!(
                "GPU {} was busy {:.0} % of the time",
                gpu.index,
                share * 100.0
            );
            add(
                "GPU",
                "nvmlDeviceGetUtilizationRates",
                (share, 1.0),
                "share of time",
                &what,
                ALL,
            );
        }
    }
    found
}

/// Where the server tells nothing, the client's own clock has to do.
fn seen_by_client(point: &Point, objective: Objective, kept: f64) -> Limit {
    let latencies = point.latencies.get(objective.metric);
    let estimate = latencies.and_then(|latencies| {
        latencies
            .p99
            .or(latencies.p95)
            .or(latencies.p90)
            .or(latencies.p50)
    });
    let value = estimate
        .map(|estimate| estimate.value)
        .or(latencies.and_then(|latencies| latencies.max));
    Limit {
        name: objective.metric.title().to_owned(),
        counter: format!("{} at the client", objective.metric.key()),
        value: value.unwrap_or(0.0),
        bound: Some(objective.limit_ms),
        unit: "ms".to_owned(),
        explanation: format!("{:.1} % of the requests kept it", kept * 100.0),
    }
}

fn explanation(
    limit: &Limit,
    failed: &Point,
    carried: Option<&Point>,
    broken: Option<(Objective, f64)>,
) -> String {
    let mut text = limit.explanation.clone();
    if let Some((objective, kept)) = broken {
        text = format!(
            "at {} {} only {:.1} % of the requests kept {} within {} ms; {text}",
            shown(failed.offered.amount()),
            failed.offered.unit(),
            kept * 100.0,
            objective.metric.title(),
            objective.limit_ms
        );
        if let Some(carried) = carried
            && let Some(result) = carried
                .goodput
                .objectives
                .iter()
                .find(|result| result.objective == objective)
        {
            let (amount, unit) = (shown(carried.offered.amount()), carried.offered.unit());
            text = format!(
                "{text}; at {amount} {unit} {:.1} % did",
                result.share.value * 100.0
            );
        }
    }
    text
}

/// A load: three digits, and all of whole numbers.
pub fn shown(value: f64) -> String {
    match value {
        value if value.fract() == 0.0 => format!("{value:.0}"),
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

fn series<'a>(
    point: &'a Point,
    name: &'a str,
    model: &str,
    label: &'a str,
) -> impl Iterator<Item = (f64, f64)> + 'a {
    let model = format!("model=\"{model}\"");
    point
        .counters
        .iter()
        .filter(move |counter| {
            counter.name.strip_prefix(name).is_some_and(|labels| {
                (labels.is_empty() || labels.starts_with('{'))
                    && labels.contains(&model)
                    && labels.contains(label)
            })
        })
        .map(|counter| (counter.before, counter.after))
}

fn gauge(point: &Point, name: &str, model: &str) -> Option<f64> {
    let mut values = series(point, name, model, "")
        .map(|(_, after)| after)
        .peekable();
    values.peek().is_some().then(|| values.sum())
}

fn grown(point: &Point, name: &str, model: &str, label: &str) -> Option<f64> {
    let mut grown = series(point, name, model, label)
        .map(|(before, after)| after - before)
        .peekable();
    grown.peek().is_some().then(|| grown.sum())
}
