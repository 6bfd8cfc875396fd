"""What the memory's reader predicts from, and what it never sees. A warmed model of small random weights."""

import copy
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray.config import NexusConfig
from mantra_ray.nexus.adapter import Nexus, Records, hidden_share
from mantra_ray.nexus.cam import EMPTY, Memory
from mantra_ray.nexus.tokens import REG, Vocabulary
from mantra_ray.nexus.warming import warm

quick = settings(max_examples=15, deadline=None)
BUCKETS, SEEN, UNSEEN, PROGRAMS = 8, 14, 10, 5  # so that some buckets are shared
CONFIG = NexusConfig(slots=16, regret_gamma=-np.inf, d_model=16, heads=2, layers=2, top_programs=3)


@dataclass
class Case:
    model: Nexus
    train: Records
    test: Records
    memory: Memory

    def warmed(self, train: Records) -> Memory:
        return warm(self.model.empty_memory(), self.model.stream(train), self.model.config)[0]

    def correct(self, records: Records, memory: Memory | None = None, **options) -> torch.Tensor:
        with torch.no_grad():
            return self.model(self.memory if memory is None else memory, records, **options)[0]

    def read(self, records: Records, **options):
        with torch.no_grad():
            return self.model(self.memory, records, **options)[2]


def build(config: NexusConfig = CONFIG, seed: int = 0, buckets: int = BUCKETS) -> Case:
    """14 seen regulators with 6 records each, all in the memory, and 10 unseen ones with 2 each."""
    rng = np.random.default_rng(seed)
    seen = [(r, d, s) for r in range(SEEN) for d in (0.3, 0.6, 0.95) for s in range(2)]
    unseen = [(r, 0.6, s) for r in range(SEEN, SEEN + UNSEEN) for s in range(2)]
    regulator, dose, state = np.array(seen + unseen).T
    regulator, state, count = regulator.astype(int), state.astype(int), len(seen)
    program = rng.normal(size=(len(regulator), PROGRAMS))
    vocabulary = Vocabulary.learn(
        dose[:count],
        program[:count],
        SEEN + UNSEEN,
        2,
        dose_bins=config.dose_bins,
        magnitude_bins=config.magnitude_bins,
        top_programs=config.top_programs,
    )
    records = Records(
        header=torch.tensor(vocabulary.header(regulator, dose, state)),
        content=torch.tensor(vocabulary.content(program)),
        dose=torch.tensor(dose, dtype=torch.float32),
        residual=torch.tensor(rng.normal(size=program.shape), dtype=torch.float32),
        base=torch.tensor(rng.normal(size=program.shape), dtype=torch.float32),
        noise=torch.full((len(regulator),), 0.1),
        bucket=torch.tensor(regulator % buckets),
        state=torch.tensor(state),
        record=torch.arange(len(regulator)),
        known=torch.tensor(regulator < SEEN),
    )
    torch.manual_seed(seed)
    model = Nexus(vocabulary, config, buckets).eval()
    with torch.no_grad():  # a reader that has learned something of every feature
        for parameter in (model.gate[2].weight, model.gate_semantic.weight, model.decoder, model.transport):
            parameter += 0.3 * torch.randn_like(parameter)
    case = Case(model, records.take(slice(count)), records.take(slice(count, None)), model.empty_memory())
    case.memory = case.warmed(case.train)
    return case


@pytest.fixture(scope="module")
def case() -> Case:
    return build()


def with_(records: Records, **changes) -> Records:
    return replace(records, **changes)


def scrambled(memory: Memory, slots: torch.Tensor) -> Memory:
    """A copy with the values and keys of some slots [B, S] made wild."""
    memory = memory.clone()
    memory.value[slots] = 1e3 * torch.randn_like(memory.value[slots])
    memory.key[slots] = torch.nn.functional.normalize(torch.randn_like(memory.key[slots]), dim=-1)
    return memory


@quick
@given(st.integers(0, SEEN * 6 - 1))
def test_a_record_never_reads_itself_but_its_siblings_do(number):
    case = build()
    wild = case.train.residual.clone()
    wild[number] = torch.tensor([1e3, -1e3, 1e3, 5e2, 7e2])
    memory = case.warmed(with_(case.train, residual=wild))
    assert torch.equal(memory.record, case.memory.record) and (memory.record == number).any()
    before, after = case.correct(case.train), case.correct(case.train, memory)
    assert torch.equal(before[number], after[number])
    siblings = (case.train.header[:, REG] == case.train.header[number, REG]) & (case.train.record != number)
    assert ((before - after)[siblings].abs().amax(-1) > 1e-2).all()
    assert torch.equal(before[~siblings], after[~siblings])


