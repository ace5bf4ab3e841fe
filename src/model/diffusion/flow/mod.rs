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
mod packing;
mod sd3;
mod shapes;
pub mod t5;
mod text;
mod transformer;

pub use config::{FlowConfig, FlowKind, TransformerConfig, is_flow_pipeline};
pub use frontend::FlowPrompts;
pub use shapes::{FluxConfig, Sd3Config};
pub use transformer::FlowDenoiser;
