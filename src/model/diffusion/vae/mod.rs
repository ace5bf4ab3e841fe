//! The autoencoder between pictures and latents (`AutoencoderKL`), one row at a time and in bounded memory.

mod blocks;
pub mod pixels;
mod tiles;
pub mod tiny;

use candle_core::{DType, Device, Tensor, bail};

use super::config::vae::VaeConfig;
use super::layers::{compute_dtype, conv1x1};
use super::weights::Weights;
use crate::kernels::image::Conv2d;
use crate::model::ModelError;
use blocks::{Decoder, Encoder};
use tiles::{Canvas, Placement, Tiles};

/// Bytes of activations that a decode may take where nobody chooses: a picture of 512 x 512 of Stable
/// Diffusion's own VAE is decoded whole, a larger one in tiles.
pub const DEFAULT_MEMORY_LIMIT: usize = 1 << 30;
/// The smallest tile, in latents: below it, the seams would be most of the picture.
const MIN_TILE: usize = 16;
/// Neighbouring tiles share this part of their length.
const OVERLAP_DIVISOR: usize = 4;
/// What stock operations of other devices take, in activations for each of ours: norms make several copies.
const STOCK_FACTOR: usize = 2;
/// The encoder's logarithmic variance is kept within these, as diffusers does.
const LOG_VARIANCE: (f64, f64) = (-30.0, 20.0);

/// An image autoencoder.
pub struct Vae {
    config: VaeConfig,
    encoder: Encoder,
    decoder: Decoder,
    quant: Option<Conv2d>,
    post_quant: Option<Conv2d>,
    memory_limit: usize,
    device: Device,
    dtype: DType,
}

/// The distribution of a picture's latents.
#[derive(Clone, Debug)]
pub struct Moments {
    /// (rows, h, w, latent channels) f32
    pub mean: Tensor,
    /// (rows, h, w, latent channels) f32: the logarithm of the variance.
    pub log_variance: Tensor,
}

impl Vae {
    /// Builds the autoencoder. Where activations would take more than `memory_limit` bytes by
    /// [`decode_bytes`](Self::decode_bytes), the picture is cut into tiles.
    ///
    /// # Errors
    /// A tensor is missing or misshapen; named. The smallest tile would take more than the limit.
    pub fn new(
        config: &VaeConfig,
        weights: &Weights,
        memory_limit: usize,
    ) -> Result<Self, ModelError> {
        let root = weights.root();
        let latent = config.latent_channels;
        let quant = match config.use_quant_conv {
            true => Some(conv1x1(&root.at("quant_conv"), 2 * latent, 2 * latent)?),
            false => None,
        };
        let post_quant = match config.use_post_quant_conv {
            true => Some(conv1x1(&root.at("post_quant_conv"), latent, latent)?),
            false => None,
        };
        let bias = root.tensor("decoder.conv_out.bias", &[config.out_channels])?;
        let vae = Vae {
            encoder: Encoder::load(&root.at("encoder"), config)?,
            decoder: Decoder::load(&root.at("decoder"), config)?,
            quant,
            post_quant,
            memory_limit,
            device: weights.device().clone(),
            dtype: compute_dtype(weights.device(), bias.dtype()),
            config: config.clone(),
        };
        weights.log_unused();
        let least = vae.whole_bytes(MIN_TILE, MIN_TILE);
        if least > memory_limit {
            return Err(ModelError::Load(format!(
                "decode_memory_bytes is {memory_limit}; the smallest tile of this model's vae takes {least}"
            )));
        }
        Ok(vae)
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Its shape.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// Latents as the UNet knows them -> as [`decode`](Self::decode) takes them.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn unscale(&self, latents: &Tensor) -> candle_core::Result<Tensor> {
        latents.affine(1.0 / self.config.scaling_factor, self.config.shift_factor)
    }

