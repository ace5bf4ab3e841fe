//! Which rows' tokens a device chooses by itself, so that a few bytes come back from it and not a row of logits.

use super::TokenSampler;
use crate::kernels::sampling::RowSampling;

/// How the device is to choose a row's next token.
#[derive(Clone, Copy, Debug)]
pub struct DeviceSampling {
    /// The row's settings.
    pub row: RowSampling,
    /// Tokens that it has chosen so far: with seed and choice they name the random number.
    pub chosen: u32,
}

/// Why the host chooses a row's tokens: what the device's sampler does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostOnly {
    /// `logit_bias`.
    LogitBias,
    /// Repetition, frequency and presence penalties: the device keeps no count of what was said.
    Penalties,
    /// `typical_p`.
    TypicalP,
    /// `min_tokens`, until it is reached.
    MinTokens,
    /// Log-probabilities of more tokens than the one chosen.
    TopLogprobs,
}

impl TokenSampler {
    /// How the device is to choose the next token.
    ///
    /// # Errors
    /// The first reason why it cannot.
    pub fn on_device(&self) -> Result<DeviceSampling, HostOnly> {
        let sampling = &self.sampling;
        let reasons = [
            (HostOnly::LogitBias, !sampling.logit_bias.is_empty()),
            (HostOnly::Penalties, self.penalises()),
            (HostOnly::TypicalP, sampling.typical_p < 1.0),
            (
                HostOnly::MinTokens,
                self.chosen < self.min_tokens && !self.end_tokens.is_empty(),
            ),
            (
                HostOnly::TopLogprobs,
                self.logprobs.is_some_and(|top| top > 0),
            ),
        ];
        if let Some((reason, _)) = reasons.into_iter().find(|(_, holds)| *holds) {
            return Err(reason);
        }
        Ok(DeviceSampling {
            row: RowSampling {
                seed: sampling.seed,
                choice: self.choice,
                temperature: sampling.temperature,
                top_k: sampling.top_k,
                top_p: sampling.top_p,
                min_p: sampling.min_p,
                wants_logprob: self.logprobs.is_some(),
                ..RowSampling::GREEDY
            },
            chosen: self.chosen,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::job::{Sampling, TextJob};

    fn job(sampling: Sampling) -> TextJob {
        TextJob {
            sampling,
            ..TextJob::greedy(Arc::from([1, 2, 3]), 10)
        }
    }

    fn check(job: &TextJob, chosen: u32, wanted: Option<HostOnly>) {
        let mut sampler = TokenSampler::new(job, 3, &[0]);
        for _ in 0..chosen {
            sampler.accept(5).expect("a token");
        }
        let found = sampler.on_device();
        assert_eq!(found.as_ref().err(), wanted.as_ref(), "{job:?}");
        if let Ok(found) = found {
            assert_eq!(found.chosen, chosen);
            assert_eq!((found.row.seed, found.row.choice), (job.sampling.seed, 3));
            assert_eq!(found.row.wants_logprob, job.logprobs.is_some());
            let numbers = (found.row.temperature, found.row.top_p, found.row.min_p);
            let sampling = &job.sampling;
            assert_eq!(
                numbers,
                (sampling.temperature, sampling.top_p, sampling.min_p)
            );
            assert_eq!(found.row.top_k, sampling.top_k);
        }
    }

    #[test]
    fn the_device_chooses_where_it_knows_how() {
        let plain = Sampling::default();
        let drawn = Sampling {
            temperature: 0.7,
            top_p: 0.9,
            top_k: 40,
            min_p: 0.05,
            seed: 1 << 40,
            ..plain.clone()
        };
        check(&job(plain.clone()), 0, None);
        check(&job(drawn.clone()), 4, None);
        for (sampling, reason) in [
            (
                Sampling {
                    logit_bias: Arc::from([(1, 2.0)]),
                    ..drawn.clone()
                },
                HostOnly::LogitBias,
            ),
            (
                Sampling {
                    repetition_penalty: 1.1,
                    ..drawn.clone()
                },
                HostOnly::Penalties,
            ),
            (
                Sampling {
                    presence_penalty: -0.5,
                    ..drawn.clone()
                },
                HostOnly::Penalties,
            ),
            (
                Sampling {
                    frequency_penalty: 0.5,
                    ..drawn.clone()
                },
                HostOnly::Penalties,
            ),
            (
                Sampling {
                    typical_p: 0.5,
                    ..drawn
                },
                HostOnly::TypicalP,
            ),
        ] {
            check(&job(sampling), 2, Some(reason));
        }
    }

    #[test]
    fn what_is_reported_or_ruled_out_decides_too() {
        let plain = || job(Sampling::default());
        for (logprobs, wanted) in [
            (None, None),
            (Some(0), None),
            (Some(1), Some(HostOnly::TopLogprobs)),
        ] {
            let job = TextJob {
                logprobs,
                ..plain()
            };
            check(&job, 0, wanted);
        }
        let held_back = TextJob {
            min_tokens: 2,
            ..plain()
        };
        check(&held_back, 1, Some(HostOnly::MinTokens));
        check(&held_back, 2, None);
    }
}
