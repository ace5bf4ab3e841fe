//! The sampling kernel of CUDA cards against the host's sampler: the same tokens. It runs on the CPU here, as
//! `kernels/cuda` says.

use candle_core::{DType, Device, Tensor};

use super::*;
use crate::kernels::sampling::{NO_TOKEN, ROW_WORDS, RowSampling, SampleRows, sample_rows};
use crate::kernels::test_numbers::numbers;

fn is_skipped() -> bool {
    std::env::var_os("GIRANDOLE_SKIP_EMULATION").is_some_and(|value| value == "1")
}

/// A row with the settings and the past of a host's sampler.
struct Row {
    host: TokenSampler,
    logits: Vec<f32>,
    seen_row: u32,
}

impl Row {
    fn new(sampling: Sampling, choice: u32, logits: Vec<f32>) -> Self {
        let job = TextJob {
            sampling,
            logprobs: Some(0),
            ..TextJob::greedy([1, 2, 5], 8)
        };
        Row {
            host: TokenSampler::new(&job, choice, &[]),
            logits,
            seen_row: 0,
        }
    }

    fn settings(&self) -> RowSampling {
        let sampling = &self.host.sampling;
        RowSampling {
            seed: sampling.seed,
            choice: self.host.choice,
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            repetition_penalty: sampling.repetition_penalty,
            frequency_penalty: sampling.frequency_penalty,
            presence_penalty: sampling.presence_penalty,
            wants_logprob: true,
            seen_row: self.seen_row,
        }
    }
}

/// Samples the rows `steps` times on both sides, each step from the same logits.
fn check(mut rows: Vec<Row>, dtype: DType, steps: u32, case: &str) {
    let vocab = rows[0].logits.len();
    let words = |words: Vec<u32>| Tensor::new(words, &Device::Cpu).unwrap();
    let count = rows.len();
    for (index, row) in rows.iter_mut().enumerate() {
        row.seen_row = (count - 1 - index) as u32;
        // Random numbers of several blocks of the stream.
        row.host.chosen = 5 * index as u32;
    }
    let settings = rows.iter().flat_map(|row| row.settings().to_words());
    let settings = words(settings.collect())
        .reshape((count, ROW_WORDS))
        .unwrap();
    let chosen = words(rows.iter().map(|row| row.host.chosen).collect());
    let mut seen = vec![0; count * vocab];
    for row in &rows {
        for (&token, &times) in &row.host.seen {
            seen[row.seen_row as usize * vocab + token as usize] = times + 1;
        }
    }
    let seen = words(seen).reshape((count, vocab)).unwrap();
    let tokens = words(vec![7; count]);
    let logprobs = Tensor::zeros(count, DType::F32, &Device::Cpu).unwrap();
    let logits: Vec<f32> = rows.iter().flat_map(|row| row.logits.clone()).collect();
    let logits = Tensor::from_vec(logits, (count, vocab), &Device::Cpu).unwrap();
    let logits = logits.to_dtype(dtype).unwrap();
    let rounded = logits
        .to_dtype(DType::F32)
        .unwrap()
        .to_vec2::<f32>()
        .unwrap();
    for step in 0..steps {
        sample_rows(&SampleRows {
            logits: &logits,
            rows: &settings,
            chosen: &chosen,
            seen: Some(&seen),
            tokens: &tokens,
            logprobs: &logprobs,
        })
        .unwrap();
        let found = tokens.to_vec1::<u32>().unwrap();
        let found = found.into_iter().zip(logprobs.to_vec1::<f32>().unwrap());
        for ((row, logits), (token, logprob)) in rows.iter_mut().zip(&rounded).zip(found) {
            let case = format!("{case}, step {step}: {:?}", row.host.sampling);
            match row.host.sample(&mut logits.clone()) {
                Ok(wanted) => {
                    assert_eq!(token, wanted.token, "{case}");
                    assert!((logprob - wanted.logprob).abs() < 2e-6, "{case}");
                }
                Err(NonFiniteLogits) => assert_eq!(token, NO_TOKEN, "{case}"),
            }
        }
    }
}

