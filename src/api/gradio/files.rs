//! Files in and out: `upload` and `file=PATH`. Paths are names that this file has given; none of them is a
//! path of a disk, and a client's own names are never used.

use std::fmt;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::{Value, json};

use super::GradioError;
use super::uploads::Uploads;
use crate::api::auth::Caller;
use crate::api::error::ApiError;
use crate::api::native::artifact;
use crate::api::picture_file::preview_encoding;
use crate::api::picture_file::{DEFAULT_QUALITY, encoded, media_type_of, name_of};
use crate::api::submit::find;
use crate::api::{AppState, form};
use crate::events::EventKind;
use crate::events::store::SharedLog;
use crate::intake::picture_file::PictureFile;
use crate::intake::{Invalid, InvalidKind};
use crate::job::RequestId;
use crate::picture::{Picture, PictureFormat};

/// Before a file's path in its address.
pub(super) const MOUNT: &str = "/gradio_api/file=";

/// What a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FilePath {
    /// What a client has sent.
    Upload(u128, PictureFormat),
    /// A request's picture.
    Picture(RequestId, u32),
    /// What one looked like after so many steps, or what it has come to since.
    Preview(RequestId, u32, u32),
}

/// A file to be sent, or to be drawn from.
pub(super) struct File {
    pub(super) bytes: Bytes,
    format: PictureFormat,
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FilePath::Upload(id, format) => {
                write!(f, "{}{id:032x}.{}", Uploads::FOLDER, name_of(*format))
            }
            FilePath::Picture(id, index) => write!(f, "requests/{id}/images/{index}.png"),
            FilePath::Preview(id, index, step) => {
                write!(f, "requests/{id}/previews/{index}-{step}.png")
            }
        }
    }
}

impl FilePath {
    /// The file that this path names, if it is one of ours.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (folder, name) = text.rsplit_once('/')?;
        let (stem, extension) = name.split_once('.')?;
        if format!("{folder}/") == Uploads::FOLDER {
            let known = [PictureFormat::Png, PictureFormat::Jpeg, PictureFormat::WebP];
            let format = known
                .into_iter()
                .find(|format| name_of(*format) == extension)?;
            // An id has the form of a request's.
            let _: RequestId = stem.parse().ok()?;
            let id = u128::from_str_radix(stem, 16).ok()?;
            return Some(FilePath::Upload(id, format));
        }
        let (id, kind) = folder.strip_prefix("requests/")?.split_once('/')?;
        let id = id.parse().ok()?;
        match (kind, extension) {
            ("images", "png") => Some(FilePath::Picture(id, stem.parse().ok()?)),
            ("previews", "png") => {
                let (index, step) = stem.split_once('-')?;
                Some(FilePath::Preview(
                    id,
                    index.parse().ok()?,
                    step.parse().ok()?,
                ))
            }
            _ => None,
        }
    }

    /// The caller's file of this path.
    ///
    /// # Errors
    /// 404 if there is none, 410 if its request is not kept any longer.
    pub(super) async fn read(
        self,
        state: &Arc<AppState>,
        caller: &Caller,
    ) -> Result<File, ApiError> {
        let (picture, encoding) = match self {
            FilePath::Upload(id, _) => {
                let upload = state.gradio.uploads.get(id, caller);
                let upload = upload.ok_or_else(no_such_file)?;
                return Ok(File {
                    bytes: upload.bytes,
                    format: upload.format,
                });
            }
            FilePath::Picture(id, index) => {
                let (request, log) = find(state, id, caller)?;
                let parameters = request.picture.as_ref().ok_or_else(no_such_file)?;
                let (picture, seed) = artifact::find(&log, parameters.images, index)?;
                let encoding = parameters.encoding(PictureFormat::Png, DEFAULT_QUALITY, seed);
                (picture, encoding)
            }
            FilePath::Preview(id, index, _) => {
                let (_, log) = find(state, id, caller)?;
                let latest = latest(&log, index).ok_or_else(no_such_file)?;
                (latest, preview_encoding())
            }
        };
        let format = encoding.format;
        let bytes = encoded(&picture, encoding).await?.to_vec().into();
        Ok(File { bytes, format })
    }
}

