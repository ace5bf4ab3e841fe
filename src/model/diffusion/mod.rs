//! Stable Diffusion: text to latents to pictures.

pub mod clip;
pub mod config;
mod layers;
pub mod prompt;
pub mod time_embedding;
pub mod tokenizer;
pub mod unet;
pub mod vae;
pub mod weights;
