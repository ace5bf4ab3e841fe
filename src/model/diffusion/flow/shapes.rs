//! The shapes of the networks, from `transformer/config.json`.

use serde_json::{Map, Value, json};

use super::config::PATCH;
use crate::model::ModelError;
use crate::model::diffusion::config::fields::Fields;
use crate::model::diffusion::config::{MAX_LAYERS, MAX_WIDTH};

/// The most channels of a latent that a configuration may claim.
const MAX_LATENT_CHANNELS: usize = 256;
/// The most positions along an edge of SD3's table.
const MAX_POSITION_EDGE: usize = 1 << 10;
/// Axes of a Flux token's position: one that is always 0, row, column.
pub(super) const AXES: usize = 3;
/// Edge of the latents that models were made for which do not say so.
pub(super) const SAMPLE_SIZE: usize = 128;

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

impl FluxConfig {
    /// Width of the residual stream.
    pub fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    pub(super) fn parse(file: &str, object: &Map<String, Value>) -> Result<Self, ModelError> {
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

    pub(super) fn parse(file: &str, object: &Map<String, Value>) -> Result<Self, ModelError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_fields_are_errors_that_name_them() {
        let parse = |is_flux: bool, field: &str, value: &Value| {
            let mut object = Map::new();
            object.insert(field.to_owned(), value.clone());
            match is_flux {
                true => FluxConfig::parse("transformer/config.json", &object).map(drop),
                false => Sd3Config::parse("transformer/config.json", &object).map(drop),
            }
        };
        for (is_flux, field, value) in [
            (true, "in_channels", json!(66)),
            (true, "in_channels", json!(0)),
            (true, "out_channels", json!(32)),
            (true, "patch_size", json!(2)),
            (true, "attention_head_dim", json!(126)),
            (true, "axes_dims_rope", json!([16, 112])),
            (true, "axes_dims_rope", json!([15, 57, 56])),
            (true, "num_attention_heads", json!(60_000)),
            (true, "guidance_embeds", json!("yes")),
            (false, "patch_size", json!(4)),
            (false, "qk_norm", json!("layer_norm")),
            (false, "num_layers", json!(0)),
            (false, "num_layers", json!(1_000_000)),
            (false, "dual_attention_layers", json!([-1])),
            (false, "pos_embed_max_size", json!(1 << 20)),
            (false, "caption_projection_dim", json!(7)),
        ] {
            let error = parse(is_flux, field, &value).expect_err(field).to_string();
            let named = match field {
                // A head and what rotates it must fit.
                "attention_head_dim" => "axes_dims_rope",
                field => field,
            };
            assert!(error.contains(named), "{field}: {error}");
        }
        let null = Value::Null;
        assert!(
            parse(true, "axes_dims_rope", &null).is_ok(),
            "the published shape"
        );
        assert!(parse(false, "dual_attention_layers", &null).is_ok());
    }
}
