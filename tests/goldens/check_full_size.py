"""SD 1.5 at its full size with random weights: a folder to load, goldens to compare with, and diffusers' speed on it.

    python tests/goldens/check_full_size.py make FOLDER          4.3 GB of f32 files and golden.safetensors
    python tests/goldens/check_full_size.py time FOLDER [PART]   PART: unet-32, unet-64, vae

Run by hand, not in CI. golden.safetensors, all computed in f32:

    text.ids [2, 77] i64, text.last [2, 77, 768]
    unet.timesteps [2], unet.context [2, 77, 768], unet.HxW.sample, unet.HxW.output [2, 4, H, W]; 32x32 and 64x64
    vae.latents [1, 4, 32, 32], already divided by the scaling factor; vae.decoded [1, 3, 256, 256]
    vae.mean, vae.logvar [1, 4, 32, 32], encoded from vae.decoded clamped to -1..1

The tokenizer is the small one of diffusion/vocabulary.py: its ids are valid for CLIP's larger table.
"""

import os
import pathlib
import sys
import time

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from diffusion import models, vocabulary  # noqa: E402

SCALING = 0.18215
CHANNELS = (320, 640, 1280, 1280)


def unet():
    model = UNet2DConditionModel(
        sample_size=64, block_out_channels=CHANNELS, cross_attention_dim=768, attention_head_dim=8
    )
    models.randomise(model, 1)
    generator = torch.Generator().manual_seed(2)
    sample, text = torch.randn(1, 4, 16, 16, generator=generator), torch.randn(1, 77, 768, generator=generator)
    models.settle(model.conv_out, 1.0, lambda: model(sample, torch.tensor([501]), text).sample)
    return model


def vae():
    model = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
    )
    models.randomise(model, 3)
    generator = torch.Generator().manual_seed(4)
    latents = torch.randn(1, 4, 8, 8, generator=generator) / SCALING
    models.settle(model.decoder.conv_out, 0.45, lambda: model.decode(latents).sample)
    image = torch.rand(1, 3, 64, 64, generator=generator) * 2 - 1
    models.settle(model.encoder.conv_out, 0.8 / SCALING, lambda: model.encode(image).latent_dist.mean)
    with torch.no_grad():
        model.quant_conv.weight[4:] *= 0.05
    return model


def text_encoder():
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        projection_dim=768,
        eos_token_id=2,
        bos_token_id=0,
        pad_token_id=1,
    )
    return models.randomise(CLIPTextModel(config), 5)


@torch.no_grad()
def make(folder):
    pipeline = StableDiffusionPipeline(
        vae=vae(),
        text_encoder=text_encoder(),
        tokenizer=vocabulary.clip_tokenizer("<|endoftext|>"),
        unet=unet(),
        scheduler=PNDMScheduler(**models.STABLE, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, max_shard_size="20GB")
    models.tokenizer(folder, "tokenizer", "<|endoftext|>", False)
    generator = torch.Generator().manual_seed(6)
    ids = torch.randint(0, 49406, (2, 77), generator=generator)
    ids[:, 0], ids[0, 9:], ids[1, 76] = 49406, 49407, 49407
    golden = {"text.ids": ids, "text.last": pipeline.text_encoder(ids).last_hidden_state}
    timesteps = golden["unet.timesteps"] = torch.tensor([999.0, 37.0])
    context = golden["unet.context"] = torch.randn(2, 77, 768, generator=generator)
    for side in (32, 64):
        sample = golden[f"unet.{side}x{side}.sample"] = torch.randn(2, 4, side, side, generator=generator)
        golden[f"unet.{side}x{side}.output"] = pipeline.unet(sample, timesteps, context).sample
    latents = golden["vae.latents"] = torch.randn(1, 4, 32, 32, generator=generator) / SCALING
    golden["vae.decoded"] = pipeline.vae.decode(latents).sample
    encoded = pipeline.vae.encode(golden["vae.decoded"].clamp(-1, 1)).latent_dist
    golden["vae.mean"], golden["vae.logvar"] = encoded.mean, encoded.logvar
    save_file({key: value.contiguous() for key, value in golden.items()}, folder / "golden.safetensors")
    for key, value in golden.items():
        print(f"{key} {tuple(value.shape)} spread {value.float().std():.3g} largest {value.abs().max():.3g}")


def measure(name, run, times):
    """Prints the median and the quickest of `times` runs after one that is not counted."""
    run()
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        run()
        taken.append(time.perf_counter() - begin)
    taken.sort()
    print(f"{name}: median {taken[len(taken) // 2]:.3f} s, quickest {taken[0]:.3f} s of {times}", flush=True)


@torch.no_grad()
def clock(folder, part):
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    generator = torch.Generator().manual_seed(7)
    if part.startswith("unet"):
        side = int(part.removeprefix("unet-"))
        model = UNet2DConditionModel.from_pretrained(folder / "unet").eval()
        for rows in (1, 4):
            sample = torch.randn(rows, 4, side, side, generator=generator)
            context = torch.randn(rows, 77, 768, generator=generator)
            timesteps = torch.linspace(999, 1, rows)
            measure(f"unet {side}x{side}, {rows} rows", lambda: model(sample, timesteps, context), 3 if side < 64 else 2)
        return
    model = AutoencoderKL.from_pretrained(folder / "vae").eval()
    for side, times in ((32, 3), (64, 2)):
        latents = torch.randn(1, 4, side, side, generator=generator) / SCALING
        measure(f"vae decode {8 * side} px", lambda: model.decode(latents), times)


if __name__ == "__main__":
    command, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    if command == "make":
        make(folder)
    else:
        for part in sys.argv[3:] or ["unet-32", "unet-64", "vae"]:
            clock(folder, part)
