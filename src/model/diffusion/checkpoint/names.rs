//! What tensors are called in a single-file checkpoint: from diffusers' names, which the loaders ask for, to those of the
//! original code (latent-diffusion, OpenAI's CLIP, OpenCLIP).

use super::Family;
use crate::model::diffusion::config::StableDiffusionConfig;

/// Where a tensor is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::model::diffusion) struct Stored {
    /// Its names, the first that the file has being it.
    pub(in crate::model::diffusion) names: Vec<String>,
    /// How it lies there.
    pub(in crate::model::diffusion) part: Part,
}

/// How a tensor lies under its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::model::diffusion) enum Part {
    /// As it is.
    Whole,
    /// A third along the first axis: queries, keys and values in one.
    Third(usize),
    /// Rows and columns changed about.
    Transposed,
}

/// The layout of one checkpoint: what the numbering of its blocks depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::model::diffusion) struct Layout {
    pub(super) family: Family,
    /// Residual blocks of a level of the UNet, going down.
    unet_layers: usize,
    /// For each level going up, from the deepest: whether it attends.
    up_attends: Vec<bool>,
    vae_levels: usize,
}

impl Layout {
    /// The layout of a model of this shape.
    pub(in crate::model::diffusion) fn new(family: Family, config: &StableDiffusionConfig) -> Self {
        let levels = &config.unet.levels;
        Layout {
            family,
            unet_layers: levels.first().map_or(0, |level| level.layers),
            up_attends: levels
                .iter()
                .rev()
                .map(|level| level.up_transformers > 0)
                .collect(),
            vae_levels: config.vae.block_out_channels.len(),
        }
    }

