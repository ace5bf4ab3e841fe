#!/usr/bin/env python3
"""The real `openai` client against a running service that draws: one line a check, then the sums.

    OPENAI_API_KEY=... python openai_images.py --base-url http://127.0.0.1:8080/v1 [--model NAME]
"""

import argparse
import base64
import os
import struct
import sys
import time
import traceback
import urllib.parse
import urllib.request
import zlib

import openai

CHECKS = []
PARTIAL, COMPLETED = "partial_image", "completed"


def check(function):
    CHECKS.append(function)
    return function


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, colour):
    """A PNG of one colour; with four values, it has an alpha channel."""
    line = b"\0" + bytes(colour) * width
    head = struct.pack(">IIBBBBB", width, height, 8, {3: 2, 4: 6}[len(colour)], 0, 0, 0)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(line * height)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def png_size(file):
    equal(file[:8], b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", file[16:24])


def equal(found, expected):
    assert found == expected, f"{found!r} is not {expected!r}"


def refused(kind, call, **expected):
    """The call raises this exception, with these attributes."""
    try:
        call()
    except openai.OpenAIError as error:
        assert isinstance(error, kind), f"{type(error).__name__} was raised: {error}"
        for name, value in expected.items():
            equal(getattr(error, name), value)
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


class Service:
    """The client, the model's name, and plain HTTP for what the client cannot do."""

    def __init__(self, base_url, model, key):
        self.client = openai.OpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=120)
        self.base_url, self.key = base_url, key
        self.model = model or self.client.models.list().data[0].id

    def draw(self, extra=None, **fields):
        extra = {"seed": 1, "steps": 10, **(extra or {})}
        fields = {"model": self.model, "prompt": "a red circle", "size": "64x64", **fields}
        return self.client.images.generate(extra_body=extra, **fields)

    def edit(self, extra=None, **fields):
        extra = {"seed": 1, "steps": 10, **(extra or {})}
        fields = {"model": self.model, "prompt": "a hat", **fields}
        return self.client.images.edit(extra_body=extra, **fields)

    def open(self, url, headers=None):
        headers = {"authorization": f"Bearer {self.key}", **(headers or {})}
        request = urllib.request.Request(urllib.parse.urljoin(self.base_url, url), headers=headers)
        return urllib.request.urlopen(request, timeout=60)


def file_of(entry):
    return base64.b64decode(entry.b64_json, validate=True)


@check
def the_model_is_listed(service):
    model = service.client.models.retrieve(service.model)
    equal((model.id, model.object, model.task), (service.model, "model", "image"))


@check
def a_picture_is_drawn(service):
    reply = service.draw()
    equal(png_size(file_of(reply.data[0])), (64, 64))
    equal((reply.size, reply.output_format, reply.background), ("64x64", "png", "opaque"))
    assert reply.created > 1_500_000_000, reply.created
    usage = reply.usage
    equal(usage.output_tokens, 10)
    equal(usage.total_tokens, usage.input_tokens + usage.output_tokens)
    assert usage.input_tokens_details.text_tokens == usage.input_tokens > 0, usage


@check
def several_pictures_are_drawn_each_with_its_seed(service):
    files = [file_of(entry) for entry in service.draw(n=3).data]
    equal(len(set(files)), 3)
    equal(files[1:2], [file_of(service.draw(extra={"seed": 2}).data[0])])


@check
def formats_and_addresses(service):
    for name, head in [("png", b"\x89PNG"), ("webp", b"RIFF"), ("jpeg", b"\xff\xd8\xff")]:
        file = file_of(service.draw(output_format=name).data[0])
        assert file.startswith(head), (name, file[:8])
        url = service.draw(output_format=name, response_format="url").data[0].url
        with service.open(url) as answer:
            equal((answer.headers["content-type"], answer.read()), (f"image/{name}", file))
    small, large = (
        file_of(service.draw(output_format="jpeg", output_compression=quality).data[0]) for quality in (1, 100)
    )
    assert len(small) < len(large), (len(small), len(large))


def told(events, kind):
    """A stream's partial images and pictures, by the picture."""
    partials, pictures = {}, {}
    for event in events:
        if event.type == f"{kind}.{PARTIAL}":
            of_picture = partials.setdefault(event.image_index, [])
            equal(event.partial_image_index, len(of_picture))
            of_picture.append(file_of(event))
        elif event.type == f"{kind}.{COMPLETED}":
            assert event.image_index not in pictures
            assert event.usage.total_tokens > 0, event
            pictures[event.image_index] = file_of(event)
        else:
            raise AssertionError(event.type)
        equal((event.output_format, event.quality, event.background), ("png", "auto", "opaque"))
        assert event.created_at > 1_500_000_000, event.created_at
    return partials, pictures


@check
def partial_images_are_streamed(service):
    for partial_images in range(4):
        stream = service.draw(stream=True, partial_images=partial_images)
        partials, pictures = told(stream, "image_generation")
        equal([len(files) for files in partials.values()], [partial_images] if partial_images else [])
        equal(pictures, {0: file_of(service.draw().data[0])})
        for file in partials.get(0, []):
            equal(png_size(file), (64, 64))


