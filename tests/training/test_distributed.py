import dataclasses
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import ray

from mantra_ray.config import GrnConfig
from mantra_ray.data.graph import coexpression_graph
from mantra_ray.data.screen import Controls
from mantra_ray.training import distributed, state
from mantra_ray.training.distributed import Unit, graph_of, load_unit, node_names, run_units, save_unit, train_unit
from mantra_ray.training.stages import records_of


@pytest.fixture(autouse=True)
def stateless(monkeypatch):
    """Trainings here leave no state (slow ones would), which others of their name would go on from."""
    monkeypatch.setattr(distributed, "course_of", lambda unit, seed, replicas: state.Progress(seed))


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


def edges(graph):
    return set(zip(graph.source.tolist(), graph.target.tolist(), strict=True))


def test_the_prior_is_given_made_by_coexpression_both_or_none(screen):
    records, rows = records_of(screen), np.arange(60)
    unit = unit_of(screen, rows)
    changes = records.delta_expression[np.ix_(rows, unit.genes)]
    genes = [records.gene_names[i] for i in unit.genes]
    nodes = node_names(genes, records.regulator_names)

    def made(records=records, **fields):
        config = dataclasses.replace(unit.config, top_k=3, **fields)
        return graph_of(records, dataclasses.replace(unit, config=config), changes, nodes)

    given = made()
    assert edges(given) == edges(screen.graph.restrict(nodes)) and given.nodes == tuple(nodes)
    similar, both = made(prior="coexpression"), made(prior="both")
    assert edges(similar) == edges(coexpression_graph(changes, genes, 3)) and len(similar.source) == 90
    assert edges(both) == edges(given) | edges(similar) and len(both.source) == len(edges(both)) < 90 + len(
        given.source
    )
    assert not len(made(prior="none").source)
    assert len(made(prior="coexpression", threshold=0.5).source) < 90
    without = dataclasses.replace(records, graph=None)
    assert edges(made(without)) == edges(made(without, prior="both")) == edges(similar)
    cells = np.random.default_rng(1).normal(size=(50, records.delta_expression.shape[1])).astype(np.float32)
    shifted = cells + 3 * np.arange(cells.shape[1], dtype=np.float32) * (np.arange(50) % 2)[:, None]
    among = [dataclasses.replace(records, controls=Controls(c, np.arange(50) % 2)) for c in (cells, shifted)]
    first, second = (made(one, prior="coexpression") for one in among)
    assert edges(first) != edges(similar)
    np.testing.assert_allclose(first.weight, second.weight, atol=1e-3)  # how states differ does not count
    assert edges(made(among[0])) == edges(given)


def test_a_class_reaches_the_regulators_that_are_not_trained(screen):
    records, rows = records_of(screen), np.flatnonzero(screen.data.regulator < 10)
    of = {}
    for name in ("none", "one"):
        classes = np.full(12, -1)
        classes[[0, 11]] = 0 if name == "one" else -1
        of[name] = train_unit(dataclasses.replace(records, regulator_class=classes), unit_of(screen, rows))["base"]
    changed = np.abs(of["one"] - of["none"]).max(1) > 1e-6
    assert changed[screen.data.regulator == 11].all() and not changed[screen.data.regulator < 11].any()


@dataclasses.dataclass(frozen=True)
class Mortal(Unit):
    """Its second worker is killed once, after the second epoch."""

    def train(self, records, device="cpu", replicas=None):
        killed = self.path.with_suffix(".killed")

        def listen(epoch, metrics):
            if epoch == 1 and replicas.rank == 1 and not killed.exists():
                killed.touch()
                os._exit(1)

        def course_of(unit, seed, replicas):
            course = state.Progress(seed, listen, state.Keeper(distributed.state_of(unit), "unit", 0, replicas))
            if killed.exists():
                self.path.with_suffix(f".{replicas.rank}").write_text(str(course.state["next"]))
            return course

        distributed.course_of = course_of
        return train_unit(records, self, device, replicas)


@pytest.mark.slow
def test_two_ray_workers_train_one_unit_and_go_on_where_one_was_killed(ray_session, screen, tmp_path):
    records, rows = records_of(screen), np.arange(57)
    unit = unit_of(screen, rows, tmp_path / "unit.npz")
    unit = Mortal(**vars(unit) | {"config": dataclasses.replace(unit.config, epochs=4, replicas=2)})
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        run_units(records, [unit], 2, 0, tmp_path / "ray")
    finally:
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert unit.path.with_suffix(".killed").exists() and not distributed.state_of(unit).exists()
    assert {unit.path.with_suffix(f".{rank}").read_text() for rank in range(2)} == {"2"}
    found, alone = load_unit(unit.path), train_unit(records, Unit(**vars(unit)))
    np.testing.assert_allclose(found["loss"], alone["loss"], rtol=1e-4)
    np.testing.assert_allclose(found["base"], alone["base"], atol=1e-3 * np.sqrt(np.square(alone["base"]).mean()))
