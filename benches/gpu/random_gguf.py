"""Writes a GGUF file of random weights, quantised, without any package: blocks of Q4_K, the head of Q6_K, norms of f32.

    python3 benches/gpu/random_gguf.py random.gguf

The shape is that of Llama-3.2-1B unless told otherwise; the vocabulary is bytes and tokens that no text has. Speed does
not depend on the numbers: all layers have the same. 0.7 GB.
"""

import argparse
import random
import struct

ALIGNMENT = 32
# What a block holds, and how many bytes it takes; the number that GGUF gives the format.
F32 = (1, 4, 0)
Q4_K = (256, 144, 12)
Q6_K = (256, 210, 14)
UINT32, FLOAT32, STRING, ARRAY, INT32 = 4, 6, 8, 9, 5
FIRST_OF_HALF = 0x1400  # 2^-10 in f16: blocks of small numbers


def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def entry(key, kind, value):
    if kind == STRING:
        data = text(value)
    elif kind == UINT32:
        data = struct.pack("<I", value)
    elif kind == FLOAT32:
        data = struct.pack("<f", value)
    else:
        raise ValueError(kind)
    return text(key) + struct.pack("<I", kind) + data


def array(key, kind, values):
    pack = text if kind == STRING else lambda value: struct.pack("<i", value)
    data = b"".join(pack(value) for value in values)
    return text(key) + struct.pack("<IIQ", ARRAY, kind, len(values)) + data


def vocabulary(size):
    """GPT-2's names of the 256 bytes, then tokens that cannot be read."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    names, extra = [], 0
    for byte in range(256):
        if byte in plain:
            names.append(chr(byte))
        else:
            names.append(chr(256 + extra))
            extra += 1
    return names + [f"<|{token}|>" for token in range(256, size)]


def blocks(rng, count, form):
    """`count` blocks: random but for their scales, which are small and finite. A few hundred are drawn and repeated."""
    _, size, kind = form
    drawn = bytearray(rng.randbytes(size * min(count, 509)))
    for start in range(0, len(drawn), size):
        if kind == Q4_K[2]:
            drawn[start : start + 4] = struct.pack("<HH", FIRST_OF_HALF, FIRST_OF_HALF)
        elif kind == Q6_K[2]:
            drawn[start + size - 2 : start + size] = struct.pack("<H", FIRST_OF_HALF // 4)
    whole, rest = divmod(count * size, len(drawn))
    return bytes(drawn) * whole + bytes(drawn[:rest])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--feed-forward", type=int, default=8192)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--head-width", type=int, default=64)
    parser.add_argument("--vocabulary", type=int, default=128256)
    args = parser.parse_args()
    width, wide = args.width, args.feed_forward
    heads = width // args.head_width
    kv_heads = max(heads // 4, 1)
    kv = kv_heads * args.head_width
    rng = random.Random(1)
    layer = {
        "attn_q": (width, width),
        "attn_k": (kv, width),
        "attn_v": (kv, width),
        "attn_output": (width, width),
        "ffn_gate": (wide, width),
        "ffn_up": (wide, width),
        "ffn_down": (width, wide),
    }
    tensors = [("token_embd.weight", (args.vocabulary, width), Q6_K), ("output_norm.weight", (width,), F32)]
    for index in range(args.layers):
        tensors += [(f"blk.{index}.{name}.weight", shape, Q4_K) for name, shape in layer.items()]
        tensors += [(f"blk.{index}.{name}_norm.weight", (width,), F32) for name in ("attn", "ffn")]

    metadata = [
        entry("general.architecture", STRING, "llama"),
        entry("general.alignment", UINT32, ALIGNMENT),
        entry("llama.block_count", UINT32, args.layers),
        entry("llama.context_length", UINT32, 8192),
        entry("llama.embedding_length", UINT32, width),
        entry("llama.feed_forward_length", UINT32, wide),
        entry("llama.attention.head_count", UINT32, heads),
        entry("llama.attention.head_count_kv", UINT32, kv_heads),
        entry("llama.attention.layer_norm_rms_epsilon", FLOAT32, 1e-5),
        entry("llama.rope.dimension_count", UINT32, args.head_width),
        entry("llama.rope.freq_base", FLOAT32, 500000.0),
        entry("tokenizer.ggml.model", STRING, "gpt2"),
        entry("tokenizer.ggml.pre", STRING, "llama-bpe"),
        array("tokenizer.ggml.tokens", STRING, vocabulary(args.vocabulary)),
        array("tokenizer.ggml.token_type", INT32, [1] * args.vocabulary),
        array("tokenizer.ggml.merges", STRING, []),
        entry("tokenizer.ggml.eos_token_id", UINT32, args.vocabulary - 1),
        entry("tokenizer.ggml.bos_token_id", UINT32, args.vocabulary - 2),
    ]
    infos, offset, sizes = b"", 0, []
    for name, shape, (in_block, block_bytes, kind) in tensors:
        elements = 1
        for edge in shape:
            elements *= edge
        # GGUF names the fastest dimension first.
        dims = b"".join(struct.pack("<Q", edge) for edge in reversed(shape))
        infos += text(name) + struct.pack("<I", len(shape)) + dims + struct.pack("<IQ", kind, offset)
        size = elements // in_block * block_bytes
        sizes.append(size)
        offset += size + -size % ALIGNMENT
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)) + b"".join(metadata) + infos
    made = {}
    with open(args.file, "wb") as file:
        file.write(head + b"\0" * (-len(head) % ALIGNMENT))
        for (_, shape, form), size in zip(tensors, sizes):
            if (shape, form) not in made:
                if form == F32:
                    made[shape, form] = struct.pack("<f", 1.0) * shape[0]
                else:
                    made[shape, form] = blocks(rng, size // form[1], form)
            file.write(made[shape, form] + b"\0" * (-size % ALIGNMENT))


if __name__ == "__main__":
    main()
