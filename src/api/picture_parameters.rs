//! What a picture was made of, in the grammar that the Stable Diffusion web UI writes into its files and
//! reads back: the prompt, a line for the negative prompt, a line of `Name: value` pairs.

use std::fmt::Write;
use std::sync::Arc;

use super::ServedModel;
use super::picture_file::DEFAULT_QUALITY;
use crate::job::{ImageJob, ScheduleName};
use crate::model::image_frontend::ImageFrontend;
use crate::picture::{Encoding, PictureFormat};

/// What an image request asks for, as far as its answer tells it again. Kept with the request; holds
/// no pixels, and is never logged.
pub struct PictureParameters {
    /// What to draw, as the client wrote it.
    pub prompt: Arc<str>,
    /// What not to draw; empty where nothing was said.
    pub negative_prompt: Arc<str>,
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// Pictures.
    pub images: u32,
    /// Steps of the whole schedule.
    pub steps: u32,
    /// Steps that a picture takes: fewer where it begins from another.
    pub iterations: u32,
    /// The schedule's title, as the web UI writes it.
    pub sampler: String,
    /// Whether its levels are spaced as in Karras et al.
    pub karras: bool,
    /// 1 or less: no guidance.
    pub guidance_scale: f32,
    /// Layers left out at the end of the text encoders.
    pub clip_skip: u32,
    /// The share of fresh noise in DDIM's steps.
    pub eta: f64,
    /// The first picture's.
    pub seed: u64,
    /// How much of the schedule was run on the source picture, if there is one.
    pub strength: Option<f64>,
    /// Whether only a part was drawn.
    pub masked: bool,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// The model's name.
    pub model: String,
}

impl PictureParameters {
    /// Those of a job, with the texts that it was made of.
    pub(crate) fn of(
        model: &ServedModel,
        prompt: Arc<str>,
        negative_prompt: Arc<str>,
        job: &ImageJob,
    ) -> Self {
        let sampler = model
            .intake
            .image()
            .map(|intake| title_of(intake.frontend.as_ref(), job.schedule))
            .unwrap_or_default();
        let tokens = job.prompt.iter().flat_map(|prompt| &prompt.chunks);
        PictureParameters {
            prompt,
            negative_prompt,
            width: job.width,
            height: job.height,
            images: job.images,
            steps: job.steps,
            iterations: job.iterations(),
            sampler,
            karras: job.karras,
            guidance_scale: job.guidance_scale,
            clip_skip: job.clip_skip,
            eta: job.eta,
            seed: job.seed,
            strength: job.source.as_ref().map(|source| source.strength),
            masked: job
                .source
                .as_ref()
                .is_some_and(|source| source.mask.is_some()),
            prompt_tokens: tokens.map(|chunk| chunk.tokens.len() as u32).sum(),
            model: model.name.clone(),
        }
    }

    /// The seed of picture number `index`, as [`ImageJob::seed_of`] has it.
    pub fn seed_of(&self, index: u32) -> u64 {
        self.seed.wrapping_add(u64::from(index))
    }

    /// How the picture of this seed is written as a file; a PNG says what it was made of.
    pub(crate) fn encoding(&self, format: PictureFormat, quality: u8, seed: u64) -> Encoding {
        let is_png = format == PictureFormat::Png;
        Encoding {
            format,
            // Without meaning for the others: one file then serves all who ask.
            quality: match format {
                PictureFormat::Jpeg => quality,
                PictureFormat::Png | PictureFormat::WebP => DEFAULT_QUALITY,
            },
            size: None,
            parameters: is_png.then(|| self.text(seed).into()),
        }
    }

    /// The text for the picture of this seed.
    pub fn text(&self, seed: u64) -> String {
        let mut text = self.prompt.to_string();
        if !self.negative_prompt.is_empty() {
            let _ = write!(text, "\nNegative prompt: {}", self.negative_prompt);
        }
        let mut pairs = vec![
            ("Steps", self.steps.to_string()),
            ("Sampler", self.sampler.clone()),
        ];
        if self.karras {
            pairs.push(("Schedule type", "Karras".to_owned()));
        }
        pairs.push(("CFG scale", self.guidance_scale.to_string()));
        pairs.push(("Seed", seed.to_string()));
        pairs.push(("Size", format!("{}x{}", self.width, self.height)));
        pairs.push(("Model", self.model.clone()));
        if let Some(strength) = self.strength {
            pairs.push(("Denoising strength", strength.to_string()));
        }
        if self.clip_skip > 0 {
            // The web UI counts the last layer as 1.
            pairs.push(("Clip skip", (self.clip_skip + 1).to_string()));
        }
        if self.eta > 0.0 {
            pairs.push(("Eta DDIM", self.eta.to_string()));
        }
        pairs.push((
            "Version",
            concat!("girandole ", env!("CARGO_PKG_VERSION")).to_owned(),
        ));
        let line: Vec<String> = pairs
            .into_iter()
            .map(|(name, value)| format!("{name}: {}", quoted(&value)))
            .collect();
        text.push('\n');
        text.push_str(&line.join(", "));
        text
    }
}

/// The web UI's rule: a value that would end its pair is written as a JSON string.
fn quoted(value: &str) -> String {
    match value.contains([',', ':', '\n']) {
        true => serde_json::Value::from(value).to_string(),
        false => value.to_owned(),
    }
}

/// The schedule's title, as the web UI writes it: without the spacing, which is told apart.
pub(crate) fn title_of(frontend: &dyn ImageFrontend, schedule: ScheduleName) -> String {
    let titles = || {
        frontend
            .schedule_names()
            .into_iter()
            .filter_map(|(title, _)| Some((title, frontend.schedule(Some(title)).ok()?)))
            .filter(|(_, (name, _))| *name == schedule)
    };
    let plain = titles().find(|(_, (_, karras))| !karras);
    plain
        .or_else(|| titles().next())
        .map(|(title, _)| title.to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
impl PictureParameters {
    /// Those of one small picture.
    pub(crate) fn example() -> Self {
        PictureParameters {
            prompt: "a red fox".into(),
            negative_prompt: "".into(),
            width: 512,
            height: 768,
            images: 1,
            steps: 20,
            iterations: 20,
            sampler: "Euler a".to_owned(),
            karras: false,
            guidance_scale: 7.0,
            clip_skip: 0,
            eta: 0.0,
            seed: 1,
            strength: None,
            masked: false,
            prompt_tokens: 77,
            model: "tiny-sd".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(parameters: &PictureParameters, seed: u64, expected: &str) {
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(
            parameters.text(seed),
            format!("{expected}, Version: girandole {version}")
        );
    }

    #[test]
    fn the_text_is_the_web_uis() {
        check(
            &PictureParameters::example(),
            1,
            "a red fox\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x768, Model: tiny-sd",
        );
        let all = PictureParameters {
            prompt: "two\nlines".into(),
            negative_prompt: "blur".into(),
            karras: true,
            guidance_scale: 7.5,
            eta: 0.5,
            clip_skip: 1,
            strength: Some(0.75),
            model: "scripted:a, b".to_owned(),
            ..PictureParameters::example()
        };
        check(
            &all,
            9,
            "two\nlines\nNegative prompt: blur\nSteps: 20, Sampler: Euler a, Schedule type: Karras, \
             CFG scale: 7.5, Seed: 9, Size: 512x768, Model: \"scripted:a, b\", \
             Denoising strength: 0.75, Clip skip: 2, Eta DDIM: 0.5",
        );
    }
}
