//! The search against servers whose capacity is known, in virtual time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand_chacha::rand_core::RngCore;
use rand_distr::{Distribution as _, Exp1};

use super::search::{Found, Question, Search, SearchConfig};
use crate::bench::load::{Arrivals, Pattern, Planned, Planner, Purpose, random};
use crate::bench::results::{Metric, Objective, Objectives};
use crate::bench::run::judge::{Judge, LOOK};
use crate::bench::run::recorder::{Judged, Recorder};
use crate::bench::run::{Judgement, Plan, PointSpec, Rigour, Tally};
use crate::bench::target::Observation;
use crate::time::Time;

/// A server in virtual time: says when each request has its first and its last token, given that it began.
trait Server {
    /// Takes a request.
    fn take(&mut self, planned: Planned, now: Time);
    /// When something happens next.
    fn next(&self) -> Option<Time>;
    /// Moves on to that time; the requests that end then.
    fn step(&mut self) -> Vec<(Planned, Observation)>;
}

/// One request after another, exponential times: M/M/1 where arrivals are Poisson's.
struct OneByOne {
    mean: Duration,
    free_at: Time,
    random: rand_chacha::ChaCha8Rng,
    ends: BinaryHeap<Reverse<(Time, u64)>>,
    planned: std::collections::HashMap<u64, Planned>,
}

impl OneByOne {
    fn new(mean: Duration, seed: u64) -> Self {
        OneByOne {
            mean,
            free_at: Time::ZERO,
            random: random(seed, Purpose::Thinking, 1),
            ends: BinaryHeap::new(),
            planned: std::collections::HashMap::new(),
        }
    }
}

impl Server for OneByOne {
    fn take(&mut self, planned: Planned, now: Time) {
        let draw: f64 = Exp1.sample(&mut self.random);
        self.free_at = self.free_at.max(now) + self.mean.mul_f64(draw);
        self.ends.push(Reverse((self.free_at, planned.ordinal)));
        self.planned.insert(planned.ordinal, planned);
    }

    fn next(&self) -> Option<Time> {
        self.ends.peek().map(|Reverse((at, _))| *at)
    }

    fn step(&mut self) -> Vec<(Planned, Observation)> {
        let Some(Reverse((at, ordinal))) = self.ends.pop() else {
            return Vec::new();
        };
        let planned = self.planned.remove(&ordinal).expect("it was taken");
        let mut seen = Observation::new(ordinal, planned.intended, planned.intended);
        (seen.first, seen.last, seen.end) = (Some(at), Some(at), at);
        vec![(planned, seen)]
    }
}

/// Continuous batching, as the scripted model does it: a step costs a base and a price for each row.
struct Batching {
    base: Duration,
    row: Duration,
    slots: usize,
    tokens: u32,
    waiting: std::collections::VecDeque<Planned>,
    rows: Vec<(Planned, u32, Time)>,
    step_ends: Option<Time>,
}

impl Batching {
    fn begin_step(&mut self, now: Time) {
        while self.rows.len() < self.slots
            && let Some(planned) = self.waiting.pop_front()
        {
            self.rows.push((planned, 0, Time::ZERO));
        }
        let cost = self.base + self.row * self.rows.len() as u32;
        self.step_ends = (!self.rows.is_empty()).then_some(now + cost);
    }
}

impl Server for Batching {
    fn take(&mut self, planned: Planned, now: Time) {
        self.waiting.push_back(planned);
        if self.step_ends.is_none() {
            self.begin_step(now);
        }
    }

    fn next(&self) -> Option<Time> {
        self.step_ends
    }

    fn step(&mut self) -> Vec<(Planned, Observation)> {
        let Some(now) = self.step_ends else {
            return Vec::new();
        };
        let mut ended = Vec::new();
        for (planned, said, first) in &mut self.rows {
            *said += 1;
            if *said == 1 {
                *first = now;
            }
            if *said == self.tokens {
                let mut seen =
                    Observation::new(planned.ordinal, planned.intended, planned.intended);
                (seen.first, seen.last, seen.end) = (Some(*first), Some(now), now);
                seen.output_tokens = self.tokens;
                ended.push((*planned, seen));
            }
        }
        let tokens = self.tokens;
        self.rows.retain(|(_, said, _)| *said < tokens);
        self.begin_step(now);
        ended
    }
}

