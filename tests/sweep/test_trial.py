"""One trial in this process: its arms, its rows and what it leaves alone."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from mantra_ray.config import LAPTOP, EvaluationConfig, ExperimentConfig, NexusConfig
from mantra_ray.errors import InputError
from mantra_ray.forward import predict
from mantra_ray.sweep import trial
from mantra_ray.sweep.schema import DIAGNOSTICS
from mantra_ray.sweep.spec import TrialSpec
from mantra_ray.sweep.trial import memory_arms, memory_digest, prediction_digest, run_trial
from mantra_ray.training.nexus import train_nexus
from mantra_ray.training.state import TIMED

SIZE = LAPTOP | {"d_model": 16, "heads": 2, "top_programs": 3, "batch": 32}
NEXUS = NexusConfig(**SIZE, load=2.0, slots=4, epochs=3)
NOWHERE = Path("nowhere")  # where a fold's networks would lie; only a recursive correction reads them
CONFIG = ExperimentConfig(nexus=NEXUS, evaluation=EvaluationConfig(bootstrap=200))
EXPRESSION = ("delta_expression", "base_expression", "lift_expression", "loadings")
TIMES = {"records_per_second", "training_seconds"}
DIGESTS = {"prediction_sha256", "base_sha256", "memory_sha256", "judged_memory_sha256"}


def spec(kind="nexus", **changes) -> TrialSpec:
    return TrialSpec(kind, dataclasses.replace(CONFIG, **changes), "data", "code")


@pytest.fixture(scope="module")
def screened(planted):
    return planted()


@pytest.fixture(scope="module")
def outcome(screened):
    return run_trial(spec(), screened, NOWHERE)


def column(outcome, arm, name, part="test"):
    rows = (outcome.records["arm"] == arm) & (outcome.records["part"] == part)
    return outcome.records[name][rows]


def score(outcome, arm, metric="program_mse_gain", part="test", slice_="all"):
    wanted = {"arm": arm, "metric": metric, "part": part, "slice": slice_}
    (row,) = [row for row in outcome.scores if wanted.items() <= row.items()]
    return row


def test_a_memory_is_judged_off_shuffled_and_on(outcome, screened):
    arms = ["memory_off", "memory_shuffled", "memory_on"]
    assert set(outcome.records["arm"]) == set(arms)
    assert {row["arm"] for row in outcome.scores} == {*arms, "noise_ceiling"}
    assert {row["split"] for row in outcome.scores} == {"seen"}
    for arm in arms:
        for part in ("validation", "test"):
            rows = getattr(screened, part)
            assert np.array_equal(column(outcome, arm, "record", part), rows)
            for name in ("regulator", "dose", "state"):
                assert np.array_equal(column(outcome, arm, name, part), getattr(screened, name)[rows])
    assert len({len(values) for values in outcome.records.values()}) == 1


def test_memory_off_is_the_base_exactly(outcome, screened):
    for part in ("validation", "test"):
        reference = column(outcome, "memory_off", "reference_error", part)
        assert np.array_equal(column(outcome, "memory_off", "squared_error", part), reference)
        expected = np.square(screened.residual[getattr(screened, part)], dtype=np.float64).mean(1)
        np.testing.assert_allclose(reference, expected, rtol=1e-5)
        row = score(outcome, "memory_off", part=part)
        assert row["value"] == row["lower"] == row["upper"] == 0
    assert not np.array_equal(
        column(outcome, "memory_on", "squared_error"), column(outcome, "memory_off", "squared_error")
    )


VARIANTS = [
    {"mode": "language", "window": 50, "language_epochs": 2},
    {"routing": "class"},
    {"routing": "levels"},
    {"routing": "hash"},
    {"routing": "random"},
    {"correct": "genes"},
    {"mode": "language", "correct": "genes", "routing": "levels", "top_genes": 2, "language_epochs": 2},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: "-".join(map(str, changes.values())))
def test_every_variant_is_judged_as_the_memory_is(planted, changes):
    fold = planted(classes=4, manifold=False)
    found = run_trial(spec(nexus=dataclasses.replace(NEXUS, **changes, epochs=1)), fold, NOWHERE)
    assert set(found.records["arm"]) == {"memory_off", "memory_shuffled", "memory_on"}
    for part in ("validation", "test"):
        error = {
            arm: column(found, arm, "squared_error", part) for arm in ("memory_off", "memory_shuffled", "memory_on")
        }
        assert np.array_equal(error["memory_off"], column(found, "memory_off", "reference_error", part))
        assert np.abs(error["memory_on"] - error["memory_off"]).max() > 1e-3
        assert np.abs(error["memory_on"] - error["memory_shuffled"]).max() > 1e-3
    assert {row["arm"] for row in found.scores if row["metric"] == "expression_pearson"} >= set(error)
    told = found.diagnostics
    assert set(DIAGNOSTICS) <= told.keys() and np.isfinite([told[name] for name in told.keys() - DIGESTS]).all()
    assert 0 < told["gate_mean"] < 2 and 0 < told["write_density"] <= 1 and 0 < told["occupancy"] <= 1
    assert told["load"] >= 1.9  # 2 was asked for; hashes round the number of buckets down, and a class's slots


def test_a_recursive_correction_looks_for_networks_beside_the_fold(screened, tmp_path, monkeypatch):
    asked = []

    def stand_in(fold, folder, config, seed, on_epoch, device, keeper):
        asked.append((folder, config.correction))
        return train_nexus(fold, config, seed, on_epoch=on_epoch, device=device)

    monkeypatch.setattr(trial, "train_memory", stand_in)
    run_trial(spec(nexus=dataclasses.replace(NEXUS, correction="recursive", epochs=1)), screened, tmp_path)
    assert asked == [(tmp_path, "recursive")]


def test_a_recursive_correction_is_refused_for_data_without_expression(screened, tmp_path):
    bare = dataclasses.replace(screened, **dict.fromkeys(EXPRESSION))
    with pytest.raises(InputError, match="no changes of expression"):
        run_trial(spec(nexus=dataclasses.replace(NEXUS, correction="recursive", epochs=0)), bare, tmp_path)


def test_scores_are_those_of_the_records(outcome):
    for arm in ("memory_off", "memory_shuffled", "memory_on"):
        error, reference = column(outcome, arm, "squared_error"), column(outcome, arm, "reference_error")
        row = score(outcome, arm)
        assert row["value"] == pytest.approx(1 - error.sum() / reference.sum()) and row["n"] == len(error)
        assert row["lower"] <= row["value"] <= row["upper"]
        assert score(outcome, arm, "program_mse")["value"] == pytest.approx(error.mean())


def test_the_memory_gains_by_what_it_holds(planted):
    """Of regulators with a residual of their own, the right records help and another's do not."""
    nexus = dataclasses.replace(NEXUS, load=0.0, buckets=32, slots=8)
    found = run_trial(spec(nexus=nexus), planted(unseen=0), NOWHERE)
    assert score(found, "memory_on")["lower"] > 0.2
    assert score(found, "memory_shuffled")["upper"] < score(found, "memory_on")["lower"]


