"""Mode A: the stream, what each half of the training moves, and what it gains."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray.config import LAPTOP, NexusConfig
from mantra_ray.evaluation.statistics import nested_gain
from mantra_ray.nexus.adapter import Nexus
from mantra_ray.training import language
from mantra_ray.training.language import stream_windows
from mantra_ray.training.nexus import train_nexus
from mantra_ray.training.state import TIMED

SIZE = LAPTOP | {"d_model": 16, "heads": 2, "top_programs": 3, "batch": 32}
SMALL = NexusConfig(
    **SIZE, mode="language", buckets=32, slots=8, regret_gamma=-4.0, epochs=2, language_epochs=3, window=60
)
STARTS = ("gate_prior", "transport")  # least squares on what the memory recalls


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 400))
def test_windows_cover_the_stream_and_are_of_one_length(records, length, window):
    tokens = torch.arange(records * length).reshape(records, length)  # every token tells its place
    windows = stream_windows(tokens, window)
    wide = min(window, records * length)
    assert windows.shape == (-(-records * length // wide), wide)
    assert torch.equal(windows.diff(dim=1), torch.ones_like(windows[:, 1:]))  # each is a piece of the stream
    assert torch.equal(windows.flatten().unique(), tokens.flatten())
    assert windows[:-1, 0].tolist() == list(range(0, wide * (len(windows) - 1), wide))  # only the last one overlaps
    assert windows[-1, -1] == tokens[-1, -1]


def curve(trained, metric) -> list[float]:
    return [row["value"] for row in trained.curves if row["metric"] == metric]


def weights(trained, transformer: bool) -> dict[str, torch.Tensor]:
    """Weights of the transformer, or all others but those that start from least squares."""
    named = trained.model.state_dict().items()
    return {n: t for n, t in named if n.startswith("transformer") == transformer and not n.endswith(STARTS)}


def same(mine: dict, theirs: dict) -> bool:
    return all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_the_language_loss_falls_on_training_and_on_validation_records(planted):
    fold = planted()
    trained = train_nexus(fold, dataclasses.replace(SMALL, epochs=0, language_epochs=8), 0)
    uniform = np.log(trained.inputs.vocabulary.size)
    for metric in ("language_loss", "validation_language_loss"):
        losses = curve(trained, metric)
        assert len(losses) == 8 and losses[-1] < 0.8 * losses[0] and losses[-1] < 0.8 * uniform


def test_each_half_of_the_training_moves_its_own_weights(planted, last_epoch):
    fold, found = planted(), {}
    for told, taught in ((0, 0), (3, 0), (3, 2)):
        found[told, taught] = train_nexus(fold, dataclasses.replace(SMALL, language_epochs=told, epochs=taught), 0)
    for transformer, stays, moves in ((False, (3, 0), (3, 2)), (True, (3, 2), (0, 0))):
        here = weights(found[3, 0], transformer)
        other = weights(found[moves], transformer)
        changed = {name for name in here if not torch.equal(here[name], other[name])}
        assert changed and (not transformer or changed == set(here))
        assert same(here, weights(found[stays], transformer))
    assert same(weights(found[0, 0], False), weights(found[3, 0], False))
    assert all(p.grad is None for n, p in found[0, 0].model.named_parameters() if n.startswith("transformer"))


def test_a_residual_of_ones_own_is_gained(planted):
    errors = []
    for seed in range(3):
        fold = planted(seed=seed)
        rows = fold.test[fold.regulator[fold.test] < 20]
        predicted = train_nexus(fold, dataclasses.replace(SMALL, epochs=6), seed).predict(fold).program[rows]
        error = np.square(fold.delta_program[rows] - predicted).mean(1)
        errors.append((error, np.square(fold.residual[rows]).mean(1), fold.regulator[rows], np.full(len(rows), seed)))
    assert nested_gain(*map(np.concatenate, zip(*errors, strict=True)), 1000, 0.95, rng_seed=0).lower > 0.3


def test_curves_go_on_from_the_language_model_to_the_head(planted):
    told = []
    trained = train_nexus(planted(), SMALL, 0, on_epoch=lambda epoch, metrics: told.append((epoch, metrics)))
    assert [epoch for epoch, _ in told] == list(range(6))  # 3 of language, then the start and 2 of the head
    rows = [(e, m, v) for e, metrics in told for m, v in metrics.items() if m not in TIMED]
    assert trained.curves == [{"epoch": e, "metric": m, "value": v} for e, m, v in rows]
    every = {"language_loss", "validation_language_loss", "write_density", "occupancy", "evictions"} | set(TIMED)
    assert all(every == m.keys() for _, m in told[:3])
    assert ["loss" in metrics for _, metrics in told] == [False] * 3 + [True, True, False]
    assert all("validation_gain" in metrics for _, metrics in told[3:])


def test_the_entropy_of_the_language_model_gates_the_writes(planted):
    """What is admitted moves with the language model, on a stream of one order."""
    fold, gated, held = planted(), dataclasses.replace(SMALL, regret_gamma=0.0, epochs=0), set()
    for epochs in (0, 3, 10):
        trained = train_nexus(fold, dataclasses.replace(gated, language_epochs=epochs), 0)
        held.add(tuple(trained.memories[0].record.flatten().tolist()))
        assert 0 < trained.diagnostics["gated_density"] < 1 - trained.diagnostics["primed_density"]
    assert len(held) > 1
    records, known = trained.inputs.records, torch.tensor(fold.regulator < 20)
    entropy = trained.model.streams(records.take(known))[0].signal
    assert entropy.std() > 1e-2  # nats


def test_the_same_from_the_same_seed_and_validation_rows_move_nothing(planted, last_epoch):
    fold = planted()
    content = fold.delta_program.copy()
    content[fold.validation] = 50 * np.random.default_rng(0).random(content[fold.validation].shape)
    other = dataclasses.replace(fold, delta_program=content)
    first, again, blind, third = (
        train_nexus(f, dataclasses.replace(SMALL, dropout=0.1), s)
        for f, s in ((fold, 3), (fold, 3), (other, 3), (fold, 4))
    )
    mine = first.model.state_dict()
    assert same(mine, again.model.state_dict()) and first.curves == again.curves
    assert same(mine, blind.model.state_dict()) and first.curves != blind.curves
    assert not same(mine, third.model.state_dict())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the mean of no errors
def test_no_validation_records_are_no_obstacle(planted):
    fold = dataclasses.replace(planted(), validation=np.zeros(0, np.int64))
    trained = train_nexus(fold, dataclasses.replace(SMALL, epochs=0, language_epochs=1), 0)
    assert not curve(trained, "validation_language_loss") and len(curve(trained, "language_loss")) == 1


def test_the_memory_is_written_in_the_order_of_the_records_whatever_the_order_of_the_stream(planted, monkeypatch):
    """Windows of the stream go through the transformer together, in an order of their own; they write nothing."""
    warm, streams, seen = Nexus.warm, Nexus.streams, []

    def listening(self, records):
        made = streams(self, records)
        seen.append((made[0].candidates.record.tolist(), made[0].candidates.stamp.tolist()))
        return made

    monkeypatch.setattr(Nexus, "streams", listening)
    fold = planted()
    trained = train_nexus(fold, dataclasses.replace(SMALL, language_epochs=2, epochs=0), 0)
    assert len(seen) == 4 and all(one == (fold.train.tolist(), list(range(len(fold.train)))) for one in seen)
    again, _ = warm(trained.model, trained.inputs.records.take(torch.tensor(fold.train)))
    assert all(memory.equals(other) for memory, other in zip(trained.memories, again, strict=True))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_stream_is_read_across_records_and_headers_alone(planted, monkeypatch):
    """Each epoch reads every record in windows, in a new order, and besides each record alone, some unnamed."""
    fold, seen = planted(), []

    class Listening(language.Stepper):
        def step(self):
            seen.append("step")
            super().step()

    monkeypatch.setattr(language, "Stepper", Listening)
    monkeypatch.setattr(
        "mantra_ray.nexus.adapter.Nexus.language_loss",
        lambda self, tokens, known=None: seen.append((tokens, known)) or self.transformer.norm.bias.sum(),
    )
    config = dataclasses.replace(SMALL, language_epochs=2, epochs=0, hide_regulator=0.4)
    trained = train_nexus(dataclasses.replace(fold, validation=fold.validation[:0]), config, 0)
    records = trained.inputs.records.take(torch.tensor(fold.train))
    tokens = torch.cat([records.header, records.content], dim=1)
    epochs = [seen[: len(seen) // 2], seen[len(seen) // 2 :]]
    streams = []
    for epoch in epochs:
        read = [one for one in epoch if one != "step"]
        streams.append(torch.cat([t for t, known in read if known is None]))
        alone = torch.cat([t for t, known in read if known is not None])
        known = torch.cat([known for _, known in read if known is not None])
        assert sorted(alone.tolist()) == sorted(tokens.tolist())
        assert 0.2 < 1 - known.float().mean() < 0.6
        assert len(read) == 2 * epoch.count("step")
    assert all(stream.shape[1] == 60 for stream in streams) and not torch.equal(*streams)
    assert torch.equal(streams[0].flatten().sort().values[-1], tokens.max())
