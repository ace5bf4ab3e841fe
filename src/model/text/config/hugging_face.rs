//! A decoder's description from a Hugging Face `config.json`.
//!
//! Both spellings of the rotary settings are read: `rope_theta` with `rope_scaling`, and the newer
//! `rope_parameters`.

use serde_json::{Map, Value};

use super::{
    Activation, ConfigError, DecoderConfig, Family, LayerAttention, alternating_layers,
    uniform_layers,
};
use crate::model::text::rope::{RopeConfig, RopeScaling};

/// The base of the rotary frequencies where a file names none.
const DEFAULT_ROPE_BASE: f64 = 10_000.0;

/// Reads a `config.json`.
///
/// # Errors
/// Names the field that is missing, misshapen or not supported.
pub fn parse(config: &Value) -> Result<DecoderConfig, ConfigError> {
    let whole = config
        .as_object()
        .ok_or_else(|| ConfigError("config.json is not an object".into()))?;
    // A model that also sees images keeps its text half in an object of its own.
    let text = whole
        .get("text_config")
        .and_then(Value::as_object)
        .unwrap_or(whole);
    let fields = Fields(text);
    let model_type = fields
        .string("model_type")?
        .or(Fields(whole).string("model_type")?)
        .ok_or_else(|| ConfigError("config.json has no model_type".into()))?;
    let family = Family::from_name(model_type)?;
    let decoder = decoder(family, &fields)?;
    decoder.validate()?;
    Ok(decoder)
}

fn decoder(family: Family, fields: &Fields<'_>) -> Result<DecoderConfig, ConfigError> {
    let gemma3 = family == Family::Gemma3;
    // Published Gemma 3 files leave out what equals its defaults.
    let need = |name: &str, gemma3_default: usize| match fields.usize(name)? {
        Some(value) => Ok(value),
        None if gemma3 => Ok(gemma3_default),
        None => Err(ConfigError(format!("config.json has no {name}"))),
    };
    let hidden_size = need("hidden_size", 2304)?;
    let heads = need("num_attention_heads", 8)?;
    let kv_heads = match fields.usize("num_key_value_heads")? {
        Some(kv_heads) => kv_heads,
        None => need("num_key_value_heads", 4).unwrap_or(heads),
    };
    let head_dim = match fields.usize("head_dim")? {
        Some(head_dim) => head_dim,
        None if family.is_gemma() => 256,
        None => hidden_size.checked_div(heads).unwrap_or(0),
    };
    let position_limit = need("max_position_embeddings", 131_072)?;
    let ropes = ropes(family, fields, head_dim, position_limit)?;
    let attention_scale = match fields.f64("query_pre_attn_scalar")? {
        Some(scalar) => 1.0 / scalar.sqrt(),
        None if family.is_gemma() => 1.0 / 256f64.sqrt(),
        None => 1.0 / (head_dim as f64).sqrt(),
    };
    let attention_bias = fields.bool("attention_bias")?.unwrap_or(false);
    let has_attention_bias = matches!(family, Family::Llama | Family::Qwen3) || family.is_gemma();
    let softcap = |name: &str| {
        Ok::<_, ConfigError>(fields.f64(name)?.filter(|_| family.is_gemma()).map(as_f32))
    };
    Ok(DecoderConfig {
        family,
        vocab_size: need("vocab_size", 262_208)?,
        hidden_size,
        intermediate_size: need("intermediate_size", 9216)?,
        heads,
        kv_heads,
        head_dim,
        max_context: context_after_stretching(&ropes[0], position_limit),
        norm_eps: as_f32(fields.f64("rms_norm_eps")?.unwrap_or(1e-6)),
        norm_offset: family.is_gemma(),
        tied_head: fields
            .bool("tie_word_embeddings")?
            .unwrap_or(family.is_gemma()),
        qkv_bias: family == Family::Qwen2 || (has_attention_bias && attention_bias),
        attention_output_bias: has_attention_bias && attention_bias,
        feed_forward_bias: family == Family::Llama && fields.bool("mlp_bias")?.unwrap_or(false),
        qk_norm: matches!(family, Family::Qwen3 | Family::Gemma3),
        post_norms: family.is_gemma(),
        activation: activation(family, fields)?,
        embedding_scale: family.is_gemma().then(|| (hidden_size as f32).sqrt()),
        attention_scale: as_f32(attention_scale),
        attention_softcap: softcap("attn_logit_softcapping")?,
        logit_softcap: softcap("final_logit_softcapping")?,
        layers: layers(family, fields, need("num_hidden_layers", 26)?)?,
        ropes,
    })
}

