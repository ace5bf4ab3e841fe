//! What a run of events says of each answer, in the words of the wire.

use std::collections::BTreeMap;

use super::wire::{Choice, Logprob};
use crate::events::{Event, EventKind};

/// Answers and log-probabilities, gathered from events.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    /// By number.
    pub(super) choices: BTreeMap<u32, Choice>,
    pub(super) prompt_logprobs: Option<Vec<Logprob>>,
    with_logprobs: bool,
}

impl Gathered {
    /// Nothing yet. `with_logprobs`: whether the client asked for those of new tokens.
    pub(super) fn new(with_logprobs: bool) -> Self {
        Gathered {
            with_logprobs,
            ..Gathered::default()
        }
    }

    /// Adds what an event says. Events that say nothing of an answer change nothing.
    pub(super) fn add(&mut self, event: &Event) {
        match &event.kind {
            EventKind::Text {
                choice,
                text,
                tokens,
                logprobs,
            } => {
                let with_logprobs = self.with_logprobs;
                let choice = self.choice(*choice);
                choice.text.push_str(text);
                choice.tokens.extend(tokens);
                if with_logprobs {
                    let entries = choice.logprobs.get_or_insert_default();
                    entries.extend(logprobs.iter().map(Logprob::from));
                }
            }
            EventKind::PromptLogprobs { logprobs } => {
                let entries = self.prompt_logprobs.get_or_insert_default();
                entries.extend(logprobs.iter().map(Logprob::from));
            }
            EventKind::ChoiceFinished {
                choice,
                reason,
                cumulative_logprob,
                ..
            } => {
                let choice = self.choice(*choice);
                choice.finish_reason = Some((*reason).into());
                choice.cumulative_logprob = Some(*cumulative_logprob);
            }
            EventKind::Queued { .. }
            | EventKind::Started
            | EventKind::Progress { .. }
            | EventKind::Preview { .. }
            | EventKind::Image { .. }
            | EventKind::Finished { .. }
            | EventKind::Failed { .. } => {}
        }
    }

    /// The answer of this number, empty if it has not spoken yet.
    pub(super) fn choice(&mut self, index: u32) -> &mut Choice {
        self.choices.entry(index).or_insert_with(|| Choice {
            index,
            ..Choice::default()
        })
    }
}
