//! `queue/data`: one stream for all of a session's events.
//!
//! Every message is `data: {json}` and an empty line; nothing else, since the Python client gives up on
//! anything else. A stream begins with the events that no stream has told to their end, each from its
//! beginning, takes in those that join meanwhile, and says `close_stream` when all have ended.
//!
//! A client that asks for it (`?resume=1`) gets an `id:` line before each message and can come back with the
//! last one in `Last-Event-ID`: the stream goes on behind it ([`Cursor`]), for all events at once, with nothing lost and
//! nothing twice.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use futures_util::stream::{BoxStream, SelectAll, StreamExt, unfold};
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::GradioError;
use super::cursor::Cursor;
use super::dialect::{Form, GradioDialect, failed_message};
use super::session::{Joined, Open, Session};
use crate::api::AppState;
use crate::api::auth::Caller;
use crate::api::error::ApiError;
use crate::api::sse::{FrameStream, encode_without_id, respond};
use crate::api::submit::find;
use crate::events::store::SharedLog;
use crate::time::{Clock, Time};

const HEADER: &str = "Last-Event-ID";
const HEARTBEAT: &str = "data: {\"msg\":\"heartbeat\"}\n\n";
const CLOSE: &str = "data: {\"msg\":\"close_stream\",\"event_id\":null}\n\n";

/// The query of a session's stream. Whatever else clients put there has no meaning here.
#[derive(Debug, Deserialize)]
pub(super) struct SessionQuery {
    session_hash: Option<String>,
    resume: Option<String>,
}

/// A session's stream.
#[utoipa::path(get, path = "/gradio_api/queue/data", tag = "gradio",
    params(
        ("session_hash" = String, Query, description = "the session"),
        ("resume" = Option<String>, Query, description = "`1`: with `id:` lines, which `gradio_client` does not know"),
        ("Last-Event-ID" = Option<String>, Header, description = "the last id seen; goes on behind it"),
    ),
    responses(
        (status = 200, description = "estimation, process_starts, progress, process_generating, \
            process_completed, heartbeat and close_stream", content_type = "text/event-stream"),
        (status = 400, description = "no session_hash, or an id that is none"),
        (status = 404, description = "nobody has joined with this session_hash, or it is forgotten"),
    ))]
pub(super) async fn stream(
    State(state): State<Arc<AppState>>,
    Extension(caller): Extension<Caller>,
    Query(query): Query<SessionQuery>,
    headers: HeaderMap,
) -> Result<Response, GradioError> {
    let hash = query.session_hash.ok_or_else(|| {
        let message = "session_hash is required";
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_session", message)
    })?;
    let cursor = match headers.get(HEADER) {
        None => None,
        Some(value) => Some(value.to_str().ok().and_then(Cursor::parse).ok_or_else(|| {
            let message = "Last-Event-ID must be an id of this session's stream";
            ApiError::new(StatusCode::BAD_REQUEST, "invalid_event_id", message)
        })?),
    };
    let asked = matches!(query.resume.as_deref(), Some("1" | "true"));
    let session = state.gradio.sessions.get(&caller, &hash).ok_or_else(|| {
        let message = "there is no session of this session_hash, or it is not kept any longer";
        ApiError::new(StatusCode::NOT_FOUND, "session_not_found", message)
    })?;
    let with_ids = asked || cursor.is_some();
    let stream = SessionStream::new(state, caller, session, cursor, with_ids);
    Ok(respond(unfold(stream, async |mut stream| {
        let text = stream.next().await?;
        Some((Bytes::from(text), stream))
    })))
}

/// A message of one event.
struct Said {
    number: u64,
    seq: u64,
    /// As it stands on the wire.
    text: String,
    /// Nothing of this event comes after it.
    last: bool,
}

/// One client's stream.
struct SessionStream {
    state: Arc<AppState>,
    caller: Caller,
    session: Arc<Session>,
    _open: Open,
    changes: watch::Receiver<()>,
    /// What each event that has not ended has to say.
    events: SelectAll<BoxStream<'static, Said>>,
    cursor: Cursor,
    with_ids: bool,
    /// Events that have been told to their end; `cursor.base` runs over them.
    ended: BTreeSet<u64>,
    /// Events below have been looked at.
    next_number: u64,
    /// With nothing left to say, the stream ends then.
    over_at: Time,
    last_said: Time,
    /// When it has to end, between two messages, for a client that goes on with another.
    ends_at: Time,
    closed: bool,
}

impl SessionStream {
    fn new(
        state: Arc<AppState>,
        caller: Caller,
        session: Arc<Session>,
        cursor: Option<Cursor>,
        with_ids: bool,
    ) -> Self {
        let now = state.clock.now();
        let mut stream = SessionStream {
            caller,
            _open: session.open(),
            changes: session.changes(),
            session: Arc::clone(&session),
            events: SelectAll::new(),
            cursor: Cursor::default(),
            with_ids,
            ended: BTreeSet::new(),
            next_number: 0,
            over_at: now,
            last_said: now,
            ends_at: match with_ids {
                true => state.end_of_stream(state.config.max_stream_age),
                false => Time::FAR_FUTURE,
            },
            closed: false,
            state,
        };
        let resumed = cursor.is_some();
        stream.cursor = cursor.unwrap_or_default();
        let (events, next) = session.from(stream.cursor.base);
        stream.next_number = next;
        if !resumed {
            stream.cursor.base = next;
        }
        for event in events {
            if resumed || !event.is_told() {
                stream.cursor.base = stream.cursor.base.min(event.number);
                stream.follow(&event);
            } else {
                stream.ended.insert(event.number);
            }
        }
        stream.advance();
        stream
    }

