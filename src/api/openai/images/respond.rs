//! Submits an image request and answers: with a stream, or with all pictures at the end.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_TYPE, HOST};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::body::Body;
use super::request::{Call, Route, read};
use super::stream::ImageDialect;
use super::{ImageShape, UsageBody, size_of};
use crate::api::auth::Caller;
use crate::api::blocking::read_body;
use crate::api::error::{ApiError, ErrorShape, OpenAiError};
use crate::api::layers::with_id;
use crate::api::native::image_path;
use crate::api::openai::ReplyShape;
use crate::api::openai::respond::until_closed;
use crate::api::openai::stream::cancelled;
use crate::api::picture_file::{in_base64, max_side, name_of};
use crate::api::requests::Request;
use crate::api::submit::{Accepted, Idempotency, OnDisconnect, SubmitOptions, submit};
use crate::api::{AppState, ServedModel, sse};
use crate::batch::FinishReason;
use crate::events::EventKind;
use crate::intake::{Draft, Intake};
use crate::picture::PictureFormat;

/// All pictures.
#[derive(Debug, Serialize)]
struct ImagesBody {
    created: u64,
    background: &'static str,
    output_format: &'static str,
    size: String,
    data: Vec<ImageBody>,
    usage: UsageBody,
}

/// One picture; its seed is our own addition.
#[derive(Debug, Serialize)]
struct ImageBody {
    #[serde(skip_serializing_if = "Option::is_none")]
    b64_json: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    seed: u64,
}

/// Answers a request.
///
/// # Errors
/// Whatever refuses it.
pub(super) async fn respond(
    state: &Arc<AppState>,
    route: Route,
    caller: Caller,
    headers: &HeaderMap,
    bytes: Bytes,
) -> Result<Response, OpenAiError> {
    // What the body held has been read then: it is not kept while the pictures are drawn.
    let (known, head) = (Arc::clone(state), headers.clone());
    let (model, idempotency, call) = read_body(bytes, move |bytes| {
        let content_type = head.get(CONTENT_TYPE);
        let content_type = content_type.and_then(|value| value.to_str().ok());
        let mut body = Body::parse(content_type.unwrap_or_default(), bytes)?;
        let name = body.fields.string("model")?;
        let model = Arc::clone(model_of(&known, name.as_deref())?);
        model.intake.image()?;
        let idempotency = Idempotency::from_headers(&head, route.path(), &body.identity)?;
        let call = read(body, route, known.config.max_deadline)?;
        Ok::<_, ApiError>((model, idempotency, call))
    })
    .await?;
    let Call {
        draft,
        shape,
        stream,
        as_urls,
        deadline,
    } = call;
    let options = SubmitOptions {
        caller,
        deadline,
        priority: None,
        idempotency,
        on_disconnect: OnDisconnect::AbandonAfter(state.config.openai_grace),
        openai: Some(ReplyShape::Images(shape.clone())),
        dialect: "openai",
    };
    let accepted = submit(state, &model, Draft::Image(draft), options).await?;
    check_sides(&accepted, shape.format)?;
    let id = accepted.request.id;
    if stream {
        let dialect = Box::new(ImageDialect::of(&accepted.request));
        let stream = sse::answer(state, &accepted.request, accepted.log, dialect);
        return Ok(with_id(stream, id));
    }
    let base = as_urls.then(|| base_url(headers));
    let response = match whole(&accepted, &shape, base).await {
        Ok(body) => Json(body).into_response(),
        Err(error) => error.into_response_as(ErrorShape::OpenAi),
    };
    Ok(with_id(response, id))
}

/// The model of this name; for none the first that draws.
fn model_of<'a>(state: &'a AppState, name: Option<&str>) -> Result<&'a Arc<ServedModel>, ApiError> {
    let draws = |model: &&Arc<ServedModel>| matches!(model.intake, Intake::Image(_));
    match (name, state.models.iter().find(draws)) {
        (None, Some(model)) => Ok(model),
        (name, _) => state.model(name),
    }
}

/// Gives up a request whose pictures the format cannot hold.
fn check_sides(accepted: &Accepted, format: PictureFormat) -> Result<(), ApiError> {
    let most = max_side(format);
    let fits = |side: u32| side <= most;
    let request = &accepted.request;
    match &request.picture {
        Some(picture) if !fits(picture.width) || !fits(picture.height) => {
            request.give_up();
            request.model.engine.cancel(request.id);
            Err(ApiError::invalid(
                "output_format",
                format!(
                    "output_format {} holds at most {most} pixels a side",
                    name_of(format)
                ),
            ))
        }
        _ => Ok(()),
    }
}

/// Waits for the end and writes the reply.
///
/// # Errors
/// The request failed or was cancelled.
async fn whole(
    accepted: &Accepted,
    shape: &ImageShape,
    base: Option<String>,
) -> Result<ImagesBody, ApiError> {
    let request = &accepted.request;
    let mut pictures = BTreeMap::new();
    let mut usage = None;
    for event in until_closed(&accepted.log).await {
        match event.kind {
            EventKind::Image {
                choice,
                picture,
                seed,
            } => {
                pictures.insert(choice, (picture, seed));
            }
            EventKind::ChoiceFinished {
                reason: FinishReason::Cancelled,
                ..
            } => return Err(cancelled()),
            EventKind::Failed { failure, .. } => return Err(ApiError::from(&failure)),
            EventKind::Finished { usage: used } => usage = Some(used),
            _ => {}
        }
    }
    // The engine closes every log with a terminal event, and the model draws what it was asked for.
    let (Some(usage), Some(parameters)) = (usage, &request.picture) else {
        return Err(ApiError::internal());
    };
    let mut data = Vec::with_capacity(pictures.len());
    for (index, (picture, seed)) in pictures {
        let encoding = parameters.encoding(shape.format, shape.quality, seed);
        data.push(match &base {
            Some(base) => ImageBody {
                b64_json: None,
                url: Some(url(base, request, index, shape)),
                seed,
            },
            None => ImageBody {
                b64_json: Some(in_base64(&picture, encoding).await?),
                url: None,
                seed,
            },
        });
    }
    Ok(ImagesBody {
        created: request.created,
        background: "opaque",
        output_format: name_of(shape.format),
        size: size_of(parameters),
        data,
        usage: UsageBody::new(usage.prompt_tokens, usage.denoising_steps),
    })
}

/// Where a picture is found, in the format that was asked for.
fn url(base: &str, request: &Request, index: u32, shape: &ImageShape) -> String {
    let path = image_path(request.id, index);
    let quality = match shape.format {
        PictureFormat::Jpeg => format!("&quality={}", shape.quality),
        PictureFormat::Png | PictureFormat::WebP => String::new(),
    };
    format!("{base}{path}?format={}{quality}", name_of(shape.format))
}

/// The service's own address as the client called it; empty, which makes paths of its addresses, where
/// that cannot be told.
fn base_url(headers: &HeaderMap) -> String {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let host = text(HOST.as_str()).filter(|host| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
        !host.is_empty() && host.bytes().all(plain)
    });
    // A proxy that speaks TLS for us says so.
    let scheme = match text("x-forwarded-proto") {
        Some("https") => "https",
        _ => "http",
    };
    host.map(|host| format!("{scheme}://{host}"))
        .unwrap_or_default()
}
