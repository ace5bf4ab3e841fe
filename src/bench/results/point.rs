//! One load, offered for a while, and what became of it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::capacity::LittlesLaw;
use super::device::{Cost, Devices, Energy};
use super::distribution::{Distribution, Estimate};
use super::setup::{Metric, Objective};
use super::timeline::Timeline;

/// One load, offered for a while. Its figures are those of the requests that were *due* in the measured
/// window, also if they ended after it; requests of the warm-up and the drain only keep the load up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Point {
    /// Why it was measured: `asked`, `idle`, `flood`, `search`, `confirm`, ..
    pub purpose: String,
    /// Counts repeats of the same load, from 0.
    pub repeat: u32,
    /// How much was asked for.
    pub offered: Offered,
    /// Since the report's start, in seconds.
    pub started_seconds: f64,
    /// How its time was divided.
    pub windows: Windows,
    /// Requests, by how they ended.
    pub counts: Counts,
    /// What they took.
    pub latencies: Latencies,
    /// What came out.
    pub throughput: Throughput,
    /// What of it was good.
    pub goodput: Goodput,
    /// Whether the load can be carried.
    pub verdict: Verdict,
    /// Requests in flight, against arrivals and times.
    pub littles_law: Option<LittlesLaw>,
    /// What the prompts found in the server's prefix cache, if it tells.
    pub cache: Option<CacheUse>,
    /// The server's own counters around the measured window; empty if it has none.
    pub counters: Vec<Counter>,
    /// Second by second.
    pub timeline: Timeline,
    /// What the machines did meanwhile.
    pub devices: Devices,
    /// Energy of the measured window, where it can be read.
    pub energy: Option<Energy>,
    /// What that costs, if a price was given.
    pub cost: Option<Cost>,
}

/// How much is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "load", rename_all = "snake_case")]
pub enum Offered {
    /// An open load: so many requests, however fast the answers are.
    Rate {
        /// Requests due per second; of a trace, its mean.
        requests_per_second: f64,
    },
    /// A closed load: so many users at once.
    Users {
        /// Users, each with at most one request in flight.
        users: u32,
    },
}

impl Offered {
    /// The number alone: requests per second, or users.
    pub fn amount(&self) -> f64 {
        match *self {
            Offered::Rate {
                requests_per_second,
            } => requests_per_second,
            Offered::Users { users } => f64::from(users),
        }
    }

    /// What the number counts.
    pub fn unit(&self) -> &'static str {
        match self {
            Offered::Rate { .. } => "requests/s",
            Offered::Users { .. } => "users",
        }
    }
}

/// How the time of a point was divided.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Windows {
    /// Load before the measured window, in seconds; goes over into it without a gap.
    pub warm_up_seconds: f64,
    /// The measured window, in seconds.
    pub measured_seconds: f64,
    /// From the end of the measured window until its last request ended, in seconds.
    pub drain_seconds: f64,
    /// Whether the load was steady in the measured window.
    pub steady: SteadyState,
}

/// Whether, and since when, the figures no longer drift.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SteadyState {
    /// Whether it was found.
    pub reached: bool,
    /// Since the point's start, in seconds.
    pub since_seconds: Option<f64>,
    /// How it is told.
    pub method: String,
}

/// Requests due in the measured window. All but `completed` are bad.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Counts {
    /// Requests that were due: the sum of all that follow, up to `errors`.
    pub due: u64,
    /// Answered to the end, with a finish reason.
    pub completed: u64,
    /// Refused by the server: 429 and 503.
    pub refused: u64,
    /// Given up by the client for lack of an answer in time.
    pub timed_out: u64,
    /// Streams that broke off, or came with fewer tokens than were asked for and no reason to stop.
    pub truncated: u64,
    /// Streams that ended in order but for a finish reason.
    pub no_finish_reason: u64,
    /// Everything else that went wrong.
    pub errors: u64,
    /// The errors, by kind; at most 16 kinds, the last of which is `other`.
    pub error_kinds: Vec<ErrorCount>,
    /// Prompt tokens of the completed requests, as the server counts them.
    pub prompt_tokens: u64,
    /// Tokens of the completed requests' answers, as the server counts them.
    pub output_tokens: u64,
    /// Pictures of the completed requests.
    pub images: u64,
}

impl Counts {
    /// Requests that failed their user.
    pub fn bad(&self) -> u64 {
        self.refused + self.timed_out + self.truncated + self.no_finish_reason + self.errors
    }
}

