//! A conditional UNet's shape, from `unet/config.json`.
//!
//! Every field of diffusers' `UNet2DConditionModel` that changes the arithmetic is honoured or refused.

use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::{MAX_BLOCKS, MAX_LAYERS, MAX_WIDTH};
use crate::model::ModelError;

/// The most transformer layers of one attention block; SDXL has 10.
const MAX_TRANSFORMER_LAYERS: usize = 64;

/// One resolution level, going down. Going up, its mirror image has one residual block more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UNetLevel {
    /// Channels.
    pub channels: usize,
    /// Residual blocks, going down.
    pub layers: usize,
    /// Transformer layers behind each residual block going down; none for a plain block.
    pub down_transformers: usize,
    /// Transformer layers behind each residual block going up; none for a plain block.
    pub up_transformers: usize,
    /// Attention heads.
    pub heads: usize,
}

/// SDXL's second conditioning: a pooled text state, and numbers about the picture's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddedEmbedding {
    /// Width of the sinusoids of each of the six numbers.
    pub time_embed_dim: usize,
    /// Width of the pooled text state.
    pub pooled_dim: usize,
}

/// Size and crop numbers of SDXL: original height and width, crop top and left, target height and width.
pub const SIZE_IDS: usize = 6;

/// A UNet's shape and switches.
#[derive(Clone, Debug, PartialEq)]
pub struct UNetConfig {
    /// Channels in: those of a latent.
    pub in_channels: usize,
    /// Channels out: those of a latent.
    pub out_channels: usize,
    /// Levels, from the full resolution down.
    pub levels: Vec<UNetLevel>,
    /// Transformer layers of the middle block.
    pub mid_transformers: usize,
    /// There is a middle block.
    pub has_mid_block: bool,
    /// Width of the text states.
    pub cross_attention_dim: usize,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// Added to the variance in the residual blocks' norms.
    pub norm_eps: f64,
    /// Width of the time embedding.
    pub time_embedding_dim: usize,
    /// The sinusoids' cosines come first.
    pub flip_sin_to_cos: bool,
    /// Taken off the number of frequencies in their exponent.
    pub freq_shift: f64,
    /// Width of the guidance embedding that a distilled model (LCM) was trained with.
    pub time_cond_proj_dim: Option<usize>,
    /// SDXL's second conditioning.
    pub added: Option<AddedEmbedding>,
    /// Attention is computed in f32, whatever the dtype.
    pub upcast_attention: bool,
    /// Latent height and width that the model was trained for, where the file says so.
    pub sample_size: Option<(usize, usize)>,
}

impl UNetConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// Names the field that is missing, hostile or not supported.
    pub fn parse(file: &str, object: &Map<String, Value>) -> Result<Self, ModelError> {
        let fields = Fields::new(file, object);
        refuse_what_changes_the_arithmetic(&fields)?;
        let channels = fields.needed_counts("block_out_channels", MAX_BLOCKS, 1..=MAX_WIDTH)?;
        fields.refuse_unless("mid_block_type", &[json!("UNetMidBlock2DCrossAttn")])?;
        let has_mid_block = !fields.is_null("mid_block_type");
        let transformers = fields.count_per_block(
            "transformer_layers_per_block",
            1,
            channels.len(),
            1..=MAX_TRANSFORMER_LAYERS,
        )?;
        let freq_shift = fields.number("freq_shift")?.unwrap_or(0.0);
        let config = UNetConfig {
            in_channels: fields.count("in_channels", 4, 1..=1024)?,
            out_channels: fields.count("out_channels", 4, 1..=1024)?,
            mid_transformers: transformers.last().copied().unwrap_or(1),
            levels: levels(&fields, &channels, &transformers)?,
            has_mid_block,
            cross_attention_dim: cross_attention_dim(&fields)?,
            norm_num_groups: super::norm_groups(&fields, &channels)?,
            norm_eps: fields.positive("norm_eps", 1e-5)?,
            time_embedding_dim: fields.count(
                "time_embedding_dim",
                4 * channels[0],
                1..=4 * MAX_WIDTH,
            )?,
            flip_sin_to_cos: fields.switch("flip_sin_to_cos", true)?,
            freq_shift,
            time_cond_proj_dim: match fields.value("time_cond_proj_dim") {
                Some(_) => Some(fields.needed_count("time_cond_proj_dim", 4..=MAX_WIDTH)?),
                None => None,
            },
            added: added_embedding(&fields)?,
            upcast_attention: fields.switch("upcast_attention", false)?,
            sample_size: sample_size(&fields)?,
        };
        let sinusoids = [channels[0]]
            .into_iter()
            .chain(config.added.map(|added| added.time_embed_dim));
        for width in sinusoids {
            if (width / 2) as f64 <= freq_shift {
                return Err(fields.error(
                    "freq_shift",
                    &format!("is {freq_shift}, which leaves no frequencies of {width} values"),
                ));
            }
        }
        Ok(config)
    }
}

