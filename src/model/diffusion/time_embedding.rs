//! Timesteps, guidance scales and picture sizes as vectors of sines and cosines, a number for each row.
//!
//! Always in f32: half-precision numbers cannot tell 999 from 1000. Frequencies are rounded to f32 at the places
//! where diffusers rounds them, since models were trained on those.

use candle_core::{Device, Tensor, bail};

use super::config::unet::{AddedEmbedding, SIZE_IDS, UNetConfig};
use super::layers::{Embedder, linear_f32};
use super::weights::Scope;
use crate::kernels::image;
use crate::kernels::linear::Linear;
use crate::model::ModelError;

/// The slowest wave is this many times as long as the fastest.
const MAX_PERIOD: f32 = 10_000.0;
/// A guidance scale is multiplied by this before it becomes waves (arXiv 2310.04378).
const GUIDANCE_FACTOR: f32 = 1000.0;

/// How a number becomes waves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sinusoids {
    /// Values for each number. Even.
    pub width: usize,
    /// Cosines before sines.
    pub flip_sin_to_cos: bool,
    /// Taken off the number of frequencies in their exponent.
    pub freq_shift: f32,
}

impl Sinusoids {
    /// Appends a number's waves: `width` values. An odd last one is 0.
    pub fn append(&self, number: f32, values: &mut Vec<f32>) {
        let half = self.width / 2;
        let start = values.len();
        values.resize(start + self.width, 0.0);
        let (first, rest) = values[start..].split_at_mut(half);
        let second = &mut rest[..half];
        let (sines, cosines) = match self.flip_sin_to_cos {
            true => (second, first),
            false => (first, second),
        };
        for (index, (sine, cosine)) in sines.iter_mut().zip(cosines).enumerate() {
            let exponent = -MAX_PERIOD.ln() * index as f32 / (half as f32 - self.freq_shift);
            // Products and powers in f32, the wave itself exactly.
            let angle = f64::from(number * exponent.exp());
            *sine = angle.sin() as f32;
            *cosine = angle.cos() as f32;
        }
    }

    /// numbers: one for each row -> (rows, width) f32.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn embed(&self, numbers: &[f64], device: &Device) -> candle_core::Result<Tensor> {
        let mut values = Vec::with_capacity(numbers.len() * self.width);
        for number in numbers {
            self.append(*number as f32, &mut values);
        }
        Tensor::from_vec(values, (numbers.len(), self.width), device)
    }
}

/// SDXL's second conditioning of a pass.
#[derive(Clone, Copy, Debug)]
pub struct AddedConditions<'a> {
    /// (rows, p) f32: the pooled text states.
    pub pooled: &'a Tensor,
    /// For each row: original height and width, crop top and left, target height and width, in pixels.
    pub size_ids: &'a [[f64; SIZE_IDS]],
}

/// The numbers of a pass as waves: what changes from step to step.
#[derive(Clone, Debug)]
pub struct TimeInputs {
    /// (rows, width) f32
    timesteps: Tensor,
    /// (rows, width) f32: of models that were trained with a guidance scale.
    guidance: Option<Tensor>,
    /// (rows, pooled and sizes) f32: for SDXL.
    added: Option<Tensor>,
}

impl TimeInputs {
    /// The same numbers in memory of their own.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn copy(&self) -> candle_core::Result<Self> {
        let copied =
            |tensor: &Option<Tensor>| tensor.as_ref().map(Tensor::force_contiguous).transpose();
        Ok(TimeInputs {
            timesteps: self.timesteps.force_contiguous()?,
            guidance: copied(&self.guidance)?,
            added: copied(&self.added)?,
        })
    }

    /// All of them, in an order that depends on the model only.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let some = [self.guidance.as_ref(), self.added.as_ref()];
        std::iter::once(&self.timesteps).chain(some.into_iter().flatten())
    }
}

/// What conditions every residual block of a UNet: the row's timestep, and for some models its guidance scale,
/// pooled text and picture size.
pub struct TimeEmbedding {
    sinusoids: Sinusoids,
    mlp: Embedder,
    guidance: Option<(Sinusoids, Linear)>,
    added: Option<(AddedEmbedding, Embedder)>,
    device: Device,
}

impl TimeEmbedding {
    /// Builds the embedding from the UNet's weights.
    ///
    /// # Errors
    /// A tensor is missing or misshapen; named.
    pub fn new(config: &UNetConfig, scope: &Scope<'_>) -> Result<Self, ModelError> {
        let (width, output) = (config.levels[0].channels, config.time_embedding_dim);
        let time = scope.at("time_embedding");
        let guidance = match config.time_cond_proj_dim {
            Some(dim) => {
                let sinusoids = Sinusoids {
                    width: dim,
                    flip_sin_to_cos: false,
                    freq_shift: 1.0,
                };
                Some((
                    sinusoids,
                    linear_f32(&time.at("cond_proj"), dim, width, false)?,
                ))
            }
            None => None,
        };
        let added = match config.added {
            Some(added) => {
                let width = added.pooled_dim + SIZE_IDS * added.time_embed_dim;
                Some((
                    added,
                    Embedder::load(&scope.at("add_embedding"), width, output)?,
                ))
            }
            None => None,
        };
        Ok(TimeEmbedding {
            sinusoids: Sinusoids {
                width,
                flip_sin_to_cos: config.flip_sin_to_cos,
                freq_shift: config.freq_shift as f32,
            },
            mlp: Embedder::load(&time, width, output)?,
            guidance,
            added,
            device: scope.device().clone(),
        })
    }

