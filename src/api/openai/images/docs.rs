//! Images in the API's own description. The bodies here are for readers only: requests are read field by
//! field; a test holds the two together.

use serde::Serialize;
use serde_json::Value;
use utoipa::{OpenApi, ToSchema};

/// Pictures to draw.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct GenerationBody {
    /// What to draw.
    prompt: String,
    /// A name from `/v1/models`; the first that draws if left out.
    model: Option<String>,
    /// Pictures wanted.
    n: Option<u32>,
    /// Width and height such as `512x512`, or `auto`: the model's own, or the source picture's.
    size: Option<String>,
    /// `png` (the default), `jpeg`, or `webp` without loss.
    output_format: Option<String>,
    /// Quality of a JPEG, 0 to 100.
    output_compression: Option<u32>,
    /// `b64_json` (the default), or `url`: an address under this service.
    response_format: Option<String>,
    /// Answer with server-sent events; each has an `id`, from which a cut stream can be resumed.
    stream: Option<bool>,
    /// Show each picture so many times while it is drawn, 0 to 3. In streams.
    partial_images: Option<u32>,
    /// `{"include_progress": true}` tells the place in the queue and each step too.
    #[schema(value_type = Option<Object>)]
    stream_options: Option<Value>,
    /// What not to draw.
    negative_prompt: Option<String>,
    /// Steps of the noise schedule.
    steps: Option<u32>,
    /// The same.
    num_inference_steps: Option<u32>,
    /// How closely the prompt is followed; 1 or less switches guidance off.
    guidance_scale: Option<f32>,
    /// Layers left out at the end of the text encoders; 0 is the model's own way.
    clip_skip: Option<u32>,
    /// The noise schedule, such as `euler`.
    scheduler: Option<String>,
    /// The same seed gives the same picture; without one a fresh one is drawn.
    seed: Option<i64>,
    /// Fail with 504 if it has not ended after this.
    deadline_ms: Option<u64>,
}

/// A picture to draw anew. In a form `image` and `mask` are files; in JSON, Base64 or `data:` URLs.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EditBody {
    /// The picture: PNG, JPEG or WebP.
    image: Option<String>,
    /// The same, in JSON: a list of one `{"image_url": "data:.."}`.
    #[schema(value_type = Option<Vec<Object>>)]
    images: Option<Value>,
    /// Where this picture is transparent, the other is drawn anew.
    mask: Option<String>,
    /// How much of the schedule is run, 0 to 1: more forgets more of the picture.
    strength: Option<f32>,
    #[serde(flatten)]
    shared: GenerationBody,
}

#[derive(OpenApi)]
#[openapi(
    paths(super::generate, super::edit),
    components(schemas(GenerationBody, EditBody))
)]
struct Description;

/// Their part of the description.
pub(in crate::api::openai) fn description() -> utoipa::openapi::OpenApi {
    Description::openapi()
}

#[cfg(test)]
mod tests {
    use axum::body::Bytes;
    use serde_json::json;

    use super::super::body::Body;
    use super::super::request::{Route, read};
    use super::*;
    use crate::intake::InvalidKind;

    /// Gives each described field a value of a wrong type: what reads the body must complain of that, and
    /// not that it does not know the field.
    #[test]
    fn every_described_field_is_read() {
        let description = serde_json::to_value(description()).expect("plain data");
        let schemas = &description["components"]["schemas"];
        let names = |schema: &Value| -> Vec<String> {
            let own = schema["properties"].as_object().into_iter().flatten();
            own.map(|(name, _)| name.clone()).collect()
        };
        let mut all = names(&schemas["GenerationBody"]);
        let parts = schemas["EditBody"]["allOf"].as_array();
        all.extend(parts.into_iter().flatten().flat_map(names));
        all.extend(names(&schemas["EditBody"]));
        assert!(all.len() > 19, "{all:?}");
        for name in all.iter().filter(|name| *name != "model") {
            let mut body = json!({"prompt": "x", "image": "AAAA"});
            if name == "images" {
                body["image"].take();
            }
            body[name] = json!([[["x"]]]);
            let body = Body::parse("", &Bytes::from(body.to_string())).expect("an object");
            let hour = std::time::Duration::from_secs(3_600);
            let invalid = read(body, Route::Edits, hour).expect_err(name);
            assert_eq!(invalid.field.as_str(), name.as_str(), "{invalid}");
            assert_eq!(invalid.kind, InvalidKind::Value, "{name}: {invalid}");
        }
    }
}
