"""How long streams stall while a long prompt comes in: streams of a server that this starts, on loopback.

    python3 benches/gpu/long_prompt.py --streams 32 --long 8192 --json out.json -- \\
      girandole serve --load-format dummy --model text=config.json ..

All streams decode; after `--before` seconds a prompt of `--long` tokens is sent. A gap is the time between two pieces of one
stream, as its client sees them: the service sends at most 20 a second, so 50 ms are a gap like any. Needs Python alone.
"""

import argparse
import asyncio
import json
import random
import signal
import subprocess
import sys
import time

READY_SECONDS = 60
REQUEST_SECONDS = 120
# Token ids of prompts: below any vocabulary that is measured.
VOCABULARY = 250


async def http(port, method, path, body=None):
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


class Stream:
    def __init__(self, tokens):
        rng = random.Random()
        self.prompt = [rng.randrange(3, VOCABULARY) for _ in range(tokens)]
        self.times = []
        self.begun = asyncio.Event()

    async def run(self, port, model, new_tokens):
        body = {"model": model, "prompt": self.prompt, "max_tokens": new_tokens, "temperature": 0, "ignore_eos": True}
        self.sent = time.monotonic()
        reader, writer, status = await http(port, "POST", "/v1/completions", {**body, "stream": True})
        if status != 200:
            raise SystemExit(f"status {status}: {(await reader.read())[:500]}")
        async for line in reader:
            if line.startswith(b"data: {"):
                self.times.append(time.monotonic())
                self.begun.set()
        writer.close()

    def longest_gap(self, start, end):
        times = [start, *(t for t in self.times if start < t < end), end]
        return max(b - a for a, b in zip(times, times[1:]))


async def measure(args, port):
    model = "text"
    streams = [Stream(args.prompt) for _ in range(args.streams)]
    tasks = [asyncio.create_task(stream.run(port, model, args.new)) for stream in streams]
    done = asyncio.gather(*tasks)
    await asyncio.wait_for(asyncio.gather(*(stream.begun.wait() for stream in streams)), REQUEST_SECONDS)
    await asyncio.sleep(0.5)
    start = time.monotonic()
    await asyncio.sleep(args.before)
    sent = time.monotonic()
    long = Stream(args.long)
    await asyncio.wait_for(long.run(port, model, 1), REQUEST_SECONDS)
    first = long.times[0]
    # The last pass of the prompt is felt after its first token has left.
    await asyncio.sleep(0.3)
    end = time.monotonic()
    ended = sum(task.done() for task in tasks)
    before = [stream.longest_gap(start, sent) for stream in streams]
    during = [stream.longest_gap(sent, end) for stream in streams]
    done.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return {
        "streams": args.streams,
        "long_prompt_tokens": args.long,
        "first_token_seconds": first - sent,
        "longest_gap_before_ms": 1e3 * max(before),
        "longest_gap_during_ms": 1e3 * max(during),
        # One that had ended is no stall, and no measurement either.
        "streams_that_ended_too_early": ended,
    }


async def ready(port, process):
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            _, writer, status = await http(port, "GET", "/health/ready")
            writer.close()
            if status == 200:
                return
        except OSError:
            pass
        await asyncio.sleep(0.2)
    raise SystemExit("the server did not become ready")


def main():
    if "--" not in sys.argv:
        raise SystemExit(__doc__)
    split = sys.argv.index("--")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each stream's prompt")
    parser.add_argument("--long", type=int, default=8192, help="tokens of the long prompt")
    parser.add_argument("--new", type=int, default=700, help="tokens of each stream: enough to outlast the prompt")
    parser.add_argument("--before", type=float, default=2, help="seconds before the long prompt")
    parser.add_argument("--json")
    args = parser.parse_args(sys.argv[1:split])
    process = subprocess.Popen([*sys.argv[split + 1 :], "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        port = None
        for line in process.stdout:
            if line.startswith("listening on http://"):
                port = int(line.rsplit(":", 1)[1])
                break
        if port is None:
            raise SystemExit("the server did not start")
        asyncio.run(ready(port, process))
        # Once without a clock: kernels are loaded, graphs captured.
        args_of_warm_up = argparse.Namespace(**{**vars(args), "before": 0, "long": args.long // 4})
        asyncio.run(measure(args_of_warm_up, port))
        # What was given up leaves the batch within a step.
        time.sleep(1)
        report = asyncio.run(measure(args, port))
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
    text = json.dumps(report, indent=2)
    print(text)
    if args.json:
        with open(args.json, "w") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
