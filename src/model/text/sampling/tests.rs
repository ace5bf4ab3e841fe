use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::kernels::test_numbers::numbers;

fn job(sampling: Sampling) -> TextJob {
    TextJob {
        sampling,
        ..TextJob::greedy([1, 2], 8)
    }
}

fn sampler(sampling: Sampling) -> TokenSampler {
    TokenSampler::new(&job(sampling), 0, &[])
}

/// The plain way: every probability, fully sorted, for each filter anew. Returns what may be drawn
/// with its probability, in the order of ids.
fn plain_distribution(sampling: &Sampling, logits: &[f32]) -> Vec<(usize, f64)> {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights = logits
        .iter()
        .map(|&logit| f64::from(((logit - best) / sampling.temperature).exp()));
    let mut left: Vec<(usize, f64)> = weights.enumerate().collect();
    let logit_first = |one: &(usize, f64), other: &(usize, f64)| {
        let order = logits[other.0].partial_cmp(&logits[one.0]).unwrap();
        order.then(one.0.cmp(&other.0))
    };
    let normalise = |left: &mut Vec<(usize, f64)>| {
        let total: f64 = left.iter().map(|each| each.1).sum();
        left.iter_mut().for_each(|each| each.1 /= total);
    };
    let keep_mass = |left: &mut Vec<(usize, f64)>, mass: f64| {
        let mut before = 0.0;
        left.retain(|each| {
            let keep = before < mass;
            before += each.1;
            keep
        });
    };

    normalise(&mut left);
    left.sort_by(logit_first);
    if sampling.top_k > 0 {
        left.truncate(sampling.top_k as usize);
        normalise(&mut left);
    }
    if sampling.top_p < 1.0 {
        keep_mass(&mut left, f64::from(sampling.top_p).max(f64::MIN_POSITIVE));
        normalise(&mut left);
    }
    if sampling.min_p > 0.0 {
        let bound = left[0].1 * f64::from(sampling.min_p);
        left.retain(|each| each.1 >= bound);
        normalise(&mut left);
    }
    if sampling.typical_p < 1.0 {
        left.retain(|each| each.1 > 0.0);
        let entropy: f64 = left.iter().map(|each| -each.1 * each.1.ln()).sum();
        left.sort_by(|one, other| {
            let distance = |each: &(usize, f64)| (-each.1.ln() - entropy).abs();
            distance(one)
                .total_cmp(&distance(other))
                .then(one.0.cmp(&other.0))
        });
        keep_mass(
            &mut left,
            f64::from(sampling.typical_p).max(f64::MIN_POSITIVE),
        );
        normalise(&mut left);
    }
    left.sort_by_key(|each| each.0);
    left
}

/// What the sampler may draw, with its probability, in the order of ids.
fn distribution(sampling: &Sampling, logits: &[f32]) -> Vec<(usize, f64)> {
    let (_, best) = best_token(logits).unwrap();
    let candidates = filters::candidates(sampling, logits, best);
    let total: f64 = candidates.iter().map(Candidate::weight).sum();
    candidates
        .iter()
        .map(|candidate| (candidate.token as usize, candidate.weight() / total))
        .collect()
}

prop_compose! {
    fn settings()(
        temperature in 0.05_f32..3.0,
        top_k in prop_oneof![Just(0_u32), 1_u32..40, Just(100_000)],
        top_p in prop_oneof![Just(1.0_f32), 0.0_f32..1.0],
        min_p in prop_oneof![Just(0.0_f32), 0.0_f32..1.0],
        typical_p in prop_oneof![Just(1.0_f32), 0.01_f32..1.0],
    ) -> Sampling {
        Sampling { temperature, top_k, top_p, min_p, typical_p, ..Sampling::default() }
    }
}

fn logits() -> impl Strategy<Value = Vec<f32>> {
    // Of the longer ones the best are found by a quick look at parts.
    let length = prop_oneof![1_usize..3000, 4096_usize..12_000];
    // From a few that are ruled out, or equal to each other, to most; ties in the middle and among the best.
    let share = || prop_oneof![Just(1_u32), Just(30)];
    let equal_to = prop_oneof![Just(3.0_f32), Just(12.0)];
    (length, share(), share(), equal_to)
        .prop_flat_map(|(length, ruled_out, equal, equal_to)| {
            let logit = prop_oneof![
                8 => -12.0_f32..12.0,
                ruled_out => Just(f32::NEG_INFINITY),
                equal => Just(equal_to),
            ];
            prop::collection::vec(logit, length)
        })
        .prop_filter("one token may be chosen", |logits| {
            logits.iter().any(|logit| logit.is_finite())
        })
}

fn check_filters(sampling: &Sampling, logits: &[f32]) {
    let found = distribution(sampling, logits);
    let wanted = plain_distribution(sampling, logits);
    let ids = |list: &[(usize, f64)]| list.iter().map(|each| each.0).collect::<Vec<_>>();
    // Mass in another order of summing: the last token kept may differ by rounding alone.
    assert!(found.len().abs_diff(wanted.len()) <= 1, "{sampling:?}");
    if found.len() == wanted.len() {
        assert_eq!(ids(&found), ids(&wanted), "{sampling:?}");
        for (one, other) in found.iter().zip(&wanted) {
            assert!((one.1 - other.1).abs() < 1e-6, "{sampling:?}");
        }
    }
}

