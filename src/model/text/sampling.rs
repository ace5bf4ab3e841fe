//! How a row chooses its next token: penalties, bias, filters, and random numbers of its own.

use crate::job::TextJob;

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
pub struct TokenSampler {}

impl TokenSampler {
    /// For answer number `choice` of `job`. `end_tokens` are held back until `min_tokens`.
    pub fn new(_job: &TextJob, _choice: u32, _end_tokens: &[u32]) -> Self {
        TokenSampler {}
    }
    /// Chooses the next token and remembers it. `logits: (vocab,), f32`; used as scratch.
    ///
    /// # Errors
    /// [`NonFiniteLogits`] for a NaN or positive infinity, or if nothing is left to choose.
    pub fn sample(&mut self, logits: &mut [f32]) -> Result<Sampled, NonFiniteLogits> {
        let mut best: Option<(u32, f32)> = None;
        for (token, &logit) in (0..).zip(logits.iter()) {
            if logit.is_nan() || logit == f32::INFINITY {
                return Err(NonFiniteLogits);
            }
            if logit > best.map_or(f32::NEG_INFINITY, |(_, logit)| logit) {
                best = Some((token, logit));
            }
        }
        let (token, _) = best.ok_or(NonFiniteLogits)?;
        Ok(Sampled {
            token,
            logprob: 0.0,
            top: Vec::new(),
        })
    }
}

/// Log-probability of `token` and the `top` most probable tokens, best first.
///
/// # Errors
/// [`NonFiniteLogits`] for a NaN or positive infinity.
pub fn log_probabilities(
    _logits: &[f32],
    _token: u32,
    _top: usize,
) -> Result<(f32, Vec<(u32, f32)>), NonFiniteLogits> {
    todo!()
}
