#!/usr/bin/env python3
"""What the CPU engine promises about its numbers, run against the real program with a real model.

    python3 tests/acceptance/text_on_cpu.py --binary target/release/girandole --model FILE.gguf \\
        [--f32-model FILE.gguf] [--native-binary FILE] [--only NAME ...]

`--f32-model`: the same weights dequantised to f32, for the perplexity's reference.
Loads go to loopback only, are bounded in count and time, and end by themselves.
"""

import argparse
import asyncio
import math
import pathlib
import random
import statistics
import subprocess
import sys
import time

from http1 import call
from server import Server

PROSE = pathlib.Path(__file__).parent.parent / "fixtures" / "prose.txt"
WORDS = "river light quiet valley stone voice boat bank morning wind bread cloth salt news winter garden letter music".split()
CHECKS = {}


def check(function):
    CHECKS[function.__name__] = function
    return function


def expect(condition, message):
    if not condition:
        raise AssertionError(message)


def prompts(count):
    rng = random.Random(3)
    return [f"Story {i}. " + " ".join(rng.choice(WORDS) for _ in range(rng.randint(10, 120))) for i in range(count)]


async def complete(port, prompt, max_tokens=200, **more):
    body = {"model": "m", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, "logprobs": 3, **more}
    status, _, answer = await call(port, "POST", "/v1/completions", body)
    expect(status == 200, f"{status}: {answer}")
    return answer


def said(answer):
    """Everything that must be equal: the text, and each token's log-probability with its rivals'."""
    choice = answer["choices"][0]
    return choice["text"], choice["logprobs"]["tokens"], choice["logprobs"]["token_logprobs"], choice["logprobs"]["top_logprobs"]


def cached(answer):
    return (answer["usage"].get("prompt_tokens_details") or {}).get("cached_tokens", 0)


def server(options, *flags):
    flags = ("--model", f"m={options.model}", "--batch-size", "20", *flags)
    return Server(options.binary, *flags)


@check
async def twins(options):
    """Greedy, 20 prompts of 200 tokens: each instruction set says what the plain one says, to the last bit."""
    answers = {}
    for isa in ("portable", "avx2", "avx-vnni", "avx512", "neon", "neon-dot"):
        try:
            async with server(options, "--isa", isa) as served:
                began = time.monotonic()
                found = await asyncio.gather(*(complete(served.port, prompt) for prompt in prompts(20)))
        except RuntimeError as error:
            refusal = str(error)
            if not (refusal.startswith("the server ended with 2:") and "what this processor has" in refusal):
                raise
            print(f"  {isa}: not on this processor")
            continue
        answers[isa] = [said(answer) for answer in found]
        print(f"  {isa}: 4,000 tokens in {time.monotonic() - began:.1f} s")
    expect(len(answers) > 1, "one instruction set proves nothing")
    for isa, found in answers.items():
        equal = sum(a == b for a, b in zip(found, answers["portable"]))
        print(f"  {isa}: {equal} of 20 equal to portable")
        expect(equal == 20, isa)


@check
async def company(options):
    """A row in company equals the row alone, bit for bit, with and without prefix hits."""
    wanted = prompts(12)
    async with server(options, "--prefix-cache-tokens", "0") as served:
        alone = [said(await complete(served.port, prompt, 64)) for prompt in wanted]
        together = await asyncio.gather(*(complete(served.port, prompt, 64) for prompt in wanted))
        expect(all(cached(answer) == 0 for answer in together), "the cache is off")
        expect([said(answer) for answer in together] == alone, "in company, without hits")
    async with server(options) as served:
        first = await asyncio.gather(*(complete(served.port, prompt, 64) for prompt in wanted))
        again = await asyncio.gather(*(complete(served.port, prompt, 64) for prompt in wanted))
        single = [await complete(served.port, prompt, 64) for prompt in wanted]
        hits = sum(cached(answer) for answer in again), sum(cached(answer) for answer in single)
        for name, answers in (("first", first), ("again", again), ("single", single)):
            expect([said(answer) for answer in answers] == alone, f"with the cache on, {name}")
        print(f"  12 prompts, 64 tokens each: equal alone, in company, and with {hits[0]} and {hits[1]} tokens found in the cache")
        expect(min(hits) > 0, "hits")
        salted = await complete(served.port, wanted[-1], 64, cache_salt="another")
        expect(cached(salted) == 0 and said(salted) == alone[-1], "another salt finds nothing")


