//! What the edge asks of a Stable Diffusion model: its tokenizers and its schedules, without the weights.

use std::path::Path;

use super::config::{Generation, StableDiffusionConfig, TEXT_FOLDERS};
use super::prompt::{self, PromptOptions};
use super::schedule::{NoiseSchedule, ScheduleChoice, ScheduleConfig, ScheduleOptions};
use super::tokenizer::ClipTokenizer;
use crate::job::{ImageJob, PromptTokens, ScheduleName, SourceImage};
use crate::model::ModelError;
use crate::model::image_frontend::{Guidance, ImageFrontend};

/// How a family of models reads a prompt.
pub trait PromptReader: Send + Sync {
    /// One entry for each text encoder.
    ///
    /// # Errors
    /// The prompt is too long, or a weight is out of range; a line for the client.
    fn tokenize(&self, prompt: &str, max_chunks: usize) -> Result<Vec<PromptTokens>, String>;

    /// Puts empty chunks behind `prompt`, which text encoder number `encoder` reads, until it has `chunks`.
    fn pad(&self, encoder: usize, prompt: &mut PromptTokens, chunks: usize);

    /// See [`ImageFrontend::guidance`].
    fn guidance(&self) -> Guidance;

    /// See [`ImageFrontend::max_clip_skip`].
    fn max_clip_skip(&self) -> u32 {
        0
    }
}

/// The CLIP tokenizers of Stable Diffusion.
pub struct ClipPrompts {
    /// Each with its encoder's positions.
    tokenizers: Vec<(ClipTokenizer, usize)>,
    /// The guidance scale is an input of the network (LCM).
    embedded_guidance: bool,
    max_clip_skip: u32,
}

impl ClipPrompts {
    /// Reads the tokenizers of a diffusers folder.
    ///
    /// # Errors
    /// Names the file that is missing or broken.
    pub fn read(folder: &Path, config: &StableDiffusionConfig) -> Result<Self, ModelError> {
        let tokenizers = TEXT_FOLDERS
            .iter()
            .zip(&config.text_encoders)
            .map(|((_, tokenizer), encoder)| {
                let tokenizer = ClipTokenizer::for_encoder(&folder.join(tokenizer), encoder)?;
                Ok((tokenizer, encoder.positions))
            })
            .collect::<Result<_, ModelError>>()?;
        Ok(ClipPrompts {
            tokenizers,
            embedded_guidance: config.unet.time_cond_proj_dim.is_some(),
            max_clip_skip: max_clip_skip(config),
        })
    }
}

impl PromptReader for ClipPrompts {
    fn tokenize(&self, text: &str, max_chunks: usize) -> Result<Vec<PromptTokens>, String> {
        self.tokenizers
            .iter()
            .map(|(tokenizer, positions)| {
                let options = PromptOptions {
                    positions: *positions,
                    max_chunks,
                    weighted: true,
                };
                prompt::tokenize(tokenizer, text, options).map_err(|error| error.to_string())
            })
            .collect()
    }

    fn guidance(&self) -> Guidance {
        match self.embedded_guidance {
            true => Guidance::Embedded,
            false => Guidance::Classifier,
        }
    }

    fn max_clip_skip(&self) -> u32 {
        self.max_clip_skip
    }

    fn pad(&self, encoder: usize, prompt: &mut PromptTokens, chunks: usize) {
        let (tokenizer, positions) = &self.tokenizers[encoder];
        prompt::pad_to_chunks(prompt, chunks, tokenizer, *positions);
    }
}

/// One layer must be left; SDXL's own way leaves one out already.
fn max_clip_skip(config: &StableDiffusionConfig) -> u32 {
    let kept = match config.generation {
        Generation::Classic => 1,
        Generation::Xl => 2,
    };
    let layers = config.text_encoders.iter().map(|encoder| encoder.layers);
    let fewest = layers.min().unwrap_or(0).saturating_sub(kept);
    u32::try_from(fewest).unwrap_or(u32::MAX)
}

