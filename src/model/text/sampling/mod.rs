//! How a row chooses its next token: penalties, bias, filters, and random numbers of its own.
//!
//! The parts act in this order, which is the one of Hugging Face's `generate`:
//!
//! 1. `logit_bias` is added.
//! 2. Penalties: repetition (tokens of prompt and output), then frequency and presence (output only).
//! 3. Tokens that would end the row before `min_tokens` are ruled out.
//! 4. With temperature 0 the best token is taken, the lowest id among equals. Else the logits are
//!    divided by the temperature, and
//! 5. `top_k`, `top_p`, `min_p` and `typical_p` ([`filters`]) each keep a part of what is left, taking
//!    the probabilities of what is left as a whole.
//! 6. One of the rest is drawn.
//!
//! The random number of a draw is a function of the job's seed, the answer's number and the token's
//! position. So it does not depend on which rows share the step, nor on how often the row was asked.
//!
//! Reported log-probabilities are the model's own: of the logits as they came, before step 1.

mod filters;
mod on_device;

use std::collections::HashMap;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::job::{Sampling, TextJob};
use crate::kernels::logits;
use crate::kernels::sampling::NO_TOKEN;
use filters::Candidate;

pub use on_device::{DeviceSampling, HostOnly};

/// A row's logits are not finite: the row fails, alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the model's logits are not finite")]
pub struct NonFiniteLogits;

/// The token chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// Its id.
    pub token: u32,
    /// Its log-probability before temperature, penalties and filters; 0 when not asked for.
    pub logprob: f32,
    /// The most probable tokens with theirs, best first; as many as asked for.
    pub top: Vec<(u32, f32)>,
}

/// One row's sampler: its settings, the tokens it has seen, its random numbers.
pub struct TokenSampler {
    sampling: Sampling,
    choice: u32,
    logprobs: Option<u32>,
    min_tokens: u32,
    /// Ruled out before `min_tokens`.
    end_tokens: Vec<u32>,
    /// How many tokens were chosen so far: the position of the next.
    chosen: u32,
    /// How often each token was chosen; 0 for tokens of the prompt. Empty if nothing is penalised.
    seen: HashMap<u32, u32>,
}

impl TokenSampler {
    /// For answer number `choice` of `job`. `end_tokens`, like the job's own `stop_token_ids`, are
    /// held back until `min_tokens`.
    pub fn new(job: &TextJob, choice: u32, end_tokens: &[u32]) -> Self {
        let mut seen = HashMap::new();
        if job.sampling.repetition_penalty != 1.0 {
            seen.extend(job.prompt.iter().map(|&token| (token, 0)));
        }
        TokenSampler {
            sampling: job.sampling.clone(),
            choice,
            logprobs: job.logprobs,
            min_tokens: job.min_tokens,
            end_tokens: [end_tokens, &job.stop_token_ids].concat(),
            chosen: 0,
            seen,
        }
    }

    /// Chooses the next token and remembers it. `logits: (vocab,), f32`; used as scratch.
    ///
    /// # Errors
    /// [`NonFiniteLogits`] for a NaN or positive infinity, or if nothing is left to choose.
    pub fn sample(&mut self, logits: &mut [f32]) -> Result<Sampled, NonFiniteLogits> {
        // Bias could hide what is wrong.
        best_token(logits)?;
        let raw = self.logprobs.map(|_| logits.to_vec());
        self.adjust(logits);
        let token = self.choose(logits)?;
        self.remember(token);

        let (logprob, top) = match (raw, self.logprobs) {
            (Some(raw), Some(top)) => log_probabilities(&raw, token, top as usize)?,
            _ => (0.0, Vec::new()),
        };
        Ok(Sampled {
            token,
            logprob,
            top,
        })
    }

    /// Bias, penalties, and the ban on ending too early.
    fn adjust(&self, logits: &mut [f32]) {
        for &(token, bias) in self.sampling.logit_bias.iter() {
            change(logits, token, |logit| logit + bias);
        }
        for (&token, &count) in &self.seen {
            change(logits, token, |logit| self.penalised(logit, count));
        }
        if self.chosen < self.min_tokens {
            for &token in &self.end_tokens {
                change(logits, token, |_| f32::NEG_INFINITY);
            }
        }
    }

