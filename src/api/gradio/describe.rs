//! `/config` and `info`: what clients read before their first call. Only what they look at is there; a page
//! is not described.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Map, Value, json};

use super::endpoints::{Component, Endpoint, Parameter, Task};
use crate::api::AppState;

/// The version of Gradio whose protocol is spoken. Below 4.30 the Python client cannot cancel.
const VERSION: &str = "6.31.0";
const PREFIX: &str = "/gradio_api";

/// What the application consists of.
#[utoipa::path(get, path = "/config", tag = "gradio",
    responses((status = 200, description = "components and dependencies, as Gradio's clients read them")))]
pub(super) async fn config(State(state): State<Arc<AppState>>) -> Json<Value> {
    let mut components = Vec::new();
    let mut dependencies = Vec::new();
    for endpoint in &state.gradio.endpoints {
        let mut add = |label: &str, kind: &Component, value: Option<&Value>| {
            let id = components.len();
            components.push(component(id, label, kind, value));
            id
        };
        let inputs = endpoint.parameters.iter();
        let inputs: Vec<usize> = inputs
            .map(|one| add(one.label, &one.component, one.default.as_ref()))
            .collect();
        let outputs = endpoint.task.outputs().iter();
        let outputs: Vec<usize> = outputs
            .map(|(label, kind)| add(label, kind, None))
            .collect();
        dependencies.push(dependency(endpoint, &inputs, &outputs));
    }
    let ids: Vec<usize> = (0..components.len()).collect();
    let functions: Vec<usize> = (0..dependencies.len()).collect();
    let layout = json!({"id": components.len(), "children": []});
    let mut config = json!({
        "version": VERSION,
        "protocol": "sse_v3",
        "api_prefix": PREFIX,
        "mode": "blocks",
        "app_id": state.gradio.app_id,
        "title": "Girandole",
        "dev_mode": false,
        "analytics_enabled": false,
        "run_history": false,
        "connect_heartbeat": false,
        "enable_queue": true,
        "show_error": true,
        "is_colab": false,
        "space_id": null,
        "username": null,
        "max_file_size": state.config.max_body_bytes,
        "components": components,
        "dependencies": dependencies,
        "layout": layout,
        "pages": [["", "Home", true]],
        "page": {"": {"layout": layout, "components": ids, "dependencies": functions}},
    });
    // Without it clients go on with the address that they called, which is right behind any proxy.
    if let Some(url) = &state.config.public_url {
        config["root"] = url.as_str().into();
    }
    Json(config)
}

fn component(id: usize, label: &str, kind: &Component, value: Option<&Value>) -> Value {
    let name = kind.name().to_ascii_lowercase();
    json!({
        "id": id,
        "type": name,
        "props": {"label": label, "value": value, "name": name},
        "skip_api": false,
        "component_class_id": name,
        "key": null,
        "api_info": kind.schema(),
        "example_inputs": kind.example(),
    })
}

fn dependency(endpoint: &Endpoint, inputs: &[usize], outputs: &[usize]) -> Value {
    json!({
        "id": endpoint.fn_index,
        "targets": [],
        "inputs": inputs,
        "outputs": outputs,
        "backend_fn": true,
        "js": null,
        "queue": true,
        "api_name": endpoint.api_name,
        "api_description": endpoint.description(),
        "api_visibility": "public",
        "show_progress": "full",
        "batch": false,
        "max_batch_size": 1,
        "cancels": [],
        "types": {"generator": true, "cancel": false},
        "collects_event_data": false,
        "trigger_mode": "multiple",
        "rendered_in": null,
        "connection": "sse",
        "time_limit": null,
        "stream_every": 0.5,
    })
}

/// What each endpoint takes and gives.
#[utoipa::path(get, path = "/gradio_api/info", tag = "gradio",
    responses((status = 200, description = "the endpoints with their parameters")))]
pub(super) async fn info(State(state): State<Arc<AppState>>) -> Json<Value> {
    let endpoints = state.gradio.endpoints.iter();
    let named: Map<String, Value> = endpoints
        .map(|endpoint| (format!("/{}", endpoint.api_name), described(endpoint)))
        .collect();
    Json(json!({"named_endpoints": named, "unnamed_endpoints": {}}))
}

