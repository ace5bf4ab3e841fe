//! An image autoencoder's shape, from `vae/config.json`.

use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::{MAX_BLOCKS, MAX_LAYERS, MAX_WIDTH};
use crate::model::ModelError;

/// An `AutoencoderKL`'s shape and switches.
#[derive(Clone, Debug, PartialEq)]
pub struct VaeConfig {
    /// Channels of a picture: 3.
    pub in_channels: usize,
    /// Channels of a decoded picture: 3.
    pub out_channels: usize,
    /// Channels of a latent: 4, and 16 in newer models.
    pub latent_channels: usize,
    /// Channels of each level, from the picture inwards.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks a level of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// A latent times this is what the UNet sees.
    pub scaling_factor: f64,
    /// Taken off a latent before it is scaled.
    pub shift_factor: f64,
    /// There is a 1x1 convolution behind the encoder.
    pub use_quant_conv: bool,
    /// There is a 1x1 convolution before the decoder.
    pub use_post_quant_conv: bool,
    /// The middle block attends.
    pub mid_block_add_attention: bool,
    /// The makers' advice: its numbers leave the range of f16, so decode in f32.
    pub force_upcast: bool,
}

impl VaeConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// Names the field that is missing, hostile or not supported.
    pub fn parse(file: &str, object: &Map<String, Value>) -> Result<Self, ModelError> {
        let fields = Fields::new(file, object);
        fields.refuse_unless("_class_name", &[json!("AutoencoderKL")])?;
        fields.refuse_unless("act_fn", &[json!("silu"), json!("swish")])?;
        for (name, supported) in [
            ("down_block_types", "DownEncoderBlock2D"),
            ("up_block_types", "UpDecoderBlock2D"),
        ] {
            fields.refuse_unless(name, &[json!(supported)])?;
        }
        // Per-channel statistics in the place of one factor.
        fields.refuse_unless("latents_mean", &[])?;
        fields.refuse_unless("latents_std", &[])?;
        let channels = fields.needed_counts("block_out_channels", MAX_BLOCKS, 1..=MAX_WIDTH)?;
        let config = VaeConfig {
            in_channels: fields.count("in_channels", 3, 3..=3)?,
            out_channels: fields.count("out_channels", 3, 3..=3)?,
            latent_channels: fields.count("latent_channels", 4, 1..=256)?,
            layers_per_block: fields.count("layers_per_block", 1, 1..=MAX_LAYERS)?,
            norm_num_groups: super::norm_groups(&fields, &channels)?,
            block_out_channels: channels,
            scaling_factor: fields.positive("scaling_factor", 0.18215)?,
            shift_factor: fields.number("shift_factor")?.unwrap_or(0.0),
            use_quant_conv: fields.switch("use_quant_conv", true)?,
            use_post_quant_conv: fields.switch("use_post_quant_conv", true)?,
            mid_block_add_attention: fields.switch("mid_block_add_attention", true)?,
            force_upcast: fields.switch("force_upcast", true)?,
        };
        for name in ["down_block_types", "up_block_types"] {
            let levels = config.block_out_channels.len();
            if fields.value(name).is_some() && fields.needed_texts(name)?.len() != levels {
                let what = format!("does not have an entry for each of {levels} levels");
                return Err(fields.error(name, &what));
            }
        }
        Ok(config)
    }

    /// Pixels along an edge of one latent: 8 for four levels.
    pub fn factor(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sd15() -> Value {
        json!({
            "_class_name": "AutoencoderKL", "act_fn": "silu",
            "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
            "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D",
                "DownEncoderBlock2D", "DownEncoderBlock2D"],
            "latent_channels": 4, "norm_num_groups": 32, "sample_size": 512,
        })
    }

    fn parse(value: &Value) -> Result<VaeConfig, ModelError> {
        VaeConfig::parse("vae/config.json", value.as_object().expect("an object"))
    }

    #[test]
    fn published_shapes_are_read() {
        let config = parse(&sd15()).expect("valid");
        assert_eq!(config.factor(), 8);
        assert_eq!(config.scaling_factor, 0.18215);
    }

    #[test]
    fn hostile_fields_are_errors_that_name_them() {
        for (field, value) in [
            ("block_out_channels", json!([])),
            ("block_out_channels", json!([0, 32])),
            ("block_out_channels", json!(vec![32; 40])),
            ("block_out_channels", Value::Null),
            ("norm_num_groups", json!(0)),
            ("norm_num_groups", json!(33)),
            ("layers_per_block", json!(u64::MAX)),
            ("scaling_factor", json!(0.0)),
            ("latents_mean", json!([0.0, 0.0, 0.0, 0.0])),
            ("act_fn", json!("relu")),
            ("up_block_types", json!(["AttnUpDecoderBlock2D"])),
            ("down_block_types", json!(["DownEncoderBlock2D"])),
            ("_class_name", json!("VQModel")),
        ] {
            let mut config = sd15();
            config[field] = value;
            let error = parse(&config).expect_err(field).to_string();
            assert!(error.contains(field), "{error}");
        }
    }
}
