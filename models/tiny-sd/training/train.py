"""Trains the bundled picture model: text encoder, UNet and VAE, in stages that each resume from their checkpoint.

    python train.py text --minutes 4          # caption -> attributes; the encoder is frozen afterwards
    python train.py unet --minutes 55         # noise prediction on guide latents
    python train.py vae  --minutes 20         # decoder and encoder of the guide latents; needs no other stage
    python train.py export                    # f16 diffusers folder beside this one, preview.json

`--work` holds the checkpoints. See README for the larger settings on a GPU.
"""

import argparse
import json
import math
import os
import pathlib
import random
import time

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import data

MODEL = pathlib.Path(__file__).resolve().parent.parent
# The decoder sees latents of about this spread; a power of two, so that the division is exact in f16.
SCALING = 0.25
CONTEXT = 96
DROPOUT = 0.12
# Set by torchrun.
RANK, RANKS = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


# --- networks ---------------------------------------------------------------------------------------------------------


def tokenizer() -> CLIPTokenizer:
    if not (MODEL / "tokenizer" / "vocab.json").exists():
        data.write_tokenizer(MODEL / "tokenizer")
    return CLIPTokenizer.from_pretrained(MODEL / "tokenizer")


def text_encoder(tokens: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokens), hidden_size=CONTEXT, intermediate_size=4 * CONTEXT, projection_dim=CONTEXT,
        num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=77, hidden_act="quick_gelu",
        bos_token_id=tokens.bos_token_id, eos_token_id=tokens.eos_token_id, pad_token_id=tokens.pad_token_id,
    ))


def unet(channels: list[int]) -> UNet2DConditionModel:
    deep = len(channels) - 1
    return UNet2DConditionModel(
        sample_size=data.GRID, in_channels=4, out_channels=4, block_out_channels=tuple(channels), layers_per_block=1,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * deep,
        up_block_types=("CrossAttnUpBlock2D",) * deep + ("UpBlock2D",),
        cross_attention_dim=CONTEXT, attention_head_dim=4, norm_num_groups=32,
    )


def vae(channels: list[int]) -> AutoencoderKL:
    return AutoencoderKL(
        sample_size=data.SIZE, in_channels=3, out_channels=3, latent_channels=4, layers_per_block=1,
        block_out_channels=tuple(channels), norm_num_groups=16, scaling_factor=SCALING,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )


def schedule() -> DDIMScheduler:
    return DDIMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="epsilon",
    )


# --- training loop ----------------------------------------------------------------------------------------------------


def average_gradients(module: torch.nn.Module) -> None:
    """Over the processes of torchrun. On a busy CPU two processes of one thread beat one process of two."""
    if RANKS == 1:
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    torch.distributed.all_reduce(flat)
    flat /= RANKS
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients])):
        gradient.copy_(part.view_as(gradient))


class Average:
    """Exponential moving average of a module's parameters, short at first."""

    def __init__(self, module: torch.nn.Module, decay: float):
        self.decay, self.count = decay, 0
        self.values = {name: value.detach().clone() for name, value in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: torch.nn.Module) -> None:
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        names = list(self.values)
        parameters = dict(module.named_parameters())
        torch._foreach_lerp_([self.values[n] for n in names], [parameters[n] for n in names], 1 - decay)


