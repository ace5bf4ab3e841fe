"""Tiny models of random weights in diffusers' folder layout, shaped as SD 1.5, SD 2.1 and SDXL are.

    sd15-tiny  f16 files; UNet 32/64 with 32 groups, heads given as one number, convolutions around the transformers; VAE by
               8 with the attention's old names (query, key, value, proj_attn); CLIP with quick_gelu, its keys prefixed with
               `text_model.` and `position_ids` among them; vocab.json and merges.txt only; PNDM's scheduler_config.json
    sd21-tiny  UNet in bf16, the others in f32; UNet 32/32 with 16 groups, linear projections, a number of heads per
               block, v-prediction; VAE by 4; CLIP with gelu, keys without the prefix, padded with token 0; tokenizer.json too
    sdxl-tiny  f16 files; UNet 16/32/32 with 16 groups, pooled text and sizes, 0/1/2 transformer layers; VAE by 4; two text
               encoders, the second with a projection

Matrices are drawn with variance 1/fan-in, norms around 1 and biases around 0, so that no part is without effect; the last
convolutions are scaled for outputs of a natural size.
"""

import json
import pathlib
import shutil

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from . import vocabulary

NAMES = ["sd15-tiny", "sd21-tiny", "sdxl-tiny"]
STABLE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def randomise(module, seed):
    """Fills every parameter of `module`, in the order of their names."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(module.named_parameters()):
        drawn = torch.randn(parameter.shape, generator=generator)
        if "embedding.weight" in name or name.endswith(("shared.weight", "embed_tokens.weight")):
            drawn *= 0.5 if "position" in name else 1.0
        elif "norm" in name and name.endswith("weight"):
            drawn = 1.0 + 0.2 * drawn
        elif parameter.dim() < 2:
            drawn *= 0.1
        else:
            drawn *= (parameter[0].numel()) ** -0.5
        parameter.data = drawn
    return module.eval()


def settle(layer, size, run):
    """Scales `layer` so that the values `run` returns spread by `size`."""
    with torch.no_grad():
        factor = size / run().std()
        layer.weight.mul_(factor)


def clip(seed, kind=CLIPTextModel, legacy_end=True, **more):
    # Published configurations still say 2, 0 and 1, whatever the vocabulary; 2 means "the highest id ends the text".
    ends = dict(eos_token_id=2, bos_token_id=0, pad_token_id=1)
    if not legacy_end:
        ends = dict(eos_token_id=vocabulary.END, bos_token_id=vocabulary.START, pad_token_id=1)
    shape = dict(vocab_size=vocabulary.SIZE, max_position_embeddings=77, num_attention_heads=4, **ends)
    return randomise(kind(CLIPTextConfig(**{**shape, **more})), seed)


def unet(seed, context, **more):
    model = randomise(UNet2DConditionModel(sample_size=8, layers_per_block=1, cross_attention_dim=context, **more), seed)
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(4, 4, 8, 8, generator=generator)
    text = torch.randn(4, 77, context, generator=generator)
    added = None
    if model.config.addition_embed_type:
        pooled = model.config.projection_class_embeddings_input_dim - 6 * model.config.addition_time_embed_dim
        added = dict(text_embeds=torch.randn(4, pooled, generator=generator), time_ids=torch.full((4, 6), 32.0))
    settle(model.conv_out, 1.0, lambda: model(sample, torch.tensor([999, 501, 37, 1]), text, added_cond_kwargs=added).sample)
    return model


def vae(seed, channels, groups, scaling, latent_channels=4, **more):
    count = len(channels)
    model = AutoencoderKL(
        block_out_channels=channels,
        norm_num_groups=groups,
        layers_per_block=1,
        latent_channels=latent_channels,
        scaling_factor=scaling,
        sample_size=8 * 2 ** (count - 1),
        down_block_types=["DownEncoderBlock2D"] * count,
        up_block_types=["UpDecoderBlock2D"] * count,
        **more,
    )
    randomise(model, seed)
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(1, latent_channels, 8, 8, generator=generator) / scaling
    side = 8 * 2 ** (count - 1)
    image = torch.rand(1, 3, side, side, generator=generator) * 2 - 1
    settle(model.decoder.conv_out, 0.45, lambda: model.decode(latents).sample)
    settle(model.encoder.conv_out, 0.8 / scaling, lambda: model.encode(image).latent_dist.mean)
    # Its second half is the logarithm of a variance; that of the images' encodings is small.
    last = model.quant_conv if model.quant_conv is not None else model.encoder.conv_out
    with torch.no_grad():
        last.weight[latent_channels:] *= 0.05
        last.bias[latent_channels:] -= 3.0
    return model


def tokenizer(folder, name, pad, with_tokenizer_json):
    vocabulary.save(folder / name, pad, with_tokenizer_json)


def begin(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def sd15(folder):
    begin(folder)
    pipeline = StableDiffusionPipeline(
        vae=vae(101, (16, 16, 32, 32), 16, 0.18215),
        text_encoder=clip(102, hidden_size=32, intermediate_size=64, num_hidden_layers=3, hidden_act="quick_gelu"),
        tokenizer=vocabulary.clip_tokenizer("<|endoftext|>"),
        unet=unet(
            103,
            32,
            block_out_channels=(32, 64),
            attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ),
        scheduler=PNDMScheduler(**STABLE, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(folder)
    tokenizer(folder, "tokenizer", "<|endoftext|>", False)
    # The published file lists what was set by hand, and one setting of another class.
    (folder / "scheduler" / "scheduler_config.json").write_text(
        '{\n  "_class_name": "PNDMScheduler",\n  "_diffusers_version": "0.6.0",\n  "beta_end": 0.012,\n'
        '  "beta_schedule": "scaled_linear",\n  "beta_start": 0.00085,\n  "clip_sample": false,\n'
        '  "num_train_timesteps": 1000,\n  "set_alpha_to_one": false,\n  "skip_prk_steps": true,\n'
        '  "steps_offset": 1,\n  "trained_betas": null\n}\n'
    )
    rename(folder / "text_encoder" / "model.safetensors", lambda key: f"text_model.{key}", position_ids=True)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def old_name(key):
        if ".mid_block.attentions.0." in key:
            for new, name in old.items():
                key = key.replace(f".{new}.", f".{name}.")
        return key

    rename(folder / "vae" / "diffusion_pytorch_model.safetensors", old_name)


def rename(path, change, position_ids=False):
    tensors = {change(key): value for key, value in load_file(path).items()}
    if position_ids:
        tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(tensors, path, metadata={"format": "pt"})


def sd21(folder):
    begin(folder)
    pipeline = StableDiffusionPipeline(
        vae=vae(201, (8, 16, 16), 8, 0.18215),
        text_encoder=clip(
            202, legacy_end=False, hidden_size=40, intermediate_size=80, num_hidden_layers=2, hidden_act="gelu"
        ),
        tokenizer=vocabulary.clip_tokenizer("!"),
        unet=unet(
            203,
            40,
            block_out_channels=(32, 32),
            norm_num_groups=16,
            attention_head_dim=[2, 4],
            use_linear_projection=True,
            upcast_attention=True,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ),
        scheduler=DDIMScheduler(
            **STABLE, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction"
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.unet.to(torch.bfloat16)
    pipeline.save_pretrained(folder)
    tokenizer(folder, "tokenizer", "!", True)


def sdxl(folder):
    begin(folder)
    pipeline = StableDiffusionXLPipeline(
        vae=vae(301, (16, 16, 16), 16, 0.13025, force_upcast=True),
        text_encoder=clip(302, hidden_size=32, intermediate_size=64, num_hidden_layers=3, hidden_act="quick_gelu"),
        text_encoder_2=clip(
            303,
            CLIPTextModelWithProjection,
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=2,
            hidden_act="gelu",
            projection_dim=20,
        ),
        tokenizer=vocabulary.clip_tokenizer("<|endoftext|>"),
        tokenizer_2=vocabulary.clip_tokenizer("!"),
        unet=unet(
            304,
            56,
            block_out_channels=(16, 32, 32),
            norm_num_groups=16,
            attention_head_dim=[1, 2, 4],
            use_linear_projection=True,
            transformer_layers_per_block=[1, 1, 2],
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=20 + 6 * 8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        ),
        scheduler=EulerDiscreteScheduler(**STABLE, timestep_spacing="leading", steps_offset=1),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipeline.to(torch.float16).save_pretrained(folder)
    tokenizer(folder, "tokenizer", "<|endoftext|>", False)
    tokenizer(folder, "tokenizer_2", "!", False)
    # As published: with settings that only other classes read.
    settings = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    kept = ["_class_name", "_diffusers_version", "interpolation_type", "num_train_timesteps", "trained_betas"]
    kept += ["beta_end", "beta_schedule", "beta_start", "prediction_type", "steps_offset", "timestep_spacing"]
    settings = {key: settings[key] for key in kept} | dict(
        clip_sample=False, sample_max_value=1.0, set_alpha_to_one=False, skip_prk_steps=True, use_karras_sigmas=False
    )
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


MAKERS = {"sd15-tiny": sd15, "sd21-tiny": sd21, "sdxl-tiny": sdxl}


def load(home, name):
    """Opens a tiny model in f32, as a user of diffusers would."""
    kind = StableDiffusionXLPipeline if name.startswith("sdxl") else StableDiffusionPipeline
    more = {} if name.startswith("sdxl") else dict(safety_checker=None)
    pipeline = kind.from_pretrained(pathlib.Path(home) / name, torch_dtype=torch.float32, **more)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