fn described(endpoint: &Endpoint) -> Value {
    let parameters: Vec<Value> = endpoint.parameters.iter().map(parameter).collect();
    let outputs = endpoint.task.outputs().iter();
    let returns: Vec<Value> = outputs
        .map(|(label, kind)| {
            json!({
                "label": label,
                "type": kind.schema(),
                "python_type": {"type": kind.python_type(), "description": ""},
                "component": kind.name(),
            })
        })
        .collect();
    json!({
        "parameters": parameters,
        "returns": returns,
        "api_visibility": "public",
        "description": endpoint.description(),
    })
}

fn parameter(parameter: &Parameter) -> Value {
    let kind = &parameter.component;
    json!({
        "label": parameter.label,
        "parameter_name": parameter.name,
        "parameter_has_default": parameter.default.is_some(),
        "parameter_default": parameter.default,
        "type": kind.schema(),
        "python_type": {"type": kind.python_type(), "description": ""},
        "component": kind.name(),
        "example_input": kind.example(),
    })
}

impl Endpoint {
    fn description(&self) -> String {
        let what = match self.task {
            Task::Chat => "answers a message with",
            Task::Generate => "continues a text with",
            Task::TextToImage => "draws from words with",
            Task::ImageToImage => "draws from a picture with",
        };
        format!("{what} {}", self.model.name)
    }
}

impl Component {
    /// Gradio's name of it.
    fn name(&self) -> &'static str {
        match self {
            Component::Textbox => "Textbox",
            Component::Number => "Number",
            Component::Json => "Json",
            Component::Dropdown(_) => "Dropdown",
            Component::Image => "Image",
            Component::Gallery => "Gallery",
        }
    }

    fn schema(&self) -> Value {
        match self {
            Component::Textbox => json!({"type": "string"}),
            Component::Number => json!({"type": "number"}),
            Component::Json => json!({"type": {}, "description": "any valid json"}),
            Component::Dropdown(choices) => json!({"type": "string", "enum": choices}),
            Component::Image => file_schema(),
            Component::Gallery => json!({
                "title": "GalleryData",
                "type": "array",
                "items": {
                    "title": "GalleryImage",
                    "type": "object",
                    "properties": {
                        "image": file_schema(),
                        "caption": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": null},
                    },
                },
            }),
        }
    }

    fn python_type(&self) -> String {
        match self {
            Component::Textbox => "str".into(),
            Component::Number => "float".into(),
            Component::Json => "str | float | bool | list | dict".into(),
            Component::Dropdown(choices) => {
                let quoted: Vec<String> = choices.iter().map(|one| format!("'{one}'")).collect();
                format!("Literal[{}]", quoted.join(", "))
            }
            Component::Image => "filepath".into(),
            Component::Gallery => "list[dict(image: filepath, caption: str | None)]".into(),
        }
    }

    fn example(&self) -> Value {
        match self {
            Component::Textbox => "Hello!!".into(),
            Component::Number => 3.into(),
            Component::Json => json!([{"role": "user", "content": "Hello!!"}]),
            Component::Dropdown(choices) => choices.first().cloned().into(),
            Component::Image | Component::Gallery => Value::Null,
        }
    }
}

/// Clients know files by `path` and `meta`.
fn file_schema() -> Value {
    let text = json!({"anyOf": [{"type": "string"}, {"type": "null"}], "default": null});
    json!({
        "title": "ImageData",
        "type": "object",
        "properties": {
            "path": text,
            "url": text,
            "size": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": null},
            "orig_name": text,
            "mime_type": text,
            "is_stream": {"type": "boolean", "default": false},
            "meta": {"type": "object", "default": {"_type": "gradio.FileData"}},
        },
    })
}

/// Whether it is still the same application: another number after every start.
pub(super) async fn app_id(State(state): State<Arc<AppState>>) -> Json<Value> {
    Json(json!({"app_id": state.gradio.app_id}))
}

/// Nothing waits for a first visitor.
pub(super) async fn startup_events() -> Json<bool> {
    Json(false)
}

/// How many wait, of all models together.
pub(super) async fn status(State(state): State<Arc<AppState>>) -> Json<Value> {
    let waiting = state.models.iter();
    let waiting: u32 = waiting
        .map(|model| model.engine.snapshot().waiting_requests)
        .sum();
    Json(json!({"msg": "estimation", "queue_size": waiting, "rank": null, "rank_eta": null}))
}
