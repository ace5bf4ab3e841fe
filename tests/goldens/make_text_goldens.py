"""Makes the golden fixtures of the text families with transformers.

For each family: a tiny seeded random model (config.json and safetensors) and, in golden.json, prompts with the
logits that transformers computes for them (all positions of each prompt, every LOGIT_STRIDE-th token of the
vocabulary) and its greedy continuations.

    python tests/goldens/make_text_goldens.py [FAMILY ..]

writes tests/fixtures/models/<family>/. Made with transformers 5.23.0 and torch 2.15.0; the logits are computed in f32
with eager attention, so other versions should agree to about 1e-5.
"""

import json
import pathlib
import sys

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

HOME = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "models"
LOGIT_STRIDE = 8
# Prompt length, new tokens, and how far the server lets rows grow.
CASES = [(1, 16, 256), (5, 16, 256), (40, 16, 256)]
# transformers takes the short factors until a sequence passes the original context; the decoder takes one set by how
# far rows may grow. The cases stay on one side of the border.
LONGROPE_CASES = [(5, 11, 16), (20, 16, 256), (40, 16, 256)]

SHAPE = dict(
    vocab_size=320,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)


def rope(kind="default", theta=10_000.0, **more):
    return dict(rope_type=kind, rope_theta=theta, **more)


# Name -> configuration, and how it is saved.
FAMILIES = {
    "llama": (LlamaConfig(**SHAPE, head_dim=12, rope_parameters=rope()), {}),
    "llama-tied-bias": (
        LlamaConfig(
            **SHAPE,
            head_dim=12,
            tie_word_embeddings=True,
            attention_bias=True,
            mlp_bias=True,
            rope_parameters=rope(),
        ),
        {},
    ),
    "llama3-rope": (
        LlamaConfig(
            **SHAPE,
            head_dim=12,
            rope_parameters=rope(
                "llama3",
                500.0,
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=32,
            ),
        ),
        {},
    ),
    "llama-linear-rope": (
        LlamaConfig(**SHAPE, head_dim=12, rope_parameters=rope("linear", factor=4.0)),
        {},
    ),
    "llama-yarn": (
        LlamaConfig(
            **SHAPE,
            head_dim=12,
            rope_parameters=rope(
                "yarn", 500.0, factor=4.0, original_max_position_embeddings=64
            ),
        ),
        {},
    ),
    "llama-bf16": (
        LlamaConfig(**SHAPE, head_dim=8, rope_parameters=rope()),
        {"dtype": torch.bfloat16},
    ),
    "mistral": (
        MistralConfig(
            **SHAPE, head_dim=12, sliding_window=7, rope_parameters=rope()
        ),
        {"max_shard_size": "60KB"},
    ),
    "qwen2": (Qwen2Config(**SHAPE, rope_parameters=rope(theta=1_000_000.0)), {}),
    "qwen3": (
        Qwen3Config(**SHAPE, head_dim=12, rope_parameters=rope(theta=1_000_000.0)),
        {},
    ),
    "phi3": (
        Phi3Config(**SHAPE, sliding_window=9, rope_parameters=rope(partial_rotary_factor=0.5)),
        {},
    ),
    "phi3-longrope": (
        Phi3Config(
            **SHAPE,
            original_max_position_embeddings=16,
            rope_parameters=rope(
                "longrope",
                short_factor=[1.0, 1.1, 1.3, 1.5],
                long_factor=[1.0, 2.0, 4.0, 6.0],
                original_max_position_embeddings=16,
            ),
        ),
        {"cases": LONGROPE_CASES},
    ),
    "gemma2": (
        Gemma2Config(
            **SHAPE,
            head_dim=12,
            query_pre_attn_scalar=20,
            sliding_window=5,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
            rope_parameters=rope(),
        ),
        {},
    ),
    "gemma3": (
        Gemma3TextConfig(
            **{**SHAPE, "num_hidden_layers": 3},
            head_dim=12,
            query_pre_attn_scalar=20,
            sliding_window=6,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters={
                "full_attention": rope("linear", 1_000_000.0, factor=8.0),
                "sliding_attention": rope(),
            },
        ),
        {},
    ),
}


def random_model(config, seed):
    """A model whose every weight matters: the usual initial values would hide errors."""
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)

    def normal(like, deviation):
        return torch.randn(like.shape, generator=generator) * deviation

    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.dim() == 1 and "norm" in name:
                # Gemma stores the distance from 1.
                centre = 0.0 if config.model_type.startswith("gemma") else 1.0
                parameter.copy_(centre + normal(parameter, 0.2))
            elif parameter.dim() == 1:
                parameter.copy_(normal(parameter, 0.3))
            else:
                parameter.copy_(normal(parameter, 1.5 / parameter.shape[1] ** 0.5))
    return model.eval()


def greedy(model, prompt, new_tokens):
    """Greedy tokens, each by a whole forward pass: no cache whose errors could creep in."""
    tokens = list(prompt)
    margin = float("inf")
    for _ in range(new_tokens):
        with torch.no_grad():
            logits = model(torch.tensor([tokens]), use_cache=False).logits[0, -1].float()
        best = logits.topk(2).values
        margin = min(margin, (best[0] - best[1]).item())
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :], margin


def make(name, seed):
    config, saving = FAMILIES[name]
    folder = HOME / name
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    model = random_model(config, seed)
    saving = dict(saving)
    shapes = saving.pop("cases", CASES)
    dtype = saving.pop("dtype", torch.float32)
    model.to(dtype).save_pretrained(folder, **saving)
    # What was saved, computed in f32 whatever it was saved in.
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    (folder / "generation_config.json").unlink(missing_ok=True)

    generator = torch.Generator().manual_seed(seed)
    cases = []
    for length, new_tokens, served_context in shapes:
        prompt = torch.randint(0, SHAPE["vocab_size"], (length,), generator=generator)
        with torch.no_grad():
            logits = model(prompt[None], use_cache=False).logits[0].float()
        new, margin = greedy(model, prompt.tolist(), new_tokens)
        cases.append(
            {
                "served_context": served_context,
                "prompt": prompt.tolist(),
                "logits": [
                    [round(value, 6) for value in row[::LOGIT_STRIDE].tolist()] for row in logits
                ],
                "greedy": new,
                # How clear the closest of the greedy choices was.
                "greedy_margin": round(margin, 6),
            }
        )
    golden = {"logit_stride": LOGIT_STRIDE, "cases": cases}
    (folder / "golden.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")
    size = sum(file.stat().st_size for file in folder.iterdir())
    margins = [case["greedy_margin"] for case in cases]
    print(f"{name}: {size // 1000} kB, closest greedy choices {margins}")


if __name__ == "__main__":
    wanted = sys.argv[1:] or list(FAMILIES)
    for name in wanted:
        make(name, seed=1 + list(FAMILIES).index(name))
