//! What the machines did in the measured window, what that took, and what it costs.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What the machines did. What cannot be read is missing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Devices {
    /// The bench itself.
    pub client: Option<ProcessUse>,
    /// The server, when it runs on the same machine.
    pub server: Option<ProcessUse>,
    /// The GPUs that were looked at.
    pub gpus: Vec<GpuUse>,
}

/// What a process used.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProcessUse {
    /// Processor time by time passed: 1 is one core, all the while.
    pub cores: f64,
    /// The most of any second, in cores.
    pub peak_cores: Option<f64>,
    /// The most memory that it had, in bytes.
    pub peak_memory_bytes: u64,
}

/// What a GPU did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GpuUse {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Of the time, busy, 0 to 1, as its driver tells.
    pub busy_share: Option<f64>,
    /// The most memory in use, in bytes.
    pub peak_memory_bytes: Option<u64>,
    /// Its memory, in bytes.
    pub memory_bytes: Option<u64>,
    /// Mean power, in watts.
    pub watts: Option<f64>,
    /// Its power limit, in watts.
    pub limit_watts: Option<f64>,
    /// Mean clock of its processors, in megahertz.
    pub clock_mhz: Option<f64>,
    /// Why it was slowed down, as its driver tells; empty if it was not.
    pub throttled: Vec<String>,
}

/// Energy of the measured window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Energy {
    /// Where it was read: `nvml`, `rapl`, ..; what it leaves out is not counted.
    pub source: String,
    /// Energy, in joules.
    pub joules: f64,
    /// By the tokens of answers, in joules.
    pub joules_per_output_token: Option<f64>,
    /// By pictures, in joules.
    pub joules_per_image: Option<f64>,
}

/// What it costs at the given price.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Cost {
    /// What all figures are in, such as `USD`.
    pub currency: String,
    /// The price of the machine for an hour.
    pub per_hour: f64,
    /// By a million tokens of answers.
    pub per_million_output_tokens: Option<f64>,
    /// By a thousand pictures.
    pub per_thousand_images: Option<f64>,
    /// By a million good requests.
    pub per_million_good_requests: Option<f64>,
}
