//! Measurements that the program takes of itself. They are no part of the service.
//!
//! [`engine`] measures a model without HTTP, scheduler and logs: what the machine gives for prompts and
//! for tokens, or for pictures, how far that is from what the machine could give, and where the time goes.
//!
//! [`report_of::run`] and [`capacity::run`] measure a server over HTTP, ours or another: [`load`] says what is asked
//! when, [`target`] asks, [`run`] measures one load and [`capacity`] searches for the greatest that is carried.
//! What they find is [`results`], for [`render`], [`live`] and [`compare`]. How it is measured, and when a figure
//! is void: `docs/benchmark.md`.

pub mod capacity;
pub mod compare;
mod driver;
pub mod engine;
pub mod limits;
pub mod live;
pub mod load;
pub mod machine;
pub mod options;
pub mod own_server;
mod picture_driver;
pub mod picture_report;
mod picture_table;
pub mod picture_work;
mod pictures;
pub mod render;
pub mod report;
pub mod report_of;
pub mod results;
pub mod run;
pub mod setup;
pub mod statistics;
pub mod stop;
mod table;
pub mod target;
pub mod watcher;

use std::path::PathBuf;

use crate::model::ModelError;
use crate::model::sources::SourceError;

/// What `bench engine` is to measure. Built by the command line only, within its limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineBench {
    /// Prompt tokens of each prefill level. Text.
    pub prefill: Vec<u32>,
    /// Rows of each decode level, or of the passes of each denoising level; at least one level.
    pub rows: Vec<u32>,
    /// Tokens in each row's K/V before it decodes. Text.
    pub context: u32,
    /// Decode steps of a repeat; of pictures, the most samples of a point.
    pub steps: u32,
    /// How often each level is measured. Text.
    pub repeats: u32,
    /// Width and height of each size, in pixels; the model's own if there is none. Pictures.
    pub sizes: Vec<(u32, u32)>,
    /// How long a point may take, unless a single sample takes longer. Pictures.
    pub point_seconds: u32,
    /// Seed of the random prompts, or of the pictures.
    pub seed: u64,
    /// What goes to stdout.
    pub format: ReportFormat,
    /// Where the JSON goes beside that.
    pub json: Option<PathBuf>,
}

/// How a report is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportFormat {
    /// Tables for people.
    Table,
    /// One JSON object.
    Json,
}

/// A measurement cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The configuration names several models.
    #[error("bench engine measures one model and {0} are configured: name one with --model")]
    SeveralModels(usize),
    /// There is nothing to measure in a script.
    #[error("{0} is a script; bench engine measures models that compute")]
    Scripted(String),
    /// The model's files cannot be had.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The model cannot be built or run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// No picture of an image model has this size.
    #[error(
        "--size {width}x{height}: the model draws pictures whose edges are multiples of {factor}"
    )]
    Size {
        /// In pixels.
        width: u32,
        /// In pixels.
        height: u32,
        /// In pixels.
        factor: u32,
    },
    /// A picture that the model cannot be asked for.
    #[error("the model cannot draw what it is measured with: {0}")]
    Job(String),
    /// A row ended before it should.
    #[error("a row ended early: {0}")]
    EndedEarly(String),
    /// There is no memory for the buffers that the limits are measured with.
    #[error("no memory for a buffer of {0} bytes, to measure how fast memory is read")]
    NoMemory(usize),
}
