#!/usr/bin/env python3
"""What the first release promises, run against the real program with a real model.

    python3 tests/acceptance/first_light.py --binary target/release/girandole [--only NAME ...]

Each check prints the figures it found. Loads go to loopback only, are bounded in count and time, and
end by themselves. About ten minutes in all.
"""

import argparse
import asyncio
import json
import random
import signal
import sys
import time

import http1
from http1 import busiest_second, call, longest_gap, quantile, request
from server import Server

WORDS = (
    "the river carries light across a quiet valley where old stones remember every voice that passed "
    "and small boats wait beside the bank for morning wind while people trade bread cloth salt and news"
).split()
CHECKS = {}
# The name under which every check serves its model.
MODEL = "m"


def check(function):
    CHECKS[function.__name__] = function
    return function


def prompt_of(words, seed):
    rng = random.Random(seed)
    return f"Story {seed}. " + " ".join(rng.choice(WORDS) for _ in range(words))


def expect(condition, message):
    if not condition:
        raise AssertionError(message)


def completion(prompt, max_tokens, **more):
    return {"model": MODEL, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, **more}


async def whole(port, body):
    """A completion, not streamed: its text."""
    status, _, answer = await call(port, "POST", "/v1/completions", body)
    expect(status == 200, f"{status}: {answer}")
    return answer["choices"][0]["text"]


async def streamed(port, body):
    """A streamed completion: its text, and the frames with their times."""
    response = await request(port, "POST", "/v1/completions", {**body, "stream": True})
    expect(response.status == 200, f"{response.status}")
    frames = [frame async for frame in response.frames()]
    expect(frames[-1]["data"] == "[DONE]", "a stream ends with [DONE]")
    return text_of(frames), frames


def text_of(frames):
    parts = []
    for frame in frames:
        if frame["data"] != "[DONE]":
            chunk = json.loads(frame["data"])
            expect("error" not in chunk, f"error in stream: {chunk}")
            parts += [choice["text"] for choice in chunk["choices"] if choice["index"] == 0]
    return "".join(parts)


async def submit(port, body, headers=None):
    status, _, answer = await call(port, "POST", "/api/v1/requests", body, headers)
    expect(status == 201, f"{status}: {answer}")
    return answer["id"]


async def native_events(port, request_id, last=None, stop_after=None):
    headers = {"last-event-id": str(last)} if last is not None else {}
    response = await request(port, "GET", f"/api/v1/requests/{request_id}/events", headers=headers)
    expect(response.status == 200, f"{response.status} {await response.body() if response.status != 200 else ''}")
    frames = []
    async for frame in response.frames():
        frames.append(frame)
        if stop_after is not None and len(frames) >= stop_after:
            response.close()
            break
    return frames


def native_text(frames):
    parts = [json.loads(frame["data"])["choices"] for frame in frames if frame["event"] == "text"]
    return "".join(choice["text"] for choices in parts for choice in choices if choice["index"] == 0)


async def idle(server, within):
    """Seconds until nothing waits, runs or holds KV blocks."""
    began = time.monotonic()
    while True:
        found = (await server.load())["models"][0]
        if found["waiting_requests"] == found["running_rows"] == found["memory_units_used"] == 0:
            return time.monotonic() - began
        expect(time.monotonic() - began < within, f"not idle after {within} s: {found}")
        await asyncio.sleep(0.02)


@check
async def sixteen_clients(options):
    """Line 2: sixteen at once equal each alone; the batch is shared; at most 20 frames a second."""
    sizes = [8 + i * 13 for i in range(16)]
    async with Server(options.binary, *options.model, "--batch-size", "16") as server:
        bodies = [completion(prompt_of(words, words), 64) for words in sizes]
        alone = [await whole(server.port, body) for body in bodies]
        before = await server.metrics()
        began = time.monotonic()
        together = await asyncio.gather(*[streamed(server.port, body) for body in bodies])
        seconds = time.monotonic() - began
        after = await server.metrics()
        differ = [i for i, (text, _) in enumerate(together) if text != alone[i]]
        expect(not differ, f"rows {differ} differ from the same request alone")
        rows = after["girandole_batch_fill_rows_sum"] - before["girandole_batch_fill_rows_sum"]
        steps = after["girandole_batch_fill_rows_count"] - before["girandole_batch_fill_rows_count"]
        expect(rows / steps > 8, f"mean batch fill {rows / steps:.1f}")
        busiest = max(busiest_second([frame["time"] for frame in frames]) for _, frames in together)
        expect(busiest <= 20, f"{busiest} frames in one second")
        return f"16 of 16 equal, mean batch fill {rows / steps:.1f}, at most {busiest} frames in a second, {16 * 64 / seconds:.0f} tok/s"


