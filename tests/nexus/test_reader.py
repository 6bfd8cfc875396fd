"""What each manifold reads, and how several are joined."""

import copy
from dataclasses import replace

import pytest
import torch

from mantra_ray.nexus.adapter import Nexus
from mantra_ray.nexus.cam import EMPTY
from mantra_ray.nexus.tokens import REG

SEEN, PROGRAMS, CLASSES = 14, 5, 3  # as in the case


def read_tokens(case, records, h: int) -> torch.Tensor:
    """Tokens [N, S] of the slots that manifold `h` gave any weight, EMPTY elsewhere."""
    found = case.full(records).found[h]
    return torch.where(found.weight > 0, case.memories[h].token[records.bucket[:, h]], EMPTY)


def test_a_class_gives_an_unseen_regulator_the_records_of_its_members(build):
    case = build(routing="class")
    tokens = read_tokens(case, case.test, 0)
    for row, regulator in zip(tokens, case.test.header[:, REG].tolist(), strict=True):
        members = set(range(regulator % CLASSES, SEEN, CLASSES)) if regulator < 23 else set()
        assert set(row.tolist()) - {EMPTY} == members  # the last one's class is unknown, and nobody else's
    own = read_tokens(case, case.train, 0)
    assert ((own == case.train.header[:, :1]) | (own == EMPTY)).all()  # who has records of its own reads them


def test_the_pathway_level_reads_the_whole_class_and_the_gene_level_the_own_records(build):
    case = build(routing="levels")
    gene, pathway = (read_tokens(case, case.train, h) for h in range(2))
    regulator = case.train.header[:, :1]
    assert ((gene == regulator) | (gene == EMPTY)).all() and (gene != EMPTY).any(1).all()
    assert ((pathway % CLASSES == regulator % CLASSES) | (pathway == EMPTY)).all()
    assert (pathway == regulator).any(1).all() and ((pathway != regulator) & (pathway != EMPTY)).any(1).all()
    found = case.full(case.train).found
    assert found[0].hard.all() and not found[1].hard.any()


def test_a_soft_read_sees_all_who_share_the_bucket_and_a_hard_one_its_own(build):
    hard, soft = (build(read=read, buckets=3) for read in ("hard", "soft"))
    regulator = hard.train.header[:, :1]
    own, whole = read_tokens(hard, hard.train, 0), read_tokens(soft, soft.train, 0)
    assert ((own == regulator) | (own == EMPTY)).all() and (own == regulator).any(1).all()
    assert ((whole % 3 == regulator % 3) | (whole == EMPTY)).all()
    assert ((whole != regulator) & (whole != EMPTY)).any(1).all()


def test_without_transport_the_recalled_residual_is_all_that_is_added(build):
    case = build(transport="none", start="fitted")
    found = case.read(case.train)
    expected = found.value[:, :PROGRAMS] * case.model.readers[0].decoder
    assert torch.equal(case.model.readers[0].decode(found, case.train.base), expected)
    reader = build().model.readers[0]
    assert not torch.allclose(reader.decode(found, case.train.base), expected)


@pytest.mark.parametrize(
    ("changes", "moved"), [({}, True), ({"transport": "none"}, False), ({"start": "plain"}, False)]
)
def test_training_starts_where_the_settings_say(build, changes, moved):
    case = build(**changes)
    reader = case.model.readers[0]
    with torch.no_grad():
        reader.transport.zero_()
        reader.gate_prior.zero_()
    target = -(case.train.base - case.train.base.mean(0))  # what moving to the recalled observation would leave
    case.model.trust_(case.memories, case.train, lambda correction: correction, target)
    assert bool(reader.transport != 0) == moved
    assert bool((reader.gate_prior != 0).any()) == (changes.get("start") != "plain")


@pytest.mark.parametrize("routing", ["levels", "hash"])
def test_shares_add_up_to_one_where_anything_was_read_and_the_sum_is_theirs(build, routing):
    case = build(routing=routing, buckets=64)  # unseen regulators have buckets of their own
    both, neither = [], []
    for records in (case.train, case.test):
        value, gate, share, found, _ = case.full(records)
        read = torch.stack([one.weight.sum(-1) > 0 for one in found], dim=1)
        total = read.any(1).float()
        assert torch.allclose(share.sum(1), total, atol=1e-6) and (share[~read] == 0).all() and (share[read] > 0).all()
        decoded = [r.decode(one, records.base) for r, one in zip(case.model.readers, found, strict=True)]
        expected = sum(share[:, h, None] * gate[:, h, None] * part for h, part in enumerate(decoded))
        assert torch.allclose(value, expected, atol=1e-5)
        assert torch.equal(value[total == 0], torch.zeros(int((total == 0).sum()), PROGRAMS))
        both.append(read.all(1).any())
        neither.append((~read).all(1).any())
    assert both[0] and neither[1]


