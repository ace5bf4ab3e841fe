//! One running row: how far it has come, what it says, and when it ends.
//!
//! A row sees its own logits only, so nothing here can depend on its company.

use std::ops::Range;
use std::sync::Arc;

use super::decode_pass::{DecodeRow, DeviceChoice};
use super::detokenize::Detokenizer;
use super::prefix_cache::{BlockDigest, DigestChain};
use super::sampling::{NonFiniteLogits, Sampled, TokenSampler, log_probabilities};
use super::tokenizer::TextTokenizer;
use crate::batch::{BatchKey, Emission, FinishReason, Next, Phase, Slot, TokenLogprob};
use crate::job::TextJob;

/// A row between admission and retirement.
pub(super) struct Row {
    job: TextJob,
    tokenizer: Arc<TextTokenizer>,
    sampler: TokenSampler,
    detokenizer: Detokenizer,
    /// Tokens that end it, its own and the model's.
    end_tokens: Vec<u32>,
    /// Positions that it may reach.
    served_context: usize,
    /// Prompt tokens whose keys and values are stored.
    prefilled: usize,
    /// What its full blocks hold, for the prefix cache; absent where there is none.
    chain: Option<DigestChain>,
    generated: u32,
    last_token: u32,
    emitted: Vec<Emission>,
    end: Option<Next>,
}

/// What a row puts into a pass.
pub(super) struct Contribution {
    /// Its tokens.
    pub(super) tokens: Vec<u32>,
    /// Position of the first.
    pub(super) first_position: usize,
    /// Which of `tokens` need logits.
    pub(super) wanted: Range<usize>,
}

impl Row {
    /// A row for answer number `choice`, whose first tokens may be stored already: those that `chain` has
    /// moved past.
    pub(super) fn new(
        job: &TextJob,
        choice: u32,
        tokenizer: &Arc<TextTokenizer>,
        served_context: usize,
        chain: Option<DigestChain>,
    ) -> Self {
        let mut end_tokens = job.stop_token_ids.to_vec();
        if !job.ignore_eos {
            end_tokens.extend_from_slice(tokenizer.end_tokens());
        }
        Row {
            sampler: TokenSampler::new(job, choice, &end_tokens),
            detokenizer: Detokenizer::new(Arc::clone(tokenizer), job),
            tokenizer: Arc::clone(tokenizer),
            job: job.clone(),
            end_tokens,
            served_context,
            prefilled: chain.as_ref().map_or(0, DigestChain::tokens),
            chain,
            generated: 0,
            last_token: 0,
            emitted: Vec::new(),
            end: None,
        }
    }

    /// What the row puts into the pass that is planned for it; `None` if it stands elsewhere. Until
    /// [`stored`](Self::stored) says that the pass went well, it would put the same in again.
    pub(super) fn contribute(&self, phase: Phase, work: u32) -> Option<Contribution> {
        match phase {
            Phase::Begin => self.contribute_chunk(work as usize),
            Phase::Iterate if self.generated > 0 => Some(Contribution {
                tokens: vec![self.last_token],
                first_position: self.next_position() - 1,
                wanted: 0..1,
            }),
            Phase::Iterate | Phase::Finish => None,
        }
    }

    fn contribute_chunk(&self, work: usize) -> Option<Contribution> {
        let first_position = self.prefilled;
        let rest = self.job.prompt.len() - first_position;
        if work == 0 || rest == 0 {
            return None;
        }
        let end = first_position + work.min(rest);
        let tokens = self.job.prompt[first_position..end].to_vec();
        let completes = end == self.job.prompt.len();
        let first_wanted = match self.job.prompt_logprobs {
            Some(_) => 0,
            None if completes => tokens.len() - 1,
            None => tokens.len(),
        };
        Some(Contribution {
            wanted: first_wanted..tokens.len(),
            tokens,
            first_position,
        })
    }

    /// The keys and values of `part` are stored: the pass that it was put into went well. Returns the
    /// blocks that it filled, by their place in the row's table, with what they hold.
    pub(super) fn stored(&mut self, part: &Contribution) -> Vec<(usize, BlockDigest)> {
        let end = part.first_position + part.tokens.len();
        self.prefilled = self.prefilled.max(end.min(self.job.prompt.len()));
        match &mut self.chain {
            // Behind a gap, which a pass that failed halfway may leave, nothing is known for sure.
            Some(chain) if chain.tokens() == part.first_position => part
                .tokens
                .iter()
                .filter_map(|token| chain.push(*token))
                .collect(),
            _ => Vec::new(),
        }
    }

    /// The position that the next new token gets.
    fn next_position(&self) -> usize {
        self.job.prompt.len() + self.generated as usize
    }

