//! Girandole: dynamic-batching inference on Candle, with streams that are never lost.
//!
//! The map, from the bottom up (arrows point down; `tests/dependency_rule.rs` checks it):
//!
//! - layer 0, words: [`time`], [`job`], [`batch`], [`picture`]
//! - layer 1, core: [`scheduler`] (who runs next; a pure state machine), [`events`] (what happened)
//! - layer 2, models: [`model`], [`kernels`]
//! - layer 3, engine: [`engine`] (one thread per device: scheduler + model + logs)
//! - layer 4, edge: `intake` (request -> job), `api` (HTTP dialects, SSE)
//! - layer 5, shell: `config`, `telemetry`, `shutdown`, `client`, [`bench`], [`gpu_check`]

pub mod api;
pub mod batch;
pub mod bench;
pub mod client;
pub mod config;
pub mod engine;
pub mod events;
pub mod gpu_check;
pub mod intake;
pub mod job;
pub mod kernels;
pub mod model;
pub mod picture;
pub mod scheduler;
pub mod shutdown;
pub mod telemetry;
pub mod time;