fn logits(vocab: usize, seed: u64) -> Vec<f32> {
    numbers(vocab, seed)
        .iter()
        .map(|number| 3.0 * number)
        .collect()
}

fn settings() -> Vec<Sampling> {
    let hot = Sampling {
        temperature: 0.8,
        ..Sampling::default()
    };
    let penalties = Sampling {
        repetition_penalty: 1.3,
        frequency_penalty: 0.4,
        presence_penalty: 0.2,
        ..hot.clone()
    };
    let of = |top_k, top_p, min_p| Sampling {
        top_k,
        top_p,
        min_p,
        ..hot.clone()
    };
    let mut all = vec![Sampling::default(), hot.clone(), penalties.clone()];
    for (top_k, top_p, min_p) in [
        (1, 1.0, 0.0),
        (7, 1.0, 0.0),
        (40, 0.9, 0.0),
        (0, 0.9, 0.0),
        (0, 0.0, 0.0),
        (0, 0.5, 0.05),
        (0, 1.0, 0.1),
        (100_000, 0.99, 0.01),
    ] {
        all.push(of(top_k, top_p, min_p));
        all.push(Sampling {
            top_k,
            top_p,
            min_p,
            ..penalties.clone()
        });
    }
    all.push(Sampling {
        temperature: 1e-38,
        ..hot.clone()
    });
    all.push(Sampling {
        temperature: 50.0,
        ..hot
    });
    all.push(Sampling {
        temperature: 0.0,
        ..penalties
    });
    all
}

#[test]
fn the_card_chooses_the_tokens_of_the_host() {
    if is_skipped() {
        return;
    }
    for (vocab, dtype) in [
        (33, DType::F32),
        (1000, DType::F32),
        (2500, DType::BF16),
        (517, DType::F16),
    ] {
        for seed in 0..3 {
            let row = |(index, sampling): (usize, Sampling)| {
                let sampling = Sampling {
                    seed: seed * 1000 + index as u64,
                    ..sampling
                };
                Row::new(
                    sampling,
                    index as u32 % 3,
                    logits(vocab, seed + 31 * index as u64),
                )
            };
            let rows: Vec<Row> = settings().into_iter().enumerate().map(row).collect();
            check(rows, dtype, 3, &format!("{vocab} {dtype:?}"));
        }
    }
}

#[test]
fn equal_logits_are_taken_in_the_order_of_their_tokens() {
    if is_skipped() {
        return;
    }
    let steps: Vec<f32> = logits(700, 3).iter().map(|logit| logit.round()).collect();
    let mut few = vec![f32::NEG_INFINITY; 700];
    few[99] = 1.0;
    few[600] = 1.0;
    let zeros: Vec<f32> = (0..700)
        .map(|token| if token % 2 == 0 { 0.0 } else { -0.0 })
        .collect();
    for (name, logits) in [
        ("steps", steps),
        ("equal", vec![1.5; 700]),
        ("few", few),
        ("zeros", zeros),
    ] {
        for seed in 0..4 {
            let row = |sampling| Row::new(Sampling { seed, ..sampling }, 0, logits.clone());
            check(
                settings().into_iter().map(row).collect(),
                DType::F32,
                2,
                name,
            );
        }
    }
}

#[test]
fn a_row_whose_logits_are_not_finite_fails_alone() {
    if is_skipped() {
        return;
    }
    let with = |place: usize, wrong: f32| {
        let mut logits = logits(300, 5);
        logits[place] = wrong;
        logits
    };
    let rows = [
        logits(300, 5),
        with(0, f32::NAN),
        with(299, f32::INFINITY),
        vec![f32::NEG_INFINITY; 300],
        with(17, f32::NEG_INFINITY),
    ];
    let hot = Sampling {
        temperature: 1.0,
        ..Sampling::default()
    };
    let rows = rows.map(|logits| Row::new(hot.clone(), 0, logits));
    check(rows.into(), DType::F32, 2, "not finite");
}
