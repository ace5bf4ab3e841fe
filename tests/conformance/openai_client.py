#!/usr/bin/env python3
"""The real `openai` client against a running service: one line a check, then the sums.

    OPENAI_API_KEY=... python openai_client.py --base-url http://127.0.0.1:8080/v1 [--model NAME]

With `--scripted`, checks that need a model which heeds its sampling settings are left out.
"""

import argparse
import concurrent.futures
import json
import os
import sys
import time
import traceback
import urllib.parse
import urllib.request

import openai

QUESTION = [{"role": "user", "content": "Name three colours."}]
CHECKS = []


def check(function):
    """A check of every service."""
    CHECKS.append((function, False))
    return function


def check_of_sampling(function):
    """A check that needs a real model."""
    CHECKS.append((function, True))
    return function


class Service:
    """The client, the model's name, and plain HTTP for what the client cannot do."""

    def __init__(self, base_url, model, key):
        self.client = openai.OpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=120)
        self.base_url, self.key = base_url, key
        self.model = model or self.client.models.list().data[0].id

    def chat(self, **fields):
        fields = {"model": self.model, "messages": QUESTION, "max_tokens": 24, "temperature": 0, **fields}
        return self.client.chat.completions.create(**fields)

    def complete(self, **fields):
        fields = {"model": self.model, "prompt": "One, two,", "temperature": 0, **fields}
        return self.client.completions.create(**fields)

    def open(self, path, body=None, headers=None):
        request = urllib.request.Request(
            urllib.parse.urljoin(self.base_url, path),
            data=None if body is None else json.dumps(body).encode(),
            headers={"authorization": f"Bearer {self.key}", **(headers or {})},
        )
        return urllib.request.urlopen(request, timeout=60)


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


def usage_adds_up(usage):
    assert usage.prompt_tokens > 0, usage
    equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)
    assert 0 <= usage.prompt_tokens_details.cached_tokens <= usage.prompt_tokens, usage


def frames(response):
    """The data frames of a stream: (id, data)."""
    number = None
    for line in response:
        line = line.decode().rstrip("\n")
        if line.startswith("id: "):
            number = int(line[4:])
        elif line.startswith("data: "):
            yield number, line[6:]


def content(data):
    """What a chat stream's data frames say."""
    chunks = [json.loads(one) for one in data if one != "[DONE]"]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


# --- models


@check
def models_are_listed_and_retrieved(service):
    names = [model.id for model in service.client.models.list()]
    assert service.model in names, names
    model = service.client.models.retrieve(service.model)
    equal((model.id, model.object), (service.model, "model"))
    assert model.created > 1_500_000_000, model.created
    refused(openai.NotFoundError, lambda: service.client.models.retrieve("no-such-model"), code="model_not_found")


# --- chats


@check
def a_chat_is_answered(service):
    reply = service.chat()
    assert reply.id.startswith("chatcmpl-"), reply.id
    equal((reply.object, reply.model), ("chat.completion", service.model))
    choice = reply.choices[0]
    equal((choice.index, choice.message.role), (0, "assistant"))
    assert choice.message.content and choice.finish_reason in ("stop", "length"), choice
    usage_adds_up(reply.usage)
    assert 0 < reply.usage.completion_tokens <= 24, reply.usage


@check
def every_role_and_text_parts_are_taken(service):
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hello."}, {"type": "text", "text": "Who is it?"}]},
        {"role": "assistant", "content": "Me."},
        {"role": "user", "content": "I see."},
    ]
    assert service.chat(messages=messages).choices[0].message.content


@check
def a_chat_streams_with_usage(service):
    stream = service.chat(stream=True, seed=1, stream_options={"include_usage": True})
    chunks = list(stream)
    equal(chunks[0].choices[0].delta.role, "assistant")
    equal({chunk.object for chunk in chunks}, {"chat.completion.chunk"})
    equal(len({chunk.id for chunk in chunks}), 1)
    *talk, last = chunks
    equal(last.choices, [])
    usage_adds_up(last.usage)
    assert all(chunk.usage is None for chunk in talk)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in talk)
    reasons = [chunk.choices[0].finish_reason for chunk in talk if chunk.choices[0].finish_reason]
    whole = service.chat(seed=1)
    equal(text, whole.choices[0].message.content)
    equal(reasons, [whole.choices[0].finish_reason])
    equal(last.usage, whole.usage)


