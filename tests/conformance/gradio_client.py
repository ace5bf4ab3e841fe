#!/usr/bin/env python3
"""The real `gradio_client` against a running service of three scripted models: `words`, `pictures`, and
`slow`, which is silent for a second with each letter of its prompt. The batch has 8 rows and the queue 8 places.

After each check the same client makes another call: none may leave it unusable.

    python gradio_client.py --base-url http://127.0.0.1:8080 [--silent-seconds 150] [--only NAME]
"""

import argparse
import concurrent.futures
import contextlib
import io
import json
import os
import pathlib
import sys
import tempfile
import time
import traceback
import urllib.request

# Not ourselves: a script's folder comes first on the path.
sys.path.remove(str(pathlib.Path(__file__).parent))

from gradio_client import Client, handle_file  # noqa: E402
from gradio_client.exceptions import AppError, ValidationError  # noqa: E402
from gradio_client.utils import QueueError, Status  # noqa: E402

KEY = os.environ["OPENAI_API_KEY"]
PNG = b"\x89PNG\r\n\x1a\n"
ENDPOINTS = {
    "/chat", "/chat_words", "/chat_slow", "/generate", "/generate_words", "/generate_slow", "/txt2img", "/img2img",
}
ROWS = 8
LONG = 6000


def connect(base_url, **options):
    options = options or {"headers": {"Authorization": f"Bearer {KEY}"}}
    return Client(base_url, verbose=False, analytics_enabled=False, **options)


def until(condition, seconds=20, message="it did not happen in time"):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError(message)


