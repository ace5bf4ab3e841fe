//! From what happened at a point to what the report says about it.

mod devices;
mod timeline;
mod verdict;

use std::collections::BTreeMap;
use std::time::Duration;

use super::device::GpuFacts;
use super::drive::Driven;
use super::frames::FrameSecond;
use super::recorder::{Judged, is_good};
use super::sampler::Sample;
use super::sequential::{batch_means, share};
use super::session::SessionConfig;
use super::{Measured, PointSpec, Tally, steady};
use crate::bench::load::Pattern;
use crate::bench::load::asks::Load;
use crate::bench::results::{
    CacheUse, Counter, Counts, Distribution, ErrorCount, Estimate, Goodput, Latencies, LittlesLaw,
    Metric, ObjectiveResult, Objectives, Offered, Point, SteadyState, Throughput, Windows,
};
use crate::bench::target::counters::Counters;
use crate::bench::target::{End, Observation};
use crate::time::Time;

/// Parts of a window whose rates give its interval.
const PARTS: usize = 10;
/// The client may be late by this share of the tightest objective.
const MAX_LAG_SHARE: f64 = 0.01;
/// Of prompt tokens, in a cache without being asked for.
const MAX_CACHED_SHARE: f64 = 0.01;
/// Little's law holds within this, and two standard errors of a Poisson number.
const LITTLE_TOLERANCE: f64 = 0.05;
/// Kinds of errors that are told apart.
const MAX_ERROR_KINDS: usize = 15;

/// What was seen beside the requests.
pub(super) struct Surroundings<'a> {
    pub(super) samples: &'a [Sample],
    pub(super) gpus: &'a [GpuFacts],
    pub(super) package_ranges: Vec<f64>,
    pub(super) model: &'a str,
    pub(super) since_start: Duration,
}

/// All that the parts of a summary look at.
struct Summary<'a> {
    driven: &'a Driven,
    config: &'a SessionConfig,
    around: &'a Surroundings<'a>,
    from: Time,
    to: Time,
    /// Requests that were due in the window and have ended.
    due: Vec<&'a Observation>,
    /// Intended starts of those that have not.
    pending: Vec<Time>,
    /// The samples nearest to the window's ends.
    samples: &'a [Sample],
}

pub(super) fn summarise(
    spec: &PointSpec,
    driven: Driven,
    config: &SessionConfig,
    around: &Surroundings<'_>,
) -> Measured {
    let (from, to) = driven.window;
    let window = from..to;
    let ended = driven.recorder.all_ended().iter();
    let mut due: Vec<&Observation> = ended
        .filter(|seen| window.contains(&seen.intended))
        .collect();
    due.sort_by_key(|seen| seen.intended);
    let summary = Summary {
        due,
        pending: driven.recorder.pending_in(from, to),
        samples: within(around.samples, from, to),
        driven: &driven,
        config,
        around,
        from,
        to,
    };
    let judged = driven
        .recorder
        .judged(&config.objectives, from, to, driven.drained);
    let tally = Tally::of(&Judged::used(&judged));
    let latencies = summary.latencies();
    let counts = summary.counts();
    let goodput = summary.goodput(&tally);
    let cache = summary.cache(&counts);
    let seconds = |later: Time, earlier: Time| later.saturating_since(earlier).as_secs_f64();
    let energy = summary.energy(&counts);
    let point = Point {
        purpose: spec.purpose.to_owned(),
        repeat: spec.repeat,
        offered: offered(&spec.pattern),
        started_seconds: around.since_start.as_secs_f64(),
        windows: Windows {
            warm_up_seconds: seconds(from, driven.start),
            measured_seconds: seconds(to, from),
            drain_seconds: seconds(driven.drained, to),
            steady: SteadyState {
                reached: driven.steady_since.is_some() && !driven.rising,
                since_seconds: driven
                    .steady_since
                    .map(|since| seconds(since, driven.start)),
                method: steady::METHOD.to_owned(),
            },
        },
        verdict: summary.verdict(&tally, &counts, &goodput, cache.as_ref()),
        throughput: summary.throughput(),
        littles_law: summary.littles_law(),
        counters: summary.counters(),
        timeline: summary.timeline(),
        devices: summary.devices(),
        cost: summary.cost(&counts, &goodput),
        energy,
        cache,
        latencies,
        counts,
        goodput,
    };
    Measured {
        judgement: driven.judgement,
        point,
        tally,
    }
}

fn offered(pattern: &Pattern) -> Offered {
    match pattern {
        Pattern::Open { rate, .. } => Offered::Rate {
            requests_per_second: *rate,
        },
        Pattern::Trace(trace) => Offered::Rate {
            requests_per_second: trace.requests.len() as f64
                / trace.length().as_secs_f64().max(1.0),
        },
        Pattern::Closed { users, .. } => Offered::Users { users: *users },
    }
}

/// The samples from the last one before the window to the first one behind it.
fn within(samples: &[Sample], from: Time, to: Time) -> &[Sample] {
    let first = samples
        .partition_point(|sample| sample.at <= from)
        .saturating_sub(1);
    let last = samples.partition_point(|sample| sample.at < to);
    &samples[first..(last + 1).min(samples.len())]
}

