"""The tiny models of flow_models.py and their goldens, in the files and words of components.py and pipelines.py.

`<model>.components`: text.* and text_2.* as there (text_2 only for SD3), and

    t5.ids                        [3, 64] i64   padded with 0 after the end token 1; t5.states [3, 64, d]: no mask is used
    transformer.timesteps         [2] f32       1000, 250; Flux is given a thousandth
    transformer.states, .pooled   [2, 24, d], [2, p]
    transformer.HxW.sample, .output [2, 16, H, W]; 8x8 and 6x10; Flux packs 2x2 pixels to a token of 64, channel first
    vae.*                         latents are already divided by the scaling factor, then shifted

`<model>.pipelines`: text states of `max_sequence_length` 64; Flux knows no guidance. With a strength the first
int(steps - steps * strength) steps are skipped. `mu`, where given, is what set_timesteps got.
"""

import json

import diffusers
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from PIL import Image
from safetensors.torch import save_file

from . import components, flow_models, models, pipelines

LENGTH = 64


def text_goldens(golden, pipeline, sd3):
    components.text(golden, "text", pipeline.tokenizer, pipeline.text_encoder)
    tokenizer, encoder = pipeline.tokenizer_2, pipeline.text_encoder_2
    if sd3:
        components.text(golden, "text_2", tokenizer, encoder)
        tokenizer, encoder = pipeline.tokenizer_3, pipeline.text_encoder_3
    found = tokenizer(
        components.PROMPTS, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    )
    ids = golden.input("t5.ids", found.input_ids)
    golden.outputs("t5", lambda dtype, encoder: dict(states=encoder(ids)[0]), encoder)


def transformer_goldens(golden, transformer, generator):
    timesteps = golden.input("transformer.timesteps", torch.tensor([1000.0, 250.0]))
    width, pooled_width = transformer.config.joint_attention_dim, transformer.config.pooled_projection_dim
    states = golden.input("transformer.states", torch.randn(2, 24, width, generator=generator))
    pooled = golden.input("transformer.pooled", torch.randn(2, pooled_width, generator=generator))
    for height, width in [(8, 8), (6, 10)]:
        sample = torch.randn(2, 16, height, width, generator=generator)
        golden.input(f"transformer.{height}x{width}.sample", sample)

        def run(dtype, transformer):
            given = [tensor.to(dtype) for tensor in (states, pooled)]
            return dict(output=flow_models.call(transformer, sample.to(dtype), timesteps, *given))

        golden.outputs(f"transformer.{height}x{width}", run, transformer)


def cases(sd3):
    """Name -> (pipeline's kind, changes of the schedule, more)."""
    found = {"txt2img": ("", {}, {}), "txt2img-wide": ("", {}, dict(shape=(6, 10)))}
    found["img2img"] = ("Img2Img", {}, dict(strength=0.6, steps=5))
    if sd3:
        found["txt2img-guided"] = ("", {}, dict(guidance_scale=7.0, negative_prompt=pipelines.NEGATIVE))
        found["txt2img-guided-no-negative"] = ("", {}, dict(guidance_scale=7.0))
    else:
        found["txt2img-dynamic"] = ("", dict(use_dynamic_shifting=True), {})
    return found


def run(base, sd3, case, tensors, generator):
    kind, changes, more = case
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(base.scheduler.config, **changes)
    name = f"StableDiffusion3{kind}Pipeline" if sd3 else f"Flux{kind}Pipeline"
    pipeline = getattr(diffusers, name)(**dict(base.components, scheduler=scheduler))
    pipeline.set_progress_bar_config(disable=True)
    height, width = more.get("shape", (8, 8))
    given = inputs(tensors, height, width, generator)
    steps = more.get("steps", 4)
    first = int(max(steps - min(steps * more.get("strength", 1.0), steps), 0))
    arguments = dict(prompt=pipelines.PROMPT, num_inference_steps=steps, max_sequence_length=LENGTH, output_type="np")
    arguments.update(height=4 * height, width=4 * width)
    if sd3:
        arguments["guidance_scale"] = more.get("guidance_scale", 1.0)
        arguments["negative_prompt"] = more.get("negative_prompt")
    if "strength" in more:
        arguments.update(image=Image.fromarray(given["image"].numpy()), strength=more["strength"])
    latents = []
    with pipelines.drawing(pipeline, given, first) as done, torch.no_grad():

        def after_step(pipeline, index, timestep, values):
            done["steps"] += 1
            value = values["latents"]
            if not sd3:
                value = diffusers.FluxPipeline._unpack_latents(value, 4 * height, 4 * width, 4)
            latents.append(value.clone())
            return {}

        picture = pipeline(**arguments, callback_on_step_end=after_step).images[0]
    assert len(latents) == steps - first, (len(latents), steps, first)
    settings = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    note = dict(
        kind=kind.lower() or "txt2img",
        prompt=pipelines.PROMPT,
        steps=steps,
        height=4 * height,
        width=4 * width,
        latent_shape=f"{height}x{width}",
        **{key: value for key, value in more.items() if key not in ("shape", "steps")},
        **({"mu": calculate_shift(height * width // 4)} if changes else {}),
        scheduler={"_class_name": "FlowMatchEulerDiscreteScheduler", **settings},
    )
    return note, torch.cat(latents), torch.from_numpy((picture * 255).round().astype("uint8")), picture


def inputs(tensors, height, width, generator):
    name = f"{height}x{width}"
    if f"{name}.start" not in tensors:
        tensors[f"{name}.start"] = torch.randn(1, 16, height, width, generator=generator)
        tensors[f"{name}.encode"] = torch.randn(1, 16, height, width, generator=generator)
        tensors[f"{name}.image"] = pipelines.smooth(generator, 4 * height, 4 * width)
    # The deterministic schedule draws nothing while it steps.
    return {key: tensors[f"{name}.{key}"] for key in ("start", "encode", "image")} | dict(noise=torch.empty(0))


def make(home):
    for index, name in enumerate(flow_models.NAMES):
        sd3 = name.startswith("sd3")
        flow_models.MAKERS[name](home / name)
        base = flow_models.load(home, name)
        golden = components.Golden()
        generator = torch.Generator().manual_seed(3000 + index)
        text_goldens(golden, base, sd3)
        transformer_goldens(golden, base.transformer, generator)
        components.autoencoder(golden, base.vae, generator)
        golden.save(home / f"{name}.components", prompts=components.PROMPTS)
        print(name, golden.notes)
        exact = flow_models.load(home, name).to(torch.float64)
        tensors, notes = {}, {}
        for case_name, case in cases(sd3).items():
            note, latents, pixels, picture = run(base, sd3, case, tensors, generator)
            _, exact_latents, exact_pixels, _ = run(exact, sd3, case, tensors, generator)
            error = [(exact_latents - latents).abs().max(), (exact_pixels.int() - pixels.int()).abs().max()]
            note["f32"] = [float(f"{float(value):.2g}") for value in error]
            notes[case_name] = note
            tensors[f"{case_name}.latents"], tensors[f"{case_name}.picture"] = latents, pixels
            flat = ((picture <= 0) | (picture >= 1)).mean()
            print(f"{name} {case_name}: latents {latents.std():.2f}, {flat:.0%} of the pixels clamped, f32 {note['f32']}")
        save_file({key: value.contiguous() for key, value in tensors.items()}, home / f"{name}.pipelines.safetensors")
        (home / f"{name}.pipelines.json").write_text(json.dumps(dict(cases=notes), indent=1) + "\n")
