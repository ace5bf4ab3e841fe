//! When will a waiting request start? The queue played forward over the slots, by measured costs.
//!
//! One sweep answers for the whole queue in `O(n log slots)`, and a newcomer is added to the end of
//! it in `O(log slots)`: telling everybody their place costs no more than that, however many wait.
//!
//! Time in the sweep is counted in iterations of a full batch. Prefill, and an image's decoding, come on
//! top: they hold up everybody, whoever's they are.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use crate::time::Time;

/// What a row will take, as far as can be told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RowForecast {
    pub(crate) iterations: f64,
    /// Its `Begin` and `Finish` work.
    pub(crate) solo_seconds: f64,
    pub(crate) memory_units: u32,
}

/// What is free when the sweep begins, and the rules it follows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Outlook {
    pub(crate) now: Time,
    /// One iteration of a full batch; `None` until that has been measured.
    pub(crate) step_seconds: Option<f64>,
    pub(crate) free_slots: u32,
    pub(crate) free_memory_units: u32,
    /// Nobody joins before the whole batch has ended.
    pub(crate) dynamic: bool,
    /// How long an idle engine will wait for its batch to fill.
    pub(crate) idle_delay: Duration,
}

/// The sweep, as far as it has come: rows are pushed in the order of the queue.
#[derive(Clone, Debug)]
pub(crate) struct Forecast {
    outlook: Outlook,
    /// Iteration at which a slot is free again, with the row's memory; earliest first.
    ends: BinaryHeap<Reverse<(u64, u32)>>,
    last_end: u64,
    /// Where the sweep stands: iterations, and seconds from its beginning.
    iteration: u64,
    seconds: Option<f64>,
    solo_seconds: f64,
}

impl Forecast {
    /// A sweep that begins with these rows running.
    pub(crate) fn new(outlook: Outlook, running: impl Iterator<Item = RowForecast>) -> Self {
        let mut forecast = Forecast {
            outlook,
            ends: BinaryHeap::new(),
            last_end: 0,
            iteration: 0,
            seconds: Some(0.0),
            solo_seconds: 0.0,
        };
        for row in running {
            forecast.occupy(row);
        }
        if forecast.ends.is_empty() {
            forecast.seconds = Some(outlook.idle_delay.as_secs_f64());
        } else if outlook.dynamic {
            forecast.free_next();
        }
        forecast
    }

    /// Adds a row at the end of the queue. Returns when it starts, if that can be told.
    pub(crate) fn push(&mut self, row: RowForecast) -> Option<Time> {
        while (self.outlook.free_slots == 0 || self.outlook.free_memory_units < row.memory_units)
            && !self.ends.is_empty()
        {
            self.free_next();
        }
        self.outlook.free_slots = self.outlook.free_slots.saturating_sub(1);
        self.outlook.free_memory_units = self
            .outlook
            .free_memory_units
            .saturating_sub(row.memory_units);
        self.occupy(row);
        self.time(self.seconds)
    }

    /// When a small row that came at the end of the queue would start.
    pub(crate) fn next_start(&self) -> Option<Time> {
        if self.outlook.free_slots > 0 {
            return self.time(self.seconds);
        }
        let end = match (self.outlook.dynamic, self.ends.peek()) {
            (false, Some(Reverse((end, _)))) => *end,
            _ => self.last_end,
        };
        self.time(self.seconds_at(end))
    }

    fn occupy(&mut self, row: RowForecast) {
        let end = self.iteration + row.iterations.ceil() as u64;
        self.ends.push(Reverse((end, row.memory_units)));
        self.last_end = self.last_end.max(end);
        self.solo_seconds += row.solo_seconds;
    }

    /// Goes on to the next time that slots are free: one slot, or with `dynamic` all of them.
    fn free_next(&mut self) {
        while let Some(Reverse((end, memory_units))) = self.ends.pop() {
            self.iteration = self.iteration.max(end);
            self.outlook.free_slots += 1;
            self.outlook.free_memory_units += memory_units;
            if !self.outlook.dynamic {
                break;
            }
        }
        self.seconds = self.seconds_at(self.iteration);
    }

    fn seconds_at(&self, iteration: u64) -> Option<f64> {
        let iterating = self.outlook.step_seconds? * iteration as f64;
        Some(iterating + self.solo_seconds)
    }

    fn time(&self, seconds: Option<f64>) -> Option<Time> {
        let after = Duration::try_from_secs_f64(seconds?).ok()?;
        Some(self.outlook.now + after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(iterations: f64) -> RowForecast {
        RowForecast {
            iterations,
            solo_seconds: 0.0,
            memory_units: 1,
        }
    }

    fn outlook(free_slots: u32, dynamic: bool) -> Outlook {
        Outlook {
            now: Time::from_millis(1_000),
            step_seconds: Some(0.1),
            free_slots,
            free_memory_units: 100,
            dynamic,
            idle_delay: Duration::from_millis(7),
        }
    }

    /// Starts of `queue`, in milliseconds from now.
    fn check(outlook: Outlook, running: &[f64], queue: &[f64], starts: &[u64]) {
        let mut forecast = Forecast::new(outlook, running.iter().copied().map(row));
        let found: Vec<Time> = queue
            .iter()
            .map(|&iterations| forecast.push(row(iterations)).expect("costs are known"))
            .collect();
        let wanted: Vec<Time> = starts
            .iter()
            .map(|&millis| outlook.now + Duration::from_millis(millis))
            .collect();
        assert_eq!(found, wanted);
    }

    #[test]
    fn slots_are_taken_over_as_they_become_free() {
        check(
            outlook(0, false),
            &[10.0, 30.0],
            &[5.0, 5.0, 50.0, 1.0],
            &[1000, 1500, 2000, 3000],
        );
        check(outlook(1, false), &[10.0], &[5.0, 5.0], &[0, 500]);
        check(outlook(2, false), &[], &[5.0, 5.0, 5.0], &[7, 7, 500]);
    }

    #[test]
    fn a_dynamic_batch_ends_as_a_whole() {
        check(
            outlook(0, true),
            &[10.0, 30.0],
            &[5.0, 8.0, 1.0],
            &[3000, 3000, 3800],
        );
        check(outlook(1, true), &[10.0], &[5.0], &[1000]);
    }

    #[test]
    fn prefill_and_memory_count() {
        let mut forecast = Forecast::new(outlook(0, false), [row(10.0)].into_iter());
        let large = RowForecast {
            solo_seconds: 2.0,
            memory_units: 101,
            ..row(1.0)
        };
        assert_eq!(forecast.push(large), Some(Time::from_millis(2_000)));
        assert_eq!(forecast.next_start(), Some(Time::from_millis(4_100)));
        assert_eq!(forecast.push(row(1.0)), Some(Time::from_millis(4_100)));
    }

    #[test]
    fn without_measured_steps_only_a_free_slot_can_be_told() {
        let unknown = Outlook {
            step_seconds: None,
            ..outlook(1, false)
        };
        let mut forecast = Forecast::new(unknown, [row(10.0)].into_iter());
        assert_eq!(forecast.push(row(1.0)), Some(unknown.now));
        assert_eq!(forecast.push(row(1.0)), None);
    }
}
