#!/usr/bin/env python3
"""How much memory decoding a large picture takes, against the bound that the program states.

    python3 tests/acceptance/decode_memory.py --binary target/release/girandole --model FOLDER \\
        [--edge 1024] [--bound BYTES]

FOLDER: an image model in diffusers' layout; its weights may be random. One picture of EDGE squared is drawn in one step.
When the step is done the kernel's high-water mark of resident memory is reset, and read again when the picture is there:
the difference is what the decoding took. The mark covers the picture, the canvas and the PNG as well, so this
is measured from above. Freed memory is handed back at once (the C library's threshold is set so), or what the
step has left would hide a part of the growth.

Linux only. A few minutes for Stable Diffusion 1.5 at 1024 pixels on two cores.
"""

import argparse
import asyncio
import json
import re
import sys

from http1 import call, request
from server import Server

MODEL = "m"
# The canvas that tiles are blended on, the picture in f32, as bytes, and as a PNG: 12 + 12 + 3 + 3 bytes a pixel.
BYTES_A_PIXEL = 30
# Blocks of this size and more go back to the kernel when they are freed.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def memory(pid, name):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))


def reset_high_water(pid):
    # 5: see proc_pid_clear_refs(5).
    with open(f"/proc/{pid}/clear_refs", "w", encoding="ascii") as refs:
        refs.write("5")


def mib(count):
    return f"{count / (1 << 20):.0f} MiB"


async def run(options):
    flags = ["--model", f"{MODEL}={options.model}", "--decode-memory-bytes", str(options.bound)]
    flags += ["--max-image-pixels", str(options.edge**2), "--batch-size", "1"]
    async with Server(options.binary, *flags, environment={**ALLOCATOR, "NO_COLOR": "1"}) as server:
        pid = server.process.pid
        stated = re.search(r"decode_bytes=(\d+)", server.text())
        if stated is None:
            raise SystemExit("the log states no decode_bytes")
        estimate = int(stated.group(1))
        idle = memory(pid, "VmRSS")
        body = {"model": MODEL, "prompt": "a boat", "steps": 1, "guidance_scale": 1, "seed": 1}
        body |= {"width": options.edge, "height": options.edge}
        status, _, answer = await call(server.port, "POST", "/api/v1/requests", body)
        if status != 201:
            raise SystemExit(f"{status}: {answer}")
        response = await request(server.port, "GET", f"/api/v1/requests/{answer['id']}/events")
        before, stepping, ended = None, None, None
        async for frame in response.frames():
            data = json.loads(frame["data"])
            if frame["event"] == "progress" and data["images"][0]["step"] == 1:
                stepping = memory(pid, "VmHWM")
                before = memory(pid, "VmRSS")
                reset_high_water(pid)
            ended = frame["event"]
        peak = memory(pid, "VmHWM")
        if before is None or ended != "finished":
            raise SystemExit(f"the request ended with {ended}")
        growth = peak - before
        print(f"edge {options.edge}, bound {mib(options.bound)}, estimate {mib(estimate)}")
        print(f"resident: idle {mib(idle)}, highest while stepping {mib(stepping)}, before decoding {mib(before)}")
        print(f"decoding: highest {mib(peak)}, growth {mib(growth)} = {growth / options.bound:.2f} of the bound")
        allowed = options.bound + BYTES_A_PIXEL * options.edge**2
        return estimate <= options.bound and growth <= allowed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--edge", type=int, default=1024)
    parser.add_argument("--bound", type=int, default=1 << 30)
    kept = asyncio.run(run(parser.parse_args()))
    print("kept" if kept else "BROKEN")
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
