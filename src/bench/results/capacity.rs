//! How much the server carries, and why no more.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::distribution::Estimate;

/// The answer of `bench capacity`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Capacity {
    /// All of it in a sentence or two.
    pub sentence: String,
    /// Users that it carries within the objectives, with the 95 % interval.
    pub users: Option<Estimate>,
    /// Requests per second that it carries within the objectives, with the 95 % interval.
    pub requests_per_second: Option<Estimate>,
    /// Whether nothing failed, so that the answer is a lower bound.
    pub lower_bound: bool,
    /// What is used up first.
    pub first_limit: Option<Limit>,
    /// What would be next.
    pub next_limit: Option<Limit>,
    /// Users against requests per second.
    pub littles_law: Option<LittlesLaw>,
    /// The answer of each search, in the unit that was searched in.
    pub searches: Vec<f64>,
    /// Why the search ended, in words.
    pub ended: String,
}

/// Something there is only so much of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Limit {
    /// What, in words: `slots`, `K/V memory`, `prefill compute`, ..
    pub name: String,
    /// The counter that proves it, as its source names it.
    pub counter: String,
    /// What the counter said at the capacity.
    pub value: f64,
    /// What it can say at most, if there is such a bound.
    pub bound: Option<f64>,
    /// Unit of both, such as `rows`, `ms`, `share`.
    pub unit: String,
    /// How it is told from the others, in a sentence.
    pub explanation: String,
}

/// Requests in flight = arrivals per second x time in the system. It holds for any steady system, so a
/// difference tells of a miscount or of a state that is not steady.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LittlesLaw {
    /// Requests in flight, counted: the mean over time.
    pub in_flight: f64,
    /// Requests per second that came in.
    pub requests_per_second: f64,
    /// Their mean time from start to end, in seconds.
    pub mean_seconds: f64,
    /// `in_flight / (requests_per_second * mean_seconds) - 1`.
    pub difference: f64,
    /// Whether that is within what is allowed.
    pub holds: bool,
}
