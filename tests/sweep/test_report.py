import io
import json
import re

import numpy as np
import pytest
from rich.console import Console

from mantra_ray.config import ExperimentConfig
from mantra_ray.evaluation.statistics import Interval
from mantra_ray.sweep.report import print_summary
from mantra_ray.sweep.spec import GEOMETRIES, SweepSpec, grid
from mantra_ray.sweep.store import Store
from mantra_ray.sweep.tables import number, span

SPLITS = ("seen", "context", "unseen")
SIZES = [{"nexus.buckets": b, "nexus.slots": s} for b, s in (*GEOMETRIES.values(), (64, 4))]
ARMS = [size | knobs for size in SIZES for knobs in grid(**{"nexus.regret_gamma": (0.0, 1.0)})]
ARMS += [size | {"nexus.load": load} for size in SIZES[:3] for load in (0.25, 4.0)]


def share_left(config):
    """The memory's error as a share of the GNN's: best in the aggressive geometry at gamma 1; nothing on `unseen`."""
    nexus = config.nexus
    if config.split.kind == "unseen":
        return 1.0
    return 0.9 - 0.2 * (nexus.buckets == 2048) - 0.1 * nexus.regret_gamma


def finished(root, records, arms, splits, fails=lambda trial: False):
    """The folder of a sweep with two seeds, in which some trials failed."""
    trials = SweepSpec("test", ExperimentConfig(), tuple(arms), (0, 1), splits).trials("data", "code")
    store = Store(root / "results")
    for trial in trials:
        if fails(trial):
            store.write(trial, {"status": "failed", "error": "Traceback\nValueError: slot [3] is empty\n"})
            continue
        seed, nexus = trial.config.seed, trial.config.nexus
        load = nexus.load or 0.05
        row = {"status": "done", "write_density": 0.95 + 0.1 * seed, "load": load, "occupancy": min(load, 1.0)}
        shares, scores = {"zero": 20.0, "ridge": 0.8}, []
        if trial.kind == "baselines":
            where = {"arm": "noise_ceiling", "part": "test", "slice": "all", "n": 4}
            scores = [where | {"metric": name, "value": 0.5} for name in ("noise_floor_mse", "program_mse_gain")]
        else:
            shares = {"memory_off": 1.0, "memory_shuffled": 1.25, "memory_on": share_left(trial.config)}
        store.write(trial, row, scores, records(shares, seed))
    (root / "sweep.json").write_text(json.dumps({"trials": [trial.id for trial in trials], "timing": None}))
    return root


def printed(root, width=120):
    output = io.StringIO()
    print_summary(root, Console(file=output, width=width))
    return output.getvalue()


def rows(text, first):
    """Lines that begin with a word, as lists of words."""
    return [line.split() for line in text.splitlines() if line.split()[:1] == [first]]


@pytest.fixture
def sweep(tmp_path, records):
    return finished(tmp_path, records, ARMS, SPLITS)


def test_one_row_a_configuration_with_all_splits_side_by_side(sweep):
    text = printed(sweep)
    full, loaded = text[text.index("Full size") : text.index("Under load")], text[text.index("Under load") :]
    assert full.splitlines()[1].split() == ["geometry", "gamma", *SPLITS]
    for name in (*GEOMETRIES, "64x4"):
        found = rows(full, name)
        assert [row[1] for row in found] == ["0", "1"]
        best = 30 if name == "aggressive" else 10
        assert [row[2].startswith(f"+{best + 10 * i}.0") for i, row in enumerate(found)] == [True, True]
    head = loaded.splitlines()[1].split()
    assert head == ["geometry", "load", "occupancy", *SPLITS]
    assert [row[:3] for row in rows(loaded, "safe")] == [["safe", "0.25", "25.0%"], ["safe", "4", "100.0%"]]


def test_what_all_rows_share_stands_in_the_heading(sweep):
    (full,) = (line for line in printed(sweep).splitlines() if line.startswith("Full size"))
    (loaded,) = (line for line in printed(sweep).splitlines() if line.startswith("Under load"))
    assert "load 0.05" in full and "density 100.0%" in full and "seeds 2" in full
    default = ExperimentConfig().nexus.regret_gamma
    assert f"gamma {default:g}" in loaded and "load 4" not in loaded  # the default, in all that set a load


@pytest.mark.parametrize("width", [80, 100, 120])
def test_nothing_is_cut_at_any_width(sweep, width):
    text = printed(sweep, width)
    lines = [line for line in text.splitlines() if str(sweep) not in line]
    assert "…" not in text and max(map(len, lines)) <= width
    for split in SPLITS:
        assert re.search(rf"\b{split}\b", text[text.index("Full size") :])


def test_the_best_on_validation_is_marked_once_a_split(sweep):
    text = printed(sweep)
    (best,) = (row for row in rows(text, "aggressive") if any("*" in word for word in row))
    assert best[1] == "1" and sum("*" in word for word in best) == 2  # on seen and context
    assert text.count("*") == 3  # and in the legend: on unseen all are the GNN, and none is chosen


def test_the_findings_are_in_words(sweep):
    text = " ".join(printed(sweep).split())
    assert "On seen: memory on +40.0 % [40.0, 40.0], shuffled memory -25.0 % [-25.0, -25.0] over the GNN; " in text
    assert (
        "best by validation is aggressive, gamma 1, load 0.05; the best baseline is ridge +20.0 % [20.0, 20.0]." in text
    )
    assert "On unseen: all 14 configurations of the memory equal the GNN" in text


def test_ties_are_said(tmp_path, records):
    text = " ".join(printed(finished(tmp_path, records, [{"nexus.tau": 0.1}, {"nexus.tau": 0.2}], ("seen",))).split())
    assert "best by validation is tau 0.1, load 0.05, first of 2 that tie" in text and text.count("]*") == 2


def test_arms_come_best_first_and_the_ceiling_last(sweep):
    text = printed(sweep)
    arms = ("memory_on", "ridge", "gnn", "memory_off", "memory_shuffled", "zero", "noise_ceiling")
    places = [text.index("\n" + name) for name in arms]
    assert places == sorted(places)
    (zero,) = rows(text, "zero")
    assert zero.count("-1900.0") == len(SPLITS)
    (ceiling,) = rows(text, "noise_ceiling")
    assert ceiling[1:] == ["0.5000", "+50.0"] * len(SPLITS)


def test_failures_are_shown_and_leave_their_mark(tmp_path, records):
    def fails(trial):
        nexus = trial.config.nexus
        return trial.kind == "nexus" and trial.config.seed and nexus.buckets == 2048 and not nexus.regret_gamma

    text = printed(finished(tmp_path, records, ARMS[:4], SPLITS, fails))
    assert "ValueError: slot [3] is empty" in text and "27 trials finished, 3 failed" in text
    assert [row[2] for row in rows(text, "aggressive")] == ["1", "2"]  # seeds behind each


def test_a_sweep_in_which_everything_failed_still_ends(tmp_path, records):
    text = printed(finished(tmp_path, records, [{}], ("seen",), lambda trial: True))
    assert "Gain" not in text and "0 trials finished, 4 failed" in text


def test_numbers():
    assert [number(value) for value in (0.0302, 0.024871, 12345.6, 1.0)] == ["0.03020", "0.02487", "1.235e+04", "1.000"]
    assert span(Interval(-1e-9, -1e-9, 0.0, 4)) == "+0.0 [0.0, 0.0]"
    assert span(Interval(0.183, 0.1334, 0.2, 4)) == "+18.3 [13.3, 20.0]"
    assert span(Interval(0.5, np.nan, np.nan, 4)) == "+50.0"
