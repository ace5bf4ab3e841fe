//! One stream that follows several requests: what a page needs, since browsers open six connections to
//! a host at most.
//!
//! It holds no state between two connections. Where each request is to go on stands in the query, and in
//! every frame's `id`; a client that begins another request opens the stream again with one more.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{BoxStream, SelectAll, StreamExt, select_all, unfold};
use tokio::time::{Instant, timeout_at};

use super::dialect::NativeDialect;
use super::wire::GoneBody;
use super::{QueryFields, SESSION, no_more, read_query};
use crate::api::AppState;
use crate::api::auth::Caller;
use crate::api::error::{ApiError, ErrorShape};
use crate::api::sse::{COMMENT, Frame, FrameStream, encode_without_id, respond};
use crate::api::submit::find;
use crate::job::RequestId;
use crate::time::{Clock, Time};

const FIELD: &str = "requests";
const HEADER: &str = "Last-Event-ID";

/// The events of several requests as one stream, each from where its reader stopped, until all have ended.
///
/// The events are those of each request's own stream; `data` says whose, with the number to go on from
/// (`SessionFrame`). Each request is paced for itself. A frame's `id` holds the numbers of all requests, in the
/// order of the query: returning with it in `Last-Event-ID` goes on with all of them, nothing lost and
/// nothing twice. To follow one more request, open the stream again with the numbers at hand. A request
/// that is not there, not the caller's, or not kept any longer is told by an event `gone` with the
/// status 404 or 410, and does not disturb the others.
#[utoipa::path(get, path = SESSION, tag = "native",
    params(
        ("requests" = String, Query, description = "`ID:NUMBER,ID:NUMBER`: each request's id and the number of \
            its last event seen, which may be left out with the colon"),
        ("Last-Event-ID" = Option<String>, Header, description = "the numbers of all requests, in the same \
            order, with dots between them; they outdate those of the query"),
    ),
    responses(
        (status = 200, description = "events of all the requests", body = super::wire::SessionFrame,
            content_type = "text/event-stream"),
        (status = 204, description = "the client has seen the last event of all of them already"),
        (status = 400, description = "requests or Last-Event-ID cannot be read, or names more requests than \
            max_stream_requests"),
    ))]
pub(in crate::api) async fn events(
    State(state): State<Arc<AppState>>,
    Extension(caller): Extension<Caller>,
    query: Result<Query<QueryFields>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let mut query = read_query(query)?;
    let text = query.remove(FIELD).unwrap_or_default();
    no_more(query)?;
    let mut followed = parse(&text, state.config.max_stream_requests)?;
    resume(&mut followed, &headers)?;

    let mut gone = Vec::new();
    let mut readers = Vec::new();
    for (place, one) in followed.iter().enumerate() {
        match find(&state, one.id, &caller) {
            Err(error) => gone.push((place, gone_frame(one, &error))),
            Ok((request, log)) => {
                if one.after > log.last_seq() {
                    return Err(beyond(one, log.last_seq()));
                }
                let dialect = Box::new(NativeDialect::of(&request));
                let frames = FrameStream::open(&state, &request, log, one.after, dialect);
                readers.extend(frames.map(|frames| reader(place, one.id, frames)));
            }
        }
    }
    if gone.is_empty() && readers.is_empty() {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let session = Session {
        ends_at: state.end_of_stream(state.config.max_stream_age),
        covered: Covered(followed.iter().map(|one| one.after).collect()),
        readers: select_all(readers),
        gone: gone.into_iter(),
        state,
    };
    Ok(respond(unfold(session, async |mut session| {
        let bytes = session.next().await?;
        Some((bytes, session))
    })))
}

/// One of the requests, and the last of its events that the client has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Followed {
    id: RequestId,
    after: u64,
}

fn parse(text: &str, limit: usize) -> Result<Vec<Followed>, ApiError> {
    let mut followed = Vec::new();
    let mut known = HashSet::new();
    for part in text.split(',').filter(|_| !text.is_empty()) {
        if followed.len() == limit {
            let message = format!("requests names more than max_stream_requests, {limit}");
            return Err(ApiError::invalid(FIELD, message));
        }
        let (id, after) = part.split_once(':').unwrap_or((part, "0"));
        let one = id
            .parse()
            .ok()
            .zip(number(after))
            .map(|(id, after)| Followed { id, after })
            .ok_or_else(|| {
                let place = followed.len();
                ApiError::invalid(
                    FIELD,
                    format!("requests[{place}] must be a request's id, a colon and a number"),
                )
            })?;
        if !known.insert(one.id) {
            return Err(ApiError::invalid(FIELD, "requests names a request twice"));
        }
        followed.push(one);
    }
    if followed.is_empty() {
        return Err(ApiError::invalid(FIELD, "requests must name a request"));
    }
    Ok(followed)
}

/// The numbers of `Last-Event-ID` are newer than those of the query, which a browser's `EventSource` repeats.
fn resume(followed: &mut [Followed], headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(value) = headers.get(HEADER) else {
        return Ok(());
    };
    let parts = value.to_str().unwrap_or_default().split('.');
    let numbers: Option<Vec<u64>> = parts.map(number).collect();
    let numbers = numbers
        .filter(|numbers| numbers.len() == followed.len())
        .ok_or_else(|| {
            let message =
                "Last-Event-ID must hold one number for each of requests, with dots between";
            ApiError::invalid(HEADER, message)
        })?;
    for (one, after) in followed.iter_mut().zip(numbers) {
        one.after = after;
    }
    Ok(())
}

