"""Whole pictures of the tiny models, step by step: `<model>.pipelines.safetensors` and `.json`.

Run by diffusers' own pipelines in f32, every random draw replaced by tensors of the file. Shared by a model's cases, per
latent shape HxW:

    HxW.start      [1, 4, H, W]     initial noise: times init_noise_sigma, or what add_noise adds to an encoded image
    HxW.noise      [n, 4, H, W]     what step i draws when its schedule draws, i counted from the first timestep of the
                                    whole schedule (with a strength the first steps are skipped, and their noise with them)
    HxW.encode     [1, 4, H, W]     the draw for sampling an encoded image: mean + exp(logvar / 2) * encode
    HxW.image      [f*H, f*W, 3] u8 what image-to-image and inpainting start from
    HxW.mask       [f*H, f*W] u8    255 is repainted, 0 is kept; brought to HxW by taking pixel (f*y, f*x)

Per case:

    CASE.latents   [steps run, 4, H, W]  after each step (after the blend, when inpainting)
    CASE.picture   [f*H, f*W, 3] u8      (decoded / 2 + 1/2) clamped, times 255, rounded

The JSON's `cases` say how each was made: pipeline, prompt, negative_prompt (null: none given), steps, guidance_scale (no
second row at 1), clip_skip, strength, size in pixels, and the whole scheduler configuration (`eta` beside it); `sizes` are SDXL's,
[height, width] each, by default the picture's size, 0 and the picture's size. `f32` says how far the same with models in
f64 lies: [largest difference of a latent, of a byte of the picture].
"""

import contextlib
import json
from unittest import mock

import diffusers
import numpy
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

from . import models

STEPS = 5
PROMPT = "a red apple on a white table"
NEGATIVE = "blurry, low quality"
KINDS = {
    "txt2img": ("StableDiffusionPipeline", "StableDiffusionXLPipeline"),
    "img2img": ("StableDiffusionImg2ImgPipeline", "StableDiffusionXLImg2ImgPipeline"),
    "inpaint": ("StableDiffusionInpaintPipeline", "StableDiffusionXLInpaintPipeline"),
}
SCHEDULERS = {
    "ddim": ("DDIMScheduler", {}),
    "ddim_eta": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", dict(use_karras_sigmas=True)),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "euler_trailing": ("EulerDiscreteScheduler", dict(timestep_spacing="trailing")),
}


def cases(xl):
    """Name -> (kind, scheduler, guidance scale, more)."""
    found = {}
    for scheduler in ("ddim", "euler", "euler_a"):
        for scale in (1.0, 7.5):
            found[f"txt2img-{scheduler}-{scale}"] = ("txt2img", scheduler, scale, {})
    for scheduler in ("dpmpp_2m_karras", "unipc", "ddim_eta", "ddpm"):
        found[f"txt2img-{scheduler}-7.5"] = ("txt2img", scheduler, 7.5, {})
    found["txt2img-lcm-1.0"] = ("txt2img", "lcm", 1.0, dict(steps=4))
    found["txt2img-euler_trailing-1.0"] = ("txt2img", "euler_trailing", 1.0, dict(steps=1))
    found["txt2img-euler-negative"] = ("txt2img", "euler", 7.5, dict(negative_prompt=NEGATIVE))
    found["txt2img-euler-empty"] = ("txt2img", "euler", 7.5, dict(negative_prompt="", prompt=""))
    found["txt2img-euler-wide"] = ("txt2img", "euler", 7.5, dict(shape=(6, 10)))
    for scheduler in ("ddim", "euler_a", "dpmpp_2m_karras"):
        found[f"img2img-{scheduler}-7.5"] = ("img2img", scheduler, 7.5, dict(strength=0.6))
    found["img2img-euler-wide"] = ("img2img", "euler", 1.0, dict(strength=0.6, shape=(6, 10)))
    found["inpaint-ddim-7.5"] = ("inpaint", "ddim", 7.5, dict(strength=0.6))
    found["inpaint-euler_a-7.5"] = ("inpaint", "euler_a", 7.5, dict(strength=1.0))
    found["inpaint-unipc-1.0"] = ("inpaint", "unipc", 1.0, dict(strength=0.6))
    # Without guidance: diffusers skips no layer for the negative prompt, the web UI does.
    found["txt2img-euler-clip_skip"] = ("txt2img", "euler", 1.0, dict(clip_skip=1))
    if xl:
        sizes = dict(original_size=(64, 48), crops_coords_top_left=(4, 8), target_size=(40, 40))
        found["txt2img-euler-sizes"] = ("txt2img", "euler", 7.5, dict(sizes=sizes, negative_prompt=NEGATIVE))
    return found


def smooth(generator, height, width):
    """A picture of soft blobs, so that its encoding is not that of noise."""
    coarse = torch.rand(1, 3, 4, 4, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)
    return (fine[0].permute(1, 2, 0) * 255).round().to(torch.uint8)


def inputs(tensors, shape, factor, generator):
    height, width = shape
    name = f"{height}x{width}"
    if f"{name}.start" not in tensors:
        tensors[f"{name}.start"] = torch.randn(1, 4, height, width, generator=generator)
        tensors[f"{name}.noise"] = torch.randn(STEPS, 4, height, width, generator=generator)
        tensors[f"{name}.encode"] = torch.randn(1, 4, height, width, generator=generator)
        tensors[f"{name}.image"] = smooth(generator, factor * height, factor * width)
        mask = torch.zeros(factor * height, factor * width, dtype=torch.uint8)
        # Edges between latent pixels, so that it matters which picture pixel a latent pixel asks.
        mask[factor + 1 : 5 * factor - 1, 2 * factor - 1 : 6 * factor + 1] = 255
        tensors[f"{name}.mask"] = mask
    return {key: tensors[f"{name}.{key}"] for key in ("start", "noise", "encode", "image", "mask")}


