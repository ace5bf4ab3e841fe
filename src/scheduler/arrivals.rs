//! What came lately, and how fast: what is likely to come next.

use std::collections::VecDeque;
use std::time::Duration;

use super::Entry;
use crate::batch::{BatchKey, RowCost};
use crate::job::UserId;
use crate::time::Time;

/// So many rows are remembered.
const REMEMBERED: usize = 32;
/// Fewer say nothing of how fast they come.
const TELLING: usize = 8;
/// So many requests are remembered, with who asked.
const REMEMBERED_REQUESTS: usize = 512;

/// A request that came.
#[derive(Clone, Copy, Debug)]
struct Arrival {
    at: Time,
    entry: Entry,
    /// Its user has no earlier one among those remembered.
    is_first: bool,
}

/// A request that may come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Coming<'a> {
    pub(crate) at: Time,
    /// The request that it is expected to be like.
    pub(crate) like: &'a Entry,
    /// Its user will be somebody who was not here before.
    pub(crate) is_newcomers: bool,
}

/// The rows that came last, and the requests.
#[derive(Debug, Default)]
pub(crate) struct Arrivals {
    rows: VecDeque<(Time, BatchKey, RowCost)>,
    requests: VecDeque<Arrival>,
}

impl Arrivals {
    /// A request came.
    pub(crate) fn note(&mut self, now: Time, entry: &Entry) {
        for _ in 0..entry.rows.min(REMEMBERED as u32) {
            if self.rows.len() == REMEMBERED {
                self.rows.pop_front();
            }
            self.rows.push_back((now, entry.key, entry.cost));
        }
        let is_same_users = |other: &Arrival| other.entry.user == entry.user;
        let is_first = !self.requests.iter().any(is_same_users);
        if self.requests.len() == REMEMBERED_REQUESTS {
            self.requests.pop_front();
        }
        self.requests.push_back(Arrival {
            at: now,
            entry: *entry,
            is_first,
        });
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

    /// The next requests to come, with who may ask: the past mirrored, what came last first. As far ahead as one
    /// looks, so far back tells how much to expect; and of what has gone on for a short time only it is less and less
    /// likely that it goes on, so the mirrored times stretch with the age of what is remembered: half as dense as they were
    /// at that age.
    pub(crate) fn coming(&self, now: Time) -> impl Iterator<Item = Coming<'_>> {
        let age = self.requests.front().map(|oldest| now - oldest.at);
        let age = age.unwrap_or_default().as_secs_f64();
        self.requests.iter().rev().map(move |arrival| {
            let ago = (now - arrival.at).as_secs_f64();
            // The rate `1 / (1 + after / age)`, summed up to `after`, is `ago`.
            let after = match age > 0.0 {
                true => age * (ago / age).exp_m1(),
                false => 0.0,
            };
            Coming {
                at: now + Duration::from_secs_f64(after),
                like: &arrival.entry,
                is_newcomers: arrival.is_first,
            }
        })
    }

    /// Whether anybody but this user asked for something lately.
    pub(crate) fn are_of_others(&self, user: UserId) -> bool {
        self.requests
            .iter()
            .rev()
            .any(|arrival| arrival.entry.user != user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Priority, RequestId};

    fn entry(user: u64, rows: u32, key: u64) -> Entry {
        Entry {
            request: RequestId::from_u128(0),
            user: UserId(user),
            priority: Priority::Normal,
            rows,
            key: BatchKey(key),
            cost: RowCost {
                begin_work: 1,
                max_iterations: 5,
                iterate_work: 1,
                finish_work: 1,
                memory_units: 1,
            },
            deadline: None,
        }
    }

    #[test]
    fn what_came_is_expected_again_at_the_same_pace() {
        let mut arrivals = Arrivals::default();
        for i in 0..7 {
            arrivals.note(Time::from_millis(100 * i), &entry(0, 1, i));
        }
        let now = Time::from_millis(700);
        assert!(arrivals.expected(now).next().is_none(), "too few to tell");
        arrivals.note(now, &entry(0, 1, 7));
        let now = Time::from_millis(1_600);
        let next: Vec<(u64, u64)> = arrivals
            .expected(now)
            .take(9)
            .map(|(after, key, _)| (after.as_millis() as u64, key.0))
            .collect();
        assert_eq!(next[..2], [(200, 0), (400, 1)]);
        assert_eq!(next[7..], [(1_600, 7), (1_800, 0)]);
        arrivals.note(now, &entry(0, 1_000, 50));
        assert!(
            arrivals
                .expected(now)
                .take(99)
                .all(|(_, key, _)| key.0 == 50)
        );
    }

    #[test]
    fn those_to_come_mirror_those_who_came_and_thin_out() {
        let mut arrivals = Arrivals::default();
        let now = Time::from_millis(10_000);
        assert!(arrivals.coming(now).next().is_none());
        // When, whose; and then: when, whose, whether somebody new's.
        let came = [(0, 7), (5_000, 8), (9_000, 7), (10_000, 8)];
        let comes = [
            (10_000, 8, false),
            (11_052, 7, false),
            (16_487, 8, true),
            (27_183, 7, true),
        ];
        for (at, user) in came {
            arrivals.note(Time::from_millis(at), &entry(user, 1, 0));
        }
        let found: Vec<(u64, u64, bool)> = arrivals
            .coming(now)
            .map(|one| {
                let after = (one.at - Time::ZERO).as_secs_f64();
                let millis = (after * 1e3).round() as u64;
                (millis, one.like.user.0, one.is_newcomers)
            })
            .collect();
        assert_eq!(found, comes);
        assert!(arrivals.are_of_others(UserId(7)));
    }

    #[test]
    fn so_many_are_remembered() {
        let mut arrivals = Arrivals::default();
        for i in 0..2 * REMEMBERED_REQUESTS as u64 {
            arrivals.note(Time::from_millis(i), &entry(3, 1, 0));
        }
        let now = Time::from_millis(5_000);
        assert_eq!(arrivals.coming(now).count(), REMEMBERED_REQUESTS);
        assert!(!arrivals.are_of_others(UserId(3)));
    }
}
