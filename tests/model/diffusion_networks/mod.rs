//! Stable Diffusion's networks against diffusers and transformers, and against themselves in other company.
//!
//! Tests that begin with `fault` hold a fault of the stock pipeline away, by its number in the notes.

mod fixture;
mod full_size;
mod text;
mod tokens;
mod unet;
mod vae;
