//! The last hour of every model, in points of [`RESOLUTION`]: a ring that never grows.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::api::history::{HistoryPoint, RESOLUTION};
use crate::batch::{FinishReason, Usage};
use crate::engine::{RequestEnd, Snapshot, StepReport};
use crate::time::{Clock, Time};

/// All models' rings.
pub(super) struct History {
    clock: Arc<dyn Clock>,
    models: BTreeMap<String, Mutex<Ring>>,
}

/// One model's points. The last one is that of `index`.
struct Ring {
    capacity: usize,
    index: u64,
    points: VecDeque<HistoryPoint>,
    /// How things stand, which the next point begins with.
    standing: HistoryPoint,
}

impl History {
    /// Keeps what happens from now on, for `length`; the memory is taken as it fills.
    pub(super) fn new<'a>(
        models: impl IntoIterator<Item = &'a str>,
        clock: Arc<dyn Clock>,
        length: Duration,
    ) -> Self {
        let points = length.as_micros().div_ceil(RESOLUTION.as_micros());
        let capacity = usize::try_from(points)
            .unwrap_or(usize::MAX)
            .saturating_add(1);
        let index = index_of(clock.now());
        let ring = || Ring {
            capacity,
            index,
            points: VecDeque::from([HistoryPoint::default()]),
            standing: HistoryPoint::default(),
        };
        let ring = |model: &str| (model.to_owned(), Mutex::new(ring()));
        History {
            models: models.into_iter().map(ring).collect(),
            clock,
        }
    }

    /// A model's points, oldest first; the last is still going on.
    pub(super) fn points(&self, model: &str) -> Vec<HistoryPoint> {
        let mut points = Vec::new();
        self.change(model, |_| {});
        if let Some(ring) = self.models.get(model) {
            points.extend(&lock(ring).points);
        }
        points
    }

    pub(super) fn rejected(&self, model: &str) {
        self.change(model, |point| point.refused += 1);
    }

    pub(super) fn started(&self, model: &str, queued: Duration) {
        self.change(model, |point| {
            point.started += 1;
            point.queued_ms += milliseconds(queued);
        });
    }

    pub(super) fn step(&self, model: &str, step: &StepReport) {
        let length = milliseconds(step.duration);
        let rows = step.begin_rows + step.iterate_rows + step.finish_rows;
        self.change(model, |point| {
            point.passes += 1;
            point.pass_ms += length;
            point.longest_pass_ms = point.longest_pass_ms.max(length);
            point.pass_rows += u64::from(rows);
            point.iterations += u64::from(step.iterate_rows);
        });
    }

    pub(super) fn token(&self, model: &str) {
        self.change(model, |point| point.tokens += 1);
    }

    pub(super) fn ended(&self, model: &str, end: RequestEnd, usage: Usage) {
        self.change(model, |point| {
            point.images += u64::from(usage.images);
            let count = match end {
                RequestEnd::Cancelled(_) | RequestEnd::Finished(FinishReason::Cancelled) => {
                    &mut point.cancelled
                }
                RequestEnd::Finished(_) => &mut point.finished,
                RequestEnd::Failed(_) => &mut point.failed,
            };
            *count += 1;
        });
    }

    pub(super) fn snapshot(&self, model: &str, snapshot: &Snapshot) {
        let Some(ring) = self.models.get(model) else {
            return;
        };
        let mut ring = lock(ring);
        ring.advance(self.clock.now());
        ring.standing = HistoryPoint {
            waiting_rows: snapshot.waiting_rows,
            running_rows: snapshot.running_rows,
            memory_units_used: snapshot.memory_units_used,
            ..HistoryPoint::default()
        };
        let point = ring.last();
        point.waiting_rows = point.waiting_rows.max(snapshot.waiting_rows);
        point.running_rows = point.running_rows.max(snapshot.running_rows);
        point.memory_units_used = point.memory_units_used.max(snapshot.memory_units_used);
    }

    fn change(&self, model: &str, change: impl FnOnce(&mut HistoryPoint)) {
        if let Some(ring) = self.models.get(model) {
            let mut ring = lock(ring);
            ring.advance(self.clock.now());
            change(ring.last());
        }
    }
}

