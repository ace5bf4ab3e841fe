//! Latent diffusion: pictures from noise, step by step.

pub mod clip;
pub mod config;
pub mod denoiser;
mod layers;
pub mod prompt;
pub mod random;
pub mod schedule;
pub mod time_embedding;
pub mod tokenizer;
pub mod unet;
pub mod vae;
pub mod weights;
