import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray.config import GrnConfig
from mantra_ray.training.distributed import Unit, load_unit, node_names, save_unit, shares, train_unit
from mantra_ray.training.stages import records_of


def unit_of(screen, rows, path=Path("unit.npz")):
    config = GrnConfig(hidden=8, epochs=2, batch=16, learning_rate=2e-2)
    return Unit(path, rows, np.arange(5, 35), 5.0, config, seed=3)


@pytest.mark.parametrize("with_graph", [True, False])
def test_only_the_units_own_rows_matter(screen, with_graph):
    records = records_of(screen if with_graph else dataclasses.replace(screen, graph=None))
    rows = np.flatnonzero(screen.data.regulator != 4)
    result = train_unit(records, unit_of(screen, rows))
    wild = records.delta_expression.copy()
    wild[screen.data.regulator == 4] = np.nan
    again = train_unit(dataclasses.replace(records, delta_expression=wild), unit_of(screen, rows))
    np.testing.assert_array_equal(result["base"], again["base"])
    assert result["base"].shape == (72, 30) and result["base"].dtype == np.float32
    assert result["edges"] > 0 and result["seconds"] > 0
    wild[rows[0]] = 1.0
    other = train_unit(dataclasses.replace(records, delta_expression=wild), unit_of(screen, rows))
    assert np.abs(other["base"] - result["base"]).max() > 1e-4


def test_changes_are_clipped(screen):
    records, rows = records_of(screen), np.arange(60)
    unit = dataclasses.replace(unit_of(screen, rows), clip=0.2)
    clipped = dataclasses.replace(records, delta_expression=np.clip(records.delta_expression, -0.2, 0.2))
    np.testing.assert_array_equal(train_unit(records, unit)["base"], train_unit(clipped, unit)["base"])
    assert np.abs(train_unit(records, unit)["base"] - train_unit(records, unit_of(screen, rows))["base"]).max() > 1e-3


def test_nodes_are_genes_then_regulators_that_are_not_among_them():
    assert node_names(("b", "a"), ("a", "x", "b", "y")) == ["b", "a", "x", "y"]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 5))
def test_every_unit_has_one_worker_and_rounds_are_alike(sizes, workers):
    units = [Unit(Path(f"{i}.npz"), np.arange(size), np.arange(2), 5.0, GrnConfig(), 0) for i, size in enumerate(sizes)]
    dealt = shares(units, workers)
    assert sorted(unit.path for share in dealt for unit in share) == sorted(unit.path for unit in units)
    assert max(map(len, dealt)) == -(-len(units) // workers)
    by_round = [[share[turn].cost for share in dealt if turn < len(share)] for turn in range(max(map(len, dealt)))]
    for this, following in itertools.pairwise(by_round):
        assert min(this) >= max(following)


def test_units_survive_the_disk_and_damaged_ones_do_not_count(tmp_path):
    unit = dataclasses.replace(unit_of(None, np.arange(3)), path=tmp_path / "units" / "u.npz")
    assert load_unit(unit.path) is None
    save_unit(unit, {"base": np.ones((2, 3), np.float32)})
    np.testing.assert_array_equal(load_unit(unit.path)["base"], np.ones((2, 3)))
    assert [path.name for path in unit.path.parent.iterdir()] == ["u.npz"]
    whole = unit.path.read_bytes()
    for damaged in (whole[:50], b"", b"text", whole[:-40] + b"0" * 40, whole[:120] + b"!!!!" + whole[124:]):
        unit.path.write_bytes(damaged)
        assert load_unit(unit.path) is None
