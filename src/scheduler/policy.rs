//! Who may join the running set, and which compatible group steps next.

use crate::batch::{BatchKey, Capacity};
use crate::time::Time;

use super::queue::WaitingQueue;
use super::{Batching, Running, SchedulerConfig};

/// Who may be admitted before the next step. Those who may are taken in the order of arrival, and
/// the first that does not fit ends it: nobody overtakes a row that waits for memory.
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
) -> Joiners {
    match (config.batching, idle) {
        (Batching::Continuous, false) => Joiners::Anybody,
        (Batching::Dynamic, false) => Joiners::Nobody,
        (batching, true) => match released(config, capacity, now, waiting) {
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
) -> Option<BatchKey> {
    let oldest = waiting.front()?;
    if oldest.since + config.max_queue_delay <= now {
        return Some(oldest.key);
    }
    waiting.full_group(capacity.slots, capacity.memory_units)
}

/// When an idle engine should start with what waits: the past if it should already have.
pub(crate) fn release_time(
    config: &SchedulerConfig,
    capacity: Capacity,
    waiting: &WaitingQueue,
) -> Option<Time> {
    let oldest = waiting.front()?;
    if waiting
        .full_group(capacity.slots, capacity.memory_units)
        .is_some()
    {
        return Some(Time::ZERO);
    }
    Some(oldest.since + config.max_queue_delay)
}

/// The group that has gone without a step for longest; the earliest admitted wins a tie. Each group
/// has its turn, whatever its size.
pub(crate) fn next_group<'a>(running: impl Iterator<Item = &'a Running>) -> Option<BatchKey> {
    running
        .min_by_key(|row| (row.last_step, row.ticket))
        .map(|row| row.key)
}
