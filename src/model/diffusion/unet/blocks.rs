//! The levels of a UNet: going down, at the bottom, going up.

use candle_core::Tensor;

use super::attention::{Transformer, TransformerShape};
use super::resnet::{Resnet, ResnetShape};
use crate::kernels::image::{self, Conv2d};
use crate::model::ModelError;
use crate::model::diffusion::config::unet::{UNetConfig, UNetLevel};
use crate::model::diffusion::layers::{HALVE, SAME, conv3x3};
use crate::model::diffusion::weights::Scope;

/// What every block of a pass sees.
#[derive(Clone, Copy)]
pub(super) struct Conditions<'a> {
    /// (rows, t): the time embedding after its SiLU.
    pub(super) time: &'a Tensor,
    /// (rows, tokens, d): text states.
    pub(super) context: &'a Tensor,
}

/// A residual block, and the transformer behind it where the level attends.
struct Unit {
    resnet: Resnet,
    transformer: Option<Transformer>,
}

impl Unit {
    /// Number `layer` of a level's units, with so many transformer layers.
    fn load(
        scope: &Scope<'_>,
        config: &UNetConfig,
        level: &UNetLevel,
        layer: usize,
        channels_in: usize,
        transformers: usize,
    ) -> Result<Self, ModelError> {
        let shape = resnet_shape(config, channels_in, level.channels);
        let attention = scope.at("attentions").at(layer);
        Ok(Unit {
            resnet: Resnet::load(&scope.at("resnets").at(layer), shape)?,
            transformer: transformer(&attention, config, level, transformers)?,
        })
    }

    fn forward(&self, x: &Tensor, conditions: Conditions<'_>) -> candle_core::Result<Tensor> {
        let x = self.resnet.forward(x, Some(conditions.time))?;
        match &self.transformer {
            Some(transformer) => transformer.forward(&x, conditions.context),
            None => Ok(x),
        }
    }
}

fn resnet_shape(config: &UNetConfig, channels_in: usize, channels_out: usize) -> ResnetShape {
    ResnetShape {
        channels_in,
        channels_out,
        time: Some(config.time_embedding_dim),
        groups: config.norm_num_groups,
        eps: config.norm_eps,
    }
}

fn transformer(
    scope: &Scope<'_>,
    config: &UNetConfig,
    level: &UNetLevel,
    layers: usize,
) -> Result<Option<Transformer>, ModelError> {
    if layers == 0 {
        return Ok(None);
    }
    let shape = TransformerShape {
        channels: level.channels,
        heads: level.heads,
        layers,
        context: config.cross_attention_dim,
        groups: config.norm_num_groups,
        upcast: config.upcast_attention,
    };
    Transformer::load(scope, shape).map(Some)
}

/// A level going down.
pub(super) struct DownBlock {
    units: Vec<Unit>,
    downsample: Option<Conv2d>,
}

impl DownBlock {
    /// Level number `index` of the configuration.
    pub(super) fn load(
        scope: &Scope<'_>,
        config: &UNetConfig,
        index: usize,
    ) -> Result<Self, ModelError> {
        let level = &config.levels[index];
        let from_above = config.levels[index.saturating_sub(1)].channels;
        let units = (0..level.layers)
            .map(|layer| {
                let channels_in = if layer == 0 {
                    from_above
                } else {
                    level.channels
                };
                let transformers = level.down_transformers;
                Unit::load(scope, config, level, layer, channels_in, transformers)
            })
            .collect::<Result<_, ModelError>>()?;
        let downsample = match index + 1 < config.levels.len() {
            true => Some(conv3x3(
                &scope.at("downsamplers.0.conv"),
                level.channels,
                level.channels,
                HALVE,
            )?),
            false => None,
        };
        Ok(DownBlock { units, downsample })
    }

    /// x: (rows, h, w, in) -> (rows, h / 2, w / 2, out), halves rounded up; the last level keeps the size.
    /// Every intermediate goes onto `skips`.
    pub(super) fn forward(
        &self,
        mut x: Tensor,
        conditions: Conditions<'_>,
        skips: &mut Vec<Tensor>,
    ) -> candle_core::Result<Tensor> {
        for unit in &self.units {
            x = unit.forward(&x, conditions)?;
            skips.push(x.clone());
        }
        if let Some(downsample) = &self.downsample {
            x = downsample.forward(&x)?;
            skips.push(x.clone());
        }
        Ok(x)
    }
}

/// The bottom: residual block, transformer, residual block.
pub(super) struct MidBlock {
    first: Unit,
    second: Resnet,
}

impl MidBlock {
    pub(super) fn load(scope: &Scope<'_>, config: &UNetConfig) -> Result<Self, ModelError> {
        let level = &config.levels[config.levels.len() - 1];
        let shape = resnet_shape(config, level.channels, level.channels);
        Ok(MidBlock {
            first: Unit::load(
                scope,
                config,
                level,
                0,
                level.channels,
                config.mid_transformers,
            )?,
            second: Resnet::load(&scope.at("resnets.1"), shape)?,
        })
    }

    /// x: (rows, h, w, c) -> the same shape.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        conditions: Conditions<'_>,
    ) -> candle_core::Result<Tensor> {
        let x = self.first.forward(x, conditions)?;
        self.second.forward(&x, Some(conditions.time))
    }
}

/// A level going up: one residual block more than down, each fed with what came down at its place.
pub(super) struct UpBlock {
    units: Vec<Unit>,
    upsample: Option<Conv2d>,
}

impl UpBlock {
    /// Level number `index` of the configuration, whose mirror image this is.
    pub(super) fn load(
        scope: &Scope<'_>,
        config: &UNetConfig,
        index: usize,
    ) -> Result<Self, ModelError> {
        let level = &config.levels[index];
        let channels_of = |index: usize| config.levels[index].channels;
        let deepest = config.levels.len() - 1;
        let from_below = channels_of((index + 1).min(deepest));
        let from_above = channels_of(index.saturating_sub(1));
        let units = (0..=level.layers)
            .map(|layer| {
                let through = if layer == 0 {
                    from_below
                } else {
                    level.channels
                };
                let is_last = layer == level.layers;
                let skip = if is_last { from_above } else { level.channels };
                let transformers = level.up_transformers;
                Unit::load(scope, config, level, layer, through + skip, transformers)
            })
            .collect::<Result<_, ModelError>>()?;
        let upsample = match index > 0 {
            true => Some(conv3x3(
                &scope.at("upsamplers.0.conv"),
                level.channels,
                level.channels,
                SAME,
            )?),
            false => None,
        };
        Ok(UpBlock { units, upsample })
    }

    /// x: (rows, h, w, in) -> (rows, h', w', out), of the size of the next of `skips`, which it takes its own from.
    pub(super) fn forward(
        &self,
        mut x: Tensor,
        conditions: Conditions<'_>,
        skips: &mut Vec<Tensor>,
    ) -> candle_core::Result<Tensor> {
        for unit in &self.units {
            let Some(skip) = skips.pop() else {
                candle_core::bail!("the unet has more blocks going up than down");
            };
            x = unit.forward(&image::concat_channels(&x, &skip)?, conditions)?;
        }
        if let (Some(upsample), Some(next)) = (&self.upsample, skips.last()) {
            // Odd sizes were rounded up on the way down, so twice the size may be one too many.
            let (_, height, width, _) = next.dims4()?;
            x = upsample.forward(&image::upsample_nearest(&x, height, width)?)?;
        }
        Ok(x)
    }
}
