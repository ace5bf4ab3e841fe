"""Checks the exported model with diffusers' pipeline: colours and shapes of fixed prompts, prompt sheet, goldens.

    python check.py accuracy [--count 96] [--steps 20] [--guidance 5]
    python check.py sheet                # ../sheet.png
    python check.py templates            # ../shapes.json, the templates of the shape check
    python check.py goldens --to FOLDER  # latents, final pictures, their prompts

The rule, simple enough to be written again in another language:

1. Background: the median colour of the picture's outermost 3 px must be nearest to the named background colour.
2. A pixel is foreground when it is farther from that median than half the way from it to the object's named colour.
   With two objects each is looked for in its own half of the picture. Of it stays what has at least 5 foreground
   pixels in the 3 x 3 around it (those outside the region count as background), so that specks do not matter.
3. The foreground's median colour must be nearest to the named colour.
4. The foreground, cut to its bounding box and sampled at 32 x 32 points, must overlap the named shape's template
   (shapes.json) with an intersection over union of at least 0.75, and no other template better.

A prompt passes when all of it holds.
"""

import argparse
import json
import pathlib
import random
import time

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image, ImageDraw
from safetensors.torch import save_file

import data

MODEL = pathlib.Path(__file__).resolve().parent.parent
POINTS = 32
LEAST_OVERLAP = 0.75

SHEET = [
    "a red circle on a white background", "a blue star on a yellow background", "a pink heart on a black background",
    "a green triangle on an orange background", "a purple diamond on a white background",
    "a yellow ring on a blue background", "a white cross on a red background", "a brown square on a pink background",
    "a small blue star on the left, on a yellow background", "a large green heart on a white background",
    "a small red ring at the top, on a black background", "an orange cross on the right, on a purple background",
    "a large black star on a green background", "a small white circle at the bottom, on a brown background",
    "a large yellow triangle on a purple background", "a blue diamond on orange",
    "a red circle and a blue square on a white background", "a yellow star above a pink heart on a black background",
    "a green cross and a purple ring on a yellow background", "a white triangle above a brown square on a blue background",
]
GOLDEN = [
    "a red circle on a white background",
    "a small blue star on the left, on a yellow background",
    "a green heart above an orange ring on a black background",
]


