//! A small decoder for previews: `AutoencoderTiny` (TAESD), convolutions and nothing else.
//!
//! It takes latents as the UNet knows them and costs about an eighteenth of Stable Diffusion's own decoder (70 against
//! 1,260 giga-multiplications at 512 pixels squared).

use std::path::Path;

use candle_core::{DType, Device, Tensor, bail};
use serde_json::{Map, Value, json};

use super::super::config::fields::{Fields, read_object};
use super::super::config::{MAX_BLOCKS, MAX_LAYERS, MAX_WIDTH};
use super::super::layers::{SAME, compute_dtype, conv3x3};
use super::super::weights::{Scope, Weights};
use crate::kernels::image::{self, Conv2d};
use crate::model::ModelError;

/// Latents are squeezed smoothly into plus and minus this.
const LATENT_REACH: f64 = 3.0;

/// The shape of the decoder half of an `AutoencoderTiny`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TinyDecoderConfig {
    /// Channels of a latent.
    pub latent_channels: usize,
    /// Channels of every stage.
    pub channels: usize,
    /// Residual blocks of each stage, from the latent up.
    pub blocks: Vec<usize>,
}

impl TinyDecoderConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// Names the field that is hostile or not supported.
    pub fn parse(file: &str, object: &Map<String, Value>) -> Result<Self, ModelError> {
        let fields = Fields::new(file, object);
        fields.refuse_unless("_class_name", &[json!("AutoencoderTiny")])?;
        fields.refuse_unless("act_fn", &[json!("relu")])?;
        fields.refuse_unless("upsample_fn", &[json!("nearest")])?;
        fields.refuse_unless("upsampling_scaling_factor", &[json!(2)])?;
        fields.refuse_unless("scaling_factor", &[json!(1)])?;
        fields.refuse_unless("shift_factor", &[json!(0)])?;
        let or = |name: &str, default: &[usize]| match fields.value(name) {
            Some(_) => fields.needed_counts(name, MAX_BLOCKS, 1..=MAX_WIDTH),
            None => Ok(default.to_vec()),
        };
        let blocks = or("num_decoder_blocks", &[3, 3, 3, 1])?;
        if blocks.iter().any(|blocks| *blocks > MAX_LAYERS) {
            let what = format!("has more than {MAX_LAYERS} blocks in a stage");
            return Err(fields.error("num_decoder_blocks", &what));
        }
        let channels = or("decoder_block_out_channels", &vec![64; blocks.len()])?;
        // The layers between stages keep the number of channels.
        if channels.len() != blocks.len() || channels.iter().any(|c| *c != channels[0]) {
            let what = "must say the same number of channels for every stage of num_decoder_blocks";
            return Err(fields.error("decoder_block_out_channels", what));
        }
        fields.count("out_channels", 3, 3..=3)?;
        Ok(TinyDecoderConfig {
            latent_channels: fields.count("latent_channels", 4, 1..=256)?,
            channels: channels[0],
            blocks,
        })
    }

    /// Pixels along an edge of one latent.
    pub fn factor(&self) -> usize {
        1 << (self.blocks.len() - 1)
    }
}

/// Three convolutions, the input added, and what is below zero cut off.
struct Block {
    convolutions: [Conv2d; 3],
}

impl Block {
    fn load(scope: &Scope<'_>, channels: usize) -> Result<Self, ModelError> {
        // Between them stand activations, which have numbers but no weights.
        let conv = |at: usize| conv3x3(&scope.at("conv").at(at), channels, channels, SAME);
        Ok(Block {
            convolutions: [conv(0)?, conv(2)?, conv(4)?],
        })
    }

    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let [first, second, third] = &self.convolutions;
        let inner = second.forward(&first.forward(x)?.relu()?)?.relu()?;
        third.forward_add(&inner, x)?.relu()
    }
}

/// Blocks of one size, and the convolution that ends them, after doubling the size in all but the last.
struct Stage {
    blocks: Vec<Block>,
    conv: Conv2d,
}

/// A small decoder.
pub struct TinyDecoder {
    config: TinyDecoderConfig,
    conv_in: Conv2d,
    stages: Vec<Stage>,
    device: Device,
    dtype: DType,
}