class Stage:
    """Time-boxed optimisation of one module: warm-up, cosine decay by active time, average, checkpoint, log line."""

    def __init__(self, name: str, module: torch.nn.Module, options):
        self.name, self.module, self.options = name, module, options
        self.average = Average(module, options.average)
        self.optimiser = torch.optim.AdamW(module.parameters(), lr=options.rate, betas=(0.9, 0.99), weight_decay=0.01)
        self.path = options.work / f"{name}.pt"
        self.step, self.active, self.samples, self.losses = 0, 0.0, 0, []
        if self.path.exists() and not options.fresh:
            state = torch.load(self.path, map_location=options.device)
            module.load_state_dict(state["module"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.average.values, self.average.count = state["average"], state["count"]
            self.step, self.active, self.samples = state["step"], state["active"], state["samples"]
            if options.restart_clock:
                self.active = 0.0
        self.saved = self.last = time.time()

    def progress(self) -> float:
        return self.active / (60 * self.options.minutes)

    def more(self) -> bool:
        done = torch.tensor(float(self.progress() >= 1.0))
        if RANKS > 1:
            torch.distributed.broadcast(done, 0)
        return done.item() == 0.0

    def update(self, loss: torch.Tensor, samples: int) -> None:
        warm = min(1.0, (self.step + 1) / 100)
        rate = self.options.rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, self.progress()))))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(self.module)
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimiser.step()
        self.average.update(self.module)
        self.step += 1
        self.samples += samples * RANKS
        self.losses.append(float(loss.detach()))
        # A pause of the whole process (another's measurement) does not count.
        now = time.time()
        self.active += min(now - self.last, 20.0)
        self.last = now
        if self.step % 50 == 0 and RANK == 0:
            print(f"{self.name} step {self.step} samples {self.samples} active {self.active / 60:.1f} min "
                  f"rate {rate:.2e} loss {np.mean(self.losses[-50:]):.5f}", flush=True)
        if RANK == 0 and (now - self.saved > self.options.save_every or self.progress() >= 1.0):
            self.save()

    def save(self) -> None:
        self.saved = time.time()
        state = dict(module=self.module.state_dict(), optimiser=self.optimiser.state_dict(),
                     average=self.average.values, count=self.average.count, step=self.step, active=self.active,
                     samples=self.samples)
        part = self.path.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.path)


def load_average(module: torch.nn.Module, path: pathlib.Path) -> torch.nn.Module:
    """The averaged weights of a checkpoint, ready to use."""
    state = torch.load(path, map_location="cpu")
    module.load_state_dict({**state["module"], **state["average"]})
    return module.eval().requires_grad_(False)


# --- stages -----------------------------------------------------------------------------------------------------------


def train_text(options) -> None:
    """Teaches every position from the end token on to hold the whole scene, so that cross-attention finds it anywhere."""
    tokens = tokenizer()
    encoder = text_encoder(tokens)
    heads = torch.nn.Linear(CONTEXT, sum(data.ATTRIBUTES.values()))
    module = torch.nn.ModuleDict({"encoder": encoder, "heads": heads}).to(options.device)
    stage, rng = Stage("text", module, options), random.Random(int(time.time()) + RANK)
    # Entries that are no whole word of the grammar: now and then one is slipped in, to be ignored.
    noise_entries = 512
    while stage.more():
        scenes = [None if rng.random() < 0.03 else data.random_scene(rng) for _ in range(options.batch)]
        rows = [tokens(data.caption(s, rng) if s else "").input_ids for s in scenes]
        for row in rows:
            for _ in range(rng.choice([0, 0, 0, 0, 1, 2, 4])):
                row.insert(rng.randrange(1, len(row)), rng.randrange(noise_entries))
        # The states after the end are all alike in kind; most steps look at the first few only, to save time.
        length = 77 if rng.random() < 0.25 else 32
        ends = torch.tensor([len(row) - 1 for row in rows])
        ids = torch.tensor([(row + [tokens.eos_token_id] * 77)[:length] for row in rows]).to(options.device)
        states = encoder(ids).last_hidden_state
        late = (torch.arange(length)[None] >= ends[:, None]).to(options.device)
        logits = heads(states)[late]
        targets = torch.tensor([data.labels(s) for s in scenes])[:, None].expand(-1, length, -1).to(options.device)[late]
        parts = logits.split(list(data.ATTRIBUTES.values()), -1)
        loss = sum(F.cross_entropy(part, targets[:, i]) for i, part in enumerate(parts))
        stage.update(loss, options.batch)
        if stage.step % 200 == 0:
            wrong = [(part.argmax(-1) != targets[:, i]).float().mean().item() for i, part in enumerate(parts)]
            print("wrong", " ".join(f"{n} {w:.4f}" for n, w in zip(data.ATTRIBUTES, wrong)), flush=True)


