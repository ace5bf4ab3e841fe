//! Who may join the running set, and how much of a step's time goes to `Begin` work.

use std::time::Duration;

use crate::batch::{BatchKey, Capacity};
use crate::job::UserId;
use crate::time::Time;

use super::queue::WaitingQueue;
use super::{Batching, SchedulerConfig};

/// Who may be admitted before the next step. Those who may are taken in the order of their turns, and
/// the first that does not fit ends it: a row that waits for memory is overtaken by those only who come and
/// have an earlier turn, and that is never somebody again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Joiners {
    Nobody,
    Anybody,
    Only(BatchKey),
}

/// The batching rule: an idle engine waits for a full batch or for the oldest waiter's window to
/// end; a busy one lets newcomers in at once (`continuous`) or not before it is idle (`dynamic`).
pub(crate) fn joiners(
    config: &SchedulerConfig,
    capacity: Capacity,
    now: Time,
    waiting: &WaitingQueue,
    idle: bool,
    user_may: impl Fn(UserId) -> bool,
) -> Joiners {
    match (config.batching, idle) {
        (Batching::Continuous, false) => Joiners::Anybody,
        (Batching::Dynamic, false) => Joiners::Nobody,
        (batching, true) => match released(config, capacity, now, waiting, user_may) {
            None => Joiners::Nobody,
            Some(_) if batching == Batching::Continuous => Joiners::Anybody,
            Some(key) => Joiners::Only(key),
        },
    }
}

/// The group that an idle engine should start with now, if it should wait no longer.
fn released(
    config: &SchedulerConfig,
    capacity: Capacity,
    now: Time,
    waiting: &WaitingQueue,
    user_may: impl Fn(UserId) -> bool,
) -> Option<BatchKey> {
    let oldest = waiting.oldest()?;
    if oldest.since + config.max_queue_delay <= now {
        let (_, first) = waiting.first(now, None, user_may)?;
        return Some(first.key);
    }
    waiting.full_group(capacity.slots, capacity.memory_units)
}

/// When an idle engine should start with what waits: the past if it should already have.
pub(crate) fn release_time(
    config: &SchedulerConfig,
    capacity: Capacity,
    waiting: &WaitingQueue,
) -> Option<Time> {
    let oldest = waiting.oldest()?;
    if waiting
        .full_group(capacity.slots, capacity.memory_units)
        .is_some()
    {
        return Some(Time::ZERO);
    }
    Some(oldest.since + config.max_queue_delay)
}

/// Where nobody's stream waits for it, `Begin` work may fill so many step budgets at once: larger
/// chunks are cheaper, but newcomers and cancels wait for the end of the pass.
const SOLO_BUDGETS: f64 = 4.0;
/// `Begin` work gets this share of the budget even if iterating rows alone exceed it; prompts would
/// starve behind a full batch otherwise.
const LEAST_SHARE: f64 = 0.25;
/// And of a pass that takes many budgets (a large picture's step), this share: nobody notices it, and
/// pictures that came together would begin one by one otherwise.
const LONG_PASS_SHARE: f64 = 0.1;

/// Seconds of `Begin` work in a pass that takes `other_seconds` without it.
pub(crate) fn begin_seconds(step_budget: Duration, other_seconds: f64, solo: bool) -> f64 {
    let budget = step_budget.as_secs_f64();
    let whole = if solo { budget * SOLO_BUDGETS } else { budget };
    (whole - other_seconds)
        .max(budget * LEAST_SHARE)
        .max(other_seconds * LONG_PASS_SHARE)
}
