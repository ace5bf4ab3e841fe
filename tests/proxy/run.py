#!/usr/bin/env python3
"""Runs the service behind a real proxy and holds what comes through to what comes without it.

    python3 tests/proxy/run.py --binary target/debug/girandole [--proxy nginx|caddy] [--only NAME]

Needs `nginx` (Debian: nginx-light) or `caddy`, and the standard library. They run with docs/proxy/nginx.conf and
docs/proxy/Caddyfile, in which only addresses are replaced. A good minute, a third of it waiting for a proxy that is gone.
"""

import argparse
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import zlib

HERE = pathlib.Path(__file__).parent
SAMPLES = HERE.parent.parent / "docs/proxy"
REQUESTS = "/api/v1/requests"
# Fifty tokens a second, so that an answer of 600 takes 12 s.
TEXT = '[cost]\ntokens_per_second = 50.0\n[output]\nkind = "varied"\n'
PICTURE = "image = { finish_work = 1 }\n[cost]\niterate_row_micros = 100000\n"
# A proxy that heeds no header, and compresses what it can.
STUBBORN = """
        proxy_ignore_headers X-Accel-Buffering;
        proxy_buffering on;
        gzip on;
        gzip_types *;
        gzip_proxied any;
"""
READY_SECONDS = 60


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Service:
    """The program with two scripted models, until the block ends."""

    def __init__(self, binary, folder, *flags):
        (folder / "text.toml").write_text(TEXT)
        (folder / "picture.toml").write_text(PICTURE)
        models = [f"text=scripted:{folder}/text.toml", f"picture=scripted:{folder}/picture.toml"]
        self.port = free_port()
        listen = ["--host", "127.0.0.1", "--port", str(self.port)]
        self.command = [binary, "serve", *listen, *[part for model in models for part in ("--model", model)], *flags]
        self.log = open(folder / "service.log", "w", encoding="utf-8")

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        until_answered(self.port, self.process)
        return self

    def __exit__(self, *_):
        # The second stops at once, whatever still runs.
        self.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        stop(self.process, signal.SIGTERM)
        self.log.close()


class Proxy:
    """A sample's proxy before a port, until the block ends; it can be gone for a while."""

    environment = None

    def __init__(self, folder, upstream, more=""):
        self.folder = folder
        self.port = free_port()
        self.process = None
        sample = (SAMPLES / self.sample).read_text(encoding="utf-8")
        self.configure(sample.replace("127.0.0.1:8080", f"127.0.0.1:{upstream}"), upstream, more)

    def start(self):
        self.process = subprocess.Popen(
            self.command(), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=self.environment
        )
        until_answered(self.port, self.process)

    def stop(self):
        stop(self.process, signal.SIGTERM)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()


class Nginx(Proxy):
    sample = "nginx.conf"

    def configure(self, sample, upstream, more):
        sample = re.sub(r"listen 80;", f"listen 127.0.0.1:{self.port};", sample)
        sample = re.sub(r"^ *listen \[::\]:80;\n", "", sample, flags=re.M)
        assert f"127.0.0.1:{upstream}" in sample and f"127.0.0.1:{self.port}" in sample, "the sample has changed"
        head, brace, tail = sample.partition("location / {")
        places = "".join(
            f"{name}_temp_path {self.folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        self.file = self.folder / "nginx.conf"
        self.file.write_text(
            f"daemon off;\nmaster_process off;\npid {self.folder}/nginx.pid;\nerror_log {self.folder}/nginx.log;\n"
            f"events {{ worker_connections 256; }}\nhttp {{\naccess_log off;\n{places}{head}{brace}{more}{tail}\n}}\n"
        )

    def command(self):
        return ["nginx", "-p", str(self.folder), "-c", str(self.file)]


class Caddy(Proxy):
    sample = "Caddyfile"

    def configure(self, sample, upstream, more):
        assert not more, "only nginx is made stubborn"
        sample = sample.replace("example.org {", f"http://127.0.0.1:{self.port} {{")
        assert f"127.0.0.1:{upstream}" in sample and f"127.0.0.1:{self.port}" in sample, "the sample has changed"
        self.file = self.folder / "Caddyfile"
        # Its own control port is shut, and it stops at once: a stop of this test's is a cut.
        self.file.write_text(f"{{\n\tadmin off\n\tgrace_period 1s\n}}\n{sample}")
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder)}

    def command(self):
        return ["caddy", "run", "--config", str(self.file), "--adapter", "caddyfile"]


