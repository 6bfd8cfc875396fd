"""Schedulers compare within a pairing, and every trial that they stop or change has a row that says so."""

import json
from dataclasses import replace

import pytest
from ray import tune
from ray.tune.schedulers import TrialScheduler

from mantra_ray.config import LAPTOP, ExperimentConfig, NexusConfig
from mantra_ray.errors import InputError
from mantra_ray.fields import replace as replace_fields
from mantra_ray.sweep.knobs import Knob
from mantra_ray.sweep.population import distribution, history, population
from mantra_ray.sweep.schedule import GRACE, WORST, Patient, Pruned, Reporter, attach, scheduler
from mantra_ray.sweep.spec import TrialSpec
from mantra_ray.sweep.store import Store
from mantra_ray.training.nexus import train_nexus

NEXUS = NexusConfig(**LAPTOP | {"d_model": 16, "heads": 2, "top_programs": 3}, batch=32, load=2.0, slots=4, epochs=4)
RATE = Knob("nexus.learning_rate", range=(1e-5, 1e-1), log=True, kind="nuisance")
CONTINUE, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP


def spec(seed=0, kind="nexus", **changes) -> TrialSpec:
    config = replace_fields(ExperimentConfig(nexus=NEXUS, seed=seed), **changes)
    return TrialSpec(kind, config, "data", "code")


class FakeTrial:
    """What a scheduler sees of a trial."""

    def __init__(self, spec):
        self.trial_id, self.config = spec.id, {"job": {"spec": spec.to_json(), "fold": ""}}


def report(passes, gain):
    return {"passes": passes, "validation_gain": gain, "epoch": passes}


def feed(rule, trial, gains) -> str:
    """Reports gains pass by pass until the rule stops the trial; the last decision."""
    rule.on_trial_add(None, trial)
    for passes, gain in enumerate(gains):
        if (decision := rule.on_trial_result(None, trial, report(passes, gain))) != CONTINUE:
            break
    rule.on_trial_complete(None, trial, {"status": "done"})
    return decision


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_trials_compete_within_their_seed_and_split_alone(kind):
    rule = scheduler(kind)
    taus = [0.1 + 0.1 * i for i in range(6)]
    good = [FakeTrial(spec(**{"nexus.tau": tau})) for tau in taus]
    for trial in good:
        feed(rule, trial, [0.0, 0.4, 0.5, 0.6])
    assert feed(rule, FakeTrial(spec(**{"nexus.tau": 0.9})), [0.0, 0.1, 0.1, 0.1]) == STOP
    elsewhere = [spec(seed=1), spec(**{"split.kind": "unseen"}), spec(kind="baselines")]
    for other in elsewhere:
        assert feed(rule, FakeTrial(other), [0.0, 0.1, 0.1, 0.1]) == CONTINUE


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_nothing_is_stopped_in_its_first_passes_nor_without_a_gain(kind):
    rule = scheduler(kind)
    for i in range(6):
        feed(rule, FakeTrial(spec(**{"nexus.tau": 0.1 + 0.1 * i})), [0.5, 0.6, 0.7])
    late = FakeTrial(spec(**{"nexus.tau": 0.9}))
    rule.on_trial_add(None, late)
    assert rule.on_trial_result(None, late, {"epoch": 0, "metrics": {"language_loss": 1.0}}) == CONTINUE
    assert [rule.on_trial_result(None, late, report(p, -1.0)) for p in range(GRACE)] == [CONTINUE] * GRACE
    assert rule.on_trial_result(None, late, report(GRACE, WORST)) == STOP


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_trials_of_an_earlier_run_count(kind, tmp_path):
    store, trials = Store(tmp_path), {}
    for i in range(6):
        one = spec(**{"nexus.tau": 0.1 + 0.1 * i})
        trials[one.id] = one
        curve = [{"epoch": e, "metric": "validation_gain", "value": g} for e, g in enumerate([0.0, 0.4, 0.5, 0.6])]
        store.write(one, {"status": "done" if i else "pruned"}, curves=curve)
    weak = [0.0, 0.1, 0.1, 0.1]
    assert feed(scheduler(kind), FakeTrial(spec()), weak) == CONTINUE
    rule = scheduler(kind)
    rule.remember(store, trials)
    assert feed(rule, FakeTrial(spec(**{"nexus.tau": 0.9})), weak) == STOP
    assert feed(rule, FakeTrial(spec(seed=1)), weak) == CONTINUE


def test_no_scheduler_and_what_cannot_be():
    assert type(scheduler("none")) is Patient
    for space in ((), (replace(RATE, kind="scientific"),), (Knob("nexus.d_model", (16, 32), kind="nuisance"),)):
        with pytest.raises(InputError, match="nothing to explore"):
            scheduler("pbt", space)


def test_a_population_differs_in_explored_knobs_alone():
    rule = scheduler("pbt", [RATE, Knob("nexus.tau", (0.1, 0.2))])
    group = rule.group(spec())
    assert rule.group(spec(**{"nexus.learning_rate": 0.5})) == group == population(spec(), {RATE.name: RATE})
    for other in (spec(seed=1), spec(**{"nexus.tau": 0.7}), spec(**{"split.kind": "unseen"})):
        assert rule.group(other) != group
    assert rule.group(spec(kind="baselines")) is None
    assert distribution(Knob("nexus.dropout", (0.0, 0.1), kind="nuisance")) == [0.0, 0.1]


