//! From an image request, as its client wrote it, to an [`ImageJob`].

mod draft;
mod scale;

use std::collections::hash_map::RandomState;
use std::fmt::Display;
use std::hash::BuildHasher;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use draft::{FieldNames, ImageDraft, PreviewDraft};

use super::{Invalid, InvalidKind};
use crate::job::{ImageJob, Previews, PromptTokens, ScheduleName, SourceImage};
use crate::model::image_frontend::{Guidance, ImageFrontend};
use crate::picture::{Mask, Picture};

/// How far a request may go, each with the name it has in the configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageLimits {
    /// Pictures of one request.
    pub max_images: u32,
    /// Pixels of one picture: width times height.
    pub max_image_pixels: u32,
    /// Steps of a schedule.
    pub max_steps: u32,
    /// States of one picture that are shown because they were asked for by number: all of them are kept.
    pub max_previews: u32,
    /// Bytes of a prompt, and of a negative prompt.
    pub max_prompt_bytes: usize,
    /// Windows of 75 tokens that a prompt may take.
    pub max_prompt_chunks: usize,
    /// Pixels of a picture that a client sends.
    pub max_source_pixels: u32,
    /// The highest `guidance_scale`.
    pub max_guidance_scale: f32,
}

impl Default for ImageLimits {
    fn default() -> Self {
        ImageLimits {
            max_images: 10,
            max_image_pixels: 1 << 20,
            max_steps: 150,
            max_previews: 50,
            max_prompt_bytes: 64 << 10,
            max_prompt_chunks: 3,
            max_source_pixels: 16 << 20,
            max_guidance_scale: 30.0,
        }
    }
}

/// What a request that leaves a field out gets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageDefaults {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// Steps.
    pub steps: u32,
    /// See [`ImageJob::guidance_scale`].
    pub guidance_scale: f32,
    /// See [`SourceImage::strength`].
    pub strength: f64,
    /// A name of a noise schedule; the model's own if there is none.
    pub schedule: Option<String>,
}

impl Default for ImageDefaults {
    /// Those of the first Stable Diffusion models.
    fn default() -> Self {
        ImageDefaults {
            width: 512,
            height: 512,
            steps: 20,
            guidance_scale: 7.5,
            strength: 0.8,
            schedule: None,
        }
    }
}

impl ImageDefaults {
    /// The same within a model's limits: what a client leaves out must not be refused. Width and height are
    /// multiples of `factor`.
    #[must_use]
    pub fn within(self, limits: &ImageLimits, factor: u32) -> Self {
        let size = (self.width, self.height);
        let most = limits.max_image_pixels;
        let fits = u64::from(size.0) * u64::from(size.1) <= u64::from(most);
        let (width, height) = match fits {
            true => size,
            false => fitted(size, factor, most, most / factor),
        };
        ImageDefaults {
            width,
            height,
            steps: self.steps.min(limits.max_steps),
            guidance_scale: self.guidance_scale.min(limits.max_guidance_scale),
            ..self
        }
    }
}

/// One image model's intake.
pub struct ImageIntake {
    /// Its tokenizers and its schedules.
    pub frontend: Arc<dyn ImageFrontend>,
    /// Width and height are multiples of this: the VAE's factor times what the network halves.
    pub size_factor: u32,
    /// What a request that leaves a field out gets.
    pub defaults: ImageDefaults,
    /// How far a request may go.
    pub limits: ImageLimits,
}

impl ImageIntake {
    /// Pictures that the draft asks for.
    ///
    /// # Errors
    /// None, or more than `max_images`.
    pub fn rows(&self, draft: &ImageDraft) -> Result<u32, Invalid> {
        let range = (1, self.limits.max_images, "max_images");
        whole_between(draft.names.n, draft.n, 1, range)
    }

