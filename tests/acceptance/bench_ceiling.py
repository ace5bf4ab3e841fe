"""How much `girandole bench` can take itself: 2,000 open streams at 20 frames a second on loopback.

    python3 tests/acceptance/bench_ceiling.py --binary target/release/girandole [--streams 2000]

By hand, about a minute, on a machine that does nothing else. The client has a core of its own and the server all
others (Linux: `taskset`). The limit on the first token is 200 ms, so the tool itself calls the run void when it sent
requests, or got to its frames, more than 2 ms late (p99).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

SCRIPT = """
[model]
slots = {streams}
memory_units = 4000000
[cost]
tokens_per_second = 20.0
"""
MAX_BYTES = 100_000_000


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("--seconds", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        script, report = os.path.join(folder, "steady.toml"), os.path.join(folder, "report.json")
        with open(script, "w", encoding="utf-8") as file:
            file.write(SCRIPT.format(streams=options.streams))
        *server_cores, client_core = sorted(os.sched_getaffinity(0))
        server_on = ["taskset", "-c", ",".join(map(str, server_cores))]
        serve = [options.binary, "serve", "--port", "0", "--model", f"scripted:{script}", "--stop-with-stdin"]
        serve += ["--batch-size", str(options.streams), "--max-queued-requests", str(2 * options.streams)]
        serve += ["--max-queued-tokens", "10000000", "--log-level", "warn"]
        with subprocess.Popen(server_on + serve, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
            url = server.stdout.readline().split()[-1]
            subprocess.run(
                ["taskset", "-c", str(client_core), options.binary, "bench", "run", "--url", url]
                + ["--server-pid", str(server.pid), "--users", str(options.streams), "--think-seconds", "0"]
                + ["--input-tokens", "32", "--output-tokens", "200", "--ttft-ms", "200", "--tpot-ms", "0"]
                + ["--duration", str(options.seconds), "--warm-up", "5", "--json", report, "--log-level", "warn"],
                check=True, stdout=subprocess.DEVNULL, timeout=600,
            )  # fmt: skip
            server.stdin.close()
        with open(report, encoding="utf-8") as file:
            point = json.load(file)["points"][0]
    seconds = [s for s in point["timeline"]["seconds"] if s["at_seconds"] > point["windows"]["warm_up_seconds"]]
    streams = max(second["open_streams"] for second in seconds)
    client = point["devices"]["client"]
    lag = point["latencies"]["client_lag"]
    print(f"open streams: {streams}; requests: {point['counts']['due']}, bad: {point['counts']['errors']}")
    print(f"client: {client['cores']:.2f} cores, {client['peak_memory_bytes'] / 1e6:.0f} MB at most")
    reading = point["latencies"]["reading_lag"]
    for what, found in [("sent", lag), ("read", reading)]:
        print(f"{what} late: p99 {found['p99'] and found['p99']['value']} ms, at most {found['max']} ms")
    print(f"verdict: {point['verdict']['outcome']} {point['verdict']['reasons']}")
    is_late = any("the client was slow" in reason for reason in point["verdict"]["reasons"])
    sys.exit(1 if is_late or client["peak_memory_bytes"] > MAX_BYTES or streams < options.streams * 0.98 else 0)


if __name__ == "__main__":
    main()