def test_shuffled_memory_keeps_weights_and_keys_and_exchanges_residuals(screened):
    trained = train_nexus(screened, NEXUS, 0)
    shuffled, _ = memory_arms(screened, trained, 0)
    other, _ = memory_arms(screened, trained, 1)
    for arm in ("memory_on", "memory_off"):
        assert np.array_equal(shuffled[arm].program, other[arm].program)
    programs = [shuffled["memory_shuffled"].program, other["memory_shuffled"].program, shuffled["memory_on"].program]
    for i, one in enumerate(programs):
        assert all(np.abs(one - two).max() > 1e-3 for two in programs[:i])


def test_shuffled_memory_gains_nothing_where_the_base_is_noise_around_the_truth(planted):
    """What siblings' base predictions tell of the truth is no gain of the residuals that were shuffled away."""
    fold, rng = planted(unseen=0), np.random.default_rng(0)
    truth = rng.normal(size=(20, fold.programs))[fold.regulator]
    program, base = (truth + rng.normal(scale=scale, size=truth.shape) for scale in (0.1, 1.0))
    noisy = dataclasses.replace(fold, delta_program=program.astype("f4"), base_program=base.astype("f4"))
    found = run_trial(spec(nexus=NexusConfig(**LAPTOP, epochs=3)), noisy, NOWHERE)
    assert score(found, "memory_on")["lower"] > 0
    assert score(found, "memory_shuffled")["lower"] <= 0


