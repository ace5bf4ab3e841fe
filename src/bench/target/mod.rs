//! The server that is measured: an ordinary HTTP client of it. It does not retry, follows no redirect, and
//! reads streams as cheaply as it can, for it shares a machine with what it measures more often than not.

mod answer;
mod body;
pub mod counters;
pub mod observation;
pub mod probe;
mod sse;

use std::time::Duration;

use reqwest::{Response, StatusCode};
use serde_json::{Map, Value};
use tokio::time::timeout_at;

use self::answer::Answer;
pub use self::observation::{End, ErrorKind, Observation};
use super::load::Ask;
use super::results::Api;
use crate::time::{Clock, RealClock, Time};

/// Where requests go, and how.
#[derive(Clone, Debug)]
pub struct TargetConfig {
    /// Such as `http://127.0.0.1:8080`, without a slash at its end.
    pub url: String,
    /// The API key.
    pub key: Option<String>,
    /// The model, as requests name it.
    pub model: String,
    /// The interface.
    pub api: Api,
    /// Whether pictures are asked for.
    pub draws: bool,
    /// Ask for as many tokens as wanted, also past an end-of-text. A field that not every server knows.
    pub ignore_eos: bool,
    /// Fields that every request gets, over ours.
    pub extra_body: Map<String, Value>,
    /// A request takes at most so long from its intended start.
    pub timeout: Duration,
    /// So long is waited before each request is sent: a fault, to see that it is seen.
    pub planted_lag: Duration,
}

/// What a request tells while it runs.
pub trait Watch: Send + Sync {
    /// Its first text came.
    fn first(&self, at: Time);
    /// Text came, so long after the text before it.
    fn gap(&self, at: Time, micros: u64);
}

/// A client of one server.
#[derive(Clone, Debug)]
pub struct Target {
    http: reqwest::Client,
    config: TargetConfig,
}

/// What became of a request, and what it said if that was to be kept.
pub type Outcome = (Observation, Option<String>);

impl Target {
    /// A client.
    ///
    /// # Errors
    /// The HTTP client cannot be built.
    pub fn new(config: TargetConfig) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .tcp_nodelay(true)
            .build()?;
        Ok(Target { http, config })
    }

    /// How it was set up.
    pub fn config(&self) -> &TargetConfig {
        &self.config
    }

    /// Sends one request and reads its answer.
    pub async fn perform(
        &self,
        ask: &Ask,
        (ordinal, intended): (u64, Time),
        keep_text: bool,
        clock: &RealClock,
        watch: &dyn Watch,
    ) -> Outcome {
        if !self.config.planted_lag.is_zero() {
            tokio::time::sleep(self.config.planted_lag).await;
        }
        let asked_tokens = match ask {
            Ask::Text(text) => text.output_tokens,
            Ask::Picture(_) => 0,
        };
        let seen = Observation::new(ordinal, intended, clock.now());
        let mut answer = Answer::new(
            self.config.api,
            self.config.draws,
            asked_tokens,
            keep_text,
            seen,
        );
        let deadline = clock.instant(intended + self.config.timeout).into();
        let read = timeout_at(deadline, self.read(ask, &mut answer, clock, watch)).await;
        match read {
            Ok(Ok(())) => answer.close(clock.now(), false),
            Ok(Err(Broken::Stream)) => answer.close(clock.now(), true),
            Ok(Err(Broken::Never(ended))) => (answer.fail(clock.now(), ended), None),
            Err(_) => (answer.fail(clock.now(), End::TimedOut), None),
        }
    }

    async fn read(
        &self,
        ask: &Ask,
        answer: &mut Answer,
        clock: &RealClock,
        watch: &dyn Watch,
    ) -> Result<(), Broken> {
        let mut response = self.stream(ask).await?;
        while let Some(chunk) = response.chunk().await.map_err(|_| Broken::Stream)? {
            let now = clock.now();
            let is_first = answer.first().is_none();
            let news = answer.read(&chunk, now);
            if news.content && is_first {
                watch.first(now);
            }
            if let Some(micros) = news.gap_micros {
                watch.gap(now, micros);
            }
        }
        Ok(())
    }

    /// The stream of a request: for the native interface the second of two calls.
    async fn stream(&self, ask: &Ask) -> Result<Response, Broken> {
        let (path, body) = body::of(&self.config, ask);
        let response = self.post(path, &body).await?;
        if self.config.api != Api::Native {
            return Ok(response);
        }
        let submitted: Value = response.json().await.map_err(|_| Broken::protocol())?;
        let id = submitted["id"].as_str().ok_or_else(Broken::protocol)?;
        let events = self.call(
            reqwest::Method::GET,
            &format!("/api/v1/requests/{id}/events"),
        );
        checked(events.send().await)
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Response, Broken> {
        checked(
            self.call(reqwest::Method::POST, path)
                .json(body)
                .send()
                .await,
        )
    }

    pub(super) fn call(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        let call = self
            .http
            .request(method, format!("{}{path}", self.config.url));
        match &self.config.key {
            Some(key) => call.bearer_auth(key),
            None => call,
        }
    }
}

/// Why there is no more to read.
#[derive(Debug)]
enum Broken {
    /// The stream broke off.
    Stream,
    /// There was none.
    Never(End),
}

impl Broken {
    fn protocol() -> Self {
        Broken::Never(End::Error(ErrorKind::Protocol))
    }
}

fn checked(response: Result<Response, reqwest::Error>) -> Result<Response, Broken> {
    let response = response.map_err(|_| Broken::Never(End::Error(ErrorKind::Connect)))?;
    match response.status() {
        status if status.is_success() => Ok(response),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            Err(Broken::Never(End::Refused))
        }
        status => Err(Broken::Never(End::Error(ErrorKind::Status(
            status.as_u16(),
        )))),
    }
}
