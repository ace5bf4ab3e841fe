//! How a request's reply is to look, and the reply as a whole.

use std::sync::Arc;

use serde_json::Value;

use super::gather::{Gathered, Part};
use super::logprobs;
use super::types::{
    ChatChoice, ChatMessage, CompletionChoice, Envelope, LegacyLogprobs, PromptTokensDetails,
    UsageBody,
};
use crate::api::requests::Request;
use crate::batch::{FinishReason, TokenLogprob, Usage};
use crate::job::RequestId;

/// How a request's reply is to look: kept with the request, so that its stream can be resumed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamShape {
    /// The endpoint that it came in by.
    pub(super) endpoint: Endpoint,
    /// End a stream with a chunk of usage.
    pub(super) include_usage: bool,
    /// Show each token's log-probability and this many alternatives.
    pub(super) top_logprobs: Option<u32>,
    /// Show those of the prompt, in vLLM's shape.
    pub(super) prompt_logprobs: Option<u32>,
    /// Begin each choice with the prompt.
    pub(super) echo: Option<Echo>,
}

impl StreamShape {
    /// A request that came in by another dialect is shown as a chat, with all that was asked for.
    pub(super) fn foreign() -> Self {
        StreamShape {
            endpoint: Endpoint::Chat,
            include_usage: true,
            top_logprobs: Some(u32::MAX),
            prompt_logprobs: None,
            echo: None,
        }
    }
}

/// Which of the two shapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    Chat,
    Completions,
}

/// The prompt, to be shown before each choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Echo {
    pub(super) text: Arc<str>,
    /// Tokens before the prompt's text that are not part of it (beginning-of-text).
    pub(super) hidden_tokens: usize,
}

/// What stands at the head of every reply and chunk.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
}

impl Head {
    pub(super) fn new(endpoint: Endpoint, id: RequestId, created: u64, model: &str) -> Self {
        let prefix = match endpoint {
            Endpoint::Chat => "chatcmpl",
            Endpoint::Completions => "cmpl",
        };
        Head {
            id: format!("{prefix}-{id}"),
            created,
            model: model.to_owned(),
        }
    }

    pub(super) fn of(endpoint: Endpoint, request: &Request) -> Self {
        Self::new(endpoint, request.id, request.created, &request.model.name)
    }

    pub(super) fn envelope<C>(
        &self,
        object: &'static str,
        choices: Vec<C>,
        usage: Option<Option<UsageBody>>,
    ) -> Envelope<'_, C> {
        Envelope {
            id: &self.id,
            object,
            created: self.created,
            model: &self.model,
            choices,
            usage,
            prompt_logprobs: None,
        }
    }
}

/// OpenAI's word; none for a row that was cancelled, which the stream reports as an error.
pub(super) fn finish_word(reason: FinishReason) -> Option<&'static str> {
    match reason {
        FinishReason::Stop => Some("stop"),
        FinishReason::Length => Some("length"),
        FinishReason::Cancelled => None,
    }
}

/// The usage of one or several prompts.
pub(super) fn usage_body(usages: impl IntoIterator<Item = Usage>) -> UsageBody {
    let [mut prompt, mut cached, mut completion] = [0_u64; 3];
    for usage in usages {
        prompt += u64::from(usage.prompt_tokens);
        cached += u64::from(usage.cached_tokens);
        completion += u64::from(usage.completion_tokens);
    }
    UsageBody {
        prompt_tokens: prompt,
        completion_tokens: completion,
        total_tokens: prompt + completion,
        prompt_tokens_details: PromptTokensDetails {
            cached_tokens: cached,
        },
    }
}

/// One prompt's log, gathered to its end, and how it is to be shown.
pub(super) struct Answer<'a> {
    pub(super) shape: &'a StreamShape,
    pub(super) gathered: Gathered<'a>,
    pub(super) usage: Usage,
    /// Choices wanted; the best are taken if there are more.
    pub(super) choices: u32,
}

/// The whole reply of a chat.
pub(super) fn chat_reply(head: &Head, answer: &Answer<'_>) -> Value {
    let choices = (0..)
        .zip(best(answer))
        .map(|(index, part)| ChatChoice {
            index,
            message: ChatMessage {
                role: "assistant",
                content: part.text.clone(),
                refusal: None,
            },
            logprobs: answer
                .shape
                .top_logprobs
                .map(|top| logprobs::chat(&part.logprobs, top)),
            finish_reason: part.finish.and_then(|end| finish_word(end.reason)),
        })
        .collect();
    let usage = usage_body([answer.usage]);
    let mut reply = head.envelope("chat.completion", choices, Some(Some(usage)));
    reply.prompt_logprobs = prompt_logprobs(answer);
    to_value(&reply)
}

/// The whole reply of a completion of one or several prompts: their choices follow each other.
pub(super) fn completion_reply(head: &Head, answers: &[Answer<'_>]) -> Value {
    let choices = answers.iter().flat_map(completion_choices);
    let choices = (0..)
        .zip(choices)
        .map(|(index, choice)| CompletionChoice { index, ..choice })
        .collect();
    let usage = usage_body(answers.iter().map(|answer| answer.usage));
    to_value(&head.envelope("text_completion", choices, Some(Some(usage))))
}

fn completion_choices<'a>(answer: &'a Answer<'_>) -> impl Iterator<Item = CompletionChoice> + 'a {
    best(answer).into_iter().map(|part| {
        let echo = answer.shape.echo.as_ref();
        let text = echo.map_or("", |echo| &echo.text).to_owned() + &part.text;
        CompletionChoice {
            index: 0,
            text,
            logprobs: legacy_logprobs(answer, part),
            finish_reason: part.finish.and_then(|end| finish_word(end.reason)),
            prompt_logprobs: prompt_logprobs(answer),
        }
    })
}

fn legacy_logprobs(answer: &Answer<'_>, part: &Part<'_>) -> Option<LegacyLogprobs> {
    let top = answer.shape.top_logprobs?;
    let prompt: &[&TokenLogprob] = match answer.shape.echo {
        Some(_) => &answer.gathered.prompt_logprobs,
        None => &[],
    };
    let hidden = answer
        .shape
        .echo
        .as_ref()
        .map_or(0, |echo| echo.hidden_tokens);
    let entries = prompt.iter().chain(&part.logprobs).copied();
    Some(logprobs::legacy(entries, top, 0, hidden).0)
}

fn prompt_logprobs(answer: &Answer<'_>) -> Option<Vec<Option<serde_json::Map<String, Value>>>> {
    answer
        .shape
        .prompt_logprobs
        .map(|top| logprobs::prompt(&answer.gathered.prompt_logprobs, top))
}

/// The choices to show: all, in their order, or the best by mean log-probability, best first.
fn best<'a>(answer: &'a Answer<'_>) -> Vec<&'a Part<'a>> {
    let mut parts: Vec<&Part<'_>> = answer.gathered.parts.iter().collect();
    parts.sort_by_key(|part| part.choice);
    if parts.len() > answer.choices as usize {
        let score = |part: &Part<'_>| {
            part.finish
                .map_or(f64::NEG_INFINITY, |end| end.mean_logprob)
        };
        parts.sort_by(|a, b| score(b).total_cmp(&score(a)));
        parts.truncate(answer.choices as usize);
    }
    parts
}

/// As JSON text, without the detour over a tree of values.
pub(super) fn to_json(body: &impl serde::Serialize) -> String {
    serde_json::to_string(body).expect("wire types have string keys and finite numbers")
}

fn to_value(body: &impl serde::Serialize) -> Value {
    serde_json::to_value(body).expect("wire types have string keys and finite numbers")
}
