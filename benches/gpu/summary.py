"""Reads what all.sh left and writes the table of docs/gpu.md: what, target, measured, peer.

    python3 benches/gpu/summary.py gpu-results
"""

import json
import pathlib
import sys


def read(folder, name):
    try:
        return json.loads((folder / f"{name}.json").read_text())
    except (OSError, ValueError):
        return None


def level(report, kind, key, value):
    """The figures of a level of `bench engine`, or of a peer's report of the same form."""
    for found in (report or {}).get(kind, []):
        if found.get(key) == value and "skipped" not in found:
            return found
    return None


def rate(found, field="tokens_per_second"):
    figure = (found or {}).get(field)
    return figure["median"] if isinstance(figure, dict) else figure


def share(found, name):
    shares = (found or {}).get("shares")
    return None if not shares else f"{100 * shares[name]:.0f} % of {name}"


def number(value, unit=""):
    if value is None:
        return ""
    digits = 0 if value >= 1000 else 1 if value >= 20 else 2
    return f"{value:,.{digits}f}{unit}"


def picture(report, rows):
    for found in (report or {}).get("sizes", [{}])[0].get("steps", []):
        if found["rows"] == rows and "skipped" not in found:
            return found["row_steps_per_second"]
    return None


def times(ours, peer):
    return "" if not ours or not peer else f"{ours / peer:.2f} x"


def rows_of(report, kind, key):
    return [found[key] for found in (report or {}).get(kind, []) if "skipped" not in found]


def main():
    folder = pathlib.Path(sys.argv[1])
    lines = []

    def line(what, target, ours, peer=None, note=None, unit=""):
        lines.append([what, target, number(ours, unit), number(peer, unit), times(ours, peer), note or ""])

    text, peer = read(folder, "text-8b"), read(folder, "peer-text-8b")
    targets = {1: "180, then 220 tok/s", 32: "4,500 tok/s, 3 x peer", 256: "15,000 tok/s, 3 x peer"}
    for rows in rows_of(text, "decode", "rows"):
        ours = level(text, "decode", "rows", rows)
        theirs = level(peer, "decode", "rows", rows)
        note = share(ours, "memory")
        line(f"Llama-3.1-8B, {rows} streams, tok/s", targets.get(rows, ""), rate(ours), rate(theirs), note)
    for tokens in rows_of(text, "prefill", "tokens"):
        ours = level(text, "prefill", "tokens", tokens)
        theirs = level(peer, "prefill", "tokens", tokens)
        target = "60 % of the measured products" if tokens == 2048 else ""
        line(f"the same, prefill {tokens}, tok/s", target, rate(ours), rate(theirs), share(ours, "arithmetic"))
    long = read(folder, "long-prompt")
    if long:
        gap = long["longest_gap_during_ms"]
        note = f"{long['longest_gap_before_ms']:.0f} ms before; first token after {long['first_token_seconds']:.2f} s"
        if long["streams_that_ended_too_early"]:
            note += f"; void: {long['streams_that_ended_too_early']} streams had ended"
        what = f"{long['long_prompt_tokens']} tokens into {long['streams']} streams, longest gap"
        line(what, "under 200 ms", gap, None, note, " ms")
    for name, what in [("sd15", "SD 1.5, 512 px, f16"), ("sdxl", "SDXL, 1024 px, f16")]:
        ours, theirs = read(folder, name), read(folder, f"peer-{name}")
        for rows in (1, 2, 4, 8, 16):
            if picture(ours, rows):
                line(f"{what}: {rows} rows, row-steps/s", "", picture(ours, rows), picture(theirs, rows))
        guided, full = picture(ours, 2), picture(ours, 16)
        if name == "sd15" and guided:
            peer_guided, peer_full = picture(theirs, 2), picture(theirs, 16)
            line(f"{what}: one guided picture, it/s", "40; 1.2 x peer", guided / 2, peer_guided and peer_guided / 2)
            if full:
                line(f"{what}: eight guided pictures, it/s of all", "1.2 x peer", full / 16, peer_full and peer_full / 16)
                lines.append([f"{what}: images at 8 by images at 1", "2 x", f"{full / guided:.2f} x", "", "", ""])
        best = max(filter(None, (picture(ours, rows) for rows in (2, 4, 8, 16))), default=None)
        if name == "sdxl" and best:
            line(f"{what}: guided pictures of 20 steps, 1/s", "1.2", best / 40, None, "without text and decoding")
    for name, what in [("gguf", "GGUF Q4_K of Llama-3.2-1B"), ("text-1b", "Llama-3.2-1B"), ("text-4b", "Qwen3-4B")]:
        report = read(folder, name)
        for rows in rows_of(report, "decode", "rows"):
            ours = level(report, "decode", "rows", rows)
            line(f"{what}, {rows} streams, tok/s", "", rate(ours), None, share(ours, "memory"))
        for tokens in rows_of(report, "prefill", "tokens"):
            ours = level(report, "prefill", "tokens", tokens)
            line(f"{what}, prefill {tokens}, tok/s", "", rate(ours), None, share(ours, "arithmetic"))

    check = read(folder, "check")
    if check:
        wrong = [found["name"] for found in check["checks"] if found["verdict"] != "well"]
        said = "all well" if not wrong else f"{len(wrong)} not: {', '.join(wrong[:5])}"
        print(f"gpu-check: {len(check['checks'])} checks, {said}")
        for ceiling in check["ceilings"]:
            if ceiling["per_second"]:
                unit, factor = ("GB/s", 1e9) if ceiling["name"] == "copy" else ("TFLOP/s", 1e12)
                print(f"{ceiling['name']}: {ceiling['per_second'] / factor:,.1f} {unit}")
        card = check.get("card") or {}
        print("card:", ", ".join(str(card[key]) for key in ("name", "compute_capability", "driver") if card.get(key)) or "?")
        print()
    head = ["what", "target", "measured", "peer", "by the peer", "note"]
    print("| " + " | ".join(head) + " |")
    print("|" + " --- |" * len(head))
    for cells in lines:
        print("| " + " | ".join(cells) + " |")
    print("\n| part | ended with | seconds |\n| --- | --- | --- |")
    for text_line in (folder / "parts.jsonl").read_text().splitlines():
        part = json.loads(text_line)
        code = "not run: no time left" if part["code"] is None else part["code"]
        print(f"| {part['part']} | {code} | {part['seconds']} |")


if __name__ == "__main__":
    main()