def test_the_value_holds_the_whole_record(case):
    """What a sibling reads moves with every program of a record, in that program alone."""
    for program in range(PROGRAMS):
        residual = case.train.residual.clone()
        residual[7, program] += 1e-3
        moved = (
            case.correct(case.train, case.warmed(with_(case.train, residual=residual))) - case.correct(case.train)
        )[6]
        others = np.delete(moved.abs().numpy(), program)
        assert moved[program].abs() > 1e-6 and others.max() < 0.1 * moved[program].abs()


@pytest.mark.parametrize("transport", [0.0, 1.0])
def test_transport_goes_from_the_recalled_miss_to_the_recalled_observation(transport):
    case = build()
    with torch.no_grad():
        case.model.transport.fill_(transport)
        case.model.decoder.fill_(1.0)
    memory = case.warmed(case.train.take(slice(0, 1)))  # record 0 is all that its siblings can recall
    sibling = case.train.take(slice(1, 2))
    with torch.no_grad():
        correction, gate, _, _ = case.model(memory, sibling)
    observed = case.train.residual[0] + transport * (case.train.base[0] - sibling.base[0])
    assert torch.allclose(correction[0], gate[0] * observed, atol=1e-5)


@pytest.mark.parametrize("what", ["state", "token"])
def test_hidden_slots_are_not_read(case, what):
    hide = case.train.state if what == "state" else case.train.header[:, REG]
    held = case.memory.state if what == "state" else case.memory.token
    options = {f"hide_{what}": hide}
    used = case.read(case.train, **options).weight > 0
    assert used.any() and not (used & (held[case.train.bucket] == hide[:, None])).any()
    before, shown = case.correct(case.train, **options), case.correct(case.train)
    for value in hide.unique():
        memory = scrambled(case.memory, held == value)
        rows = hide == value
        assert torch.equal(case.correct(case.train, memory, **options)[rows], before[rows])
        assert ((case.correct(case.train, memory) - shown)[rows].abs().amax(-1) > 1e-3).all()


def test_nothing_is_hidden_by_the_mark_of_an_empty_slot(case):
    nothing = torch.full_like(case.train.state, EMPTY)
    hidden = case.correct(case.train, hide_state=nothing, hide_token=nothing)
    assert torch.equal(hidden, case.correct(case.train))


@quick
@given(st.floats(0, 1), st.integers(0, 2**31))
def test_the_share_of_records_from_whom_something_is_hidden(share, seed):
    values = torch.arange(1000)
    chosen = hidden_share(values, share, torch.Generator().manual_seed(seed))
    kept = chosen != EMPTY
    assert torch.equal(chosen[kept], values[kept])
    assert abs(float(kept.float().mean()) - share) <= 5 * np.sqrt(share * (1 - share) / 1000)


def test_an_empty_memory_corrects_by_exactly_zero(case):
    empty = case.model.empty_memory()
    for records in (case.train, case.test):
        assert torch.equal(case.correct(records, empty), torch.zeros(len(records), PROGRAMS))
    assert empty.equals(case.model.empty_memory()) and empty.occupancy == 0


def test_an_empty_bucket_corrects_by_exactly_zero_with_a_finite_gradient():
    case = build(buckets=512)
    model = copy.deepcopy(case.model)
    correction, gate, found, _ = model(case.memory, case.test)
    assert torch.equal(correction, torch.zeros(len(case.test), PROGRAMS))
    assert torch.equal(found.sim_max, torch.zeros(len(case.test))) and torch.isfinite(gate).all()
    everyone = Records(**{k: torch.cat([v, getattr(case.test, k)]) for k, v in vars(case.train).items()})
    correction, *_ = model(case.memory, everyone)
    assert (correction[: len(case.train)].abs().amax(-1) > 0).all()
    (correction - 1).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@quick
