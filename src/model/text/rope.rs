//! Rotary position embeddings: frequencies, their scalings for long contexts, and the tables of
//! cosines and sines that the decoder looks up by position.
//!
//! One convention only: element `i` of a head pairs with element `i + rotary_dim / 2`. Files that
//! interleave the pairs are put in this order when they are loaded.

use std::f32::consts::PI;

use candle_core::{Device, Tensor};

use super::config::ConfigError;

/// A rotary embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// The base of the frequencies (`rope_theta`).
    pub base: f32,
    /// How much of each head is turned, from its start; even.
    pub rotary_dim: usize,
    /// How it is stretched.
    pub scaling: RopeScaling,
}

/// How frequencies are changed to reach further than the model was first trained for.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency divided by one factor.
    Linear {
        /// The factor.
        factor: f32,
    },
    /// Llama 3.1's: low frequencies divided, high ones kept, a smooth change between.
    Llama3 {
        /// Divides the low frequencies.
        factor: f32,
        /// Wavelengths above `original_context / low_freq_factor` are low frequencies.
        low_freq_factor: f32,
        /// Wavelengths below `original_context / high_freq_factor` are high frequencies.
        high_freq_factor: f32,
        /// Positions before stretching.
        original_context: f32,
    },
    /// YaRN (arXiv 2309.00071).
    Yarn {
        /// How much longer the context became.
        factor: f32,
        /// Positions before stretching.
        original_context: f32,
        /// Rotations above which a frequency is kept.
        beta_fast: f32,
        /// Rotations below which it is divided.
        beta_slow: f32,
        /// Multiplies cosines and sines.
        attention_factor: f32,
    },
    /// LongRoPE (Phi-3): each frequency divided by its own factor, of which there are two sets. Which
    /// one applies depends on how far the server lets rows grow, not on the row, so that a row's
    /// output does not depend on its company or change its past when it crosses the border.
    Long {
        /// For contexts up to `original_context`.
        short: Vec<f32>,
        /// For longer ones.
        long: Vec<f32>,
        /// Positions before stretching.
        original_context: usize,
        /// Multiplies cosines and sines.
        attention_factor: f32,
    },
    /// Each frequency divided by its own factor (GGUF's `rope_freqs.weight`).
    Factors(Vec<f32>),
}

impl RopeConfig {
    /// A rotary embedding over whole heads, not stretched.
    pub fn plain(base: f32, head_dim: usize) -> Self {
        RopeConfig {
            base,
            rotary_dim: head_dim,
            scaling: RopeScaling::None,
        }
    }

    /// Checks it against the width of a head.
    ///
    /// # Errors
    /// Names what does not fit.
    pub fn validate(&self, head_dim: usize) -> Result<(), ConfigError> {
        if !(self.base.is_finite() && self.base > 1.0) {
            return Err(ConfigError(format!(
                "the rope base is {}; it must be above 1",
                self.base
            )));
        }
        if self.rotary_dim == 0 || self.rotary_dim > head_dim || !self.rotary_dim.is_multiple_of(2)
        {
            return Err(ConfigError(format!(
                "rope turns {} elements of heads that are {head_dim} wide; it must be an even number \
                 up to that",
                self.rotary_dim
            )));
        }
        let expect = self.rotary_dim / 2;
        let check_factors = |name: &str, factors: &[f32]| {
            let usable = factors.iter().all(|f| f.is_finite() && *f > 0.0);
            if factors.len() == expect && usable {
                return Ok(());
            }
            Err(ConfigError(format!(
                "{name} has {} values; expected {expect}, all above 0",
                factors.len()
            )))
        };
        match &self.scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } => check_factor(*factor),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                ..
            } => {
                check_factor(*factor)?;
                if low_freq_factor < high_freq_factor {
                    return Ok(());
                }
                Err(ConfigError(format!(
                    "rope's low_freq_factor {low_freq_factor} must be below its high_freq_factor \
                     {high_freq_factor}"
                )))
            }
            RopeScaling::Yarn { factor, .. } => check_factor(*factor),
            RopeScaling::Long { short, long, .. } => {
                check_factors("rope's short_factor", short)?;
                check_factors("rope's long_factor", long)
            }
            RopeScaling::Factors(factors) => check_factors("rope_freqs", factors),
        }
    }

    /// Radians per position: `(rotary_dim / 2,)`. `served_context` is how far rows may grow.
    pub fn frequencies(&self, served_context: usize) -> Vec<f32> {
        let dim = self.rotary_dim as f32;
        let plain = (0..self.rotary_dim / 2).map(|i| 1.0 / self.base.powf(2.0 * i as f32 / dim));
        match &self.scaling {
            RopeScaling::None => plain.collect(),
            RopeScaling::Linear { factor } => plain.map(|f| f / factor).collect(),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            } => plain
                .map(|frequency| {
                    let wavelengths = original_context * frequency / (2.0 * PI);
                    let kept =
                        (wavelengths - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    mix(frequency / factor, frequency, kept.clamp(0.0, 1.0))
                })
                .collect(),
            RopeScaling::Yarn {
                factor,
                original_context,
                beta_fast,
                beta_slow,
                ..
            } => {
                let index_of = |rotations: f32| {
                    dim * (original_context / (rotations * 2.0 * PI)).ln() / (2.0 * self.base.ln())
                };
                let low = index_of(*beta_fast).floor().max(0.0);
                let mut high = index_of(*beta_slow).ceil().min(dim - 1.0);
                if high == low {
                    high += 0.001;
                }
                plain
                    .enumerate()
                    .map(|(i, frequency)| {
                        let divided = ((i as f32 - low) / (high - low)).clamp(0.0, 1.0);
                        mix(frequency, frequency / factor, divided)
                    })
                    .collect()
            }
            RopeScaling::Long {
                short,
                long,
                original_context,
                ..
            } => {
                let factors = if served_context > *original_context {
                    long
                } else {
                    short
                };
                plain.zip(factors).map(|(f, by)| f / by).collect()
            }
            RopeScaling::Factors(factors) => plain.zip(factors).map(|(f, by)| f / by).collect(),
        }
    }

    /// What cosines and sines are multiplied by.
    pub fn attention_factor(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn {
                attention_factor, ..
            }
            | RopeScaling::Long {
                attention_factor, ..
            } => attention_factor,
            _ => 1.0,
        }
    }
}

