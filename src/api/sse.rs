//! From a log to server-sent events: wait for news, coalesce, let the pacer say when, let the
//! dialect write frames. Pull-driven: nothing is read from the log before the socket takes more, and a
//! picture becomes a file only when its frame's turn has come.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::error::ApiError;
use super::requests::{Reader, Request};
use super::{AppState, picture_file};
use crate::events::coalesce::coalesce;
use crate::events::pacer::{Pacer, Urgency};
use crate::events::store::SharedLog;
use crate::events::{Event, EventKind};
use crate::picture::{Encoding, Picture};
use crate::time::{Clock, Time};

/// One server-sent event.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// The number of the last event that this frame *and those before it* cover. Everything up to
    /// it has then been said, so a client that returns with it misses nothing and hears nothing
    /// twice.
    pub id: u64,
    /// The event's name, where the dialect has names.
    pub event: Option<&'static str>,
    /// One line. Each [`PICTURE`] in it stands for the next of `pictures`.
    pub data: String,
    /// Told in Base64 in the places kept for them.
    pub pictures: Vec<(Arc<Picture>, Encoding)>,
}

/// Stands in a frame's data where a picture is to be told. Frames with pictures hold nothing that came
/// from a client, so it stands nowhere else.
pub const PICTURE: &str = "<picture>";

/// A comment, which clients skip.
pub(super) const COMMENT: Bytes = Bytes::from_static(b": keep-alive\n\n");

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
/// call: at most one `Queued`, `Started` and `PromptLogprobs`, then the `Text` (or `Progress`, `Preview`
/// and `Image`) and `ChoiceFinished` of any number of choices, then at most one terminal event. Events
/// that were merged across each other have the *same* `seq`; what they say must go into one frame, or
/// into frames of which only the last bears that id, and the others the id before: see [`numbered`].
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

/// Numbers frames that say together what happened up to event number `seq`: only the last of them says
/// so. A client that is cut between them comes back with the number before, `covered`, and is told them
/// again; so what they say must bear being said twice.
pub fn numbered(mut frames: Vec<Frame>, covered: &mut u64, seq: u64) -> Vec<Frame> {
    for frame in &mut frames {
        frame.id = *covered;
    }
    if let Some(last) = frames.last_mut() {
        last.id = seq;
    }
    *covered = seq;
    frames
}

/// Where a client wants to go on: `Last-Event-ID` or `?from=`, the number of the last event it has
/// seen; 0 if it has seen none. If both are given they must agree.
///
/// # Errors
/// 400 for what is no number, beyond the log's end, or contradictory.
pub fn resume_point(
    headers: &HeaderMap,
    from: Option<&str>,
    log: &SharedLog,
) -> Result<u64, ApiError> {
    const HEADER: &str = "Last-Event-ID";
    let header = headers
        .get(HEADER)
        .map(|value| event_number(HEADER, value.to_str().unwrap_or_default(), log))
        .transpose()?;
    let query = from
        .map(|value| event_number("from", value, log))
        .transpose()?;
    match (header, query) {
        (Some(header), Some(query)) if header != query => Err(ApiError::invalid(
            "from",
            "from and Last-Event-ID are given and differ",
        )),
        (header, query) => Ok(header.or(query).unwrap_or(0)),
    }
}

fn event_number(field: &str, text: &str, log: &SharedLog) -> Result<u64, ApiError> {
    // Digits only: `parse` would take a sign as well.
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse::<u64>().ok().filter(|_| digits).ok_or_else(|| {
        ApiError::invalid(field, format!("{field} must be the number of an event"))
    })?;
    let last = log.last_seq();
    if number > last {
        return Err(ApiError::invalid(
            field,
            format!("{field} is {number}, beyond the last event, {last}"),
        ));
    }
    Ok(number)
}

/// A response that streams what comes after event number `after` in the dialect's words, until the
/// terminal event. It counts as a reader of the request for as long as it is open.
///
/// A client that has seen the terminal event gets [`Dialect::after_end`], or 204 if that is
/// nothing, which tells a browser's `EventSource` to stay away.
pub fn stream(
    state: &Arc<AppState>,
    request: &Arc<Request>,
    log: Arc<SharedLog>,
    after: u64,
    dialect: Box<dyn Dialect>,
) -> Response {
    match FrameStream::open(state, request, log, after, dialect) {
        None => StatusCode::NO_CONTENT.into_response(),
        Some(frames) => respond(futures_util::stream::unfold(frames, async |mut frames| {
            let bytes = frames.next().await?;
            Some((bytes, frames))
        })),
    }
}

