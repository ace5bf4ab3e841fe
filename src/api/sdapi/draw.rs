//! `txt2img` and `img2img`: submit, wait, answer.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};

use super::options::ChosenModels;
use super::read::{self, Endpoint};
use super::reply::{self, Drawn};
use super::tasks::Tasks;
use super::who::Who;
use super::{WebUiError, wire};
use crate::api::AppState;
use crate::api::blocking::on_blocking_pool;
use crate::api::error::ApiError;
use crate::api::layers::with_id;
use crate::api::submit::{Idempotency, OnDisconnect, SubmitOptions, submit};
use crate::intake::Draft;

/// Draws from words.
///
/// Answers when the pictures are there. `force_task_id` names the task for `progress` and `interrupt`.
#[utoipa::path(post, path = "/sdapi/v1/txt2img", tag = "web UI",
    request_body = wire::TextToImageBody,
    responses(
        (status = 200, description = "the pictures; those that were finished, after an interrupt",
            body = wire::Reply),
        (status = 400, description = "a field is wrong; it is named"),
        (status = 404, description = "there is no such model"),
        (status = 429, description = "the queue is full; see Retry-After"),
        (status = 503, description = "loading or draining; see Retry-After"),
    ))]
pub(super) async fn txt2img(
    State(state): State<Arc<AppState>>,
    Extension(tasks): Extension<Arc<Tasks>>,
    Extension(chosen): Extension<Arc<ChosenModels>>,
    who: Who,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, WebUiError> {
    let model = chosen.of(&state, &who)?;
    let client = Client {
        who,
        headers,
        endpoint: Endpoint::TextToImage,
    };
    draw(&state, &tasks, model, client, body).await
}

/// Draws from a picture, or a masked part of it anew.
#[utoipa::path(post, path = "/sdapi/v1/img2img", tag = "web UI",
    request_body = wire::ImageToImageBody,
    responses(
        (status = 200, description = "as of txt2img", body = wire::Reply),
        (status = 400, description = "a field is wrong; it is named"),
        (status = 404, description = "there is no such model"),
        (status = 429, description = "the queue is full; see Retry-After"),
        (status = 503, description = "loading or draining; see Retry-After"),
    ))]
pub(super) async fn img2img(
    State(state): State<Arc<AppState>>,
    Extension(tasks): Extension<Arc<Tasks>>,
    Extension(chosen): Extension<Arc<ChosenModels>>,
    who: Who,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, WebUiError> {
    let model = chosen.of(&state, &who)?;
    let client = Client {
        who,
        headers,
        endpoint: Endpoint::ImageToImage,
    };
    draw(&state, &tasks, model, client, body).await
}

/// Who calls what.
struct Client {
    who: Who,
    headers: HeaderMap,
    endpoint: Endpoint,
}

async fn draw(
    state: &Arc<AppState>,
    tasks: &Tasks,
    model: Arc<crate::api::ServedModel>,
    client: Client,
    body: Bytes,
) -> Result<Response, WebUiError> {
    let endpoint = client.endpoint;
    let (known, headers) = (Arc::clone(state), client.headers);
    let (idempotency, call) = on_blocking_pool(move || {
        let idempotency = Idempotency::from_headers(&headers, endpoint.path(), &body)?;
        Ok::<_, ApiError>((idempotency, read::read(&known, endpoint, model, &body)?))
    })
    .await?;
    let options = SubmitOptions {
        caller: client.who.caller(),
        deadline: None,
        priority: None,
        idempotency,
        on_disconnect: OnDisconnect::AbandonAfter(state.config.openai_grace),
        openai: None,
        dialect: "sdapi",
    };
    let task = tasks.arrive(client.who, call.task_id);
    let accepted = submit(state, &call.model, Draft::Image(call.draft), options).await?;
    let (request, log, _reader) = (accepted.request, accepted.log, accepted.reader);
    task.accept(&request, &log);

    log.until_closed().await;
    let answer = match Drawn::from_events(&log.read_from(1)) {
        Err(failed) => WebUiError(failed).into_response(),
        Ok(drawn) => {
            let parameters = request.picture.as_ref().ok_or_else(ApiError::internal)?;
            let shape = reply::Shape {
                parameters,
                batch_size: call.batch_size,
                send_images: call.send_images,
                created: request.created,
                stopped: task.stopped(),
            };
            Json(reply::reply(&shape, &drawn, call.echo).await?).into_response()
        }
    };
    Ok(with_id(answer, request.id))
}