@check
def several_pictures_are_streamed(service):
    stream = service.draw(n=3, stream=True, partial_images=2)
    partials, pictures = told(stream, "image_generation")
    equal({index: len(files) for index, files in partials.items()}, {0: 2, 1: 2, 2: 2})
    equal([pictures[index] for index in range(3)], [file_of(entry) for entry in service.draw(n=3).data])


@check
def progress_is_streamed_on_demand(service):
    extra = {"stream_options": {"include_progress": True}, "steps": 50}
    events = list(service.draw(stream=True, extra=extra))
    steps = [event.step for event in events if event.type == "image_generation.progress"]
    assert steps and steps == sorted(steps), steps
    equal(events[-1].type, "image_generation.completed")


@check
def a_picture_is_edited(service):
    picture = png(48, 32, (200, 10, 10))
    reply = service.edit(image=("a.png", picture, "image/png"), extra={"strength": 0.5})
    equal((png_size(file_of(reply.data[0])), reply.usage.output_tokens), ((48, 32), 5))
    again = service.edit(image=[("a.png", picture, "image/png")], extra={"strength": 0.5}, n=1, size="auto")
    equal(file_of(again.data[0]), file_of(reply.data[0]))


@check
def a_masked_part_is_edited(service):
    picture, mask = png(48, 32, (200, 10, 10)), png(48, 32, (0, 0, 0, 0))
    reply = service.edit(image=("a.png", picture), mask=("m.png", mask), size="64x64", response_format="b64_json")
    equal(png_size(file_of(reply.data[0])), (64, 64))


@check
def an_edit_is_streamed(service):
    picture = png(48, 32, (200, 10, 10))
    stream = service.edit(image=("a.png", picture), stream=True, partial_images=2, extra={"strength": 1})
    partials, pictures = told(stream, "image_edit")
    equal(([len(files) for files in partials.values()], list(pictures)), ([2], [0]))


@check
def what_cannot_be_drawn_is_refused_by_name(service):
    bad = openai.BadRequestError
    for fields, param, code in [
        ({"size": "60x64"}, "size", "invalid_value"),
        ({"size": "4096x4096"}, "size", "invalid_value"),
        ({"n": 11}, "n", "invalid_value"),
        ({"quality": "high"}, "quality", "unsupported_field"),
        ({"background": "transparent"}, "background", "unsupported_field"),
        ({"output_format": "gif"}, "output_format", "invalid_value"),
        ({"partial_images": 1}, "partial_images", "invalid_value"),
        ({"extra": {"steps": 0}}, "steps", "invalid_value"),
        ({"extra": {"scheduler": "magic"}}, "scheduler", "invalid_value"),
        ({"extra": {"stepps": 1}}, "stepps", "unknown_field"),
        ({"model": "no-such-model"}, "model", "model_not_found"),
    ]:
        kind = openai.NotFoundError if code == "model_not_found" else bad
        error = refused(kind, lambda fields=fields: service.draw(**fields), param=param, code=code)
        assert param in error.message, error.message
    wrong = ("a.png", b"GIF89a")
    refused(bad, lambda: service.edit(image=wrong), param="image", code="invalid_value")
    right = ("a.png", png(8, 8, (1, 2, 3)))
    refused(bad, lambda: service.edit(image=right, mask=wrong), param="mask", code="invalid_value")
    refused(bad, lambda: service.edit(image=[right, right]), param="image", code="unsupported_field")
    refused(bad, lambda: service.edit(image=right, input_fidelity="high"), param="input_fidelity")
    refused(bad, lambda: service.edit(image=right, extra={"strength": 2}), param="strength")


@check
def a_chat_is_refused(service):
    call = lambda: service.client.chat.completions.create(  # noqa: E731
        model=service.model, messages=[{"role": "user", "content": "hi"}]
    )
    refused(openai.BadRequestError, call, param="model")


@check
def a_repeated_key_draws_once(service):
    headers = {"Idempotency-Key": f"conformance-{time.time_ns()}"}
    picture = ("a.png", png(16, 16, (1, 2, 3)))
    files = {
        service.client.images.edit(
            model=service.model, prompt="x", image=picture, extra_headers=headers
        ).data[0].b64_json
        for _ in range(2)
    }  # fmt: skip
    # Without a seed, two requests would have drawn two.
    equal(len(files), 1)


@check
def a_client_that_leaves_frees_its_place(service):
    stream = service.draw(stream=True, partial_images=3, extra={"steps": 150}, n=8)
    next(iter(stream))
    stream.close()
    equal(len(service.draw().data), 1)


def main():
    parser = argparse.ArgumentParser(description="OpenAI client conformance: images")
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--model", help="default: the first one listed")
    arguments = parser.parse_args()
    key = os.environ.get("OPENAI_API_KEY", "none-needed")
    service = Service(arguments.base_url, arguments.model, key)
    print(f"openai {openai.__version__}, model {service.model}")
    passed = failed = 0
    for function in CHECKS:
        name = function.__name__.replace("_", " ")
        began = time.monotonic()
        try:
            function(service)
            passed += 1
            print(f"ok    {name} ({time.monotonic() - began:.2f} s)", flush=True)
        except Exception:  # whatever is wrong with one check must not keep the others from running
            failed += 1
            print(f"FAIL  {name}\n{traceback.format_exc()}", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 0 if failed == 0 and passed > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
