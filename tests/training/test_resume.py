"""A run that was interrupted and goes on ends as one that was not: bit for bit, at any epoch, in every mode."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mantra_ray.config import LAPTOP, NexusConfig
from mantra_ray.forward import Fold
from mantra_ray.training import residual, stages, state
from mantra_ray.training.distributed import save_unit, train_unit
from mantra_ray.training.nexus import train_nexus
from mantra_ray.training.recursive import TrainedRecursion, train_memory
from mantra_ray.training.state import Candidates, Keeper

SIZE = LAPTOP | {"d_model": 16, "heads": 2, "top_programs": 3, "batch": 32}
# Overloaded, so that evictions matter; dropout, so that torch's own generator does.
SMALL = NexusConfig(**SIZE, load=2.0, slots=4, epochs=3, language_epochs=2, dropout=0.1)
VARIANTS = {
    "residual": {},
    "language": {"mode": "language"},
    "random eviction": {"eviction": "random", "gate_signal": "residual", "regret_gamma": 0.0},
    "several manifolds": {"routing": "hash", "correct": "genes"},
    "classes": {"routing": "levels", "mode": "language"},
    "recursive": {"correction": "recursive"},
    "recursive language": {"correction": "recursive", "mode": "language"},
}
EPOCHS = 4  # of a phase: its start is judged, too


class Interrupted(Exception):
    pass


def stop_at(epoch):
    def listen(now, metrics):
        if now == epoch:
            raise Interrupted

    return listen


def phases(config) -> int:
    """Epochs that a run tells of."""
    language = config.language_epochs if config.mode == "language" else 0
    return language + EPOCHS * (1 + (config.correction == "recursive"))


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Holds the folds and the undisturbed runs that examples share."""
    return {"folder": tmp_path_factory.mktemp("folds")}


@pytest.fixture
def trained(screen, experiment, planted, shelf, monkeypatch):
    """Trains a variant with a keeper and a listener."""
    if "planted" not in shelf:
        monkeypatch.setattr(stages, "run_units", lambda records, units, *_: [
            save_unit(unit, train_unit(records, unit)) for unit in units
        ])  # fmt: skip
        (path,) = stages.make_folds(screen, [experiment], shelf["folder"], workers=1, gpus=0).values()
        shelf["screen"], shelf["planted"] = Fold.load(path), planted(classes=4, manifold=False)

    def train(name, keeper=None, on_epoch=None, config=None, seed=0):
        fold = shelf["screen" if "recursive" in name else "planted"]
        config = config or dataclasses.replace(SMALL, **VARIANTS[name])
        return train_memory(fold, shelf["folder"], config, seed, on_epoch, "cpu", keeper)

    train.fold = lambda name: shelf["screen" if "recursive" in name else "planted"]
    return train


def differs(one, other) -> list[str]:
    """What differs of weights, memory, curves and diagnostics; times are left out."""
    models = (one.cascade, other.cascade) if isinstance(one, TrainedRecursion) else (one.model, other.model)
    mine, others = (model.state_dict() for model in models)
    found = [name for name in mine if not torch.equal(mine[name], others[name])]
    for memory, its in zip(one.memories, other.memories, strict=True):
        found += [name for name in vars(memory) if not torch.equal(getattr(memory, name), getattr(its, name))]
    found += ["curves"] if one.curves != other.curves else []
    timed = ("records_per_second", "seconds")
    return found + [n for n, v in one.diagnostics.items() if n not in timed and v != other.diagnostics[n]]


