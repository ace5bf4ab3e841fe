//! Who may come in: counts of rows, prompt tokens and source pictures in the engine, and when to come back.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{EngineConfig, Reject};
use crate::job::UserId;
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
    max_rows_per_user: u32,
    max_waiting_per_user: Option<u32>,
    rows: AtomicU32,
    tokens: AtomicU64,
    source_bytes: AtomicU64,
    /// Rows of each user that has some: no more entries than there are rows.
    rows_of: Mutex<HashMap<UserId, u32>>,
    /// When the latest requests ended, oldest first.
    ends: Mutex<VecDeque<Time>>,
}

impl Gate {
    pub(super) fn new(config: &EngineConfig) -> Self {
        Gate {
            max_rows_per_user: config.max_rows_per_user(),
            max_waiting_per_user: config.scheduler.fairness.max_waiting_per_user,
            rows_of: Mutex::default(),
            max_rows: config.max_rows(),
            max_queued_requests: config.max_queued_requests,
            max_tokens: config.max_queued_tokens,
            max_source_bytes: config.max_queued_source_bytes,
            rows: AtomicU32::new(0),
            tokens: AtomicU64::new(0),
            source_bytes: AtomicU64::new(0),
            ends: Mutex::new(VecDeque::new()),
        }
    }

    /// Rows of one user that may be in the engine.
    pub(super) fn max_rows_per_user(&self) -> u32 {
        self.max_rows_per_user
    }

    /// Takes a place, or says which limit is in the way.
    pub(super) fn reserve(
        self: &Arc<Self>,
        user: UserId,
        rows: u32,
        tokens: u64,
        now: Time,
    ) -> Result<Permit, Reject> {
        self.reserve_of_user(user, rows, now)?;
        // From here on the user's rows are given back with the permit.
        let mut permit = Permit {
            gate: Arc::clone(self),
            user,
            user_rows: rows,
            rows: 0,
            tokens: 0,
            source_bytes: 0,
        };
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
        permit.rows = rows;
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

    /// Counts rows of a user, or says that these are too many.
    fn reserve_of_user(&self, user: UserId, rows: u32, now: Time) -> Result<(), Reject> {
        let mut rows_of = self.rows_of.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = rows_of.get(&user).copied().unwrap_or(0);
        let sum = taken.saturating_add(rows);
        let over = sum.saturating_sub(self.max_rows_per_user);
        match self.max_waiting_per_user {
            Some(limit) if over > 0 => Err(Reject::UserQueueFull {
                limit,
                retry_after: self.retry_after(now, f64::from(over)),
            }),
            _ => {
                rows_of.insert(user, sum);
                Ok(())
            }
        }
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
    user: UserId,
    user_rows: u32,
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

    /// Whose place it is.
    pub(super) fn user(&self) -> UserId {
        self.user
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
        let mut rows_of = self
            .gate
            .rows_of
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(rows) = rows_of.get_mut(&self.user) {
            *rows = rows.saturating_sub(self.user_rows);
            if *rows == 0 {
                rows_of.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::{Batching, Fairness, SchedulerConfig};

    const ALICE: UserId = UserId(1);
    const BOB: UserId = UserId(2);

    fn gate(batch_size: u32) -> Arc<Gate> {
        fair_gate(batch_size, 0, Fairness::default())
    }

    fn fair_gate(batch_size: u32, max_queued_requests: u32, fairness: Fairness) -> Arc<Gate> {
        Arc::new(Gate::new(&EngineConfig {
            devices: 1,
            scheduler: SchedulerConfig {
                batch_size,
                max_queue_delay: Duration::ZERO,
                batching: Batching::Continuous,
                step_budget: Duration::from_millis(50),
                fairness,
            },
            max_queued_requests,
            max_queued_tokens: 100,
            max_queued_source_bytes: 1_000,
        }))
    }

    /// When a full engine asks to come back with `rows` rows, if its last requests ended so far
    /// apart.
    fn check(end_gap: Duration, rows: u32, wanted_seconds: u64) {
        let gate = gate(40);
        let _all = gate
            .reserve(ALICE, 40, 1, Time::ZERO)
            .expect("an empty engine");
        let mut now = Time::ZERO;
        for _ in 0..100 {
            gate.note_end(now);
            now = now + end_gap;
        }
        let Err(Reject::QueueFull { retry_after, .. }) = gate.reserve(ALICE, rows, 1, now) else {
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
        let place = || {
            gate.reserve(ALICE, 1, 1, Time::ZERO)
                .expect("there is room")
        };
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
        let _all = gate
            .reserve(ALICE, 1, 1, Time::ZERO)
            .expect("an empty engine");
        gate.note_end(Time::ZERO);
        let Err(Reject::QueueFull { retry_after, .. }) =
            gate.reserve(ALICE, 1, 1, Time::from_millis(20_000))
        else {
            panic!("it is not full");
        };
        assert_eq!(retry_after.as_secs(), 20);
    }

    #[test]
    fn one_user_has_a_part_of_the_places() {
        let fairness = Fairness {
            max_waiting_per_user: Some(3),
            max_running_per_user: Some(2),
            ..Fairness::default()
        };
        let gate = fair_gate(4, 100, fairness);
        assert_eq!(gate.max_rows_per_user(), 5);
        let reserve = |user, rows| gate.reserve(user, rows, 1, Time::ZERO);
        let mut alices = vec![reserve(ALICE, 3), reserve(ALICE, 2)];
        let Err(Reject::UserQueueFull { limit, retry_after }) = reserve(ALICE, 1) else {
            panic!("a sixth was taken");
        };
        assert_eq!((limit, retry_after), (3, MIN_RETRY_AFTER));
        assert!(reserve(BOB, 5).is_ok(), "nobody else is refused for it");
        alices.pop();
        assert!(reserve(ALICE, 2).is_ok(), "what has ended is given back");
        drop(alices);
        assert_eq!(gate.rows_of.lock().unwrap().len(), 0, "and forgotten");
    }

    #[test]
    fn a_refusal_takes_nothing() {
        let gate = fair_gate(1, 0, Fairness::default());
        let all = gate.reserve(ALICE, 1, 1, Time::ZERO);
        assert!(gate.reserve(BOB, 1, 1, Time::ZERO).is_err());
        assert_eq!(gate.rows_of.lock().unwrap().len(), 1);
        drop(all);
        assert!(gate.reserve(BOB, 1, 1, Time::ZERO).is_ok());
    }
}
