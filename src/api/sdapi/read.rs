//! From the body of `txt2img` or `img2img` to a draft.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::{neutral, options};
use crate::api::error::ApiError;
use crate::api::{AppState, ServedModel};
use crate::intake::image::{FieldNames, PreviewDraft};
use crate::intake::picture_file::{DrawnWhere, MaskFile, PictureFile};
use crate::intake::{Fields, ImageDraft, ImageIntake, Invalid, InvalidKind};
use crate::job::ScheduleName;

/// Which of the two it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// From words alone.
    TextToImage,
    /// From a picture.
    ImageToImage,
}

impl Endpoint {
    pub(super) fn path(self) -> &'static str {
        match self {
            Endpoint::TextToImage => "/sdapi/v1/txt2img",
            Endpoint::ImageToImage => "/sdapi/v1/img2img",
        }
    }
}

/// A call, read but not checked.
pub(super) struct Call {
    pub(super) model: Arc<ServedModel>,
    pub(super) draft: ImageDraft,
    /// `force_task_id`.
    pub(super) task_id: Option<String>,
    /// Whether the answer has the pictures in it.
    pub(super) send_images: bool,
    /// What the client calls a batch; all of them are drawn together.
    pub(super) batch_size: u64,
    /// The body, without pictures, as the answer repeats it.
    pub(super) echo: Map<String, Value>,
}

/// What the web UI calls the fields of a draft.
const NAMES: FieldNames = FieldNames {
    width: "width",
    height: "height",
    n: "batch_size",
    steps: "steps",
    guidance_scale: "cfg_scale",
    schedule: "sampler_name",
    strength: "denoising_strength",
    source: "init_images",
    mask: "mask",
};

/// The longest `force_task_id`.
const MAX_TASK_ID_BYTES: usize = 256;

/// Reads the body of a call whose sender has chosen `model` for those that name none. Decodes Base64, so
/// call it on the blocking pool.
///
/// # Errors
/// See [`super`].
pub(super) fn read(
    state: &AppState,
    endpoint: Endpoint,
    model: Arc<ServedModel>,
    body: &[u8],
) -> Result<Call, ApiError> {
    let (mut fields, echo) = parse(body)?;
    let (model, clip_skip) = match fields.nested("override_settings")? {
        Some(settings) => {
            let chosen = options::read(state, settings, &model)?;
            (chosen.model, chosen.clip_skip)
        }
        None => (model, None),
    };
    let settings = echo.get("override_settings").and_then(Value::as_object);
    let overridden = settings.is_some_and(|settings| !settings.is_empty());
    let restored = fields.boolean("override_settings_restore_afterwards")?;
    if overridden && restored == Some(false) {
        return Err(Invalid::new(
            InvalidKind::Unsupported,
            "override_settings_restore_afterwards",
            "is not supported by this service, except as true; see /sdapi/v1/options",
        )
        .into());
    }
    let intake = model.intake.image()?;
    let mut draft = ImageDraft::new(fields.string("prompt")?.unwrap_or_default());
    draft.names = NAMES;
    draft.previews = PreviewDraft::Latest;
    draft.negative_prompt = fields.string("negative_prompt")?;
    draft.clip_skip = clip_skip;
    draft.seed = seed(&mut fields)?;
    draft.steps = fields.count("steps")?;
    draft.guidance_scale = fields.number("cfg_scale")?;
    draft.width = fields.count("width")?;
    draft.height = fields.count("height")?;
    let batch_size = pictures(&mut fields, &mut draft)?;
    schedule(&mut fields, intake, &mut draft)?;
    let keep = match endpoint {
        Endpoint::TextToImage => {
            // Of the second pass only.
            fields.number(NAMES.strength)?;
            false
        }
        Endpoint::ImageToImage => source(&mut fields, &mut draft)?,
    };
    let literal = fields.boolean("disable_extra_networks")?.unwrap_or(false);
    if !literal {
        no_extra_networks("prompt", &draft.prompt)?;
        let negative = draft.negative_prompt.as_deref();
        no_extra_networks("negative_prompt", negative.unwrap_or_default())?;
    }
    let task_id = task_id(&mut fields, "force_task_id")?;
    let send_images = fields.boolean("send_images")?.unwrap_or(true);
    neutral::read(&mut fields)?;
    fields.finish()?;
    let echo = match keep {
        true => echo,
        false => without_pictures(echo, endpoint),
    };
    Ok(Call {
        model,
        draft,
        task_id,
        send_images,
        batch_size,
        echo,
    })
}

/// The body's fields, and its members to be repeated.
fn parse(body: &[u8]) -> Result<(Fields, Map<String, Value>), Invalid> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(members)) => Ok((Fields::of(members.clone()), members)),
        // It knows what is wrong.
        _ => Fields::parse(body).map(|fields| (fields, Map::new())),
    }
}

fn without_pictures(mut echo: Map<String, Value>, endpoint: Endpoint) -> Map<String, Value> {
    if endpoint == Endpoint::ImageToImage {
        for name in ["init_images", "mask"] {
            echo.insert(name.to_owned(), Value::Null);
        }
    }
    echo
}

/// -1 draws one.
fn seed(fields: &mut Fields) -> Result<Option<u64>, Invalid> {
    match fields.take("seed") {
        None => Ok(None),
        Some(value) if value == json!(-1) => Ok(None),
        Some(value) => value.as_u64().map(Some).ok_or_else(|| {
            Invalid::value(
                "seed",
                "must be -1 for any, or a whole number, not negative, of at most 64 bits",
            )
        }),
    }
}