    /// Latents as [`encode`](Self::encode) gives them -> as the UNet knows them.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn scale(&self, latents: &Tensor) -> candle_core::Result<Tensor> {
        let (scale, shift) = (self.config.scaling_factor, self.config.shift_factor);
        latents.affine(scale, -shift * scale)
    }

    /// latents: (rows, h, w, latent channels) f32, unscaled -> (rows, f * h, f * w, 3) f32, about -1 to 1.
    ///
    /// # Errors
    /// Another shape, or the device is out of memory.
    pub fn decode(&self, latents: &Tensor) -> candle_core::Result<Tensor> {
        let (rows, height, width, channels) = latents.dims4()?;
        if rows == 0 || height == 0 || width == 0 || channels != self.config.latent_channels {
            bail!(
                "this vae decodes latents of {} channels, not of shape {:?}",
                self.config.latent_channels,
                latents.dims()
            );
        }
        let factor = self.config.factor();
        let decode_one = |tile: &Tensor| {
            let mut x = tile.to_device(&self.device)?.to_dtype(self.dtype)?;
            if let Some(post_quant) = &self.post_quant {
                x = post_quant.forward(&x)?;
            }
            self.decoder.forward(&x)?.to_dtype(DType::F32)
        };
        let by_row = (0..rows)
            .map(|row| {
                let latents = latents.narrow(0, row, 1)?;
                match self.tile_length(height, width) {
                    None => decode_one(&latents),
                    Some(length) => self.in_tiles(&latents, length, (1, factor), decode_one),
                }
            })
            .collect::<candle_core::Result<Vec<_>>>()?;
        together(by_row)
    }

    /// pixels: (rows, f * h, f * w, 3) f32, -1 to 1 -> moments of (rows, h, w, latent channels), unscaled.
    ///
    /// # Errors
    /// Another shape, or the device is out of memory.
    pub fn encode(&self, pixels: &Tensor) -> candle_core::Result<Moments> {
        let (rows, height, width, channels) = pixels.dims4()?;
        let factor = self.config.factor();
        let is_whole = |edge: usize| edge > 0 && edge.is_multiple_of(factor);
        if rows == 0 || !is_whole(height) || !is_whole(width) || channels != 3 {
            bail!(
                "this vae encodes pictures of 3 channels whose edges are multiples of {factor}, not of shape {:?}",
                pixels.dims()
            );
        }
        let encode_one = |tile: &Tensor| {
            let x = tile.to_device(&self.device)?.to_dtype(self.dtype)?;
            let mut x = self.encoder.forward(&x)?;
            if let Some(quant) = &self.quant {
                x = quant.forward(&x)?;
            }
            x.to_dtype(DType::F32)
        };
        let by_row = (0..rows)
            .map(|row| {
                let pixels = pixels.narrow(0, row, 1)?;
                match self.tile_length(height / factor, width / factor) {
                    None => encode_one(&pixels),
                    Some(length) => self.in_tiles(&pixels, length, (factor, 1), encode_one),
                }
            })
            .collect::<candle_core::Result<Vec<_>>>()?;
        let both = together(by_row)?;
        let latent = self.config.latent_channels;
        let (least, most) = LOG_VARIANCE;
        Ok(Moments {
            mean: both.narrow(3, 0, latent)?.contiguous()?,
            log_variance: both
                .narrow(3, latent, latent)?
                .contiguous()?
                .clamp(least, most)?,
        })
    }

    /// Bytes of activations that are alive at once when a latent of this size is decoded or encoded, tiles
    /// taken into account; without the picture itself and the weights. An estimate from above for the CPU; other
    /// devices' libraries take more as they please.
    pub fn decode_bytes(&self, height: usize, width: usize) -> usize {
        match self.tile_length(height, width) {
            None => self.whole_bytes(height, width),
            Some(length) => self.whole_bytes(length.min(height), length.min(width)),
        }
    }

    /// Edge of the tiles of a latent that is too large for the memory limit, in latents.
    fn tile_length(&self, height: usize, width: usize) -> Option<usize> {
        if self.whole_bytes(height, width) <= self.memory_limit {
            return None;
        }
        let mut length = MIN_TILE;
        while length < height.max(width)
            && self.whole_bytes((length + 1).min(height), (length + 1).min(width))
                <= self.memory_limit
        {
            length += 1;
        }
        Some(length)
    }

    /// The most that is alive at once without tiles.
    fn whole_bytes(&self, height: usize, width: usize) -> usize {
        let channels = &self.config.block_out_channels;
        let area = height.saturating_mul(width);
        let deepest = channels[channels.len() - 1];
        // Attention: input, normed, queries, keys, values, and what they give.
        let mut values = area.saturating_mul(6 * deepest);
        if !self.device.is_cpu() {
            values = values.saturating_add(area.saturating_mul(area).saturating_mul(2));
        }
        for (index, &own) in channels.iter().enumerate() {
            let scale = 1usize << (channels.len() - 1 - index);
            let area = area.saturating_mul(scale * scale);
            // The residual block that changes the width, either way: input, normed, shortcut, output.
            let beside = channels[(index + 1).min(channels.len() - 1)].max(own);
            values = values.max(area.saturating_mul(beside + 3 * own).max(
                // Its first half: input, normed input, and what the convolution gives.
                area.saturating_mul(2 * beside + own),
            ));
        }
        let factor = match self.device.is_cpu() {
            true => 1,
            false => STOCK_FACTOR,
        };
        let size = self.dtype.size_in_bytes();
        values.saturating_mul(size).saturating_mul(factor)
    }

    /// Runs `each` over tiles of x: (1, lines, columns, channels), blending what they give. `length`: of a
    /// tile, in latents. `scales`: positions a latent, coming in and going out.
    fn in_tiles(
        &self,
        x: &Tensor,
        length: usize,
        scales: (usize, usize),
        each: impl Fn(&Tensor) -> candle_core::Result<Tensor>,
    ) -> candle_core::Result<Tensor> {
        let (_, height, width, _) = x.dims4()?;
        let (scale_in, scale_out) = scales;
        let overlap = length / OVERLAP_DIVISOR;
        let lines = Tiles::new(height / scale_in, length, overlap);
        let columns = Tiles::new(width / scale_in, length, overlap);
        let (line_weights, column_weights) = (lines.weights(scale_out), columns.weights(scale_out));
        let (height, width) = (height / scale_in * scale_out, width / scale_in * scale_out);
        let mut canvas: Option<(Canvas, usize)> = None;
        for (top, line_weights) in lines.starts.iter().zip(&line_weights) {
            let strip = x.narrow(1, top * scale_in, lines.length * scale_in)?;
            for (left, column_weights) in columns.starts.iter().zip(&column_weights) {
                let tile = strip.narrow(2, left * scale_in, columns.length * scale_in)?;
                let tile = each(&tile.contiguous()?)?;
                let channels = tile.dim(3)?;
                let (canvas, _) =
                    canvas.get_or_insert_with(|| (Canvas::new(height, width, channels), channels));
                let placement = Placement {
                    top: top * scale_out,
                    left: left * scale_out,
                    line_weights,
                    column_weights,
                };
                canvas.add(&tile.flatten_all()?.to_vec1::<f32>()?, placement);
            }
        }
        let Some((canvas, channels)) = canvas else {
            bail!("a picture of {height} x {width} has no tiles");
        };
        Tensor::from_vec(canvas.values, (1, height, width, channels), &self.device)
    }
}

/// Rows of shape (1, ..) -> (rows, ..), without a copy of a single one.
fn together(mut rows: Vec<Tensor>) -> candle_core::Result<Tensor> {
    match rows.len() {
        1 => Ok(rows.swap_remove(0)),
        _ => Tensor::cat(&rows, 0),
    }
}
