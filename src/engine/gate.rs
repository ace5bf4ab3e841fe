//! Who may come in: counts of rows, prompt tokens and source pictures in the engine, and when to come back.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{EngineConfig, Reject};
use crate::time::Time;

/// The drain rate is measured over this many ended requests.
const DRAIN_RATE_SAMPLES: usize = 32;
const MIN_RETRY_AFTER: Duration = Duration::from_secs(1);
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// Counts what is in the engine, or on its way there.
#[derive(Debug)]
pub(super) struct Gate {
    max_rows: u32,
    max_queued_requests: u32,
    max_tokens: u64,
    max_source_bytes: u64,
    rows: AtomicU32,
    tokens: AtomicU64,
    source_bytes: AtomicU64,
    /// When the latest requests ended, oldest first.
    ends: Mutex<VecDeque<Time>>,
}

impl Gate {
    pub(super) fn new(config: &EngineConfig) -> Self {
        Gate {
            max_rows: config
                .scheduler
                .batch_size
                .saturating_add(config.max_queued_requests),
            max_queued_requests: config.max_queued_requests,
            max_tokens: config.max_queued_tokens,
            max_source_bytes: config.max_queued_source_bytes,
            rows: AtomicU32::new(0),
            tokens: AtomicU64::new(0),
            source_bytes: AtomicU64::new(0),
            ends: Mutex::new(VecDeque::new()),
        }
    }

    pub(super) fn max_rows(&self) -> u32 {
        self.max_rows
    }

    /// Takes a place, or says which limit is in the way.
    pub(super) fn reserve(
        self: &Arc<Self>,
        rows: u32,
        tokens: u64,
        now: Time,
    ) -> Result<Permit, Reject> {
        let taken = self
            .rows
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |taken| {
                taken.checked_add(rows).filter(|&sum| sum <= self.max_rows)
            })
            .map_err(|taken| {
                let over = u64::from(taken) + u64::from(rows) - u64::from(self.max_rows);
                Reject::QueueFull {
                    what: "max_queued_requests",
                    limit: u64::from(self.max_queued_requests),
                    retry_after: self.retry_after(now, over as f64),
                }
            })?;
        if taken == 0 {
            // The rate is that of a busy engine: what ended before a pause says nothing of it.
            self.forget_ends();
        }
        let mut permit = Permit {
            gate: Arc::clone(self),
            rows,
            tokens: 0,
            source_bytes: 0,
        };
        self.tokens
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |taken| {
                let sum = taken.saturating_add(tokens);
                // One request that is too large by itself is taken by an empty engine: how long a
                // prompt may be is for intake to say.
                (taken == 0 || sum <= self.max_tokens).then_some(sum)
            })
            .map_err(|_| Reject::QueueFull {
                what: "max_queued_tokens",
                limit: self.max_tokens,
                retry_after: self.retry_after(now, 1.0),
            })?;
        permit.tokens = tokens;
        Ok(permit)
    }

    /// When `places` places will be free, at the rate at which requests have ended lately.
    fn retry_after(&self, now: Time, places: f64) -> Duration {
        let ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds_per_end = match ends.front() {
            Some(&oldest) => (now - oldest).as_secs_f64() / ends.len() as f64,
            None => 0.0,
        };
        let wait = Duration::try_from_secs_f64(places * seconds_per_end).unwrap_or(Duration::MAX);
        wait.clamp(MIN_RETRY_AFTER, MAX_RETRY_AFTER)
    }

    fn forget_ends(&self) {
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        ends.clear();
    }

    /// A request has ended.
    pub(super) fn note_end(&self, now: Time) {
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        if ends.len() == DRAIN_RATE_SAMPLES {
            ends.pop_front();
        }
        ends.push_back(now);
    }
}

/// A place in the engine, held from before tokenizing until the request has ended.
/// Dropping it without submitting gives the place back.
#[derive(Debug)]
pub struct Permit {
    gate: Arc<Gate>,
    rows: u32,
    tokens: u64,
    source_bytes: u64,
}