/// One point in virtual time.
fn measure(
    spec: &PointSpec,
    objectives: &Objectives,
    mut server: impl Server,
) -> (Tally, Option<Judgement>) {
    let mut planner = Planner::new(&spec.pattern, Time::ZERO, spec.ramp, spec.seed);
    let mut recorder = Recorder::new(Time::ZERO);
    let mut judge = Judge::new(
        spec,
        objectives.clone(),
        Duration::from_secs(600),
        Time::ZERO,
    );
    let mut next_look = Time::ZERO + LOOK;
    loop {
        let due = planner.next_due().unwrap_or(Time::FAR_FUTURE);
        let next = server.next().unwrap_or(Time::FAR_FUTURE);
        let now = due.min(next).min(next_look);
        if now == next {
            for (planned, seen) in server.step() {
                planner.ended(planned.user, true, now);
                recorder.ended(seen, now);
            }
        } else if now == due {
            let planned = planner.take().expect("it is due");
            let first = Arc::new(AtomicU64::new(0));
            first.store(0, Ordering::Relaxed);
            recorder.started(planned.ordinal, planned.intended, first, 0, now);
            server.take(planned, now);
        } else {
            // Looks are rarer than in reality: sorting a hundred thousand requests each time takes its time.
            next_look = now + LOOK * 8;
            if let Some(decision) = judge.look(now, &recorder, false) {
                let judged = recorder.judged(objectives, decision.window.0, decision.window.1, now);
                return (Tally::of(&Judged::used(&judged)), decision.judgement);
            }
        }
    }
}

fn objectives(metric: Metric, limit_ms: f64, good_share: f64) -> Objectives {
    Objectives {
        preset: None,
        limits: vec![Objective { metric, limit_ms }],
        good_share,
    }
}

fn search(
    config: SearchConfig,
    mut measured: impl FnMut(&Question) -> (Tally, Option<Judgement>),
) -> Found {
    let mut search = Search::new(config);
    while let Some(question) = search.next() {
        let (tally, judgement) = measured(&question);
        search.record(&question, tally, judgement);
    }
    search.found()
}

/// How often the answer was within 5 % of the true one, and how often its interval held it.
fn score(found: &[Found], truth: f64) -> (usize, usize) {
    let close = found
        .iter()
        .filter(|found| (found.capacity.value / truth - 1.0).abs() <= 0.05)
        .count();
    let held = found
        .iter()
        .filter_map(|found| found.capacity.interval())
        .filter(|(low, high)| *low <= truth && truth <= *high)
        .count();
    (close, held)
}

#[test]
fn a_queue_of_known_capacity_is_found() {
    // M/M/1: times in the system are exponential with rate mu - lambda, so a share b is later than t at
    // lambda = mu - ln(1/b)/t.
    let (mean, limit_seconds, allowed) = (Duration::from_millis(20), 0.4, 0.05_f64);
    let truth = 1.0 / mean.as_secs_f64() - (1.0 / allowed).ln() / limit_seconds;
    let objectives = objectives(Metric::EndToEnd, limit_seconds * 1e3, 1.0 - allowed);
    let config = SearchConfig {
        whole: false,
        start: 2.0,
        growth: 2.0,
        min: 0.1,
        max: 1e4,
        precision: 0.05,
        allowed,
        max_points: 40,
    };
    let found: Vec<Found> = (0..10u64)
        .map(|run| {
            let mut seed = 1_000 * run;
            search(config, |question| {
                seed += 1;
                let is_screen = matches!(question.rigour, Rigour::Screen { .. });
                let (min, max) = if is_screen { (20, 200) } else { (60, 1_500) };
                let spec = PointSpec {
                    pattern: Pattern::Open {
                        rate: question.level,
                        arrivals: Arrivals::Poisson,
                    },
                    purpose: "search",
                    repeat: question.repeat,
                    seed,
                    ramp: Duration::ZERO,
                    warm_up: Duration::from_secs(5),
                    plan: Plan::Test {
                        rigour: question.rigour,
                        earlier: question.earlier,
                        min: Duration::from_secs(min),
                        max: Duration::from_secs(max),
                    },
                };
                measure(&spec, &objectives, OneByOne::new(mean, seed))
            })
        })
        .collect();
    let (close, held) = score(&found, truth);
    assert!(
        close >= 9 && held >= 9,
        "{close} close, {held} held {truth}: {found:?}"
    );
}

