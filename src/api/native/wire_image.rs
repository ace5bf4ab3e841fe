//! The native API's bodies for pictures, as they stand on the wire: part of the contract with clients, as
//! [`super::wire`].

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::image_path;
use super::wire::Reason;
use crate::api::milliseconds;
use crate::api::picture_parameters::PictureParameters;
use crate::events::EventKind;
use crate::job::RequestId;
use crate::picture::Picture;

/// Pictures to draw. What is left out takes the model's default; unknown fields are refused.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct ImageSubmitBody {
    /// Which model; the first one served if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What to draw.
    pub prompt: String,
    /// What not to draw. Needs a `guidance_scale` above 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub negative_prompt: Option<String>,
    /// In pixels. Without width and height, those of `image`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<u64>,
    /// In pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub height: Option<u64>,
    /// Pictures wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n: Option<u64>,
    /// Steps of the whole schedule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// How closely the prompt is followed; 1 or less switches guidance off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance_scale: Option<f64>,
    /// Layers left out at the end of the text encoders; 0 is the model's own way. (The web UI counts from 1.)
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_skip: Option<u64>,
    /// The noise schedule, such as `euler` or `Euler a`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// Space the noise levels as in Karras et al.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub karras: Option<bool>,
    /// The share of fresh noise in DDIM's steps, 0 to 1; other schedules take 0 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eta: Option<f64>,
    /// Picture number i is what `seed + i` draws first. Without one a fresh one is drawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// Begin from this picture: a PNG, JPEG or WebP in Base64, bare or as a `data:` URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Draw anew only where this one, likewise, is white.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask: Option<String>,
    /// How much of the schedule is run on `image`, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strength: Option<f64>,
    /// Show what it looks like meanwhile: `true` for the latest state, or a number of states, evenly
    /// spaced, of which none is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub previews: Option<Value>,
    /// The request is given up when it has not ended after this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// Runs to its end, whether or not anybody reads it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detach: Option<bool>,
    /// `interactive`, `normal` (the default) or `batch`: the more urgent start first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<String>,
}

/// Data of the events `progress`, `preview` and `image`: one entry for each picture that has news.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImagesFrame<T> {
    /// The news.
    pub images: Vec<T>,
}

/// How far a picture has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProgressBody {
    /// Which.
    pub index: u32,
    /// Denoising steps done.
    pub step: u32,
    /// Denoising steps in all.
    pub steps: u32,
    /// Expected time until it is there.
    pub eta_ms: Option<u64>,
}

/// What a picture looks like so far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PreviewBody {
    /// Which.
    pub index: u32,
    /// After so many steps.
    pub step: u32,
    /// Pixels of the preview, which is smaller than the picture.
    pub width: u32,
    /// Likewise.
    pub height: u32,
    /// A PNG as a `data:` URL.
    pub url: String,
}

/// A picture that is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DrawnImage {
    /// Which.
    pub index: u32,
    /// Where to get it, for as long as the request is kept.
    pub url: String,
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// Its own.
    pub seed: u64,
}

impl DrawnImage {
    pub(super) fn new(id: RequestId, index: u32, picture: &Picture, seed: u64) -> Self {
        DrawnImage {
            index,
            url: image_path(id, index),
            width: picture.width(),
            height: picture.height(),
            seed,
        }
    }
}

/// One picture of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageStatus {
    /// Which.
    pub index: u32,
    /// Denoising steps done.
    pub step: u32,
    /// Denoising steps in all.
    pub steps: u32,
    /// Expected time until it is there, while that can be told.
    pub eta_ms: Option<u64>,
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// Its own.
    pub seed: u64,
    /// Where to get it, once it is there.
    pub url: Option<String>,
    /// Why it ended (`stop`, `cancelled`), once it has.
    pub finish_reason: Option<Reason>,
}

impl ImageStatus {
    /// All pictures of a request that has just been accepted.
    pub(super) fn all(parameters: &PictureParameters) -> Vec<ImageStatus> {
        (0..parameters.images)
            .map(|index| ImageStatus {
                index,
                step: 0,
                steps: parameters.iterations,
                eta_ms: None,
                width: parameters.width,
                height: parameters.height,
                seed: parameters.seed_of(index),
                url: None,
                finish_reason: None,
            })
            .collect()
    }

    /// What an event changes.
    pub(super) fn apply(images: &mut [ImageStatus], id: RequestId, kind: &EventKind) {
        let mut change = |choice: u32, change: &dyn Fn(&mut ImageStatus)| {
            if let Some(image) = images.get_mut(choice as usize) {
                change(image);
            }
        };
        match kind {
            EventKind::Progress {
                choice,
                step,
                steps,
                eta,
            } => change(*choice, &|image| {
                image.step = *step;
                image.steps = *steps;
                image.eta_ms = eta.map(milliseconds);
            }),
            EventKind::Image { choice, seed, .. } => change(*choice, &|image| {
                image.url = Some(image_path(id, *choice));
                image.seed = *seed;
                image.eta_ms = None;
            }),
            EventKind::ChoiceFinished { choice, reason, .. } => change(*choice, &|image| {
                image.finish_reason = Some((*reason).into());
                image.eta_ms = None;
            }),
            _ => {}
        }
    }
}