    /// Turns a draft into a job. Tokenizes, decodes and scales pictures, so call it on the blocking pool.
    ///
    /// # Errors
    /// The first fault found, with its field and limit.
    pub fn job(&self, draft: ImageDraft) -> Result<ImageJob, Invalid> {
        let names = draft.names;
        let images = self.rows(&draft)?;
        let steps = whole_between(
            names.steps,
            draft.steps,
            self.defaults.steps,
            (1, self.limits.max_steps, "max_steps"),
        )?;
        let guidance_scale = number_between(
            names.guidance_scale,
            draft.guidance_scale,
            self.defaults.guidance_scale.into(),
            (self.limits.max_guidance_scale.into(), "max_guidance_scale"),
        )? as f32;
        let guidance_scale = self.usable_guidance(&draft, guidance_scale)?;
        let clip_skip = whole_between(
            "clip_skip",
            draft.clip_skip,
            0,
            (0, self.frontend.max_clip_skip(), ""),
        )?;
        let eta = number_between("eta", draft.eta, 0.0, (1.0, ""))?;
        let wanted = draft
            .schedule
            .as_deref()
            .or(self.defaults.schedule.as_deref());
        let (schedule, spaced) = self
            .frontend
            .schedule(wanted)
            .map_err(|message| Invalid::value(names.schedule, message))?;
        if let Some(eta) = draft.eta.filter(|eta| *eta != 0.0)
            && schedule != ScheduleName::Ddim
        {
            let message = format!("is {eta}; only {} reads it", ScheduleName::Ddim);
            return Err(Invalid::value("eta", message));
        }
        let given = self.source(&draft)?;
        let (width, height) = self.size(&draft, given.as_ref())?;
        let source = given.map(|given| given.scaled(width, height));
        let prompt = self.tokens("prompt", &draft.prompt)?;
        let contrasts = self.frontend.guidance() == Guidance::Classifier;
        let negative = match guidance_scale > 1.0 && contrasts {
            true => {
                let text = draft.negative_prompt.as_deref().unwrap_or_default();
                Some(self.tokens("negative_prompt", text)?)
            }
            // Not silently ignored: without guidance nothing could come of it.
            false
                if draft
                    .negative_prompt
                    .as_ref()
                    .is_some_and(|text| !text.is_empty()) =>
            {
                let message = match contrasts {
                    true => format!("needs a {} above 1", names.guidance_scale),
                    false => "is not supported by this model".to_owned(),
                };
                return Err(Invalid::value("negative_prompt", message));
            }
            false => None,
        };
        let mut job = ImageJob {
            width,
            height,
            images,
            prompt,
            negative,
            negative_given: draft.negative_prompt.is_some(),
            guidance_scale,
            clip_skip,
            steps,
            schedule,
            karras: draft.karras.unwrap_or(spaced),
            eta,
            // Without a seed every request draws its own. The hasher's keys come from the system.
            seed: draft
                .seed
                .unwrap_or_else(|| RandomState::new().hash_one(0) >> 32),
            source,
            previews: Previews::None,
        };
        if job.iterations() == 0 {
            let message = format!("leaves none of {steps} steps to be run");
            return Err(Invalid::value(names.strength, message));
        }
        job.previews = self.previews(draft.previews, job.iterations())?;
        self.frontend
            .check(&job)
            .map_err(|message| Invalid::value(names.schedule, message))?;
        Ok(job)
    }

    /// Which of `steps` steps are shown, within `max_previews`.
    fn previews(&self, draft: PreviewDraft, steps: u32) -> Result<Previews, Invalid> {
        let most = self.limits.max_previews;
        match draft {
            // More than there are steps are none that could be shown.
            PreviewDraft::Count(count) if count.min(steps) > most => {
                let message = format!("asks for {count}; the limit is {most} (max_previews)");
                Err(Invalid::value("previews", message))
            }
            draft => Ok(previews(draft, steps)),
        }
    }

    /// Width and height. Where neither is given, a source's own proportions count, as far as its size can
    /// be drawn.
    fn size(&self, draft: &ImageDraft, given: Option<&Given>) -> Result<(u32, u32), Invalid> {
        let (factor, most) = (self.size_factor, self.limits.max_image_pixels);
        let longest = (most / factor).min(self.frontend.max_edge());
        if let (None, None, Some(given)) = (draft.width, draft.height, given) {
            let size = (given.picture.width(), given.picture.height());
            return Ok(fitted(size, factor, most, longest));
        }
        let names = draft.names;
        let side = |name: &'static str, given: Option<u64>, otherwise: u32| {
            let side = whole_between(
                name,
                given,
                otherwise,
                (factor, longest, "max_image_pixels"),
            )?;
            if side % factor == 0 {
                return Ok(side);
            }
            let message = format!("has {side}, which is no multiple of {factor}");
            Err(Invalid::value(name, message))
        };
        let width = side(names.width, draft.width, self.defaults.width)?;
        let height = side(names.height, draft.height, self.defaults.height)?;
        let pixels = u64::from(width) * u64::from(height);
        if pixels > u64::from(most) {
            return Err(Invalid::value(
                names.width,
                format!(
                    "asks for {width} x {height} = {pixels} pixels; the limit is {most} (max_image_pixels)"
                ),
            ));
        }
        Ok((width, height))
    }

    /// What the draft begins from, decoded.
    fn source(&self, draft: &ImageDraft) -> Result<Option<Given>, Invalid> {
        let names = draft.names;
        let most = self.limits.max_source_pixels;
        let Some(file) = &draft.source else {
            let stray = [
                (names.strength, draft.strength.is_some()),
                (names.mask, draft.mask.is_some()),
            ];
            return match stray.iter().find(|(_, is_given)| *is_given) {
                None => Ok(None),
                Some((name, _)) => Err(Invalid::value(*name, format!("needs {}", names.source))),
            };
        };
        let strength = number_between(
            names.strength,
            draft.strength,
            self.defaults.strength,
            (1.0, ""),
        )?;
        let (picture, mask) = match &draft.mask {
            Some(mask) => {
                let picture = file.picture(names.source, most)?;
                let mask = mask.mask(names.mask, most)?;
                let sizes = [
                    (picture.width(), picture.height()),
                    (mask.width(), mask.height()),
                ];
                if sizes[0] != sizes[1] {
                    return Err(Invalid::value(
                        names.mask,
                        format!(
                            "has {} x {} pixels; it must have as many as {}, {} x {}",
                            sizes[1].0, sizes[1].1, names.source, sizes[0].0, sizes[0].1
                        ),
                    ));
                }
                (picture, Some(mask))
            }
            None if draft.source_alpha_is_mask => file.picture_and_mask(names.source, most)?,
            None => (file.picture(names.source, most)?, None),
        };
        Ok(Some(Given {
            picture: Arc::new(picture),
            mask: mask.map(Arc::new),
            strength,
        }))
    }

    /// The scale, unless the model has no use for one: then it is off, and nobody may ask for another.
    fn usable_guidance(&self, draft: &ImageDraft, scale: f32) -> Result<f32, Invalid> {
        match (self.frontend.guidance(), draft.guidance_scale) {
            (Guidance::Classifier | Guidance::Embedded, _) => Ok(scale),
            (Guidance::None, Some(asked)) if asked > 1.0 => {
                let message = format!(
                    "is {asked}; this model's guidance is built in, so it must be 1 or less, or left out"
                );
                Err(Invalid::value(draft.names.guidance_scale, message))
            }
            (Guidance::None, _) => Ok(scale.min(1.0)),
        }
    }

    fn tokens(&self, field: &str, text: &str) -> Result<Arc<[PromptTokens]>, Invalid> {
        let most = self.limits.max_prompt_bytes;
        if text.len() > most {
            let message = format!(
                "is {} bytes long; the limit is {most} (max_prompt_bytes)",
                text.len()
            );
            return Err(Invalid::value(field, message));
        }
        self.frontend
            .tokenize(text, self.limits.max_prompt_chunks)
            .map(Arc::from)
            .map_err(|message| Invalid::new(InvalidKind::ContextLength, field, message))
    }
}

