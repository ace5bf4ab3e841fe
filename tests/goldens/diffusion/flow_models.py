"""Tiny flow-matching models of random weights in diffusers' folder layout, all files in f16.

    flux-tiny  as Flux-schnell: 2 double and 2 single blocks, 4 heads of 8, CLIP pooled, T5 states, 16 latent channels, VAE by 4
    sd3-tiny   as SD 3.5 medium: 3 blocks (the first with a second attention, the last without a context output), as many
               heads as blocks, RMS norms of queries and keys; two CLIPs with projections and T5
"""

import collections
import math

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5Tokenizer

from . import models, vocabulary

NAMES = ["flux-tiny", "sd3-tiny"]
EXTRA_IDS = 4


def t5_tokenizer():
    """Unigram pieces: the words of vocabulary.py by their frequency, and every printable ASCII character."""
    words = collections.Counter(vocabulary.WORDS.replace(",", " , ").split())
    total = sum(words.values())
    pieces = {"\u2581" + word: math.log(times / total) for word, times in words.items()}
    for ending in ("s", "ing", "ed", "er", "ly", "th", "an", "in", "on", "es"):
        pieces.setdefault(ending, -7.0)
    pieces["\u2581"] = -6.0
    for code in range(33, 127):
        pieces.setdefault(chr(code), -9.0)
    scored = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    scored += [(piece, round(score, 4)) for piece, score in pieces.items()]
    scored += [(f"<extra_id_{index}>", 0.0) for index in reversed(range(EXTRA_IDS))]
    return T5Tokenizer(vocab=scored, extra_ids=EXTRA_IDS, model_max_length=512)


def t5(seed, width, vocabulary_size):
    shape = dict(d_model=width, d_kv=8, d_ff=2 * width, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu")
    config = T5Config(vocab_size=vocabulary_size, dropout_rate=0.0, tie_word_embeddings=False, **shape)
    return models.randomise(T5EncoderModel(config), seed)


def vae(seed, scaling, shift):
    return models.vae(
        seed, (8, 16, 16), 8, scaling, 16, shift_factor=shift, use_quant_conv=False, use_post_quant_conv=False
    )


def settled(transformer):
    models.settle(transformer.proj_out, 1.0, lambda: torch.cat([part.flatten() for part in sample_call(transformer)]))
    return transformer


def sample_call(transformer):
    generator = torch.Generator().manual_seed(5)
    pooled = torch.randn(2, transformer.config.pooled_projection_dim, generator=generator)
    states = torch.randn(2, 24, transformer.config.joint_attention_dim, generator=generator)
    latents = torch.randn(2, 16, 8, 8, generator=generator)
    return call(transformer, latents, torch.tensor([1000.0, 250.0]), states, pooled)


def call(transformer, latents, timesteps, states, pooled, guidance=None):
    """One call with `latents` [n, 16, h, w] and `timesteps` [n] in 0..1000; returns the same shape. Flux-dev takes
    `guidance` [n]."""
    if isinstance(transformer, SD3Transformer2DModel):
        return transformer(latents, states, pooled, timesteps.to(latents.dtype)).sample
    rows, channels, height, width = latents.shape
    packed = FluxPipeline._pack_latents(latents, rows, channels, height, width)
    image_ids = FluxPipeline._prepare_latent_image_ids(rows, height // 2, width // 2, "cpu", latents.dtype)
    text_ids = torch.zeros(states.shape[1], 3, dtype=latents.dtype)
    found = transformer(
        packed,
        timestep=timesteps.to(latents.dtype) / 1000,
        pooled_projections=pooled,
        encoder_hidden_states=states,
        txt_ids=text_ids,
        img_ids=image_ids,
        guidance=guidance,
    ).sample
    return FluxPipeline._unpack_latents(found, 4 * height, 4 * width, 4)


def flux(folder):
    models.begin(folder)
    tokenizer = t5_tokenizer()
    with torch.no_grad():
        pipeline = FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(
                shift=1.0, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
            ),
            vae=vae(401, 0.3611, 0.1159),
            text_encoder=models.clip(
                402, hidden_size=24, intermediate_size=48, num_hidden_layers=2, hidden_act="quick_gelu"
            ),
            tokenizer=vocabulary.clip_tokenizer("<|endoftext|>"),
            text_encoder_2=t5(403, 32, len(tokenizer)),
            tokenizer_2=tokenizer,
            transformer=settled(
                models.randomise(
                    FluxTransformer2DModel(
                        in_channels=64,
                        num_layers=2,
                        num_single_layers=2,
                        attention_head_dim=8,
                        num_attention_heads=4,
                        joint_attention_dim=32,
                        pooled_projection_dim=24,
                        axes_dims_rope=(2, 2, 4),
                    ),
                    404,
                )
            ),
        )
    pipeline.to(torch.float16).save_pretrained(folder)
    models.tokenizer(folder, "tokenizer", "<|endoftext|>", False)


def sd3(folder):
    models.begin(folder)
    tokenizer = t5_tokenizer()
    with torch.no_grad():
        pipeline = StableDiffusion3Pipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=vae(501, 1.5305, 0.0609),
            text_encoder=models.clip(
                502,
                CLIPTextModelWithProjection,
                hidden_size=24,
                intermediate_size=48,
                num_hidden_layers=2,
                hidden_act="quick_gelu",
                projection_dim=24,
            ),
            tokenizer=vocabulary.clip_tokenizer("<|endoftext|>"),
            text_encoder_2=models.clip(
                503,
                CLIPTextModelWithProjection,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                hidden_act="gelu",
                projection_dim=32,
            ),
            tokenizer_2=vocabulary.clip_tokenizer("!"),
            text_encoder_3=t5(504, 64, len(tokenizer)),
            tokenizer_3=tokenizer,
            transformer=settled(
                models.randomise(
                    SD3Transformer2DModel(
                        sample_size=8,
                        patch_size=2,
                        in_channels=16,
                        num_layers=3,
                        attention_head_dim=8,
                        num_attention_heads=3,
                        joint_attention_dim=64,
                        caption_projection_dim=24,
                        pooled_projection_dim=56,
                        out_channels=16,
                        pos_embed_max_size=12,
                        dual_attention_layers=(0,),
                        qk_norm="rms_norm",
                    ),
                    505,
                )
            ),
        )
    pipeline.to(torch.float16).save_pretrained(folder)
    models.tokenizer(folder, "tokenizer", "<|endoftext|>", False)
    models.tokenizer(folder, "tokenizer_2", "!", False)


MAKERS = {"flux-tiny": flux, "sd3-tiny": sd3}


def load(home, name):
    kind = FluxPipeline if name.startswith("flux") else StableDiffusion3Pipeline
    pipeline = kind.from_pretrained(home / name, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