    /// What the names of a component begin with.
    pub(in crate::model::diffusion) fn prefix(&self, component: &str) -> &'static str {
        match (component, self.family) {
            ("unet", _) => "model.diffusion_model.",
            ("vae", _) => "first_stage_model.",
            ("text_encoder", Family::Sd1) => "cond_stage_model.transformer.",
            ("text_encoder", Family::Sd2) => "cond_stage_model.model.",
            ("text_encoder_2", _) => "conditioner.embedders.1.model.",
            _ => "conditioner.embedders.0.transformer.",
        }
    }

    /// Where a component's tensor is kept; `None` for a name that the original code has no part for.
    pub(in crate::model::diffusion) fn stored(
        &self,
        component: &str,
        name: &str,
    ) -> Option<Stored> {
        let prefix = self.prefix(component);
        let whole = |names: Vec<String>| Stored {
            names,
            part: Part::Whole,
        };
        let mut stored = match (component, self.family) {
            ("unet", _) => whole(vec![self.unet(name)?]),
            ("vae", _) => whole(vec![self.vae(name)?]),
            ("text_encoder", Family::Sd2) | ("text_encoder_2", _) => open_clip(name)?,
            _ => {
                let bare = name.strip_prefix("text_model.").unwrap_or(name);
                // Some programs write the names of newer transformers.
                whole(vec![format!("text_model.{bare}"), bare.to_owned()])
            }
        };
        for name in &mut stored.names {
            name.insert_str(0, prefix);
        }
        Some(stored)
    }

    fn unet(&self, name: &str) -> Option<String> {
        let parts: Vec<&str> = name.split('.').collect();
        let number = |text: &str| text.parse::<usize>().ok();
        let stride = self.unet_layers + 1;
        Some(match parts[..] {
            ["conv_in", end] => format!("input_blocks.0.0.{end}"),
            ["conv_norm_out", end] => format!("out.0.{end}"),
            ["conv_out", end] => format!("out.2.{end}"),
            ["time_embedding", "linear_1", end] => format!("time_embed.0.{end}"),
            ["time_embedding", "linear_2", end] => format!("time_embed.2.{end}"),
            ["time_embedding", "cond_proj", end] => format!("time_embed.cond_proj.{end}"),
            ["add_embedding", "linear_1", end] => format!("label_emb.0.0.{end}"),
            ["add_embedding", "linear_2", end] => format!("label_emb.0.2.{end}"),
            ["down_blocks", level, "resnets", layer, ref rest @ ..] => {
                let block = 1 + number(level)? * stride + number(layer)?;
                format!("input_blocks.{block}.0.{}", unet_resnet(rest)?)
            }
            ["down_blocks", level, "attentions", layer, ref rest @ ..] => {
                let block = 1 + number(level)? * stride + number(layer)?;
                format!("input_blocks.{block}.1.{}", rest.join("."))
            }
            ["down_blocks", level, "downsamplers", "0", "conv", end] => {
                let block = (number(level)? + 1) * stride;
                format!("input_blocks.{block}.0.op.{end}")
            }
            ["mid_block", "resnets", layer, ref rest @ ..] => {
                format!("middle_block.{}.{}", 2 * number(layer)?, unet_resnet(rest)?)
            }
            ["mid_block", "attentions", "0", ref rest @ ..] => {
                format!("middle_block.1.{}", rest.join("."))
            }
            ["up_blocks", level, "resnets", layer, ref rest @ ..] => {
                let block = number(level)? * stride + number(layer)?;
                format!("output_blocks.{block}.0.{}", unet_resnet(rest)?)
            }
            ["up_blocks", level, "attentions", layer, ref rest @ ..] => {
                let block = number(level)? * stride + number(layer)?;
                format!("output_blocks.{block}.1.{}", rest.join("."))
            }
            ["up_blocks", level, "upsamplers", "0", "conv", end] => {
                let level = number(level)?;
                // Behind the residual block, and the transformer if there is one.
                let place = 1 + usize::from(*self.up_attends.get(level)?);
                let block = level * stride + self.unet_layers;
                format!("output_blocks.{block}.{place}.conv.{end}")
            }
            _ => return None,
        })
    }

    fn vae(&self, name: &str) -> Option<String> {
        let parts: Vec<&str> = name.split('.').collect();
        Some(match parts[..] {
            ["quant_conv" | "post_quant_conv", _] => name.to_owned(),
            [half, "conv_in" | "conv_out", _] if is_half(half) => name.to_owned(),
            [half, "conv_norm_out", end] => format!("{half}.norm_out.{end}"),
            [half, "mid_block", "resnets", layer, ref rest @ ..] => {
                let layer = layer.parse::<usize>().ok()? + 1;
                format!("{half}.mid.block_{layer}.{}", vae_resnet(rest))
            }
            [half, "mid_block", "attentions", "0", ref rest @ ..] => {
                format!("{half}.mid.attn_1.{}", vae_attention(rest)?)
            }
            [
                "encoder",
                "down_blocks",
                level,
                "resnets",
                layer,
                ref rest @ ..,
            ] => {
                format!("encoder.down.{level}.block.{layer}.{}", vae_resnet(rest))
            }
            [
                "encoder",
                "down_blocks",
                level,
                "downsamplers",
                "0",
                "conv",
                end,
            ] => {
                format!("encoder.down.{level}.downsample.conv.{end}")
            }
            [
                "decoder",
                "up_blocks",
                level,
                "resnets",
                layer,
                ref rest @ ..,
            ] => {
                let level = self.vae_level_up(level)?;
                format!("decoder.up.{level}.block.{layer}.{}", vae_resnet(rest))
            }
            [
                "decoder",
                "up_blocks",
                level,
                "upsamplers",
                "0",
                "conv",
                end,
            ] => {
                let level = self.vae_level_up(level)?;
                format!("decoder.up.{level}.upsample.conv.{end}")
            }
            _ => return None,
        })
    }

    /// diffusers counts from the smallest size, the original from the largest.
    fn vae_level_up(&self, level: &str) -> Option<usize> {
        let level: usize = level.parse().ok()?;
        self.vae_levels.checked_sub(level + 1)
    }
}

fn is_half(text: &str) -> bool {
    matches!(text, "encoder" | "decoder")
}

fn unet_resnet(rest: &[&str]) -> Option<String> {
    let [part, end] = rest else {
        return None;
    };
    let place = match *part {
        "norm1" => "in_layers.0",
        "conv1" => "in_layers.2",
        "time_emb_proj" => "emb_layers.1",
        "norm2" => "out_layers.0",
        "conv2" => "out_layers.3",
        "conv_shortcut" => "skip_connection",
        _ => return None,
    };
    Some(format!("{place}.{end}"))
}

fn vae_resnet(rest: &[&str]) -> String {
    rest.join(".").replace("conv_shortcut", "nin_shortcut")
}

fn vae_attention(rest: &[&str]) -> Option<String> {
    Some(match *rest {
        ["group_norm", end] => format!("norm.{end}"),
        ["to_q", end] => format!("q.{end}"),
        ["to_k", end] => format!("k.{end}"),
        ["to_v", end] => format!("v.{end}"),
        ["to_out", "0", end] => format!("proj_out.{end}"),
        _ => return None,
    })
}