/// What a picture looks like by now. The log forgets previews that are outdated, so a path to one of these
/// leads on.
fn latest(log: &SharedLog, index: u32) -> Option<Arc<Picture>> {
    let events = log.read_from(1).into_iter().rev();
    events
        .filter_map(|event| match event.kind {
            EventKind::Preview {
                choice, picture, ..
            }
            | EventKind::Image {
                choice, picture, ..
            } => (choice == index).then_some(picture),
            _ => None,
        })
        .next()
}

fn no_such_file() -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "file_not_found",
        "there is no file at this path",
    )
}

/// A file as Gradio's values hold it.
pub(super) fn file_data(address: &str, path: FilePath) -> Value {
    let (path, name) = (path.to_string(), "image.png");
    json!({
        "path": path,
        "url": format!("{address}{MOUNT}{path}"),
        "size": null,
        "orig_name": name,
        "mime_type": "image/png",
        "is_stream": false,
        "meta": {"_type": "gradio.FileData"},
    })
}

/// `upload`: pictures in the form's fields `files`. Answers with a path for each.
#[utoipa::path(post, path = "/gradio_api/upload", tag = "gradio",
    responses(
        (status = 200, description = "a path for each file", body = Vec<String>),
        (status = 413, description = "the body is larger than `max_body_bytes`"),
        (status = 422, description = "no form, or a file that is no PNG, JPEG or WebP"),
        (status = 503, description = "no room for more files; see Retry-After"),
    ))]
pub(super) async fn upload(
    State(state): State<Arc<AppState>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Vec<String>>, GradioError> {
    const FIELD: &str = "files";
    let content_type = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .filter(|value| form::is_form(value))
        .ok_or_else(|| Invalid::new(InvalidKind::Body, FIELD, "must come in a form"))?;
    let mut files = Vec::new();
    for part in form::parse(content_type, &body)? {
        if part.name != FIELD {
            let message = "is not a field of this form; files is";
            return Err(Invalid::new(InvalidKind::Unknown, short(part.name), message).into());
        }
        let format = PictureFile::new(part.content.clone()).format(FIELD)?;
        // A copy, so that no more is kept than what was counted: the part is a slice of the body.
        files.push((format, Bytes::copy_from_slice(&part.content)));
    }
    if files.is_empty() {
        return Err(Invalid::new(InvalidKind::Missing, FIELD, "is required").into());
    }
    let formats: Vec<PictureFormat> = files.iter().map(|(format, _)| *format).collect();
    let ids = state.gradio.uploads.keep(&caller, files)?;
    let paths = ids.into_iter().zip(formats);
    Ok(Json(
        paths
            .map(|(id, format)| FilePath::Upload(id, format).to_string())
            .collect(),
    ))
}

/// Enough of a client's name to be recognised.
fn short(name: String) -> String {
    name.chars().take(64).collect()
}

/// `file=PATH`: a picture that was drawn, a preview, or an upload. Every other path below the prefix that is
/// not served ends here too.
pub(super) async fn file(
    State(state): State<Arc<AppState>>,
    Extension(caller): Extension<Caller>,
    Path(path): Path<String>,
) -> Result<Response, GradioError> {
    let path = path
        .strip_prefix("file=")
        .and_then(FilePath::parse)
        .ok_or_else(no_such_file)?;
    let file = path.read(&state, &caller).await?;
    let mut response = file.bytes.into_response();
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static(media_type_of(file.format)),
    );
    let kept = match path {
        FilePath::Preview(..) => "no-store",
        _ => "private, max-age=600, immutable",
    };
    headers.insert(CACHE_CONTROL, HeaderValue::from_static(kept));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_come_back_as_they_went_out() {
        let id = RequestId::from_u128(7);
        for path in [
            FilePath::Upload(9, PictureFormat::WebP),
            FilePath::Picture(id, 3),
            FilePath::Preview(id, 0, 12),
        ] {
            assert_eq!(FilePath::parse(&path.to_string()), Some(path));
        }
    }

    #[test]
    fn other_paths_are_nobodys() {
        let id = RequestId::from_u128(7);
        for path in [
            String::new(),
            "/etc/passwd".into(),
            "uploads/../../etc/passwd.png".into(),
            "uploads/7.png".into(),
            format!("uploads/{id}.gif"),
            format!("uploads/{id}"),
            format!("../uploads/{id}.png"),
            format!("requests/{id}/images/-1.png"),
            format!("requests/{id}/images/1.jpg"),
            format!("requests/{id}/previews/1.png"),
            format!("requests/{id}/1.png"),
        ] {
            assert_eq!(FilePath::parse(&path), None, "{path}");
        }
    }
}
