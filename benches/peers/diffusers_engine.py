"""Denoising steps, decodings, encodings and prompts of a diffusers folder, measured with diffusers as `girandole bench
engine` measures them: the same rows, sizes and units, samples within a time for each point, the first not counted.

    python3 benches/peers/diffusers_engine.py models/tiny-sd --rows 1,4 --threads 2
    python3 benches/peers/diffusers_engine.py benches/shapes/sd15 --dummy --rows 1 --size 512x512

With --dummy, weights are random and need not be there. Needs torch, diffusers and transformers. Guidance is off, and a
step is the UNet alone, without the scheduler's own arithmetic, which ours has (a few additions for each latent).
"""

import argparse
import json
import pathlib
import resource
import statistics
import time

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

TEXT_CLASSES = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
# For models with the second conditioning: the size that the picture had, where it was cropped, its size.
SIZE_IDS = 6


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--rows", default="1,4", help="rows of the forward pass")
    parser.add_argument("--size", action="append", default=[], help="WIDTHxHEIGHT in pixels; the model's own if none")
    parser.add_argument("--dummy", action="store_true", help="random weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="f32", choices=["f32", "f16", "bf16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=32, help="the most samples of a point")
    parser.add_argument("--point-seconds", type=float, default=20)
    parser.add_argument("--channels-last", action="store_true", help="memory format of the UNet and the autoencoder")
    return parser.parse_args()


class Bench:
    def __init__(self, args):
        self.args = args
        self.dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[args.dtype]
        start = time.perf_counter()
        self.unet = self.component(UNet2DConditionModel, "unet")
        self.vae = self.component(AutoencoderKL, "vae")
        self.encoders = [
            self.text_encoder(kind, name) for name, kind in TEXT_CLASSES.items() if (args.folder / name).is_dir()
        ]
        self.synchronize()
        self.load_seconds = time.perf_counter() - start

    def component(self, kind, name):
        if self.args.dummy:
            model = kind.from_config(kind.load_config(self.args.folder / name))
        else:
            model = kind.from_pretrained(self.args.folder / name)
        model = model.to(self.args.device, self.dtype).eval()
        return model.to(memory_format=torch.channels_last) if self.args.channels_last else model

    def text_encoder(self, kind, name):
        folder = self.args.folder / name
        if self.args.dummy:
            model = kind(CLIPTextConfig.from_pretrained(folder))
        else:
            model = kind.from_pretrained(folder)
        return model.to(self.args.device, self.dtype).eval()

    def synchronize(self):
        if self.args.device.startswith("cuda"):
            torch.cuda.synchronize()

    def random(self, *shape):
        return torch.randn(shape, device=self.args.device, dtype=self.dtype)

    def point(self, run):
        samples, start = [], time.perf_counter()
        while True:
            before = time.perf_counter()
            run()
            self.synchronize()
            now = time.perf_counter()
            samples.append(now - before)
            used = now - start
            if len(samples) > self.args.steps or used + used / len(samples) > self.args.point_seconds:
                break
        counted = samples[1:] or samples
        spread = {"median": statistics.median(counted), "min": min(counted), "max": max(counted)}
        return {"seconds": spread, "samples": len(counted), "warmed_up": len(samples) > 1}

    def prompt(self):
        def read():
            for encoder in self.encoders:
                config = encoder.config
                ids = torch.randint(0, config.vocab_size, (1, config.max_position_embeddings))
                encoder(ids.to(self.args.device), output_hidden_states=True)

        return self.point(read)

    def size(self, width, height):
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        channels = self.unet.config.in_channels
        latent = (height // factor, width // factor)
        found = {"width": width, "height": height, "steps": []}
        for rows in map(int, self.args.rows.split(",")):
            x = self.random(rows, channels, *latent)
            context = self.random(rows, 77, self.unet.config.cross_attention_dim)
            times = torch.full((rows,), 500, device=self.args.device)
            added = None
            if self.unet.config.addition_embed_type == "text_time":
                config = self.unet.config
                pooled = config.projection_class_embeddings_input_dim - SIZE_IDS * config.addition_time_embed_dim
                added = {"text_embeds": self.random(rows, pooled), "time_ids": self.random(rows, SIZE_IDS)}
            level = self.point(lambda: self.unet(x, times, context, added_cond_kwargs=added))
            level["row_steps_per_second"] = rows / level["seconds"]["median"]
            found["steps"].append({"rows": rows, **level})
        x = self.random(1, self.vae.config.latent_channels, *latent)
        found["decode"] = self.point(lambda: self.vae.decode(x))
        pixels = self.random(1, 3, height, width)
        found["encode"] = self.point(lambda: self.vae.encode(pixels))
        return found

    def own_size(self):
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        edge = self.unet.config.sample_size * factor
        return f"{edge}x{edge}"


@torch.inference_mode()
def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    bench = Bench(args)
    sizes = [tuple(map(int, size.split("x"))) for size in args.size or [bench.own_size()]]
    report = {
        "torch": torch.__version__,
        "setup": {"folder": str(args.folder), "device": args.device, "dtype": args.dtype, "threads": args.threads},
        "load": {"seconds": bench.load_seconds},
        "text": bench.prompt(),
        "sizes": [bench.size(*size) for size in sizes],
        "memory": {"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024},
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