@check
async def cut_and_resume(options):
    """Line 4: cut at each event and resumed, both dialects: equal to the uncut stream."""
    async with Server(options.binary, *options.model) as server:
        body = {"model": MODEL, "prompt": prompt_of(20, 1), "max_tokens": 48, "temperature": 0.8, "seed": 7, "ignore_eos": True}
        before = await server.metrics()
        request_id = await submit(server.port, body)
        uncut = await native_events(server.port, request_id)
        text = native_text(uncut)
        last = int(uncut[-1]["id"])
        for seq in range(0, last):
            resumed = await native_events(server.port, request_id, last=seq)
            status, _, polled = await call(server.port, "GET", f"/api/v1/requests/{request_id}")
            expect(status == 200 and polled["choices"][0]["text"] == text, "polling shows the whole text")
            expect(text.endswith(native_text(resumed)), f"resumed from {seq}: not a suffix")
        # Live: cut after each frame while it runs, and go on.
        live = 0
        for stop_after in range(1, 12):
            request_id = await submit(server.port, body)
            first = await native_events(server.port, request_id, stop_after=stop_after)
            await asyncio.sleep(0.1)
            rest = await native_events(server.port, request_id, last=int(first[-1]["id"]))
            expect(native_text(first + rest) == text, f"cut after frame {stop_after}: text differs")
            live += 1
        # OpenAI: cut the POST's stream, resume by GET with the same frames.
        for stop_after in range(1, 8):
            response = await request(server.port, "POST", "/v1/completions", {**body, "stream": True})
            request_id = response.headers["x-request-id"]
            frames = []
            async for frame in response.frames():
                frames.append(frame)
                if len(frames) >= stop_after:
                    break
            response.close()
            again = await request(
                server.port,
                "GET",
                f"/api/v1/requests/{request_id}/events?dialect=openai",
                headers={"last-event-id": frames[-1]["id"] or "0"},
            )
            expect(again.status == 200, f"resume: {again.status}")
            rest = [frame async for frame in again.frames()]
            expect(rest[-1]["data"] == "[DONE]", "the resumed stream ends with [DONE]")
            expect(text_of(frames + rest) == text, f"OpenAI stream cut after {stop_after}: text differs")
        await asyncio.sleep(0.2)  # tokens are counted just after a request's last event
        after = await server.metrics()
        generated = after["girandole_generation_tokens_total"] - before["girandole_generation_tokens_total"]
        expect(generated == 48 * (1 + live + 7), f"{generated} tokens generated: something ran twice")
        return f"{last} replays, {live} live cuts, 7 OpenAI cuts: all equal; {generated:.0f} tokens generated, none twice"


@check
async def sleeping_reader(options):
    """Line 4: a reader that does not read for 12 s misses nothing."""
    async with Server(options.binary, *options.model) as server:
        body = completion(prompt_of(20, 2), 300)
        alone = await whole(server.port, body)
        response = await request(server.port, "POST", "/v1/completions", {**body, "stream": True})
        await asyncio.sleep(12)
        frames = [frame async for frame in response.frames()]
        expect(text_of(frames) == alone, "text differs")
        return f"{len(frames)} frames after 12 s of silence, text whole"


