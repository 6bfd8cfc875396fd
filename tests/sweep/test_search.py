import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from mantra_ray.cli import load_recipe
from mantra_ray.config import ExperimentConfig
from mantra_ray.errors import InputError
from mantra_ray.fields import flatten, replace
from mantra_ray.sweep.knobs import NUISANCE, Knob
from mantra_ray.sweep.measured import OBJECTIVES, measure, pareto
from mantra_ray.sweep.options import parse
from mantra_ray.sweep.proposals import Proposer
from mantra_ray.sweep.search import SearchPlan, searches
from mantra_ray.sweep.search_tables import search_tables
from mantra_ray.sweep.store import Store
from mantra_ray.training.stages import stage_key

SPACE = (Knob("nexus.tau", range=(0.01, 1.0), log=True), Knob("nexus.load", (0.0, 1.0, 4.0)))
RECIPES = sorted(Path(__file__).parents[2].glob("sweeps/*.py"))


def true_gain(nexus, split="seen"):
    """What a configuration is worth: best at tau 0.1, load 1 (0 on `unseen`) and learning rate 1e-2."""
    best = 1.0 if split == "seen" else 0.0
    away = np.log10(nexus.tau * 10) ** 2 + 0.1 * abs(nexus.load - best) + np.log10(nexus.learning_rate * 100) ** 2
    return 0.5 - 0.2 * away


@pytest.fixture
def answer(records):
    """Runs trials of a batch: writes rows of that gain, with noise by seed and configuration; None: the trial fails."""

    def run(store, batch, gain=true_gain):
        for trial in batch:
            config = trial.config
            value = gain(config.nexus, config.split.kind) if trial.kind == "nexus" else 0.0
            if value is None:
                store.write(trial, {"status": "failed", "error": "no"})
                continue
            columns = records({"memory_on": 1 - value, "memory_off": 1.0}, config.seed)
            luck = np.random.default_rng([config.seed, int(1e6 * config.nexus.tau)]).normal(0, 0.01, 12)
            columns["squared_error"] = columns["squared_error"] * (1 + luck)
            density = 1 / (1 + config.nexus.load)
            speed = 1000 / config.nexus.tau
            row = {"status": "done", "write_density": density, "records_per_second": speed}
            store.write(trial, row, [], columns)

    return run


def plan_of(args="", space=SPACE, arms=(), splits="seen", **more):
    options = parse(["--splits", *splits.split(), *args.split()], "")
    return SearchPlan(options.sweep("test", arms, space, **more), options, "data", "code")


def go(plan, store, answer, **more):
    """All batches of a plan, run as they come."""
    found = []
    for batch in plan.batches(store):
        found.append(batch)
        done = store.finished()
        answer(store, [trial for trial in batch if trial.id not in done], **more)
    return found


def nexus(batches):
    return [trial for batch in batches for trial in batch if trial.kind == "nexus"]


