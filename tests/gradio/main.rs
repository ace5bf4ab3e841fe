//! Gradio's dialect over HTTP, as its clients see it, with scripted models. The real clients are run by
//! `tests/conformance`.

mod calls;
mod client;
mod files;
mod limits;
mod refusals;
mod resume;
#[path = "../api/service.rs"]
#[allow(dead_code, reason = "shared with the tests of the other dialects")]
mod service;
mod transcripts;

/// Draws at once.
const PICTURES: &str = "[image]";
/// Twenty steps a second.
const SLOW_PICTURES: &str = "[image]\n[cost]\ntokens_per_second = 20.0";
