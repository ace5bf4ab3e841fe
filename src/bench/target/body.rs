//! Requests' bodies.

use serde_json::{Map, Value, json};

use super::TargetConfig;
use crate::bench::load::asks::Role;
use crate::bench::load::{Ask, PictureAsk, TextAsk};
use crate::bench::results::Api;

/// OpenAI's limit.
const MAX_PARTIAL_IMAGES: u32 = 3;

/// Path and body of a request.
pub(super) fn of(config: &TargetConfig, ask: &Ask) -> (&'static str, Value) {
    let (path, mut body) = match (config.api, ask) {
        (Api::Native, Ask::Text(ask)) => ("/api/v1/requests", native_text(config, ask)),
        (Api::Native, Ask::Picture(ask)) => ("/api/v1/requests", native_picture(ask)),
        (Api::OpenaiCompletions, Ask::Text(ask)) => ("/v1/completions", completion(config, ask)),
        (_, Ask::Text(ask)) => ("/v1/chat/completions", chat(config, ask)),
        (_, Ask::Picture(ask)) => ("/v1/images/generations", openai_picture(ask)),
    };
    body.insert("model".to_owned(), config.model.clone().into());
    body.extend(
        config
            .extra_body
            .iter()
            .map(|(name, value)| (name.clone(), value.clone())),
    );
    (path, Value::Object(body))
}

fn fields<const N: usize>(fields: [(&str, Value); N]) -> Map<String, Value> {
    fields
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

fn messages(ask: &TextAsk) -> Value {
    let message = |(role, content): &(Role, String)| {
        let role = match role {
            Role::User => "user",
            Role::Assistant => "assistant",
        };
        json!({"role": role, "content": content})
    };
    ask.messages.iter().map(message).collect()
}

/// What both of OpenAI's text endpoints take.
fn streamed(config: &TargetConfig, ask: &TextAsk) -> Map<String, Value> {
    let mut body = fields([
        ("max_tokens", ask.output_tokens.into()),
        ("temperature", 0.into()),
        ("seed", ask.seed.into()),
        ("stream", true.into()),
        ("stream_options", json!({"include_usage": true})),
    ]);
    if config.ignore_eos {
        body.insert("ignore_eos".to_owned(), true.into());
    }
    body
}

fn chat(config: &TargetConfig, ask: &TextAsk) -> Map<String, Value> {
    let mut body = streamed(config, ask);
    body.insert("messages".to_owned(), messages(ask));
    body
}

fn completion(config: &TargetConfig, ask: &TextAsk) -> Map<String, Value> {
    let mut body = streamed(config, ask);
    let said: Vec<&str> = ask.messages.iter().map(|(_, text)| text.as_str()).collect();
    body.insert("prompt".to_owned(), said.join("\n").into());
    body
}

fn native_text(config: &TargetConfig, ask: &TextAsk) -> Map<String, Value> {
    fields([
        ("messages", messages(ask)),
        ("max_tokens", ask.output_tokens.into()),
        ("temperature", 0.into()),
        ("seed", ask.seed.into()),
        ("ignore_eos", config.ignore_eos.into()),
    ])
}

/// Width, height and what else differs only where it is asked for: what is left out is the model's own.
fn native_picture(ask: &PictureAsk) -> Map<String, Value> {
    let mut body = fields([
        ("prompt", ask.prompt.clone().into()),
        ("seed", ask.seed.into()),
    ]);
    if ask.previews > 0 {
        body.insert("previews".to_owned(), ask.previews.into());
    }
    if let Some((width, height)) = ask.size {
        body.insert("width".to_owned(), width.into());
        body.insert("height".to_owned(), height.into());
    }
    own_fields(&mut body, ask);
    body
}

fn openai_picture(ask: &PictureAsk) -> Map<String, Value> {
    let mut body = fields([
        ("prompt", ask.prompt.clone().into()),
        ("stream", true.into()),
        (
            "partial_images",
            ask.previews.min(MAX_PARTIAL_IMAGES).into(),
        ),
        ("seed", ask.seed.into()),
    ]);
    if let Some((width, height)) = ask.size {
        body.insert("size".to_owned(), format!("{width}x{height}").into());
    }
    own_fields(&mut body, ask);
    body
}

fn own_fields(body: &mut Map<String, Value>, ask: &PictureAsk) {
    if let Some(steps) = ask.steps {
        body.insert("steps".to_owned(), steps.into());
    }
    if let Some(scale) = ask.guidance_scale {
        body.insert("guidance_scale".to_owned(), scale.into());
    }
}
