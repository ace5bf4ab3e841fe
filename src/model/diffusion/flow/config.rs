//! What a flow-matching model looks like: read from the JSON files of a diffusers folder.

use std::path::Path;

use super::shapes::{FluxConfig, SAMPLE_SIZE, Sd3Config};
use super::t5::T5Config;
use crate::model::ModelError;
use crate::model::diffusion::config::clip::ClipConfig;
use crate::model::diffusion::config::vae::VaeConfig;
use crate::model::diffusion::config::{MODEL_INDEX, ModelIndex, check_positions, component_json};
use crate::model::diffusion::frontend::FlowShape;
use crate::model::diffusion::schedule::FlowLevels;

/// Edge of the square of latent pixels that is one token.
pub(super) const PATCH: usize = 2;
/// Tokens that T5 reads for distilled Flux models and for SD3: what diffusers recommends and defaults to.
const SHORT_T5_TOKENS: usize = 256;
/// Tokens that T5 reads for Flux-dev.
const LONG_T5_TOKENS: usize = 512;

const FLUX_PIPELINES: [&str; 3] = ["FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline"];
const SD3_PIPELINES: [&str; 3] = [
    "StableDiffusion3Pipeline",
    "StableDiffusion3Img2ImgPipeline",
    "StableDiffusion3InpaintPipeline",
];

/// Whether [`FlowConfig::read`] is for this class of `model_index.json`.
pub fn is_flow_pipeline(class_name: &str) -> bool {
    FLUX_PIPELINES.contains(&class_name) || SD3_PIPELINES.contains(&class_name)
}

/// The transformer's shape.
#[derive(Clone, Debug, PartialEq)]
pub enum TransformerConfig {
    /// Flux.1, schnell and dev.
    Flux(FluxConfig),
    /// Stable Diffusion 3 and 3.5.
    Sd3(Sd3Config),
}

/// The families of flows, as far as they are asked differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowKind {
    /// Distilled for few steps, its guidance inside.
    FluxSchnell,
    /// Takes the guidance scale as an input.
    FluxDev,
    /// Stable Diffusion 3.
    Sd3,
    /// Stable Diffusion 3.5.
    Sd35,
}

/// A flow-matching model's shape.
#[derive(Clone, Debug, PartialEq)]
pub struct FlowConfig {
    /// The network.
    pub transformer: TransformerConfig,
    /// CLIP text encoders: Flux's one, SD3's two.
    pub clips: Vec<ClipConfig>,
    /// The T5 text encoder; SD3 does without one if need be.
    pub t5: Option<T5Config>,
    /// Tokens that T5 reads; a prompt is filled up to so many.
    pub t5_tokens: usize,
    /// Latents to pictures and back.
    pub vae: VaeConfig,
}

impl TransformerConfig {
    /// Channels of a latent.
    pub fn latent_channels(&self) -> usize {
        match self {
            TransformerConfig::Flux(flux) => flux.latent_channels,
            TransformerConfig::Sd3(sd3) => sd3.latent_channels,
        }
    }

    /// Folders of the CLIPs and of their tokenizers, then those of T5.
    pub(super) fn text_folders(
        &self,
    ) -> (
        &'static [(&'static str, &'static str)],
        (&'static str, &'static str),
    ) {
        const FOLDERS: [(&str, &str); 3] = [
            ("text_encoder", "tokenizer"),
            ("text_encoder_2", "tokenizer_2"),
            ("text_encoder_3", "tokenizer_3"),
        ];
        let clips = match self {
            TransformerConfig::Flux(_) => 1,
            TransformerConfig::Sd3(_) => 2,
        };
        (&FOLDERS[..clips], FOLDERS[clips])
    }
}

