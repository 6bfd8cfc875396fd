import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray.sweep.measured import Cell, gain
from mantra_ray.sweep.racing import FIRST, Lag, Race, lag

SEEDS, WORSE = 8, np.linspace(-0.4, 0.0, 6)


def drawn(rng, means, seeds=SEEDS, of_seed=0.1, of_regulator=0.3, of_record=0.3, splits=("seen",)):
    """Cells of configurations whose expected gains are `means`; each also errs by seed, by regulator, by record."""
    count, regulators = len(means), 80
    taste, size = rng.normal(0, of_regulator, (count, regulators)), 0.3 + rng.gamma(1, 1, regulators)
    cells = [{} for _ in means]
    for seed in range(seeds):
        luck = rng.normal(0, of_seed, count)
        for split in splits:
            who = rng.choice(regulators, 12, replace=False).repeat(2)
            reference = size[who] * rng.gamma(4, 0.25, len(who))
            for i, mean in enumerate(means):
                gained = mean + luck[i] + taste[i, who] + rng.normal(0, of_record, len(who))
                cells[i][seed, split] = Cell(np.arange(len(who)), who, reference * (1 - gained), reference)
    return cells


def run(cells, confidence=0.95):
    """Who is left at the end of a race, and the share of the trials that it ran."""
    race, alive, trials = Race(len(cells), SEEDS - FIRST, confidence), set(range(len(cells))), 0
    for count in range(FIRST, SEEDS):
        running = {str(i): {key: cell for key, cell in cells[i].items() if key[0] < count} for i in alive}
        trials += len(alive) * (FIRST if count == FIRST else 1)
        alive -= {int(fall.name) for fall in race.look(running, {}, None)}
    return alive, (trials + len(alive)) / (len(cells) * SEEDS)


@pytest.mark.parametrize("noise", [{}, {"of_seed": 0.3, "of_record": 0.05}, {"of_seed": 0.0, "of_regulator": 0.0}])
def test_the_best_is_rarely_dropped(noise):
    """All configurations but one are as good as the best: every drop of it is an error; at most 5 % may be."""
    lost = [5 not in run(drawn(np.random.default_rng(i), [0.0] * 6, **noise))[0] for i in range(100)]
    assert np.mean(lost) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / len(lost))


def test_racing_saves_trials_and_keeps_the_best():
    found = [run(drawn(np.random.default_rng(i), WORSE, of_seed=0.02)) for i in range(20)]
    assert np.mean([5 in alive for alive, _ in found]) >= 0.95
    assert np.mean([share for _, share in found]) < 0.9
    left = [sum(i in alive for alive, _ in found) for i in range(6)]
    assert left[0] < left[3] <= left[5]  # those far behind go first


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000))
def test_lag_is_the_difference_of_gains_and_its_own_reverse(seed):
    one, other = drawn(np.random.default_rng(seed), [0.0, 0.2], 4, splits=("seen", "unseen"))
    there, back = lag(one, other), lag(other, one)
    assert there.behind == pytest.approx(gain(other) - gain(one)) == pytest.approx(-back.behind)
    assert (there.error, there.freedom) == pytest.approx((back.error, back.freedom))
    assert there.p_value + back.p_value == pytest.approx(1)


@pytest.mark.parametrize("noise", [{"of_seed": 0.3}, {"of_seed": 0.0}])
def test_the_standard_error_is_that_of_repetition(noise):
    """Over worlds drawn anew, lags spread as far as their standard errors say."""
    lags = [lag(*drawn(np.random.default_rng(i), [0.0, 0.0], **noise)) for i in range(150)]
    spread = np.std([found.behind for found in lags])
    assert np.sqrt(np.mean([found.error**2 for found in lags])) == pytest.approx(spread, rel=0.2)
    # Where seeds decide, degrees of freedom are theirs; where they do not, those of many regulators count too.
    freedom = np.median([found.freedom for found in lags])
    assert SEEDS - 2 < freedom < SEEDS + 2 if noise["of_seed"] else freedom > SEEDS + 2


def test_only_what_both_ran_counts():
    one, other = drawn(np.random.default_rng(0), [0.0, 0.2])
    part = {key: cell for key, cell in one.items() if key[0] < 4}
    assert lag(part, other) == lag(part, {key: other[key] for key in part})


def test_where_nothing_is_certain():
    one, other = drawn(np.random.default_rng(0), [0.0, 5.0], seeds=1)
    assert lag(one, other).p_value == 0.5  # a single seed
    assert lag(one, {}).p_value == 0.5
    assert Lag(0.1, 0.0, 1.0).p_value == 0.0 and Lag(0.0, 0.0, 1.0).p_value == 1.0


def test_the_level_is_shared_by_all_comparisons():
    assert Race(1, 0, 0.95).level == pytest.approx(0.05)
    assert Race(11, 5, 0.9).level == pytest.approx(0.1 / 50)


def test_with_several_objectives_only_what_is_as_cheap_beats():
    cells = drawn(np.random.default_rng(0), [-2.0, 0.5], of_seed=0.01)
    running = {"poor": cells[0], "good": cells[1]}
    race = Race(2, 5, 0.95)
    assert [(fall.name, fall.rival) for fall in race.look(running, {}, None)] == [("poor", "good")]
    assert race.look(running, {}, lambda rival, name: False) == []
    fallen = race.look({"poor": cells[0]}, {"good": cells[1]}, lambda rival, name: rival == "good")
    assert [(fall.name, fall.seeds) for fall in fallen] == [("poor", SEEDS)]
