//! OpenAI's dialect over HTTP, with the scripted model: its tokens are bytes, and with `ECHO` it says
//! its prompt again and stops.

mod image_refusals;
mod image_streams;
mod images;
mod refusals;
mod replies;
mod service;
mod streams;
mod tokens;

/// Draws at once.
const DRAWS: &str = "[image]";
/// Draws, at 200 steps a second.
const DRAWS_SLOWLY: &str = "[image]\n[cost]\ntokens_per_second = 200.0";

/// Says the prompt again, then stops.
const ECHO: &str = "[output]\nkind = \"echo\"";
/// Says letters that depend on prompt, seed and choice, up to `max_tokens`.
const VARIED: &str = "[output]\nkind = \"varied\"";
/// The same, at twenty tokens a second.
const SLOW: &str = "[cost]\ntokens_per_second = 20.0";