/// Fields that are absent, or say what every model of this kind says, in files that we serve.
fn refuse_what_changes_the_arithmetic(fields: &Fields<'_>) -> Result<(), ModelError> {
    let only = |name: &str, value: Value| fields.refuse_unless(name, &[value]);
    only("_class_name", json!("UNet2DConditionModel"))?;
    fields.refuse_unless("act_fn", &[json!("silu"), json!("swish")])?;
    only("attention_type", json!("default"))?;
    only("center_input_sample", json!(false))?;
    only("class_embeddings_concat", json!(false))?;
    only("conv_in_kernel", json!(3))?;
    only("conv_out_kernel", json!(3))?;
    only("downsample_padding", json!(1))?;
    only("dual_cross_attention", json!(false))?;
    only("mid_block_only_cross_attention", json!(false))?;
    only("mid_block_scale_factor", json!(1))?;
    only("only_cross_attention", json!(false))?;
    only("resnet_out_scale_factor", json!(1))?;
    only("resnet_skip_time_act", json!(false))?;
    only("resnet_time_scale_shift", json!("default"))?;
    only("time_embedding_type", json!("positional"))?;
    for name in [
        "class_embed_type",
        "cross_attention_norm",
        "encoder_hid_dim",
        "encoder_hid_dim_type",
        "num_attention_heads",
        "num_class_embeds",
        "reverse_transformer_layers_per_block",
        "time_embedding_act_fn",
        "timestep_post_act",
    ] {
        fields.refuse_unless(name, &[])?;
    }
    // A switch of the file's layout alone: a 1x1 convolution and a linear layer are the same product.
    fields.switch("use_linear_projection", false)?;
    Ok(())
}

fn levels(
    fields: &Fields<'_>,
    channels: &[usize],
    transformers: &[usize],
) -> Result<Vec<UNetLevel>, ModelError> {
    let count = channels.len();
    let layers = fields.count_per_block("layers_per_block", 2, count, 1..=MAX_LAYERS)?;
    // Called a dimension, and meant as the number of heads: diffusers kept the name of an early mistake.
    let heads = fields.count_per_block("attention_head_dim", 8, count, 1..=MAX_WIDTH)?;
    let down = attends(
        fields,
        "down_block_types",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
        count,
    )?;
    let up = attends(
        fields,
        "up_block_types",
        "CrossAttnUpBlock2D",
        "UpBlock2D",
        count,
    )?;
    (0..count)
        .map(|level| {
            let (channels, heads) = (channels[level], heads[level]);
            if !channels.is_multiple_of(heads) {
                let what = format!("means {heads} heads, which do not divide {channels} channels");
                return Err(fields.error("attention_head_dim", &what));
            }
            let transformers_if = |attends: bool| if attends { transformers[level] } else { 0 };
            Ok(UNetLevel {
                channels,
                layers: layers[level],
                down_transformers: transformers_if(down[level]),
                // The list of blocks going up starts at the deepest level.
                up_transformers: transformers_if(up[count - 1 - level]),
                heads,
            })
        })
        .collect()
}

/// For each block of the list, whether it attends.
fn attends(
    fields: &Fields<'_>,
    name: &str,
    attending: &str,
    plain: &str,
    count: usize,
) -> Result<Vec<bool>, ModelError> {
    let types = fields.needed_texts(name)?;
    if types.len() != count {
        let found = types.len();
        let what = format!("has {found} entries for {count} levels of block_out_channels");
        return Err(fields.error(name, &what));
    }
    types
        .into_iter()
        .map(|kind| match kind {
            kind if kind == attending => Ok(true),
            kind if kind == plain => Ok(false),
            other => {
                let what = format!("holds {other:?}; supported are {attending} and {plain}");
                Err(fields.error(name, &what))
            }
        })
        .collect()
}

fn cross_attention_dim(fields: &Fields<'_>) -> Result<usize, ModelError> {
    let name = "cross_attention_dim";
    let Some(Value::Array(list)) = fields.value(name) else {
        return fields.count(name, 1280, 1..=MAX_WIDTH);
    };
    let widths = fields.needed_counts(name, list.len().max(1), 1..=MAX_WIDTH)?;
    if widths.iter().any(|width| *width != widths[0]) {
        return Err(fields.error(name, "differs between blocks, which is not supported"));
    }
    Ok(widths[0])
}

fn added_embedding(fields: &Fields<'_>) -> Result<Option<AddedEmbedding>, ModelError> {
    fields.refuse_unless("addition_embed_type", &[json!("text_time")])?;
    if fields.value("addition_embed_type").is_none() {
        return Ok(None);
    }
    let time_embed_dim = fields.needed_count("addition_time_embed_dim", 2..=MAX_WIDTH)?;
    let name = "projection_class_embeddings_input_dim";
    let total = fields.needed_count(name, 1..=2 * MAX_WIDTH)?;
    if !time_embed_dim.is_multiple_of(2) {
        return Err(fields.error("addition_time_embed_dim", "is odd"));
    }
    let pooled_dim = total
        .checked_sub(SIZE_IDS * time_embed_dim)
        .filter(|dim| *dim > 0);
    let Some(pooled_dim) = pooled_dim else {
        let what = format!(
            "is {total}; it must be above {SIZE_IDS} times addition_time_embed_dim, which is {time_embed_dim}"
        );
        return Err(fields.error(name, &what));
    };
    Ok(Some(AddedEmbedding {
        time_embed_dim,
        pooled_dim,
    }))
}

