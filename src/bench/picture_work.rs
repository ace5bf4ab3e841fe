//! What a picture takes of any machine, counted from the model's shape: multiply-adds of convolutions, linear
//! layers and attention. Norms, activations and the text encoders are left out; together they are a few percent.

use serde::Serialize;

use crate::model::diffusion::config::StableDiffusionConfig;
use crate::model::diffusion::config::unet::{SIZE_IDS, UNetConfig, UNetLevel};
use crate::model::diffusion::config::vae::VaeConfig;

/// The feed-forward layer's first product is so many times as wide as the stream: value and gate.
const FEED_IN_FACTOR: u64 = 8;
/// Its second product's input.
const FEED_OUT_FACTOR: u64 = 4;

/// Multiply-adds of a picture's parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PictureWork {
    /// One row in one denoising step.
    pub step: u64,
    /// Decoding a latent, in one piece.
    pub decode: u64,
    /// Encoding a picture, in one piece.
    pub encode: u64,
}

impl PictureWork {
    /// Of a picture of so many pixels. Edges are multiples of the autoencoder's factor.
    pub fn of(config: &StableDiffusionConfig, width: u32, height: u32) -> Self {
        let factor = config.vae.factor() as u64;
        let latent = Size {
            height: u64::from(height) / factor,
            width: u64::from(width) / factor,
        };
        let encoders = &config.text_encoders;
        let tokens = encoders.first().map_or(0, |encoder| encoder.positions);
        PictureWork {
            step: Unet(&config.unet).step(latent, tokens as u64),
            decode: autoencoder(&config.vae, latent, Direction::Decode),
            encode: autoencoder(&config.vae, latent, Direction::Encode),
        }
    }
}

#[derive(Clone, Copy)]
struct Size {
    height: u64,
    width: u64,
}

impl Size {
    fn places(self) -> u64 {
        self.height * self.width
    }

    /// Odd edges are rounded up.
    fn halved(self) -> Self {
        Size {
            height: self.height.div_ceil(2),
            width: self.width.div_ceil(2),
        }
    }

    fn doubled(self) -> Self {
        Size {
            height: self.height * 2,
            width: self.width * 2,
        }
    }

    /// A convolution of 3 x 3 that gives this size.
    fn conv3x3(self, channels_in: u64, channels_out: u64) -> u64 {
        9 * self.conv1x1(channels_in, channels_out)
    }

    fn conv1x1(self, channels_in: u64, channels_out: u64) -> u64 {
        self.places() * channels_in * channels_out
    }

    /// `time`: width of the time embedding; 0 in an autoencoder.
    fn resnet(self, channels_in: u64, channels_out: u64, time: u64) -> u64 {
        let shortcut = match channels_in == channels_out {
            true => 0,
            false => self.conv1x1(channels_in, channels_out),
        };
        self.conv3x3(channels_in, channels_out)
            + self.conv3x3(channels_out, channels_out)
            + shortcut
            + time * channels_out
    }

    /// Projections of query, key, value and output, and all places with all.
    fn self_attention(self, channels: u64) -> u64 {
        4 * self.conv1x1(channels, channels) + 2 * self.places() * self.places() * channels
    }
}

struct Unet<'a>(&'a UNetConfig);

