//! A CLIP text encoder's shape, from `text_encoder*/config.json`.

use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::{MAX_LAYERS, MAX_WIDTH};
use crate::model::ModelError;

/// The largest vocabulary that a configuration may claim.
const MAX_VOCABULARY: usize = 1 << 22;
/// The most positions that a configuration may claim; CLIP has 77.
const MAX_POSITIONS: usize = 1 << 14;

/// The nonlinearity of a CLIP layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClipActivation {
    /// `x * sigmoid(1.702 x)`: OpenAI's models.
    QuickGelu,
    /// `x * (1 + erf(x / √2)) / 2`: OpenCLIP's models.
    Gelu,
}

/// A CLIP text encoder's shape and switches.
#[derive(Clone, Debug, PartialEq)]
pub struct ClipConfig {
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Layers.
    pub layers: usize,
    /// Attention heads; divides `hidden_size`.
    pub heads: usize,
    /// Positions, all of which a prompt's chunk fills: 77.
    pub positions: usize,
    /// Feed-forward nonlinearity.
    pub activation: ClipActivation,
    /// Added to the variance in every norm.
    pub norm_eps: f64,
    /// The token whose position gives the pooled state. The legacy value 2 means the largest id.
    pub eos_token_id: u32,
    /// Width of the projected pooled state, for `CLIPTextModelWithProjection` only.
    pub projection_dim: Option<usize>,
}

impl ClipConfig {
    /// Reads `config.json`. `with_projection`: the model index says `CLIPTextModelWithProjection`.
    ///
    /// # Errors
    /// Names the field that is missing, hostile or not supported.
    pub fn parse(
        file: &str,
        object: &Map<String, Value>,
        with_projection: bool,
    ) -> Result<Self, ModelError> {
        // A whole CLIP's file keeps its text half in an object of its own.
        let object = object
            .get("text_config")
            .and_then(Value::as_object)
            .unwrap_or(object);
        let fields = Fields::new(file, object);
        fields.refuse_unless("model_type", &[json!("clip_text_model")])?;
        let activation = match fields.text("hidden_act")? {
            None | Some("quick_gelu") => ClipActivation::QuickGelu,
            Some("gelu") => ClipActivation::Gelu,
            Some(other) => {
                let what = format!("is {other:?}; supported are quick_gelu and gelu");
                return Err(fields.error("hidden_act", &what));
            }
        };
        let config = ClipConfig {
            vocab_size: fields.count("vocab_size", 49_408, 1..=MAX_VOCABULARY)?,
            hidden_size: fields.count("hidden_size", 512, 1..=MAX_WIDTH)?,
            intermediate_size: fields.count("intermediate_size", 2048, 1..=MAX_WIDTH)?,
            layers: fields.count("num_hidden_layers", 12, 1..=MAX_LAYERS)?,
            heads: fields.count("num_attention_heads", 8, 1..=MAX_WIDTH)?,
            positions: fields.count("max_position_embeddings", 77, 3..=MAX_POSITIONS)?,
            activation,
            norm_eps: fields.positive("layer_norm_eps", 1e-5)?,
            eos_token_id: fields.count("eos_token_id", 49_407, 0..=MAX_VOCABULARY)? as u32,
            projection_dim: match with_projection {
                true => Some(fields.count("projection_dim", 512, 1..=MAX_WIDTH)?),
                false => None,
            },
        };
        if !config.hidden_size.is_multiple_of(config.heads) {
            let what = format!(
                "is {}, which does not divide hidden_size {}",
                config.heads, config.hidden_size
            );
            return Err(fields.error("num_attention_heads", &what));
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: Value) -> Result<ClipConfig, ModelError> {
        let object = value.as_object().expect("an object").clone();
        ClipConfig::parse("text_encoder/config.json", &object, false)
    }

    #[test]
    fn fault_2_any_shape_of_text_encoder_can_be_described() {
        let tiny = parse(json!({
            "vocab_size": 600, "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 5,
            "num_attention_heads": 4, "max_position_embeddings": 77, "hidden_act": "gelu",
            "eos_token_id": 2, "layer_norm_eps": 1e-5,
        }))
        .expect("valid");
        assert_eq!((tiny.hidden_size, tiny.layers, tiny.heads), (32, 5, 4));
        assert_eq!(tiny.activation, ClipActivation::Gelu);
        assert_eq!(tiny.eos_token_id, 2);
    }

    #[test]
    fn hostile_fields_are_errors_that_name_them() {
        for (field, value) in [
            ("num_attention_heads", json!(0)),
            ("num_attention_heads", json!(7)),
            ("hidden_size", json!(u64::MAX)),
            ("num_hidden_layers", json!(1_000_000)),
            ("vocab_size", json!(-1)),
            ("max_position_embeddings", json!(0)),
            ("hidden_act", json!("relu")),
            ("layer_norm_eps", json!(0.0)),
        ] {
            let error = parse(json!({ field: value })).expect_err(field).to_string();
            assert!(error.contains(field), "{error}");
            assert!(error.starts_with("text_encoder/config.json"), "{error}");
        }
    }
}