@check
async def stalled_readers(options):
    """Line 4: a hundred readers that never read; memory and the others' inter-token time."""
    script = options.scripted
    async with Server(options.binary, "--model", f"{MODEL}=scripted:{script}", "--batch-size", "128", "--max-queued-requests", "256",
                      "--native-grace-ms", "600000") as server:
        async def reading():
            response = await request(server.port, "POST", "/v1/completions",
                                     {"model": MODEL, "prompt": "reader", "max_tokens": 1500, "ignore_eos": True, "stream": True})
            return [frame["time"] async for frame in response.frames()]

        async def mean_token_gap(since):
            """Mean inter-token time at the engine's steps since then, and the new point to count from."""
            found = await server.metrics()
            now = (found["girandole_inter_token_seconds_sum"], found["girandole_inter_token_seconds_count"])
            return (now[0] - since[0]) / max(now[1] - since[1], 1), now

        _, point = await mean_token_gap((0, 0))
        quiet = await asyncio.gather(*[reading() for _ in range(8)])
        gaps = [b - a for times in quiet for a, b in zip(times, times[1:])]
        mean_quiet, point = await mean_token_gap(point)
        before_bytes = server.resident_bytes()
        stalled = []
        for _ in range(100):
            stalled.append(await request(server.port, "POST", "/v1/completions",
                                         {"model": MODEL, "prompt": "stalled", "max_tokens": 6000, "ignore_eos": True, "stream": True}))
        began = time.monotonic()
        loud, peak = [], 0
        while time.monotonic() - began < 60:
            for times in await asyncio.gather(*[reading() for _ in range(8)]):
                loud += [b - a for a, b in zip(times, times[1:])]
            peak = max(peak, server.resident_bytes())
        for response in stalled:
            response.close()
        mean_loud, _ = await mean_token_gap(point)
        growth = (peak - before_bytes) / 1e6
        p99_quiet, p99_loud = quantile(gaps, 0.99), quantile(loud, 0.99)
        expect(growth < 50, f"memory grew by {growth:.0f} MB")
        expect(p99_loud < p99_quiet * 1.1, f"p99 gap {p99_quiet * 1e3:.1f} -> {p99_loud * 1e3:.1f} ms")
        expect(mean_loud < mean_quiet * 1.1, f"mean token gap {mean_quiet * 1e3:.2f} -> {mean_loud * 1e3:.2f} ms")
        return f"memory +{growth:.1f} MB, engine's mean token gap {mean_quiet * 1e3:.2f} -> {mean_loud * 1e3:.2f} ms, frame gap p99 {p99_quiet * 1e3:.1f} -> {p99_loud * 1e3:.1f} ms"


@check
async def long_prompt(options):
    """Line 5: a 1,500-token prompt thrown into eight running streams."""
    budget = 0.1
    async with Server(options.binary, *options.model, "--batch-size", "16", "--step-budget-ms", "100") as server:
        _, _, counted = await call(server.port, "POST", "/tokenize", {"model": MODEL, "prompt": " ".join(WORDS)})
        words = int(1500 * len(WORDS) / counted["count"])
        rows = [asyncio.create_task(streamed(server.port, completion(prompt_of(10, i), 400))) for i in range(8)]
        await asyncio.sleep(2.0)
        thrown = time.monotonic()
        status, _, answer = await call(server.port, "POST", "/v1/completions", completion(prompt_of(words, 99), 4))
        expect(status == 200, f"{status}: {answer}")
        done = time.monotonic()
        results = await asyncio.gather(*rows)
        still = min(frames[-1]["time"] for _, frames in results)
        gaps = [longest_gap([f["time"] for f in frames if thrown - 0.2 < f["time"] < done + 0.5]) for _, frames in results]
        limit = 2 * budget + 0.05
        expect(max(gaps) < limit, f"longest gap {max(gaps) * 1e3:.0f} ms, limit {limit * 1e3:.0f}")
        return (f"prompt of {answer['usage']['prompt_tokens']} tokens in {done - thrown:.1f} s beside 8 streams "
                f"(they ran {still - done:+.1f} s beyond it): longest gap {max(gaps) * 1e3:.0f} ms, limit {limit * 1e3:.0f}")