fn sample_size(fields: &Fields<'_>) -> Result<Option<(usize, usize)>, ModelError> {
    match fields.value("sample_size") {
        None => Ok(None),
        Some(_) => {
            let sizes = fields.count_per_block("sample_size", 0, 2, 1..=MAX_WIDTH)?;
            Ok(Some((sizes[0], sizes[1])))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sd15() -> Value {
        json!({
            "_class_name": "UNet2DConditionModel", "act_fn": "silu", "attention_head_dim": 8,
            "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": false,
            "cross_attention_dim": 768, "downsample_padding": 1, "flip_sin_to_cos": true,
            "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D",
                "CrossAttnDownBlock2D", "DownBlock2D"],
            "freq_shift": 0, "in_channels": 4, "layers_per_block": 2, "mid_block_scale_factor": 1,
            "norm_eps": 1e-5, "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D",
                "CrossAttnUpBlock2D"],
        })
    }

    fn with(mut config: Value, changes: Value) -> Value {
        let changes = changes.as_object().expect("an object").clone();
        config.as_object_mut().expect("an object").extend(changes);
        config
    }

    fn parse(value: &Value) -> Result<UNetConfig, ModelError> {
        UNetConfig::parse("unet/config.json", value.as_object().expect("an object"))
    }

    #[test]
    fn published_shapes_are_read() {
        let config = parse(&sd15()).expect("valid");
        assert_eq!(config.levels.len(), 4);
        assert_eq!(config.levels[0].heads, 8, "a number of heads, not a width");
        assert_eq!(config.levels[3].down_transformers, 0);
        assert_eq!(config.levels[3].up_transformers, 0);
        assert_eq!(config.levels[0].up_transformers, 1);
        let xl = parse(&with(
            sd15(),
            json!({
                "block_out_channels": [320, 640, 1280], "attention_head_dim": [5, 10, 20],
                "transformer_layers_per_block": [1, 2, 10], "only_cross_attention": [false, false, false],
                "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
                "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816, "time_cond_proj_dim": 256,
            }),
        ))
        .expect("valid");
        assert_eq!(xl.mid_transformers, 10);
        assert_eq!(xl.levels[1].up_transformers, 2);
        assert_eq!(
            (xl.levels[0].down_transformers, xl.levels[0].up_transformers),
            (0, 0)
        );
        assert_eq!(xl.added.map(|added| added.pooled_dim), Some(1280));
    }

    #[test]
    fn hostile_fields_are_errors_that_name_them() {
        for (field, value) in [
            ("block_out_channels", json!([])),
            ("block_out_channels", json!([320, 640, 1280])),
            ("block_out_channels", json!([320, 640, 1280, u64::MAX])),
            ("attention_head_dim", json!(0)),
            ("attention_head_dim", json!([8, 8])),
            ("attention_head_dim", json!(7)),
            ("norm_num_groups", json!(0)),
            ("norm_num_groups", json!(48)),
            ("norm_eps", json!(-1.0)),
            ("layers_per_block", json!(1_000_000)),
            ("transformer_layers_per_block", json!([[1], [1], [1], [1]])),
            ("transformer_layers_per_block", json!(0)),
            ("cross_attention_dim", json!([768, 768, 1280])),
            ("cross_attention_dim", json!([])),
            ("freq_shift", json!(160)),
            ("time_cond_proj_dim", json!(0)),
            ("in_channels", json!(0)),
            ("sample_size", json!([64, 0])),
            ("only_cross_attention", json!(true)),
            ("only_cross_attention", json!([false, true])),
            ("class_embed_type", json!("timestep")),
            ("encoder_hid_dim", json!(768)),
            ("addition_embed_type", json!("image")),
            ("addition_embed_type", json!("text")),
            ("resnet_time_scale_shift", json!("scale_shift")),
            ("mid_block_type", json!("UNetMidBlock2DSimpleCrossAttn")),
            (
                "down_block_types",
                json!(["SkipDownBlock2D", "A", "B", "C"]),
            ),
            ("act_fn", json!("mish")),
            ("conv_in_kernel", json!(5)),
        ] {
            let config = with(sd15(), json!({ field: value }));
            let error = parse(&config).expect_err(field).to_string();
            assert!(error.contains(field), "{field}: {error}");
        }
        let xl = json!({
            "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 1536,
        });
        let error = parse(&with(sd15(), xl)).expect_err("no room").to_string();
        assert!(
            error.contains("projection_class_embeddings_input_dim"),
            "{error}"
        );
    }
}