@check
def without_being_asked_a_stream_tells_no_usage(service):
    chunks = list(service.chat(stream=True, max_tokens=4))
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


@check
def a_streaming_helper_gathers_the_answer(service):
    fields = {"model": service.model, "messages": QUESTION, "max_tokens": 16, "seed": 2, "temperature": 0}
    with service.client.chat.completions.stream(**fields) as stream:
        kinds = {event.type for event in stream}
        final = stream.current_completion_snapshot
    assert {"chunk", "content.delta", "content.done"} <= kinds, kinds
    equal(final.choices[0].message.content, service.chat(max_tokens=16, seed=2).choices[0].message.content)


@check
def several_choices_are_answered_and_streamed(service):
    whole = service.chat(n=3, temperature=1, seed=5, max_tokens=12)
    equal([choice.index for choice in whole.choices], [0, 1, 2])
    texts = {}
    for chunk in service.chat(n=3, temperature=1, seed=5, max_tokens=12, stream=True):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
    equal(texts, {choice.index: choice.message.content for choice in whole.choices})
    assert len(set(texts.values())) > 1, texts


@check
def max_completion_tokens_ends_an_answer(service):
    reply = service.chat(max_tokens=openai.omit, max_completion_tokens=3, extra_body={"ignore_eos": True})
    equal((reply.choices[0].finish_reason, reply.usage.completion_tokens), ("length", 3))


@check
def a_chat_shows_logprobs(service):
    reply = service.chat(logprobs=True, top_logprobs=3, max_tokens=5, extra_body={"ignore_eos": True})
    entries = reply.choices[0].logprobs.content
    equal(len(entries), 5)
    for entry in entries:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 3, entry
    said = b"".join(bytes(entry.bytes) for entry in entries).decode(errors="replace")
    assert said.startswith(reply.choices[0].message.content.rstrip("\ufffd")), (said, reply.choices[0])
    streamed = []
    stream = service.chat(logprobs=True, top_logprobs=3, max_tokens=5, stream=True, seed=1, extra_body={"ignore_eos": True})
    for chunk in stream:
        streamed += chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else []
    equal(len(streamed), 5)


@check_of_sampling
def greedy_logprobs_are_those_of_the_best_token(service):
    for entry in service.chat(logprobs=True, top_logprobs=2).choices[0].logprobs.content:
        equal(entry.token, entry.top_logprobs[0].token)
        assert entry.logprob == entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob, entry


# --- completions


@check
def a_completion_is_answered(service):
    reply = service.complete()
    assert reply.id.startswith("cmpl-"), reply.id
    equal((reply.object, reply.model), ("text_completion", service.model))
    assert reply.choices[0].finish_reason in ("stop", "length"), reply
    usage_adds_up(reply.usage)
    assert reply.usage.completion_tokens <= 16, "OpenAI's default"


@check
def a_completion_streams(service):
    chunks = list(service.complete(stream=True, seed=3, stream_options={"include_usage": True}))
    *talk, last = chunks
    whole = service.complete(seed=3)
    equal("".join(chunk.choices[0].text for chunk in talk), whole.choices[0].text)
    equal((last.choices, last.usage), ([], whole.usage))


@check
def several_prompts_are_answered_in_order(service):
    reply = service.complete(prompt=["One,", "Two,"], n=2, temperature=1, echo=True, max_tokens=4)
    equal([choice.index for choice in reply.choices], [0, 1, 2, 3])
    equal([choice.text[:4] for choice in reply.choices], ["One,", "One,", "Two,", "Two,"])


@check
def token_ids_are_a_prompt(service):
    with service.open("/tokenize", {"model": service.model, "prompt": "One, two,"}) as answer:
        tokens = json.load(answer)["tokens"]
    from_text, from_tokens = service.complete(seed=1), service.complete(prompt=tokens, seed=1)
    equal(from_tokens.choices[0].text, from_text.choices[0].text)
    equal(from_tokens.usage, from_text.usage)
    with service.open("/detokenize", {"model": service.model, "tokens": tokens}) as answer:
        equal(json.load(answer)["prompt"], "One, two,")


