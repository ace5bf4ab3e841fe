//! A point, second by second.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A point, second by second, warm-up and drain included.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Timeline {
    /// When the measured window began, in seconds since the point's start.
    pub measured_from_seconds: f64,
    /// When it ended.
    pub measured_to_seconds: f64,
    /// One entry per second.
    pub seconds: Vec<Second>,
}

/// What happened since the entry before. Fields that nobody told are left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Second {
    /// The end of this second, in seconds since the point's start.
    pub at_seconds: f64,
    /// Requests that were due.
    pub due: u32,
    /// Requests that completed.
    pub completed: u32,
    /// Requests that ended badly.
    pub bad: u32,
    /// Streams that are open, at its end.
    pub open_streams: u32,
    /// Tokens that came.
    pub output_tokens: u32,
    /// Frame gaps longer than the stall limit that ended here.
    pub stalls: u32,
    /// The longest frame gap that ended here, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub longest_stall_ms: Option<f64>,
    /// Median time to first token of the requests whose first token came, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_to_first_token_ms: Option<f64>,
    /// Requests that wait in the server, at its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued_requests: Option<f64>,
    /// Rows that run in the server, at its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running_rows: Option<f64>,
    /// Mean rows of a step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_fill_rows: Option<f64>,
    /// Mean length of a step, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_ms: Option<f64>,
    /// Of the K/V cache in use, at its end, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_share: Option<f64>,
    /// Processor time of the client, in cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_cores: Option<f64>,
    /// Processor time of the server, in cores, when it runs here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_cores: Option<f64>,
    /// Of all GPUs' time, busy, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_share: Option<f64>,
    /// Of all GPUs together, in watts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_watts: Option<f64>,
}
