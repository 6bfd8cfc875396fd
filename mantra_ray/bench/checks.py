"""What the options of several benchmarks have in common."""

from __future__ import annotations

from pathlib import Path

import torch

from mantra_ray.errors import InputError
from mantra_ray.sweep.options import check_writable


def check_device(device: str) -> None:
    """InputError unless tensors can be made on `device`; none is asked for where it is empty."""
    if device:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
            raise InputError("options", "--device", device, str(error).splitlines()[0]) from None


def check_json(out: str) -> None:
    """InputError unless `out` can be written as a .json file; none is where it is empty."""
    if out:
        if Path(out).suffix != ".json" or Path(out).is_dir():
            raise InputError("options", "--out", out, "must be a .json file")
        check_writable(Path(out).parent)
