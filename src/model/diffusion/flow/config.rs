//! What a flow-matching model looks like: read from the JSON files of a diffusers folder.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::t5::T5Config;
use crate::model::ModelError;
use crate::model::diffusion::config::clip::ClipConfig;
use crate::model::diffusion::config::fields::{Fields, read_object};
use crate::model::diffusion::config::vae::VaeConfig;
use crate::model::diffusion::config::{MAX_LAYERS, MAX_WIDTH, MODEL_INDEX, ModelIndex};
use crate::model::diffusion::frontend::FlowShape;
use crate::model::diffusion::schedule::FlowLevels;

/// Edge of the square of latent pixels that is one token.
pub(super) const PATCH: usize = 2;
/// The most channels of a latent that a configuration may claim.
const MAX_LATENT_CHANNELS: usize = 256;
/// The most positions along an edge of SD3's table.
const MAX_POSITION_EDGE: usize = 1 << 10;
/// Axes of a Flux token's position: one that is always 0, row, column.
pub(super) const AXES: usize = 3;
/// Tokens that T5 reads for distilled Flux models and for SD3: what diffusers recommends and defaults to.
const SHORT_T5_TOKENS: usize = 256;
/// Tokens that T5 reads for Flux-dev.
const LONG_T5_TOKENS: usize = 512;
/// Edge of the latents that models were made for which do not say so.
const SAMPLE_SIZE: usize = 128;
/// Steps that the makers of Flux-schnell advise.
const DISTILLED_STEPS: u32 = 4;

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

/// A Flux transformer's shape.
#[derive(Clone, Debug, PartialEq)]
pub struct FluxConfig {
    /// Of a latent; a token has four times as many.
    pub latent_channels: usize,
    /// Blocks with weights of their own for text and picture.
    pub double_layers: usize,
    /// Blocks with one set of weights for both.
    pub single_layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of T5's states.
    pub context_dim: usize,
    /// Width of CLIP's pooled state.
    pub pooled_dim: usize,
    /// Columns of a head that each axis of the position rotates: even, together `head_dim`.
    pub rope_dims: [usize; AXES],
    /// The guidance scale is an input (Flux-dev).
    pub guidance: bool,
}

/// An MMDiT's shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Sd3Config {
    /// Of a latent.
    pub latent_channels: usize,
    /// Blocks.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the text states.
    pub context_dim: usize,
    /// Width of the CLIPs' pooled states, side by side.
    pub pooled_dim: usize,
    /// Positions along an edge of the table: so many tokens is the largest picture.
    pub position_edge: usize,
    /// Blocks with a second attention of the picture alone (3.5 medium).
    pub dual_layers: Vec<usize>,
    /// Queries and keys are normalised (3.5).
    pub qk_norm: bool,
    /// Edge of the latents that it was made for.
    pub sample_size: usize,
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
    /// `scheduler/scheduler_config.json`, for the schedules to read.
    pub scheduler: Map<String, Value>,
}

impl FluxConfig {
    /// Width of the residual stream.
    pub fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    fn parse(file: &str, object: &Map<String, Value>) -> Result<Self, ModelError> {
        let fields = Fields::new(file, object);
        fields.refuse_unless("patch_size", &[json!(1)])?;
        let channels = fields.count("in_channels", 64, 4..=PATCH * PATCH * MAX_LATENT_CHANNELS)?;
        fields.refuse_unless("out_channels", &[json!(channels)])?;
        if !channels.is_multiple_of(PATCH * PATCH) {
            let what = format!("is {channels}; it must be a multiple of {}", PATCH * PATCH);
            return Err(fields.error("in_channels", &what));
        }
        let head_dim = fields.count("attention_head_dim", 128, 2..=MAX_WIDTH)?;
        let dims = match fields.value("axes_dims_rope") {
            None => vec![16, 56, 56],
            Some(_) => fields.needed_counts("axes_dims_rope", AXES, 2..=MAX_WIDTH)?,
        };
        let fits = dims.iter().sum::<usize>() == head_dim && dims.iter().all(|dim| dim % 2 == 0);
        let rope_dims = <[usize; AXES]>::try_from(dims.as_slice()).ok();
        let Some(rope_dims) = rope_dims.filter(|_| fits) else {
            let what = format!(
                "is {dims:?}; it must be {AXES} even numbers that add up to {head_dim}, the width of a head"
            );
            return Err(fields.error("axes_dims_rope", &what));
        };
        let config = FluxConfig {
            latent_channels: channels / (PATCH * PATCH),
            double_layers: fields.count("num_layers", 19, 0..=MAX_LAYERS)?,
            single_layers: fields.count("num_single_layers", 38, 0..=MAX_LAYERS)?,
            heads: fields.count("num_attention_heads", 24, 1..=MAX_WIDTH)?,
            head_dim,
            context_dim: fields.count("joint_attention_dim", 4096, 1..=MAX_WIDTH)?,
            pooled_dim: fields.count("pooled_projection_dim", 768, 1..=MAX_WIDTH)?,
            rope_dims,
            guidance: fields.switch("guidance_embeds", false)?,
        };
        check_width(&fields, config.width())?;
        Ok(config)
    }
}

