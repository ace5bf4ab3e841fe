//! Where a request is and what it has said so far: the whole log in one body.

use super::dialect::queued;
use super::gather::Gathered;
use super::wire::{Choice, State, Status, Timings};
use super::wire_image::ImageStatus;
use crate::api::error::{ApiError, ErrorShape};
use crate::api::milliseconds;
use crate::api::requests::Request;
use crate::events::{Event, EventKind};
use crate::time::Time;

/// The status that a request's events add up to.
pub(super) fn status(request: &Request, events: &[Event]) -> Status {
    let mut gathered = Gathered::new(request.logprobs);
    if request.picture.is_none() {
        for index in 0..request.choices {
            gathered.choice(index);
        }
    }
    let mut status = Status {
        id: request.id.to_string(),
        model: request.model.name.clone(),
        created: request.created,
        state: State::Queued,
        queue: None,
        choices: Vec::new(),
        prompt_logprobs: None,
        images: request
            .picture
            .as_ref()
            .map(|picture| ImageStatus::all(picture)),
        usage: None,
        error: None,
        timings: Timings::default(),
        last_seq: events.last().map_or(0, |event| event.seq),
    };
    for event in events {
        apply(&mut status, event, request.accepted_at);
        match &mut status.images {
            Some(images) => ImageStatus::apply(images, request.id, &event.kind),
            None => gathered.add(event),
        }
    }
    status.choices = gathered.choices.into_values().collect();
    if status.state == State::Finished {
        keep_best(&mut status.choices, request.choices as usize);
    }
    status.prompt_logprobs = gathered.prompt_logprobs;
    status
}

/// What an event changes beside the answers.
fn apply(status: &mut Status, event: &Event, accepted_at: Time) {
    let since = Some(milliseconds(event.at.saturating_since(accepted_at)));
    match &event.kind {
        EventKind::Queued {
            position,
            waiting,
            eta,
        } => status.queue = Some(queued(*position, *waiting, *eta)),
        EventKind::Started => {
            status.state = State::Running;
            status.queue = None;
            status.timings.queued_ms = since;
        }
        EventKind::Text { .. } => {
            status.timings.first_token_ms = status.timings.first_token_ms.or(since);
        }
        EventKind::PromptLogprobs { .. }
        | EventKind::Progress { .. }
        | EventKind::Preview { .. }
        | EventKind::Image { .. }
        | EventKind::ChoiceFinished { .. } => {}
        EventKind::Finished { usage } => {
            status.state = State::Finished;
            status.queue = None;
            status.usage = Some((*usage).into());
            status.timings.total_ms = since;
        }
        EventKind::Failed { failure, usage } => {
            status.state = State::Failed;
            status.queue = None;
            status.usage = Some((*usage).into());
            status.error = Some(ApiError::from(failure).body(ErrorShape::Native)["error"].take());
            status.timings.total_ms = since;
        }
    }
}

/// Of `best_of` answers the `wanted` best, by the mean log-probability of their tokens.
fn keep_best(choices: &mut Vec<Choice>, wanted: usize) {
    if choices.len() <= wanted {
        return;
    }
    let mean = |choice: &Choice| {
        choice.cumulative_logprob.unwrap_or(f64::NEG_INFINITY) / choice.tokens.len().max(1) as f64
    };
    choices.sort_by(|one, other| mean(other).total_cmp(&mean(one)));
    choices.truncate(wanted);
}
