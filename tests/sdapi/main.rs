//! The Stable Diffusion web UI's API over HTTP, with the scripted model that draws: one colour for each
//! prompt and seed, over as much of the width as steps are done.

mod drawing;
mod lists;
mod refusals;
mod scope;
mod service;

/// Draws at once.
const INSTANT: &str = "[image]";
/// Twenty steps a second.
const STEADY: &str = "[image]\n[cost]\ntokens_per_second = 20.0";