@given(st.integers(0, 2**32 - 1))
def test_predictions_do_not_depend_on_order_nor_on_the_batch(seed):
    case, rng = build(), np.random.default_rng(seed)
    order = torch.tensor(rng.permutation(len(case.train)))
    alone = torch.tensor(rng.integers(0, len(case.train), 5))
    whole = case.correct(case.train)
    assert torch.allclose(case.correct(case.train.take(order)), whole[order], atol=1e-5)
    for row in alone:
        assert torch.allclose(case.correct(case.train.take(row[None])), whole[row][None], atol=1e-5)


def test_prediction_changes_nothing_in_the_memory_nor_in_the_model(case):
    memory, weights = case.memory.clone(), copy.deepcopy(case.model.state_dict())
    case.correct(case.train)
    case.correct(case.test, hide_state=case.test.state)
    case.model.stream(case.train)
    case.model.language_loss(case.train)
    assert case.memory.equals(memory)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in case.model.state_dict().items())


def test_the_header_alone_predicts(case):
    """Neither the content, nor the residual, nor its noise of a record touch its own prediction or query."""
    before, keys = case.correct(case.test), case.model.stream(case.test)
    blind = with_(
        case.test,
        content=(case.test.content + 17) % case.model.vocabulary.size,
        residual=torch.full_like(case.test.residual, torch.nan),
        noise=torch.full_like(case.test.noise, torch.nan),
    )
    assert torch.equal(case.correct(blind), before)
    after = case.model.stream(blind)
    assert torch.equal(after.candidates.key, keys.candidates.key) and torch.equal(after.signal, keys.signal)
    assert not torch.equal(after.surprisal, keys.surprisal)


def test_every_part_of_the_header_predicts(case):
    """Two regulators, doses or states that read the same slots are still told apart."""
    first = case.test.take(slice(0, 1))
    before = case.correct(first)
    dose_token = with_(first, header=first.header + torch.tensor([[0, 1, 0]]))
    dose = with_(first, dose=first.dose + 0.3)
    state_token = with_(first, header=first.header + torch.tensor([[0, 0, 1]]))
    known = {"known": torch.tensor([True])}
    other = with_(first, header=first.header + torch.tensor([[1, 0, 0]]))
    for changed in (dose_token, dose, state_token):
        assert (case.correct(changed) - before).abs().max() > 1e-5
    assert (case.correct(with_(other, **known)) - case.correct(with_(first, **known))).abs().max() > 1e-5


def test_regulators_are_corrected_each_in_its_own_way(case):
    """The old fault: one read for every regulator, so that all were corrected alike."""
    same = (case.train.header[:, 1:] == case.train.header[0, 1:]).all(1)
    correction = case.correct(case.train.take(same))
    assert len(correction) == SEEN
    assert torch.pdist(correction).min() > 1e-2


def test_an_unseen_regulators_embedding_is_not_used(case):
    """Unseen regulators of one bucket are one and the same to the model."""
    unseen = case.test.header[:, REG]
    swapped = SEEN + (unseen - SEEN + BUCKETS) % UNSEEN
    other = with_(case.test, header=torch.cat([swapped[:, None], case.test.header[:, 1:]], dim=1))
    assert not torch.equal(other.header, case.test.header)
    with torch.no_grad():
        assert torch.equal(case.model.hidden(other), case.model.hidden(case.test))
    assert torch.equal(case.correct(other), case.correct(case.test))
    model = copy.deepcopy(case.model)
    with torch.no_grad():
        model.transformer.embedding.weight[SEEN : SEEN + UNSEEN] = 1e3
        assert torch.equal(model(case.memory, case.test)[0], case.correct(case.test))
        assert torch.equal(model(case.memory, case.train)[0], case.correct(case.train))


def test_a_seen_regulator_taken_for_unseen_loses_its_embedding(case):
    hidden = case.model.hidden(case.train, known=torch.zeros(len(case.train), dtype=torch.bool))
    same = (case.train.header[:, 1:] == case.train.header[0, 1:]).all(1)
    assert torch.allclose(hidden[same], hidden[same][:1], atol=1e-5)
    assert (torch.pdist(case.model.hidden(case.train)[same][:, 2]) > 1e-2).all()


@pytest.mark.parametrize(("alpha", "uniform"), [(0.0, True), (0.5, False), (1.0, False)])
def test_alpha_decides_whether_slots_of_a_bucket_are_told_apart(alpha, uniform):
    case = build(replace(CONFIG, query_alpha=alpha))
    weight = case.read(case.train).weight
    spread = [float(row[row > 0].max() - row[row > 0].min()) for row in weight]
    if uniform:
        assert max(spread) < 1e-5
        counts = (weight > 0).sum(1)
        assert torch.allclose(weight.amax(1), 1 / counts, atol=1e-5) and (counts == 5).all()
    else:
        assert min(spread) > 1e-2


