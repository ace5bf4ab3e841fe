//! What came lately, and how fast: what is likely to come next.

use std::collections::VecDeque;
use std::time::Duration;

use crate::batch::{BatchKey, RowCost};
use crate::time::Time;

/// So many rows are remembered.
const REMEMBERED: usize = 32;
/// Fewer say nothing of how fast they come.
const TELLING: usize = 8;

/// The rows that came last.
#[derive(Debug, Default)]
pub(crate) struct Arrivals {
    rows: VecDeque<(Time, BatchKey, RowCost)>,
}

impl Arrivals {
    /// A request came, with so many rows.
    pub(crate) fn note(&mut self, now: Time, rows: u32, key: BatchKey, cost: RowCost) {
        for _ in 0..rows.min(REMEMBERED as u32) {
            if self.rows.len() == REMEMBERED {
                self.rows.pop_front();
            }
            self.rows.push_back((now, key, cost));
        }
    }

    /// The next rows to come if all goes on as it lately went, each with the time from now to its coming. A
    /// silence since the last makes them rarer.
    pub(crate) fn expected(
        &self,
        now: Time,
    ) -> impl Iterator<Item = (Duration, BatchKey, &RowCost)> {
        let told = self.rows.len() >= TELLING;
        let oldest = self.rows.front().filter(|_| told).map(|(at, ..)| *at);
        let known = self.rows.len() as u32;
        let interval = oldest.map(|oldest| (now - oldest) / known);
        let next = (1..).zip(self.rows.iter().cycle());
        interval.into_iter().flat_map(move |interval| {
            let next = next.clone();
            next.map(move |(number, (_, key, cost))| (interval * number, *key, cost))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(max_iterations: u32) -> RowCost {
        RowCost {
            begin_work: 1,
            max_iterations,
            iterate_work: 1,
            finish_work: 1,
            memory_units: 1,
        }
    }

    #[test]
    fn what_came_is_expected_again_at_the_same_pace() {
        let mut arrivals = Arrivals::default();
        for i in 0..7 {
            arrivals.note(Time::from_millis(100 * i), 1, BatchKey(i), cost(5));
        }
        let now = Time::from_millis(700);
        assert!(arrivals.expected(now).next().is_none(), "too few to tell");
        arrivals.note(now, 1, BatchKey(7), cost(9));
        let now = Time::from_millis(1_600);
        let next: Vec<(u64, u64)> = arrivals
            .expected(now)
            .take(9)
            .map(|(after, key, _)| (after.as_millis() as u64, key.0))
            .collect();
        assert_eq!(next[..2], [(200, 0), (400, 1)]);
        assert_eq!(next[7..], [(1_600, 7), (1_800, 0)]);
        arrivals.note(now, 1_000, BatchKey(50), cost(9));
        assert!(
            arrivals
                .expected(now)
                .take(99)
                .all(|(_, key, _)| key.0 == 50)
        );
    }
}