/// `batch_size` pictures, `n_iter` times. Gives the batch's size.
fn pictures(fields: &mut Fields, draft: &mut ImageDraft) -> Result<u64, Invalid> {
    let mut count = |name: &'static str| match fields.count(name)?.unwrap_or(1) {
        0 => Err(Invalid::value(name, "is 0; it must be at least 1")),
        count => Ok(count),
    };
    let (batch_size, rounds) = (count("batch_size")?, count("n_iter")?);
    if rounds > 1 {
        draft.names.n = "batch_size times n_iter";
    }
    draft.n = Some(batch_size.saturating_mul(rounds));
    Ok(batch_size)
}

/// `sampler_name`, else `sampler_index`; `scheduler`; and `eta`, which has another meaning for each.
fn schedule(
    fields: &mut Fields,
    intake: &ImageIntake,
    draft: &mut ImageDraft,
) -> Result<(), Invalid> {
    let named = fields.string("sampler_name")?;
    let indexed = fields.string("sampler_index")?;
    draft.schedule = match named.filter(|name| !name.is_empty()) {
        Some(name) => Some(name),
        None => {
            draft.names.schedule = "sampler_index";
            indexed.filter(|name| !name.is_empty())
        }
    };
    draft.karras = match fields.string("scheduler")?.as_deref() {
        None | Some("") => None,
        Some(name) if name.eq_ignore_ascii_case("automatic") => None,
        Some(name) if name.eq_ignore_ascii_case("karras") => Some(true),
        Some(_) => {
            return Err(Invalid::new(
                InvalidKind::Unsupported,
                "scheduler",
                "is not supported by this service, except as \"Automatic\" or \"Karras\"",
            ));
        }
    };
    let eta = fields.number("eta")?;
    let wanted = draft
        .schedule
        .as_deref()
        .or(intake.defaults.schedule.as_deref());
    // A name that nobody knows is refused when the job is made.
    let schedule = intake.frontend.schedule(wanted).map(|(name, _)| name);
    match (schedule, eta) {
        (_, None) => Ok(()),
        (Ok(ScheduleName::Ddim), Some(_)) => {
            draft.eta = eta;
            Ok(())
        }
        // Ancestral steps put all of the noise back that they take out too much.
        (Ok(ScheduleName::EulerAncestral), Some(eta)) if eta != 1.0 => Err(Invalid::new(
            InvalidKind::Unsupported,
            "eta",
            "is not supported by this service for this sampler, except as 1",
        )),
        // The others have no use for it, in the web UI too.
        (_, Some(eta)) if (0.0..=1.0).contains(&eta) => Ok(()),
        (_, Some(eta)) => Err(Invalid::value(
            "eta",
            format!("is {eta}; it must be 0 to 1"),
        )),
    }
}

/// The picture to begin from, with its mask. Tells whether the answer is to repeat them.
fn source(fields: &mut Fields, draft: &mut ImageDraft) -> Result<bool, Invalid> {
    let missing = || Invalid::new(InvalidKind::Missing, NAMES.source, "is missing");
    let wrong = |message: &str| Invalid::value(NAMES.source, message);
    let given = fields.take(NAMES.source).ok_or_else(missing)?;
    let text = match &given {
        Value::Array(list) => match list.as_slice() {
            [] => return Err(missing()),
            [Value::String(text)] => text,
            [_] => return Err(wrong("must be a list of strings")),
            _ => return Err(wrong("must hold one picture; send a call for each")),
        },
        _ => return Err(wrong("must be a list of one picture")),
    };
    draft.source = Some(PictureFile::from_text(NAMES.source, text)?);
    draft.strength = fields.number(NAMES.strength)?;
    let drawn = match fields.take("inpainting_mask_invert") {
        None => DrawnWhere::White,
        Some(value) if value == json!(0) || value == json!(false) => DrawnWhere::White,
        Some(value) if value == json!(1) || value == json!(true) => DrawnWhere::Black,
        Some(_) => {
            return Err(Invalid::value("inpainting_mask_invert", "must be 0 or 1"));
        }
    };
    if let Some(text) = fields.string(NAMES.mask)?.filter(|text| !text.is_empty()) {
        draft.mask = Some(MaskFile {
            file: PictureFile::from_text(NAMES.mask, &text)?,
            drawn,
        });
    }
    neutral::read_inpainting(fields, draft.mask.is_some())?;
    Ok(fields.boolean("include_init_images")?.unwrap_or(false))
}

/// In the web UI `<lora:NAME:1>` in a prompt loads weights. Here it would be drawn as words.
fn no_extra_networks(field: &str, text: &str) -> Result<(), Invalid> {
    const KINDS: [&str; 4] = ["<lora:", "<lyco:", "<hypernet:", "<ti:"];
    match KINDS.iter().find(|kind| text.contains(**kind)) {
        None => Ok(()),
        Some(kind) => Err(Invalid::new(
            InvalidKind::Unsupported,
            field,
            format!("holds {kind}…>, and this service has no extra networks"),
        )),
    }
}

/// The name that a client gave its task.
///
/// # Errors
/// It is no string, or too long.
pub(super) fn task_id(fields: &mut Fields, name: &str) -> Result<Option<String>, Invalid> {
    let id = fields.string(name)?.filter(|id| !id.is_empty());
    match id {
        Some(id) if id.len() > MAX_TASK_ID_BYTES => Err(Invalid::value(
            name,
            format!(
                "is {} bytes long; the limit is {MAX_TASK_ID_BYTES}",
                id.len()
            ),
        )),
        id => Ok(id),
    }
}
