"""Records as tensors, as the memory's reader takes them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mantra_ray.nexus.cam import EMPTY


@dataclass
class Records:
    """N records; M values each (changes of programs or of genes). Ids are positions in the data set."""

    header: Tensor  # [N, 3] token ids
    content: Tensor  # [N, C] token ids
    dose: Tensor  # [N]
    base: Tensor  # [N, M] predicted change before the memory, in units of the fold's residual scale
    residual: Tensor  # [N, M] observed minus base, same units
    noise: Tensor  # [N] variance of the residual's observation, mean over programs, same units squared
    bucket: Tensor  # [N, H] in each manifold
    state: Tensor  # [N]
    record: Tensor  # [N]
    known: Tensor  # [N] bool, whether the regulator has training records

    def take(self, rows: Tensor | slice) -> Records:
        return Records(**{name: tensor[rows] for name, tensor in vars(self).items()})

    def __len__(self) -> int:
        return len(self.record)


def hidden_share(values: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """`values` [N] kept for a random share of the rows and EMPTY elsewhere: what to hide from them."""
    chosen = torch.rand(len(values), generator=generator) < share
    return torch.where(chosen.to(values.device), values, EMPTY)
