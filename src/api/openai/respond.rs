//! Submits a call's prompts and answers: with a stream, or with the whole reply at the end.

use std::sync::Arc;

use axum::Json;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};

use super::ReplyShape;
use super::gather::{End, Gathered};
use super::reply::{Answer, Echo, Endpoint, Head, StreamShape, chat_reply, completion_reply};
use super::request::Call;
use super::stream::{ChunkDialect, cancelled};
use crate::api::auth::Caller;
use crate::api::blocking::on_blocking_pool;
use crate::api::error::{ApiError, ErrorShape, OpenAiError};
use crate::api::layers::with_id;
use crate::api::submit::{Accepted, Idempotency, OnDisconnect, SubmitOptions, submit};
use crate::api::{AppState, ServedModel, sse};
use crate::batch::FinishReason;
use crate::events::Event;
use crate::events::store::SharedLog;
use crate::intake::{Draft, Invalid, Prompt, TextDraft, TextIntake};

/// Who calls, and how to know a call again.
pub(super) struct Client {
    caller: Caller,
    idempotency: Option<Idempotency>,
}

impl Client {
    /// # Errors
    /// 400 for an idempotency key that cannot be one.
    pub(super) fn new(
        caller: Caller,
        headers: &HeaderMap,
        endpoint: Endpoint,
        body: &[u8],
    ) -> Result<Self, ApiError> {
        Ok(Client {
            caller,
            idempotency: Idempotency::from_headers(headers, endpoint.path(), body)?,
        })
    }

    /// What goes with prompt number `index` of the call.
    fn options(
        &self,
        state: &AppState,
        call: &Call,
        index: usize,
        shape: StreamShape,
    ) -> SubmitOptions {
        // Each prompt is a request of its own, so each needs a key of its own.
        let idempotency = self.idempotency.as_ref().map(|idempotency| Idempotency {
            key: match index {
                0 => idempotency.key.clone(),
                _ => format!("{} {index}", idempotency.key),
            },
            fingerprint: idempotency.fingerprint,
        });
        SubmitOptions {
            caller: self.caller.clone(),
            deadline: call.deadline,
            priority: call.priority,
            idempotency,
            on_disconnect: OnDisconnect::AbandonAfter(state.config.openai_grace),
            openai: Some(ReplyShape::Text(shape)),
            dialect: "openai",
        }
    }
}

/// Answers a call.
///
/// # Errors
/// Whatever refuses one of its prompts; the others are then given up.
pub(super) async fn respond(
    state: &Arc<AppState>,
    model: &Arc<ServedModel>,
    endpoint: Endpoint,
    mut call: Call,
    client: Client,
) -> Result<Response, OpenAiError> {
    let drafts = std::mem::take(&mut call.drafts);
    check_places(model, &drafts)?;
    let mut accepted = Vec::with_capacity(drafts.len());
    for (index, draft) in drafts.into_iter().enumerate() {
        match submit_one(state, model, endpoint, &call, &client, index, draft).await {
            Ok(one) => accepted.push(one),
            Err(error) => {
                // Those that a key led to belong to an earlier call.
                for earlier in accepted.iter().filter(|earlier| earlier.job.is_some()) {
                    earlier.request.give_up();
                    model.engine.cancel(earlier.request.id);
                }
                return Err(error.into());
            }
        }
    }
    if call.stream.is_some() {
        let [one] = accepted
            .try_into()
            .unwrap_or_else(|_| unreachable!("a stream has one prompt, as its body was read"));
        return Ok(streamed(state, one));
    }
    let id = accepted[0].request.id;
    let response = match whole(endpoint, &accepted).await {
        Ok(response) => response,
        Err(error) => error.into_response_as(ErrorShape::OpenAi),
    };
    Ok(with_id(response, id))
}

/// All prompts of a call run at once, so they must be able to.
///
/// # Errors
/// 400: together they have more rows than the engine ever holds; a 429 would come for ever.
fn check_places(model: &ServedModel, drafts: &[TextDraft]) -> Result<(), Invalid> {
    let places = model.engine.max_rows_per_user();
    let mut rows = 0;
    for draft in drafts {
        rows += u64::from(model.intake.text()?.rows(draft)?);
    }
    if rows > u64::from(places) {
        return Err(Invalid::value(
            "prompt",
            format!(
                "asks for {rows} rows in all; at most {places} are held at once \
                 (batch_size and max_queued_requests)"
            ),
        ));
    }
    Ok(())
}

async fn submit_one(
    state: &Arc<AppState>,
    model: &Arc<ServedModel>,
    endpoint: Endpoint,
    call: &Call,
    client: &Client,
    index: usize,
    draft: TextDraft,
) -> Result<Accepted, ApiError> {
    let echo = match call.echo {
        true => Some(echo(model, &draft).await?),
        false => None,
    };
    let shape = StreamShape {
        endpoint,
        include_usage: call.stream.is_some_and(|options| options.include_usage),
        top_logprobs: call.top_logprobs,
        prompt_logprobs: call.prompt_logprobs,
        echo,
    };
    let options = client.options(state, call, index, shape);
    submit(state, model, Draft::Text(draft), options).await
}

