import pytest
from ray.tune.search import Searcher

from mantra_ray.config import ExperimentConfig
from mantra_ray.sweep.plan import Grid, Work
from mantra_ray.sweep.spec import SweepSpec, TrialSpec
from mantra_ray.sweep.store import Store
from mantra_ray.sweep.tuning import Feeder


@pytest.fixture
def trials():
    arms = tuple({"nexus.regret_gamma": gamma} for gamma in (0.0, 1.0, 2.0))
    return SweepSpec("s", ExperimentConfig(), arms, (0,), ("seen",)).trials("data", "code")


class InTwo:
    """A plan whose second batch is asked for only where the first one's first trial has a row."""

    def __init__(self, trials):
        self.trials, self.most = trials, len(trials)

    def experiments(self, wanted):
        return [trial.config for trial in self.trials]

    def batches(self, store):
        yield self.trials[:2]
        if self.trials[0].id in store.read("trials")["trial"].to_pylist():
            yield self.trials[1:]  # the second one again


def test_finished_trials_are_passed_over_and_the_plan_comes_to_where_it_was(tmp_path, trials):
    store = Store(tmp_path)
    assert [batch for batch in Work(InTwo(trials), store)] == [trials[:2]]
    store.write(trials[0], {"status": "done"})
    work = Work(InTwo(trials), store)
    assert [batch for batch in work] == [trials[1:2], trials[2:]]
    assert list(work.trials) == [trial.id for trial in trials]
    for trial in trials[1:]:
        store.write(trial, {"status": "done"})
    assert not [batch for batch in Work(InTwo(trials), store)]


@pytest.mark.parametrize(("again", "expected"), [(True, [0, 1, 3]), (False, [0, 3])])
def test_pruned_trials_run_again_where_nothing_prunes(tmp_path, trials, again, expected):
    store = Store(tmp_path)
    for trial, status in zip(trials, ("failed", "pruned", "done"), strict=False):
        store.write(trial, {"status": status})
    assert list(Work(Grid(trials), store, again=again)) == [[trials[i] for i in expected]]
    assert list(Work(Grid(trials), store, retry_failed=True)) == [trials[:1]]


def test_a_batch_starts_when_all_of_the_one_before_have_ended(trials):
    feeder = Feeder([trials[:2], trials[2:3]])
    given = [feeder.suggest(name)["job"]["spec"] for name in "ab"]
    assert [TrialSpec.from_json(text) for text in given] == trials[:2]
    feeder.on_trial_complete("b")
    assert feeder.suggest("c") is None
    feeder.on_trial_complete("a", error=True)
    assert TrialSpec.from_json(feeder.suggest("c")["job"]["spec"]) == trials[2]
    feeder.on_trial_complete("c")
    assert feeder.suggest("d") == Searcher.FINISHED
