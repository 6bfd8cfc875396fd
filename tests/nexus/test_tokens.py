"""Record tokens: round trip, bins from the training fold, special tokens, the stream, the file."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray.nexus.tokens import HEADER, SPECIAL, Vocabulary

quick = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 2**32 - 1)
N, K, G = 40, 7, 11


def learn(rng, genes=False, **options):
    """A vocabulary, and the doses, changes of programs and changes of genes (or None) that it was learned on."""
    dose, delta = rng.random(N), rng.normal(size=(N, K))
    expression = rng.standard_t(3, size=(N, G)) if genes else None
    settings_ = {"dose_bins": 4, "magnitude_bins": 9, "top_programs": 5, "delta_expression": expression} | options
    return Vocabulary.learn(dose, delta, regulators=6, states=3, **settings_), dose, delta, expression


def expected(kind, row, top, edges):
    """The `top` largest changes of a row, in plain Python."""
    order = sorted(range(len(row)), key=lambda k: -abs(row[k]))[:top]
    return [(kind, k, 1 if row[k] > 0 else -1, sum(abs(row[k]) >= edge for edge in edges)) for k in order]


@quick
@given(seeds, st.integers(1, 9))
def test_content_decodes_to_the_programs_signs_and_bins_that_went_in(seed, top):
    vocabulary, _, delta, _ = learn(np.random.default_rng(seed), top_programs=top)
    ids = vocabulary.content(delta)
    assert ids.shape == (N, min(top, K) + 1) and (ids[:, -1] == vocabulary.special("ENDREC")).all()
    for row, decoded in zip(delta, vocabulary.decode_content(ids), strict=True):
        assert decoded == expected("PROG", row, min(top, K), vocabulary.magnitude_edges)


@quick
@given(seeds, st.integers(1, 13), st.integers(1, 9))
def test_whole_records_decode_to_the_programs_and_genes_that_went_in(seed, top, bins):
    rng = np.random.default_rng(seed)
    vocabulary, dose, delta, expression = learn(rng, genes=True, top_genes=top, magnitude_bins=bins)
    regulator, state = rng.integers(0, 6, N), rng.integers(0, 3, N)
    rows = vocabulary.record(regulator, dose, state, delta, expression)
    assert rows.shape == (N, vocabulary.length) and vocabulary.length == 3 + 5 + min(top, G) + 1
    assert (rows[:, :HEADER] == vocabulary.header(regulator, dose, state)).all()
    for i, decoded in enumerate(vocabulary.decode_content(rows)):
        assert decoded == [
            *expected("PROG", delta[i], 5, vocabulary.magnitude_edges),
            *expected("GENE", expression[i], min(top, G), vocabulary.gene_edges),
        ]


def test_bins_of_genes_tell_the_written_ones_apart():
    vocabulary, _, delta, expression = learn(np.random.default_rng(0), genes=True, top_genes=3, magnitude_bins=4)
    written = vocabulary.decode_content(vocabulary.content(delta, expression))
    counts = np.bincount([change.bin for row in written for change in row if change.kind == "GENE"], minlength=4)
    assert counts.tolist() == [N * 3 // 4] * 4  # quantiles of what is written


def test_bins_of_programs_and_doses_are_quantiles_of_the_training_fold():
    vocabulary, dose, delta, _ = learn(np.random.default_rng(0), top_programs=K, magnitude_bins=5)
    written = vocabulary.decode_content(vocabulary.content(delta))
    assert np.bincount([change.bin for row in written for change in row]).tolist() == [N * K // 5] * 5
    doses = vocabulary.header(np.zeros(N, int), dose, np.zeros(N, int))[:, 1] - vocabulary.first_dose
    assert np.bincount(doses).tolist() == [N // 4] * 4


@pytest.mark.parametrize("top", [0, 4])
def test_ids_of_different_kinds_do_not_meet(top):
    vocabulary, dose, delta, expression = learn(np.random.default_rng(0), genes=True, top_genes=top)
    header = vocabulary.header(np.arange(N) % 6, dose, np.arange(N) % 3)
    content = vocabulary.content(delta, expression)
    kinds = [set(header[:, i].tolist()) for i in range(3)]
    kinds += [set(content[:, :5].ravel().tolist()), set(content[:, 5:-1].ravel().tolist())]
    kinds += [{vocabulary.special(name) for name in SPECIAL}]
    types = vocabulary.types()
    assert [entry["type"] for entry in types] == ["REG", "DOSE", "STATE", "PROG", "GENE", *SPECIAL]
    counts = [6, 4, 3, K * 9 * 2, G * 9 * 2 if top else 0, 1, 1, 1, 1]
    assert [entry["count"] for entry in types] == counts and vocabulary.size == sum(counts)
    assert [entry["first"] for entry in types] == np.cumsum([0, *counts[:-1]]).tolist()
    for ids, entry in zip(kinds[:5], types, strict=False):
        assert ids <= set(range(entry["first"], entry["first"] + entry["count"]))
    assert kinds[5] == set(range(vocabulary.size - 4, vocabulary.size))


def test_fewer_distinct_doses_than_bins_leave_no_dead_bin():
    vocabulary = Vocabulary.learn(
        np.array([0.3, 0.6, 0.9] * 4), np.ones((12, 2)), 2, 1, dose_bins=4, magnitude_bins=9, top_programs=2
    )
    header = vocabulary.header(np.zeros(3, int), np.array([0.3, 0.6, 0.9]), np.zeros(3, int))
    assert len(set(header[:, 1].tolist())) == 3 == len(vocabulary.dose_edges) + 1


@quick
@given(seeds, st.integers(1, N), st.integers(1, 50))
def test_a_stream_holds_the_records_where_the_offsets_say(seed, count, multiple):
    rng = np.random.default_rng(seed)
    vocabulary, dose, delta, _ = learn(rng)
    rows = vocabulary.record(np.arange(N) % 6, dose, np.arange(N) % 3, delta)[:count]
    tokens, offset = vocabulary.stream(rows, multiple)
    end = count * vocabulary.length + 1
    assert tokens[0] == vocabulary.special("BOS") and tokens[end] == vocabulary.special("EOS")
    assert (tokens[end + 1 :] == vocabulary.special("PAD")).all()
    assert len(tokens) % multiple == 0 and end + 1 <= len(tokens) < end + 1 + multiple
    assert tokens.dtype == np.int64 and offset.shape == (count,)
    for row, first in zip(rows, offset, strict=True):
        assert (tokens[first : first + vocabulary.length] == row).all()


def test_gene_tokens_need_the_changes_of_all_their_genes():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="top_genes 2"):
        learn(rng, top_genes=2)
    vocabulary, _, delta, expression = learn(rng, genes=True, top_genes=2)
    for changes in (None, expression[:, 1:]):
        with pytest.raises(ValueError, match="11 genes"):
            vocabulary.content(delta, changes)


@pytest.mark.parametrize("top", [0, 4])
def test_a_vocabulary_survives_its_file(tmp_path, top):
    vocabulary, *_ = learn(np.random.default_rng(1), genes=True, top_genes=top)
    vocabulary.save(tmp_path / "vocab.json")
    assert Vocabulary.load(tmp_path / "vocab.json") == vocabulary
    assert [p.name for p in tmp_path.iterdir()] == ["vocab.json"]
    stored = json.loads((tmp_path / "vocab.json").read_text())
    assert stored["size"] == vocabulary.size and stored["types"] == vocabulary.types()


WRONG = {
    "regulators": [0, -1, 2.5, "6", None, True],
    "states": [0],
    "top_programs": [0, K + 1],
    "top_genes": [0, G + 1],
    "genes": [0],
    "dose_edges": [[0.5, 0.5], [0.5, 0.1], [float("nan")], ["x"], 3],
    "magnitude_edges": [[1.0, float("inf")], None],
    "gene_edges": [[2.0, 1.0]],
    "size": [1, None],
    "types": [[], None],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in WRONG for value in WRONG[name]])
def test_a_file_with_nonsense_is_refused(tmp_path, name, value):
    path = tmp_path / "vocab.json"
    learn(np.random.default_rng(1), genes=True, top_genes=4)[0].save(path)
    stored = json.loads(path.read_text())
    assert name in stored
    path.write_text(json.dumps(stored | {name: value}))
    with pytest.raises(ValueError, match=r"vocab\.json"):
        Vocabulary.load(path)
    path.write_text(json.dumps({key: kept for key, kept in stored.items() if key != name}))
    with pytest.raises(ValueError, match=r"vocab\.json"):
        Vocabulary.load(path)


@pytest.mark.parametrize("text", ["", "[]", "{", "3", "null"])
def test_a_file_that_is_no_vocabulary_is_refused(tmp_path, text):
    path = tmp_path / "vocab.json"
    path.write_text(text)
    with pytest.raises(ValueError):
        Vocabulary.load(path)
