"""Shapes that the tiny models of flow_models.py do not have, made from their weights: `flow-variants.components`.

    guidance.scales              [2] f32        Flux-dev: 1, 3.5
    guidance.<name>              f16            weights of time_text_embed.guidance_embedder, for flux-tiny's transformer
    guidance.output              [2, 16, 8, 8]  of flux-tiny's inputs transformer.8x8
    plain.output                 [2, 16, 8, 8]  Stable Diffusion 3: sd3-tiny without norms of queries and keys and without
                                                second attention, of sd3-tiny's inputs transformer.8x8
"""

import functools
import json

import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from safetensors.torch import load_file

from . import components, flow_models, models


def changed(home, name, kind, changes):
    """A transformer of this changed configuration, with the weights of the tiny model that it has a place for."""
    folder = home / name / "transformer"
    settings = json.loads((folder / "config.json").read_text())
    found = models.randomise(kind.from_config(settings | changes), 601)
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    shapes = {key: value.shape for key, value in found.state_dict().items()}
    kept = {key: value.float() for key, value in weights.items() if key in shapes}
    # A block without second attention takes the first six of nine modulations.
    kept = {key: value[: shapes[key][0]] for key, value in kept.items()}
    found.load_state_dict(kept, strict=False)
    return found.half().float(), set(shapes) - set(kept)


def make(home):
    golden = components.Golden()

    def run(name, dtype, transformer, **more):
        given = load_file(home / f"{name}.components.safetensors")
        sample, states, pooled = [given[f"transformer.{key}"].to(dtype) for key in ("8x8.sample", "states", "pooled")]
        return dict(output=flow_models.call(transformer, sample, given["transformer.timesteps"], states, pooled, **more))

    dev, new = changed(home, "flux-tiny", FluxTransformer2DModel, dict(guidance_embeds=True))
    assert all(".guidance_embedder." in name for name in new) and len(new) == 4, new
    for name in sorted(new):
        golden.input(f"guidance.{name}", dev.state_dict()[name].half())
    scales = golden.input("guidance.scales", torch.tensor([1.0, 3.5]))
    golden.outputs("guidance", functools.partial(run, "flux-tiny", guidance=scales), dev)
    plain, new = changed(home, "sd3-tiny", SD3Transformer2DModel, dict(qk_norm=None, dual_attention_layers=()))
    assert not new, new
    golden.outputs("plain", functools.partial(run, "sd3-tiny"), plain)
    golden.save(home / "flow-variants.components")
    print(golden.notes)
