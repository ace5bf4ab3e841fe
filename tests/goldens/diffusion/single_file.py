"""How the tiny models would lie in single-file checkpoints, in the names of the original code: `single_file.json`.

    {model: {name: "component/tensor" or a list of three of them}}   a list is put together along the first axis;
                                                                     OpenCLIP's text_projection is transposed

The renaming is written out here block by block, as the original code numbers them, and checked by diffusers' own conversion:
converted back, every tensor must be the folder's, bit for bit. With a folder as argument

    python -m diffusion.single_file FOLDER FILE      (in tests/goldens)

any diffusers folder of Stable Diffusion 1, 2 or XL becomes a file.
"""

import json
import pathlib
import sys

import torch
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file

NAMES = ["sd15-tiny", "sd21-tiny", "sdxl-tiny"]
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
CLIP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}


def renamed(tensors, table):
    """What `table` (prefix -> prefix) makes of the tensors, and those that it leaves."""
    found, left = {}, {}
    for key, tensor in tensors.items():
        for prefix, other in table.items():
            if key.startswith(prefix + "."):
                found[other + key[len(prefix) :]] = tensor
                break
        else:
            left[key] = tensor
    return found, left


def unet(tensors, config):
    table = dict(ENDS)
    resnet = lambda here, there: table.update({f"{here}.{new}": f"{there}.{old}" for new, old in RESNET.items()})
    layers, count = config["layers_per_block"], len(config["block_out_channels"])
    block = 0
    for level in range(count):
        for layer in range(layers):
            block += 1
            resnet(f"down_blocks.{level}.resnets.{layer}", f"input_blocks.{block}.0")
            table[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{block}.1"
        if level + 1 < count:
            block += 1
            table[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{block}.0.op"
    resnet("mid_block.resnets.0", "middle_block.0")
    table["mid_block.attentions.0"] = "middle_block.1"
    resnet("mid_block.resnets.1", "middle_block.2")
    block = 0
    for level in range(count):
        attends = config["up_block_types"][level] == "CrossAttnUpBlock2D"
        for layer in range(layers + 1):
            resnet(f"up_blocks.{level}.resnets.{layer}", f"output_blocks.{block}.0")
            table[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{block}.1"
            block += 1
        table[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{block - 1}.{1 + attends}.conv"
    found, left = renamed(tensors, table)
    assert not left, sorted(left)
    return {f"model.diffusion_model.{key}": tensor for key, tensor in found.items()}


def modern(tensors):
    """The attention's names of today."""
    for old, new in OLD_ATTENTION.items():
        tensors = {key.replace(f"attentions.0.{old}.", f"attentions.0.{new}."): value for key, value in tensors.items()}
    return tensors


def vae(tensors, config):
    count = len(config["block_out_channels"])
    table = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for half, way, other in (("encoder", "down", None), ("decoder", "up", None)):
        for end in ("conv_in", "conv_out"):
            table[f"{half}.{end}"] = f"{half}.{end}"
        table[f"{half}.conv_norm_out"] = f"{half}.norm_out"
        for layer in (0, 1):
            table[f"{half}.mid_block.resnets.{layer}"] = f"{half}.mid.block_{layer + 1}"
        for new, old in VAE_ATTENTION.items():
            table[f"{half}.mid_block.attentions.0.{new}"] = f"{half}.mid.attn_1.{old}"
        for level in range(count):
            there = level if half == "encoder" else count - 1 - level
            sampler = "downsample" if half == "encoder" else "upsample"
            for layer in range(config["layers_per_block"] + 1):
                table[f"{half}.{way}_blocks.{level}.resnets.{layer}"] = f"{half}.{way}.{there}.block.{layer}"
            table[f"{half}.{way}_blocks.{level}.{sampler}rs.0.conv"] = f"{half}.{way}.{there}.{sampler}.conv"
    found, left = renamed(modern(tensors), table)
    assert not left, sorted(left)
    found = {key.replace("conv_shortcut", "nin_shortcut"): tensor for key, tensor in found.items()}
    # Convolutions over single pixels there.
    point = lambda key, tensor: tensor[:, :, None, None] if ".mid.attn_1." in key and tensor.dim() == 2 else tensor
    return {f"first_stage_model.{key}": point(key, tensor) for key, tensor in found.items()}


def bare(tensors):
    return {key.removeprefix("text_model."): tensor for key, tensor in tensors.items() if "position_ids" not in key}


def openai_clip(tensors, prefix):
    return {f"{prefix}transformer.text_model.{key}": tensor for key, tensor in bare(tensors).items()}


def open_clip(tensors, prefix):
    tensors = bare(tensors)
    found = {
        "token_embedding.weight": tensors.pop("embeddings.token_embedding.weight"),
        "positional_embedding": tensors.pop("embeddings.position_embedding.weight"),
        "ln_final.weight": tensors.pop("final_layer_norm.weight"),
        "ln_final.bias": tensors.pop("final_layer_norm.bias"),
    }
    if "text_projection.weight" in tensors:
        found["text_projection"] = tensors.pop("text_projection.weight").T
    layers = {int(key.split(".")[2]) for key in tensors}
    for layer in sorted(layers):
        here, there = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for end in ("weight", "bias"):
            parts = [tensors.pop(f"{here}.self_attn.{name}_proj.{end}") for name in "qkv"]
            found[f"{there}.attn.in_proj_{end}"] = torch.cat(parts)
            found[f"{there}.attn.out_proj.{end}"] = tensors.pop(f"{here}.self_attn.out_proj.{end}")
            for new, old in CLIP.items():
                found[f"{there}.{old}.{end}"] = tensors.pop(f"{here}.{new}.{end}")
    assert not tensors, sorted(tensors)
    return {f"{prefix}{key}": tensor for key, tensor in found.items()}


def traced(folder):
    """The same, with a number for each tensor in place of its values: name -> where it comes from."""
    sources = []

    def numbered(folder, name):
        tensors, config = component(folder, name)
        marked = {}
        for key, tensor in tensors.items():
            marked[key] = torch.full(tensor.shape, len(sources), dtype=torch.int32)
            sources.append(f"{name}/{key}")
        return marked, config

    found = {}
    for key, tensor in single(folder, numbered).items():
        parts = [sources[number] for number in torch.unique_consecutive(tensor.flatten()).tolist()]
        found[key] = parts[0] if len(parts) == 1 else parts
    return found


def component(folder, name):
    files = list((folder / name).glob("*.safetensors"))
    assert len(files) == 1, files
    return load_file(files[0]), json.loads((folder / name / "config.json").read_text())


def single(folder, component=component):
    """All weights of a diffusers folder, in the original names."""
    found = {**unet(*component(folder, "unet")), **vae(*component(folder, "vae"))}
    text, _ = component(folder, "text_encoder")
    if (folder / "text_encoder_2").is_dir():
        second, _ = component(folder, "text_encoder_2")
        found.update(openai_clip(text, "conditioner.embedders.0."))
        found.update(open_clip(second, "conditioner.embedders.1.model."))
    elif component(folder, "unet")[1].get("use_linear_projection"):
        found.update(open_clip(text, "cond_stage_model.model."))
    else:
        found.update(openai_clip(text, "cond_stage_model."))
    return {key: tensor.contiguous() for key, tensor in found.items()}


def check(folder, checkpoint):
    """diffusers' conversion gives the folder's tensors back."""
    same = lambda found, wanted: all(torch.equal(found[key].reshape(wanted[key].shape), wanted[key]) for key in wanted)
    tensors, config = component(folder, "unet")
    assert same(single_file_utils.convert_ldm_unet_checkpoint(dict(checkpoint), config), tensors)
    tensors, config = component(folder, "vae")
    assert same(single_file_utils.convert_ldm_vae_checkpoint(dict(checkpoint), config), modern(tensors))
    prefixes = [key.split("ln_final.weight")[0] for key in checkpoint if key.endswith("ln_final.weight")]
    for prefix in prefixes:
        name = "text_encoder_2" if "embedders" in prefix else "text_encoder"
        tensors, config = component(folder, name)
        wanted = bare(tensors)
        size = config["hidden_size"]
        for layer in range(config["num_hidden_layers"]):
            for end in ("weight", "bias"):
                fused = checkpoint[f"{prefix}transformer.resblocks.{layer}.attn.in_proj_{end}"]
                for third, part in enumerate("qkv"):
                    piece = fused[third * size : (third + 1) * size]
                    assert torch.equal(piece, wanted[f"encoder.layers.{layer}.self_attn.{part}_proj.{end}"])


def make(home):
    tables = {}
    for name in NAMES:
        checkpoint = single(home / name)
        check(home / name, checkpoint)
        tables[name] = traced(home / name)
        assert tables[name].keys() == checkpoint.keys()
        print(name, len(checkpoint), "tensors")
    (home / "single_file.json").write_text(json.dumps(tables, separators=(",", ":")).replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    folder, file = map(pathlib.Path, sys.argv[1:])
    checkpoint = single(folder)
    check(folder, checkpoint)
    save_file(checkpoint, file)
