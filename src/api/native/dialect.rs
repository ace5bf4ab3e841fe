//! The native stream: one named event for each kind of news.
//!
//! `queued` {position, waiting, eta_ms}, `started` {}, `prompt_logprobs`, `text` {choices},
//! `choice_finished` {choices}, and last `finished` {usage} or `failed` {error, usage}.

use serde::Serialize;
use serde_json::json;

use super::gather::Gathered;
use super::wire::{
    ChoicesFrame, FailedFrame, FinishedFrame, PromptLogprobsFrame, Queued, UsageBody,
};
use crate::api::error::{ApiError, ErrorShape};
use crate::api::sse::{Dialect, Frame};
use crate::events::{Event, EventKind};

/// See the module.
pub(super) struct NativeDialect {
    /// Whether the client asked for log-probabilities of new tokens.
    pub(super) logprobs: bool,
}

impl Dialect for NativeDialect {
    fn name(&self) -> &'static str {
        "native"
    }

    /// Events of one number were merged across each other and go into one frame.
    fn frames(&mut self, events: &[Event]) -> Vec<Frame> {
        events
            .chunk_by(|one, next| one.seq == next.seq)
            .map(|group| self.frame(group))
            .collect()
    }

    /// The last text, the end of the answer, the end of the request.
    fn terminal_frames(&self) -> u32 {
        3
    }
}

impl NativeDialect {
    fn frame(&self, group: &[Event]) -> Frame {
        let id = group[0].seq;
        match &group[0].kind {
            EventKind::Queued {
                position,
                waiting,
                eta,
            } => frame(id, "queued", &queued(*position, *waiting, *eta)),
            EventKind::Started => frame(id, "started", &json!({})),
            EventKind::Finished { usage } => {
                let usage = UsageBody::from(*usage);
                frame(id, "finished", &FinishedFrame { usage })
            }
            EventKind::Failed { failure, usage } => {
                let data = FailedFrame {
                    error: ApiError::from(failure).body(ErrorShape::Native)["error"].take(),
                    usage: (*usage).into(),
                };
                frame(id, "failed", &data)
            }
            EventKind::Text { .. }
            | EventKind::Progress { .. }
            | EventKind::Preview { .. }
            | EventKind::Image { .. }
            | EventKind::ChoiceFinished { .. }
            | EventKind::PromptLogprobs { .. } => self.output_frame(id, group),
        }
    }

    fn output_frame(&self, id: u64, group: &[Event]) -> Frame {
        let mut gathered = Gathered::new(self.logprobs);
        for event in group {
            gathered.add(event);
        }
        let said = |wanted: fn(&EventKind) -> bool| group.iter().any(|event| wanted(&event.kind));
        if gathered.choices.is_empty() {
            let prompt_logprobs = gathered.prompt_logprobs.unwrap_or_default();
            let data = PromptLogprobsFrame { prompt_logprobs };
            return frame(id, "prompt_logprobs", &data);
        }
        let name = match said(|kind| matches!(kind, EventKind::Text { .. })) {
            true => "text",
            false => "choice_finished",
        };
        let data = ChoicesFrame {
            choices: gathered.choices.into_values().collect(),
            prompt_logprobs: gathered.prompt_logprobs,
        };
        frame(id, name, &data)
    }
}

/// A place in the queue, as it stands on the wire.
pub(super) fn queued(position: u32, waiting: u32, eta: Option<std::time::Duration>) -> Queued {
    Queued {
        position,
        waiting,
        eta_ms: eta.map(crate::api::milliseconds),
    }
}

fn frame(id: u64, event: &'static str, data: &impl Serialize) -> Frame {
    Frame {
        id,
        event: Some(event),
        data: serde_json::to_string(data).expect("wire types have string keys only"),
    }
}
