"""Writes a GGUF file of random weights with layers 2048 wide, for speed alone: shapes of Llama-3.2-1B, the vocabulary and
tokenizer of another GGUF file. Quantise it with llama.cpp's llama-quantize. Needs the Python packages numpy and gguf.

    python3 benches/peers/random_gguf.py TOKENIZER.gguf random-f16.gguf && llama-quantize random-f16.gguf random-q4_k.gguf Q4_K_M
"""

import sys

import gguf
import numpy as np

WIDTH, FEED_FORWARD, LAYERS, HEADS, KV_HEADS = 2048, 8192, 16, 32, 8


def main(source, target):
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if field.name.startswith("tokenizer."):
            kind = field.types[0]
            sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub_type=sub)
    vocabulary = len(reader.get_field("tokenizer.ggml.tokens").contents())
    writer.add_block_count(LAYERS)
    writer.add_context_length(8192)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(500000.0)
    writer.add_vocab_size(vocabulary)
    rng = np.random.default_rng(1)

    def matrix(rows, columns):
        return (rng.standard_normal((rows, columns), dtype=np.float32) / columns**0.5).astype(np.float16)

    kv = WIDTH * KV_HEADS // HEADS
    # Speed does not depend on the numbers: all layers have the same.
    layer = {
        "attn_q": matrix(WIDTH, WIDTH),
        "attn_k": matrix(kv, WIDTH),
        "attn_v": matrix(kv, WIDTH),
        "attn_output": matrix(WIDTH, WIDTH),
        "ffn_gate": matrix(FEED_FORWARD, WIDTH),
        "ffn_up": matrix(FEED_FORWARD, WIDTH),
        "ffn_down": matrix(WIDTH, FEED_FORWARD),
    }
    ones = np.ones(WIDTH, dtype=np.float32)
    writer.add_tensor("token_embd.weight", matrix(vocabulary, WIDTH))
    writer.add_tensor("output_norm.weight", ones)
    for index in range(LAYERS):
        for name, values in layer.items():
            writer.add_tensor(f"blk.{index}.{name}.weight", values)
        writer.add_tensor(f"blk.{index}.attn_norm.weight", ones)
        writer.add_tensor(f"blk.{index}.ffn_norm.weight", ones)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