@pytest.mark.parametrize("search", ["tpe", "multi"])
def test_a_search_runs_each_configuration_once_on_every_seed_and_split(tmp_path, answer, search):
    plan = plan_of(f"--search {search} --num-trials 7 --batch-configs 3 --seeds 2", splits="seen unseen")
    batches = go(plan, Store(tmp_path), answer)
    trials = [trial.id for batch in batches for trial in batch]
    assert len(trials) == len(set(trials)) <= plan.most
    pairs = list(itertools.product((0, 1), ("seen", "unseen")))
    groups = {}
    for trial in nexus(batches):
        settled = replace(trial.config, seed=0, **{"split.kind": "seen"})
        groups.setdefault(settled, []).append((trial.config.seed, trial.config.split.kind))
    assert len(groups) == 8 and all(sorted(group) == pairs for group in groups.values())
    assert plan.spec.base in groups  # the default is among them
    assert [len(nexus([batch])) // 4 for batch in batches] == [4, 3, 1]
    assert sum(trial.kind == "baselines" for batch in batches for trial in batch) == 4


def test_going_through_again_asks_for_the_same(tmp_path, answer):
    """Stopped anywhere and begun anew, a search comes to where it was; other results bring other proposals."""
    args = "--search tpe --num-trials 15 --batch-configs 5 --seeds 1"
    store, whole = Store(tmp_path / "a"), plan_of(args)
    first = go(whole, store, answer)
    assert go(plan_of(args), store, answer) == first
    other = go(plan_of(args), Store(tmp_path / "b"), answer, gain=lambda nexus, split: -true_gain(nexus))
    assert other[0] == first[0] and other[-1] != first[-1]
    stopped, again = plan_of(args).batches(Store(tmp_path / "c")), Store(tmp_path / "c")
    answer(again, next(stopped)[:2])
    assert go(plan_of(args), again, answer) == first


@pytest.mark.parametrize("objectives", [("gain",), tuple(OBJECTIVES)])
def test_proposals_turn_to_what_was_worth_more(objectives):
    """After the random start, proposals are better than at random; several objectives agree here."""
    early, late = [], []
    for seed in range(4):
        proposer, worths = Proposer(SPACE, objectives, seed), []
        for _ in range(8):
            asked = [proposer.ask() for _ in range(5)]
            for trial, arm in asked:
                away = abs(np.log10(arm["nexus.tau"]) + 1) + abs(arm["nexus.load"] - 1) / 3
                proposer.tell(trial, {name: -sign * away for name, sign in OBJECTIVES.items()})
                worths.append(-away)
        early += worths[:10]
        late += worths[-15:]
    assert np.mean(late) > np.mean(early) + np.std(early) / 4


def test_the_best_of_a_search_is_that_of_highest_gain(tmp_path, answer):
    plan = plan_of("--search tpe --num-trials 8 --seeds 1")
    go(plan, Store(tmp_path), answer)
    rows = plan.log()["rows"]
    (best,) = (row for row in rows if row["best"])
    assert best == max(rows, key=lambda row: row["gain"]) and len(rows) == 9


def test_a_small_space_is_searched_until_nothing_is_new(tmp_path, answer):
    space = (Knob("nexus.load", (0.25, 1.0, 4.0)),)
    plan = plan_of("--search tpe --seeds 1", space)
    batches = go(plan, Store(tmp_path), answer)
    assert sorted(trial.config.nexus.load for trial in nexus(batches)) == [0.0, 0.25, 1.0, 4.0]
    assert "3 configurations" in plan.log()["ended"]


def test_failed_configurations_are_not_chosen(tmp_path, answer):
    plan = plan_of("--search tpe --num-trials 6 --seeds 1")
    go(plan, Store(tmp_path), answer, gain=lambda nexus, split: None if nexus.load else true_gain(nexus))
    rows = plan.log()["rows"]
    assert rows and all(not row["configuration"].get("nexus.load") for row in rows)


def test_several_objectives_end_in_a_front(tmp_path, answer):
    plan = plan_of("--search multi --num-trials 12 --seeds 1")
    go(plan, Store(tmp_path), answer)
    rows = plan.log()["rows"]
    assert len(rows) == 13 and {row["write_density"] for row in rows} == {1.0, 0.5, 0.2}
    front = [row for row in rows if row["best"]]
    assert front == pareto(rows) and 1 < len(front) < len(rows)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from([-1.0, 0.0, 0.5, 2.0, float("nan")])] * 3), max_size=12))
def test_no_member_of_the_front_is_dominated(points):
    rows = [dict(zip(OBJECTIVES, point, strict=True)) for point in points]
    signs = np.array(list(OBJECTIVES.values()))

    def beats(one, other):
        better = signs * (np.array(list(one.values())) - np.array(list(other.values())))
        return bool((better >= 0).all() and (better > 0).any())

    front, known = pareto(rows), [row for row in rows if np.isfinite(list(row.values())).all()]
    assert all(row in known and not any(beats(other, row) for other in known) for row in front)
    assert all(any(beats(other, row) for other in front) for row in known if row not in front)


