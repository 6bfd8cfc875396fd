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


def git_state(folder: Path = PACKAGE) -> tuple[str, bool]:
    """Commit of the checkout that holds `folder` and whether tracked files were changed; ("", False) outside one."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", ".")  # an installed copy inside someone else's repository is not ours
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return "", False


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
    """Flat record of the run's origin, the values of a Parquet row; never fails outside a git checkout."""
    commit, dirty = git_state()
    return {
        "code": code_version(),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "ray": _version("ray"),
        "torch_geometric": _version("torch-geometric"),
        "numpy": _version("numpy"),
        "git_commit": commit,
        "git_dirty": dirty,
        "device": device_name(),
        "command": shlex.join(sys.argv),
    }
