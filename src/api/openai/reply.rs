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
    pub(super) fn foreign(logprobs: bool) -> Self {
        StreamShape {
            endpoint: Endpoint::Chat,
            include_usage: true,
            top_logprobs: logprobs.then_some(u32::MAX),
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

impl Endpoint {
    pub(super) fn path(self) -> &'static str {
        match self {
            Endpoint::Chat => "/v1/chat/completions",
            Endpoint::Completions => "/v1/completions",
        }
    }
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::events::{Event, EventKind};
    use crate::time::Time;

    fn log(kinds: Vec<EventKind>) -> Vec<Event> {
        (1..)
            .zip(kinds)
            .map(|(seq, kind)| Event {
                seq,
                at: Time::ZERO,
                kind,
            })
            .collect()
    }

    fn scored_text(choice: u32, text: &str, logprob: f32) -> EventKind {
        EventKind::Text {
            choice,
            text: text.to_owned(),
            tokens: vec![7],
            logprobs: vec![TokenLogprob {
                token: 7,
                bytes: text.as_bytes().to_vec(),
                logprob,
                top: vec![(7, text.as_bytes().to_vec(), logprob)],
            }],
        }
    }

    fn ended(choice: u32, cumulative_logprob: f64, completion_tokens: u32) -> EventKind {
        EventKind::ChoiceFinished {
            choice,
            reason: FinishReason::Length,
            cumulative_logprob,
            completion_tokens,
        }
    }

    fn usage(prompt_tokens: u32, completion_tokens: u32) -> Usage {
        Usage {
            prompt_tokens,
            cached_tokens: 1,
            completion_tokens,
            ..Usage::default()
        }
    }

    fn shape(endpoint: Endpoint) -> StreamShape {
        StreamShape {
            endpoint,
            include_usage: false,
            top_logprobs: None,
            prompt_logprobs: None,
            echo: None,
        }
    }

    fn head(endpoint: Endpoint) -> Head {
        Head::new(endpoint, RequestId::from_u128(1), 5, "m")
    }

    #[test]
    fn a_chat_reply_has_its_choices_in_order() {
        let events = log(vec![
            scored_text(1, "b", -1.0),
            scored_text(0, "a", -0.5),
            ended(1, -1.0, 1),
            ended(0, -0.5, 1),
        ]);
        let shape = StreamShape {
            top_logprobs: Some(0),
            ..shape(Endpoint::Chat)
        };
        let answer = Answer {
            shape: &shape,
            gathered: Gathered::from_events(&events),
            usage: usage(4, 2),
            choices: 2,
        };
        let choice = |index: u32, text: &str, byte: u8, logprob: f32| {
            json!({
                "index": index,
                "message": {"role": "assistant", "content": text, "refusal": null},
                "logprobs": {
                    "content": [
                        {"token": text, "logprob": logprob, "bytes": [byte], "top_logprobs": []}
                    ],
                    "refusal": null,
                },
                "finish_reason": "length",
            })
        };
        assert_eq!(
            chat_reply(&head(Endpoint::Chat), &answer),
            json!({
                "id": "chatcmpl-00000000000000000000000000000001",
                "object": "chat.completion",
                "created": 5,
                "model": "m",
                "choices": [choice(0, "a", 97, -0.5), choice(1, "b", 98, -1.0)],
                "usage": {
                    "prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6,
                    "prompt_tokens_details": {"cached_tokens": 1},
                },
            })
        );
    }

    #[test]
    fn best_of_takes_the_best_by_mean_logprob_and_counts_the_tokens_of_all() {
        let events = log(vec![
            scored_text(0, "worst", -3.0),
            ended(0, -3.0, 1),
            scored_text(1, "longest", -0.5),
            ended(1, -4.0, 8),
            scored_text(2, "middle", -1.0),
            ended(2, -2.0, 2),
        ]);
        let shape = shape(Endpoint::Completions);
        let answer = Answer {
            shape: &shape,
            gathered: Gathered::from_events(&events),
            usage: usage(4, 11),
            choices: 2,
        };
        let reply = completion_reply(&head(Endpoint::Completions), &[answer]);
        let choice = |index: u32, text: &str| json!({"index": index, "text": text, "logprobs": null, "finish_reason": "length"});
        assert_eq!(
            reply["choices"],
            json!([choice(0, "longest"), choice(1, "middle")])
        );
        assert_eq!(reply["usage"]["completion_tokens"], 11);
    }

    #[test]
    fn several_prompts_are_answered_one_after_the_other_with_their_echoes() {
        let prompts = ["p", "q"].map(|prompt| StreamShape {
            top_logprobs: Some(1),
            prompt_logprobs: Some(0),
            echo: Some(Echo {
                text: prompt.into(),
                hidden_tokens: 0,
            }),
            ..shape(Endpoint::Completions)
        });
        let logs = ["p", "q"].map(|prompt| {
            let EventKind::Text { logprobs, .. } = scored_text(0, prompt, f32::NAN) else {
                unreachable!("a text event was made");
            };
            log(vec![
                EventKind::PromptLogprobs { logprobs },
                scored_text(0, "x", -0.5),
                ended(0, -0.5, 1),
            ])
        });
        let answers: Vec<Answer<'_>> = prompts
            .iter()
            .zip(&logs)
            .map(|(shape, events)| Answer {
                shape,
                gathered: Gathered::from_events(events),
                usage: usage(1, 1),
                choices: 1,
            })
            .collect();
        let reply = completion_reply(&head(Endpoint::Completions), &answers);
        let choice = |index: u32, prompt: &str| {
            json!({
                "index": index,
                "text": format!("{prompt}x"),
                "logprobs": {
                    "tokens": [prompt, "x"],
                    "token_logprobs": [null, -0.5],
                    "top_logprobs": [null, {"x": -0.5}],
                    "text_offset": [0, 1],
                },
                "finish_reason": "length",
                "prompt_logprobs": [null],
            })
        };
        assert_eq!(reply["choices"], json!([choice(0, "p"), choice(1, "q")]));
        assert_eq!(reply["usage"]["total_tokens"], 4);
        assert_eq!(reply["usage"]["prompt_tokens_details"]["cached_tokens"], 2);
    }
}