fn activation(family: Family, fields: &Fields<'_>) -> Result<Activation, ConfigError> {
    let name = match fields.string("hidden_activation")? {
        Some(name) => Some(name),
        None => fields.string("hidden_act")?,
    };
    match name {
        None if family.is_gemma() => Ok(Activation::GeluTanh),
        None | Some("silu" | "swish") => Ok(Activation::Silu),
        Some("gelu_pytorch_tanh" | "gelu_new") => Ok(Activation::GeluTanh),
        Some(other) => Err(ConfigError(format!(
            "activation {other:?} is not supported; supported are silu and gelu_pytorch_tanh"
        ))),
    }
}

/// Which layers see a window only. An explicit `layer_types` overrules the family's pattern.
fn layers(
    family: Family,
    fields: &Fields<'_>,
    count: usize,
) -> Result<Vec<LayerAttention>, ConfigError> {
    if count > super::MAX_DIMENSION {
        return Err(ConfigError(format!(
            "num_hidden_layers is {count}; it must be 1 to {}",
            super::MAX_DIMENSION
        )));
    }
    let window = match (family, fields.usize("sliding_window")?) {
        (Family::Llama, _) => None,
        (Family::Qwen2 | Family::Qwen3, window) => {
            let used = fields.bool("use_sliding_window")?.unwrap_or(false);
            window.filter(|_| used)
        }
        (Family::Gemma2 | Family::Gemma3, None) => Some(4096),
        (_, window) => window,
    };
    let sliding_rope = usize::from(family == Family::Gemma3);
    if let Some(types) = fields.0.get("layer_types").and_then(Value::as_array) {
        return layers_from_types(types, count, window, sliding_rope);
    }
    Ok(match family {
        Family::Gemma2 => alternating_layers(count, 2, window, 0),
        Family::Gemma3 => {
            let period = fields.usize("sliding_window_pattern")?.unwrap_or(6);
            alternating_layers(count, period, window, sliding_rope)
        }
        Family::Qwen2 | Family::Qwen3 => {
            let first = fields.usize("max_window_layers")?.unwrap_or(28);
            (0..count)
                .map(|layer| LayerAttention {
                    window: window.filter(|_| layer >= first),
                    rope: 0,
                })
                .collect()
        }
        _ => uniform_layers(count, window),
    })
}

fn layers_from_types(
    types: &[Value],
    count: usize,
    window: Option<usize>,
    sliding_rope: usize,
) -> Result<Vec<LayerAttention>, ConfigError> {
    if types.len() != count {
        return Err(ConfigError(format!(
            "layer_types has {} entries for {count} layers",
            types.len()
        )));
    }
    types
        .iter()
        .map(|kind| match kind.as_str() {
            Some("full_attention") => Ok(LayerAttention {
                window: None,
                rope: 0,
            }),
            Some("sliding_attention") => Ok(LayerAttention {
                window,
                rope: sliding_rope,
            }),
            _ => Err(ConfigError(format!(
                "layer_types holds {kind}; supported are full_attention and sliding_attention"
            ))),
        })
        .collect()
}

/// Gemma 3 has one rope for its full layers and one for its sliding ones; the others have one.
fn ropes(
    family: Family,
    fields: &Fields<'_>,
    head_dim: usize,
    position_limit: usize,
) -> Result<Vec<RopeConfig>, ConfigError> {
    let base = fields.f64("rope_theta")?;
    let parameters = match fields.object("rope_parameters")? {
        Some(parameters) => Some(parameters),
        None => fields.object("rope_scaling")?,
    };
    let settings = |parameters: Option<Fields<'_>>, base: f64| {
        rope(fields, parameters, base, head_dim, position_limit)
    };
    if family != Family::Gemma3 {
        return Ok(vec![settings(
            parameters,
            base.unwrap_or(DEFAULT_ROPE_BASE),
        )?]);
    }
    let local_base = fields
        .f64("rope_local_base_freq")?
        .unwrap_or(DEFAULT_ROPE_BASE);
    let global_base = base.unwrap_or(1_000_000.0);
    let (full, sliding) = match &parameters {
        Some(by_kind) if by_kind.0.contains_key("full_attention") => (
            by_kind.object("full_attention")?,
            by_kind.object("sliding_attention")?,
        ),
        _ => (parameters, None),
    };
    Ok(vec![
        settings(full, global_base)?,
        settings(sliding, local_base)?,
    ])
}

