"""Makes the two reports that the tests of `girandole bench report` and `compare` read: by hand, so to say, from
a small queue model whose figures are plausible and always the same. Nobody measured them.

    python3 tests/goldens/make_bench_reports.py tests/fixtures/bench
"""

import json
import math
import pathlib
import random
import sys

LIMIT_FIRST_TOKEN_MS, LIMIT_TOKEN_MS = 500.0, 50.0
SLOTS = 48


def estimate(value, reach=None):
    low, high = (None, None) if reach is None else (round(value - reach, 4), round(value + reach, 4))
    return {"value": round(value, 4), "low": low, "high": high}


def distribution(count, median, spread):
    """Log-normal percentiles, where the samples hold them."""
    if count == 0:
        return None
    at = lambda z: median * math.exp(spread * z)
    levels = {"p50": (0.5, 0.0), "p90": (0.9, 1.2816), "p95": (0.95, 1.6449), "p99": (0.99, 2.3263)}
    found = {
        "count": count,
        "mean": round(median * math.exp(spread**2 / 2), 3),
        "deviation": round(median * spread, 3),
        "min": round(at(-2.5), 3),
        "max": round(at(2.9), 3),
    }
    for name, (share, z) in levels.items():
        enough = count * (1 - share) >= 5 - 1e-9
        value = at(z)
        found[name] = estimate(value, value * spread * 2.2 / math.sqrt(count * (1 - share))) if enough else None
    return found


def share(good, of):
    value = good / of
    reach = 1.96 * math.sqrt(max(value * (1 - value), 0.5 / of) / of)
    return {"value": round(value, 5), "low": round(max(value - reach, 0.0), 5), "high": round(min(value + reach, 1.0), 5)}


