#!/usr/bin/env python3
"""Registers, spills and shared memory of our CUDA kernels, as ptxas makes them of the PTX that the program holds.

    kernel_limits.py [--arch sm_80,sm_90] [--nvcc NVCC] [--markdown FILE]

Needs a CUDA toolkit (nvcc and ptxas on PATH), no GPU. Prints a Markdown table; exits with 1 where a kernel spills
registers, needs more shared memory than a block has without asking for it, or more registers than its block's threads can
have.
"""

import argparse
import pathlib
import re
import subprocess
import sys
import tempfile

SOURCES = pathlib.Path(__file__).resolve().parents[2] / "src" / "kernels" / "cuda"

# A block's static shared memory.
MOST_SHARED_BYTES = 48 * 1024
# Of a multiprocessor: all threads of a block must have their registers there.
REGISTERS = 65536


def compiled(nvcc, source, folder):
    """PTX as build.rs makes it."""
    ptx = folder / f"{source.stem}.ptx"
    subprocess.run(
        [nvcc, "-ptx", "-O3", "-std=c++17", "-gencode", "arch=compute_80,code=compute_80", "-o", ptx, source],
        check=True,
    )
    return ptx


def measured(ptx, arch):
    """Of each kernel: registers, bytes of spills, bytes of shared memory."""
    said = subprocess.run(
        ["ptxas", "-v", f"-arch={arch}", "-o", "/dev/null", ptx], check=True, capture_output=True, text=True
    ).stderr
    kernels, name, spilled = {}, None, 0
    for line in said.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)'", line):
            name, spilled = found[1], 0
        elif found := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            spilled = int(found[1]) + int(found[2])
        elif found := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            kernels[name] = (int(found[1]), spilled, int(shared[1]) if shared else 0)
    return kernels


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="sm_80,sm_90")
    parser.add_argument("--nvcc", default="nvcc")
    parser.add_argument("--markdown", type=pathlib.Path)
    options = parser.parse_args()
    archs = options.arch.split(",")
    lines = ["| kernel | threads | " + " | ".join(f"{arch}: registers, spilled bytes, shared bytes" for arch in archs) + " |"]
    lines.append("| --- " * (2 + len(archs)) + "|")
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        for source in sorted(SOURCES.glob("*.cu")):
            ptx = compiled(options.nvcc, source, pathlib.Path(folder))
            # `.entry NAME(..)` is followed by the block that its launch bounds give.
            threads = dict(re.findall(r"\.entry (\w+)\(.*?\.maxntid (\d+)", ptx.read_text(), re.DOTALL))
            of_arch = [measured(ptx, arch) for arch in archs]
            for name in sorted(threads):
                cells = []
                for arch, kernels in zip(archs, of_arch):
                    registers, spilled, shared = kernels[name]
                    cells.append(f"{registers}, {spilled}, {shared}")
                    if spilled or shared > MOST_SHARED_BYTES or registers * int(threads[name]) > REGISTERS:
                        wrong.append(f"{name} on {arch}: {cells[-1]}")
                lines.append(f"| {name} | {threads[name]} | " + " | ".join(cells) + " |")
    table = "\n".join(lines) + "\n"
    print(table, end="")
    if options.markdown:
        options.markdown.write_text(table)
    for line in wrong:
        print(f"over its limits: {line}", file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
