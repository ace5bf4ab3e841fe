//! From the body of an image submission to a draft.

use serde_json::Value;

use crate::intake::image::PreviewDraft;
use crate::intake::picture_file::{DrawnWhere, MaskFile, PictureFile};
use crate::intake::{Fields, ImageDraft, Invalid, InvalidKind};

/// Reads what is said of the pictures.
///
/// # Errors
/// No prompt, or a field of a wrong type.
pub(super) fn draft(fields: &mut Fields) -> Result<ImageDraft, Invalid> {
    let prompt = fields
        .string("prompt")?
        .ok_or_else(|| Invalid::new(InvalidKind::Missing, "prompt", "is required"))?;
    Ok(ImageDraft {
        negative_prompt: fields.string("negative_prompt")?,
        width: fields.count("width")?,
        height: fields.count("height")?,
        n: fields.count("n")?,
        steps: fields.count("steps")?,
        guidance_scale: fields.number("guidance_scale")?,
        clip_skip: fields.count("clip_skip")?,
        schedule: fields.string("schedule")?,
        karras: fields.boolean("karras")?,
        eta: fields.number("eta")?,
        seed: fields.seed("seed")?,
        source: picture(fields, "image")?,
        mask: picture(fields, "mask")?.map(|file| MaskFile {
            file,
            drawn: DrawnWhere::White,
        }),
        strength: fields.number("strength")?,
        previews: previews(fields)?,
        ..ImageDraft::new(prompt)
    })
}

fn picture(fields: &mut Fields, name: &str) -> Result<Option<PictureFile>, Invalid> {
    fields
        .string(name)?
        .map(|text| PictureFile::from_text(name, &text))
        .transpose()
}

fn previews(fields: &mut Fields) -> Result<PreviewDraft, Invalid> {
    const FIELD: &str = "previews";
    match fields.take(FIELD) {
        None | Some(Value::Bool(false)) => Ok(PreviewDraft::None),
        Some(Value::Bool(true)) => Ok(PreviewDraft::Latest),
        Some(value) => value
            .as_u64()
            .map(|count| PreviewDraft::Count(u32::try_from(count).unwrap_or(u32::MAX)))
            .ok_or_else(|| {
                Invalid::value(
                    FIELD,
                    "must be true, false, or a whole number, not negative",
                )
            }),
    }
}