@check
def an_echo_comes_with_its_logprobs(service):
    reply = service.complete(prompt="One, two,", echo=True, logprobs=2, max_tokens=2, extra_body={"ignore_eos": True})
    choice, shape = reply.choices[0], reply.choices[0].logprobs
    assert choice.text.startswith("One, two,"), choice.text
    tokens = reply.usage.prompt_tokens + 2
    equal([len(shape.tokens), len(shape.token_logprobs), len(shape.text_offset)], [tokens] * 3)
    equal((shape.token_logprobs[0], shape.top_logprobs[0]), (None, None))
    assert all(value <= 0 for value in shape.token_logprobs[1:]), shape
    assert all(2 <= len(top) <= 3 for top in shape.top_logprobs[1:]), shape
    for token, offset in list(zip(shape.tokens, shape.text_offset))[: reply.usage.prompt_tokens]:
        equal(choice.text[offset : offset + len(token)], token)
    scored = service.complete(prompt="One, two,", echo=True, logprobs=2, max_tokens=0)
    equal((scored.choices[0].text, scored.usage.completion_tokens), ("One, two,", 0))
    equal(scored.choices[0].logprobs.tokens, shape.tokens[:-2])


@check
def the_best_of_several_is_shown(service):
    reply = service.complete(best_of=4, n=2, temperature=1, seed=9, max_tokens=6, extra_body={"ignore_eos": True})
    equal([choice.index for choice in reply.choices], [0, 1])
    equal(reply.usage.completion_tokens, 4 * 6)
    refused(openai.BadRequestError, lambda: service.complete(best_of=4, stream=True), param="best_of")


# --- sampling


@check
def the_same_seed_gives_the_same_answer(service):
    answer = lambda **fields: service.chat(temperature=1.5, **fields).choices[0].message.content
    equal(answer(seed=42), answer(seed=42))
    assert len({answer(seed=42), answer(seed=43), answer(), answer()}) > 1


@check_of_sampling
def a_stop_text_ends_an_answer(service):
    whole = service.complete(prompt="One, two, three, four,", max_tokens=24).choices[0].text
    stop = whole[6:9]
    cut = service.complete(prompt="One, two, three, four,", max_tokens=24, stop=stop).choices[0]
    equal((cut.text, cut.finish_reason), (whole[: whole.index(stop)], "stop"))
    kept = service.complete(
        prompt="One, two, three, four,", max_tokens=24, stop=[stop], extra_body={"include_stop_str_in_output": True}
    )
    equal(kept.choices[0].text, whole[: whole.index(stop) + len(stop)])
    stream = service.complete(prompt="One, two, three, four,", max_tokens=24, stop=stop, stream=True)
    equal("".join(chunk.choices[0].text for chunk in stream), cut.text)


@check_of_sampling
def a_bias_bans_and_forces_tokens(service):
    first = service.complete(max_tokens=1, logprobs=0).choices[0]
    with service.open("/tokenize", {"prompt": first.text, "add_special_tokens": False}) as answer:
        [token] = json.load(answer)["tokens"]
    banned = service.complete(max_tokens=1, logit_bias={str(token): -100}).choices[0]
    assert banned.text != first.text, banned
    forced = service.complete(max_tokens=4, logit_bias={str(token): 100}).choices[0]
    equal(forced.text, first.text * 4)


@check_of_sampling
def penalties_and_filters_are_heeded(service):
    plain = service.complete(max_tokens=48).choices[0].text
    punished = service.complete(max_tokens=48, frequency_penalty=2, presence_penalty=2).choices[0].text
    assert plain != punished, plain
    narrow = service.complete(temperature=2, max_tokens=12, extra_body={"top_k": 1}).choices[0].text
    equal(narrow, plain[: len(narrow)])


# --- errors


@check
def wrong_values_are_refused_by_name(service):
    bad = openai.BadRequestError
    for fields in [
        {"temperature": 3},
        {"temperature": -1},
        {"top_p": 1.5},
        {"n": 0},
        {"n": 10**9},
        {"presence_penalty": 3},
        {"max_tokens": -1},
        {"max_tokens": 10**18},
        {"seed": 2**70},
        {"stop": [""]},
        {"logit_bias": {"x": 1}},
        {"response_format": {"type": "json_object"}},
    ]:
        [name] = fields
        error = refused(bad, lambda fields=fields: service.chat(**fields), param=name)
        assert name in error.message, error.message
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    refused(bad, lambda: service.chat(tools=tools), param="tools", code="unsupported_field")
    body = {"no_such_field": 1}
    refused(bad, lambda: service.chat(extra_body=body), param="no_such_field", code="unknown_field")
    refused(bad, lambda: service.chat(logprobs=True, top_logprobs=10**9), param="top_logprobs")
    refused(bad, lambda: service.chat(messages=[]), param="messages")


