"""Where the cluster files lie, and helpers that are scripts."""

import importlib.util
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def script():
    """Imports a script of `cluster/` by its path there."""

    def load(name: str):
        loader = SourceFileLoader(Path(name).stem, str(ROOT / "cluster" / name))
        module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
        loader.exec_module(module)
        return module

    return load