async def perplexity_of(options, model, *flags):
    text = PROSE.read_text(encoding="utf-8")
    async with Server(options.binary, "--model", f"m={model}", *flags) as served:
        answer = await complete(served.port, text, 1, echo=True, logprobs=0)
    logprobs = [value for value in answer["choices"][0]["logprobs"]["token_logprobs"] if value is not None]
    logprobs = logprobs[: answer["usage"]["prompt_tokens"] - 1]
    return math.exp(-statistics.fmean(logprobs)), len(logprobs)


@check
async def perplexity(options):
    """On a fixed text, within 0.5 % of the f32 path."""
    expect(options.f32_model, "needs --f32-model")
    ours, tokens = await perplexity_of(options, options.model)
    plain, _ = await perplexity_of(options, options.f32_model, "--kv-dtype", "f32")
    difference = ours / plain - 1
    print(f"  {tokens} tokens: {ours:.4f} as served, {plain:.4f} in f32: {difference:+.3%}")
    expect(abs(difference) < 0.005, "more than 0.5 %")


async def decode_rate(options, *flags, neighbours=0, binary=None):
    """Tokens per second of one stream."""
    busy = []
    flags = ("--model", f"m={options.model}", *flags)
    async with Server(binary or options.binary, *flags) as served:
        await complete(served.port, "Warm.", 8, logprobs=None)
        try:
            busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(neighbours)]
            began = time.monotonic()
            await complete(served.port, "Once upon a time", 400, logprobs=None)
            return 400 / (time.monotonic() - began)
        finally:
            for process in busy:
                process.kill()
                process.wait()


@check
async def neighbours(options):
    """Beside a busy process on each core a stream keeps its fair share: under 2.5 times slower."""
    for threads in ("1", "2"):
        pairs = []
        for _ in range(5):
            alone = await decode_rate(options, "--compute-threads", threads)
            beside = await decode_rate(options, "--compute-threads", threads, neighbours=2)
            pairs.append((alone, beside))
        ratio = statistics.median(alone / beside for alone, beside in pairs)
        medians = [statistics.median(values) for values in zip(*pairs)]
        print(f"  {threads} threads: {medians[0]:.0f} tok/s alone, {medians[1]:.0f} beside two busy processes: {ratio:.2f} times slower")
        expect(ratio < 2.5, f"{threads} threads")


@check
async def portable_build(options):
    """A build for any processor is as fast as one for this processor, within 3 %."""
    expect(options.native_binary, "needs --native-binary")
    pairs = []
    for repeat in range(9):
        rates = {}
        order = [options.binary, options.native_binary]
        for binary in order if repeat % 2 else reversed(order):
            rates[binary] = await decode_rate(options, "--compute-threads", "1", binary=binary)
        pairs.append(rates[options.binary] / rates[options.native_binary])
    ratio = statistics.median(pairs)
    print(f"  portable / native: {ratio:.3f} (of 9 pairs: {min(pairs):.3f} to {max(pairs):.3f})")
    expect(ratio > 0.97, "more than 3 % slower")


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--f32-model")
    parser.add_argument("--native-binary")
    parser.add_argument("--only", nargs="*", choices=CHECKS)
    options = parser.parse_args()
    failed = []
    for name, function in CHECKS.items():
        if options.only and name not in options.only:
            continue
        print(f"{name}: {function.__doc__}", flush=True)
        try:
            await function(options)
        except AssertionError as error:
            failed.append(name)
            print(f"  FAILED: {error}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    asyncio.run(main())