def frozen_text(options) -> CLIPTextModel:
    encoder = text_encoder(tokenizer())
    module = torch.nn.ModuleDict({"encoder": encoder, "heads": torch.nn.Linear(CONTEXT, sum(data.ATTRIBUTES.values()))})
    load_average(module, options.work / "text.pt")
    return encoder


def train_unet(options) -> None:
    """Noise prediction on guide latents, captions dropped with DROPOUT so that guidance works.

    An error in the noise at signal-to-noise ratio r counts r^-1/2, between the plain loss and an error in the picture:
    few samples can be spent, and what colour and shape a picture has is decided while r is small.
    """
    tokens, encoder = tokenizer(), frozen_text(options).to(options.device)
    torch.manual_seed(0)
    network = unet(options.channels).to(options.device)
    torch.manual_seed(int(time.time()) + RANK)
    stage = Stage("unet", network, options)
    forward = torch.compile(network) if options.compile else network
    alphas = schedule().alphas_cumprod.to(options.device)
    bank, rng = data.GeometryBank(options.variants), random.Random(int(time.time()) + RANK)
    while stage.more():
        scenes = [data.random_scene(rng) for _ in range(options.batch)]
        words = ["" if rng.random() < DROPOUT else data.caption(s, rng) for s in scenes]
        clean = torch.from_numpy(np.stack([bank.latents(s, rng) for s in scenes])).to(options.device)
        ids = tokens(words, padding="max_length", return_tensors="pt").input_ids.to(options.device)
        with torch.no_grad():
            context = encoder(ids).last_hidden_state
        # Stratified over the batch, so that its mean loss is steady.
        steps = (torch.arange(options.batch) + torch.rand(options.batch)) / options.batch
        steps = (steps * 1000).long().clamp(0, 999).to(options.device)
        alpha = alphas[steps].view(-1, 1, 1, 1)
        noise = torch.randn_like(clean)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        with torch.autocast(options.device, torch.bfloat16, enabled=options.bf16):
            predicted = forward(noisy, steps, context).sample
        weight = ((1 - alpha) / alpha).sqrt()
        loss = (weight * (predicted.float() - noise).pow(2)).mean()
        stage.update(loss, options.batch)


