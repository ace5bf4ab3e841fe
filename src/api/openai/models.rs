//! `GET /v1/models` and `GET /v1/models/{id}`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};

use super::types::{ModelBody, ModelList};
use crate::api::error::OpenAiError;
use crate::api::{AppState, ServedModel};
use crate::intake::Intake;

fn body(model: &ServedModel) -> ModelBody {
    ModelBody {
        id: model.name.clone(),
        object: "model",
        created: model.created,
        owned_by: "girandole",
        task: match model.intake {
            Intake::Text(_) => "text",
            Intake::Image(_) => "image",
        },
        max_model_len: model.intake.text().ok().map(|text| text.max_context),
    }
}

/// All models.
#[utoipa::path(get, path = "/v1/models", tag = "openai",
    responses((status = 200, body = ModelList)))]
pub(super) async fn list(State(state): State<Arc<AppState>>) -> Json<ModelList> {
    Json(ModelList {
        object: "list",
        data: state.models.iter().map(|model| body(model)).collect(),
    })
}

/// One of them. A model's name may hold slashes.
#[utoipa::path(get, path = "/v1/models/{id}", tag = "openai",
    params(("id" = String, Path, description = "its name")),
    responses(
        (status = 200, body = ModelBody),
        (status = 404, description = "there is no such model"),
    ))]
pub(super) async fn retrieve(
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
) -> Result<Json<ModelBody>, OpenAiError> {
    Ok(Json(body(state.model(Some(&id))?)))
}
