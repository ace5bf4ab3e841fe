//! The one way in: every dialect's requests are admitted here.

use std::sync::Arc;
use std::time::Duration;

use super::auth::Caller;
use super::error::ApiError;
use super::openai::StreamShape;
use super::requests::Request;
use super::{AppState, ServedModel};
use crate::events::store::SharedLog;
use crate::intake::TextDraft;
use crate::job::Job;

/// What becomes of a request that nobody reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDisconnect {
    /// It is given up when nobody has read it for this long.
    AbandonAfter(Duration),
    /// It runs to its end.
    Detach,
}

/// A key under which a client may repeat a request without making another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idempotency {
    /// The `Idempotency-Key` header.
    pub key: String,
    /// Digest of the route and the body, to tell a repetition from a mistake.
    pub fingerprint: [u8; 32],
}

/// What goes with a draft.
#[derive(Clone, Debug)]
pub struct SubmitOptions {
    /// Whose request it is.
    pub caller: Caller,
    /// It is given up when it has not ended by then.
    pub deadline: Option<Duration>,
    /// For clients that repeat themselves.
    pub idempotency: Option<Idempotency>,
    /// What becomes of it when nobody reads it.
    pub on_disconnect: OnDisconnect,
    /// How its stream looks in OpenAI's dialect, if that is spoken.
    pub openai: Option<StreamShape>,
    /// The dialect's name, for the trace.
    pub dialect: &'static str,
}

/// A request that the engine has taken.
pub struct Accepted {
    /// What the edge knows of it, `id` first.
    pub request: Arc<Request>,
    /// Its events.
    pub log: Arc<SharedLog>,
    /// What it asks for; `None` if this is an earlier request with the same idempotency key.
    pub job: Option<Arc<Job>>,
}

/// Admits a draft: takes a place in the engine before the prompt is tokenized, so that a full
/// queue answers at once and tokenizing is bounded by the queue.
///
/// # Errors
/// 400 for a field that is wrong, 429 and 503 with a time to come back, 409 and 422 for an
/// idempotency key in use.
pub async fn submit(
    _state: &Arc<AppState>,
    _model: &Arc<ServedModel>,
    _draft: TextDraft,
    _options: SubmitOptions,
) -> Result<Accepted, ApiError> {
    todo!()
}
