//! What a client can know of a model before it asks for anything: defaults, limits, schedules.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::intake::{ImageIntake, TextIntake};
use crate::model::image_frontend::Guidance;

/// A text model's defaults and limits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TextDetails {
    /// The default temperature.
    pub temperature: f32,
    /// The highest.
    pub max_temperature: f32,
    /// The default of `top_p`.
    pub top_p: f32,
    /// The default of `top_k`; 0 for all tokens.
    pub top_k: u32,
    /// The default of `min_p`.
    pub min_p: f32,
    /// The default of `repetition_penalty`.
    pub repetition_penalty: f32,
    /// New tokens of a request that does not say; null for what the context leaves.
    pub max_tokens: Option<u32>,
    /// New tokens at most; null for what the context leaves.
    pub max_new_tokens: Option<u32>,
}

impl TextDetails {
    pub(super) fn of(intake: &TextIntake) -> Self {
        let defaults = &intake.defaults;
        TextDetails {
            temperature: defaults.temperature,
            max_temperature: intake.limits.max_temperature,
            top_p: defaults.top_p,
            top_k: defaults.top_k,
            min_p: defaults.min_p,
            repetition_penalty: defaults.repetition_penalty,
            max_tokens: defaults.max_tokens,
            max_new_tokens: intake.limits.max_new_tokens,
        }
    }
}

/// An image model's defaults and limits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ImageDetails {
    /// The default width, in pixels.
    pub width: u32,
    /// The default height, in pixels.
    pub height: u32,
    /// Both are multiples of this.
    pub size_factor: u32,
    /// Width times height at most.
    pub max_pixels: u32,
    /// The default number of steps.
    pub steps: u32,
    /// Steps at most.
    pub max_steps: u32,
    /// The default guidance; 1 or less for none.
    pub guidance_scale: f32,
    /// The highest.
    pub max_guidance_scale: f32,
    /// How much of the schedule is run on a given picture, if the request does not say.
    pub strength: f64,
    /// Pictures of one request at most.
    pub max_images: u32,
    /// Whether a negative prompt is heeded.
    pub negative_prompt: bool,
    /// The noise schedules.
    pub schedules: Vec<ScheduleInfo>,
}

/// A noise schedule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScheduleInfo {
    /// As a request names it.
    pub name: String,
    /// As the web UI names it.
    pub title: String,
}

impl ImageDetails {
    pub(super) fn of(intake: &ImageIntake) -> Self {
        let (defaults, limits) = (&intake.defaults, &intake.limits);
        let schedules = intake.frontend.schedule_names().into_iter();
        ImageDetails {
            width: defaults.width,
            height: defaults.height,
            size_factor: intake.size_factor,
            max_pixels: limits.max_image_pixels,
            steps: defaults.steps,
            max_steps: limits.max_steps,
            guidance_scale: defaults.guidance_scale,
            max_guidance_scale: limits.max_guidance_scale,
            strength: defaults.strength,
            max_images: limits.max_images,
            negative_prompt: intake.frontend.guidance() == Guidance::Classifier,
            schedules: schedules
                .map(|(title, name)| ScheduleInfo {
                    name: name.to_owned(),
                    title: title.to_owned(),
                })
                .collect(),
        }
    }
}