impl TinyDecoder {
    /// Reads the folder of an `AutoencoderTiny`.
    ///
    /// # Errors
    /// Names the file, the field or the tensor that is missing or wrong.
    pub fn open(folder: &Path, dtype: Option<DType>, device: &Device) -> Result<Self, ModelError> {
        let path = folder.join("config.json");
        let config = TinyDecoderConfig::parse(&path.display().to_string(), &read_object(&path)?)?;
        Self::new(&config, &Weights::open(folder, dtype, device)?)
    }

    /// Builds the decoder from its weights.
    ///
    /// # Errors
    /// A tensor is missing or misshapen; named.
    pub fn new(config: &TinyDecoderConfig, weights: &Weights) -> Result<Self, ModelError> {
        // One list numbers everything: convolutions, blocks, activations, enlargements.
        let layers = weights.root().at("decoder").at("layers");
        let channels = config.channels;
        let first_bias = layers.tensor("0.bias", &[channels])?;
        let mut at = 2;
        let mut stages = Vec::with_capacity(config.blocks.len());
        for (index, &count) in config.blocks.iter().enumerate() {
            let is_last = index + 1 == config.blocks.len();
            let blocks = (at..at + count)
                .map(|at| Block::load(&layers.at(at), channels))
                .collect::<Result<_, _>>()?;
            at += count + usize::from(!is_last);
            let scope = layers.at(at);
            at += 1;
            let conv = match is_last {
                true => conv3x3(&scope, channels, 3, SAME)?,
                false => {
                    let weight = scope.tensor("weight", &[channels, channels, 3, 3])?;
                    Conv2d::new(weight, None, SAME)?
                }
            };
            stages.push(Stage { blocks, conv });
        }
        Ok(TinyDecoder {
            conv_in: conv3x3(&layers.at(0), config.latent_channels, channels, SAME)?,
            stages,
            device: weights.device().clone(),
            dtype: compute_dtype(weights.device(), first_bias.dtype()),
            config: config.clone(),
        })
    }

    /// Its shape.
    pub fn config(&self) -> &TinyDecoderConfig {
        &self.config
    }

    /// latents: (rows, h, w, latent channels) f32, as the UNet knows them -> (rows, f * h, f * w, 3) f32, about
    /// -1 to 1.
    ///
    /// # Errors
    /// Another shape, or the device is out of memory.
    pub fn decode(&self, latents: &Tensor) -> candle_core::Result<Tensor> {
        let (rows, height, width, channels) = latents.dims4()?;
        if rows * height * width == 0 || channels != self.config.latent_channels {
            bail!(
                "this decoder takes latents of {} channels, not of shape {:?}",
                self.config.latent_channels,
                latents.dims()
            );
        }
        let x = latents.to_device(&self.device)?.to_dtype(self.dtype)?;
        let x = ((x / LATENT_REACH)?.tanh()? * LATENT_REACH)?;
        let mut x = self.conv_in.forward(&x)?.relu()?;
        for (index, stage) in self.stages.iter().enumerate() {
            for block in &stage.blocks {
                x = block.forward(&x)?;
            }
            if index + 1 < self.stages.len() {
                x = image::upsample_nearest_2x(&x)?;
            }
            x = stage.conv.forward(&x)?;
        }
        x.to_dtype(DType::F32)?.affine(2.0, -1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_fields_are_errors_that_name_them() {
        let parse = |value: Value| {
            TinyDecoderConfig::parse("config.json", value.as_object().expect("an object"))
        };
        let taesd = parse(json!({"_class_name": "AutoencoderTiny"})).expect("all by default");
        assert_eq!((taesd.channels, taesd.factor()), (64, 8));
        for (field, value) in [
            ("_class_name", json!("AutoencoderKL")),
            ("act_fn", json!("silu")),
            ("num_decoder_blocks", json!([])),
            ("num_decoder_blocks", json!([1, 50_000])),
            ("decoder_block_out_channels", json!([64, 64, 64, 32])),
            ("decoder_block_out_channels", json!([0, 0, 0, 0])),
            ("upsampling_scaling_factor", json!(3)),
            ("latent_channels", json!(0)),
        ] {
            let error = parse(json!({ field: value })).expect_err(field).to_string();
            assert!(error.contains(field), "{error}");
        }
    }
}
