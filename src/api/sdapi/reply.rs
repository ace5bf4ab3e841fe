//! The answer of `txt2img` and `img2img`.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::tasks::Stop;
use super::wire::{Info, Reply};
use crate::api::error::ApiError;
use crate::api::picture_file::{DEFAULT_QUALITY, in_base64};
use crate::api::picture_parameters::PictureParameters;
use crate::batch::FinishReason;
use crate::events::{Event, EventKind};
use crate::picture::{Picture, PictureFormat};

/// The version that clients see.
const VERSION: &str = concat!("girandole ", env!("CARGO_PKG_VERSION"));

/// What a request has drawn.
pub(super) struct Drawn {
    /// With their seeds, in the order of their seeds.
    pictures: Vec<(u64, Arc<Picture>)>,
    /// Some picture was cancelled.
    cancelled: bool,
}

impl Drawn {
    /// What a whole log says.
    ///
    /// # Errors
    /// The request failed.
    pub(super) fn from_events(events: &[Event]) -> Result<Self, ApiError> {
        let mut pictures = Vec::new();
        let mut cancelled = false;
        for event in events {
            match &event.kind {
                EventKind::Image {
                    choice,
                    picture,
                    seed,
                } => pictures.push((*choice, *seed, Arc::clone(picture))),
                EventKind::ChoiceFinished { reason, .. } => {
                    cancelled |= *reason == FinishReason::Cancelled;
                }
                EventKind::Failed { failure, .. } => return Err(failure.into()),
                _ => {}
            }
        }
        pictures.sort_by_key(|(choice, ..)| *choice);
        Ok(Drawn {
            pictures: pictures
                .into_iter()
                .map(|(_, seed, picture)| (seed, picture))
                .collect(),
            cancelled,
        })
    }
}

/// What the answer is made of, beside the pictures.
pub(super) struct Shape<'a> {
    pub(super) parameters: &'a PictureParameters,
    pub(super) batch_size: u64,
    pub(super) send_images: bool,
    /// Seconds since the Unix epoch.
    pub(super) created: u64,
    pub(super) stopped: Option<Stop>,
}

/// Writes the answer. Pictures are encoded on the blocking pool.
///
/// # Errors
/// A picture that cannot be encoded.
pub(super) async fn reply(
    shape: &Shape<'_>,
    drawn: &Drawn,
    echo: Map<String, Value>,
) -> Result<Reply, ApiError> {
    let mut images = Vec::new();
    if shape.send_images {
        for (seed, picture) in &drawn.pictures {
            let encoding = shape
                .parameters
                .encoding(PictureFormat::Png, DEFAULT_QUALITY, *seed);
            images.push(in_base64(picture, encoding).await?);
        }
    }
    let info = info(shape, drawn);
    Ok(Reply {
        images,
        parameters: filled(echo, shape),
        info: serde_json::to_string(&info).expect("wire types have string keys only"),
    })
}

fn info<'a>(shape: &Shape<'a>, drawn: &Drawn) -> Info<'a> {
    let parameters = shape.parameters;
    let count = drawn.pictures.len();
    let seeds = || drawn.pictures.iter().map(|(seed, _)| *seed);
    Info {
        prompt: &parameters.prompt,
        all_prompts: vec![&parameters.prompt; count],
        negative_prompt: &parameters.negative_prompt,
        all_negative_prompts: vec![&parameters.negative_prompt; count],
        seed: parameters.seed,
        all_seeds: seeds().collect(),
        subseed: -1,
        all_subseeds: vec![-1; count],
        subseed_strength: 0.0,
        width: parameters.width,
        height: parameters.height,
        sampler_name: &parameters.sampler,
        cfg_scale: parameters.guidance_scale,
        steps: parameters.steps,
        batch_size: shape.batch_size,
        restore_faces: false,
        face_restoration_model: None,
        sd_model_name: &parameters.model,
        sd_model_hash: "",
        sd_vae_name: None,
        sd_vae_hash: None,
        seed_resize_from_w: -1,
        seed_resize_from_h: -1,
        denoising_strength: parameters.strength,
        extra_generation_params: extra(parameters),
        index_of_first_image: 0,
        infotexts: seeds().map(|seed| parameters.text(seed)).collect(),
        styles: Vec::new(),
        job_timestamp: shape.created.to_string(),
        clip_skip: 1,
        is_using_inpainting_conditioning: false,
        version: VERSION,
        interrupted: drawn.cancelled,
        skipped: drawn.cancelled && shape.stopped == Some(Stop::Skipped),
    }
}

fn extra(parameters: &PictureParameters) -> Map<String, Value> {
    let mut extra = Map::new();
    extra.insert("Schedule type".to_owned(), spacing(parameters).into());
    extra
}

fn spacing(parameters: &PictureParameters) -> &'static str {
    match parameters.karras {
        true => "Karras",
        false => "Automatic",
    }
}

/// The client's own fields, with what was taken for those it left out, and with what was done instead of
/// those that it sent unasked; see [`super::neutral`].
fn filled(mut echo: Map<String, Value>, shape: &Shape<'_>) -> Map<String, Value> {
    let parameters = shape.parameters;
    let taken = [
        ("prompt", json!(&*parameters.prompt)),
        ("negative_prompt", json!(&*parameters.negative_prompt)),
        ("seed", json!(-1)),
        ("batch_size", json!(1)),
        ("n_iter", json!(1)),
        ("steps", json!(parameters.steps)),
        ("cfg_scale", json!(parameters.guidance_scale)),
        ("width", json!(parameters.width)),
        ("height", json!(parameters.height)),
        ("sampler_name", json!(parameters.sampler)),
        ("scheduler", json!(spacing(parameters))),
        ("eta", json!(parameters.eta)),
        ("denoising_strength", json!(parameters.strength)),
    ];
    for (name, value) in taken {
        let place = echo.entry(name).or_insert(Value::Null);
        if place.is_null() {
            *place = value;
        }
    }
    if parameters.masked {
        for (name, value) in [
            ("mask_blur", json!(0)),
            ("inpainting_fill", json!(1)),
            ("inpaint_full_res", json!(false)),
        ] {
            echo.insert(name.to_owned(), value);
        }
        for name in ["mask_blur_x", "mask_blur_y"] {
            if let Some(sent) = echo.get_mut(name) {
                *sent = json!(0);
            }
        }
    }
    echo
}
