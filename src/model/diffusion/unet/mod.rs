//! The conditional UNet of Stable Diffusion 1, 2 and XL, with a timestep for every row.
//!
//! Rows of any requests at any timesteps share a pass, and on the CPU a row's result does not depend on its
//! company. Sizes are free: an odd one is rounded up going down and met again going up.

mod attention;
mod blocks;
pub mod recorded;
pub(super) mod resnet;

use candle_core::{DType, Device, Tensor, bail};

use super::config::unet::UNetConfig;
use super::layers::{SAME, compute_dtype, conv3x3, group_norm};
use super::time_embedding::{AddedConditions, TimeEmbedding, TimeInputs};
use super::weights::Weights;
use crate::kernels::image::{self, Conv2d, GroupNorm};
use crate::model::ModelError;
use blocks::{Conditions, DownBlock, MidBlock, UpBlock};

/// A conditional UNet.
pub struct UNet {
    config: UNetConfig,
    time: TimeEmbedding,
    conv_in: Conv2d,
    down: Vec<DownBlock>,
    mid: Option<MidBlock>,
    up: Vec<UpBlock>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
    device: Device,
    dtype: DType,
}

/// What the rows of a pass are conditioned on.
#[derive(Clone, Copy, Debug)]
pub struct UNetConditions<'a> {
    /// One for each row.
    pub timesteps: &'a [f64],
    /// (rows, tokens, c) f32: text states.
    pub context: &'a Tensor,
    /// For SDXL.
    pub added: Option<AddedConditions<'a>>,
    /// The guidance scale minus 1, one for each row: for models that were trained with it (LCM).
    pub guidance: Option<&'a [f64]>,
}

/// What a pass is computed from, as it lies on the device: all that changes from step to step.
#[derive(Clone, Debug)]
pub struct UNetInputs {
    /// (rows, h, w, in)
    x: Tensor,
    time: TimeInputs,
    /// (rows, tokens, c)
    context: Tensor,
}

impl UNetInputs {
    /// All of them, in an order that depends on the model only. The first edge of each is the rows.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        [&self.x, &self.context]
            .into_iter()
            .chain(self.time.tensors())
    }

    /// The same numbers in memory of their own.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn copy(&self) -> candle_core::Result<Self> {
        Ok(UNetInputs {
            x: self.x.force_contiguous()?,
            time: self.time.copy()?,
            context: self.context.force_contiguous()?,
        })
    }
}

impl UNet {
    /// Builds the UNet from its weights.
    ///
    /// # Errors
    /// A tensor is missing or misshapen; named.
    pub fn new(config: &UNetConfig, weights: &Weights) -> Result<Self, ModelError> {
        let root = weights.root();
        let (first, count) = (config.levels[0].channels, config.levels.len());
        let conv_in_weight = root.tensor("conv_in.weight", &[first, config.in_channels, 3, 3])?;
        let dtype = compute_dtype(weights.device(), conv_in_weight.dtype());
        let down = (0..count)
            .map(|level| DownBlock::load(&root.at("down_blocks").at(level), config, level))
            .collect::<Result<_, _>>()?;
        let mid = match config.has_mid_block {
            true => Some(MidBlock::load(&root.at("mid_block"), config)?),
            false => None,
        };
        let up = (0..count)
            .map(|block| {
                let level = count - 1 - block;
                UpBlock::load(&root.at("up_blocks").at(block), config, level)
            })
            .collect::<Result<_, _>>()?;
        let unet = UNet {
            time: TimeEmbedding::new(config, &root)?,
            conv_in: conv3x3(&root.at("conv_in"), config.in_channels, first, SAME)?,
            down,
            mid,
            up,
            norm_out: group_norm(
                &root.at("conv_norm_out"),
                first,
                config.norm_num_groups,
                config.norm_eps,
            )?,
            conv_out: conv3x3(&root.at("conv_out"), first, config.out_channels, SAME)?,
            config: config.clone(),
            device: weights.device().clone(),
            dtype,
        };
        weights.log_unused();
        Ok(unet)
    }

    /// Its shape.
    pub fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// The time embedding alone.
    pub fn time_embedding(&self) -> &TimeEmbedding {
        &self.time
    }

    /// x: (rows, h, w, in) f32, scaled as the schedule says -> (rows, h, w, out) f32, the prediction.
    ///
    /// # Errors
    /// Rows differ in number, or a condition has the wrong shape.
    pub fn forward(
        &self,
        x: &Tensor,
        conditions: UNetConditions<'_>,
    ) -> candle_core::Result<Tensor> {
        self.run(&self.inputs(x, conditions)?)
    }

    /// Puts together what a pass is computed from, on the device; as [`forward`](Self::forward) takes it.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn inputs(
        &self,
        x: &Tensor,
        conditions: UNetConditions<'_>,
    ) -> candle_core::Result<UNetInputs> {
        self.check(x, &conditions)?;
        let on_device = |tensor: &Tensor| tensor.to_device(&self.device)?.to_dtype(self.dtype);
        Ok(UNetInputs {
            x: on_device(x)?,
            time: self
                .time
                .inputs(conditions.timesteps, conditions.guidance, conditions.added)?,
            context: on_device(conditions.context)?,
        })
    }

    /// inputs: of this UNet -> (rows, h, w, out) f32, the prediction. Takes all that may change from `inputs`, so that it
    /// can be recorded.
    ///
    /// # Errors
    /// What the device reports, memory above all.
    pub fn run(&self, inputs: &UNetInputs) -> candle_core::Result<Tensor> {
        let time = self.time.embed(&inputs.time)?;
        // Every residual block begins with this SiLU.
        let time = image::silu(&time)?.to_dtype(self.dtype)?;
        let conditions = Conditions {
            time: &time,
            context: &inputs.context,
        };
        let mut x = self.conv_in.forward(&inputs.x)?;
        let mut skips = vec![x.clone()];
        for block in &self.down {
            x = block.forward(x, conditions, &mut skips)?;
        }
        if let Some(mid) = &self.mid {
            x = mid.forward(&x, conditions)?;
        }
        for block in &self.up {
            x = block.forward(x, conditions, &mut skips)?;
        }
        let x = self.conv_out.forward(&self.norm_out.forward_silu(&x)?)?;
        x.to_dtype(DType::F32)
    }

    fn check(&self, x: &Tensor, conditions: &UNetConditions<'_>) -> candle_core::Result<()> {
        let (rows, height, width, channels) = x.dims4()?;
        if rows == 0 || height == 0 || width == 0 || channels != self.config.in_channels {
            bail!(
                "this unet takes latents of {} channels, not of shape {:?}",
                self.config.in_channels,
                x.dims()
            );
        }
        if conditions.timesteps.len() != rows {
            bail!("{} timesteps for {rows} rows", conditions.timesteps.len());
        }
        let (context_rows, tokens, dim) = conditions.context.dims3()?;
        if context_rows != rows || tokens == 0 || dim != self.config.cross_attention_dim {
            bail!(
                "this unet takes text states of width {} for each of {rows} rows, not of shape {:?}",
                self.config.cross_attention_dim,
                conditions.context.dims()
            );
        }
        Ok(())
    }
}
