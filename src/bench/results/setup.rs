//! The whole configuration of both sides.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::bench::machine::Machine;

/// Who asked, and what for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ClientSide {
    /// The program's version.
    pub girandole: String,
    /// The command line, word for word, with `***` for keys.
    pub command: Vec<String>,
    /// Where the client ran.
    pub machine: Machine,
    /// Seed of all that is drawn: arrivals, lengths, prompts, pictures.
    pub seed: u64,
    /// What was asked for.
    pub load: Load,
    /// What a good answer is.
    pub objectives: Objectives,
    /// Every other setting of the measurement after defaults, by the name of its flag: durations, repeats,
    /// precision, timeouts, connection limits.
    pub settings: BTreeMap<String, Value>,
}

/// Who answered, as far as it told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServerSide {
    /// Where it was reached, without user and password.
    pub url: String,
    /// What it calls itself: `girandole`, or the `Server` header.
    pub software: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// The model that was asked, as in requests.
    pub model: String,
    /// The device that it runs on.
    pub device: Option<String>,
    /// Whether it runs on the client's machine and so shares its processor.
    pub same_machine: bool,
    /// Its body of `/health`, or null.
    pub health: Value,
    /// Its body of `/v1/models`, or null.
    pub models: Value,
    /// Its settings by name, as far as it told or somebody noted with `--server-note`.
    pub settings: BTreeMap<String, Value>,
}

/// What kind of answer is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Tokens.
    Text,
    /// Pictures.
    Image,
}

/// The interface that requests go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Api {
    /// `/v1/chat/completions`, streaming.
    OpenaiChat,
    /// `/v1/completions`, streaming.
    OpenaiCompletions,
    /// `/v1/images/generations`.
    OpenaiImages,
    /// Girandole's own, with events of the queue.
    Native,
}

/// What is asked for, apart from how much of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Load {
    /// One line for people, such as `chat: 512 tokens in, 128 out (log-normal), Poisson`.
    pub description: String,
    /// The kind of answer.
    pub task: Task,
    /// The interface.
    pub api: Api,
    /// When requests are due.
    pub arrivals: Arrivals,
    /// Tokens of a prompt. Text.
    pub prompt_tokens: Option<Lengths>,
    /// Tokens of an answer. Text.
    pub output_tokens: Option<Lengths>,
    /// Beginnings that prompts share on purpose.
    pub shared_prefix: Option<SharedPrefix>,
    /// Whether every prompt begins with words of its own, so that no cache helps unless asked to.
    pub unique_salt: bool,
    /// The pictures asked for, by share. Images.
    pub images: Vec<ImageMix>,
}

/// When requests are due.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "process", rename_all = "snake_case")]
pub enum Arrivals {
    /// Open: independent users without number; exponential gaps.
    Poisson,
    /// Open: equal gaps.
    Constant,
    /// Open: gaps of a gamma distribution with the wanted mean.
    Gamma {
        /// Its shape: 1 is Poisson, less is burstier.
        burstiness: f64,
    },
    /// Open: the timestamps of a file.
    Trace {
        /// Its name, without folders.
        file: String,
    },
    /// Closed: users who wait for their answer, think, and ask again. Hides queueing: a slow server is
    /// asked less.
    Users {
        /// Mean of the exponential time to think, in seconds; 0 for none.
        think_seconds: f64,
        /// Turns of a conversation, each with all turns before it in the prompt.
        turns: u32,
    },
}

/// A distribution of lengths, in tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Lengths {
    /// `fixed`, `normal`, `log_normal`, `file` or `sharegpt`.
    pub distribution: String,
    /// Mean, in tokens.
    pub mean: f64,
    /// Standard deviation, in tokens; 0 when fixed.
    pub deviation: f64,
    /// The least that is asked for, in tokens.
    pub min: u32,
    /// The most, in tokens.
    pub max: u32,
}

/// Beginnings that prompts share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SharedPrefix {
    /// Share of prompt tokens that the server is to find in its cache, 0 to 1.
    pub hit_rate: f64,
    /// How many different beginnings there are.
    pub prefixes: u32,
    /// Tokens of each.
    pub tokens: u32,
}

/// One kind of picture in the mix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ImageMix {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// Denoising steps.
    pub steps: u32,
    /// Of all requests, 0 to 1.
    pub share: f64,
}

/// What a good answer is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Objectives {
    /// Name of the preset they come from.
    pub preset: Option<String>,
    /// What each good request keeps. Bad requests (refused, timed out, ..) keep none.
    pub limits: Vec<Objective>,
    /// Share of requests that have to be good, 0 to 1: 0.99 is what others write as p99.
    pub good_share: f64,
}

/// One limit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Objective {
    /// Of what.
    pub metric: Metric,
    /// At most this, in milliseconds.
    pub limit_ms: f64,
}

/// A latency of a request, each in milliseconds.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// From the intended start until the client began to send.
    ClientLag,
    /// How long the thread that has all connections takes to look at them and to read what has come, tried all the
    /// while: so late may a frame be read.
    ReadingLag,
    /// From the intended start until the first text was here.
    TimeToFirstToken,
    /// From the intended start until the first preview was here. Images.
    TimeToFirstPreview,
    /// From the first token to the last, by the tokens after the first: a request's mean.
    TimePerOutputToken,
    /// Between two steps of the engine for one row, where the server tells: what it computes.
    StepGap,
    /// Between two frames of one stream: what a user sees.
    FrameGap,
    /// From the intended start until the end of the answer.
    EndToEnd,
    /// The longest frame gap of a stream after its first frame.
    LongestStall,
}

impl Metric {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Metric; 9] = [
        Metric::ClientLag,
        Metric::ReadingLag,
        Metric::TimeToFirstToken,
        Metric::TimeToFirstPreview,
        Metric::TimePerOutputToken,
        Metric::StepGap,
        Metric::FrameGap,
        Metric::LongestStall,
        Metric::EndToEnd,
    ];

    /// Whether it is of the client: it says nothing about the server.
    pub fn is_of_client(self) -> bool {
        matches!(self, Metric::ClientLag | Metric::ReadingLag)
    }

    /// In words, as in tables.
    pub fn title(self) -> &'static str {
        match self {
            Metric::ClientLag => "client lag",
            Metric::ReadingLag => "reading lag",
            Metric::TimeToFirstToken => "time to first token",
            Metric::TimeToFirstPreview => "time to first preview",
            Metric::TimePerOutputToken => "time per output token",
            Metric::StepGap => "step gap",
            Metric::FrameGap => "frame gap",
            Metric::EndToEnd => "end to end",
            Metric::LongestStall => "longest stall",
        }
    }

    /// As in JSON, and in the columns of CSV.
    pub fn key(self) -> &'static str {
        match self {
            Metric::ClientLag => "client_lag",
            Metric::ReadingLag => "reading_lag",
            Metric::TimeToFirstToken => "time_to_first_token",
            Metric::TimeToFirstPreview => "time_to_first_preview",
            Metric::TimePerOutputToken => "time_per_output_token",
            Metric::StepGap => "step_gap",
            Metric::FrameGap => "frame_gap",
            Metric::EndToEnd => "end_to_end",
            Metric::LongestStall => "longest_stall",
        }
    }
}
