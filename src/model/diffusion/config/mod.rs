//! What a Stable Diffusion model looks like: read from the JSON files of a diffusers folder.
//!
//! `model_index.json` names a class for every component, and each component's folder says its shape.
//! Numbers are bounded here, so that a damaged file is an error and not a request for the machine's memory.

pub mod clip;
pub mod fields;
pub mod unet;
pub mod vae;

use std::path::Path;

use serde_json::{Map, Value};

use crate::model::ModelError;
use clip::ClipConfig;
use fields::{Fields, read_object};
use unet::UNetConfig;
use vae::VaeConfig;

/// The widest layer that a configuration may claim; real models stay far below.
pub(super) const MAX_WIDTH: usize = 1 << 16;
/// The most layers of one stack, and residual blocks of one level.
pub(super) const MAX_LAYERS: usize = 256;
/// The most resolution levels.
pub(super) const MAX_BLOCKS: usize = 8;

/// The index of a diffusers folder.
pub const MODEL_INDEX: &str = "model_index.json";

/// The pipelines whose arithmetic is Stable Diffusion's. They differ in what they are asked, not in what they compute.
const CLASSIC_PIPELINES: [&str; 4] = [
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "LatentConsistencyModelPipeline",
];
const XL_PIPELINES: [&str; 3] = [
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
];

/// The two ways in which text conditions a UNet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// SD 1.x and 2.x: one encoder, its last state.
    Classic,
    /// SDXL: two encoders, their penultimate states side by side, and a pooled one.
    Xl,
}

/// What `model_index.json` says.
#[derive(Clone, Debug)]
pub struct ModelIndex {
    object: Map<String, Value>,
}

impl ModelIndex {
    /// Reads the index of this folder.
    ///
    /// # Errors
    /// Missing, or not an index.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        let object = read_object(&folder.join(MODEL_INDEX))?;
        Ok(ModelIndex { object })
    }

    /// The pipeline's class, such as `StableDiffusionPipeline`.
    ///
    /// # Errors
    /// It is missing.
    pub fn class_name(&self) -> Result<&str, ModelError> {
        let fields = Fields::new(MODEL_INDEX, &self.object);
        fields
            .text("_class_name")?
            .ok_or_else(|| fields.error("_class_name", "is missing"))
    }

    /// What the model was called where it was saved; empty where the index does not say.
    pub fn origin(&self) -> &str {
        let name = self.object.get("_name_or_path");
        name.and_then(Value::as_str).unwrap_or_default()
    }

    /// The class of a component, unless the index leaves it out or says that there is none.
    pub fn component(&self, name: &str) -> Option<&str> {
        self.object.get(name)?.as_array()?.get(1)?.as_str()
    }

    /// A switch of the pipeline's own.
    ///
    /// # Errors
    /// It is not a switch.
    pub fn switch(&self, name: &str, default: bool) -> Result<bool, ModelError> {
        Fields::new(MODEL_INDEX, &self.object).switch(name, default)
    }

    /// The class of a component, which must be one of these.
    ///
    /// # Errors
    /// It is none of them, or there is no such component.
    pub fn expect(&self, name: &str, supported: &[&str]) -> Result<&str, ModelError> {
        let class = self.component(name).ok_or_else(|| {
            ModelError::Load(format!("{MODEL_INDEX}: there is no component {name}"))
        })?;
        if supported.contains(&class) {
            return Ok(class);
        }
        Err(ModelError::Load(format!(
            "{MODEL_INDEX}: {name} is a {class}, which is not supported; supported: {}",
            supported.join(", ")
        )))
    }
}

/// A Stable Diffusion model's shape.
#[derive(Clone, Debug, PartialEq)]
pub struct StableDiffusionConfig {
    /// How text conditions it.
    pub generation: Generation,
    /// One text encoder, or SDXL's two.
    pub text_encoders: Vec<ClipConfig>,
    /// The noise predictor.
    pub unet: UNetConfig,
    /// Latents to pictures and back.
    pub vae: VaeConfig,
    /// SDXL: no negative prompt means states that are all zero, not those of an empty prompt.
    pub force_zeros_for_empty_prompt: bool,
}

/// Folders of the text encoders and of their tokenizers, in the order of [`StableDiffusionConfig::text_encoders`].
pub const TEXT_FOLDERS: [(&str, &str); 2] = [
    ("text_encoder", "tokenizer"),
    ("text_encoder_2", "tokenizer_2"),
];