/// One kind of error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorCount {
    /// `connect`, `http 500`, `protocol`, ..: never words of a body.
    pub kind: String,
    /// How many.
    pub count: u64,
}

/// What requests took, in milliseconds; `null` where the metric does not apply or nobody tells.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Latencies {
    /// See [`Metric::ClientLag`]; one sample a request, in milliseconds.
    pub client_lag: Option<Distribution>,
    /// See [`Metric::ReadingLag`]; one sample each 20 ms, in milliseconds.
    #[serde(default)]
    pub reading_lag: Option<Distribution>,
    /// See [`Metric::TimeToFirstToken`]; one sample a completed request, in milliseconds.
    pub time_to_first_token: Option<Distribution>,
    /// See [`Metric::TimeToFirstPreview`]; one sample a completed request, in milliseconds.
    pub time_to_first_preview: Option<Distribution>,
    /// See [`Metric::TimePerOutputToken`]; one sample a completed request, in milliseconds.
    pub time_per_output_token: Option<Distribution>,
    /// See [`Metric::StepGap`]; one sample a gap, in milliseconds.
    pub step_gap: Option<Distribution>,
    /// See [`Metric::FrameGap`]; one sample a gap, in milliseconds.
    pub frame_gap: Option<Distribution>,
    /// See [`Metric::LongestStall`]; one sample a completed request, in milliseconds.
    pub longest_stall: Option<Distribution>,
    /// See [`Metric::EndToEnd`]; one sample a completed request, in milliseconds.
    pub end_to_end: Option<Distribution>,
}

impl Latencies {
    /// One of them.
    pub fn get(&self, metric: Metric) -> Option<&Distribution> {
        let found = match metric {
            Metric::ClientLag => &self.client_lag,
            Metric::ReadingLag => &self.reading_lag,
            Metric::TimeToFirstToken => &self.time_to_first_token,
            Metric::TimeToFirstPreview => &self.time_to_first_preview,
            Metric::TimePerOutputToken => &self.time_per_output_token,
            Metric::StepGap => &self.step_gap,
            Metric::FrameGap => &self.frame_gap,
            Metric::LongestStall => &self.longest_stall,
            Metric::EndToEnd => &self.end_to_end,
        };
        found.as_ref()
    }
}

/// What came out in the measured window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Throughput {
    /// Requests completed per second.
    pub requests_per_second: Estimate,
    /// Prompt tokens per second. Text.
    pub prompt_tokens_per_second: Option<Estimate>,
    /// Answers' tokens per second, all streams together. Text.
    pub output_tokens_per_second: Option<Estimate>,
    /// Pictures per second. Images.
    pub images_per_second: Option<Estimate>,
}

/// What of it was good: completed, and within every limit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Goodput {
    /// Good requests.
    pub good: u64,
    /// Their share of the requests that were due, 0 to 1.
    pub share: Estimate,
    /// Good requests per second.
    pub requests_per_second: Estimate,
    /// One entry per limit.
    pub objectives: Vec<ObjectiveResult>,
}

/// How many requests kept one limit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ObjectiveResult {
    /// The limit.
    pub objective: Objective,
    /// Requests that kept it.
    pub kept: u64,
    /// Their share of the requests that were due, 0 to 1.
    pub share: Estimate,
}

/// What a point says about its load.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Verdict {
    /// In a word.
    pub outcome: Outcome,
    /// Why, one sentence each; empty for a pass.
    pub reasons: Vec<String>,
}

/// What a point says about its load, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The share of good requests is kept, beyond doubt.
    Pass,
    /// It is not, beyond doubt, or the queue grew.
    Fail,
    /// Neither is beyond doubt.
    Undecided,
    /// The figures are not to be used: the client was late, the cache was warm, ..
    Void,
}

/// What prompts found in the server's prefix cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CacheUse {
    /// Prompt tokens of the measured window.
    pub prompt_tokens: u64,
    /// Of these, tokens that needed no work.
    pub cached_tokens: u64,
    /// Whether that was wanted; if not, and above 1 %, the point says so.
    pub wanted: bool,
}

/// A counter of the server, around the measured window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Counter {
    /// As the server names it, with its labels: `girandole_requests_total{model="x"}`.
    pub name: String,
    /// At the start of the measured window, in the counter's unit.
    pub before: f64,
    /// At its end.
    pub after: f64,
}
