//! What a latent looks like, cheaply: three sums of its channels for each of its places, or what a small decoder
//! makes of it.
//!
//! The model's own decoder would cost as much as several denoising steps; a linear map shows shapes and colours at an
//! eighth of the size for nothing. A small decoder shows the picture itself, for about a tenth of a step.

use std::path::Path;

use candle_core::Tensor;
use serde::Deserialize;

use super::config::vae::VaeConfig;
use super::random::{NoiseUse, fill};
use super::vae::Vae;
use super::vae::tiny::TinyDecoder;
use crate::model::ModelError;
use crate::picture::Picture;

/// How latents are shown.
pub enum Preview {
    /// By sums, at the latent's size.
    Map(PreviewMap),
    /// By a decoder that was given, at the picture's size.
    Decoder(Box<TinyDecoder>),
}

impl Preview {
    /// The small decoder in the folder `decoder`, else [`PreviewMap::of`].
    ///
    /// # Errors
    /// The decoder or the map cannot be read, or is made for other latents.
    pub fn of(
        decoder: Option<&Path>,
        folder: Option<&Path>,
        vae: &Vae,
    ) -> Result<Self, ModelError> {
        let Some(path) = decoder else {
            return Ok(Preview::Map(PreviewMap::of(folder, vae)?));
        };
        let decoder = TinyDecoder::open(path, None, vae.device())?;
        let (own, wanted) = (decoder.config(), vae.config());
        if (own.latent_channels, own.factor()) != (wanted.latent_channels, wanted.factor()) {
            return Err(ModelError::Load(format!(
                "preview_decoder {}: it takes latents of {} channels for {} pixels along an edge, the model's \
                 have {} for {}",
                path.display(),
                own.latent_channels,
                own.factor(),
                wanted.latent_channels,
                wanted.factor()
            )));
        }
        Ok(Preview::Decoder(Box::new(decoder)))
    }

    /// latent: (h, w, c) f32, as the network knows it -> a picture of h × w, or of the full size. Numbers that are
    /// not finite are black.
    ///
    /// # Errors
    /// The device fails.
    pub fn picture(&self, latent: &Tensor) -> Result<Picture, ModelError> {
        match self {
            Preview::Map(map) => map.picture(latent),
            Preview::Decoder(decoder) => {
                let decoded = decoder.decode(&latent.unsqueeze(0)?)?.squeeze(0)?;
                let (height, width, _) = decoded.dims3()?;
                let values = decoded.flatten_all()?.to_vec1::<f32>()?;
                let rgb = values.into_iter().map(byte).collect();
                Ok(Picture::new(width as u32, height as u32, rgb))
            }
        }
    }
}