impl Summary<'_> {
    fn seconds(&self) -> f64 {
        self.to.saturating_since(self.from).as_secs_f64()
    }

    fn before_and_after(&self) -> Option<(&Counters, &Counters)> {
        let (first, last) = (self.samples.first()?, self.samples.last()?);
        first.counters.as_ref().zip(last.counters.as_ref())
    }

    fn counts(&self) -> Counts {
        let mut counts = Counts {
            due: (self.due.len() + self.pending.len()) as u64,
            // The client gave them up when nothing more was to be learnt from them.
            timed_out: self.pending.len() as u64,
            ..Counts::default()
        };
        let mut kinds: BTreeMap<String, u64> = BTreeMap::new();
        for seen in &self.due {
            match seen.ended {
                End::Completed => {
                    counts.completed += 1;
                    counts.prompt_tokens += u64::from(seen.prompt_tokens.unwrap_or(0));
                    counts.output_tokens += u64::from(seen.output_tokens);
                    counts.images += u64::from(seen.images);
                }
                End::Refused => counts.refused += 1,
                End::TimedOut => counts.timed_out += 1,
                End::Truncated => counts.truncated += 1,
                End::NoFinishReason => counts.no_finish_reason += 1,
                End::Error(kind) => {
                    counts.errors += 1;
                    let full =
                        kinds.len() >= MAX_ERROR_KINDS && !kinds.contains_key(&kind.to_string());
                    let name = if full {
                        "other".to_owned()
                    } else {
                        kind.to_string()
                    };
                    *kinds.entry(name).or_default() += 1;
                }
            }
        }
        counts.error_kinds = kinds
            .into_iter()
            .map(|(kind, count)| ErrorCount { kind, count })
            .collect();
        counts
    }

    fn latencies(&self) -> Latencies {
        let of = |metric: Metric, all: bool| {
            let counted = self.due.iter().filter(|seen| all || seen.completed());
            let mut samples: Vec<f64> =
                counted.filter_map(|seen| seen.latency_ms(metric)).collect();
            (!samples.is_empty()).then(|| Distribution::of(&mut samples))
        };
        let draws = self.config.target.draws;
        let text = |metric: Metric| if draws { None } else { of(metric, false) };
        Latencies {
            client_lag: of(Metric::ClientLag, true),
            reading_lag: self.reading_lag(),
            time_to_first_token: text(Metric::TimeToFirstToken),
            time_to_first_preview: of(Metric::TimeToFirstPreview, false),
            time_per_output_token: text(Metric::TimePerOutputToken),
            step_gap: self.step_gap(),
            frame_gap: self.frame_gap(),
            longest_stall: of(Metric::LongestStall, false),
            end_to_end: of(Metric::EndToEnd, false),
        }
    }

    /// All through the point: a client that was late before the window is none to be believed in it.
    fn reading_lag(&self) -> Option<Distribution> {
        let micros = self.driven.reading_lag.iter();
        let mut samples: Vec<f64> = micros.map(|micros| f64::from(*micros) / 1e3).collect();
        (!samples.is_empty()).then(|| Distribution::of(&mut samples))
    }

    /// Between tokens of a row, at the engine's step: only the server knows.
    fn step_gap(&self) -> Option<Distribution> {
        let (before, after) = self.before_and_after()?;
        let name = match self.config.target.draws {
            true => "girandole_step_seconds",
            false => "girandole_inter_token_seconds",
        };
        after.distribution_since(before, name, self.around.model)
    }

    fn frame_seconds(&self) -> Vec<FrameSecond> {
        let index = |time: Time| time.saturating_since(self.driven.start).as_secs() as usize;
        let (from, to) = (index(self.from), index(self.to));
        let seconds = self.driven.frames.seconds();
        seconds.into_iter().take(to + 1).skip(from).collect()
    }

    fn frame_gap(&self) -> Option<Distribution> {
        let seconds = self.frame_seconds();
        let mut gaps: Vec<f64> = seconds
            .iter()
            .flat_map(|second| &second.gaps)
            .map(|micros| f64::from(*micros) / 1e3)
            .collect();
        (!gaps.is_empty()).then(|| Distribution::of(&mut gaps))
    }

    /// Sums of what happened in equal parts of the window, a second. `spread` gives a request's amount and the
    /// time over which it came.
    fn rate(&self, spread: impl Fn(&Observation) -> Option<(f64, Time, Time)>) -> Estimate {
        let length = self.seconds() / PARTS as f64;
        if length <= 0.0 {
            return Estimate::point(0.0);
        }
        let origin = self.from.as_secs_f64();
        let mut parts = [0.0; PARTS];
        for (amount, first, last) in self.driven.recorder.all_ended().iter().filter_map(spread) {
            let (first, last) = (first.as_secs_f64() - origin, last.as_secs_f64() - origin);
            for (index, part) in parts.iter_mut().enumerate() {
                let (begin, end) = (index as f64 * length, (index + 1) as f64 * length);
                let lies_within = match last > first {
                    true => ((last.min(end) - first.max(begin)) / (last - first)).max(0.0),
                    false => f64::from(u8::from((begin..end).contains(&last))),
                };
                *part += amount * lies_within / length;
            }
        }
        batch_means(&parts)
    }

    /// What came in the window, whenever it was due: a rate of the server, not of the requests.
    fn throughput(&self) -> Throughput {
        let done = |seen: &Observation| seen.completed();
        let draws = self.config.target.draws;
        let text = |rate: Estimate| (!draws).then_some(rate);
        Throughput {
            requests_per_second: self.rate(|seen| done(seen).then_some((1.0, seen.end, seen.end))),
            prompt_tokens_per_second: text(self.rate(|seen| {
                let first = seen.first.filter(|_| done(seen))?;
                Some((f64::from(seen.prompt_tokens?), first, first))
            })),
            output_tokens_per_second: text(self.rate(|seen| {
                let (first, last) = seen.first.zip(seen.last)?;
                Some((f64::from(seen.output_tokens), first, last))
            })),
            images_per_second: draws.then(|| {
                self.rate(|seen| done(seen).then_some((f64::from(seen.images), seen.end, seen.end)))
            }),
        }
    }

    fn goodput(&self, tally: &Tally) -> Goodput {
        let objectives = &self.config.objectives;
        let total = (self.due.len() + self.pending.len()) as u64;
        let results = objectives.limits.iter().map(|objective| {
            let only = Objectives {
                limits: vec![*objective],
                ..objectives.clone()
            };
            let kept = self.due.iter().filter(|seen| is_good(seen, &only)).count() as u64;
            ObjectiveResult {
                objective: *objective,
                kept,
                share: share(kept, total, tally.inflation),
            }
        });
        let window = self.from..self.to;
        let good_rate = self.rate(|seen| {
            let counts = is_good(seen, objectives) && window.contains(&seen.intended);
            counts.then_some((1.0, seen.intended, seen.intended))
        });
        Goodput {
            good: tally.good,
            share: tally.good_share(),
            requests_per_second: good_rate,
            objectives: results.collect(),
        }
    }

    fn cache(&self, counts: &Counts) -> Option<CacheUse> {
        let told: Vec<(u32, u32)> = self
            .due
            .iter()
            .filter(|seen| seen.completed())
            .filter_map(|seen| seen.prompt_tokens.zip(seen.cached_tokens))
            .collect();
        let wanted = match &self.config.load {
            Load::Text(load) => load.prefix_share > 0.0 || load.conversations.is_some(),
            Load::Pictures(_) => false,
        };
        if !told.is_empty() && counts.prompt_tokens > 0 {
            let sum =
                |of: fn(&(u32, u32)) -> u32| told.iter().map(|pair| u64::from(of(pair))).sum();
            return Some(CacheUse {
                prompt_tokens: sum(|pair| pair.0),
                cached_tokens: sum(|pair| pair.1),
                wanted,
            });
        }
        let (before, after) = self.before_and_after()?;
        let grown = |name: &str| after.grown_since(before, name, self.around.model);
        Some(CacheUse {
            prompt_tokens: grown("girandole_prompt_tokens_total")? as u64,
            cached_tokens: grown("girandole_cached_tokens_total")? as u64,
            wanted,
        })
    }

    fn littles_law(&self) -> Option<LittlesLaw> {
        let seconds = self.seconds();
        let ends = self
            .due
            .iter()
            .map(|seen| seen.end.saturating_since(seen.intended).as_secs_f64());
        let times: Vec<f64> = ends.collect();
        if times.is_empty() || seconds <= 0.0 || !self.pending.is_empty() {
            return None;
        }
        let count = times.len() as f64;
        let requests_per_second = count / seconds;
        let mean_seconds = times.iter().sum::<f64>() / count;
        let expected = requests_per_second * mean_seconds;
        let difference = self.driven.in_flight / expected.max(f64::MIN_POSITIVE) - 1.0;
        Some(LittlesLaw {
            in_flight: self.driven.in_flight,
            requests_per_second,
            mean_seconds,
            difference,
            holds: difference.abs() <= LITTLE_TOLERANCE + 2.0 / count.sqrt(),
        })
    }

    fn counters(&self) -> Vec<Counter> {
        let Some((before, after)) = self.before_and_after() else {
            return Vec::new();
        };
        let before: BTreeMap<&str, f64> = before.iter().collect();
        let told = |name: &str| !name.contains("_bucket{") && !name.contains("_created");
        after
            .iter()
            .filter(|(name, _)| told(name))
            .map(|(name, after)| Counter {
                name: name.to_owned(),
                before: before.get(name).copied().unwrap_or(0.0),
                after,
            })
            .take(1_000)
            .collect()
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    (count > 0.0).then(|| sum / count)
}

/// The 99th percentile, or the greatest of fewer than a hundred.
fn high_end(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let rank = (values.len() as f64 * 0.99).ceil() as usize;
    let index = if values.len() < 100 {
        values.len()
    } else {
        rank
    };
    values.get(index.checked_sub(1)?).copied()
}