impl Permit {
    /// Prompt tokens that it counts for.
    pub(super) fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Counts the picture that the request begins from, `bytes` of it, decoded; or says that there are too
    /// many. An engine that holds none takes any: how large one may be is for intake to say.
    pub(super) fn hold_source(&mut self, bytes: u64, now: Time) -> Result<(), Reject> {
        let gate = &self.gate;
        if bytes == 0 {
            return Ok(());
        }
        gate.source_bytes
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |taken| {
                let sum = taken.saturating_add(bytes);
                (taken == 0 || sum <= gate.max_source_bytes).then_some(sum)
            })
            .map_err(|_| Reject::QueueFull {
                what: "max_queued_source_bytes",
                limit: gate.max_source_bytes,
                retry_after: gate.retry_after(now, 1.0),
            })?;
        self.source_bytes += bytes;
        Ok(())
    }

    /// Replaces the estimate of prompt tokens by the true number. Never refuses.
    pub fn settle(&mut self, prompt_tokens: u64) {
        self.gate.tokens.fetch_add(prompt_tokens, Ordering::AcqRel);
        self.gate.tokens.fetch_sub(self.tokens, Ordering::AcqRel);
        self.tokens = prompt_tokens;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.gate.rows.fetch_sub(self.rows, Ordering::AcqRel);
        self.gate.tokens.fetch_sub(self.tokens, Ordering::AcqRel);
        let source_bytes = &self.gate.source_bytes;
        source_bytes.fetch_sub(self.source_bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::{Batching, SchedulerConfig};

    fn gate(batch_size: u32) -> Arc<Gate> {
        Arc::new(Gate::new(&EngineConfig {
            scheduler: SchedulerConfig {
                batch_size,
                max_queue_delay: Duration::ZERO,
                batching: Batching::Continuous,
                step_budget: Duration::from_millis(50),
            },
            max_queued_requests: 0,
            max_queued_tokens: 100,
            max_queued_source_bytes: 1_000,
        }))
    }

    /// When a full engine asks to come back with `rows` rows, if its last requests ended so far
    /// apart.
    fn check(end_gap: Duration, rows: u32, wanted_seconds: u64) {
        let gate = gate(40);
        let _all = gate.reserve(40, 1, Time::ZERO).expect("an empty engine");
        let mut now = Time::ZERO;
        for _ in 0..100 {
            gate.note_end(now);
            now = now + end_gap;
        }
        let Err(Reject::QueueFull { retry_after, .. }) = gate.reserve(rows, 1, now) else {
            panic!("it is not full");
        };
        assert_eq!(retry_after.as_secs(), wanted_seconds);
    }

    #[test]
    fn who_is_refused_is_told_when_a_place_will_be_free() {
        check(Duration::from_secs(3), 1, 3);
        check(Duration::from_secs(3), 5, 15);
        check(Duration::from_millis(1), 1, 1);
        check(Duration::from_secs(3), 40, 60);
        check(Duration::ZERO, 1, 1);
    }

    #[test]
    fn pictures_are_counted_until_their_requests_end() {
        let gate = gate(40);
        let place = || gate.reserve(1, 1, Time::ZERO).expect("there is room");
        let (mut first, mut second, mut third) = (place(), place(), place());
        assert_eq!(first.hold_source(600, Time::ZERO), Ok(()));
        assert_eq!(second.hold_source(400, Time::ZERO), Ok(()));
        let Err(Reject::QueueFull { what, limit, .. }) = third.hold_source(1, Time::ZERO) else {
            panic!("it is not full");
        };
        assert_eq!((what, limit), ("max_queued_source_bytes", 1_000));
        drop(first);
        assert_eq!(third.hold_source(600, Time::ZERO), Ok(()));
        drop((second, third));
        // One that is too large by itself finds room when there is none beside it.
        assert_eq!(place().hold_source(5_000, Time::ZERO), Ok(()));
    }

    #[test]
    fn an_engine_that_has_stalled_says_so() {
        let gate = gate(1);
        let _all = gate.reserve(1, 1, Time::ZERO).expect("an empty engine");
        gate.note_end(Time::ZERO);
        let Err(Reject::QueueFull { retry_after, .. }) =
            gate.reserve(1, 1, Time::from_millis(20_000))
        else {
            panic!("it is not full");
        };
        assert_eq!(retry_after.as_secs(), 20);
    }
}