impl FlowConfig {
    /// Reads a diffusers folder: the index and every component's JSON, no weights.
    ///
    /// # Errors
    /// Names the file and the field that is missing, hostile or not supported.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        let index = ModelIndex::read(folder)?;
        let class = index.class_name()?;
        let is_flux = FLUX_PIPELINES.contains(&class);
        if !is_flow_pipeline(class) {
            return Err(ModelError::Load(format!(
                "{MODEL_INDEX}: _class_name {class} is not a flow; supported: {}, {}",
                FLUX_PIPELINES.join(", "),
                SD3_PIPELINES.join(", ")
            )));
        }
        index.expect("vae", &["AutoencoderKL"])?;
        let (file, object) = component_json(folder, "transformer")?;
        let transformer = match is_flux {
            true => {
                index.expect("transformer", &["FluxTransformer2DModel"])?;
                TransformerConfig::Flux(FluxConfig::parse(&file, &object)?)
            }
            false => {
                index.expect("transformer", &["SD3Transformer2DModel"])?;
                TransformerConfig::Sd3(Sd3Config::parse(&file, &object)?)
            }
        };
        let (clip_folders, (t5_folder, _)) = transformer.text_folders();
        // Flux reads the state before the projection.
        let clip_class = match is_flux {
            true => "CLIPTextModel",
            false => "CLIPTextModelWithProjection",
        };
        let clips = clip_folders
            .iter()
            .map(|(name, _)| {
                index.expect(name, &[clip_class])?;
                let (file, object) = component_json(folder, name)?;
                ClipConfig::parse(&file, &object, !is_flux)
            })
            .collect::<Result<_, ModelError>>()?;
        let t5 = match index.component(t5_folder) {
            None if !is_flux => None,
            _ => {
                index.expect(t5_folder, &["T5EncoderModel"])?;
                let (file, object) = component_json(folder, t5_folder)?;
                Some(T5Config::parse(&file, &object)?)
            }
        };
        let t5_tokens = match &transformer {
            TransformerConfig::Flux(flux) if flux.guidance => LONG_T5_TOKENS,
            _ => SHORT_T5_TOKENS,
        };
        let (file, object) = component_json(folder, "vae")?;
        let config = FlowConfig {
            transformer,
            clips,
            t5,
            t5_tokens,
            vae: VaeConfig::parse(&file, &object)?,
        };
        config.check()?;
        Ok(config)
    }

    /// What its schedule depends on.
    pub fn shape(&self) -> FlowShape {
        FlowShape {
            levels: match self.transformer {
                TransformerConfig::Flux(_) => FlowLevels::Even,
                TransformerConfig::Sd3(_) => FlowLevels::Trained,
            },
            token_pixels: u32::try_from(self.token_pixels()).unwrap_or(u32::MAX),
            max_edge: match &self.transformer {
                TransformerConfig::Flux(_) => u32::MAX,
                TransformerConfig::Sd3(sd3) => {
                    let pixels = sd3.position_edge * self.token_pixels();
                    u32::try_from(pixels).unwrap_or(u32::MAX)
                }
            },
        }
    }

    /// Pixels of one token along an edge, of which width and height are multiples.
    pub fn token_pixels(&self) -> usize {
        PATCH * self.vae.factor()
    }

    /// Width and height that the model was made for, in pixels.
    pub fn sample_pixels(&self) -> usize {
        let latent = match &self.transformer {
            TransformerConfig::Flux(_) => SAMPLE_SIZE,
            TransformerConfig::Sd3(sd3) => sd3.sample_size,
        };
        latent * self.vae.factor()
    }

    /// Its family.
    pub fn kind(&self) -> FlowKind {
        match &self.transformer {
            TransformerConfig::Flux(flux) if flux.guidance => FlowKind::FluxDev,
            TransformerConfig::Flux(_) => FlowKind::FluxSchnell,
            // The later release normalises queries and keys.
            TransformerConfig::Sd3(sd3) if sd3.qk_norm => FlowKind::Sd35,
            TransformerConfig::Sd3(_) => FlowKind::Sd3,
        }
    }

    /// Whether the components fit each other.
    fn check(&self) -> Result<(), ModelError> {
        let mismatch = |name: &str, given: usize, what: &str, wanted: usize| {
            Err(ModelError::Load(format!(
                "transformer/config.json: {name} is {given}, {what} {wanted}"
            )))
        };
        let latent = self.vae.latent_channels;
        let channels = self.transformer.latent_channels();
        if channels != latent {
            let what = "in channels of a latent; vae/config.json has latent_channels";
            return mismatch("in_channels", channels, what, latent);
        }
        check_positions(&self.clips)?;
        let t5 = self.t5.as_ref().map(|t5| t5.width);
        let (context, pooled, pooled_wanted) = match &self.transformer {
            TransformerConfig::Flux(flux) => {
                let pooled = self.clips.iter().map(|clip| clip.hidden_size).sum();
                (flux.context_dim, flux.pooled_dim, pooled)
            }
            TransformerConfig::Sd3(sd3) => {
                let widths = self.clips.iter().map(|clip| clip.hidden_size);
                let clips: usize = widths.sum();
                if clips > sd3.context_dim {
                    let what = "which is less than the width of the clip text encoders,";
                    return mismatch("joint_attention_dim", sd3.context_dim, what, clips);
                }
                let pooled = self.clips.iter().filter_map(|clip| clip.projection_dim);
                (sd3.context_dim, sd3.pooled_dim, pooled.sum())
            }
        };
        if let Some(t5) = t5.filter(|t5| *t5 != context) {
            return mismatch(
                "joint_attention_dim",
                context,
                "the t5 text encoder gives",
                t5,
            );
        }
        if pooled != pooled_wanted {
            let what = "the clip text encoders give";
            return mismatch("pooled_projection_dim", pooled, what, pooled_wanted);
        }
        Ok(())
    }
}