/// The tokenizers and the schedules of one model.
pub struct DiffusionFrontend {
    prompts: Box<dyn PromptReader>,
    schedule: ScheduleConfig,
    /// The model's own where its makers' class is none of ours.
    default_schedule: ScheduleChoice,
    flow: FlowShape,
}

/// What a flow's schedule depends on beside its configuration, and how far its pictures reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FlowShape {
    /// Where its noise levels lie.
    pub levels: super::schedule::FlowLevels,
    /// Pixels of one token along an edge, for a shift that depends on the picture's size.
    pub token_pixels: u32,
    /// Pixels of the longest edge that the network has positions for.
    pub max_edge: u32,
}

impl Default for FlowShape {
    fn default() -> Self {
        FlowShape {
            levels: super::schedule::FlowLevels::Trained,
            token_pixels: 16,
            max_edge: u32::MAX,
        }
    }
}

impl DiffusionFrontend {
    /// A frontend of these parts.
    pub fn new(prompts: Box<dyn PromptReader>, schedule: ScheduleConfig, flow: FlowShape) -> Self {
        DiffusionFrontend {
            prompts,
            default_schedule: schedule.default_choice(),
            schedule,
            flow,
        }
    }

    /// The noise schedule that a job asks for.
    ///
    /// # Errors
    /// Its steps, its spacing and its strength do not go together, or not with the model.
    pub fn noise_schedule(&self, job: &ImageJob) -> Result<NoiseSchedule, String> {
        let tokens = job.width.div_ceil(self.flow.token_pixels) as usize
            * job.height.div_ceil(self.flow.token_pixels) as usize;
        // Where everything behind the mask is drawn anew, nothing of the picture is meant to shine through:
        // the row begins at noise alone, as in diffusers.
        let from_noise = |source: &&SourceImage| source.mask.is_some() && source.strength == 1.0;
        let source = job.source.as_ref().filter(|source| !from_noise(source));
        let options = ScheduleOptions {
            name: job.schedule,
            karras: job.karras,
            steps: job.steps as usize,
            strength: source.map(|source| source.strength),
            eta: job.eta,
            flow_levels: self.flow.levels,
            dynamic_shift: self.schedule.dynamic_shift(tokens),
        };
        NoiseSchedule::new(&self.schedule, options).map_err(|error| error.to_string())
    }

    /// See [`PromptReader::pad`].
    pub fn pad(&self, encoder: usize, prompt: &mut PromptTokens, chunks: usize) {
        self.prompts.pad(encoder, prompt, chunks);
    }
}

impl ImageFrontend for DiffusionFrontend {
    fn tokenize(&self, prompt: &str, max_chunks: usize) -> Result<Vec<PromptTokens>, String> {
        self.prompts.tokenize(prompt, max_chunks)
    }

    fn guidance(&self) -> Guidance {
        self.prompts.guidance()
    }

    fn max_clip_skip(&self) -> u32 {
        self.prompts.max_clip_skip()
    }

    fn schedule(&self, name: Option<&str>) -> Result<(ScheduleName, bool), String> {
        let choice = match name {
            None => self.default_schedule,
            Some(name) => name
                .parse::<ScheduleChoice>()
                .map_err(|error| format!("is {error}"))?,
        };
        Ok((choice.name, choice.karras))
    }

    fn max_edge(&self) -> u32 {
        self.flow.max_edge
    }

    fn schedule_names(&self) -> Vec<(&'static str, &'static str)> {
        ScheduleName::ALL
            .into_iter()
            .filter(|name| (*name == ScheduleName::FlowMatchEuler) == self.schedule.is_flow())
            .map(|name| (name.label(), name.as_str()))
            .collect()
    }

    fn check(&self, job: &ImageJob) -> Result<(), String> {
        let schedule = self.noise_schedule(job)?;
        debug_assert_eq!(schedule.len(), job.iterations() as usize);
        Ok(())
    }
}
