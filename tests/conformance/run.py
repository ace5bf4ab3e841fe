#!/usr/bin/env python3
"""Runs the conformance checks: starts the built program, waits until it is ready, runs the client
against it, ends it. Needs the standard library only; the clients need the packages that they are named for,
`openai`, `webuiapi` or `gradio_client`, and are run with the Python that runs this. A model that draws meets
`openai`'s images. `gradio-js` is run with `node` and needs a folder with `@gradio/client` in its node_modules.

    python tests/conformance/run.py --binary target/debug/girandole [--client sdapi|gradio] [--model NAME|PATH] ...
    python tests/conformance/run.py --binary target/debug/girandole --client gradio-js --modules FOLDER

What comes after `--` goes to the client: `-- --silent-seconds 150`, of Gradio's.
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
# Where each client's API begins, and what it is given to draw or say by default. Gradio's has all its models at
# once, as one application.
GRADIO = ["words=scripted.toml", "slow=gradio_slow.toml", "pictures=pictures.toml"]
CLIENTS = {
    "openai": ("/v1", ["scripted.toml"]),
    "sdapi": ("/sdapi/v1", ["pictures.toml"]),
    "gradio": ("", GRADIO),
    "gradio-js": ("", GRADIO),
}


def start(binary, models, key_file, log):
    """The program, with a small queue so that it can be filled."""
    flags = ["--host", "127.0.0.1", "--port", "0", "--api-key-file", key_file]
    flags += [word for model in models for word in ("--model", model)]
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


def scripted(model):
    """One of the scripts beside this file, named or not."""
    *name, script = model.split("=")
    return "=".join([*name, f"scripted:{HERE / script}"])


def stop(process):
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def command_of(client, modules):
    """What runs the client."""
    script = client if client == "openai_images" else f"{client}_client"
    if client == "gradio-js":
        return ["node", HERE / "gradio_js_client.mjs", "--modules", modules]
    return [sys.executable, HERE / f"{script}.py"]


def check(binary, client, models, modules, further):
    """Runs the client against one service; true if all went well."""
    print(f"== {client}: {', '.join(models)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="girandole-") as folder:
        folder = pathlib.Path(folder)
        key_file, log_path = folder / "keys", folder / "log"
        key_file.write_text(f"{KEY}\n", encoding="utf-8")
        key_file.chmod(0o600)
        with open(log_path, "wb") as log:
            process = start(binary, models, str(key_file), log)
        try:
            url = base_url(process, log_path)
            command, base = command_of(client, modules), url + CLIENTS[client][0]
            if client == "openai" and task(url) == "image":
                command = command_of("openai_images", modules)
            elif all("scripted:" in model for model in models):
                command.append("--scripted")
            command += ["--base-url", base, *further]
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
    parser.add_argument("--modules", help="the folder of gradio-js's packages")
    parser.add_argument("further", nargs="*", help="flags of the client, after --")
    arguments = parser.parse_args()
    client = arguments.client
    if client == "gradio-js" and not arguments.modules:
        parser.error("gradio-js needs --modules")
    models = arguments.model or [scripted(model) for model in CLIENTS[client][1]]
    services = [models] if client.startswith("gradio") else [[model] for model in models]
    results = [
        check(arguments.binary, client, models, arguments.modules, arguments.further)
        for models in services
    ]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
