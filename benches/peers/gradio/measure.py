#!/usr/bin/env python3
"""The loads of docs/performance.md, "Beside Gradio's queue", on a real Gradio application (`app.py`) or on this
service: both speak the same protocol, so the client is the same. Standard library only, loopback only.

    python measure.py --gradio PYTHON LOAD...          PYTHON has `gradio`
    python measure.py --girandole BINARY LOAD...

Loads: noop, readers, stalled, cut, gone, eta. The CPU and memory are the server's own (`/proc`). A text grows by one
letter with each update. An update's delay counts from when it was made, as far as that can be told: of Gradio's
generator, which keeps to a timetable, from there; of our model, whose passes take a little longer than they are told to,
from the time of its event (`duration`), letters within one message lying evenly between two. The zero of both clocks is
the stream's own fastest update. A late server and a late client both count.
"""

import argparse
import asyncio
import json
import os
import pathlib
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

HERE = pathlib.Path(__file__).parent
TICKS = os.sysconf("SC_CLK_TCK")


class Server:
    """One of the two, started for one load."""

    def __init__(self, arguments, *, rate=20, limit=1, instant=False, grace_ms=2_000, status_rate="auto"):
        self.ours = bool(arguments.girandole)
        self.rate = rate
        self.folder = tempfile.TemporaryDirectory(prefix="girandole-")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        if self.ours:
            script = pathlib.Path(self.folder.name) / "model.toml"
            cost = "" if instant else f"[cost]\ntokens_per_second = {rate}\n"
            script.write_text(f'{cost}[model]\nslots = 4096\n[output]\nkind = "text"\ntext = "x"\n')
            command = [arguments.girandole, "serve", "--port", str(self.port), "--model", f"scripted:{script}"]
            command += ["--batch-size", str(limit), "--max-queued-requests", "4096", "--log-level", "warn"]
            command += ["--gradio-grace-ms", str(grace_ms), "--compute-threads", "1", "--max-queue-delay-ms", "0"]
        else:
            command = [arguments.gradio, HERE / "app.py", str(self.port), str(limit), str(status_rate)]
        environment = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        self.base = f"http://127.0.0.1:{self.port}"
        self.functions = {}

    def __enter__(self):
        for _ in range(1_200):
            try:
                with urllib.request.urlopen(f"{self.base}/config", timeout=5) as answer:
                    config = json.load(answer)
                break
            except OSError:
                time.sleep(0.1)
        time.sleep(0.5)
        for number, one in enumerate(config["dependencies"]):
            self.functions[one["api_name"]] = one.get("id", number)
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.folder.cleanup()

    def cpu_seconds(self):
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def rss_mb(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def noop(self):
        return ("generate", ["x", 1]) if self.ours else ("noop", ["x"])

    def stream(self, count):
        return ("generate", ["x", count]) if self.ours else ("stream", [count, self.rate])


async def request(server, method, path, body=b"", head=""):
    """Sends a request; reads the answer's head."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 24)
    text = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{server.port}\r\nconnection: close\r\n{head}"
    text += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(text.encode() + body)
    await writer.drain()
    answer = await reader.readuntil(b"\r\n\r\n")
    return reader, writer, answer


class Client:
    """A session, as Gradio's clients keep it: one stream, opened when there is none."""

    def __init__(self, server):
        self.server = server
        self.hash = f"{random.getrandbits(64):x}"
        self.connection = None
        self.messages = 0
        self.last_id = None

    async def join(self, function, data):
        body = {"data": data, "fn_index": self.server.functions[function], "session_hash": self.hash}
        body = json.dumps(body).encode()
        reader, writer, answer = await request(self.server, "POST", "/gradio_api/queue/join", body)
        rest = await reader.read()
        writer.close()
        if b" 200 " not in answer.split(b"\r\n")[0]:
            raise RuntimeError(f"{answer!r} {rest!r}")
        return json.loads(rest[rest.index(b"{"): rest.rindex(b"}") + 1])["event_id"]

    async def open(self, resume=False):
        head = f"last-event-id: {self.last_id}\r\n" if resume and self.last_id else ""
        query = "&resume=1" if resume else ""
        path = f"/gradio_api/queue/data?session_hash={self.hash}{query}"
        reader, writer, _ = await request(self.server, "GET", path, head=head)
        self.connection = reader, writer

    async def read(self):
        """The next message, or None at the end. Of chunked bodies only the `data:` lines count."""
        while True:
            line = await self.connection[0].readline()
            if not line:
                return None
            if line.startswith(b"id:"):
                self.last_id = line[3:].decode().strip()
            if line.startswith(b"data:"):
                self.messages += 1
                return json.loads(line[5:])

    def close(self):
        if self.connection:
            self.connection[1].close()
            self.connection = None

    async def call(self, function, data, on_message=None):
        event = await self.join(function, data)
        while True:
            if self.connection is None:
                await self.open()
            message = await self.read()
            if message is None or message["msg"] == "close_stream":
                self.close()
                continue
            if on_message and message.get("event_id") == event:
                on_message(message)
            if message["msg"] == "process_completed" and message["event_id"] == event:
                if not message["success"]:
                    raise RuntimeError(message)
                return message["output"]["data"]


def length_of(message, known):
    """How long the text is after this message."""
    data = message["output"]["data"]
    if message["msg"] == "process_completed" or isinstance(data[0], str):
        return len(data[0])
    return known + sum(len(edit[2]) for edit in data[0])


def quantile(values, share):
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def noop(arguments):
    for clients in arguments.levels or [1, 16, 64, 256]:
        with Server(arguments, instant=True, limit=arguments.limit or 1) as server:
            each = max(2, arguments.requests // clients)
            times = []
            members = [Client(server) for _ in range(clients)]

            async def work(client):
                for _ in range(each):
                    began = time.monotonic()
                    await client.call(*server.noop())
                    times.append(time.monotonic() - began)

            await members[0].call(*server.noop())
            members[0].messages = 0
            cpu, began = server.cpu_seconds(), time.monotonic()
            await asyncio.gather(*map(work, members))
            taken, cpu = time.monotonic() - began, server.cpu_seconds() - cpu
            count = clients * each
            for client in members:
                client.close()
            report(
                "noop", clients=clients, requests=count, per_second=count / taken,
                p50_ms=1e3 * statistics.median(times), p99_ms=1e3 * quantile(times, 0.99),
                cpu_ms_per_request=1e3 * cpu / count,
                messages_per_request=sum(client.messages for client in members) / count,
            )


async def follow(server, client, count, delays, ends):
    """One streamed text: when each of its letters came, against when it was made."""
    offsets = []
    known, made = 0, 0.0

    def note(message):
        nonlocal known, made
        if message["msg"] == "process_generating":
            now, longer = time.monotonic(), length_of(message, known)
            latest = message["output"]["duration"] if server.ours else longer / server.rate
            step = (latest - made) / max(1, longer - known)
            offsets.extend(now - made - step * number for number in range(1, longer - known + 1))
            known, made = longer, latest

    text = (await client.call(*server.stream(count), note))[0]
    ends.append(len(text) == count)
    first = min(offsets, default=0)
    delays.extend(offset - first for offset in offsets)


async def readers(arguments):
    for clients in arguments.levels or [1, 16, 64, 256, 1000]:
        with Server(arguments, rate=20, limit=4096) as server:
            count = 20 * arguments.seconds
            delays, ends = [], []
            members = [Client(server) for _ in range(clients)]
            cpu, own, began = server.cpu_seconds(), time.process_time(), time.monotonic()

            async def late(number, client):
                await asyncio.sleep(number / clients)
                await follow(server, client, count, delays, ends)

            jobs = [late(number, client) for number, client in enumerate(members)]
            await asyncio.wait_for(asyncio.gather(*jobs), 150)
            taken, cpu = time.monotonic() - began, server.cpu_seconds() - cpu
            own = time.process_time() - own
            for client in members:
                client.close()
            report(
                "readers", clients=clients, whole=sum(ends), late_s=taken - 1 - arguments.seconds,
                delay_p50_ms=1e3 * statistics.median(delays), delay_p99_ms=1e3 * quantile(delays, 0.99),
                delay_max_ms=1e3 * max(delays), cpu_share=cpu / taken, client_cpu_share=own / taken,
                messages=sum(client.messages for client in members), rss_mb=server.rss_mb(),
            )


async def stalled(arguments):
    for mode in ["reading", "stalled"]:
        with Server(arguments, rate=20, limit=4096) as server:
            count = 20 * arguments.seconds
            members = [Client(server) for _ in range(100)]
            before = server.rss_mb()
            for client in members:
                await client.join(*server.stream(count))
            for client in members:
                await client.open()
            if mode == "reading":
                async def drain(client):
                    while await client.read():
                        pass
                await asyncio.gather(*map(drain, members))
            else:
                for client in members:
                    client.connection[1].transport.pause_reading()
                await asyncio.sleep(arguments.seconds + 3)
            after = server.rss_mb()
            for client in members:
                client.close()
            await asyncio.sleep(4)
            report("stalled", mode=mode, readers=100, growth_mb=after - before, kept_mb=server.rss_mb() - before)


async def cut(arguments):
    """300 updates at 50 a second, cut after two seconds, opened again a second later."""
    with Server(arguments, rate=50, limit=4, grace_ms=30_000) as server:
        for _ in range(3):
            client = Client(server)
            await client.join(*server.stream(300))
            resume = server.ours
            await client.open(resume)
            known, completed = 0, False

            async def until(deadline):
                nonlocal known, completed
                while True:
                    try:
                        message = await asyncio.wait_for(client.read(), deadline - time.monotonic())
                    except (TimeoutError, asyncio.TimeoutError, OSError):
                        return
                    if message is None or message["msg"] == "close_stream":
                        return
                    if message["msg"] == "process_generating":
                        known = length_of(message, known)
                    completed |= message["msg"] == "process_completed" and message["success"]

            await until(time.monotonic() + 2)
            before = known
            client.close()
            await asyncio.sleep(1)
            try:
                await client.open(resume)
                await until(time.monotonic() + 30)
            except (OSError, asyncio.IncompleteReadError):
                pass
            client.close()
            report("cut", updates=300, before=before, known=known, lost=300 - known, completed=completed)


async def gone(arguments):
    """How long somebody waits for the only place when those before have gone. Their work is of 20 s each."""
    grace = 2
    for mode in ["closed while it ran", "joined and never opened"]:
        with Server(arguments, rate=20, limit=1, grace_ms=1_000 * grace) as server:
            for _ in range(3):
                left = Client(server)
                await left.join(*server.stream(400))
                if mode.startswith("closed"):
                    await left.open()
                    while (await left.read())["msg"] != "process_generating":
                        pass
                    left.close()
                began = time.monotonic()
                waits = []
                other = Client(server)
                note = lambda one: one["msg"] == "process_starts" and waits.append(time.monotonic() - began)  # noqa: E731, B023
                await asyncio.wait_for(other.call(*server.stream(1), note), 60)
                other.close()
                report("gone", mode=mode, waited_s=waits[0], grace_s=grace if server.ours else None)


async def eta(arguments):
    """What the first estimation says, against what came: of ours until the start, of Gradio's until the end."""
    random.seed(5)
    plan = [(0.3 * number + random.random(), random.choice([5, 10, 20, 60])) for number in range(200)]
    with Server(arguments, rate=20, limit=4) as server:
        began = time.monotonic()
        errors = []

        async def one(number, at, length):
            await asyncio.sleep(max(0, began + at - time.monotonic()))
            client, told, seen = Client(server), [], {}

            def note(message):
                seen.setdefault(message["msg"], time.monotonic())
                if message["msg"] == "estimation" and not told:
                    told.append((time.monotonic(), message["rank_eta"]))

            await client.call(*server.stream(length), note)
            client.close()
            when = seen["process_starts"] if server.ours else time.monotonic()
            if number >= 10 and told:
                at, predicted = told[0]
                errors.append((predicted, when - at))

        await asyncio.gather(*(one(number, *entry) for number, entry in enumerate(plan)))
        waited = [(p, a) for p, a in errors if a >= 0.5]
        relative = [abs(p - a) / a for p, a in waited if p is not None]
        report(
            "eta", requests=len(plan), waited=len(waited), silent=sum(p is None for p, _ in waited),
            median=statistics.median(relative), p90=quantile(relative, 0.9),
            median_wait_s=statistics.median(a for _, a in waited),
        )


def report(load, **figures):
    shown = {name: round(value, 3) if isinstance(value, float) else value for name, value in figures.items()}
    print(json.dumps({"load": load, **shown}), flush=True)


LOADS = {one.__name__: one for one in [noop, readers, stalled, cut, gone, eta]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--gradio", help="a Python that has gradio")
    which.add_argument("--girandole", help="this program")
    parser.add_argument("--levels", type=lambda text: [int(one) for one in text.split(",")])
    parser.add_argument("--limit", type=int, help="of noop: how many may run at once")
    parser.add_argument("--requests", type=int, default=256, help="of noop: in all, at least two for each client")
    parser.add_argument("--seconds", type=int, default=10, help="of readers and stalled: how long a text takes")
    parser.add_argument("loads", nargs="+", choices=LOADS)
    arguments = parser.parse_args()
    for load in arguments.loads:
        asyncio.run(LOADS[load](arguments))


if __name__ == "__main__":
    sys.exit(main())