fn check_log_probabilities(logits: &[f32], top: usize) {
    let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
    let mut plain: Vec<(u32, f64)> = (0..)
        .zip(logits)
        .map(|(token, &logit)| (token, f64::from(logit) - total.ln()))
        .collect();
    let (own, best) = log_probabilities(logits, 0, top).unwrap();
    let close =
        |one: f32, other: f64| (f64::from(one) - other).abs() < 1e-4 || f64::from(one) == other;
    assert!(close(own, plain[0].1));
    plain.sort_by(|one, other| other.1.total_cmp(&one.1).then(one.0.cmp(&other.0)));
    plain.truncate(top);
    assert_eq!(best.len(), plain.len());
    for (one, other) in best.iter().zip(&plain) {
        assert_eq!(one.0, other.0);
        assert!(close(one.1, other.1));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_filters_equal_the_plain_way(sampling in settings(), logits in logits()) {
        check_filters(&sampling, &logits);
    }

    #[test]
    fn log_probabilities_equal_the_plain_way(logits in logits(), top in 0_usize..30) {
        check_log_probabilities(&logits, top);
    }
}

/// As many as a large vocabulary has: in steps, so that there are ties everywhere; mostly ruled out; all but a few
/// ruled out; all equal.
fn wide_logits() -> [Vec<f32>; 5] {
    const VOCABULARY: usize = 50_000;
    let plain: Vec<f32> = numbers(VOCABULARY, 17)
        .iter()
        .map(|number| 4.0 * number)
        .collect();
    let with_one_in = |step: usize| -> Vec<f32> {
        let all = plain.iter().enumerate();
        all.map(|(token, &logit)| match token % step {
            3 => logit,
            _ => f32::NEG_INFINITY,
        })
        .collect()
    };
    [
        plain.iter().map(|logit| logit.round()).collect(),
        with_one_in(10),
        with_one_in(VOCABULARY / 7),
        vec![1.5; VOCABULARY],
        plain,
    ]
}

#[test]
fn a_large_vocabulary_is_filtered_as_the_plain_way() {
    for logits in wide_logits() {
        for top_k in [0, 1, 7, 40, 190, 390] {
            let by_parts = logits::reached_by(&logits, top_k as usize);
            assert_eq!(by_parts.is_some(), top_k > 0, "top_k {top_k}");
            for (top_p, min_p, typical_p) in [
                (1.0, 0.0, 1.0),
                (0.9, 0.0, 1.0),
                (1.0, 0.05, 1.0),
                (0.95, 0.01, 0.8),
            ] {
                let sampling = Sampling {
                    temperature: 0.8,
                    top_k,
                    top_p,
                    min_p,
                    typical_p,
                    ..Sampling::default()
                };
                check_filters(&sampling, &logits);
            }
            check_log_probabilities(&logits, top_k as usize);
        }
    }
}

#[test]
fn greedy_takes_the_best_and_of_equals_the_first() {
    let mut greedy = sampler(Sampling::default());
    let mut next = |logits: &[f32]| greedy.sample(&mut logits.to_vec()).map(|found| found.token);
    assert_eq!(next(&[0.0, 2.0, 2.0, -1.0]), Ok(1));
    assert_eq!(next(&[f32::NEG_INFINITY, -0.0, 0.0]), Ok(1));
    assert_eq!(next(&[1.0, f32::NAN]), Err(NonFiniteLogits));
    assert_eq!(next(&[1.0, f32::INFINITY]), Err(NonFiniteLogits));
    assert_eq!(next(&[f32::NEG_INFINITY; 3]), Err(NonFiniteLogits));
    assert_eq!(next(&[]), Err(NonFiniteLogits));
}

#[test]
fn bias_and_penalties_change_the_logits_as_documented() {
    let sampling = Sampling {
        logit_bias: Arc::from([(0, 1.5), (99, 7.0)]),
        repetition_penalty: 2.0,
        frequency_penalty: 0.5,
        presence_penalty: 0.25,
        ..Sampling::default()
    };
    // The prompt holds 1 and 2; 3 is chosen twice.
    let mut row = sampler(sampling);
    row.remember(3);
    row.remember(3);
    let mut logits = [1.0, 1.0, -1.0, 4.0, 4.0];
    row.adjust(&mut logits);
    assert_eq!(logits, [2.5, 0.5, -2.0, 2.0 - 1.0 - 0.25, 4.0]);
}

#[test]
fn extreme_settings_leave_something_to_choose() {
    let extreme = Sampling {
        logit_bias: Arc::from([(1, f32::MAX), (2, f32::MIN)]),
        repetition_penalty: 1e-38,
        frequency_penalty: -2.0,
        temperature: 1e-38,
        top_p: 0.0,
        min_p: 1.0,
        typical_p: 1e-6,
        ..Sampling::default()
    };
    let mut row = sampler(extreme);
    for _ in 0..3 {
        let chosen = row.sample(&mut [0.0, 1e30, 1e30, -1e30]).unwrap();
        assert_eq!(chosen.token, 1);
    }
}

#[test]
fn a_row_does_not_end_before_min_tokens() {
    let job = TextJob {
        min_tokens: 2,
        stop_token_ids: Arc::from([1]),
        ..TextJob::greedy([0], 8)
    };
    let mut row = TokenSampler::new(&job, 0, &[2]);
    let tokens: Vec<u32> = (0..4)
        .map(|_| row.sample(&mut [1.0, 2.0, 3.0]).unwrap().token)
        .collect();
    assert_eq!(tokens, [0, 0, 2, 2]);
}

#[test]
fn log_probabilities_are_the_models_own() {
    let sampling = Sampling {
        temperature: 0.5,
        top_k: 1,
        logit_bias: Arc::from([(1, 100.0)]),
        ..Sampling::default()
    };
    let job = TextJob {
        logprobs: Some(2),
        ..job(sampling)
    };
    let mut row = TokenSampler::new(&job, 0, &[]);
    let logits = [3.0_f32.ln(), 1.0_f32.ln(), f32::NEG_INFINITY];
    let chosen = row.sample(&mut logits.clone()).unwrap();
    assert_eq!(chosen.token, 1);
    assert!((chosen.logprob - 0.25_f32.ln()).abs() < 1e-6);
    assert_eq!(chosen.top.len(), 2);
    assert_eq!(chosen.top[0].0, 0);
    assert!((chosen.top[0].1 - 0.75_f32.ln()).abs() < 1e-6);
    assert_eq!(chosen.top[1], (1, chosen.logprob));
}

#[test]
fn a_draw_depends_on_seed_choice_and_position_alone() {
    let hot = |seed| Sampling {
        temperature: 1.0,
        seed,
        ..Sampling::default()
    };
    let draws = |seed, choice| -> Vec<u32> {
        let mut row = TokenSampler::new(&job(hot(seed)), choice, &[]);
        (0..32)
            .map(|_| row.sample(&mut [0.0; 1000]).unwrap().token)
            .collect()
    };
    assert_eq!(draws(7, 0), draws(7, 0));
    assert_ne!(draws(7, 0), draws(8, 0));
    assert_ne!(draws(7, 0), draws(7, 1));
    // One row's numbers are the same whatever it drew before.
    let mut late = sampler(hot(7));
    late.chosen = 31;
    assert_eq!(
        late.sample(&mut [0.0; 1000]).unwrap().token,
        draws(7, 0)[31]
    );
}

#[test]
fn draws_follow_the_probabilities() {
    const DRAWS: u32 = 40_000;
    // 99.9th percentile of chi-square with 7 degrees of freedom.
    const BOUND: f64 = 24.32;
    let logits = [
        0.0_f32,
        1.0,
        -1.0,
        0.5,
        f32::NEG_INFINITY,
        2.0,
        1.5,
        -2.0,
        0.2,
    ];
    let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
    // By position along one row, and by seed at one position: both must be fair.
    let by_position = |draw: u32| (11_u64, draw);
    let by_seed = |draw: u32| (u64::from(draw), 5_u32);
    for key in [&by_position as &dyn Fn(u32) -> (u64, u32), &by_seed] {
        let mut counts = [0_u32; 9];
        for draw in 0..DRAWS {
            let (seed, position) = key(draw);
            let mut row = sampler(Sampling {
                temperature: 1.0,
                seed,
                ..Sampling::default()
            });
            row.chosen = position;
            counts[row.sample(&mut logits.clone()).unwrap().token as usize] += 1;
        }
        assert_eq!(counts[4], 0);
        let chi_square: f64 = counts
            .iter()
            .zip(&logits)
            .filter(|(_, logit)| logit.is_finite())
            .map(|(&count, &logit)| {
                let wanted = f64::from(DRAWS) * f64::from(logit).exp() / total;
                (f64::from(count) - wanted).powi(2) / wanted
            })
            .sum();
        assert!(chi_square < BOUND, "{chi_square}");
    }
}

#[test]
fn top_p_keeps_at_least_one_and_no_more_than_it_needs() {
    let kept = |top_p, logits: &[f32]| {
        let sampling = Sampling {
            temperature: 1.0,
            top_p,
            ..Sampling::default()
        };
        distribution(&sampling, logits)
            .iter()
            .map(|each| each.0)
            .collect::<Vec<_>>()
    };
    let logits = [0.1_f32.ln(), 0.6_f32.ln(), 0.3_f32.ln()];
    assert_eq!(kept(0.0, &logits), [1]);
    assert_eq!(kept(0.59, &logits), [1]);
    assert_eq!(kept(0.61, &logits), [1, 2]);
    assert_eq!(kept(0.95, &logits), [0, 1, 2]);
    // A flat distribution needs more than one sorted head.
    assert_eq!(kept(0.5, &[0.0; 3000]), (0..1500).collect::<Vec<_>>());
}
