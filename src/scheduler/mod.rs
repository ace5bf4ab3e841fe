//! Who runs next: a pure state machine, told the time, answering with data.

use std::time::Duration;

/// When newcomers may join a running batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batching {
    /// At the next step.
    Continuous,
    /// When the batch has ended.
    Dynamic,
}

/// The scheduler's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Rows that may run at once.
    pub batch_size: u32,
    /// How long the oldest waiting row may be kept waiting for an idle engine's batch to fill.
    pub max_queue_delay: Duration,
    /// When newcomers may join.
    pub batching: Batching,
    /// How long one step should take at most: it caps the prefill chunks that share a pass with
    /// decoding rows.
    pub step_budget: Duration,
}