/// Searches for the users of a server of 12 ms and 0.4 ms a row, with 40.1 ms a token: 70.25 rows. Users without
/// thought miss one step of 31, the one that runs when they ask: 72.6 users are 70.25 rows. `pace` says for each
/// point how much slower the server is then.
fn search_in_batches(run: u64, pace: impl Fn(u64) -> f64) -> Found {
    let objectives = objectives(Metric::TimePerOutputToken, 40.1, 0.99);
    let config = SearchConfig {
        whole: true,
        start: 4.0,
        growth: 2.0,
        min: 1.0,
        max: 1e4,
        precision: 0.05,
        allowed: 0.01,
        max_points: 40,
    };
    let mut points = 0;
    search(config, |question| {
        points += 1;
        let spec = PointSpec {
            pattern: Pattern::Closed {
                users: question.level as u32,
                think_seconds: 0.0,
                turns: 1,
            },
            purpose: "search",
            repeat: question.repeat,
            seed: 1_000 * run + points,
            ramp: Duration::from_secs(1),
            warm_up: Duration::from_secs(1),
            plan: Plan::Test {
                rigour: question.rigour,
                earlier: question.earlier,
                min: Duration::from_secs(4),
                max: Duration::from_secs(60),
            },
        };
        let server = Batching {
            base: Duration::from_micros(12_000).mul_f64(pace(points)),
            row: Duration::from_micros(400).mul_f64(pace(points)),
            slots: 256,
            tokens: 30,
            waiting: Default::default(),
            rows: Vec::new(),
            step_ends: None,
        };
        measure(&spec, &objectives, server)
    })
}

/// Users whose answers take 40.1 ms a token of such a server.
const TRUE_USERS: f64 = 72.0;

#[test]
fn a_batch_of_known_capacity_is_found() {
    let found: Vec<Found> = (0..10).map(|run| search_in_batches(run, |_| 1.0)).collect();
    let (close, held) = score(&found, TRUE_USERS);
    assert!(
        close >= 9 && held >= 9,
        "{close} close, {held} held: {found:?}"
    );
    for found in found {
        let (low, high) = found.capacity.interval().unwrap();
        let width = high / low - 1.0;
        assert!(width > 0.0 && width <= 0.06, "{low} to {high}");
    }
}

#[test]
fn a_server_that_is_slow_at_times_does_not_lead_astray() {
    // One point of six, at random, meets a server that is 15 % slower: then 60 users are too many.
    let slow = |run: u64| {
        move |point: u64| match random(run, Purpose::Thinking, point).next_u32() % 6 {
            0 => 1.15,
            _ => 1.0,
        }
    };
    let runs = 40;
    let found: Vec<Found> = (0..runs)
        .map(|run| search_in_batches(run, slow(run)))
        .collect();
    let (close, held) = score(&found, TRUE_USERS);
    assert!(
        close >= 38 && held >= 38,
        "{close} close, {held} held: {found:?}"
    );
    // What wandered is not told as exactly as what did not.
    let width = |found: &Found| {
        found
            .capacity
            .interval()
            .map_or(0.0, |(low, high)| high / low - 1.0)
    };
    assert!(found.iter().any(|found| width(found) > 0.1), "{found:?}");
}

#[test]
fn servers_beyond_the_ends_are_said_to_be() {
    let config = SearchConfig {
        whole: true,
        start: 4.0,
        growth: 2.0,
        min: 1.0,
        max: 64.0,
        precision: 0.05,
        allowed: 0.01,
        max_points: 40,
    };
    let tally = |bad: u64| Tally {
        good: 1_000 - bad,
        bad,
        inflation: 1.0,
    };
    let all_good = search(config, |_| (tally(0), Some(Judgement::Pass)));
    assert!(all_good.lower_bound);
    assert_eq!(
        (
            all_good.capacity.value,
            all_good.capacity.low,
            all_good.capacity.high
        ),
        (64.0, Some(64.0), None)
    );
    let none_good = search(config, |_| (tally(900), Some(Judgement::Fail)));
    assert_eq!(
        (none_good.capacity.value, none_good.capacity.interval()),
        (0.0, Some((0.0, 1.0)))
    );
    // A load that can never be told widens the interval instead of hanging.
    let unsure = search(config, |question| match question.level {
        level if level <= 10.0 => (tally(0), Some(Judgement::Pass)),
        level if level >= 14.0 => (tally(100), Some(Judgement::Fail)),
        _ => (tally(10), None),
    });
    assert_eq!(unsure.capacity.interval(), Some((10.0, 14.0)));
    assert!(unsure.is_certain);
}