impl Unet<'_> {
    fn step(&self, latent: Size, tokens: u64) -> u64 {
        let config = self.0;
        let channels = |level: usize| config.levels[level].channels as u64;
        let (count, first) = (config.levels.len(), channels(0));
        let mut sizes = vec![latent];
        for level in 1..count {
            sizes.push(sizes[level - 1].halved());
        }
        let mut sum = self.time_embedding()
            + latent.conv3x3(config.in_channels as u64, first)
            + latent.conv3x3(first, config.out_channels as u64);
        for (level, shape) in config.levels.iter().enumerate() {
            let (size, own) = (sizes[level], channels(level));
            let from_above = channels(level.saturating_sub(1));
            for layer in 0..shape.layers {
                let channels_in = if layer == 0 { from_above } else { own };
                sum += self.unit(size, channels_in, shape, shape.down_transformers, tokens);
            }
            if let Some(smaller) = sizes.get(level + 1) {
                sum += smaller.conv3x3(own, own);
            }
            // Going up: each residual block takes what came down at its place beside what came from below.
            let from_below = channels((level + 1).min(count - 1));
            for layer in 0..=shape.layers {
                let through = if layer == 0 { from_below } else { own };
                let skip = if layer == shape.layers {
                    from_above
                } else {
                    own
                };
                let channels_in = through + skip;
                sum += self.unit(size, channels_in, shape, shape.up_transformers, tokens);
            }
            if level > 0 {
                sum += sizes[level - 1].conv3x3(own, own);
            }
        }
        if config.has_mid_block {
            let (level, size) = (&config.levels[count - 1], sizes[count - 1]);
            let own = channels(count - 1);
            sum += self.unit(size, own, level, config.mid_transformers, tokens)
                + size.resnet(own, own, config.time_embedding_dim as u64);
        }
        sum
    }

    fn time_embedding(&self) -> u64 {
        let width = self.0.time_embedding_dim as u64;
        let added = self.0.added.map_or(0, |added| {
            let input = added.pooled_dim + SIZE_IDS * added.time_embed_dim;
            input as u64 * width + width * width
        });
        self.0.levels[0].channels as u64 * width + width * width + added
    }

    /// A residual block, and the transformer behind it.
    fn unit(
        &self,
        size: Size,
        channels_in: u64,
        level: &UNetLevel,
        layers: usize,
        tokens: u64,
    ) -> u64 {
        let c = level.channels as u64;
        let resnet = size.resnet(channels_in, c, self.0.time_embedding_dim as u64);
        if layers == 0 {
            return resnet;
        }
        let text = self.0.cross_attention_dim as u64;
        let to_text =
            2 * size.conv1x1(c, c) + 2 * tokens * text * c + 2 * size.places() * tokens * c;
        let feed_forward = (FEED_IN_FACTOR + FEED_OUT_FACTOR) * size.conv1x1(c, c);
        let layer = size.self_attention(c) + to_text + feed_forward;
        resnet + 2 * size.conv1x1(c, c) + layers as u64 * layer
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Direction {
    Encode,
    Decode,
}

fn autoencoder(config: &VaeConfig, latent: Size, direction: Direction) -> u64 {
    let channels: Vec<u64> = config
        .block_out_channels
        .iter()
        .map(|&channels| channels as u64)
        .collect();
    let deepest = channels[channels.len() - 1];
    let latent_channels = config.latent_channels as u64;
    let mut sum = 2 * latent.resnet(deepest, deepest, 0);
    if config.mid_block_add_attention {
        sum += latent.self_attention(deepest);
    }
    let picture = channels[1..].iter().fold(latent, |size, _| size.doubled());
    match direction {
        Direction::Encode => {
            let (from_picture, quant) = (config.in_channels as u64, 2 * latent_channels);
            sum += picture.conv3x3(from_picture, channels[0]) + latent.conv3x3(deepest, quant);
            if config.use_quant_conv {
                sum += latent.conv1x1(quant, quant);
            }
        }
        Direction::Decode => {
            let to_picture = config.out_channels as u64;
            sum +=
                latent.conv3x3(latent_channels, deepest) + picture.conv3x3(channels[0], to_picture);
            if config.use_post_quant_conv {
                sum += latent.conv1x1(latent_channels, latent_channels);
            }
        }
    }
    // From the picture inwards; the decoder goes the other way and has one residual block more.
    let mut size = picture;
    for (level, &own) in channels.iter().enumerate() {
        let (neighbour, layers) = match direction {
            Direction::Encode => (level.saturating_sub(1), config.layers_per_block),
            Direction::Decode => (
                (level + 1).min(channels.len() - 1),
                config.layers_per_block + 1,
            ),
        };
        for layer in 0..layers {
            let channels_in = if layer == 0 { channels[neighbour] } else { own };
            sum += size.resnet(channels_in, own, 0);
        }
        if level + 1 < channels.len() {
            let smaller = size.halved();
            // Halving convolutions give the smaller size, doubling ones the larger; one of each level.
            sum += match direction {
                Direction::Encode => smaller.conv3x3(own, own),
                Direction::Decode => size.conv3x3(channels[level + 1], channels[level + 1]),
            };
            size = smaller;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Step, decoding and encoding of a shape at a size.
    fn work(shape: &str, (width, height): (u32, u32)) -> [u64; 3] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/shapes");
        let config = StableDiffusionConfig::read(&folder.join(shape)).expect("a sound shape");
        let work = PictureWork::of(&config, width, height);
        [work.step, work.decode, work.encode]
    }

    #[test]
    fn published_models_take_what_torch_counts_of_them() {
        // Half of what torch 2's FlopCounterMode counts of diffusers' models on the meta device. The second size of
        // each has odd edges on the way down.
        for (shape, size, counted) in [
            (
                "sd15",
                (512, 512),
                [401_636_720_640, 1_257_259_466_752, 558_329_233_408],
            ),
            (
                "sd15",
                (528, 512),
                [420_981_248_000, 1_297_102_473_216, 576_330_670_080],
            ),
            (
                "sdxl",
                (1024, 1024),
                [3_380_618_199_040, 5_235_196_297_216, 2_439_475_363_840],
            ),
            (
                "sdxl",
                (1040, 1024),
                [3_476_951_367_680, 5_321_358_315_520, 2_481_954_242_560],
            ),
        ] {
            assert_eq!(work(shape, size), counted, "{shape} at {size:?}");
        }
    }

    #[test]
    fn convolutions_grow_with_the_places_and_attention_with_their_square() {
        let size = |edge| Size {
            height: edge,
            width: edge,
        };
        assert_eq!(size(4).conv3x3(2, 3), 4 * size(2).conv3x3(2, 3));
        assert_eq!(size(1).self_attention(1), 6);
        assert_eq!(size(2).self_attention(1), 16 + 32);
        assert_eq!(size(3).halved().places(), 4);
    }
}
