//! From the body of an image request to a draft.

use std::time::Duration;

use serde_json::{Value, json};

use super::ImageShape;
use super::body::Body;
use crate::api::openai::request::{missing, read_deadline};
use crate::api::picture_file::format_of;
use crate::intake::image::{FieldNames, PreviewDraft};
use crate::intake::picture_file::{DrawnWhere, MaskFile, PictureFile};
use crate::intake::{Fields, ImageDraft, Invalid, InvalidKind};
use crate::picture::PictureFormat;

/// Which of the two endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Generations,
    Edits,
}

impl Route {
    pub(super) fn path(self) -> &'static str {
        match self {
            Route::Generations => "/v1/images/generations",
            Route::Edits => "/v1/images/edits",
        }
    }
}

/// A body that has been read: what to draw, and how to show it.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) draft: ImageDraft,
    pub(super) shape: ImageShape,
    pub(super) stream: bool,
    /// Tell where the pictures are, and not the pictures.
    pub(super) as_urls: bool,
    pub(super) deadline: Option<Duration>,
}

/// OpenAI's limit.
const MAX_PARTIAL_IMAGES: u64 = 3;

/// Reads a body's fields.
///
/// # Errors
/// See [`Invalid`].
pub(super) fn read(mut body: Body, route: Route, max_deadline: Duration) -> Result<Call, Invalid> {
    let fields = &mut body.fields;
    let prompt = fields.string("prompt")?.ok_or_else(|| missing("prompt"))?;
    let mut draft = ImageDraft {
        names: FieldNames {
            width: "size",
            height: "size",
            schedule: "scheduler",
            ..FieldNames::default()
        },
        n: fields.count("n")?,
        seed: fields.seed("seed")?,
        negative_prompt: fields.string("negative_prompt")?,
        guidance_scale: fields.number("guidance_scale")?,
        clip_skip: fields.count("clip_skip")?,
        schedule: fields.string("scheduler")?,
        strength: fields.number("strength")?,
        ..ImageDraft::new(prompt)
    };
    (draft.width, draft.height) = read_size(fields)?;
    read_steps(fields, &mut draft)?;
    let (format, quality) = read_format(fields)?;
    let stream = fields.boolean("stream")?.unwrap_or(false);
    draft.previews = read_partial_images(fields, stream)?;
    let include_progress = read_stream_options(fields, stream)?;
    let as_urls = read_response_format(fields, stream)?;
    let deadline = read_deadline(fields, max_deadline)?;
    fields.string("user")?;
    fields.only("quality", &[json!("auto"), json!("standard")])?;
    fields.only("style", &[json!("vivid")])?;
    fields.only("background", &[json!("auto"), json!("opaque")])?;
    fields.only("moderation", &[json!("auto"), json!("low")])?;
    let is_edit = route == Route::Edits;
    if is_edit {
        fields.only("input_fidelity", &[json!("low")])?;
        read_pictures(&mut body, &mut draft)?;
    }
    body.finish()?;
    Ok(Call {
        draft,
        shape: ImageShape {
            is_edit,
            format,
            quality,
            include_progress,
        },
        stream,
        as_urls,
        deadline,
    })
}

/// `auto`, or width and height.
fn read_size(fields: &mut Fields) -> Result<(Option<u64>, Option<u64>), Invalid> {
    let Some(size) = fields.string("size")?.filter(|size| size != "auto") else {
        return Ok((None, None));
    };
    let side = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|_| digits)
    };
    size.split_once('x')
        .and_then(|(width, height)| Some((Some(side(width)?), Some(side(height)?))))
        .ok_or_else(|| Invalid::value("size", "must be auto, or width and height such as 512x512"))
}

/// `steps`, and its longer name.
fn read_steps(fields: &mut Fields, draft: &mut ImageDraft) -> Result<(), Invalid> {
    const LONG: &str = "num_inference_steps";
    draft.steps = fields.count("steps")?;
    if let Some(steps) = fields.count(LONG)? {
        if draft.steps.is_some_and(|other| other != steps) {
            let message = "must equal steps where both are given";
            return Err(Invalid::value(LONG, message));
        }
        draft.steps = Some(steps);
        draft.names.steps = LONG;
    }
    Ok(())
}

/// The files' format and, of a JPEG, quality.
fn read_format(fields: &mut Fields) -> Result<(PictureFormat, u8), Invalid> {
    const COMPRESSION: &str = "output_compression";
    let format = match fields.string("output_format")? {
        None => PictureFormat::Png,
        Some(name) => format_of(&name)
            .ok_or_else(|| Invalid::value("output_format", "must be png, jpeg or webp"))?,
    };
    let quality = match fields.count(COMPRESSION)? {
        None => 100,
        Some(quality @ 0..=100) => quality as u8,
        Some(_) => return Err(Invalid::value(COMPRESSION, "must be 0 to 100")),
    };
    if format != PictureFormat::Jpeg && quality != 100 {
        return Err(Invalid::new(
            InvalidKind::Unsupported,
            COMPRESSION,
            "is for jpeg: png and webp lose nothing here, and take only 100",
        ));
    }
    Ok((format, quality.max(1)))
}

