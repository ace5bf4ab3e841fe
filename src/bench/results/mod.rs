//! What `bench run` and `bench capacity` found, as it is written and read again: the JSON file, field for
//! field. The load generator fills it; [`crate::bench`]'s reports only read it.
//!
//! **Units.** Latencies are milliseconds (`_ms`, or said at the field), all other times seconds
//! (`_seconds`), shares are 0 to 1, rates are per second, sizes are bytes. **Instants.** Every latency
//! counts from the request's *intended* start, which the arrival process drew before the run; what the
//! client itself lost is `client_lag`. **Intervals** hold the true value with 95 % confidence. **Missing**
//! figures are `null`: too few samples, or nobody told. Numbers are finite.
//!
//! Nothing here holds a prompt, an answer or a key.

mod capacity;
mod device;
mod distribution;
mod point;
mod setup;
mod timeline;

pub use capacity::{Capacity, Limit, LittlesLaw};
pub use device::{Cost, Devices, Energy, GpuUse, ProcessUse};
pub use distribution::{Distribution, Estimate, MIN_SAMPLES_ABOVE};
pub use point::{
    CacheUse, Counter, Counts, ErrorCount, Goodput, Latencies, ObjectiveResult, Offered, Outcome,
    Point, SteadyState, Throughput, Verdict, Windows,
};
pub use setup::{
    Api, Arrivals, ClientSide, ImageMix, Lengths, Load, Metric, Objective, Objectives, ServerSide,
    SharedPrefix, Task,
};
pub use timeline::{Second, Timeline};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What the object is called; its meaning changes with the version only.
pub const SCHEMA: &str = "girandole.bench";
/// Counts changes of a field's meaning or name. New fields do not count.
pub const SCHEMA_VERSION: u32 = 1;

/// Which command took the measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BenchKind {
    /// `bench run`: the points that were asked for.
    Run,
    /// `bench capacity`: the points that the search visited.
    Capacity,
}

/// A finished measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BenchReport {
    /// [`SCHEMA`].
    pub schema: String,
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Which command took it.
    pub kind: BenchKind,
    /// A name for people, if one was given; the same in all reports of one setup.
    pub label: Option<String>,
    /// When the first request was due, in seconds since 1970 (UTC).
    pub started_unix_seconds: u64,
    /// From then until the last point was done, in seconds.
    pub duration_seconds: f64,
    /// Who asked, and what for.
    pub client: ClientSide,
    /// Who answered, as far as it told.
    pub server: ServerSide,
    /// The answer of `bench capacity`.
    pub capacity: Option<Capacity>,
    /// Everything that was measured, in the order of time. Repeats of one load are points of their own.
    pub points: Vec<Point>,
    /// What a reader should know before believing the figures, one sentence each.
    pub warnings: Vec<String>,
}
