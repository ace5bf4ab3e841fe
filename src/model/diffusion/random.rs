//! Noise as a function: of a seed, of what it is for, and of where in the latent it goes.
//!
//! A picture must not change with its batch mates, the number of threads or the device. So normal
//! numbers are not drawn from a shared generator but computed on the host: ChaCha with 8 rounds, keyed
//! by all that names a draw, gives 64-bit words; the Box-Muller transform in f64 turns each two of them
//! into two normal numbers, which are rounded to f32 at the very end.
//!
//! The logarithm, sine and cosine are the platform's. Where two platforms' differ it is in the last bit
//! of an f64, which the rounding to f32 hides but for about one number in 10^8.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// What noise is for. Draws for different purposes share nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NoiseUse {
    /// What a picture begins from; with an input picture, what is mixed into that one's latent.
    Initial,
    /// Fresh noise in this step, counted from the first of the whole schedule.
    Step(u32),
    /// The choice of a latent from the distribution that the VAE's encoder gives.
    Encode,
}

/// Sets this generator's keys apart from those of any other use of ChaCha here.
const DOMAIN: &[u8; 16] = b"girandole noise1";

/// Fills `values` with independent numbers of the normal distribution with mean 0 and variance 1.
///
/// Number `i` depends on `seed`, `purpose` and `i` alone: a longer slice begins with the same numbers.
pub fn fill(seed: u64, purpose: NoiseUse, values: &mut [f32]) {
    let mut random = generator(seed, purpose);
    let mut pairs = values.chunks_exact_mut(2);
    for pair in &mut pairs {
        (pair[0], pair[1]) = normal_pair(&mut random);
    }
    if let [last] = pairs.into_remainder() {
        (*last, _) = normal_pair(&mut random);
    }
}

fn generator(seed: u64, purpose: NoiseUse) -> ChaCha8Rng {
    let (kind, index) = match purpose {
        NoiseUse::Initial => (0u32, 0),
        NoiseUse::Step(index) => (1, index),
        NoiseUse::Encode => (2, 0),
    };
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..12].copy_from_slice(&kind.to_le_bytes());
    key[12..16].copy_from_slice(&index.to_le_bytes());
    key[16..].copy_from_slice(DOMAIN);
    ChaCha8Rng::from_seed(key)
}

/// Box and Muller, 1958 (doi 10.1214/aoms/1177706645).
fn normal_pair(random: &mut ChaCha8Rng) -> (f32, f32) {
    /// Steps between 0 and 1: an f64 holds each multiple of their size.
    const STEPS: f64 = (1u64 << 53) as f64;
    // From (0, 1]: the logarithm of 0 is none.
    let distance = ((random.next_u64() >> 11) + 1) as f64 / STEPS;
    let turn = (random.next_u64() >> 11) as f64 / STEPS;
    let radius = (-2.0 * distance.ln()).sqrt();
    let (sine, cosine) = (std::f64::consts::TAU * turn).sin_cos();
    ((radius * cosine) as f32, (radius * sine) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(seed: u64, purpose: NoiseUse, len: usize) -> Vec<f32> {
        let mut values = vec![f32::NAN; len];
        fill(seed, purpose, &mut values);
        values
    }

    /// These numbers are a promise: a seed draws the same picture in every release. Computed by a
    /// separate implementation of ChaCha.
    #[test]
    fn a_seed_keeps_its_numbers() {
        for (seed, purpose, expected) in [
            (
                0,
                NoiseUse::Initial,
                [-1.580_257_5, -0.308_089, -0.366_319_66, -0.217_195_26],
            ),
            (
                42,
                NoiseUse::Initial,
                [0.066_684_74, -0.657_351_73, -0.905_476_7, 0.719_540_2],
            ),
            (
                42,
                NoiseUse::Step(19),
                [-0.177_730_25, 1.102_680_6, 1.253_597_4, 1.181_243],
            ),
            (
                u64::MAX,
                NoiseUse::Encode,
                [0.813_996_26, 0.629_572_7, -1.986_751_4, -0.772_023_5],
            ),
        ] {
            assert_eq!(noise(seed, purpose, 4), expected, "{seed} {purpose:?}");
        }
        // Far into the stream.
        assert_eq!(noise(42, NoiseUse::Initial, 4096)[4095], 1.309_994);
    }

    #[test]
    fn a_longer_draw_begins_with_the_shorter() {
        let long = noise(7, NoiseUse::Step(3), 1001);
        for len in [0, 1, 2, 63, 64, 65, 1000] {
            assert_eq!(noise(7, NoiseUse::Step(3), len), long[..len]);
        }
    }

    #[test]
    fn moments_are_those_of_the_normal_distribution() {
        let count = 1_000_000;
        let values = noise(42, NoiseUse::Initial, count);
        let mut moments = [0.0f64; 5];
        for &value in &values {
            let value = f64::from(value);
            assert!(value.abs() < 8.6, "no f64 of 53 bits reaches further");
            for (power, moment) in moments.iter_mut().enumerate() {
                *moment += value.powi(power as i32) / count as f64;
            }
        }
        // Five standard deviations of each mean: sqrt(variance of the power / count).
        for (power, expected, variance) in
            [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)]
        {
            let bound = 5.0 * f64::sqrt(variance / count as f64);
            let error = (moments[power] - expected).abs();
            assert!(error < bound, "moment {power} is off by {error}");
        }
        let beyond = values
            .iter()
            .filter(|value| value.abs() > 1.959_964)
            .count();
        let share = beyond as f64 / count as f64;
        assert!(
            (share - 0.05).abs() < 5.0 * (0.05f64 * 0.95 / count as f64).sqrt(),
            "{share}"
        );
    }

    #[test]
    fn draws_with_different_names_are_independent() {
        let len = 100_000;
        let mut draws = Vec::new();
        for seed in [0, 1, 1 << 32, u64::MAX] {
            for purpose in [
                NoiseUse::Initial,
                NoiseUse::Step(0),
                NoiseUse::Step(1),
                NoiseUse::Encode,
            ] {
                draws.push(noise(seed, purpose, len));
            }
        }
        for (i, one) in draws.iter().enumerate() {
            let shifted = correlation(&one[1..], &one[..len - 1]);
            assert!(
                shifted.abs() < 5.0 / f64::sqrt(len as f64),
                "draw {i} with itself: {shifted}"
            );
            for (j, other) in draws.iter().enumerate().skip(i + 1) {
                let both = correlation(one, other);
                assert!(
                    both.abs() < 5.0 / f64::sqrt(len as f64),
                    "draws {i} and {j}: {both}"
                );
            }
        }
    }

    fn correlation(one: &[f32], other: &[f32]) -> f64 {
        let sum: f64 = one
            .iter()
            .zip(other)
            .map(|(&a, &b)| f64::from(a) * f64::from(b))
            .sum();
        sum / one.len() as f64
    }
}