@check
async def storm(options):
    """Line 6: 500 cancels and disconnects in all states; everything returns, nobody else changes."""
    rng = random.Random(6)
    async with Server(options.binary, *options.model, "--batch-size", "8", "--max-queued-requests", "64",
                      "--openai-grace-ms", "100") as server:
        witness = [completion(prompt_of(12, 1000 + i), 40) for i in range(3)]
        alone = [await whole(server.port, body) for body in witness]
        tally = {"cancelled": 0, "disconnected": 0, "refused": 0}
        busy = asyncio.Semaphore(40)

        async def victim(i):
            async with busy:
                body = completion(prompt_of(rng.choice([5, 30, 200]), i), 200)
                wait = rng.choice([0.0, 0.01, 0.1, 0.5, 1.0]) * rng.random()
                if rng.random() < 0.5:
                    status = 429
                    while status == 429:
                        status, _, answer = await call(server.port, "POST", "/api/v1/requests", body)
                        tally["refused"] += status == 429
                        await asyncio.sleep(0.05 if status == 429 else 0)
                    await asyncio.sleep(wait)
                    status, _, _ = await call(server.port, "DELETE", f"/api/v1/requests/{answer['id']}")
                    expect(status in (200, 202, 204), f"cancel: {status}")
                    tally["cancelled"] += 1
                else:
                    response = None
                    while response is None or response.status == 429:
                        if response is not None:
                            tally["refused"] += 1
                            response.close()
                            await asyncio.sleep(0.05)
                        response = await request(server.port, "POST", "/v1/completions", {**body, "stream": True})
                    await asyncio.sleep(wait)
                    response.close()
                    tally["disconnected"] += 1

        async def victims():
            for start in range(0, 500, 100):
                await asyncio.gather(*[victim(i) for i in range(start, start + 100)])

        async def watch(i):
            runs = differ = 0
            while not storming.done():
                status, _, answer = await call(server.port, "POST", "/v1/completions", witness[i])
                if status == 200:
                    runs += 1
                    differ += answer["choices"][0]["text"] != alone[i]
                else:
                    await asyncio.sleep(0.05)
            return runs, differ

        async def witnesses():
            counts = await asyncio.gather(*[watch(i) for i in range(len(witness))])
            return sum(runs for runs, _ in counts), sum(differ for _, differ in counts)

        storming = asyncio.create_task(victims())
        runs, differ = await witnesses()
        await storming
        seconds = await idle(server, 5.0)
        expect(differ == 0 and runs > 0, f"{differ} of {runs} witnesses differ")
        expect(seconds < 1.1, f"idle only after {seconds:.2f} s")
        return f"{tally}; idle {seconds:.2f} s after the last (0.1 s of it grace); {runs} witnesses beside it, all equal"


@check
async def refusals(options):
    """Line 7: full queue, deadline, and the numeric edges of every field."""
    async with Server(options.binary, *options.model, "--batch-size", "2", "--max-queued-requests", "2") as server:
        held = [await request(server.port, "POST", "/v1/completions", {**completion(prompt_of(10, i), 400), "stream": True})
                for i in range(4)]
        times = []
        for _ in range(50):
            began = time.monotonic()
            status, headers, answer = await call(server.port, "POST", "/v1/completions", completion("one more", 8))
            times.append(time.monotonic() - began)
            expect(status == 429 and int(headers["retry-after"]) >= 1, f"{status} {headers} {answer}")
        for response in held:
            response.close()
        await idle(server, 20)
        late = []
        for _ in range(5):
            holders = [await request(server.port, "POST", "/v1/completions",
                                     {**completion(prompt_of(10, i), 400), "stream": True}) for i in range(2)]
            began = time.monotonic()
            status, _, answer = await call(server.port, "POST", "/v1/completions",
                                           completion("late", 400, deadline_ms=300))
            late.append(time.monotonic() - began - 0.3)
            expect(status == 504, f"{status} {answer}")
            for response in holders:
                response.close()
            await idle(server, 20)
        before_bytes = server.resident_bytes()
        numbers = ["temperature", "top_p", "top_k", "min_p", "typical_p", "presence_penalty", "frequency_penalty",
                   "repetition_penalty", "seed", "max_tokens", "min_tokens", "n", "logprobs", "deadline_ms",
                   "best_of", "truncate_prompt_tokens"]
        values = ["0", "-1", "-1e308", "1e308", "1e999", "99999999999999999999999", "NaN", '"x"', "[]", "{}", "true", "-0.5", "1.5e9"]
        accepted, refused, vague = [], 0, []
        for field in numbers:
            for value in values:
                raw = f'{{"model": "{MODEL}", "prompt": "hi", "max_tokens": 1, "{field}": {value}}}'.encode()
                if field == "max_tokens":
                    raw = f'{{"model": "{MODEL}", "prompt": "hi", "{field}": {value}}}'.encode()
                status, _, answer = await call(server.port, "POST", "/v1/completions", raw=raw)
                if status == 200:
                    accepted.append(f"{field}={value}")
                elif status == 400:
                    refused += 1
                    if field not in json.dumps(answer):
                        vague.append(f"{field}={value}: {answer}")
                else:
                    raise AssertionError(f"{field}={value}: {status} {answer}")
        growth = (server.resident_bytes() - before_bytes) / 1e6
        expect(not vague, f"not named: {vague[:5]}")
        expect(growth < 20, f"memory grew by {growth:.1f} MB")
        return (f"429 in p50 {quantile(times, 0.5) * 1e3:.1f} ms, max {max(times) * 1e3:.1f} ms; 504 at most "
                f"{max(late) * 1e3:.1f} ms after the deadline; {refused} edges refused by name, memory {growth:+.1f} MB, "
                f"accepted: {accepted}")


