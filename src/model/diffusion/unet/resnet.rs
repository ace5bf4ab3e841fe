//! The residual block of a UNet and of a VAE.

use candle_core::Tensor;

use super::super::layers::{SAME, conv1x1, conv3x3, group_norm, linear};
use super::super::weights::Scope;
use crate::kernels::image::{self, Conv2d, GroupNorm};
use crate::kernels::linear::Linear;
use crate::model::ModelError;

/// What a residual block looks like.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct ResnetShape {
    pub(in super::super) channels_in: usize,
    pub(in super::super) channels_out: usize,
    /// Width of the time embedding; none in a VAE.
    pub(in super::super) time: Option<usize>,
    pub(in super::super) groups: usize,
    pub(in super::super) eps: f64,
}

/// Norm, SiLU, convolution, time; norm, SiLU, convolution; and the input added.
pub(in super::super) struct Resnet {
    norm1: GroupNorm,
    conv1: Conv2d,
    time: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    shortcut: Option<Conv2d>,
}

impl Resnet {
    pub(in super::super) fn load(
        scope: &Scope<'_>,
        shape: ResnetShape,
    ) -> Result<Self, ModelError> {
        let ResnetShape {
            channels_in,
            channels_out,
            groups,
            eps,
            ..
        } = shape;
        let time = match shape.time {
            Some(width) => Some(linear(&scope.at("time_emb_proj"), width, channels_out)?),
            None => None,
        };
        let shortcut = match channels_in == channels_out {
            true => None,
            false => Some(conv1x1(
                &scope.at("conv_shortcut"),
                channels_in,
                channels_out,
            )?),
        };
        Ok(Resnet {
            norm1: group_norm(&scope.at("norm1"), channels_in, groups, eps)?,
            conv1: conv3x3(&scope.at("conv1"), channels_in, channels_out, SAME)?,
            time,
            norm2: group_norm(&scope.at("norm2"), channels_out, groups, eps)?,
            conv2: conv3x3(&scope.at("conv2"), channels_out, channels_out, SAME)?,
            shortcut,
        })
    }

    /// x: (rows, h, w, in), time: (rows, t) after its SiLU, for a block that has it -> (rows, h, w, out).
    pub(in super::super) fn forward(
        &self,
        x: &Tensor,
        time: Option<&Tensor>,
    ) -> candle_core::Result<Tensor> {
        let normed = self.norm1.forward_silu(x)?;
        let normed = match (&self.time, time) {
            (Some(projection), Some(time)) => {
                let bias = image::linear(projection, time)?;
                self.conv1
                    .forward_add_norm_silu(normed, &bias, &self.norm2)?
            }
            _ => {
                let hidden = self.conv1.forward(&normed)?;
                // Freed before the next activation is made: the largest pictures need the room.
                drop(normed);
                self.norm2.forward_silu(&hidden)?
            }
        };
        match &self.shortcut {
            Some(shortcut) => self.conv2.forward_add(&normed, &shortcut.forward(x)?),
            None => self.conv2.forward_add(&normed, x),
        }
    }
}
