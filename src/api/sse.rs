//! From a log to server-sent events: wait for news, coalesce, let the pacer say when, let the
//! dialect write frames. Pull-driven: nothing is read from the log before the socket takes more.

use std::sync::Arc;

use axum::http::HeaderMap;
use axum::response::Response;

use super::AppState;
use super::error::ApiError;
use super::requests::Request;
use crate::events::Event;
use crate::events::store::SharedLog;

/// One server-sent event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The number of the last event that this frame *and those before it* cover. Everything up to
    /// it has then been said, so a client that returns with it misses nothing and hears nothing
    /// twice.
    pub id: u64,
    /// The event's name, where the dialect has names.
    pub event: Option<&'static str>,
    /// One line.
    pub data: String,
}

/// What a silent stream says to keep proxies from closing it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeepAlive {
    /// A comment, which clients skip.
    Comment,
    /// A data message, for clients that cannot skip comments.
    Frame(String),
}

/// Turns events into frames. Holds no queue and no timer; it may hold state (what was said so far).
///
/// `frames` is called with what [`crate::events::coalesce`] made of all events since the last
/// call: at most one `Queued`, `Started` and `PromptLogprobs`, then the `Text` and `ChoiceFinished`
/// of any number of choices, then at most one terminal event. Events that were merged across each
/// other have the *same* `seq`; what they say must go into one frame (or into frames that only
/// together bear that id, the last of them being enough to tell).
///
/// On a resume, the events that the client has seen are played to the dialect first and the frames
/// dropped; so the frames said must depend on the events alone, not on how they were grouped.
pub trait Dialect: Send {
    /// Its name, for metrics and traces.
    fn name(&self) -> &'static str;
    /// What is to be said about these events.
    fn frames(&mut self, events: &[Event]) -> Vec<Frame>;
    /// Frames that may come at once at the end: so much room is kept in every second.
    fn terminal_frames(&self) -> u32;
    /// What to say to a client that returns after having seen the terminal event.
    fn after_end(&mut self) -> Vec<Frame> {
        Vec::new()
    }
    /// What to say when there is nothing to say.
    fn keep_alive(&self) -> KeepAlive {
        KeepAlive::Comment
    }
}

/// Where a client wants to go on: `Last-Event-ID` or `?from=`, the number of the last event it has
/// seen; 0 if it has seen none. If both are given they must agree.
///
/// # Errors
/// 400 for what is no number, beyond the log's end, or contradictory.
pub fn resume_point(
    _headers: &HeaderMap,
    _from: Option<&str>,
    _log: &SharedLog,
) -> Result<u64, ApiError> {
    todo!()
}

/// A response that streams what comes after event number `after` in the dialect's words, until the
/// terminal event. It counts as a reader of the request for as long as it is open.
pub fn stream(
    _state: &Arc<AppState>,
    _request: &Arc<Request>,
    _log: Arc<SharedLog>,
    _after: u64,
    _dialect: Box<dyn Dialect>,
) -> Response {
    todo!()
}