fn check_factor(factor: f32) -> Result<(), ConfigError> {
    if factor.is_finite() && factor >= 1.0 {
        return Ok(());
    }
    Err(ConfigError(format!(
        "rope's factor is {factor}; it must be at least 1"
    )))
}

/// `from` at 0, `to` at 1.
fn mix(from: f32, to: f32, share: f32) -> f32 {
    from * (1.0 - share) + to * share
}

/// Cosines and sines by position.
pub struct RopeTable {
    /// `(positions, rotary_dim / 2), f32`
    pub cos: Tensor,
    /// `(positions, rotary_dim / 2), f32`
    pub sin: Tensor,
}

impl RopeTable {
    /// For positions `0..positions`.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn new(rope: &RopeConfig, positions: usize, device: &Device) -> candle_core::Result<Self> {
        let frequencies = rope.frequencies(positions);
        let scale = rope.attention_factor();
        let angles = || {
            (0..positions).flat_map(|position| frequencies.iter().map(move |f| position as f32 * f))
        };
        let shape = (positions, frequencies.len());
        let cos: Vec<f32> = angles().map(|angle| angle.cos() * scale).collect();
        let sin: Vec<f32> = angles().map(|angle| angle.sin() * scale).collect();
        Ok(RopeTable {
            cos: Tensor::from_vec(cos, shape, device)?,
            sin: Tensor::from_vec(sin, shape, device)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama_3_keeps_high_frequencies_and_divides_low_ones() {
        let rope = RopeConfig {
            base: 500_000.0,
            rotary_dim: 128,
            scaling: RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_context: 8192.0,
            },
        };
        let plain = RopeConfig::plain(500_000.0, 128).frequencies(8192);
        let scaled = rope.frequencies(8192);
        assert_eq!(scaled[0], plain[0]);
        assert_eq!(scaled[63], plain[63] / 8.0);
        let between = scaled
            .iter()
            .zip(&plain)
            .filter(|(s, p)| **s < **p && **s > **p / 8.0 * 1.0001)
            .count();
        assert!(between > 3, "a smooth change, not a step: {between}");
    }

    #[test]
    fn long_factors_apply_beyond_the_original_context_only() {
        let rope = RopeConfig {
            base: 10_000.0,
            rotary_dim: 4,
            scaling: RopeScaling::Long {
                short: vec![1.0, 1.0],
                long: vec![2.0, 4.0],
                original_context: 64,
                attention_factor: 1.5,
            },
        };
        let plain = RopeConfig::plain(10_000.0, 4).frequencies(64);
        assert_eq!(rope.frequencies(64), plain);
        assert_eq!(rope.frequencies(65), [plain[0] / 2.0, plain[1] / 4.0]);
        assert!(rope.validate(2).is_err(), "wider than the head");
        assert!(rope.validate(4).is_ok());
    }
}