@check
def a_prompt_beyond_the_context_is_refused(service):
    context = service.client.models.retrieve(service.model).max_model_len
    prompt = [1] * (context + 1)
    error = refused(
        openai.BadRequestError, lambda: service.complete(prompt=prompt), param="prompt", code="context_length_exceeded"
    )
    assert str(context) in error.message and str(context + 1) in error.message, error.message


@check
def an_unknown_model_is_not_found(service):
    missing = lambda: service.chat(model="no-such-model")
    refused(openai.NotFoundError, missing, code="model_not_found", param="model", status_code=404)


@check
def a_wrong_key_is_refused(service):
    stranger = openai.OpenAI(base_url=service.base_url, api_key="wrong-key-0123456789", max_retries=0)
    refused(openai.AuthenticationError, stranger.models.list, code="invalid_api_key", status_code=401)


@check
def a_full_queue_asks_to_come_back(service):
    """Sixteen rows fit; nine times four are too many."""
    fields = {"n": 4, "temperature": 1, "max_tokens": 24, "extra_body": {"ignore_eos": True}}
    with concurrent.futures.ThreadPoolExecutor(9) as pool:
        calls = [pool.submit(service.complete, **fields) for _ in range(9)]
        errors = [call.exception() for call in calls]
    limited = [error for error in errors if error is not None]
    assert 0 < len(limited) < 9, errors
    for error in limited:
        assert isinstance(error, openai.RateLimitError), error
        equal((error.status_code, error.code, error.type), (429, "queue_full", "rate_limit_error"))
        assert int(error.response.headers["retry-after"]) >= 1


@check
def a_deadline_ends_a_request(service):
    slow = lambda: service.chat(max_tokens=200, extra_body={"deadline_ms": 30, "ignore_eos": True})
    refused(openai.InternalServerError, slow, code="deadline_exceeded", status_code=504)
    stream = service.chat(max_tokens=200, stream=True, extra_body={"deadline_ms": 30, "ignore_eos": True})
    refused(openai.APIError, lambda: list(stream), code="deadline_exceeded")


# --- cut streams


@check
def a_cut_stream_is_resumed(service):
    body = {
        "model": service.model, "messages": QUESTION, "max_tokens": 60, "stream": True,
        "ignore_eos": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    with service.open("/v1/chat/completions", body, {"content-type": "application/json"}) as response:
        request = response.headers["x-request-id"]
        seen = []
        for number, data in frames(response):
            seen.append((number, data))
            if len(seen) == 2:
                break
    path = f"/api/v1/requests/{request}/events?dialect=openai"
    with service.open(path, headers={"last-event-id": str(seen[-1][0])}) as response:
        rest = list(frames(response))
    with service.open(path) as response:
        whole = list(frames(response))
    equal(content([data for _, data in seen + rest]), content([data for _, data in whole]))
    equal((rest[-1], json.loads(rest[-2][1])["usage"]["completion_tokens"]), (whole[-1], 60))
    equal(rest[-1][1], "[DONE]")


@check
def a_repeated_key_makes_one_request(service):
    headers = {"Idempotency-Key": f"conformance-{time.time_ns()}"}
    ids = {service.chat(extra_headers=headers, max_tokens=4).id for _ in range(2)}
    equal(len(ids), 1)


def main():
    parser = argparse.ArgumentParser(description="OpenAI client conformance")
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--model", help="default: the first one listed")
    parser.add_argument("--scripted", action="store_true", help="the model follows a script")
    arguments = parser.parse_args()
    key = os.environ.get("OPENAI_API_KEY", "none-needed")
    service = Service(arguments.base_url, arguments.model, key)
    print(f"openai {openai.__version__}, model {service.model}")
    passed = failed = skipped = 0
    for function, needs_sampling in CHECKS:
        name = function.__name__.replace("_", " ")
        if needs_sampling and arguments.scripted:
            skipped += 1
            print(f"skip  {name}")
            continue
        began = time.monotonic()
        try:
            function(service)
            passed += 1
            print(f"ok    {name} ({time.monotonic() - began:.2f} s)", flush=True)
        except Exception:  # whatever is wrong with one check must not keep the others from running
            failed += 1
            print(f"FAIL  {name}\n{traceback.format_exc()}", flush=True)
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 0 if failed == 0 and passed > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