def test_judging_leaves_memory_model_records_and_fold_alone(screened):
    trained = train_nexus(screened, NEXUS, 0)
    memories, records = copy.deepcopy(trained.memories), copy.deepcopy(trained.inputs.records)
    weights, before = copy.deepcopy(trained.model.state_dict()), copy.deepcopy(screened)
    first, _ = memory_arms(screened, trained, 0)
    again, _ = memory_arms(screened, trained, 0)
    assert all(memory.equals(before) for memory, before in zip(trained.memories, memories, strict=True))
    assert all(tensor.equal(vars(trained.inputs.records)[name]) for name, tensor in vars(records).items())
    assert all(tensor.equal(weights[name]) for name, tensor in trained.model.state_dict().items())
    for arm, prediction in first.items():
        assert np.array_equal(prediction.program, again[arm].program)
    for field in dataclasses.fields(before):
        np.testing.assert_equal(getattr(screened, field.name), getattr(before, field.name))


def test_diagnostics_are_there_and_make_sense(outcome, screened):
    found = outcome.diagnostics
    assert set(DIAGNOSTICS) <= found.keys()
    numbers = [value for name, value in found.items() if name not in DIGESTS]
    assert all(isinstance(value, float) and np.isfinite(value) for value in numbers)
    train = len(screened.train)
    assert found["slots"] == 4 and found["buckets"] == round(train / 8)
    assert found["load"] == pytest.approx(train / (found["buckets"] * found["slots"]))
    assert found["write_density"] == pytest.approx(found["primed_density"] + found["gated_density"])
    assert found["primed_density"] == pytest.approx(20 * NEXUS.priming / train)
    per_bucket = np.bincount(screened.regulator[screened.train] % int(found["buckets"]))
    assert found["collisions"] == np.maximum(per_bucket - 4, 0).sum() > 0
    assert found["occupancy"] * found["buckets"] * found["slots"] <= train
    assert found["evictions"] <= found["write_density"] * train
    for name in ("write_density", "occupancy", "hard_hit_rate", "sim_max_mean"):
        assert 0 <= found[name] <= 1
    assert 0 < found["gate_mean"] < 2 and 0 <= found["read_entropy"] <= np.log(4)
    assert found["memory_bytes"] > 0 and found["records_per_second"] > 0


def test_full_size_has_no_collisions_and_finds_every_seen_regulator(screened):
    nexus = dataclasses.replace(NEXUS, load=0.0, buckets=512, slots=32, regret_gamma=-np.inf, epochs=1)
    found = run_trial(spec(nexus=nexus), screened, NOWHERE).diagnostics
    assert found["collisions"] == found["evictions"] == 0
    assert found["write_density"] == 1 and found["occupancy"] == pytest.approx(len(screened.train) / (512 * 32))
    assert found["hard_hit_rate"] == pytest.approx((screened.regulator[screened.test] < 20).mean())


def test_digests_are_those_of_the_judged_predictions_and_of_the_memory(screened):
    trained = train_nexus(screened, NEXUS, 0)
    predictions, found = memory_arms(screened, trained, 0)
    assert found.keys() >= DIGESTS and all(len(found[name]) == 32 for name in DIGESTS)
    assert (
        found["prediction_sha256"] != found["base_sha256"] and found["memory_sha256"] == found["judged_memory_sha256"]
    )
    assert found["base_sha256"] == prediction_digest(screened, predict(screened, np.arange(len(screened.regulator))))
    on = predictions["memory_on"]
    for rows, matters in ((screened.train, False), (screened.validation, True), (screened.test, True)):
        program = on.program.copy()
        program[rows[-1], -1] = np.nextafter(program[rows[-1], -1], np.inf)
        other = prediction_digest(screened, dataclasses.replace(on, program=program))
        assert (other != found["prediction_sha256"]) == matters
    for name in vars(trained.memories[0]):
        memories = copy.deepcopy(trained.memories)
        getattr(memories[0], name).view(-1)[0] += 1
        assert memory_digest(memories) != found["memory_sha256"]


