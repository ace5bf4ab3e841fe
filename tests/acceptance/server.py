"""Starts the program for an acceptance run, waits until it is ready, reads its metrics, ends it."""

import asyncio
import os
import re
import signal
import subprocess
import tempfile
import time

import http1


class Server:
    """`async with Server(binary, "--model", ...) as server:` with `server.port`."""

    def __init__(self, binary, *flags, environment=None):
        self.command = [binary, "serve", "--host", "127.0.0.1", "--port", "0", *flags]
        self.environment = {**os.environ, **(environment or {})}
        self.log = tempfile.NamedTemporaryFile("w+", prefix="girandole-", suffix=".log", delete=False)
        self.port = None

    async def __aenter__(self):
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            self.command, stdout=self.log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=self.environment
        )
        while self.port is None:
            await self._still_alive()
            found = re.search(r"listening on http://127\.0\.0\.1:(\d+)", self.text())
            self.port = int(found.group(1)) if found else None
        while (await http1.call(self.port, "GET", "/health/ready"))[0] != 200:
            await self._still_alive()
        self.ready_seconds = time.monotonic() - self.began
        return self

    async def _still_alive(self):
        if self.process.poll() is not None:
            raise RuntimeError(f"the server ended with {self.process.returncode}:\n{self.text()[-4000:]}")
        if time.monotonic() - self.began > 300:
            self.process.kill()
            raise RuntimeError(f"the server was not ready in 300 s:\n{self.text()[-4000:]}")
        await asyncio.sleep(0.05)

    async def __aexit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                await asyncio.to_thread(self.process.wait, 15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()
        os.unlink(self.log.name)

    def text(self):
        with open(self.log.name, encoding="utf-8", errors="replace") as log:
            return log.read()

    def resident_bytes(self):
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))

    async def metrics(self):
        """Sums over labels: name -> value."""
        _, _, text = await http1.call(self.port, "GET", "/metrics")
        sums = {}
        for line in text.splitlines():
            if line and not line.startswith("#"):
                name = re.split(r"[{ ]", line, maxsplit=1)[0]
                sums[name] = sums.get(name, 0.0) + float(line.rsplit(" ", 1)[1])
        return sums

    async def load(self):
        return (await http1.call(self.port, "GET", "/load"))[2]
