"""Makes the golden fixtures of the diffusion models with diffusers and transformers.

    python tests/goldens/make_diffusion_goldens.py [schedules|clip_tokens|components|pipelines|flow|flow_variants|tiny_decoder|single_file ..]

writes tests/fixtures/diffusion/. Each part is a module of tests/goldens/diffusion/, whose doc says what its files hold.
Made with diffusers 0.42.1, transformers 5.23.0 and torch 2.15.0, on the CPU with one thread.
"""

import importlib
import pathlib
import sys

import torch

GOLDENS = pathlib.Path(__file__).resolve().parent
HOME = GOLDENS.parent / "fixtures" / "diffusion"
PARTS = ["schedules", "clip_tokens", "components", "pipelines", "flow", "flow_variants", "tiny_decoder", "single_file"]

if __name__ == "__main__":
    sys.path.insert(0, str(GOLDENS))
    torch.set_num_threads(1)
    HOME.mkdir(parents=True, exist_ok=True)
    for part in sys.argv[1:] or PARTS:
        importlib.import_module(f"diffusion.{part}").make(HOME)
