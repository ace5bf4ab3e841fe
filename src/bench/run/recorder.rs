//! What happened at a point so far, and what can be said about it: pure, told the time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::super::results::{Metric, Objectives};
use super::super::target::Observation;
use super::steady;
use crate::time::Time;

/// Requests kept of a point.
pub const MAX_REQUESTS: usize = 1_000_000;

/// A request in flight.
#[derive(Clone, Debug)]
struct Pending {
    intended: Time,
    /// See [`super::frames::Running`].
    first: Arc<AtomicU64>,
    /// New tokens that were asked for; 0 for a picture.
    output_tokens: u32,
}

/// A request's part in a verdict.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judged {
    /// When it should have started.
    pub intended: Time,
    /// How much of its limits it used: above 1 it was bad. Never more than [`WORST`].
    pub used: f64,
}

impl Judged {
    /// How much of their limits requests used.
    pub fn used(judged: &[Judged]) -> Vec<f64> {
        judged.iter().map(|judged| judged.used).collect()
    }
}

/// How bad a request can be: one that took an hour is not to outweigh a thousand others.
const WORST: f64 = 2.0;

/// See the module.
#[derive(Debug, Default)]
pub struct Recorder {
    pending: BTreeMap<u64, Pending>,
    ended: Vec<Observation>,
    /// Requests in flight times microseconds, until `counted_to`.
    in_flight_micros: f64,
    counted_to: Time,
}

impl Recorder {
    /// Of a point that begins at `start`.
    pub fn new(start: Time) -> Self {
        Recorder {
            counted_to: start,
            ..Recorder::default()
        }
    }

    fn count(&mut self, now: Time) {
        let passed = now.saturating_since(self.counted_to).as_micros() as f64;
        self.in_flight_micros += passed * self.pending.len() as f64;
        self.counted_to = self.counted_to.max(now);
    }

    /// A request for so many new tokens has been started. `first` is where it tells of its first text.
    pub fn started(
        &mut self,
        ordinal: u64,
        intended: Time,
        first: Arc<AtomicU64>,
        output_tokens: u32,
        now: Time,
    ) {
        self.count(now);
        let pending = Pending {
            intended,
            first,
            output_tokens,
        };
        self.pending.insert(ordinal, pending);
    }

