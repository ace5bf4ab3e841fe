#!/usr/bin/env python3
"""The real `webuiapi` client, of the Stable Diffusion web UI's API, against a running service that draws
with the scripted model: one line a check, then the sums.

    WEBUI_PASSWORD=... python sdapi_client.py --base-url http://127.0.0.1:8080/sdapi/v1
"""

import argparse
import os
import sys
import threading
import time
import traceback

import webuiapi
from PIL import Image

CHECKS = []
SIDE = 64


def check(function):
    CHECKS.append(function)
    return function


def equal(found, expected):
    assert found == expected, f"{found!r} is not {expected!r}"


def drawing(**fields):
    """Everything else is what the client sends unasked."""
    return {"prompt": "a red fox", "seed": 7, "steps": 4, "width": SIDE, "height": SIDE, **fields}


def pixels(image):
    return image.convert("RGB").tobytes()


@check
def draws_from_words(api):
    answer = api.txt2img(**drawing(negative_prompt="blur", cfg_scale=7.5))
    equal(answer.image.size, (SIDE, SIDE))
    equal(answer.info["all_seeds"], [7])
    equal(answer.info["sampler_name"], "Euler a")
    assert answer.image.info["parameters"].startswith("a red fox\nNegative prompt: blur\nSteps: 4, ")
    equal(answer.image.info["parameters"], answer.info["infotexts"][0])
    equal(answer.parameters["steps"], 4)


@check
def a_seed_gives_the_same_picture(api):
    four = api.txt2img(**drawing(batch_size=2, n_iter=2))
    equal(four.info["all_seeds"], [7, 8, 9, 10])
    alone = api.txt2img(**drawing(seed=9))
    equal(pixels(alone.image), pixels(four.images[2]))
    assert pixels(four.images[0]) != pixels(four.images[1])


@check
def every_sampler_draws(api):
    names = api.util_get_sampler_names()
    assert "Euler a" in names, names
    for name in names:
        # 1 is what the client sends for all of them.
        answer = api.txt2img(**drawing(sampler_name=name, eta=1.0))
        equal(answer.info["sampler_name"], name)
    assert "karras" in api.util_get_scheduler_names()


@check
def draws_from_a_picture(api):
    source = Image.new("RGB", (SIDE, SIDE), (200, 30, 30))
    answer = api.img2img(images=[source], **drawing(denoising_strength=0.5))
    equal(answer.image.size, (SIDE, SIDE))
    equal(answer.info["denoising_strength"], 0.5)
    equal(answer.parameters["init_images"], None)


@check
def draws_a_masked_part_anew(api):
    source = Image.new("RGB", (SIDE, SIDE), (200, 30, 30))
    mask = Image.new("L", (SIDE, SIDE), 0)
    mask.paste(255, (16, 16, 48, 48))
    for inverted in (0, 1):
        answer = api.img2img(
            images=[source], mask_image=mask, inpainting_mask_invert=inverted, **drawing()
        )
        equal(answer.image.size, (SIDE, SIDE))
        equal(answer.parameters["inpaint_full_res"], False)


@check
def reads_a_pictures_parameters(api):
    picture = api.txt2img(**drawing()).image
    answer = api.png_info(picture)
    equal(answer.info, picture.info["parameters"])
    equal(answer.parameters["Seed"], "7")


@check
def chooses_a_model(api):
    name = api.util_get_model_names()[0]
    api.util_set_model(name)
    equal(api.util_get_current_model(), name)


@check
def knows_the_lists(api):
    for found in (api.get_upscalers(), api.get_sd_vae(), api.get_loras(), api.get_hypernetworks()):
        equal(found, [])
    equal(api.get_embeddings()["loaded"], {})
    equal(api.get_scripts()["txt2img"], [])
    assert "ram" in api.get_memory() and api.get_cmd_flags()["api"]
    equal(api.refresh_checkpoints(), None)


@check
def is_interrupted(api):
    answers = []
    fields = drawing(steps=150, batch_size=2)
    thread = threading.Thread(target=lambda: answers.append(api.txt2img(**fields)))
    thread.start()
    progress, deadline = None, time.monotonic() + 20
    while time.monotonic() < deadline:
        progress = api.get_progress()
        if progress["state"]["sampling_step"] > 3 and progress["current_image"]:
            break
        time.sleep(0.02)
    equal(progress["state"]["job_count"], 2)
    equal(progress["state"]["sampling_steps"], 150)
    assert 0 < progress["progress"] < 1, progress
    began = time.monotonic()
    equal(api.interrupt(), {})
    thread.join(timeout=10)
    assert time.monotonic() - began < 2, "the interrupt took too long"
    answer = answers[0]
    equal(answer.images, [])
    assert answer.info["interrupted"], answer.info
    api.util_wait_for_ready(check_interval=0.05)


@check
def nothing_to_interrupt_is_no_fault(api):
    equal(api.interrupt(), {})
    assert api.skip() is not None


@check
def what_is_not_served_is_refused_by_name(api):
    cases = {
        "enable_hr": True,
        "restore_faces": True,
        "styles": ["pretty"],
        "sampler_name": "Heun",
        "steps": 0,
        "width": 65,
        "override_settings": {"CLIP_stop_at_last_layers": 2},
    }
    for name, value in cases.items():
        try:
            api.txt2img(**drawing(**{name: value}))
        except RuntimeError as error:
            status, body = error.args
            equal(status, 400)
            assert name in body, body
        else:
            raise AssertionError(f"{name} was taken")


@check
def strangers_are_kept_out(api):
    stranger = webuiapi.WebUIApi(baseurl=api.baseurl)
    try:
        stranger.txt2img(**drawing())
    except RuntimeError as error:
        equal(error.args[0], 401)
    else:
        raise AssertionError("a stranger drew")


def main():
    parser = argparse.ArgumentParser(description="webuiapi conformance")
    parser.add_argument("--base-url", required=True)
    # Every model does for these checks; all clients are given the same flags.
    parser.add_argument("--scripted", action="store_true")
    arguments = parser.parse_args()
    password = os.environ["WEBUI_PASSWORD"]
    api = webuiapi.WebUIApi(baseurl=arguments.base_url, username="anybody", password=password)
    failed = 0
    for function in CHECKS:
        name = function.__name__.replace("_", " ")
        began = time.monotonic()
        try:
            function(api)
            print(f"ok    {name} ({time.monotonic() - began:.2f} s)", flush=True)
        except Exception:  # whatever is wrong with one check must not keep the others from running
            failed += 1
            print(f"FAIL  {name}\n{traceback.format_exc()}", flush=True)
    print(f"webuiapi: {len(CHECKS) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
