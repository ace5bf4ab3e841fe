//! A decoder's description from a GGUF file's metadata.

use candle_core::quantized::gguf_file::{Content, Value};

use super::{
    Activation, ConfigError, DecoderConfig, Family, LayerAttention, alternating_layers,
    uniform_layers,
};
use crate::model::text::rope::{RopeConfig, RopeScaling};

/// Factors for each rotary frequency, which GGUF keeps as tensors.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RopeFactors {
    /// `rope_freqs.weight`
    pub frequencies: Option<Vec<f32>>,
    /// `rope_factors_short.weight`
    pub short: Option<Vec<f32>>,
    /// `rope_factors_long.weight`
    pub long: Option<Vec<f32>>,
}

/// Reads a GGUF file's metadata, with the factors found among its tensors.
///
/// # Errors
/// Names the key that is missing, of a wrong type or not supported.
pub fn parse(content: &Content, factors: &RopeFactors) -> Result<DecoderConfig, ConfigError> {
    let architecture = match content.metadata.get("general.architecture") {
        Some(Value::String(name)) => name.as_str(),
        _ => return Err(ConfigError("the GGUF file names no architecture".into())),
    };
    let metadata = Metadata {
        content,
        family: Family::from_name(architecture)?,
    };
    let decoder = decoder(&metadata, factors)?;
    decoder.validate()?;
    Ok(decoder)
}

fn decoder(metadata: &Metadata<'_>, factors: &RopeFactors) -> Result<DecoderConfig, ConfigError> {
    let family = metadata.family;
    let hidden_size = metadata.need("embedding_length")?;
    let heads = metadata.need("attention.head_count")?;
    let head_dim = match metadata.usize("attention.key_length")? {
        Some(head_dim) => head_dim,
        None => hidden_size.checked_div(heads).unwrap_or(0),
    };
    if let Some(value_length) = metadata.usize("attention.value_length")?
        && value_length != head_dim
    {
        return Err(ConfigError(format!(
            "values are {value_length} wide and keys {head_dim}; they must be equal"
        )));
    }
    if metadata
        .usize("expert_count")?
        .is_some_and(|experts| experts > 0)
    {
        return Err(ConfigError(format!(
            "{family} with experts is not supported"
        )));
    }
    let layer_count = metadata.need("block_count")?;
    let ropes = ropes(metadata, factors, head_dim)?;
    Ok(DecoderConfig {
        family,
        vocab_size: vocab_size(metadata)?,
        hidden_size,
        intermediate_size: metadata.need("feed_forward_length")?,
        heads,
        kv_heads: metadata.usize("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        max_context: metadata.need("context_length")?,
        norm_eps: metadata
            .f32("attention.layer_norm_rms_epsilon")?
            .unwrap_or(1e-6),
        // The converter has added the 1 already.
        norm_offset: false,
        tied_head: !metadata.has_tensor("output.weight"),
        qkv_bias: metadata.has_tensor("blk.0.attn_q.bias"),
        attention_output_bias: metadata.has_tensor("blk.0.attn_output.bias"),
        feed_forward_bias: metadata.has_tensor("blk.0.ffn_gate.bias"),
        qk_norm: matches!(family, Family::Qwen3 | Family::Gemma3),
        post_norms: family.is_gemma(),
        activation: if family.is_gemma() {
            Activation::GeluTanh
        } else {
            Activation::Silu
        },
        embedding_scale: family.is_gemma().then(|| (hidden_size as f32).sqrt()),
        attention_scale: attention_scale(family, layer_count, hidden_size, heads, head_dim),
        attention_softcap: metadata.f32("attn_logit_softcapping")?,
        logit_softcap: metadata.f32("final_logit_softcapping")?,
        layers: layers(metadata, layer_count)?,
        ropes,
    })
}

/// The files do not say it: in both Gemmas the 27B model, known by its depth, scales by the width per
/// head instead of the head's width.
fn attention_scale(
    family: Family,
    layer_count: usize,
    hidden_size: usize,
    heads: usize,
    head_dim: usize,
) -> f32 {
    let width = match (family, layer_count) {
        (Family::Gemma2, 46) | (Family::Gemma3, 62) => hidden_size.checked_div(heads).unwrap_or(1),
        _ => head_dim,
    };
    1.0 / (width as f32).sqrt()
}

fn vocab_size(metadata: &Metadata<'_>) -> Result<usize, ConfigError> {
    let embedding = metadata.content.tensor_infos.get("token_embd.weight");
    let rows = embedding.and_then(|info| info.shape.dims().first().copied());
    rows.ok_or_else(|| ConfigError("the GGUF file has no tensor token_embd.weight".into()))
}

fn layers(metadata: &Metadata<'_>, count: usize) -> Result<Vec<LayerAttention>, ConfigError> {
    if count > super::MAX_DIMENSION {
        return Err(ConfigError(format!(
            "block_count is {count}; it must be 1 to {}",
            super::MAX_DIMENSION
        )));
    }
    let window = metadata
        .usize("attention.sliding_window")?
        .filter(|window| *window > 0);
    let pattern = |period, window, rope| sliding_pattern(metadata, count, period, window, rope);
    match metadata.family {
        Family::Gemma2 => pattern(2, window.or(Some(4096)), 0),
        Family::Gemma3 => pattern(6, window.or(Some(1024)), 1),
        _ => Ok(uniform_layers(count, window)),
    }
}

/// Which layers slide: a list, a period, or the family's own period.
fn sliding_pattern(
    metadata: &Metadata<'_>,
    count: usize,
    default_period: usize,
    window: Option<usize>,
    sliding_rope: usize,
) -> Result<Vec<LayerAttention>, ConfigError> {
    const KEY: &str = "attention.sliding_window_pattern";
    if let (key, Some(Value::Array(slides))) = metadata.get(KEY) {
        let layers: Vec<_> = slides
            .iter()
            .map_while(|slides| match slides {
                Value::Bool(true) => Some(LayerAttention {
                    window,
                    rope: sliding_rope,
                }),
                Value::Bool(false) => Some(LayerAttention {
                    window: None,
                    rope: 0,
                }),
                _ => None,
            })
            .collect();
        if layers.len() != count || slides.len() != count {
            return Err(ConfigError(format!(
                "{key} in the GGUF file is not a list of {count} booleans"
            )));
        }
        return Ok(layers);
    }
    let period = metadata.usize(KEY)?.unwrap_or(default_period);
    Ok(alternating_layers(count, period, window, sliding_rope))
}

fn ropes(
    metadata: &Metadata<'_>,
    factors: &RopeFactors,
    head_dim: usize,
) -> Result<Vec<RopeConfig>, ConfigError> {
    let gemma3 = metadata.family == Family::Gemma3;
    let default_base = if gemma3 { 1_000_000.0 } else { 10_000.0 };
    let rope = RopeConfig {
        base: metadata.f32("rope.freq_base")?.unwrap_or(default_base),
        rotary_dim: metadata.usize("rope.dimension_count")?.unwrap_or(head_dim),
        scaling: scaling(metadata, factors)?,
    };
    if !gemma3 {
        return Ok(vec![rope]);
    }
    let local_base = metadata.f32("rope.freq_base_swa")?.unwrap_or(10_000.0);
    Ok(vec![rope, RopeConfig::plain(local_base, head_dim)])
}

fn scaling(metadata: &Metadata<'_>, factors: &RopeFactors) -> Result<RopeScaling, ConfigError> {
    if let Some(frequencies) = &factors.frequencies {
        return Ok(RopeScaling::Factors(frequencies.clone()));
    }
    let original_context = match metadata.usize("rope.scaling.original_context_length")? {
        Some(original) => original,
        None => metadata.need("context_length")?,
    };
    let attention_factor = metadata.f32("rope.scaling.attn_factor")?;
    if let (Some(short), Some(long)) = (&factors.short, &factors.long) {
        return Ok(RopeScaling::Long {
            short: short.clone(),
            long: long.clone(),
            original_context,
            attention_factor: attention_factor.unwrap_or(1.0),
        });
    }
    let factor = metadata.f32("rope.scaling.factor")?.unwrap_or(1.0);
    match metadata.string("rope.scaling.type")? {
        None | Some("none") => Ok(RopeScaling::None),
        // llama.cpp reads a factor of 0 as 1.
        Some("linear") if factor == 0.0 => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor }),
        Some("yarn") => Ok(RopeScaling::Yarn {
            factor,
            original_context: original_context as f32,
            beta_fast: metadata.f32("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
            beta_slow: metadata.f32("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
            attention_factor: attention_factor.unwrap_or(1.0) * (0.1 * factor.ln() + 1.0),
        }),
        Some(other) => Err(ConfigError(format!(
            "rope scaling {other:?} is not supported; supported are none, linear, yarn"
        ))),
    }
}

/// Metadata under the architecture's prefix.
struct Metadata<'a> {
    content: &'a Content,
    family: Family,
}

