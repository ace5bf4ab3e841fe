//! Flow-matching models: Flux.1 (schnell and dev) and Stable Diffusion 3 and 3.5, from diffusers folders.
//!
//! Transformers in place of a UNet, driven through the same steps: a timestep for each row, prompts as tensors, the
//! flow schedule.
//!
//! # Why not the stock modules
//!
//! candle-transformers has `flux`, `mmdit` and `t5`, which take a timestep per row as well. They stand aside because
//!
//! * on the CPU they multiply with Candle's own products, which pick another order of sums for another number of rows:
//!   a picture would depend on its company ([`kernels`](crate::kernels), the law);
//! * `flux` computes the angles of positions in the dtype of the weights: in bf16, as the published models are run, they
//!   are off by up to 0.18 at 1024 pixels. Here they are f64, and rotations f32;
//! * `mmdit` casts the time embedding to f16 whatever the weights are, so that it runs in f16 only; and it leaves out the
//!   norms of the last block's text keys, which 3.5 has;
//! * `t5` overflows in f16 (see [`t5`]).
//!
//! So the blocks are our own kernels, put together under diffusers' names, and nothing needs to be renamed.

mod config;
mod flux;
mod frontend;
mod layers;
mod sd3;
pub mod t5;
mod text;
mod transformer;

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};

pub use config::{FlowConfig, FluxConfig, Sd3Config, TransformerConfig, is_flow_pipeline};
pub use frontend::FlowFrontend;

use super::denoiser::Denoiser;
use super::weights::Weights;
use crate::model::ModelError;

/// Where weights are from.
struct Origin<'a> {
    dummy_seed: Option<u64>,
    dtype: Option<DType>,
    device: &'a Device,
}

/// A component's weights.
fn open(folder: &Path, component: &str, origin: &Origin<'_>) -> Result<Weights, ModelError> {
    match origin.dummy_seed {
        Some(seed) => Ok(Weights::dummy(seed, component, origin.dtype, origin.device)),
        None => Weights::open(&folder.join(component), origin.dtype, origin.device),
    }
}

/// The configuration of the schedules in a diffusers folder.
pub fn scheduler_path(folder: &Path) -> PathBuf {
    folder.join("scheduler").join("scheduler_config.json")
}

/// Loads the network and its text encoders from a diffusers folder, or draws random weights of the shape that it
/// describes. Weights are converted to `dtype` if one is given.
///
/// # Errors
/// Names the file, field or tensor that is missing, broken or not supported.
pub fn load(
    folder: &Path,
    dummy_seed: Option<u64>,
    dtype: Option<DType>,
    device: &Device,
) -> Result<Box<dyn Denoiser>, ModelError> {
    load_with(
        folder,
        &FlowConfig::read(folder)?,
        dummy_seed,
        dtype,
        device,
    )
}

/// As [`load`], with a configuration that was read before and perhaps changed.
///
/// # Errors
/// Names the file or tensor that is missing, broken or not supported.
pub fn load_with(
    folder: &Path,
    config: &FlowConfig,
    dummy_seed: Option<u64>,
    dtype: Option<DType>,
    device: &Device,
) -> Result<Box<dyn Denoiser>, ModelError> {
    let origin = Origin {
        dummy_seed,
        dtype,
        device,
    };
    let text = text::FlowText::load(folder, config, &origin)?;
    let weights = open(folder, "transformer", &origin)?;
    let denoiser = transformer::FlowDenoiser::new(&config.transformer, &weights, text)?;
    Ok(Box::new(denoiser))
}