/// A response whose body is a stream of server-sent events, with the head that proxies need.
pub(super) fn respond(events: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    let body = Body::from_stream(events.map(Ok::<Bytes, Infallible>));
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    // `no-transform` and the second header keep proxies from compressing and from buffering.
    headers.insert(
        CACHE_CONTROL,
        HeaderValue::from_static("no-cache, no-transform"),
    );
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// What one client reads of one log.
pub(super) struct FrameStream {
    state: Arc<AppState>,
    _reader: Reader,
    log: Arc<SharedLog>,
    dialect: Box<dyn Dialect>,
    pacer: Pacer,
    /// Frames made of one batch and not said yet: as many as the dialect makes of one batch.
    pending: VecDeque<Frame>,
    /// The last event that was given to the dialect.
    seen: u64,
    /// The terminal event was among them.
    over: bool,
    output_said: bool,
    last_said: Time,
}

impl FrameStream {
    /// A reader of what comes after event number `after`. `None` if it has seen the end and the dialect has
    /// nothing to say to that.
    pub(super) fn open(
        state: &Arc<AppState>,
        request: &Arc<Request>,
        log: Arc<SharedLog>,
        after: u64,
        mut dialect: Box<dyn Dialect>,
    ) -> Option<Self> {
        let mut pending = VecDeque::new();
        let mut seen = log.read_from(1);
        seen.retain(|event| event.seq <= after);
        let over = seen.last().is_some_and(|event| event.kind.is_terminal());
        if !seen.is_empty() {
            dialect.frames(&coalesce(seen));
        }
        if over {
            pending.extend(dialect.after_end());
            if pending.is_empty() {
                return None;
            }
        }
        state.metrics.open_streams(1);
        Some(FrameStream {
            pacer: Pacer::new(
                state.config.max_frames_per_second,
                dialect.terminal_frames(),
            ),
            state: Arc::clone(state),
            _reader: request.reader(),
            log,
            dialect,
            pending,
            seen: after,
            over,
            output_said: false,
            last_said: state.clock.now(),
        })
    }

    /// What goes to the socket next; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        let silent_until = self.instant(self.last_said + self.state.config.keep_alive);
        match timeout_at(silent_until, self.next_frame()).await {
            Err(_) => Some(self.keep_alive().await),
            Ok(None) => None,
            Ok(Some(frame)) => {
                let bytes = encode(&frame, frame.id).await;
                self.said();
                Some(bytes)
            }
        }
    }

    /// The next frame, when its turn has come; `None` at the end. Dropped while it waits, it loses nothing.
    /// Whoever says the frame tells so with [`said`](Self::said).
    pub(super) async fn next_frame(&mut self) -> Option<Frame> {
        loop {
            if !self.pending.is_empty() {
                self.wait_for_room().await;
                return self.pending.pop_front();
            }
            if self.over {
                return None;
            }
            self.log.wait_beyond(self.seen).await;
            self.wait_for_turn().await;
            self.take_batch();
        }
    }

    /// Waits until the pacer lets a batch go, but not beyond the end of the request.
    async fn wait_for_turn(&mut self) {
        let urgency = if self.output_said {
            Urgency::Routine
        } else {
            Urgency::News
        };
        let ready = self.pacer.ready_at(urgency);
        if ready > self.state.clock.now() {
            tokio::select! {
                () = sleep_until(self.instant(ready)) => {}
                () = self.log.until_closed() => {}
            }
        }
    }

    /// Turns everything that has gathered into frames.
    fn take_batch(&mut self) {
        let events = self.log.read_from(self.seen + 1);
        let Some(last) = events.last() else {
            return;
        };
        self.seen = last.seq;
        self.over = last.kind.is_terminal();
        self.output_said |= events.iter().any(|event| {
            matches!(
                event.kind,
                EventKind::Text { .. } | EventKind::Progress { .. } | EventKind::Preview { .. }
            )
        });
        self.pending.extend(self.dialect.frames(&coalesce(events)));
    }

    /// Frames of one batch follow each other at once, as far as the second has room.
    async fn wait_for_room(&mut self) {
        let urgency = if self.over {
            Urgency::Terminal
        } else {
            Urgency::News
        };
        let ready = self.pacer.ready_at(urgency);
        if ready > self.state.clock.now() {
            sleep_until(self.instant(ready)).await;
        }
    }

    /// A frame was said just now.
    pub(super) fn said(&mut self) {
        self.last_said = self.state.clock.now();
        self.pacer.said(self.last_said);
        self.state.metrics.frames(self.dialect.name(), 1);
    }

    async fn keep_alive(&mut self) -> Bytes {
        match self.dialect.keep_alive() {
            KeepAlive::Frame(data) => {
                let frame = Frame {
                    id: self.seen,
                    event: None,
                    data,
                    pictures: Vec::new(),
                };
                let bytes = encode(&frame, frame.id).await;
                self.said();
                bytes
            }
            KeepAlive::Comment => {
                self.last_said = self.state.clock.now();
                COMMENT
            }
        }
    }

    fn instant(&self, time: Time) -> Instant {
        Instant::from_std(self.state.clock.instant(time))
    }
}

impl Drop for FrameStream {
    fn drop(&mut self) {
        self.state.metrics.open_streams(-1);
    }
}

/// The frame as it stands on the wire, under this `id`.
async fn encode(frame: &Frame, id: u64) -> Bytes {
    Bytes::from(format!("id: {id}\n{}", encode_without_id(frame).await))
}

/// The frame as it stands on the wire, but for the line of its id.
pub(super) async fn encode_without_id(frame: &Frame) -> String {
    debug_assert!(!frame.data.contains(['\n', '\r']), "data is one line");
    let mut text = String::with_capacity(frame.data.len() + 32);
    if let Some(event) = frame.event {
        text.push_str("event: ");
        text.push_str(event);
        text.push('\n');
    }
    text.push_str("data: ");
    let mut rest = frame.data.as_str();
    for (picture, encoding) in &frame.pictures {
        let Some((before, after)) = rest.split_once(PICTURE) else {
            break;
        };
        text.push_str(before);
        // The dialects ask for nothing that cannot be encoded; what fails all the same is logged where
        // it does, and its place stays empty.
        let told = picture_file::in_base64(picture, encoding.clone()).await;
        text.push_str(&told.unwrap_or_default());
        rest = after;
    }
    text.push_str(rest);
    text.push_str("\n\n");
    text
}
