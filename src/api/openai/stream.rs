//! From events to OpenAI's chunks.

use axum::http::StatusCode;

use super::ReplyShape;
use super::gather::{End, Gathered, Part};
use super::logprobs;
use super::reply::{Endpoint, Head, StreamShape, finish_word, to_json, usage_body};
use super::types::{ChatChunkChoice, ChatDelta, CompletionChoice, UsageBody};
use crate::api::error::{ApiError, ErrorShape};
use crate::api::requests::Request;
use crate::api::sse::{Dialect, Frame};
use crate::batch::{FinishReason, TokenLogprob, Usage};
use crate::events::Event;

/// What closes every stream.
const DONE: &str = "[DONE]";

/// How far one choice has been told.
#[derive(Clone, Debug, Default)]
struct Told {
    /// Its first chunk, with the role or the echoed prompt, is out.
    begun: bool,
    /// Characters of its text that tokens with log-probabilities have covered.
    offset: u64,
}

/// One stream's state: what has been told so far.
#[derive(Debug)]
pub(super) struct ChunkDialect {
    head: Head,
    shape: StreamShape,
    told: Vec<Told>,
    /// Some choice was cancelled: the stream ends with an error, not with silence.
    cancelled: bool,
    /// Number of the terminal event, once it has been told.
    ended_at: Option<u64>,
}

impl ChunkDialect {
    /// For a reader of `request`.
    pub(super) fn of(request: &Request) -> Self {
        let shape = request
            .openai
            .as_ref()
            .and_then(ReplyShape::text)
            .cloned()
            .unwrap_or_else(|| StreamShape::foreign(request.logprobs));
        let head = Head::of(shape.endpoint, request);
        Self::new(head, shape, request.choices)
    }

    fn new(head: Head, shape: StreamShape, choices: u32) -> Self {
        ChunkDialect {
            head,
            shape,
            told: vec![Told::default(); choices as usize],
            cancelled: false,
            ended_at: None,
        }
    }

    /// One chunk for all that the events say; `None` if they say nothing.
    fn chunk(&mut self, gathered: &mut Gathered<'_>) -> Option<String> {
        if self.shape.echo.is_some()
            && self.shape.top_logprobs.is_some()
            && !gathered.prompt_logprobs.is_empty()
        {
            gathered.part(0);
        }
        let told = self.told.len();
        let parts = gathered
            .parts
            .iter()
            .filter(|part| (part.choice as usize) < told);
        let prompt = &gathered.prompt_logprobs;
        match self.shape.endpoint {
            Endpoint::Chat => {
                let choices = parts.map(|part| self.chat_choice(part)).collect();
                self.envelope("chat.completion.chunk", choices)
            }
            Endpoint::Completions => {
                let choices = parts
                    .map(|part| self.completion_choice(part, prompt))
                    .collect();
                self.envelope("text_completion", choices)
            }
        }
    }

    fn envelope<C: serde::Serialize>(
        &self,
        object: &'static str,
        choices: Vec<C>,
    ) -> Option<String> {
        // OpenAI's: null in every chunk but the one that tells it.
        let usage = self.shape.include_usage.then_some(None);
        (!choices.is_empty()).then(|| to_json(&self.head.envelope(object, choices, usage)))
    }

    fn chat_choice(&mut self, part: &Part<'_>) -> ChatChunkChoice {
        let told = &mut self.told[part.choice as usize];
        let first = !std::mem::replace(&mut told.begun, true);
        let content = part.text.clone();
        ChatChunkChoice {
            index: part.choice,
            delta: ChatDelta {
                role: first.then_some("assistant"),
                content: (first || !content.is_empty()).then_some(content),
            },
            logprobs: self
                .shape
                .top_logprobs
                .filter(|_| !part.logprobs.is_empty())
                .map(|top| logprobs::chat(&part.logprobs, top)),
            finish_reason: self.finish_reason(part),
        }
    }

