"""The same load against several OpenAI-compatible servers, in turns within one run, on loopback.

Closed loop: each client sends its next request when the last has ended. Prompts are random token ids, 97 to 160 of them,
never the same twice (with --text-prompts as many random words: some servers take no ids); 128 greedy tokens each, or
what a server gives that knows no `ignore_eos`. Output tokens per second count whole runs, prefill included. Needs Python
alone. Example, with one server of ours and two of llama.cpp:

    python3 benches/peers/serve.py --repeats 3 --clients 1,8,32 \\
      'girandole=target/release/girandole serve --model FILE --compute-threads 2 --batch-size 32 --port {port}' \\
      'llama.cpp=llama-server -m FILE -t 2 -c 16384 -np 32 --cache-ram 0 --host 127.0.0.1 --port {port}'
"""

import argparse
import asyncio
import json
import os
import random
import shlex
import signal
import statistics
import subprocess
import sys
import time

OUTPUT_TOKENS = 128
PROMPT_TOKENS = (97, 160)
VOCABULARY = (1000, 49000)
WORDS = "river light quiet valley stone voice boat bank morning wind bread cloth salt news winter garden letter music".split()
READY_SECONDS = 120
REQUEST_SECONDS = 600
# Requests of each client at a level: enough for a picture, few enough to end.
REQUESTS = {1: 6, 2: 5, 4: 4, 8: 3, 16: 2, 32: 1}


async def http(port, method, path, body=None):
    """Sends a request; returns the reader behind the response's head, and the status."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    payload = b"" if body is None else json.dumps(body).encode()
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
    )
    writer.write(head.encode() + payload)
    await writer.drain()
    status = int((await reader.readline()).split()[1])
    while (await reader.readline()) not in (b"\r\n", b""):
        pass
    return reader, writer, status


async def complete(port, model, prompt, output_tokens=OUTPUT_TOKENS):
    """One streamed completion: times of frames with text, and the tokens that the server counted."""
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    start = time.monotonic()
    reader, writer, status = await http(port, "POST", "/v1/completions", body)
    frames, tokens = [], 0
    if status != 200:
        raise RuntimeError(f"status {status}: {(await reader.read(2000)).decode(errors='replace')}")
    while line := await reader.readline():
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if usage := event.get("usage"):
            tokens = usage["completion_tokens"]
        if any(choice.get("text") for choice in event.get("choices", [])):
            frames.append(time.monotonic() - start)
    writer.close()
    # A server that counts nothing sends a frame for each token.
    tokens = tokens or len(frames)
    if isinstance(prompt, list) and tokens != output_tokens:
        raise RuntimeError(f"{tokens} tokens instead of {output_tokens}")
    return frames, tokens


def random_prompt(rng, text_prompts):
    count = rng.randint(*PROMPT_TOKENS)
    if text_prompts:
        return " ".join(rng.choice(WORDS) for _ in range(count))
    return [rng.randrange(*VOCABULARY) for _ in range(count)]


async def level(port, model, clients, seed, arguments):
    """All requests of one level: output tokens per second, and each request's frames."""
    rng = random.Random(seed)
    requests = arguments.requests or REQUESTS.get(clients, 1)
    prompts = [[random_prompt(rng, arguments.text_prompts) for _ in range(requests)] for _ in range(clients)]
    answers = []

    async def client(own):
        for prompt in own:
            answers.append(await asyncio.wait_for(complete(port, model, prompt), REQUEST_SECONDS))

    start = time.monotonic()
    await asyncio.gather(*(client(own) for own in prompts))
    seconds = time.monotonic() - start
    return sum(tokens for _, tokens in answers) / seconds, answers


async def model_of(port):
    reader, _, status = await http(port, "GET", "/v1/models")
    if status != 200:
        raise RuntimeError(f"status {status}")
    text = (await reader.read()).decode()
    return json.loads(text[text.index("{") : text.rindex("}") + 1])["data"][0]["id"]


