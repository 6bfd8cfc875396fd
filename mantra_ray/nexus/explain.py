"""What each retrieved slot adds to a correction."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from mantra_ray.nexus.adapter import Correction, Memories, Nexus
from mantra_ray.nexus.cam import EMPTY
from mantra_ray.nexus.records import Records


@dataclass
class Contributions:
    """C slots that took part in the corrections of some records, by manifold, record and slot."""

    row: Tensor  # [C] place of the corrected record among those asked for
    manifold: Tensor  # [C]
    record: Tensor  # [C] the slot's own record, token, state and dose
    token: Tensor  # [C]
    state: Tensor  # [C]
    dose: Tensor  # [C]
    weight: Tensor  # [C] of the softmax; adds up to 1 over a row and manifold
    similarity: Tensor  # [C] cosine of query and key
    hard: Tensor  # [C] bool, whether only slots of the record's own token took part
    value: Tensor  # [C, M] what the slot adds; adds up to the row's correction


@torch.no_grad()
def contributions(model: Nexus, memories: Memories, records: Records) -> tuple[Correction, Contributions]:
    """Corrections of records and the slots' shares in them: the correction is linear in what was recalled.

    Slot s of manifold h adds share_h * gate_h * decoder_h * w_s (residual_s + transport_h (base_s - base)), with base
    the corrected record's own. The model is left in evaluation mode.
    """
    model.eval()
    correction, parts = model(memories, records), []
    for h, (reader, memory, bucket) in enumerate(zip(model.readers, memories, records.bucket.unbind(1), strict=True)):
        found = correction.found[h]
        row, slot = (found.weight > 0).nonzero(as_tuple=True)
        at, weight = (bucket[row], slot), found.weight[row, slot]
        residual, base, dose, _ = memory.value[at].split([model.outputs, model.outputs, 1, 1], dim=1)
        recalled = (residual + reader.transport * (base - records.base[row])) * reader.decoder
        trust = correction.share[row, h] * correction.gate[row, h] * weight
        similarity = (reader.query(correction.hidden, bucket)[row] * memory.key[at]).sum(-1)
        own = (getattr(memory, name)[at] for name in ("record", "token", "state"))
        values = trust[:, None] * recalled
        parts.append((row, torch.full_like(row, h), *own, dose[:, 0], weight, similarity, found.hard[row], values))
    return correction, Contributions(*(torch.cat(column) for column in zip(*parts, strict=True)))


def without(memories: Memories, token: int, dose: float, state: int) -> Memories:
    """Memories in which the slots of that token, dose and state count as empty; the arguments stay as they are."""
    shown = []
    for memory in memories:
        same = (
            (memory.token == token) & (memory.state == state) & torch.isclose(memory.value[..., -2], torch.tensor(dose))
        )
        shown.append(dataclasses.replace(memory, record=memory.record.masked_fill(same, EMPTY)))
    return tuple(shown)