/// -1 to 1 -> 0 to 255.
fn byte(value: f32) -> u8 {
    ((value / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round() as u8
}

/// From a latent's channels to red, green and blue, -1 to 1.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct PreviewMap {
    /// For each channel of the latent, as the network knows it, its part in red, green and blue.
    #[serde(rename = "matrix")]
    pub weights: Vec<[f32; 3]>,
    /// What is added to each colour.
    #[serde(default)]
    pub bias: [f32; 3],
}

/// Where a model's folder may have its own map.
pub const PREVIEW_FILE: &str = "preview.json";
/// Scaling factors of the VAEs whose maps are known.
const SD_SCALING: f64 = 0.18215;
const SDXL_SCALING: f64 = 0.13025;
/// Edge of the random latents that a map is fitted to, in latents.
const FIT_EDGE: usize = 16;
/// Rows of them.
const FIT_ROWS: u64 = 2;

impl PreviewMap {
    /// The folder's own map, else the known one of its VAE, else one fitted to what the VAE makes of random
    /// latents.
    ///
    /// # Errors
    /// The folder's map cannot be read, or the device fails.
    pub fn of(folder: Option<&Path>, vae: &Vae) -> Result<Self, ModelError> {
        let file = folder.map(|folder| folder.join(PREVIEW_FILE));
        let map = match file.filter(|file| file.is_file()) {
            Some(file) => Some(Self::read(&file)?),
            None => Self::known(vae.config()),
        };
        match map {
            Some(map) if map.weights.len() == vae.config().latent_channels => Ok(map),
            Some(map) => Err(ModelError::Load(format!(
                "{PREVIEW_FILE}: it has {} channels, the VAE's latents have {}",
                map.weights.len(),
                vae.config().latent_channels
            ))),
            None => Self::fitted(vae),
        }
    }

    fn read(file: &Path) -> Result<Self, ModelError> {
        let wrong = |error: &dyn std::fmt::Display| {
            ModelError::Load(format!("cannot read {}: {error}", file.display()))
        };
        let text = std::fs::read_to_string(file).map_err(|error| wrong(&error))?;
        serde_json::from_str(&text).map_err(|error| wrong(&error))
    }

    /// The maps that the field uses for the VAEs of Stable Diffusion 1 and 2, and of SDXL.
    fn known(config: &VaeConfig) -> Option<Self> {
        if config.latent_channels != 4 || config.block_out_channels != [128, 256, 512, 512] {
            return None;
        }
        let is = |factor: f64| (config.scaling_factor - factor).abs() < 1e-6;
        if is(SD_SCALING) {
            return Some(PreviewMap {
                weights: vec![
                    [0.3512, 0.2297, 0.3227],
                    [0.3250, 0.4974, 0.2350],
                    [-0.2829, 0.1762, 0.2721],
                    [-0.2120, -0.2616, -0.7177],
                ],
                bias: [0.0; 3],
            });
        }
        is(SDXL_SCALING).then(|| PreviewMap {
            weights: vec![
                [0.3651, 0.4232, 0.4341],
                [-0.2533, -0.0042, 0.1068],
                [0.1076, 0.1111, -0.0362],
                [-0.3165, -0.2492, -0.2188],
            ],
            bias: [0.1084, -0.0175, -0.0011],
        })
    }

    /// Least squares over the places of decoded random latents, each place's colour being the mean of its
    /// pixels.
    fn fitted(vae: &Vae) -> Result<Self, ModelError> {
        let channels = vae.config().latent_channels;
        let factor = vae.config().factor();
        let unknowns = channels + 1;
        let mut squares = vec![vec![0f64; unknowns + 3]; unknowns];
        for row in 0..FIT_ROWS {
            let mut values = vec![0f32; FIT_EDGE * FIT_EDGE * channels];
            fill(row, NoiseUse::Initial, &mut values);
            let shape = (1, FIT_EDGE, FIT_EDGE, channels);
            let latents = Tensor::from_vec(values.clone(), shape, vae.device())?;
            let pixels = vae.decode(&vae.unscale(&latents)?)?;
            let pixels = pixels.flatten_all()?.to_vec1::<f32>()?;
            for (place, latent) in values.chunks(channels).enumerate() {
                let colour = mean_colour(&pixels, place, factor);
                let known: Vec<f64> = latent.iter().map(|&v| f64::from(v)).chain([1.0]).collect();
                for (equation, a) in squares.iter_mut().zip(&known) {
                    for (sum, b) in equation.iter_mut().zip(known.iter().chain(&colour)) {
                        *sum += a * b;
                    }
                }
            }
        }
        let solution = solve(squares, unknowns);
        let (bias, weights) = solution.split_last().expect("there is always the bias");
        Ok(PreviewMap {
            weights: weights.to_vec(),
            bias: *bias,
        })
    }

    /// latent: (h, w, c) f32, as the network knows it -> a picture of h × w. Numbers that are not finite are
    /// black.
    ///
    /// # Errors
    /// The device fails.
    pub fn picture(&self, latent: &Tensor) -> Result<Picture, ModelError> {
        let (height, width, channels) = latent.dims3()?;
        let values = latent.flatten_all()?.to_vec1::<f32>()?;
        let mut rgb = Vec::with_capacity(3 * height * width);
        for place in values.chunks(channels) {
            let mut colour = self.bias;
            for (value, weights) in place.iter().zip(&self.weights) {
                for (sum, weight) in colour.iter_mut().zip(weights) {
                    *sum += value * weight;
                }
            }
            rgb.extend(colour.map(byte));
        }
        Ok(Picture::new(width as u32, height as u32, rgb))
    }
}

/// The mean of a latent place's pixels. pixels: one picture of `FIT_EDGE * factor` squared, 3 channels.
fn mean_colour(pixels: &[f32], place: usize, factor: usize) -> [f64; 3] {
    let (line, column) = (place / FIT_EDGE, place % FIT_EDGE);
    let mut sums = [0.0; 3];
    for y in line * factor..(line + 1) * factor {
        for x in column * factor..(column + 1) * factor {
            let pixel = 3 * (y * FIT_EDGE * factor + x);
            for (sum, value) in sums.iter_mut().zip(&pixels[pixel..pixel + 3]) {
                *sum += f64::from(*value);
            }
        }
    }
    sums.map(|sum| sum / (factor * factor) as f64)
}

/// Solves the normal equations, three right-hand sides behind each row, by elimination: they are symmetric
/// and, with hundreds of random places, well conditioned.
fn solve(mut rows: Vec<Vec<f64>>, unknowns: usize) -> Vec<[f32; 3]> {
    for pivot in 0..unknowns {
        let row = rows[pivot].clone();
        for other in rows.iter_mut().skip(pivot + 1) {
            let factor = other[pivot] / row[pivot];
            for (value, above) in other.iter_mut().zip(&row) {
                *value -= factor * above;
            }
        }
    }
    let mut solution = vec![[0f64; 3]; unknowns];
    for index in (0..unknowns).rev() {
        for colour in 0..3 {
            let known: f64 = (index + 1..unknowns)
                .map(|other| rows[index][other] * solution[other][colour])
                .sum();
            solution[index][colour] = (rows[index][unknowns + colour] - known) / rows[index][index];
        }
    }
    solution
        .into_iter()
        .map(|weights| weights.map(|weight| weight as f32))
        .collect()
}