    /// A request has ended.
    pub fn ended(&mut self, seen: Observation, now: Time) {
        self.count(now);
        self.pending.remove(&seen.ordinal);
        self.ended.push(seen);
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Whether no more may be kept.
    pub fn is_full(&self) -> bool {
        self.ended.len() + self.pending.len() >= MAX_REQUESTS
    }

    /// Requests in flight times seconds, since the beginning.
    pub fn in_flight_seconds(&mut self, now: Time) -> f64 {
        self.count(now);
        self.in_flight_micros / 1e6
    }

    /// Everything that has ended.
    pub fn all_ended(&self) -> &[Observation] {
        &self.ended
    }

    /// Whether a request that was due before `to` is still in flight.
    pub fn waits_for(&self, to: Time) -> bool {
        self.pending.values().any(|pending| pending.intended < to)
    }

    /// The intended starts of requests in flight that were due in the window.
    pub fn pending_in(&self, from: Time, to: Time) -> Vec<Time> {
        let intended = self.pending.values().map(|pending| pending.intended);
        intended.filter(|at| (from..to).contains(at)).collect()
    }

    /// Up to when all that was due is known to be good or bad. A request in flight may be known to be bad: it
    /// is late already.
    pub fn known_to(&self, objectives: &Objectives, now: Time) -> Time {
        self.pending
            .values()
            .filter(|pending| !is_late(pending, objectives, now))
            .map(|pending| pending.intended)
            .min()
            .unwrap_or(now)
    }

    /// Good or bad, of everything that was due in the window and is known, in the order of starts.
    pub fn judged(&self, objectives: &Objectives, from: Time, to: Time, now: Time) -> Vec<Judged> {
        let window = from..to;
        let ended = self
            .ended
            .iter()
            .filter(|seen| window.contains(&seen.intended));
        let ended = ended.map(|seen| Judged {
            intended: seen.intended,
            used: used(seen, objectives),
        });
        let late = self
            .pending
            .values()
            .filter(|pending| {
                window.contains(&pending.intended) && is_late(pending, objectives, now)
            })
            .map(|pending| Judged {
                intended: pending.intended,
                used: WORST,
            });
        let mut all: Vec<Judged> = ended.chain(late).collect();
        all.sort_by_key(|judged| judged.intended);
        all
    }

    /// Since when the run is steady, of what was due from `from` on and has ended; see [`steady::METHOD`].
    pub fn steady_since(&self, from: Time, known_to: Time) -> Option<Time> {
        let window = from..known_to;
        let mut ended: Vec<(Time, f64)> = self
            .ended
            .iter()
            .filter(|seen| window.contains(&seen.intended))
            .filter_map(|seen| Some((seen.intended, seen.latency_ms(Metric::EndToEnd)?)))
            .collect();
        ended.sort_by_key(|(intended, _)| *intended);
        let times: Vec<f64> = ended.iter().map(|(_, time)| *time).collect();
        steady::steady_since(&times).map(|index| ended[index].0)
    }
}

/// How much of its limits a request used, of the one it used the most of; what did not complete is as bad as can
/// be. A limit on what the request does not have is kept: an answer of one token has no time per token.
fn used(seen: &Observation, objectives: &Objectives) -> f64 {
    if !seen.completed() {
        return WORST;
    }
    let limits = objectives.limits.iter();
    let used = limits.filter_map(|limit| Some(seen.latency_ms(limit.metric)? / limit.limit_ms));
    used.fold(0.0, f64::max).min(WORST)
}

/// Whether a request completed within every limit.
pub fn is_good(seen: &Observation, objectives: &Objectives) -> bool {
    used(seen, objectives) <= 1.0
}

/// Whether a request can no longer be good.
fn is_late(pending: &Pending, objectives: &Objectives, now: Time) -> bool {
    let first = pending.first.load(Ordering::Relaxed);
    let gaps = pending.output_tokens.saturating_sub(1);
    objectives.limits.iter().any(|limit| {
        let (since, times) = match limit.metric {
            Metric::TimeToFirstToken if first == 0 => (pending.intended, 1),
            Metric::EndToEnd => (pending.intended, 1),
            // The mean over all of its tokens is above the limit already, however fast the rest comes.
            Metric::TimePerOutputToken if first > 0 && gaps > 0 => (Time::from_micros(first), gaps),
            _ => return false,
        };
        let allowed = Duration::from_secs_f64(limit.limit_ms / 1e3 * f64::from(times));
        now.saturating_since(since) > allowed
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::results::Objective;
    use crate::bench::target::End;

    fn at(millis: u64) -> Time {
        Time::from_millis(millis)
    }

    fn objectives() -> Objectives {
        Objectives {
            preset: None,
            limits: vec![Objective {
                metric: Metric::TimeToFirstToken,
                limit_ms: 100.0,
            }],
            good_share: 0.99,
        }
    }

    fn start(recorder: &mut Recorder, ordinal: u64, millis: u64) -> Arc<AtomicU64> {
        let first = Arc::new(AtomicU64::new(0));
        recorder.started(ordinal, at(millis), Arc::clone(&first), 11, at(millis));
        first
    }

    fn end(
        recorder: &mut Recorder,
        ordinal: u64,
        (intended, first, end): (u64, u64, u64),
        ended: End,
    ) {
        let mut seen = Observation::new(ordinal, at(intended), at(intended));
        (seen.first, seen.end, seen.ended) = (Some(at(first)), at(end), ended);
        recorder.ended(seen, at(end));
    }

    #[test]
    fn slow_requests_are_not_forgotten() {
        let mut recorder = Recorder::new(Time::ZERO);
        for ordinal in 0..3 {
            start(&mut recorder, ordinal, 10 * ordinal);
        }
        let begun = start(&mut recorder, 3, 40);
        end(&mut recorder, 2, (20, 50, 60), End::Completed);
        let judged = |recorder: &Recorder, now: u64| -> Vec<bool> {
            let known = recorder.known_to(&objectives(), at(now));
            let judged = recorder.judged(&objectives(), Time::ZERO, known, at(now));
            judged.iter().map(|judged| judged.used <= 1.0).collect()
        };
        // The two before it may still turn out either way.
        assert_eq!(judged(&recorder, 70), [false; 0]);
        begun.store(at(60).as_micros(), Ordering::Relaxed);
        // Now they are late; the fourth has begun in time and has not ended.
        assert_eq!(judged(&recorder, 150), [false, false, true]);
        end(&mut recorder, 3, (40, 60, 200), End::Completed);
        assert_eq!(judged(&recorder, 210), [false, false, true, true]);
    }

    #[test]
    fn an_answer_that_has_become_too_slow_is_known_to_be_bad() {
        let objectives = Objectives {
            limits: vec![Objective {
                metric: Metric::TimePerOutputToken,
                limit_ms: 20.0,
            }],
            ..objectives()
        };
        let mut recorder = Recorder::new(Time::ZERO);
        let first = start(&mut recorder, 0, 0);
        // Without a first token there is no time per token, however long it takes.
        assert_eq!(recorder.known_to(&objectives, at(9_000)), at(0));
        first.store(at(1_000).as_micros(), Ordering::Relaxed);
        // Eleven tokens have ten gaps of 20 ms each.
        for (now, known_to) in [(1_200, 0), (1_201, 1_201)] {
            let found = recorder.known_to(&objectives, at(now));
            assert_eq!(found, at(known_to), "{now}");
        }
    }

    #[test]
    fn what_did_not_complete_is_bad() {
        for (first, ended, good) in [
            (50, End::Completed, true),
            (101, End::Completed, false),
            (50, End::NoFinishReason, false),
            (50, End::Refused, false),
        ] {
            let mut seen = Observation::new(0, at(0), at(0));
            (seen.first, seen.ended) = (Some(at(first)), ended);
            assert_eq!(is_good(&seen, &objectives()), good, "{first} {ended:?}");
        }
    }

    #[test]
    fn requests_in_flight_are_counted_over_time() {
        let mut recorder = Recorder::new(Time::ZERO);
        start(&mut recorder, 0, 0);
        start(&mut recorder, 1, 500);
        end(&mut recorder, 0, (0, 1, 1_000), End::Completed);
        assert!((recorder.in_flight_seconds(at(2_000)) - 2.5).abs() < 1e-9);
    }
}
