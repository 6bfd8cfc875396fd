import io

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from mantra_ray.config import ExperimentConfig
from mantra_ray.sweep.scorecard import cell, print_scorecards, read
from mantra_ray.sweep.spec import SweepSpec
from mantra_ray.sweep.store import Store


def test_cell_is_students_interval_of_the_seeds_that_have_a_value():
    values = [0.2, 0.5, 0.3, float("nan")]
    low, high = stats.t.interval(0.9, 2, np.mean(values[:3]), stats.sem(values[:3]))
    assert cell(values, 0.9) == f"0.333 ± {(high - low) / 2:.3f}"
    assert cell(values[:1], 0.9) == "0.200" and cell([], 0.9) == "-" and cell([float("nan")], 0.9) == "-"


@pytest.fixture
def store(tmp_path):
    """Two seeds of baselines, judged on traits too."""
    store = Store(tmp_path)
    trials = SweepSpec("s", ExperimentConfig(), (), (0, 1), ("seen",)).trials("data", "code")
    for trial in trials:
        where = {"split": "seen", "lower": 0.0, "upper": 1.0, "n": 9}
        values = {("gnn", "program_cosine"): 0.5, ("gnn", "trait_auroc"): 0.6 + 0.2 * trial.config.seed}
        values |= {("trait_genes", "trait_auroc"): 0.9}
        scores = [
            where | {"arm": arm, "metric": metric, "part": part, "slice": name, "value": value if part == "test" else 9}
            for (arm, metric), value in values.items()
            for part in ("validation", "test")
            for name in ("all",)
        ]
        store.write(trial, {"status": "done"}, scores)
    return store


def test_only_test_records_count_one_value_a_seed(store):
    trials = [row["trial"] for row in store.read("trials").to_pylist()]
    assert sorted(read(store, trials)["gnn", "trait_auroc"]) == pytest.approx([0.6, 0.8])


def test_tables_leave_out_metrics_that_nobody_has(store):
    rows = store.read("trials").to_pylist()
    output = io.StringIO()
    print_scorecards(store, rows, {"seen": None}, Console(file=output, width=120))
    text = output.getvalue()
    assert "On seen, traits" in text and "trait_genes" in text and "0.700" in text
    assert "On seen, expression" not in text and "discrimination" not in text and "Spearman" not in text
