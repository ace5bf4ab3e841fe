//! A small typed client of the native API, for tests and benchmarks. It reaches the service over
//! HTTP only and does not retry: whoever measures wants to see every failure.

use std::time::Duration;

use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::api::native::wire::{Status, SubmitBody, Submitted};
use crate::api::native::wire_image::ImageSubmitBody;
use crate::api::ops::{Load, Models, Readiness};

/// What can go wrong with a call.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The connection or the body.
    #[error(transparent)]
    Http(#[from] reqwest::Error),
    /// The service refused.
    #[error("{status}: {message}")]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// The error's `code`.
        code: String,
        /// The error's `message`.
        message: String,
        /// The field that is wrong.
        field: Option<String>,
        /// When to come back.
        retry_after: Option<Duration>,
    },
    /// The service said what it should not.
    #[error("unexpected answer: {0}")]
    Protocol(String),
}

/// Calls one service.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    key: Option<String>,
}

impl Client {
    /// A client of the service at `base`, such as `http://127.0.0.1:8080`.
    pub fn new(base: impl Into<String>) -> Self {
        Client {
            http: reqwest::Client::new(),
            base: base.into(),
            key: None,
        }
    }

    /// The same with an API key.
    pub fn with_key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// A call to be filled in and sent by the caller, with base and key set.
    pub fn call(&self, method: Method, path: &str) -> RequestBuilder {
        let call = self.http.request(method, format!("{}{path}", self.base));
        match &self.key {
            Some(key) => call.bearer_auth(key),
            None => call,
        }
    }

    /// Submits a request.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn submit(&self, body: &SubmitBody) -> Result<Submitted, ClientError> {
        read(self.call(Method::POST, "/api/v1/requests").json(body)).await
    }

    /// Submits a request to an image model.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn submit_images(&self, body: &ImageSubmitBody) -> Result<Submitted, ClientError> {
        read(self.call(Method::POST, "/api/v1/requests").json(body)).await
    }

    /// The file at `path`: an image's `url`, perhaps with a format.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn file(&self, path: &str) -> Result<Vec<u8>, ClientError> {
        let response = checked(self.call(Method::GET, path).send().await?).await?;
        Ok(response.bytes().await?.to_vec())
    }

    /// The request's state and result so far; at its end, or after `wait`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn status(&self, id: &str, wait: Duration) -> Result<Status, ClientError> {
        let wait = wait.as_secs_f64();
        read(self.call(Method::GET, &format!("/api/v1/requests/{id}?wait={wait}"))).await
    }

    /// Cancels a request.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn cancel(&self, id: &str) -> Result<Status, ClientError> {
        read(self.call(Method::DELETE, &format!("/api/v1/requests/{id}"))).await
    }

    /// Follows a request from behind event number `after` (0: from the first).
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn events(&self, id: &str, after: u64) -> Result<EventStream, ClientError> {
        let path = format!("/api/v1/requests/{id}/events?from={after}");
        let response = self.call(Method::GET, &path).send().await?;
        Ok(EventStream::of(checked(response).await?))
    }

    /// Where every model is, ready or not.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn readiness(&self) -> Result<Readiness, ClientError> {
        let response = self.call(Method::GET, "/health/ready").send().await?;
        Ok(response.json().await?)
    }

    /// How loaded every model is.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn load(&self) -> Result<Load, ClientError> {
        read(self.call(Method::GET, "/load")).await
    }

    /// The models served.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn models(&self) -> Result<Models, ClientError> {
        read(self.call(Method::GET, "/api/v1/models")).await
    }
}

async fn read<T: DeserializeOwned>(call: RequestBuilder) -> Result<T, ClientError> {
    let response = checked(call.send().await?).await?;
    Ok(response.json().await?)
}

/// The response if it is one of success.
async fn checked(response: Response) -> Result<Response, ClientError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let retry_after = retry_after(response.headers());
    let body: Value = response.json().await?;
    let error = &body["error"];
    let text = |name: &str| error[name].as_str().map(str::to_owned);
    Err(ClientError::Refused {
        status,
        code: text("code").unwrap_or_default(),
        message: text("message").unwrap_or_default(),
        field: text("field"),
        retry_after,
    })
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// One server-sent event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamEvent {
    /// Its `id`: the number of the last event that it covers.
    pub id: Option<u64>,
    /// Its name; empty if it has none.
    pub event: String,
    /// Its data.
    pub data: String,
}

impl StreamEvent {
    /// Its data as JSON.
    ///
    /// # Errors
    /// The data is of another shape.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        serde_json::from_str(&self.data).map_err(|error| ClientError::Protocol(error.to_string()))
    }
}

/// A stream of server-sent events as it comes in.
pub struct EventStream {
    response: Response,
    buffer: Vec<u8>,
}

impl EventStream {
    /// The events of a response.
    pub fn of(response: Response) -> Self {
        EventStream {
            response,
            buffer: Vec::new(),
        }
    }

    /// The response's head.
    pub fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// The next event, without comments; `None` at the stream's end.
    ///
    /// # Errors
    /// The connection broke, or what came is no event.
    pub async fn next(&mut self) -> Result<Option<StreamEvent>, ClientError> {
        const END: &[u8] = b"\n\n";
        loop {
            let end = self.buffer.windows(END.len()).position(|at| at == END);
            if let Some(end) = end {
                let block: Vec<u8> = self.buffer.drain(..end + END.len()).collect();
                match parse(&block)? {
                    Some(event) => return Ok(Some(event)),
                    None => continue,
                }
            }
            match self.response.chunk().await? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None if self.buffer.is_empty() => return Ok(None),
                None => {
                    let message = "the stream ended within an event".to_owned();
                    return Err(ClientError::Protocol(message));
                }
            }
        }
    }

    /// All events to the stream's end.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub async fn collect(mut self) -> Result<Vec<StreamEvent>, ClientError> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await? {
            events.push(event);
        }
        Ok(events)
    }
}

/// One event's lines; `None` for comments alone.
fn parse(block: &[u8]) -> Result<Option<StreamEvent>, ClientError> {
    let protocol = |what: &str| ClientError::Protocol(what.to_owned());
    let text = std::str::from_utf8(block).map_err(|_| protocol("an event is no UTF-8"))?;
    let mut event = StreamEvent::default();
    let mut said = false;
    for line in text.lines().filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "" => {}
            "id" => {
                let id = value.parse().map_err(|_| protocol("an id is no number"))?;
                event.id = Some(id);
            }
            "event" => value.clone_into(&mut event.event),
            "data" => {
                if said {
                    event.data.push('\n');
                }
                event.data.push_str(value);
                said = true;
            }
            _ => return Err(protocol("an event has an unknown field")),
        }
    }
    Ok(said.then_some(event))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_read_by_its_lines() {
        let check = |block: &str, expected: Option<StreamEvent>| {
            assert_eq!(parse(block.as_bytes()).unwrap(), expected, "{block:?}");
        };
        check(": keep-alive\n\n", None);
        check(
            "id: 7\nevent: text\ndata: {}\n\n",
            Some(StreamEvent {
                id: Some(7),
                event: "text".into(),
                data: "{}".into(),
            }),
        );
        check(
            ": comment\ndata: a\ndata:  b\n\n",
            Some(StreamEvent {
                data: "a\n b".into(),
                ..StreamEvent::default()
            }),
        );
        assert!(parse(b"id: x\ndata: 1\n\n").is_err());
    }
}