/// The prompt as it will be shown. Token ids are decoded, on the blocking pool.
async fn echo(model: &Arc<ServedModel>, draft: &TextDraft) -> Result<Echo, ApiError> {
    let model = Arc::clone(model);
    let draft = draft.clone();
    on_blocking_pool(move || echo_of(model.intake.text()?, &draft)).await
}

fn echo_of(intake: &TextIntake, draft: &TextDraft) -> Result<Echo, Invalid> {
    let (text, hidden_tokens) = match &draft.prompt {
        Prompt::Text(text) if draft.add_special_tokens != Some(false) => {
            let added = intake.tokenizer.encode("", true);
            (text.clone(), added.map_or(0, |tokens| tokens.len()))
        }
        Prompt::Text(text) => (text.clone(), 0),
        Prompt::Tokens(tokens) => (intake.detokenize("prompt", tokens)?, 0),
        Prompt::Chat(chat) => (intake.render(chat)?, 0),
    };
    Ok(Echo {
        text: text.into(),
        hidden_tokens,
    })
}

fn streamed(state: &Arc<AppState>, accepted: Accepted) -> Response {
    let dialect = Box::new(ChunkDialect::of(&accepted.request));
    let id = accepted.request.id;
    let stream = sse::answer(state, &accepted.request, accepted.log, dialect);
    with_id(stream, id)
}

/// Waits for all prompts to end and writes the reply.
///
/// # Errors
/// One of them failed or was cancelled.
async fn whole(endpoint: Endpoint, accepted: &[Accepted]) -> Result<Response, ApiError> {
    let mut logs = Vec::with_capacity(accepted.len());
    for one in accepted {
        logs.push(until_closed(&one.log).await);
    }
    let mut answers = Vec::with_capacity(accepted.len());
    for (one, events) in accepted.iter().zip(&logs) {
        let shape = one.request.openai.as_ref().and_then(ReplyShape::text);
        let shape = shape.expect("requests of this dialect are submitted with a shape");
        answers.push(answer(shape, one.request.choices, events)?);
    }
    let head = Head::of(endpoint, &accepted[0].request);
    let reply = match endpoint {
        Endpoint::Chat => chat_reply(&head, &answers[0]),
        Endpoint::Completions => completion_reply(&head, &answers),
    };
    Ok(Json(reply).into_response())
}

pub(super) async fn until_closed(log: &SharedLog) -> Vec<Event> {
    while !log.is_closed() {
        log.wait_beyond(log.last_seq()).await;
    }
    log.read_from(1)
}

/// One prompt's answer, from its whole log.
///
/// # Errors
/// It failed, or was cancelled.
fn answer<'a>(
    shape: &'a StreamShape,
    choices: u32,
    events: &'a [Event],
) -> Result<Answer<'a>, ApiError> {
    let gathered = Gathered::from_events(events);
    let was_cancelled = gathered.parts.iter().any(|part| {
        part.finish
            .is_some_and(|end| end.reason == FinishReason::Cancelled)
    });
    match gathered.end {
        Some((_, End::Failed(failure))) => Err(ApiError::from(failure)),
        _ if was_cancelled => Err(cancelled()),
        Some((_, End::Finished(usage))) => Ok(Answer {
            shape,
            gathered,
            usage,
            choices,
        }),
        // The engine closes every log with a terminal event.
        None => Err(ApiError::internal()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Usage;
    use crate::events::{EventKind, Failure, FailureKind};
    use crate::time::Time;

    /// The status of a reply whose only choice ended for this reason, with this terminal event.
    fn status(reason: Option<FinishReason>, end: EventKind) -> u16 {
        let finished = reason.map(|reason| EventKind::ChoiceFinished {
            choice: 0,
            reason,
            cumulative_logprob: 0.0,
            completion_tokens: 1,
        });
        let events: Vec<Event> = (1..)
            .zip(finished.into_iter().chain([end]))
            .map(|(seq, kind)| Event {
                seq,
                at: Time::ZERO,
                kind,
            })
            .collect();
        let shape = StreamShape::foreign(false);
        answer(&shape, 1, &events).map_or_else(|error| error.status.as_u16(), |_| 200)
    }

    #[test]
    fn the_status_tells_how_it_ended() {
        let finished = EventKind::Finished {
            usage: Usage::default(),
        };
        let failed = |kind| EventKind::Failed {
            failure: Failure {
                kind,
                message: "a reason".to_owned(),
            },
            usage: Usage::default(),
        };
        for (reason, end, expected) in [
            (Some(FinishReason::Stop), finished.clone(), 200),
            (Some(FinishReason::Length), finished.clone(), 200),
            (Some(FinishReason::Cancelled), finished, 499),
            (None, failed(FailureKind::DeadlineExceeded), 504),
            (Some(FinishReason::Stop), failed(FailureKind::Row), 500),
            (None, failed(FailureKind::Step), 500),
            (None, failed(FailureKind::EngineDead), 503),
            (None, failed(FailureKind::Shutdown), 503),
        ] {
            assert_eq!(status(reason, end.clone()), expected, "{reason:?} {end:?}");
        }
    }
}