def timeline(dice, users, warm_up, measured, step_ms, stall):
    seconds = []
    for at in range(1, warm_up + measured + 4):
        full = min(users, users * at / 8)
        ends = max(0.0, (warm_up + measured + 3 - at) / 3) if at > warm_up + measured else 1.0
        open_streams = round(full * ends * dice.uniform(0.93, 1.0))
        running = min(open_streams, SLOTS)
        gap = step_ms * dice.uniform(1.5, 2.6) + (stall if at == warm_up + measured // 2 else 0.0)
        seconds.append(
            {
                "at_seconds": float(at),
                "due": round(users / 4.2 * dice.uniform(0.6, 1.4)),
                "completed": round(users / 4.2 * dice.uniform(0.6, 1.4)) if at > 4 else 0,
                "bad": 0,
                "open_streams": open_streams,
                "output_tokens": round(running * 1000 / step_ms * dice.uniform(0.94, 1.02)),
                "stalls": 1 if stall and at == warm_up + measured // 2 else 0,
                "longest_stall_ms": round(gap, 1),
                "time_to_first_token_ms": round(step_ms * 6 * dice.uniform(0.8, 1.3), 1),
                "queued_requests": float(max(0, open_streams - SLOTS)),
                "running_rows": float(running),
                "batch_fill_rows": round(running * dice.uniform(0.9, 1.0), 1),
                "step_ms": round(step_ms * dice.uniform(0.95, 1.08), 2),
                "kv_share": round(running / 64, 3),
                "client_cores": round(0.02 + users * 0.0006, 3),
                "server_cores": round(min(1.9, 0.4 + running * 0.04), 2),
                "gpu_share": round(min(0.99, 0.35 + running * 0.0135), 3),
                "gpu_watts": round(140 + running * 9.5, 1),
            }
        )
    return {"measured_from_seconds": float(warm_up), "measured_to_seconds": float(warm_up + measured), "seconds": seconds}


def text_point(dice, started, users, purpose, repeat, outcome, reasons, warm_up=10, measured=60, **faults):
    load = users / SLOTS
    step_ms = 14 + 0.62 * min(users, SLOTS)
    wait_ms = 0.0 if load <= 1 else (load - 1) * 9000
    first_ms = 38 + step_ms * 3.1 + wait_ms
    tokens = 128
    end_ms = first_ms + tokens * step_ms
    due = round(users * measured * 1000 / (end_ms + 2000))
    refused = faults.get("refused", 0)
    completed = due - refused
    late = 0.004 * load**6 if load <= 1 else min(0.95, 0.05 + (load - 1) * 2)
    good = round(completed * (1 - min(late, 1)))
    rate = completed / measured
    in_flight = due / measured * end_ms / 1000
    objectives = [("time_to_first_token", LIMIT_FIRST_TOKEN_MS), ("time_per_output_token", LIMIT_TOKEN_MS)]
    watts = 140 + min(users, SLOTS) * 9.5
    return {
        "purpose": purpose,
        "repeat": repeat,
        "offered": {"load": "users", "users": users},
        "started_seconds": started,
        "windows": {
            "warm_up_seconds": float(warm_up),
            "measured_seconds": float(measured),
            "drain_seconds": 3.2,
            "steady": {"reached": wait_ms == 0, "since_seconds": 7.0 if wait_ms == 0 else None, "method": "MSER-5 on time to first token"},
        },
        "counts": {
            "due": due,
            "completed": completed,
            "refused": refused,
            "timed_out": 0,
            "truncated": 0,
            "no_finish_reason": 0,
            "errors": 0,
            "error_kinds": [],
            "prompt_tokens": completed * 512,
            "output_tokens": completed * tokens,
            "images": 0,
        },
        "latencies": {
            "client_lag": distribution(due, faults.get("lag_ms", 0.12), 0.5),
            "time_to_first_token": distribution(completed, first_ms, 0.32),
            "time_to_first_preview": None,
            "time_per_output_token": distribution(completed, step_ms, 0.07),
            "step_gap": distribution(completed * tokens, step_ms, 0.10),
            "frame_gap": distribution(completed * tokens // 2, max(50.0, step_ms), 0.16),
            "longest_stall": distribution(completed, step_ms * 2.6, 0.30),
            "end_to_end": distribution(completed, end_ms, 0.06),
        },
        "throughput": {
            "requests_per_second": estimate(rate, rate * 0.02),
            "prompt_tokens_per_second": estimate(rate * 512, rate * 512 * 0.02),
            "output_tokens_per_second": estimate(rate * tokens, rate * tokens * 0.02),
            "images_per_second": None,
        },
        "goodput": {
            "good": good,
            "share": share(good, due),
            "requests_per_second": estimate(good / measured, good / measured * 0.02),
            "objectives": [
                {"objective": {"metric": metric, "limit_ms": limit}, "kept": good, "share": share(good, due)}
                for metric, limit in objectives
            ],
        },
        "verdict": {"outcome": outcome, "reasons": reasons},
        "littles_law": {
            "in_flight": round(in_flight * 1.004, 3),
            "requests_per_second": round(due / measured, 3),
            "mean_seconds": round(end_ms / 1000, 3),
            "difference": 0.004,
            "holds": True,
        },
        "cache": {"prompt_tokens": completed * 512, "cached_tokens": completed * 2, "wanted": False},
        "counters": [
            {"name": 'girandole_generation_tokens_total{model="llama-3.1-8b"}', "before": 10240.0, "after": 10240.0 + completed * tokens},
            {"name": 'girandole_requests_rejected_total{model="llama-3.1-8b",reason="queue_full_requests"}', "before": 0.0, "after": float(refused)},
            {"name": 'girandole_step_seconds_sum{model="llama-3.1-8b",phase="mixed"}', "before": 12.5, "after": 12.5 + measured * 0.97},
        ],
        "timeline": timeline(dice, users, warm_up, measured, step_ms, faults.get("stall_ms", 0.0)),
        "devices": {
            "client": {"cores": round(0.02 + users * 0.0006, 3), "peak_cores": 0.2, "peak_memory_bytes": 21_000_000 + users * 60_000},
            "server": None,
            "gpus": [
                {
                    "index": 0,
                    "name": "Example GPU 80 GB",
                    "busy_share": round(min(0.99, 0.35 + min(users, SLOTS) * 0.0135), 3),
                    "peak_memory_bytes": 61_300_000_000,
                    "memory_bytes": 85_500_000_000,
                    "watts": round(watts, 1),
                    "limit_watts": 700.0,
                    "clock_mhz": 1755.0,
                    "throttled": [],
                }
            ],
        },
        "energy": {
            "source": "nvml",
            "joules": round(watts * measured, 1),
            "joules_per_output_token": round(watts / (rate * tokens), 4),
            "joules_per_image": None,
        },
        "cost": {
            "currency": "USD",
            "per_hour": 2.5,
            "per_million_output_tokens": round(2.5 / 3600 / (rate * tokens) * 1e6, 4),
            "per_thousand_images": None,
            "per_million_good_requests": round(2.5 / 3600 / max(good / measured, 1e-9) * 1e6, 3),
        },
    }


def machine():
    return {"processor": "Example CPU", "cores": 16, "last_level_cache_bytes": 33554432, "load_average": 0.4}


def head(kind, load, objectives, server, command, duration):
    return {
        "schema": "girandole.bench",
        "schema_version": 1,
        "kind": kind,
        "label": None,
        "started_unix_seconds": 1_795_294_800,
        "duration_seconds": duration,
        "client": {
            "girandole": "0.1.0",
            "command": command,
            "machine": machine(),
            "seed": 7,
            "load": load,
            "objectives": objectives,
            "settings": {"timeout_seconds": 120, "precision": 0.05, "measure_seconds": 60},
        },
        "server": server,
        "capacity": None,
        "points": [],
        "warnings": [],
    }


def text_report():
    dice = random.Random(7)
    load = {
        "description": "chat: 512 tokens in, 128 out, users who think for 2 s",
        "task": "text",
        "api": "openai_chat",
        "arrivals": {"process": "users", "think_seconds": 2.0, "turns": 1},
        "prompt_tokens": {"distribution": "log_normal", "mean": 512.0, "deviation": 160.0, "min": 32, "max": 2048},
        "output_tokens": {"distribution": "fixed", "mean": 128.0, "deviation": 0.0, "min": 128, "max": 128},
        "shared_prefix": None,
        "unique_salt": True,
        "images": [],
    }
    objectives = {
        "preset": "chat",
        "limits": [
            {"metric": "time_to_first_token", "limit_ms": LIMIT_FIRST_TOKEN_MS},
            {"metric": "time_per_output_token", "limit_ms": LIMIT_TOKEN_MS},
        ],
        "good_share": 0.99,
    }
    server = {
        "url": "http://127.0.0.1:8080",
        "software": "girandole",
        "version": "0.1.0",
        "model": "llama-3.1-8b",
        "device": "cuda:0",
        "same_machine": True,
        "health": {"status": "ok"},
        "models": {"object": "list", "data": [{"id": "llama-3.1-8b", "owned_by": "<b>somebody</b> & \"co\""}]},
        "settings": {"batch_size": SLOTS, "step_budget_ms": 50},
    }
    command = ["girandole", "bench", "capacity", "--url", "http://127.0.0.1:8080", "--preset", "chat", "--api-key", "***"]
    report = head("capacity", load, objectives, server, command, 1104.0)
    fails = lambda share: [f"at most {share} of requests are good, 99 % are wanted"]
    visits = [
        (1, "idle", 0, "pass", [], {}),
        (4, "search", 0, "pass", [], {}),
        (16, "search", 0, "pass", [], {}),
        (64, "search", 0, "fail", fails("37 %") + ["the queue grew by 0.4 requests a second"], {"refused": 3}),
        (32, "search", 0, "pass", [], {}),
        (45, "search", 0, "pass", [], {}),
        (54, "search", 0, "fail", fails("72 %"), {}),
        (49, "search", 0, "fail", fails("93 %"), {"stall_ms": 900.0}),
        (47, "search", 0, "undecided", ["between 98.6 % and 99.4 % of requests are good after 180 s"], {}),
        (46, "confirm", 0, "pass", [], {}),
        (46, "confirm", 1, "pass", [], {}),
        (8, "search", 0, "void", ["the client was late: p99 lag 31 ms, 5 ms are allowed"], {"lag_ms": 12.0}),
    ]
    for index, (users, purpose, repeat, outcome, reasons, faults) in enumerate(visits):
        point = text_point(dice, index * 90.0, users, purpose, repeat, outcome, reasons, **faults)
        if users not in (46, 49, 64) or repeat == 1:
            # Not every point has a timeline, and these are enough to look at.
            point["timeline"] = {"measured_from_seconds": 10.0, "measured_to_seconds": 70.0, "seconds": []}
        report["points"].append(point)
    report["capacity"] = {
        "sentence": "46 users (95 % interval 44 to 48) with 6.79 requests per second: slots are used up first, "
        "prefill compute would be next.",
        "users": {"value": 46.0, "low": 44.0, "high": 48.0},
        "requests_per_second": {"value": 6.79, "low": 6.5, "high": 7.1},
        "lower_bound": False,
        "first_limit": {
            "name": "slots",
            "counter": "girandole_rows_running",
            "value": 47.6,
            "bound": 48.0,
            "unit": "rows",
            "explanation": "All slots were taken 97 % of the time while requests waited.",
        },
        "next_limit": {
            "name": "prefill compute",
            "counter": "girandole_step_seconds",
            "value": 43.6,
            "bound": 50.0,
            "unit": "ms",
            "explanation": "A mixed step takes 87 % of the step budget.",
        },
        "littles_law": {"in_flight": 31.3, "requests_per_second": 6.79, "mean_seconds": 4.6, "difference": 0.0022, "holds": True},
        "searches": [45.0, 46.0, 47.0],
        "ended": "the interval is within 5 % after three searches",
    }
    report["warnings"] = ["The server runs on the client's machine and shares its processor."]
    return report


def image_point(started, rate, outcome, reasons):
    measured, steps, step_ms = 120, 20, 310 * max(1.0, rate / 0.14)
    due = round(rate * measured)
    end_ms = steps * step_ms + 700
    good = due - 1 if outcome == "pass" else round(due * 0.6)
    image_rate = due / measured
    return {
        "purpose": "asked",
        "repeat": 0,
        "offered": {"load": "rate", "requests_per_second": rate},
        "started_seconds": started,
        "windows": {
            "warm_up_seconds": 20.0,
            "measured_seconds": float(measured),
            "drain_seconds": 7.0,
            "steady": {"reached": True, "since_seconds": 12.0, "method": "MSER-5 on end to end"},
        },
        "counts": {
            "due": due,
            "completed": due - 1,
            "refused": 0,
            "timed_out": 0,
            "truncated": 0,
            "no_finish_reason": 0,
            "errors": 1,
            "error_kinds": [{"kind": "http 500", "count": 1}],
            "prompt_tokens": 0,
            "output_tokens": 0,
            "images": due - 1,
        },
        "latencies": {
            "client_lag": distribution(due, 0.2, 0.5),
            "time_to_first_token": None,
            "time_to_first_preview": distribution(due - 1, step_ms * 2, 0.2),
            "time_per_output_token": None,
            "step_gap": distribution((due - 1) * steps, step_ms, 0.05),
            "frame_gap": None,
            "longest_stall": distribution(due - 1, step_ms * 1.6, 0.2),
            "end_to_end": distribution(due - 1, end_ms, 0.15),
        },
        "throughput": {
            "requests_per_second": estimate(image_rate),
            "prompt_tokens_per_second": None,
            "output_tokens_per_second": None,
            "images_per_second": estimate(image_rate),
        },
        "goodput": {
            "good": good,
            "share": share(good, due),
            "requests_per_second": estimate(good / measured),
            "objectives": [
                {"objective": {"metric": "end_to_end", "limit_ms": 20_000.0}, "kept": good, "share": share(good, due)}
            ],
        },
        "verdict": {"outcome": outcome, "reasons": reasons},
        "littles_law": None,
        "cache": None,
        "counters": [],
        "timeline": {"measured_from_seconds": 20.0, "measured_to_seconds": 140.0, "seconds": []},
        "devices": {"client": None, "server": None, "gpus": []},
        "energy": None,
        "cost": None,
    }


def image_report():
    load = {
        "description": "images: 512x512 in 20 steps, Poisson",
        "task": "image",
        "api": "native",
        "arrivals": {"process": "poisson"},
        "prompt_tokens": None,
        "output_tokens": None,
        "shared_prefix": None,
        "unique_salt": True,
        "images": [{"width": 512, "height": 512, "steps": 20, "share": 1.0}],
    }
    objectives = {"preset": "image", "limits": [{"metric": "end_to_end", "limit_ms": 20_000.0}], "good_share": 0.99}
    server = {
        "url": "http://127.0.0.1:8080",
        "software": None,
        "version": None,
        "model": "tiny-sd</title><script>alert(1)</script>",
        "device": None,
        "same_machine": False,
        "health": None,
        "models": None,
        "settings": {},
    }
    command = ["girandole", "bench", "run", "--url", "http://127.0.0.1:8080", "--preset", "image"]
    report = head("run", load, objectives, server, command, 320.0)
    report["label"] = "nightly | <i>images</i>"
    report["points"] = [
        image_point(0.0, 0.1, "pass", []),
        image_point(160.0, 0.5, "fail", ["=at most 60 % of requests are good, \"99 %\" are wanted"]),
    ]
    return report


def main():
    folder = pathlib.Path(sys.argv[1])
    for name, report in [("text.json", text_report()), ("images.json", image_report())]:
        (folder / name).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


main()
