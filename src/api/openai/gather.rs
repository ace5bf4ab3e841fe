//! What a run of events says, sorted by choice: one flush of a stream, or a whole log.

use crate::batch::{FinishReason, TokenLogprob, Usage};
use crate::events::{Event, EventKind, Failure};

/// What one choice said.
#[derive(Debug, Default)]
pub(super) struct Part<'a> {
    pub(super) choice: u32,
    pub(super) text: String,
    pub(super) logprobs: Vec<&'a TokenLogprob>,
    pub(super) finish: Option<ChoiceEnd>,
}

/// How one choice ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChoiceEnd {
    pub(super) reason: FinishReason,
    /// Mean log-probability of its tokens, by which `best_of` ranks.
    pub(super) mean_logprob: f64,
}

/// How the request ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum End<'a> {
    Finished(Usage),
    Failed(&'a Failure),
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Gathered<'a> {
    /// In the order in which the choices first spoke.
    pub(super) parts: Vec<Part<'a>>,
    pub(super) prompt_logprobs: Vec<&'a TokenLogprob>,
    /// Number of the last event before the end.
    pub(super) last_seq: u64,
    /// How it ended, with the event's number.
    pub(super) end: Option<(u64, End<'a>)>,
}

impl<'a> Gathered<'a> {
    /// What `events` say.
    pub(super) fn from_events(events: &'a [Event]) -> Self {
        let mut gathered = Gathered::default();
        for event in events {
            gathered.add(event);
        }
        gathered
    }

    fn add(&mut self, event: &'a Event) {
        if !event.kind.is_terminal() {
            self.last_seq = self.last_seq.max(event.seq);
        }
        match &event.kind {
            // Text models draw nothing.
            EventKind::Queued { .. }
            | EventKind::Started
            | EventKind::Progress { .. }
            | EventKind::Preview { .. }
            | EventKind::Image { .. } => {}
            EventKind::Text {
                choice,
                text,
                logprobs,
                ..
            } => {
                // Tokens of an incomplete character say nothing yet.
                if !text.is_empty() || !logprobs.is_empty() {
                    let part = self.part(*choice);
                    part.text.push_str(text);
                    part.logprobs.extend(logprobs);
                }
            }
            EventKind::PromptLogprobs { logprobs } => self.prompt_logprobs.extend(logprobs),
            EventKind::ChoiceFinished {
                choice,
                reason,
                cumulative_logprob,
                completion_tokens,
            } => {
                self.part(*choice).finish = Some(ChoiceEnd {
                    reason: *reason,
                    mean_logprob: cumulative_logprob / f64::from((*completion_tokens).max(1)),
                });
            }
            EventKind::Finished { usage } => self.end = Some((event.seq, End::Finished(*usage))),
            EventKind::Failed { failure, .. } => self.end = Some((event.seq, End::Failed(failure))),
        }
    }

    /// The part of a choice, made if it has not spoken yet.
    pub(super) fn part(&mut self, choice: u32) -> &mut Part<'a> {
        let place = self.parts.iter().position(|part| part.choice == choice);
        let place = place.unwrap_or_else(|| {
            self.parts.push(Part {
                choice,
                ..Part::default()
            });
            self.parts.len() - 1
        });
        &mut self.parts[place]
    }
}
