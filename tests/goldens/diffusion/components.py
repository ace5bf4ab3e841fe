"""The tiny models of models.py, and goldens of their parts: `<model>.components.safetensors` and `.json`.

Computed in f64 and stored in f32, but for the sinusoids of the time embedding, which diffusers always makes in f32. The
JSON holds, per output, its largest magnitude (`largest`) and how far diffusers in f32 lies from it (`f32`).

    text.ids                     [4, 77] i64   a prompt, the empty prompt, more than 77 tokens, padding only
    text.last                    [4, 77, d]    last hidden state, after the final norm
    text.penultimate             [4, 77, d]    before the last layer, without the final norm
    text.pooled                  [4, d]        of the end token, after the final norm
    text_2.ids, .last, ..        the second encoder of SDXL; text_2.embeds [4, p]: pooled and projected
    time.timesteps               [28] f32      0, 37, .., 999
    time.sinusoids, time.embedding
    unet.context                 [4, 77, c]
    unet.timesteps               [4] f32       999, 501, 37, 1
    unet.pooled, unet.time_ids   [4, p], [4, 6] SDXL's added conditions; unet.added [4, e]: their embedding
    unet.HxW.sample, .output     [4, 4, H, W]  8x8, 9x11, 18x22
    unet.154.context, .output    [4, 154, c], [4, 4, 8, 8]: two chunks of text over unet.8x8.sample
    unet.tap.NAME                [1, ch, h, w] row 0 of unet.8x8 after that module
    vae.HxW.latents, .decoded    [1, 4, H, W], [1, 3, f*H, f*W]; 8x8 and 5x7; latents are already divided by the scaling factor
    vae.HxW.image, .mean, .logvar [1, 3, f*H, f*W] in -1..1, [1, 4, H, W]
"""

import copy
import json

import torch
from safetensors.torch import save_file

from . import models

PROMPTS = ["a red apple on a white table", "", "a highly detailed painting of the quick brown fox, " * 12]


