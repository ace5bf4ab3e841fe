//! What a model did lately, in equal stretches of time: the operator's plots. Kept by `telemetry`.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How long a point lasts.
pub const RESOLUTION: Duration = Duration::from_secs(10);

/// One model's points, oldest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ModelHistory {
    /// Its name.
    pub name: String,
    /// The last one is still going on.
    pub points: Vec<HistoryPoint>,
}

/// What happened in one stretch of time, and how things stood at its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HistoryPoint {
    /// New tokens of all rows.
    pub tokens: u64,
    /// Rows that decoded or denoised, summed over the passes: of pictures, their denoising steps.
    pub iterations: u64,
    /// Pictures of the requests that ended.
    pub images: u64,
    /// Forward passes.
    pub passes: u64,
    /// Time in them.
    pub pass_ms: f64,
    /// The longest of them.
    pub longest_pass_ms: f64,
    /// Rows in them, summed.
    pub pass_rows: u64,
    /// Requests whose first row started.
    pub started: u64,
    /// Time that these had waited, summed.
    pub queued_ms: f64,
    /// Requests that ended well.
    pub finished: u64,
    /// Requests that were cancelled.
    pub cancelled: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Requests that were not taken.
    pub refused: u64,
    /// Rows that waited, at most.
    pub waiting_rows: u32,
    /// Rows that ran, at most.
    pub running_rows: u32,
    /// Memory units in use, at most.
    pub memory_units_used: u32,
}