class Checks:
    def __init__(self, base_url, silent_seconds):
        self.base_url = base_url
        self.silent_seconds = silent_seconds
        self.client = connect(base_url)
        self.long = []

    def running_rows(self, model="words"):
        request = urllib.request.Request(
            f"{self.base_url}/load", headers={"authorization": f"Bearer {KEY}"}
        )
        with urllib.request.urlopen(request, timeout=5) as answer:
            models = json.load(answer)["models"]
        return next(one["running_rows"] for one in models if one["name"] == model)

    def fill(self, count):
        """So many long jobs, each accepted before the next is sent."""
        jobs = []
        for number in range(count):
            job = self.client.submit(f"long {number}", LONG, api_name="/generate")
            until(lambda job=job: job.communicator.event_id or job.done())
            jobs.append(job)
        self.long += jobs
        return jobs

    def clear(self, jobs):
        for job in jobs:
            job.cancel()
        until(lambda: self.running_rows() == 0, message="cancelled jobs go on")

    def view_api(self):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            self.client.view_api()
        assert "predict(prompt, max_tokens" in out.getvalue(), out.getvalue()
        named = self.client.view_api(print_info=False, return_format="dict")["named_endpoints"]
        assert set(named) == ENDPOINTS, sorted(named)

    def keys(self):
        assert connect(self.base_url, token=KEY).predict("hi", 2, api_name="/generate")
        try:
            connect(self.base_url, headers={"Authorization": "Bearer nobody"})
        except Exception as error:  # noqa: BLE001
            assert "credentials" in str(error), error
        else:
            raise AssertionError("anybody may call")

    def by_position_and_by_name(self):
        at = self.client.predict("hello", 20.0, 0.5, 0.9, 7, api_name="/generate")
        named = self.client.predict(
            prompt="hello", max_tokens=20, temperature=0.5, top_p=0.9, seed=7, api_name="/generate"
        )
        other = self.client.predict("hello", 20, 0.5, 0.9, 8, api_name="/generate")
        assert at == named and len(at) == 20 and at != other, (at, named, other)
        by_index = self.client.predict("hello", 20, 0.5, 0.9, 7, fn_index=self.index("/generate"))
        assert by_index == at, by_index

    def index(self, name):
        dependencies = self.client.config["dependencies"]
        return next(one["id"] for one in dependencies if f"/{one['api_name']}" == name)

    def chat(self):
        history = [
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "two", "metadata": None, "options": None},
        ]
        # As a client of gr.ChatInterface calls it: the message and the additional inputs.
        at = self.client.predict("hello", "Be brief.", 20, 0.5, 0.9, 7, api_name="/chat")
        named = self.client.predict(
            message="hello", system_message="Be brief.", max_tokens=20, temperature=0.5, top_p=0.9,
            seed=7, api_name="/chat",
        )
        longer = self.client.predict(
            message="hello", system_message="Be brief.", max_tokens=20, temperature=0.5, top_p=0.9,
            seed=7, history=history, api_name="/chat",
        )
        assert at == named and len(at) == 20 and longer != at, (at, named, longer)

    def iterate(self):
        began = time.monotonic()
        job = self.client.submit("hello", 300, api_name="/generate")
        said = list(job)
        taken = time.monotonic() - began
        assert said[-1] == job.result() and len(said[-1]) == 300, said[-1]
        for before, after in zip(said, said[1:], strict=False):
            assert after.startswith(before) and len(after) > len(before), (before, after)
        # Twenty in each second, however long a busy machine takes for three seconds of text.
        assert 6 <= len(said) <= 20 * taken + 5, (len(said), taken)

    def rank_and_eta(self):
        jobs = self.fill(ROWS)
        until(lambda: self.running_rows() == ROWS)
        waiting = self.fill(2)
        until(lambda: all(job.status().code == Status.IN_QUEUE for job in waiting))
        ranks = [job.status().rank for job in waiting]
        assert ranks == [0, 1], ranks
        status = waiting[1].status()
        assert status.queue_size == 2 and status.eta > 0, status
        waiting[0].cancel()
        until(lambda: waiting[1].status().rank == 0, message="nobody moved up")
        self.clear([*jobs, *waiting])

    def progress(self):
        # Three seconds: the client reads on only when it has fetched a preview, which takes it half a second at times.
        job = self.client.submit("a circle", steps=150, api_name="/txt2img")
        seen = []
        while not job.done():
            units = job.status().progress_data
            if units:
                seen.append((units[0].index, units[0].length, units[0].unit))
            time.sleep(0.02)
        pictures, seed = job.result()
        steps = [index for index, _, _ in seen]
        assert steps == sorted(steps) and len(set(steps)) >= 3, steps
        assert all(rest == (150, "steps") for _, *rest in seen for rest in [tuple(rest)]), seen
        assert len(pictures) == 1 and isinstance(seed, int), (pictures, seed)
        # Previews came before it.
        assert len(job.outputs()) >= 2, job.outputs()

    def pictures(self):
        [pictures, seed] = self.client.predict(
            prompt="a circle", steps=4, seed=5, count=2, width=64, height=64, api_name="/txt2img"
        )
        assert seed == 5 and [one["caption"] for one in pictures] == ["seed 5", "seed 6"], pictures
        for one in pictures:
            assert pathlib.Path(one["image"]).read_bytes().startswith(PNG), one

    def upload(self):
        with tempfile.TemporaryDirectory() as folder:
            [pictures, _] = self.client.predict(
                "a circle", steps=2, width=64, height=64, api_name="/txt2img"
            )
            mine = pathlib.Path(folder) / "höher ..%2f&.png"
            mine.write_bytes(pathlib.Path(pictures[0]["image"]).read_bytes())
            [drawn, _] = self.client.predict(
                handle_file(str(mine)), "a square", steps=4, strength=0.5, api_name="/img2img"
            )
            assert pathlib.Path(drawn[0]["image"]).read_bytes().startswith(PNG), drawn
            text = pathlib.Path(folder) / "text.png"
            text.write_text("no picture", encoding="utf-8")
            try:
                self.client.predict(handle_file(str(text)), "a square", api_name="/img2img")
            except Exception as error:  # noqa: BLE001
                assert "422" in str(error), error
            else:
                raise AssertionError("a text passed for a picture")

    def cancel_running(self):
        job = self.client.submit("hello", LONG, api_name="/generate")
        until(lambda: len(job.outputs()) > 2)
        job.cancel()
        until(lambda: self.running_rows() == 0, seconds=5, message="it goes on")
        until(job.done, seconds=5)
        # Which of the client's two threads is first is chance: it ends as cancelled, or with the last value.
        with contextlib.suppress(concurrent.futures.CancelledError):
            assert job.result(timeout=5).startswith(job.outputs()[-2])

    def cancel_queued(self):
        jobs = self.fill(ROWS + 1)
        until(lambda: self.running_rows() == ROWS)
        sibling = jobs[0]
        until(lambda: sibling.outputs(), message="the sibling says nothing")
        jobs[-1].cancel()
        before = len(sibling.outputs()[-1])
        until(lambda: len(sibling.outputs()[-1]) > before + 50, message="the sibling stopped")
        assert self.running_rows() == ROWS and not sibling.done()
        self.clear(jobs)

    def queue_full(self):
        jobs = self.fill(2 * ROWS)
        try:
            self.client.predict("one too many", 5, api_name="/generate")
        except QueueError as error:
            assert "full" in str(error), error
        else:
            raise AssertionError("the queue has no end")
        # Pictures have a queue of their own.
        assert self.client.predict("a circle", steps=2, api_name="/txt2img")
        self.clear(jobs)

    def errors(self):
        job = self.client.submit("poison", 20, api_name="/generate")
        said = list(job)
        assert len(said) <= 2, said
        try:
            job.result()
        except AppError as error:
            assert "not finite" in str(error) and error.title == "Error", error
        else:
            raise AssertionError("a failed job has a result")
        try:
            self.client.predict("hello", temperature=9, api_name="/generate")
        except ValidationError as error:
            assert "temperature must be between 0 and 2" in str(error), error
        else:
            raise AssertionError("any temperature will do")

    def one_connection(self):
        jobs = [self.client.submit(f"job {n}", 30, seed=n, api_name="/generate") for n in range(10)]
        results = [job.result(timeout=30) for job in jobs]
        assert len(set(results)) == 10 and all(len(one) == 30 for one in results), results

    def silence(self):
        began = time.monotonic()
        job = self.client.submit("x" * self.silent_seconds, 5, api_name="/generate_slow")
        assert len(job.result(timeout=self.silent_seconds + 60)) == 5
        taken = time.monotonic() - began
        assert taken >= self.silent_seconds * 0.95, taken

    ALL = [
        view_api, keys, by_position_and_by_name, chat, iterate, rank_and_eta, progress, pictures, upload,
        cancel_running, cancel_queued, queue_full, errors, one_connection, silence,
    ]

    def run(self, check):
        began = time.monotonic()
        try:
            check(self)
            again = self.client.predict("again", 3, api_name="/generate")
            assert len(again) == 3, again
        except Exception:  # noqa: BLE001
            print(f"FAILED  {check.__name__}\n{traceback.format_exc()}", flush=True)
            for job in self.long:
                job.cancel()
            return False
        print(f"ok      {check.__name__} ({time.monotonic() - began:.1f} s)", flush=True)
        return True


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--silent-seconds", type=int, default=17)
    parser.add_argument("--only", help="one check")
    parser.add_argument("--scripted", action="store_true", help="the models are scripted, as they always are")
    arguments = parser.parse_args()
    checks = Checks(arguments.base_url, arguments.silent_seconds)
    wanted = [one for one in Checks.ALL if arguments.only in (None, one.__name__)]
    results = [checks.run(one) for one in wanted]
    # Threads of jobs that were cancelled may still poll.
    sys.stdout.flush()
    os._exit(0 if results and all(results) else 1)


if __name__ == "__main__":
    main()
