"""The folder in which the documents' commands run, and what runs them: the real entry points, in this process."""

import os
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from mantra_ray import cli
from mantra_ray.sweep.cluster import connected

ROOT = Path(__file__).parents[2]
PROGRAMS = ("mantra", ".venv/bin/mantra", "python", ".venv/bin/python")  # that run in this process


@dataclass(frozen=True)
class Ran:
    """What became of a command."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def ray_here():
    """One Ray for all commands of a file: whoever finds it running uses it."""
    with connected(""):
        yield


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A clone as its reader has it."""
    here = tmp_path_factory.mktemp("clone")
    for name in ("sweeps", "cluster", "docs", "analysis"):
        shutil.copytree(ROOT / name, here / name)
    for name in ("mantra_ray", "Makefile", "requirements.txt", "pyproject.toml", ".ci"):
        (here / name).symlink_to(ROOT / name)
    return here


@pytest.fixture
def reader(folder):
    """The folder, with the files of a screen of its reader's own that README names."""
    rng, genes = np.random.default_rng(0), [f"G{i}" for i in range(40)]
    np.savez(
        folder / "screen.npz",
        reg_idx=np.repeat(np.arange(20), 2),
        dose=np.tile([0.5, 1.0], 20),
        deltaE=rng.normal(size=(40, 40)) + np.repeat(rng.normal(size=(20, 40)), 2, axis=0),
        gene_names=np.array(genes),
        regulator_names=np.array(genes[:20]),
    )
    np.save(folder / "W.npy", rng.random((40, 5)))
    (folder / "edges.csv").write_text("source,target\n" + "".join(f"G{i},G{i + 20}\n" for i in range(20)))
    rows = (f"{name},{i % 3 - 1},0.1\n" for i, name in enumerate(genes))
    (folder / "mch.csv").write_text("symbol,b,se\n" + "".join(rows))
    (folder / "families.csv").write_text("regulator,class\n" + "".join(f"G{i},f{i % 4}\n" for i in range(20)))
    return folder


@pytest.fixture
def run(reader, monkeypatch, capsys):
    """Runs a command line in the folder and returns a `Ran`: of `PROGRAMS` in this process, any other in a shell."""
    monkeypatch.chdir(reader)

    def command(line: str) -> Ran:
        program, *words = shlex.split(line)
        if program not in PROGRAMS:
            done = subprocess.run(["bash", "-ec", line], capture_output=True, text=True, timeout=60)
            return Ran(done.returncode, done.stdout, done.stderr)
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [program, *expanded(words)] if program.endswith("mantra") else expanded(words))
        return Ran(exit_code(program.endswith("mantra")), *capsys.readouterr())

    return command


def exit_code(installed: bool) -> int:
    """Run what sys.argv says, the installed command or a Python file; returns how it ends."""
    try:
        if installed:
            return cli.main()
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def expanded(words: list[str]) -> list[str]:
    """Words with `*` replaced by the files that fit, as a shell does."""
    found = []
    for word in words:
        files = sorted(map(str, Path().glob(word))) if "*" in word and not os.path.isabs(word) else []
        found += files or [word]
    return found
