"""The recall benchmark: the stream, the probes and the command."""

import dataclasses
import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from mantra_ray.bench.probes import COMMON, RARE, Filled, fill, recalls
from mantra_ray.bench.recall import ABLATIONS, MAIN, PAPER, interval, main
from mantra_ray.bench.zipf import (
    CACHE,
    CACHE_SHARE,
    ORDINARY,
    SEGMENT,
    StreamConfig,
    blur,
    make_stream,
    probabilities,
    running_surprisal,
    unit,
)
from mantra_ray.config import NexusConfig
from mantra_ray.errors import InputError

quick = settings(max_examples=8, deadline=None)
seeds = st.integers(0, 2**32 - 1)
SMALL = StreamConfig(tokens=300, vocabulary=120, pairs=20, dim=16)
OPEN = NexusConfig(regret_gamma=-math.inf)
TINY = ["--tokens", "400", "--vocabulary", "60", "--pairs", "10", "--dim", "8", "--device", "cpu"]


def filled(buckets, slots, config=OPEN, seed=0, stream_config=SMALL):
    stream = make_stream(stream_config, seed)
    return fill(stream, buckets, slots, stream_config.ids, config, seed, "cpu"), stream


@quick
@given(seeds)
def test_frequencies_follow_zipf(seed):
    config = StreamConfig(tokens=20_000, vocabulary=2_000, exponent=1.2, pairs=50, dim=2)
    stream = make_stream(config, seed)
    ordinary = stream.token[stream.pair == ORDINARY]
    expected = probabilities(config.vocabulary, config.exponent) * len(ordinary)
    edges = np.r_[0, 1, 2, 4, 8, 16, 64, 256, 1024]
    seen = np.add.reduceat(np.bincount(ordinary, minlength=config.vocabulary), edges)
    assert chisquare(seen, np.add.reduceat(expected, edges)).pvalue > 1e-6
    assert probabilities(2_000, 1.2)[9] / probabilities(2_000, 1.2)[0] == pytest.approx(10**-1.2)


@quick
@given(seeds, st.integers(1, 120))
def test_injected_pairs_are_unique(seed, pairs):
    config = dataclasses.replace(SMALL, pairs=pairs)
    stream = make_stream(config, seed)
    assert len(stream.token) == config.tokens
    rows = np.flatnonzero(stream.pair != ORDINARY)
    assert sorted(stream.pair[rows]) == list(range(pairs))
    keys = stream.token[rows]
    assert len(np.unique(keys)) == pairs and keys.min() >= config.vocabulary and keys.max() < config.ids
    assert stream.token[stream.pair == ORDINARY].max() < config.vocabulary
    assert np.isclose(stream.pair_code @ stream.pair_code.T, 1).sum() == pairs  # each like itself alone
    assert np.array_equal(stream.value[rows], stream.pair_code[stream.pair[rows]])


def test_topics_come_in_segments_and_rare_tokens_keep_to_theirs():
    config = StreamConfig(tokens=40_000, vocabulary=500, pairs=1, dim=2)
    stream = make_stream(config, 0)
    changes = (np.diff(stream.topic) != 0).sum()
    assert 0.5 * config.tokens / SEGMENT < changes < 2 * config.tokens / SEGMENT
    main_topic = [np.bincount(stream.topic[stream.token == token]).max() for token in (0, 400)]
    counts = [(stream.token == token).sum() for token in (0, 400)]
    assert main_topic[0] / counts[0] < 0.1 and main_topic[1] / counts[1] > 0.5


@quick
@given(seeds)
def test_surprisal_is_that_of_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    ids, tokens = 30, rng.integers(0, 15, 400) ** 2 // 8
    expected = []
    for t, token in enumerate(tokens):
        before = list(tokens[:t])
        types, count = len(set(before)), before.count(token)
        new = types / ((t + types) * (ids - types)) if t else 1 / ids
        unigram = count / (t + types) if count else new
        window = before[-CACHE:]
        expected.append(
            -math.log((1 - CACHE_SHARE) * unigram + CACHE_SHARE * window.count(token) / max(len(window), 1))
        )
    assert np.allclose(running_surprisal(tokens, ids), expected)


@quick
@given(seeds, st.floats(0, 1))
def test_a_paraphrase_has_the_cosine_it_is_said_to_have(seed, cosine):
    rng = np.random.default_rng(seed)
    vectors = unit(rng.standard_normal((20, 16), dtype=np.float32))
    changed = blur(vectors, cosine, rng)
    assert np.allclose((vectors * changed).sum(-1), cosine, atol=1e-5)
    assert np.allclose(np.linalg.norm(changed, axis=-1), 1, atol=1e-5)


@quick
@given(seeds, st.integers(1, 40))
def test_a_memory_with_room_for_all_recalls_every_pair(seed, buckets):
    memory, stream = filled(buckets, SMALL.tokens, seed=seed)
    found = recalls(memory, stream, 0.5, seed)
    for name in ("dictionary", "rare", "common", "rare_by_use", "common_by_use"):
        if found[name][1]:
            assert found[name][0] == pytest.approx(1)
    assert math.isclose(found["semantic_held"][0], found["semantic"][0])


