#!/usr/bin/env python3
"""Runs the conformance checks: starts the built program, waits until it is ready, runs the client
against it, ends it. Needs the standard library only; the clients need the packages that they are named for,
`openai` or `webuiapi`, and are run with the Python that runs this. A model that draws meets `openai`'s images.

    python tests/conformance/run.py --binary target/debug/girandole [--client sdapi] [--model NAME|PATH] ...
"""

import argparse
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

HERE = pathlib.Path(__file__).parent
KEY = "conformance-key-0123456789"
READY_SECONDS = 300
CLIENT_SECONDS = 600
# Where each client's API begins, and what it is given to draw or say by default.
CLIENTS = {"openai": ("/v1", "scripted.toml"), "sdapi": ("/sdapi/v1", "pictures.toml")}


def start(binary, model, key_file, log):
    """The program, with a small queue so that it can be filled."""
    flags = ["--host", "127.0.0.1", "--port", "0", "--model", model, "--api-key-file", key_file]
    flags += ["--batch-size", "8", "--max-queued-requests", "8"]
    return subprocess.Popen(
        [binary, "serve", *flags], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
    )


def base_url(process, log_path):
    """Where it listens, once it is ready."""
    deadline = time.monotonic() + READY_SECONDS
    url = None
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the program ended with {process.returncode}")
        if url is None:
            text = log_path.read_text(encoding="utf-8", errors="replace")
            found = re.search(r"listening on (http://127\.0\.0\.1:\d+)", text)
            url = found and found.group(1)
        elif is_ready(url):
            return url
        time.sleep(0.05)
    raise RuntimeError(f"the program was not ready in {READY_SECONDS} s")


def is_ready(url):
    try:
        with urllib.request.urlopen(f"{url}/health/ready", timeout=5) as answer:
            return answer.status == 200
    except urllib.error.URLError:
        return False


def task(url):
    """What the model makes: text or image."""
    request = urllib.request.Request(f"{url}/v1/models", headers={"authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return json.load(answer)["data"][0]["task"]


def stop(process):
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def check(binary, client, model):
    """Runs the client against one model; true if all went well."""
    print(f"== {model}", flush=True)
    with tempfile.TemporaryDirectory(prefix="girandole-") as folder:
        folder = pathlib.Path(folder)
        key_file, log_path = folder / "keys", folder / "log"
        key_file.write_text(f"{KEY}\n", encoding="utf-8")
        key_file.chmod(0o600)
        with open(log_path, "wb") as log:
            process = start(binary, model, str(key_file), log)
        try:
            url = base_url(process, log_path)
            flags = []
            script, base = HERE / f"{client}_client.py", url + CLIENTS[client][0]
            if client == "openai" and task(url) == "image":
                script = HERE / "openai_images.py"
            elif model.startswith("scripted:"):
                flags = ["--scripted"]
            command = [sys.executable, script, "--base-url", base, *flags]
            environment = {**os.environ, "OPENAI_API_KEY": KEY, "WEBUI_PASSWORD": KEY}
            result = subprocess.run(command, env=environment, timeout=CLIENT_SECONDS, check=False)
            passed = result.returncode == 0
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            print(error, flush=True)
            passed = False
        finally:
            stop(process)
        if not passed:
            text = log_path.read_text(encoding="utf-8", errors="replace")
            print(f"-- the end of the program's log:\n{text[-4000:]}", flush=True)
        return passed


def main():
    parser = argparse.ArgumentParser(description="client conformance")
    parser.add_argument("--binary", required=True)
    parser.add_argument("--client", choices=CLIENTS, default="openai")
    parser.add_argument("--model", action="append", help="repeatable; default: a scripted model")
    arguments = parser.parse_args()
    models = arguments.model or [f"scripted:{HERE / CLIENTS[arguments.client][1]}"]
    results = [check(arguments.binary, arguments.client, model) for model in models]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
