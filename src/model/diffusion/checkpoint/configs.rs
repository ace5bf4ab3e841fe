//! The shapes of the published families, which a single file does not carry.

use serde_json::{Value, json};

use super::Family;

/// What a checkpoint says beyond its family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Traits {
    /// It predicts the velocity.
    pub(super) velocity: bool,
    /// Its last training step is pure noise.
    pub(super) zero_snr: bool,
    /// Channels into the UNet: 9 of a model made for inpainting.
    pub(super) in_channels: usize,
    /// Width of the guidance embedding of a latent consistency model.
    pub(super) guidance_width: Option<usize>,
}

/// The files of a diffusers folder, without weights and tokenizers' vocabularies: path and content.
pub(super) fn files(family: Family, traits: Traits) -> Vec<(&'static str, Value)> {
    let xl = family == Family::Xl;
    let mut files = vec![
        ("model_index.json", index(family)),
        ("scheduler/scheduler_config.json", scheduler(family, traits)),
        ("unet/config.json", unet(family, traits)),
        ("vae/config.json", vae(family)),
        ("text_encoder/config.json", text_encoder(family)),
        (
            "tokenizer/tokenizer_config.json",
            tokenizer(family == Family::Sd2),
        ),
    ];
    if xl {
        files.push(("text_encoder_2/config.json", second_text_encoder()));
        files.push(("tokenizer_2/tokenizer_config.json", tokenizer(true)));
    }
    files
}

fn index(family: Family) -> Value {
    let mut index = json!({
        "_class_name": "StableDiffusionPipeline",
        "scheduler": ["diffusers", "SchedulerMixin"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    });
    if family == Family::Xl {
        index["_class_name"] = json!("StableDiffusionXLPipeline");
        index["text_encoder_2"] = json!(["transformers", "CLIPTextModelWithProjection"]);
        index["tokenizer_2"] = json!(["transformers", "CLIPTokenizer"]);
        index["force_zeros_for_empty_prompt"] = json!(true);
    }
    index
}

fn scheduler(family: Family, traits: Traits) -> Value {
    let class = match (family, traits.guidance_width) {
        (_, Some(_)) => "LCMScheduler",
        (Family::Sd1, None) => "PNDMScheduler",
        (Family::Sd2, None) => "DDIMScheduler",
        (Family::Xl, None) => "EulerDiscreteScheduler",
    };
    json!({
        "_class_name": class,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "clip_sample": false,
        "set_alpha_to_one": false,
        "steps_offset": 1,
        "skip_prk_steps": true,
        "prediction_type": if traits.velocity { "v_prediction" } else { "epsilon" },
        "rescale_betas_zero_snr": traits.zero_snr,
        "timestep_spacing": if traits.zero_snr { "trailing" } else { "leading" },
    })
}

fn unet(family: Family, traits: Traits) -> Value {
    let attending = "CrossAttnDownBlock2D";
    let attending_up = "CrossAttnUpBlock2D";
    let mut unet = json!({
        "_class_name": "UNet2DConditionModel",
        "in_channels": traits.in_channels,
        "out_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "time_cond_proj_dim": traits.guidance_width,
    });
    match family {
        Family::Sd1 | Family::Sd2 => {
            unet["block_out_channels"] = json!([320, 640, 1280, 1280]);
            unet["down_block_types"] = json!([attending, attending, attending, "DownBlock2D"]);
            unet["up_block_types"] = json!(["UpBlock2D", attending_up, attending_up, attending_up]);
        }
        Family::Xl => {
            unet["block_out_channels"] = json!([320, 640, 1280]);
            unet["down_block_types"] = json!(["DownBlock2D", attending, attending]);
            unet["up_block_types"] = json!([attending_up, attending_up, "UpBlock2D"]);
        }
    }
    match family {
        Family::Sd1 => {
            unet["sample_size"] = json!(64);
            unet["cross_attention_dim"] = json!(768);
            unet["attention_head_dim"] = json!(8);
        }
        Family::Sd2 => {
            // The models that predict the velocity were trained at 768 pixels, the others at 512.
            unet["sample_size"] = json!(if traits.velocity { 96 } else { 64 });
            unet["cross_attention_dim"] = json!(1024);
            unet["attention_head_dim"] = json!([5, 10, 20, 20]);
            unet["use_linear_projection"] = json!(true);
            // Version 2.1 leaves the range of f16; version 2.0 does not mind.
            unet["upcast_attention"] = json!(true);
        }
        Family::Xl => {
            unet["sample_size"] = json!(128);
            unet["cross_attention_dim"] = json!(2048);
            unet["attention_head_dim"] = json!([5, 10, 20]);
            unet["transformer_layers_per_block"] = json!([1, 2, 10]);
            unet["use_linear_projection"] = json!(true);
            unet["addition_embed_type"] = json!("text_time");
            unet["addition_time_embed_dim"] = json!(256);
            unet["projection_class_embeddings_input_dim"] = json!(2816);
        }
    }
    unet
}

fn vae(family: Family) -> Value {
    let xl = family == Family::Xl;
    json!({
        "_class_name": "AutoencoderKL",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": vec!["DownEncoderBlock2D"; 4],
        "up_block_types": vec!["UpDecoderBlock2D"; 4],
        "layers_per_block": 2,
        "latent_channels": 4,
        "norm_num_groups": 32,
        "in_channels": 3,
        "out_channels": 3,
        "sample_size": if xl { 1024 } else { 512 },
        "scaling_factor": if xl { 0.13025 } else { 0.18215 },
        // In f16 it leaves its range.
        "force_upcast": xl,
    })
}

/// CLIP ViT-L/14 of OpenAI, or for version 2 the first 23 layers of OpenCLIP ViT-H/14.
fn text_encoder(family: Family) -> Value {
    match family {
        Family::Sd1 | Family::Xl => json!({
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "hidden_act": "quick_gelu",
            "max_position_embeddings": 77,
            "vocab_size": 49408,
            "bos_token_id": 49406,
            "eos_token_id": 49407,
        }),
        Family::Sd2 => json!({
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 23,
            "num_attention_heads": 16,
            "hidden_act": "gelu",
            "max_position_embeddings": 77,
            "vocab_size": 49408,
            "bos_token_id": 49406,
            "eos_token_id": 49407,
        }),
    }
}

/// OpenCLIP ViT-bigG/14.
fn second_text_encoder() -> Value {
    json!({
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "hidden_act": "gelu",
        "max_position_embeddings": 77,
        "vocab_size": 49408,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "projection_dim": 1280,
    })
}

/// OpenCLIP fills up with token 0, which is "!".
fn tokenizer(open_clip: bool) -> Value {
    json!({
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": if open_clip { "!" } else { "<|endoftext|>" },
    })
}