    fn completion_choice(&mut self, part: &Part<'_>, prompt: &[&TokenLogprob]) -> CompletionChoice {
        let told = &mut self.told[part.choice as usize];
        let first = !std::mem::replace(&mut told.begun, true);
        let echo = self.shape.echo.as_ref();
        let mut text = String::new();
        if let (true, Some(echo)) = (first, echo) {
            text.push_str(&echo.text);
        }
        text.push_str(&part.text);

        let prompt = if echo.is_some() { prompt } else { &[] };
        let hidden = echo.filter(|_| first).map_or(0, |echo| echo.hidden_tokens);
        let entries = prompt.iter().chain(&part.logprobs).copied();
        let top = self
            .shape
            .top_logprobs
            .filter(|_| !prompt.is_empty() || !part.logprobs.is_empty());
        let logprobs = top.map(|top| {
            let (shape, offset) = logprobs::legacy(entries, top, told.offset, hidden);
            told.offset = offset;
            shape
        });
        CompletionChoice {
            index: part.choice,
            text,
            logprobs,
            finish_reason: self.finish_reason(part),
            prompt_logprobs: None,
        }
    }

    fn finish_reason(&mut self, part: &Part<'_>) -> Option<&'static str> {
        let end = part.finish?;
        self.cancelled |= end.reason == FinishReason::Cancelled;
        finish_word(end.reason)
    }

    /// What is said at the end, before `[DONE]`.
    fn last_words(&self, end: End<'_>) -> Option<String> {
        match end {
            End::Failed(failure) => Some(error_chunk(&ApiError::from(failure))),
            End::Finished(_) if self.cancelled => Some(error_chunk(&cancelled())),
            End::Finished(usage) => self.shape.include_usage.then(|| self.usage_chunk(usage)),
        }
    }

    fn usage_chunk(&self, usage: Usage) -> String {
        let object = match self.shape.endpoint {
            Endpoint::Chat => "chat.completion.chunk",
            Endpoint::Completions => "text_completion",
        };
        let usage: UsageBody = usage_body([usage]);
        to_json(
            &self
                .head
                .envelope(object, Vec::<ChatChunkChoice>::new(), Some(Some(usage))),
        )
    }
}

/// 499, as proxies call a request whose client has left: it was cancelled, by its owner or for
/// want of a reader.
pub(super) fn cancelled() -> ApiError {
    let status = StatusCode::from_u16(499).expect("a number of three digits is a status");
    ApiError::new(status, "request_cancelled", "the request was cancelled")
}

fn error_chunk(error: &ApiError) -> String {
    error.body(ErrorShape::OpenAi).to_string()
}

fn frame(id: u64, data: impl Into<String>) -> Frame {
    Frame {
        id,
        event: None,
        data: data.into(),
        pictures: Vec::new(),
    }
}

impl Dialect for ChunkDialect {
    fn name(&self) -> &'static str {
        "openai"
    }

    fn frames(&mut self, events: &[Event]) -> Vec<Frame> {
        let mut gathered = Gathered::from_events(events);
        let end = gathered.end;
        let last_seq = gathered.last_seq;
        let mut frames: Vec<Frame> = self
            .chunk(&mut gathered)
            .map(|chunk| frame(last_seq, chunk))
            .into_iter()
            .collect();
        if let Some((seq, end)) = end {
            // A client that is cut between these two comes back with the last number and is told
            // that it is done.
            frames.extend(self.last_words(end).map(|words| frame(seq, words)));
            frames.push(frame(seq, DONE));
            self.ended_at = Some(seq);
        }
        frames
    }

    /// The last chunk, usage or an error, and `[DONE]`.
    fn terminal_frames(&self) -> u32 {
        3
    }

    fn after_end(&mut self) -> Vec<Frame> {
        self.ended_at
            .map(|seq| frame(seq, DONE))
            .into_iter()
            .collect()
    }
}

#[cfg(test)]
mod tests;
