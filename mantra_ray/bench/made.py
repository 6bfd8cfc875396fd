"""Models and records of random weights and numbers, as large as a benchmark wants them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from mantra_ray.config import NexusConfig
from mantra_ray.nexus.adapter import Nexus
from mantra_ray.nexus.records import Records
from mantra_ray.nexus.routing import make_routes
from mantra_ray.nexus.tokens import Vocabulary

PROGRAMS, BINS, DOSES = 75, 9, 8


@dataclass(frozen=True)
class Size:
    """How much is measured, and how much is compared with the reference."""

    width: int = 256
    layers: int = 4
    heads: int = 4
    regulators: int = 10_000
    states: int = 16
    headers: int = 2**20
    vocabulary: int = 40_000  # of the head alone
    head_tokens: int = 2**15
    batches: tuple[int, ...] = (1024, 8192)
    steps: int = 8  # of Mode B in one measurement
    window: int = 1024
    windows: int = 64
    checked: int = 2048  # records
    checked_windows: int = 4  # whose logits are more than one chunk


QUICK = Size(32, 2, 2, 60, 3, 512, 300, 256, (64,), 2, 24, 4, 32, 2)


def make_records(size: Size, count: int, device: str, seed: int = 0) -> tuple[Vocabulary, Records]:
    """Records of distinct headers and random content, 20 tokens each, and their vocabulary."""
    vocabulary = Vocabulary(
        regulators=size.regulators,
        states=size.states,
        programs=PROGRAMS,
        dose_edges=tuple((i + 1) / DOSES for i in range(DOSES - 1)),
        magnitude_edges=tuple(0.1 * (i + 1) for i in range(BINS - 1)),
        top_programs=16,
    )
    draw = torch.Generator().manual_seed(seed)
    code = torch.randperm(size.regulators * DOSES * size.states, generator=draw)[:count]
    regulator, dose, state = code // (DOSES * size.states), code // size.states % DOSES, code % size.states
    content = torch.randint(vocabulary.first_program, vocabulary.first_gene, (count, 16), generator=draw)
    records = Records(
        header=torch.stack([regulator, vocabulary.first_dose + dose, vocabulary.first_state + state], dim=1),
        content=F.pad(content, (0, 1), value=vocabulary.special("ENDREC")),
        dose=(dose + 0.5) / DOSES,
        base=torch.randn(count, PROGRAMS, generator=draw),
        residual=torch.randn(count, PROGRAMS, generator=draw),
        noise=torch.full((count,), 0.1),
        bucket=(regulator % 512)[:, None],
        state=state,
        record=torch.arange(count),
        known=torch.ones(count, dtype=torch.bool),
    )
    return vocabulary, Records(**{name: tensor.to(device) for name, tensor in vars(records).items()})


def make_model(size: Size, vocabulary: Vocabulary, device: str, compiled: bool, **settings) -> Nexus:
    """A model of random weights; `settings` of the memory's configuration."""
    torch.manual_seed(0)
    sizes = {"d_model": size.width, "layers": size.layers, "heads": size.heads, "top_programs": 16}
    config = NexusConfig(**sizes, window=size.window, language_share=1.0, **settings)
    model = Nexus(vocabulary, config, make_routes(config, 0, 0), PROGRAMS).to(device).eval()
    model.transformer.compiled = compiled
    return model
