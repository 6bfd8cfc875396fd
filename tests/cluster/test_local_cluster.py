"""Ray started as the cluster files start it, on this machine: tokens are asked for, sweeps run, nothing is left."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from mantra_ray.sweep.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
ROOT = Path(__file__).parents[2]
# Starts three nodes, says where, and ends them when its input closes.
HOST = """
import sys
from pathlib import Path
from mantra_ray.bench.fault_host import Cluster
with Cluster((1, 1, 1), Path(sys.argv[1])) as cluster:
    print(cluster.address, flush=True)
    sys.stdin.read()
"""
# A recipe's place is taken by a script that looks who listens where.
LISTENERS = """
import json, os, sys
import psutil, ray
ray.init(address=sys.argv[sys.argv.index("--address") + 1], logging_level="ERROR", log_to_driver=False)
assert ray.get(ray.remote(lambda: 6 * 7).remote()) == 42
found = {}
for process in psutil.process_iter():
    try:
        if process.environ().get("RAY_TMPDIR") == os.environ["RAY_TMPDIR"]:
            for socket in process.net_connections("inet"):
                if socket.status == psutil.CONN_LISTEN:
                    found.setdefault(process.name(), []).append(socket.laddr.ip)
    except psutil.Error:
        pass
print(json.dumps(found))
"""


@pytest.fixture
def scratch():
    """A folder with a short name, since sockets lie in it."""
    folder = Path(tempfile.mkdtemp(prefix="mr", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def left(scratch) -> list[str]:
    """Processes that still run for a cluster in `scratch`, after some patience."""
    deadline = time.monotonic() + 30
    while True:
        found = [p.info["name"] for p in psutil.process_iter(["name", "cmdline"]) if str(scratch) in str(p.info)]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


def run(*words, **environment):
    quiet = {"OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    base = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [str(word) for word in words], cwd=ROOT, env=base | quiet | environment, capture_output=True, text=True
    )


def test_a_sweep_runs_on_three_nodes_that_ask_for_a_token(scratch, tmp_path):
    token = scratch / "token"
    token.write_text(secrets.token_hex(32))
    known = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, scratch],
        env=os.environ | known,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        address = host.stdout.readline().strip()
        assert address, "the nodes did not start"
        sweep = ["sweeps/cam_geometry.py", "--smoke", "--seeds", "1", "--splits", "seen", "--address", address]
        waiting = ["cluster/with_nodes.py", "--address", address, "--nodes", "3", "--cpus", "3", "--"]
        done = run(sys.executable, *waiting, sys.executable, *sweep, "--out", tmp_path, **known)
        assert done.returncode == 0, done.stdout + done.stderr
        store = Store(tmp_path / "cam_geometry" / "results")
        assert len(store.finished()) == 7 and set(store.ended().values()) == {"done"}
        refused = run(
            *(sys.executable, *sweep, "--out", tmp_path / "refused"), RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="f" * 64
        )
        assert refused.returncode == 2 and "no Ray cluster answers" in refused.stderr
    finally:
        host.stdin.close()
        try:
            host.wait(60)
        finally:
            host.kill()
    assert host.returncode == 0 and not left(scratch)


def test_one_host_listens_to_itself_alone_and_ends_with_its_recipe(scratch):
    (scratch / "recipe.py").write_text(LISTENERS)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"PYTHON": sys.executable, "PORT": str(port), "CPUS": "1", "GPUS": "0", "RAY_TMPDIR": str(scratch)}
    done = run("cluster/one_host.sh", scratch / "recipe.py", HOME=str(scratch / "home"), **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    listeners = json.loads(done.stdout.splitlines()[-1])
    assert {"gcs_server", "raylet"} <= listeners.keys()
    everywhere = {ip.removeprefix("::ffff:") for ips in listeners.values() for ip in ips}
    assert everywhere <= {"127.0.0.1", "::1"}, listeners
    token = scratch / "home" / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o777 == 0o600 and token.parent.stat().st_mode & 0o077 == 0
    assert not left(scratch)
