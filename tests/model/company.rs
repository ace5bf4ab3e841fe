//! The law of batching: on the CPU a row says the same in any company, bit for bit.

use std::sync::Arc;

use girandole::batch::{Next, PlannedRow};
use girandole::job::{Sampling, TextJob};
use girandole::model::device::FloatType;
use girandole::model::{CacheReport, Model};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::serving::{Guest, Said, alone, dummy_model, plain_dummy_model, run};

pub(crate) const SLOTS: u32 = 6;
const GUESTS: usize = 14;

/// A random number below `limit`.
fn below(random: &mut ChaCha8Rng, limit: u32) -> u32 {
    random.next_u32() % limit
}

/// A job whose output shows the smallest change of any logit: sampled, with log-probabilities.
fn random_job(random: &mut ChaCha8Rng) -> TextJob {
    let length = 1 + below(random, 90);
    let prompt: Vec<u32> = (0..length).map(|_| below(random, 256)).collect();
    TextJob {
        ignore_eos: true,
        logprobs: Some(3),
        prompt_logprobs: (below(random, 4) == 0).then_some(1),
        sampling: Sampling {
            temperature: [0.0, 1.0][below(random, 2) as usize],
            seed: u64::from(random.next_u32()),
            ..Sampling::default()
        },
        ..TextJob::greedy(prompt, 1 + below(random, 30))
    }
}

/// Random guests who come and go at random times, against each of them alone in `plain`: the same model
/// without a prefix cache, where nobody takes over what it was to be compared with.
pub(crate) fn check_company(model: &mut dyn Model, plain: &mut dyn Model, seed: u64) {
    eprintln!("seed {seed}");
    let random = &mut ChaCha8Rng::seed_from_u64(seed);
    let guests: Vec<Guest> = (0..GUESTS)
        .map(|_| Guest {
            chunk: 1 + below(random, 40),
            arrival: below(random, 40) as usize,
            departure: (below(random, 6) == 0).then(|| 50 + below(random, 20) as usize),
            ..Guest::new(below(random, SLOTS), random_job(random))
        })
        .collect();
    let shuffle = |plan: &mut Vec<PlannedRow>| {
        for last in (1..plan.len()).rev() {
            plan.swap(last, below(random, last as u32 + 1) as usize);
        }
    };
    let together = run(model, &guests, shuffle);
    let mut ended = 0;
    for (guest, together) in guests.iter().zip(&together) {
        let job = guest.job.text();
        let alone = alone(plain, job.clone());
        match together.end {
            Some(_) => {
                assert_eq!(*together, alone);
                ended += 1;
            }
            // It left early: what it said until then is the beginning of the same.
            None => assert!(alone.text.starts_with(&together.text)),
        }
    }
    assert!(ended > GUESTS / 2, "most guests stayed to their ends");
    assert_eq!(plain.cache_report(), CacheReport::default());
}

#[test]
fn a_row_in_company_equals_the_row_alone_in_f32() {
    let mut model = dummy_model(FloatType::F32, SLOTS);
    let mut plain = plain_dummy_model(FloatType::F32, 1);
    for seed in 0..6 {
        check_company(&mut *model, &mut *plain, seed);
    }
}

#[test]
fn a_row_in_company_equals_the_row_alone_in_f16() {
    let mut model = dummy_model(FloatType::F16, SLOTS);
    let mut plain = plain_dummy_model(FloatType::F16, 1);
    for seed in 10..16 {
        check_company(&mut *model, &mut *plain, seed);
    }
}

#[test]
fn a_row_in_company_equals_the_row_alone_in_bf16() {
    let mut model = dummy_model(FloatType::BF16, SLOTS);
    let mut plain = plain_dummy_model(FloatType::BF16, 1);
    check_company(&mut *model, &mut *plain, 20);
}

#[test]
fn blocks_show_nothing_of_their_former_owner() {
    let job = || TextJob {
        ignore_eos: true,
        logprobs: Some(2),
        ..TextJob::greedy(vec![9, 8, 7, 6, 5], 40)
    };
    let fresh = alone(&mut *dummy_model(FloatType::F32, 2), job());
    let mut used = dummy_model(FloatType::F32, 2);
    let other = TextJob {
        ignore_eos: true,
        ..TextJob::greedy((0..200).collect::<Arc<[u32]>>(), 100)
    };
    run(
        &mut *used,
        &[Guest::new(0, other.clone()), Guest::new(1, other)],
        |_| {},
    );
    assert_eq!(alone(&mut *used, job()), fresh);
}

/// A model whose token 7 has no embedding: rows that hold it get logits that are not numbers.
fn poisoned_model() -> Box<dyn Model> {
    crate::poison::model_with_nan_embedding(7, SLOTS)
}

#[test]
fn a_row_without_numbers_fails_alone() {
    let mut model = poisoned_model();
    let well = || TextJob {
        ignore_eos: true,
        logprobs: Some(1),
        sampling: Sampling {
            logit_bias: Arc::from([(7, -100.0)]),
            ..Sampling::default()
        },
        ..TextJob::greedy(vec![1, 2, 3], 50)
    };
    let ill = TextJob::greedy(vec![1, 7, 3], 50);
    let expected = alone(&mut *model, well());
    assert_eq!(expected.tokens.len(), 50);
    let guests = [
        Guest::new(0, well()),
        Guest::new(1, ill.clone()),
        Guest::new(2, well()),
        // Takes over the blocks of the failed row.
        Guest {
            arrival: 5,
            ..Guest::new(1, well())
        },
    ];
    let said: Vec<Said> = run(&mut *model, &guests, |_| {});
    assert_eq!(
        said[1].end,
        Some(Next::Fail("the model's logits are not finite".into()))
    );
    assert!(said[1].tokens.is_empty());
    for well in [0, 2, 3] {
        assert_eq!(said[well], expected);
    }
    let scored = TextJob {
        prompt_logprobs: Some(0),
        max_tokens: 0,
        ..ill
    };
    assert!(matches!(
        alone(&mut *model, scored).end,
        Some(Next::Fail(_))
    ));
}