def train_vae(options) -> None:
    """The encoder learns to give the guide latents, the decoder to draw sharply from them, each on its own.

    Small windows of the drawings, now and then a whole one: the same pixels per second, more different outlines.
    The decoder is given noisy latents, since a UNet's are never exact.
    """
    network = vae(options.channels).to(options.device)
    stage = Stage("vae", network, options)
    rng = random.Random(int(time.time()) + RANK)
    whole_every = 8
    while stage.more():
        whole = stage.step % whole_every == 0
        count, window = (options.batch // 4, 128) if whole else (options.batch, 64)
        pictures = []
        for _ in range(-(-count // 2)):
            picture = data.draw(data.random_scene(rng), rng)
            for _ in range(2):
                x, y = rng.randrange(0, data.SIZE - window + 1), rng.randrange(0, data.SIZE - window + 1)
                pictures.append(picture[y : y + window, x : x + window])
                picture = picture[:, ::-1]
        batch = np.stack(pictures[:count])
        target = torch.from_numpy(batch / 127.5 - 1.0).permute(0, 3, 1, 2).contiguous().to(options.device)
        latent = torch.from_numpy(data.guide(batch)).to(options.device)
        spread = 0.1 * torch.rand(count, 1, 1, 1, device=options.device)
        with torch.autocast(options.device, torch.bfloat16, enabled=options.bf16):
            drawn = network.decode((latent + spread * torch.randn_like(latent)) / SCALING).sample.float()
        error = drawn - target
        edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
        loss = error.abs().mean() + 2 * error.pow(2).mean() + edges
        # The encoder has the easier task: every third step is enough for it.
        if stage.step % 3 == 0:
            with torch.autocast(options.device, torch.bfloat16, enabled=options.bf16):
                moments = network.quant_conv(network.encoder(target)).float()
            mean, log_variance = moments.chunk(2, 1)
            gap = mean * SCALING - latent
            loss = loss + gap.pow(2).mean() + gap.abs().mean() + 1e-3 * (log_variance + 6.0).pow(2).mean()
        stage.update(loss, count)
        if stage.step % 50 == 0:
            print(f"psnr {10 * math.log10(4 / error.pow(2).mean().item()):.1f} dB", flush=True)


# --- export -----------------------------------------------------------------------------------------------------------


def export(options) -> None:
    """Writes the averaged weights as f16 and the preview map; the sum of the files is printed."""
    tokens = tokenizer()
    encoder = frozen_text(options)
    network = load_average(unet(options.channels), options.work / "unet.pt")
    coder = load_average(vae(options.vae_channels), options.work / "vae.pt")
    for module, name in ((encoder, "text_encoder"), (network, "unet"), (coder, "vae")):
        module.half().save_pretrained(options.out / name, safe_serialization=True)
        for file in (options.out / name).glob("*.safetensors"):
            tensors = load_file(file)
            if module is encoder:
                # As in Stable Diffusion's own files; transformers 5 leaves the prefix out and reads both.
                tensors = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in tensors.items()}
            # Bytes of their own, so that files open for reading elsewhere keep theirs.
            file.unlink()
            save_file(tensors, file, metadata={"format": "pt"})
            file.chmod(0o644)
    if options.out != MODEL:
        data.write_tokenizer(options.out / "tokenizer")
    schedule().save_pretrained(options.out / "scheduler")
    (options.out / "model_index.json").write_text(json.dumps({
        "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1", "feature_extractor": [None, None],
        "requires_safety_checker": False, "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }, indent=2) + "\n")

    # Least squares: a cell's mean colour in -1..1 from its scaled latents, over drawings of random scenes.
    rng = random.Random(11)
    pictures = np.stack([data.draw(data.random_scene(rng), rng) for _ in range(256)])
    latents = np.moveaxis(data.guide(pictures), 1, -1).reshape(-1, 4)
    cells = pictures.reshape(256, data.GRID, data.CELL, data.GRID, data.CELL, 3).mean((2, 4)).reshape(-1, 3) / 127.5 - 1
    solution, *_ = np.linalg.lstsq(np.c_[latents, np.ones(len(latents))], cells, rcond=None)
    rest = np.c_[latents, np.ones(len(latents))] @ solution - cells
    (options.out / "preview.json").write_text(json.dumps({
        "description": "rgb in -1..1 per latent pixel = bias + sum over channels of latent * matrix row; the latents are "
                       "the UNet's (VAE latents times scaling_factor)",
        "matrix": solution[:4].round(5).tolist(), "bias": solution[4].round(5).tolist(),
        "root_mean_square_error": round(float(np.sqrt((rest**2).mean())), 5),
    }, indent=2) + "\n")
    size = sum(p.stat().st_size for p in options.out.rglob("*") if p.is_file())
    print(f"{size / 1e6:.2f} MB in all; parameters: " + ", ".join(
        f"{name} {sum(p.numel() for p in m.parameters()):,}"
        for m, name in ((encoder, "text"), (network, "unet"), (coder, "vae"))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["text", "unet", "vae", "export"])
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("tiny-sd-work"))
    parser.add_argument("--out", type=pathlib.Path, default=MODEL, help="export: the folder to write")
    parser.add_argument("--minutes", type=float, default=10.0, help="active time of the stage; the decay follows it")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--average", type=float, default=0.998, help="decay of the moving average")
    parser.add_argument("--channels", type=int, nargs="+")
    parser.add_argument("--vae-channels", type=int, nargs=4, default=[32, 32, 64, 64])
    parser.add_argument("--variants", type=int, default=64, help="placements per shape, size and position")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-every", type=float, default=240.0, help="seconds between checkpoints")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--fresh", action="store_true", help="ignore the stage's checkpoint")
    parser.add_argument("--restart-clock", action="store_true", help="resume the weights, but begin a new decay")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    if RANKS > 1:
        torch.distributed.init_process_group("nccl" if options.device == "cuda" else "gloo")
    if options.channels is None:
        options.channels = options.vae_channels if options.stage == "vae" else [64, 64, 128]
    {"text": train_text, "unet": train_unet, "vae": train_vae, "export": export}[options.stage](options)


if __name__ == "__main__":
    main()
