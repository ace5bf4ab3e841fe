//! The parts of a VAE's encoder and decoder.

use candle_core::Tensor;

use crate::kernels::image::{self, Conv2d, GroupNorm};
use crate::kernels::linear::Linear;
use crate::model::ModelError;
use crate::model::diffusion::config::vae::VaeConfig;
use crate::model::diffusion::layers::{
    HALVE_BOTTOM_RIGHT, SAME, conv3x3, group_norm, linear, linears,
};
use crate::model::diffusion::unet::resnet::{Resnet, ResnetShape};
use crate::model::diffusion::weights::Scope;

/// Added to the variance in every norm of a VAE.
const NORM_EPS: f64 = 1e-6;

fn resnet(
    scope: &Scope<'_>,
    config: &VaeConfig,
    channels_in: usize,
    channels_out: usize,
) -> Result<Resnet, ModelError> {
    let shape = ResnetShape {
        channels_in,
        channels_out,
        time: None,
        groups: config.norm_num_groups,
        eps: NORM_EPS,
    };
    Resnet::load(scope, shape)
}

/// Attention of one head among all pixels.
struct PixelAttention {
    norm: GroupNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    scale: f32,
}

impl PixelAttention {
    fn load(scope: &Scope<'_>, config: &VaeConfig, channels: usize) -> Result<Self, ModelError> {
        // The second of each pair is what files from before diffusers 0.18 say.
        let projection = |names: &[&str]| linear(&scope.at_first_known(names), channels, channels);
        Ok(PixelAttention {
            norm: group_norm(
                &scope.at("group_norm"),
                channels,
                config.norm_num_groups,
                NORM_EPS,
            )?,
            q: projection(&["to_q", "query"])?,
            k: projection(&["to_k", "key"])?,
            v: projection(&["to_v", "value"])?,
            out: projection(&["to_out.0", "proj_attn"])?,
            scale: (channels as f32).powf(-0.5),
        })
    }

    /// x: (rows, h, w, c) -> the same shape.
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let (rows, height, width, channels) = x.dims4()?;
        let tokens = |x: &Tensor| x.reshape((rows, height * width, channels));
        let [q, k, v] = linears(
            [&self.q, &self.k, &self.v],
            &tokens(&self.norm.forward(x)?)?,
        )?;
        let attended = image::attention(&q, &k, &v, 1, self.scale, None)?;
        image::linear_add(&self.out, &attended, &tokens(x)?)?
            .reshape((rows, height, width, channels))
    }
}

/// Residual block, maybe attention, residual block: at the smallest size.
struct MidBlock {
    first: Resnet,
    attention: Option<PixelAttention>,
    second: Resnet,
}

impl MidBlock {
    fn load(scope: &Scope<'_>, config: &VaeConfig, channels: usize) -> Result<Self, ModelError> {
        let attention = match config.mid_block_add_attention {
            true => Some(PixelAttention::load(
                &scope.at("attentions.0"),
                config,
                channels,
            )?),
            false => None,
        };
        Ok(MidBlock {
            first: resnet(&scope.at("resnets.0"), config, channels, channels)?,
            attention,
            second: resnet(&scope.at("resnets.1"), config, channels, channels)?,
        })
    }

    fn forward(&self, x: Tensor) -> candle_core::Result<Tensor> {
        let mut x = self.first.forward(&x, None)?;
        if let Some(attention) = &self.attention {
            x = attention.forward(&x)?;
        }
        self.second.forward(&x, None)
    }
}

/// Norm, SiLU, convolution.
struct Head {
    norm: GroupNorm,
    conv: Conv2d,
}

impl Head {
    fn load(
        scope: &Scope<'_>,
        config: &VaeConfig,
        channels_in: usize,
        channels_out: usize,
    ) -> Result<Self, ModelError> {
        let norm = scope.at("conv_norm_out");
        Ok(Head {
            norm: group_norm(&norm, channels_in, config.norm_num_groups, NORM_EPS)?,
            conv: conv3x3(&scope.at("conv_out"), channels_in, channels_out, SAME)?,
        })
    }

    fn forward(&self, x: Tensor) -> candle_core::Result<Tensor> {
        let normed = self.norm.forward_silu(&x)?;
        drop(x);
        self.conv.forward(&normed)
    }
}

