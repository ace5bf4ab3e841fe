//! One request in the engine: what it has said and used, and how its log is written.

use std::sync::Arc;
use std::time::Duration;

use super::RequestEnd;
use super::gate::Permit;
use super::mailbox::Delivery;
use super::open_log::OpenLog;
use crate::batch::{Emission, FinishReason, Phase, Slot, Usage};
use crate::events::{EventKind, Failure, FailureKind};
use crate::job::{Job, Previews, Priority, RequestId, RowId, UserId};
use crate::picture::Picture;
use crate::scheduler::{Endings, Place};
use crate::time::Time;

/// A request between its submission and its terminal event.
pub(super) struct Request {
    pub(super) id: RequestId,
    pub(super) job: Arc<Job>,
    pub(super) deadline: Option<Time>,
    pub(super) priority: Priority,
    pub(super) submitted: Time,
    choices: Vec<Choice>,
    usage: Usage,
    started: bool,
    told: Option<Told>,
    /// Its place in the engine, given back when this is dropped.
    permit: Permit,
    /// After the place: who reads the end finds the place free, also where this is merely dropped.
    log: OpenLog,
}

/// One answer of the request.
#[derive(Default)]
struct Choice {
    slot: Option<Slot>,
    phase: Option<Phase>,
    completion_tokens: u32,
    cumulative_logprob: f64,
    last_token_at: Option<Time>,
    steps_done: u32,
    finished: Option<FinishReason>,
}

/// What its log says of its place in the queue.
#[derive(Clone, Copy)]
struct Told {
    at: Time,
    position: u32,
    eta: Option<Time>,
}

/// A waiting request is told its place at most so often.
const TELL_INTERVAL: Duration = Duration::from_secs(1);
/// A changed estimate is news if it differs by this much, and by this share of the time left. A
/// reader counts down by itself.
const ETA_NEWS: Duration = Duration::from_secs(1);
const ETA_NEWS_SHARE: f64 = 0.2;

/// Tokens of a job's prompt, padding included: what is computed.
fn prompt_tokens(job: &Job) -> u32 {
    match job {
        Job::Text(text) => text.prompt.len() as u32,
        Job::Image(image) => image
            .prompt
            .iter()
            .flat_map(|prompt| &prompt.chunks)
            .map(|chunk| chunk.tokens.len() as u32)
            .sum(),
    }
}

/// Time between tokens, for the observer.
pub(super) enum TokenGap {
    First(Duration),
    Next(Duration),
}

impl Request {
    pub(super) fn new(delivery: Delivery) -> Self {
        let rows = delivery.job.rows();
        Request {
            usage: Usage {
                prompt_tokens: prompt_tokens(&delivery.job),
                ..Usage::default()
            },
            choices: (0..rows).map(|_| Choice::default()).collect(),
            id: delivery.id,
            job: delivery.job,
            deadline: delivery.deadline,
            priority: delivery.priority,
            submitted: delivery.submitted,
            started: false,
            told: None,
            permit: delivery.permit,
            log: delivery.log,
        }
    }

    pub(super) fn usage(&self) -> Usage {
        self.usage
    }

    /// Whose it is.
    pub(super) fn user(&self) -> UserId {
        self.permit.user()
    }

    pub(super) fn append(&self, at: Time, kind: EventKind) {
        self.log.append(at, kind);
    }

    /// Appends the request's place in the queue if that is news.
    pub(super) fn tell_place(&mut self, now: Time, place: &Place, waiting: u32) {
        let quiet = self.started
            || self
                .told
                .is_some_and(|told| now < told.at + TELL_INTERVAL || !told.is_outdated(now, place));
        if quiet {
            return;
        }
        self.told = Some(Told {
            at: now,
            position: place.position,
            eta: place.eta,
        });
        let event = EventKind::Queued {
            position: place.position,
            waiting,
            eta: place.eta.map(|eta| eta - now),
        };
        self.append(now, event);
    }

    /// A row got a slot, and found `cached` tokens of its prompt in the prefix cache. Tells whether it was
    /// the request's first; the usage says how many that one found.
    pub(super) fn start_row(&mut self, at: Time, row: RowId, slot: Slot, cached: u32) -> bool {
        let choice = &mut self.choices[row.choice as usize];
        choice.slot = Some(slot);
        choice.phase = Some(Phase::Begin);
        let first = !self.started;
        if first {
            self.started = true;
            self.usage.cached_tokens = cached;
            self.append(at, EventKind::Started);
        }
        first
    }

    pub(super) fn enter_phase(&mut self, choice: u32, phase: Phase) {
        self.choices[choice as usize].phase = Some(phase);
    }