@contextlib.contextmanager
def drawing(pipeline, given, first):
    """Replaces the random draws of the pipeline, the autoencoder and the scheduler; yields the count of steps done."""
    done = dict(steps=0)

    def answer(pick):
        def draw(shape, generator=None, device=None, dtype=None, layout=None):
            value = pick()
            assert tuple(value.shape) == tuple(shape), (value.shape, shape)
            return value.to(dtype).clone()

        return draw

    draws = {
        type(pipeline).__module__: lambda: given["start"],
        "diffusers.models.autoencoders.vae": lambda: given["encode"],
        type(pipeline.scheduler).__module__: lambda: given["noise"][first + done["steps"]][None],
    }
    with contextlib.ExitStack() as stack:
        for module, pick in draws.items():
            if not module.endswith("unipc_multistep"):
                stack.enter_context(mock.patch(f"{module}.randn_tensor", answer(pick)))
        yield done


def run(base, xl, case, tensors, generator):
    kind, scheduler_name, scale, more = case
    class_name, changes = SCHEDULERS[scheduler_name]
    scheduler = getattr(diffusers, class_name).from_config(base.scheduler.config, **changes)
    parts = dict(base.components, scheduler=scheduler)
    extra = {} if xl else dict(requires_safety_checker=False)
    pipeline = getattr(diffusers, KINDS[kind][xl])(**parts, **extra)
    pipeline.set_progress_bar_config(disable=True)
    factor = 2 ** (len(base.vae.config.block_out_channels) - 1)
    height, width = more.get("shape", (8, 8))
    given = inputs(tensors, (height, width), factor, generator)
    steps = more.get("steps", STEPS)
    arguments = dict(
        prompt=more.get("prompt", PROMPT), num_inference_steps=steps, guidance_scale=scale, output_type="np"
    )
    arguments["negative_prompt"] = more.get("negative_prompt")
    if "clip_skip" in more:
        arguments["clip_skip"] = more["clip_skip"]
    if scheduler_name == "ddim_eta":
        arguments["eta"] = 1.0
    if kind != "txt2img":
        arguments.update(image=Image.fromarray(given["image"].numpy()), strength=more["strength"])
    if kind == "inpaint":
        arguments["mask_image"] = Image.fromarray(given["mask"].numpy())
    if kind != "img2img":
        arguments.update(height=factor * height, width=factor * width)
    arguments.update(more.get("sizes", {}))
    first = steps - min(int(steps * more.get("strength", 1.0)), steps)
    latents = []
    with drawing(pipeline, given, first) as done, torch.no_grad():

        def after_step(pipeline, index, timestep, values):
            done["steps"] += 1
            latents.append(values["latents"].clone())
            return {}

        picture = pipeline(**arguments, callback_on_step_end=after_step).images[0]
    assert len(latents) == steps - first and numpy.isfinite(picture).all()
    settings = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    if settings.get("lambda_min_clipped") == -float("inf"):
        del settings["lambda_min_clipped"]
    note = dict(
        kind=kind,
        prompt=arguments["prompt"],
        negative_prompt=arguments["negative_prompt"],
        steps=steps,
        guidance_scale=scale,
        height=factor * height,
        width=factor * width,
        latent_shape=f"{height}x{width}",
        **({"strength": more["strength"]} if "strength" in more else {}),
        **({"clip_skip": more["clip_skip"]} if "clip_skip" in more else {}),
        **({"eta": 1.0} if "eta" in arguments else {}),
        **({"sizes": more["sizes"]} if "sizes" in more else {}),
        scheduler={"_class_name": class_name, **settings},
    )
    pixels = torch.from_numpy((picture * 255).round().astype("uint8"))
    return note, torch.cat(latents), pixels, picture


def make(home):
    # diffusers still asks for the inner model, which newer transformers have merged into the outer one.
    if not hasattr(transformers.CLIPTextModel, "text_model"):
        transformers.CLIPTextModel.text_model = property(lambda model: model)
    for index, name in enumerate(models.NAMES):
        xl = name.startswith("sdxl")
        base = models.load(home, name)
        exact = models.load(home, name).to(torch.float64)
        generator = torch.Generator().manual_seed(2000 + index)
        tensors, notes = {}, {}
        for case_name, case in cases(xl).items():
            note, latents, pixels, picture = run(base, xl, case, tensors, generator)
            _, exact_latents, exact_pixels, _ = run(exact, xl, case, tensors, generator)
            error = [(exact_latents - latents).abs().max(), (exact_pixels.int() - pixels.int()).abs().max()]
            note["f32"] = [float(f"{float(value):.2g}") for value in error]
            notes[case_name] = note
            tensors[f"{case_name}.latents"] = latents
            tensors[f"{case_name}.picture"] = pixels
            flat = ((picture <= 0) | (picture >= 1)).mean()
            print(f"{name} {case_name}: latents {latents.std():.2f}, {flat:.0%} of the pixels clamped, f32 {note['f32']}")
        tensors = {key: value.contiguous() for key, value in tensors.items()}
        save_file(tensors, home / f"{name}.pipelines.safetensors")
        text = json.dumps(dict(cases=notes), separators=(",", ":")).replace('},"txt', '},\n"txt').replace('},"i', '},\n"i')
        (home / f"{name}.pipelines.json").write_text(text + "\n")