fn rope(
    fields: &Fields<'_>,
    parameters: Option<Fields<'_>>,
    base: f64,
    head_dim: usize,
    position_limit: usize,
) -> Result<RopeConfig, ConfigError> {
    let empty = Map::new();
    let parameters = parameters.unwrap_or(Fields(&empty));
    let share = match parameters.f64("partial_rotary_factor")? {
        Some(share) => share,
        None => fields.f64("partial_rotary_factor")?.unwrap_or(1.0),
    };
    Ok(RopeConfig {
        base: as_f32(parameters.f64("rope_theta")?.unwrap_or(base)),
        rotary_dim: (head_dim as f64 * share) as usize,
        scaling: scaling(fields, &parameters, position_limit)?,
    })
}

fn scaling(
    fields: &Fields<'_>,
    parameters: &Fields<'_>,
    position_limit: usize,
) -> Result<RopeScaling, ConfigError> {
    let kind = match parameters.string("rope_type")? {
        Some(kind) => Some(kind),
        None => parameters.string("type")?,
    };
    let number = |name: &str| {
        let value = parameters.f64(name)?;
        value.ok_or_else(|| ConfigError(format!("rope scaling has no {name}")))
    };
    let original_context = match parameters.usize("original_max_position_embeddings")? {
        Some(original) => original,
        None => fields
            .usize("original_max_position_embeddings")?
            .unwrap_or(position_limit),
    };
    // How far the context was stretched, where no factor says so.
    let stretched = position_limit as f64 / original_context.max(1) as f64;
    match kind {
        // Dynamic NTK scaling changes nothing within the context that the model was made for, and
        // rows never leave it.
        None | Some("default" | "dynamic") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear {
            factor: as_f32(number("factor")?),
        }),
        Some("llama3") => Ok(RopeScaling::Llama3 {
            factor: as_f32(number("factor")?),
            low_freq_factor: as_f32(number("low_freq_factor")?),
            high_freq_factor: as_f32(number("high_freq_factor")?),
            original_context: original_context as f32,
        }),
        Some("yarn") => {
            let factor = parameters.f64("factor")?.unwrap_or(stretched);
            Ok(RopeScaling::Yarn {
                factor: as_f32(factor),
                original_context: original_context as f32,
                beta_fast: as_f32(parameters.f64("beta_fast")?.unwrap_or(32.0)),
                beta_slow: as_f32(parameters.f64("beta_slow")?.unwrap_or(1.0)),
                attention_factor: as_f32(yarn_attention_factor(parameters, factor)?),
            })
        }
        Some("longrope" | "su") => {
            let factor = parameters.f64("factor")?.unwrap_or(stretched);
            let default = if factor <= 1.0 {
                1.0
            } else {
                (1.0 + factor.ln() / (original_context as f64).ln()).sqrt()
            };
            Ok(RopeScaling::Long {
                short: parameters.floats("short_factor")?,
                long: parameters.floats("long_factor")?,
                original_context,
                attention_factor: as_f32(parameters.f64("attention_factor")?.unwrap_or(default)),
            })
        }
        Some(other) => Err(ConfigError(format!(
            "rope scaling {other:?} is not supported; supported are default, dynamic, linear, \
             llama3, longrope, yarn"
        ))),
    }
}

/// Section 3.4 of the YaRN paper, with the two multipliers that some models add.
fn yarn_attention_factor(parameters: &Fields<'_>, factor: f64) -> Result<f64, ConfigError> {
    if let Some(given) = parameters.f64("attention_factor")? {
        return Ok(given);
    }
    let scale = |multiplier: f64| {
        if factor <= 1.0 {
            1.0
        } else {
            0.1 * multiplier * factor.ln() + 1.0
        }
    };
    let mscale = parameters.f64("mscale")?.filter(|m| *m != 0.0);
    let mscale_all_dim = parameters.f64("mscale_all_dim")?.filter(|m| *m != 0.0);
    Ok(match (mscale, mscale_all_dim) {
        (Some(mscale), Some(all_dim)) => scale(mscale) / scale(all_dim),
        _ => scale(1.0),
    })
}

/// YaRN settings are often added by hand to a file that keeps the unstretched limit.
fn context_after_stretching(rope: &RopeConfig, position_limit: usize) -> usize {
    match rope.scaling {
        RopeScaling::Yarn {
            factor,
            original_context,
            ..
        } => position_limit.max((original_context * factor) as usize),
        _ => position_limit,
    }
}

fn as_f32(value: f64) -> f32 {
    value as f32
}