impl Sd3Config {
    /// Width of the residual stream.
    pub fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    fn parse(file: &str, object: &Map<String, Value>) -> Result<Self, ModelError> {
        let fields = Fields::new(file, object);
        fields.refuse_unless("patch_size", &[json!(PATCH)])?;
        let latent_channels = fields.count("in_channels", 16, 1..=MAX_LATENT_CHANNELS)?;
        fields.refuse_unless("out_channels", &[json!(latent_channels)])?;
        fields.refuse_unless("qk_norm", &[json!("rms_norm")])?;
        let dual = fields.value("dual_attention_layers");
        let has_dual = dual
            .and_then(Value::as_array)
            .is_none_or(|list| !list.is_empty());
        let config = Sd3Config {
            latent_channels,
            layers: fields.count("num_layers", 18, 1..=MAX_LAYERS)?,
            heads: fields.count("num_attention_heads", 18, 1..=MAX_WIDTH)?,
            head_dim: fields.count("attention_head_dim", 64, 1..=MAX_WIDTH)?,
            context_dim: fields.count("joint_attention_dim", 4096, 1..=MAX_WIDTH)?,
            pooled_dim: fields.count("pooled_projection_dim", 2048, 1..=MAX_WIDTH)?,
            position_edge: fields.count("pos_embed_max_size", 96, 1..=MAX_POSITION_EDGE)?,
            dual_layers: match dual.is_some() && has_dual {
                true => {
                    fields.needed_counts("dual_attention_layers", MAX_LAYERS, 0..=MAX_LAYERS)?
                }
                false => Vec::new(),
            },
            qk_norm: fields.text("qk_norm")?.is_some(),
            sample_size: fields.count("sample_size", SAMPLE_SIZE, 1..=MAX_WIDTH)?,
        };
        check_width(&fields, config.width())?;
        let width = config.width();
        let caption = fields.count("caption_projection_dim", width, 1..=MAX_WIDTH)?;
        if caption != width {
            let what = format!("is {caption}; it must be {width}, the width of all heads");
            return Err(fields.error("caption_projection_dim", &what));
        }
        Ok(config)
    }
}

fn check_width(fields: &Fields<'_>, width: usize) -> Result<(), ModelError> {
    if width <= MAX_WIDTH {
        return Ok(());
    }
    let what = format!("makes the network {width} wide; at most {MAX_WIDTH} is supported");
    Err(fields.error("num_attention_heads", &what))
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
        expect(&index, "vae", &["AutoencoderKL"])?;
        let (file, object) = component_json(folder, "transformer")?;
        let transformer = match is_flux {
            true => {
                expect(&index, "transformer", &["FluxTransformer2DModel"])?;
                TransformerConfig::Flux(FluxConfig::parse(&file, &object)?)
            }
            false => {
                expect(&index, "transformer", &["SD3Transformer2DModel"])?;
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
                expect(&index, name, &[clip_class])?;
                let (file, object) = component_json(folder, name)?;
                ClipConfig::parse(&file, &object, !is_flux)
            })
            .collect::<Result<_, ModelError>>()?;
        let t5 = match index.component(t5_folder) {
            None if !is_flux => None,
            _ => {
                expect(&index, t5_folder, &["T5EncoderModel"])?;
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
            scheduler: read_object(&folder.join("scheduler").join("scheduler_config.json"))?,
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

    /// It predicts once for each step: its guidance was distilled into it.
    pub fn is_distilled(&self) -> bool {
        matches!(self.transformer, TransformerConfig::Flux(_))
    }

    /// Steps that its makers advise, where they are few.
    pub fn steps(&self) -> Option<u32> {
        match &self.transformer {
            TransformerConfig::Flux(flux) if !flux.guidance => Some(DISTILLED_STEPS),
            _ => None,
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

/// Fails unless the component is of one of these classes.
fn expect(index: &ModelIndex, name: &str, supported: &[&str]) -> Result<(), ModelError> {
    let class = index
        .component(name)
        .ok_or_else(|| ModelError::Load(format!("{MODEL_INDEX}: there is no component {name}")))?;
    if supported.contains(&class) {
        return Ok(());
    }
    Err(ModelError::Load(format!(
        "{MODEL_INDEX}: {name} is a {class}, which is not supported; supported: {}",
        supported.join(", ")
    )))
}

/// A component's `config.json`, and what errors call it.
fn component_json(folder: &Path, name: &str) -> Result<(String, Map<String, Value>), ModelError> {
    let object = read_object(&folder.join(name).join("config.json"))?;
    Ok((format!("{name}/config.json"), object))
}
