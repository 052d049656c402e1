#!/usr/bin/env python3
"""The figures of PERF.md: each scenario on each relay in turn (A B A B ...), medians, spread, ratios.

    loadtest/figures.py                                    rheostr alone, on its ring backend
    loadtest/figures.py --epoll --glommio                  and on these (a build with --features glommio)
    loadtest/figures.py --peer 'name=COMMAND {port} {data}' and another relay, for the ratio
    loadtest/figures.py --only idle --peer 'bare=python3 loadtest/bare.py {port}'
                                                           and sockets nobody serves, for the floor

The relay under test runs on CPU 0 with one shard, the generator on CPU 1; each run has a fresh data
directory (--data-root picks the file system). A run whose oracle failed, or whose generator was the
limit, is not reported but named. Only what is started here is stopped.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BIN = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "release")
LOADTEST = os.path.join(BIN, "rheostr-loadtest")

# name, arguments after the common ones, the figures shown: (label, path in the JSON)
LATENCY = [("p50 us", "latency_us.p50"), ("p99 us", "latency_us.p99")]
OK = [("OK p50 us", "latencies_us.event_to_ok.p50"), ("OK p99 us", "latencies_us.event_to_ok.p99")]
SCENARIOS = [
    ("ingest", "ingest --closed-loop --connections 8 --in-flight 128 --events {events}",
     [("CPU us/event", "server.cpu_us_per_op"), ("events/s", "ops_per_s"), *LATENCY,
      ("syscalls/event", "server.syscalls.per_op")]),
    ("query author 50", "query --shape author --limit 50 --count 2000 --connections 8 --closed-loop --events {events}",
     [("CPU us/event", "detail.cpu_us_per_event"), ("EOSE p50 us", "latency_us.p50")]),
    ("query kind 100", "query --shape kind --limit 100 --count 2000 --connections 8 --closed-loop --events {events}",
     [("CPU us/event", "detail.cpu_us_per_event"), ("EOSE p50 us", "latency_us.p50")]),
    ("fanout burst", "fanout --closed-loop --subscribers 200 --events 2000",
     [("CPU us/delivery", "server.cpu_us_per_op"), *LATENCY,
      ("syscalls/delivery", "server.syscalls.per_op")]),
    ("fanout paced", "fanout --rate 50 --subscribers 200 --events 300",
     [("CPU us/delivery", "server.cpu_us_per_op"), *LATENCY,
      *OK,
      ("syscalls/delivery", "server.syscalls.per_op")]),
    ("idle", "idle --connections 18000 --source-addresses 20 --hold-s 3",
     [("RSS bytes/conn", "detail.memory.rss_bytes_per_connection"),
      ("kernel objects bytes/conn, both ends", "detail.sockets.object_bytes_per_connection_both_ends")]),
]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def pick(report, path):
    for part in path.split("."):
        report = report.get(part) if isinstance(report, dict) else None
    return report


class Server:
    def __init__(self, command, data):
        self.port = free_port()
        filled = [part.format(port=self.port, data=data) for part in shlex.split(command)]
        self.log = open(os.path.join(data, "log"), "w")
        self.process = subprocess.Popen(["taskset", "-c", "0", *filled], stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    sys.exit(f"{command}: does not listen; see {self.log.name}")
                time.sleep(0.05)

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()


def run(server, arguments, peer, syscalls):
    command = [LOADTEST, *shlex.split(arguments), "--url", f"ws://127.0.0.1:{server.port}",
               "--pid", str(server.process.pid), "--pin", "1", "--json", "--timeout-s", "120"]
    if syscalls and not arguments.startswith(("query", "idle")):
        command.append("--syscalls")
    if peer and arguments.startswith("fanout"):
        command.append("--any-order")
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        report = json.loads(done.stdout)
    except json.JSONDecodeError:
        return None, done.stderr.strip()[-300:]
    if not report.get("ok"):
        return None, json.dumps(report.get("oracle") or report.get("error"))[:300]
    if report["generator"]["limited"]:
        return None, "the generator was the limit"
    return report, None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND")
    parser.add_argument("--epoll", action="store_true")
    parser.add_argument("--glommio", action="store_true")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--events", type=int, default=50_000)
    parser.add_argument("--only", help="scenarios whose name contains this")
    parser.add_argument("--data-root", default=None)
    parser.add_argument("--syscalls", action="store_true", help="count system calls too; costs CPU")
    options = parser.parse_args()

    relay = (f"{BIN}/rheostr --listen 127.0.0.1:{{port}} --data {{data}}/db --shards 1 "
             "--set admin.listen='\"\"' --backend ")
    contenders = [("rheostr", relay + "tokio-uring", False)]
    if options.epoll:
        contenders.append(("rheostr epoll", relay + "epoll", False))
    if options.glommio:
        contenders.append(("rheostr glommio", relay + "glommio", False))
    for peer in options.peer:
        name, _, command = peer.partition("=")
        contenders.append((name, command, True))

    root = tempfile.mkdtemp(prefix="rheostr-figures-", dir=options.data_root)
    events = os.path.join(root, "events.jsonl")
    subprocess.run([LOADTEST, "gen", "--count", str(options.events), "--seed", "1", "--out", events],
                   check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    results = {}
    try:
        for _ in range(options.runs):
            for name, command, peer in contenders:
                data = tempfile.mkdtemp(dir=root)
                server = Server(command, data)
                try:
                    for scenario, arguments, figures in SCENARIOS:
                        wanted = not options.only or options.only in scenario
                        if not wanted and not (scenario == "ingest" and "query" in options.only):
                            continue
                        report, fault = run(server, arguments.format(events=events), peer, options.syscalls)
                        if fault:
                            print(f"# {name}, {scenario}: not reported: {fault}", file=sys.stderr)
                            continue
                        for label, path in figures:
                            value = pick(report, path)
                            if value is not None:
                                results.setdefault((scenario, label), {}).setdefault(name, []).append(value)
                finally:
                    server.stop()
                    shutil.rmtree(data)
    finally:
        shutil.rmtree(root)

    names = [name for name, _, _ in contenders]
    print(f"# load {os.getloadavg()[0]:.1f}, {options.runs} runs each, median (min-max); ratio to rheostr")
    print("| scenario | figure | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 2) + "|")
    for (scenario, label), by_name in results.items():
        cells = []
        base = statistics.median(by_name.get("rheostr", [0]))
        for name in names:
            values = by_name.get(name)
            if not values:
                cells.append("-")
                continue
            middle = statistics.median(values)
            cell = f"{middle:,.4g} ({min(values):,.4g}-{max(values):,.4g})"
            if name != "rheostr" and base:
                cell += f" {middle / base:.2f}x"
            cells.append(cell)
        print(f"| {scenario} | {label} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