/// Digits only: `parse` would take a sign as well.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

fn beyond(one: &Followed, last: u64) -> ApiError {
    let Followed { id, after } = one;
    let message = format!("the number for {id} is {after}, beyond its last event, {last}");
    ApiError::invalid(FIELD, message)
}

/// The last event covered of each request, in the order of the query: the `id` of a frame.
struct Covered(Vec<u64>);

impl fmt::Display for Covered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, number) in self.0.iter().enumerate() {
            let dot = if place == 0 { "" } else { "." };
            write!(f, "{dot}{number}")?;
        }
        Ok(())
    }
}

/// A frame as it stands on the wire but for its id, and what it covers.
struct Said {
    place: usize,
    seq: u64,
    text: String,
}

/// What one request has to say. It makes its next frame only when it is asked for one.
fn reader(place: usize, id: RequestId, frames: FrameStream) -> BoxStream<'static, Said> {
    unfold(frames, move |mut frames| async move {
        let frame = frames.next_frame().await?;
        let seq = frame.id;
        let text = encode_without_id(&addressed(frame, id)).await;
        frames.said();
        Some((Said { place, seq, text }, frames))
    })
    .boxed()
}

/// The frame with the name of its request.
fn addressed(frame: Frame, id: RequestId) -> Frame {
    Frame {
        data: format!(
            r#"{{"request":"{id}","seq":{},"data":{}}}"#,
            frame.id, frame.data
        ),
        ..frame
    }
}

fn gone_frame(one: &Followed, error: &ApiError) -> Frame {
    let body = GoneBody {
        status: error.status.as_u16(),
        error: error.body(ErrorShape::Native)["error"].take(),
    };
    let frame = Frame {
        id: one.after,
        event: Some("gone"),
        data: serde_json::to_string(&body).expect("wire types have string keys only"),
        pictures: Vec::new(),
    };
    addressed(frame, one.id)
}

/// One client's stream.
struct Session {
    state: Arc<AppState>,
    covered: Covered,
    readers: SelectAll<BoxStream<'static, Said>>,
    gone: std::vec::IntoIter<(usize, Frame)>,
    /// When it has to end, between two frames: its client goes on with another.
    ends_at: Time,
}

impl Session {
    /// What goes to the socket next; `None` when all have ended.
    async fn next(&mut self) -> Option<Bytes> {
        let said = match self.gone.next() {
            Some((place, frame)) => Said {
                place,
                seq: frame.id,
                text: encode_without_id(&frame).await,
            },
            None => {
                let now = self.state.clock.now();
                if now >= self.ends_at {
                    return None;
                }
                let until = self.ends_at.min(now + self.state.config.keep_alive);
                let until = Instant::from_std(self.state.clock.instant(until));
                match timeout_at(until, self.readers.next()).await {
                    Err(_) => return (self.state.clock.now() < self.ends_at).then_some(COMMENT),
                    Ok(said) => said?,
                }
            }
        };
        self.covered.0[said.place] = said.seq;
        let text = format!("id: {}\n{}", self.covered, said.text);
        Some(Bytes::from(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "0000000000000000000000000000000a";
    const OTHER: &str = "0000000000000000000000000000000b";

    #[test]
    fn requests_are_read_with_their_numbers() {
        let read = |text: &str| {
            let followed = parse(text, 2).map_err(|error| error.message)?;
            let pairs = followed.iter().map(|one| (one.id.to_string(), one.after));
            Ok::<_, String>(pairs.collect::<Vec<_>>())
        };
        assert_eq!(
            read(&format!("{ONE}:7,{OTHER}")),
            Ok(vec![(ONE.to_owned(), 7), (OTHER.to_owned(), 0)])
        );
        let part = "requests[0] must be a request's id, a colon and a number";
        for (text, expected) in [
            ("", "requests must name a request"),
            ("x:1", part),
            (&format!("{ONE}:"), part),
            (&format!("{ONE}:+1"), part),
            (
                &format!("{ONE}:1,{ONE}:2"),
                "requests names a request twice",
            ),
            (
                &format!("{ONE},{OTHER},x"),
                "requests names more than max_stream_requests, 2",
            ),
        ] {
            assert_eq!(read(text), Err(expected.to_owned()), "{text}");
        }
    }

    #[test]
    fn the_header_has_a_number_for_each() {
        let after = |value: &str| {
            let mut followed = parse(&format!("{ONE}:1,{OTHER}:2"), 2).unwrap();
            let mut headers = HeaderMap::new();
            headers.insert("last-event-id", value.parse().unwrap());
            resume(&mut followed, &headers).ok()?;
            Some(Covered(followed.iter().map(|one| one.after).collect()).to_string())
        };
        assert_eq!(after("3.4").as_deref(), Some("3.4"));
        for wrong in ["3", "3.", "3.4.5", "3.-4", "a.b", ""] {
            assert_eq!(after(wrong), None, "{wrong}");
        }
    }
}
