//! From what happened at a point to what the report says about it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::device::GpuFacts;
use super::drive::Driven;
use super::frames::FrameSecond;
use super::recorder::{Judged, is_good};
use super::sampler::Sample;
use super::sequential::{batch_means, share};
use super::session::SessionConfig;
use super::{Judgement, Measured, PointSpec, Tally, steady};
use crate::bench::load::Pattern;
use crate::bench::load::asks::Load;
use crate::bench::results::{
    CacheUse, Cost, Counter, Counts, Devices, Distribution, Energy, ErrorCount, Estimate, Goodput,
    GpuUse, Latencies, LittlesLaw, Metric, ObjectiveResult, Objectives, Offered, Outcome, Point,
    ProcessUse, Second, SteadyState, Throughput, Timeline, Verdict, Windows,
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
            time_to_first_token: text(Metric::TimeToFirstToken),
            time_to_first_preview: of(Metric::TimeToFirstPreview, false),
            time_per_output_token: text(Metric::TimePerOutputToken),
            step_gap: self.step_gap(),
            frame_gap: self.frame_gap(),
            longest_stall: of(Metric::LongestStall, false),
            end_to_end: of(Metric::EndToEnd, false),
        }
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

    fn verdict(
        &self,
        tally: &Tally,
        counts: &Counts,
        goodput: &Goodput,
        cache: Option<&CacheUse>,
    ) -> Verdict {
        let mut reasons = self.void_reasons(counts);
        let is_void = !reasons.is_empty();
        if let Some(cache) = cache.filter(|cache| !cache.wanted && cache.prompt_tokens > 0) {
            let share = cache.cached_tokens as f64 / cache.prompt_tokens as f64;
            if share > MAX_CACHED_SHARE {
                reasons.push(format!(
                    "warm cache: {:.0} % of the prompts' tokens were found in the server's prefix cache, and that \
                     was not asked for",
                    share * 100.0
                ));
            }
        }
        if self.driven.rising {
            reasons.push(
                "the number of requests in flight only grew: no steady state exists at this load"
                    .to_owned(),
            );
        }
        let outcome = match self.driven.judgement {
            _ if is_void => Outcome::Void,
            _ if self.driven.rising => Outcome::Fail,
            Some(Judgement::Pass) => Outcome::Pass,
            Some(Judgement::Fail) => Outcome::Fail,
            None => Outcome::Undecided,
        };
        if !matches!(outcome, Outcome::Pass | Outcome::Void) {
            reasons.extend(self.shortfalls(tally, counts, goodput));
        }
        Verdict { outcome, reasons }
    }

    /// Why the figures say more about the client than about the server.
    fn void_reasons(&self, counts: &Counts) -> Vec<String> {
        let mut reasons = Vec::new();
        let limits = self.config.objectives.limits.iter();
        let tightest = limits
            .filter(|limit| {
                matches!(
                    limit.metric,
                    Metric::TimeToFirstToken | Metric::EndToEnd | Metric::TimeToFirstPreview
                )
            })
            .map(|limit| limit.limit_ms)
            .min_by(f64::total_cmp);
        let mut lags: Vec<f64> = self
            .due
            .iter()
            .filter_map(|seen| seen.latency_ms(Metric::ClientLag))
            .collect();
        let mut reading: Vec<f64> = self
            .driven
            .reading_lag
            .iter()
            .map(|micros| f64::from(*micros) / 1e3)
            .collect();
        for (what, lags) in [
            ("requests were sent", &mut lags),
            ("frames were read", &mut reading),
        ] {
            let Some((late, limit)) = high_end(lags).zip(tightest) else {
                continue;
            };
            if late > limit * MAX_LAG_SHARE {
                reasons.push(format!(
                    "the client was slow: {what} {late:.1} ms late (p99), and 1 % of the objective of {limit} ms is \
                     {:.1} ms",
                    limit * MAX_LAG_SHARE
                ));
            }
        }
        if self.driven.client_full {
            reasons.push(format!(
                "the client had as many requests in flight as it may (--max-open-requests {})",
                self.config.max_open_requests
            ));
        }
        if counts.due == 0 {
            reasons.push("no request was due in the measured window".to_owned());
        }
        reasons
    }

    fn shortfalls(&self, tally: &Tally, counts: &Counts, goodput: &Goodput) -> Vec<String> {
        let mut reasons = Vec::new();
        let total = counts.due.max(1) as f64;
        let wanted = self.config.objectives.good_share;
        if tally.bad > 0 {
            reasons.push(format!(
                "{:.1} % of {} requests were good; {:.1} % are wanted",
                goodput.share.value * 100.0,
                tally.total(),
                wanted * 100.0
            ));
        }
        for result in goodput
            .objectives
            .iter()
            .filter(|result| result.share.value < wanted)
        {
            reasons.push(format!(
                "{}: {:.1} % within {} ms",
                result.objective.metric.title(),
                result.share.value * 100.0,
                result.objective.limit_ms
            ));
        }
        for (count, what) in [
            (counts.refused, "were refused"),
            (counts.timed_out, "were not answered in time"),
            (counts.truncated, "broke off"),
            (counts.no_finish_reason, "ended without a finish reason"),
            (counts.errors, "failed"),
        ] {
            if count > 0 {
                reasons.push(format!(
                    "{count} requests ({:.1} %) {what}",
                    count as f64 / total * 100.0
                ));
            }
        }
        reasons
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

    fn timeline(&self) -> Timeline {
        let start = self.driven.start;
        let second_of = |time: Time| time.saturating_since(start).as_secs() as usize;
        let frames = self.driven.frames.seconds();
        let count = second_of(self.driven.drained) + 1;
        let mut seconds: Vec<Second> = (0..count)
            .map(|index| Second {
                at_seconds: (index + 1) as f64,
                open_streams: self.driven.open_streams.get(index).copied().unwrap_or(0),
                stalls: frames.get(index).map_or(0, |second| second.stalls),
                longest_stall_ms: frames
                    .get(index)
                    .filter(|second| second.count > 0)
                    .map(|second| second.longest_micros as f64 / 1e3),
                ..Second::default()
            })
            .collect();
        let mut firsts: Vec<Vec<f64>> = vec![Vec::new(); count];
        let mut tokens = vec![0.0; count];
        for seen in self.driven.recorder.all_ended() {
            if let Some(second) = seconds.get_mut(second_of(seen.intended)) {
                second.due += 1;
            }
            if let Some(second) = seconds.get_mut(second_of(seen.end)) {
                match seen.completed() {
                    true => second.completed += 1,
                    false => second.bad += 1,
                }
            }
            let Some((first, last)) = seen.first.zip(seen.last) else {
                continue;
            };
            if let Some((firsts, ms)) = firsts
                .get_mut(second_of(first))
                .zip(seen.latency_ms(Metric::TimeToFirstToken))
            {
                firsts.push(ms);
            }
            let (begin, end) = (
                second_of(first).min(count - 1),
                second_of(last).min(count - 1),
            );
            for tokens in &mut tokens[begin..=end] {
                *tokens += f64::from(seen.output_tokens) / (end - begin + 1) as f64;
            }
        }
        for ((second, firsts), tokens) in seconds.iter_mut().zip(&mut firsts).zip(tokens) {
            firsts.sort_by(f64::total_cmp);
            second.time_to_first_token_ms = firsts.get(firsts.len() / 2).copied();
            second.output_tokens = tokens.round() as u32;
        }
        for pair in self.around.samples.windows(2) {
            if let Some(second) = seconds.get_mut(second_of(pair[1].at).saturating_sub(1)) {
                self.server_second(second, &pair[0], &pair[1]);
            }
        }
        Timeline {
            measured_from_seconds: self.from.saturating_since(start).as_secs_f64(),
            measured_to_seconds: self.to.saturating_since(start).as_secs_f64(),
            seconds,
        }
    }

    fn server_second(&self, second: &mut Second, before: &Sample, after: &Sample) {
        let model = self.around.model;
        let passed = after.at.saturating_since(before.at).as_secs_f64();
        let cores = |before: Option<Duration>, after: Option<Duration>| {
            let (before, after) = before.zip(after)?;
            (passed > 0.0).then(|| after.saturating_sub(before).as_secs_f64() / passed)
        };
        second.client_cores = cores(before.client.time, after.client.time);
        let server = |sample: &Sample| sample.server.and_then(|server| server.time);
        second.server_cores = cores(server(before), server(after));
        if let Some((old, new)) = before.counters.as_ref().zip(after.counters.as_ref()) {
            second.queued_requests = new.sum("girandole_requests_waiting", model);
            second.running_rows = new.sum("girandole_rows_running", model);
            second.batch_fill_rows = new.mean_since(old, "girandole_batch_fill_rows", model);
            second.step_ms = new
                .mean_since(old, "girandole_step_seconds", model)
                .map(|mean| mean * 1e3);
            let used = new.sum("girandole_kv_blocks_used", model);
            let total = new
                .sum("girandole_kv_blocks_total", model)
                .filter(|total| *total > 0.0);
            second.kv_share = used.zip(total).map(|(used, total)| used / total);
        }
        second.gpu_share = mean(after.gpus.iter().filter_map(|gpu| gpu.busy_share));
        let watts: Vec<f64> = after.gpus.iter().filter_map(|gpu| gpu.watts).collect();
        second.gpu_watts = (!watts.is_empty()).then(|| watts.iter().sum());
    }

    fn devices(&self) -> Devices {
        let process = |of: &dyn Fn(&Sample) -> Option<super::device::ProcessSample>| {
            let (first, last) = (self.samples.first()?, self.samples.last()?);
            let cores = |first: &Sample, last: &Sample| {
                let passed = last.at.saturating_since(first.at).as_secs_f64();
                let used = of(last)?
                    .time?
                    .saturating_sub(of(first)?.time?)
                    .as_secs_f64();
                (passed > 0.0).then_some(used / passed)
            };
            let pairs = self
                .samples
                .windows(2)
                .filter_map(|pair| cores(&pair[0], &pair[1]));
            Some(ProcessUse {
                cores: cores(first, last)?,
                peak_cores: pairs.max_by(f64::total_cmp),
                peak_memory_bytes: of(last)?.peak_memory?,
            })
        };
        Devices {
            client: process(&|sample| Some(sample.client)),
            server: process(&|sample| sample.server),
            gpus: self.gpus(),
        }
    }

    fn gpus(&self) -> Vec<GpuUse> {
        let of = |(index, facts): (usize, &GpuFacts)| {
            let samples = || {
                self.samples
                    .iter()
                    .filter_map(move |sample| sample.gpus.get(index))
            };
            let mut throttled: Vec<String> =
                samples().flat_map(|gpu| gpu.throttled.clone()).collect();
            throttled.sort();
            throttled.dedup();
            GpuUse {
                index: index as u32,
                name: facts.name.clone(),
                busy_share: mean(samples().filter_map(|gpu| gpu.busy_share)),
                peak_memory_bytes: samples().filter_map(|gpu| gpu.memory_bytes).max(),
                memory_bytes: facts.memory_bytes,
                watts: mean(samples().filter_map(|gpu| gpu.watts)),
                limit_watts: facts.limit_watts,
                clock_mhz: mean(samples().filter_map(|gpu| gpu.clock_mhz)),
                throttled,
            }
        };
        self.around.gpus.iter().enumerate().map(of).collect()
    }

    /// GPUs where there are any, else processor packages. Scaled from the samples' time to the window's.
    fn energy(&self, counts: &Counts) -> Option<Energy> {
        let (first, last) = (self.samples.first()?, self.samples.last()?);
        let passed = last.at.saturating_since(first.at).as_secs_f64();
        let gpus: Vec<f64> = first
            .gpus
            .iter()
            .zip(&last.gpus)
            .filter_map(|(first, last)| Some(last.joules? - first.joules?))
            .collect();
        let packages = || {
            let pairs = first.package_joules.iter().zip(&last.package_joules);
            let ranges = self.around.package_ranges.iter();
            let used = pairs
                .zip(ranges)
                .map(|((first, last), range)| (last - first).rem_euclid(*range));
            used.sum::<f64>()
        };
        let (source, joules) = match (gpus.is_empty(), first.package_joules.is_empty()) {
            (false, _) => ("nvml", gpus.iter().sum()),
            (true, false) => ("rapl", packages()),
            (true, true) => return None,
        };
        if passed <= 0.0 {
            return None;
        }
        let joules = joules * self.seconds() / passed;
        let by = |count: u64| (count > 0).then(|| joules / count as f64);
        Some(Energy {
            source: source.to_owned(),
            joules,
            joules_per_output_token: by(counts.output_tokens),
            joules_per_image: by(counts.images),
        })
    }

    fn cost(&self, counts: &Counts, goodput: &Goodput) -> Option<Cost> {
        let (per_hour, currency) = self.config.price_per_hour.clone()?;
        let spent = per_hour * self.seconds() / 3600.0;
        let by = |count: u64, unit: f64| (count > 0).then(|| spent / count as f64 * unit);
        Some(Cost {
            currency,
            per_hour,
            per_million_output_tokens: by(counts.output_tokens, 1e6),
            per_thousand_images: by(counts.images, 1e3),
            per_million_good_requests: by(goodput.good, 1e6),
        })
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