impl<'a> Metadata<'a> {
    fn has_tensor(&self, name: &str) -> bool {
        self.content.tensor_infos.contains_key(name)
    }

    fn get(&self, key: &str) -> (String, Option<&'a Value>) {
        let key = format!("{}.{key}", self.family);
        let value = self.content.metadata.get(&key);
        (key, value)
    }

    fn need(&self, key: &str) -> Result<usize, ConfigError> {
        self.usize(key)?
            .ok_or_else(|| ConfigError(format!("the GGUF file has no {}.{key}", self.family)))
    }

    fn usize(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        let (key, value) = self.get(key);
        let number = match value {
            None => return Ok(None),
            Some(Value::U8(n)) => Some(u64::from(*n)),
            Some(Value::U16(n)) => Some(u64::from(*n)),
            Some(Value::U32(n)) => Some(u64::from(*n)),
            Some(Value::U64(n)) => Some(*n),
            Some(Value::I8(n)) => u64::try_from(*n).ok(),
            Some(Value::I16(n)) => u64::try_from(*n).ok(),
            Some(Value::I32(n)) => u64::try_from(*n).ok(),
            Some(Value::I64(n)) => u64::try_from(*n).ok(),
            Some(_) => None,
        };
        number
            .and_then(|n| usize::try_from(n).ok())
            .map(Some)
            .ok_or_else(|| ConfigError(format!("{key} in the GGUF file is not a whole number")))
    }

    fn f32(&self, key: &str) -> Result<Option<f32>, ConfigError> {
        match self.get(key) {
            (_, None) => Ok(None),
            (_, Some(Value::F32(n))) => Ok(Some(*n)),
            (_, Some(Value::F64(n))) => Ok(Some(*n as f32)),
            (key, Some(_)) => Err(ConfigError(format!(
                "{key} in the GGUF file is not a float"
            ))),
        }
    }

    fn string(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        match self.get(key) {
            (_, None) => Ok(None),
            (_, Some(Value::String(text))) => Ok(Some(text)),
            (key, Some(_)) => Err(ConfigError(format!("{key} in the GGUF file is not a text"))),
        }
    }
}