def test_the_query_is_a_unit_vector_between_the_hidden_state_and_the_centroid():
    found = {}
    for alpha in (0.0, 0.3, 1.0):
        case = build(replace(CONFIG, query_alpha=alpha))
        with torch.no_grad():
            hidden = case.model.hidden(case.train)
            found[alpha] = case.model.query(hidden, case.train.bucket)
        assert torch.allclose(found[alpha].norm(dim=-1), torch.ones(len(case.train)), atol=1e-5)
    unit = torch.nn.functional.normalize
    assert torch.allclose(found[1.0], unit(hidden[:, 2], dim=-1), atol=1e-5)
    assert torch.allclose(found[0.0], unit(case.model.centroid[case.train.bucket], dim=-1), atol=1e-5)
    assert torch.allclose(found[0.3], unit(0.3 * found[1.0] + 0.7 * found[0.0], dim=-1), atol=1e-5)


def test_trust_starts_from_what_reads_are_worth():
    """Residuals that siblings share are trusted by about 1, residuals of chance by about 0."""
    gates = {}
    for name, shared in (("shared", 1.0), ("chance", 0.0)):
        case = build()
        own = torch.randn(SEEN, PROGRAMS, generator=torch.Generator().manual_seed(3))[case.train.header[:, REG]]
        train = with_(case.train, residual=own if shared else case.train.residual)
        torch.manual_seed(0)
        model = Nexus(case.model.vocabulary, CONFIG, BUCKETS).eval()
        memory, _ = warm(model.empty_memory(), model.stream(train), CONFIG)
        before = copy.deepcopy(model.state_dict())
        model.trust_(memory, train, torch.eye(PROGRAMS))
        changed = {n for n, tensor in model.state_dict().items() if not torch.equal(tensor, before[n])}
        assert changed == {"gate_prior"}
        with torch.no_grad():
            gates[name] = model(memory, train)[1]
    assert (gates["shared"] - 1).abs().max() < 0.1 and gates["chance"].max() < 0.4


def test_trust_tells_apart_what_holds_within_a_state_and_across():
    """Residuals that only records of one state share are trusted there, and not from another state."""
    case = build(replace(CONFIG, query_alpha=1.0, tau=0.02))
    own = torch.randn(SEEN, 2, PROGRAMS, generator=torch.Generator().manual_seed(3))
    train = with_(case.train, residual=own[case.train.header[:, REG], case.train.state])
    torch.manual_seed(0)
    model = Nexus(case.model.vocabulary, case.model.config, BUCKETS).eval()
    memory, _ = warm(model.empty_memory(), model.stream(train), model.config)
    model.trust_(memory, train, torch.eye(PROGRAMS))
    with torch.no_grad():
        within, across = model(memory, train)[1], model(memory, train, hide_state=train.state)[1]
    assert within.min() > 0.8 and across.max() < 0.4


def test_the_language_loss_is_the_cross_entropy_of_the_next_token(case):
    tokens = torch.cat([case.train.header, case.train.content], dim=1)
    with torch.no_grad():
        hidden = case.model.transformer(tokens, case.train.known)
        log_p = torch.log_softmax(case.model.transformer.logits(hidden), dim=-1)
        expected = -log_p[:, :-1].gather(-1, tokens[:, 1:, None]).mean()
        assert torch.allclose(case.model.language_loss(case.train), expected, atol=1e-5)


def test_the_stream_carries_the_heads_entropy_and_surprisal_at_the_header(case):
    stream = case.model.stream(case.train)
    with torch.no_grad():
        p = torch.softmax(case.model.transformer.logits(case.model.hidden(case.train)[:, 2]), dim=-1).numpy()
    entropy = [-(row[row > 0] * np.log(row[row > 0])).sum() for row in p]
    np.testing.assert_allclose(stream.signal, entropy, rtol=1e-4)
    surprisal = [-np.log(row[c[:-1]]).mean() for row, c in zip(p, case.train.content.numpy(), strict=True)]
    np.testing.assert_allclose(stream.surprisal, surprisal, rtol=1e-4)