impl Ring {
    /// Opens the point of `now`, and those in between, in which nothing happened.
    fn advance(&mut self, now: Time) {
        let index = index_of(now);
        let missing = index.saturating_sub(self.index).min(self.capacity as u64);
        for _ in 0..missing {
            self.points.push_back(self.standing);
            if self.points.len() > self.capacity {
                self.points.pop_front();
            }
        }
        self.index = self.index.max(index);
    }

    fn last(&mut self) -> &mut HistoryPoint {
        self.points.back_mut().expect("a ring begins with a point")
    }
}

fn index_of(time: Time) -> u64 {
    time.as_micros() / RESOLUTION.as_micros() as u64
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Points are valid after every statement, so a panic elsewhere does no harm.
fn lock(ring: &Mutex<Ring>) -> MutexGuard<'_, Ring> {
    ring.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::ManualClock;

    #[test]
    fn points_are_filled_in_turn_and_never_more_than_the_length() {
        let clock = Arc::new(ManualClock::default());
        let length = 3 * RESOLUTION;
        let history = History::new(["m"], Arc::clone(&clock) as Arc<dyn Clock>, length);
        let tokens = || -> Vec<u64> {
            history
                .points("m")
                .iter()
                .map(|point| point.tokens)
                .collect()
        };
        history.token("m");
        assert_eq!(tokens(), [1]);
        clock.advance(RESOLUTION);
        history.token("m");
        history.token("m");
        assert_eq!(tokens(), [1, 2]);
        clock.advance(2 * RESOLUTION);
        history.token("m");
        assert_eq!(tokens(), [1, 2, 0, 1]);
        clock.advance(RESOLUTION);
        assert_eq!(tokens(), [2, 0, 1, 0]);
        clock.advance(1_000_000 * RESOLUTION);
        assert_eq!(tokens(), [0, 0, 0, 0]);
        assert!(history.points("none").is_empty());
    }

    #[test]
    fn what_is_reported_is_summed_and_what_stands_is_carried_on() {
        let clock = Arc::new(ManualClock::default());
        let history = History::new(["m"], Arc::clone(&clock) as Arc<dyn Clock>, 2 * RESOLUTION);
        let step = |millis, iterate_rows| StepReport {
            duration: Duration::from_millis(millis),
            begin_rows: 1,
            iterate_rows,
            ..StepReport::default()
        };
        history.step("m", &step(30, 3));
        history.step("m", &step(10, 2));
        history.started("m", Duration::from_millis(250));
        history.rejected("m");
        let usage = Usage {
            images: 2,
            ..Usage::default()
        };
        history.ended("m", RequestEnd::Finished(FinishReason::Stop), usage);
        history.ended("m", RequestEnd::Cancelled(None), Usage::default());
        for (waiting_rows, running_rows) in [(4, 1), (1, 2)] {
            let snapshot = Snapshot {
                waiting_rows,
                running_rows,
                memory_units_used: 7,
                ..Snapshot::default()
            };
            history.snapshot("m", &snapshot);
        }
        clock.advance(RESOLUTION);
        let first = HistoryPoint {
            iterations: 5,
            images: 2,
            passes: 2,
            pass_ms: 40.0,
            longest_pass_ms: 30.0,
            pass_rows: 7,
            started: 1,
            queued_ms: 250.0,
            finished: 1,
            cancelled: 1,
            refused: 1,
            waiting_rows: 4,
            running_rows: 2,
            memory_units_used: 7,
            ..HistoryPoint::default()
        };
        let second = HistoryPoint {
            waiting_rows: 1,
            running_rows: 2,
            memory_units_used: 7,
            ..HistoryPoint::default()
        };
        assert_eq!(history.points("m"), [first, second]);
    }
}
