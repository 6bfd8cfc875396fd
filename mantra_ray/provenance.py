"""Where a result came from: code, library versions, git commit, device and command line."""

from __future__ import annotations

import functools
import hashlib
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from mantra_ray.errors import InputError
from mantra_ray.secrets import without_secrets

PACKAGE = Path(__file__).resolve().parent


@functools.cache
def code_version(*parts: str) -> str:
    """Content hash (16 hex digits of SHA-256) of the package's source files.

    `parts` are names inside the package (`"cascade"`, `"training.stages"`); without any the whole package counts.
    Paths and contents are hashed, never times, so that two checkouts of the same code agree.
    Raises InputError if a part does not exist.
    """
    files: set[Path] = set()
    for part in parts or ("",):
        place = PACKAGE.joinpath(*part.split(".")) if part else PACKAGE
        found = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
        if not found or not all(file.is_file() for file in found):
            raise InputError(PACKAGE, "part", part, "is neither a module nor a folder with modules")
        files.update(found)
    hasher = hashlib.sha256()
    for file in sorted(files):
        hasher.update(file.relative_to(PACKAGE).as_posix().encode() + b"\0")
        hasher.update(hashlib.sha256(file.read_bytes()).digest())
    return hasher.hexdigest()[:16]


def git_state(folder: Path = PACKAGE) -> tuple[str, bool, str]:
    """Commit of the checkout that holds `folder`, whether tracked files were changed, and a hash of the changes.

    The hash has 16 hex digits of SHA-256; ("", False, "") outside a checkout, no hash where nothing was changed.
    """

    def git(*arguments: str) -> bytes:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, timeout=10, check=True)
        return done.stdout

    try:
        git("ls-files", "--error-unmatch", ".")  # an installed copy inside someone else's repository is not ours
        commit = git("rev-parse", "HEAD").decode().strip()
        changes = git("diff", "HEAD", "--no-ext-diff", "--no-color", "--full-index", "--binary")
        return commit, bool(changes), hashlib.sha256(changes).hexdigest()[:16] if changes else ""
    except (OSError, subprocess.SubprocessError):
        return "", False, ""


def lock_hash() -> str:
    """Hash (16 hex digits of SHA-256) of the names and versions of all installed distributions."""
    found = {f"{item.name.lower().replace('_', '-')}=={item.version}" for item in metadata.distributions() if item.name}
    return hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest()[:16]


def device_name() -> str:
    """Name of the accelerator that torch sees, else of the processor."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return f"cpu {platform.processor() or platform.machine()}"


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def provenance() -> dict[str, str | bool]:
    """Flat record of the run's origin, the values of a Parquet row; never fails outside a git checkout.

    For once a run, since it lists all installed packages. The machine's name is left out, and so are secrets.
    """
    import torch

    commit, dirty, changes = git_state()
    return {
        "code": code_version(),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "cuda": torch.version.cuda or "",
        "ray": _version("ray"),
        "torch_geometric": _version("torch-geometric"),
        "numpy": _version("numpy"),
        "lock": lock_hash(),
        "commit": commit,
        "dirty": dirty,
        "diff": changes,
        "device": device_name(),
        "command": shlex.join(without_secrets(sys.argv)),
    }