@quick
@given(seeds, st.sampled_from(["pss", "fifo"]))
def test_a_memory_that_is_too_small_does_not(seed, eviction):
    memory, stream = filled(2, 3, NexusConfig(regret_gamma=-math.inf, eviction=eviction), seed)
    found = recalls(memory, stream, 1.0, seed)
    for name in ("dictionary", "rare", "common"):
        share, count = found[name]
        if count:
            assert share <= found[f"{name}_ceiling"][0] <= 6 / max(count, 6)
    assert found["dictionary"][0] < 1 and found["common"][0] < 1


@quick
@given(seeds, st.sampled_from([(4, 3), (7, 2), (3, 16)]), st.sampled_from([-math.inf, 0.0]))
def test_recalls_are_those_of_a_plain_loop(seed, geometry, gamma):
    buckets, slots = geometry
    memory, stream = filled(buckets, slots, NexusConfig(regret_gamma=gamma), seed)
    found = recalls(memory, stream, 1.0, seed)
    held = memory.memory

    def look_up(row, named=True):
        """Value read and whether the best slot is the token's, in float64."""
        token = int(stream.token[row])
        bucket = token % buckets
        mixed = 0.5 * stream.hidden[row].astype(float) + 0.5 * memory.centroid[bucket].double().numpy()
        query = mixed / np.linalg.norm(mixed)
        taking = [s for s in range(slots) if held.record[bucket, s] >= 0]
        if named and any(held.token[bucket, s] == token for s in taking):
            taking = [s for s in taking if held.token[bucket, s] == token]
        if not taking:
            return np.zeros(SMALL.dim), False
        score = np.array([query @ held.key[bucket, s].double().numpy() / memory.config.tau for s in taking])
        weight = np.exp(score - score.max()) / np.exp(score - score.max()).sum()
        value = sum(w * held.value[bucket, s].double().numpy() for w, s in zip(weight, taking, strict=True))
        return value, bool(held.token[bucket, taking[int(weight.argmax())]] == token)

    rows = np.flatnonzero(stream.pair != ORDINARY)
    right = 0
    for row in rows:
        value, own = look_up(row)
        right += own and int(np.argmax(stream.pair_code @ value)) == stream.pair[row]
    assert found["dictionary"] == (right / len(rows), len(rows))

    ordinary = np.flatnonzero(stream.pair == ORDINARY)
    counts = {int(token): int(np.sum(stream.token == token)) for token in stream.token[ordinary]}
    last = {int(stream.token[row]): row for row in ordinary}
    own = {token: look_up(last[token])[1] for token in counts}
    rare = [token for token in counts if counts[token] < RARE * len(stream.token)]
    common = [token for token in counts if token <= COMMON]
    assert found["rare"][1] == len(rare) == 0  # one in 300 is no rare token
    assert found["common"] == (pytest.approx(np.mean([own[token] for token in common])), len(common))
    by_use = sum(own[token] * counts[token] for token in common) / sum(counts[token] for token in common)
    assert found["common_by_use"][0] == pytest.approx(by_use)
    possible = sum(min(slots, sum(token % buckets == b for token in common)) for b in range(buckets))
    assert found["common_ceiling"][0] == pytest.approx(possible / len(common))

    for name, named in (("semantic_at_1", True), ("semantic_free", False)):
        values = {row: look_up(row, named)[0] for row in ordinary}
        right = [v.any() and int(np.argmax(stream.topic_code @ v)) == stream.topic[row] for row, v in values.items()]
        assert found[name] == (pytest.approx(np.mean(right)), len(ordinary))


def test_rare_tokens_are_those_below_the_frequency():
    config = StreamConfig(tokens=25_000, vocabulary=30_000, pairs=5, dim=4)
    memory, stream = filled(64, 4, stream_config=config)
    found = recalls(memory, stream, 1.0, 0)
    uses = np.bincount(stream.token[stream.pair == ORDINARY])
    held = np.isin(np.arange(len(uses)), memory.memory.token.numpy())
    for name, chosen in (("rare", (uses > 0) & (uses <= 2)), ("common", (uses > 0) & (np.arange(len(uses)) <= 5_000))):
        assert found[name] == (pytest.approx(held[chosen].mean()), chosen.sum())


def test_under_load_surprise_keeps_pairs_that_age_drops():
    config = StreamConfig(tokens=4_000, vocabulary=300, pairs=50, dim=8)
    kept = {}
    for eviction in ("pss", "fifo"):
        memory, stream = filled(16, 16, NexusConfig(regret_gamma=-math.inf, eviction=eviction), 0, config)
        kept[eviction] = recalls(memory, stream, 1.0, 0)["dictionary"][0]
    assert kept["pss"] > 0.5 > kept["fifo"]


