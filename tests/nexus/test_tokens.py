"""Record tokens: round trip, bins from the training fold, special tokens."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray.nexus.tokens import SPECIAL, Vocabulary


def learn(rng, count=40, programs=7, **options):
    dose, delta = rng.random(count), rng.normal(size=(count, programs))
    settings_ = {"dose_bins": 4, "magnitude_bins": 9, "top_programs": 5} | options
    return Vocabulary.learn(dose, delta, regulators=6, states=3, **settings_), dose, delta


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_content_decodes_to_the_programs_signs_and_bins_that_went_in(seed, top):
    rng = np.random.default_rng(seed)
    vocabulary, _, delta = learn(rng, top_programs=top)
    ids = vocabulary.content(delta)
    assert ids.shape == (40, min(top, 7) + 1) and (ids[:, -1] == vocabulary.special("ENDREC")).all()
    for row, decoded in zip(delta, vocabulary.decode_content(ids), strict=True):
        order = sorted(range(7), key=lambda k: -abs(row[k]))[: min(top, 7)]
        assert [program for program, _, _ in decoded] == order
        for program, sign, magnitude in decoded:
            assert sign == np.sign(row[program])
            assert magnitude == sum(abs(row[program]) >= edge for edge in vocabulary.magnitude_edges)


def test_ids_of_different_kinds_do_not_meet():
    vocabulary, dose, delta = learn(np.random.default_rng(0))
    header = vocabulary.header(np.arange(40) % 6, dose, np.arange(40) % 3)
    regulators, doses, states = (set(header[:, i].tolist()) for i in range(3))
    content = set(vocabulary.content(delta)[:, :-1].ravel().tolist())
    special = {vocabulary.special(name) for name in SPECIAL}
    kinds = [regulators, doses, states, content, special]
    assert sum(len(kind) for kind in kinds) == len(set.union(*kinds))
    assert max(set.union(*kinds)) < vocabulary.size and len(doses) == 4
    assert vocabulary.size == 6 + 4 + 3 + 7 * 9 * 2 + 4


def test_fewer_distinct_doses_than_bins_leave_no_dead_bin():
    vocabulary = Vocabulary.learn(
        np.array([0.3, 0.6, 0.9] * 4), np.ones((12, 2)), 2, 1, dose_bins=4, magnitude_bins=9, top_programs=2
    )
    header = vocabulary.header(np.zeros(3, int), np.array([0.3, 0.6, 0.9]), np.zeros(3, int))
    assert len(set(header[:, 1].tolist())) == 3 == len(vocabulary.dose_edges) + 1


def test_a_vocabulary_survives_its_file(tmp_path):
    vocabulary, _, _ = learn(np.random.default_rng(1))
    vocabulary.save(tmp_path / "vocab.json")
    assert Vocabulary.load(tmp_path / "vocab.json") == vocabulary
    assert [p.name for p in tmp_path.iterdir()] == ["vocab.json"]