/// What a request begins from, in the size in which it came.
struct Given {
    picture: Arc<Picture>,
    mask: Option<Arc<Mask>>,
    strength: f64,
}

impl Given {
    fn scaled(self, width: u32, height: u32) -> SourceImage {
        SourceImage {
            picture: scale::picture(&self.picture, width, height),
            strength: self.strength,
            mask: self.mask.map(|mask| scale::mask(&mask, width, height)),
        }
    }
}

/// This size, or the nearest below with about its proportions whose sides are multiples of `factor` and at
/// most `longest`, and that has at most `most` pixels.
fn fitted((width, height): (u32, u32), factor: u32, most: u32, longest: u32) -> (u32, u32) {
    let (width, height) = (f64::from(width), f64::from(height));
    let shrink = (f64::from(most) / (width * height)).sqrt().min(1.0);
    let longest = longest / factor * factor;
    let side = |side: f64| {
        let whole = (side * shrink) as u32 / factor * factor;
        whole.clamp(factor, longest.max(factor))
    };
    (side(width), side(height))
}

/// Which of `steps` steps are shown. The last one is not: the picture itself follows.
fn previews(draft: PreviewDraft, steps: u32) -> Previews {
    match draft {
        PreviewDraft::None | PreviewDraft::Count(0) => Previews::None,
        PreviewDraft::Latest => Previews::Latest,
        PreviewDraft::Count(count) => {
            // More than there are steps are not there to be shown, nor to be counted out here.
            let count = u64::from(count.min(steps));
            let mut shown: Vec<u32> = (1..=count)
                .map(|index| (index * u64::from(steps) / (count + 1)) as u32)
                .filter(|step| *step > 0)
                .collect();
            shown.dedup();
            Previews::After(shown.into())
        }
    }
}

/// A whole number within `(least, most, name)`: the name that the upper limit has in the configuration.
fn whole_between(
    field: &str,
    given: Option<u64>,
    otherwise: u32,
    (least, most, limit): (u32, u32, &str),
) -> Result<u32, Invalid> {
    let value = given.unwrap_or(u64::from(otherwise));
    u32::try_from(value)
        .ok()
        .filter(|value| (least..=most).contains(value))
        .ok_or_else(|| Invalid::value(field, out_of_range(value, least, most, limit)))
}

/// A number from 0 to `most`; `limit` is the name that this has in the configuration, if it has one.
fn number_between(
    field: &str,
    given: Option<f64>,
    otherwise: f64,
    (most, limit): (f64, &str),
) -> Result<f64, Invalid> {
    let value = given.unwrap_or(otherwise);
    match (0.0..=most).contains(&value) {
        true => Ok(value),
        false => Err(Invalid::value(field, out_of_range(value, 0, most, limit))),
    }
}

fn out_of_range(value: impl Display, least: u32, most: impl Display, limit: &str) -> String {
    let name = match limit {
        "" => String::new(),
        limit => format!(" ({limit})"),
    };
    format!("is {value}; it must be {least} to {most}{name}")
}

#[cfg(test)]
mod tests;