    /// Takes the logits of the wanted tokens, in order: `(vocab,), f32` each. `first_position` is that of
    /// the first of them.
    pub(super) fn take_logits<'a>(
        &mut self,
        first_position: usize,
        logits: impl Iterator<Item = &'a mut [f32]>,
    ) {
        for (offset, logits) in logits.enumerate() {
            if self.end.is_some() {
                return;
            }
            let position = first_position + offset;
            let taken = if position + 1 < self.job.prompt.len() {
                self.score_prompt(position, logits)
            } else if self.job.max_tokens == 0 {
                self.finish(FinishReason::Length);
                Ok(())
            } else {
                self.choose_token(logits)
            };
            if let Err(error) = taken {
                self.end = Some(Next::Fail(error.to_string()));
            }
        }
    }

    /// The log-probability of the prompt token after `position`.
    fn score_prompt(&mut self, position: usize, logits: &[f32]) -> Result<(), NonFiniteLogits> {
        let top = self.job.prompt_logprobs.unwrap_or(0) as usize;
        let token = self.job.prompt[position + 1];
        let (logprob, top) = log_probabilities(logits, token, top)?;
        let scored = self.token_logprob(token, logprob, &top);
        self.say_about_prompt(scored);
        Ok(())
    }

    /// The first prompt token has no log-probability; its entry keeps the others in step.
    pub(super) fn score_first_token(&mut self) {
        if self.job.prompt_logprobs.is_some() {
            let scored = self.token_logprob(self.job.prompt[0], f32::NAN, &[]);
            self.say_about_prompt(scored);
        }
    }

    fn say_about_prompt(&mut self, scored: TokenLogprob) {
        match self.emitted.last_mut() {
            Some(Emission::PromptLogprobs(list)) => list.push(scored),
            _ => self.emitted.push(Emission::PromptLogprobs(vec![scored])),
        }
    }

    fn choose_token(&mut self, logits: &mut [f32]) -> Result<(), NonFiniteLogits> {
        let sampled = self.sampler.sample(logits)?;
        self.say(sampled);
        Ok(())
    }

    /// Takes the token that the device has chosen.
    pub(super) fn take_choice(&mut self, choice: DeviceChoice) {
        let DeviceChoice { token, logprob } = choice;
        match self.sampler.accept(token) {
            Ok(()) => self.say(Sampled {
                token,
                logprob,
                top: Vec::new(),
            }),
            Err(error) => self.end = Some(Next::Fail(error.to_string())),
        }
    }

    /// Its part in a decoding pass, if that comes next for it. `samples`: the device can choose.
    pub(super) fn decode_row(&self, slot: Slot, samples: bool) -> Option<DecodeRow> {
        if self.end.is_some() {
            return None;
        }
        let part = self.contribute(Phase::Iterate, 1)?;
        Some(DecodeRow {
            slot,
            token: self.last_token,
            position: u32::try_from(part.first_position).ok()?,
            sampling: match samples {
                true => self.sampler.on_device().ok(),
                false => None,
            },
        })
    }

    fn say(&mut self, sampled: Sampled) {
        self.generated += 1;
        self.last_token = sampled.token;
        let may_stop = self.generated >= self.job.min_tokens;
        let ends = self.end_tokens.contains(&sampled.token);
        // An end token is no part of the text, unless the stop is to be kept.
        let mut text = String::new();
        let mut stopped = ends;
        if !ends || self.job.include_stop_str_in_output {
            let piece = self.detokenizer.push(sampled.token, may_stop);
            text = piece.text;
            if piece.stopped {
                self.end = Some(Next::Finish(FinishReason::Stop));
            }
            stopped |= piece.stopped;
        }
        if self.end.is_none() && (stopped || self.is_full()) {
            text.push_str(&self.detokenizer.finish());
            self.end = Some(Next::Finish(if stopped {
                FinishReason::Stop
            } else {
                FinishReason::Length
            }));
        }
        let logprobs = self
            .job
            .logprobs
            .map(|_| self.token_logprob(sampled.token, sampled.logprob, &sampled.top));
        self.emitted.push(Emission::Text {
            text,
            tokens: vec![sampled.token],
            logprobs: logprobs.into_iter().collect(),
        });
    }

    /// Whether there is no room for another token.
    fn is_full(&self) -> bool {
        self.generated >= self.job.max_tokens || self.next_position() >= self.served_context
    }

    fn finish(&mut self, reason: FinishReason) {
        self.end = Some(Next::Finish(reason));
    }

    fn token_logprob(&self, token: u32, logprob: f32, top: &[(u32, f32)]) -> TokenLogprob {
        let bytes = |token| self.tokenizer.token_bytes(token);
        TokenLogprob {
            token,
            bytes: bytes(token),
            logprob,
            top: top
                .iter()
                .map(|&(token, logprob)| (token, bytes(token), logprob))
                .collect(),
        }
    }

    /// What it said since the last call, and what becomes of it.
    pub(super) fn report(&mut self, key: BatchKey) -> (Vec<Emission>, Next) {
        let next = self.end.clone().unwrap_or(Next::Continue(key));
        (std::mem::take(&mut self.emitted), next)
    }
}