    /// Appends what a row said. Returns the time since its last token, once for each new one.
    pub(super) fn emit(
        &mut self,
        at: Time,
        row: u32,
        emission: Emission,
        endings: &Endings,
    ) -> Vec<TokenGap> {
        match emission {
            Emission::Text {
                text,
                tokens,
                logprobs,
            } => {
                let gaps = self.count_tokens(at, row, tokens.len());
                let choice = &mut self.choices[row as usize];
                choice.cumulative_logprob += logprobs
                    .iter()
                    .map(|entry| f64::from(entry.logprob))
                    .sum::<f64>();
                if !(text.is_empty() && tokens.is_empty()) {
                    self.append(
                        at,
                        EventKind::Text {
                            choice: row,
                            text,
                            tokens,
                            logprobs,
                        },
                    );
                }
                gaps
            }
            Emission::PromptLogprobs(logprobs) => {
                if row == 0 {
                    self.append(at, EventKind::PromptLogprobs { logprobs });
                }
                Vec::new()
            }
            Emission::Progress { step, steps } => {
                self.progress(at, row, step, steps, endings);
                Vec::new()
            }
            Emission::Preview { step, picture } => {
                self.preview(at, row, step, picture);
                Vec::new()
            }
            Emission::Image { picture, seed } => {
                self.usage.images += 1;
                let event = EventKind::Image {
                    choice: row,
                    picture,
                    seed,
                };
                self.append(at, event);
                Vec::new()
            }
        }
    }

    fn progress(&mut self, at: Time, row: u32, step: u32, steps: u32, endings: &Endings) {
        let choice = &mut self.choices[row as usize];
        self.usage.denoising_steps += step.saturating_sub(choice.steps_done);
        choice.steps_done = step;
        let eta = choice.slot.and_then(|slot| endings.after(slot));
        let event = EventKind::Progress {
            choice: row,
            step,
            steps,
            eta,
        };
        self.append(at, event);
    }

    fn preview(&mut self, at: Time, row: u32, step: u32, picture: Arc<Picture>) {
        let event = EventKind::Preview {
            choice: row,
            step,
            picture,
            kept: matches!(&self.job.image().previews, Previews::After(_)),
        };
        self.append(at, event);
    }

    /// Prompt tokens that it counts for in the queue.
    pub(super) fn queued_tokens(&self) -> u64 {
        self.permit.tokens()
    }

    fn count_tokens(&mut self, at: Time, row: u32, tokens: usize) -> Vec<TokenGap> {
        let choice = &mut self.choices[row as usize];
        choice.completion_tokens += tokens as u32;
        self.usage.completion_tokens += tokens as u32;
        (0..tokens)
            .map(|_| match choice.last_token_at.replace(at) {
                None => TokenGap::First(at - self.submitted),
                Some(last) => TokenGap::Next(at - last),
            })
            .collect()
    }

    /// A row is complete.
    pub(super) fn finish_row(&mut self, at: Time, row: u32, reason: FinishReason) {
        let choice = &mut self.choices[row as usize];
        choice.slot = None;
        choice.finished = Some(reason);
        let event = EventKind::ChoiceFinished {
            choice: row,
            reason,
            cumulative_logprob: choice.cumulative_logprob,
            completion_tokens: choice.completion_tokens,
        };
        self.append(at, event);
    }

    /// Whether every row is complete.
    pub(super) fn all_rows_finished(&self) -> bool {
        self.choices.iter().all(|choice| choice.finished.is_some())
    }

    /// Closes the log of a request whose rows are all complete.
    pub(super) fn finish(self, at: Time) -> RequestEnd {
        let reason = self.choices[0].finished.unwrap_or(FinishReason::Stop);
        let usage = self.usage;
        self.close(at, EventKind::Finished { usage });
        RequestEnd::Finished(reason)
    }

    /// Closes the log of a request that somebody cancelled.
    pub(super) fn cancel(mut self, at: Time) -> RequestEnd {
        let phase = self
            .choices
            .iter()
            .find(|choice| choice.slot.is_some())
            .and_then(|choice| choice.phase);
        for row in 0..self.choices.len() {
            if self.choices[row].finished.is_none() {
                self.finish_row(at, row as u32, FinishReason::Cancelled);
            }
        }
        let usage = self.usage;
        self.close(at, EventKind::Finished { usage });
        RequestEnd::Cancelled(phase)
    }

    /// Closes the log of a request that failed.
    pub(super) fn fail(self, at: Time, kind: FailureKind, message: &str) -> RequestEnd {
        let failure = Failure {
            kind,
            message: message.to_owned(),
        };
        let usage = self.usage;
        self.close(at, EventKind::Failed { failure, usage });
        RequestEnd::Failed(kind)
    }

    /// Gives the place back, then writes the terminal event: who reads it finds the place free.
    fn close(self, at: Time, terminal: EventKind) {
        drop(self.permit);
        self.log.close(at, terminal);
    }
}

impl Told {
    fn is_outdated(&self, now: Time, place: &Place) -> bool {
        let (old, new) = match (self.eta, place.eta) {
            (Some(old), Some(new)) => (old, new),
            (old, new) => return old != new || self.position != place.position,
        };
        let off = (old - new).max(new - old);
        let tolerance = ETA_NEWS.max((new - now).mul_f64(ETA_NEWS_SHARE));
        self.position != place.position || off > tolerance
    }
}