async def ready(port, process, text_prompts):
    """Waits until a token can be had; returns the model's name."""
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            sys.exit(f"the server ended with {process.returncode}")
        try:
            model = await model_of(port)
            prompt = "One two" if text_prompts else list(range(1000, 1010))
            await complete(port, model, prompt, output_tokens=1)
            return model
        except (OSError, RuntimeError, ValueError, KeyError, IndexError, asyncio.IncompleteReadError):
            await asyncio.sleep(0.02)
    sys.exit("the server did not become ready")


def resident(pid):
    with open(f"/proc/{pid}/status", encoding="utf-8") as status:
        fields = dict(line.split(":", 1) for line in status)
    return int(fields["VmRSS"].split()[0]) / 1024


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def spin():
    """A neighbour: one process that does nothing but take a core."""
    return subprocess.Popen([sys.executable, "-c", "while True: pass"])


async def run(arguments):
    servers = [server.split("=", 1) for server in arguments.servers]
    rows = {}
    for repeat in range(arguments.repeats):
        for index, (name, command) in enumerate(servers):
            port = 18300 + 10 * repeat + index
            parts = shlex.split(command.format(port=port))
            with open(os.devnull, "w", encoding="utf-8") as null:
                start = time.monotonic()
                process = subprocess.Popen(parts, stdout=null, stderr=null)
            neighbours = []
            try:
                model = await ready(port, process, arguments.text_prompts)
                rows.setdefault((name, "start"), []).append({"ready_s": time.monotonic() - start, "rss_mb": resident(process.pid)})
                neighbours = [spin() for _ in range(arguments.neighbours)]
                for clients in arguments.clients:
                    rate, answers = await level(port, model, clients, 1000 * repeat + clients, arguments)
                    first = [frames[0] * 1000 for frames, _ in answers]
                    gaps = [1000 * (b - a) for frames, _ in answers for a, b in zip(frames, frames[1:])]
                    row = {
                        "output_tokens_per_s": rate,
                        "ttft_p50_ms": percentile(first, 0.5),
                        "ttft_p99_ms": percentile(first, 0.99),
                        "gap_p50_ms": percentile(gaps, 0.5),
                        "gap_p99_ms": percentile(gaps, 0.99),
                        "requests": len(answers),
                    }
                    rows.setdefault((name, clients), []).append(row)
                    print(f"{name} {clients}: " + ", ".join(f"{key} {value:.1f}" for key, value in row.items()), flush=True)
            finally:
                for neighbour in neighbours:
                    neighbour.kill()
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
    report = []
    for (name, what), samples in rows.items():
        medians = {key: statistics.median(sample[key] for sample in samples) for key in samples[0]}
        report.append({"server": name, "clients": what, "median": medians, "samples": samples})
    print("\n| server | clients | output tok/s | first token p50 | p99 | gap p50 | p99 (ms) |\n| --- | --- | --- | --- | --- | --- | --- |")
    for row in report:
        median = row["median"]
        if row["clients"] == "start":
            print(f"| {row['server']} | ready after {median['ready_s']:.2f} s, {median['rss_mb']:.0f} MiB resident | | | | | |")
            continue
        cells = [median[key] for key in ("output_tokens_per_s", "ttft_p50_ms", "ttft_p99_ms", "gap_p50_ms", "gap_p99_ms")]
        print(f"| {row['server']} | {row['clients']} | " + " | ".join(f"{cell:.0f}" for cell in cells) + " |")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("servers", nargs="+", help="NAME=COMMAND, with {port} where the port belongs")
    parser.add_argument("--clients", type=lambda text: [int(part) for part in text.split(",")], default=[1, 8, 32])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--neighbours", type=int, default=0, help="busy processes beside the server")
    parser.add_argument("--requests", type=int, help="requests of each client at a level, instead of 1 to 6")
    parser.add_argument("--text-prompts", action="store_true", help="prompts of words instead of token ids")
    parser.add_argument("--json", help="write every sample to this file")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
