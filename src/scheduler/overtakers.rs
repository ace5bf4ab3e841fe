//! When will somebody start before whom others may still come? The turns of the queue itself played forward,
//! with the requests that are likely to come meanwhile.
//!
//! The order of turns as of now is what [`places`](super::places) goes by. It is the whole truth for whoever nobody can
//! overtake; to who has asked for much it promises too much, since users who come later and have had less go
//! before.

use std::collections::HashMap;

use super::arrivals::Coming;
use super::queue::Waiting;
use super::{Entry, Scheduler};
use crate::batch::Prefix;
use crate::job::{RequestId, UserId};
use crate::time::Time;

/// A request that comes while more rows wait is told what the present order says, and the rest by the next survey:
/// playing a longer queue forward for each that comes would hold up the passes.
const MAX_PLAYED_AT_ONCE: u32 = 512;

impl Scheduler {
    /// When waiting requests should start if others may go before them, in a queue that others ask in, too.
    pub(super) fn starts_of_overtaken(&self, now: Time) -> HashMap<RequestId, Time> {
        let first = self.waiting.oldest().map(|waiting| waiting.user);
        match first.is_some_and(|user| self.are_overtakers_likely(user)) {
            true => self.starts_with_overtakers(now, None),
            false => HashMap::new(),
        }
    }

    /// When a request that has just come should start, if others may go before it: `None` if none may, or that
    /// can't be told.
    pub(super) fn start_behind_overtakers(&self, now: Time, request: RequestId) -> Option<Time> {
        let is_short = self.waiting.rows() <= MAX_PLAYED_AT_ONCE;
        let newest = self.waiting.newest_may_be_overtaken(now, request);
        if !is_short || !newest.is_some_and(|user| self.are_overtakers_likely(user)) {
            return None;
        }
        self.starts_with_overtakers(now, Some(request))
            .get(&request)
            .copied()
    }

    /// Whether any requests of others are likely to come, in an order that can be played forward.
    fn are_overtakers_likely(&self, user: UserId) -> bool {
        !self.batches_are_sorted() && self.arrivals.are_of_others(user)
    }

    /// When the next row of each waiting request should start, as far as can be told; or of those up to `last`.
    fn starts_with_overtakers(
        &self,
        now: Time,
        last: Option<RequestId>,
    ) -> HashMap<RequestId, Time> {
        let mut starts = HashMap::new();
        let mut left = self.waiting.requests();
        let mut forecast = self.new_forecast(now);
        let mut queue = self.waiting.clone();
        let mut coming = self.arrivals.coming(now).zip(0..).peekable();
        while left > 0
            && let Some(next_start) = forecast.next_start()
        {
            while let Some((one, number)) = coming.next_if(|(one, _)| one.at <= next_start) {
                queue.push(likely(&one, number));
            }
            let Some((ticket, first)) = queue.first(next_start, None, |_| true) else {
                break;
            };
            let Some(start) = self.push_row(&mut forecast, first.key, &first.cost) else {
                break;
            };
            let request = queue.take_row(ticket).request;
            if self.waiting.contains(request) && starts.insert(request, start).is_none() {
                left -= 1;
            }
            if last == Some(request) {
                break;
            }
        }
        starts
    }
}

/// A request that is likely to come, the `number`th: under names that nobody else has.
fn likely(coming: &Coming<'_>, number: u64) -> Waiting {
    let user = match coming.is_newcomers {
        true => UserId(u64::MAX - number),
        false => coming.like.user,
    };
    let entry = Entry {
        request: RequestId::from_u128(u128::MAX - u128::from(number)),
        user,
        deadline: None,
        ..*coming.like
    };
    Waiting::new(coming.at, &entry, Prefix::default())
}
