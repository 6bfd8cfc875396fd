"""Runs a command once the cluster is as large as it needs; asks the autoscaler for nodes, and lets them go after.

python cluster/with_nodes.py --gpus 8 -- python sweeps/cam_geometry.py --address auto --gpus-per-trial 0.25

A sweep counts its slots when it starts, so that nodes which come later stay idle. What is asked for holds until it
is taken back: killed with SIGKILL, this leaves the nodes running, and paid for, until `--release` or `ray down`.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time

import ray
from ray.autoscaler.sdk import request_resources

from mantra_ray.errors import InputError
from mantra_ray.sweep.cluster import connected

POLL = 2.0  # seconds between looks at the cluster


def main(args: list[str] | None = None) -> int:
    """Wait, run, release; returns the command's exit code, or 3 if the nodes did not come in time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default="auto", help="of the cluster")
    parser.add_argument("--cpus", type=int, default=0, help="CPUs that must be there")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs that must be there")
    parser.add_argument("--nodes", type=int, default=0, help="nodes that must be there, the head among them")
    parser.add_argument("--wait", type=float, default=1800.0, help="seconds until giving up")
    parser.add_argument("--release", action="store_true", help="take an earlier request back, and do nothing else")
    parser.add_argument("command", nargs="*", help="after --")
    options = parser.parse_args(args)
    if not options.command and not options.release:
        parser.error("no command was given")
    try:
        with connected(options.address):
            return run(options)
    except InputError as error:
        parser.error(str(error))


def run(options: argparse.Namespace) -> int:
    """Ask for the nodes, run the command when they are there, and take the request back, whatever happens."""
    wanted = {"CPU": options.cpus, "GPU": options.gpus}
    process = None

    def stop(number: int, _: object) -> None:
        if process is None:
            raise SystemExit(128 + number)
        if number == signal.SIGTERM:  # Ctrl-C reaches the command without us
            process.send_signal(signal.SIGINT)  # at which a sweep says how to go on

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        if not options.release:
            request_resources(bundles=[{kind: 1} for kind, count in wanted.items() for _ in range(count)])
            if not arrived(wanted, options.nodes, options.wait):
                return 3
            process = subprocess.Popen(options.command)
            return process.wait()
    finally:
        request_resources(bundles=[])
    return 0


def arrived(wanted: dict[str, int], nodes: int, patience: float) -> bool:
    """Wait for the resources and nodes, at most `patience` seconds; whether they are there."""
    deadline = time.monotonic() + patience
    while True:
        found, alive = ray.cluster_resources(), sum(node["Alive"] for node in ray.nodes())
        if alive >= nodes and all(found.get(kind, 0) >= count for kind, count in wanted.items()):
            return True
        here = ", ".join(f"{found.get(kind, 0):g} of {count} {kind}s" for kind, count in wanted.items() if count)
        print(f"Waiting: {alive} nodes of {max(nodes, 1)}{', ' if here else ''}{here}", file=sys.stderr, flush=True)
        if time.monotonic() > deadline:
            print(f"They did not come within {patience:g} s", file=sys.stderr)
            return False
        time.sleep(min(POLL, max(0.0, deadline - time.monotonic()) + 0.01))


if __name__ == "__main__":
    sys.exit(main())
