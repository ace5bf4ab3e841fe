//! An image request as its client wrote it: every field optional, nothing checked yet.

use crate::intake::picture_file::{MaskFile, PictureFile};

/// An image request, unchecked. `None` leaves a field to the model's defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageDraft {
    /// What to draw.
    pub prompt: String,
    /// What not to draw.
    pub negative_prompt: Option<String>,
    /// In pixels.
    pub width: Option<u64>,
    /// In pixels.
    pub height: Option<u64>,
    /// Pictures wanted.
    pub n: Option<u64>,
    /// Steps of the whole schedule.
    pub steps: Option<u64>,
    /// 1 or less switches guidance off.
    pub guidance_scale: Option<f64>,
    /// Layers left out at the end of the text encoders.
    pub clip_skip: Option<u64>,
    /// The noise schedule, by any of its names.
    pub schedule: Option<String>,
    /// Space the noise levels as in Karras et al.; absent: as the schedule's name says.
    pub karras: Option<bool>,
    /// The share of fresh noise in DDIM's steps. Others refuse it unless it is 0.
    pub eta: Option<f64>,
    /// Keys the random numbers; absent draws a fresh one.
    pub seed: Option<u64>,
    /// Begin from this picture. It is brought to the size that is drawn.
    pub source: Option<PictureFile>,
    /// Draw anew only here.
    pub mask: Option<MaskFile>,
    /// Where `source` is transparent, and there is no other mask, only that is drawn anew.
    pub source_alpha_is_mask: bool,
    /// How much of the schedule is run on `source`.
    pub strength: Option<f64>,
    /// What is shown meanwhile.
    pub previews: PreviewDraft,
    /// What the client calls the fields above that have different names in different dialects.
    pub names: FieldNames,
}

/// What is shown while a picture is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PreviewDraft {
    /// Nothing.
    #[default]
    None,
    /// The latest state, as often as the stream can show it.
    Latest,
    /// So many states, evenly spaced, none left out.
    Count(u32),
}

/// Names of fields in a dialect, for errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldNames {
    /// [`ImageDraft::width`].
    pub width: &'static str,
    /// [`ImageDraft::height`].
    pub height: &'static str,
    /// [`ImageDraft::n`].
    pub n: &'static str,
    /// [`ImageDraft::steps`].
    pub steps: &'static str,
    /// [`ImageDraft::guidance_scale`].
    pub guidance_scale: &'static str,
    /// [`ImageDraft::schedule`].
    pub schedule: &'static str,
    /// [`ImageDraft::strength`].
    pub strength: &'static str,
    /// [`ImageDraft::source`].
    pub source: &'static str,
    /// [`ImageDraft::mask`].
    pub mask: &'static str,
}

impl Default for FieldNames {
    /// Our own API's.
    fn default() -> Self {
        FieldNames {
            width: "width",
            height: "height",
            n: "n",
            steps: "steps",
            guidance_scale: "guidance_scale",
            schedule: "schedule",
            strength: "strength",
            source: "image",
            mask: "mask",
        }
    }
}

impl ImageDraft {
    /// A draft that says nothing but its prompt.
    pub fn new(prompt: impl Into<String>) -> Self {
        ImageDraft {
            prompt: prompt.into(),
            negative_prompt: None,
            width: None,
            height: None,
            n: None,
            steps: None,
            guidance_scale: None,
            clip_skip: None,
            schedule: None,
            karras: None,
            eta: None,
            seed: None,
            source: None,
            mask: None,
            source_alpha_is_mask: false,
            strength: None,
            previews: PreviewDraft::None,
            names: FieldNames::default(),
        }
    }
}