/// Residual blocks of one size, then a convolution that changes the size.
struct Level {
    resnets: Vec<Resnet>,
    resample: Option<Conv2d>,
}

/// Pictures to the mean and logarithmic variance of latents.
pub(super) struct Encoder {
    conv_in: Conv2d,
    levels: Vec<Level>,
    mid: MidBlock,
    head: Head,
}

impl Encoder {
    pub(super) fn load(scope: &Scope<'_>, config: &VaeConfig) -> Result<Self, ModelError> {
        let channels = &config.block_out_channels;
        let deepest = channels.len() - 1;
        let levels = channels
            .iter()
            .enumerate()
            .map(|(index, &own)| {
                let scope = scope.at("down_blocks").at(index);
                let from_above = channels[index.saturating_sub(1)];
                let resnets = (0..config.layers_per_block)
                    .map(|layer| {
                        let channels_in = if layer == 0 { from_above } else { own };
                        resnet(&scope.at("resnets").at(layer), config, channels_in, own)
                    })
                    .collect::<Result<_, _>>()?;
                let resample = match index < deepest {
                    true => {
                        let scope = scope.at("downsamplers.0.conv");
                        Some(conv3x3(&scope, own, own, HALVE_BOTTOM_RIGHT)?)
                    }
                    false => None,
                };
                Ok(Level { resnets, resample })
            })
            .collect::<Result<_, ModelError>>()?;
        Ok(Encoder {
            conv_in: conv3x3(&scope.at("conv_in"), config.in_channels, channels[0], SAME)?,
            levels,
            mid: MidBlock::load(&scope.at("mid_block"), config, channels[deepest])?,
            head: Head::load(scope, config, channels[deepest], 2 * config.latent_channels)?,
        })
    }

    /// x: (rows, f * h, f * w, 3) -> (rows, h, w, 2 * latent channels)
    pub(super) fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let mut x = self.conv_in.forward(x)?;
        for level in &self.levels {
            for resnet in &level.resnets {
                x = resnet.forward(&x, None)?;
            }
            if let Some(resample) = &level.resample {
                x = resample.forward(&x)?;
            }
        }
        self.head.forward(self.mid.forward(x)?)
    }
}

/// Latents to pictures.
pub(super) struct Decoder {
    conv_in: Conv2d,
    mid: MidBlock,
    levels: Vec<Level>,
    head: Head,
}

impl Decoder {
    pub(super) fn load(scope: &Scope<'_>, config: &VaeConfig) -> Result<Self, ModelError> {
        let channels: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let (deepest, last) = (channels[0], channels.len() - 1);
        let levels = channels
            .iter()
            .enumerate()
            .map(|(index, &own)| {
                let scope = scope.at("up_blocks").at(index);
                let from_below = channels[index.saturating_sub(1)];
                let resnets = (0..=config.layers_per_block)
                    .map(|layer| {
                        let channels_in = if layer == 0 { from_below } else { own };
                        resnet(&scope.at("resnets").at(layer), config, channels_in, own)
                    })
                    .collect::<Result<_, _>>()?;
                let resample = match index < last {
                    true => Some(conv3x3(&scope.at("upsamplers.0.conv"), own, own, SAME)?),
                    false => None,
                };
                Ok(Level { resnets, resample })
            })
            .collect::<Result<_, ModelError>>()?;
        Ok(Decoder {
            conv_in: conv3x3(&scope.at("conv_in"), config.latent_channels, deepest, SAME)?,
            mid: MidBlock::load(&scope.at("mid_block"), config, deepest)?,
            levels,
            head: Head::load(scope, config, channels[last], config.out_channels)?,
        })
    }

    /// x: (rows, h, w, latent channels) -> (rows, f * h, f * w, 3)
    pub(super) fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let mut x = self.mid.forward(self.conv_in.forward(x)?)?;
        for level in &self.levels {
            for resnet in &level.resnets {
                x = resnet.forward(&x, None)?;
            }
            if let Some(resample) = &level.resample {
                let larger = image::upsample_nearest_2x(&x)?;
                // Freed first: at the largest size each activation is a quarter of the whole need.
                drop(std::mem::replace(&mut x, larger));
                x = resample.forward(&x)?;
            }
        }
        self.head.forward(x)
    }
}
