//! One thread owns one device and the model on it.
//!
//! The async side holds an [`EngineHandle`] and only sends commands. [`turn`] is one lap of an
//! engine, told the time; [`thread`] gives it real time and sleeps when nothing is due. Several devices may serve one
//! model: an engine each, which share the scheduler and the requests ([`desk`]) and nothing else. Nothing here
//! knows HTTP or a tensor.

mod desk;
mod ending;
mod gate;
mod handle;
mod mailbox;
mod open_log;
mod request;
mod thread;
pub mod turn;

use std::sync::Arc;
use std::time::Duration;

use crate::batch::{DeviceNumber, FinishReason, Phase, Usage};
use crate::events::{EventSink, FailureKind};
use crate::job::{Job, Priority, RequestId};
use crate::model::CacheReport;
use crate::scheduler::SchedulerConfig;
use crate::time::Time;

pub use gate::Permit;
pub use handle::EngineHandle;
pub use thread::{Build, DeviceEngine, spawn, spawn_on_devices};

/// An engine's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Devices that serve the model, one engine on each. At least 1.
    pub devices: u32,
    /// The scheduler's.
    pub scheduler: SchedulerConfig,
    /// Rows that may wait beyond those that fit the batches: `devices * batch_size + max_queued_requests` rows
    /// may be in the engines at once. A request with several rows counts as so many.
    pub max_queued_requests: u32,
    /// Prompt tokens of all requests in the engine.
    pub max_queued_tokens: u64,
    /// Bytes of the pictures that all requests in the engine begin from, decoded.
    pub max_queued_source_bytes: u64,
}

impl EngineConfig {
    /// Rows that may run at once, on all devices.
    pub fn max_running_rows(&self) -> u32 {
        self.scheduler.batch_size.saturating_mul(self.devices)
    }

    /// Rows that may be in the engines at once, waiting or running.
    pub fn max_rows(&self) -> u32 {
        self.max_running_rows()
            .saturating_add(self.max_queued_requests)
    }

    /// Of these, rows of one user.
    pub fn max_rows_per_user(&self) -> u32 {
        let fairness = &self.scheduler.fairness;
        let may_run = fairness.max_running_per_user;
        let may_run = may_run.unwrap_or(self.max_running_rows());
        let of_user = fairness
            .max_waiting_per_user
            .map_or(u32::MAX, |waiting| may_run.saturating_add(waiting));
        of_user.min(self.max_rows())
    }
}

/// Where an engine is in its life, or all engines of a model together: these are ready while one is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum EngineState {
    /// The model is being built.
    #[default]
    Loading,
    /// It takes requests.
    Ready,
    /// It finishes what it has.
    Draining,
    /// It ended as it was told to.
    Stopped,
    /// It could not start, or its thread died: the reason.
    Failed(String),
}

/// Why a request is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    /// The queue is full (429).
    #[error("the queue is full: {what} is limited to {limit}")]
    QueueFull {
        /// `max_queued_requests`, `max_queued_tokens` or `max_queued_source_bytes`.
        what: &'static str,
        /// Its value.
        limit: u64,
        /// When to come back, from the measured drain rate.
        retry_after: Duration,
    },
    /// The user has too much in the queue already (429).
    #[error("too many of your requests are waiting: max_waiting_per_user is {limit}")]
    UserQueueFull {
        /// `max_waiting_per_user`.
        limit: u32,
        /// When to come back, from the measured drain rate.
        retry_after: Duration,
    },
    /// The model is not ready yet (503).
    #[error("the model is still loading")]
    Loading,
    /// The service is going down (503).
    #[error("the service is draining")]
    Draining,
    /// The engine has failed (503).
    #[error("the engine is not running: {0}")]
    Dead(String),
}

/// A request on its way in.
pub struct Submission {
    /// Its id.
    pub id: RequestId,
    /// What it asks for.
    pub job: Arc<Job>,
    /// Where its events go.
    pub log: Arc<dyn EventSink>,
    /// When it is given up, waiting or running.
    pub deadline: Option<Time>,
    /// How urgent it is.
    pub priority: Priority,
}

/// How the engines of a model are doing, as of their last steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Requests that wait.
    pub waiting_requests: u32,
    /// Of these, how many asked for each class of [`Priority::ALL`].
    pub waiting_by_priority: [u32; Priority::ALL.len()],
    /// Rows that wait.
    pub waiting_rows: u32,
    /// Rows that run.
    pub running_rows: u32,
    /// Rows that may run at once.
    pub slots: u32,
    /// Memory units (KV blocks) in use.
    pub memory_units_used: u32,
    /// Memory units in all.
    pub memory_units_total: u32,
    /// How the model's prefix cache stands.
    pub cache: CacheReport,
    /// Prompt tokens of the requests in the engine, without those that are still being tokenized.
    pub queued_tokens: u64,
    /// When a request that came now would start, if that can be told.
    pub eta: Option<Duration>,
    /// Each device, by its number.
    pub devices: Vec<DeviceSnapshot>,
}

/// How one device is doing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeviceSnapshot {
    /// What it is called.
    pub name: Arc<str>,
    /// Where its engine is in its life.
    pub state: EngineState,
    /// Rows that run.
    pub running_rows: u32,
    /// Rows that may run at once.
    pub slots: u32,
    /// Memory units in use.
    pub memory_units_used: u32,
    /// Memory units in all.
    pub memory_units_total: u32,
    /// How its prefix cache stands.
    pub cache: CacheReport,
}

/// Told what an engine does; the service's metrics. Called on the engine's thread: be quick.
pub trait Observer: Send + Sync {
    /// A request was refused.
    fn rejected(&self, _model: &str, _reject: &Reject) {}
    /// A request's first row started after waiting this long.
    fn started(&self, _model: &str, _queued: Duration, _prompt_tokens: u32, _cached_tokens: u32) {}
    /// A forward pass has ended on this device.
    fn step(&self, _model: &str, _device: DeviceNumber, _step: &StepReport) {}
    /// Memory ran out in so many passes, one after the other, each smaller than the one before.
    fn out_of_memory(&self, _model: &str, _failed_passes: u64) {}
    /// A row's first token came this long after the request was submitted.
    fn first_token(&self, _model: &str, _since_submit: Duration) {}
    /// A row's next token came this long after its last.
    fn inter_token(&self, _model: &str, _gap: Duration) {}
    /// A request ended.
    fn ended(&self, _model: &str, _end: RequestEnd, _since_submit: Duration, _usage: Usage) {}
    /// After every turn.
    fn snapshot(&self, _model: &str, _snapshot: &Snapshot) {}
}

/// One forward pass, for the [`Observer`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepReport {
    /// How long it took.
    pub duration: Duration,
    /// Rows in `Begin`.
    pub begin_rows: u32,
    /// Rows in `Iterate`.
    pub iterate_rows: u32,
    /// Rows in `Finish`.
    pub finish_rows: u32,
    /// Prompt tokens computed; 0 for pictures.
    pub begin_work: u32,
    /// Units of `Iterate` and `Finish` work done: a text's row is one, a picture's what its model says.
    pub units: u32,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestEnd {
    /// With this reason (of its first row, where they differ).
    Finished(FinishReason),
    /// Cancelled while in this phase; `None` while it waited.
    Cancelled(Option<Phase>),
    /// With a failure.
    Failed(FailureKind),
}
