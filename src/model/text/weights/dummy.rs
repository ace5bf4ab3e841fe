//! Weights drawn from a seed: a model of any shape with no files, for capacity work and tests.
//!
//! A tensor's values depend on the seed and its name only, not on the device or the order of loading.
//! They are scaled so that activations stay near 1 and logits finite, and generated in the dtype that is
//! asked for: a counter-based generator gives eight of 256 levels a draw, filled in parallel.

use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16};
use rayon::prelude::*;

use super::{Weight, WeightSource};
use crate::model::ModelError;
use crate::model::text::config::DecoderConfig;
use crate::model::text::names::{Naming, Place};

/// Values that one task fills; a multiple of [`LEVELS_PER_DRAW`].
const VALUES_PER_TASK: usize = 1 << 16;
/// Values that one 64-bit draw gives.
const LEVELS_PER_DRAW: usize = 8;
/// Half the width of the range that biases are drawn from.
const BIAS_REACH: f32 = 0.05;

/// Hands out random weights.
pub struct DummyWeights {
    seed: u64,
    norm_weight: f32,
    dtype: DType,
    device: Device,
}

impl DummyWeights {
    /// For a decoder of this shape.
    pub fn new(config: &DecoderConfig, seed: u64, dtype: DType, device: &Device) -> Self {
        DummyWeights {
            seed,
            norm_weight: if config.norm_offset { 0.0 } else { 1.0 },
            dtype,
            device: device.clone(),
        }
    }

    fn tensor<T: WithDType>(
        &self,
        name: &str,
        shape: (usize, usize),
        reach: f32,
        convert: impl Fn(f32) -> T,
    ) -> Result<Tensor, ModelError> {
        let values = random_values(self.key(name), shape.0 * shape.1, &levels(reach, convert));
        Ok(Tensor::from_vec(values, shape, &self.device)?)
    }

    fn key(&self, name: &str) -> u64 {
        tensor_key(self.seed, name)
    }
}

impl WeightSource for DummyWeights {
    fn naming(&self) -> Naming {
        Naming::HuggingFace
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn matrix(&mut self, place: &Place) -> Result<Weight, ModelError> {
        let shape = (place.rows, place.columns);
        // A uniform range of this reach has the deviation 1 / sqrt(columns), so a row's product with
        // a normed vector is near 1. Parts of a fused tensor share its name, not its values.
        let reach = (3.0 / place.columns as f32).sqrt();
        let name = format!("{}[{}]", place.weight(), place.first_row);
        let tensor = match self.dtype {
            DType::F32 => self.tensor(&name, shape, reach, |value| value)?,
            DType::F16 => self.tensor(&name, shape, reach, f16::from_f32)?,
            DType::BF16 => self.tensor(&name, shape, reach, bf16::from_f32)?,
            other => {
                return Err(ModelError::Load(format!(
                    "random weights in {other:?} are not supported; supported are f32, f16, bf16"
                )));
            }
        };
        Ok(Weight::Dense(tensor))
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        if name.ends_with("norm.weight") {
            return Ok(vec![self.norm_weight; len]);
        }
        let levels = levels(BIAS_REACH, |value| value);
        Ok(random_values(self.key(name), len, &levels))
    }

    fn finish(&self, _config: &DecoderConfig) -> Result<(), ModelError> {
        Ok(())
    }
}

/// The tensor's own seed (FNV-1a over the name, mixed with the model's seed).
pub(crate) fn tensor_key(seed: u64, name: &str) -> u64 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    mix(hash ^ mix(seed))
}

/// 256 values spread evenly and symmetrically over ± `reach`.
pub(crate) fn levels<T>(reach: f32, convert: impl Fn(f32) -> T) -> [T; 256] {
    std::array::from_fn(|level| convert((level as f32 - 127.5) / 127.5 * reach))
}

/// `count` of these levels, drawn by `key` and place.
pub(crate) fn random_values<T: Copy + Send + Sync>(
    key: u64,
    count: usize,
    levels: &[T; 256],
) -> Vec<T> {
    let mut values = vec![levels[0]; count];
    values
        .par_chunks_mut(VALUES_PER_TASK)
        .enumerate()
        .for_each(|(task, values)| {
            let first_draw = (task * VALUES_PER_TASK / LEVELS_PER_DRAW) as u64;
            for (draw, values) in values.chunks_mut(LEVELS_PER_DRAW).enumerate() {
                let counter = first_draw + draw as u64;
                let bytes = mix(key.wrapping_add(counter.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
                for (value, level) in values.iter_mut().zip(bytes.to_le_bytes()) {
                    *value = levels[usize::from(level)];
                }
            }
        });
    values
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_depend_on_seed_and_name_only() {
        let levels = levels(1.0, |value| value);
        let long = random_values(7, VALUES_PER_TASK + 100, &levels);
        let short = random_values(7, 100, &levels);
        assert_eq!(long[..100], short[..], "the length changes nothing");
        assert_ne!(random_values(8, 100, &levels), short);
        assert_ne!(
            long[VALUES_PER_TASK..][..100],
            short[..],
            "tasks do not repeat each other"
        );
        let mean = long.iter().sum::<f32>() / long.len() as f32;
        assert!(mean.abs() < 0.02, "{mean}");
    }
}