def test_an_empty_memory_recalls_nothing():
    memory, stream = filled(4, 4)
    memory = Filled(type(memory.memory).empty(4, 4, SMALL.dim, SMALL.dim, SMALL.ids), memory.centroid, OPEN, {})
    found = recalls(memory, stream, 1.0, 0)
    kinds = {name: share for name, (share, _) in found.items() if not name.endswith("_ceiling")}
    assert all(share == 0 or math.isnan(share) for share in kinds.values())
    assert math.isnan(kinds["semantic_held"]) and kinds["dictionary"] == 0


def test_what_a_paraphrase_keeps_decides_what_meaning_alone_finds():
    memory, stream = filled(2, SMALL.tokens, NexusConfig(regret_gamma=-math.inf, query_alpha=1.0))
    near, far = (recalls(memory, stream, cosine, 0) for cosine in (1.0, 0.0))
    assert near["semantic_free"][0] > 0.7 > 0.3 > far["semantic_free"][0]


@quick
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(50, 60)), min_size=1, max_size=4))
def test_an_interval_holds_its_mean_and_widens_with_disagreement(results):
    values, probes = [right / count for right, count in results], [count for _, count in results]
    mean, low, high = interval(values, probes)
    assert 0 <= low <= mean <= high <= 1 and mean == pytest.approx(np.mean(values)) and high > low
    agreed = interval([mean] * len(values), probes)
    assert agreed[2] - agreed[1] <= high - low + 1e-9


def test_intervals_against_known_numbers():
    assert interval([0.5], [10])[1:] == pytest.approx((0.2366, 0.7634), abs=1e-4)  # Wilson 1927
    mean, low, high = interval([0.2, 0.4, 0.6], [10**6] * 3)  # t of 2 degrees of freedom is 4.3027
    assert (mean, low) == pytest.approx((0.4, 0.0)) and high == pytest.approx(0.4 + 4.3027 * 0.2 / 3**0.5, abs=1e-4)
    assert all(math.isnan(limit) for limit in interval([math.nan, 0.5], [0, 4]))


def test_the_command_writes_every_row_and_prints_the_paper(tmp_path, capsys):
    args = [*TINY, "--seeds", "2", "--geometry", "512x32", "8x2", "8x2"]
    assert main([*args, "--out", str(tmp_path / "rows.parquet")]) == 0
    assert main([*args, "--no-ablations", "--out", str(tmp_path / "new" / "rows.json")]) == 0
    printed = capsys.readouterr().out
    assert "paper" in printed and "82.4" in printed and "PG-19" in printed
    rows = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    plain = json.loads((tmp_path / "new" / "rows.json").read_text())
    memories = {row["memory"] for row in rows}
    assert memories == {"PSS and gate", *ABLATIONS}
    assert {row["memory"] for row in plain} == {"PSS and gate"}
    per_memory = [row["metric"] for row in rows if (row["geometry"], row["memory"]) == ("8x2", "no gate")]
    assert len(per_memory) == len(set(per_memory)) and {*MAIN, "memory_bytes", "tokens_per_second"} <= set(per_memory)
    assert all(row["seeds"] == 2 and row["tokens"] == 400 for row in rows)

    def value(rows, geometry, memory, metric):
        (row,) = (r for r in rows if (r["geometry"], r["memory"], r["metric"]) == (geometry, memory, metric))
        return row["value"]

    assert value(rows, "512x32", "PSS and gate", "dictionary") == 1
    assert value(rows, "8x2", "no gate", "write_density") == 1 > value(rows, "8x2", "PSS and gate", "write_density")
    found = {memory: tuple(value(rows, "8x2", memory, f"semantic_at_{c}") for c in (1, 0.8)) for memory in ABLATIONS}
    assert len(set(found.values())) == len(ABLATIONS)  # each with a memory of its own
    for metric in (*MAIN, "semantic_swapped", "write_density"):  # the same again from the same seeds
        again = value(plain, "8x2", "PSS and gate", metric)
        first = value(rows, "8x2", "PSS and gate", metric)
        assert again == first or (again is None and math.isnan(first))


@pytest.mark.parametrize(
    "args",
    [
        ["--geometry", "512"],
        ["--geometry", "0x4"],
        ["--geometry", "512x-4"],
        ["--tokens", "10"],
        ["--pairs", "61", "--tokens", "400"],
        ["--pairs", "0"],
        ["--dim", "1"],
        ["--seeds", "0"],
        ["--seed", "-1"],
        ["--gamma", "nan"],
        ["--exponent", "0"],
        ["--paraphrase", "1.5"],
        ["--vocabulary", "0"],
        ["--device", "nowhere"],
        ["--out", "rows.csv"],
    ],
)
def test_bad_options_are_named(args, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        main([*TINY, *args])
    assert error.value.field == args[0] and not list(tmp_path.iterdir())


def test_the_papers_geometries_have_equal_slots():
    slots = [math.prod(map(int, name.split("x"))) for name in PAPER]
    assert slots == [16_384] * 3


def test_a_device_is_used_where_there_is_one():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    stream = make_stream(SMALL, 0)
    near, far = (fill(stream, 8, 4, SMALL.ids, OPEN, 0, device) for device in ("cpu", "cuda"))
    assert torch.equal(near.memory.record, far.memory.record.cpu())
