//! A request's pictures as files.

use std::sync::Arc;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use super::{IMAGE, QueryFields, header_value, lookup, no_more, read_query, with_id};
use crate::api::AppState;
use crate::api::auth::Caller;
use crate::api::error::ApiError;
use crate::api::picture_file::{DEFAULT_QUALITY, encoded, format_of, media_type_of, name_of};
use crate::events::EventKind;
use crate::events::store::SharedLog;
use crate::picture::{Picture, PictureFormat};

/// A picture as a file.
///
/// It never changes, so a client may keep it; a PNG tells what it was made of in its `parameters`.
#[utoipa::path(get, path = IMAGE, tag = "native",
    params(
        ("id" = String, Path, description = "the request's id"),
        ("index" = u32, Path, description = "which of its pictures, from 0"),
        ("format" = Option<String>, Query, description = "`png` (default), `jpeg`, or `webp` without loss"),
        ("quality" = Option<u8>, Query, description = "of a JPEG, 1 to 100; 90 if left out"),
        ("If-None-Match" = Option<String>, Header, description = "the ETag of a file at hand"),
    ),
    responses(
        (status = 200, description = "the file", content_type = "image/png"),
        (status = 304, description = "the file at hand is the one"),
        (status = 400, description = "no such format or quality"),
        (status = 404, description = "there is no such request or picture, or it is not there yet"),
        (status = 410, description = "its events are not kept any longer"),
    ))]
pub(in crate::api) async fn image(
    State(state): State<Arc<AppState>>,
    Extension(caller): Extension<Caller>,
    Path((id, index)): Path<(String, String)>,
    query: Result<Query<QueryFields>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let (request, log) = lookup(&state, &id, &caller)?;
    let mut query = read_query(query)?;
    let format = format(query.remove("format").as_deref())?;
    let quality = quality(query.remove("quality").as_deref(), format)?;
    no_more(query)?;
    let _reader = request.reader();
    let parameters = request.picture.as_ref().ok_or_else(no_such_picture)?;
    let index = index.parse().map_err(|_| no_such_picture())?;
    let (picture, seed) = find(&log, parameters.images, index)?;

    let tag = format!("\"{}-{index}-{}-{quality}\"", request.id, name_of(format));
    let known = headers.get_all(IF_NONE_MATCH).iter().any(|value| {
        let tags = value.to_str().unwrap_or_default().split(',');
        tags.map(str::trim)
            .any(|known| known == "*" || known.trim_start_matches("W/") == tag)
    });
    let mut response = match known {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => {
            let encoding = parameters.encoding(format, quality, seed);
            let file = encoded(&picture, encoding).await?;
            let mut response = Bytes::from_owner(file).into_response();
            let media_type = HeaderValue::from_static(media_type_of(format));
            response.headers_mut().insert(CONTENT_TYPE, media_type);
            response
        }
    };
    let headers = response.headers_mut();
    headers.insert(ETAG, header_value(&tag));
    headers.insert(
        CACHE_CONTROL,
        HeaderValue::from_static("private, max-age=86400, immutable"),
    );
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(with_id(response, request.id))
}

fn format(name: Option<&str>) -> Result<PictureFormat, ApiError> {
    match name {
        None => Ok(PictureFormat::Png),
        Some(name) => format_of(name)
            .ok_or_else(|| ApiError::invalid("format", "format must be png, jpeg or webp")),
    }
}

fn quality(text: Option<&str>, format: PictureFormat) -> Result<u8, ApiError> {
    const FIELD: &str = "quality";
    let Some(text) = text else {
        return Ok(DEFAULT_QUALITY);
    };
    if format != PictureFormat::Jpeg {
        return Err(ApiError::invalid(
            FIELD,
            "quality is allowed only with format jpeg",
        ));
    }
    text.parse()
        .ok()
        .filter(|quality| (1..=100).contains(quality))
        .ok_or_else(|| ApiError::invalid(FIELD, "quality must be 1 to 100"))
}

/// The picture and its seed.
///
/// # Errors
/// 404: there is no picture of this number, or it is not there yet.
pub(in crate::api) fn find(
    log: &SharedLog,
    images: u32,
    index: u32,
) -> Result<(Arc<Picture>, u64), ApiError> {
    let ended = log.is_closed();
    let drawn = log
        .read_from(1)
        .into_iter()
        .find_map(|event| match event.kind {
            EventKind::Image {
                choice,
                picture,
                seed,
            } if choice == index => Some((picture, seed)),
            _ => None,
        });
    drawn.ok_or_else(|| match ended || index >= images {
        true => no_such_picture(),
        false => ApiError::new(
            StatusCode::NOT_FOUND,
            "image_not_ready",
            "the picture is not there yet",
        ),
    })
}

pub(in crate::api) fn no_such_picture() -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "image_not_found",
        "the request has no picture of this number",
    )
}