def test_curves_that_are_no_numbers_lose(monkeypatch):
    told = []
    monkeypatch.setattr(tune, "report", lambda metrics, checkpoint=None: told.append(metrics))
    heard = []
    listen = Reporter(lambda epoch, metrics: heard.append(epoch), behind=1)
    listen(0, {"validation_gain": 0.1})
    listen(1, {"language_loss": 1.0})
    listen(2, {"validation_gain": float("nan")})
    assert heard == [0, 1, 2] and [one["epoch"] for one in told] == [1, 2]
    assert "validation_gain" not in told[0] and "passes" not in told[0]
    assert told[1]["validation_gain"] == WORST and told[1]["passes"] == 1  # epoch 0 was told before, but counts


# What follows runs on Ray: real training on a planted fold, with actors that are used again.


def act(config, fold, folder, kind):
    """A trial as the worker runs it."""
    one = TrialSpec.from_json(config["job"]["spec"])
    trained, listener, keeper = attach(kind, config, one, lambda *_: None, folder / "states", folder / "scratch")
    if one.kind == "nexus":
        found = train_nexus(fold, trained.config.nexus, one.config.seed, on_epoch=listener, keeper=keeper)
        Store(folder / "results").write(one, {"status": "done"} | history(config), curves=found.curves)
    keeper.remove()
    tune.report({"status": "done"})


def fit(kind, specs, fold, folder):
    """Run trials on two slots; the rows of trials and of curves."""
    from mantra_ray.sweep.tuning import Feeder

    store = Store(folder / "results")
    trainable = tune.with_resources(tune.with_parameters(act, fold=fold, folder=folder, kind=kind), {"cpu": 1})
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=Feeder([specs]),
            scheduler=scheduler(kind, [RATE]),
            num_samples=10**9,
            max_concurrent_trials=len(specs) if kind == "pbt" else 2,
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.trial_id,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="tune", storage_path=str(folder), verbose=0, callbacks=[Pruned(store, {"provenance.host": "here"})]
        ),
    )
    results = tuner.fit()
    assert not results.errors
    return store.read("trials").to_pylist(), store.read("curves").to_pylist()


def gains(curves, trial):
    return [row["value"] for row in curves if row["trial"] == trial and row["metric"] == "validation_gain"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["asha", "median"])
def test_weak_trials_are_pruned_and_their_rows_say_so(kind, ray_session, planted, tmp_path):
    fold = planted()
    # gamma inf writes nothing but priming, hence gains less; learning rates differ to make trials distinct
    arms = [{"nexus.learning_rate": 0.01 + 0.001 * i} for i in range(4)]
    arms += [
        {"nexus.regret_gamma": float("inf"), "nexus.priming": 0, "nexus.learning_rate": 0.01 + 0.001 * i}
        for i in range(2)
    ]
    specs = [spec(kind="baselines")] + [spec(seed, **arm) for arm in arms for seed in (0, 1)]
    trials, curves = fit(kind, specs, fold, tmp_path)
    assert {row["trial"] for row in trials} == {one.id for one in specs if one.kind == "nexus"}
    pruned = [row for row in trials if row["status"] == "pruned"]
    assert pruned and len(pruned) < len(trials) and {row["provenance.host"] for row in pruned} == {"here"}
    by_id = {one.id: one for one in specs}
    for row in [*pruned, next(row for row in trials if row["status"] == "done")]:
        one = by_id[row["trial"]].config
        whole = train_nexus(fold, one.nexus, one.seed).curves
        seen = [r for r in curves if r["trial"] == row["trial"]]
        last = NEXUS.epochs
        if row["status"] == "pruned":
            last = row["pruned_epoch"]
            assert last >= GRACE and row["seconds"] > 0 and row["provenance.code"] == "code"
        expected = {(r["epoch"], r["metric"]): r["value"] for r in whole if r["epoch"] <= last}
        assert {(r["epoch"], r["metric"]): r["value"] for r in seen} == pytest.approx(expected, abs=1e-4)
    weak = {one.id for one in specs if one.config.nexus.priming == 0}
    assert weak & {row["trial"] for row in pruned}


@pytest.mark.slow
def test_a_population_takes_over_states_and_keeps_identities(ray_session, planted, tmp_path):
    fold = planted()
    rates = (1e-5, 1e-3, 5e-3, 8e-2)  # the first learns nothing, and must take over from the last
    arms = [{"nexus.learning_rate": rate, "nexus.epochs": 10} for rate in rates]
    arms += [arm | {"nexus.regret_gamma": 0.0} for arm in arms[::3]]
    specs = [spec(kind="baselines")] + [spec(**arm) for arm in arms]
    for attempt in range(3):  # who is compared with whom depends on timing
        trials, curves = fit("pbt", specs, fold, tmp_path / str(attempt))
        roads = {row["trial"]: json.loads(row["knob_history"]) for row in trials}
        if any(roads.values()):
            break
    assert {row["trial"] for row in trials} == {one.id for one in specs if one.kind == "nexus"}
    by_id = {one.id: one for one in specs}
    for row in trials:
        assert row["status"] == "done" and len(gains(curves, row["trial"])) == 11
        own = by_id[row["trial"]].config.nexus
        assert row["nexus.learning_rate"] == own.learning_rate
        road = roads[row["trial"]]  # of its weights: earlier steps may have been another's
        assert not road or road[-1]["from"] != row["trial"]
        for step in road:
            other = by_id[step["from"]].config.nexus
            assert other.regret_gamma == own.regret_gamma
            assert RATE.range[0] <= step["nexus.learning_rate"] <= RATE.range[1] and step["passes"] >= GRACE
        if road and not roads[road[-1]["from"]]:  # the curves are those of its weights
            taken = gains(curves, road[-1]["from"])
            assert gains(curves, row["trial"])[1:3] == taken[1:3] != [taken[0]] * 2
    assert any(roads.values())
