#!/usr/bin/env python3
"""How well the promised start comes true: 200 requests of mixed length, each from the moment it was told.

    python3 benches/eta.py --binary target/debug/girandole [--lengths known|guessed] [--users N]

Plays benches/peers/eta_load.json to the built program with a scripted model over HTTP, and prints the error of the first
ETA that each request was told against the wait that followed, median and 90th percentile, leaving out the first
ten requests. Waits below a second count as one. With `--lengths guessed` every request allows the longest answer, and the
model ends each where the load says: the service has to learn how long answers are. `--make` writes the load anew.
"""

import argparse
import asyncio
import json
import pathlib
import random
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests/acceptance"))

import http1  # noqa: E402
from server import Server  # noqa: E402

LOAD = HERE / "peers/eta_load.json"
SLOTS = 4
TOKENS_PER_SECOND = 50
LEFT_OUT = 10
LEAST_WAIT = 1.0
LONGEST = 200


def make():
    """A little more than can be served for the first two thirds, in bursts, then less: queues grow and drain."""
    rng = random.Random(20)
    at, requests = 0.0, []
    for number in range(200):
        per_second = 3.4 if number < 130 else 1.6
        at += rng.expovariate(per_second) if rng.random() < 0.8 else 0.0
        tokens = rng.choice([10, 20, 40, 80, 120, LONGEST])
        requests.append({"at_ms": round(1000 * at), "tokens": tokens})
    load = {
        "about": "Arrivals and lengths of a mixed load for benches/eta.py and its peers. A server runs `slots` requests at once, "
        "each at `tokens_per_second`: a request takes tokens / tokens_per_second seconds by itself.",
        "slots": SLOTS,
        "tokens_per_second": TOKENS_PER_SECOND,
        "requests": requests,
    }
    LOAD.write_text(json.dumps(load, indent=None).replace("{\"at_ms\"", "\n{\"at_ms\"") + "\n", encoding="utf-8")


async def one(port, began, number, wanted, user):
    """What it was told first, and how long it waited then; in seconds."""
    await asyncio.sleep(max(0.0, began + wanted["at_ms"] / 1000 - time.monotonic()))
    body = {"prompt": f"request {number}", "max_tokens": wanted["max_tokens"], "detach": True}
    headers = {"x-forwarded-for": f"192.0.2.{user}"}
    status, _, answer = await http1.call(port, "POST", "/api/v1/requests", body, headers)
    assert status == 201, answer
    response = await http1.request(port, "GET", f"/api/v1/requests/{answer['id']}/events")
    told = said_at = None
    async for frame in response.frames():
        if frame["event"] == "queued" and said_at is None:
            eta = json.loads(frame["data"])["eta_ms"]
            told, said_at = (None if eta is None else eta / 1000), frame["time"]
        if frame["event"] == "started":
            started = frame["time"]
            response.close()
            break
    # Whoever starts before there was time to say anything waited for nothing and was promised nothing.
    return (told, started - said_at) if said_at is not None else None


async def play(args, load):
    rng = random.Random(1)
    script = f"[cost]\ntokens_per_second = {load['tokens_per_second']}.0\n"
    if args.lengths == "guessed":
        # The scripted model's own lengths, evenly spread, where the client only gives the longest.
        script += f'[output]\nkind = "varied"\nat_least = 10\nat_most = {LONGEST}\n'
    requests = [
        {**request, "max_tokens": request["tokens"] if args.lengths == "known" else LONGEST}
        for request in load["requests"]
    ]
    with tempfile.TemporaryDirectory(prefix="girandole-eta-") as folder:
        model = pathlib.Path(folder) / "eta.toml"
        model.write_text(script, encoding="utf-8")
        flags = ["--model", f"scripted:{model}", "--batch-size", str(load["slots"]), "--max-queued-requests", "1000"]
        flags += ["--trusted-proxies", "127.0.0.1"]
        async with Server(args.binary, *flags) as server:
            began = time.monotonic()
            users = [rng.randrange(args.users) for _ in requests]
            tasks = [
                one(server.port, began, number, wanted, user)
                for number, (wanted, user) in enumerate(zip(requests, users))
            ]
            return await asyncio.gather(*tasks)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary")
    parser.add_argument("--lengths", choices=["known", "guessed"], default="known")
    parser.add_argument("--users", type=int, default=1, help="share the requests among so many users [1]")
    parser.add_argument("--make", action="store_true", help="write the load, and nothing else")
    args = parser.parse_args()
    if args.make:
        make()
        return
    load = json.loads(LOAD.read_text(encoding="utf-8"))
    outcomes = asyncio.run(play(args, load))
    errors, waits, untold = [], [], 0
    for outcome in outcomes[LEFT_OUT:]:
        if outcome is None or outcome[0] is None:
            untold += 1
            continue
        told, waited = outcome
        waits.append(waited)
        errors.append(abs(told - waited) / max(waited, LEAST_WAIT))
    print(f"lengths {args.lengths}, {args.users} users: {len(errors)} told, {untold} not")
    print(f"waited: median {http1.quantile(waits, 0.5):.2f} s, p90 {http1.quantile(waits, 0.9):.2f} s, longest {max(waits):.2f} s")
    median, p90 = http1.quantile(errors, 0.5), http1.quantile(errors, 0.9)
    print(f"error of the ETA: median {100 * median:.1f} %, p90 {100 * p90:.1f} %")
    sys.exit(0 if median < 0.2 and p90 < 0.5 else 1)


if __name__ == "__main__":
    main()