def test_curves_have_every_epoch_and_are_told_as_they_grow(outcome, screened):
    told = []
    run_trial(spec(), screened, NOWHERE, lambda epoch, metrics: told.append((epoch, metrics)))
    assert [epoch for epoch, _ in told] == [0, 1, 2, 3]
    rows = [(e, m, v) for e, metrics in told for m, v in metrics.items() if m not in TIMED]
    assert [{"epoch": e, "metric": m, "value": v} for e, m, v in rows] == outcome.curves
    epochs = {m: [row["epoch"] for row in outcome.curves if row["metric"] == m] for _, ms in told for m in ms}
    assert epochs["loss"] == [0, 1, 2]
    assert all(epochs[name] == [0, 1, 2, 3] for name in ("validation_gain", "write_density", "occupancy"))


def test_a_seed_gives_the_same_trial_bit_for_bit(outcome, screened):
    again = run_trial(spec(), screened, NOWHERE)
    np.testing.assert_equal(again.scores, outcome.scores)  # NaN equals NaN
    assert again.curves == outcome.curves
    for name, values in outcome.records.items():
        assert np.array_equal(again.records[name], values)
    numbers = [{k: v for k, v in o.diagnostics.items() if k not in TIMES} for o in (outcome, again)]
    assert numbers[0] == numbers[1]
    other = run_trial(spec(seed=1), screened, NOWHERE)
    errors = [column(o, "memory_on", "squared_error") for o in (outcome, other)]
    assert np.abs(errors[0] - errors[1]).max() > 1e-4


def test_baselines_are_judged_on_the_same_rows(outcome, screened):
    found = run_trial(spec("baselines"), screened, NOWHERE)
    arms = {"gnn", "zero", "mean", "state_mean", "bias", "lookup", "ridge", "residual_neighbours"}
    assert arms <= set(found.records["arm"]) and "memory_on" not in found.records["arm"]
    assert found.diagnostics == {} and found.curves == []
    for name in ("record", "regulator", "dose", "state", "reference_error"):
        assert np.array_equal(column(found, "gnn", name), column(outcome, "memory_on", name))
    assert np.array_equal(column(found, "gnn", "squared_error"), column(outcome, "memory_off", "squared_error"))
    assert score(found, "gnn")["value"] == 0
    zero = np.square(screened.delta_program[screened.test], dtype=np.float64).mean(1)
    np.testing.assert_allclose(column(found, "zero", "squared_error"), zero, rtol=1e-5)
    again = run_trial(spec("baselines"), screened, NOWHERE)
    assert np.array_equal(again.records["squared_error"], found.records["squared_error"])


def test_baselines_train_no_memory(screened, monkeypatch):
    monkeypatch.setattr(trial, "train_memory", lambda *_, **__: pytest.fail("a memory was trained"))
    run_trial(spec("baselines"), screened, NOWHERE)


def test_data_without_expression_run_through(screened):
    bare = dataclasses.replace(screened, **dict.fromkeys(EXPRESSION))
    for kind in ("nexus", "baselines"):
        found, whole = (run_trial(spec(kind), fold, NOWHERE) for fold in (bare, screened))
        assert not {row["metric"] for row in found.scores} & {"expression_pearson", "expression_pearson_centred"}
        assert {row["metric"] for row in whole.scores} >= {"expression_pearson"}
        for arm in set(found.records["arm"]):
            assert np.array_equal(column(found, arm, "squared_error"), column(whole, arm, "squared_error"))
