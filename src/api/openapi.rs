//! The API's own description, and a page to browse it that needs no network.

use std::sync::Arc;

use axum::Router;
use utoipa::OpenApi;
use utoipa_swagger_ui::SwaggerUi;

use super::{AppState, admin, gradio, native, openai, ops, sdapi};

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
        native::artifact::image,
        native::session::events,
        ops::models,
        ops::live,
        ops::ready,
        ops::metrics,
        ops::load,
        admin::overview,
        admin::history,
        admin::cancel,
        admin::drain,
    ),
    components(schemas(
        native::wire::Queued,
        native::wire::ChoicesFrame,
        native::wire::PromptLogprobsFrame,
        native::wire::FinishedFrame,
        native::wire::FailedFrame,
        native::wire::SessionFrame,
        native::wire::GoneBody,
        native::wire_image::ImageSubmitBody,
        native::wire_image::ImagesFrame<native::wire_image::ProgressBody>,
        native::wire_image::ImagesFrame<native::wire_image::PreviewBody>,
        native::wire_image::ImagesFrame<native::wire_image::DrawnImage>,
    )),
    tags(
        (name = "native", description = "submit, follow, ask, cancel"),
        (name = "openai", description = "for clients of OpenAI's API and of vLLM's additions to it; \
            what is not served is refused by name"),
        (name = "operations", description = "health, metrics, load"),
        (name = "admin", description = "for the operator's page; asks for a key of its own, and is \
            off without one"),
    )
)]
struct Description;

/// `/openapi.json` and `/docs`.
pub(super) fn routes() -> Router<Arc<AppState>> {
    SwaggerUi::new("/docs")
        .url(
            "/openapi.json",
            Description::openapi()
                .merge_from(openai::description())
                .merge_from(sdapi::description())
                .merge_from(gradio::description()),
        )
        .into()
}