def tokenised(tokenizer):
    found = tokenizer(PROMPTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    return torch.cat([found, torch.full((1, 77), tokenizer.pad_token_id)])


class Golden:
    def __init__(self):
        self.tensors = {}
        self.notes = {}

    def input(self, name, tensor):
        self.tensors[name] = tensor.contiguous()
        return tensor

    def outputs(self, prefix, run, *models_used):
        """Runs `run` in f32 and in f64, and stores what it returns in f64, rounded to f32."""
        with torch.no_grad():
            stock = run(torch.float32, *models_used)
            exact = run(torch.float64, *[copy.deepcopy(model).double() for model in models_used])
        for name, value in exact.items():
            key = f"{prefix}.{name}"
            self.tensors[key] = value.float().contiguous()
            self.notes[key] = dict(
                largest=float(f"{value.abs().max():.3g}"), f32=float(f"{(stock[name].double() - value).abs().max():.2g}")
            )

    def save(self, path, **more):
        save_file(self.tensors, path.with_name(path.name + ".safetensors"))
        text = json.dumps(dict(more, outputs=self.notes), indent=1)
        path.with_name(path.name + ".json").write_text(text + "\n")


def text(golden, prefix, tokenizer, encoder):
    ids = golden.input(f"{prefix}.ids", tokenised(tokenizer))

    def run(_, encoder):
        found = encoder(ids, output_hidden_states=True)
        states = dict(last=found.last_hidden_state, penultimate=found.hidden_states[-2])
        if hasattr(found, "text_embeds"):
            return dict(states, embeds=found.text_embeds)
        return dict(states, pooled=found.pooler_output)

    golden.outputs(prefix, run, encoder)


def added_conditions(golden, unet, generator):
    if not unet.config.addition_embed_type:
        return lambda dtype: None
    width = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
    pooled = golden.input("unet.pooled", torch.randn(4, width, generator=generator))
    rows = [[32, 32, 0, 0, 32, 32], [1024, 768, 0, 0, 1024, 768], [512, 640, 16, 8, 72, 88], [36, 44, 0, 0, 36, 44]]
    time_ids = golden.input("unet.time_ids", torch.tensor(rows, dtype=torch.float32))

    def added(dtype, unet):
        sinusoids = unet.add_time_proj(time_ids.flatten()).reshape(4, -1)
        return dict(added=unet.add_embedding(torch.cat([pooled, sinusoids], dim=-1).to(dtype)))

    golden.outputs("unet", added, unet)
    return lambda dtype: dict(text_embeds=pooled.to(dtype), time_ids=time_ids.to(dtype))


def denoiser(golden, unet, generator):
    times = golden.input("time.timesteps", torch.arange(0, 1000, 37, dtype=torch.float32))

    def embed(dtype, unet):
        sinusoids = unet.time_proj(times)
        return dict(sinusoids=sinusoids, embedding=unet.time_embedding(sinusoids.to(dtype)))

    golden.outputs("time", embed, unet)
    timesteps = golden.input("unet.timesteps", torch.tensor([999.0, 501.0, 37.0, 1.0]))
    contexts = {
        size: torch.randn(4, size, unet.config.cross_attention_dim, generator=generator) for size in (77, 154)
    }
    golden.input("unet.context", contexts[77])
    golden.input("unet.154.context", contexts[154])
    added = added_conditions(golden, unet, generator)

    def runner(sample, context):
        def run(dtype, unet):
            found = unet(sample.to(dtype), timesteps, context.to(dtype), added_cond_kwargs=added(dtype))
            return dict(output=found.sample)

        return run

    for height, width in [(8, 8), (9, 11), (18, 22)]:
        sample = golden.input(f"unet.{height}x{width}.sample", torch.randn(4, 4, height, width, generator=generator))
        golden.outputs(f"unet.{height}x{width}", runner(sample, contexts[77]), unet)
    sample = golden.tensors["unet.8x8.sample"]
    golden.outputs("unet.154", runner(sample, contexts[154]), unet)

    def taps(dtype, unet):
        found = {}
        parts = {"conv_in": unet.conv_in, "mid_block": unet.mid_block}
        for kind in ("down_blocks", "up_blocks"):
            parts |= {f"{kind}.{index}": block for index, block in enumerate(getattr(unet, kind))}

        def keep(name):
            def hook(module, inputs, output):
                found[name] = (output[0] if isinstance(output, tuple) else output)[:1]

            return hook

        hooks = [module.register_forward_hook(keep(name)) for name, module in parts.items()]
        runner(sample, contexts[77])(dtype, unet)
        for hook in hooks:
            hook.remove()
        return found

    golden.outputs("unet.tap", taps, unet)


def autoencoder(golden, vae, generator):
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    channels = vae.config.latent_channels
    for height, width in [(8, 8), (5, 7)]:
        name = f"vae.{height}x{width}"
        latents = torch.randn(1, channels, height, width, generator=generator) / vae.config.scaling_factor
        latents += vae.config.shift_factor or 0.0
        image = torch.rand(1, 3, factor * height, factor * width, generator=generator) * 2 - 1
        golden.input(f"{name}.latents", latents)
        golden.input(f"{name}.image", image)

        def run(dtype, vae):
            found = vae.encode(image.to(dtype)).latent_dist
            return dict(decoded=vae.decode(latents.to(dtype)).sample, mean=found.mean, logvar=found.logvar)

        golden.outputs(name, run, vae)


def make(home):
    for index, name in enumerate(models.NAMES):
        models.MAKERS[name](home / name)
        pipeline = models.load(home, name)
        golden = Golden()
        generator = torch.Generator().manual_seed(1000 + index)
        text(golden, "text", pipeline.tokenizer, pipeline.text_encoder)
        if name.startswith("sdxl"):
            text(golden, "text_2", pipeline.tokenizer_2, pipeline.text_encoder_2)
        denoiser(golden, pipeline.unet, generator)
        autoencoder(golden, pipeline.vae, generator)
        golden.save(home / f"{name}.components", prompts=PROMPTS)
        print(name, {key: note for key, note in golden.notes.items() if key.endswith((".output", "last", "decoded", "mean", "logvar"))})
