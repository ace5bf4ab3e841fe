//! Looking through a row of logits: as wide as the vocabulary, so it is worth vectors.

use super::isa::per_isa;
use super::math::exp;

/// Numbers looked at together.
const LANES: usize = 16;

/// The first of the largest, with its index. `None` when one is NaN or plus infinity, or none is finite.
pub fn best(logits: &[f32]) -> Option<(usize, f32)> {
    let mut found = Best::default();
    find_best(logits, &mut found);
    let is_finite = !found.is_wrong && found.largest > f32::NEG_INFINITY;
    is_finite.then_some((found.index, found.largest))
}

/// `weights[i] = e^((logits[i] - best) / temperature)`, at least 1e-38, but 0 for minus infinity; their sum. Of equal
/// length; no logit is above `best`.
pub fn weigh(logits: &[f32], best: f32, temperature: f32, weights: &mut [f32]) -> f64 {
    let mut total = 0.0;
    weigh_all(logits, best, temperature, weights, &mut total);
    total
}

/// A number that at least `count` of the logits reach, as large as a quick look can tell; none for few logits.
pub fn reached_by(logits: &[f32], count: usize) -> Option<f32> {
    // As many parts as it takes for the number to be near: each has one at its maximum.
    let parts = (8 * count).max(256);
    let part = logits.len() / parts;
    if part < LANES || count == 0 {
        return None;
    }
    let mut largest = vec![f32::NEG_INFINITY; logits.len().div_ceil(part)];
    find_largest_of_parts(logits, part, &mut largest);
    let (_, reached, _) = largest.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a));
    Some(*reached)
}

#[derive(Default)]
struct Best {
    index: usize,
    largest: f32,
    is_wrong: bool,
}

per_isa! {
    fn find_best(logits: &[f32], found: &mut Best) = find_best_body;
}

#[inline(always)]
fn find_best_body(logits: &[f32], found: &mut Best) {
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let mut largest = [f32::NEG_INFINITY; LANES];
    let mut wrong = [0u32; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            // Not a number, or plus infinity.
            wrong[lane] |= u32::from(chunk[lane].is_nan() | (chunk[lane] == f32::INFINITY));
            largest[lane] = if chunk[lane] > largest[lane] {
                chunk[lane]
            } else {
                largest[lane]
            };
        }
    }
    found.is_wrong = wrong.contains(&1)
        || rest
            .iter()
            .any(|logit| logit.is_nan() | (*logit == f32::INFINITY));
    found.largest = largest
        .iter()
        .chain(rest)
        .copied()
        .fold(f32::NEG_INFINITY, f32::max);
    let has_it = |chunk: &[f32; LANES]| {
        chunk
            .iter()
            .fold(false, |has_it, logit| has_it | (*logit == found.largest))
    };
    let start = chunks.iter().position(has_it).unwrap_or(chunks.len()) * LANES;
    let place = logits[start..]
        .iter()
        .position(|logit| *logit == found.largest);
    found.index = start + place.unwrap_or(0);
}

per_isa! {
    fn weigh_all(logits: &[f32], best: f32, temperature: f32, weights: &mut [f32], total: &mut f64) = weigh_all_body;
}

#[inline(always)]
fn weigh_all_body(
    logits: &[f32],
    best: f32,
    temperature: f32,
    weights: &mut [f32],
    total: &mut f64,
) {
    let weight = |logit: f32| {
        let power = exp((logit - best) / temperature);
        if logit == f32::NEG_INFINITY {
            0.0
        } else {
            power
        }
    };
    let mut lanes = [0f64; LANES];
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let (out, out_rest) = weights.as_chunks_mut::<LANES>();
    for (chunk, out) in chunks.iter().zip(out) {
        for lane in 0..LANES {
            out[lane] = weight(chunk[lane]);
            lanes[lane] += f64::from(out[lane]);
        }
    }
    for (logit, out) in rest.iter().zip(out_rest) {
        *out = weight(*logit);
        lanes[0] += f64::from(*out);
    }
    *total = lanes.iter().sum();
}

per_isa! {
    fn find_largest_of_parts(logits: &[f32], part: usize, largest: &mut [f32]) = find_largest_of_parts_body;
}

#[inline(always)]
fn find_largest_of_parts_body(logits: &[f32], part: usize, largest: &mut [f32]) {
    for (logits, largest) in logits.chunks(part).zip(largest) {
        let (chunks, rest) = logits.as_chunks::<LANES>();
        let mut lanes = [f32::NEG_INFINITY; LANES];
        for chunk in chunks {
            for lane in 0..LANES {
                lanes[lane] = if chunk[lane] > lanes[lane] {
                    chunk[lane]
                } else {
                    lanes[lane]
                };
            }
        }
        *largest = lanes
            .iter()
            .chain(rest)
            .copied()
            .fold(f32::NEG_INFINITY, f32::max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::isa::Isa;
    use crate::kernels::test_numbers::numbers;

    #[test]
    fn the_best_is_the_first_of_the_largest() {
        for len in [1, 15, 16, 17, 33, 1000, 4099] {
            let mut logits = numbers(len, len as u64);
            let plain = |logits: &[f32]| {
                let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                logits
                    .iter()
                    .position(|logit| *logit == largest)
                    .map(|index| (index, largest))
            };
            for found in Isa::for_each(|| best(&logits)) {
                assert_eq!(found, plain(&logits));
            }
            logits[len / 2] = 9.0;
            logits[len - 1] = 9.0;
            assert_eq!(best(&logits), Some((len / 2, 9.0)));
            for wrong in [f32::NAN, f32::INFINITY] {
                logits[len - 1] = wrong;
                assert!(
                    Isa::for_each(|| best(&logits)).iter().all(Option::is_none),
                    "{len}: {wrong}"
                );
            }
        }
        assert_eq!(best(&[f32::NEG_INFINITY; 40]), None);
        assert_eq!(best(&[]), None);
    }

    #[test]
    fn weights_are_powers_and_their_sum() {
        for len in [1, 16, 31, 5000] {
            let mut logits: Vec<f32> = numbers(len, 3).iter().map(|logit| 20.0 * logit).collect();
            logits[len / 2] = f32::NEG_INFINITY;
            let largest = 20.0;
            let all = Isa::for_each(|| {
                let mut weights = vec![f32::NAN; len];
                let total = weigh(&logits, largest, 0.7, &mut weights);
                (weights, total)
            });
            assert!(all.iter().all(|each| *each == all[0]));
            let (weights, total) = &all[0];
            assert_eq!(weights[len / 2], 0.0);
            for (weight, logit) in weights.iter().zip(&logits) {
                let expected = f64::from((logit - largest) / 0.7).exp();
                assert!((f64::from(*weight) - expected).abs() <= 1e-6 * expected + 1e-37);
            }
            let sum: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
            assert!((total - sum).abs() <= 1e-12 * sum);
        }
    }

    #[test]
    fn as_many_as_said_reach_the_bound() {
        for (len, count) in [(49_152, 1), (49_152, 50), (49_152, 190), (9_000, 3)] {
            let logits = numbers(len, 5);
            let bound = reached_by(&logits, count).expect("enough of them");
            let reaching = logits.iter().filter(|logit| **logit >= bound).count();
            assert!(
                reaching >= count && reaching < 4 * count + 200,
                "{len} {count}: {reaching}"
            );
        }
        assert_eq!(reached_by(&numbers(100, 1), 5), None);
        assert_eq!(reached_by(&numbers(49_152, 1), 40_000), None);
    }
}
