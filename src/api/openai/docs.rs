//! This dialect in the API's own description. The bodies here are for readers only: requests are
//! read field by field, see [`super`]; a test holds the two together.

use serde::Serialize;
use serde_json::Value;
use utoipa::{OpenApi, ToSchema};

use super::types::{ModelBody, ModelList};
use crate::api::tokens;

/// Fields of both endpoints. Others that OpenAI's and vLLM's APIs have are accepted in their
/// neutral form, and otherwise refused by name.
#[derive(Debug, Serialize, ToSchema)]
struct SharedBody {
    /// A name from `/v1/models`.
    model: String,
    /// Answers wanted.
    n: Option<u32>,
    /// Answer with server-sent events; each has an `id`, from which a cut stream can be resumed.
    stream: Option<bool>,
    /// `{"include_usage": true}` ends the stream with a chunk of usage.
    #[schema(value_type = Option<Object>)]
    stream_options: Option<Value>,
    /// Between 0, the most probable token, and 2.
    temperature: Option<f32>,
    /// Keeps the smallest set of tokens whose probability reaches this.
    top_p: Option<f32>,
    /// Keeps this many most probable tokens; 0 and -1 switch it off.
    top_k: Option<i64>,
    /// Drops tokens below this share of the most probable one's probability.
    min_p: Option<f32>,
    /// Locally typical sampling.
    typical_p: Option<f32>,
    /// Between -2 and 2.
    presence_penalty: Option<f32>,
    /// Between -2 and 2.
    frequency_penalty: Option<f32>,
    /// Above 0; 1 is neutral.
    repetition_penalty: Option<f32>,
    /// Token id to a bias between -100 and 100.
    #[schema(value_type = Option<Object>)]
    logit_bias: Option<Value>,
    /// The same seed gives the same answer; without one a fresh one is drawn.
    seed: Option<i64>,
    /// A text that ends the answer, or several.
    #[schema(value_type = Option<Vec<String>>)]
    stop: Option<Value>,
    /// Tokens that end the answer.
    stop_token_ids: Option<Vec<u32>>,
    /// Keep the stop text in the answer.
    include_stop_str_in_output: Option<bool>,
    /// Leave special tokens out of the text.
    skip_special_tokens: Option<bool>,
    /// New tokens at most.
    max_tokens: Option<u32>,
    /// New tokens at least.
    min_tokens: Option<u32>,
    /// Go on after end-of-text.
    ignore_eos: Option<bool>,
    /// Log-probabilities of the prompt's tokens, with this many alternatives. Not in streams.
    prompt_logprobs: Option<u32>,
    /// Keep only this many of the prompt's last tokens; -1 for as many as fit.
    truncate_prompt_tokens: Option<i64>,
    /// Add the beginning-of-text token to the prompt.
    add_special_tokens: Option<bool>,
    /// Share cached tokens of the prompt only with requests that give the same salt, 1 to 256 bytes.
    cache_salt: Option<String>,
    /// Fail with 504 if it has not ended after this.
    deadline_ms: Option<u64>,
}

/// A chat to answer.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ChatBody {
    /// Objects with `role` and `content`, a string or a list of text parts.
    #[schema(value_type = Vec<Object>)]
    messages: Value,
    /// The newer name of `max_tokens`.
    max_completion_tokens: Option<u32>,
    /// Show each token's log-probability.
    logprobs: Option<bool>,
    /// And those of this many alternatives.
    top_logprobs: Option<u32>,
    /// Further names for the model's chat template.
    #[schema(value_type = Option<Object>)]
    chat_template_kwargs: Option<Value>,
    /// End the prompt with the opening of the assistant's turn; the default.
    add_generation_prompt: Option<bool>,
    /// Go on with the last message.
    continue_final_message: Option<bool>,
    #[serde(flatten)]
    shared: SharedBody,
}

/// A text to complete.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CompletionBody {
    /// A text, a list of token ids, or a list of either.
    #[schema(value_type = Object)]
    prompt: Value,
    /// Answers made, of which the best `n` are shown. Not in streams.
    best_of: Option<u32>,
    /// Begin the answer with the prompt.
    echo: Option<bool>,
    /// Show each token's log-probability and those of this many alternatives.
    logprobs: Option<u32>,
    #[serde(flatten)]
    shared: SharedBody,
}

#[derive(OpenApi)]
#[openapi(
    paths(
        super::chat::create,
        super::completions::create,
        super::models::list,
        super::models::retrieve,
        tokens::tokenize,
        tokens::detokenize,
        tokens::apply_template,
    ),
    components(schemas(ChatBody, CompletionBody, SharedBody, ModelList, ModelBody))
)]
struct Description;

/// This dialect's part of the description.
pub(in crate::api) fn description() -> utoipa::openapi::OpenApi {
    Description::openapi().merge_from(super::images::description())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{chat, completions};
    use super::*;
    use crate::intake::{Fields, Invalid, InvalidKind};

    /// The names of a schema's fields, those of the flattened part too.
    fn names(schema: &Value) -> Vec<String> {
        let own = schema["properties"].as_object().into_iter().flatten();
        let own = own.map(|(name, _)| name.clone());
        let parts = schema["allOf"].as_array().into_iter().flatten();
        own.chain(parts.flat_map(names)).collect()
    }

    /// Gives each described field a value of a wrong type: what reads the body must complain of
    /// that, and not that it does not know the field.
    fn check(schema: &str, body: Value, read: impl Fn(Fields) -> Option<Invalid>) {
        let description = serde_json::to_value(description()).expect("plain data");
        let schemas = &description["components"]["schemas"];
        let mut names = names(&schemas[schema]);
        names.extend(self::names(&schemas["SharedBody"]));
        assert!(names.len() > 25, "{names:?}");
        for name in names.iter().filter(|name| *name != "model") {
            let mut body = body.as_object().expect("an object").clone();
            body.insert(name.clone(), json!([[["x"]]]));
            let invalid = read(Fields::of(body)).unwrap_or_else(|| panic!("{name} was taken"));
            assert!(
                invalid.field.starts_with(name.as_str()),
                "{name}: {invalid}"
            );
            assert_eq!(invalid.kind, InvalidKind::Value, "{name}: {invalid}");
        }
    }

    #[test]
    fn every_described_field_is_read() {
        let hour = std::time::Duration::from_secs(3_600);
        let messages = json!({"messages": [{"role": "user", "content": "x"}]});
        check("ChatBody", messages, |fields| {
            chat::read(fields, hour).err()
        });
        check("CompletionBody", json!({"prompt": "x"}), |fields| {
            completions::read(fields, hour, 2).err()
        });
    }
}