def sample_points(mask: np.ndarray) -> np.ndarray:
    """The mask's bounding box at 32 x 32 points."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = rows[0], columns[0]
    height, width = rows[-1] + 1 - top, columns[-1] + 1 - left
    steps = np.arange(POINTS) + 0.5
    return mask[np.ix_(top + (steps * height / POINTS).astype(int), left + (steps * width / POINTS).astype(int))]


def without_specks(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask.astype(int), 1)
    height, width = mask.shape
    return sum(padded[y : y + height, x : x + width] for y in range(3) for x in range(3)) >= 5


def templates() -> dict[str, np.ndarray]:
    centre = data.SIZE / 2
    return {s: sample_points(data.coverage(s, centre, centre, data.RADIUS["large"]) > 0.5) for s in data.SHAPES}


def nearest(colour: np.ndarray) -> str:
    return min(data.COLOURS, key=lambda name: float(((colour - np.array(data.PALETTE[name])) ** 2).sum()))


def judge(picture: np.ndarray, scene: dict, shapes: dict[str, np.ndarray]) -> list[str]:
    """What is wrong with a picture (128, 128, 3) u8; empty when it passes."""
    picture = picture.astype(np.float32)
    frame = np.concatenate([picture[:3].reshape(-1, 3), picture[-3:].reshape(-1, 3),
                            picture[:, :3].reshape(-1, 3), picture[:, -3:].reshape(-1, 3)])
    background = np.median(frame, 0)
    wrong = []
    if nearest(background) != scene["background"]:
        wrong.append(f"background {nearest(background)}")
    half = data.SIZE // 2
    regions = {"beside": [np.s_[:, :half], np.s_[:, half:]], "above": [np.s_[:half], np.s_[half:]]}
    for (shape, colour), region in zip(scene["objects"], regions.get(scene["layout"], [np.s_[:, :]])):
        part = picture[region]
        reach = np.linalg.norm(np.array(data.PALETTE[colour]) - background) / 2
        mask = without_specks(np.linalg.norm(part - background, axis=-1) > reach)
        if mask.sum() < 50:
            wrong.append(f"no {colour} {shape}")
            continue
        seen = nearest(np.median(part[mask], 0))
        if seen != colour:
            wrong.append(f"{colour} {shape} is {seen}")
        points = sample_points(mask)
        overlaps = {name: (points & t).sum() / (points | t).sum() for name, t in shapes.items()}
        best = max(overlaps, key=overlaps.get)
        if best != shape or overlaps[shape] < LEAST_OVERLAP:
            wrong.append(f"{shape} overlaps {overlaps[shape]:.2f}, best {best} {overlaps[best]:.2f}")
    return wrong


def pipeline(model: pathlib.Path) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe, prompts: list[str], steps: int, guidance: float, seed: int = 0, batch: int = 16) -> np.ndarray:
    """(n, 128, 128, 3) u8; picture i starts from noise of seed + i."""
    pictures = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
        with torch.no_grad():
            images = pipe(part, num_inference_steps=steps, guidance_scale=guidance, generator=generators).images
        pictures += [np.asarray(image) for image in images]
    return np.stack(pictures)


def accuracy(options) -> None:
    rng, shapes = random.Random(20_26), templates()
    scenes = [data.random_scene(rng) for _ in range(options.count)]
    pipe = pipeline(options.model)
    pictures = generate(pipe, [data.caption(s) for s in scenes], options.steps, options.guidance, options.seed)
    passed, objects, good_shapes, good_colours, good_backgrounds = 0, 0, 0, 0, 0
    for scene, picture in zip(scenes, pictures):
        wrong = judge(picture, scene, shapes)
        passed += not wrong
        objects += len(scene["objects"])
        good_shapes += len(scene["objects"]) - sum("overlaps" in w or w.startswith("no ") for w in wrong)
        good_colours += len(scene["objects"]) - sum(" is " in w or w.startswith("no ") for w in wrong)
        good_backgrounds += not any(w.startswith("background") for w in wrong)
        if wrong:
            print(f"{data.caption(scene)}: {'; '.join(wrong)}")
    n = len(scenes)
    print(f"steps {options.steps} guidance {options.guidance}: prompts {passed}/{n} = {passed / n:.1%}, shapes "
          f"{good_shapes}/{objects} = {good_shapes / objects:.1%}, colours {good_colours}/{objects} = "
          f"{good_colours / objects:.1%}, backgrounds {good_backgrounds}/{n} = {good_backgrounds / n:.1%}")
    if options.to:
        columns = 12
        rows = [np.concatenate(list(pictures[i : i + columns]), 1) for i in range(0, n - n % columns, columns)]
        Image.fromarray(np.concatenate(rows, 0)).save(options.to)
    start = time.time()
    generate(pipe, ["a red circle on a white background"], 20, 5.0)
    print(f"one 20-step picture: {time.time() - start:.2f} s on {torch.get_num_threads()} threads")


def sheet(options) -> None:
    pictures = generate(pipeline(options.model), SHEET, options.steps, options.guidance, options.seed)
    columns, text = 5, 26
    rows = -(-len(SHEET) // columns)
    page = Image.new("RGB", (columns * (data.SIZE + 8), rows * (data.SIZE + text + 8)), (236, 236, 236))
    pen = ImageDraw.Draw(page)
    for index, (prompt, picture) in enumerate(zip(SHEET, pictures)):
        x, y = (index % columns) * (data.SIZE + 8) + 4, (index // columns) * (data.SIZE + text + 8) + 4
        page.paste(Image.fromarray(picture), (x, y))
        lines, line = [], ""
        for word in prompt.split():
            if pen.textlength(f"{line} {word}") > data.SIZE:
                lines.append(line)
                line = word
            else:
                line = f"{line} {word}".strip()
        pen.multiline_text((x, y + data.SIZE + 1), "\n".join([*lines, line][:2]), (30, 30, 30), spacing=1)
    page.save(options.to or MODEL / "sheet.png", optimize=True)


def write_templates(options) -> None:
    rows = {s: ["".join(".#"[int(v)] for v in row) for row in t] for s, t in templates().items()}
    target = {
        "palette": data.PALETTE, "points": POINTS, "least_overlap": LEAST_OVERLAP, "frame_px": 3, "templates": rows,
    }
    (options.to or MODEL / "shapes.json").write_text(json.dumps(target, indent=1) + "\n")


def goldens(options) -> None:
    """Initial latents, and for 4 and 20 DDIM steps at guidance 1 and 5 the final latents and u8 pictures."""
    options.to.mkdir(parents=True, exist_ok=True)
    pipe = pipeline(options.model)
    initial = torch.randn(len(GOLDEN), 4, data.GRID, data.GRID, generator=torch.Generator().manual_seed(17))
    tensors, cases, rows = {"initial": initial}, [], []
    for steps in (4, 20):
        for guidance in (1.0, 5.0):
            name = f"steps{steps}_guidance{guidance:.0f}"
            kept = []
            for index, prompt in enumerate(GOLDEN):
                with torch.no_grad():
                    last = pipe(prompt, num_inference_steps=steps, guidance_scale=guidance, output_type="latent",
                                latents=initial[index : index + 1].clone()).images
                    decoded = pipe.vae.decode(last / pipe.vae.config.scaling_factor).sample
                kept.append((last[0], ((decoded[0] / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)))
            tensors[f"latents.{name}"] = torch.stack([k[0] for k in kept]).contiguous()
            rows.append(np.concatenate([k[1].permute(1, 2, 0).numpy() for k in kept], 1))
            cases.append({"name": name, "steps": steps, "guidance": guidance, "row": len(rows) - 1})
    save_file(tensors, options.to / "latents.safetensors")
    (options.to / "latents.safetensors").chmod(0o644)
    Image.fromarray(np.concatenate(rows, 0)).save(options.to / "pictures.png", optimize=True)
    (options.to / "golden.json").write_text(json.dumps({
        "prompts": GOLDEN, "negative_prompt": "", "scheduler": "DDIMScheduler as in scheduler_config.json", "eta": 0.0,
        "pictures": "pictures.png: a row of 128 px pictures per case, a column per prompt", "cases": cases,
    }, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["accuracy", "sheet", "templates", "goldens"])
    parser.add_argument("--model", type=pathlib.Path, default=MODEL)
    parser.add_argument("--count", type=int, default=96)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--to", type=pathlib.Path, help="where to write; accuracy writes a picture of all results there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    {"accuracy": accuracy, "sheet": sheet, "templates": write_templates, "goldens": goldens}[options.task](options)


if __name__ == "__main__":
    main()