/// OpenCLIP's text encoder.
fn open_clip(name: &str) -> Option<Stored> {
    let name = name.strip_prefix("text_model.").unwrap_or(name);
    let parts: Vec<&str> = name.split('.').collect();
    let mut part = Part::Whole;
    let name = match parts[..] {
        ["embeddings", "token_embedding", "weight"] => "token_embedding.weight".to_owned(),
        ["embeddings", "position_embedding", "weight"] => "positional_embedding".to_owned(),
        ["final_layer_norm", end] => format!("ln_final.{end}"),
        ["text_projection", "weight"] => {
            part = Part::Transposed;
            "text_projection".to_owned()
        }
        ["encoder", "layers", layer, ref rest @ ..] => {
            let place = match *rest {
                ["layer_norm1", end] => format!("ln_1.{end}"),
                ["layer_norm2", end] => format!("ln_2.{end}"),
                ["mlp", "fc1", end] => format!("mlp.c_fc.{end}"),
                ["mlp", "fc2", end] => format!("mlp.c_proj.{end}"),
                ["self_attn", "out_proj", end] => format!("attn.out_proj.{end}"),
                ["self_attn", projection, end] => {
                    let third = ["q_proj", "k_proj", "v_proj"]
                        .iter()
                        .position(|name| *name == projection)?;
                    part = Part::Third(third);
                    format!("attn.in_proj_{end}")
                }
                _ => return None,
            };
            format!("transformer.resblocks.{layer}.{place}")
        }
        _ => return None,
    };
    Some(Stored {
        names: vec![name],
        part,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stable Diffusion 1.5's own numbers: four levels of two, all but the deepest attending.
    fn layout(family: Family) -> Layout {
        Layout {
            family,
            unet_layers: 2,
            up_attends: vec![false, true, true, true],
            vae_levels: 4,
        }
    }

    fn check(family: Family, component: &str, name: &str, expected: &str) {
        let stored = layout(family).stored(component, name).expect(name);
        assert_eq!(stored.names[0], expected);
    }

    #[test]
    fn names_are_those_of_the_original_code() {
        let unet = |name, expected: &str| {
            let expected = format!("model.diffusion_model.{expected}");
            check(Family::Sd1, "unet", name, &expected);
        };
        unet("conv_in.weight", "input_blocks.0.0.weight");
        unet(
            "down_blocks.0.resnets.0.norm1.bias",
            "input_blocks.1.0.in_layers.0.bias",
        );
        unet(
            "down_blocks.0.downsamplers.0.conv.weight",
            "input_blocks.3.0.op.weight",
        );
        unet(
            "down_blocks.2.attentions.1.transformer_blocks.0.attn2.to_k.weight",
            "input_blocks.8.1.transformer_blocks.0.attn2.to_k.weight",
        );
        unet(
            "mid_block.resnets.1.conv2.weight",
            "middle_block.2.out_layers.3.weight",
        );
        unet(
            "up_blocks.0.upsamplers.0.conv.bias",
            "output_blocks.2.1.conv.bias",
        );
        unet(
            "up_blocks.1.upsamplers.0.conv.bias",
            "output_blocks.5.2.conv.bias",
        );
        unet(
            "up_blocks.3.resnets.2.conv_shortcut.weight",
            "output_blocks.11.0.skip_connection.weight",
        );
        unet(
            "up_blocks.3.attentions.2.proj_out.weight",
            "output_blocks.11.1.proj_out.weight",
        );
        let vae = |name, expected: &str| {
            let expected = format!("first_stage_model.{expected}");
            check(Family::Xl, "vae", name, &expected);
        };
        vae(
            "encoder.down_blocks.1.resnets.0.conv_shortcut.weight",
            "encoder.down.1.block.0.nin_shortcut.weight",
        );
        vae(
            "decoder.up_blocks.0.resnets.2.norm1.weight",
            "decoder.up.3.block.2.norm1.weight",
        );
        vae(
            "decoder.up_blocks.2.upsamplers.0.conv.weight",
            "decoder.up.1.upsample.conv.weight",
        );
        vae(
            "decoder.mid_block.attentions.0.to_out.0.weight",
            "decoder.mid.attn_1.proj_out.weight",
        );
    }

    #[test]
    fn open_clips_fused_and_transposed_tensors_are_found() {
        let stored = |name: &str| layout(Family::Xl).stored("text_encoder_2", name);
        let third = stored("text_model.encoder.layers.3.self_attn.k_proj.bias").expect("known");
        let prefix = "conditioner.embedders.1.model.";
        assert_eq!(
            third.names[0],
            format!("{prefix}transformer.resblocks.3.attn.in_proj_bias")
        );
        assert_eq!(third.part, Part::Third(1));
        let projection = stored("text_projection.weight").expect("known");
        assert_eq!(projection.names[0], format!("{prefix}text_projection"));
        assert_eq!(projection.part, Part::Transposed);
        assert_eq!(stored("encoder.layers.0.self_attn.x_proj.bias"), None);
        assert_eq!(
            layout(Family::Sd1).stored("unet", "down_blocks.x.resnets.0.norm1.bias"),
            None
        );
    }
}