    /// timesteps: one for each row. guidance: one for each row of a model that was trained with it, the scale
    /// minus 1; ignored by others. added: for SDXL. -> (rows, time_embedding_dim) f32.
    ///
    /// # Errors
    /// Conditions that the model needs are missing, that it has no use for are given, or rows differ in number.
    pub fn forward(
        &self,
        timesteps: &[f64],
        guidance: Option<&[f64]>,
        added: Option<AddedConditions<'_>>,
    ) -> candle_core::Result<Tensor> {
        self.embed(&self.inputs(timesteps, guidance, added)?)
    }

    /// The numbers of a pass, made ready on the device. As [`forward`](Self::forward) takes them.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn inputs(
        &self,
        timesteps: &[f64],
        guidance: Option<&[f64]>,
        added: Option<AddedConditions<'_>>,
    ) -> candle_core::Result<TimeInputs> {
        let rows = timesteps.len();
        let mut waves_of_guidance = None;
        if let Some((sinusoids, _)) = &self.guidance {
            let Some(guidance) = guidance.filter(|guidance| guidance.len() == rows) else {
                bail!("this unet needs a guidance scale for each of {rows} rows");
            };
            let mut values = Vec::with_capacity(rows * sinusoids.width);
            for scale in guidance {
                sinusoids.append(*scale as f32 * GUIDANCE_FACTOR, &mut values);
            }
            let waves = Tensor::from_vec(values, (rows, sinusoids.width), &self.device)?;
            waves_of_guidance = Some(waves);
        }
        let added = match (&self.added, added) {
            (None, None) => None,
            (None, Some(_)) => bail!("this unet takes no pooled text and no picture sizes"),
            (Some(_), None) => bail!("this unet needs pooled text and picture sizes"),
            (Some((config, _)), Some(added)) => Some(self.added_input(*config, added, rows)?),
        };
        Ok(TimeInputs {
            timesteps: self.sinusoids.embed(timesteps, &self.device)?,
            guidance: waves_of_guidance,
            added,
        })
    }

    /// inputs: of this embedding -> (rows, time_embedding_dim) f32.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn embed(&self, inputs: &TimeInputs) -> candle_core::Result<Tensor> {
        let x = match (&self.guidance, &inputs.guidance) {
            (Some((_, projection)), Some(waves)) => {
                projection.forward_add(waves, &inputs.timesteps)?
            }
            _ => inputs.timesteps.clone(),
        };
        let embedding = self.mlp.forward(&x)?;
        match (&self.added, &inputs.added) {
            (Some((_, mlp)), Some(added)) => image::add(&embedding, &mlp.forward(added)?),
            _ => Ok(embedding),
        }
    }

    /// (rows, p + 6 * time_embed_dim) f32
    fn added_input(
        &self,
        config: AddedEmbedding,
        added: AddedConditions<'_>,
        rows: usize,
    ) -> candle_core::Result<Tensor> {
        if added.pooled.dims() != [rows, config.pooled_dim] || added.size_ids.len() != rows {
            bail!(
                "this unet needs pooled text of shape {:?} and as many picture sizes, not {:?} and {}",
                (rows, config.pooled_dim),
                added.pooled.dims(),
                added.size_ids.len()
            );
        }
        let sinusoids = Sinusoids {
            width: config.time_embed_dim,
            ..self.sinusoids
        };
        let waves = sinusoids
            .embed(added.size_ids.as_flattened(), &self.device)?
            .reshape((rows, SIZE_IDS * config.time_embed_dim))?;
        let pooled = added.pooled.to_dtype(candle_core::DType::F32)?;
        Tensor::cat(&[&pooled, &waves], 1)?.contiguous()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_5_neighbouring_timesteps_differ() {
        let sinusoids = Sinusoids {
            width: 320,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
        };
        let embed = |number| {
            let mut values = Vec::new();
            sinusoids.append(number, &mut values);
            values
        };
        let (late, later) = (embed(998.0), embed(999.0));
        assert!((late[0] - 998f64.cos() as f32).abs() < 1e-7);
        assert!((later[160] - 999f64.sin() as f32).abs() < 1e-7);
        let apart = late.iter().zip(&later).map(|(a, b)| (a - b).abs());
        assert!(apart.fold(0.0, f32::max) > 0.5);
    }
}
