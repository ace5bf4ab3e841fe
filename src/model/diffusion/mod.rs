//! Latent diffusion: pictures from noise, step by step.

pub mod random;
pub mod schedule;