def test_nuisance_knobs_are_tuned_for_each_configuration(tmp_path, answer):
    arms = [{"nexus.load": load} for load in (0.0, 1.0, 4.0)]
    plan = plan_of("--nuisance-trials 4 --seeds 2", (), arms)
    assert searches(plan.spec, plan.options)

    def gain(nexus, split):  # the best learning rate depends on the load, and undone it decides the ranking
        return 0.5 - np.log10(nexus.learning_rate / (2.8e-3 if nexus.load else 2.15e-2)) ** 2 + 0.01 * nexus.load

    (batch,) = go(plan, Store(tmp_path), answer, gain=gain)
    assert len(nexus([batch])) == 3 * 4 * 2
    rows = plan.log()["rows"]
    rates = {row["configuration"]["nexus.load"]: row["configuration"].get("nexus.learning_rate") for row in rows}
    assert rates[1.0] == rates[4.0] == pytest.approx(1e-3 * 60**0.25, rel=5e-3) and rates[0.0] != rates[1.0]
    best = {row["configuration"]["nexus.load"] for row in rows if row["best"]}
    assert best == {4.0} and len(plan.log()["trials"]) == 3 * 2


def test_a_rate_given_by_the_user_is_not_tuned():
    plan = plan_of("--nuisance-trials 4 --nexus.learning-rate 0.01")
    assert plan.candidates.settings == ({},)


def test_racing_runs_seeds_in_rounds_and_ends_those_behind(tmp_path, answer):
    arms = [{"nexus.tau": tau} for tau in (0.1, 0.11, 0.9)]
    plan = plan_of("--racing --seeds 6", (), arms)
    batches = go(plan, Store(tmp_path), answer)
    assert [sorted({trial.config.seed for trial in batch}) for batch in batches] == [[0, 1, 2], [3], [4], [5]]
    seeds = {tau: {t.config.seed for t in nexus(batches) if t.config.nexus.tau == tau} for tau in (0.1, 0.11, 0.9)}
    assert len(seeds[0.1]) == 6 and len(seeds[0.9]) < 6
    log = plan.log()
    (fallen,) = (row for row in log["racing"] if row["configuration"] == {"nexus.tau": 0.9})
    assert fallen["seeds"] == len(seeds[0.9]) and fallen["p_value"] < log["level"] and fallen["behind"] > 0.1
    assert {"nexus.tau": 0.9} not in [row["configuration"] for row in log["rows"]]


@pytest.mark.parametrize("search", ["grid", "sample", "tpe", "multi"])
def test_every_search_goes_with_racing_tuning_and_confirmation(tmp_path, answer, search):
    counts = {"grid": "", "sample": "--num-trials 3", "tpe": "--num-trials 3", "multi": "--num-trials 3"}[search]
    space = (SPACE[0], Knob("nexus.load", (0.0, 1.0)))
    plan = plan_of(f"--search {search} {counts} --racing --seeds 4 --confirm 2 --nuisance-trials 2", space)
    known = {stage_key(config, "data") for config in plan.experiments(bool)}
    batches = go(plan, Store(tmp_path), answer)
    trials = [trial.id for batch in batches for trial in batch]
    assert len(trials) == len(set(trials)) <= plan.most
    assert {stage_key(trial.config, "data") for batch in batches for trial in batch} <= known
    assert {trial.config.seed for trial in batches[-1]} == {4, 5}
    json.dumps(plan.log())


def test_the_winner_of_each_split_and_the_default_run_on_fresh_seeds(tmp_path, answer):
    arms = [{"nexus.load": load} for load in (0.0, 1.0)]
    plan = plan_of("--confirm 2 --seeds 2 --first-seed 3", (), arms, "seen unseen")
    *searched, fresh = go(plan, Store(tmp_path / "results"), answer)
    assert {trial.config.seed for batch in searched for trial in batch} == {3, 4}
    loads = [(t.config.split.kind, t.config.seed, t.config.nexus.load) for t in nexus([fresh])]
    assert sorted(loads) == sorted(
        [("seen", seed, load) for seed in (5, 6) for load in (0.0, 1.0)]
        + [("unseen", seed, 0.0) for seed in (5, 6)]  # there the default is the winner
    )
    assert sum(trial.kind == "baselines" for trial in fresh) == 4
    log = plan.log()
    assert not {trial.id for trial in fresh} & set(log["trials"])
    (tmp_path / "sweep.json").write_text(json.dumps({"search": log}))
    console = Console(width=160, record=True)
    search_tables(tmp_path, Store(tmp_path / "results"), console)
    told = console.export_text()
    assert "2 fresh seeds" in told and "load 1" in told and "Optimism" in told
    assert told.count("Against the default") == 1  # on unseen they are the same