@pytest.mark.filterwarnings("error:.*starts anew")
@pytest.mark.parametrize("name", VARIANTS)
@settings(
    max_examples=3, deadline=None, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_an_interrupted_run_ends_as_an_undisturbed_one(name, data, trained, shelf, tmp_path, last_epoch):
    config = dataclasses.replace(SMALL, **VARIANTS[name])
    if name not in shelf:
        shelf[name] = trained(name)
    stops = data.draw(st.lists(st.integers(0, phases(config) - 1), min_size=1, max_size=2, unique=True).map(sorted))
    path = tmp_path / "state.pt"
    path.unlink(missing_ok=True)
    for epoch in stops:
        with pytest.raises(Interrupted):
            trained(name, Keeper(path, "mine", seconds=0), stop_at(epoch))
        torch.rand(7)  # what else the process does in between
    told = []
    found = trained(name, Keeper(path, "mine", seconds=0), lambda epoch, metrics: told.append((epoch, metrics)))
    assert not differs(found, shelf[name])
    fold = trained.fold(name)
    ours, theirs = found.predict(fold), shelf[name].predict(fold)
    for space in ("program", "expression", "trait"):
        assert np.array_equal(getattr(ours, space), getattr(theirs, space))
    rows = [(e, m, v) for e, metrics in told for m, v in metrics.items() if m not in state.TIMED]
    rows = [{"epoch": e, "metric": m, "value": v} for e, m, v in rows]
    assert rows == found.curves  # the listener hears of every epoch once more


def test_it_goes_on_where_it_was_and_does_not_start_anew(trained, tmp_path, monkeypatch, last_epoch):
    keeper = Keeper(tmp_path / "state.pt", "mine", seconds=0)
    with pytest.raises(Interrupted):
        trained("residual", keeper, stop_at(1))
    passes, epoch = [], residual.Regression.epoch
    monkeypatch.setattr(residual.Regression, "epoch", lambda *a: passes.append(1) or epoch(*a))
    trained("residual", keeper)
    assert len(passes) == SMALL.epochs - 2  # epochs 0 and 1 were behind it


def test_changed_weights_in_the_file_show_in_the_result(trained, tmp_path, last_epoch):
    path = tmp_path / "state.pt"
    with pytest.raises(Interrupted):
        trained("residual", Keeper(path, "mine", seconds=0), stop_at(1))
    kept = torch.load(path, weights_only=True)
    kept["parts"]["stepper"]["optimizer"]["state"][0]["exp_avg"] += 1.0
    torch.save(kept, path)
    assert differs(trained("residual", Keeper(path, "mine")), trained("residual"))


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize(
    "spoil, word",
    [
        (damage, "is damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "is damaged"),
        (lambda path: path.write_bytes(b""), "is damaged"),
        (lambda path: torch.save({"weights": torch.ones(3)}, path), "is damaged"),
        (lambda path: torch.save(torch.load(path, weights_only=True) | {"identity": "other"}, path), "of another iden"),
        (lambda path: torch.save(torch.load(path, weights_only=True) | {"torch": "1.0"}, path), "of another torch"),
    ],
)
def test_a_damaged_or_foreign_state_is_refused_and_training_starts_anew(trained, tmp_path, spoil, word, last_epoch):
    path = tmp_path / "state.pt"
    with pytest.raises(Interrupted):
        trained("residual", Keeper(path, "mine", seconds=0), stop_at(2))
    spoil(path)
    with pytest.warns(UserWarning, match=word):
        found = trained("residual", Keeper(path, "mine"))
    assert not differs(found, trained("residual"))


def test_a_short_run_writes_nothing_and_a_full_disk_stops_none(trained, tmp_path, monkeypatch):
    keeper = Keeper(tmp_path / "state.pt", "mine")
    found = trained("residual", keeper)
    assert not list(tmp_path.iterdir())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state.torch, "save", full)
    with pytest.warns(UserWarning, match="No space left"):
        again = trained("residual", Keeper(tmp_path / "state.pt", "mine", seconds=0))
    assert not differs(found, again) and not list(tmp_path.iterdir())
    monkeypatch.undo()
    keeper = Keeper(tmp_path / "state.pt", "mine", seconds=0)
    trained("residual", keeper)
    assert keeper.path.exists()
    keeper.remove()
    assert not list(tmp_path.iterdir())
    keeper.remove()


def test_saving_takes_a_small_share_of_the_time(tmp_path, monkeypatch):
    clock = iter([0.0, 9.0, 10.0, 14.0, 25.0, 93.0, 94.0, 95.0])  # made, early, due, written, too early, too early, due
    monkeypatch.setattr(state.time, "monotonic", lambda: next(clock))
    keeper, written = Keeper(tmp_path / "state.pt", "mine", seconds=10), []
    for _ in range(5):
        keeper.save(lambda: written.append(1) or {})
    assert len(written) == 2  # writing took 4 s, so that the next one waits for 80


def test_settings_that_may_change_in_between_are_those_of_the_run_that_goes_on(trained, tmp_path, last_epoch):
    """A clone of a state goes on with another learning rate, dropout and share of hidden states."""
    path = tmp_path / "state.pt"
    with pytest.raises(Interrupted):
        trained("residual", Keeper(path, "population", seconds=0), stop_at(0))
    shutil.copy(path, tmp_path / "copy.pt")
    plain = trained("residual", Keeper(path, "population"))
    for change in ({"learning_rate": 0.1}, {"weight_decay": 0.5}, {"dropout": 0.5}, {"hide_state": 0.9}):
        other = dataclasses.replace(SMALL, **change)
        found = trained("residual", Keeper(tmp_path / "copy.pt", "population"), config=other)
        assert found.curves[: len(found.curves) // EPOCHS] == plain.curves[: len(plain.curves) // EPOCHS]
        assert differs(found, plain)


def test_a_changed_learning_rate_scales_the_rest_of_the_schedule(tmp_path):
    model = torch.nn.Linear(2, 2)

    def stepper(rate):
        model.config = dataclasses.replace(SMALL, learning_rate=rate)
        return residual.Stepper(model, dict(model.named_parameters()), 20)

    def rates(stepper):
        found = []
        for _ in range(5):
            stepper.optimizer.zero_grad()
            model(torch.ones(1, 2)).square().sum().backward()
            stepper.step()
            found.append(stepper.optimizer.param_groups[0]["lr"])
        return found

    start = stepper(0.1)
    rates(start)
    torch.save(start.state_dict(), tmp_path / "state.pt")
    same, faster = stepper(0.1), stepper(0.3)
    for one in (same, faster):
        one.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    following = rates(start)
    assert rates(same) == following
    assert rates(faster) == pytest.approx([3 * rate for rate in following])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.one_of(st.floats(0, 4), st.just(float("nan"))), min_size=3, max_size=3), min_size=1, max_size=8
    )
)
def test_first_and_best_so_far_are_all_that_a_choice_needs(errors):
    weight = torch.zeros(1)
    candidates = Candidates([weight], residual.chosen_epoch)
    for epoch, error in enumerate(errors):
        weight.fill_(epoch)
        candidates.add(torch.tensor(error, dtype=torch.float64))
        assert len(candidates.weights) <= 2
    assert candidates.take_() == float(weight) == residual.chosen_epoch(np.array(errors))


def test_a_seed_of_its_own_is_not_disturbed_by_a_keeper(planted, tmp_path, last_epoch):
    fold = planted()
    runs = [train_nexus(fold, SMALL, 3, keeper=Keeper(tmp_path / f"{i}.pt", "x", i)) for i in range(2)]
    assert not differs(*runs) and not differs(runs[0], train_nexus(fold, SMALL, 3))
