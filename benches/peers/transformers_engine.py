"""Tokens a second of transformers in the shape of a `config.json`, beside `girandole bench engine`: continuous batching of
as many rows, and a prompt in one pass. Weights are random.

    python3 benches/peers/transformers_engine.py benches/shapes/llama-3.1-8b --device cuda:0 --dtype bf16 --rows 1,32,256

Decoding counts from the moment when all rows have their first token to the one when the first row has its last, by the
times that transformers keeps; of the whole run it is where these are missing (`counted` says which). Attention is
flash-attn's where that package is installed, else PyTorch's. Needs torch and transformers.
"""

import argparse
import json
import pathlib
import random
import statistics
import time

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.generation import ContinuousBatchingConfig, GenerationConfig

# Blocks of keys and values on a processor, where there would be as many as fit into the machine's memory.
HOST_BLOCKS = 128
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bf16", choices=DTYPES)
    parser.add_argument("--rows", default="1,32")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each row's prompt")
    parser.add_argument("--new", type=int, default=96, help="new tokens of each row")
    parser.add_argument("--prefill", default="2048", help="tokens of a prompt in one pass")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--attention", help="transformers' name of an attention")
    return parser.parse_args()


def attentions(args):
    if args.attention:
        return [args.attention]
    try:
        import flash_attn  # noqa: F401

        return ["flash_attention_2", "sdpa"]
    except ImportError:
        return ["sdpa"]


def build(args, attention):
    config = AutoConfig.from_pretrained(args.folder)
    dtype = DTYPES[args.dtype]
    with torch.device(args.device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    return model.eval()


def synchronize(args):
    if args.device.startswith("cuda"):
        torch.cuda.synchronize()


def prompt(config, tokens):
    return [random.randrange(3, config.vocab_size) for _ in range(tokens)]


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def prefill(args, model, tokens):
    def run():
        ids = torch.tensor([prompt(model.config, tokens)], device=args.device)
        synchronize(args)
        start = time.perf_counter()
        # The logits of the last token, as ours.
        model(input_ids=ids, use_cache=True, logits_to_keep=1).logits.argmax(-1).cpu()
        return tokens / (time.perf_counter() - start)

    run()
    return {"tokens": tokens, "tokens_per_second": spread([run() for _ in range(args.repeats)])}


def decode(args, model, rows):
    generation = GenerationConfig(max_new_tokens=args.new, do_sample=False, eos_token_id=-1, pad_token_id=0)
    batching = ContinuousBatchingConfig(num_blocks=HOST_BLOCKS, max_batch_tokens=512) if args.device == "cpu" else None

    def run():
        prompts = [prompt(model.config, args.prompt) for _ in range(rows)]
        synchronize(args)
        start = time.perf_counter()
        outputs = model.generate_batch(
            inputs=prompts,
            generation_config=generation,
            continuous_batching_config=batching,
            progress_bar=False,
            record_timestamps=True,
        )
        whole = time.perf_counter() - start
        outputs = list(outputs.values())
        tokens = sum(len(output.generated_tokens) for output in outputs)
        if len(outputs) != rows or tokens != rows * args.new:
            raise RuntimeError(f"{len(outputs)} rows of {rows} ended, with {tokens} tokens of {rows * args.new}")
        times = [output.timestamps for output in outputs if getattr(output, "timestamps", None)]
        if len(times) < rows:
            return tokens / whole, "whole"
        start, end = max(each[0] for each in times), min(each[-1] for each in times)
        counted = sum(sum(start < at <= end for at in each) for each in times)
        return (counted / (end - start), "decoding") if end > start else (tokens / whole, "whole")

    run()
    rates = [run() for _ in range(args.repeats)]
    counted = sorted({counted for _, counted in rates})
    return {"rows": rows, "tokens_per_second": spread([rate for rate, _ in rates]), "counted": counted}


def levels(args, values, key, measure):
    found = []
    for value in values:
        try:
            found.append(measure(value))
        except Exception as error:  # one level that does not fit must not cost the others
            found.append({key: value, "skipped": f"{type(error).__name__}: {error}"})
    return found


# Not inference mode, which continuous batching's own thread does not share.
@torch.no_grad()
def main():
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    for attention in attentions(args):
        try:
            start = time.perf_counter()
            model = build(args, attention)
            synchronize(args)
            load_seconds = time.perf_counter() - start
            break
        except (ImportError, ValueError) as error:
            problem = error
    else:
        raise SystemExit(f"the model cannot be built: {problem}")
    report = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "setup": {
            "folder": str(args.folder),
            "device": args.device,
            "dtype": args.dtype,
            "attention": attention,
            "prompt": args.prompt,
            "new_tokens": args.new,
        },
        "load": {"seconds": load_seconds},
        "prefill": levels(args, numbers(args.prefill), "tokens", lambda tokens: prefill(args, model, tokens)),
        "decode": levels(args, numbers(args.rows), "rows", lambda rows: decode(args, model, rows)),
    }
    if args.device.startswith("cuda"):
        report["memory"] = {"peak_bytes": torch.cuda.max_memory_allocated()}
    print(json.dumps(report, indent=2))
    measured = [level for level in report["prefill"] + report["decode"] if "skipped" not in level]
    if not measured:
        raise SystemExit("nothing could be measured")


if __name__ == "__main__":
    main()