def stop(process, how):
    if process.poll() is None:
        process.send_signal(how)
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def until_answered(port, process):
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args[0]} ended with {process.returncode}")
        try:
            if call(port, "GET", "/health/ready")[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise RuntimeError(f"{process.args[0]} was not ready in {READY_SECONDS} s")


def connect(port, source="127.0.0.1"):
    return http.client.HTTPConnection("127.0.0.1", port, timeout=30, source_address=(source, 0))


def call(port, method, path, body=None, headers=None, source="127.0.0.1"):
    """Status and body."""
    connection = connect(port, source)
    headers = {"content-type": "application/json", **(headers or {})}
    connection.request(method, path, json.dumps(body) if body is not None else None, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content


def submit(port, body, **more):
    status, content = call(port, "POST", REQUESTS, body, **more)
    return status, json.loads(content).get("id")


def lines(answer):
    """A stream's lines as they come, decompressed where a proxy has compressed them."""
    unpack = zlib.decompressobj(31).decompress if answer.getheader("content-encoding") == "gzip" else bytes
    pending = b""
    while chunk := answer.read1():
        *whole, pending = (pending + unpack(chunk)).split(b"\n")
        yield from (line.decode() for line in whole)


class Reader:
    """Follows a request to its end, over as many streams as that takes."""

    def __init__(self, port, request):
        self.port, self.request = port, request
        self.last, self.streams, self.first_after = 0, 0, None
        self.text, self.images, self.over = "", [], False
        self.headers = None

    def read_stream(self, seconds=None):
        """Reads one stream to its end, or for so long and then cuts it."""
        connection = connect(self.port)
        began = time.monotonic()
        self.streams += 1
        headers = {"last-event-id": str(self.last), "accept-encoding": "gzip"}
        try:
            connection.request("GET", f"{REQUESTS}/{self.request}/events", headers=headers)
            answer = connection.getresponse()
            self.headers = {name.lower(): value for name, value in answer.getheaders()}
            if answer.status != 200:
                raise ConnectionError(f"answered {answer.status}")
            message = {}
            for line in lines(answer):
                if line:
                    name, _, value = line.partition(": ")
                    message[name] = value
                    continue
                if "data" in message:
                    self.take(message, time.monotonic() - began)
                message = {}
                if seconds is not None and time.monotonic() - began > seconds:
                    return
        finally:
            connection.close()

    def take(self, message, after):
        number = int(message["id"])
        assert number > self.last, f"{number} after {self.last}"
        self.last = number
        data = json.loads(message["data"])
        if message["event"] == "text" and self.first_after is None:
            self.first_after = after
        for choice in data.get("choices", []):
            self.text += choice.get("text", "")
        if message["event"] == "image":
            self.images += [image["url"] for image in data["images"]]
        assert message["event"] != "failed", data
        self.over |= message["event"] == "finished"

    def read(self, patience=30):
        """Reads until the end, coming back whenever a stream ends or cannot be had."""
        deadline = time.monotonic() + patience
        while not self.over:
            assert time.monotonic() < deadline, f"not over after {self.streams} streams"
            try:
                self.read_stream()
            except (OSError, http.client.HTTPException):
                time.sleep(0.2)
        return self


def text_body(tokens):
    return {"model": "text", "prompt": "Say something", "max_tokens": tokens, "seed": 7, "detach": True}


def told(port, tokens=300):
    _, request = submit(port, text_body(tokens))
    return Reader(port, request).read()


def passes_streams_on(args, folder):
    """As documented: whole, at once, and with the headers that ask for it."""
    with Service(args.binary, folder) as service, args.proxy(folder, service.port) as proxy:
        direct, through = told(service.port), told(proxy.port)
        assert through.text == direct.text and len(direct.text) > 0, "another text"
        assert through.headers["cache-control"] == "no-cache, no-transform", through.headers
        assert "content-encoding" not in through.headers
        assert through.streams == 1
        assert through.first_after < 3, f"the first text after {through.first_after} s of 6 s"
        return f"{len(through.text)} bytes equal; first text {through.first_after:.2f} s into a stream of 6 s"


def survives_buffering(args, folder):
    """A proxy that buffers and compresses all the same: late, but whole."""
    with Service(args.binary, folder) as service, Nginx(folder, service.port, STUBBORN) as proxy:
        direct, through = told(service.port), told(proxy.port)
        assert through.text == direct.text, "another text"
        assert through.headers["content-encoding"] == "gzip", "the proxy is not stubborn enough"
        return f"{len(through.text)} bytes equal over {through.streams} streams, first text after {through.first_after:.2f} s"


def survives_a_cut_of_ten_seconds(args, folder):
    """The proxy is gone for ten seconds in mid-stream, of a text and of a picture; nginx also where it buffers."""
    found = []
    bodies = [text_body(600), {"model": "picture", "prompt": "a lamp", "steps": 60, "seed": 7, "detach": True}]
    with Service(args.binary, folder) as service:
        submitted = [submit(service.port, body)[1] for body in bodies]
        text, image = (Reader(service.port, request).read() for request in submitted)
        drawn = file_of(service.port, image)
        ways = [("plain", ""), ("buffering", STUBBORN)] if args.proxy is Nginx else [("plain", "")]
        for name, more in ways:
            place = folder / name
            place.mkdir()
            with args.proxy(place, service.port, more) as proxy:
                readers = [Reader(proxy.port, submit(proxy.port, body)[1]) for body in bodies]
                for reader in readers if name == "plain" else []:
                    reader.read_stream(1)
                proxy.stop()
                time.sleep(10)
                proxy.start()
                again = [reader.read() for reader in readers]
                assert again[0].text == text.text, "another text"
                assert file_of(proxy.port, again[1]) == drawn, "another picture"
                found.append(f"{name}: {len(text.text)} and {len(drawn)} bytes equal")
    return "; ".join(found)


def file_of(port, reader):
    [url] = reader.images
    status, content = call(port, "GET", urllib.parse.urlsplit(url).path)
    assert status == 200
    return content


def goes_on_after_forced_ends(args, folder):
    """The service ends each stream after a second."""
    with Service(args.binary, folder, "--max-stream-age-s", "1") as service:
        with args.proxy(folder, service.port) as proxy:
            through = told(proxy.port, 300)
    with Service(args.binary, folder) as service:
        direct = told(service.port, 300)
    assert direct.streams == 1
    assert through.streams > 3, f"{through.streams} streams"
    assert through.text == direct.text, "another text"
    return f"{len(through.text)} bytes equal over {through.streams} streams"


def tells_users_apart(args, folder):
    """By what the proxy saw, not by what clients say."""
    flags = ["--trusted-proxies", "127.0.0.1", "--max-waiting-per-user", "0", "--max-running-per-user", "1"]
    with Service(args.binary, folder, *flags) as service, args.proxy(folder, service.port) as proxy:
        long, forged = text_body(1000), {"x-forwarded-for": "203.0.113.9", "x-real-ip": "203.0.113.9"}
        statuses = [
            submit(proxy.port, long, source="127.0.0.2")[0],
            submit(proxy.port, long, source="127.0.0.2")[0],
            submit(proxy.port, long, source="127.0.0.2", headers=forged)[0],
            submit(proxy.port, long, source="127.0.0.3")[0],
        ]
        assert statuses == [201, 429, 429, 201], statuses
        return f"statuses {statuses}"


CHECKS = [
    passes_streams_on,
    survives_buffering,
    survives_a_cut_of_ten_seconds,
    goes_on_after_forced_ends,
    tells_users_apart,
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--proxy", choices=["nginx", "caddy"], default="nginx")
    parser.add_argument("--only", choices=[check.__name__ for check in CHECKS])
    args = parser.parse_args()
    if shutil.which(args.proxy) is None:
        sys.exit(f"{args.proxy} is not installed")
    args.proxy = {"nginx": Nginx, "caddy": Caddy}[args.proxy]
    failed = 0
    for check in CHECKS:
        if args.only not in (None, check.__name__) or (check is survives_buffering and args.proxy is not Nginx):
            continue
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="girandole-proxy-") as folder:
            try:
                found = check(args, pathlib.Path(folder))
                print(f"ok   {check.__name__}: {found} ({time.monotonic() - began:.1f} s)", flush=True)
            except (AssertionError, OSError, RuntimeError, http.client.HTTPException) as error:
                failed += 1
                print(f"FAIL {check.__name__}: {error!r}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
