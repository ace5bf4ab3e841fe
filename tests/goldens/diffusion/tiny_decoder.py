"""A very small AutoencoderTiny (TAESD) of random weights, and what its decoder makes of latents: `taesd-tiny/` and
`taesd-tiny.safetensors` with latents [2, 4, 6, 7], decoded [2, 3, 24, 28]. The folder's weights are f16, the golden is f64's.
"""

import copy

import torch
from diffusers import AutoencoderTiny
from safetensors.torch import save_file

from . import models


def make(home):
    decoder = AutoencoderTiny(
        encoder_block_out_channels=(8,),
        num_encoder_blocks=(1,),
        decoder_block_out_channels=(8, 8, 8),
        num_decoder_blocks=(2, 1, 1),
    )
    models.randomise(decoder, 77)
    decoder = decoder.half()
    decoder.save_pretrained(home / "taesd-tiny")
    generator = torch.Generator().manual_seed(78)
    latents = 2 * torch.randn(2, 4, 6, 7, generator=generator)
    with torch.no_grad():
        decoded = copy.deepcopy(decoder).double().decode(latents.double()).sample
    print("taesd-tiny", decoded.abs().max())
    save_file(dict(latents=latents, decoded=decoded.float()), home / "taesd-tiny.safetensors")