    /// What goes to the socket next; `None` at the end.
    async fn next(&mut self) -> Option<String> {
        loop {
            if self.closed || self.state.clock.now() >= self.ends_at {
                return None;
            }
            self.changes.mark_unchanged();
            self.take_newcomers();
            if self.events.is_empty() {
                let over_at = self.instant(self.over_at);
                let waited = timeout_at(over_at, self.changes.changed()).await;
                if waited.is_err() && self.session.close(self.next_number) {
                    self.closed = true;
                    return Some(self.with_id(CLOSE));
                }
                if waited.is_err() {
                    // Somebody is joining this very moment.
                    let _ = self.changes.changed().await;
                }
                continue;
            }
            let silent_until = self.last_said + self.state.config.keep_alive;
            let until = self.instant(silent_until.min(self.ends_at));
            let said = tokio::select! {
                said = self.events.next() => said,
                _ = self.changes.changed() => continue,
                () = sleep_until(until) => {
                    if self.state.clock.now() < silent_until {
                        continue;
                    }
                    self.last_said = self.state.clock.now();
                    return Some(HEARTBEAT.to_owned());
                }
            };
            if let Some(said) = said {
                return Some(self.say(said));
            }
            self.over_at = self.state.clock.now() + self.state.config.gradio.linger;
        }
    }

    fn take_newcomers(&mut self) {
        let (events, next) = self.session.from(self.next_number);
        self.next_number = next;
        for event in events {
            self.follow(&event);
        }
    }

    /// Reads one more event, from where the client has seen it.
    fn follow(&mut self, event: &Joined) {
        let number = event.number;
        let reader = match find(&self.state, event.id, &self.caller) {
            Err(error) => lost(event, &error),
            Ok((request, log)) => {
                let seen = self.cursor.seen(number).min(log.last_seq());
                let address = Arc::clone(&event.address);
                let dialect = Box::new(GradioDialect::of(&request, address, Form::Session));
                let frames =
                    FrameStream::open(&self.state, &request, Arc::clone(&log), seen, dialect);
                match frames {
                    Some(frames) => reader(number, frames, log),
                    None => {
                        self.session.tell(number);
                        self.ended.insert(number);
                        return;
                    }
                }
            }
        };
        self.events.push(reader);
    }

    fn say(&mut self, said: Said) -> String {
        self.last_said = self.state.clock.now();
        self.cursor.seen.insert(said.number, said.seq);
        if said.last {
            self.session.tell(said.number);
            self.ended.insert(said.number);
            self.advance();
            self.over_at = self.last_said + self.state.config.gradio.linger;
        }
        self.with_id(&said.text)
    }

    /// Moves the base over events that have ended.
    fn advance(&mut self) {
        while self.ended.remove(&self.cursor.base) {
            self.cursor.seen.remove(&self.cursor.base);
            self.cursor.base += 1;
        }
    }

    fn with_id(&self, text: &str) -> String {
        match self.with_ids {
            true => format!("id: {}\n{text}", self.cursor),
            false => text.to_owned(),
        }
    }

    fn instant(&self, time: Time) -> Instant {
        Instant::from_std(self.state.clock.instant(time))
    }
}

/// What one event has to say. It makes its next message only when it is asked for one.
fn reader(number: u64, frames: FrameStream, log: Arc<SharedLog>) -> BoxStream<'static, Said> {
    unfold((number, frames, log), async |(number, mut frames, log)| {
        let frame = frames.next_frame().await?;
        let text = encode_without_id(&frame).await;
        frames.said();
        let said = Said {
            number,
            seq: frame.id,
            text,
            last: log.is_closed() && frame.id == log.last_seq(),
        };
        Some((said, (number, frames, log)))
    })
    .boxed()
}

/// The end of an event whose log is not kept any longer.
fn lost(event: &Joined, error: &ApiError) -> BoxStream<'static, Said> {
    let message = failed_message(&event.id.to_string(), &error.message);
    let said = Said {
        number: event.number,
        seq: 0,
        text: format!("data: {message}\n\n"),
        last: true,
    };
    futures_util::stream::iter([said]).boxed()
}

/// Says that the service is there, for as long as the client listens. It is no reader of any event.
pub(super) async fn heartbeat(
    State(state): State<Arc<AppState>>,
    Path(_session_hash): Path<String>,
) -> Response {
    respond(unfold((state, false), async |(state, begun)| {
        if begun {
            let next = state.clock.now() + state.config.keep_alive;
            sleep_until(Instant::from_std(state.clock.instant(next))).await;
        }
        Some((Bytes::from_static(b"data: ALIVE\n\n"), (state, true)))
    }))
}
