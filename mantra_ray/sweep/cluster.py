"""The Ray cluster that a sweep runs on: connecting without chatter, and how many trials fit side by side."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import ray
from ray._private import ray_constants

from mantra_ray.errors import InputError
from mantra_ray.secrets import remember
from mantra_ray.sweep.options import Options

# Results are ours to write and to show: Ray's loggers, reports and notices would only bury them.
QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a process that asked for no GPU sees none
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C reaches the runner, which says how to go on
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_WARN_THRESHOLD_S": "60",
}
# Despite its name Ray asks it on Linux too.
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
PATIENCE = 10.0  # seconds in which a cluster must accept a connection; Ray itself waits for many minutes


@contextmanager
def private() -> Iterator[None]:
    """While it lasts, a Ray that starts can be reached from this machine alone, by who can read the user's token.

    Ray's own default is every interface, and a token that all users of the machine can read. LOOPBACK, set to 1, gives
    the former back. `--node-ip-address` would leave half of the sockets open.
    """
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        with suppress(OSError):  # Ray says what it cannot write
            hide_token(Path.home() / ".ray" / "auth_token")
    if LOOPBACK in os.environ:
        yield
        return
    os.environ[LOOPBACK], usual = "0", ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False  # read when Ray was imported
    try:
        yield
    finally:
        del os.environ[LOOPBACK]
        ray_constants.ENABLE_RAY_CLUSTER = usual


def hide_token(path: Path) -> None:
    """Make the file of Ray's token readable by its user alone, and the file itself where there is none."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    path.parent.mkdir(mode=0o700, exist_ok=True)
    if not path.exists():
        with tempfile.NamedTemporaryFile("w", dir=path.parent) as file, suppress(FileExistsError):
            file.write(secrets.token_hex(32))
            file.flush()
            os.link(file.name, path)  # whole, and never in the place of another's
    path.chmod(0o600)


@contextmanager
def connected(address: str) -> Iterator[dict[str, float]]:
    """Ray at `address`, or started on this machine if empty; gives the cluster's CPUs and GPUs.

    A Ray that already runs in this process is used and left as it is. Raises InputError if nothing answers.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", module=r"ray\.")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    remember(address)
    ours = not ray.is_initialized()
    with private() if ours and here_alone(address) else nullcontext(), _session(address, ours):
        yield {kind: ray.cluster_resources().get(kind, 0.0) for kind in ("CPU", "GPU")}


@contextmanager
def _session(address: str, ours: bool) -> Iterator[None]:
    if ours:
        where = {"address": address} if address else {"address": "local", "include_dashboard": False}
        try:
            ray.init(**where, logging_level="ERROR", log_to_driver=False)
        except (ConnectionError, ValueError, TimeoutError) as error:
            hint = "" if "RAY_AUTH_MODE" in os.environ else " (if it asks for a token, set RAY_AUTH_MODE=token)"
            raise InputError("options", "--address", address, f"no Ray cluster answers{hint}: {error}") from error
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


def here_alone(address: str) -> bool:
    """Whether the Ray there, or the one to start if the address is empty, listens to this machine alone.

    Its drivers must then do so too, since Ray takes 127.0.0.1 for the machine's address in its network. Raises
    InputError if nothing listens at a host and port.
    """
    host, _, port = address.rpartition(":")
    if not address or "/" in host or not port.isdigit():  # others, such as "auto", Ray finds itself
        return not address
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise InputError("options", "--address", address, f"no Ray cluster answers: {error}") from error
    if host != "localhost" and not host.startswith("127."):
        return False
    try:
        socket.create_connection((ray.util.get_node_ip_address(), int(port)), PATIENCE).close()
    except OSError:
        return True
    return False


def slots(options: Options, resources: dict[str, float]) -> int:
    """How many trials run side by side, all workers counted; InputError if not even one fits.

    Tune reserves the driver of a trial with several workers, not the workers, so this bound keeps trials
    from waiting for each other's workers for ever.
    """
    fitting = []
    for kind, share in (("CPU", options.cpus_per_trial), ("GPU", options.gpus_per_trial)):
        need = share * options.workers_per_trial
        if need > resources[kind]:
            problem = f"a trial needs {need:g} {kind}s, the cluster has {resources[kind]:g}"
            raise InputError("options", f"--{kind.lower()}s-per-trial", share, problem)
        fitting += [int(resources[kind] / need + 1e-9)] if need else []
    return min(fitting)
