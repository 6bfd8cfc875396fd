"""Queries, the trust that a reader starts from, and what the language head tells of a record."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from mantra_ray.nexus.adapter import Nexus
from mantra_ray.nexus.tokens import REG

SEEN, PROGRAMS = 14, 5  # as in the case


@pytest.mark.parametrize(("alpha", "uniform"), [(0.0, True), (0.5, False), (1.0, False)])
def test_alpha_decides_whether_slots_of_a_bucket_are_told_apart(build, alpha, uniform):
    case = build(query_alpha=alpha)
    weight = case.read(case.train).weight
    spread = [float(row[row > 0].max() - row[row > 0].min()) for row in weight]
    if uniform:
        assert max(spread) < 1e-5
        counts = (weight > 0).sum(1)
        assert torch.allclose(weight.amax(1), 1 / counts, atol=1e-5) and (counts == 5).all()
    else:
        assert min(spread) > 1e-2


def test_the_query_is_a_unit_vector_between_the_hidden_state_and_the_centroid(build):
    found = {}
    for alpha in (0.0, 0.3, 1.0):
        case = build(query_alpha=alpha)
        with torch.no_grad():
            hidden = case.model.hidden(case.train)
            found[alpha] = case.reader.query(hidden, case.train.bucket[:, 0])
        assert torch.allclose(found[alpha].norm(dim=-1), torch.ones(len(case.train)), atol=1e-5)
    unit = torch.nn.functional.normalize
    assert torch.allclose(found[1.0], unit(hidden[:, 2], dim=-1), atol=1e-5)
    assert torch.allclose(found[0.0], unit(case.reader.centroid[case.train.bucket[:, 0]], dim=-1), atol=1e-5)
    assert torch.allclose(found[0.3], unit(0.3 * found[1.0] + 0.7 * found[0.0], dim=-1), atol=1e-5)


def test_trust_starts_from_what_reads_are_worth(build):
    """Residuals that siblings share are trusted by about 1, residuals of chance by about 0."""
    gates = {}
    for name, shared in (("shared", 1.0), ("chance", 0.0)):
        case = build()
        own = torch.randn(SEEN, PROGRAMS, generator=torch.Generator().manual_seed(3))[case.train.header[:, REG]]
        train = replace(case.train, residual=own if shared else case.train.residual)
        torch.manual_seed(0)
        model = Nexus(case.model.vocabulary, case.model.config, case.model.routes, PROGRAMS).eval()
        memories, _ = model.warm(train)
        before = copy.deepcopy(model.state_dict())
        model.trust_(memories, train, lambda correction: correction, train.residual)
        changed = {n for n, tensor in model.state_dict().items() if not torch.equal(tensor, before[n])}
        assert changed == {"readers.0.gate_prior"}
        with torch.no_grad():
            gates[name] = model(memories, train).gate
    assert (gates["shared"] - 1).abs().max() < 0.1 and gates["chance"].max() < 0.4


def test_trust_tells_apart_what_holds_within_a_state_and_across(build):
    """Residuals that only records of one state share are trusted there, and not from another state."""
    case = build(query_alpha=1.0, tau=0.02)
    own = torch.randn(SEEN, 2, PROGRAMS, generator=torch.Generator().manual_seed(3))
    train = replace(case.train, residual=own[case.train.header[:, REG], case.train.state])
    torch.manual_seed(0)
    model = Nexus(case.model.vocabulary, case.model.config, case.model.routes, PROGRAMS).eval()
    memories, _ = model.warm(train)
    model.trust_(memories, train, lambda correction: correction, train.residual)
    with torch.no_grad():
        within, across = model(memories, train).gate, model(memories, train, hide_state=train.state).gate
    assert within.min() > 0.8 and across.max() < 0.4


def test_the_language_loss_is_the_cross_entropy_of_the_next_token(case):
    tokens = torch.cat([case.train.header, case.train.content], dim=1)
    with torch.no_grad():
        hidden = case.model.transformer(tokens, case.train.known)
        log_p = torch.log_softmax(case.model.transformer.logits(hidden), dim=-1)
        expected = -log_p[:, :-1].gather(-1, tokens[:, 1:, None]).mean()
        assert torch.allclose(case.model.language_loss(tokens, case.train.known), expected, atol=1e-5)


def test_the_stream_carries_the_heads_entropy_and_surprisal_at_the_header(case):
    (stream,) = case.model.streams(case.train)
    with torch.no_grad():
        p = torch.softmax(case.model.transformer.logits(case.model.hidden(case.train)[:, 2]), dim=-1).numpy()
    entropy = [-(row[row > 0] * np.log(row[row > 0])).sum() for row in p]
    np.testing.assert_allclose(stream.signal, entropy, rtol=1e-4)
    surprisal = [-np.log(row[c[:-1]]).mean() for row, c in zip(p, case.train.content.numpy(), strict=True)]
    np.testing.assert_allclose(stream.surprisal, surprisal, rtol=1e-4)
