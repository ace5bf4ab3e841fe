//! Choosing tokens on a card against the host's own sampler: the same tokens, whatever the settings.

use candle_core::{DType, Tensor};

use super::check::{Check, Place};
use super::inputs::numbers;
use super::text_kernels::kernel;
use crate::job::{Sampling, TextJob};
use crate::kernels::sampling::{NO_TOKEN, ROW_WORDS, RowSampling, SampleRows, sample_rows};
use crate::model::ModelError;
use crate::model::text::sampling::TokenSampler;

/// An odd one, larger than a block of threads.
const VOCABULARY: usize = 5003;
/// Tokens that each row chooses, one after another.
const STEPS: usize = 6;
/// Tokens that the rows with penalties have in their prompts.
const PROMPT: [u32; 5] = [0, 7, 7, 99, 5002];

/// The rows: every setting by itself, then several together.
fn settings() -> Vec<Sampling> {
    let warm = |temperature| Sampling {
        temperature,
        seed: 7,
        ..Sampling::default()
    };
    vec![
        Sampling::default(),
        warm(1.0),
        Sampling {
            top_k: 40,
            ..warm(0.8)
        },
        Sampling {
            top_p: 0.9,
            ..warm(0.7)
        },
        Sampling {
            min_p: 0.05,
            ..warm(1.3)
        },
        Sampling {
            repetition_penalty: 1.3,
            presence_penalty: 0.5,
            frequency_penalty: 0.3,
            ..Sampling::default()
        },
        Sampling {
            top_k: 50,
            top_p: 0.95,
            min_p: 0.02,
            repetition_penalty: 1.1,
            seed: u64::MAX,
            ..warm(0.9)
        },
    ]
}

pub(super) fn checks() -> Vec<Check> {
    let rows = settings().len();
    let name = format!("sampling, {rows} rows, {STEPS} tokens each");
    vec![kernel(name, 0.0, |place| {
        let tokens = match place.device.is_cuda() {
            true => on_card(place)?,
            false => on_host()?,
        };
        Ok(tokens.into_iter().map(|token| token as f32).collect())
    })]
}

/// Logits of all rows in a step.
fn logits(step: usize) -> Vec<f32> {
    let spread = numbers(settings().len() * VOCABULARY, 100 + step as u64);
    // Most are out of reach, as a model's are.
    spread.iter().map(|x| 8.0 * x * x * x.signum()).collect()
}

fn on_host() -> Result<Vec<u32>, ModelError> {
    let mut samplers: Vec<TokenSampler> = settings()
        .into_iter()
        .map(|sampling| {
            let job = TextJob {
                sampling,
                ..TextJob::greedy(PROMPT.to_vec(), 100)
            };
            TokenSampler::new(&job, 0, &[])
        })
        .collect();
    let mut tokens = Vec::new();
    for step in 0..STEPS {
        let mut logits = logits(step);
        for (sampler, logits) in samplers.iter_mut().zip(logits.chunks_exact_mut(VOCABULARY)) {
            let sampled = sampler.sample(logits);
            let sampled = sampled.map_err(|error| ModelError::Device(error.to_string()))?;
            tokens.push(sampled.token);
        }
    }
    Ok(tokens)
}

fn on_card(place: &Place) -> Result<Vec<u32>, ModelError> {
    let (rows, device) = (settings().len(), &place.device);
    let words: Vec<u32> = (0..)
        .zip(settings())
        .flat_map(|(row, sampling)| {
            let row = RowSampling {
                seed: sampling.seed,
                choice: 0,
                temperature: sampling.temperature,
                top_k: sampling.top_k,
                top_p: sampling.top_p,
                min_p: sampling.min_p,
                repetition_penalty: sampling.repetition_penalty,
                frequency_penalty: sampling.frequency_penalty,
                presence_penalty: sampling.presence_penalty,
                wants_logprob: false,
                seen_row: row,
            };
            row.to_words()
        })
        .collect();
    let mut seen = vec![0u32; rows * VOCABULARY];
    for row in seen.chunks_exact_mut(VOCABULARY) {
        for token in PROMPT {
            row[token as usize] = 1;
        }
    }
    let words = Tensor::from_vec(words, (rows, ROW_WORDS), device)?;
    let seen = Tensor::from_vec(seen, (rows, VOCABULARY), device)?;
    let chosen = Tensor::zeros(rows, DType::U32, device)?;
    let found = Tensor::zeros(rows, DType::U32, device)?;
    let logprobs = Tensor::zeros(rows, DType::F32, device)?;
    let mut tokens = Vec::new();
    for step in 0..STEPS {
        let logits = Tensor::from_vec(logits(step), (rows, VOCABULARY), device)?;
        sample_rows(&SampleRows {
            logits: &logits,
            rows: &words,
            chosen: &chosen,
            seen: Some(&seen),
            tokens: &found,
            logprobs: &logprobs,
        })?;
        let found = found.to_vec1::<u32>()?;
        if found.contains(&NO_TOKEN) {
            return Err(ModelError::Device(format!(
                "no token in step {step}: {found:?}"
            )));
        }
        tokens.extend(found);
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_make_a_difference() {
        let tokens = on_host().unwrap();
        let rows = settings().len();
        assert_eq!(tokens.len(), rows * STEPS);
        let of_row =
            |row: usize| -> Vec<u32> { tokens.iter().copied().skip(row).step_by(rows).collect() };
        for row in 1..rows {
            assert_ne!(of_row(0), of_row(row), "row {row}");
        }
    }
}
