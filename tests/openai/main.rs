//! OpenAI's dialect over HTTP, with the scripted model: its tokens are bytes, and with `ECHO` it says
//! its prompt again and stops.

mod refusals;
mod replies;
mod service;
mod streams;
mod tokens;

/// Says the prompt again, then stops.
const ECHO: &str = "[output]\nkind = \"echo\"";
/// Says letters that depend on prompt, seed and choice, up to `max_tokens`.
const VARIED: &str = "[output]\nkind = \"varied\"";
/// The same, at twenty tokens a second.
const SLOW: &str = "[cost]\ntokens_per_second = 20.0";
