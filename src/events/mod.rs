//! What happened to a request, in order.
//!
//! The engine appends [`Event`]s to one log per request; readers pull at their own pace. Live
//! streaming, replay, throttling and polling are four ways of reading the same log. Nothing here
//! knows a tensor, and only [`store`] wakes anybody.

pub mod coalesce;
pub mod log;
pub mod pacer;
pub mod store;

use std::sync::Arc;
use std::time::Duration;

use crate::batch::{FinishReason, TokenLogprob, Usage};
use crate::picture::Picture;
use crate::time::Time;

/// Where the engine writes a request's events. A shared log in the service, a plain one in tests.
pub trait EventSink: Send + Sync {
    /// Appends the next event. The sequence number is the sink's affair. Appending after a
    /// terminal event has no effect.
    fn append(&self, at: Time, kind: EventKind);
}

/// One entry of a request's log.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Its number in the log, from 1 without gaps: the `id` of its SSE frame. A reader may find some
    /// missing: what later events have outdated is merged with them, or forgotten.
    pub seq: u64,
    /// When it happened.
    pub at: Time,
    /// What happened.
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum EventKind {
    /// The request waits. Repeated on change, at most once a second.
    Queued {
        /// Requests ahead of it; 0 means that it is next.
        position: u32,
        /// Requests that wait in all.
        waiting: u32,
        /// Expected time until it starts, by the measured cost model; `None` until there is one.
        eta: Option<Duration>,
    },
    /// Its first row was given a slot.
    Started,
    /// More text for one choice.
    Text {
        /// Which choice.
        choice: u32,
        /// To be appended. May be empty: the tokens count all the same.
        text: String,
        /// Token ids behind it.
        tokens: Vec<u32>,
        /// One entry per token, if asked for.
        logprobs: Vec<TokenLogprob>,
    },
    /// Log-probabilities of prompt tokens, to be appended to those of earlier events. Only of
    /// choice 0: they are the same for all.
    PromptLogprobs {
        /// One entry per prompt token.
        logprobs: Vec<TokenLogprob>,
    },
    /// A picture has come this far.
    Progress {
        /// Which choice.
        choice: u32,
        /// Denoising steps done.
        step: u32,
        /// Denoising steps in all.
        steps: u32,
        /// Expected time until the picture is there; `None` until it can be told.
        eta: Option<Duration>,
    },
    /// What a picture looks like so far.
    Preview {
        /// Which choice.
        choice: u32,
        /// After so many steps.
        step: u32,
        /// Small: a pixel for each place of the latent.
        picture: Arc<Picture>,
        /// Asked for by number, so none may be left out; else only the latest matters.
        kept: bool,
    },
    /// A picture.
    Image {
        /// Which choice.
        choice: u32,
        /// What was drawn.
        picture: Arc<Picture>,
        /// Its own seed.
        seed: u64,
    },
    /// One choice is complete.
    ChoiceFinished {
        /// Which choice.
        choice: u32,
        /// Why.
        reason: FinishReason,
        /// Sum of its tokens' log-probabilities, to rank `best_of`.
        cumulative_logprob: f64,
        /// Its new tokens.
        completion_tokens: u32,
    },
    /// Terminal: every choice is complete (or was cancelled).
    Finished {
        /// What it used.
        usage: Usage,
    },
    /// Terminal: it failed.
    Failed {
        /// What failed.
        failure: Failure,
        /// What it used until then.
        usage: Usage,
    },
}

impl EventKind {
    /// Whether nothing can follow.
    pub fn is_terminal(&self) -> bool {
        matches!(self, EventKind::Finished { .. } | EventKind::Failed { .. })
    }
}

/// Why a request failed after it had been accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Its kind, which decides the HTTP status.
    pub kind: FailureKind,
    /// For its owner: lowercase, with the thing and the limit, never with text of the prompt.
    pub message: String,
}

/// The kinds of [`Failure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// Its deadline passed, waiting or running (504).
    DeadlineExceeded,
    /// The model could not go on with this row (500).
    Row,
    /// The pass that it was part of failed (500).
    Step,
    /// The engine is gone (503).
    EngineDead,
    /// The service was stopped before it ended (503).
    Shutdown,
    /// It was given up since nobody read it (no status: nobody is there).
    Abandoned,
}