@pytest.mark.parametrize("routing", ["levels", "hash"])
@pytest.mark.parametrize("cleared", [0, 1])
def test_an_empty_manifold_has_no_share_and_leaves_the_other_alone(build, routing, cleared):
    case = build(routing=routing)
    empty = case.model.empty_memory()
    memories = tuple(empty[h] if h == cleared else memory for h, memory in enumerate(case.memories))
    value, gate, share, found, _ = case.full(case.train, memories)
    left = 1 - cleared
    assert (share[:, cleared] == 0).all() and (share[:, left] == 1).all()
    alone = gate[:, left, None] * case.model.readers[left].decode(found[left], case.train.base)
    assert torch.allclose(value, alone, atol=1e-6) and value.abs().amax(1).min() > 0
    assert torch.equal(found[left].value, case.full(case.train).found[left].value)


@pytest.mark.parametrize("routing", ["levels", "hash"])
def test_fusion_decides_how_much_each_manifold_counts(build, routing):
    case = build(routing=routing)
    for preferred in range(2):
        with torch.no_grad():
            case.model.fusion.zero_()
            even = case.full(case.train).share
            case.model.fusion[preferred, 0] = 3.0
        assert torch.allclose(even, torch.full_like(even, 0.5))
        share = case.full(case.train).share
        assert (share[:, preferred] > 0.9).all()
    with torch.no_grad():  # by what each read was like
        case.model.fusion.zero_()
        case.model.fusion[0, 1:] = 1.0
    assert case.full(case.train).share[:, 0].std() > 1e-3


def test_one_manifold_needs_no_fusion(case):
    assert case.model.fusion is None and (case.full(case.train).share == 1).all()


def test_levels_start_from_what_reads_of_each_are_worth(build):
    """Residuals that a class shares are trusted by about 1 at its level, residuals of chance by about 0."""
    gates = {}
    for name in ("shared", "chance"):
        case = build(routing="levels", query_alpha=1.0, tau=0.02)  # reads of the own state, if any are shown
        common = torch.randn(CLASSES, PROGRAMS, generator=torch.Generator().manual_seed(3))
        shared = common[case.train.header[:, REG] % CLASSES]
        train = replace(case.train, residual=shared if name == "shared" else case.train.residual)
        torch.manual_seed(0)
        model = Nexus(case.model.vocabulary, case.model.config, case.model.routes, PROGRAMS).eval()
        memories, _ = model.warm(train)
        before = copy.deepcopy(model.state_dict())
        model.trust_(memories, train, lambda correction: correction, train.residual)
        changed = {n for n, tensor in model.state_dict().items() if not torch.equal(tensor, before[n])}
        assert changed <= {f"readers.{h}.{start}" for h in range(2) for start in ("gate_prior", "transport")}
        assert (model.readers[1].gate_prior[1:] == 0).all()  # the own token and state mean nothing there
        with torch.no_grad():
            gates[name] = model(memories, train).gate
    assert (gates["shared"] - 1).abs().max() < 0.1 and gates["chance"].max() < 0.5


def test_each_manifold_is_gated_by_a_threshold_of_its_own(build):
    shut = build(routing="levels", regret_gamma=float("inf"), priming=1)
    counts = [int((memory.record != EMPTY).sum()) for memory in shut.memories]
    assert counts == [SEEN, 6 * SEEN]
    shut = build(routing="levels", pathway_gamma=float("inf"), priming=1)
    assert [int((memory.record != EMPTY).sum()) for memory in shut.memories] == [6 * SEEN, SEEN]


def test_diagnostics_of_several_manifolds_are_sums_or_means(build):
    case = build(routing="levels", pathway_gamma=float("inf"), priming=1)
    _, seen = case.model.warm(case.train)
    assert seen["stored"] == 7 * SEEN and seen["write_density"] == pytest.approx((1 + 1 / 6) / 2)
    assert seen["memory_bytes"] == sum(memory.bytes for memory in case.memories)
    assert seen["occupancy"] == pytest.approx(sum(memory.occupancy for memory in case.memories) / 2)