    /// The logit of a token of the prompt (`count` 0) or the output.
    fn penalised(&self, logit: f32, count: u32) -> f32 {
        let Sampling {
            repetition_penalty,
            frequency_penalty,
            presence_penalty,
            ..
        } = self.sampling;
        let logit = if logit > 0.0 {
            logit / repetition_penalty
        } else {
            logit * repetition_penalty
        };
        if count == 0 {
            logit
        } else {
            logit - frequency_penalty * count as f32 - presence_penalty
        }
    }

    fn choose(&self, logits: &[f32]) -> Result<u32, NonFiniteLogits> {
        let (best, best_logit) = best_token(logits)?;
        // Nor is a negative temperature, or none at all, a reason to draw.
        if self.sampling.temperature.is_nan() || self.sampling.temperature <= 0.0 {
            return Ok(best);
        }
        let candidates = filters::candidates(&self.sampling, logits, best_logit);
        Ok(draw(&candidates, self.random()))
    }

    /// The random number of the current position, uniform in `[0, 1)`.
    fn random(&self) -> f64 {
        /// A position takes one 64-bit number: two of ChaCha's words.
        const WORDS: u128 = 2;
        let mut random = ChaCha8Rng::seed_from_u64(self.sampling.seed);
        random.set_stream(u64::from(self.choice));
        random.set_word_pos(u128::from(self.chosen) * WORDS);
        // The 53 bits that an f64 in [0, 1) holds.
        (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Remembers a token that the device chose, if it could.
    ///
    /// # Errors
    /// [`NonFiniteLogits`], as [`sample`](Self::sample).
    pub fn accept(&mut self, token: u32) -> Result<(), NonFiniteLogits> {
        if token == NO_TOKEN {
            return Err(NonFiniteLogits);
        }
        self.remember(token);
        Ok(())
    }

    fn remember(&mut self, token: u32) {
        self.chosen += 1;
        if self.penalises() {
            *self.seen.entry(token).or_default() += 1;
        }
    }

    /// Whether it matters which tokens it has seen.
    fn penalises(&self) -> bool {
        let Sampling {
            repetition_penalty,
            frequency_penalty,
            presence_penalty,
            ..
        } = self.sampling;
        repetition_penalty != 1.0 || frequency_penalty != 0.0 || presence_penalty != 0.0
    }
}

/// Changes one logit; a token outside the vocabulary has none. An overflow ends at the largest
/// number, so that extreme settings stay comparable.
fn change(logits: &mut [f32], token: u32, change: impl FnOnce(f32) -> f32) {
    if let Some(logit) = logits.get_mut(token as usize) {
        *logit = change(*logit).min(f32::MAX);
    }
}

/// The token with the highest logit, the lowest id among equals.
fn best_token(logits: &[f32]) -> Result<(u32, f32), NonFiniteLogits> {
    let (index, logit) = logits::best(logits).ok_or(NonFiniteLogits)?;
    Ok((index as u32, logit))
}

/// The candidate that `random` in `[0, 1)` falls on, when each takes a share by its weight.
fn draw(candidates: &[Candidate], random: f64) -> u32 {
    let total: f64 = candidates.iter().map(Candidate::weight).sum();
    let mut rest = random * total;
    let mut last = 0;
    for candidate in candidates.iter().filter(|each| each.weight() > 0.0) {
        last = candidate.token;
        rest -= candidate.weight();
        if rest < 0.0 {
            break;
        }
    }
    // Rounding may leave a crumb behind the last one.
    last
}

/// Log-probability of `token` and the `top` most probable tokens, best first. A token with a logit
/// of negative infinity, or outside the vocabulary, has a log-probability of negative infinity.
///
/// # Errors
/// [`NonFiniteLogits`] for a NaN or positive infinity, or if no logit is finite.
pub fn log_probabilities(
    logits: &[f32],
    token: u32,
    top: usize,
) -> Result<(f32, Vec<(u32, f32)>), NonFiniteLogits> {
    let (_, best_logit) = best_token(logits)?;
    let total = logits::weigh(logits, best_logit, 1.0, &mut vec![0.0; logits.len()]);
    let log_total = total.ln() as f32;
    let log_probability = |logit: f32| logit - best_logit - log_total;

    let mut best = filters::among_best(logits, top);
    filters::keep_best(&mut best, top);
    best.sort_unstable_by(Candidate::best_first);
    let own = logits
        .get(token as usize)
        .copied()
        .unwrap_or(f32::NEG_INFINITY);
    Ok((
        log_probability(own),
        best.iter()
            .map(|candidate| (candidate.token, log_probability(candidate.logit)))
            .collect(),
    ))
}

#[cfg(test)]
mod card_tests;
#[cfg(test)]
mod tests;
