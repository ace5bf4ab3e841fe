//! The API's own description, and a page to browse it that needs no network.

use std::sync::Arc;

use axum::Router;
use utoipa::OpenApi;
use utoipa::openapi::path::{HttpMethod, Operation, OperationBuilder};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::{Content, Object, ResponseBuilder};
use utoipa_swagger_ui::SwaggerUi;

use super::{AppState, native, ops};

/// The description: `/openapi.json`.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Girandole",
        description = "Dynamic-batching inference: many requests share one batch, each has its own \
            event log, and a cut stream goes on where it stopped."
    ),
    paths(
        native::create,
        native::show,
        native::events,
        native::cancel,
        ops::models,
        ops::live,
        ops::ready,
        ops::metrics,
        ops::load,
    ),
    components(schemas(
        native::wire::Queued,
        native::wire::ChoicesFrame,
        native::wire::PromptLogprobsFrame,
        native::wire::FinishedFrame,
        native::wire::FailedFrame,
    )),
    tags(
        (name = "native", description = "submit, follow, ask, cancel"),
        (name = "openai", description = "for clients of OpenAI's API; their reference describes the \
            bodies, and what is not served is refused by name"),
        (name = "operations", description = "health, metrics, load"),
    )
)]
struct Description;

/// Routes whose bodies are described elsewhere: method, path, what it does.
const BY_REFERENCE: [(HttpMethod, &str, &str); 7] = [
    (
        HttpMethod::Post,
        "/v1/chat/completions",
        "Answers a chat; with `stream`, as a stream.",
    ),
    (
        HttpMethod::Post,
        "/v1/completions",
        "Continues a text; with `stream`, as a stream.",
    ),
    (HttpMethod::Get, "/v1/models", "The models served."),
    (HttpMethod::Get, "/v1/models/{id}", "One model."),
    (
        HttpMethod::Post,
        "/tokenize",
        "The token ids of a text or of a chat.",
    ),
    (HttpMethod::Post, "/detokenize", "The text of token ids."),
    (
        HttpMethod::Post,
        "/apply-template",
        "The prompt that the chat template makes of a chat.",
    ),
];

fn by_reference(method: &HttpMethod, summary: &str) -> Operation {
    let json = || Content::new(Some(Object::new()));
    let answer = ResponseBuilder::new()
        .description("as in OpenAI's reference, or vLLM's for the last three routes")
        .content("application/json", json());
    let operation = OperationBuilder::new()
        .tag("openai")
        .summary(Some(summary))
        .response("200", answer);
    match method {
        HttpMethod::Post => {
            let body = RequestBodyBuilder::new().content("application/json", json());
            operation.request_body(Some(body.build())).build()
        }
        _ => operation.build(),
    }
}

/// `/openapi.json` and `/docs`.
pub(super) fn routes() -> Router<Arc<AppState>> {
    let mut description = Description::openapi();
    for (method, path, summary) in BY_REFERENCE {
        let operation = by_reference(&method, summary);
        description
            .paths
            .add_path_operation(path, vec![method], operation);
    }
    SwaggerUi::new("/docs")
        .url("/openapi.json", description)
        .into()
}