impl StableDiffusionConfig {
    /// Reads a diffusers folder: the index and every component's JSON, no weights.
    ///
    /// # Errors
    /// Names the file and the field that is missing, hostile or not supported.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        let index = ModelIndex::read(folder)?;
        let class = index.class_name()?;
        let generation = match class {
            class if CLASSIC_PIPELINES.contains(&class) => Generation::Classic,
            class if XL_PIPELINES.contains(&class) => Generation::Xl,
            other => {
                return Err(ModelError::Load(format!(
                    "{MODEL_INDEX}: _class_name {other} is not supported; supported: {}, {}",
                    CLASSIC_PIPELINES.join(", "),
                    XL_PIPELINES.join(", ")
                )));
            }
        };
        index.expect("unet", &["UNet2DConditionModel"])?;
        index.expect("vae", &["AutoencoderKL"])?;
        let encoders = match generation {
            Generation::Classic => 1,
            Generation::Xl => 2,
        };
        let text_encoders = TEXT_FOLDERS[..encoders]
            .iter()
            .map(|(name, _)| {
                let classes = ["CLIPTextModel", "CLIPTextModelWithProjection"];
                let class = index.expect(name, &classes)?;
                let (file, object) = component_json(folder, name)?;
                ClipConfig::parse(&file, &object, class == "CLIPTextModelWithProjection")
            })
            .collect::<Result<_, ModelError>>()?;
        let (file, object) = component_json(folder, "unet")?;
        let unet = UNetConfig::parse(&file, &object)?;
        let (file, object) = component_json(folder, "vae")?;
        let vae = VaeConfig::parse(&file, &object)?;
        let config = StableDiffusionConfig {
            generation,
            text_encoders,
            unet,
            vae,
            force_zeros_for_empty_prompt: index
                .switch("force_zeros_for_empty_prompt", generation == Generation::Xl)?,
        };
        config.check()?;
        Ok(config)
    }

    /// Whether the components fit each other.
    fn check(&self) -> Result<(), ModelError> {
        let mismatch = |what: String| Err(ModelError::Load(what));
        let latent = self.vae.latent_channels;
        let unet = &self.unet;
        if unet.out_channels != latent {
            return mismatch(format!(
                "unet/config.json: out_channels is {}, vae/config.json has latent_channels {latent}",
                unet.out_channels
            ));
        }
        if unet.in_channels != latent {
            return mismatch(format!(
                "unet/config.json: in_channels is {}; supported is {latent}, that of a latent (one made for \
                 inpainting is not needed: any other paints in masked areas)",
                unet.in_channels
            ));
        }
        check_positions(&self.text_encoders)?;
        let width: usize = self.text_encoders.iter().map(|text| text.hidden_size).sum();
        if unet.cross_attention_dim != width {
            return mismatch(format!(
                "unet/config.json: cross_attention_dim is {}, the text encoders give {width}",
                unet.cross_attention_dim
            ));
        }
        let pooled = self.pooled_dim();
        match (self.generation, unet.added) {
            (Generation::Classic, None) => Ok(()),
            (Generation::Xl, Some(added)) if Some(added.pooled_dim) == pooled => Ok(()),
            (Generation::Classic, Some(_)) => mismatch(
                "unet/config.json: addition_embed_type needs a pipeline of SDXL".to_string(),
            ),
            (Generation::Xl, added) => mismatch(format!(
                "unet/config.json: it takes a pooled state of width {:?}, text_encoder_2 gives {pooled:?}",
                added.map(|added| added.pooled_dim)
            )),
        }
    }

    /// Width of the pooled state, for SDXL.
    pub fn pooled_dim(&self) -> Option<usize> {
        match self.generation {
            Generation::Classic => None,
            Generation::Xl => self.text_encoders.last()?.projection_dim,
        }
    }
}

/// A component's `config.json`, and what errors call it.
pub(super) fn component_json(
    folder: &Path,
    name: &str,
) -> Result<(String, Map<String, Value>), ModelError> {
    let object = read_object(&folder.join(name).join("config.json"))?;
    Ok((format!("{name}/config.json"), object))
}

/// The states of text encoders lie side by side, so that their chunks must be equally long.
pub(super) fn check_positions(encoders: &[ClipConfig]) -> Result<(), ModelError> {
    let mut positions = encoders.iter().map(|encoder| encoder.positions);
    let first = positions.next();
    match positions.find(|positions| Some(*positions) != first) {
        None => Ok(()),
        Some(other) => Err(ModelError::Load(format!(
            "text_encoder_2/config.json: max_position_embeddings is {other}; text_encoder/config.json has {}",
            first.unwrap_or_default()
        ))),
    }
}

/// Groups of every group norm, which divide these channels.
fn norm_groups(fields: &Fields<'_>, channels: &[usize]) -> Result<usize, ModelError> {
    let name = "norm_num_groups";
    if fields.is_null(name) {
        return Err(fields.error(name, "is null; networks without norms are not supported"));
    }
    let groups = fields.count(name, 32, 1..=MAX_WIDTH)?;
    match channels
        .iter()
        .find(|channels| !channels.is_multiple_of(groups))
    {
        None => Ok(groups),
        Some(channels) => Err(fields.error(
            name,
            &format!("is {groups}, which does not divide {channels} channels"),
        )),
    }
}
