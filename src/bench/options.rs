//! What `bench run` and `bench capacity` are told. Built by the command line only, within its limits.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value};

use super::load::conversations::Conversations;
use super::load::pictures::Mix;
use super::load::trace::Trace;
use super::load::{Arrivals, Lengths};
use super::results::{Api, Objective};

/// What both have in common.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadOptions {
    /// The server; without one, this program serves for as long as it is measured.
    pub url: Option<String>,
    /// The file with the server's key.
    pub key_file: Option<PathBuf>,
    /// The model as requests name it; the server's first without.
    pub target_model: Option<String>,
    /// The interface; chat or images without, by the preset.
    pub api: Option<Api>,
    /// See [`super::capacity::presets`].
    pub preset: String,
    /// Limits in place of the preset's, of the same metrics, or beside them.
    pub limits: Vec<Objective>,
    /// In place of the preset's.
    pub good_share: Option<f64>,
    /// In place of the preset's.
    pub input_tokens: Option<Lengths>,
    /// In place of the preset's.
    pub output_tokens: Option<Lengths>,
    /// Questions from a file in ShareGPT's format.
    pub conversations: Option<Conversations>,
    /// Share of prompt tokens that are to be found in the server's cache.
    pub prefix_share: f64,
    /// Different beginnings, with a share above 0.
    pub prefixes: u32,
    /// In place of the model's own.
    pub sizes: Option<Mix<(u32, u32)>>,
    /// In place of the preset's.
    pub steps: Option<Mix<u32>>,
    /// In place of the model's own.
    pub guidance_scale: Option<f64>,
    /// How an open loop's requests come.
    pub arrivals: Arrivals,
    /// Mean time to think of a closed loop's users, in seconds, in place of the preset's.
    pub think_seconds: Option<f64>,
    /// Questions of a conversation.
    pub turns: u32,
    /// Of everything that is drawn.
    pub seed: u64,
    /// Stands in every prompt, in place of a fresh one.
    pub salt: Option<String>,
    /// Load before anything counts, at least.
    pub warm_up: Duration,
    /// A request that takes longer is given up.
    pub timeout: Duration,
    /// Requests in flight at most.
    pub max_open_requests: usize,
    /// Do not ask for tokens past an end of text.
    pub respect_eos: bool,
    /// Fields for every request.
    pub extra_body: Map<String, Value>,
    /// The server's process, if it is on this machine.
    pub server_process: Option<u32>,
    /// Price of the server for an hour.
    pub price_per_hour: Option<f64>,
    /// What prices are in.
    pub currency: String,
    /// A name for the report.
    pub label: Option<String>,
    /// What the report is to say of the server's settings.
    pub server_notes: Vec<(String, String)>,
    /// See [`super::target::TargetConfig::planted_lag`].
    pub planted_lag: Duration,
}

/// What `bench run` offers.
#[derive(Clone, Debug, PartialEq)]
pub enum Offer {
    /// Requests a second, one point after another.
    Rates(Vec<f64>),
    /// Users, one point after another.
    Users(Vec<u32>),
    /// What a file says.
    Trace(Trace),
}

/// `bench run`.
#[derive(Clone, Debug, PartialEq)]
pub struct RunOptions {
    /// What both have in common.
    pub load: LoadOptions,
    /// How much.
    pub offer: Offer,
    /// Length of each measured window.
    pub duration: Duration,
    /// Points of each load.
    pub repeats: u32,
}

/// What a capacity is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Users who wait for their answers and think.
    Users,
    /// Requests a second that come whatever happens.
    Rate,
}

/// `bench capacity`.
#[derive(Clone, Debug, PartialEq)]
pub struct CapacityOptions {
    /// What both have in common.
    pub load: LoadOptions,
    /// What is searched for.
    pub axis: Axis,
    /// How narrow the interval of a search is to be, as a share of the answer.
    pub precision: f64,
    /// Searches.
    pub repeats: u32,
    /// The first load that is tried.
    pub start: f64,
    /// The greatest.
    pub max: f64,
    /// How long a point may be measured.
    pub point: Duration,
    /// How long all of it may take.
    pub time_limit: Duration,
    /// Points at most.
    pub max_points: usize,
}
