"""A small asyncio HTTP/1.1 and SSE client, on the standard library alone.

The acceptance runs use it, and not the project's own client, so that nothing of ours stands on both
sides. It keeps the time at which each frame's last byte arrived, can stop reading for a while, and
can cut a connection at a given frame.
"""

import asyncio
import json
import time


class Response:
    def __init__(self, status, headers, reader, writer):
        self.status = status
        self.headers = headers
        self._reader = reader
        self._writer = writer
        self._buffer = b""

    async def _chunks(self):
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            while True:
                line = await self._reader.readline()
                if not line:
                    raise ConnectionError("connection closed within a chunked body")
                size = int(line.strip() or b"0", 16)
                data = await self._reader.readexactly(size + 2)
                if size == 0:
                    return
                yield data[:-2]
        else:
            left = int(self.headers.get("content-length", "0"))
            while left:
                data = await self._reader.read(min(left, 65536))
                if not data:
                    raise ConnectionError("connection closed within a body")
                left -= len(data)
                yield data

    async def body(self):
        data = b"".join([chunk async for chunk in self._chunks()])
        self.close()
        return data

    async def json(self):
        return json.loads(await self.body())

    async def frames(self):
        """SSE messages with data: dicts of time, id, event, data. Comments are left out."""
        pending = b""
        async for chunk in self._chunks():
            arrived = time.monotonic()
            pending += chunk
            while b"\n\n" in pending:
                block, pending = pending.split(b"\n\n", 1)
                frame = {"time": arrived, "id": None, "event": None, "data": None}
                for line in block.decode("utf-8").split("\n"):
                    name, _, value = line.partition(":")
                    value = value.removeprefix(" ")
                    if name == "data":
                        frame["data"] = value if frame["data"] is None else frame["data"] + "\n" + value
                    elif name in ("id", "event"):
                        frame[name] = value
                if frame["data"] is not None:
                    yield frame
        self.close()

    def close(self):
        """Cuts the connection, at whatever point it is."""
        self._writer.close()


async def request(port, method, path, body=None, headers=None, raw=None):
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    payload = raw if raw is not None else (json.dumps(body).encode() if body is not None else b"")
    lines = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1", f"content-length: {len(payload)}"]
    if payload:
        lines.append("content-type: application/json")
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode() + payload)
    await writer.drain()
    status_line = await reader.readline()
    if not status_line:
        writer.close()
        raise ConnectionError("no answer")
    status = int(status_line.split()[1])
    found = {}
    while True:
        line = (await reader.readline()).strip()
        if not line:
            break
        name, _, value = line.decode().partition(":")
        found[name.strip().lower()] = value.strip()
    return Response(status, found, reader, writer)


async def call(port, method, path, body=None, headers=None, raw=None):
    """Status, headers, parsed body (text where it is not JSON)."""
    response = await request(port, method, path, body, headers, raw)
    data = await response.body()
    try:
        return response.status, response.headers, json.loads(data)
    except ValueError:
        return response.status, response.headers, data.decode("utf-8", "replace")


def busiest_second(times):
    """The most frames in any second that begins with a frame (the window's end is open)."""
    most = first = 0
    for last, at in enumerate(times):
        while at - times[first] >= 1.0:
            first += 1
        most = max(most, last - first + 1)
    return most


def longest_gap(times):
    return max((b - a for a, b in zip(times, times[1:])), default=0.0)


def quantile(values, q):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else float("nan")