def test_the_tables_say_what_was_found(tmp_path, answer):
    for search, heading in (("tpe", "Search by TPE"), ("multi", "Pareto front")):
        plan = plan_of(f"--search {search} --num-trials 3 --racing --seeds 5")
        store = Store(tmp_path / search / "results")
        far = {"nexus.tau": 0.9}
        go(plan, store, answer)
        log = plan.log()
        log["racing"].append({"configuration": far, "rival": {}, "seeds": 4, "behind": 0.123, "p_value": 1e-4})
        (tmp_path / search / "sweep.json").write_text(json.dumps({"search": log}))
        console = Console(width=160, record=True)
        search_tables(tmp_path / search, store, console)
        told = console.export_text()
        assert heading in told and "tau 0.9" in told and "12.3" in told and "95% confidence" in told


def test_a_plain_grid_has_no_search_tables(tmp_path):
    (tmp_path / "sweep.json").write_text(json.dumps({"trials": []}))
    console = Console(record=True)
    search_tables(tmp_path, Store(tmp_path), console)
    assert console.export_text() == ""


def test_measures_read_validation_alone(tmp_path, records):
    plan = plan_of()
    store, trial = Store(tmp_path), plan.spec.trials("data", "code")[1]
    columns = records({"memory_on": 0.5, "memory_off": 1.0})
    order = np.random.default_rng(0).permutation(12)
    store.write(trial, {"status": "done"}, [], {name: values[order] for name, values in columns.items()})
    (found,) = measure(store, [trial.id, "missing"]).values()
    assert found.cell.record.tolist() == [6, 7] and found.costs == {"write_density": None, "records_per_second": None}
    assert found.cell.error == pytest.approx(0.5 * found.cell.reference)


@pytest.mark.parametrize(
    "args",
    [
        *("--search tpe --validation-fraction 0", "--racing --seeds 3", "--confirm -1", "--nuisance-trials 0"),
        *("--search tpe --batch-configs 0", "--batch-configs 2", "--num-trials 3", "--search tpe --num-trials 0"),
    ],
)
def test_impossible_options(args):
    option = args.split()[-2]
    with pytest.raises(InputError, match=option):
        plan_of(args)


def test_a_search_needs_a_knob():
    with pytest.raises(InputError, match="--search"):
        plan_of("--search tpe --nexus.tau 0.1", SPACE[:1])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("search", ["tpe", "multi"])
def test_every_recipe_can_be_searched(path, search):
    options = parse(["--search", search, "--splits", "seen", "--nuisance-trials", "2"], "")
    plan = SearchPlan(load_recipe(path)(options), options, "data", "code")
    fields = set(flatten(ExperimentConfig()))
    assert plan.knobs and all(knob.fields() <= fields for knob in plan.knobs)
    batch = next(plan.batches(Store("nowhere")))
    known = {stage_key(config, "data") for config in plan.experiments(bool)}
    assert {stage_key(trial.config, "data") for trial in batch} <= known


def test_the_joint_recipe_searches_by_tpe_unless_told():
    recipe = load_recipe(next(path for path in RECIPES if path.stem == "joint"))
    assert recipe(parse([], "")).search == "tpe" and recipe(parse(["--search", "grid"], "")).search == "grid"
    assert len(recipe(parse(["--search", "sample"], "")).arms) == 8
    assert recipe(parse(["--nexus.tau", "0.1"], "")).space[-1] == NUISANCE[0]
    assert "nexus.tau" not in {knob.name for knob in recipe(parse(["--nexus.tau", "0.1"], "")).space}