/// A JSON object whose fields may be absent or null, but not of the wrong type.
#[derive(Clone, Copy)]
struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    fn get<T>(
        &self,
        name: &str,
        kind: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => read(value)
                .map(Some)
                .ok_or_else(|| ConfigError(format!("{name} in config.json is not {kind}"))),
        }
    }

    fn usize(&self, name: &str) -> Result<Option<usize>, ConfigError> {
        self.get(name, "a whole number", |value| {
            value.as_u64().and_then(|n| usize::try_from(n).ok())
        })
    }

    fn f64(&self, name: &str) -> Result<Option<f64>, ConfigError> {
        self.get(name, "a number", Value::as_f64)
    }

    fn bool(&self, name: &str) -> Result<Option<bool>, ConfigError> {
        self.get(name, "true or false", Value::as_bool)
    }

    fn string(&self, name: &str) -> Result<Option<&'a str>, ConfigError> {
        self.get(name, "a text", Value::as_str)
    }

    fn object(&self, name: &str) -> Result<Option<Fields<'a>>, ConfigError> {
        self.get(name, "an object", |value| value.as_object().map(Fields))
    }

    fn floats(&self, name: &str) -> Result<Vec<f32>, ConfigError> {
        let values = self.get(name, "a list", Value::as_array)?;
        values
            .into_iter()
            .flatten()
            .map(|value| value.as_f64().map(as_f32))
            .collect::<Option<_>>()
            .ok_or_else(|| ConfigError(format!("{name} in config.json is not a list of numbers")))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn llama() -> Value {
        json!({
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
            "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2,
            "vocab_size": 320, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
        })
    }

    fn with(mut config: Value, changes: Value) -> Value {
        let changes = changes.as_object().expect("an object").clone();
        config.as_object_mut().expect("an object").extend(changes);
        config
    }

    #[test]
    fn both_spellings_of_rope_settings_say_the_same() {
        let scaling = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        });
        let old = with(
            llama(),
            json!({"rope_theta": 500000.0, "rope_scaling": scaling}),
        );
        let new = with(
            llama(),
            json!({"rope_parameters": with(scaling, json!({"rope_theta": 500000.0}))}),
        );
        let old = parse(&old).expect("valid");
        assert_eq!(old, parse(&new).expect("valid"));
        assert_eq!(old.ropes[0].base, 500_000.0);
        assert!(matches!(old.ropes[0].scaling, RopeScaling::Llama3 { .. }));
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (changes, message) in [
            (
                json!({"hidden_size": null}),
                "config.json has no hidden_size",
            ),
            (
                json!({"vocab_size": "many"}),
                "vocab_size in config.json is not a whole number",
            ),
            (
                json!({"num_key_value_heads": 3}),
                "4 attention heads cannot share 3 key-value heads evenly",
            ),
            (
                json!({"num_attention_heads": 0, "head_dim": 16}),
                "number of attention heads is 0; it must be 1 to 16777216",
            ),
            (
                json!({"hidden_act": "relu"}),
                "activation \"relu\" is not supported; supported are silu and gelu_pytorch_tanh",
            ),
            (
                json!({"rope_scaling": {"type": "linear", "factor": 0.0}}),
                "rope's factor is 0; it must be at least 1",
            ),
            (
                json!({"layer_types": ["full_attention"]}),
                "layer_types has 1 entries for 2 layers",
            ),
        ] {
            let error = parse(&with(llama(), changes)).expect_err(message);
            assert_eq!(error.to_string(), message);
        }
    }

    #[test]
    fn a_sliding_window_counts_only_where_the_family_uses_it() {
        for (family, used, window) in [
            ("mistral", false, Some(8)),
            ("llama", true, None),
            ("qwen2", false, None),
        ] {
            let config = with(
                llama(),
                json!({"model_type": family, "sliding_window": 8, "use_sliding_window": used}),
            );
            let layers = parse(&config).expect("valid").layers;
            assert_eq!(layers[1].window, window, "{family}");
        }
    }

    #[test]
    fn a_text_half_inside_an_image_model_is_found() {
        let config = json!({
            "model_type": "gemma3",
            "text_config": {
                "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240,
                "num_hidden_layers": 34, "sliding_window": 1024,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            },
        });
        let decoder = parse(&config).expect("valid");
        assert_eq!(decoder.family, Family::Gemma3);
        assert_eq!(
            (decoder.heads, decoder.kv_heads, decoder.head_dim),
            (8, 4, 256)
        );
        assert_eq!(decoder.ropes[0].base, 1_000_000.0);
        assert!(matches!(
            decoder.ropes[0].scaling,
            RopeScaling::Linear { factor: 8.0 }
        ));
        assert_eq!(decoder.ropes[1], RopeConfig::plain(10_000.0, 256));
        assert_eq!(decoder.activation, Activation::GeluTanh);
    }
}
