"""The reader of one manifold: its queries, what it decodes, and how far it trusts that."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mantra_ray.config import NexusConfig
from mantra_ray.nexus.cam import Memory, Read
from mantra_ray.nexus.fused_read import recall
from mantra_ray.nexus.records import Records
from mantra_ray.nexus.routing import Route
from mantra_ray.nexus.tokens import REG

GATE_MAX = 2.0  # above 1, since a weak dose may recall what a strong one must exceed
READ_FEATURES = 8  # scalars that the gate sees besides the hidden state
NOBODY = -2  # a token that no slot carries

Reached = Callable[[Tensor], Tensor]


class Reader(nn.Module):
    """Query, gate and decoder of one manifold. The memory itself is passed in, never held."""

    def __init__(self, route: Route, config: NexusConfig, outputs: int):
        super().__init__()
        self.route, self.config, self.outputs = route, config, outputs
        width = config.d_model
        self.centroid = nn.Parameter(F.normalize(torch.randn(route.buckets, width), dim=-1))
        self.gate = nn.Sequential(nn.Linear(READ_FEATURES, 16), nn.GELU(), nn.Linear(16, 1))
        nn.init.zeros_(self.gate[2].weight)
        nn.init.zeros_(self.gate[2].bias)
        self.gate_semantic = nn.Linear(width, 1, bias=False)
        nn.init.zeros_(self.gate_semantic.weight)
        # logit of trust in other tokens' records, and what the own token and then the own state add to it
        self.gate_prior = nn.Parameter(torch.zeros(3))
        # one gain an output and no bias: a full matrix overfits, and a memory that holds nothing decodes to nothing
        self.decoder = nn.Parameter(torch.ones(outputs))
        # 0 recalls how far the base was off, 1 what was observed; the base's own noise decides between them
        self.transport = nn.Parameter(torch.zeros(()))

    def query(self, hidden: Tensor, bucket: Tensor) -> Tensor:
        """q = normalize(alpha * h + (1 - alpha) * c), h and c unit vectors: [N, D]."""
        alpha = self.config.query_alpha
        semantic = F.normalize(hidden[:, -1], dim=-1)
        centroid = F.normalize(self.centroid[bucket], dim=-1)
        return F.normalize(alpha * semantic + (1 - alpha) * centroid, dim=-1)

    def recall(
        self,
        memory: Memory,
        records: Records,
        bucket: Tensor,
        query: Tensor,
        hide_state: Tensor | None = None,
        hide_token: Tensor | None = None,
    ) -> Read:
        """Read for records that never see their own slot, nor those that are hidden from them."""
        token = records.header[:, REG]
        own = token if self.route.hard else torch.full_like(token, NOBODY)
        labels = (bucket, own, records.record, records.state)
        return recall(memory, query, *labels, hide_state, hide_token, self.config.tau)

    def parts(self, found: Read, base: Tensor) -> tuple[Tensor, Tensor]:
        """What was recalled for base predictions [N, M]: the residual, and the recalled base minus the own, [N, M].

        Their sum would take the record from its base all the way to the recalled observation.
        """
        filled = found.weight.sum(-1, keepdim=True)  # 0 where nothing was read, else 1
        residual, recalled = found.value[:, : self.outputs], found.value[:, self.outputs : 2 * self.outputs]
        return residual, recalled - filled * base

    def decode(self, found: Read, base: Tensor) -> Tensor:
        """Corrections [N, M] before the gate: recalled residual + transport * move, times one gain an output."""
        recalled, move = self.parts(found, base)
        moved = recalled + self.transport * move if self.config.transport == "learned" else recalled
        return moved * self.decoder

    def features(self, records: Records, found: Read) -> Tensor:
        """What the gate sees of a read, [N, READ_FEATURES]."""
        dose, seen_dose, noise = records.dose, found.value[:, -2], found.value[:, -1]
        count = (found.weight > 0).sum(-1)
        return torch.stack(
            [
                found.sim_max,
                torch.log1p(found.matches.to(dose.dtype)),
                count.clamp_min(1).to(dose.dtype).reciprocal(),
                found.spread.clamp_min(1e-6).log().clamp(-6, 6) / 3,
                noise.clamp_min(1e-6).log().clamp(-6, 6) / 3,
                dose,
                seen_dose,
                found.same_state,
            ],
            dim=-1,
        )

    def trust(self, hidden: Tensor, found: Read, features: Tensor) -> Tensor:
        """The gate [N, 1] in (0, GATE_MAX)."""
        steps = torch.stack(
            [torch.ones_like(found.sim_max), found.hard.to(features.dtype), found.hard * found.same_state], dim=-1
        )
        # the unit hidden state enters linearly: a few records must not fit a gate of their own
        semantic = self.gate_semantic(F.normalize(hidden[:, -1], dim=-1))
        return GATE_MAX * torch.sigmoid((steps @ self.gate_prior)[:, None] + self.gate(features) + semantic)

    @torch.no_grad()
    def trust_(
        self, memory: Memory, records: Records, bucket: Tensor, hidden: Tensor, reached: Reached, target: Tensor
    ) -> None:
        """Start transport and the gate's priors at least squares of training residuals on what others recall.

        Transport comes from reads of the own state, or of others where no read is hard. The gate gets one slope each
        for reads of other tokens (own token hidden), of the own token in other states (own state hidden) and of the
        own state; 1/2 where there are no such reads. `reached` maps corrections [n, M] to what
        is judged, against `target` [N, ·]. With `transport none` transport stays 0.
        """
        query = self.query(hidden, bucket)
        near = (None, None, lambda found: found.hard & (found.same_state > 0.5))
        across = (records.state, None, lambda found: found.hard)
        others = (None, records.header[:, REG], lambda found: ~found.hard & (found.weight.sum(-1) > 0))
        cases = (near, across, others) if self.route.hard else (others,)
        slopes = []
        for hide_state, hide_token, wanted in cases:
            found = self.recall(memory, records, bucket, query, hide_state, hide_token)
            rows = wanted(found)
            recalled, move = (reached(part[rows]) for part in self.parts(found, records.base))
            residual = target[rows]
            if not slopes and self.config.transport == "learned":
                both = torch.stack([recalled.flatten(), move.flatten()], dim=1).double()
                power = both.T @ both + 1e-9 * torch.eye(2, dtype=both.dtype, device=both.device)
                slope, moved = torch.linalg.solve(power, both.T @ residual.flatten().double())
                self.transport.copy_((moved / slope.clamp_min(1e-6)).clamp(0.0, 1.0))
            seen = recalled + self.transport * move
            slopes.append(torch.nan_to_num((seen * residual).sum() / seen.square().sum(), 0.5))
        logits = torch.zeros_like(self.gate_prior)
        logits[: len(slopes)] = torch.logit((torch.stack(slopes[::-1]) / GATE_MAX).clamp(0.01, 0.99))
        steps = torch.diff(logits, prepend=torch.zeros_like(logits[:1]))
        steps[len(slopes) :] = 0
        self.gate_prior.copy_(steps)