@check
async def faults(options):
    """Line 8: a row with NaN and a panic in a step fail that request or pass; the server goes on."""
    async with Server(options.binary, "--model", f"{MODEL}=scripted:{options.faulty}", "--batch-size", "8") as server:
        async def one(prompt):
            return await call(server.port, "POST", "/v1/completions", {"model": MODEL, "prompt": prompt, "max_tokens": 40, "seed": 1, "ignore_eos": True})

        calm_alone = await one("calm")
        nan, calm = await asyncio.gather(one("say NAN please"), one("calm"))
        expect(nan[0] == 500 and "finite" in json.dumps(nan[2]), f"NaN: {nan}")
        expect(calm[0] == 200 and calm[2]["choices"] == calm_alone[2]["choices"], f"beside NaN: {calm}")
        panic = await one("say PANIC please")
        expect(panic[0] == 500, f"panic: {panic}")
        again = await one("calm")
        expect(again[0] == 200 and again[2]["choices"] == calm_alone[2]["choices"], f"after the panic: {again}")
        await idle(server, 2)
        return f"NaN: {nan[2]['error']['message']!r}; panic: {panic[2]['error']['message']!r}; the others equal"


@check
async def drain(options):
    """Line 9: SIGTERM with fifty streams open."""
    async with Server(options.binary, *options.model, "--batch-size", "16", "--max-queued-requests", "64",
                      "--drain-timeout-ms", "120000") as server:
        async def reader(i):
            response = await request(server.port, "POST", "/v1/completions",
                                     {**completion(prompt_of(8, i), 60), "stream": True, "stream_options": {"include_usage": True}})
            expect(response.status == 200, f"{response.status}")
            return [frame async for frame in response.frames()]

        readers = [asyncio.create_task(reader(i)) for i in range(50)]
        await asyncio.sleep(1.5)
        server.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        await asyncio.sleep(0.2)
        try:
            refused = (await call(server.port, "POST", "/v1/completions", completion("late", 4)))[0]
        except OSError:
            refused = "connection refused"
        results = await asyncio.gather(*readers)
        complete = 0
        for frames in results:
            usage = [json.loads(f["data"]).get("usage") for f in frames if f["data"] != "[DONE]"]
            complete += frames[-1]["data"] == "[DONE]" and usage[-1]["completion_tokens"] == 60
        code = await asyncio.to_thread(server.process.wait, 30)
        expect(complete == 50, f"only {complete} of 50 streams were whole")
        expect(code == 0, f"exit code {code}")
        expect(refused in (503, "connection refused"), f"new work while draining: {refused}")
        return f"50 of 50 streams whole, new work: {refused}, ended {time.monotonic() - began:.1f} s after SIGTERM with code 0"


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/girandole")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--scripted", default="tests/acceptance/scripted_steady.toml")
    parser.add_argument("--faulty", default="tests/acceptance/scripted_faults.toml")
    parser.add_argument("--only", nargs="*", choices=CHECKS)
    options = parser.parse_args()
    options.model = ("--model", f"{MODEL}={options.model}")
    failed = 0
    for name in options.only or CHECKS:
        began = time.monotonic()
        try:
            result = await CHECKS[name](options)
            print(f"pass {name} ({time.monotonic() - began:.0f} s): {result}", flush=True)
        except (AssertionError, RuntimeError, OSError, KeyError) as error:
            failed += 1
            print(f"FAIL {name} ({time.monotonic() - began:.0f} s): {type(error).__name__}: {error}", flush=True)
    print(f"{len(options.only or CHECKS) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