fn read_partial_images(fields: &mut Fields, stream: bool) -> Result<PreviewDraft, Invalid> {
    const FIELD: &str = "partial_images";
    match fields.count(FIELD)? {
        None | Some(0) => Ok(PreviewDraft::None),
        Some(count @ ..=MAX_PARTIAL_IMAGES) if stream => Ok(PreviewDraft::Count(count as u32)),
        Some(..=MAX_PARTIAL_IMAGES) => {
            Err(Invalid::value(FIELD, "is allowed only when stream is true"))
        }
        Some(_) => Err(Invalid::value(
            FIELD,
            format!("must be 0 to {MAX_PARTIAL_IMAGES}"),
        )),
    }
}

/// Whether progress is told too.
fn read_stream_options(fields: &mut Fields, stream: bool) -> Result<bool, Invalid> {
    match fields.nested("stream_options")? {
        None => Ok(false),
        Some(_) if !stream => Err(Invalid::value(
            "stream_options",
            "is allowed only when stream is true",
        )),
        Some(mut options) => {
            let include_progress = options.boolean("include_progress")?.unwrap_or(false);
            options.finish()?;
            Ok(include_progress)
        }
    }
}

/// Whether addresses are told instead of pictures.
fn read_response_format(fields: &mut Fields, stream: bool) -> Result<bool, Invalid> {
    const FIELD: &str = "response_format";
    match fields.string(FIELD)?.as_deref() {
        None | Some("b64_json") => Ok(false),
        Some("url") if stream => Err(Invalid::new(
            InvalidKind::Unsupported,
            FIELD,
            "must be b64_json in a stream",
        )),
        Some("url") => Ok(true),
        Some(_) => Err(Invalid::value(FIELD, "must be b64_json or url")),
    }
}

/// The picture to edit and the mask.
fn read_pictures(body: &mut Body, draft: &mut ImageDraft) -> Result<(), Invalid> {
    let mut pictures = body.files("image");
    pictures.extend(texts(&mut body.fields, "image")?);
    if let Some(list) = body.fields.take("images") {
        if !pictures.is_empty() {
            return Err(Invalid::value("images", "excludes image"));
        }
        draft.names.source = "images";
        let Value::Array(items) = list else {
            return Err(Invalid::value("images", "must be a list of objects"));
        };
        for item in items {
            pictures.push(reference("images", item)?);
        }
    }
    let field = draft.names.source;
    if pictures.len() > 1 {
        let message = "is served one at a time";
        return Err(Invalid::new(InvalidKind::Unsupported, field, message));
    }
    draft.source = Some(pictures.pop().ok_or_else(|| missing(field))?);

    let mut masks = body.files("mask");
    match body.fields.take("mask") {
        None => {}
        Some(Value::String(text)) => masks.push(PictureFile::from_text("mask", &text)?),
        Some(object) => masks.push(reference("mask", object)?),
    }
    if masks.len() > 1 {
        return Err(Invalid::value("mask", "is given twice"));
    }
    draft.source_alpha_is_mask = masks.is_empty();
    draft.mask = masks.pop().map(|file| MaskFile {
        file,
        drawn: DrawnWhere::Transparent,
    });
    Ok(())
}

/// Pictures that came as texts.
fn texts(fields: &mut Fields, name: &str) -> Result<Vec<PictureFile>, Invalid> {
    let texts = fields.string_or_strings(name)?.unwrap_or_default();
    texts
        .iter()
        .map(|text| PictureFile::from_text(name, text))
        .collect()
}

/// `{"image_url": "data:.."}`.
fn reference(field: &str, value: Value) -> Result<PictureFile, Invalid> {
    let Value::Object(members) = value else {
        return Err(Invalid::value(field, "must be an object with image_url"));
    };
    let mut members = Fields::of(members);
    if members.take("file_id").is_some() {
        let message = "is not supported with file_id: send the picture as a data: URL in image_url";
        return Err(Invalid::new(InvalidKind::Unsupported, field, message));
    }
    match members.take("image_url") {
        Some(Value::String(text)) => {
            members.finish().map_err(|invalid| Invalid {
                field: format!("{field}.{}", invalid.field),
                message: format!("{field}.{}", invalid.message),
                ..invalid
            })?;
            PictureFile::from_text(field, &text)
        }
        _ => Err(Invalid::value(field, "must have a string as image_url")),
    }
}

#[cfg(test)]
mod tests;
